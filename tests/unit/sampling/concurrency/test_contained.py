"""Exits in users' functions: they fail one completion, and reach neither a thread, a loop nor the process."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from iapo_dspy.sampling.concurrency.contained import CodeExited, contained, contained_wait
from iapo_dspy.sampling.concurrency.threads import in_thread


class Strange(BaseException):
    """An exit of somebody's own."""


EXITS = [SystemExit("stop"), GeneratorExit("stop"), asyncio.CancelledError("stop"), Strange("stop")]


@pytest.mark.parametrize("exit", EXITS, ids=repr)
async def test_an_exit_becomes_an_error_that_names_it(exit: BaseException) -> None:
    message = f"^{type(exit).__name__}: stop$"
    with pytest.raises(CodeExited, match=message), contained():
        raise exit

    def work() -> None:
        raise exit

    with pytest.raises(CodeExited, match=message):
        await in_thread(work)


def test_errors_pass_and_so_does_ctrl_c_in_the_main_thread() -> None:
    with pytest.raises(ZeroDivisionError), contained():
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), contained():
        raise KeyboardInterrupt
    caught: list[BaseException] = []

    def work() -> None:  # in another thread it cannot be the user's
        try:
            with contained():
                raise KeyboardInterrupt
        except CodeExited as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert str(caught[0]) == "KeyboardInterrupt"


async def test_a_coroutine_that_exits_does_not_end_the_loop_that_awaits_it() -> None:
    async def leave(error: BaseException) -> None:
        raise error

    with pytest.raises(CodeExited, match="SystemExit"):
        await asyncio.gather(contained_wait(leave(SystemExit(1))))
    with pytest.raises(CodeExited, match="KeyboardInterrupt"):
        await asyncio.gather(contained_wait(leave(KeyboardInterrupt())))
    waiting = asyncio.ensure_future(contained_wait(asyncio.sleep(60)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks do not know who cancelled them")
async def test_a_coroutine_that_calls_itself_cancelled_has_failed() -> None:
    async def leave() -> None:
        raise asyncio.CancelledError

    with pytest.raises(CodeExited, match="CancelledError"):
        await contained_wait(leave())
