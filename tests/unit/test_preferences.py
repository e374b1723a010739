"""Preferences: what can be said, what is refused, and what the words are worth in numbers."""

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy import Preference
from iapo_dspy.bandit.costs.charges import Charges
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.preferences import RESOURCES, preference_grid
from iapo_dspy.types import Contexts, Observations, Pulls


def utility(preference: Preference, reward: float, **use: float) -> float:
    """Return what a call for one completion is worth that takes this, by the code that a run uses."""
    contexts = Contexts.from_preferences([preference], ["metric"])
    charges = Charges(contexts, n_prompts=1, max_n=1)
    one = np.array([1])
    used = np.array([[use.get(r, 0.0) for r in RESOURCES]])
    charges.update(
        Observations(
            pulls=Pulls(one - 1, one - 1, one),
            label=one,
            score=np.ones((1, 1)),
            cost=np.zeros(1),
            used=used,
            once=np.where(np.array(RESOURCES) == "seconds", used, 0.0),
        )
    )
    return reward - float(charges.surcharge()[0, 0, 0])


# -- what is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": ""}, "non-empty string"),
        ({"name": "  "}, "non-empty string"),
        ({"name": 3}, "non-empty string"),
        ({"cost": -0.1}, "cost is -0.1"),
        ({"cost": math.inf}, "cost is inf"),
        ({"cost": math.nan}, "cost is nan"),
        ({"cost": True}, "cost is True"),
        ({"cost": "much"}, "cost is 'much'"),
        ({"weights": {}}, "weights must map"),
        ({"weights": ["a"]}, "weights must map"),
        ({"weights": {"a": 0.0, "b": 0}}, "every objective weighs 0"),
        ({"weights": {"a": -1}}, "weight of 'a' is -1"),
        ({"rates": {"euros": 1}}, "'usd'"),
        ({"rates": {"usd": -1}}, "rate of usd is -1"),
        ({"rates": {"usd": math.inf}}, "rate of usd is inf"),
        ({"rates": 3}, "rates must map"),
        ({"max_tokens": 0}, "a whole number >= 1"),
        ({"max_tokens": 2.0}, "a whole number >= 1"),
        ({"max_tokens": True}, "a whole number >= 1"),
        ({"max_usd": 0}, "a finite number > 0"),
        ({"max_usd": -1e-9}, "a finite number > 0"),
        ({"max_usd": math.inf}, "a finite number > 0"),
        ({"max_latency_s": math.nan}, "a finite number > 0"),
        ({"max_latency_s": "2s"}, "a finite number > 0"),
        ({"max_latency_s": False}, "a finite number > 0"),
        ({"min_confidence": 1}, "a number in (0, 1)"),
        ({"min_confidence": 0.0}, "a number in (0, 1)"),
        ({"min_confidence": math.nan}, "a number in (0, 1)"),
        ({"min_confidence": True}, "a number in (0, 1)"),
    ],
)
def test_what_no_preference_can_be_is_refused_in_words(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Preference(**{"name": "mine", **settings})
    assert says in str(caught.value)


@pytest.mark.parametrize("settings", [{"usd": 0}, {"tokens": -5}, {"seconds": math.nan}, {"usd": True}, {"usd": "1"}])
def test_worth_needs_positive_numbers(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="finite number > 0"):
        Preference.worth("mine", **settings)


def test_worth_of_nothing_says_what_to_give() -> None:
    with pytest.raises(ConfigurationError, match=r"usd=0\.001, tokens=500 or seconds=2"):
        Preference.worth("mine")


def test_a_price_too_small_for_a_float_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="rate of usd"):
        Preference.worth(usd=1e-320)


def test_an_objective_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"\['tone'\].*\['style', 'truth'\]"):
        Preference("mine", weights={"tone": 1, "truth": 1}).vector(["style", "truth"])


# -- what the words mean


def test_worth_is_the_documented_formula() -> None:
    """Utility = objective - 0.01 * (dollars / usd + output tokens / tokens + seconds / seconds)."""
    patient = Preference.worth("patient", usd=0.001, tokens=500, seconds=10)
    # 0.0005 dollars = half a hundredth, 250 tokens = half a hundredth, 20 seconds = two hundredths.
    assert utility(patient, 0.9, usd=0.0005, tokens=250, seconds=20) == pytest.approx(0.9 - 0.005 - 0.005 - 0.02)
    # A tenth of a cent for one hundredth: an arm that is better by 0.02 may cost 0.002 dollars more, and no more.
    careful = Preference.worth("careful", usd=0.001)
    cheap = utility(careful, 0.80, usd=0.001)
    assert utility(careful, 0.82, usd=0.0029) > cheap > utility(careful, 0.82, usd=0.0031)
    assert utility(careful, 0.5, tokens=10**6, seconds=10**3) == 0.5  # what is not named is free


