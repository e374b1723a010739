"""Amounts that calls take: affine uses and prices by hand, and which arms keep a cap."""

from typing import Any

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.costs.charges import Charges
from iapo_dspy.bandit.named import named
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.preferences import RESOURCES, Preference
from iapo_dspy.types import Contexts, Observations, Pulls

NAN = float("nan")
TOKENS, PROMPT, USD, SECONDS = range(4)
assert RESOURCES == ("tokens", "prompt_tokens", "usd", "seconds")


def observe(rows: list[tuple[Any, ...]], *, failed: tuple[int, ...] = (), measured: bool = True) -> Observations:
    """Observations of pulls (prompt, size, tokens, prompt tokens, dollars, seconds), one request each."""
    prompt, size = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    used = np.array([r[2:6] for r in rows], dtype=float)
    once = used.copy()
    once[:, TOKENS] = 0
    once[:, USD] = 0.001 * used[:, PROMPT]  # a tenth of a cent per prompt token
    score = np.ones((size.sum(), 1))
    score[np.isin(np.repeat(prompt, size), failed)] = NAN
    return Observations(
        pulls=Pulls(prompt, np.zeros(len(rows), int), size),
        label=np.zeros(size.sum()),
        score=score,
        cost=np.repeat(used[:, TOKENS] / size, size),
        used=used if measured else None,
        once=once if measured else None,
    )


def charges(preferences: list[Preference], rows: list[tuple[Any, ...]], max_n: int = 3, **changes: Any) -> Charges:
    n_prompts = 1 + max(r[0] for r in rows)
    found = Charges(Contexts.from_preferences(preferences, ["m"]), n_prompts, max_n)
    for row in rows:  # in batches of one: batches must not matter
        found.update(observe([row], **changes))
    return found


# Prompt 0: 10 tokens a completion, 100 prompt tokens, a second. Prompt 1: 20 tokens, and so on. Dollars: 0.001 per
# prompt token and 0.01 per output token.
ROWS = [
    (0, 1, 10, 100, 0.2, 1.0),
    (0, 3, 30, 100, 0.4, 1.0),
    (1, 2, 40, 300, 0.7, 2.0),
    (1, 4, 80, 300, 1.1, 2.0),
]


def test_uses_are_affine() -> None:
    use = charges([Preference("x", max_tokens=1)], ROWS).use()
    np.testing.assert_allclose(use[TOKENS], [[10, 20, 30], [20, 40, 60]])
    np.testing.assert_allclose(use[PROMPT], [[100, 100, 100], [300, 300, 300]])
    np.testing.assert_allclose(use[USD], [[0.2, 0.3, 0.4], [0.5, 0.7, 0.9]])
    np.testing.assert_allclose(use[SECONDS], [[1, 1, 1], [2, 2, 2]])


def test_prices_and_surcharges_by_hand() -> None:
    preferences = [
        Preference("cost", cost=0.5),
        Preference("rates", cost=0.2, rates={"usd": 0.1, "seconds": 0.03}),
    ]
    found = charges(preferences, ROWS)
    per_wave, per_completion = found.prices(scale=0.001)
    np.testing.assert_allclose(per_wave, [[0.0, 0.0], [0.1 * 0.1 + 0.03 * 1, 0.1 * 0.3 + 0.03 * 2]])
    np.testing.assert_allclose(
        per_completion,
        [[0.5 * 0.001 * 10, 0.5 * 0.001 * 20], [0.2 * 0.001 * 10 + 0.1 * 0.1, 0.2 * 0.001 * 20 + 0.1 * 0.2]],
    )
    surcharge = found.surcharge()
    np.testing.assert_array_equal(surcharge[0], 0)
    np.testing.assert_allclose(surcharge[1], [[0.05, 0.06, 0.07], [0.11, 0.13, 0.15]])
    # What an arm costs is the same, whichever way it is put.
    whole = per_wave[:, :, None] + per_completion[:, :, None] * np.arange(1, 4)
    by_cost = np.array([[[10, 20, 30], [20, 40, 60]]]) * 0.001 * np.array([0.5, 0.2])[:, None, None]
    np.testing.assert_allclose(whole, by_cost + surcharge)


