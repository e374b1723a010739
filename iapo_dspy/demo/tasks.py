"""Two small tasks, one for majority vote and one for Best-of-N, whose prompts scale differently.

``addition_task`` asks for sums of three-digit numbers. ``splitting_task`` asks for terms that add up to a number. Both
come with candidate instructions to which the demo model reacts: some are right more often when asked once, others win
only when several samples are aggregated, and some are decoys. The effect is trained into a model of a million
parameters: the tasks exercise the whole path on a real sampler and are **no evidence about large language models**.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import dspy
import numpy as np

MODEL: Final = "iapo_demo/tiny-adder"
"""The LiteLLM model string of the in-process provider; see `iapo_dspy.demo.provider.register`."""

SMALL_MODEL: Final = "iapo_demo/tiny-adder-q3"
"""The same model rounded to three bits, which is right less often; see `iapo_dspy.demo.shipped`."""

USD_PER_MILLION: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {MODEL: (2.0, 8.0), SMALL_MODEL: (0.2, 0.8)}
)
"""Made-up prices to compare the two by, dollars per million (input, output) tokens; they really cost nothing."""

Objective = Callable[[Any, Any], float]
"""``objective(inputs, prediction) -> score in [0, 1]``; needs no label and never raises."""

Metric = Callable[..., bool]
"""``metric(example, prediction, trace=None) -> bool``."""

ADDITION_STYLES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "direct": ("Answer at once.", "Reply with the number only, without any working."),
        "steps": (
            "Work column by column, carrying, before you answer.",
            "Add the units, then the tens, then the hundreds, and carry as you go.",
        ),
        "terse": ("Jot down the column sums, then answer.", "Note the sums from right to left in brief, then answer."),
        "careful": ("Work slowly and say what you write and what you carry in every column.",),
        "check": ("Work column by column, then do the same work again as a check.",),
        "teach": ("Explain what addition means, then work column by column.",),
        "left": ("Add from left to right, starting with the hundreds.",),
        "rough": ("Give a rough estimate.",),
        "default": ("You are a cheerful pirate who loves the sea.",),
    }
)
"""The candidate instructions of the addition task by the style that they ask for."""

SPLITTING_STYLES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "echo": ("Repeat the number.",),
        "blurt": ("Blurt out two numbers.",),
        "pair": ("Give two numbers that add up to the target.", "Split the target into two parts."),
        "triple": ("Give three numbers that add up to the target.",),
        "round": ("Give the hundreds and the rest.",),
        "expanded": ("Write the hundreds, the tens and the units as separate terms.",),
        "long": ("Count up to the target in small, safe steps.",),
        "worked": ("Choose one part, work out the rest column by column, then answer with two numbers.",),
    }
)
"""The candidate instructions of the splitting task by the style that they ask for."""


def default_instruction(signature: str) -> str:
    """The instruction that DSPy gives a string signature."""
    return str(dspy.Signature(signature).instructions)


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """A task for the demo model.

    Attributes:
        name: ``"addition"`` or ``"splitting"``.
        signature: The student's signature as a string, e.g. ``"question -> answer"``.
        answer_field: The output field that is voted on or scored.
        instructions: Candidate instructions, DSPy's default one first.
        styles: Instruction to the name of the style it asks for, for reports and tests.
        train: ``train(n, seed)`` gives n labelled `dspy.Example`s from the training pool, all different.
        heldout: The same from the held-out pool, which shares no example with the training pool and which the model was
            not trained on.
        metric: Exact match for the addition task; for the splitting task whether the terms add up.
        objectives: Label-free objectives by name; empty for the addition task.
    """

    name: str
    signature: str
    answer_field: str
    instructions: tuple[str, ...]
    styles: Mapping[str, str]
    train: Callable[[int, int], list[dspy.Example]]
    heldout: Callable[[int, int], list[dspy.Example]]
    metric: Metric
    objectives: Mapping[str, Objective] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def candidates(self) -> tuple[str, ...]:
        """The instructions, DSPy's default one, which is the student as it is, first."""
        return self.instructions

    def student(self, *, reasoning: bool = False) -> dspy.Module:
        """A fresh `dspy.Predict`, or `dspy.ChainOfThought` with ``reasoning``, with DSPy's default instruction."""
        return dspy.ChainOfThought(self.signature) if reasoning else dspy.Predict(self.signature)


# --- additions -------------------------------------------------------------------------------------------------------

CARRY_SHARE: Final = 0.38
"""Share of the addition questions in which at least one column carries."""


def is_heldout_pair(a: int, b: int) -> bool:
    """Whether the pair of operands, in either order, belongs to the held-out fifth."""
    low, high = min(a, b), max(a, b)
    return (low * 7919 + high * 104729) % 1009 % 5 == 0


def has_carry(a: int, b: int) -> bool:
    """Whether adding the two numbers carries in any column."""
    while a or b:
        if a % 10 + b % 10 >= 10:
            return True
        a, b = a // 10, b // 10
    return False


def draw_pair(rng: np.random.Generator, *, heldout: bool) -> tuple[int, int]:
    """Draws operands in 100..899 whose sum has three digits, from the held-out pairs or the others; 38 % carry."""
    wants_carry = rng.random() < CARRY_SHARE
    while True:
        a, b = (int(v) for v in rng.integers(100, 900, size=2))
        if a + b <= 999 and has_carry(a, b) == wants_carry and is_heldout_pair(a, b) == heldout:
            return a, b


