"""Records are flat lines of JSON, and those of older versions are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iapo_dspy.sampling.ledger.records import (
    CallRecord,
    CompletionRecord,
    RewriteRecord,
    SpentRecord,
    check_line,
    decode_record,
    encode_record,
)
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.usage import Usage


def record(index: int, pull: tuple[int, int] = (0, 0), **changes: Any) -> CompletionRecord:
    fields = {"answer": f"a{index}"}
    base: dict[str, Any] = {
        "text": f"text {index}\nnext",
        "fields": fields,
        "usage": Usage(completion_tokens=2.5),
        "seed": 7,
    }
    return CompletionRecord(prompt=f"p{pull[0]}", query=f"q{pull[1]}", draw=index, first=0, **{**base, **changes})


def test_lines_are_flat_and_those_of_older_versions_are_read() -> None:
    usage = Usage(
        prompt_tokens=1, completion_tokens=2, usd=3, shared_tokens=4, shared_completion_tokens=5, shared_usd=6
    )
    one = record(0, usage=usage)
    names = ["prompt_tokens", "completion_tokens", "usd", "shared_tokens", "shared_completion_tokens", "shared_usd"]
    line = encode_record(one)
    assert [line[name] for name in names] == [1, 2, 3, 4, 5, 6] and line["latency_s"] == 0 and "usage" not in line
    assert decode_record(line) == one
    older = {k: v for k, v in line.items() if k not in ("shared_completion_tokens", "inner")}
    assert decode_record(older) == record(0, usage=replace(usage, shared_completion_tokens=0.0))
    call = CallRecord(query="q", call="c", repeat=0, usage=Usage(prompt_tokens=2, latency_s=0.5))
    assert "shared_tokens" not in encode_record(call) and decode_record(encode_record(call)) == call
    rewrite = RewriteRecord(key="r/q", text="b", texts=["a", "b"], rewards=[0.5, 1.0], usage=Usage(completion_tokens=2))
    line = encode_record(rewrite)
    assert line["kind"] == "rewrite" and line["completion_tokens"] == 2 and decode_record(line) == rewrite


def test_logprobs_stand_in_lines_that_have_them() -> None:
    line = encode_record(record(0, logprob=-0.25))
    check_line(line)
    assert line["logprob"] == -0.25 and decode_record(line) == record(0, logprob=-0.25)
    assert "logprob" not in encode_record(record(0))
    with pytest.raises(ValueError, match="logprob"):
        check_line({**line, "logprob": 0.5})


def test_what_was_spent_is_one_flat_line() -> None:
    spent = Spent(requests=1, prompt_tokens=2, completion_tokens=3, usd=4.0, seconds=5.1234567, judge_requests=1)
    record = SpentRecord(spent=spent, reserved=Spent(completion_tokens=6, usd=7.0), finished=True)
    line = encode_record(record)
    assert list(line) == [
        "kind", "requests", "prompt_tokens", "completion_tokens", "usd", "seconds", "finished", "reserved_tokens",
        "reserved_usd", "judge_requests", "judge_prompt_tokens", "judge_completion_tokens", "judge_usd",
        "writer_requests", "writer_prompt_tokens", "writer_completion_tokens", "writer_usd",
        "rewriter_requests", "rewriter_prompt_tokens", "rewriter_completion_tokens", "rewriter_usd",
    ]  # fmt: skip
    assert line["reserved_tokens"] == 6 and line["seconds"] == 5.1234567 and decode_record(line) == record
    assert decode_record({"kind": "spent", "requests": 2}) == SpentRecord(spent=Spent(requests=2))
