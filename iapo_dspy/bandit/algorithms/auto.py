"""The default algorithm: shared queries, growing pulls, predictions corrected by unbiased evidence.

All prompts answer the same queries in one random order, without replacement until every query was used, with few
completions per query: queries differ far more than the completions of one query do, and on shared queries that noise
cancels from every comparison. `CorrectedEstimator` turns the draws into estimates of every arm, also above the number
drawn. After each round a prompt stays if it may still be the best one for some context: prompts are ranked by the
expected gain from switching to their best arm,

    E max(0, D),    D ~ N(difference from the best arm, its variance on the same queries),

averaged over contexts, and the number that stays falls geometrically, from P to 1 over the rounds; a prompt that
looks good again comes back. The pull size doubles every second round, so that the later rounds bring unbiased
evidence at the scales that matter.

A pull's price counts: where a query costs an overhead of h completions whatever the pull's size, as prompt tokens do
where the user pays for them, pulls have at least sqrt(h) completions, the size that tells most per unit of cost if
the completions of a query vary about as much as the queries do (two-stage sampling, Cochran 1977).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from iapo_dspy.bandit.aggregators.port import Modelled
from iapo_dspy.bandit.algorithms.elimination import CostScale
from iapo_dspy.bandit.algorithms.schedule import Plan
from iapo_dspy.bandit.costs.charges import Charges
from iapo_dspy.bandit.estimators.corrected import CorrectedEstimator
from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.estimators.port import ArmEvidence, ComparingEstimator, Estimates
from iapo_dspy.bandit.outcome import Algorithm, Outcome, Round
from iapo_dspy.bandit.problem import Problem, check_budget
from iapo_dspy.bandit.ties import choose
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Arm, FloatArray, IntArray, Observations, Policy

__all__ = ["Standing", "auto", "auto_least", "survivors"]

ROUNDS = 8
FIRST_PULL = 2
FIRST_PULL_UNMODELLED = 3  # where no model says what more completions bring: two votes never say more than one
LEAST_QUERIES = 30  # queries below which no run stops early: a few that agree say little
NEGLIGIBLE = 1e-5  # expected gain, in units of the rewards' range, below which nothing can change any more


def auto_least(problem: Problem) -> int:
    """Return the least budget that `auto` accepts: one completion of each prompt."""
    return problem.n_prompts


def auto(
    problem: Problem,
    *,
    budget: int,
    seed: int,
    rounds: int = ROUNDS,
    first_pull: int | None = None,
    growth: int = 2,
    shared_queries: bool = True,
    estimator: Callable[[Problem], ComparingEstimator] = CorrectedEstimator,
) -> Algorithm:
    """Find each context's best arm on shared queries; at most `budget` completions are drawn.

    Args:
        problem: The problem.
        budget: T, completions.
        seed: Root of the random streams, >= 0.
        rounds: Batches at most, >= 1; a small budget has fewer.
        first_pull: Completions per query in the first two rounds, >= 1, where the aggregator needs so many. Default: 2,
            or 3 where it has no model.
        growth: Factor by which pulls grow after every second round, >= 1. Without a model they grow from round to round
            instead, such that the last one reaches the largest scale: beyond what was drawn little is known.
        shared_queries: Whether all prompts answer the same queries, or each its own in an order of its own.
        estimator: How arms are estimated and compared.

    Returns:
        The run. It ends before the budget does where no further draw is expected to change a choice.

    Raises:
        BudgetTooSmall: The budget is below `auto_least`.
        ConfigurationError: Budget, seed or a setting is no usable number.
    """
    what = f"looking at each of {problem.n_prompts} prompts once"
    check_budget(budget, seed, least=auto_least(problem), what=what)
    if first_pull is None:
        first_pull = FIRST_PULL if isinstance(problem.aggregator, Modelled) else FIRST_PULL_UNMODELLED
    for name, value in (("rounds", rounds), ("first_pull", first_pull), ("growth", growth)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ConfigurationError(f"{name} is {value!r}; give a whole number >= 1.")
    if problem.n_prompts == problem.max_n == 1:  # nothing to choose: the only arm is measured
        budget, rounds = min(budget, problem.n_queries), 1
    plan = Plan(problem, budget, seed, rounds, first_pull, growth, shared_queries)
    return _run(Standing(problem, estimator=estimator), plan, budget)


def _run(state: Standing, plan: Plan, budget: int) -> Algorithm:
    n_prompts = state.problem.n_prompts
    alive = np.arange(n_prompts)
    for r in range(1, plan.rounds + 1):
        pulls = plan.pulls(alive, (budget - state.spent) // (plan.rounds - r + 1))
        observations = yield pulls
        state.observe(observations, alive)
        missing = observations.pulls.completions < pulls.completions
        if missing or (observations.exhausted and r < plan.rounds):
            return state.outcome(complete=False)
        if r < plan.rounds:
            gain = state.gains()
            settled = gain.max() <= NEGLIGIBLE * state.spread
            if settled and plan.looked and state.n_visited >= min(state.problem.n_queries, LEAST_QUERIES):
                break
            keep = math.ceil(n_prompts ** (1 - r / (plan.rounds - 1)))
            alive = survivors(gain, state.chosen_prompts(), keep)
            plan.grow(r)
            plan.least_pull = math.ceil(math.sqrt(state.overhead))
    return state.outcome(complete=True)


def survivors(gain: FloatArray, chosen: IntArray, keep: int) -> IntArray:
    """Return the prompts that are drawn next, ascending: the chosen ones and those with the largest gains.

    Args:
        gain: Expected gain of each prompt [P].
        chosen: Prompts that are the best of some context.
        keep: How many prompts to keep, unless more are chosen; at least two.
    """
    rank = np.argsort(np.where(np.isin(np.arange(len(gain)), chosen), -np.inf, -gain), kind="stable")
    return np.sort(rank[: max(keep, len(chosen), 2)])


class Standing:
    """What a run knows: estimates, the arms it would choose now, and what it might gain from others.

    Args:
        problem: The problem.
        estimator: Makes an empty estimator.
    """

    def __init__(
        self, problem: Problem, *, estimator: Callable[[Problem], ComparingEstimator] = CorrectedEstimator
    ) -> None:
        self.problem = problem
        self._estimator = estimator(problem)
        self._scale = CostScale(problem)
        self._charges = Charges(problem.contexts, problem.n_prompts, problem.max_n)
        self._answered = np.zeros(problem.n_prompts, dtype=bool)
        self._rounds: list[Round] = []
        self._observations: list[Observations] = []
        self._evidence: ArmEvidence | None = None

    @property
    def spent(self) -> int:
        """Completions drawn so far."""
        return sum(r.completions for r in self._rounds)

    @property
    def n_visited(self) -> int:
        """Queries drawn so far."""
        return self._evidence.n_visited if self._evidence is not None else 0

    @property
    def overhead(self) -> float:
        """What a pull costs beside its completions, in completions: 0 where prompt tokens and the like cost nothing."""
        cost = self._evidence.cost if self._evidence is not None else np.zeros((1, 1))
        if cost.shape[1] < 2:
            return 0.0
        fixed, each = np.nanmean(2.0 * cost[:, 0] - cost[:, 1]), np.nanmean(cost[:, 1] - cost[:, 0])
        return max(float(fixed / each), 0.0) if each > 0 else 0.0

    @property
    def spread(self) -> float:
        """Range of the estimated utilities, > 0."""
        q = self._q()
        known = q[~np.isnan(q)]
        return float(known.max() - known.min()) or 1.0 if len(known) else 1.0

    def observe(self, observations: Observations, alive: IntArray) -> None:
        """Take in what one round brought."""
        pulls = observations.pulls
        active = np.zeros(self.problem.shape, dtype=bool)
        active[:, alive] = True
        self._rounds.append(Round(active=active, pulls=len(pulls), completions=pulls.completions))
        self._observations.append(observations)
        if not len(pulls):
            return
        self._charges.update(observations)
        self._scale.observe(observations)
        self._answered[np.repeat(pulls.prompt, pulls.size)[~observations.failed]] = True
        self._estimator.update(observations)
        self._evidence = self._estimator.evidence()

    def policy(self) -> Policy:
        """Return the best arm of each context by what is known; the first arm where nothing is."""
        if self._evidence is None:
            return Policy((Arm(0, 1),) * self.problem.n_contexts)
        return choose(self._q(), self._evidence)

    def chosen_prompts(self) -> IntArray:
        """Return the prompts of the policy, each once."""
        return np.unique([arm.prompt for arm in self.policy().arms])

    def gains(self) -> FloatArray:
        """Return for each prompt the expected gain from switching to its best arm, mean over contexts [P].

        A chosen prompt's gain is that of its other scales.
        """
        evidence, q = self._evidence, self._q()
        total = np.zeros(self.problem.n_prompts)
        if evidence is None:
            return np.full(self.problem.n_prompts, np.inf)
        prompts = np.arange(self.problem.n_prompts)
        scales = np.arange(1, self.problem.max_n + 1)
        for context, arm in enumerate(self.policy().arms):
            values = np.where(np.isnan(q[context]), -np.inf, q[context])
            best = values[arm.prompt, arm.n - 1]
            reach = values.argmax(axis=1) + 1
            se = evidence.against(context, prompts, reach, arm.prompt, arm.n, model=True)
            gain = expected_gain(values[prompts, reach - 1] - best, se)
            own = np.full(len(scales), arm.prompt)
            own_se = evidence.against(context, own, scales, arm.prompt, arm.n, model=True)
            gain[arm.prompt] = expected_gain(values[arm.prompt] - best, own_se).max()
            total += gain
        return total / self.problem.n_contexts

    def outcome(self, *, complete: bool) -> Outcome:
        """Report the run."""
        if self._evidence is None:
            shape = self.problem.shape
            nothing = np.full(shape, np.nan)
            estimates = Estimates(reward=nothing, cost=nothing[0], count=np.zeros(shape[1:], dtype=np.int64))
        else:
            estimates = self._evidence.estimates()
        return Outcome(
            policy=self.policy(),
            q=self._q(),
            estimates=estimates,
            spent=self.spent,
            rounds=tuple(self._rounds),
            observations=tuple(self._observations),
            cost_scale=self._scale.value,
            complete=complete,
            detail=self._evidence if isinstance(self._evidence, Evidence) else None,
            charges=self._charges,
        )

    def _q(self) -> FloatArray:
        """Utilities [C, P, N]; NaN for prompts that have never answered, for a cheap failure is no cheap answer.

        Arms that break a cap have none either.
        """
        if self._evidence is None:
            return np.full(self.problem.shape, np.nan)
        contexts = self.problem.contexts
        price = contexts.cost[:, None, None] * (self._scale.value * self._evidence.cost)
        q = self._evidence.reward() - price
        if not contexts.plain:
            q = np.where(self._charges.allowed(), q - self._charges.surcharge(), np.nan)
        if self._answered.any():
            q[:, ~self._answered] = np.nan
        return np.asarray(q)


def expected_gain(difference: FloatArray, se: FloatArray) -> FloatArray:
    """Return E max(0, D) for D ~ N(difference, se^2); 0 where the difference is -inf."""
    scale = np.maximum(se, 1e-12)
    z = np.maximum(difference / scale, -40.0)  # where there is no evidence the difference is -inf, the gain 0
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return np.asarray(scale * (density + z * _normal_cdf(z)))


def _normal_cdf(z: FloatArray) -> FloatArray:
    return np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in np.atleast_1d(z).tolist()])
