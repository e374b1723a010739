"""The path of one completion, from `LiveEnvironment.pull` to `litellm.acompletion`."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import dspy
import litellm
import numpy as np
import pytest

import iapo_dspy
from iapo_dspy import MajorityVote
from iapo_dspy.environments.live.environment import LiveEnvironment, LivePrompt
from iapo_dspy.sampling.ledger.ledger import NullLedger
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import Meter
from iapo_dspy.types import Decoding, Pulls
from tests.support.loopback import Loopback, chat
from tests.support.worlds import exact

PACKAGE = str(Path(iapo_dspy.__file__).parent)
DEMO = str(Path(iapo_dspy.__file__).parent / "demo")  # its model's threads go on after other tests of the process
ENTRIES = {"_serve", "_next"}  # a thread that serves many calls, or waits for work, belongs to none of them


def _ours(code: CodeType) -> bool:
    named = not code.co_name.startswith("<")  # a comprehension is a part of its function
    ours = code.co_filename.startswith(PACKAGE) and not code.co_filename.startswith(DEMO)
    return ours and named and code.co_name not in ENTRIES


def _stack(frame: FrameType | None) -> Iterator[CodeType]:
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _awaited(coroutine: Any) -> Iterator[CodeType]:
    while inspect.iscoroutine(coroutine):
        yield coroutine.cr_code
        coroutine = coroutine.cr_await


def _path() -> list[str]:
    """Return the functions of the package that have been called and have not returned: all threads, then all tasks."""
    mine = list(_stack(sys._getframe(1)))
    others = [_stack(f) for ident, f in sys._current_frames().items() if ident != threading.get_ident()]
    running = asyncio.current_task()
    tasks = [_awaited(t.get_coro()) for t in asyncio.all_tasks() if t is not running]
    codes = [code for codes in (*others, *tasks, mine) for code in codes]
    return sorted(f"{Path(c.co_filename).stem}.{c.co_name}" for c in codes if _ours(c))


class _Steps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.solve = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.solve(question=question)


@pytest.mark.parametrize(("student", "most"), [(dspy.Predict("question -> answer"), 15), (_Steps(), 21)])
def test_the_path_of_a_completion_is_short(student: dspy.Module, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the calls from `pull` to `litellm.acompletion`.

    One pull of one completion is in flight, so that nothing else waits. When `litellm.acompletion` begins, every
    function of the package that was called and has not returned yet is on the path: on the stack of any thread, or in
    the chain of awaits of any task, the first coroutine of a task included. Each of them, `pull` among them, makes one
    call of the path; the last one calls `litellm.acompletion`. Functions of DSPy, asyncio and threading do not count.
    """
    paths: list[list[str]] = []
    send = litellm.acompletion

    async def acompletion(**settings: Any) -> Any:
        await asyncio.sleep(0.2)  # threads that have handed in their request get to where they wait
        paths.append(_path())
        return await send(**settings)

    monkeypatch.setattr(litellm, "acompletion", acompletion)
    with Loopback(lambda body, i: chat(answer="1")) as server, dspy.context(lm=server.lm()):
        meter = Meter()
        environment = LiveEnvironment(
            prompts=[LivePrompt(program=student, decoding=Decoding())],
            examples=[dspy.Example(question="1?", answer="1").with_inputs("question")],
            strategy=MajorityVote("answer"),
            metric=exact,
            sampler=Sampler(meter=meter),
            meter=meter,
            ledger=NullLedger(),
        )
        one = np.array([1])
        seen = environment.pull(Pulls(one - 1, one - 1, one))
        environment.close(finished=True)
    assert seen.pulls.completions == 1
    (path,) = paths
    print(f"{type(student).__name__}: {len(path)} calls: {', '.join(path)}")
    assert len(path) <= most, path
