"""Runs: environments x algorithms x budgets x seeds."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import starmap, zip_longest
from typing import Any, Literal

import numpy as np

from iapo_dspy.bandit.comparison import compared
from iapo_dspy.bandit.inference import choices
from iapo_dspy.bandit.measurement import measured, measuring_pulls, reserved
from iapo_dspy.bandit.named import Compounding, Stopping, has_intervals
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import Environment, drive
from iapo_dspy.environments.recorded.stopped_values import Calls
from iapo_dspy.environments.wrappers import Arrivals
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.simulation.entrants import Entrant
from iapo_dspy.simulation.sources import Instance, Source
from iapo_dspy.types import FloatArray, IntArray, Policy

Backend = Literal["processes", "ray"]
_ENVIRONMENT = 1  # the purpose of a seed; the sources use others
_BEST = 1e-12  # values closer than this are equal


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One algorithm at one budget in one run.

    Attributes:
        acr: Average contextual return on the held-out queries (eq. 4), exact.
        regret: Simple regret on the training queries: the ACR there of the best policy that draws all its N, minus
            this one's; below 0 where stopping early gains more than a better choice would.
        best: Share of contexts whose arm is at least as good on the training queries as any that draws all its N.
        spent: Completions drawn.
        completions: Expected completions of a deployed call, mean over contexts and held-out queries.
        waves: Expected waves of such a call, one after the other; 1 where all completions are drawn at once.
        compound: Share of contexts whose arm is a cascade or a mixture.
        escalates: Share of calls that go on to a second stage, mean over contexts and held-out queries.
        abstains: Share of calls that end without an answer because none was sure enough, likewise.
        bias: Reported utility of the chosen arms minus their exact one on the training queries, mean over contexts;
            None from algorithms without intervals.
        coverage: Share of contexts whose 95 % interval holds the exact utility over all queries; likewise.
        half_width: Half the width of these intervals, mean over contexts; likewise.
        claims: For each context the stated probability that its prompt is the best one, and whether no prompt's best
            arm is better over all queries; none for a compound arm, which is not one prompt.
        gains: For each context and baseline (`bandit.comparison`; prompt 0 stands for the student) that is another arm
            than the chosen one: the baseline's name, the reported gain of the chosen arm minus the exact one over all
            queries, half the width of its 95 % interval, and whether the interval holds the exact one; likewise.
        newcomers: Where prompts join while a run goes on, for each prompt its generation, the completions that the
            algorithm drew of it, and whether it serves a context in the end.
    """

    acr: float
    regret: float
    best: float
    spent: int
    completions: float
    waves: float
    compound: float = 0.0
    escalates: float = 0.0
    abstains: float = 0.0
    bias: float | None = None
    coverage: float | None = None
    half_width: float | None = None
    claims: tuple[tuple[float, bool], ...] = ()
    gains: tuple[tuple[str, float, float, bool], ...] = ()
    newcomers: tuple[tuple[int, int, bool], ...] = ()


@dataclass(frozen=True, kw_only=True)
class SimulatedRun:
    """All trials of one run.

    Attributes:
        run: Its number.
        trials: (algorithm, budget) -> trial; `None` where the algorithm refused the budget.
        train_best: ACR on the held-out queries of the policy that is best on the training queries.
        oracle: The largest ACR on the held-out queries.
    """

    run: int
    trials: dict[tuple[str, int], Trial | None]
    train_best: float
    oracle: float


