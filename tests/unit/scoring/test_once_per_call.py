"""Work that the objectives of a call share is done once."""

import threading
from typing import Any

import pytest

from iapo_dspy.errors import ScoreError
from iapo_dspy.scoring.once_per_call import once, sharing


def test_what_a_call_shares_is_worked_out_once_errors_included() -> None:
    calls = []
    together = threading.Barrier(4)

    def compute() -> int:
        calls.append(1)
        return len(calls)

    def fails() -> int:
        calls.append(1)
        raise ScoreError("no")

    def ask(context: Any, found: list[int]) -> None:
        together.wait()
        found.append(context.run(once, "a", compute))

    import contextvars

    found: list[int] = []
    with sharing():
        threads = [threading.Thread(target=ask, args=(contextvars.copy_context(), found)) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert found == [1, 1, 1, 1] and once("b", compute) == 2
        for _ in range(2):
            with pytest.raises(ScoreError):
                once("c", fails)
        assert len(calls) == 3
    assert once("a", compute) == 4 and once("a", compute) == 5  # outside of a call nothing is shared
