"""The problem that a bandit algorithm is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.types import Contexts, IntArray, Observations


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A contextual best-arm problem: which (prompt, scale) serves each context best.

    Attributes:
        n_prompts: P >= 1. Where prompts join while a run goes on, all that may come.
        n_queries: X >= 1, the queries that pulls draw from.
        max_n: The largest scale N_max >= 1.
        contexts: The contexts to serve.
        aggregator: How n completions become one answer (eq. 1, eq. 2).
        cost_scale: Utility of one raw cost unit, >= 0. `None`: learnt once from the run and then frozen
            (`costs.scale.CostScale`).
        parts: The parts that each prompt is made of [P, F], such as its instruction, its decoding and its LM: prompts
            with one label >= 0 in a column have that part in common. `None`: prompts have no parts in common.
        present: How many prompts can be drawn at the start, prompts 0 to present - 1, in 1 .. P; more join as
            `Observations.present` says. `None`, as P becomes: all of them.
        parent: The prompt that each was written from, an earlier one [P]; -1 for a prompt that was given. `None`: all
            were given.
        known: Completions that earlier runs have paid for. They count against the budget, and an algorithm that can
            (`auto`) starts from them; others draw as without them. `None`: there are none.

    Raises:
        ConfigurationError: A value outside its range, or an aggregator that does not fit the objectives.
    """

    n_prompts: int
    n_queries: int
    max_n: int
    contexts: Contexts
    aggregator: Aggregator
    cost_scale: float | None = None
    parts: IntArray | None = None
    present: int | None = None
    parent: IntArray | None = None
    known: Observations | None = None

    def __post_init__(self) -> None:
        for name in ("n_prompts", "n_queries", "max_n"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ConfigurationError(f"Problem: {name} is {value!r}; it must be a whole number >= 1.")
            object.__setattr__(self, name, int(value))
        if self.cost_scale is not None and not (np.isfinite(self.cost_scale) and self.cost_scale >= 0):
            raise ConfigurationError(
                f"Problem: cost_scale is {self.cost_scale!r}; it must be finite and >= 0, or None."
            )
        if self.present is not None and not 1 <= self.present <= self.n_prompts:
            raise ConfigurationError(f"Problem: present is {self.present!r}; it must be in 1 .. {self.n_prompts}.")
        if self.present == self.n_prompts:
            object.__setattr__(self, "present", None)
        if self.parts is not None:
            object.__setattr__(self, "parts", checked_parts(self.parts, self.n_prompts))
        if self.parent is not None:
            parent = np.asarray(self.parent, dtype=np.int64)
            if parent.shape != (self.n_prompts,) or (parent < -1).any() or (parent >= np.arange(self.n_prompts)).any():
                raise ConfigurationError(
                    f"Problem: parent is {parent.tolist()}; give each of {self.n_prompts} prompts an earlier one or -1."
                )
            object.__setattr__(self, "parent", parent)
        if self.known is not None and not len(self.known.pulls):
            object.__setattr__(self, "known", None)
        if self.known is not None:
            pulls = self.known.pulls
            if pulls.prompt.max() >= self.n_prompts or pulls.query.max() >= self.n_queries:
                raise ConfigurationError(
                    f"Problem: known has completions of prompt {pulls.prompt.max()} and query {pulls.query.max()}, but "
                    f"there are {self.n_prompts} prompts and {self.n_queries} queries."
                )
        self.aggregator.check(self.contexts.n_objectives)

    @property
    def n_known(self) -> int:
        """Completions in `known`."""
        return self.known.pulls.completions if self.known is not None else 0

    @property
    def n_contexts(self) -> int:
        """C."""
        return len(self.contexts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, P, N): the shape of Q."""
        return self.n_contexts, self.n_prompts, self.max_n


def checked_parts(parts: IntArray, n_prompts: int) -> IntArray:
    """Return labels of parts [P, F] as whole numbers.

    Raises:
        ConfigurationError: They have another shape, or a label is not a whole number >= 0.
    """
    given = np.asarray(parts)
    if given.dtype.kind not in "iu" or given.ndim != 2 or len(given) != n_prompts or not given.size or given.min() < 0:
        raise ConfigurationError(
            f"parts must be whole numbers >= 0 [P={n_prompts}, F >= 1], got {given.dtype} of shape {given.shape}."
        )
    return given.astype(np.int64)


def check_all_present(problem: Problem, what: str) -> None:
    """Refuse a problem whose prompts join while the run goes on, for an algorithm that draws all of them at once.

    Raises:
        ConfigurationError: Some prompts are not there at the start.
    """
    if problem.present is not None:
        raise ConfigurationError(
            f"{what} needs all prompts at the start, and {problem.n_prompts - problem.present} of {problem.n_prompts} "
            "join later. Give all of them at once, or use an algorithm that takes newcomers, such as 'auto'."
        )


def check_budget(budget: int, seed: int, *, least: int, what: str) -> None:
    """Refuse a budget or a seed that a run cannot use, before anything is spent.

    Args:
        budget: Completions T.
        seed: Root of every random stream of the run, a whole number >= 0.
        least: The smallest T that the algorithm can work with.
        what: The algorithm, for the message.

    Raises:
        BudgetTooSmall: `budget < least`.
        ConfigurationError: The budget or the seed is not a whole number, or the seed is negative.
    """
    for name, value in (("budget", budget), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ConfigurationError(f"{name} is {value!r}; give a whole number.")
    if seed < 0:
        raise ConfigurationError(f"seed is {seed}; give a whole number >= 0.")
    if budget < least:
        raise BudgetTooSmall(
            f"A budget of {budget} completions is too small: {what} needs at least {least}. "
            "Raise the budget, or give fewer candidates or a smaller max_n.",
            given=int(budget),
            least=int(least),
        )
