"""Messages of equal calls are written once, and calls from threads wake a loop once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import dspy

from iapo_dspy.sampling.concurrency.loop import Mailbox
from iapo_dspy.sampling.rollouts.prepare import format_once

SIGNATURE = dspy.Signature("question, options -> answer")


def counted(monkeypatch: Any) -> list[int]:
    calls = [0]
    write = dspy.ChatAdapter.format

    def format(self: Any, *args: Any) -> Any:
        calls[0] += 1
        return write(self, *args)

    monkeypatch.setattr(dspy.ChatAdapter, "format", format)
    return calls


def test_equal_calls_are_written_once_and_others_anew(monkeypatch: Any) -> None:
    adapter = dspy.ChatAdapter()
    demo = {"question": "p", "options": "o", "answer": "a"}
    cases: list[tuple[list[Any], dict[str, Any]]] = [
        ([], {"question": "q", "options": "1"}),
        ([], {"question": "q", "options": 1}),
        ([], {"question": "q", "options": True}),
        ([demo], {"question": "q", "options": "1"}),
        ([], {"question": "r", "options": "1"}),
        ([], {"question": "q", "options": ["1"]}),
    ]
    expected = [adapter.format(SIGNATURE, demos, inputs) for demos, inputs in cases]
    calls = counted(monkeypatch)
    once = format_once(adapter)
    for _ in range(3):
        assert [once.format(SIGNATURE, demos, inputs) for demos, inputs in cases] == expected
    assert calls[0] == 5 + 3  # a list can change in place: it is written every time
    once.format(SIGNATURE, *cases[0])[0]["content"] = "changed"
    assert once.format(SIGNATURE, *cases[0]) == expected[0]


def test_adapters_that_someone_listens_to_or_wrote_stay_as_they_are() -> None:
    class Mine(dspy.ChatAdapter):
        pass

    for adapter in (Mine(), dspy.ChatAdapter(callbacks=[dspy.utils.BaseCallback()])):
        assert format_once(adapter) is adapter


async def test_mailbox_keeps_order_loses_nothing_and_outlives_errors() -> None:
    loop = asyncio.get_running_loop()
    got: list[tuple[int, int]] = []
    quiet: list[Any] = []
    loop.set_exception_handler(lambda loop, context: quiet.append(context["exception"]))
    done = asyncio.Event()
    box = Mailbox.of(loop)
    assert Mailbox.of(loop) is box

    def receive(thread: int, i: int) -> None:
        if i == 7:
            raise ValueError(thread)
        got.append((thread, i))
        if len(got) == 4 * 999:
            done.set()

    def send(thread: int) -> None:
        for i in range(1000):
            box.post(receive, thread, i)

    threads = [threading.Thread(target=send, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    await asyncio.wait_for(done.wait(), 30)
    for t in range(4):
        assert [i for thread, i in got if thread == t] == [i for i in range(1000) if i != 7]
    assert len(quiet) == 4