def test_unknown_amounts_matter_only_to_preferences_that_count_them() -> None:
    rows = [(p, m, t, q, NAN, NAN) for p, m, t, q, _, _ in ROWS]
    preferences = [Preference("tokens", rates={"tokens": 0.01}), Preference("dollars", rates={"usd": 1})]
    found = charges(preferences, rows)
    np.testing.assert_allclose(found.surcharge()[0], [[0.1, 0.2, 0.3], [0.2, 0.4, 0.6]])
    assert np.isnan(found.surcharge()[1]).all()
    per_wave, per_completion = found.prices(0.0)
    np.testing.assert_allclose(per_completion[0], [0.1, 0.2])
    np.testing.assert_allclose(per_wave[0], [0, 0])
    capped = charges(
        [Preference("t", max_tokens=1000), Preference("u", max_usd=9), Preference("s", max_latency_s=9)], rows
    )
    assert capped.keeps()[0].all() and not capped.keeps()[1:].any()  # what is not known is not trusted


def test_observations_without_uses_serve_costs_only() -> None:
    plain = charges([Preference("plain", cost=1)], ROWS, measured=False)
    assert np.isnan(plain.upper()).all() and plain.keeps().all()
    for preference in (Preference("x", rates={"tokens": 1}), Preference("x", max_usd=1)):
        with pytest.raises(ConfigurationError, match=r"Preference\(cost="):
            charges([preference], ROWS, measured=False)


# -- upper bounds


def test_bounds_of_what_does_not_vary_are_what_it_takes() -> None:
    upper = charges([Preference("x", max_tokens=1)], ROWS).upper()
    np.testing.assert_allclose(upper[TOKENS], [[10, 20, 30], [20, 40, 60]])
    np.testing.assert_allclose(upper[USD], [[0.2, 0.3, 0.4], [0.5, 0.7, 0.9]])


def test_refused_requests_change_no_bound() -> None:
    """They took nothing and no time; as observations they would make prompts look cheap and erratic."""
    rng = np.random.default_rng(1)
    rows = [(p, 2, t, 50, 0.05 + 0.01 * t, s) for p in (0, 1) for t, s in rng.uniform(1, 2, size=(20, 2))]
    preference = Preference("x", max_tokens=9, max_latency_s=9, max_usd=9)
    refused = [(p, 2, 0.0, 0.0, 0.0, NAN) for p in (0, 0, 1)]
    one, two = charges([preference], rows), charges([preference], rows + refused)
    np.testing.assert_allclose(one.upper(), two.upper())
    np.testing.assert_allclose(two.use()[SECONDS], one.use()[SECONDS])
    assert (two.use()[USD] < one.use()[USD]).all()  # on average a call takes less, as it does in `cost`


# -- caps


def test_which_arms_keep_a_cap_by_hand() -> None:
    preferences = [
        Preference("free"),
        Preference("tokens", max_tokens=40),
        Preference("usd", max_usd=0.45),
        Preference("seconds", max_latency_s=1.5),
        Preference("all", max_tokens=20, max_usd=0.45, max_latency_s=1.5),
        Preference("none", max_tokens=9),
    ]
    found = charges(preferences, [*ROWS, (2, 1, 5, 1, 0.001, 0.5)], max_n=3, failed=(2,))
    keeps = found.keeps()
    assert keeps[0].all()
    no, yes = False, True
    assert keeps[1].tolist() == [[yes, yes, yes], [yes, yes, no], [no, no, no]]  # prompt 2 has never answered
    assert keeps[2].tolist() == [[yes, yes, yes], [no, no, no], [no, no, no]]
    assert keeps[3][1].tolist() == [no, no, no]
    assert keeps[4].tolist()[0] == [yes, yes, no]
    assert not keeps[5].any()
    assert found.nearest(5) == (0, 1)  # prompt 2 would be cheaper, were it of any use
    allowed = found.allowed()
    np.testing.assert_array_equal(allowed[:5], keeps[:5])
    assert allowed[5].sum() == 1 and allowed[5, 0, 0]


def test_the_nearest_arm_breaks_its_caps_least() -> None:
    """Prompt 0 needs twice the tokens, prompt 1 three times the seconds."""
    rows = [(0, 1, 20, 10, 0.1, 1.0), (0, 1, 20, 10, 0.1, 1.0), (1, 1, 10, 10, 0.1, 3.0), (1, 1, 10, 10, 0.1, 3.0)]
    found = charges([Preference("x", max_tokens=10, max_latency_s=1.0)], rows)
    assert found.nearest(0) == (0, 1) and not found.keeps().any()


def test_every_wave_takes_its_seconds() -> None:
    found = charges([Preference("s", max_latency_s=7.0), Preference("t", max_tokens=60)], ROWS, max_n=4)
    bound = found.upper()[SECONDS]
    expected = np.minimum(np.floor(7.0 / bound), 4)
    np.testing.assert_array_equal(found.most_waves()[0], expected)
    np.testing.assert_array_equal(found.most_waves()[1], [[4, 4, 4, 4], [4, 4, 4, 0]])  # tokens are as many in waves


