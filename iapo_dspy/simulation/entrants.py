"""The algorithms that a simulation compares, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from iapo_dspy.bandit.algorithms.auto import auto
from iapo_dspy.bandit.algorithms.psst import psst
from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.baselines.disjoint import disjoint
from iapo_dspy.bandit.baselines.epsilon_greedy import epsilon_greedy
from iapo_dspy.bandit.baselines.random_policy import random_policy
from iapo_dspy.bandit.baselines.softmax import softmax
from iapo_dspy.bandit.baselines.triple import triple
from iapo_dspy.bandit.baselines.ucb import ucb
from iapo_dspy.bandit.baselines.uniform import uniform
from iapo_dspy.bandit.estimators.subsets import SubsetEstimator
from iapo_dspy.bandit.outcome import Algorithm
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import StopMode, with_stops
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.simulation.reference import overspending_psst, overspending_triple, overspending_uniform
from iapo_dspy.types import FloatArray, Policy

__all__ = ["NAMES", "Entrant", "Rule", "entrants"]

Rule = Literal["bounded", "overspending"]
"""How budgets are kept: "bounded" never spends more than T; "overspending" is the rule of the authors' code."""


@dataclass(frozen=True)
class Entrant:
    """An algorithm in a simulation.

    Attributes:
        name: How it is called.
        start: Starts a run: `start(problem, budget=T, seed=s)`.
        random_scale: Whether the policy stands for one that draws N uniformly at each prediction.
    """

    name: str
    start: Callable[..., Algorithm]
    random_scale: bool = False

    def value(self, policy: Policy, q: FloatArray) -> FloatArray:
        """Return what the policy is worth in each context [C], all N drawn, given exact values q [C, P, N]."""
        prompt = np.array([arm.prompt for arm in policy.arms])
        context = np.arange(len(policy))
        if self.random_scale:
            return np.asarray(q[context, prompt].mean(axis=1))
        return np.asarray(q[context, prompt, [arm.n - 1 for arm in policy.arms]])


def _stopping(problem: Problem, *, budget: int, seed: int, mode: StopMode) -> Algorithm:
    """Run `auto` and choose when its calls stop; raises as `auto` does, before the first pull."""
    return _stopped(problem, auto(problem, budget=budget, seed=seed), mode)


def _stopped(problem: Problem, run: Algorithm, mode: StopMode) -> Algorithm:
    outcome = yield from run
    return with_stops(problem, outcome, mode=mode)


_BOUNDED: dict[str, Callable[..., Any]] = {
    "auto": auto,
    "auto+exact": partial(_stopping, mode="exact"),
    "auto+stop": partial(_stopping, mode="confidence"),
    "psst": psst,
    "psst+k1": partial(psst, screening=Screening(k=1)),
    "psst+k4": partial(psst, screening=Screening(k=4)),
    "psst+k8": partial(psst, screening=Screening(k=8)),
    "psst-subsets": partial(psst, estimator=SubsetEstimator),
    "uniform": uniform,
    "epsilon-greedy": epsilon_greedy,
    "softmax": softmax,
    "ucb": ucb,
    "triple": triple,
    "triple-random": partial(triple, scale="random"),
    "disjoint": disjoint,
    "random": random_policy,
}
_OVERSPENDING: dict[str, Callable[..., Any]] = {
    "psst": overspending_psst,
    "psst+k1": partial(overspending_psst, screening=Screening(k=1)),
    "psst+k4": partial(overspending_psst, screening=Screening(k=4)),
    "psst+k8": partial(overspending_psst, screening=Screening(k=8)),
    "uniform": overspending_uniform,
    "triple": overspending_triple,
    "triple-random": overspending_triple,
}
NAMES = tuple(_BOUNDED)


def entrants(names: Sequence[str], rule: Rule = "bounded") -> tuple[Entrant, ...]:
    """Return the named algorithms.

    Args:
        names: Some of `NAMES`.
        rule: The budget rule. "overspending" changes those algorithms whose published figures were made with it.

    Raises:
        ConfigurationError: No name, a name twice, or an unknown one.
    """
    unknown = [name for name in names if name not in _BOUNDED]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigurationError(f"algorithms {list(names)}: name each at most once, out of {', '.join(NAMES)}.")
    table = _BOUNDED if rule == "bounded" else {**_BOUNDED, **_OVERSPENDING}
    return tuple(Entrant(name, table[name], random_scale=name == "triple-random") for name in names)
