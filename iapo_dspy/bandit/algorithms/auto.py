"""The default algorithm: shared queries, pulls of the most telling size, predictions corrected by unbiased evidence.

All prompts answer the same queries in one random order, without replacement until every query was used, with few
completions per query: queries differ far more than the completions of one query do, and on shared queries that noise
cancels from every comparison. `CorrectedEstimator` turns the draws into estimates of every arm, also above the number
drawn. After each round a prompt stays if it may still be the best one for some context: prompts are ranked by the
expected gain from switching to their best arm,

    E max(0, D),    D ~ N(difference from the best arm, its variance on the same queries),

averaged over contexts, and the number that stays falls geometrically, from P to 1 over the rounds; a prompt that
looks good again comes back. The variance counts what is not known of a prompt's traits (`models.information`), so a
prompt is not dropped because it has answered few queries.

How many completions a query gets is decided anew in each round: so many that the arms of the living prompts will be
known best (`Ranking.pull_size`). That is one where the level of prompts is what is not known, as queries differ more
than completions, and several where it is how a prompt's cells spread. A pull's price counts: a query may cost an
overhead of h completions whatever the pull's size, as prompt tokens do where the user pays for them.

Aggregators without a model have growing pulls instead, of at least sqrt(h) completions, the size that tells most per
unit of cost if the completions of a query vary about as much as the queries do (two-stage sampling, Cochran 1977).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from iapo_dspy.bandit.aggregators.port import Modelled, distinct_rows
from iapo_dspy.bandit.algorithms.schedule import Schedule
from iapo_dspy.bandit.algorithms.standing import Standing
from iapo_dspy.bandit.estimators.corrected import CorrectedEstimator
from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.estimators.port import ArmEvidence, ComparingEstimator, Estimates
from iapo_dspy.bandit.models.information import Knowledge, error
from iapo_dspy.bandit.models.port import Informed
from iapo_dspy.bandit.outcome import Outcome, Run, interim
from iapo_dspy.bandit.problem import Problem, check_budget
from iapo_dspy.bandit.ties import choose
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Arm, Contexts, FloatArray, IntArray, Interim, Observations, Policy

FIRST_PULL = 2
FIRST_PULL_UNMODELLED = 3  # where no model says what more completions bring: two votes never say more than one
LEAST_QUERIES = 30  # queries below which no run stops early: a few that agree say little
MOST_ROWS = 64  # distinct weights of contexts that a run looks at while it draws; with more, at so many of them
_LOOKED_AT = 8  # contexts whose arms decide on the size of pulls, spread over all
_SIZES = (1, 2, 4, 8)  # of pulls, after the first
NEGLIGIBLE = 1e-5  # expected gain, in units of the rewards' range, below which nothing can change any more


@dataclass(frozen=True, kw_only=True)
class Auto:
    """The default algorithm.

    Args:
        rounds: Batches at most, >= 1; a small budget has fewer.
        first_pull: Completions per query in the first two rounds, >= 1, where the aggregator needs so many. Default: 2,
            or 3 where it has no model.
        growth: Factor by which pulls grow after every second round, >= 1. Without a model they grow from round to round
            instead, such that the last one reaches the largest scale: beyond what was drawn little is known.
        shared_queries: Whether all prompts answer the same queries, or each its own in an order of its own.
        estimator: Makes the empty estimator of a run, by which arms are estimated and compared.
        calls: How many calls the policy will serve, >= 1. A run ends early where the utility that it may still gain,
            over so many calls, is less than the price of its remaining completions. They are priced as a call's own
            are under `Preference(cost=1)`: the student's average completion costs 0.01.

    Raises:
        ConfigurationError: A setting is not a usable number.
    """

    rounds: int = 8
    first_pull: int | None = None
    growth: int = 2
    shared_queries: bool = True
    estimator: Callable[[Problem], ComparingEstimator] = CorrectedEstimator
    calls: int = 100_000

    def __post_init__(self) -> None:
        for name in ("rounds", "first_pull", "growth", "calls"):
            value = getattr(self, name)
            if name == "first_pull" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ConfigurationError(f"{name} is {value!r}; give a whole number >= 1.")

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`: one completion of each prompt, and those of `Problem.known`."""
        if problem.known is None:
            return problem.n_prompts
        unknown = problem.n_prompts - len(np.unique(problem.known.pulls.prompt))
        return problem.n_known + unknown if unknown else 1

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        """Implement `Algorithm.start`.

        The run ends before the budget does where the rest is not worth its price (`calls`), or where no further draw
        is expected to change a choice. Prompts that join later (`Problem.present`) take part from the round after; the
        run then has twice as many rounds. From completions that are there already (`Problem.known`) it goes on as if
        the rounds that they would have paid for were made.
        """
        what = f"looking at each of {problem.n_prompts} prompts once"
        check_budget(budget, seed, least=self.least(problem), what=what)
        budget, schedule = self.schedule(problem, budget, seed)
        ranking = Ranking(replace(problem, contexts=spread_out(problem)), estimator=self.estimator)
        return _run(ranking, schedule, budget, problem, self.calls)

    def most_pulls(self, problem: Problem, *, budget: int, seed: int) -> int:
        """Return how many pulls a run makes at most. Each prompt asks every query once before it asks one twice.

        With a model, pulls after the first ones may have a single completion each.
        """
        budget, schedule = self.schedule(problem, budget, seed)
        pulls = spent = 0
        modelled = isinstance(problem.aggregator, Modelled)
        for r in range(1, schedule.rounds + 1):
            made = schedule.pulls(np.arange(problem.n_prompts), (budget - spent) // (schedule.rounds - r + 1))
            pulls, spent = pulls + len(made) + problem.n_prompts, spent + made.completions
            if modelled:
                return min(pulls + budget - spent, budget)
            if r < schedule.rounds:
                schedule.grow(r)
        return min(pulls, budget)

    def schedule(self, problem: Problem, budget: int, seed: int) -> tuple[int, Schedule]:
        """Return the completions of a run, and their schedule."""
        rounds, first_pull = self.rounds, self.first_pull
        if first_pull is None:
            first_pull = FIRST_PULL if isinstance(problem.aggregator, Modelled) else FIRST_PULL_UNMODELLED
        if problem.n_prompts == problem.max_n == 1:  # nothing to choose: the only arm is measured
            budget, rounds = min(budget, problem.n_queries), 1
        return budget, Schedule(problem, budget, seed, rounds, first_pull, self.growth, self.shared_queries)

    def solve(self, problem: Problem, rounds: Sequence[Observations]) -> Outcome:
        """Implement `Algorithm.solve`: estimates come from all that was drawn, whichever contexts it was drawn for.

        The model is fitted round by round, as in the run; once at the end where there are too many contexts for that.
        The rounds of the outcome list every prompt as alive: the observations say which were drawn.
        """
        ranking, many = Ranking(problem, estimator=self.estimator), spread_out(problem) is not problem.contexts
        for observations in rounds:
            ranking.observe(observations, np.arange(problem.n_prompts), fit=not many or observations is rounds[-1])
        return ranking.outcome(complete=True)


def spread_out(problem: Problem) -> Contexts:
    """Return the contexts that a run looks at while it draws: all of them, or those of `MOST_ROWS` distinct weights.

    Of more, those are taken that leave none far away, one after the other (Gonzalez 1985): any weights are then near
    some that the run has drawn for.
    """
    contexts, aggregator = problem.contexts, problem.aggregator
    found = aggregator.rows(contexts.weights) if isinstance(aggregator, Modelled) else distinct_rows(contexts.weights)
    rows, row = found.rows, found.row
    if len(rows) <= MOST_ROWS:
        return contexts
    taken = [int(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).argmin())]
    away = np.full(len(rows), np.inf)
    while len(taken) < MOST_ROWS:
        away = np.minimum(away, ((rows - rows[taken[-1]]) ** 2).sum(axis=1))
        taken.append(int(away.argmax()))
    kept = np.isin(row, taken)
    return Contexts(
        contexts.weights[kept],
        contexts.cost[kept],
        contexts.rates[kept],
        contexts.caps[kept],
        contexts.confidence[kept],
    )


