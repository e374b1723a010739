"""Options of requests are checked, and seeds are fresh or reproducible."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iapo_dspy.demo.batching import Batcher, SeedSource, parse_request, shared_batcher
from iapo_dspy.demo.generation import Generation, InvalidRequestError
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


def test_kept_completions_are_those_that_the_model_would_draw() -> None:
    model = shared_batcher().model
    fresh, keeping = Batcher(model, slots=16, workers=1), Batcher(model, slots=16, workers=1)
    keeping.keep(16)
    options = {"temperature": 1.0, "max_tokens": 12}

    def ask(batcher: Batcher, n: int, seed: int) -> Generation:
        request = parse_request(MESSAGES, {**options, "n": n}, model.tokenizer, seed=seed)
        return batcher.submit(request).result(timeout=60)

    asked = [(4, 1), (2, 1), (6, 1), (2, 2), (20, 3), (20, 3)]  # fewer, more, another seed, more than are kept
    assert [ask(keeping, *each) for each in asked] == [ask(fresh, *each) for each in asked]


def test_what_is_kept_is_not_work_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_batcher().model
    batcher = Batcher(model, slots=16, workers=1)
    batcher.keep(16)
    request = parse_request(MESSAGES, {"n": 3, "max_tokens": 5}, model.tokenizer, seed=1)
    made = batcher.submit(request).result(timeout=60)
    monkeypatch.setattr(batcher, "_inbox", None)  # nothing can be queued any more
    assert batcher.submit(request).result(timeout=1) == made
    assert batcher.submit(replace(request, n=2)).result(timeout=1).choices == made.choices[:2]
    with pytest.raises(AttributeError):
        batcher.submit(replace(request, seed=2))
