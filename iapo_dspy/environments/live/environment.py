"""The live environment: pulls become completions of a language model, on disk before they are used, then scored."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import dspy
import numpy as np

from iapo_dspy.environments.live.batch_rounds import Batches
from iapo_dspy.environments.live.progress import FailureReport, Failures, Progress
from iapo_dspy.environments.live.stored import (
    in_turns,
    is_lost,
    record_of,
    signature_of,
    stored_inner,
    stored_prediction,
)
from iapo_dspy.errors import BudgetExceeded, TooManyErrors, one_line
from iapo_dspy.preferences import RESOURCES
from iapo_dspy.sampling.batches.books import Drawn
from iapo_dspy.sampling.batches.running import BatchAPI
from iapo_dspy.sampling.concurrency.loop import run_on_loop
from iapo_dspy.sampling.judges.metered import Metering
from iapo_dspy.sampling.ledger.ledger import LedgerPort, NullLedger
from iapo_dspy.sampling.ledger.records import CompletionRecord, PullKey, ScoreRecord, SpentRecord
from iapo_dspy.sampling.rollouts.pipeline import Upstreams
from iapo_dspy.sampling.rollouts.rollout import InnerCall
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import Meter, Reservation, Spent
from iapo_dspy.sampling.spending.cost import Cost, use_of
from iapo_dspy.scoring.inside_pipeline import score_inside
from iapo_dspy.scoring.scores import Metric, Scored
from iapo_dspy.scoring.strategies import Calibrates, Equates, Strategy, classes_of, columns_of
from iapo_dspy.types import Decoding, FloatArray, Observations, Pull, Pulls

logger = logging.getLogger(__name__)

__all__ = ["FailureReport", "LiveEnvironment", "LivePrompt", "Progress"]

T = TypeVar("T")
NOTHING_WORKS = 32  # failed completions without a single success after which a run stops


@dataclass(frozen=True, kw_only=True)
class LivePrompt:
    """A program to sample and how its LM decodes.

    Attributes:
        program: The program.
        decoding: Settings that override the LM's own; those of the inner module's LM calls, if there is one.
        inner: The module inside of the program whose completions are drawn; None where it is the program itself.
    """

    program: Any
    decoding: Decoding
    inner: Any = None


class LiveEnvironment:
    """Answers pulls from a language model.

    Args:
        prompts: The prompt set P.
        examples: The training set X, with inputs and labels.
        strategy: Scores completions.
        metric: For strategies that need labels.
        sampler: Draws completions.
        meter: Holds the budget; shared with the sampler.
        ledger: Where completions are kept before they are used.
        max_errors: Stop when more completions than this failed with an error; None: only where nothing works.
        progress: Called after every pull.
        cost: What completions cost.
        batch: Have each round drawn by batch jobs at the provider; None sends ordinary requests.
    """

    def __init__(
        self,
        *,
        prompts: Sequence[LivePrompt],
        examples: Sequence[dspy.Example],
        strategy: Strategy,
        metric: Metric | None,
        sampler: Sampler,
        meter: Meter,
        ledger: LedgerPort,
        max_errors: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        cost: Cost | None = None,
        batch: BatchAPI | None = None,
    ) -> None:
        self._prompts = prompts
        self._examples = tuple(examples)
        self._strategy = strategy
        self._metric = metric
        self._sampler = sampler
        self._meter = meter
        self._ledger = ledger
        self._max_errors = max_errors
        self._progress = progress
        self._cost = cost or Cost()
        self._metering = Metering(sampler)
        self._unjudged = 0
        self._tokens = np.zeros((2, len(self._prompts)))
        self._round = 0
        self._diverged = False
        self._finished = False
        self._used: set[tuple[PullKey, int]] = set()
        self._unused: dict[tuple[int, int], list[CompletionRecord]] | None = None
        self._scorer = strategy.digest(metric)
        self._threads = concurrent.futures.ThreadPoolExecutor(sampler.max_concurrency, "iapo-dspy-score")
        self._classes = [classes_of(strategy) for _ in self._examples]
        meter.keep_journal(self._write_spent)
        self._upstream = Upstreams(ledger.calls, ledger.append)
        self._mixed: set[int] = set()
        self._failures = Failures([0] * len(self._prompts), [0] * len(self._prompts))
        self._batches = Batches(
            batch,
            prompts=self._prompts,
            examples=self._examples,
            meter=meter,
            ledger=ledger,
            journal=lambda: self._spent_record(meter.spent, meter.reserved),
            notify=self._tell,
            prices=self._cost.prices,
        )

    @property
    def n_prompts(self) -> int:
        """P."""
        return len(self._prompts)

    @property
    def n_queries(self) -> int:
        """X."""
        return len(self._examples)

    @property
    def strategy(self) -> Strategy:
        """The strategy with what it has learnt of its scales from the first batch of pulls."""
        return self._strategy

    @property
    def failures(self) -> FailureReport:
        """Failed completions so far."""
        return self._failures.report()

    @property
    def unjudged(self) -> int:
        """Completions that were drawn, but not scored, because their judge did not fit into the budget."""
        return self._unjudged

    @property
    def output_tokens(self) -> FloatArray:
        """Mean output tokens of a prompt's completions [P]; NaN for a prompt without any."""
        total, drawn = self._tokens
        return np.asarray(total / np.where(drawn > 0, drawn, np.nan))

    @property
    def running_jobs(self) -> tuple[str, ...]:
        """The provider's ids of the batch jobs that are waited for."""
        return self._batches.running

    def close(self, *, finished: bool) -> None:
        """End the threads that score, and say in the ledger whether the run came to its end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if finished:
            self._note_spent(finished=True)

    def pull(self, pulls: Pulls) -> Observations:
        """Draw and score these pulls, all in flight together.

        Raises:
            TooManyErrors: See `max_errors`.
            Exception: A fatal error of the provider, such as a wrong key.
        """
        results = run_on_loop(self._pull_all(pulls))
        self._round += 1
        report = self._failures.totals()
        if report.completions and report.total == report.completions:
            raise TooManyErrors(f"Nothing has worked so far: {report}. {self._kept()}")
        return self._observations(pulls, results)

    async def _pull_all(self, pulls: Pulls) -> list[_Pulled | None]:
        """Start every pull that the budget pays for; None for those it does not."""
        await self._batches.resume()
        tasks: dict[int, asyncio.Task[_Pulled]] = {}
        # Pulls wait here for the scores of earlier ones: else a slow judge would find a budget that is used up by
        # completions drawn long before their turn.
        places = asyncio.Semaphore(2 * self._sampler.max_concurrency)
        starts: dict[int, tuple[PullKey, Pull, dict[int, CompletionRecord], Reservation | None]] = {}
        listed = list(pulls)
        refused = False
        for position in in_turns(pulls):
            pull, key = listed[position], (self._round, position)
            stored = self._stored(key, pull)
            missing = pull.size - len(stored)
            reservation: Reservation | None = None
            if missing and not refused:
                try:
                    reservation = self._meter.reserve(completions=missing)
                except BudgetExceeded as exc:
                    logger.info("The budget is used up: %s", exc)
                    refused = True
            if reservation is not None or not missing:
                starts[position] = key, pull, stored, reservation
        try:
            drawn = await self._batches.draw(starts.values())  # nothing, unless the run uses batch jobs
            for position, start in starts.items():
                tasks[position] = asyncio.ensure_future(self._in_turn(places, *start, drawn.get(start[0])))
            await asyncio.gather(*tasks.values())
        except BaseException:
            self._upstream.cancel()
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            raise
        finally:
            self._note_spent()
            self._ledger.flush()
        return [tasks[i].result() if i in tasks else None for i in range(len(pulls))]

    def _stored(self, key: PullKey, pull: Pull) -> dict[int, CompletionRecord]:
        """Return what an earlier process of this run paid for, by position in the pull.

        Completions that an error kept from being made are drawn again, unless the run had come to its end: then they
        are part of what it found.

        A metric that was changed in between makes the algorithm ask for other pulls. From the first of those on, what
        is stored of a prompt and a query serves any pull of the two.
        """
        finished = self._ledger.spent.finished
        found = [r for r in self._ledger.completions(key) if r.index < pull.size]
        self._diverged |= any((r.prompt, r.query) != (pull.prompt, pull.query) for r in found)
        if self._diverged:
            pool = self._pool().get((pull.prompt, pull.query), [])
            found, pool[:] = pool[: pull.size], pool[pull.size :]
            return dict(enumerate(found))
        self._used.update((r.pull, r.index) for r in found)
        return {r.index: r for r in found if finished or not is_lost(r)}

    def _pool(self) -> dict[tuple[int, int], list[CompletionRecord]]:
        """What is stored and not used yet, by prompt and query; made when the run leaves the stored one's path."""
        if self._unused is None:
            self._unused = {}
            for r in self._ledger.stored:
                if (r.pull, r.index) not in self._used and not is_lost(r):
                    self._unused.setdefault((r.prompt, r.query), []).append(r)
        return self._unused

    async def _in_turn(
        self,
        places: asyncio.Semaphore,
        key: PullKey,
        pull: Pull,
        stored: dict[int, CompletionRecord],
        reservation: Reservation | None,
        drawn: Drawn | None,
    ) -> _Pulled:
        try:
            async with places:
                if (
                    reservation is not None and drawn is None and self._unjudged
                ):  # what is drawn now could not be judged either
                    reservation.release()
                    reservation = None
                return await self._pull_one(key, pull, stored, reservation, drawn)
        finally:
            if reservation is not None:
                reservation.release()  # cancelled while it waited; otherwise it is settled already

    async def _pull_one(
        self,
        key: PullKey,
        pull: Pull,
        stored: dict[int, CompletionRecord],
        reservation: Reservation | None,
        drawn: Drawn | None = None,
    ) -> _Pulled:
        self._meter.charge(Spent(completions=len(stored)))  # tokens and dollars of earlier processes are known already
        example, prompt = self._examples[pull.query], self._prompts[pull.prompt]
        signature, asked = signature_of(prompt.program), signature_of(prompt.inner)
        known = {i: (r, stored_prediction(r, signature), stored_inner(r, asked)) for i, r in stored.items()}
        if reservation is not None and drawn is not None:  # by a batch job: on disk already
            reservation.settle(completions=len(drawn))
            known.update((record.index, (record, prediction, None)) for record, prediction in drawn)
        elif reservation is not None:
            missing = [i for i in range(pull.size) if i not in stored]
            try:
                rollouts = await self._sampler.sample(
                    prompt.program,
                    dict(example.inputs().items()),
                    len(missing),
                    key=[*key, missing[0]] if stored else list(key),
                    decoding=prompt.decoding,
                    upstream=self._upstream[pull.query] if prompt.inner is not None else None,
                )
            except BaseException:
                reservation.release()
                raise
            paid = [r for r in rollouts if not r.unpaid]
            reservation.settle(completions=len(paid))
            made = [(record_of(key, i, pull, r), r.prediction, r.inner) for i, r in zip(missing, paid, strict=False)]
            # What it took comes first: who is killed in between has spent too much on paper, never too little.
            self._note_spent()
            self._ledger.extend([record for record, *_ in made])
            known.update((completion[0].index, completion) for completion in made)
        completions = [known[i] for i in sorted(known)]
        work = (self._in_thread(self._score, example, *completion) for completion in completions)
        scored = await asyncio.gather(*work)
        overhead, cost = self._cost.split([r.usage for r, *_ in completions])
        judged = [(s, c) for s, c in zip(scored, cost, strict=True) if s is not None]
        used, once = use_of([r.usage for (r, *_), s in zip(completions, scored, strict=True) if s is not None])
        tokens = sum(r.usage.completion_tokens - r.usage.shared_completion_tokens for r, *_ in completions)
        self._tokens[:, pull.prompt] += tokens, len(completions)
        if prompt.inner is not None:
            self._note_inputs(pull.query, [r.inner["inputs"] for r, *_ in completions if r.inner is not None])
        if len(judged) < len(scored):
            self._unjudged += len(scored) - len(judged)
        self._note(pull, [s for s, _ in judged])
        return _Pulled(
            scored=tuple(s for s, _ in judged),
            cost=tuple(c for _, c in judged),
            overhead=overhead,
            used=used,
            once=once,
        )

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Score in a thread, as many at a time as requests may be in flight: a metric may be a judge that waits."""
        context = contextvars.copy_context()
        call = functools.partial(context.run, function, *args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _note_spent(self, *, finished: bool = False) -> None:
        self._finished = finished
        self._meter.write_journal()

    def _write_spent(self, spent: Spent, reserved: Spent) -> None:
        self._ledger.append(self._spent_record(spent, reserved))

    def _spent_record(self, spent: Spent, reserved: Spent) -> SpentRecord:
        held = self._batches.held  # these have records of their own
        reserved = Spent(
            completion_tokens=max(reserved.tokens - held.tokens, 0),
            usd=max(round(reserved.usd - held.usd, 12), 0.0),  # whole picodollars
        )
        return SpentRecord(spent=spent, finished=self._finished, reserved=reserved)

    def _score(
        self,
        example: dspy.Example,
        record: CompletionRecord,
        prediction: dspy.Prediction | None,
        inner: InnerCall | None,
    ) -> Scored | None:
        """Score one completion, once in the life of a run; None where the budget does not pay for its judge."""
        if prediction is None and (inner is None or inner.prediction is None):
            return Scored(failure=record.failure or "no prediction", error=record.error)
        name = f"{record.round}/{record.position}/{record.index}"
        known = self._ledger.score(name)
        if known is not None and known.scorer == self._scorer and not known.error:
            scores = tuple(known.scores) if known.scores is not None else None
            voted = scores is not None and known.answer is not None
            said = inner.prediction if inner is not None else prediction  # what a vote is read from
            value = self._strategy.value(said) if voted and isinstance(self._strategy, Equates) else None
            return Scored(answer=known.answer, scores=scores, failure=known.failure, error=known.error, value=value)
        with self._metering.case() as case:
            scored = self._ask_strategy(example, record, prediction, inner)
        if not case.conclude():
            return None
        self._ledger.append(
            ScoreRecord(
                key=name,
                answer=scored.answer,
                scores=scored.scores,
                failure=scored.failure,
                error=scored.error,
                scorer=self._scorer,
            )
        )
        return scored

    def _ask_strategy(
        self,
        example: dspy.Example,
        record: CompletionRecord,
        prediction: dspy.Prediction | None,
        inner: InnerCall | None,
    ) -> Scored:
        if inner is not None and inner.prediction is not None:
            return score_inside(
                self._strategy,
                example,
                inputs=inner.inputs,
                said=inner.prediction,
                outcome=prediction,
                metric=self._metric,
                failure=record.failure,
                error=record.error,
            )
        assert prediction is not None  # `_score` has looked
        return self._strategy.score(example, prediction, self._metric)

    def _note_inputs(self, query: int, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Say once that a pipeline does something before its inner module that is different every time."""
        if any(other != inputs[0] for other in inputs[1:]):
            if not self._mixed:
                logger.warning(
                    "The inner module was called with different inputs on one and the same example: the pipeline does "
                    "something else than asking LMs before it that is different every time. A deployed call draws all "
                    "completions on one input, so that estimates for N > 1 are too high where inputs decide the answer."
                )
            self._mixed.add(query)

    def _note(self, pull: Pull, scored: Sequence[Scored]) -> None:
        self._failures.add(pull.prompt, scored)
        report = self._failures.totals()
        if self._max_errors is not None and report.errors > self._max_errors:
            raise TooManyErrors(
                f"More than max_errors={self._max_errors} completions failed with errors: {report}. {self._kept()}"
            )
        several = self._failures.tried >= min(3, self.n_prompts)
        if several and report.errors == report.completions >= NOTHING_WORKS:
            raise TooManyErrors(f"Nothing has worked so far: {report}. {self._kept()}")
        self._tell()

    def _tell(self, waiting: str = "") -> None:
        """Say how far the run is."""
        if self._progress is None:
            return
        report, budget = self._failures.totals(), self._meter.budget
        self._progress(
            Progress(
                completions=report.completions,
                budget=None if budget is None else budget.completions,
                failed=report.total,
                spent=self._meter.spent,
                waiting=waiting,
            )
        )

    def _kept(self) -> str:
        if isinstance(self._ledger, NullLedger):
            return "Nothing kept what was paid for; set log_dir to keep it."
        return "What was paid for is in the ledger; mend the cause and compile again to go on."

    def _scales(self, raw: Sequence[Sequence[float]]) -> Callable[[tuple[float, ...]], tuple[float, ...]]:
        """Return what raw scores become; learnt once, from all of the first batch that has any."""
        if isinstance(self._strategy, Calibrates) and not self._strategy.calibrated and raw:
            self._strategy = self._strategy.calibrate(raw)
        return self._strategy.place if isinstance(self._strategy, Calibrates) else tuple

    def _observations(self, pulls: Pulls, results: Sequence[_Pulled | None]) -> Observations:
        """Put the results in the order of the pulls, so that nothing depends on which answer came first."""
        made = [(i, r) for i, r in enumerate(results) if r is not None and r.scored]
        index = np.array([i for i, _ in made], dtype=np.int64)
        size = np.array([len(r.scored) for _, r in made], dtype=np.int64)
        label: list[int] = []
        score: list[tuple[float, ...]] = []
        cost: list[float] = []
        overhead = [r.overhead for _, r in made]
        failed = (float("nan"),) * len(columns_of(self._strategy))
        place = self._scales([s.scores for _, r in made for s in r.scored if s.scores is not None])
        for i, result in made:
            for s in (self._placed(pulls, i, s) for s in result.scored):
                label.append(s[0])
                score.append(place(s[1]) if s[1] is not None else failed)
            cost.extend(result.cost)
        return Observations(
            pulls=Pulls(pulls.prompt[index], pulls.query[index], size),
            label=np.array(label, dtype=np.int64),
            score=np.array(score, dtype=np.float64).reshape(len(score), len(failed)),
            cost=np.array(cost, dtype=np.float64),
            overhead=np.array(overhead, dtype=np.float64),
            used=np.array([r.used for _, r in made], dtype=np.float64).reshape(len(made), len(RESOURCES)),
            once=np.array([r.once for _, r in made], dtype=np.float64).reshape(len(made), len(RESOURCES)),
            exhausted=int(size.sum()) < pulls.completions,
        )

    def _placed(self, pulls: Pulls, position: int, scored: Scored) -> tuple[int, tuple[float, ...] | None]:
        """Return a completion's answer class, -1 without a vote, and its scores, None for a failure.

        Classes are made in the order of the pulls, so that a run that is resumed makes the same.
        """
        if scored.scores is None or scored.answer is None:
            return -1, scored.scores
        try:
            # Inside of a pipeline a completion votes although a later step failed: it has scores, and a failure.
            label = self._classes[int(pulls.query[position])].place(replace(scored, failure=None))
        except Exception as exc:  # noqa: BLE001  # the user's equality: its failure is this completion's
            self._failures.spoil(int(pulls.prompt[position]), one_line(exc))
            return -1, None
        return (-1 if label is None else label), scored.scores


@dataclass(frozen=True)
class _Pulled:
    """One pull's completions as the algorithm sees them; fewer than asked for where a budget ended in between."""

    scored: tuple[Scored, ...]
    cost: tuple[float, ...]
    overhead: float
    used: tuple[float, ...]
    once: tuple[float, ...]
