"""A function in a process of its own: its result, its failure, and its end."""

from __future__ import annotations

import os
import signal
import time

import pytest

from iapo_dspy.command_line.another_process import AnotherProcess
from iapo_dspy.errors import IAPOError


def product(a: int, b: int) -> tuple[int, int]:
    return a * b, os.getpid()


def end_early() -> None:
    os._exit(7)


def sleep_long() -> None:
    time.sleep(600)


def survive_ctrl_c() -> bool:
    os.kill(os.getpid(), signal.SIGINT)
    return True


def test_a_result_comes_from_another_process() -> None:
    with AnotherProcess(product, 6, 7) as other:
        found, pid = other.result()
    assert found == 42 and pid != os.getpid()


def test_a_process_that_ends_early_is_an_error_with_its_exit_code() -> None:
    with AnotherProcess(end_early) as other, pytest.raises(IAPOError, match="exit code 7"):
        other.result()


def test_the_process_ends_with_the_block() -> None:
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), AnotherProcess(sleep_long) as other:
        raise KeyboardInterrupt
    assert not other._process.is_alive() and time.perf_counter() - start < 20


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows blocks no signals")
def test_ctrl_c_reaches_the_first_process_alone() -> None:
    with AnotherProcess(survive_ctrl_c) as other:
        assert other.result()
