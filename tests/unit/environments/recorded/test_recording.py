"""Recorded and synthetic environments, their files, the reader of published pickles, the recorder and the wrappers."""

from typing import Any

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.environments.port import Environment, drive
from iapo_dspy.environments.recorded.files import load, save
from iapo_dspy.environments.recorded.recorder import record
from iapo_dspy.environments.recorded.recording import BestOfRecording, VotingRecording
from iapo_dspy.environments.recorded.synthetic import (
    MAX_N,
    synthetic_bernoulli,
    synthetic_categorical,
    synthetic_unstructured,
)
from iapo_dspy.environments.wrappers import Delay, Drift, Failures, Noise
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.types import Contexts, Observations, Pulls

RNG = np.random.default_rng(0)


def voting(total=1.0, **changes):
    settings = {
        "probs": np.random.default_rng(1).dirichlet(np.ones(4), size=(3, 10)) * total,
        "answers": np.arange(10) % 4,
        "cost": np.array([0.01, 0.02, 0.03]),
        "cost_weights": np.array([0.0, 1.0]),
    }
    return VotingRecording(**(settings | changes))


def best_of(total=1.0, **changes):
    settings = {
        "outcomes": np.random.default_rng(2).random((3, 10, 5, 2)),
        "probs": np.random.default_rng(3).dirichlet(np.ones(5), size=(3, 10)) * total,
        "cost": np.array([0.01, 0.02, 0.03]),
        "weights": np.array([[0.3, 0.7, 0.0], [0.3, 0.7, 1.0], [0.9, 0.1, 0.2]]),
    }
    return BestOfRecording(**(settings | changes))


def everywhere(recording, size):
    """One pull of `size` for each (prompt, query)."""
    p, x = recording.n_prompts, recording.n_queries
    return Pulls(np.repeat(np.arange(p), x), np.tile(np.arange(x), p), np.full(p * x, size))


@pytest.mark.parametrize("make", [voting, best_of])
@pytest.mark.parametrize("total", [1.0, 0.8])
def test_sampling_follows_the_exact_law(make, total):
    recording = make(total)
    environment = recording.environment(5)
    assert isinstance(environment, Environment)
    seen = environment.pull(everywhere(recording, 6_000))
    problem = recording.problem(6)
    exact = recording.exact(6).q()
    assert seen.failed.mean() == pytest.approx(1 - total, abs=0.01)
    assert (seen.label[seen.failed] == (-1 if make is voting else 0)).all()
    label, score = seen.label.reshape(30, -1), seen.score.reshape(30, 6_000, -1)
    for n in (1, 2, 6):
        reward = problem.aggregator.reward(
            label.reshape(-1, n), score.reshape(-1, n, score.shape[2]), problem.contexts.weights
        )
        by_prompt = reward.reshape(len(exact), 3, -1).mean(axis=2)
        q = by_prompt - recording.contexts.cost[:, None] * n * recording.cost
        np.testing.assert_allclose(q, exact[:, :, n - 1], atol=0.015)
    np.testing.assert_array_equal(seen.cost, np.repeat(recording.cost, 60_000))


def test_outcomes_without_probability_are_never_drawn():
    probs = np.zeros((1, 2, 4))
    probs[0, 0] = [0.0, 0.5, 0.0, 0.5]
    probs[0, 1] = [0.0, 0.0, 1.0, 0.0]
    recording = voting(probs=probs, answers=np.array([1, 2]), cost=np.array([0.0]))
    label = recording.environment(0).pull(everywhere(recording, 5_000)).label.reshape(2, -1)
    assert set(label[0]) == {1, 3} and set(label[1]) == {2}