def test_worth_passes_on_weights_and_caps() -> None:
    more: dict[str, Any] = {"weights": {"a": 1}, "max_tokens": 50, "max_usd": 0.1, "max_latency_s": 3}
    found = Preference.worth("x", tokens=100, min_confidence=0.9, **more)
    same = Preference("x", rates={"tokens": 1e-4}, min_confidence=0.9, cost=0.0, **more)
    assert found == same and hash(found) == hash(same)


def test_weights_in_the_order_of_the_objectives() -> None:
    preference = Preference(weights={"b": 2, "a": 1})
    np.testing.assert_array_equal(preference.vector(["a", "b", "c"]), [1.0, 2.0, 0.0])
    np.testing.assert_array_equal(Preference().vector(["a", "b"]), [0.5, 0.5])


def test_caps_and_resources() -> None:
    preference = Preference("x", rates={"seconds": 0.01, "usd": 0}, max_tokens=7, max_latency_s=2)
    assert preference.caps == {"tokens": 7.0, "seconds": 2.0}
    assert preference.resources == {"seconds", "tokens"}  # a rate of 0 is none
    contexts = Contexts.from_preferences([preference, Preference("plain", cost=1)], ["m"])
    inf = math.inf
    np.testing.assert_array_equal(contexts.caps, [[7, inf, inf, 2], [inf] * 4])
    np.testing.assert_array_equal(contexts.rates, [[0, 0, 0, 0.01], [0] * 4])
    assert not contexts.confidence.any()
    assert not contexts.plain and Contexts.from_preferences([Preference("plain", cost=1)], ["m"]).plain


def test_a_promised_confidence() -> None:
    safe = Preference("safe", min_confidence=np.float64(0.9))
    assert type(safe.min_confidence) is float and not safe.resources
    assert str(safe) == "safe (cost weight 0, at least 0.9 of the answers right)"
    contexts = Contexts.from_preferences([safe, Preference("plain", cost=1)], ["m"])
    np.testing.assert_array_equal(contexts.confidence, [0.9, 0.0])
    for wrong in ([1.0], [-0.1], [0.5, 0.5]):
        with pytest.raises(ConfigurationError, match="confidence"):
            Contexts(np.ones((1, 1)), np.zeros(1), confidence=np.array(wrong))


def test_the_name_of_a_preference_does_not_change_what_it_wants() -> None:
    one, two = Preference("one", max_usd=0.1, weights={"a": 1}), Preference("two", max_usd=0.1, weights={"a": 1.0})
    assert one.wishes == two.wishes and one != two
    others = [
        Preference("one", max_usd=0.2, weights={"a": 1}),
        Preference("one", max_usd=0.1, weights={"a": 2}),
        Preference("one", max_usd=0.1, weights={"a": 1}, cost=1),
        Preference("one", max_usd=0.1, weights={"a": 1}, rates={"tokens": 1}),
        Preference("one", max_usd=0.1, weights={"a": 1}, max_tokens=5),
        Preference("one", max_usd=0.1, weights={"a": 1}, max_latency_s=5),
        Preference("one", max_usd=0.1, weights={"a": 1}, min_confidence=0.9),
    ]
    assert len({one.wishes, *(o.wishes for o in others)}) == len(others) + 1
    assert len({one, two, *others}) == len(others) + 2


def test_in_words() -> None:
    text = str(Preference.worth("free tier", usd=0.001, tokens=500, max_usd=0.0005, max_latency_s=2, max_tokens=100))
    assert text == (
        "free tier (0.01 worth 500 output tokens, 0.01 worth 0.001 dollars, at most 100 output tokens, "
        "at most 0.0005 dollars, at most 2 seconds)"
    )
    assert str(Preference(cost=0.2, weights={"b": 1, "a": 0.5})) == "unnamed (weights a=0.5, b=1, cost weight 0.2)"


numbers = st.floats(1e-6, 1e6)
preferences = st.builds(
    Preference,
    st.none() | st.text(min_size=1).filter(str.strip),
    cost=st.floats(0, 1e6),
    weights=st.none() | st.dictionaries(st.text(max_size=3), numbers, min_size=1, max_size=3),
    rates=st.none() | st.dictionaries(st.sampled_from(RESOURCES), st.floats(0, 1e6)),
    max_tokens=st.none() | st.integers(1, 10**9) | st.integers(1, 100).map(np.int64),
    max_usd=st.none() | numbers | st.floats(0.125, 8.0, width=32).map(np.float32),
    max_latency_s=st.none() | numbers,
    min_confidence=st.none() | st.floats(0.01, 0.99) | st.just(np.float64(0.9)),
)


