"""Synthetic environments have the sizes and the traps that they are made for."""

import numpy as np
import pytest

from iapo_dspy.environments.recorded.synthetic import (
    MAX_N,
    synthetic_bernoulli,
    synthetic_categorical,
    synthetic_unstructured,
)
from iapo_dspy.errors import ConfigurationError


def test_synthetic_environments_have_the_sizes_of_table_1():
    vote, best = synthetic_bernoulli(0), synthetic_categorical(0)
    assert vote.probs.shape == (32, 520, 2) and len(vote.contexts) == 3 and MAX_N == 32
    assert best.outcomes.shape == (32, 512, 25, 2) and len(best.contexts) == 27
    assert best.outcomes.min() == 0.0 and best.outcomes.max() == 4.0
    assert (synthetic_bernoulli(0).probs == vote.probs).all() and (synthetic_bernoulli(1).probs != vote.probs).any()
    assert synthetic_bernoulli(0, n_prompts=2, n_queries=7).probs.shape == (2, 7, 2)  # a steady one, a deceptive one
    with pytest.raises(ConfigurationError, match="at least 2"):
        synthetic_bernoulli(0, n_prompts=1)


@pytest.mark.parametrize("make", [synthetic_bernoulli, synthetic_categorical])
def test_synthetic_environments_hold_deceptive_prompts(make):
    for seed in range(3):
        q = make(seed).exact(32).q()
        for c in np.flatnonzero(make(seed).contexts.cost == 0.0):
            single = q[c, :, 0].argmax()
            assert q[c, single].max() < q[c].max() - 0.1  # the best single shot does not scale
            assert (np.sort(q[c, :, 0])[-3:] > np.sort(q[c, :, 0])[-4] + 0.02).all()  # three stand out


@pytest.mark.slow
def test_the_unstructured_environment_shares_nothing_and_has_something_to_choose():
    gained, regret = [], []
    for seed in range(8):
        recording = synthetic_unstructured(seed)
        theta, q = recording.probs[:, :, 0], recording.exact(32).q()[0]
        between = np.asarray(np.corrcoef(theta))[np.triu_indices(32, 1)]
        assert abs(between.mean()) < 0.01 and between.std() < 1.5 / np.sqrt(520)  # as of independent rows
        assert ((theta < 0.1) | (theta > 0.9)).mean() > 0.2 + 1.5 * ((theta > 0.4) & (theta < 0.6)).mean()  # U-shaped
        single = q[:, 0].argmax()
        gained.append(q.max(axis=1) - q[:, 0])
        regret.append(q.max() - q[single].max())
    assert np.max(gained) > 0.04 and np.mean(regret) > 0.005  # votes help some, and the best single shot is a trap
    with pytest.raises(ConfigurationError, match="at least 2"):
        synthetic_unstructured(0, n_prompts=1)
