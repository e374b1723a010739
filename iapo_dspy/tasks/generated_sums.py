"""Word problems that this package makes up: one to three steps with small whole numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import dspy
import numpy as np

from iapo_dspy.scoring.strategies import MajorityVote
from iapo_dspy.tasks.data_source import DataSource
from iapo_dspy.tasks.instructions.sums import SUMS
from iapo_dspy.tasks.right_answer import RightAnswer
from iapo_dspy.tasks.task import Task

Draw = Callable[[int, int], int]
"""A whole number between two, both included."""

Problem = tuple[str, int]
"""A question with its answer."""

_SIZES = {"train": 600, "test": 300}
_SEED = 20_260_301
_NAMES = ("Ada", "Bruno", "Carla", "Dev", "Elif", "Farid", "Greta", "Hiro", "Ines", "Jonas", "Keiko", "Luis")
_THINGS = ("apples", "buttons", "coins", "shells", "stamps", "pencils", "marbles", "cards", "beads", "plums")
_BOXES = ("bags", "boxes", "baskets", "jars", "trays")


def problems(n: int, seed: int) -> dict[str, tuple[int, int]]:
    """Return n different word problems: six in ten have one step, half of them without a story; two in ten have three.

    Args:
        n: How many, 1 to 1,000.
        seed: Of the generator, >= 0. A smaller n gives the first ones of a larger.

    Returns:
        Question -> its answer, and its number of steps.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, tuple[int, int]] = {}
    while len(found) < n:
        steps, kinds = _CYCLE[len(found) % len(_CYCLE)]
        question, answer = kinds[int(rng.integers(len(kinds)))](lambda low, high: int(rng.integers(low, high + 1)))
        found.setdefault(question, (answer, steps))
    return found


def _rows(split: str, most_steps: int) -> list[Mapping[str, Any]]:
    every = list(problems(sum(_SIZES.values()), _SEED).items())
    part = every[: _SIZES["train"]] if split == "train" else every[_SIZES["train"] :]
    return [{"question": question, "answer": answer} for question, (answer, steps) in part if steps <= most_steps]


