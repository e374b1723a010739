"""Rewriters of an inner module's inputs: the run draws as the compiled module will."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import dspy

from iapo_dspy import Budget, Cost, MajorityVote, Rewriter
from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.pipelines import Pipeline, asked, right, step_of

PLAIN = "Give the bare number."
optimizer = optimizers(
    metric=right,
    strategy=MajorityVote("number"),
    candidates=[PLAIN],
    budget=120,
    stopping=None,
    cost_unit=Cost(completion_tokens=1),
)


def world(body: dict[str, Any], i: int) -> str:
    """Solve a sum rightly where it is asked for clearly, and never otherwise."""
    user, step = body["messages"][-1]["content"], step_of(body)
    if step == "rewrite":
        a, b = re.findall(r"(\d+) and (\d+)", user)[-1]
        return chat(sum=f"{a} + {b}")
    if step == "report":
        return chat(answer=re.findall(r"\[\[ ## number ## \]\]\n(.*)", user)[-1].strip())
    a, b = (int(x) for x in re.findall(r"(\d+) \+ (\d+)", user)[-1])
    return chat(number=str(a + b if "Please" in user else a + b + random.Random(i).randint(1, 9)))


def clearly(body: dict[str, Any], i: int) -> str:
    return f"Please add {body['messages'][-1]['content'].splitlines()[-1]}"


def test_a_rewriter_works_on_the_inputs_of_an_inner_module(tmp_path: Path) -> None:
    with Loopback(world) as server, Loopback(clearly) as writer, dspy.context(lm=server.lm(seed=1)):
        made = optimizer(rewriters=[Rewriter(writer.lm("openai/rewriter"), name="clear")], log_dir=tmp_path)
        quote = made.quote(Pipeline(), trainset=asked(12), inner="solve", output_tokens=10)
        assert quote.prompts == 2 and writer.requests == 0
        pipeline = made.compile(Pipeline(), trainset=asked(12), inner="solve")
        results = pipeline.detailed_results
        assert {row.label for row in results.policy} == {f"{PLAIN} [rewriter: clear]"}
        assert results.spent.rewriter_requests == writer.requests == 12
        records = [r for r in read_ledger(tmp_path)[1] if isinstance(r, CompletionRecord) and r.inner is not None]
        assert {r.inner["inputs"]["sum"].startswith("Please") for r in records if r.inner} == {False}
        before = writer.requests
        assert pipeline(question="What are 5 and 7?").answer == "12"
        assert writer.requests == before + 1
        made.compile(Pipeline(), trainset=asked(12), inner="solve")
        assert writer.requests == before + 1  # the same run again pays for nothing
        plain, rewritten = results.costs[:, 0]
        assert rewritten - plain > 4  # the words of a rewrite, beside two words of an answer


class Solver(dspy.Module):
    """An inner module with a `forward` of its own, which is called by position."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("sum -> number")

    def forward(self, sum: str) -> dspy.Prediction:
        return self.ask(sum=sum)


class Outer(Pipeline):
    def __init__(self) -> None:
        super().__init__()
        self.solve = Solver()

    def forward(self, question: str) -> dspy.Prediction:
        found = self.solve(self.rewrite(question=question).sum)
        return self.report(question=question, number=found.number)


def test_a_module_with_a_forward_of_its_own_and_a_limit_of_tokens() -> None:
    most = 24_000
    with Loopback(world) as server, Loopback(clearly) as writer, dspy.context(lm=server.lm(seed=1, max_tokens=20)):
        lm = writer.lm("openai/rewriter", max_tokens=20)
        made = optimizer(rewriters=[Rewriter(lm, field="sum")], budget=Budget(tokens=most))
        pipeline = made.compile(Outer(), trainset=asked(12), inner="solve")
        spent = pipeline.detailed_results.spent
        took = [at.prompt_tokens + at.completion_tokens for at in (server, writer)]
        assert sum(took) == spent.tokens <= most and spent.rewriter_tokens == took[1] > 0
        assert "rewriter" in pipeline.detailed_results.policy[0].label
        assert pipeline(question="What are 5 and 7?").answer == "12"
