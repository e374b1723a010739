"""Language models are recorded: every prompt on every query, resumed, within budgets, and replayed."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import IAPO, BestOfN, Budget, Execution, MajorityVote, Mean, Objective, Preference, Search
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.environments.port import drive
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.recordings import BestOfRecording, Recording, VotingRecording, load, save
from iapo_dspy.sampling.ledger.reading import contents_of
from iapo_dspy.sampling.ledger.records import CompletionRecord
from tests.support.killing import Victim, record_once
from tests.support.loopback import Faults, Loopback, chat
from tests.support.worlds import INSTRUCTIONS, LAZY, QUICK, adder, brevity, checked, exact, questions, student

PREFERENCES = [Preference("quality", cost=0.0), Preference("thrifty", cost=3.0)]
ABOUT = {"date": "2026-11-29", "task": "additions"}


def optimizer(**changes: Any) -> IAPO:
    settings: dict[str, Any] = {
        "metric": exact,
        "strategy": MajorityVote("answer"),
        "preferences": PREFERENCES,
        "num_threads": 8,
        "execution": Execution(progress=False),
    }
    return IAPO(**(settings | changes))


def record(
    server: Loopback,
    *,
    lm: Mapping[str, Any] | None = None,
    n: int = 4,
    samples: int = 6,
    ray: bool = False,
    **changes: Any,
) -> Recording:
    with dspy.context(lm=server.lm(**{"temperature": 1.0, "seed": 7, **(lm or {})})):
        return optimizer(**changes).record(
            student(), trainset=questions(n), candidates=INSTRUCTIONS, samples=samples, about=ABOUT, ray=ray
        )


def test_every_prompt_is_drawn_on_every_query_prompt_after_prompt() -> None:
    with Loopback(adder) as server:
        found = record(server, samples=20, num_threads=1)
        assert server.completions == 3 * 4 * 20
        asked = [next(p for p in INSTRUCTIONS if p in b["messages"][0]["content"]) for b in server.bodies]
        assert [b["n"] for b in server.bodies] == [16, 4] * 12
    assert asked == [p for p in INSTRUCTIONS for _ in range(8)]  # the requests of a prompt follow each other
    assert isinstance(found, VotingRecording) and found.drawn is not None
    assert found.drawn.outcome.shape == (3, 4, 20) and found.drawn.causes == () and found.drawn.endings == ("stop",)
    right = found.scores[np.arange(4)[:, None, None], found.drawn.outcome.transpose(1, 0, 2)].mean(axis=(0, 2))
    assert right[1] == 0.5 and 0.65 < right[2] < 0.95 and right[0] < 0.4  # as the three instructions are made


def test_the_card_says_where_a_recording_comes_from() -> None:
    with Loopback(adder) as server:
        found = record(server)
    card = found.card
    assert (card["models"], card["samples"], card["strategy"]) == (["openai/fake"], 6, "majority_vote")
    assert card["servers"] == [server.base.removeprefix("http://").removesuffix("/v1")]
    assert [p["instructions"] for p in card["prompts"]] == [{"self": text} for text in INSTRUCTIONS]
    assert card["prompts"][0]["lms"]["self"]["temperature"] == 1.0 and card["prompts"][0]["lms"]["self"]["seed"] == 7
    assert len(set(card["queries"])) == 4 and len({p["digest"] for p in card["prompts"]}) == 3
    assert (card["task"], card["date"], card["failures"]) == ("additions", "2026-11-29", {})
    assert "secret" not in str(card) and "1 + 3" not in str(card)  # neither the key nor a question


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_equal_recordings_are_equal_files(tmp_path: Path, suffix: str) -> None:
    with Loopback(adder) as server:
        for name, threads in (("a", 1), ("b", 8)):
            save(record(server, num_threads=threads), tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def scripted(body: dict[str, Any], i: int) -> str:
    """Right, wrong, unreadable and cut off in turn, whatever is asked."""
    turn = body.setdefault("_turn", iter(range(100)))
    if QUICK in body["messages"][0]["content"]:
        return "I cannot tell you."
    return [chat(answer="4"), chat(answer="5 or so, I think"), "no idea", "one two three four five six seven"][
        next(turn) % 4
    ]


@pytest.mark.parametrize("most_n", [16, 1])
def test_failures_endings_and_tokens_are_exact(most_n: int) -> None:
    turns = iter(range(10**6))

    def few(body: dict[str, Any], i: int) -> str:
        return scripted(body if most_n > 1 else {**body, "_turn": turns}, i)

    with Loopback(few, obeys=True, faults=Faults(most_n=most_n)) as server:
        with dspy.context(lm=server.lm(temperature=1.0, max_tokens=12)):
            found = optimizer(num_threads=1).record(
                student(), trainset=questions(2), candidates=[LAZY, QUICK], samples=4
            )
        assert server.completion_tokens == 2 * (11 + 12 + 2 + 7) + 8 * 4
    drawn = found.drawn
    assert drawn is not None and isinstance(found, VotingRecording)
    # Two of the four are format and answer; the second of them ends at 12 words. "4" is right on the first question.
    cells = [
        sorted(zip(drawn.outcome[0, x].tolist(), drawn.tokens[0, x].tolist(), drawn.finish[0, x].tolist(), strict=True))
        for x in range(2)
    ]
    cut, stop = drawn.endings.index("length"), drawn.endings.index("stop")
    assert cells == [[(-1, 2, stop), (-1, 7, stop), (-1, 12, cut), (0, 11, stop)]] * 2
    assert drawn.tokens[1].tolist() == [[4] * 4] * 2 and (drawn.outcome[1] == -1).all()
    assert found.answers.tolist() == [0, -1]
    assert drawn.causes == ("AdapterParseError", "IncompleteCompletion") and drawn.failures.tolist() == [[4, 2], [8, 0]]
    assert found.card["failures"] == {"AdapterParseError": 12, "IncompleteCompletion": 2}
    assert found.probs[0].tolist() == [[0.25], [0.25]] and found.probs[1].sum() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 and fork servers are POSIX")
def test_a_killed_recording_repeats_nothing(tmp_path: Path) -> None:
    lm = {"api_key": "sk-x", "cache": False, "seed": 1, "temperature": 1.0}
    with Loopback(adder) as server:
        record_once({**lm, "api_base": server.base}, str(tmp_path / "whole"), str(tmp_path / "whole.npz"))
        wanted = {body["seed"] for body in server.bodies}
        assert len(wanted) == 24
    paid: set[int] = set()
    again = 0
    with Loopback(adder, latency=0.05) as server:
        for last in (False, False, True):
            before = len(server.bodies)
            victim = Victim(
                {**lm, "api_base": server.base}, str(tmp_path / "run"), str(tmp_path / "b.npz"), target=record_once
            )
            while not last and victim.alive and len(server.bodies) < before + 7:
                time.sleep(0.002)
            if not last:
                victim.kill()
            else:
                assert victim.wait() == 0
            while server.in_flight:
                time.sleep(0.002)
            asked = [body["seed"] for body in server.bodies[before:]]
            assert not paid & set(asked), "a request was sent although its completions are on disk"
            kept = contents_of(tmp_path / "run").all(CompletionRecord)
            paid, again = {r.seed for r in kept if r.seed is not None}, again + len(set(asked) - paid)
        assert {body["seed"] for body in server.bodies} == wanted
        assert len(server.bodies) - len(wanted) <= 2 * 2  # those in flight at the two kills, of two threads
    card = load(tmp_path / "whole.npz").card
    assert load(tmp_path / "b.npz").card == {**card, "servers": load(tmp_path / "b.npz").card["servers"]}
    same_arrays(load(tmp_path / "b.npz"), load(tmp_path / "whole.npz"))


def same_arrays(one: Recording, other: Recording) -> None:
    assert isinstance(one, VotingRecording) and isinstance(other, VotingRecording)
    assert one.drawn is not None and other.drawn is not None
    for name in ("probs", "answers", "cost", "overhead", "cost_weights", "scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("outcome", "tokens", "prompt_tokens", "finish", "endings", "failures", "causes"):
        np.testing.assert_array_equal(getattr(one.drawn, name), getattr(other.drawn, name))


def test_a_budget_ends_a_recording_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with Loopback(adder) as server:
        with pytest.raises(BudgetTooSmall, match=r"30 of 72 completions are in .* 42 are missing.*at least 72") as told:
            record(server, log_dir=tmp_path, budget=Budget(completions=34))
        assert server.completions == 30  # whole pulls of 6
        assert (told.value.given, told.value.least) == (30, 72)
        found = record(server, log_dir=tmp_path, budget=80)
        assert server.completions == 72
        more = record(server, log_dir=tmp_path, samples=8)
        assert server.completions == 96
        again = record(server, log_dir=tmp_path)
        assert server.completions == 96
    same_arrays(found, again)
    assert more.drawn is not None and found.drawn is not None
    np.testing.assert_array_equal(more.drawn.tokens[:, :, :6], found.drawn.tokens)


def test_dollars_end_a_recording(tmp_path: Path) -> None:
    with Loopback(adder) as server:
        lm = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.001, "max_tokens": 50}
        with pytest.raises(BudgetTooSmall, match=r"of 72 completions"):
            record(server, lm=lm, log_dir=tmp_path, budget=Budget(usd=0.8), num_threads=1)
        assert 0 < server.completions < 72 and server.completion_tokens * 0.001 <= 0.8


@pytest.mark.extra
def test_ray_and_one_process_give_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with Loopback(adder) as server:
        save(record(server, log_dir=tmp_path / "one"), tmp_path / "one.npz")
        assert server.completions == 72
        with pytest.raises(BudgetTooSmall, match="30 of 72"):
            record(server, log_dir=tmp_path / "more", budget=34)  # in one process, and then on Ray
        assert server.completions == 102
        save(record(server, log_dir=tmp_path / "more", ray=True), tmp_path / "more.npz")
        assert server.completions == 144 and not (tmp_path / "more" / "shards").exists()
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "more.npz").read_bytes()


def test_recorded_and_live_values_agree(tmp_path: Path) -> None:
    """The law of the world is known: the recording of 64 completions a cell, and a compile, are both near it."""
    with Loopback(adder) as server:
        found = record(server, samples=64, n=10)
        with dspy.context(lm=server.lm(temperature=1.0, seed=7)):
            program = optimizer(budget=1_500, max_n=5, search=Search(stopping=None)).compile(
                student(), trainset=questions(10), candidates=INSTRUCTIONS
            )
    q = found.exact(5).q()
    result = program.detailed_results
    assert result is not None
    for context, row in enumerate(result.policy):
        assert row.arm.prompt == 2 if context == 0 else row.arm.prompt in (1, 2)
        exact_value = q[context, row.arm.prompt, row.arm.n - 1]
        assert abs(row.utility - exact_value) < 0.08 or context > 0
    # CAREFUL is right four times in five: majorities of 1 and 5, ties broken among spread wrong answers
    assert abs(q[0, 2, 0] - 0.8) < 0.05 and q[0, 2, 4] > 0.93
    assert abs(q[0, 1, 0] - 0.5) < 1e-9 and abs(q[0, 1, 4] - 0.5) < 1e-9
    simulated = drive(PSST().start(found.problem(5), budget=1_500, seed=0), found.environment(0))
    assert simulated.policy.arms[0].prompt == 2
    assert abs(simulated.q[0, 2, simulated.policy.arms[0].n - 1] - q[0, 2, simulated.policy.arms[0].n - 1]) < 0.08


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "samples"),
        ({"samples": True}, "samples"),
        ({"about": {"when": object()}}, "JSON"),
        ({"strategy": "Mean"}, "recordings hold majority votes"),
        ({"budget": 10}, "log_dir"),
    ],
)
def test_wrong_arguments_cost_nothing(changes: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"samples": 2, "about": {}} | {
        k: v for k, v in changes.items() if k in ("samples", "about")
    }
    settings = {k: v for k, v in changes.items() if k not in asked}
    if settings.get("strategy") == "Mean":
        settings["strategy"] = Mean("answer", range=(0.0, 100.0))
    with Loopback(adder) as server, dspy.context(lm=server.lm(temperature=1.0)):
        with pytest.raises(ConfigurationError, match=message):
            optimizer(**settings).record(student(), trainset=questions(4), candidates=INSTRUCTIONS, **asked)
        assert server.requests == 0


def test_completions_of_best_of_n_keep_their_scores_and_tokens(tmp_path: Path) -> None:
    strategy = BestOfN([Objective("right", checked), Objective("short", brevity)])
    with Loopback(adder) as server:
        found = record(server, strategy=strategy, metric=None, preferences=[Preference("right", cost=1.0)])
    assert isinstance(found, BestOfRecording) and found.drawn is not None
    assert found.outcomes.shape == (3, 4, 6, 2) and found.drawn.outcome.tolist() == [[[0, 1, 2, 3, 4, 5]] * 4] * 3
    save(found, tmp_path / "x.npz")
    again = load(tmp_path / "x.npz")
    assert isinstance(again, BestOfRecording)
    np.testing.assert_array_equal(again.probs, found.probs)
    np.testing.assert_array_equal(again.outcomes, found.outcomes)
    assert again.card == found.card


def test_a_prompt_that_cannot_be_read_is_recorded_too() -> None:
    def hopeless(body: dict[str, Any], i: int) -> str:
        return "no idea" if LAZY in body["messages"][0]["content"] else adder(body, i)

    with Loopback(hopeless) as server:
        found = record(server, samples=16)
    assert found.drawn is not None and found.drawn.failures.tolist() == [[64], [0], [0]]