def simulate(
    source: Source,
    entrants: Sequence[Entrant],
    budgets: Sequence[int],
    *,
    runs: int,
    seed: int,
    jobs: int = 1,
    backend: Backend = "processes",
    progress: Callable[[int], None] | None = None,
) -> list[SimulatedRun]:
    """Run every algorithm at every budget in every run.

    Run i has its own split, or its own environment, which all algorithms and budgets share, so they can be compared in
    pairs. Its numbers depend on (seed, i) alone: not on `jobs`, on the backend, or on which other algorithms, budgets
    or runs there are.

    Args:
        source: The environments.
        entrants: The algorithms.
        budgets: Budgets T, completions.
        runs: How many runs, >= 1.
        seed: Root of all seeds, >= 0.
        jobs: How many runs at once; -1 for one per core. With Ray, 1 means as many as the cluster has cores.
        backend: "processes" on this machine, or "ray" for a Ray cluster (the one that `RAY_ADDRESS` names, or a local
            one, which is stopped afterwards). The package must be installed on its workers.
        progress: Called with the number of finished runs after each; with Ray, once all are done.

    Returns:
        The runs in order.

    Raises:
        ConfigurationError: An unusable argument.
        ImportError: joblib, or Ray, is needed and not installed.
    """
    if runs < 1 or seed < 0 or not budgets or min(budgets) < 0 or len(set(budgets)) < len(budgets) or jobs == 0:
        raise ConfigurationError(
            f"Need runs >= 1, seed >= 0, distinct budgets >= 0 and jobs != 0; got runs={runs}, seed={seed}, "
            f"budgets={list(budgets)}, jobs={jobs}."
        )
    done: list[SimulatedRun] = []
    for finished in _map([(source, entrants, budgets, seed, run) for run in range(runs)], jobs, backend):
        done.append(finished)
        if progress:
            progress(len(done))
    return done


_Task = tuple[Source, Sequence[Entrant], Sequence[int], int, int]  # arguments of `_one_run`


def _map(tasks: Sequence[_Task], jobs: int, backend: Backend) -> Iterator[SimulatedRun]:
    if jobs == 1 and backend == "processes":
        yield from starmap(_one_run, tasks)
        return
    joblib, ray = need("joblib", "simulation"), backend == "ray"
    with _ray(joblib) if ray else nullcontext():
        # joblib's Ray backend hands all results back together, the processes one after the other.
        # One job at a time would run in this process, not on the cluster.
        parallel = joblib.Parallel(n_jobs=-1 if ray and jobs == 1 else jobs, return_as="list" if ray else "generator")
        yield from parallel(joblib.delayed(_one_run)(*task) for task in tasks)


@contextmanager
def _ray(joblib: Any) -> Iterator[None]:
    ray = need("ray", "ray")
    importlib.import_module("ray.util.joblib").register_ray()
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        with joblib.parallel_config(backend="ray"):
            yield
    finally:
        if ours:
            ray.shutdown()


