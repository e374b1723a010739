"""Options of requests are checked, and seeds are fresh or reproducible."""

from __future__ import annotations

from typing import Any

import pytest

from iapo_dspy.demo.batching import SeedSource, parse_request, shared_batcher
from iapo_dspy.demo.generation import InvalidRequestError
from tests.support.demo_chat import render_chat

MESSAGES = render_chat(
    instruction="Work column by column, carrying, before you answer.",
    field="question",
    value="What is 123 + 456?",
    reasoning=False,
)


def test_seed_sources_are_fresh_or_reproducible() -> None:
    fixed = SeedSource(1)
    assert [fixed.next("a"), fixed.next("b"), fixed.next("a")] == [
        (again := SeedSource(1)).next("a"),
        again.next("b"),
        again.next("a"),
    ]
    assert SeedSource(1).next("a") != SeedSource(2).next("a")
    assert SeedSource().next("a") != SeedSource().next("a")


@pytest.mark.parametrize(
    "options",
    [{"n": "3"}, {"n": True}, {"temperature": "hot"}, {"stop": [1]}, {"stream": True}, {"tools": [{}]}, {"seed": 1.5}],
)
def test_options_of_wrong_types_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(options))):
        parse_request(MESSAGES, options, shared_batcher().model.tokenizer, seed=0)