def _addition_examples(n: int, seed: int, *, heldout: bool) -> list[dspy.Example]:
    _check_count(n, 10_000)
    rng = np.random.default_rng([seed, int(heldout), 3])
    seen: set[tuple[int, int]] = set()
    while len(seen) < n:
        seen |= {draw_pair(rng, heldout=heldout)}
    return [
        dspy.Example(question=f"What is {a} + {b}?", answer=str(a + b)).with_inputs("question")
        for a, b in _shuffled(sorted(seen), rng)
    ]


def normalise_number(text: object) -> str:
    """The digits of a number without spaces, thousands separators, a final dot or leading zeros.

    Anything that is not one whole number gives ``""``.
    """
    found = re.fullmatch(r"\s*\+?([0-9][0-9 ,_]*)\.?\s*", str(text))
    return (re.sub(r"[ ,_]", "", found.group(1)).lstrip("0") or "0") if found else ""


def exact_match(example: Any, prediction: Any, trace: object = None) -> bool:
    """Whether the predicted answer is the labelled number after `normalise_number`.

    Args:
        example: Has ``answer``.
        prediction: Has ``answer``; a missing or malformed one is wrong.
        trace: Ignored; DSPy passes it.

    Returns:
        True for the same number.
    """
    given = normalise_number(getattr(prediction, "answer", ""))
    return given != "" and given == normalise_number(example.answer)


def addition_task() -> DemoTask:
    """The majority-vote task: three-digit additions, answers compared exactly."""
    return _task("addition", "question -> answer", ADDITION_STYLES, _addition_examples, exact_match)


# --- splitting -------------------------------------------------------------------------------------------------------

TARGETS: Final = range(300, 1000)
"""The numbers to split."""

_SHORTEST: Final = 9
_LONGEST: Final = 27
_NEAR: Final = 50


def is_heldout_target(target: int) -> bool:
    """Whether the target belongs to the held-out third."""
    return (target * 7919) % 1009 % 3 == 0


def _splitting_examples(n: int, seed: int, *, heldout: bool) -> list[dspy.Example]:
    pool = [t for t in TARGETS if is_heldout_target(t) == heldout]
    _check_count(n, len(pool))
    rng = np.random.default_rng([seed, int(heldout), 5])
    return [dspy.Example(target=str(t)).with_inputs("target") for t in _shuffled(pool, rng)[:n]]


def parse_terms(text: object) -> tuple[int, ...]:
    """Reads ``"212 + 48"`` as ``(212, 48)``; a text that is not a sum, or is longer than 200 characters, as ``()``."""
    plain = str(text).strip()
    if len(plain) > 200 or not re.fullmatch(r"[0-9]+(\s*\+\s*[0-9]+)*", plain):
        return ()
    return tuple(int(term) for term in plain.split("+"))


def correctness(inputs: Any, prediction: Any) -> float:
    """How nearly the terms add up to the target; an exact check that needs no label.

    Args:
        inputs: Has ``target``, a whole number as text.
        prediction: Has ``answer``.

    Returns:
        1 for at least two terms, all positive, with exactly the right sum. A wrong sum earns at most 0.4, falling
        linearly to 0 where it is 50 away. 0 for fewer terms, a term of zero and malformed text.
    """
    terms = parse_terms(getattr(prediction, "answer", ""))
    target = normalise_number(getattr(inputs, "target", ""))
    if len(terms) < 2 or min(terms) < 1 or not target:
        return 0.0
    miss = abs(sum(terms) - int(target))
    return 1.0 if miss == 0 else 0.4 * max(0.0, 1.0 - miss / _NEAR)


def brevity(inputs: Any, prediction: Any) -> float:
    """How short the answer is.

    Args:
        inputs: Ignored.
        prediction: Has ``answer``.

    Returns:
        1 up to 9 characters (two numbers of three digits), falling linearly to 0 at 27; 0 for malformed text.
    """
    answer = getattr(prediction, "answer", "")
    if not parse_terms(answer):
        return 0.0
    length = len(str(answer).strip())
    return float(min(1.0, max(0.0, (_LONGEST - length) / (_LONGEST - _SHORTEST))))


def adds_up(example: Any, prediction: Any, trace: object = None) -> bool:
    """Whether `correctness` is full, as a DSPy metric; ``trace`` is ignored."""
    return correctness(example, prediction) == 1.0


def splitting_task() -> DemoTask:
    """The Best-of-N task: write a number as a sum; its objectives are ``correctness`` and ``brevity``."""
    objectives = {"correctness": correctness, "brevity": brevity}
    return _task("splitting", "target -> answer", SPLITTING_STYLES, _splitting_examples, adds_up, objectives)


def _task(
    name: str,
    signature: str,
    texts: Mapping[str, tuple[str, ...]],
    examples: Callable[..., list[dspy.Example]],
    metric: Metric,
    objectives: Mapping[str, Objective] = MappingProxyType({}),
) -> DemoTask:
    styles = {default_instruction(signature): "default"}
    styles |= {text: style for style, some in texts.items() for text in some}
    return DemoTask(
        name=name,
        signature=signature,
        answer_field="answer",
        instructions=tuple(styles),
        styles=MappingProxyType(styles),
        train=partial(examples, heldout=False),
        heldout=partial(examples, heldout=True),
        metric=metric,
        objectives=MappingProxyType(dict(objectives)),
    )


def _check_count(n: int, most: int) -> None:
    if not 1 <= n <= most:
        raise ValueError(f"n must be between 1 and {most}, got {n}")


def _shuffled(items: list[Any], rng: np.random.Generator) -> list[Any]:
    return [items[i] for i in rng.permutation(len(items))]
