"""Items are worked on in batches."""

import threading
from typing import Any

from iapo_dspy.scoring.objectives.microbatch import MicroBatcher


def test_items_that_come_while_a_batch_runs_are_taken_together() -> None:
    batches: list[list[int]] = []
    running, go = threading.Event(), threading.Event()

    def run(items: Any) -> list[int]:
        batches.append(list(items))
        running.set()
        go.wait(5)
        return [i * 10 for i in items]

    batcher: MicroBatcher[int, int] = MicroBatcher(run, 4)
    results: dict[int, int] = {}

    def ask(i: int) -> None:
        results[i] = batcher(i)

    threads = [threading.Thread(target=ask, args=(0,))]
    threads[0].start()
    assert running.wait(5) and batches == [[0]]  # the first one waits for nobody
    threads += [threading.Thread(target=ask, args=(i,)) for i in range(1, 8)]
    for t in threads[1:]:
        t.start()
    while len(batcher._waiting) < 7:
        pass
    go.set()
    for t in threads:
        t.join(5)
    assert results == {i: i * 10 for i in range(8)}
    assert [len(b) for b in batches] == [1, 4, 3]


def test_one_item_that_cannot_be_worked_on_takes_no_other_with_it() -> None:
    running, go = threading.Event(), threading.Event()

    def run(items: Any) -> list[int]:
        running.set()
        go.wait(5)
        if 3 in items:
            raise ValueError("three")
        return list(items)

    batcher: MicroBatcher[int, int] = MicroBatcher(run, 8)
    results: dict[int, Any] = {}

    def ask(i: int) -> None:
        try:
            results[i] = batcher(i)
        except ValueError as error:
            results[i] = str(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    assert running.wait(5)
    go.set()
    for t in threads:
        t.join(5)
    assert results == {0: 0, 1: 1, 2: 2, 3: "three", 4: 4, 5: 5}
