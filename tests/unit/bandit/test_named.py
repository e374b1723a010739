"""Short names of algorithms: one table for the optimizer, saved programs and the simulator."""

from __future__ import annotations

import json

import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.coordinate import Coordinate
from iapo_dspy.bandit.algorithms.port import Algorithm
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.named import ALGORITHMS, Unknown, named, read_algorithm, saved_algorithm, short_name
from iapo_dspy.environments.port import drive
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from tests.support.draws import Coins, problem_of


def test_every_name_is_the_short_name_of_its_algorithm() -> None:
    assert [short_name(named(name)) for name in ALGORITHMS] == list(ALGORITHMS)
    assert named("psst+k3") == PSST(screening=Screening(k=3)) and short_name(named("psst+k3")) == "psst+k3"
    own = Auto(rounds=4)
    assert named(own) is own and "rounds=4" in short_name(own)


@pytest.mark.parametrize("given", ["magic", "psst+k0", "psst+k", None, Auto, 3])
def test_anything_else_is_refused_with_the_names(given) -> None:
    with pytest.raises(ConfigurationError, match=r"give one of auto, .*psst.*uniform"):
        named(given)


@pytest.mark.parametrize("name", [*ALGORITHMS, "psst+k3"])
def test_a_saved_name_is_read_back(name: str) -> None:
    data = json.loads(json.dumps(saved_algorithm(named(name))))
    assert data["algorithm"] == name and read_algorithm(data) == named(name)


def test_saved_screening_keeps_its_share() -> None:
    algorithm = PSST(screening=Screening(k=4, rho=0.3))
    data = saved_algorithm(algorithm)
    assert data == {"algorithm": "psst+k4", "screening": {"k": 4, "rho": 0.3}}
    assert read_algorithm(data) == algorithm and short_name(algorithm) != "psst+k4"


def test_an_algorithm_without_a_short_name_is_known_by_its_repr_and_solves_nothing_once_loaded() -> None:
    data = saved_algorithm(Auto(rounds=4))
    loaded = read_algorithm(data)
    assert loaded == Unknown(data["algorithm"]) and saved_algorithm(loaded) == data
    with pytest.raises(ConfigurationError, match=r"rounds=4.*Compile again"):
        loaded.solve(problem_of(MajorityVoteAggregator(), n_prompts=2), ())


@pytest.mark.parametrize("name", [*ALGORITHMS, "coordinate"])
def test_all_keep_the_contract_of_the_port(name: str) -> None:
    """Least budgets work, one less is refused at once, budgets hold, and rounds solve without pulls."""
    algorithm = Coordinate((2, 2)) if name == "coordinate" else named(name)
    assert isinstance(algorithm, Algorithm)
    problem = problem_of(MajorityVoteAggregator(), n_prompts=4, n_queries=6, max_n=3)
    theta = [[0.9] * 6, [0.2] * 6, [0.4] * 6, [0.3] * 6]
    least = algorithm.least(problem)
    assert drive(algorithm.start(problem, budget=least, seed=0), Coins(theta)).spent <= least
    with pytest.raises((BudgetTooSmall, ConfigurationError)):
        algorithm.start(problem, budget=least - 1, seed=0)
    outcome = drive(algorithm.start(problem, budget=600, seed=0), Coins(theta))
    assert outcome.spent <= 600 and len(outcome.policy) == 1
    if name not in ("coordinate", "random", "triple-random"):
        again = algorithm.solve(problem, outcome.observations)
        assert again.policy[0].prompt == outcome.policy[0].prompt == 0
