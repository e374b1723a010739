"""Problems of school mathematics: MATH, whose answers are formulas, and GSM8K, whose answers are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from iapo_dspy.scoring.answers.equality import math_equal
from iapo_dspy.scoring.strategies import MajorityVote
from iapo_dspy.tasks.data_source import DataSource
from iapo_dspy.tasks.instructions.competition import COMPETITION
from iapo_dspy.tasks.instructions.school_problems import SCHOOL_PROBLEMS
from iapo_dspy.tasks.right_answer import RightAnswer, after_hashes, boxed
from iapo_dspy.tasks.task import Task


def _read_math(row: Mapping[str, Any]) -> Mapping[str, Any]:
    answer = boxed(str(row["solution"]))
    if answer is None:
        raise ValueError(r"'solution' has not an answer in \boxed{}.")
    return {"problem": str(row["problem"]), "answer": answer}


def _read_gsm8k(row: Mapping[str, Any]) -> Mapping[str, Any]:
    answer = after_hashes(str(row["answer"]))
    if answer is None:
        raise ValueError("'answer' does not end with #### and a number, such as '#### 42'.")
    return {"question": str(row["question"]), "answer": answer}


MATH = Task(
    name="math",
    signature=dspy.Signature("problem: str -> answer: str", "Solve the problem. Give the final answer alone."),
    reasoning=True,
    instructions=COMPETITION,
    make_strategy=lambda: MajorityVote("answer", equal=math_equal()),
    make_metric=lambda: RightAnswer(field="answer", label="answer", equal=math_equal()),
    source=DataSource(
        repository="EleutherAI/hendrycks_math",
        configs=(
            "algebra",
            "counting_and_probability",
            "geometry",
            "intermediate_algebra",
            "number_theory",
            "prealgebra",
            "precalculus",
        ),
        splits={"train": "train", "test": "test"},
        revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
        licence="MIT",
        columns=("problem", "solution"),
    ),
    read=_read_math,
)

GSM8K = Task(
    name="gsm8k",
    signature=dspy.Signature("question: str -> answer: float", "Solve the problem. The answer is a number."),
    reasoning=True,
    instructions=SCHOOL_PROBLEMS,
    make_strategy=lambda: MajorityVote("answer"),
    make_metric=lambda: RightAnswer(field="answer", label="answer"),
    source=DataSource(
        repository="openai/gsm8k",
        configs=("main",),
        splits={"train": "train", "test": "test"},
        revision="740312add88f781978c0658806c59bc2815b9866",
        licence="MIT",
        columns=("question", "answer"),
    ),
    read=_read_gsm8k,
)
