"""The algorithms that a simulation compares, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from iapo_dspy.bandit.algorithms.port import Algorithm
from iapo_dspy.bandit.named import ALGORITHMS, named
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.simulation.reference import overspending
from iapo_dspy.types import FloatArray, Policy

NAMES = tuple(ALGORITHMS)

Rule = Literal["bounded", "overspending"]
"""How budgets are kept: "bounded" never spends more than T; "overspending" is the rule of the authors' code."""


@dataclass(frozen=True)
class Entrant:
    """An algorithm in a simulation.

    Attributes:
        name: Its name in tables.
        algorithm: The algorithm.
        random_scale: Whether the policy stands for one that draws N uniformly at each prediction.
    """

    name: str
    algorithm: Algorithm
    random_scale: bool = False

    def value(self, policy: Policy, q: FloatArray) -> FloatArray:
        """Return the worth of the policy in each context [C], all N drawn, given exact values q [C, P, N]."""
        prompt = np.array([arm.prompt for arm in policy.arms])
        context = np.arange(len(policy))
        if self.random_scale:
            return np.asarray(q[context, prompt].mean(axis=1))
        return np.asarray(q[context, prompt, [arm.n - 1 for arm in policy.arms]])


def entrants(names: Sequence[str], rule: Rule = "bounded") -> tuple[Entrant, ...]:
    """Return the named algorithms.

    Args:
        names: Some of `NAMES`, or others that `bandit.named.named` knows.
        rule: The budget rule. "overspending" changes those algorithms whose published figures were made with it.

    Raises:
        ConfigurationError: No name, a name twice, or an unknown one.
    """
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"algorithms {list(names)}: name each at most once, out of {', '.join(NAMES)}.")
    chosen = [named(name) for name in names]
    if rule == "overspending":
        chosen = [overspending(algorithm) for algorithm in chosen]
    return tuple(Entrant(name, a, name == "triple-random") for name, a in zip(names, chosen, strict=True))
