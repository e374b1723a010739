"""A synthetic environment whose prompts are made of parts: instruction x decoding x LM.

P = 9 I prompts: each of I instructions (4 by default) under 3 decodings on 3 LMs, in random order; `parts [P, 3]` has
the labels (i, j, l) of instruction, decoding and LM. Majority vote with five answers: the right one, class 0, and four
wrong ones. Query x has a difficulty d_x ~ N(0, 1) that all prompts share. With sigma the logistic function, prompt p of
the parts (i, j, l) gives the right answer to x with the probability

    sigma((m_p - 0.8 d_x + 0.4 u_lx + 0.3 v_ix + 0.2 e_px) / t_j),    m_p = a_i + b_j + c_l + g_p,

and otherwise the wrong answer k with the probability proportional to r_xk^(1 / t_j). The noises u, v and e are N(0, 1):
what an LM or an instruction finds hard, it finds hard in all its prompts. The shares r_x ~ Dirichlet(2, 2, 2, 2) are
those of every prompt: the same wrong answers are popular with all of them.

- instructions: a_i takes evenly spaced values from -.35 to .35 in random order;
- decodings: temperatures t = .2, .6, 1.2 and effects b = .3, .15, 0;
- LMs: effects c = -1, -.3, .2; a completion costs .0004, .002, .012, times a length of .7 to 1.4 that is uniform over
  instructions;
- each of the effects a, b and c is off by N(0, .05^2), and the interactions of a prompt are g_p ~ N(0, .1^2).

The **cold** prompts (t = .2) are the deceptive ones: the best single completions, but cells near 0 or 1 and wrong
answers that agree, so a vote brings them .04 at most. The warmer ones disagree on their wrong answers, so that the
right one wins with a third of the votes: at N = 32 the best hot prompt (t = 1.2) is .03 to .15 better. Cost weights 0,
0.2, 1: at weight 0 the best arm has the dearest LM, at weight 1 often a cheaper one.
"""

from __future__ import annotations

import numpy as np

from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.environments.recorded.synthetic import COST_WEIGHTS, logistic
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray

TEMPERATURES = (0.2, 0.6, 1.2)
_DECODINGS = (0.3, 0.15, 0.0)
_LMS = (-1.0, -0.3, 0.2)
_PRICES = (0.0004, 0.002, 0.012)
_WRONG = 4  # answers


def synthetic_factorial(*seed: int, n_prompts: int = 36, n_queries: int = 520) -> VotingRecording:
    """Draw a factorial environment (majority vote).

    Args:
        seed: Seeds of the environment.
        n_prompts: P, a multiple of 9: P / 9 instructions, each under 3 decodings on 3 LMs.
        n_queries: X >= 1.

    Returns:
        A recording with five answer classes, 0 the right one, and the `parts` of each prompt.

    Raises:
        ConfigurationError: P is not a multiple of 9.
    """
    shape = n_prompts // 9, len(TEMPERATURES), len(_LMS)
    if n_prompts < 9 or n_prompts % 9:
        raise ConfigurationError(
            f"prompts is {n_prompts}; a factorial environment has instructions x 3 decodings x 3 LMs, so give a "
            "multiple of 9."
        )
    rng = np.random.default_rng(seed)
    parts = rng.permutation(np.indices(shape).reshape(3, -1).T)
    i, j, lm = parts.T
    spread = rng.permutation(np.linspace(-0.35, 0.35, shape[0])) if shape[0] > 1 else np.zeros(1)
    effects = [_off(np.asarray(values), rng) for values in (spread, _DECODINGS, _LMS)]
    level = effects[0][i] + effects[1][j] + effects[2][lm] + rng.normal(0.0, 0.1, n_prompts)
    difficulty = rng.normal(size=n_queries)
    noise = 0.4 * rng.normal(size=(len(_LMS), n_queries))[lm] + 0.3 * rng.normal(size=(shape[0], n_queries))[i]
    noise += 0.2 * rng.normal(size=noise.shape)
    temperature = np.array(TEMPERATURES)[j, None]
    right = logistic((level[:, None] - 0.8 * difficulty + noise) / temperature)[:, :, None]
    wrong = rng.dirichlet(np.full(_WRONG, 2.0), size=n_queries) ** (1.0 / temperature[:, :, None])  # [P, X, 4]
    return VotingRecording(
        probs=np.concatenate([right, (1.0 - right) * wrong / wrong.sum(axis=2, keepdims=True)], axis=2),
        answers=np.zeros(n_queries, dtype=np.int64),
        cost=np.array(_PRICES)[lm] * rng.uniform(0.7, 1.4, shape[0])[i],
        cost_weights=np.array(COST_WEIGHTS),
        parts=parts,
    )


def _off(effects: FloatArray, rng: np.random.Generator) -> FloatArray:
    return effects + rng.normal(0.0, 0.05, len(effects))
