"""How many completions a budget of tokens or dollars pays for, and the least that pays for one round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.live.environment import LiveEnvironment
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.optimizer.quoting.structure import calls_of, is_direct
from iapo_dspy.optimizer.quoting.writers import writers_of
from iapo_dspy.preferences import RESOURCES
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import PlannedRecord
from iapo_dspy.sampling.lm.params import supports_n
from iapo_dspy.sampling.spending.budget import Budget, Meter
from iapo_dspy.sampling.spending.pricing import Price, prompt_bound
from iapo_dspy.types import FloatArray, Pulls

_LOOKED_AT = 32  # prompts of which some completions are drawn first
_LOOKS = 8  # completions that are drawn first, at least
_PLANNED = 0.9  # of the tokens or dollars; the rest is for retries, and for completions that are longer
_TOKENS, _USD = 0, 1


@dataclass(frozen=True, kw_only=True)
class Takes:
    """The use of completions: tokens and dollars, in this order (2). Dollars are NaN where a price is not known.

    Attributes:
        once: By a pull of each prompt, whatever its size [P, 2].
        each: By each of its completions, judges included [P, 2].
    """

    once: FloatArray
    each: FloatArray

    def of(self, pulls: Pulls) -> FloatArray:
        """Return what a batch of pulls takes [2]."""
        return np.asarray((self.once[pulls.prompt] + pulls.size[:, None] * self.each[pulls.prompt]).sum(axis=0))


def limits_of(budget: Budget) -> list[tuple[int, float, str]]:
    """Return the limits of tokens and dollars: column of `Takes`, amount, and name of the argument."""
    found = [(_TOKENS, budget.tokens, "tokens"), (_USD, budget.usd, "usd")]
    return [(column, float(amount), name) for column, amount, name in found if amount is not None]


def completions_for(plan: Plan, takes: Takes, looked: FloatArray | None = None) -> int:
    """Return how many further completions the plan's budget of tokens or dollars probably pays for.

    A third of them are taken to be of the dearest prompt: nobody knows which prompts survive to be drawn most.

    Args:
        plan: The run.
        takes: What its completions take.
        looked: Tokens and dollars that are spent beforehand [2].

    Raises:
        ConfigurationError: Completions cost nothing, so the budget never ends.
    """
    found = []
    plan = plan.knowing(None)
    for column, amount, name in limits_of(plan.settings.budget):
        once, each = takes.once[:, column], takes.each[:, column]

        def typical(size: float, once: FloatArray = once, each: FloatArray = each) -> float:
            cost = once / size + each
            return float((2 * np.mean(cost) + np.max(cost)) / 3)

        if not typical(1.0) > 0:
            raise ConfigurationError(
                f"Budget({name}={amount:g}) never ends, because completions take no {name}. Add completions=, such as "
                f"Budget(5_000, {name}={amount:g})."
            )
        left = max(amount - (0.0 if looked is None else looked[column]), 0.0)
        first = max(int(left / typical(1.0)), plan.least)
        pulls, most = first_pulls(plan.of(first)), most_pulls(plan.of(first))
        # Other algorithms make their pulls smaller: they are taken to lie between those of the first batch and one.
        size = first / most if most else math.sqrt(max(pulls.completions, 1) / max(len(pulls), 1))
        found.append(int(_PLANNED * left / typical(size)))
    return min(found)


def planned(plan: Plan, environment: LiveEnvironment, meter: Meter, ledger: LedgerPort) -> Plan:
    """Return a plan whose budget has no completions with as many as it probably pays for, and those that are known.

    Some completions of each prompt without any are drawn first, to see what they take.

    Raises:
        BudgetTooSmall: They show that the budget does not pay for one round.
    """
    budget = plan.settings.budget
    if plan.completions is not None:
        return plan
    takes, looked = _measured(plan, environment, meter, ledger)
    others = ledger.taken_over + ledger.others
    writers = writers_of(plan)
    looked = looked + np.array([others.tokens, others.usd]) + (writers.takes if writers is not None else 0.0)
    known = ledger.planned
    if known is not None and (known.tokens, known.usd) == (budget.tokens, budget.usd):
        completions = known.completions  # an earlier process has planned for it
    else:
        completions = plan.problem.n_known + completions_for(plan, takes, looked)
        if completions < max(plan.least, plan.problem.n_known + plan.newcomers):
            needs = looked + takes.of(first_pulls(plan.knowing(None).of(plan.least))) / _PLANNED
            asked = ", ".join(f"{name}={_up(needs[column])}" for column, _, name in limits_of(budget))
            raise BudgetTooSmall(
                f"{shown_budget(budget)} does not pay for one round: after a first look, the rest is worth some "
                f"{completions} completions of the lengths that were measured, and the algorithm needs "
                f"{plan.least}. {least_that_pays(plan) or f'All in all they take about Budget({asked}).'}",
                given=completions,
                least=plan.least,
            )
        ledger.append(PlannedRecord(completions=completions, tokens=budget.tokens, usd=budget.usd))
    meter.limit_completions(meter.spent.completions + completions - plan.problem.n_known)
    return plan.of(completions)


def _measured(plan: Plan, environment: LiveEnvironment, meter: Meter, ledger: LedgerPort) -> tuple[Takes, FloatArray]:
    """Draw some completions of each prompt without any; return what completions take, and what these took [2]."""
    n_prompts, n_queries, known = len(plan.prompts), len(plan.examples), plan.problem.known
    prompts = np.unique(np.linspace(0, n_prompts - 1, min(n_prompts, _LOOKED_AT)).astype(np.int64))
    once, each = np.full((n_prompts, 2), np.nan), np.full((n_prompts, 2), np.nan)
    if known is not None and known.used is not None and known.once is not None:
        prompts = np.setdiff1d(prompts, known.pulls.prompt)
        for p in np.unique(known.pulls.prompt).tolist():
            mine = known.pulls.prompt == p
            shared, used = (np.array([_two(row) for row in rows[mine]]) for rows in (known.once, known.used))
            once[p] = shared.mean(axis=0)
            each[p] = (used - shared).sum(axis=0) / known.pulls.size[mine].sum()
    times = math.ceil(_LOOKS / max(len(prompts), 1))
    rng = np.random.default_rng([plan.settings.seed, n_queries])
    query = rng.integers(n_queries, size=len(prompts) * times)
    pulls = Pulls(np.repeat(prompts, times), query, np.ones(len(query), dtype=np.int64))
    results = environment.look(pulls) if len(pulls) else []
    for p in prompts.tolist():
        made = [r for i, r in enumerate(results) if pulls.prompt[i] == p and r is not None and r.scored]
        if made:
            shared = np.mean([_two(r.once) for r in made], axis=0)
            once[p], each[p] = shared, np.mean([_two(r.used) for r in made], axis=0) - shared
    seen = ~np.isnan(each[:, _TOKENS])
    if not seen.any():
        raise BudgetTooSmall(
            f"{shown_budget(plan.settings.budget)} does not pay for a single completion and its score. "
            f"{least_that_pays(plan)}".strip(),
            given=0,
            least=plan.least,
        )
    once[~seen], each[~seen] = once[seen].mean(axis=0), each[seen].mean(axis=0)
    spent, judged = meter.spent, sum(len(r.scored) for r in results if r is not None)
    judges = np.array([spent.judge_tokens, spent.judge_usd]) / max(judged, sum(map(len, ledger.stored.values())))
    takes = Takes(once=once, each=each + judges)
    student = plan.unit.draws if plan.unit is not None else 0  # drawn beside these, for the unit of costs
    return takes, takes.of(pulls) * (1 + student / max(len(pulls), 1))


def _two(used: Sequence[float]) -> tuple[float, float]:
    by_name = dict(zip(RESOURCES, used, strict=True))
    return by_name["tokens"] + by_name["prompt_tokens"], by_name["usd"]


@runtime_checkable
class _Foreseen(Protocol):
    """An algorithm that knows how many pulls it makes at most, each prompt's spread evenly over the queries."""

    def most_pulls(self, problem: Problem, *, budget: int, seed: int) -> int: ...


