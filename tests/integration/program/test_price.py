"""The cost of N samples in requests and tokens, compared with `dspy.BestOfN`. The benchmark measures wall time."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from iapo_dspy import BestOfN, MajorityVote, Objective, Strategy
from iapo_dspy.bandit.stopping.rules import exact_waves
from iapo_dspy.types import Arm, Stop
from tests.support.deployed import deploy
from tests.support.loopback import Loopback, chat

N = 16
MANUAL = "Read the whole manual before you answer. " * 60


def halves(body: dict[str, Any], i: int) -> str:
    """Agree, unless the question is torn."""
    return chat(answer="no" if "torn" in body["messages"][-1]["content"] and i % 2 else "yes")


def score(example: Any, prediction: Any) -> float:
    return 0.9 if prediction.answer == "yes" else 0.1


BEST = BestOfN([Objective("yes", score)])
WAVES = Arm(0, N, Stop(waves=exact_waves(N)))
CASES: list[tuple[str, Strategy, Arm, str, int, float]] = [
    ("best of n", BEST, Arm(0, N), "Torn?", 1, 8.0),
    ("a vote at once", MajorityVote("answer"), Arm(0, N), "Is it torn?", 1, 8.0),
    ("a vote that agrees", MajorityVote("answer"), WAVES, "Is it?", 1, 8.0),
    # Both waves, each with its prompt: no more than the two requests, so never eight times cheaper.
    ("a vote that is torn", MajorityVote("answer"), WAVES, "Is it torn?", 2, 6.5),
]


@pytest.mark.parametrize(("strategy", "arm", "question", "waves", "cheaper"), [c[1:] for c in CASES],
                         ids=[c[0] for c in CASES])  # fmt: skip
def test_n_samples_are_one_or_two_requests_and_share_the_prompt(
    strategy: Strategy, arm: Arm, question: str, waves: int, cheaper: float
) -> None:
    with Loopback(halves) as server, dspy.context(lm=server.lm(temperature=1.0)):
        metric = None if strategy is BEST else score
        program = deploy(dspy.Predict("question -> answer"), strategy, [MANUAL], {"q": arm}, metric=metric)
        plain = dspy.Predict(dspy.Signature("question -> answer", MANUAL))
        theirs = dspy.BestOfN(plain, N=N, reward_fn=lambda args, pred: score(args, pred), threshold=2.0)
        counts = []
        for call in (program, theirs):
            before = server.requests, server.prompt_tokens + server.completion_tokens
            assert call(question=question).answer == "yes"
            counts.append((server.requests - before[0], server.prompt_tokens + server.completion_tokens - before[1]))
    (requests, tokens), (their_requests, their_tokens) = counts
    assert (requests, their_requests) == (waves, N)
    assert their_tokens >= cheaper * tokens
