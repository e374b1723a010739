"""The factorial environment follows the law that its module states."""

import numpy as np
import pytest

from iapo_dspy.environments.recorded.factorial import TEMPERATURES, synthetic_factorial
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.errors import ConfigurationError


def parts_of(recording: VotingRecording) -> np.ndarray:
    assert recording.parts is not None
    return recording.parts


def logits(recording: VotingRecording) -> np.ndarray:
    """m_p - 0.8 d_x + noise [P, X]: the log-odds of a right answer, times the temperature."""
    right = recording.probs[:, :, 0]
    return np.log(right / (1 - right)) * np.array(TEMPERATURES)[parts_of(recording)[:, 1], None]


def test_every_prompt_is_one_combination_of_parts():
    recording = synthetic_factorial(0)
    assert recording.probs.shape == (36, 520, 5) and len(recording.contexts) == 3
    assert sorted(map(tuple, parts_of(recording))) == [(i, j, m) for i in range(4) for j in range(3) for m in range(3)]
    np.testing.assert_array_equal(recording.problem(8).parts, recording.parts)
    np.testing.assert_array_equal(recording.subset(np.arange(9)).parts, recording.parts)
    assert synthetic_factorial(0, n_prompts=18, n_queries=7).probs.shape == (18, 7, 5)
    assert set(parts_of(synthetic_factorial(0, n_prompts=9, n_queries=7))[:, 0]) == {0}
    for wrong in (2, 10, 0, 35):
        with pytest.raises(ConfigurationError, match="multiple of 9"):
            synthetic_factorial(0, n_prompts=wrong)


def test_effects_add_up_and_relatives_find_the_same_queries_hard():
    effects, rest, difficulty, alike = [], [], [], []
    for seed in range(20):
        recording = synthetic_factorial(seed)
        z, parts = logits(recording), parts_of(recording)
        design = np.concatenate([parts[:, [f]] == np.arange(k) for f, k in enumerate((4, 3, 3))], axis=1).astype(float)
        level = z.mean(axis=1)
        found = np.linalg.lstsq(design, level, rcond=None)[0]
        rest.append((level - design @ found).std() * np.sqrt(36 / 28))  # 36 means, 8 parameters
        groups = np.split(found, [4, 7])
        effects.append(np.concatenate([np.sort(g - g.mean()) if f == 0 else g - g[-1] for f, g in enumerate(groups)]))
        difficulty.append(z.mean(axis=0).std())
        for i, m in ((0, 0), (0, 1), (1, 0)):  # an instruction and an LM in common; only an instruction; only an LM
            one = z[(parts == (2, 0, 2)).all(axis=1)][0]
            alike.append((one - z[(parts == (2 if i == 0 else 3, 1, 2 if m == 0 else 1)).all(axis=1)][0]).var())
    np.testing.assert_allclose(
        np.mean(effects, axis=0), [-0.35, -0.117, 0.117, 0.35, 0.3, 0.15, 0, -1.2, -0.5, 0], atol=0.06
    )
    assert np.mean(rest) == pytest.approx(0.1, abs=0.01)
    assert np.mean(difficulty) == pytest.approx(np.sqrt(0.64 + 0.16 / 3 + 0.09 / 4), abs=0.02)
    own = 2 * 0.04
    np.testing.assert_allclose(
        np.reshape(alike, (-1, 3)).mean(axis=0), [own, own + 2 * 0.16, own + 2 * 0.09], rtol=0.05
    )


def test_all_prompts_have_the_same_popular_wrong_answers_and_cold_ones_more_so():
    recording = synthetic_factorial(3)
    temperature = np.array(TEMPERATURES)[parts_of(recording)[:, 1]]
    wrong = recording.probs[:, :, 1:] / recording.probs[:, :, 1:].sum(axis=2, keepdims=True)
    shares = np.log(wrong[:, :, 1:] / wrong[:, :, :1])[:, :20] * temperature[:, None, None]
    np.testing.assert_allclose(shares, np.broadcast_to(shares[0], shares.shape), atol=1e-6)
    largest = [wrong[temperature == t].max(axis=2).mean() for t in TEMPERATURES]
    assert largest[0] > 0.75 > largest[1] + 0.1 > largest[2] + 0.2
    extreme = [((p := recording.probs[temperature == t, :, 0]) * (1 - p) < 0.09).mean() for t in TEMPERATURES]
    assert extreme[0] > 0.65 > 0.3 > extreme[1] > extreme[2] and extreme[2] < 0.05


@pytest.mark.slow
def test_the_best_single_shot_is_cold_and_the_best_vote_is_hot_on_the_best_lm():
    lost = []
    for seed in range(4):
        recording = synthetic_factorial(seed, n_queries=200)
        q, parts, level = recording.exact(32).q(), parts_of(recording), logits(recording).mean(axis=1)
        single, best = q[0, :, 0].argmax(), q[0, :, 31].argmax()
        assert tuple(parts[single, 1:]) == (0, 2) and tuple(parts[best, 1:]) == (2, 2)
        hot = (parts[:, 1] == 2) & (parts[:, 2] == 2)
        assert level[best] > level[hot].max() - 0.05  # the best instruction's, or one that is as good
        cold = parts[:, 1] == 0
        assert (q[0, cold, 31] - q[0, cold, 0]).max() < 0.045
        lost.append(q[0].max() - q[0, single].max())
        for one in range(4):  # an instruction's length is the same for all LMs: 1 : 5 : 30
            mine = [set(recording.cost[(parts[:, 0] == one) & (parts[:, 2] == m)]) for m in range(3)]
            assert all(len(cost) == 1 for cost in mine)
            low, middle, high = (cost.pop() for cost in mine)
            assert middle / low == pytest.approx(5) and high / low == pytest.approx(30) and 0.7 <= low / 4e-4 <= 1.4
        assert parts[q[2].max(axis=1).argmax(), 2] < 2 or q[2].argmax() % 32 < 16  # a dear LM is not asked 32 times
    assert min(lost) > 0.03 and np.mean(lost) > 0.08