def test_a_cap_below_one_token_a_completion_keeps_none() -> None:
    rows = [(0, 1, 0.0, 10, 0.1, 1.0), (0, 2, 0.0, 10, 0.1, 1.0)]
    assert charges([Preference("x", max_tokens=2)], rows).keeps().tolist() == [[[True, True, False]]]


class Known:
    """Two prompts: 0 is right more often and takes 40 tokens and 4 seconds, 1 takes 10 tokens and 1 second."""

    n_prompts, n_queries = 2, 60

    def __init__(self) -> None:
        self._rng = np.random.default_rng(7)

    def pull(self, pulls: Pulls) -> Observations:
        size, prompt = pulls.size, pulls.prompt
        owner = np.repeat(prompt, size)
        right = self._rng.random(len(owner)) < np.where(owner == 0, 0.8, 0.72)
        noise = np.exp(0.05 * self._rng.normal(size=len(pulls)))
        used = np.zeros((len(pulls), 4))
        used[:, TOKENS] = size * np.where(prompt == 0, 40, 10) * noise
        used[:, PROMPT] = 20
        used[:, SECONDS] = np.where(prompt == 0, 4.0, 1.0) * noise
        once = np.where(np.arange(4) == TOKENS, 0.0, used)
        return Observations(
            pulls=pulls,
            label=np.where(right, 0, 1),
            score=right[:, None].astype(float),
            cost=np.repeat(used[:, TOKENS] / size, size),
            used=used,
            once=once,
        )


@pytest.mark.parametrize("algorithm", ["auto", "psst"])
def test_both_algorithms_choose_the_best_arm_that_keeps_the_cap(algorithm: str) -> None:
    preferences = [
        Preference("quality"),
        Preference("tokens", max_tokens=90),  # two completions of prompt 0 at most, or eight of prompt 1
        Preference("snappy", max_latency_s=2),
        Preference("impossible", max_tokens=5),
        Preference.worth("patient", seconds=0.05),  # three seconds more are worth 0.6
    ]
    problem = Problem(
        n_prompts=2,
        n_queries=60,
        max_n=8,
        contexts=Contexts.from_preferences(preferences, ["m"]),
        aggregator=MajorityVoteAggregator(),
    )
    run = named(algorithm).start(problem, budget=3000, seed=0)
    outcome = drive(run, Known())
    assert outcome.charges is not None
    keeps = outcome.charges.keeps()
    quality, tokens, snappy, impossible, patient = outcome.policy.arms
    assert quality.prompt == 0 and quality.n > 2
    assert keeps[1, tokens.prompt, tokens.n - 1] and tokens.prompt == 1 and tokens.n > 2
    assert snappy.prompt == 1 and snappy.n > 2 and not keeps[2, 0].any()
    assert (impossible.prompt, impossible.n) == outcome.charges.nearest(3) == (1, 1) and not keeps[3].any()
    assert patient.prompt == 1
    assert np.isnan(outcome.q[~outcome.charges.allowed()]).all()
    if algorithm == "auto":  # a preference that comes later gets what one that was there from the start gets
        again = Auto().solve(problem, outcome.observations)
        assert again.policy == outcome.policy


def test_every_wave_takes_what_a_request_takes_once_more() -> None:
    """A request's prompt costs 4 dollars, a completion 1: N = 3 takes 7 in one wave, 11 in two, 15 in three."""
    caps = np.full((4, len(RESOURCES)), np.inf)
    caps[:, RESOURCES.index("usd")] = [6.9, 7.0, 14.9, np.inf]
    charges = Charges(Contexts(weights=np.ones((4, 1)), cost=np.zeros(4), caps=caps), 1, 3)
    used, once = np.zeros((2, len(RESOURCES))), np.zeros((2, len(RESOURCES)))
    used[:, RESOURCES.index("tokens")] = 3.0
    used[:, RESOURCES.index("usd")], once[:, RESOURCES.index("usd")] = 7.0, 4.0
    pulls = Pulls(np.zeros(2, int), np.arange(2), np.full(2, 3))
    charges.update(
        Observations(pulls=pulls, label=np.zeros(6, int), score=np.ones((6, 1)), cost=np.ones(6), used=used, once=once)
    )
    assert charges.most_waves()[:, 0, 2].tolist() == [0, 1, 2, 3]
