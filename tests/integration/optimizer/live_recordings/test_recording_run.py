"""Language models are recorded: every prompt on every query, resumed, within budgets, and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import IAPO, Execution, MajorityVote, Preference
from iapo_dspy.environments.recorded.files import save
from iapo_dspy.environments.recorded.recording import Recording, VotingRecording
from tests.support.loopback import Faults, Loopback, chat
from tests.support.worlds import INSTRUCTIONS, LAZY, QUICK, adder, exact, questions, student

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
    server: Loopback, *, lm: Mapping[str, Any] | None = None, n: int = 4, samples: int = 6, **changes: Any
) -> Recording:
    with dspy.context(lm=server.lm(temperature=1.0, seed=7, **(lm or {}))):
        return optimizer(**changes).record(
            student(), trainset=questions(n), candidates=INSTRUCTIONS, samples=samples, about=ABOUT
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
