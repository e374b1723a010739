"""A task: everything that a run needs beside an LM and a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import dspy
import numpy as np

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.preferences import Preference
from iapo_dspy.scoring.fields import text_of
from iapo_dspy.scoring.scores import Metric
from iapo_dspy.scoring.strategies import Strategy
from iapo_dspy.tasks.data_source import DataSource

BUDGETS = (Preference("low", cost=0.0), Preference("mid", cost=0.2), Preference("high", cost=1.0))
"""The paper's three contexts of a task with one metric, by how much the cost weighs."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: a student, prompts to choose from, data, and what is asked of them.

    Attributes:
        name: As `task(name)` takes it, such as "sst2".
        signature: Inputs and outputs of the student. Its last output field is the answer.
        reasoning: Whether the student is a `dspy.ChainOfThought`; otherwise it is a `dspy.Predict`.
        instructions: The prompt set, all different.
        preferences: Those of the paper's Table 1.
        max_n: Most samples of a call.
        source: Where the data come from.
        read: One row of the data -> the fields of an example; None for a row that is not used. Raises ValueError for a
            row that it cannot read, with the reason.
        make_strategy: Makes the strategy, when it is first needed: reward models and the equality of formulas need
            packages that the data and the prompts do not.
        make_metric: Makes the metric likewise; None for tasks whose objectives need no label.
    """

    name: str
    signature: type[dspy.Signature]
    reasoning: bool
    instructions: tuple[str, ...]
    preferences: tuple[Preference, ...] = BUDGETS
    max_n: int = 32
    source: DataSource
    read: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] = field(repr=False)
    make_strategy: Callable[[], Strategy] = field(repr=False)
    make_metric: Callable[[], Metric] | None = field(default=None, repr=False)

    @property
    def strategy(self) -> Strategy:
        """Majority vote on the answer, or Best-of-N of the paper's reward models, which are loaded at their first use.

        Raises:
            ConfigurationError: It needs a package that is not installed, such as torch.
        """
        return self.make_strategy()

    @property
    def metric(self) -> Metric | None:
        """Whether the answer is right; None for tasks without right answers.

        Raises:
            ConfigurationError: It needs a package that is not installed.
        """
        return self.make_metric() if self.make_metric is not None else None

    @property
    def answer(self) -> str:
        """The output field that is voted on or scored."""
        return str(list(self.signature.output_fields)[-1])

    @property
    def labels(self) -> tuple[str, ...]:
        """The answers that there are, where the signature lists them; else empty."""
        annotation = self.signature.output_fields[self.answer].annotation
        return get_args(annotation) if get_origin(annotation) is Literal else ()

    def student(self) -> dspy.Module:
        """Return a new student, with the signature's own instruction."""
        return dspy.ChainOfThought(self.signature) if self.reasoning else dspy.Predict(self.signature)

    def candidates(self, demos: Sequence[dspy.Example] = ()) -> list[dspy.Module]:
        """Return one copy of the student per instruction, each with these demonstrations."""
        programs = [self.student() for _ in self.instructions]
        for program, text in zip(programs, self.instructions, strict=True):
            for _, predictor in program.named_predictors():
                predictor.signature = predictor.signature.with_instructions(text)
                predictor.demos = [demo.copy() for demo in demos]
        return programs

    def load(
        self,
        split: str = "train",
        *,
        path: str | Path | None = None,
        limit: int | None = None,
        seed: int = 0,
        without: Iterable[dspy.Example] = (),
    ) -> list[dspy.Example]:
        """Return examples in random order, with their inputs set; of examples with equal inputs, the first.

        Args:
            split: One of `source.splits`.
            path: A local file with the rows of the split, instead of the hub; see `DataSource.rows`.
            limit: So many at most, >= 1. None: all.
            seed: Of the order. A smaller limit gives the first ones of a larger.
            without: Examples that are left out, such as `demonstrations`.

        Raises:
            ConfigurationError: The data cannot be reached or read, a row is not as it must be, not an example is left,
                or an argument is out of range.
        """
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ConfigurationError(f"load(limit={limit!r}): give a whole number >= 1, or leave it out for all rows.")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigurationError(f"load(seed={seed!r}): give a whole number >= 0.")
        where, rows = self.source.rows(self.name, split, path)
        found: dict[tuple[str, ...], dspy.Example] = {}
        for number, row in enumerate(rows, 1):
            try:
                fields = self.read(row)
            except ValueError as exc:
                raise ConfigurationError(f"{where}, row {number}: {exc}") from exc
            if fields is not None:
                example = dspy.Example(**fields).with_inputs(*self.signature.input_fields)
                found.setdefault(self._key(example), example)
        for example in without:
            found.pop(self._key(example), None)
        if not found:
            raise ConfigurationError(f"{where}: not one of {len(rows)} rows is left that task({self.name!r}) can use.")
        examples = list(found.values())
        order = np.random.default_rng(seed).permutation(len(examples))
        return [examples[i] for i in order[:limit]]

    def _key(self, example: dspy.Example) -> tuple[str, ...]:
        return tuple(text_of(example.get(name)) for name in self.signature.input_fields)

    def demonstrations(
        self, n: int, *, split: str = "train", path: str | Path | None = None, seed: int = 0
    ) -> list[dspy.Example]:
        """Return examples for the prompt, label after label where there are labels, so that each comes equally often.

            demos = task.demonstrations(4)
            train = task.load(limit=200, without=demos)
            candidates = task.candidates(demos)

        Args:
            n: How many, >= 0.
            split: See `load`.
            path: See `load`.
            seed: See `load`.

        Raises:
            ConfigurationError: There are fewer, or see `load`.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ConfigurationError(f"demonstrations({n!r}): give a whole number >= 0.")
        if n == 0:
            return []
        examples = self.load(split, path=path, seed=seed)
        if len(examples) < n:
            raise ConfigurationError(f"demonstrations({n}): task({self.name!r}) has {len(examples)} such examples.")
        seen, turns = Counter[Any](), list[tuple[int, int]]()
        for position, example in enumerate(examples):
            label = example[self.answer] if self.labels else None
            turns.append((seen[label], position))
            seen[label] += 1
        return [examples[position] for _, position in sorted(turns)[:n]]
