"""Budgets of dollars or tokens alone, budgets that are too small, and what a quote says of them."""

import functools
import re
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import Budget, Cost, MajorityVote
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.sampling.lm.params import import_litellm
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import CAREFUL, TwoSteps, adder, after_ideas, outputs, questions, student, total

LITTLE = Budget(usd=3e-4)  # for a first look at one of three prompts
READ, WRITTEN = 0.15e-6, 0.60e-6
optimizer = optimizers(max_n=8, cost_unit=Cost(completion_tokens=1, usd_per_million=(0.15, 0.60)))


@functools.cache
def tokens(text: str) -> int:
    return int(import_litellm().token_counter(model="openai/fake", text=text))


def server(answer: Any = adder) -> Loopback:
    return Loopback(answer, count=tokens, message_tokens=3)


def billed(loopback: Loopback) -> float:
    return loopback.prompt_tokens * READ + loopback.completion_tokens * WRITTEN


@pytest.mark.parametrize(
    ("budget", "algorithm"),
    [
        (Budget(usd=0.02), "auto"),
        pytest.param(Budget(tokens=40_000), "auto", marks=pytest.mark.slow),
        pytest.param(Budget(usd=0.02, tokens=10**6, seconds=300), "psst", marks=pytest.mark.slow),
    ],
)
def test_dollars_or_tokens_alone_are_enough(budget: Budget, algorithm: str) -> None:
    with server() as loopback, dspy.context(lm=loopback.lm(max_tokens=200)):
        results = optimizer(budget=budget, algorithm=algorithm).compile(student(), trainset=questions(30))
        spent = results.detailed_results.spent
    assert results.detailed_results.complete
    assert spent.tokens == loopback.prompt_tokens + loopback.completion_tokens
    assert spent.usd == pytest.approx(billed(loopback))
    share = spent.usd / budget.usd if budget.usd is not None else spent.tokens / (budget.tokens or 1)
    print(f"{budget}: {spent.completions} completions took {share:.0%} of it")
    assert 0.4 < share <= 1.0


@pytest.mark.slow
def test_a_run_without_completions_goes_on_where_it_was(tmp_path: Path) -> None:
    def compiled(usd: float) -> Any:
        chooser = optimizer(budget=Budget(usd=usd), log_dir=tmp_path)
        return chooser.compile(student(), trainset=questions(30), valset=questions(60)[30:])

    with server() as loopback, dspy.context(lm=loopback.lm(max_tokens=200)):
        first = compiled(0.005)
        requests = loopback.requests
        again = compiled(0.005)
        # What no longer fitted when the first run measured its arms may be drawn by the second.
        assert requests <= loopback.requests <= requests + 5
        assert again.policy.ready.arms == first.policy.ready.arms
        quote = optimizer(budget=Budget(usd=0.01), log_dir=tmp_path).quote(
            student(), trainset=questions(30), valset=questions(60)[30:]
        )
        more = compiled(0.01).detailed_results.spent
    spent = again.detailed_results.spent
    assert first.detailed_results.policy[0].held_out is not None
    # Another run may choose other arms, so those that measured these ones do not count as stored for it.
    chosen_by = spent.completions - again.detailed_results.rounds[-1].completions
    assert quote.left is not None and quote.left.spent.completions == chosen_by
    assert quote.left.usd == pytest.approx(0.01 - spent.usd) and quote.left.completions is None
    assert "left to pay: " in str(quote) and quote.expected is not None
    assert spent.completions < more.completions and 0.005 < more.usd <= 0.01
    assert more.usd == pytest.approx(billed(loopback))  # nothing was paid twice


@pytest.mark.parametrize(
    "budget",
    [
        pytest.param(Budget(usd=1e-5), id="usd", marks=pytest.mark.slow),
        pytest.param(Budget(tokens=100), id="tokens", marks=pytest.mark.slow),
        pytest.param(Budget(500, usd=1e-5), id="completions and usd"),
        pytest.param(LITTLE, id="less than one request may take", marks=pytest.mark.slow),
    ],
)
def test_a_budget_that_does_not_pay_for_one_round_says_the_least_that_would(budget: Budget) -> None:
    with server() as loopback, dspy.context(lm=loopback.lm(max_tokens=200)):
        with pytest.raises(BudgetTooSmall, match=r"does not pay for .*surely pays") as caught:
            optimizer(budget=budget).compile(student(), trainset=questions(30))
        assert loopback.requests == 0 or budget == LITTLE
        ((name, amount),) = re.findall(r"surely pays for one round is Budget\((\w+)=([\d.e-]+)\)", str(caught.value))
        enough = Budget(budget.completions, **{name: int(amount) if name == "tokens" else float(amount)})  # type: ignore[arg-type]
        results = optimizer(budget=enough).compile(student(), trainset=questions(30)).detailed_results
    assert all(share == share for share in results.failures.share)  # every prompt was tried
    assert billed(loopback) <= (enough.usd or 1.0)


