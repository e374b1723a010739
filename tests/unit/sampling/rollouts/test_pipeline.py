"""The callback of an inner module tells the watch of a rollout about its calls."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from dspy.utils import DummyLM

from iapo_dspy.sampling.rollouts.pipeline import WATCH, InnerModule, Watch, current_watch


class Inner(dspy.Module):
    def __init__(self, seen: list[Any]) -> None:
        super().__init__(callbacks=[InnerModule(["question", "hint"])])
        self.seen = seen

    def forward(self, question: str, hint: str = "") -> dspy.Prediction:
        if question == "bad":
            raise ValueError(question)
        note = dspy.Example(question=question).with_inputs("question")
        dspy.Parallel(num_threads=2, disable_progress_bar=True)([(self._look, note), (self._look, note)])
        return dspy.Prediction(answer=question + hint)

    def _look(self, question: str) -> None:
        watch = current_watch()
        self.seen.append(watch.phase if watch is not None else None)


def test_a_call_is_noted_with_its_inputs_and_its_prediction() -> None:
    seen: list[Any] = []
    inner, watch = Inner(seen), Watch()
    with dspy.context(lm=DummyLM([]), **{WATCH: watch}):
        assert watch.phase == "before" and "not at all" in str(watch.problem)
        inner("a", hint="b")
        assert watch.phase == "after" and watch.problem is None  # type: ignore[comparison-overlap]
    assert seen == ["inside"] * 2  # in the threads of `dspy.Parallel` too
    assert watch.call is not None and watch.call.inputs == {"question": "a", "hint": "b"}
    assert watch.call.prediction is not None and watch.call.prediction.answer == "ab"


def test_a_second_call_and_a_call_that_raises_are_noted() -> None:
    inner, watch = Inner([]), Watch()
    with dspy.context(lm=DummyLM([]), **{WATCH: watch}):
        with pytest.raises(ValueError, match="bad"):
            inner("bad")
        assert watch.call is not None and watch.call.prediction is None
        inner("a")
    assert watch.calls == 2 and "2 times" in str(watch.problem)
    assert watch.call.inputs == {"question": "bad"} and watch.call.prediction is None


def test_outside_of_a_rollout_nothing_is_noted() -> None:
    seen: list[Any] = []
    assert Inner(seen)(question="a").answer == "a"
    assert seen == [None, None]
