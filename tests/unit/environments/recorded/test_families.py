"""The environment with two families of prompts follows the law that its module states."""

import numpy as np
import pytest

from iapo_dspy.environments.recorded.families import synthetic_families
from iapo_dspy.errors import ConfigurationError


def kinds(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Good, deceptive and plain prompts: deceptive cells take two values, and plain ones vary most among the others."""
    deceptive = np.array([len(set(row)) == 2 for row in theta])
    logit = np.log(theta / (1 - theta))
    plain = ~deceptive & (logit.std(axis=1) > 0.75)
    return np.flatnonzero(~deceptive & ~plain), np.flatnonzero(deceptive), np.flatnonzero(plain)


@pytest.mark.parametrize("seed", range(3))
def test_two_families_find_different_queries_hard(seed):
    recording = synthetic_families(seed, n_queries=4_000)
    theta = recording.probs[:, :, 0]
    good, deceptive, plain = kinds(theta)
    assert recording.parts is None and (len(good), len(deceptive), len(plain)) == (6, 3, 23)
    logit = np.log(theta / (1 - theta))
    one = np.corrcoef(logit[plain])
    family = one[0] > 0.75
    assert family.sum() == 12 or family.sum() == 11  # they take turns
    pairs = ~np.eye(23, dtype=bool)
    same = family[:, None] == family
    assert one[same & pairs].mean() == pytest.approx(0.87, abs=0.03) and one[same & pairs].min() > 0.75
    assert one[~same].mean() == pytest.approx(0.53, abs=0.07)
    # Two axes and noise: behind the second eigenvalue there is the noise's variance, 0.4^2, and nothing else.
    spectrum = np.sort(np.linalg.eigvalsh(np.cov(logit[plain])))[::-1]
    assert spectrum[1] > 20 * spectrum[2] and spectrum[2:].mean() == pytest.approx(0.16, abs=0.01)
    axes = np.stack([logit[plain][family].mean(axis=0), logit[plain][~family].mean(axis=0)])
    likeness = np.array([[np.corrcoef(logit[p], axis)[0, 1] for axis in axes] for p in good])
    assert sorted((likeness[:, 0] > likeness[:, 1]).tolist()) == [False] * 3 + [True] * 3
    right = (theta[deceptive] > 0.5).astype(float)
    assert set(np.unique(theta[deceptive])) == {0.22, 0.96}
    assert ((right.mean(axis=1) >= 0.6) & (right.mean(axis=1) <= 0.66)).all()
    nearer = [np.corrcoef(row, axes[0])[0, 1] > np.corrcoef(row, axes[1])[0, 1] for row in right]
    assert sum(nearer) in (1, 2)  # deceptive prompts of both families
    # What is left of a prompt's logits beside both axes is its own noise.
    centred = logit[plain] - logit[plain].mean(axis=1, keepdims=True)
    basis = np.vstack([np.linalg.svd(centred, full_matrices=False)[2][:2], np.ones(4_000)])
    left = logit[good].T - basis.T @ np.linalg.lstsq(basis.T, logit[good].T, rcond=None)[0]
    assert left.std(axis=0) == pytest.approx(np.full(6, 0.15), abs=0.02)
    assert (theta[good].mean(axis=1) > 0.56).all() and (theta[good].mean(axis=1) < 0.66).all()
    assert theta[plain].mean(axis=1).max() < 0.51


@pytest.mark.slow
def test_good_prompts_of_families_scale_and_the_best_single_shots_do_not():
    for seed in range(4):
        recording = synthetic_families(seed)
        good, deceptive, _ = kinds(recording.probs[:, :, 0])
        q = recording.exact(32).q()[0]
        assert set(np.argsort(q[:, 0])[-3:]) == set(deceptive)
        assert q.max(axis=1).argmax() in good and (q[good, 31] > q[good, 0] + 0.1).all()
        assert q.max() - q[deceptive].max() > 0.08
    assert synthetic_families(0, n_prompts=2, n_queries=5).probs.shape == (2, 5, 2)
    with pytest.raises(ConfigurationError, match="at least 2"):
        synthetic_families(0, n_prompts=1)
