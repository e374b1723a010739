"""Rewriters of queries: one that is worth its price, one that is not, and one of several rewrites chosen by a reward.

needs: nothing (runs on the small LM that ships with the package)

The demo's LM knows one form of question, "What is 358 + 467?". The questions here are wordy ones that it seldom
understands, and plain ones that it does. A scripted LM stands in for a rewriter: it is a fixture, so the numbers show
how the optimizer weighs a rewriter, and say nothing of how well real ones rewrite.
"""

import random
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import dspy

from iapo_dspy import IAPO, Cost, Execution, Preference, Rewriter, Search
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL, addition_task

QUESTIONS, BUDGET = 40, 400
register()
dspy.configure(lm=dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False, seed=0))
task = addition_task()
instructions = ["Answer at once.", "Add the units, then the tens, then the hundreds, and carry as you go."]


class Scripted(dspy.BaseLM):  # type: ignore[misc]  # dspy ships no types
    """An LM that answers by a function of its prompt and of how many calls came before; a word is a token."""

    def __init__(self, answer: Callable[[str, int], str]) -> None:
        super().__init__(model="scripted/rewriter", temperature=1.0, max_tokens=100)
        self._answer, self._calls = answer, 0

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        """Return one answer as OpenAI's clients do."""
        asked = messages[-1]["content"] if messages else prompt
        text, self._calls = self._answer(asked, self._calls), self._calls + 1
        read, written = len(asked.split()), len(text.split())
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        choice = SimpleNamespace(message=SimpleNamespace(content=text), finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage=usage, model=self.model)


def plain(asked: str, call: int) -> str:
    """Put the question in the form that the demo's LM knows."""
    a, b = re.findall(r"\d+", asked)[-2:]
    return f"What is {a} + {b}?"


def polite(asked: str, call: int) -> str:
    """Add words that help nobody."""
    return f"{asked.splitlines()[-1]} " + "I would be most grateful for your kind help. " * 3


def mixed(asked: str, call: int) -> str:
    """Rewrite well once in four calls, and politely otherwise."""
    return plain(asked, call) if call % 4 == 0 else polite(asked, call)


def short(query: dspy.Example, text: str) -> float:
    """Reward short texts: a guess at what the student understands, which needs no label."""
    return max(0.0, 1.0 - len(text.split()) / 40)


def wordy(examples: list[dspy.Example]) -> list[dspy.Example]:
    """Ask the same in other words."""
    rng, found = random.Random(0), []
    forms = [
        "If I have {} apples and buy {} more, how many do I have?",
        "Somebody tells {} people, and then {} others.",
    ]
    for example in examples:
        text = rng.choice(forms).format(*re.findall(r"\d+", example.question))
        found.append(dspy.Example({**example, "question": text}).with_inputs("question"))
    return found


def compiled(name: str, trainset: list[dspy.Example], rewriters: list[Rewriter]) -> None:
    """Compile, and print what the run says of each rewriter and which arm it chose."""
    optimizer = IAPO(
        metric=task.metric,
        preferences=[Preference("quality", cost=0.0), Preference("balanced", cost=1.0)],
        rewriters=rewriters,
        candidates=instructions,
        max_n=8,
        budget=BUDGET,
        search=Search(cost_unit=Cost(completion_tokens=1, prompt_tokens=0.25)),
        execution=Execution(progress=False),
    )
    program = optimizer.compile(task.student(), trainset=trainset)
    result = program.detailed_results
    print(f"\n{name}")
    for row in result.policy:
        print(f"  {row.preference.name}: N={row.arm.n} of {row.label!r}, utility {row.utility:.3f}")
    for found in result.rewriters:
        low, high = found.interval
        print(
            f"  {found.name}: reward {found.reward:.3f} for {found.plain:.3f}, variance {found.variance:.3f} for "
            f"{found.plain_variance:.3f}, win rate {found.win_rate:.2f} ({low:.2f} to {high:.2f})"
        )
        if found.rewrites.rewards is not None:
            print(f"    {found.rewrites.rewards}")
    spent = result.spent
    tokens = f"{spent.tokens:,} tokens, {spent.rewriter_tokens:,} of them on rewrites"
    print(f"  spent: {spent.completions} completions, {tokens}")
    report = program(question=trainset[0].question, preference="quality").iapo
    print(f"  a call: {trainset[0].question!r} -> {report.rewritten or 'as it is'}, cost {report.cost:.0f}")


train = task.train(QUESTIONS, 0)
compiled("Wordy questions, a rewriter that helps", wordy(train), [Rewriter(Scripted(plain), name="plain")])
compiled("Plain questions, a rewriter that only costs", train, [Rewriter(Scripted(polite), name="polite")])
several = [
    Rewriter(Scripted(mixed), k=4, reward=short, tilt=0.2, name="draw"),
    Rewriter(Scripted(mixed), k=4, reward=short, choose="best", name="best"),
]
compiled("Wordy questions, one of four rewrites", wordy(train), several)