def need(module: str, extra: str) -> Any:
    """Return an optional module, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'This needs {module}: pip install "iapo_dspy[{extra}]"') from error


def _one_run(source: Source, entrants: Sequence[Entrant], budgets: Sequence[int], seed: int, run: int) -> SimulatedRun:
    instance = source.instance(seed, run)
    trials = {
        (entrant.name, budget): _trial(source, instance, entrant, budget, seed, run)
        for entrant in entrants
        for budget in budgets
    }
    contexts = np.arange(len(instance.q_train))
    flat = instance.q_test.reshape(len(contexts), -1)
    chosen = instance.q_train.reshape(len(contexts), -1).argmax(axis=1)
    return SimulatedRun(
        run=run,
        trials=trials,
        train_best=float(flat[contexts, chosen].mean()),
        oracle=float(flat.max(axis=1).mean()),
    )


def _trial(source: Source, instance: Instance, entrant: Entrant, budget: int, seed: int, run: int) -> Trial | None:
    sizes = instance.generations
    problem = replace(instance.train.problem(source.max_n, source.ties), present=sizes[0] if sizes else None)
    stream = int(np.random.SeedSequence([seed, run, budget]).generate_state(1)[0])
    kept = 0
    if has_intervals(entrant.algorithm):
        kept = reserved(budget, problem, entrant.algorithm.least(problem), problem.n_queries)
    try:
        started = entrant.algorithm.start(problem, budget=budget - kept, seed=stream)
    except BudgetTooSmall:
        return None
    world: Environment = instance.train.environment(seed, run, _ENVIRONMENT, budget)
    if sizes:
        at = [g * (budget - kept) // len(sizes) for g in range(len(sizes))]
        world = Arrivals(world, generations=sizes, at=at)
    outcome = drive(started, world)
    best = instance.q_train.max(axis=(1, 2))
    value = entrant.value(outcome.policy, instance.q_train)
    if entrant.random_scale:
        held_out, calls = entrant.value(outcome.policy, instance.q_test), (problem.max_n + 1) / 2
        completions, waves, escalates, abstains = calls, 1.0, 0.0, 0.0
    else:
        value, _ = _stopped_value(instance, outcome.policy, instance.q_train, instance.train_queries)
        held_out, late = _stopped_value(instance, outcome.policy, instance.q_test, instance.test_queries)
        means = (late.completions, late.waves, late.escalates, late.abstains)
        completions, waves, escalates, abstains = (float(part.mean()) for part in means)
    trial = Trial(
        acr=float(held_out.mean()),
        regret=float((best - value).mean()),
        best=float((value >= best - _BEST).mean()),
        spent=outcome.spent,
        completions=completions,
        waves=waves,
        compound=float(np.mean([arm.compound for arm in outcome.policy.arms])),
        escalates=escalates,
        abstains=abstains,
        newcomers=_newcomers(outcome, sizes),
    )
    if outcome.detail is None:
        return trial
    rest = kept or budget - outcome.spent  # what a run leaves that ends early is not spent
    seen = world.pull(measuring_pulls(problem, outcome, np.arange(problem.n_queries), rest, stream))
    outcome = measured(problem, outcome, seen)
    said = choices(outcome, problem.contexts, problem.aggregator)
    assert said is not None
    share = len(instance.train_queries) / (len(instance.train_queries) + len(instance.test_queries))
    truth = share * value + (1.0 - share) * held_out
    reach = (share * instance.q_train + (1.0 - share) * instance.q_test).max(axis=2)
    chosen = reach[np.arange(len(reach)), [arm.prompt for arm in outcome.policy.arms]]
    return replace(
        trial,
        spent=outcome.spent,
        bias=float(np.mean([c.utility for c in said] - value)),
        coverage=float(np.mean([c.interval[0] <= t <= c.interval[1] for c, t in zip(said, truth, strict=True)])),
        half_width=float(np.mean([c.half_width for c in said])),
        gains=_gains(problem, instance, entrant, outcome, truth, share),
        claims=tuple(
            (c.probability_best, best)
            for c, best, arm in zip(
                said, (chosen >= reach.max(axis=1) - _BEST).tolist(), outcome.policy.arms, strict=True
            )
            if not arm.compound
        ),
    )


def _stopped_value(instance: Instance, policy: Policy, q: FloatArray, queries: IntArray) -> tuple[FloatArray, Calls]:
    """Return the exact worth of a policy in each context [C], and its expected calls."""
    calls = instance.stopped.calls(policy, queries)
    arms = np.array([(arm.prompt, arm.n - 1) for arm in policy.arms])
    return q[np.arange(len(arms)), arms[:, 0], arms[:, 1]] + calls.gain + calls.saved, calls


def _gains(
    problem: Problem, instance: Instance, entrant: Entrant, outcome: Outcome, truth: FloatArray, share: float
) -> tuple[tuple[str, float, float, bool], ...]:
    """Compare the reported gains over the baselines with the exact ones."""
    algorithm = entrant.algorithm
    if isinstance(algorithm, Compounding):
        algorithm = algorithm.algorithm
    mode = algorithm.mode if isinstance(algorithm, Stopping) else None
    found = []
    arms = outcome.policy.arms
    for baselines in zip_longest(*compared(problem, outcome, student=0, mode=mode)):  # one of each context that has it
        policy = Policy(tuple(arm if b is None else b.call.arm for b, arm in zip(baselines, arms, strict=True)))
        early, _ = _stopped_value(instance, policy, instance.q_train, instance.train_queries)
        late, _ = _stopped_value(instance, policy, instance.q_test, instance.test_queries)
        exact = truth - share * early - (1.0 - share) * late
        for baseline, arm, gain in zip(baselines, arms, exact.tolist(), strict=True):
            if baseline is not None and baseline.call.arm != arm:
                low, high = baseline.difference_interval
                found.append((baseline.name, baseline.difference - gain, (high - low) / 2.0, low <= gain <= high))
    return tuple(found)


def _newcomers(outcome: Outcome, generations: Sequence[int]) -> tuple[tuple[int, int, bool], ...]:
    """Return generation, completions and whether it was chosen for each prompt; nothing where all were there."""
    drawn = np.zeros(sum(generations), dtype=np.int64)
    for observations in outcome.observations if generations else ():
        np.add.at(drawn, observations.pulls.prompt, observations.pulls.size)
    chosen = {prompt for arm in outcome.policy.arms for prompt in arm.prompts}
    generation = np.repeat(np.arange(len(generations)), generations)
    return tuple((g, n, p in chosen) for p, (g, n) in enumerate(zip(generation.tolist(), drawn.tolist(), strict=True)))