def most_pulls(plan: Plan) -> int | None:
    """Return how many pulls the algorithm makes at most; None where it does not say."""
    if not isinstance(plan.search, _Foreseen):
        return None
    budget = (plan.completions or 0) - plan.reserved
    return plan.search.most_pulls(plan.problem, budget=budget, seed=plan.settings.seed)


def first_pulls(plan: Plan) -> Pulls:
    """Return the first batch of a plan's pulls."""
    none = np.zeros(0, dtype=np.int64)
    return plan.first_pulls() or Pulls(none, none, none)


def check_pays(plan: Plan) -> None:
    """Refuse a budget that surely does not pay for one round, before anything is sent.

    Raises:
        BudgetTooSmall: The prompts of one round alone take more; the message has the least that surely pays.
    """
    found = _one_round(plan)
    if found is None:
        return
    cheapest, _ = found
    for column, amount, name in limits_of(plan.settings.budget):
        if cheapest[column] > amount:
            raise BudgetTooSmall(
                f"{shown_budget(plan.settings.budget)} does not pay for one round, {plan.least} completions of "
                f"{len(plan.prompts)} prompts: their prompts alone take at least {name}={_up(cheapest[column])}. "
                f"{least_that_pays(plan)}",
                given=0,
                least=plan.least,
            )


