"""Messages of equal calls are written once, answers in JSON are read, and calls from threads wake a loop once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError

from iapo_dspy.sampling.concurrency.loop import Mailbox
from iapo_dspy.sampling.rollouts.prepare import format_once, quiet_adapter

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


def _reads(adapter: Any, text: str, signature: Any = SIGNATURE) -> Any:
    return quiet_adapter(adapter, lambda lm: lm).parse(signature, text)


@pytest.mark.parametrize("adapter", [None, dspy.ChatAdapter(), dspy.XMLAdapter(), dspy.JSONAdapter()])
@pytest.mark.parametrize(
    "text",
    [
        '{"answer": "7"}',
        'Sure:\n```json\n{"answer": "7"}\n```\nDone.',
        '{"why": {"a": [1]}, "answer": "7"} {"answer": "8"}',
    ],
)
def test_an_answer_in_json_is_read_whatever_was_asked_for(adapter: Any, text: str) -> None:
    assert _reads(adapter, text) == {"answer": "7"}


def test_json_is_read_into_the_types_of_the_fields_and_only_where_the_format_was_not_kept() -> None:
    typed = dspy.Signature("question -> items: list[int], sure: bool")
    assert _reads(None, '{"items": [1, 2], "sure": true}', typed) == {"items": [1, 2], "sure": True}
    kept = '[[ ## answer ## ]]\n{"answer": "8"}\n\n[[ ## completed ## ]]'
    assert _reads(None, kept) == {"answer": '{"answer": "8"}'}


@pytest.mark.parametrize(
    "text",
    ["seven", '{"answer": "7', "{answer: 7}", '{"reply": "7"}', '["answer"]', "", "{" * 100_000, '{"a":' * 100_000],
)
def test_everything_else_fails_as_the_adapter_says(text: str) -> None:
    with pytest.raises(AdapterParseError, match="ChatAdapter"):
        _reads(None, text)


def test_who_switches_the_fallback_off_gets_none() -> None:
    with pytest.raises(AdapterParseError):
        _reads(dspy.ChatAdapter(use_json_adapter_fallback=False), '{"answer": "7"}')


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
