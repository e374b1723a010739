"""What a run will probably take: its algorithm run on made-up answers of known length, without any LM call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dspy
import numpy as np

from iapo_dspy.environments.port import drive
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.prompts.prompt import Prompt
from iapo_dspy.sampling.ledger.ledger import read_ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord, ScoreRecord, SpentRecord
from iapo_dspy.sampling.lm.bound import lms_of
from iapo_dspy.sampling.lm.params import request_params, supports_n
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.pricing import count_tokens
from iapo_dspy.scoring.strategies import Calibrates, Pretends, columns_of
from iapo_dspy.types import FloatArray, IntArray, Observations, Pulls

__all__ = ["Expected", "expect", "is_direct", "messages_of"]

_RUNS = 16  # simulated runs that the expectation is averaged over
_COUNTED = 32  # queries whose prompts are counted by the tokenizer, for each prompt


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Means over simulated runs; retries come on top.

    Attributes:
        completions: Completions drawn.
        requests: LM requests, those of judges included where they are known.
        prompt_tokens: Input tokens, counted by the model's tokenizer as far as LiteLLM has it.
        completion_tokens: Output tokens.
        usd: Dollars; None where a price is not known.
        spread: For each of these names, the least and the most that a simulated run took. Nobody knows beforehand which
            prompts the run will spend on; where their lengths differ much, so does what it takes.
        basis: Where the lengths of completions come from.
    """

    completions: float
    requests: float
    prompt_tokens: float
    completion_tokens: float
    usd: float | None
    spread: Mapping[str, tuple[float, float]]
    basis: str


@dataclass(frozen=True, kw_only=True)
class _Lengths:
    """What pulls of each prompt take [P]: a part per pull (`once`), a part per completion (`each`)."""

    requests_once: FloatArray
    requests_each: FloatArray
    prompt_once: FloatArray
    prompt_each: FloatArray
    output: FloatArray
    usd_once: FloatArray | None
    usd_each: FloatArray | None
    judge_requests: float = 0.0
    judge_prompt: float = 0.0
    judge_output: float = 0.0
    judge_usd: float = 0.0


_NAMES = ("completions", "requests", "prompt_tokens", "completion_tokens", "usd")


def expect(
    plan: Plan, output_tokens: float | Sequence[float] | None, log_dir: Path | None
) -> tuple[Expected | None, tuple[str, ...]]:
    """Return what the plan will probably take, and notes on what keeps that from being known.

    Args:
        plan: The run.
        output_tokens: Mean output tokens of a completion: one number, or one for each prompt.
        log_dir: The run's directory. Where it has a ledger, lengths that are not given are taken from it.

    Raises:
        ConfigurationError: `output_tokens` does not fit the prompts.
        LedgerError: There is a ledger, and it cannot be read.
    """
    if plan.pipeline is not None or plan.shown is not plan.prompts:
        return None, ("nothing is expected of pipelines, and of prompts that are varied one predictor at a time",)
    given = None if output_tokens is None else _per_prompt(output_tokens, len(plan.prompts))
    ledger = _Ledger.of(log_dir, plan) if log_dir is not None else None
    if not is_direct(plan):
        if ledger is None:
            return None, (
                "the student's own forward decides how often it asks: an expectation needs a log_dir with a ledger",
            )
        lengths, basis = ledger.lengths(), f"the ledger in {log_dir}"
    elif given is None and ledger is None:
        return None, ("for an expected spend, pass output_tokens= (per completion), or a log_dir with a ledger",)
    else:
        measured = ledger.lengths() if ledger is not None else None
        output = given if given is not None else measured.output if measured is not None else np.empty(0)
        lengths = _direct(plan, output, measured, known=ledger is not None and ledger.knows_all)
        basis = "output_tokens as given" if given is not None else f"the ledger in {log_dir}"
    notes = ("the metric asks LMs, which come on top of what is expected",) if plan.judged and ledger is None else ()
    quality = ledger.quality(plan) if ledger is not None else None
    runs = np.stack([_simulate(plan, lengths, quality, seed) for seed in range(_RUNS)])
    means = dict(zip(_NAMES, runs.mean(axis=0).tolist(), strict=True))
    spread = {name: (float(column.min()), float(column.max())) for name, column in zip(_NAMES, runs.T, strict=True)}
    if lengths.usd_once is None:
        means["usd"] = None
        del spread["usd"]
    return Expected(**means, spread=spread, basis=basis), notes