def test_environments_of_one_seed_are_alike():
    recording = voting()
    pulls = everywhere(recording, 3)
    a, b, c = (recording.environment(*seed).pull(pulls) for seed in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(a.label, b.label)
    assert (a.label != c.label).any()


@pytest.mark.parametrize("make", [voting, best_of])
def test_splits_and_subsets(make):
    recording = make()
    train, test = recording.split(0, 1)
    assert len(train) == 8 and sorted([*train, *test]) == list(range(10))
    assert (recording.split(0, 1)[0] == train).all() and (recording.split(0, 2)[0] != train).any()
    values = recording.exact(5)
    np.testing.assert_allclose(recording.subset(test).exact(5).q(), values.q(test), atol=1e-12)
    np.testing.assert_allclose(values.q(), 0.8 * values.q(train) + 0.2 * values.q(test), atol=1e-12)
    with pytest.raises(ConfigurationError, match="split"):
        recording.split(0, train=1.0)
    with pytest.raises(ConfigurationError, match="split"):
        recording.subset(train[:1]).split(0)


def test_graded_credit_is_sampled_and_valued():
    credit = np.random.default_rng(8).random((10, 4))
    recording = voting(credit=credit)
    seen = recording.environment(0).pull(everywhere(recording, 50))
    query = np.tile(np.repeat(np.arange(10), 50), 3)
    np.testing.assert_array_equal(seen.score[:, 0], credit[query, seen.label])
    expected = (recording.probs * credit).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(recording.exact(1).q()[0, :, 0], expected)
    np.testing.assert_array_equal(recording.subset(np.array([3])).scores, credit[[3]])


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (voting, {"probs": np.ones((3, 10, 4))}),
        (voting, {"probs": -np.ones((3, 10, 4))}),
        (voting, {"probs": np.ones((3, 10))}),
        (voting, {"answers": np.full(10, 4)}),
        (voting, {"answers": np.zeros(9, dtype=int)}),
        (voting, {"cost": np.array([0.1])}),
        (voting, {"cost": -np.ones(3)}),
        (voting, {"cost_weights": np.array([-1.0])}),
        (voting, {"credit": np.ones((10, 3))}),
        (best_of, {"outcomes": np.ones((3, 10, 5))}),
        (best_of, {"outcomes": np.ones((3, 9, 5, 2))}),
        (best_of, {"outcomes": np.full((3, 10, 5, 2), np.nan)}),
        (best_of, {"weights": np.ones((2, 2))}),
    ],
)
def test_bad_recordings_are_refused(make, changes):
    with pytest.raises(ConfigurationError):
        make(**changes)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
@pytest.mark.parametrize("recording", [voting(), voting(0.7, credit=RNG.random((10, 4))), best_of(0.9)])
def test_files_keep_everything(tmp_path, suffix, recording):
    path = tmp_path / f"recording.{suffix}"
    save(recording, path)
    found = load(path)
    assert type(found) is type(recording)
    np.testing.assert_array_equal(found.probs, recording.probs)
    np.testing.assert_array_equal(found.exact(4).q(), recording.exact(4).q())
    pulls = everywhere(recording, 2)
    np.testing.assert_array_equal(found.environment(3).pull(pulls).score, recording.environment(3).pull(pulls).score)


def test_bare_arrays_in_float32_are_a_recording(tmp_path):
    recording = voting()
    path = tmp_path / "bare.npz"
    np.savez(
        path,
        probs=recording.probs.astype(np.float32),
        answers=recording.answers.astype(np.int8),
        cost=recording.cost,
        cost_weights=recording.cost_weights,
    )
    np.testing.assert_allclose(load(path).probs, recording.probs, atol=1e-6)
    np.testing.assert_allclose(load(path).probs.sum(axis=2), 1.0, atol=1e-12)


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no recording at"):
        load(tmp_path / "missing.npz")
    with pytest.raises(ConfigurationError, match="Cannot write"):
        save(voting(), tmp_path / "x.csv")
    for name in ("text.npz", "text.parquet"):
        (tmp_path / name).write_text("no archive")
        with pytest.raises(ConfigurationError, match="is not a recording"):
            load(tmp_path / name)
    np.savez(tmp_path / "later.npz", kind="vote", version=2)
    with pytest.raises(ConfigurationError, match="version 2"):
        load(tmp_path / "later.npz")
    np.savez(tmp_path / "half.npz", probs=np.ones((1, 1, 1)))
    with pytest.raises(ConfigurationError, match="lacks the arrays"):
        load(tmp_path / "half.npz")
    np.savez(tmp_path / "objects.npz", probs=np.array([{}], dtype=object))
    with pytest.raises(ConfigurationError, match="is not a recording"):
        load(tmp_path / "objects.npz")


@pytest.mark.slow
@pytest.mark.parametrize("total", [1.0, 0.75])
def test_recording_a_voting_environment(total):
    truth = voting(total)
    steps = []
    found = record(
        truth.environment(0),
        truth.contexts,
        kind="vote",
        samples=4_000,
        cost_scale=1.0,
        progress=lambda done, all_: steps.append((done, all_)),
    )
    assert steps == [(40_000, 120_000), (80_000, 120_000), (120_000, 120_000)]
    assert isinstance(found, VotingRecording)
    np.testing.assert_array_equal(found.answers, truth.answers)
    assert found.credit is None
    np.testing.assert_allclose(found.probs, truth.probs, atol=0.04)
    np.testing.assert_allclose(found.exact(5).q(), truth.exact(5).q(), atol=0.02)