def least_that_pays(plan: Plan) -> str:
    """Return a sentence with the least budget that surely pays for one round; "" where it is not known."""
    found, limits = _one_round(plan), limits_of(plan.settings.budget)
    if found is None or not limits:
        return ""
    asked = ", ".join(f"{name}={_up(found[1][column])}" for column, _, name in limits)
    judges = ", without the calls of judges" if plan.judged else ""
    return f"The least that surely pays for one round is Budget({asked}){judges}."


def _one_round(plan: Plan) -> tuple[FloatArray, FloatArray] | None:
    """Return what the smallest round takes at least and at most [2] each; None where that is not known.

    At least: a token for six bytes of the shortest prompt, and one for each answer. At most: what is reserved for the
    longest prompt, and for the completions that are drawn beforehand.
    """
    if not is_direct(plan):
        return None
    by_length = sorted(
        plan.examples, key=lambda e: sum(len(str(v).encode(errors="surrogatepass")) for v in e.inputs().values())
    )
    low, high, shared = [], [], True
    for prompt in plan.prompts.shown:
        (short,), (long,) = calls_of(plan, prompt, by_length[0]), calls_of(plan, prompt, by_length[-1])
        price = plan.price_of(long.lm) or Price(prompt=0.0, completion=0.0, prompt_bound=0.0, completion_bound=0.0)
        least = sum(len(str(m.get("content")).encode(errors="surrogatepass")) for m in short.messages) / 6
        most, limit = prompt_bound(long.messages, long.params), long.limit or 0
        low.append([[least, least * price.prompt], [1.0, price.completion]])
        high.append([[most, most * price.prompt_bound], [limit, limit * price.completion_bound]])
        taken = supports_n(long.lm.model, long.params.get("custom_llm_provider"))
        shared &= taken and long.params.get("temperature") != 0
    pulls = first_pulls(replace(plan, completions=plan.least, unit=None))
    requests = len(pulls) if shared else pulls.completions
    cheapest = np.array(low).min(axis=0)
    dearest = np.array(high).max(axis=0)
    # One request of each LM shows how it counts several choices; see `FirstChoiceCheck`.
    probes = len({id(lm) for p in plan.prompts.shown for lm in p.student.lms.values()})
    student = plan.unit.draws if plan.unit is not None else 0
    looks = student + (max(_LOOKS, 2 * len(plan.prompts)) if plan.settings.budget.completions is None else 0)
    surely = (requests + probes + looks) * dearest[0] + (pulls.completions + looks) * dearest[1]
    if plan.settings.budget.completions is None:
        surely /= _PLANNED
    return requests * cheapest[0] + pulls.completions * cheapest[1], surely


def shown_budget(budget: Budget) -> str:
    """Write a budget as its user does."""
    given = [f"{name}={value!r}" for name, value in vars(budget).items() if value is not None]
    return f"Budget({', '.join(given)})"


def _up(amount: float) -> str:
    """Write an amount with three digits, rounded up."""
    if not amount > 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(amount)) - 2)
    return f"{math.ceil(amount / step - 1e-9) * step:.10g}"
