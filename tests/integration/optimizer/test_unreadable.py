"""Runs in which most completions cannot be read stop early, and others say how many cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import CompiledProgram, MajorityVote
from iapo_dspy.errors import MostlyUnreadable, TooManyErrors
from iapo_dspy.program.results.saved_results import result_of_run
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import CAREFUL, LAZY, QUICK, adder, questions, student

optimizer = optimizers(budget=400, algorithm="psst", stopping=None, seed=3, num_threads=4)
NEVER = "I <b>think</b> that it is\nseven & more"


def unless(*readable: str, share: float = 0.0) -> Any:
    """Answer readably to these instructions, and to others every so manieth time."""

    def world(body: dict[str, Any], i: int) -> str:
        system = body["messages"][0]["content"]
        if any(text in system for text in readable) or (share and i % round(1 / share) == 0):
            return adder(body, i)
        return NEVER

    return world


def test_a_run_in_which_nothing_can_be_read_stops_early_and_says_what_may_help(tmp_path: Path) -> None:
    with Loopback(unless()) as server, dspy.context(lm=server.lm(seed=1, engine="litellm")):
        with pytest.raises(MostlyUnreadable) as caught:
            optimizer(log_dir=tmp_path / "run").compile(student(), trainset=questions(20))
        drawn = server.completions
        assert 64 <= drawn <= 64 + 16 + 4 * 4 + 16  # the unit of costs, requests in flight, and one more pull each
        error = caught.value
        assert isinstance(error, TooManyErrors) and error.share == 1.0
        assert error.examples == ("I <b>think</b> that it is seven & more",) * 3
        assert any("PlainTextAdapter" in r for r in error.remedies) and any("JSONAdapter" in r for r in error.remedies)
        assert not any("max_tokens" in r for r in error.remedies)
        said = str(error)
        assert "surely more than max_unreadable=0.5 of every prompt" in said and "AdapterParseError" in said
        assert "prompt 0: 'I <b>think</b>" in said and "another log_dir" in said and "max_unreadable=None" in said
        assert all(remedy in said for remedy in error.remedies)

        # The same again: what is known is enough, and hardly anything is paid for twice.
        with pytest.raises(MostlyUnreadable):
            optimizer(log_dir=tmp_path / "run", algorithm="auto").compile(student(), trainset=questions(20))
        assert server.completions - drawn <= 64


def test_a_run_goes_on_with_another_prompt_or_another_bound(tmp_path: Path) -> None:
    with Loopback(unless(QUICK)) as server, dspy.context(lm=server.lm(seed=1, engine="litellm")):
        hopeless = optimizer(log_dir=tmp_path / "run", candidates=[LAZY], algorithm="auto")
        with pytest.raises(MostlyUnreadable):
            hopeless.compile(student(), trainset=questions(20))
        both = optimizer(log_dir=tmp_path / "run", candidates=[LAZY, QUICK], algorithm="auto")
        found = both.compile(student(), trainset=questions(20)).detailed_results
        assert found.labels[found.policy[0].arm.prompt] == QUICK
        shares = found.failures.unreadable
        assert shares == (1.0, 0.0)
        assert found.failures.unread == round(found.failures.completions * found.failures.unreadable_share)
        assert {e.prompt for e in found.failures.examples} == {0}


@pytest.mark.parametrize("most", [None, 1.0])
def test_without_a_bound_a_run_goes_on_unless_nothing_works(most: float | None) -> None:
    with Loopback(unless(share=0.1)) as server, dspy.context(lm=server.lm(seed=1, engine="litellm")):
        with pytest.raises(MostlyUnreadable):
            optimizer().compile(student(), trainset=questions(20))
        found = optimizer(max_unreadable=most).compile(student(), trainset=questions(20)).detailed_results
        assert found.failures.unreadable_share == pytest.approx(0.9, abs=0.05)
        assert found.failures.total == found.failures.unread  # none of the others failed
        with pytest.raises(MostlyUnreadable, match="Nothing has worked"):
            server.answer = unless()
            optimizer(max_unreadable=most).compile(student(), trainset=questions(20))


def test_completions_that_are_cut_off_ask_for_more_tokens() -> None:
    with Loopback(lambda body, i: "word " * 50, obeys=True) as server:
        with dspy.context(lm=server.lm(seed=1, engine="litellm", max_tokens=10)):
            with pytest.raises(MostlyUnreadable, match="cut off at max_tokens") as caught:
                optimizer().compile(student(), trainset=questions(20))
    assert caught.value.remedies[0].startswith("Larger max_tokens")


def test_a_few_completions_are_not_enough_to_stop() -> None:
    with Loopback(unless(share=0.1)) as server, dspy.context(lm=server.lm(seed=1, engine="litellm")):
        found = optimizer(budget=48, max_n=2).compile(student(), trainset=questions(20)).detailed_results
        assert found.failures.unreadable_share > 0.6


def test_shares_are_shown_saved_and_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("plotly")
    with Loopback(unless(QUICK)) as server, dspy.context(lm=server.lm(seed=1, engine="litellm")):
        run = optimizer(log_dir=tmp_path / "run", candidates=[LAZY, QUICK, CAREFUL])
        program = run.compile(student(), trainset=questions(20))
    found = program.detailed_results
    share = found.failures.unreadable_share
    assert found.failures.unreadable == (1.0, 0.0, 1.0) and 0.2 < share < 0.8
    remark = f"{share:.0%} of the completions could not be read, 0% to 100% by prompt"
    assert remark in str(found) and remark in found._repr_html_() and remark in caplog.text
    plain = found.to_dict()
    assert [p["unreadable"] for p in plain["prompts"]] == [1.0, 0.0, 1.0]
    assert {row["prompt"]: row["unreadable"] for row in plain["rows"]}.get(1) == 0.0
    assert plain["failures"]["examples"][0]["text"] == "I <b>think</b> that it is seven & more"

    # The report shows texts as they are; the saved program has shares, and not a text.
    found.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "I &lt;b&gt;think&lt;/b&gt; that it is seven &amp; more" in page and "<b>think</b>" not in page
    program.save(tmp_path / "program.json")
    assert "think" not in (tmp_path / "program.json").read_text(encoding="utf-8")
    loaded = CompiledProgram(student(), MajorityVote("answer"))
    loaded.load(tmp_path / "program.json")
    assert loaded.detailed_results.failures == found.failures.without_examples()
    assert str(loaded.detailed_results) == str(found)

    # Beside its ledger, the program finds examples.
    examples = result_of_run(tmp_path / "run").failures.examples  # type: ignore[union-attr]
    assert {e.prompt for e in examples} == {0, 2}
    assert {e.text for e in examples} == {"I <b>think</b> that it is seven & more"}
