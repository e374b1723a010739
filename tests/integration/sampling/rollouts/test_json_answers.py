"""A model that answers in JSON whatever format it is asked for: read as it is, compiled and deployed alike."""

from __future__ import annotations

import json
from typing import Any

import dspy
import pytest

from iapo_dspy.errors import TooManyErrors
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import Around, adder, questions, student

optimizer = optimizers(budget=120)


def in_json(body: dict[str, Any], i: int) -> str:
    """Answer as `adder` does, in JSON."""
    answer = dspy.ChatAdapter().parse(dspy.Signature("question -> answer"), adder(body, i))
    return json.dumps(answer)


@pytest.mark.parametrize("make", [student, pytest.param(Around, marks=pytest.mark.slow)])
def test_json_counts_and_costs_no_further_call(make: Any) -> None:
    with Loopback(in_json) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer().compile(make(), trainset=questions(8))
        results = program.detailed_results
        assert results.failures.total == 0 and results.spent.requests == server.requests
        called = program(question="3 + 4", preference="quality")
        assert called.iapo.failures == {} and sum(called.iapo.votes.values()) == called.iapo.n


@pytest.mark.parametrize(
    ("adapter", "other"),
    [(dspy.ChatAdapter(use_json_adapter_fallback=False), "JSONAdapter"), (dspy.JSONAdapter(), "ChatAdapter")],
)
def test_a_model_that_keeps_to_no_format_is_told_another_adapter(adapter: Any, other: str) -> None:
    with Loopback(lambda body, i: "seven, I think") as server:
        with dspy.context(lm=server.lm(), adapter=adapter):
            with pytest.raises(TooManyErrors, match=rf"dspy\.configure\(adapter=dspy\.{other}\(\)\)"):
                optimizer().compile(student(), trainset=questions(8))
