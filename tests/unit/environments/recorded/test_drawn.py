"""Recordings with their completions one by one: costs vary with tokens, and exact values are their means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iapo_dspy.environments.recorded.drawn import Draws
from iapo_dspy.environments.recorded.files import load, save
from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording
from iapo_dspy.environments.recorded.stopped_values import StoppedValues
from iapo_dspy.environments.recorded.token_shares import _shares
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Arm, Policy, Stop
from tests.support.recordings import everywhere

# Two prompts on two queries, four completions each. Prompt 0 writes 2 tokens on query 0, and 6 on query 1.
OUTCOME = np.array([[[0, 0, 1, -1], [1, 1, 1, 1]], [[0, -1, -1, -1], [0, 1, 0, 1]]])
TOKENS = np.array([[[1, 2, 2, 3], [6, 6, 6, 6]], [[5, 5, 5, 5], [5, 5, 5, 5]]])


def drawn(**changes: Any) -> Draws:
    settings: dict[str, Any] = {
        "outcome": OUTCOME,
        "tokens": TOKENS,
        "prompt_tokens": np.array([[20, 30], [25, 35]]),
        "finish": (TOKENS == 6).astype(int),
        "endings": ("stop", "length"),
        "failures": np.array([[1, 0], [2, 1]]),
        "causes": ("AdapterParseError", "there is no answer"),
    }
    return Draws(**(settings | changes))


def voting(**changes: Any) -> VotingRecording:
    settings: dict[str, Any] = {
        "probs": drawn().law(2),
        "answers": np.array([0, 1]),
        "cost": np.array([0.04, 0.05]),
        "cost_weights": np.array([0.0, 1.0]),
        "drawn": drawn(),
        "card": {"models": ["a/b"], "text": "ü", "n": [1, 2.5, None]},
    }
    return VotingRecording(**(settings | changes))


def best_of() -> BestOfRecording:
    outcome = np.array([[[0, 1, 2, -1], [0, 1, 2, 3]], [[0, -1, -1, -1], [0, 1, 2, 3]]])
    return BestOfRecording(
        probs=drawn(outcome=outcome).law(4),
        outcomes=np.random.default_rng(0).random((2, 2, 4, 1)),
        cost=np.array([0.04, 0.05]),
        weights=np.array([[1.0, 0.5]]),
        drawn=drawn(outcome=outcome),
    )


def test_shares_follow_from_the_outcomes() -> None:
    assert drawn().law(2).tolist() == [[[0.5, 0.25], [0, 1]], [[0.25, 0], [0.5, 0.5]]]
    with pytest.raises(ConfigurationError, match="below 1"):
        drawn().law(1)
    with pytest.raises(ConfigurationError, match="not the shares"):
        voting(probs=np.full((2, 2, 2), 0.5))


def test_longer_completions_cost_more_and_the_mean_is_exact() -> None:
    recording = voting()
    # The mean of prompt 0 is 4 tokens for 0.04: a token costs 0.01 there. Prompt 1 always costs 0.05.
    assert recording.cost_on == pytest.approx(np.array([[0.02, 0.06], [0.05, 0.05]]))
    seen = recording.environment(0).pull(everywhere(recording, 4_000))
    cost, label = seen.cost.reshape(4, 4_000), seen.label.reshape(4, 4_000)
    assert cost.mean(axis=1) == pytest.approx([0.02, 0.06, 0.05, 0.05], abs=4e-4)
    assert set(np.round(cost[0], 9)) == {0.01, 0.02, 0.03}
    # The law is joint: the failure of the first cell took 3 tokens, and so cost 0.03.
    assert set(np.round(cost[0][label[0] == -1], 9)) == {0.03} and set(np.round(cost[0][label[0] == 1], 9)) == {0.02}
    assert (label[0] == -1).mean() == pytest.approx(0.25, abs=0.03)

    exact = recording.exact(3)
    first, both = exact.q(np.array([0])), exact.q()
    assert first[0, 0, 2] - first[1, 0, 2] == pytest.approx(3 * 0.02)
    assert both[0, 0, 2] - both[1, 0, 2] == pytest.approx(3 * 0.04)
    part = recording.subset(np.array([1]))
    assert part.cost == pytest.approx([0.06, 0.05])
    np.testing.assert_allclose(part.exact(3).q(), exact.q(np.array([1])))
    one = recording.of_prompts(np.array([1]))
    np.testing.assert_allclose(one.exact(3).q()[:, 0], both[:, 1])
    assert one.drawn is not None and one.drawn.failures.tolist() == [[2, 1]]


def test_a_stop_spares_the_tokens_of_its_own_query() -> None:
    # Three equal votes of four decide. On query 1, prompt 0 always stops there, and spares one completion of 6 tokens.
    arm = Arm(prompt=0, n=4, stop=Stop(waves=(3, 4)))
    calls = StoppedValues(recording=voting()).calls(Policy((arm, arm)), np.array([1]))
    assert calls.completions == pytest.approx([3.0, 3.0]) and calls.saved == pytest.approx([0.0, 0.06])


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
@pytest.mark.parametrize("make", [voting, best_of])
def test_completions_and_cards_survive_files(tmp_path: Path, make: Any, suffix: str) -> None:
    recording: Recording = make()
    save(recording, tmp_path / f"a.{suffix}")
    again = load(tmp_path / f"a.{suffix}")
    assert type(again) is type(recording) and dict(again.card) == dict(recording.card)
    assert again.drawn is not None and recording.drawn is not None
    for name in ("outcome", "tokens", "prompt_tokens", "finish", "failures"):
        np.testing.assert_array_equal(getattr(again.drawn, name), getattr(recording.drawn, name))
    assert again.drawn.endings == ("stop", "length") and again.drawn.causes == recording.drawn.causes
    np.testing.assert_array_equal(again.probs, recording.probs)
    np.testing.assert_array_equal(again.cost, recording.cost)
    save(again, tmp_path / f"b.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_recordings_without_completions_stay_in_format_1(tmp_path: Path) -> None:
    save(voting(drawn=None, card={}), tmp_path / "old.npz")
    with np.load(tmp_path / "old.npz") as found:
        assert found["version"] == 1 and set(found) == {"kind", "version", "probs", "answers", "cost", "cost_weights"}
    save(voting(), tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as found:
        assert found["version"] == 2 and "probs" not in found and found["outcome"].dtype == np.int8


def test_the_recordings_that_ship_are_small(tmp_path: Path) -> None:
    """14 prompts x 120 queries x 16 completions, the size of the recordings that ship."""
    rng = np.random.default_rng(0)
    shape = (14, 120, 16)
    many = drawn(
        outcome=rng.integers(-1, 2, shape),
        tokens=rng.integers(2, 24, shape),
        prompt_tokens=rng.integers(100, 300, shape[:2]),
        finish=rng.integers(0, 2, shape),
        failures=np.zeros((14, 2), dtype=int),
    )
    recording = voting(probs=many.law(2), answers=np.zeros(120, dtype=int), cost=np.ones(14), drawn=many)
    save(recording, tmp_path / "x.npz")
    assert (tmp_path / "x.npz").stat().st_size < 100_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outcome": OUTCOME[0]}, r"\[P, X, S\]"),
        ({"outcome": OUTCOME - 1}, "outcome must be whole numbers >= -1"),
        ({"tokens": TOKENS[:1]}, "tokens must be"),
        ({"tokens": TOKENS * 1.0}, "tokens must be whole"),
        ({"endings": ("stop",)}, "finish must be below 1"),
        ({"causes": ("one",)}, "failures must be"),
    ],
)
def test_wrong_completions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        drawn(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, r"lacks the arrays \['tokens'\]"),
        ({"card": np.array("[1]")}, "JSON object"),
        ({"card": np.array("{")}, "is not a recording"),
        ({"endings": np.array([1, 2])}, "list of texts"),
        ({"version": np.array(1)}, "has arrays that no"),
        ({"version": np.array(3)}, "known are versions 1 to 2"),
        ({"probs": np.full((2, 2, 2), 0.5)}, "not the shares"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save(voting(), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        arrays = {name: found[name] for name in found} | change
    np.savez(tmp_path / "b.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ConfigurationError, match=message):
        load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("total", "sizes", "shares"),
    [
        (32, [13, 14, 3, 8], [11, 12, 2, 7]),
        (7, [0, 0, 0], [3, 2, 2]),
        (0, [2, 2], [0, 0]),
        (5, [0, 4], [0, 5]),
        (4, [3, 3, 3, 3], [1, 1, 1, 1]),
    ],
)
def test_tokens_of_a_request_are_shared_out(total: int, sizes: list[int], shares: list[int]) -> None:
    assert _shares(total, sizes) == shares and sum(shares) == total