def _run(state: Ranking, schedule: Schedule, budget: int, problem: Problem, calls: int) -> Run:
    if problem.present is not None:
        schedule.rounds = min(2 * schedule.rounds, budget)  # so that a prompt that joins does not wait for long
    done, newcomers, alive = 0, np.empty(0, dtype=np.int64), np.arange(state.present)
    if problem.known is not None:
        drawn = np.unique(problem.known.pulls.prompt)
        state.observe(problem.known, drawn)
        newcomers = np.setdiff1d(alive, drawn)
        alive = np.append(drawn, newcomers)
        done = schedule.skip(state.spent / budget, newcomers)
    while done < schedule.rounds and state.spent < budget:
        if done:
            chosen = _next(state, schedule, done, budget - state.spent, newcomers, calls)
            if chosen is None:
                break
            alive = chosen
        left = budget - state.spent
        alive = alive[-left:]  # newcomers are behind the others, and come first where there is too little for all
        pulls = schedule.pulls(alive, max(left // (schedule.rounds - done), len(alive)))
        observations = yield replace(pulls, interim=state.interim(problem, rounds_left=schedule.rounds - done))
        before, done = state.present, done + 1
        state.observe(observations, alive)
        newcomers = np.arange(before, state.present)
        if observations.pulls.completions < pulls.completions or (observations.exhausted and done < schedule.rounds):
            return state.on(problem).outcome(complete=False)
    return state.on(problem).outcome(complete=True)


def _next(state: Ranking, schedule: Schedule, done: int, left: int, newcomers: IntArray, calls: int) -> IntArray | None:
    """Return the prompts of the next round, and set the size of its pulls; None where it is not worth its price."""
    old = np.setdiff1d(np.arange(state.present), newcomers)
    gain, seen = state.gains(traits=True), state.gains()
    keep = math.ceil(len(old) ** (1 - done / (schedule.rounds - 1)))
    old = old[survivors(gain[old], np.searchsorted(old, state.chosen_prompts()), keep)]
    alive = np.append(old, newcomers)
    resize(state, schedule, old, newcomers, seen, left // (schedule.rounds - done) // len(alive), done)
    all_came = not len(newcomers) and state.present == state.problem.n_prompts
    price = state.price(alive, schedule.size[alive]) * left
    return None if all_came and settled(state, schedule, gain, seen, price, calls) else alive


def resize(
    state: Ranking, schedule: Schedule, old: IntArray, newcomers: IntArray, seen: FloatArray, each: int, done: int
) -> None:
    """Set the size of the next pulls. Newcomers answer first what the others have answered.

    Args:
        state: The run so far.
        schedule: Its `size` is set.
        old: Prompts that are drawn next and were drawn before.
        newcomers: Prompts that are drawn next and were never drawn.
        seen: `Ranking.gains` of every prompt [P].
        each: Completions that each of them gets.
        done: Rounds so far.
    """
    size = state.pull_size(old, each)
    if size is None:
        schedule.grow(done)
        schedule.least_pull = math.ceil(math.sqrt(state.overhead))
    elif np.delete(seen, state.chosen_prompts()).max(initial=0.0) <= NEGLIGIBLE * state.spread:
        schedule.enlarge()  # what is left to find out is whether the chosen prompts do at larger scales as said
    else:
        schedule.size[old] = size
    if len(newcomers) and size is not None:
        schedule.size[newcomers] = state.pull_size(newcomers, each)


def settled(state: Ranking, schedule: Schedule, gain: FloatArray, seen: FloatArray, price: float, calls: int) -> bool:
    """Return whether further draws are not worth their price, or are not expected to change a choice.

    Args:
        state: The run so far.
        schedule: Its schedule.
        gain: `Ranking.gains` with traits [P].
        seen: `Ranking.gains` [P].
        price: Utility that the draws cost.
        calls: How many calls the policy will serve.
    """
    enough = schedule.looked and state.n_visited >= min(state.problem.n_queries, LEAST_QUERIES)
    return enough and bool(gain.max() * calls <= price or seen.max() <= NEGLIGIBLE * state.spread)


def survivors(gain: FloatArray, chosen: IntArray, keep: int) -> IntArray:
    """Return the prompts that are drawn next, ascending: the chosen ones and those with the largest gains.

    Args:
        gain: Expected gain of each prompt [P].
        chosen: Prompts that are the best of some context.
        keep: How many prompts to keep, unless more are chosen; at least two.
    """
    rank = np.argsort(np.where(np.isin(np.arange(len(gain)), chosen), -np.inf, -gain), kind="stable")
    return np.sort(rank[: max(keep, len(chosen), 2)])


class Ranking(Standing):
    """Estimates of a run, the arms it would choose now, and the gain to expect from others.

    Args:
        problem: The problem.
        estimator: Makes an empty estimator.

    Attributes:
        evidence: Evidence by now; None before the first draw.
    """

    def __init__(
        self, problem: Problem, *, estimator: Callable[[Problem], ComparingEstimator] = CorrectedEstimator
    ) -> None:
        super().__init__(problem)
        self._new_estimator = estimator
        self._estimator = estimator(problem)
        self._stale = False
        self.evidence: ArmEvidence | None = None
        self._knowledge: dict[int, Knowledge | None] = {}  # of each row of weights, by the evidence

    @property
    def n_visited(self) -> int:
        """Queries drawn so far."""
        return self.evidence.n_visited if self.evidence is not None else 0

    @property
    def overhead(self) -> float:
        """Cost of a pull beside its completions, in completions: 0 where prompt tokens and the like cost nothing."""
        cost = self.evidence.cost if self.evidence is not None else np.zeros((1, 1))
        if cost.shape[1] < 2:
            return 0.0
        fixed, each = np.nanmean(2.0 * cost[:, 0] - cost[:, 1]), np.nanmean(cost[:, 1] - cost[:, 0])
        return max(float(fixed / each), 0.0) if each > 0 else 0.0

    def price(self, alive: IntArray, size: IntArray) -> float:
        """Return the utility that a completion of these prompts costs at a cost weight of 1, in such pulls."""
        cost = self.evidence.cost[alive, size - 1] / size if self.evidence is not None else np.zeros(1)
        return self._scale.value * float(np.nanmean(cost)) if not np.isnan(cost).all() else 0.0

    @property
    def spread(self) -> float:
        """Range of the estimated utilities, > 0."""
        q = self.q()
        known = q[~np.isnan(q)]
        return float(known.max() - known.min()) or 1.0 if len(known) else 1.0

    def width(self, context: int) -> float:
        """Range of the rewards of single queries in a context, > 0."""
        evidence = self.evidence
        if not isinstance(evidence, Evidence):
            return self.spread
        return float(evidence.factor[context] * evidence.spread[evidence.row[context]]) or 1.0

    def observe(self, observations: Observations, alive: IntArray, *, fit: bool = True) -> None:
        """Take in one round; without `fit` estimates are left to a later one."""
        active = np.zeros(self.problem.shape, dtype=bool)
        active[:, alive] = True
        if self.note(observations, active):
            self._estimator.update(observations)
            self._stale = True
        if fit and self._stale:
            self.evidence, self._stale = self._estimator.evidence(), False
            self._knowledge.clear()

    def on(self, problem: Problem) -> Ranking:
        """Return the run so far on a problem with more contexts, of which it has looked at some, or more prompts."""
        if problem.shape == self.problem.shape:
            return self
        every = Ranking(problem, estimator=self._new_estimator)
        for observations, round_ in zip(self.observations, self.rounds, strict=True):
            alive = np.flatnonzero(round_.active[0].any(axis=1))
            every.observe(observations, alive, fit=observations is self.observations[-1])
        return every

    def policy(self) -> Policy:
        """Return the best arm of each context by the evidence; the first arm where there is none."""
        if self.evidence is None:
            return Policy((Arm(0, 1),) * self.problem.n_contexts)
        return choose(self.q(), self.evidence)

    def chosen_prompts(self) -> IntArray:
        """Return the prompts of the policy, each once."""
        return np.unique([arm.prompt for arm in self.policy().arms])

    def gains(self, *, traits: bool = False) -> FloatArray:
        """Return for each prompt the expected gain from switching to its best arm, mean over contexts [P].

        A chosen prompt's gain is that of its other scales. With `traits`, what is not known of the prompts' traits
        counts as well: they are far from known where a prompt has answered few queries.
        """
        total = np.zeros(self.problem.n_prompts)
        if self.evidence is None:
            return np.full(self.problem.n_prompts, np.inf)
        scales = np.arange(1, self.problem.max_n + 1)
        for context, (arm, values) in enumerate(zip(self.policy().arms, self.q(), strict=True)):
            difference, se = self.behind(context, arm, values, traits=traits)
            gain = expected_gain(difference, se)
            own, own_values = np.full(len(scales), arm.prompt), np.where(np.isnan(values), -np.inf, values)[arm.prompt]
            own_se = self.evidence.against(context, own, scales, arm.prompt, arm.n, model=True)
            gain[arm.prompt] = expected_gain(own_values - own_values[arm.n - 1], own_se).max()
            total += gain
        return total / self.problem.n_contexts

    def behind(self, context: int, arm: Arm, values: FloatArray, *, traits: bool) -> tuple[FloatArray, FloatArray]:
        """Return how far each prompt's best arm is from an arm, mostly <= 0, and the standard error [P] each.

        Args:
            context: Which context.
            arm: The arm.
            values: Utility of all arms in the context [P, N]; NaN where there is none.
            traits: As in `gains`.
        """
        evidence, prompts = self.evidence, np.arange(self.problem.n_prompts)
        assert evidence is not None
        values = np.where(np.isnan(values), -np.inf, values)
        reach = values.argmax(axis=1) + 1
        se = evidence.against(context, prompts, reach, arm.prompt, arm.n, model=True)
        known = self._known(context) if traits else None
        if known is not None and isinstance(evidence, Evidence):
            unknown = error(evidence.factor[context] * known.gradient(prompts, reach), known.covariance)
            others = prompts != arm.prompt
            se = np.sqrt(se**2 + np.where(others, unknown**2 + unknown[arm.prompt] ** 2, 0.0))
        return values[prompts, reach - 1] - values[arm.prompt, arm.n - 1], se

    def pull_size(self, alive: IntArray, completions: int) -> int | None:
        """Return how many completions the next pulls should have: those after which least is unknown of the arms.

        Each prompt's best arm in each context has an error from what is not known of the prompt's traits. Of the sizes,
        that one is chosen after which its mean square will be least (c-optimal design, Chaloner and Verdinelli 1995).
        For a prompt without an answer that is the arm with the scale of the context's best one.

        Args:
            alive: Prompts that are drawn next.
            completions: Completions of each of them.

        Returns:
            Completions of a pull; None without a model.
        """
        evidence, q, arms = self.evidence, self.q(), self.policy().arms
        looked_at = np.unique(np.linspace(0, self.problem.n_contexts - 1, _LOOKED_AT).astype(int)).tolist()
        known = {context: found for context in looked_at if (found := self._known(context)) is not None}
        if not known or not isinstance(evidence, Evidence):
            return None
        most = min(self.problem.max_n, max(completions, 1))
        sizes = [m for m in _SIZES if m <= most]
        unknown = np.zeros(len(sizes))
        for i, size in enumerate(sizes):
            queries = completions / (size + self.overhead)
            covariance = {id(k): k.after(alive, size, queries) for k in {id(k): k for k in known.values()}.values()}
            for context, found in known.items():
                nothing = np.isnan(q[context, alive])
                reach = np.where(nothing, -np.inf, q[context, alive]).argmax(axis=1) + 1
                reach[nothing.all(axis=1)] = arms[context].n
                gradient = evidence.factor[context] * found.gradient(alive, reach)
                unknown[i] += (error(gradient, covariance[id(found)]) ** 2).sum()
        return sizes[int(unknown.argmin())]

    def _known(self, context: int) -> Knowledge | None:
        """Return what is known of the prompts' traits under a context's weights; None without a model."""
        evidence = self.evidence
        if not isinstance(evidence, Evidence) or not isinstance(evidence.model, Informed):
            return None
        row = int(evidence.row[context])
        if row not in self._knowledge:
            self._knowledge[row] = evidence.model.knowledge(row)
        return self._knowledge[row]

    def outcome(self, *, complete: bool) -> Outcome:
        """Report the run."""
        if self.evidence is None:
            nothing = np.full(self.problem.shape, np.nan)
            estimates = Estimates(reward=nothing, cost=nothing[0], count=np.zeros(nothing.shape[1:], dtype=np.int64))
        else:
            estimates = self.evidence.estimates()
        detail = self.evidence if isinstance(self.evidence, Evidence) else None
        return self.report(self.policy(), self.q(), estimates, complete=complete, detail=detail)

    def interim(self, problem: Problem, *, rounds_left: int) -> Interim | None:
        """Return what is known now of the contexts of a problem; None before the first draw.

        Contexts are left out where the run looks at some of them only.
        """
        if self.evidence is None:
            return None
        if self.problem.n_contexts < problem.n_contexts:
            return Interim(policy=Policy(()), utility=np.empty(0), standard_error=np.empty(0), rounds_left=rounds_left)
        return interim(self.policy(), self.q(), self.evidence.standard_error(), rounds_left=rounds_left)

    def q(self) -> FloatArray:
        """Return the estimated utility of every arm [C, P, N]; NaN where there is no evidence."""
        if self.evidence is None:
            return np.full(self.problem.shape, np.nan)
        return self.utility(self.evidence.reward(), self.evidence.cost)


def expected_gain(difference: FloatArray, se: FloatArray) -> FloatArray:
    """Return E max(0, D) for D ~ N(difference, se^2); 0 where the difference is -inf."""
    scale = np.maximum(se, 1e-12)
    z = np.maximum(difference / scale, -40.0)  # where there is no evidence the difference is -inf, the gain 0
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in z.tolist()])
    return np.asarray(scale * (density + z * below))
