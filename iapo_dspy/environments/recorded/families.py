"""A synthetic environment with two families of prompts that find different queries hard.

Half of the prompts are chains of thought, half are programs (majority vote; two answers, right or wrong). Query x has
two difficulties, one for each family: d_x1 and d_x2 are N(0, 1) with the correlation .3. A prompt of family f finds the
query h_px = w_p1 d_x1 + w_p2 d_x2 hard, with the loading w of its own family's axis between .8 and 1.2 and that of the
other one between 0 and .4. With sigma the logistic function, the probability of a right answer is

- *good* prompts (6 of 32, half of them in each family): sigma(a_p - 0.45 h_px + 0.15 e_px), a_p = logit of a number
  between .58 and .66: mean .57 to .66, and a vote lifts them to .69 to .88;
- *deceptive* prompts (3 of 32): .96 on a share s_p of the queries, those where h_px + 0.5 e_px is smallest, and .22 on
  the others, s_p between .60 and .66: mean .66 to .71, above every good prompt, but a vote settles at s_p;
- *plain* prompts (23 of 32): sigma(a_p - h_px + 0.4 e_px), a_p = logit of a number between .25 and .50.

e_px ~ N(0, 1). The families take turns within each kind. Over queries, the logits of two plain prompts correlate at .87
within a family and at .53 across: one difficulty axis cannot tell both families what they will find hard. Costs are
those of Bernoulli, see `synthetic`.
"""

from __future__ import annotations

import numpy as np

from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.environments.recorded.synthetic import kinds, logistic, logit, right_or_wrong

_CORRELATION = 0.3


def synthetic_families(*seed: int, n_prompts: int = 32, n_queries: int = 520) -> VotingRecording:
    """Draw an environment with two families of prompts.

    Args:
        seed: Seeds of the environment.
        n_prompts: P >= 2; below 8 there is a single good prompt.
        n_queries: X >= 1.

    Returns:
        A recording with two answer classes, 0 (right) and 1 (wrong).

    Raises:
        ConfigurationError: P is below 2.
    """
    rng = np.random.default_rng(seed)
    good, deceptive, plain = kinds(rng, n_prompts)
    first = rng.normal(size=n_queries)
    second = _CORRELATION * first + np.sqrt(1.0 - _CORRELATION**2) * rng.normal(size=n_queries)
    family = np.empty(n_prompts, dtype=np.int64)
    for members in (good, deceptive, plain):
        family[members] = np.arange(len(members)) % 2
    own, other = rng.uniform(0.8, 1.2, (n_prompts, 1)), rng.uniform(0.0, 0.4, (n_prompts, 1))
    hard = own * np.stack([first, second])[family] + other * np.stack([second, first])[family]
    theta, noise = np.empty(hard.shape), rng.normal(size=hard.shape)
    theta[good] = logistic(logit(rng.uniform(0.58, 0.66, len(good))) - 0.45 * hard[good] + 0.15 * noise[good])
    theta[plain] = logistic(logit(rng.uniform(0.25, 0.50, len(plain))) - hard[plain] + 0.4 * noise[plain])
    ease = np.argsort(np.argsort(hard[deceptive] + 0.5 * noise[deceptive], axis=1), axis=1) / n_queries
    theta[deceptive] = np.where(ease < rng.uniform(0.60, 0.66, len(deceptive))[:, None], 0.96, 0.22)
    return right_or_wrong(theta, rng)
