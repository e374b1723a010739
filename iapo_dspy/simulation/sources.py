"""Sources of environments: one recording that is split anew in each run, or a new synthetic one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from iapo_dspy.bandit.models.winning import Ties
from iapo_dspy.environments.recorded.factorial import synthetic_factorial
from iapo_dspy.environments.recorded.families import synthetic_families
from iapo_dspy.environments.recorded.files import load
from iapo_dspy.environments.recorded.published_pickles import read_published
from iapo_dspy.environments.recorded.recording import ExactValues, Recording
from iapo_dspy.environments.recorded.stopped_values import StoppedValues
from iapo_dspy.environments.recorded.synthetic import (
    MAX_N,
    synthetic_bernoulli,
    synthetic_categorical,
    synthetic_unstructured,
)
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray

_LEAST_HELD_OUT = 100  # so that the score of a policy is not noise where there are few training queries
_SPLIT, _MAKE, _ORDER = 0, 2, 3  # purposes of a seed; 1 is the environment's, see the runner

ArrivalOrder = Literal["worst", "random"]
"""How prompts that join during a run are ordered: "worst" lets the good ones come late, "random" deals them out."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """The environment of one run.

    Attributes:
        train: The recording that algorithms pull from.
        q_train: Exact Q on the training queries [C, P, N].
        q_test: Exact Q on the held-out queries [C, P, N].
        stopped: Values arms that stop early, and compound ones, on all queries of the run.
        train_queries: Which of those are trained on.
        test_queries: Which are held out.
        generations: Prompts of each generation, where they join while the run goes on: the first ones are there at the
            start, the others after equal shares of the budget. Default: all prompts are there at the start.
    """

    train: Recording
    q_train: FloatArray
    q_test: FloatArray
    stopped: StoppedValues
    train_queries: IntArray
    test_queries: IntArray
    generations: tuple[int, ...] = ()

    def of_prompts(self, prompts: IntArray) -> Instance:
        """Return the environment of these prompts only, in this order."""
        return replace(
            self,
            train=self.train.of_prompts(prompts),
            q_train=self.q_train[:, prompts],
            q_test=self.q_test[:, prompts],
            stopped=StoppedValues(recording=self.stopped.recording.of_prompts(prompts), ties=self.stopped.ties),
        )


class Source(Protocol):
    """Gives each run its environment; the same one for the same seed and run."""

    @property
    def name(self) -> str:
        """Name of the environment."""

    @property
    def ties(self) -> Ties:
        """How ties are credited, in training and in scoring."""

    @property
    def max_n(self) -> int:
        """The largest scale."""

    def instance(self, seed: int, run: int) -> Instance:
        """Return the environment of a run."""


@dataclass(frozen=True, kw_only=True)
class RecordedSource:
    """Re-splits one recording in each run.

    Attributes:
        name: Its name in tables.
        recording: The recording.
        values: Its exact values.
        ties: How ties are credited.
        max_n: The largest scale.
        train: Queries to train on, the others are held out; `None`: 80 % of them.
    """

    name: str
    recording: Recording
    values: ExactValues
    ties: Ties
    max_n: int
    train: int | None = None

    @cached_property
    def stopped(self) -> StoppedValues:
        """Values arms that stop early and compound ones; shared by the runs, so that an arm is valued once."""
        return StoppedValues(recording=self.recording, ties=self.ties)

    def instance(self, seed: int, run: int) -> Instance:
        """Implement `Source.instance`."""
        train, test = _split(self.recording, self.train, seed, run)
        return _instance(self.recording, self.values, self.stopped, train, test)


@dataclass(frozen=True, kw_only=True)
class SyntheticSource:
    """Draws a new environment in each run and splits it like a recording.

    Attributes:
        name: Its name in tables.
        make: Draws an environment from seeds.
        ties: How ties are credited.
        max_n: The largest scale.
        train: Queries to train on, the others are held out; `None`: 80 % of them.
    """

    name: str
    make: Callable[[int, int, int], Recording]
    ties: Ties
    max_n: int
    train: int | None = None

    def instance(self, seed: int, run: int) -> Instance:
        """Implement `Source.instance`."""
        recording = self.make(seed, run, _MAKE)
        train, test = _split(recording, self.train, seed, run)
        stopped = StoppedValues(recording=recording, ties=self.ties)
        return _instance(recording, recording.exact(self.max_n, self.ties), stopped, train, test)


@dataclass(frozen=True, kw_only=True)
class ArrivingSource:
    """Lets the prompts of another source join while a run goes on; they are otherwise the same, as is the split.

    Attributes:
        inner: The source with all prompts.
        generations: How many generations, >= 1, of equal sizes up to one.
        order: "worst": by their best arm's Q on the training queries, mean over contexts, so that the good ones come
            last; "random": at random. Within a generation the order is random.

    Raises:
        ConfigurationError: No generation at all; more of them than prompts, once there is an instance.
    """

    inner: Source
    generations: int
    order: ArrivalOrder = "worst"

    def __post_init__(self) -> None:
        if self.generations < 1:
            raise ConfigurationError(f"arrivals is {self.generations}; give a number of generations >= 1.")

    @property
    def name(self) -> str:
        """Name of the inner source."""
        return self.inner.name

    @property
    def ties(self) -> Ties:
        """Those of the inner source."""
        return self.inner.ties

    @property
    def max_n(self) -> int:
        """That of the inner source."""
        return self.inner.max_n

    def instance(self, seed: int, run: int) -> Instance:
        """Implement `Source.instance`."""
        instance = self.inner.instance(seed, run)
        n_prompts = instance.train.n_prompts
        if self.generations > n_prompts:
            raise ConfigurationError(
                f"arrivals is {self.generations}, and {self.name} has {n_prompts} prompts; give at most so many."
            )
        rng = np.random.default_rng([seed, run, _ORDER])
        order = rng.permutation(n_prompts)
        if self.order == "worst":
            order = instance.q_train.max(axis=2).mean(axis=0).argsort(kind="stable")
        parts = [rng.permutation(part) for part in np.array_split(order, self.generations)]
        sizes = tuple(len(part) for part in parts)
        return replace(instance.of_prompts(np.concatenate(parts)), generations=sizes)


def _split(recording: Recording, train: int | None, seed: int, run: int) -> tuple[IntArray, IntArray]:
    if train is None:
        return recording.split(seed, run, _SPLIT)
    order = np.random.default_rng([seed, run, _SPLIT]).permutation(recording.n_queries)
    return order[:train], order[train:]


def _instance(
    recording: Recording, values: ExactValues, stopped: StoppedValues, train: IntArray, test: IntArray
) -> Instance:
    return Instance(
        train=recording.subset(train),
        q_train=values.q(train),
        q_test=values.q(test),
        stopped=stopped,
        train_queries=train,
        test_queries=test,
    )


_SYNTHETIC: dict[str, Callable[..., Recording]] = {
    "synthetic-bernoulli": synthetic_bernoulli,
    "synthetic-categorical": synthetic_categorical,
    "synthetic-unstructured": synthetic_unstructured,
    "synthetic-factorial": synthetic_factorial,
    "synthetic-families": synthetic_families,
}
SYNTHETIC = tuple(_SYNTHETIC)


def source(
    environment: str,
    *,
    ties: Ties = "paper",
    max_n: int = MAX_N,
    prompts: int | None = None,
    queries: int | None = None,
) -> Source:
    """Return the source that a command line names.

    Args:
        environment: One of `SYNTHETIC`, a recording (`.npz`, `.parquet`), or an environment that the authors published
            (`.pkl`, `.pickle`; read without running any of its code).
        ties: How ties are credited.
        max_n: The largest scale.
        prompts: P of a synthetic environment, >= 2, of the factorial one a multiple of 9; `None`: its own.
        queries: Training queries, >= 1; the rest of a recording is held out, and of a synthetic environment 100 more or
            a quarter as many, whichever is more. `None`: its own number, split 80 to 20.

    Raises:
        ConfigurationError: The file cannot be read, a number is too small, `prompts` is given for a recording, which
            has its own, or a recording has not more than so many `queries`.
    """
    if max_n < 1:
        raise ConfigurationError(f"max_n is {max_n}; give a whole number >= 1.")
    if environment in _SYNTHETIC:
        return _synthetic(environment, ties, max_n, prompts, queries)
    path = Path(environment)
    if not path.exists():
        raise ConfigurationError(
            f"There is no environment {environment!r}: give one of {sorted(_SYNTHETIC)}, or the path of a recording."
        )
    if prompts is not None:
        raise ConfigurationError(
            f"The recording {path.name} has its own prompts; leave prompts={prompts} out, or give a synthetic "
            "environment."
        )
    recording = read_published(path) if path.suffix in {".pkl", ".pickle"} else load(path)
    if queries is not None and not 1 <= queries < recording.n_queries:
        raise ConfigurationError(
            f"queries is {queries}; {path.name} has {recording.n_queries}, and at least one must be left to hold out."
        )
    values = recording.exact(max_n, ties)
    return RecordedSource(name=path.name, recording=recording, values=values, ties=ties, max_n=max_n, train=queries)


def _synthetic(name: str, ties: Ties, max_n: int, prompts: int | None, queries: int | None) -> SyntheticSource:
    if prompts is not None and prompts < 2:
        raise ConfigurationError(f"prompts is {prompts}; give a whole number >= 2.")
    if queries is not None and queries < 1:
        raise ConfigurationError(f"queries is {queries}; give a whole number >= 1.")
    size = {} if prompts is None else {"n_prompts": prompts}
    if queries is not None:
        size["n_queries"] = queries + max(queries // 4, _LEAST_HELD_OUT)
    return SyntheticSource(name=name, make=partial(_SYNTHETIC[name], **size), ties=ties, max_n=max_n, train=queries)
