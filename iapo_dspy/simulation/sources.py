"""Where the environments of a simulation come from: one recording re-split in each run, or a new synthetic one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from iapo_dspy.bandit.aggregators import Ties
from iapo_dspy.environments.files import load
from iapo_dspy.environments.pickles import read_published
from iapo_dspy.environments.recorded import ExactValues, Recording
from iapo_dspy.environments.synthetic import MAX_N, synthetic_bernoulli, synthetic_categorical
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray

__all__ = ["Instance", "RecordedSource", "Source", "SyntheticSource", "source"]

_SPLIT, _MAKE = 0, 2  # what a seed is for; 1 is the environment's, see the runner


@dataclass(frozen=True, kw_only=True)
class Instance:
    """The environment of one run.

    Attributes:
        train: What the algorithms pull from.
        q_train: Exact Q on the training queries [C, P, N].
        q_test: Exact Q on the held-out queries [C, P, N].
    """

    train: Recording
    q_train: FloatArray
    q_test: FloatArray


class Source(Protocol):
    """Gives each run its environment; the same one for the same seed and run."""

    @property
    def name(self) -> str:
        """What to call the environment."""

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
    """Re-splits one recording in each run, 80 % of the queries for training.

    Attributes:
        name: What to call it.
        recording: The recording.
        values: Its exact values.
        ties: How ties are credited.
        max_n: The largest scale.
    """

    name: str
    recording: Recording
    values: ExactValues
    ties: Ties
    max_n: int

    def instance(self, seed: int, run: int) -> Instance:
        """Implement `Source.instance`."""
        train, test = self.recording.split(seed, run, _SPLIT)
        return Instance(train=self.recording.subset(train), q_train=self.values.q(train), q_test=self.values.q(test))


@dataclass(frozen=True, kw_only=True)
class SyntheticSource:
    """Draws a new environment in each run and splits it like a recording.

    Attributes:
        name: What to call it.
        make: Draws an environment from seeds.
        ties: How ties are credited.
        max_n: The largest scale.
    """

    name: str
    make: Callable[[int, int, int], Recording]
    ties: Ties
    max_n: int

    def instance(self, seed: int, run: int) -> Instance:
        """Implement `Source.instance`."""
        recording = self.make(seed, run, _MAKE)
        values = recording.exact(self.max_n, self.ties)
        return RecordedSource(
            name=self.name, recording=recording, values=values, ties=self.ties, max_n=self.max_n
        ).instance(seed, run)


_SYNTHETIC: dict[str, Callable[[int, int, int], Recording]] = {
    "synthetic-bernoulli": synthetic_bernoulli,
    "synthetic-categorical": synthetic_categorical,
}


def source(environment: str, *, ties: Ties = "paper", max_n: int = MAX_N) -> Source:
    """Return the source that a command line names.

    Args:
        environment: "synthetic-bernoulli", "synthetic-categorical", a recording (`.npz`, `.parquet`), or an environment
            that the authors published (`.pkl`, `.pickle`; read without running any of its code).
        ties: How ties are credited.
        max_n: The largest scale.

    Raises:
        ConfigurationError: The file cannot be read, or `max_n` is below 1.
    """
    if max_n < 1:
        raise ConfigurationError(f"max_n is {max_n}; give a whole number >= 1.")
    if environment in _SYNTHETIC:
        return SyntheticSource(name=environment, make=_SYNTHETIC[environment], ties=ties, max_n=max_n)
    path = Path(environment)
    if not path.exists():
        raise ConfigurationError(
            f"There is no environment {environment!r}: give one of {sorted(_SYNTHETIC)}, or the path of a recording."
        )
    recording = read_published(path) if path.suffix in {".pkl", ".pickle"} else load(path)
    values = recording.exact(max_n, ties)
    return RecordedSource(name=path.name, recording=recording, values=values, ties=ties, max_n=max_n)
