"""The word problems that the package makes up."""

from __future__ import annotations

import re
from collections import Counter
from functools import reduce
from operator import mul

import pytest

from iapo_dspy.tasks import task
from iapo_dspy.tasks.generated_sums import problems


def worked_out(question: str) -> int | None:
    """Work out a question by its words, apart from the generator; None for a kind that is not known here."""
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    a, b, *more = [*numbers, 0, 0]
    kinds = {
        r" \+ |plus|gets \d+ more": a + b,
        r" - |minus|gives": a - b,
        r"What is .* times|There are .* in each": reduce(mul, numbers),
        r"finds \d+ more, and then loses": a + b - more[0],
        r"loose": a * b + more[0],
        r"more than": a + (a + b),
        r"pays with": more[0] - a * b,
        r"shares the rest": (a + b - more[0]) // (more[1] or 1),
        r"voucher": a * more[0] + b * more[1] - (numbers[4] if len(numbers) > 4 else 0),
        r"bus": a - b + more[0] + more[1],
        r"weekend": a * b + 2 * a * b + more[0],
    }
    return next((answer for words, answer in kinds.items() if re.search(words, question)), None)


def test_every_answer_is_what_the_words_say() -> None:
    found = problems(1000, 11)
    assert len(found) == 1000
    assert {q: answer for q, (answer, _) in found.items() if worked_out(q) != answer} == {}


def test_numbers_are_small_and_answers_are_not_negative() -> None:
    found = problems(600, 5)
    assert all(0 <= answer <= 130 for answer, _ in found.values())
    assert max(int(n) for q in found for n in re.findall(r"\d+", q)) <= 41
    plain = [q for q, (_, steps) in found.items() if q.startswith("What is")]
    assert len(plain) == 180  # three in ten have no story
    assert Counter(steps for _, steps in found.values()) == {1: 360, 2: 120, 3: 120}


def test_equal_seeds_give_equal_problems_and_fewer_are_the_first_of_more() -> None:
    assert problems(50, 3) == problems(50, 3) != problems(50, 4)
    assert list(problems(80, 3).items())[:50] == list(problems(50, 3).items())


@pytest.mark.parametrize(("name", "sizes"), [("arithmetic", (600, 300)), ("arithmetic/one_step", (360, 180))])
def test_training_and_test_questions_differ(name: str, sizes: tuple[int, int]) -> None:
    train, test = task(name).load(), task(name).load("test")
    assert (len(train), len(test)) == sizes and not {e.question for e in train} & {e.question for e in test}
    assert {e.question for e in task(name).load(seed=1)} == {e.question for e in train}  # only the order is the seed's
    assert len(task(name).demonstrations(4)) == 4
