import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.bandit.confidence.confidence_map import ConfidenceMap, Curve, Logprobs
from iapo_dspy.errors import ConfigurationError, StateError

CURVES = Curve(sureness=(0.5, 1.0), confidence=(0.4, 0.8)), Curve(sureness=(0.25,), confidence=(0.7,))


def test_a_curve_is_linear_between_its_knots_and_constant_beyond_them() -> None:
    found = ConfidenceMap(stages=CURVES)
    assert [found.confidence(0, s) for s in (0.0, 0.5, 0.75, 1.0, 2.0)] == pytest.approx([0.4, 0.4, 0.6, 0.8, 0.8])
    assert found.confidence(1, 0.9) == 0.7


def test_logprobs_move_the_log_odds() -> None:
    found = ConfidenceMap(stages=CURVES, logprobs=Logprobs(slope=math.log(2), centre=-1.0, scale=0.5, shift=0.0))
    assert found.confidence(0, 1.0) == found.confidence(0, 1.0, math.nan) == 0.8  # not known: nothing changes
    assert found.confidence(0, 1.0, -1.0) == pytest.approx(0.8)
    assert found.confidence(0, 1.0, -0.5) == pytest.approx(8 / 9)  # odds of 4 to 1, doubled
    assert found.confidence(0, 1.0, -1.5) == pytest.approx(2 / 3)
    assert found.confidence(0, 1.0, -1e9) == found.confidence(0, 1.0, -2.5)  # three standard deviations
    assert ConfidenceMap(stages=CURVES).confidence(0, 1.0, -0.5) == 0.8


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 1)), min_size=1, max_size=6, unique_by=lambda knot: knot[0]),
    st.none() | st.floats(0, 1),
    st.floats(-2, 2),
)
def test_every_map_survives_json(knots: list[tuple[float, float]], margin: float | None, slope: float) -> None:
    x, y = zip(*sorted(knots), strict=True)
    curve = Curve(sureness=x, confidence=tuple(sorted(y[i] for i in range(len(y)))))
    found = ConfidenceMap(stages=(curve,), margin=margin, logprobs=Logprobs(slope=slope, centre=-1.0, scale=0.5))
    assert ConfidenceMap.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    values = [found.confidence(0, s / 2, -0.7) for s in range(-12, 13)]
    assert values == sorted(values) and 0 <= values[0] and values[-1] <= 1


@pytest.mark.parametrize(
    "knots",
    [
        {"sureness": (), "confidence": ()},
        {"sureness": (1.0, 0.5), "confidence": (0.1, 0.2)},
        {"sureness": (0.5, 1.0), "confidence": (0.2, 0.1)},
        {"sureness": (0.5, 1.0), "confidence": (0.2, 1.1)},
        {"sureness": (0.5, 1.0), "confidence": (0.2,)},
        {"sureness": (0.5,), "confidence": (math.nan,)},
        {"sureness": (0.5,), "confidence": ("much",)},
    ],
)
def test_knots_that_are_no_curve(knots: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Curve"):
        Curve(**knots)
    with pytest.raises(StateError, match="not a saved map of confidence: "):
        ConfidenceMap.from_dict({"stages": [{k: " ".join(map(str, values)) for k, values in knots.items()}]})


@pytest.mark.parametrize(
    "data", [None, {}, {"stages": []}, {"stages": [{"sureness": [1]}]}, {"stages": 3}, {"stages": [{}], "margin": -1}]
)
def test_damaged_data(data: Any) -> None:
    with pytest.raises(StateError, match="not a saved map of confidence"):
        ConfidenceMap.from_dict(data)


def test_numbers_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="margin"):
        ConfidenceMap(stages=CURVES, margin=-0.1)
    with pytest.raises(ConfigurationError, match="scale"):
        Logprobs(slope=1.0, centre=0.0, scale=0.0)
