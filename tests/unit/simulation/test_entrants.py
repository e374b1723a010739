"""Entrants of simulations are found by name, and value policies."""

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.estimators.subsets import SubsetEstimator
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.simulation.entrants import NAMES, Entrant, entrants
from iapo_dspy.simulation.reference import OverspendingPSST
from iapo_dspy.types import Arm, Policy


def test_entrants_by_name():
    assert [e.name for e in entrants(NAMES)] == list(NAMES)
    assert entrants(["psst"])[0].algorithm == PSST()
    assert entrants(["psst", "psst-subsets"], "overspending")[0].algorithm == OverspendingPSST()
    assert entrants(["psst-subsets"], "overspending")[0].algorithm == PSST(estimator=SubsetEstimator)
    for names in ([], ["psst", "psst"], ["magic"]):
        with pytest.raises(ConfigurationError):
            entrants(names)


def test_the_value_of_a_policy():
    q = np.arange(12.0).reshape(2, 2, 3)
    policy = Policy((Arm(1, 3), Arm(0, 2)))
    assert Entrant("a", PSST()).value(policy, q).tolist() == [5.0, 7.0]
    assert Entrant("a", PSST(), random_scale=True).value(policy, q).tolist() == [4.0, 7.0]  # means over scales
