"""Short names of the algorithms that come with the package: "auto", "psst+k4", "uniform", ...

`IAPO(search=Search(algorithm=...))`, saved programs and the simulator share this one table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.coordinate import Coordinate
from iapo_dspy.bandit.algorithms.generations import Generations
from iapo_dspy.bandit.algorithms.port import Algorithm
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.baselines.disjoint import Disjoint
from iapo_dspy.bandit.baselines.random_policy import RandomPolicy
from iapo_dspy.bandit.baselines.sequential import UCB, EpsilonGreedy, Softmax
from iapo_dspy.bandit.baselines.triple import Triple
from iapo_dspy.bandit.baselines.uniform import Uniform
from iapo_dspy.bandit.compound.chosen import with_compounds
from iapo_dspy.bandit.estimators.subsets import SubsetEstimator
from iapo_dspy.bandit.outcome import Outcome, Run
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import StopMode, with_stops
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Observations


@dataclass(frozen=True)
class Stopping:
    """An algorithm that also chooses when calls of its arms stop; see `with_stops`.

    Args:
        algorithm: Chooses prompt and N.
        mode: How far stopping goes.
    """

    algorithm: Algorithm
    mode: StopMode

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`."""
        return self.algorithm.least(problem)

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        """Implement `Algorithm.start`."""
        return self._stopped(problem, self.algorithm.start(problem, budget=budget, seed=seed))

    def solve(self, problem: Problem, rounds: Sequence[Observations]) -> Outcome:
        """Implement `Algorithm.solve`."""
        return with_stops(problem, self.algorithm.solve(problem, rounds), mode=self.mode)

    def _stopped(self, problem: Problem, run: Run) -> Run:
        outcome = yield from run
        return with_stops(problem, outcome, mode=self.mode)


@dataclass(frozen=True)
class Compounding:
    """An algorithm that also offers every context cascades and mixtures of its prompts; see `with_compounds`.

    Args:
        algorithm: Chooses arms of one prompt, with their stops.
    """

    algorithm: Stopping

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`."""
        return self.algorithm.least(problem)

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        """Implement `Algorithm.start`."""
        return self._compounded(problem, self.algorithm.start(problem, budget=budget, seed=seed))

    def solve(self, problem: Problem, rounds: Sequence[Observations]) -> Outcome:
        """Implement `Algorithm.solve`."""
        return with_compounds(problem, self.algorithm.solve(problem, rounds))

    def _compounded(self, problem: Problem, run: Run) -> Run:
        outcome = yield from run
        return with_compounds(problem, outcome)


ALGORITHMS: dict[str, Algorithm] = {
    "auto": Auto(),
    "auto+exact": Stopping(Auto(), "exact"),
    "auto+stop": Stopping(Auto(), "confidence"),
    "auto+compound": Compounding(Stopping(Auto(), "confidence")),
    "psst": PSST(),
    "psst+k1": PSST(screening=Screening(k=1)),
    "psst+k4": PSST(screening=Screening(k=4)),
    "psst+k8": PSST(screening=Screening(k=8)),
    "psst-subsets": PSST(estimator=SubsetEstimator),
    "uniform": Uniform(),
    "epsilon-greedy": EpsilonGreedy(),
    "softmax": Softmax(),
    "ucb": UCB(),
    "triple": Triple(),
    "triple-random": Triple(scale="random"),
    "disjoint": Disjoint(),
    "random": RandomPolicy(),
}


def named(algorithm: str | Algorithm) -> Algorithm:
    """Return the algorithm of a short name: one of `ALGORITHMS`, or "psst+k2" with any k. An object stays as it is.

    Raises:
        ConfigurationError: There is no such algorithm.
    """
    if isinstance(algorithm, str):
        screened = re.fullmatch(r"psst\+k([1-9]\d*)", algorithm)
        if screened:
            return PSST(screening=Screening(k=int(screened[1])))
        if algorithm in ALGORITHMS:
            return ALGORITHMS[algorithm]
    elif isinstance(algorithm, Algorithm) and not isinstance(algorithm, type):
        return algorithm
    raise ConfigurationError(
        f"algorithm={algorithm!r}: give one of {', '.join(ALGORITHMS)} (psst+k4 and the like have Top-K screening), "
        "or an object such as Auto(rounds=4)."
    )


def has_intervals(algorithm: Algorithm | Generations) -> bool:
    """Return whether an algorithm's estimates have standard errors, so that its chosen arms are measured once more."""
    if isinstance(algorithm, (Stopping, Compounding)):
        return has_intervals(algorithm.algorithm)
    return isinstance(algorithm, (Auto, Coordinate, Generations))


def short_name(algorithm: Algorithm) -> str:
    """Return the short name of an algorithm; for one without a short name, its `repr`."""
    if isinstance(algorithm, Unknown):
        return algorithm.name
    for name, known in ALGORITHMS.items():
        if known == algorithm:
            return name
    if isinstance(algorithm, PSST) and algorithm.screening is not None:
        k = algorithm.screening.k
        if algorithm == PSST(screening=Screening(k=k)):
            return f"psst+k{k}"
    return repr(algorithm)


def saved_algorithm(algorithm: Algorithm) -> dict[str, Any]:
    """Return the JSON data by which a saved program knows its algorithm."""
    screening = algorithm.screening if isinstance(algorithm, PSST) else None
    settings = {"k": screening.k, "rho": screening.rho} if screening else None
    if screening and algorithm == PSST(screening=screening):
        return {"algorithm": f"psst+k{screening.k}", "screening": settings}
    return {"algorithm": short_name(algorithm), "screening": settings}


def read_algorithm(data: Mapping[str, Any]) -> Algorithm:
    """Read what `saved_algorithm` wrote."""
    name = data["algorithm"]
    if re.fullmatch(r"psst\+k\d+", name):
        return PSST(screening=Screening(**data["screening"]))
    return ALGORITHMS.get(name) or Unknown(name)


@dataclass(frozen=True)
class Unknown:
    """Stands for the algorithm of a saved program that has no short name: it cannot choose anything.

    Args:
        name: As saved.
    """

    name: str

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        """Raise `ConfigurationError`: only the preferences that were compiled have arms."""
        raise ConfigurationError(
            f"This program was compiled with the algorithm {self.name}, which was saved by its name only, so that only "
            "the preferences that it was compiled with can be served. Compile again with this preference."
        )

    least = start = solve = _refuse