def test_recording_a_best_of_environment_keeps_failures():
    truth = best_of(0.75)
    found = record(truth.environment(0), truth.contexts, kind="best-of", samples=400, cost_scale=1.0)
    assert isinstance(found, BestOfRecording)
    assert found.outcomes.shape == (3, 10, 400, 2)
    assert found.probs.sum(axis=2).mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(found.exact(5).q(), truth.exact(5).q(), atol=0.04)


def test_recorded_failures_are_no_votes_whatever_their_label():
    class HalfFails:
        n_prompts, n_queries = 1, 2

        def pull(self, pulls):
            score = np.tile([1.0, np.nan], pulls.completions // 2)
            label = np.tile([3, 7], pulls.completions // 2)
            return Observations(pulls=pulls, label=label, score=score[:, None], cost=np.ones(len(score)))

    found = record(HalfFails(), Contexts(np.ones((1, 1)), np.zeros(1)), kind="vote", samples=10)
    np.testing.assert_array_equal(found.probs, np.full((1, 2, 1), 0.5))
    assert isinstance(found, VotingRecording)
    assert found.answers.tolist() == [0, 0]


def test_recording_graded_answers_and_raw_costs():
    truth = voting(credit=RNG.random((10, 4)), cost=np.array([20.0, 40.0, 60.0]))
    found = record(truth.environment(0), truth.contexts, kind="vote", samples=50)
    np.testing.assert_allclose(found.cost, [0.005, 0.01, 0.015])  # 0.01 for an average completion
    assert isinstance(found, VotingRecording) and found.credit is not None
    for x, classes in enumerate(found.probs.sum(axis=0) > 0):
        for credit in found.credit[x][classes]:
            assert np.isclose(truth.scores[x], credit).any()


class Dry:
    """Gives out after some pulls."""

    def __init__(self, inner, pulls):
        self.inner, self.left = inner, pulls
        self.n_prompts, self.n_queries = inner.n_prompts, inner.n_queries

    def pull(self, pulls):
        made = pulls.take(np.arange(min(len(pulls), self.left)))
        self.left -= len(made)
        seen = self.inner.pull(made)
        return Observations(pulls=made, label=seen.label, score=seen.score, cost=seen.cost, exhausted=self.left == 0)


def test_a_recording_needs_all_of_its_completions():
    recording = voting()
    with pytest.raises(BudgetTooSmall) as error:
        record(Dry(recording.environment(0), 15), recording.contexts, kind="vote", samples=2)
    assert (error.value.given, error.value.least) == (30, 60)
    settings: dict[str, Any] = {"kind": "vote", "samples": 1}
    for changes in ({"samples": 0}, {"kind": "mixed"}):
        with pytest.raises(ConfigurationError):
            record(recording.environment(0), recording.contexts, **(settings | changes))


def test_wrappers_do_what_they_say():
    recording = best_of()
    pulls = everywhere(recording, 200)
    plain = recording.environment(0).pull(pulls)
    noisy = Noise(recording.environment(0), sd=0.5).pull(pulls)
    assert (noisy.score - plain.score).std() == pytest.approx(0.5, rel=0.05)
    flaky = Failures(recording.environment(0), share=0.3).pull(pulls)
    assert flaky.failed.mean() == pytest.approx(0.3, abs=0.03)
    assert (flaky.label[flaky.failed] == -1).all()
    np.testing.assert_array_equal(flaky.cost, plain.cost)
    np.testing.assert_array_equal(flaky.score[~flaky.failed], plain.score[~flaky.failed])
    waits: list[float] = []
    slow = Delay(recording.environment(0), seconds=2.0, per_completion=0.5, sleep=waits.append).pull(pulls)
    assert waits == [2.0 + 0.5 * 6_000]
    np.testing.assert_array_equal(slow.score, plain.score)


def constant(score):
    """Everything is answered with class 0, worth `score`."""
    return voting(probs=np.ones((3, 10, 1)), answers=np.zeros(10, dtype=int), credit=np.full((10, 1), score))


def test_drift_turns_one_environment_into_another():
    recording = constant(0.0)
    drifting = Drift(recording.environment(0), constant(1.0).environment(0), over=6_000)
    shares = [drifting.pull(everywhere(recording, 50)).score.mean() for _ in range(6)]
    np.testing.assert_allclose(shares, [1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1], atol=0.3)
    assert shares[0] < shares[3] and shares[-1] == 1.0


def test_drift_keeps_the_order_of_the_pulls_and_what_was_left_out():
    before, after = voting(cost=np.array([1.0, 2.0, 3.0])), voting(cost=np.array([10.0, 20.0, 30.0]))
    pulls = everywhere(before, 4)
    drifting = Drift(before.environment(0), after.environment(1), over=100)
    seen = drifting.pull(pulls)
    prompt = np.repeat(pulls.prompt, 4)
    assert set(seen.cost / (prompt + 1)) == {1.0, 10.0}
    per_pull = seen.cost.reshape(-1, 4)
    assert (per_pull == per_pull[:, :1]).all()
    short = Drift(Dry(before.environment(0), 3), after.environment(1), over=100).pull(pulls)
    assert short.exhausted and short.pulls.completions == len(short.cost) < pulls.completions
    assert set(short.cost / np.repeat(short.pulls.prompt + 1, short.pulls.size)) <= {1.0, 10.0}


def test_bad_wrappers_are_refused():
    environment = voting().environment(0)
    other = voting().subset(np.arange(4)).environment(0)
    for make in (
        lambda: Noise(environment, sd=-1.0),
        lambda: Failures(environment, share=1.5),
        lambda: Delay(environment, seconds=-1.0),
        lambda: Drift(environment, other, over=10),
        lambda: Drift(environment, environment, over=0),
    ):
        with pytest.raises(ConfigurationError):
            make()


@pytest.mark.slow
def test_psst_lives_with_failures_noise_and_drift():
    recording = synthetic_bernoulli(0, n_prompts=6, n_queries=60)
    inner = Drift(recording.environment(1), recording.environment(2), over=3_000)
    environment = Failures(Noise(inner, sd=0.1), share=0.2)
    outcome = drive(PSST().start(recording.problem(16), budget=12_000, seed=0), environment)
    best = recording.exact(16).q().max(axis=(1, 2))
    found = np.array([recording.exact(16).q()[c, a.prompt, a.n - 1] for c, a in enumerate(outcome.policy.arms)])
    assert (best - found).mean() < 0.1


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


def test_contexts_of_recordings():
    assert voting().contexts.weights.tolist() == [[1.0], [1.0]]
    found = best_of().contexts
    assert isinstance(found, Contexts) and found.cost.tolist() == [0.0, 1.0, 0.2]


def test_parquet_rows_are_placed_by_their_cells(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path, recording = tmp_path / "r.parquet", best_of()
    save(recording, path)
    table = parquet.read_table(path)
    parquet.write_table(table.take(np.random.default_rng(0).permutation(30)), path)
    np.testing.assert_array_equal(load(path).probs, recording.probs)
    loaded = load(path)
    assert isinstance(loaded, BestOfRecording)
    np.testing.assert_array_equal(loaded.outcomes, recording.outcomes)
    wrong = table.set_column(0, "prompt", [np.full(30, 7)])
    for bad in (table.slice(1), table.take([0, *range(29)]), table.drop(["query"]), table.drop(["probs"]), wrong):
        parquet.write_table(bad, path)
        with pytest.raises(ConfigurationError, match=r"r\.parquet"):
            load(path)
    for about in (b"hello", b"{}", b"[]"):
        parquet.write_table(table.replace_schema_metadata({b"iapo_dspy.recording": about}), path)
        with pytest.raises(ConfigurationError, match=r"r\.parquet"):
            load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"probs": np.full((3, 10, 4), 0.1 + 3j)},
        {"probs": np.full((3, 10, 4), "a")},
        {"answers": np.full(10, 0.9)},
        {"answers": np.full(10, np.nan)},
        {"cost": np.array(0.1)},
        {"cost_weights": np.array(0.1)},
        {"version": np.array([1, 1])},
        {"kind": np.array("other")},
        {"credits": np.ones((10, 4))},
    ],
)
def test_bad_arrays_in_files_are_refused(tmp_path, changes):
    good = {name: getattr(voting(), name) for name in ("probs", "answers", "cost", "cost_weights")}
    np.savez(tmp_path / "bad.npz", **(good | changes))
    with pytest.raises(ConfigurationError, match=r"bad\.npz"):
        load(tmp_path / "bad.npz")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "bad.npz"
    save(voting(), path)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:60] + bytes(140) + whole[200:]):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"bad\.npz"):
            load(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ConfigurationError, match=r"bad\.npz"):
        load(path)
    with pytest.raises(ConfigurationError):
        load(tmp_path)
