"""Compound arms for contexts: where they are surely better, with the utility that they are then measured to have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.aggregators.tally import TallyAggregator
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.compound.chosen import as_called, mixture_of, with_compounds
from iapo_dspy.bandit.compound.played import play
from iapo_dspy.bandit.compound.sequences import Sequences, needed
from iapo_dspy.bandit.measurement import measured, measuring_pulls
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stops import with_stops
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.types import Arm, Contexts, Escalation, FloatArray, Observations, Pulls


def two_models(seed: int = 0, n_queries: int = 120, cost_weights: tuple[float, ...] = (4.0,)) -> VotingRecording:
    """A cheap prompt that is right on easy queries and guesses on hard ones; a prompt twenty times as dear that is
    right on nearly all of them."""
    rng = np.random.default_rng(seed)
    easy = rng.random(n_queries) < 0.6
    right = np.stack([np.where(easy, 0.97, 0.3), np.where(rng.random(n_queries) < 0.95, 0.97, 0.2)])
    others = rng.dirichlet(np.ones(4), size=n_queries)
    return VotingRecording(
        probs=np.concatenate([right[..., None], (1 - right)[..., None] * others], axis=2),
        answers=np.zeros(n_queries, dtype=np.int64),
        cost=np.array([0.001, 0.02]),
        cost_weights=np.array(cost_weights),
    )


def run(recording: VotingRecording, budget: int = 2_000, seed: int = 0) -> tuple[Problem, Outcome]:
    problem = recording.problem(8)
    outcome = drive(Auto().start(problem, budget=budget, seed=seed), recording.environment(1, seed))
    return problem, with_stops(problem, outcome)


def exact(recording: VotingRecording, arm: Arm, context: int = 0, copies: int = 200) -> FloatArray:
    """Utility of an arm on each query, on long sequences of the law."""
    sizes = needed(arm)
    prompts, most = np.array(sorted(sizes)), max(sizes.values())
    query = np.repeat(np.arange(recording.n_queries), copies)
    environment = recording.environment(7)
    seen = [environment.pull(Pulls(np.full(len(query), p), query, np.full(len(query), most))) for p in prompts]
    rows = Sequences(
        prompts=prompts,
        label=np.stack([s.label.reshape(-1, most) for s in seen]),
        score=np.stack([s.score.reshape(len(query), most, 1) for s in seen]),
        query=query,
        n_queries=recording.n_queries,
        aggregator=recording.aggregator(),
        weights=np.ones(1),
    )
    played = play(arm, rows)
    price = recording.cost_weights[context] * (played.completions @ recording.cost[prompts])
    return rows.by_query(played.reward - price)


def test_a_cascade_is_chosen_where_it_is_better_and_is_worth_what_is_said() -> None:
    recording = two_models()
    problem, outcome = run(recording)
    found = with_compounds(problem, outcome)
    arm, single = found.policy[0], outcome.policy[0]
    assert [stage.prompt for stage in arm.stages] == [0, 1]
    (offer,) = (o for o in found.considered[0] if o.kind == "cascade")
    assert offer.chosen and offer.arm == arm and offer.beside == single
    truth = exact(recording, arm)
    assert truth.mean() > exact(recording, single).mean() + 0.01
    assert found.stops is not None
    call = found.stops[0]
    assert call.utility == pytest.approx(truth.mean(), abs=3 * offer.standard_error + 0.02)
    assert call.utility == pytest.approx(outcome.stops[0].utility + offer.gain)  # type: ignore[index]
    assert call.completions == pytest.approx(sum(n for _, n, _ in call.by_prompt))
    assert call.cost == pytest.approx(sum(n * recording.cost[p] for p, n, _ in call.by_prompt))
    assert call.by_query is not None and call.by_query.mean() == pytest.approx(call.reward)


def test_nothing_is_offered_where_prompts_are_alike() -> None:
    recording = two_models()
    alike = replace(recording, probs=recording.probs[[1, 1]], cost=np.array([0.01, 0.01]))
    problem, outcome = run(alike)
    found = with_compounds(problem, outcome)
    assert found.policy == outcome.policy
    assert not any(offer.chosen for offers in found.considered for offer in offers)


def test_a_context_gets_the_same_arm_whichever_others_there_are() -> None:
    recording = two_models(cost_weights=(0.0, 1.0, 4.0))
    problem, outcome = run(recording)
    together = with_compounds(problem, outcome)
    for context, weight in enumerate(recording.cost_weights.tolist()):
        alone_problem = replace(recording, cost_weights=np.array([weight])).problem(8)
        solved = with_stops(alone_problem, Auto().solve(alone_problem, outcome.observations), apart=True)
        if solved.policy[0] == outcome.policy[context]:
            assert with_compounds(alone_problem, solved).policy[0] == together.policy[context]


def test_an_algorithm_without_a_model_keeps_its_arms() -> None:
    recording = two_models()
    problem = recording.problem(8)
    outcome = drive(PSST().start(problem, budget=2_000, seed=0), recording.environment(0))
    assert with_compounds(problem, outcome) is outcome


def test_prompts_that_are_left_out_are_in_no_compound_arm() -> None:
    problem, outcome = run(two_models())
    found = with_compounds(problem, outcome, left_out=[0])
    assert all(0 not in offer.arm.prompts for offers in found.considered for offer in offers)


def test_any_compound_arm_can_be_described() -> None:
    recording = two_models()
    problem, outcome = run(recording)
    arm = Arm(0, 4, then=Escalation(below=0.6, arm=Arm(1, 1)))
    call = as_called(problem, outcome, 0, arm)
    assert call.arm == arm and call.utility == pytest.approx(exact(recording, arm).mean(), abs=0.05)
    assert as_called(problem, outcome, 0, Arm(1, 2)).utility == pytest.approx(float(outcome.q[0, 1, 1]))


def test_measured_compound_arms_are_unbiased_and_their_intervals_hold() -> None:
    recording = two_models(n_queries=60)
    problem, outcome = run(recording, budget=1_500)
    found = with_compounds(problem, outcome)
    assert found.policy[0].compound
    truth = float(exact(recording, found.policy[0], copies=600).mean())
    errors, held, half = [], [], []
    for seed in range(120):
        pulls = measuring_pulls(problem, found, np.arange(60), 200, seed)
        assert pulls.completions <= 200
        (said,) = measured(problem, found, recording.environment(2, seed).pull(pulls)).measured or ()
        assert said is not None and said.queries == 200 // found.policy[0].most
        errors.append(said.utility - truth)
        held.append(said.interval[0] <= truth <= said.interval[1])
        half.append(said.standard_error)
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(120)
    assert np.mean(held) >= 0.9
    assert np.mean(half) < 3 * np.std(errors)  # not as wide as to say nothing


def specialists(cost_weights: tuple[float, ...] = (0.0,)) -> VotingRecording:
    """Each of two prompts is right on its half of the queries; elsewhere its answers scatter."""
    mine = np.stack([np.arange(120) % 2 == 0, np.arange(120) % 2 == 1])
    right = np.where(mine, 0.8, 0.2)[..., None]
    return VotingRecording(
        probs=np.concatenate([right, (1 - right) * np.full(3, 1 / 3)], axis=2),
        answers=np.zeros(120, dtype=np.int64),
        cost=np.array([0.01, 0.01]),
        cost_weights=np.array(cost_weights),
    )


def test_a_mixture_of_specialists_is_found_and_is_worth_what_is_said() -> None:
    recording = specialists()
    problem, outcome = run(recording)
    offer = mixture_of(problem, outcome, 0, 8)
    assert offer is not None and offer.chosen
    assert offer.arm.size == 8 and len(offer.arm.shares) == 2
    assert not offer.beside.compound and offer.beside.n == 8
    truth = exact(recording, offer.arm).mean() - exact(recording, offer.beside).mean()
    assert truth > 0.2
    assert 0.08 < offer.gain < truth + 2 * offer.standard_error


def test_contexts_draw_the_better_one_of_a_cascade_and_a_mixture() -> None:
    problem, outcome = run(specialists((0.0, 4.0)))
    found = with_compounds(problem, outcome)
    for context, offers in enumerate(found.considered):
        assert len(offers) == (2 if outcome.policy[context].n > 1 else 1)  # one completion cannot be shared
        chosen = [offer for offer in offers if offer.chosen]
        assert [offer.arm for offer in chosen] == [found.policy[context]]
    assert found.stops is not None and outcome.stops is not None
    assert found.stops[0].utility > outcome.stops[0].utility + 0.1


def test_there_is_no_mixture_of_prompts_that_err_together() -> None:
    recording = specialists()
    recording = replace(recording, probs=recording.probs[[0, 0]])
    problem, outcome = run(recording)
    offer = mixture_of(problem, outcome, 0, 8)
    assert offer is None or not offer.chosen


def test_one_prompt_alone_is_no_mixture() -> None:
    recording = specialists().of_prompts(np.array([0]))
    problem = recording.problem(8)
    outcome = drive(Auto().start(problem, budget=500, seed=0), recording.environment(0))
    assert mixture_of(problem, outcome, 0, 8) is None


@pytest.mark.parametrize("kind", ["weighted", "mixed", "best of"])
def test_every_strategy_may_have_cascades(kind: str) -> None:
    """The cheap prompt is right on 60 % of the queries, guesses on the others; the dear one is nearly always right."""
    recording = two_models(n_queries=80)
    environment = recording.environment(3)
    aggregators: dict[str, Aggregator] = {
        "weighted": TallyAggregator(floors=(0.0, 0.0), weight=1),
        "mixed": TallyAggregator(floors=(0.0, 0.0), style=(1,)),
        "best of": BestOfNAggregator(floors=(0.0, 0.0)),
    }
    style = np.random.default_rng(5)

    def pull(prompt: int) -> Observations:
        pulls = Pulls(np.full(80, prompt), np.arange(80), np.full(80, 6))
        seen = environment.pull(pulls)
        right = seen.score[:, 0]
        second = np.where(right > 0, 0.8, 0.6) + 0.2 * style.random(len(right))  # a weight, or a style
        return replace(seen, score=np.stack([right, second], axis=1))

    seen = [pull(0), pull(1)]
    weights = np.array([[1.0, 0.0], [1.0, 0.5]]) if kind != "weighted" else np.array([[1.0, 0.0]])
    problem = Problem(
        n_prompts=2,
        n_queries=80,
        max_n=4,
        contexts=Contexts(weights, np.full(len(weights), 8.0)),
        aggregator=aggregators[kind],
        cost_scale=1.0,
    )
    found = with_compounds(problem, with_stops(problem, Auto().solve(problem, seen)))
    for context, offers in enumerate(found.considered):
        (offer,) = (o for o in offers if o.kind == "cascade")
        assert [stage.prompt for stage in offer.arm.stages] == [0, 1]
        assert offer.chosen and found.policy[context].compound, (context, offer.gain, offer.standard_error)