def is_direct(plan: Plan) -> bool:
    """Whether every completion of the student is one completion of one predictor."""
    return plan.pipeline is None and type(plan.student) in (dspy.Predict, dspy.ChainOfThought)


def messages_of(prompt: Prompt, example: dspy.Example) -> list[dict[str, object]]:
    """Return what a direct student is asked."""
    ((_, predictor),) = prompt.program.named_predictors()
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    messages: list[dict[str, object]] = adapter.format(
        predictor.signature, predictor.demos, dict(example.inputs().items())
    )
    return messages


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


def _direct(plan: Plan, output: FloatArray, measured: _Lengths | None, known: bool) -> _Lengths:
    """Return what pulls of a direct student take.

    Prompts are counted, unless all of them were measured (`known`): a provider may have another tokenizer than LiteLLM
    takes for its. Judges are as they were measured.
    """
    step = max(1, len(plan.examples) // _COUNTED)
    asked = plan.examples[::step][:_COUNTED]
    tokens, shares, once, each = [], [], [], []
    for i, prompt in enumerate(plan.prompts):
        (lm,) = lms_of(prompt.program)
        ((_, predictor),) = prompt.program.named_predictors()
        params = request_params(lm, predictor.config, prompt.decoding)
        length = float(measured.prompt_once[i] or measured.prompt_each[i]) if known and measured is not None else 0.0
        tokens.append(length or float(np.mean([count_tokens(lm.model, messages_of(prompt, e)) for e in asked])))
        shares.append(supports_n(lm.model, None) and params.get("temperature") != 0)
        price = plan.price_of(lm)
        once.append(np.nan if price is None else price.prompt)
        each.append(np.nan if price is None else price.completion)
    shared, prompts = np.array(shares, dtype=float), np.array(tokens)
    prompt_price, output_price = np.array(once), np.array(each)
    priced = not np.isnan(prompt_price).any()
    alone = 1.0 - shared
    return _Lengths(
        requests_once=shared,
        requests_each=alone,
        prompt_once=shared * prompts,
        prompt_each=alone * prompts,
        output=output,
        usd_once=shared * prompts * prompt_price if priced else None,
        usd_each=alone * prompts * prompt_price + output * output_price if priced else None,
        judge_requests=measured.judge_requests if measured is not None else 0.0,
        judge_prompt=measured.judge_prompt if measured is not None else 0.0,
        judge_output=measured.judge_output if measured is not None else 0.0,
        judge_usd=measured.judge_usd if measured is not None else 0.0,
    )


class _Ledger:
    """What an earlier run of these prompts took."""

    def __init__(
        self,
        records: Sequence[CompletionRecord],
        scores: Mapping[str, Sequence[float]],
        spent: Spent,
        prompt_of: Sequence[int | None],
    ) -> None:
        self._records = records
        self._scores = scores
        self._spent = spent
        self._prompt_of = prompt_of

    @classmethod
    def of(cls, log_dir: Path, plan: Plan) -> _Ledger | None:
        """Read the ledger of a run; None where there is none yet, or nothing in it."""
        if not (log_dir / "ledger.jsonl").is_file():
            return None
        header, everything = read_ledger(log_dir)
        records = [r for r in everything if isinstance(r, CompletionRecord) and r.usage.completion_tokens > 0]
        if not records:
            return None
        spent = next((r.spent for r in reversed(everything) if isinstance(r, SpentRecord)), Spent())
        labels = ((header.get("settings") or {}).get("about") or {}).get("labels") or ()
        known = {label: i for i, label in enumerate(labels)}
        scores = {r.key: r.scores for r in everything if isinstance(r, ScoreRecord) and r.scores is not None}
        if isinstance(plan.strategy, Calibrates) and scores:
            first = [row for key, row in scores.items() if key.startswith("0/")]  # the first round's
            learnt = plan.strategy.calibrate(first)
            if isinstance(learnt, Calibrates):
                scores = {key: learnt.place(row) for key, row in scores.items()} if learnt.calibrated else {}
        return cls(records, scores, spent, [known.get(p.label) for p in plan.prompts])

    def quality(self, plan: Plan) -> FloatArray:
        """Return how many scores each prompt has, and their mean as a share of the objectives' bounds [P, 2]."""
        low, high = _bounds(plan).T
        known_k = len(plan.strategy.objectives)  # what is behind them is no quality
        found = np.zeros((len(self._prompt_of), 2))
        for p, known in enumerate(self._prompt_of):
            keys = [f"{r.round}/{r.position}/{r.index}" for r in self._records if r.prompt == known]
            scores = [self._scores[key] for key in keys if key in self._scores]
            if scores and len(scores[0]) == len(low):
                seen = (np.array(scores)[:, :known_k] - low[:known_k]) / (high[:known_k] - low[:known_k])
                found[p] = len(scores), float(np.clip(seen, 0.0, 1.0).mean())
        return found

    @property
    def knows_all(self) -> bool:
        """Whether every prompt of the plan has completions here."""
        return {r.prompt for r in self._records} >= {-1 if p is None else p for p in self._prompt_of}

    def lengths(self) -> _Lengths:
        """Average over each prompt's completions; over all of them for prompts that the ledger does not know."""
        mine = [[r for r in self._records if r.prompt == p] or self._records for p in self._prompt_of]
        pulls = [len({r.pull for r in rows}) for rows in mine]
        asked = (self._spent.requests - self._spent.judge_requests) / len(self._records)
        n = len(self._records)

        def once(name: str) -> FloatArray:
            return np.array(
                [sum(getattr(r.usage, name) for r in rows) / m for rows, m in zip(mine, pulls, strict=True)]
            )

        def mean(name: str) -> FloatArray:
            return np.array([np.mean([getattr(r.usage, name) or 0.0 for r in rows]) for rows in mine])

        priced = all(r.usage.usd is not None for r in self._records)
        return _Lengths(
            requests_once=np.zeros(len(mine)),
            requests_each=np.full(len(mine), asked),
            prompt_once=once("shared_tokens"),
            prompt_each=mean("prompt_tokens") - mean("shared_tokens"),
            output=mean("completion_tokens"),
            usd_once=once("shared_usd") if priced else None,
            usd_each=mean("usd") - mean("shared_usd") if priced else None,
            judge_requests=self._spent.judge_requests / n,
            judge_prompt=self._spent.judge_prompt_tokens / n,
            judge_output=self._spent.judge_completion_tokens / n,
            judge_usd=self._spent.judge_usd / n,
        )


class _Guess:
    """An environment of answers that are made up and lengths that are known.

    Nobody knows how good a prompt is: its mean score is drawn anew for every simulated run, from what was seen of it.

    Args:
        plan: The run.
        lengths: What pulls take.
        quality: Scores seen of each prompt [P, 2]: their number, and their mean as a share of the bounds.
        seed: Number of the simulated run.
    """

    def __init__(self, plan: Plan, lengths: _Lengths, quality: FloatArray | None, seed: int) -> None:
        self._plan = plan
        self._lengths = lengths
        self._rng = np.random.default_rng([plan.seed, seed])
        seen, mean = (np.zeros(len(plan.prompts)),) * 2 if quality is None else quality.T
        share = self._rng.beta(2.0 + seen * mean, 1.5 + seen * (1.0 - mean))
        self._skill = np.log(share / (1.0 - share))
        # Queries differ for all prompts alike, and for each prompt in a way of its own.
        self._ease = self._rng.normal(0.0, 1.0, len(plan.examples))
        self._liking = self._rng.normal(0.0, 1.5, (len(plan.prompts), len(plan.examples)))
        self.taken = np.zeros(5)  # completions, requests, prompt tokens, completion tokens, dollars

    @property
    def n_prompts(self) -> int:
        """P."""
        return len(self._plan.prompts)

    @property
    def n_queries(self) -> int:
        """X."""
        return len(self._plan.examples)

    def pull(self, pulls: Pulls) -> Observations:
        """Make up what the budget pays for."""
        pulls = pulls.take(_in_turns(pulls))  # as the live environment does it where a budget may end in between
        takes = self._takes(pulls)
        total = self.taken + np.cumsum(takes, axis=0)
        fits = np.ones(len(pulls), dtype=bool)
        if self._plan.budget.tokens is not None:
            fits &= total[:, 2] + total[:, 3] <= self._plan.budget.tokens
        if self._plan.budget.usd is not None and self._lengths.usd_once is not None:
            fits &= total[:, 4] <= self._plan.budget.usd
        made = pulls.take(np.flatnonzero(fits))
        self.taken = self.taken + takes[fits].sum(axis=0)
        label, score = self._answers(made)
        cost = self._plan.cost
        tokens, dollars = self._lengths, self._lengths.usd_once is not None
        p, each = made.prompt, np.repeat(made.prompt, made.size)
        overhead = cost.prompt_tokens * tokens.prompt_once[p] + cost.seconds
        costs = cost.completion_tokens * tokens.output[each] + cost.prompt_tokens * tokens.prompt_each[each]
        if dollars and tokens.usd_once is not None and tokens.usd_each is not None:
            overhead = overhead + cost.usd * tokens.usd_once[p]
            costs = costs + cost.usd * tokens.usd_each[each]
        return Observations(
            pulls=made, label=label, score=score, cost=costs, overhead=overhead, exhausted=not fits.all()
        )

    def _takes(self, pulls: Pulls) -> FloatArray:
        """What each pull takes [B, 5]."""
        x, p, m = self._lengths, pulls.prompt, pulls.size
        usd = np.zeros(len(pulls))
        if x.usd_once is not None and x.usd_each is not None:
            usd = x.usd_once[p] + m * (x.usd_each[p] + x.judge_usd)
        requests = x.requests_once[p] + m * (x.requests_each[p] + x.judge_requests)
        prompt = x.prompt_once[p] + m * (x.prompt_each[p] + x.judge_prompt)
        output = m * (x.output[p] + x.judge_output)
        return np.stack([m.astype(float), requests, prompt, output, usd], axis=1)

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


def _in_turns(pulls: Pulls) -> IntArray:
    """Positions in an order in which prompts take turns."""
    order = np.argsort(pulls.prompt, kind="stable")
    prompt = pulls.prompt[order]
    begin = np.searchsorted(prompt, prompt)
    return order[np.lexsort((prompt, np.arange(len(prompt)) - begin))]


def _bounds(plan: Plan) -> FloatArray:
    """Lowest and highest score of each column [K, 2], as far as the strategy says."""
    about = plan.strategy.to_dict()
    found = [o["bounds"] for o in about.get("objectives", ())]
    if len(found) < len(plan.strategy.objectives):  # the metric's come first
        found.insert(0, (about.get("vote") or about).get("bounds", (0.0, 1.0)))
    unknown = len(columns_of(plan.strategy)) - len(found)
    return np.array([*found, *[(0.0, 1.0)] * unknown], dtype=float)


def _simulate(plan: Plan, lengths: _Lengths, quality: FloatArray | None, seed: int) -> FloatArray:
    environment = _Guess(plan, lengths, quality, seed)
    drive(plan.start(), environment)
    return environment.taken
