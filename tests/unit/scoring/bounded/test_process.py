"""Processes that are killed where work takes too long: from threads, event loops and forks, and at the end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iapo_dspy.scoring.bounded import process as module
from iapo_dspy.scoring.bounded.process import Processes, TooMuchWork, WorkError

NASTY = ("find", "(a+)+$", 0, False, "a" * 40 + "b")


@pytest.fixture(scope="module")
def texts() -> Iterator[Processes]:
    processes = Processes([("valid", "true", 0)], most=2)
    yield processes
    processes.close()


def test_it_finds_what_re_finds(texts: Processes) -> None:
    for pattern, flags, text in (
        ("a+b", 0, "xaab"),
        ("A", re.IGNORECASE, "a"),
        ("^b", 0, "ab"),
        ("\u00e9", 0, "caf\u00e9\ud83d"),
    ):
        assert texts.run("find", pattern, flags, False, text) == bool(re.search(pattern, text, flags))
    with pytest.raises(WorkError, match="KeyError"):
        texts.run("no such task")


def test_too_much_work_ends_in_time_and_the_next_request_is_answered(texts: Processes) -> None:
    texts.run("find", "a", 0, False, "a")
    start = time.perf_counter()
    with pytest.raises(TooMuchWork, match="two seconds"):
        texts.run(*NASTY)
    assert module.SECONDS - 0.1 < time.perf_counter() - start < 2.5
    assert texts.run("find", "a", 0, False, "a") is True


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux bounds the memory of a process")
def test_too_much_memory_is_refused() -> None:
    import resource

    # Other tests have children, too, and a child begins with the size of its parent.
    before = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF))
    texts = Processes([], most=1)
    with pytest.raises(TooMuchWork, match="500 MB"):
        texts.run("find", "(?:a|b)*c", 0, False, "a" * 10**7)
    texts.close()
    assert 50_000 < resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(1.1 * before, 520_000)  # KB


def test_threads_and_event_loops_share_the_processes(texts: Processes) -> None:
    def ask(i: int) -> bool:
        return bool(texts.run("find", f"^{i}$", 0, False, str(i)))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))

    async def asked() -> list[bool]:
        return await asyncio.gather(*(asyncio.to_thread(ask, i) for i in range(20)))

    assert all(asyncio.run(asked())) and len(texts._idle) <= 2


def test_a_process_that_died_is_replaced() -> None:
    texts = Processes([], most=1)
    assert texts.run("find", "a", 0, False, "a")
    texts._idle[0].close()
    assert texts.run("find", "a", 0, False, "a")
    texts.close()
    assert not texts._idle and texts.run("find", "a", 0, False, "a")
    texts.close()


def test_a_process_that_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_WORKER", tmp_path / "missing.py")
    with pytest.raises(OSError, match=r"missing\.py.* did not start"):
        Processes([], most=1).run("find", "a", 0, False, "a")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_has_processes_of_its_own() -> None:
    script = """
import os
from iapo_dspy.scoring.bounded.process import TEXTS
assert TEXTS.run("find", "a", 0, False, "a")
first = TEXTS._idle[0]
child = os.fork()
if not child:
    assert TEXTS.run("find", "b", 0, False, "b") and TEXTS._idle[0] is not first
    TEXTS.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert TEXTS.run("find", "c", 0, False, "c") and TEXTS._idle == [first]
print(first._popen.pid)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    with pytest.raises(ProcessLookupError):  # it ended with its owner
        for _ in range(50):
            os.kill(int(done.stdout), 0)
            time.sleep(0.1)
