"""Shares of unreadable completions, remarks and remedies."""

from __future__ import annotations

import math
from typing import Any

from pydantic import TypeAdapter

from iapo_dspy.scoring.failures import FailureReport, UnreadableText, worst_examples

PARSE = "AdapterParseError: Adapter ChatAdapter failed to parse the LM response."
CUT = "IncompleteCompletion: cut off at max_tokens, or where the model's context ends (finish_reason 'length')"


def report(unread: int | None, *causes: tuple[str, int], **more: Any) -> FailureReport:
    share = (0.5, 0.1, math.nan)
    settings = {"completions": 100, "total": 40, "errors": 2, "share": share, "causes": causes, "unreadable": share}
    return FailureReport(**{**settings, "unread": unread, **more})


def test_a_remark_names_share_and_remedies() -> None:
    remark = report(30, (PARSE, 30)).remark
    assert remark is not None and remark.startswith("30% of the completions could not be read, 10% to 50% by prompt")
    assert "PlainTextAdapter" in remark and "dspy.JSONAdapter()" in remark and "IAPO(adapters=" in remark


def test_few_or_unknown_ones_are_not_remarked_on() -> None:
    assert report(20).remark is None and report(21).remark is not None
    assert report(None, unreadable=()).remark is None
    assert report(0, completions=0).remark is None


def test_remedies_fit_the_causes() -> None:
    assert "max_tokens" not in " ".join(report(30, (PARSE, 30)).remedies)
    assert report(30, (CUT, 30)).remedies[0].startswith("Larger max_tokens")
    assert report(30, (PARSE, 24), (CUT, 6)).remedies[0].startswith("For one output field")  # 6 of 24 are few
    assert report(30, (PARSE, 23), (CUT, 7)).remedies[0].startswith("Larger max_tokens")
    json = PARSE.replace("ChatAdapter", "JSONAdapter")
    assert any("dspy.configure(adapter=dspy.ChatAdapter())" in r for r in report(30, (json, 30)).remedies)


def test_the_report_of_some_prompts_has_their_shares_and_examples_by_their_new_numbers() -> None:
    examples = tuple(UnreadableText.of(p, f"text {p}", "cause") for p in (0, 1))
    found = report(30, examples=examples).only([1])
    assert found.share == found.unreadable == (0.1,)
    assert [(e.prompt, e.text) for e in found.examples] == [(0, "text 1")]
    assert report(None, unreadable=()).only([1]).unreadable == ()
    assert found.without_examples().examples == ()


def test_the_share_of_a_prompt() -> None:
    found = report(30)
    assert (found.unreadable_of(0), found.unreadable_of(1), found.unreadable_of(2)) == (0.5, 0.1, None)
    assert report(None, unreadable=()).unreadable_of(0) is None
    assert found.unreadable_share == 0.3 and math.isnan(report(None).unreadable_share)


def test_a_report_of_an_older_version_is_read_without_shares() -> None:
    old = {"completions": 10, "total": 1, "errors": 1, "share": [0.1], "causes": [["TimeoutError", 1]]}
    found = TypeAdapter(FailureReport).validate_python(old)
    assert found.unread is None and found.unreadable == () and found.remark is None


def test_the_worst_prompts_have_the_examples() -> None:
    texts = [UnreadableText.of(p, str(p), None) if p != 3 else None for p in range(6)]
    found = worst_examples([0.1, 0.9, 0.9, 1.0, 0.5, math.nan], [*texts[:5], None])
    assert [e.prompt for e in found] == [1, 2, 4]
