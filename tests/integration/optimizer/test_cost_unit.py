"""The unit of `Preference(cost=...)`: the student's average call, whatever else is in the pool of candidates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import CompiledProgram, Cost, Preference
from iapo_dspy.prompts.combinations import Combinations, prompt_set, student_prompt
from iapo_dspy.prompts.student import Student
from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord, UnitRecord
from iapo_dspy.types import Decoding
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import TwoSteps, questions, student, total

OWN = "Given the fields `question`, produce the fields `answer`."  # of the student as it is
WORDS = {OWN: 10, "Briefly.": 2, "In full.": 40, "At great length.": 400}

optimizer = optimizers(preferences=[Preference("dear", cost=1.0)], max_n=2, budget=400)


def wordy(body: dict[str, Any], i: int) -> str:
    """Answer right, after as many words as the instruction and the question ask for."""
    asked = next(words for text, words in WORDS.items() if text in body["messages"][0]["content"])
    return "step " * (asked + total(body) % 7) + "\n\n" + chat(answer=str(total(body)))


def silent(body: dict[str, Any], i: int) -> str:
    """Fail to answer under the student's own instruction."""
    return "I would rather not." if OWN in body["messages"][0]["content"] else wordy(body, i)


def compiled(*candidates: str, log_dir: Path | None = None, answer: Any = wordy, **own: Any) -> CompiledProgram:
    with Loopback(answer) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer(candidates=candidates, log_dir=log_dir, **own).compile(student(), trainset=questions(40))
        assert server.completions == program.detailed_results.spent.completions <= own.get("budget", 400)
        return program


def scale(program: CompiledProgram) -> float:
    found = program.policy.ready.cost_scale
    assert found == program.detailed_results.cost_scale
    return float(found)


def test_the_unit_does_not_move_with_the_pool_nor_with_budget_or_preferences() -> None:
    pools = [(OWN, "Briefly."), ("Briefly.", "In full."), (OWN, "Briefly.", "At great length."), ("In full.",)]
    scales = [scale(compiled(*pool)) for pool in pools]
    scales.append(scale(compiled("Briefly.", OWN, budget=500, preferences=[Preference("free")])))
    # 16 questions: 10 to 16 words, and the seven of the answer itself
    assert scales == pytest.approx([scales[0]] * len(scales), rel=1e-12)
    assert 0.01 / 24 < scales[0] < 0.01 / 17


def test_a_student_that_is_not_a_candidate_takes_a_small_counted_part_of_the_budget(tmp_path: Path) -> None:
    program = compiled("Briefly.", "In full.", log_dir=tmp_path, budget=200)
    settings, records = read_ledger(tmp_path)
    student = settings["about"]["prompts"][2]
    mine = [r for r in records if isinstance(r, CompletionRecord) and r.prompt == student]
    assert len(mine) == len({r.query for r in mine}) == 200 // 20 and {r.draw for r in mine} == {0}
    (unit,) = (r for r in records if isinstance(r, UnitRecord))
    assert unit.queries == 10 and unit.cost == pytest.approx(sum(r.usage.completion_tokens for r in mine) / 10)
    assert scale(program) == pytest.approx(0.01 / unit.cost)
    assert len(program.policy.ready.prompts) == 2 and len(program.detailed_results.failures.share) == 2


def test_a_run_that_goes_on_keeps_its_unit_and_an_older_ledger_its_scale(tmp_path: Path) -> None:
    new, old, none = tmp_path / "new", tmp_path / "old", tmp_path / "none"
    first = compiled("Briefly.", "In full.", log_dir=new)
    path = new / "ledger.jsonl"
    lines = path.read_text().splitlines()
    unit = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "unit")
    with Loopback(wordy) as server, dspy.context(lm=server.lm(seed=1)):
        path.write_text("\n".join(lines[: unit + 1]) + "\n")  # killed after the first round
        again = optimizer(candidates=["Briefly.", "In full."], log_dir=new).compile(student(), trainset=questions(40))
        assert server.completions < first.detailed_results.spent.completions
        changed = {**json.loads(lines[unit]), "cost": 1_000.0}  # what the ledger says is what holds
        path.write_text("\n".join([*lines[:unit], json.dumps(changed), *lines[unit + 1 :]]) + "\n")
        kept = optimizer(candidates=["Briefly.", "In full."], log_dir=new).compile(student(), trainset=questions(40))
    assert scale(again) == scale(first) and scale(kept) == pytest.approx(0.01 / 1_000)

    run = {**json.loads(lines[1]), "more": False}
    del run["settings"]["about"]["unit"]  # as an older version wrote it
    old.mkdir()
    (old / "ledger.jsonl").write_text(f"{lines[0]}\n{json.dumps(run)}\n")
    average = scale(compiled("Briefly.", "In full.", log_dir=old))
    assert average == pytest.approx(0.01 / 33, rel=0.1)  # both candidates, as that version had it
    assert average != pytest.approx(scale(compiled("Briefly.", "In full.", log_dir=none)), rel=0.1)


def test_without_a_completion_of_the_student_the_average_of_the_candidates_is_the_unit() -> None:
    few = scale(compiled("Briefly.", "In full.", budget=19))  # a twentieth of the budget is none
    assert few == pytest.approx(0.01 / 33, rel=0.2)
    # A completion that cannot be read was paid for all the same, and has a price.
    assert scale(compiled("Briefly.", "In full.", answer=silent)) == pytest.approx(0.01 / 4)


@pytest.mark.slow
def test_the_student_is_not_scored_and_costs_in_the_runs_own_unit(tmp_path: Path) -> None:
    seen: list[str] = []

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        seen.append(str(prediction.answer))
        return True

    program = compiled("Briefly.", "In full.", metric=metric, cost_unit=Cost(completion_tokens=1, prompt_tokens=1))
    labels = 40  # tried before the first call
    assert len(seen) - labels == program.detailed_results.spent.completions - 16
    assert scale(program) < 0.01 / 40  # prompt tokens count


def test_where_the_student_is_among_the_prompts() -> None:
    steps = Student(TwoSteps())
    plan, ask = steps.instructions["plan"], steps.instructions["ask"]
    made = Combinations(
        steps, {"plan": ["Plan.", plan], "ask": ["Ask.", None, "Say."]}, (Decoding(), Decoding(temperature=0.5))
    )
    assert made.student == 8 and {**made[8].student.instructions} == {"plan": plan, "ask": ask}
    assert Combinations(steps, {"plan": ["Plan.", "Think."]}, (Decoding(),)).student is None
    alone = Student(student())
    for decodings, place in (((Decoding(),), 1), ((Decoding(temperature=0.5), Decoding()), 2)):
        prompts = prompt_set(alone, ["Briefly.", f" {OWN} "], decodings, 10)
        assert student_prompt(prompts, alone, decodings)[0] == place
        assert prompts[place].decoding == decodings[0]
    nowhere, as_it_is = student_prompt(prompt_set(alone, ["Briefly."], (Decoding(),), 10), alone, (Decoding(),))
    assert nowhere is None and list(Student(as_it_is.program).instructions.values()) == [OWN]
