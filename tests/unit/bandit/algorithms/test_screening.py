"""The budget of screening."""

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Contexts
from tests.support.draws import small_problem


def test_screening_budget_and_least():
    screening = Screening(k=4)
    assert screening.budget(1000) == 200
    setting = small_problem(n_prompts=25, max_n=32, contexts=Contexts(np.ones((3, 1)), np.zeros(3)))
    # 25 looks ask for 125 completions; up to 12 kept prompts ask for 384 of the other 80 %.
    assert screening.least(setting) == 479
    assert [t - screening.budget(t) for t in (478, 479)] == [383, 384]
    assert Screening(k=1, rho=0.01).least(small_problem()) == 200  # two looks at one percent


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": 1.5}, {"k": 2, "rho": 0.0}, {"k": 2, "rho": 1.0}])
def test_bad_screening_is_refused(settings):
    with pytest.raises(ConfigurationError, match="Screening"):
        Screening(**settings)
