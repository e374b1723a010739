"""The whole path on a real server, run once a module, and what must hold on every one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iapo_dspy import Budget
from iapo_dspy.demo.model import WEIGHTS
from iapo_dspy.demo.tokenizer import Tokenizer
from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord
from tests.support.counting import Counting, Exchange

BUDGET, MAX_N, HELDOUT = 3_200, 16, 60
TOKENIZER = Tokenizer.load(WEIGHTS / "tokenizer.json")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run showed: the report, what went over the wire while compiling, the ledger, the saved program."""

    report: Any
    exchanges: tuple[Exchange, ...]
    records: tuple[CompletionRecord, ...]
    saved: str


def run_counted(server: Any, folder: Path) -> Run:
    from real_servers import end_to_end

    with Counting(server.base) as proxy:
        report = end_to_end(
            server,
            folder,
            budget=Budget(completions=BUDGET),
            max_n=MAX_N,
            heldout=HELDOUT,
            api_base=proxy.base,
        )
    _, records = read_ledger(folder / "ledger")
    return Run(
        report=report,
        exchanges=tuple(proxy.exchanges[: report.spent.requests]),  # compiling came first
        records=tuple(r for r in records if isinstance(r, CompletionRecord)),
        saved=(folder / "program.json").read_text(),
    )


def true_tokens(exchanges: tuple[Exchange, ...]) -> int:
    """Completion tokens, counted by the model's own tokenizer; a choice that came to its end has an end token."""
    choices = [choice for e in exchanges for choice in e.choices]
    return sum(len(TOKENIZER.encode(text)) + (reason == "stop") for text, reason in choices)


class WholePath:
    """Tests for every server; each module inherits them."""

    def test_the_chosen_arm_beats_the_best_single_shot_prompt(self, run: Run) -> None:
        quality, (once, often) = run.report.chosen[0], run.report.single
        assert quality.preference == "quality" and quality.n > 1
        assert (once.n, often.n) == (1, MAX_N)
        assert quality.accuracy >= once.accuracy + 0.1, (quality, once)

    def test_a_preference_that_pays_more_per_token_gets_fewer_tokens(self, run: Run) -> None:
        quality, _, thrifty = run.report.chosen
        assert thrifty.tokens <= quality.tokens / 2, (quality, thrifty)

    def test_every_completion_that_came_was_used_and_counted_once(self, run: Run) -> None:
        assert {e.status for e in run.exchanges} == {200}
        assert sum(len(e.choices) for e in run.exchanges) == run.report.spent.completions == len(run.records) <= BUDGET
        on_the_wire = sorted(text for e in run.exchanges for text, _ in e.choices)
        assert sorted(str(r.text) for r in run.records) == on_the_wire
        assert run.report.failures < 0.02

    def test_tokens_are_those_of_the_texts(self, run: Run) -> None:
        assert abs(run.report.spent.completion_tokens / true_tokens(run.exchanges) - 1) < self.tokens_within
        assert run.report.spent.prompt_tokens == sum(e.prompt_tokens for e in run.exchanges)

    tokens_within = 0.001

    def test_the_saved_program_says_nothing_of_the_server(self, run: Run) -> None:
        assert "127.0.0.1" not in run.saved and "api_key" not in run.saved and "tiny-adder" not in run.saved
