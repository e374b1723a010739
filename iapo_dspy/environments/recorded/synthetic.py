"""Synthetic environments with known laws: two of Table 1's kinds, and one in which nothing is shared.

All hold a few **deceptive** prompts: best when one completion is drawn, and caught where completions are aggregated.
A method that chooses the prompt at N = 1 and tunes N afterwards ends with one of them. Two more synthetic
environments, which hold some as well, have modules of their own: `factorial` and `families`.

**Bernoulli** (two answers, right or wrong). Query x has a difficulty d_x ~ N(0, 1) that all prompts share. With
sigma the logistic function, the probability of a right answer is

- *steady* prompts (6 of 32): sigma(a_p - 0.12 d_x + 0.10 e_px), a_p such that the mean lies between .56 and .64: right
  more often than not on nearly every query, so a vote lifts them to .9 and more;
- *deceptive* prompts (3 of 32): .96 on a share s_p of the queries, the easiest ones up to noise, and .22 on the others,
  s_p between .60 and .66: mean .66 to .71, above every steady prompt, but a vote settles at s_p;
- *plain* prompts (23 of 32): sigma(a_p - 0.8 d_x + 0.5 e_px), mean between .25 and .50.

e_px ~ N(0, 1). A completion costs .005 to .010, uniform over prompts; cost weights 0, 0.2, 1.

**Categorical** (two objectives, each 0, 1, 2, 3 or 4, so 25 outcomes). Objective k of prompt p on query x has the law
proportional to exp(-(v - m_pk - d_xk)^2 / (2 s_p^2)), d_xk ~ N(0, 0.5^2), the objectives independent:

- *bold* prompts (6 of 32): m around 1.5, leaning to one objective by up to 0.7, s_p = 1.3: modest on average, and a
  long upper tail that Best-of-N finds;
- *deceptive* prompts (3 of 32): m around 2.4 with the same lean, s_p = 0.35: the best single completions, hardly better
  in many;
- *plain* prompts (23 of 32): m around 1.0, s_p = 0.8.

A completion costs .020 to .040; 27 contexts: weights (w, 1 - w) for w = .1, .2, .., .9 and cost weights 0, 0.2, 1.

**Unstructured** (two answers, right or wrong). The results of a prompt on one query say nothing about another prompt on
that query, or about itself on other queries beyond its law: all cells are independent draws from the prompt's own
U-shaped Beta(s mu, s (1 - mu)), both parameters below 1. Shared queries and models of queries have nothing to find.

- *good* prompts (6 of 32): mean mu .58 to .66, s = 1.4: mild enough that a vote gains;
- *deceptive* prompts (3 of 32): mean .66 to .69, s = 0.15: nearly every cell is 0 or 1, and a vote changes nothing;
- *plain* prompts (23 of 32): mean .30 to .55, s between 0.3 and 1.4.

Costs are those of Bernoulli.
"""

from __future__ import annotations

import numpy as np

from iapo_dspy.environments.recorded.recording import BestOfRecording, VotingRecording
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray

COST_WEIGHTS = (0.0, 0.2, 1.0)
MAX_N = 32
_GOOD, _DECEPTIVE = 6 / 32, 3 / 32  # shares of prompts that scale, and of prompts that only seem good


def synthetic_bernoulli(*seed: int, n_prompts: int = 32, n_queries: int = 520) -> VotingRecording:
    """Draw a Synth-Bernoulli environment (majority vote; by default the size of Table 1).

    Args:
        seed: Seeds of the environment.
        n_prompts: P >= 2.
        n_queries: X >= 1.

    Returns:
        A recording with two answer classes, 0 (right) and 1 (wrong).
    """
    rng = np.random.default_rng(seed)
    steady, deceptive, plain = kinds(rng, n_prompts)
    difficulty = rng.normal(size=n_queries)
    theta = np.empty((n_prompts, n_queries))
    noise = rng.normal(size=theta.shape)
    theta[steady] = logistic(logit(rng.uniform(0.56, 0.64, len(steady))) - 0.12 * difficulty + 0.10 * noise[steady])
    theta[plain] = logistic(logit(rng.uniform(0.25, 0.50, len(plain))) - 0.8 * difficulty + 0.5 * noise[plain])
    ease = np.argsort(np.argsort(difficulty + noise[deceptive], axis=1), axis=1) / n_queries
    theta[deceptive] = np.where(ease < rng.uniform(0.60, 0.66, len(deceptive))[:, None], 0.96, 0.22)
    return right_or_wrong(theta, rng)


