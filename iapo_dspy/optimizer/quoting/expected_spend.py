"""The probable spend of a run: its algorithm is run on made-up answers of known length, without any LM call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from iapo_dspy.bandit.outcome import Wish
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.optimizer.fingerprint import older_of, prompt_ids
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.optimizer.quoting.affordable import Takes, completions_for
from iapo_dspy.optimizer.quoting.rewriting_calls import RewritesMade
from iapo_dspy.optimizer.quoting.structure import DryRunFailed, calls_of, is_direct
from iapo_dspy.optimizer.quoting.writers import Writers
from iapo_dspy.sampling.ledger.reading import LedgerContents, contents_of
from iapo_dspy.sampling.ledger.records import CompletionRecord, ScoreRecord, SpentRecord
from iapo_dspy.sampling.lm.params import supports_n
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.scoring.strategies import Calibrates, Pretends, columns_of
from iapo_dspy.types import FloatArray, IntArray, Observations, Pulls

_RUNS = 16  # simulated runs that the expectation is averaged over
_COUNTED = 32  # queries whose prompts are counted by the tokenizer, for each prompt


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Means over simulated runs; retries come on top.

    Attributes:
        completions: Completions drawn.
        requests: LM requests, with the requests of judges where these are known.
        prompt_tokens: Input tokens, counted by the model's tokenizer as far as LiteLLM has it.
        completion_tokens: Output tokens.
        usd: Dollars; None where a price is not known.
        spread: For each of these names, the least and the most that a simulated run took. It is not known beforehand on
            which prompts the run will spend; where their lengths differ much, so do the numbers.
        basis: Where the lengths of completions come from.
    """

    completions: float
    requests: float
    prompt_tokens: float
    completion_tokens: float
    usd: float | None
    spread: Mapping[str, tuple[float, float]]
    basis: str


_TAKEN = ("requests", "prompt_tokens", "completion_tokens", "usd")
_USD = _TAKEN.index("usd")


@dataclass(frozen=True, kw_only=True)
class _Lengths:
    """Requests, tokens and dollars, in the order of `_TAKEN` (R). All dollars are NaN where a price is not known.

    Attributes:
        once: By a pull of each prompt, whatever its size [P, R].
        each: By each of its completions [P, R].
        judges: By the judges of a completion [R].
    """

    once: FloatArray
    each: FloatArray
    judges: FloatArray

    @property
    def takes(self) -> Takes:
        """Tokens and dollars alone."""
        once, each = (np.stack([a[:, 1] + a[:, 2], a[:, _USD]], axis=1) for a in (self.once, self.each + self.judges))
        return Takes(once=once, each=each)

    def of(self, pulls: Pulls) -> FloatArray:
        """Return the completions and the spend of each pull [B, 1 + R]."""
        size = pulls.size[:, None].astype(float)
        return np.hstack([size, self.once[pulls.prompt] + size * (self.each[pulls.prompt] + self.judges)])


def expect(
    plan: Plan, output_tokens: float | Sequence[float] | None, writers: Writers | None = None
) -> tuple[Plan, Expected | None, tuple[str, ...]]:
    """Return the probable spend of a plan, and reasons why it is not known.

    Args:
        plan: The run. Where its directory has a ledger, lengths that are not given are taken from it.
        writers: The calls that write prompts; None where nobody does.
        output_tokens: Mean output tokens of a completion, all its LM calls together: one number, or one for each
            prompt.

    Returns:
        The plan, with the completions that it will probably have; its spend; and the reasons.

    Raises:
        ConfigurationError: `output_tokens` does not fit the prompts.
        LedgerError: There is a ledger, and it cannot be read.
    """
    if plan.prompts.shape is not None:
        return plan, None, ("an expectation is not made for prompts that are varied one predictor at a time",)
    given = None if output_tokens is None else _per_prompt(output_tokens, len(plan.prompts))
    log_dir = plan.settings.log_dir
    ledger = _Ledger.of(log_dir, plan) if log_dir is not None else None
    if given is None and ledger is None:
        return plan, None, ("for an expected spend, pass output_tokens= (per completion), or a log_dir with a ledger",)
    measured = ledger.lengths() if ledger is not None else None
    if measured is not None and not is_direct(plan):
        lengths, basis = measured, f"the ledger in {log_dir}"
    else:
        output = given if given is not None else measured.each[:, 2] if measured is not None else np.empty(0)
        try:
            lengths = _of_calls(plan, output, measured, known=ledger is not None and ledger.knows_all)
        except DryRunFailed as error:
            return (
                plan,
                None,
                (f"an expectation needs a log_dir with a ledger, for the student cannot be tried: {error}",),
            )
        basis = "output_tokens as given" if given is not None else f"the ledger in {log_dir}"
    notes = ("the metric asks LMs, which come on top of the expectation",) if plan.judged and ledger is None else ()
    if plan.completions is None:
        aside = writers.takes if writers is not None else None
        plan = plan.of(max(completions_for(plan, lengths.takes, aside), plan.least))
    quality = ledger.quality(plan) if ledger is not None else None
    known = ledger.contents if ledger is not None else None
    guesses = [_Guess(plan, lengths, quality, seed, writers, RewritesMade(plan, known)) for seed in range(_RUNS)]
    for guess in guesses:
        guess.measure_the_student()
        outcome = drive(plan.start(), guess, more=guess.write)
        guess.take(plan.measuring(outcome, plan.reserved if outcome.complete else 0))
    runs = np.stack([guess.taken for guess in guesses])
    names = ("completions", *_TAKEN)
    means = dict(zip(names, runs.mean(axis=0).tolist(), strict=True))
    spread = {name: (float(column.min()), float(column.max())) for name, column in zip(names, runs.T, strict=True)}
    if np.isnan(means["usd"]):
        means["usd"] = None
        del spread["usd"]
    return plan, Expected(**means, spread=spread, basis=basis), notes


