"""Tasks from their data to a compiled program, against a server on loopback that answers."""

from __future__ import annotations

import random
from typing import Any

import dspy
import pytest

from iapo_dspy import IAPO, Execution
from iapo_dspy.tasks import Task, task
from tests.support.loopback import Loopback, chat
from tests.unit.tasks.fixtures import fixture

BEST = {"sst2": "Weigh the praise", "arithmetic": "Give the number."}
"""The instruction, by its beginning, that the server follows best."""


def answering(name: str, key: dict[str, Any], wrong: list[Any]) -> Any:
    """Answer rightly nine times in ten under the best instruction, and one time in three under the others."""

    def answer(body: dict[str, Any], index: int) -> str:
        text = "\n".join(str(m["content"]) for m in body["messages"])
        asked = str(body["messages"][-1]["content"])
        share = 0.9 if BEST[name] in text else 0.34
        right = next(found for question, found in key.items() if question in asked)
        rng = random.Random(f"{index} {asked}")
        return chat(answer=str(right if rng.random() < share else rng.choice([w for w in wrong if w != right])))

    return answer


@pytest.mark.parametrize("name", ["sst2", "arithmetic"])
def test_a_task_compiles_to_a_program_that_is_right_more_often_than_its_student(name: str) -> None:
    found: Task = task(name)
    path = fixture("sst2") if name == "sst2" else None
    demos = found.demonstrations(2, path=path)
    train = found.load(path=path, limit=12, without=demos)
    at = next(i for i, text in enumerate(found.instructions) if text.startswith(BEST[name]))
    candidates = found.candidates(demos)[at : at + 3]
    field = next(iter(found.signature.input_fields))
    key = {example[field]: example[found.answer] for example in train}
    wrong: list[Any] = list(found.labels or range(200, 230))
    with Loopback(answering(name, key, wrong)) as server, dspy.context(lm=server.lm(seed=1)):
        program = IAPO(
            metric=found.metric,
            strategy=found.strategy,
            preferences=found.preferences,
            max_n=4,
            budget=240,
            execution=Execution(progress=False),
        ).compile(found.student(), trainset=train, candidates=candidates)
        chosen = program.solve("low")
        results = program.detailed_results
        answers = [program(**example.inputs(), preference="low")[found.answer] for example in train]
    assert BEST[name] in results.labels[chosen.prompt] and chosen.n >= 2
    assert results.spent.completions <= 240 and results.failures.total == 0
    assert sum(a == example[found.answer] for a, example in zip(answers, train, strict=True)) >= 0.75 * len(train)
    shown = [m["content"] for m in server.bodies[-1]["messages"]]
    assert any(str(demos[0][field]) in text for text in shown)
