"""Candidates given predictor by predictor: the prompt set is their product, and prompts are made when asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, overload

import dspy
import numpy as np

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.prompts.candidates import is_options, read_options
from iapo_dspy.prompts.copies import bare, clone
from iapo_dspy.prompts.lms import Decodings, LMs, combine
from iapo_dspy.prompts.prompt import Prompt, build_prompts, configured, same_prompt
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.prompts.student import Student

MOST = 1_000_000  # combinations; a run keeps a few numbers for each


class PromptList(tuple[Prompt, ...]):
    """Prompts that are all looked at."""

    shape: None = None

    @property
    def shown(self) -> Sequence[Prompt]:
        """The prompts themselves."""
        return self


class Combinations(Sequence[Prompt]):
    """One instruction for each predictor, in every combination, under every configuration.

    A prompt is made when it is first asked for, and kept. Prompts are numbered row by row: the last predictor's
    instructions change faster than the first one's, and configurations (LMs, decodings, adapters, rewriters) fastest.

    Args:
        student: The program to optimize; it is not changed.
        candidates: Predictor name -> instructions, as the user gave them (`read_options`).
        decodings: Decoding configurations, of all LMs or of each.
        lms: The run's LMs; none for the configured one.
        adapters: The run's adapters; none for the configured one.
        rewriters: The run's rewriters; queries as they are come first.

    Attributes:
        options: Every predictor with its instructions.
        shape: Number of options of each coordinate: every predictor, then configurations.

    Raises:
        ConfigurationError: The candidates cannot be used with this student, or there are too many combinations.
    """

    def __init__(
        self,
        student: Student,
        candidates: Mapping[Any, Any],
        decodings: Decodings,
        lms: Sequence[LMs] = (),
        adapters: Sequence[dspy.Adapter] = (),
        rewriters: Sequence[Rewriter] = (),
    ) -> None:
        self._student = bare(student.module)
        self._servers = combine(lms, list(student.predictors), decodings)
        self.options = read_options(candidates, student.instructions)
        self._adapters, self._rewriters = tuple(adapters), tuple(rewriters)
        ways = max(len(adapters), 1) * (1 + len(rewriters))
        n_configurations = sum(len(served.decodings) for served in self._servers) * ways
        self.shape = (*(len(texts) for texts in self.options.values()), n_configurations)
        self._made: dict[int, list[Prompt]] = {}
        if len(self) > MOST:
            sizes = " x ".join(str(k) for k in self.shape)
            raise ConfigurationError(
                f"The candidates have {sizes} = {len(self):,} combinations; at most {MOST:,} can be told apart. Give "
                "fewer instructions for some predictors."
            )

    @property
    def shown(self) -> Sequence[Prompt]:
        """The first combination, and with each other option of one coordinate in it: every option is in one of them."""
        found = [self[0]]
        for d, k in enumerate(self.shape):
            for option in range(1, k):
                place = [option if e == d else 0 for e in range(len(self.shape))]
                found.append(self[int(np.ravel_multi_index(place, self.shape))])
        return found

    def __len__(self) -> int:
        """Return P."""
        return math.prod(self.shape)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        """Return a prompt by its number."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"prompt {index} of {len(self)}")
        combination, configuration = divmod(int(index) % len(self), self.shape[-1])
        if combination not in self._made:
            self._made[combination] = self._make(combination)
        return self._made[combination][configuration]

    def _make(self, combination: int) -> list[Prompt]:
        place = [int(i) for i in np.unravel_index(combination, self.shape[:-1])]
        program = clone(self._student)
        predictors = dict(program.named_predictors())
        for (name, texts), option in zip(self.options.items(), place, strict=True):
            predictors[name].signature = predictors[name].signature.with_instructions(texts[option])
        options = dict(zip(self.options, place, strict=True))
        return configured(program, combination, self._servers, {}, self._adapters, self._rewriters, options)

    @property
    def student(self) -> int | None:
        """The combination of the predictors' own instructions under the first configuration; None where there is none.

        The first configuration is the first LM with its first decoding and the first adapter, without a rewriter.
        """
        own = [list(map(str.strip, texts)) for texts in self.options.values()]
        wanted = [text.strip() for text in Student(self._student).instructions.values()]
        if any(text not in texts for text, texts in zip(wanted, own, strict=True)):
            return None
        place = [texts.index(text) for text, texts in zip(wanted, own, strict=True)]
        return int(np.ravel_multi_index([*place, 0], self.shape))


PromptSet: TypeAlias = PromptList | Combinations
"""The prompt set P. `shape` is None where all prompts are looked at, else the number of options of each coordinate.
`shown` are prompts that have between them everything that can be chosen."""


def prompt_set(
    student: Student,
    candidates: Any,
    decodings: Decodings,
    joint_limit: int,
    lms: Sequence[LMs] = (),
    adapters: Sequence[dspy.Adapter] = (),
    rewriters: Sequence[Rewriter] = (),
) -> PromptSet:
    """Return the prompt set P: a list, or `Combinations` where there are more than `joint_limit` of them.

    Raises:
        ConfigurationError: The candidates cannot be used with this student.
    """
    if not is_options(candidates):
        return PromptList(build_prompts(student, candidates, decodings, lms, adapters, rewriters))
    combinations = Combinations(student, candidates, decodings, lms, adapters, rewriters)
    free = sum(k > 1 for k in combinations.shape)  # one coordinate alone is a list as any other
    return PromptList(combinations) if len(combinations) <= joint_limit or free < 2 else combinations


def student_prompt(
    prompts: PromptSet,
    student: Student,
    decodings: Decodings,
    lms: Sequence[LMs] = (),
    adapters: Sequence[dspy.Adapter] = (),
) -> tuple[int | None, Prompt]:
    """Return the student as it is under the first of the run's configurations, and its place among prompts.

    That is the first LM with its first decoding and the first adapter, without a rewriter. The place is None where it
    is not one of them.
    """
    first = combine(lms, list(student.predictors), decodings)[:1]
    as_it_is = configured(bare(student.module), -1, first, {}, adapters[:1])[0]
    if isinstance(prompts, Combinations):
        return prompts.student, as_it_is
    return next((i for i, p in enumerate(prompts) if same_prompt(p, as_it_is)), None), as_it_is
