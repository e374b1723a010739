"""Sentences to label: opinions of films (SST-2), and the objective or subjective ones of SUBJ.

The labels of SUBJ are called "story" and "review" here, after what its sentences are taken from. A small model can tell
these two apart, and cannot tell "objective" from "subjective".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dspy

from iapo_dspy.scoring.strategies import MajorityVote
from iapo_dspy.tasks.data_source import DataSource
from iapo_dspy.tasks.instructions.film_reviews import SENTIMENT
from iapo_dspy.tasks.instructions.subjectivity import SUBJECTIVITY
from iapo_dspy.tasks.right_answer import RightAnswer
from iapo_dspy.tasks.task import Task


def _reader(column: str, labels: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    def read(row: Mapping[str, Any]) -> Mapping[str, Any]:
        label, numbers = str(row["label"]).strip(), [str(i) for i in range(len(labels))]
        if label not in numbers:
            said = " or ".join(f"{n} for {name}" for n, name in zip(numbers, labels, strict=True))
            raise ValueError(f"'label' is {row['label']!r}; it must be {said}.")
        return {"sentence": str(row[column]).strip(), "answer": labels[int(label)]}

    return read


def _task(name: str, asked: str, labels: tuple[str, str], instructions: tuple[str, ...], source: DataSource) -> Task:
    return Task(
        name=name,
        signature=dspy.Signature(f"sentence: str -> answer: Literal{list(labels)}", asked),
        reasoning=False,
        instructions=instructions,
        make_strategy=lambda: MajorityVote("answer"),
        make_metric=lambda: RightAnswer(field="answer", label="answer"),
        source=source,
        read=_reader(source.columns[0], labels),
    )


SST2 = _task(
    "sst2",
    "Say whether the sentence from a film review is positive or negative.",
    ("negative", "positive"),
    SENTIMENT,
    DataSource(
        repository="stanfordnlp/sst2",
        splits={"train": "train", "validation": "validation"},  # the labels of its split "test" are not public
        revision="8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb",
        licence="not stated",
        columns=("sentence", "label"),
        headless=("label", "sentence"),
    ),
)

SUBJ = _task(
    "subj",
    "Say whether the sentence about a film tells its story or is from a review.",
    ("story", "review"),
    SUBJECTIVITY,
    DataSource(
        repository="SetFit/subj",
        splits={"train": "train", "test": "test"},
        revision="f3c1162e678417f664d76b21864fdb87b0615fcf",
        licence="not stated",
        columns=("text", "label"),
        headless=("label", "text"),
    ),
)