def test_completions_that_cost_nothing_need_a_number() -> None:
    free = Cost(completion_tokens=1, usd_per_million=(0.0, 0.0))
    with server() as loopback, dspy.context(lm=loopback.lm(max_tokens=200)):
        with pytest.raises(ConfigurationError, match="never ends"):
            optimizer(cost_unit=free, budget=Budget(usd=5)).compile(student(), trainset=questions(30))


def essay(i: int) -> dspy.Example:
    words = "word " * (40 if i % 10 else 400)
    return dspy.Example(question=f"{words} What is {i} + {i}?", answer=str(2 * i)).with_inputs("question")


@pytest.mark.slow
def test_a_bound_is_made_of_the_messages_that_are_sent() -> None:
    """One question in ten is ten times as long as the others."""
    examples = [essay(i) for i in range(60)]
    with server() as loopback, dspy.context(lm=loopback.lm(max_tokens=200)):
        quote = optimizer(budget=1_000).quote(student(), trainset=examples, output_tokens=30)
        assert loopback.requests == 0
        spent = optimizer(budget=1_000).compile(student(), trainset=examples).detailed_results.spent
    assert quote.requests is not None and quote.prompt_tokens is not None and quote.expected is not None
    assert spent.requests <= quote.requests and spent.prompt_tokens <= quote.prompt_tokens
    print(f"prompt tokens: {quote.prompt_tokens} at most, {quote.expected.prompt_tokens:.0f} expected")
    assert quote.prompt_tokens <= 5 * quote.expected.prompt_tokens


class Branches(dspy.Module):
    """Two steps of several types; it stops early where the first one says so."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.Predict("question -> idea, enough: bool, parts: list[str]")
        self.ask = dspy.ChainOfThought("question, idea -> answer: int")

    def forward(self, question: str) -> dspy.Prediction:
        plan = self.plan(question=question)
        return plan if plan.enough else self.ask(question=question, idea=plan.idea + " ".join(plan.parts))


def branching(body: dict[str, Any], i: int) -> str:
    if "idea" in outputs(body):
        return chat(idea=f"carry {i} " * 10, enough="False", parts='["a", "b"]')
    return chat(reasoning="because", answer=str(total(body)))


def same(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
    return str(example.answer) == str(prediction.answer)


@pytest.mark.parametrize("shape", ["two steps", pytest.param("inside a pipeline", marks=pytest.mark.slow)])
def test_programs_with_a_forward_are_bounded_by_a_run_without_lms(shape: str) -> None:
    inner = {"inner": "ask"} if shape == "inside a pipeline" else {}
    world = after_ideas(adder) if inner else branching
    program: Any = TwoSteps() if inner else Branches()
    settings = {"candidates": [CAREFUL]} if inner else {"candidates": [program]}
    chooser = optimizer(metric=same, strategy=MajorityVote("answer"), budget=60, **settings)
    with server(world) as loopback, dspy.context(lm=loopback.lm(max_tokens=100)):
        quote = chooser.quote(program, trainset=questions(10), output_tokens=45, **inner)
        assert loopback.requests == 0
        spent = chooser.compile(program, trainset=questions(10), **inner).detailed_results.spent
    assert quote.requests == 120 >= spent.requests
    assert quote.prompt_tokens is not None and quote.prompt_tokens >= loopback.prompt_tokens
    assert quote.completion_tokens == 60 * 200 >= loopback.completion_tokens
    assert quote.expected is not None and 0 < quote.expected.requests <= quote.requests
    assert any("made-up answers" in note for note in quote.notes)
    if not inner:
        assert quote.expected.prompt_tokens == pytest.approx(spent.prompt_tokens, rel=0.5)


def test_a_program_that_cannot_be_tried_says_so() -> None:
    class Stubborn(Branches):
        def forward(self, question: str) -> dspy.Prediction:
            while self.plan(question=question).idea != "good":
                pass
            raise AssertionError

    class Picky(Branches):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer={"good": 1}[self.plan(question=question).idea])

    def search(text: str) -> str:
        """Look something up."""
        raise AssertionError("no tool is used")

    react = dspy.ReAct("question -> answer", tools=[search], max_iters=4)
    with server() as loopback, dspy.context(lm=loopback.lm(max_tokens=100)):
        for program, found in ((Stubborn(), "more than 64 times"), (Picky(), "KeyError"), (react, None)):
            quote = optimizer(candidates=[program], budget=60).quote(program, trainset=questions(5), output_tokens=9)
            assert (quote.requests is None) == (found is not None)
            assert found is None or any(found in note for note in quote.notes)
        assert loopback.requests == 0
