from __future__ import annotations

import numpy as np
import pytest

from iapo_dspy.bandit.confidence.correction import Correction, by_logprobs, corrected, log_odds, logistic
from iapo_dspy.types import FloatArray


def drawn(level: float, slope: float, count: int = 4000) -> tuple[FloatArray, FloatArray]:
    """Return probabilities, and outcomes whose log odds are off from theirs."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.3, 0.97, count)
    return p, (rng.random(count) < logistic(level + slope * log_odds(p))).astype(float)


def test_without_calls_nothing_changes() -> None:
    nothing = corrected(np.empty(0), np.empty(0))
    assert (nothing.level, nothing.slope) == (0.0, 1.0)
    np.testing.assert_allclose(nothing(np.array([0.2, 0.9])), [0.2, 0.9])


@pytest.mark.parametrize(("level", "slope"), [(-0.5, 1.0), (0.0, 0.6), (0.3, 1.3)])
def test_many_calls_find_the_correction(level: float, slope: float) -> None:
    found = corrected(*drawn(level, slope))
    assert found.level == pytest.approx(level, abs=0.15) and found.slope == pytest.approx(slope, abs=0.15)


def test_few_calls_change_little() -> None:
    found = corrected(np.array([0.9, 0.9]), np.array([0.0, 0.0]))
    assert isinstance(found, Correction) and 0.6 < float(found(np.array([0.9]))[0]) < 0.9


def test_logprobs_count_where_they_surely_tell_something() -> None:
    p, right = drawn(0.0, 1.0, 600)
    rng = np.random.default_rng(1)
    telling = -1.0 + 0.5 * right + rng.normal(0.0, 0.3, len(right))
    found = by_logprobs(p, telling, right)
    assert found is not None and found.adds(-0.5) - found.adds(-1.0) > 1.0
    assert by_logprobs(p, rng.normal(-1.0, 0.3, len(right)), right) is None
    assert by_logprobs(p, np.full(len(right), -1.0), right) is None  # they are all the same
    assert by_logprobs(p, np.full(len(right), np.nan), right) is None
