"""Loading examples, demonstrations and candidates of a task."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.tasks import task
from tests.unit.tasks.fixtures import fixture, rows_of, write

SST2 = fixture("sst2")


def test_the_order_is_the_seeds_and_a_limit_takes_the_first() -> None:
    every = task("sst2").load(path=SST2, seed=3)
    assert [e.sentence for e in task("sst2").load(path=SST2, seed=3)] == [e.sentence for e in every]
    assert task("sst2").load(path=SST2, seed=3, limit=2) == every[:2]
    orders = {tuple(e.sentence for e in task("sst2").load(path=SST2, seed=seed)) for seed in range(8)}
    assert len(orders) > 4 and {frozenset(order) for order in orders} == {frozenset(e.sentence for e in every)}
    assert len(task("sst2").load(path=SST2, limit=100)) == 6
    assert every[0].inputs().keys() == ["sentence"] and every[0].labels().keys() == ["answer"]


def test_the_first_of_equal_questions_stays(tmp_path: Path) -> None:
    rows = rows_of("sst2")[:2]
    path = write(tmp_path / "rows.jsonl", [*rows, {**rows[0], "label": 0}, {**rows[0], "sentence": " again "}])
    found = {e.sentence: e.answer for e in task("sst2").load(path=path)}
    assert len(found) == 3 and found[rows[0]["sentence"].strip()] == "positive"


@pytest.mark.parametrize("setting", [{"limit": 0}, {"limit": -1}, {"limit": True}, {"limit": 2.0}])
def test_a_limit_below_one_is_an_error(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"load\(limit=.*\): give a whole number >= 1, or leave it out"):
        task("sst2").load(path=SST2, **setting)


@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_a_seed_that_is_none_is_an_error(seed: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"load\(seed="):
        task("sst2").load(path=SST2, seed=seed)


def test_demonstrations_have_each_label_equally_often_and_are_taken_out_of_the_rest(tmp_path: Path) -> None:
    rows = rows_of("sst2")
    more = [{"sentence": f"good number {i}", "label": 1} for i in range(40)]
    path = write(tmp_path / "rows.jsonl", [*more, *rows])
    for seed in range(5):
        demos = task("sst2").demonstrations(6, path=path, seed=seed)
        assert Counter(e.answer for e in demos) == {"positive": 3, "negative": 3}
        rest = task("sst2").load(path=path, seed=seed, without=demos)
        assert len(rest) == 40 and not {e.sentence for e in rest} & {e.sentence for e in demos}
    assert Counter(e.answer for e in task("sst2").demonstrations(8, path=path)) == {"positive": 5, "negative": 3}
    assert task("sst2").demonstrations(3, path=path, seed=1) == task("sst2").demonstrations(6, path=path, seed=1)[:3]


def test_demonstrations_of_free_answers_are_any() -> None:
    demos = task("gsm8k").demonstrations(3, path=fixture("gsm8k"), seed=1)
    assert len({e.question for e in demos}) == 3
    assert len(task("gsm8k").load(path=fixture("gsm8k"), without=demos)) == 1
    assert task("gsm8k").demonstrations(0) == []


def test_more_demonstrations_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"demonstrations\(7\): task\('sst2'\) has 6 such examples"):
        task("sst2").demonstrations(7, path=SST2)
    with pytest.raises(ConfigurationError, match=r"demonstrations\(-1\): give a whole number >= 0"):
        task("sst2").demonstrations(-1, path=SST2)
    with pytest.raises(ConfigurationError, match="not one of 6 rows is left that task"):
        task("sst2").load(path=SST2, without=task("sst2").load(path=SST2))


@pytest.mark.parametrize("name", ["sst2", "gsm8k"])
def test_candidates_are_students_with_one_instruction_each_and_demonstrations_of_their_own(name: str) -> None:
    found = task(name)
    demos = found.demonstrations(2, path=fixture(name))
    programs = found.candidates(demos)
    predictors = [program.predictors()[0] for program in programs]
    assert tuple(p.signature.instructions for p in predictors) == found.instructions
    assert all(p.demos == demos for p in predictors) and not found.student().predictors()[0].demos
    assert {type(program) for program in programs} == {type(found.student())}
    predictors[0].demos.pop()
    predictors[0].demos[0].answer = "changed"
    assert len(predictors[1].demos) == 2 and demos[0].answer != "changed"
    assert found.student().predictors()[0].signature.instructions == found.signature.instructions


def test_a_row_that_cannot_be_read_is_named_by_its_number(tmp_path: Path) -> None:
    rows = rows_of("sst2")
    rows[3]["label"] = 2
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        ConfigurationError,
        match=r"rows\.jsonl, row 4: 'label' is 2; it must be 0 for negative or 1 for positive\.",
    ):
        task("sst2").load(path=path)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("sst2", {"label": -1}, "'label' is -1; it must be 0 for negative or 1 for positive"),
        ("subj", {"label": "objective"}, "'label' is 'objective'; it must be 0 for story"),
        ("math", {"solution": "It is 5."}, r"'solution' has not an answer in \\boxed{}"),
        ("gsm8k", {"answer": "42"}, "'answer' does not end with #### and a number"),
        ("gsm8k", {"answer": "#### many"}, "'answer' does not end with #### and a number"),
        ("commonsense_qa", {"answerKey": "F"}, "'answerKey' is 'F'; it must be one of A, B, C, D, E"),
        ("commonsense_qa", {"answerKey": ""}, "'answerKey' is ''; it must be one of A, B, C, D, E"),
        ("commonsense_qa", {"choices": ["a", "b"]}, "'choices' is .* it must have the labels A to E"),
        ("commonsense_qa", {"choices": {"label": ["A"], "text": ["a"]}}, "'choices' is .* it must have the labels"),
        ("commonsense_qa", {"choices": "A or B"}, "'choices' is 'A or B'; it must have the labels"),
        ("bbh/navigate", {"target": "Maybe"}, "'target' is 'Maybe'; it must be Yes or No"),
        ("bbh/object_counting", {"target": "four"}, "'target' is 'four'; it must be a whole number"),
        ("bbh/object_counting", {"target": "4.5"}, "'target' is '4.5'; it must be a whole number"),
        ("helpful_harmless", {"chosen": "Hello."}, r"'chosen' begins with 'Hello\.'; it must be a dialogue"),
        ("summarization", {"prompt": [{"role": "user"}]}, "'prompt' is .*; both must be text"),
        ("arithmetic", {"answer": "three"}, "'answer' is 'three'; it must be a whole number"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(name: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    rows = [{"question": "1 + 1", "answer": 2}] * 2 if name == "arithmetic" else rows_of(name)
    path = write(tmp_path / "rows.jsonl", [*rows[:1], {**rows[1], **change}])
    with pytest.raises(ConfigurationError, match=rf"rows\.jsonl, row 2: {said}"):
        task(name).load(path=path)


def test_a_dialogue_without_a_question_is_left_out(tmp_path: Path) -> None:
    rows = [*rows_of("helpful_harmless"), {"chosen": "\n\nHuman: \n\nAssistant: Hello?", "rejected": ""}]
    assert len(task("helpful_harmless").load(path=write(tmp_path / "rows.jsonl", rows))) == 2


def test_labels_may_be_text_that_is_a_number(tmp_path: Path) -> None:
    rows = [{"sentence": "fine", "label": "1"}, {"sentence": "bad", "label": " 0"}]
    found = task("sst2").load(path=write(tmp_path / "rows.jsonl", rows))
    assert {e.sentence: e.answer for e in found} == {"fine": "positive", "bad": "negative"}
