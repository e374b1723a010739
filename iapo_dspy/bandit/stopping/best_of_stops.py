"""What stopping Best-of-N at a threshold costs and saves, by the model behind the predictions.

With F(v) = P(a completion's score is below v), waves w_1 < w_2 < .. < w_K = N (w_0 = 0) and a threshold tau, a call is
still going after wave k with probability F(tau)^(w_k), and for a level v >= tau

    P(best score at the stop >= v) = sum over k of F(tau)^(w_(k-1)) (1 - F(v)^(w_k - w_(k-1))),

against 1 - F(v)^N with all N completions; below tau both are the same. The levels are those of the predictions, with
theta_j = 1 - F(v_j) the probability of event j. Each theta_j of a cell has a posterior of its own; together they are
taken to be comonotone, good cells being good at every level, so that the expectation is a mean over a few equally
likely cells, from the worst to the best, in which each theta_j is the mean of its own part of its posterior.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.estimators.fitted import BestOfModel
from iapo_dspy.bandit.estimators.predictive import expected
from iapo_dspy.bandit.estimators.traits import THETA, Traits
from iapo_dspy.bandit.stopping.replays import Ended, best_of_ends
from iapo_dspy.bandit.stopping.rules import threshold_stops
from iapo_dspy.bandit.stopping.stopped_arms import StopEstimates, corrected_stops, of_prompts, replayed
from iapo_dspy.types import FloatArray, IntArray, Stop

__all__ = ["best_of_scales", "early_best", "estimated_best_of"]

_PARTS = 8  # equally likely cells that stand for a posterior


def best_of_scales(max_n: int) -> tuple[int, ...]:
    """Return the scales that thresholds are tuned for: the powers of two from 2 on, and `max_n`."""
    powers = {2**i for i in range(1, max_n.bit_length()) if 2**i <= max_n}
    return tuple(sorted(powers | ({max_n} if max_n > 1 else set())))


def estimated_best_of(model: BestOfModel, row: int, prompts: IntArray, max_n: int) -> StopEstimates | None:
    """Estimate thresholds at every cut of the predictions for some prompts.

    Args:
        model: What the predictions of the run are made of.
        row: Which row of objective weights.
        prompts: The prompts [Q], ascending.
        max_n: Largest scale.

    Returns:
        The estimates; None where all scores are the same, or `max_n` is 1.
    """
    traits, levels = model.traits[row], model.levels[row]
    if traits is None or max_n == 1:
        return None
    cuts = (levels[1:] + levels[:-1]) / 2
    stops = tuple(stop for n in best_of_scales(max_n) for stop in threshold_stops(n, cuts.tolist()))
    law, cells = of_prompts(traits, model.cells, prompts)
    width = np.diff(levels)

    def says(queries: IntArray) -> FloatArray:
        return early_best(1.0 - _coupled(law, cells, queries), width, stops)

    kept = np.repeat(np.isin(model.cells.prompt, prompts), model.cells.size)
    value = np.where(cells.failed, -np.inf, model.values[row][kept])

    def replay(index: IntArray, options: tuple[Stop, ...]) -> Ended:
        return best_of_ends(value[index], options, model.floors[row])

    observed = replayed(cells, stops, replay)
    return corrected_stops(says, observed, cells, prompts, stops, float(levels[-1] - levels[0]))


def early_best(below: FloatArray, width: FloatArray, stops: tuple[Stop, ...]) -> FloatArray:
    """Return what stopped calls do in cells of a known law, mean over the equally likely cells.

    Args:
        below: P(a score is below each level) [2, Q, V, B, J], B equally likely cells.
        width: Distance of each level from the one before [J].
        stops: For each list of waves, as many options as levels, in their order; option j stops at level j.

    Returns:
        Gain, completions and waves [2, 3, Q, V, M].
    """
    reached: dict[int, FloatArray] = {}

    def above(draws: int) -> FloatArray:
        """Return sum over levels from each one up of width * P(best of so many draws reaches it)."""
        if draws not in reached:
            terms = width * (1.0 - below**draws)
            reached[draws] = np.cumsum(terms[..., ::-1], axis=-1)[..., ::-1]
        return reached[draws]

    levels = len(width)
    out = np.zeros((2, 3, *below.shape[1:3], len(stops)))
    for begin in range(0, len(stops), levels):
        waves = (0, *stops[begin].waves)
        gain, completions, count = -above(waves[-1]), np.zeros_like(below), np.zeros_like(below)
        for before, end in pairwise(waves):
            going = below**before
            gain = gain + going * above(end - before)
            completions += (end - before) * going
            count += going
        for i, part in enumerate((gain, completions, count)):
            out[:, i, ..., begin : begin + levels] = part.mean(axis=3)
    return out


def _coupled(traits: Traits, cells: Cells, queries: IntArray) -> FloatArray:
    """Return success probabilities of equally likely cells, given all draws and given all others' [2, Q, V', B, J]."""
    edges = np.arange(_PARTS + 1) / _PARTS
    parts = []
    for event in range(len(traits.law)):
        posterior = expected(traits, event, cells, np.eye(len(THETA)), queries)  # [2, Q, V', T]
        cumulative = np.cumsum(posterior, axis=-1)
        # The quantile function, integrated up to each edge: piecewise linear in the cumulative probability.
        share = np.clip(edges[:, None] - (cumulative - posterior)[..., None, :], 0.0, posterior[..., None, :])
        parts.append(_PARTS * np.diff(share @ THETA, axis=-1))
    theta = np.stack(parts, axis=-1)
    return np.asarray(np.minimum.accumulate(np.clip(theta, 0.0, 1.0), axis=-1))