def _per_prompt(value: float | Sequence[float], n_prompts: int) -> FloatArray:
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        array = np.array([np.nan])
    if array.shape not in ((), (n_prompts,)) or not np.isfinite(array).all() or (array < 0).any():
        raise ConfigurationError(
            f"output_tokens={value!r}: give the mean output tokens of a completion, one number >= 0 or one for each of "
            f"the {n_prompts} prompts."
        )
    return np.broadcast_to(array, (n_prompts,)).astype(float)


def _of_calls(plan: Plan, output: FloatArray, measured: _Lengths | None, known: bool) -> _Lengths:
    """Return the lengths of a student whose LM calls are known.

    Prompts are counted, unless all of them were measured (`known`): a provider may have another tokenizer than LiteLLM
    takes for its. Judges are as they were measured. The calls of a completion share its output evenly, and each has the
    outputs of those before it in its prompt. The first call is the same for all completions of a pull.
    """
    step = max(1, len(plan.examples) // _COUNTED)
    asked = plan.examples[::step][:_COUNTED] if is_direct(plan) else plan.examples[:1]
    once, each = np.zeros((len(plan.prompts), len(_TAKEN))), np.zeros((len(plan.prompts), len(_TAKEN)))
    for i, prompt in enumerate(plan.prompts):
        calls = calls_of(plan, prompt, asked[0])
        share = output[i] / len(calls)
        for k, call in enumerate(calls):
            tokens = call.tokens + k * share
            if k == 0 and is_direct(plan):
                tokens = float(np.mean([calls_of(plan, prompt, e)[0].tokens for e in asked]))
                if known and measured is not None:
                    tokens = measured.once[i, 1] or measured.each[i, 1] or tokens
            price = plan.price_of(call.lm)
            read, written = (price.prompt, price.completion) if price is not None else (np.nan, np.nan)
            shared = k == 0 and supports_n(call.lm.model, None) and call.params.get("temperature") != 0
            (once if shared else each)[i] += (1.0, tokens, 0.0, tokens * read)
            each[i] += (0.0, 0.0, share, share * written)
    if np.isnan(once + each).any():
        once[:, _USD] = each[:, _USD] = np.nan
    judges = measured.judges if measured is not None else np.zeros(len(_TAKEN))
    return _Lengths(once=once, each=each, judges=judges)


@dataclass(frozen=True, kw_only=True)
class _Ledger:
    """The spend of an earlier run of these prompts.

    Attributes:
        records: Its completions.
        scores: Key of a completion -> its scores.
        spent: The spend as a whole.
        prompt_of: Name of each prompt in it.
        contents: All of it.
        rewriting: What a rewrite of a query takes for each prompt, in the order of `_TAKEN` [P, R].
    """

    records: Sequence[CompletionRecord]
    scores: Mapping[str, Sequence[float]]
    spent: Spent
    prompt_of: Sequence[str]
    contents: LedgerContents
    rewriting: FloatArray

    @classmethod
    def of(cls, log_dir: Path, plan: Plan) -> _Ledger | None:
        """Read the ledger of a run; None where there is none yet, or nothing in it."""
        if not (log_dir / "ledger.jsonl").is_file():
            return None
        id_of = prompt_ids(plan)
        contents = contents_of(log_dir, partial(older_of, plan, id_of))
        records = [
            replace(r, text=None, fields=None, inner=None)  # only their usage counts, and texts take memory
            for r in contents.all(CompletionRecord)
            if r.usage.completion_tokens > 0
        ]
        if not records:
            return None
        spent = next((r.spent for r in reversed(contents.all(SpentRecord))), Spent())
        columns = len(columns_of(plan.strategy))
        seen = {r.key: r for r in contents.all(ScoreRecord) if r.scores and len(r.scores) == columns}
        scores = {key: r.scores or () for key, r in seen.items()}
        if isinstance(plan.strategy, Calibrates) and scores:
            first = [r.scores or () for r in seen.values() if r.calibrates]
            learnt = plan.strategy.calibrate(first)
            if isinstance(learnt, Calibrates):
                scores = {key: learnt.place(row) for key, row in scores.items()} if learnt.calibrated else {}
        prompt_of = [id_of(i) for i in range(len(plan.prompts))]
        rewrites = RewritesMade(plan, contents)
        return cls(
            records=records,
            scores=scores,
            spent=spent,
            prompt_of=prompt_of,
            contents=contents,
            rewriting=np.stack([rewrites.of_query(i) for i in range(len(plan.prompts))]),
        )

    def quality(self, plan: Plan) -> FloatArray:
        """Return how many scores each prompt has, and their mean as a share of the objectives' bounds [P, 2]."""
        low, high = _bounds(plan).T
        known_k = len(plan.strategy.objectives)  # further columns say nothing about quality
        found = np.zeros((len(self.prompt_of), 2))
        for p, known in enumerate(self.prompt_of):
            keys = [r.key for r in self.records if r.prompt == known]
            scores = [self.scores[key] for key in keys if key in self.scores]
            if scores and len(scores[0]) == len(low):
                seen = (np.array(scores)[:, :known_k] - low[:known_k]) / (high[:known_k] - low[:known_k])
                found[p] = len(scores), float(np.clip(seen, 0.0, 1.0).mean())
        return found

    @property
    def knows_all(self) -> bool:
        """Whether every prompt of the plan has completions here."""
        return {r.prompt for r in self.records} >= set(self.prompt_of)

    def lengths(self) -> _Lengths:
        """Average over each prompt's completions; over all of them for prompts that the ledger does not know."""
        mine = [[r for r in self.records if r.prompt == p] or self.records for p in self.prompt_of]
        pulls = [len({r.pull for r in rows}) for rows in mine]
        beside = self.spent.judge_requests + self.spent.writer_requests + self.spent.rewriter_requests
        asked = (self.spent.requests - beside) / len(self.records)

        def once(name: str) -> FloatArray:
            return np.array(
                [sum(getattr(r.usage, name) for r in rows) / m for rows, m in zip(mine, pulls, strict=True)]
            )

        def mean(name: str) -> FloatArray:
            return np.array([np.mean([getattr(r.usage, name) or 0.0 for r in rows]) for rows in mine])

        judges = [self.spent.judge_requests, self.spent.judge_prompt_tokens, self.spent.judge_completion_tokens]
        usd = once("shared_usd"), mean("usd") - mean("shared_usd")
        if any(r.usage.usd is None for r in self.records):
            usd = np.full(len(mine), np.nan), np.full(len(mine), np.nan)
        prompt, none = once("shared_tokens"), np.zeros(len(mine))
        rewritten = self.rewriting[:, 0] > 0  # each pull has the whole of a rewrite, which a run pays for once a query
        written = mean("completion_tokens") - rewritten * mean("shared_completion_tokens")
        prompt = np.where(rewritten, np.maximum(prompt - self.rewriting[:, 1], 0.0), prompt)
        usd = np.where(rewritten, np.maximum(usd[0] - np.nan_to_num(self.rewriting[:, _USD]), 0.0), usd[0]), usd[1]
        each = np.full(len(mine), asked), mean("prompt_tokens") - mean("shared_tokens"), written
        return _Lengths(
            once=np.stack([none, prompt, none, usd[0]], axis=1),
            each=np.stack([*each, usd[1]], axis=1),
            judges=np.array([*judges, self.spent.judge_usd]) / len(self.records),
        )


class _Guess:
    """An environment of answers that are made up and lengths that are known.

    It is not known how good a prompt is: its mean score is drawn anew for every simulated run, around the scores seen
    (`quality`, as `_Ledger.quality` returns it).
    """

    def __init__(
        self,
        plan: Plan,
        lengths: _Lengths,
        quality: FloatArray | None,
        seed: int,
        writers: Writers | None,
        rewrites: RewritesMade,
    ) -> None:
        self._plan = plan
        self._rewrites = rewrites
        self._lengths = lengths
        self._writers = writers
        self._problem = plan.problem
        self._rng = np.random.default_rng([plan.settings.seed, seed])
        seen, mean = (np.zeros(len(plan.prompts)),) * 2 if quality is None else quality.T
        share = self._rng.beta(2.0 + seen * mean, 1.5 + seen * (1.0 - mean))
        self._skill = np.log(share / (1.0 - share))
        # Queries differ for all prompts alike, and for each prompt in a way of its own.
        self._ease = self._rng.normal(0.0, 1.0, len(plan.examples))
        self._liking = self._rng.normal(0.0, 1.5, (len(plan.prompts), len(plan.examples)))
        self.taken = np.zeros(1 + len(_TAKEN))  # completions and their spend

    @property
    def n_prompts(self) -> int:
        """P."""
        return self._problem.n_prompts

    @property
    def n_queries(self) -> int:
        """X."""
        return len(self._plan.examples)

    def pull(self, pulls: Pulls) -> Observations:
        """Make up the completions that the budget pays for."""
        made = self.take(pulls.take(pulls.in_turns()))  # as the live environment does
        cost = self._plan.settings.cost_unit
        label, score = self._answers(made)
        weights = np.array([0.0, cost.prompt_tokens, cost.completion_tokens, cost.usd])
        return Observations(
            pulls=made,
            label=label,
            score=score,
            cost=np.nan_to_num(self._lengths.each[np.repeat(made.prompt, made.size)]) @ weights,
            overhead=np.nan_to_num(self._lengths.once[made.prompt]) @ weights + cost.seconds,
            exhausted=len(made) < len(pulls),
        )

    def write(self, wish: Wish) -> Problem:
        """Make up prompts that are as long as those at hand."""
        before = self._problem
        count = before.n_prompts + wish.n
        if self._writers is not None:
            self.taken[1:] += self._writers.each[min(wish.generation, len(self._writers.each) - 1)]
        lengths = self._lengths
        once, each = (np.vstack([a, np.tile(a.mean(axis=0), (wish.n, 1))]) for a in (lengths.once, lengths.each))
        self._lengths = replace(lengths, once=once, each=each)
        share = self._rng.beta(2.0, 1.5, wish.n)
        self._skill = np.append(self._skill, np.log(share / (1.0 - share)))
        self._liking = np.vstack([self._liking, self._rng.normal(0.0, 1.5, (wish.n, before.n_queries))])
        of, parent = np.full(wish.n, int(wish.front.sum(axis=0).argmax())), before.parent
        parent = np.append(np.full(before.n_prompts, -1) if parent is None else parent, of)
        self._problem = replace(before, n_prompts=count, parts=None, parent=parent)
        return self._problem

    def measure_the_student(self) -> None:
        """Add the completions of a student that is drawn for the unit of costs only; it is taken to be average."""
        each = np.arange(len(self._plan.prompts))
        average = self._lengths.of(Pulls(each, np.zeros_like(each), np.ones_like(each))).mean(axis=0)
        self.taken = self.taken + average * (self._plan.unit.draws if self._plan.unit is not None else 0)

    def take(self, pulls: Pulls) -> Pulls:
        """Count the pulls that the budget pays for, and return them."""
        takes, budget = self._lengths.of(pulls), self._plan.settings.budget
        total = self.taken + np.cumsum(takes, axis=0)
        fits = np.ones(len(pulls), dtype=bool)
        if budget.tokens is not None:
            fits &= total[:, 2] + total[:, 3] <= budget.tokens
        if budget.usd is not None:
            fits &= ~(total[:, 1 + _USD] > budget.usd)  # NaN: the price is not known
        made = pulls.take(np.flatnonzero(fits))
        self.taken = self.taken + takes[fits].sum(axis=0)
        self.taken[1:] += self._rewrites.take(made)
        return made

    def _answers(self, pulls: Pulls) -> tuple[IntArray, FloatArray]:
        """Label [S] and score [S, K] of completions that are as good as their prompt and their query."""
        p, x = np.repeat(pulls.prompt, pulls.size), np.repeat(pulls.query, pulls.size)
        quality = 1.0 / (1.0 + np.exp(-(self._skill[p] + self._ease[x] + self._liking[p, x])))
        strategy = self._plan.strategy
        if isinstance(strategy, Pretends):
            return strategy.pretend(quality, self._rng)
        low, high = _bounds(self._plan).T
        share = np.clip(quality[:, None] + self._rng.normal(0.0, 0.2, (len(p), len(low))), 0.0, 1.0)
        # Labels serve a strategy of the user's that votes; where it has more columns than bounds, these are in [0, 1].
        label = np.where(self._rng.random(len(p)) < quality, 0, 1 + self._rng.integers(0, 4, len(p)))
        return label, low + share * (high - low)


def _bounds(plan: Plan) -> FloatArray:
    """Lowest and highest score of each column [K, 2], as far as the strategy says."""
    about = plan.strategy.to_dict()
    found = [o["bounds"] for o in about.get("objectives", ())]
    if len(found) < len(plan.strategy.objectives):  # the metric's come first
        found.insert(0, (about.get("vote") or about).get("bounds", (0.0, 1.0)))
    unknown = len(columns_of(plan.strategy)) - len(found)
    return np.array([*found, *[(0.0, 1.0)] * unknown], dtype=float)