def synthetic_categorical(*seed: int, n_prompts: int = 32, n_queries: int = 512) -> BestOfRecording:
    """Draw a Synth-Categorical environment (Best-of-N with two objectives; by default the size of Table 1).

    Args:
        seed: Seeds of the environment.
        n_prompts: P >= 2.
        n_queries: X >= 1.

    Returns:
        A recording with 25 outcomes and 27 contexts.
    """
    rng = np.random.default_rng(seed)
    bold, deceptive, plain = kinds(rng, n_prompts)
    level, spread = np.empty(n_prompts), np.empty(n_prompts)
    level[bold], spread[bold] = rng.uniform(1.3, 1.7, len(bold)), 1.3
    level[deceptive], spread[deceptive] = rng.uniform(2.3, 2.5, len(deceptive)), 0.35
    level[plain], spread[plain] = rng.uniform(0.6, 1.4, len(plain)), 0.8
    lean = rng.uniform(-0.35, 0.35, n_prompts)
    mean = np.stack([level + lean, level - lean], axis=1)[:, None] + rng.normal(0.0, 0.5, (1, n_queries, 2))
    values = np.arange(5.0)
    law = np.exp(-((values - mean[..., None]) ** 2) / (2 * spread[:, None, None, None] ** 2))  # [P, X, 2, 5]
    law /= law.sum(axis=3, keepdims=True)
    probs = (law[:, :, 0, :, None] * law[:, :, 1, None, :]).reshape(n_prompts, n_queries, 25)
    first, second = np.meshgrid(values, values, indexing="ij")
    share = np.arange(1, 10) / 10
    return BestOfRecording(
        outcomes=np.stack([first.ravel(), second.ravel()], axis=1)[None, None],
        probs=probs,
        cost=rng.uniform(0.020, 0.040, n_prompts),
        weights=np.array([[w, 1.0 - w, price] for w in share for price in COST_WEIGHTS]),
    )


def synthetic_unstructured(*seed: int, n_prompts: int = 32, n_queries: int = 520) -> VotingRecording:
    """Draw an environment without shared structure (majority vote).

    Args:
        seed: Seeds of the environment.
        n_prompts: P >= 2.
        n_queries: X >= 1.

    Returns:
        A recording with two answer classes, 0 (right) and 1 (wrong).
    """
    rng = np.random.default_rng(seed)
    good, deceptive, plain = kinds(rng, n_prompts)
    mean, total = np.empty(n_prompts), np.empty(n_prompts)
    mean[good], total[good] = rng.uniform(0.58, 0.66, len(good)), 1.4
    mean[deceptive], total[deceptive] = rng.uniform(0.66, 0.69, len(deceptive)), 0.15
    mean[plain], total[plain] = rng.uniform(0.30, 0.55, len(plain)), rng.uniform(0.3, 1.4, len(plain))
    right, wrong = (mean * total)[:, None], ((1.0 - mean) * total)[:, None]
    theta = rng.beta(right, wrong, size=(n_prompts, n_queries))
    return right_or_wrong(theta, rng)


def kinds(rng: np.random.Generator, n_prompts: int) -> tuple[IntArray, IntArray, IntArray]:
    """Deal out which prompts scale, which are deceptive and which are plain, in random order."""
    if n_prompts < 2:
        raise ConfigurationError(f"A synthetic environment needs at least 2 prompts, got {n_prompts}.")
    order = rng.permutation(n_prompts)
    good, deceptive = max(1, round(_GOOD * n_prompts)), max(1, round(_DECEPTIVE * n_prompts))
    return order[:good], order[good : good + deceptive], order[good + deceptive :]


def right_or_wrong(theta: FloatArray, rng: np.random.Generator) -> VotingRecording:
    """Return the recording with these probabilities of a right answer [P, X]."""
    return VotingRecording(
        probs=np.stack([theta, 1.0 - theta], axis=2),
        answers=np.zeros(theta.shape[1], dtype=np.int64),
        cost=rng.uniform(0.005, 0.010, len(theta)),
        cost_weights=np.array(COST_WEIGHTS),
    )


def logit(p: FloatArray) -> FloatArray:
    """Return log-odds [P, 1] of probabilities [P]."""
    return np.log(p / (1.0 - p))[:, None]


def logistic(x: FloatArray) -> FloatArray:
    """Return probabilities of log-odds."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
