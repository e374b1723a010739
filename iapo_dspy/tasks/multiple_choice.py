"""Questions with given answers: CommonsenseQA, and some tasks of BIG-Bench-Hard."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import dspy

from iapo_dspy.scoring.answers.equality import number_of
from iapo_dspy.scoring.strategies import MajorityVote
from iapo_dspy.tasks.data_source import DataSource
from iapo_dspy.tasks.instructions.commonsense import COMMONSENSE
from iapo_dspy.tasks.instructions.puzzles import PUZZLES
from iapo_dspy.tasks.right_answer import RightAnswer
from iapo_dspy.tasks.task import Task

_LETTERS = ("A", "B", "C", "D", "E")

_BIG_BENCH: Mapping[str, tuple[str, ...]] = {  # configuration -> its answers; none where the answer is a whole number
    "boolean_expressions": ("True", "False"),
    "causal_judgement": ("Yes", "No"),
    "date_understanding": ("(A)", "(B)", "(C)", "(D)", "(E)", "(F)"),
    "disambiguation_qa": ("(A)", "(B)", "(C)"),
    "formal_fallacies": ("valid", "invalid"),
    "hyperbaton": ("(A)", "(B)"),
    "logical_deduction_three_objects": ("(A)", "(B)", "(C)"),
    "navigate": ("Yes", "No"),
    "object_counting": (),
    "sports_understanding": ("yes", "no"),
    "web_of_lies": ("Yes", "No"),
}


def _read_commonsense(row: Mapping[str, Any]) -> Mapping[str, Any]:
    choices, key = row["choices"], str(row["answerKey"]).strip()
    try:
        found = json.loads(choices) if isinstance(choices, str) else choices  # in .csv and .tsv it is JSON
        named = dict(zip(found["label"], found["text"], strict=True))
    except (ValueError, TypeError, KeyError):
        named = {}
    if tuple(named) != _LETTERS:
        raise ValueError(
            f"'choices' is {str(choices)[:80]!r}; it must have the labels A to E and their texts: "
            '{"label": ["A", ...], "text": [...]}.'
        )
    if key not in _LETTERS:
        raise ValueError(f"'answerKey' is {row['answerKey']!r}; it must be one of {', '.join(_LETTERS)}.")
    return {
        "question": str(row["question"]),
        "choices": "\n".join(f"{letter}) {text}" for letter, text in named.items()),
        "answer": key,
    }


def _reader(labels: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
        target = str(row["target"]).strip()
        number = None if labels else number_of(target)
        if target not in labels and (number is None or number != int(number)):
            raise ValueError(f"'target' is {target!r}; it must be {' or '.join(labels) or 'a whole number'}.")
        return {"question": str(row["input"]), "answer": target if number is None else int(number)}

    return read


def _big_bench(config: str, labels: tuple[str, ...]) -> Task:
    kind = f"Literal{list(labels)}" if labels else "int"
    return Task(
        name=f"bbh/{config}",
        signature=dspy.Signature(f"question: str -> answer: {kind}", "Answer the question."),
        reasoning=True,
        instructions=PUZZLES,
        make_strategy=lambda: MajorityVote("answer"),
        make_metric=lambda: RightAnswer(field="answer", label="answer"),
        source=DataSource(
            repository="lukaemon/bbh",
            configs=(config,),
            splits={"train": "test[:40%]", "test": "test[40%:]"},  # the repository has one split
            revision="982bb89fd79532a8ac676a61fc42eb1aeec63f99",
            licence="not stated (the original is MIT)",
            columns=("input", "target"),
        ),
        read=_reader(labels),
    )


COMMONSENSE_QA = Task(
    name="commonsense_qa",
    signature=dspy.Signature(
        f"question: str, choices: str -> answer: Literal{list(_LETTERS)}", "Answer the question with the best choice."
    ),
    reasoning=True,
    instructions=COMMONSENSE,
    make_strategy=lambda: MajorityVote("answer"),
    make_metric=lambda: RightAnswer(field="answer", label="answer"),
    source=DataSource(
        repository="tau/commonsense_qa",
        splits={"train": "train", "validation": "validation"},  # the answers of its split "test" are not public
        revision="94630fe30dad47192a8546eb75f094926d47e155",
        licence="MIT",
        columns=("question", "choices", "answerKey"),
    ),
    read=_read_commonsense,
)

BIG_BENCH_HARD = tuple(_big_bench(config, labels) for config, labels in _BIG_BENCH.items())