def _read(row: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        answer = int(row["answer"])
    except (ValueError, TypeError):
        raise ValueError(f"'answer' is {row['answer']!r}; it must be a whole number.") from None
    return {"question": str(row["question"]), "answer": answer}


# -- templates: one step


def _sum(draw: Draw) -> Problem:
    a, b = draw(1, 10), draw(1, 10)
    return f"What is {a} {('+', 'plus')[draw(0, 1)]} {b}?", a + b


def _difference(draw: Draw) -> Problem:
    b, rest = draw(1, 9), draw(1, 9)
    return f"What is {b + rest} {('-', 'minus')[draw(0, 1)]} {b}?", rest


def _product(draw: Draw) -> Problem:
    a, b = draw(2, 5), draw(2, 9)
    return f"What is {a} times {b}?", a * b


def _gets_more(draw: Draw) -> Problem:
    name, thing, a, b = _name(draw), _thing(draw), draw(1, 10), draw(1, 9)
    return f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?", a + b


def _gives_away(draw: Draw) -> Problem:
    name, thing, b = _name(draw), _thing(draw), draw(1, 9)
    a = b + draw(1, 9)
    return f"{name} has {a} {thing} and gives {b} of them away. How many {thing} are left?", a - b


def _packed(draw: Draw) -> Problem:
    thing, box, a, b = _thing(draw), _box(draw), draw(2, 6), draw(2, 6)
    return f"There are {a} {box} with {b} {thing} in each. How many {thing} are there altogether?", a * b


# -- two steps


def _gets_and_gives(draw: Draw) -> Problem:
    name, thing, a, b = _name(draw), _thing(draw), draw(5, 20), draw(2, 12)
    c = draw(1, a)
    return f"{name} has {a} {thing}, finds {b} more, and then loses {c}. How many {thing} does {name} have?", a + b - c


def _packed_and_loose(draw: Draw) -> Problem:
    thing, box, a, b, c = _thing(draw), _box(draw), draw(2, 6), draw(2, 8), draw(1, 9)
    question = f"A shop has {a} {box} of {b} {thing} and {c} loose {thing}. How many {thing} does the shop have?"
    return question, a * b + c


def _more_than(draw: Draw) -> Problem:
    (one, other), thing, a, b = _two_names(draw), _thing(draw), draw(3, 15), draw(2, 9)
    question = f"{one} has {a} {thing}. {other} has {b} more than {one}. How many {thing} do they have together?"
    return question, 2 * a + b


def _change(draw: Draw) -> Problem:
    name, a, b = _name(draw), draw(2, 5), draw(2, 6)
    paid = a * b + draw(1, 10)
    return f"{name} buys {a} tickets at {b} dollars each and pays with {paid} dollars. How much is the change?", (
        paid - a * b
    )


# -- three steps


def _shared_out(draw: Draw) -> Problem:
    name, thing, friends, each, eaten = _name(draw), _thing(draw), draw(2, 5), draw(2, 6), draw(1, 6)
    first = draw(1, friends * each + eaten - 1)
    second = friends * each + eaten - first
    question = (
        f"{name} picks {first} {thing} in the morning and {second} in the evening, keeps {eaten}, and shares the rest "
        f"equally among {friends} friends. How many {thing} does each friend get?"
    )
    return question, each


def _two_kinds(draw: Draw) -> Problem:
    a, b, c, d, e = draw(2, 5), draw(2, 6), draw(2, 5), draw(2, 6), draw(1, 4)
    question = (
        f"A cup costs {b} dollars and a plate costs {d} dollars. How many dollars do {a} cups and {c} plates cost with "
        f"a voucher that takes {e} dollars off?"
    )
    return question, a * b + c * d - e


def _bus(draw: Draw) -> Problem:
    a, c = draw(6, 25), draw(1, 9)
    b, d = draw(1, 5), draw(1, 9)
    question = (
        f"A bus starts with {a} people. At the first stop {b} get off and {c} get on. At the second stop {d} get on. "
        "How many people are on the bus?"
    )
    return question, a - b + c + d


def _weeks(draw: Draw) -> Problem:
    name, a, b, c = _name(draw), draw(2, 6), draw(2, 4), draw(1, 9)
    question = (
        f"{name} reads {a} pages on each of {b} days, then twice as many pages in total at the weekend, and {c} pages "
        f"on Monday. How many pages does {name} read?"
    )
    return question, 3 * a * b + c


_PLAIN = (_sum, _sum, _difference, _product)
_ONE = (_gets_more, _gives_away, _packed)
_TWO = (_gets_and_gives, _packed_and_loose, _more_than, _change)
_THREE = (_shared_out, _two_kinds, _bus, _weeks)
_CYCLE: tuple[tuple[int, tuple[Callable[[Draw], Problem], ...]], ...] = (
    *((1, _PLAIN), (1, _ONE), (2, _TWO), (1, _PLAIN), (3, _THREE)),
    *((1, _PLAIN), (1, _ONE), (2, _TWO), (1, _ONE), (3, _THREE)),
)


def _name(draw: Draw) -> str:
    return _NAMES[draw(0, len(_NAMES) - 1)]


def _two_names(draw: Draw) -> tuple[str, str]:
    first = draw(0, len(_NAMES) - 1)
    return _NAMES[first], _NAMES[(first + draw(1, len(_NAMES) - 1)) % len(_NAMES)]


def _thing(draw: Draw) -> str:
    return _THINGS[draw(0, len(_THINGS) - 1)]


def _box(draw: Draw) -> str:
    return _BOXES[draw(0, len(_BOXES) - 1)]


def _task(name: str, most_steps: int) -> Task:
    return Task(
        name=name,
        signature=dspy.Signature("question: str -> answer: int", "Solve the word problem."),
        reasoning=False,
        instructions=SUMS,
        make_strategy=lambda: MajorityVote("answer"),
        make_metric=lambda: RightAnswer(field="answer", label="answer"),
        source=DataSource(
            splits={"train": "train", "test": "test"},
            licence="MIT",
            columns=("question", "answer"),
            generated=partial(_rows, most_steps=most_steps),
        ),
        read=_read,
    )


ARITHMETIC = _task("arithmetic", 3)
ONE_STEP = _task("arithmetic/one_step", 1)
