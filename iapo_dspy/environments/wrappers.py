"""Wrappers of environments: the trouble that there may be between an algorithm and the world, at will."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from iapo_dspy.bandit.algorithms.standing import joined
from iapo_dspy.environments.port import Environment
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import IntArray, Observations, Pulls


class _Wrapper:
    def __init__(self, inner: Environment) -> None:
        self._inner = inner
        self.n_prompts, self.n_queries = inner.n_prompts, inner.n_queries
        self.depth: int = getattr(inner, "depth", 0) + 1

    def _stream(self, seed: int, kind: int) -> np.random.Generator:
        """Return a random stream of this wrapper's own.

        Without its kind and depth it would be the stream of the environment below where both have the same seed. Then
        trouble would strike just the completions that came out a certain way.
        """
        return np.random.default_rng([seed, self.depth, kind])


class Noise(_Wrapper):
    """Adds Gaussian noise to every score: a judge or reward model that is uncertain.

    Args:
        inner: The environment.
        sd: Standard deviation of the noise, >= 0.
        seed: Seed of the noise.
    """

    def __init__(self, inner: Environment, *, sd: float, seed: int = 0) -> None:
        super().__init__(inner)
        if not sd >= 0:
            raise ConfigurationError(f"Noise: sd is {sd!r}; give a number >= 0.")
        self._sd = sd
        self._rng = self._stream(seed, 1)

    def pull(self, pulls: Pulls) -> Observations:
        """Implement `Environment.pull`."""
        seen = self._inner.pull(pulls)
        return replace(seen, score=seen.score + self._rng.normal(0.0, self._sd, size=seen.score.shape))


class Failures(_Wrapper):
    """Lets completions fail: they cost as much as others, and have neither a vote nor a score.

    Args:
        inner: The environment.
        share: Probability that a completion fails, in [0, 1].
        seed: Seed of the failures.
    """

    def __init__(self, inner: Environment, *, share: float, seed: int = 0) -> None:
        super().__init__(inner)
        if not 0 <= share <= 1:
            raise ConfigurationError(f"Failures: share is {share!r}; give a number from 0 to 1.")
        self._share = share
        self._rng = self._stream(seed, 2)

    def pull(self, pulls: Pulls) -> Observations:
        """Implement `Environment.pull`."""
        seen = self._inner.pull(pulls)
        failed = self._rng.random(len(seen.label)) < self._share
        score = np.where(failed[:, None], np.nan, seen.score)
        return replace(seen, label=np.where(failed, -1, seen.label), score=score)


class Delay(_Wrapper):
    """Waits before it answers: a server with a latency per batch and a throughput.

    Args:
        inner: The environment.
        seconds: Wait per batch of pulls, >= 0.
        per_completion: Further wait per completion in seconds, >= 0.
        sleep: Waits; a test may count instead.
    """

    def __init__(
        self,
        inner: Environment,
        *,
        seconds: float,
        per_completion: float = 0.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(inner)
        if not (seconds >= 0 and per_completion >= 0):
            raise ConfigurationError(f"Delay: seconds {seconds!r} and per_completion {per_completion!r} must be >= 0.")
        self._seconds = seconds
        self._per_completion = per_completion
        self._sleep = sleep

    def pull(self, pulls: Pulls) -> Observations:
        """Implement `Environment.pull`."""
        self._sleep(self._seconds + self._per_completion * pulls.completions)
        return self._inner.pull(pulls)


class Drift(_Wrapper):
    """Turns from one environment into another: a model or a query distribution that changes under the run.

    Each pull is answered by `later` with a probability that grows linearly from 0 to 1.

    Args:
        inner: The environment at the start.
        later: The environment in the end; as many prompts and queries, same objectives.
        over: Completions until the change is complete, >= 1.
        seed: Seed of which environment answers.
    """

    def __init__(self, inner: Environment, later: Environment, *, over: int, seed: int = 0) -> None:
        super().__init__(inner)
        if (inner.n_prompts, inner.n_queries) != (later.n_prompts, later.n_queries):
            raise ConfigurationError("Drift: both environments need the same numbers of prompts and queries.")
        if over < 1:
            raise ConfigurationError(f"Drift: over is {over!r}; give at least 1 completion.")
        self._later = later
        self._over = over
        self._drawn = 0
        self._rng = self._stream(seed, 3)

    def pull(self, pulls: Pulls) -> Observations:
        """Implement `Environment.pull`."""
        before = self._drawn + np.cumsum(pulls.size) - pulls.size
        self._drawn += pulls.completions
        changed = self._rng.random(len(pulls)) < before / self._over
        parts = [
            environment.pull(pulls.take(np.flatnonzero(mask)))
            for mask, environment in ((~changed, self._inner), (changed, self._later))
            if mask.any()
        ]
        seen = joined(parts)
        # Where pulls are missing, neither part says which: then those of one part come after those of the other.
        found = np.arange(len(seen.pulls))
        if seen.pulls.completions == pulls.completions:
            found = np.concatenate([np.flatnonzero(~changed), np.flatnonzero(changed)])
        order = np.argsort(found)
        completions = np.argsort(np.repeat(found, seen.pulls.size), kind="stable")
        return Observations(
            pulls=seen.pulls.take(order),
            label=seen.label[completions],
            score=seen.score[completions],
            cost=seen.cost[completions],
            overhead=seen.overhead[order],
            used=None if seen.used is None else seen.used[order],
            once=None if seen.once is None else seen.once[order],
            unit=seen.unit,
            exhausted=any(s.exhausted for s in parts),
            logprob=None if seen.logprob is None else seen.logprob[completions],
        )


class Arrivals(_Wrapper):
    """Lets prompts join while a run goes on, generation after generation: the outermost wrapper.

    Prompts keep their indices, and generations follow each other: the first one has the prompts from 0 on. Put prompts
    in another order with `Recording.of_prompts` or `Some`.

    Args:
        inner: The environment with all prompts.
        generations: Prompts of each generation [G], >= 1, P in all.
        at: Completions after which each generation is there [G], ascending from 0. A batch of pulls that reaches the
            number brings the generation with its observations.

    Attributes:
        present: How many prompts are there by now; None once all are. `Problem.present` is the value at the start.

    Raises:
        ConfigurationError: Generations or numbers that do not fit.
    """

    def __init__(self, inner: Environment, *, generations: Sequence[int], at: Sequence[int]) -> None:
        super().__init__(inner)
        sizes, at = tuple(generations), tuple(at)
        if not sizes or min(sizes) < 1 or sum(sizes) != inner.n_prompts:
            raise ConfigurationError(
                f"Arrivals: generations is {list(sizes)}; give numbers >= 1 whose sum is {inner.n_prompts}, the number "
                "of prompts."
            )
        if len(at) != len(sizes) or at[0] != 0 or sorted(at) != list(at):
            raise ConfigurationError(
                f"Arrivals: at is {list(at)}; give {len(sizes)} numbers of completions, one for each generation, "
                "ascending from 0."
            )
        self._ends, self._at = np.cumsum(sizes), np.array(at)
        self._drawn = 0

    @property
    def present(self) -> int | None:
        """How many prompts are there by now; None once all are."""
        present = int(self._ends[np.searchsorted(self._at, self._drawn, side="right") - 1])
        return present if present < self.n_prompts else None

    def pull(self, pulls: Pulls) -> Observations:
        """Implement `Environment.pull`.

        Raises:
            ConfigurationError: A prompt is not there yet; nothing was drawn.
        """
        present = self.n_prompts if self.present is None else self.present
        early = pulls.prompt[pulls.prompt >= present]
        if len(early):
            needed = self._at[np.searchsorted(self._ends, early.min(), side="right")]
            raise ConfigurationError(
                f"Prompt {early.min()} is not there yet: it joins once {needed} completions were drawn, and there are "
                f"{self._drawn}. Pull prompts below {present}, and more once `Observations.present` says so."
            )
        seen = self._inner.pull(pulls)
        self._drawn += seen.pulls.completions
        return replace(seen, present=self.present)


class Some(_Wrapper):
    """Some of the prompts of an environment, under indices of their own.

    Args:
        inner: The environment.
        prompts: Indices of its prompts, in this order [P].
    """

    def __init__(self, inner: Environment, *, prompts: IntArray) -> None:
        super().__init__(inner)
        self._prompts = np.asarray(prompts, dtype=np.int64)
        self._order = np.argsort(self._prompts)
        self.n_prompts = len(self._prompts)

    def pull(self, pulls: Pulls) -> Observations:
        """Implement `Environment.pull`."""
        seen = self._inner.pull(replace(pulls, prompt=self._prompts[pulls.prompt]))
        mine = self._order[np.searchsorted(self._prompts, seen.pulls.prompt, sorter=self._order)]
        return replace(seen, pulls=replace(seen.pulls, prompt=mine))