@given(preferences)
def test_every_preference_survives_json(preference: Preference) -> None:
    back = Preference.from_dict(json.loads(json.dumps(preference.to_dict())))
    assert back == preference and hash(back) == hash(preference) and str(back) == str(preference)


def test_preferences_of_older_versions_are_read() -> None:
    assert Preference.from_dict({"name": "old", "cost": 0.2, "weights": None, "arm": [1, 4]}) == Preference(
        "old", cost=0.2
    )


# -- the grid


def test_the_papers_27_contexts() -> None:
    grid = preference_grid("helpful", "harmless")
    expected = [
        ({"helpful": w / 10, "harmless": (10 - w) / 10}, c) for w in range(1, 10) for c in (0.0, 0.2, 1.0)
    ]  # nine pairs of weights (.1, .9) .. (.9, .1), times three weights of the cost
    assert [(dict(p.weights or {}), p.cost) for p in grid] == expected
    assert len(grid) == 27 == len({p.name for p in grid})
    assert grid[7].name == "helpful=0.3 harmless=0.7 cost=0.2"
    assert not any(p.resources for p in grid)


def test_a_lattice_of_three_objectives() -> None:
    grid = preference_grid("a", "b", "c", costs=(0,), steps=4)
    assert [tuple((p.weights or {}).values()) for p in grid] == [
        (0.25, 0.25, 0.5),
        (0.25, 0.5, 0.25),
        (0.5, 0.25, 0.25),
    ]
    edges = preference_grid("a", "b", "c", costs=(0,), steps=2, edges=True)
    assert [tuple((p.weights or {}).values()) for p in edges] == [
        (0.0, 0.0, 1.0), (0.0, 0.5, 0.5), (0.0, 1.0, 0.0), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0),
    ]  # fmt: skip


@given(st.integers(2, 4), st.integers(1, 8), st.booleans(), st.lists(st.floats(0, 9), min_size=1, max_size=3))
def test_every_lattice_has_all_its_points_once(k: int, steps: int, edges: bool, costs: list[float]) -> None:
    names = [f"o{i}" for i in range(k)]
    least = 0 if edges else 1
    wanted = math.comb(steps - least * k + k - 1, k - 1) if steps >= least * k else 0
    if not wanted or len({f"{c:.12g}" for c in costs}) < len(costs):
        with pytest.raises(ConfigurationError):
            preference_grid(*names, costs=costs, steps=steps, edges=edges)
        return
    grid = preference_grid(*names, costs=costs, steps=steps, edges=edges)
    points = {(tuple((p.weights or {}).values()), p.cost) for p in grid}
    assert len(grid) == len(points) == len({p.name for p in grid}) == wanted * len(costs)
    for weights, _ in points:
        assert sum(Fraction(w).limit_denominator(100) for w in weights) == 1
        assert edges or min(weights) > 0


def test_one_objective_has_no_weights() -> None:
    for grid in (preference_grid(costs=(0, 0.2)), preference_grid("truth", costs=(0, 0.2))):
        assert grid == (Preference("cost=0", cost=0), Preference("cost=0.2", cost=0.2))


def test_close_costs_have_names_of_their_own() -> None:
    one, two = preference_grid(costs=(0.12345671, 0.12345672))
    assert one.name != two.name


def test_a_grid_of_many_objectives_takes_no_time() -> None:
    assert len(preference_grid(*(f"o{i}" for i in range(40)), costs=(0,), steps=1, edges=True)) == 40


@pytest.mark.parametrize(
    ("objectives", "settings", "says"),
    [
        (("a", "a"), {}, "different names"),
        (("a", ""), {}, "different names"),
        (("a", 3), {}, "different names"),
        (("a", "b"), {"costs": ()}, "at least one cost weight"),
        (("a", "b"), {"costs": (0.2, 0.2)}, "each once"),
        (("a", "b"), {"costs": 0.2}, "at least one cost weight"),
        (("a", "b"), {"costs": (-1,)}, "cost is -1"),
        (("a", "b"), {"steps": 1}, "choose another `steps`"),
        (("a", "b"), {"steps": 2.0}, "whole number >= 1"),
        (("a", "b"), {"steps": 0}, "whole number >= 1"),
        (("a", "b", "c", "d", "e", "f"), {"steps": 40}, "choose another `steps`"),
    ],
)
def test_grids_that_cannot_be(objectives: tuple[Any, ...], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        preference_grid(*objectives, **settings)
