"""The live environment: pulls become completions of a language model, on disk before they are used, then scored."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dspy
import numpy as np

from iapo_dspy.environments.live.dispatch import in_order
from iapo_dspy.environments.live.equal_scores import EqualScores
from iapo_dspy.environments.live.observing import Observer, Pulled
from iapo_dspy.environments.live.progress import Progress, Tracker
from iapo_dspy.environments.live.scoring import Scorer
from iapo_dspy.environments.live.spending import Journal
from iapo_dspy.environments.live.stored import Completion, StoredCompletions
from iapo_dspy.environments.live.student_unit import StudentUnit, UnitPlan
from iapo_dspy.environments.live.tries import Tries
from iapo_dspy.environments.live.unreadable import LEAST, TELLING
from iapo_dspy.errors import BudgetExceeded, ProviderDown
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.prompts.rewriters.rewriting import Rewrites, with_rewriting
from iapo_dspy.sampling.batches.batch_sampler import Ask, BatchSampler, Drawn
from iapo_dspy.sampling.batches.lines import BatchLine
from iapo_dspy.sampling.batches.running import BatchAPI
from iapo_dspy.sampling.concurrency.contained import contained
from iapo_dspy.sampling.concurrency.loop import Calls, run_on_loop
from iapo_dspy.sampling.concurrency.threads import in_thread
from iapo_dspy.sampling.ledger.digests import distinct, labels_digest, query_id
from iapo_dspy.sampling.ledger.ledger import LedgerPort, NullLedger
from iapo_dspy.sampling.ledger.records import CallRecord, Cell, CompletionRecord, PullKey
from iapo_dspy.sampling.rollouts.pipeline import Upstream
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import Meter, Reservation
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.scoring.comparisons import PositionBias
from iapo_dspy.scoring.failures import FailureReport
from iapo_dspy.scoring.scores import Metric
from iapo_dspy.scoring.strategies import Strategy
from iapo_dspy.types import Decoding, FloatArray, Observations, Pull, Pulls

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LivePrompt:
    """A program to sample and how its LM decodes.

    Attributes:
        program: The program.
        decoding: Settings that override the LM's own; those of the inner module's LM calls, if there is one.
        inner: The module inside of the program whose completions are drawn; None where it is the program itself.
        id: Digest of all that its completions depend on; the ledger finds them by it. Default: its position.
        adapter: Writes its calls and reads their answers; None is the configured one.
        rewriter: Rewrites queries before the program sees them; None leaves them as they are.
    """

    program: Any
    decoding: Decoding
    inner: Any = None
    id: str = ""
    adapter: dspy.Adapter | None = None
    rewriter: Rewriter | None = None


@dataclass(frozen=True, kw_only=True)
class _Start:
    """A pull that the budget pays for."""

    pull: Pull
    cell: Cell
    draws: tuple[int, ...]
    stored: Mapping[int, CompletionRecord]  # those that were paid for before
    reservation: Reservation | None  # pays for the rest

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(draw for draw in self.draws if draw not in self.stored)

    @property
    def key(self) -> PullKey:
        return (*self.cell, self.missing[0])

    @property
    def seeds(self) -> list[Any]:
        """What the seeds derive from: of draws that are asked for again, not what their siblings' derived from."""
        missing = self.missing
        again = len(missing) <= missing[-1] - missing[0] or any(r.first == missing[0] for r in self.stored.values())
        return [*self.key, *(missing if again else ())]


class LiveEnvironment:
    """Answers pulls from a language model.

    Args:
        prompts: The prompt set P, and behind it a student that is drawn for the unit of costs only.
        examples: The training set X, with inputs and labels.
        strategy: Scores completions.
        metric: For strategies that need labels.
        sampler: Draws completions.
        meter: Holds the budget; shared with the sampler.
        ledger: Where completions are kept before they are used.
        max_errors: Stop when more completions than this failed with an error; None: only where nothing works.
        max_unreadable: Stop when surely more than this share of every prompt's completions cannot be read; None: only
            where nothing works.
        progress: Called after every pull, in the thread that waits for the pulls.
        cost: Turns usage into costs.
        unit: How the first round measures the unit of costs; None leaves it to the algorithm.
        batch: Have each round drawn by batch jobs at the provider; None sends ordinary requests.
        equal: Ends the run after a round in which all scores were equal; None lets it go on.
        stored_only: Make only pulls whose completions are stored, so that nothing is drawn.
        tries: Where completions are kept for writers of prompts; None where nobody writes.
        patient: Go on where no completion can be read. Errors still end a run in which nothing works.
        adapters: Adapters that the prompts have between them; none where all have the configured one.
        rewrites: The rewrites of the run; None makes them.
        student: See `Scorer`.
        around: See `Scorer`.

    Attributes:
        n_prompts: P, with those that may still come.
        n_queries: X.
        unjudged: Completions that were drawn, but not scored, because their judge did not fit into the budget.
        rewrites: What rewriters made of queries.
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
        max_unreadable: float | None = None,
        progress: Callable[[Progress], None] | None = None,
        cost: Cost | None = None,
        unit: UnitPlan | None = None,
        batch: BatchAPI | None = None,
        equal: EqualScores | None = None,
        stored_only: bool = False,
        tries: Tries | None = None,
        patient: bool = False,
        adapters: Sequence[dspy.Adapter] = (),
        rewrites: Rewrites | None = None,
        student: Any = None,
        around: Any = None,
    ) -> None:
        cost = cost or Cost()
        kept = (
            "The completions were not kept; set log_dir to keep them."
            if isinstance(ledger, NullLedger)
            else "All completions that were paid for are in the ledger; mend the cause and compile again to go on. "
            "With another model or adapter, take another log_dir."
        )
        self.n_prompts, self.n_queries = len(prompts) - (unit is not None and unit.draws > 0), len(examples)
        self.unjudged = 0
        self._prompts = prompts
        self._examples = tuple(examples)
        self._queries = distinct(query_id(example) for example in self._examples)
        self._labels = [labels_digest(example) for example in self._examples]
        self._sampler = sampler
        self._meter = meter
        self._ledger = ledger
        self._round = 0
        self._stored_only = stored_only
        self._stored = StoredCompletions(ledger)
        known: dict[str, list[CallRecord]] = {}
        for record in ledger.calls:
            known.setdefault(record.query, []).append(record)
        self._upstreams = [Upstream(x, known=known.get(x, ()), keep=ledger.append) for x in self._queries]
        self._calls: Calls = queue.SimpleQueue()
        tell = None if progress is None else lambda state: self._calls.put(lambda: _tell(progress, state))
        self._tracker = Tracker(
            self.n_prompts,
            meter=meter,
            max_errors=max_errors,
            max_unreadable=max_unreadable,
            adapters=adapters,
            kept=kept,
            progress=tell,
        )
        self._scorer = Scorer(strategy, metric, sampler, ledger, student, around)
        self._observer = Observer(self._scorer, self._tracker, cost, self.n_prompts, len(self._examples))
        self.rewrites = rewrites or Rewrites(sampler, ledger)
        self._told_unit = False
        self._unit = StudentUnit(unit, self.n_prompts, cost, ledger) if unit is not None else None
        self._equal = equal
        self._tries = tries
        self._patient = patient
        self._journal = Journal(meter, ledger, held=lambda: self._batches.held)
        self._by_batch = batch is not None
        self._batches = BatchSampler(
            batch or BatchAPI(),  # jobs that an earlier process left behind are paid for: they are finished in any case
            meter=meter,
            ledger=ledger,
            journal=self._journal.entry,
            notify=self._tracker.tell,
            prices=cost.prices,
        )

    @property
    def strategy(self) -> Strategy:
        """The strategy, with the scales that the first batch of pulls has set."""
        return self._scorer.strategy

    @property
    def bias(self) -> dict[str, PositionBias]:
        """How judges that compare take places, by the column of their scores."""
        return self._scorer.bias

    @property
    def failures(self) -> FailureReport:
        """Failed completions so far."""
        return self._tracker.report()

    @property
    def restored(self) -> int:
        """Completions so far that the ledger had already."""
        return self._tracker.restored

    @property
    def output_tokens(self) -> FloatArray:
        """Mean output tokens of a prompt's completions [P]; NaN for a prompt without any."""
        return self._observer.output_tokens

    @property
    def verdict(self) -> str | None:
        """Why the run has ended before its budget did: all scores were equal. None where they were not."""
        return self._equal.verdict if self._equal is not None else None

    @property
    def outage(self) -> str | None:
        """Why the run could not go on: a provider was down for too long; None where none was."""
        return self._sampler.outage

    @property
    def running_jobs(self) -> tuple[str, ...]:
        """The provider's ids of the batch jobs that are waited for."""
        return self._batches.running

    def close(self, *, finished: bool) -> None:
        """End the threads that score, and say in the ledger whether the run came to its end; an outage is none."""
        if finished:
            self.rewrites.warn()
        self._scorer.close()
        if finished and self.outage is None:
            self._journal.write(finished=True)

    def look(self, pulls: Pulls) -> list[Pulled | None]:
        """Draw and score these pulls, before the run, to see what they take; None stands for one that was not made.

        Raises:
            TooManyErrors: See `max_errors` and `max_unreadable`.
            ProviderDown: A provider was down for too long, and there are no completions at all.
            Exception: A fatal error of the provider, such as a wrong key.
        """
        return run_on_loop(self._draw(pulls), calls=self._calls)

    def pull(self, pulls: Pulls) -> Observations:
        """Draw and score these pulls, all in flight together.

        Raises:
            TooManyErrors: See `max_errors` and `max_unreadable`.
            ProviderDown: A provider was down for too long, and there are no completions at all.
            StorageError: The ledger's disk is full; what was in flight is in the ledger.
            Exception: A fatal error of the provider, such as a wrong key.
        """
        return run_on_loop(self._observe(pulls), calls=self._calls)

    def recall(self, n_prompts: int, n_queries: int) -> Observations | None:
        """Score what other runs have paid for before this one began; None where they have nothing.

        Only a judge that was never asked costs anything, and a student that measures the unit of costs.

        Args:
            n_prompts: Count the first prompts only.
            n_queries: Count the first queries only.

        Raises:
            Exception: As `pull` does.
        """
        found = [
            (p, x, draws)
            for p in range(n_prompts if self._ledger.known else 0)
            for x in range(n_queries)
            if (draws := self._stored.known((self._id(p), self._queries[x])))
        ]
        if not found:
            return None
        prompt, query, size = np.array([(p, x, len(draws)) for p, x, draws in found]).T
        pulls, numbers = Pulls(prompt, query, size), [draws for *_, draws in found]
        seen = run_on_loop(self._observe(pulls, numbers), calls=self._calls)
        self._tracker.ask(prompt.tolist())  # only now: a run that begins with other prompts must not stop here
        return seen

    def _id(self, prompt: int) -> str:
        return self._prompts[prompt].id or str(prompt)

    async def _observe(self, pulls: Pulls, draws: Sequence[tuple[int, ...]] = ()) -> Observations:
        results = await self._draw(pulls, draws)
        # in a thread: it may ask a user's equality
        seen = await in_thread(lambda: self._observer.observations(pulls, results))
        if self.verdict is not None:
            seen = replace(seen, exhausted=True)
        if self._unit is None or self._told_unit:
            return seen
        self._told_unit = True
        return replace(seen, unit=self._unit.found())

    async def _draw(self, pulls: Pulls, draws: Sequence[tuple[int, ...]] = ()) -> list[Pulled | None]:
        unit = self._unit if self._round == 0 else None
        asked = pulls if unit is None else pulls.and_then(unit.pulls(pulls))
        results = (await self._pull_all(asked, draws))[: len(pulls)]
        self._ledger.check()
        self._round += 1
        if self.outage is not None and not self._tracker.drawn:
            raise ProviderDown(f"{self.outage}, and nothing is known yet. See that it works, and compile again.")
        if not draws and not self._patient:  # what other runs have left says nothing of prompts that are still to come
            self._tracker.check()
        return results

    async def _pull_all(self, pulls: Pulls, draws: Sequence[tuple[int, ...]]) -> list[Pulled | None]:
        """Make every pull that the budget pays for; None stands for the others, and for pulls that are not scored."""
        if self._round == 0:
            await self._batches.resume(partial(self._ask_of, pulls))
        if not draws:
            self._tracker.ask(pulls.prompt.tolist())
            self._tracker.check_readable()
        starts = self._starts(pulls, draws)
        # Pulls wait here for the scores of earlier ones: else a slow judge would find a budget that is used up by
        # completions drawn long before their turn.
        # Each deployment has places of its own: one that is down must not take those of the others.
        places: dict[Hashable, asyncio.Semaphore] = {}
        most = 2 * self._sampler.max_concurrency
        tasks: dict[int, asyncio.Task[Pulled | None]] = {}
        try:
            drawn: dict[PullKey, Drawn] = {}
            if self._by_batch:
                asked = [s for s in starts.values() if s.reservation is not None]
                drawn = await self._batches.draw([self._ask(s.pull.prompt, s.pull.query, s.missing) for s in asked])
            for position, start in self._in_order(starts):
                place = places.setdefault(self._deployment(start.pull.prompt), asyncio.Semaphore(most))
                mine = drawn.get(start.key) if start.reservation is not None else None
                tasks[position] = asyncio.ensure_future(self._pull_one(start, mine, place))
            await asyncio.gather(*tasks.values())
        except BaseException:
            for upstream in self._upstreams:
                upstream.cancel()
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            raise
        finally:
            for start in starts.values():
                if start.reservation is not None:
                    start.reservation.release()  # cancelled before it was settled
            self._journal.write()
            self._ledger.flush()
        return [tasks[i].result() if i in tasks else None for i in range(len(pulls))]

    def _starts(self, pulls: Pulls, draws: Sequence[tuple[int, ...]]) -> dict[int, _Start]:
        """Reserve the completions of each pull, by position, until the budget ends; the first have these draws."""
        starts: dict[int, _Start] = {}
        listed, refused = list(pulls), self._stored_only
        # The student is measured first, so that a budget that ends early or a kill leaves the unit of costs known.
        order = pulls.in_turns()
        for position in order[np.argsort(pulls.prompt[order] < self.n_prompts, kind="stable")].tolist():
            pull = listed[position]
            cell = self._id(pull.prompt), self._queries[pull.query]
            numbers = draws[position] if position < len(draws) else self._stored.take(cell, pull.size)
            stored = self._ledger.completions(cell, numbers)
            self._tracker.restored += len(stored)
            missing, reservation = pull.size - len(stored), None
            self._meter.replay(len(stored), own=len(stored.keys() & self._ledger.own.get(cell, ())))
            if missing and not refused:
                try:
                    reservation = self._meter.reserve(completions=missing)
                except BudgetExceeded as exc:
                    logger.info("The budget is used up: %s", exc)
                    refused = True
            if reservation is not None or not missing:
                starts[position] = _Start(pull=pull, cell=cell, draws=numbers, stored=stored, reservation=reservation)
            self._sampler.sound |= any(record.text is not None for record in stored.values())
        return starts

    def _in_order(self, starts: Mapping[int, _Start]) -> list[tuple[int, _Start]]:
        """Return the pulls with their positions in the order in which they are sent."""
        listed, budget = list(starts.items()), self._meter.budget
        pulls = [start.pull for start in starts.values()]
        served = {p: self._deployment(p) for p in {pull.prompt for pull in pulls}}
        order = in_order(
            pulls,
            deployment=served.__getitem__,
            behind=self.n_prompts,
            new=[p for p in served if not self._tracker.drawn_of(p)],
            few=TELLING if sum(pull.size for pull in pulls) >= LEAST else 0,
            limited=budget is not None and (budget.bounds_requests or budget.seconds is not None),
        )
        return [listed[i] for i in order]

    def _deployment(self, prompt: int) -> Hashable:
        return self._sampler.deployments(self._prompts[prompt].program)

    def _ask_of(self, pulls: Pulls, line: BatchLine) -> Ask | None:
        """Return the completions that a line of an earlier process asks for; None where this run has no such cell."""
        order = dict.fromkeys([*pulls.prompt.tolist(), *range(len(self._prompts))])  # each is made when it is looked at
        prompt = next((p for p in order if self._id(p) == line.prompt), None)
        if prompt is None or line.query not in self._queries:
            return None
        return self._ask(prompt, self._queries.index(line.query), line.draws, first=line.first)

    def _ask(self, prompt: int, query: int, missing: Sequence[int], first: int | None = None) -> Ask:
        """Return the completions that a batch job is asked for."""
        return Ask(
            key=(self._id(prompt), self._queries[query], missing[0] if first is None else first),
            missing=tuple(missing),
            program=self._prompts[prompt].program,
            inputs=dict(self._examples[query].inputs().items()),
            decoding=self._prompts[prompt].decoding,
            adapter=self._prompts[prompt].adapter,
        )

    async def _sampled(self, start: _Start, reservation: Reservation) -> dict[int, Completion]:
        """Draw the missing completions of a pull, and put them on disk; none where its rewrite cannot be paid for."""
        pull, missing, prompt = start.pull, start.missing, self._prompts[start.pull.prompt]
        inputs = dict(self._examples[pull.query].inputs().items())
        rewriter = prompt.rewriter if prompt.inner is None else None  # an inner module rewrites its own inputs
        query = await self.rewrites.of(rewriter, self._queries[pull.query], inputs)
        if query is None:
            reservation.release()
            return {}
        rollouts = await self._sampler.sample(
            prompt.program,
            query.inputs,
            len(missing),
            key=start.seeds,
            decoding=prompt.decoding,
            upstream=self._upstreams[pull.query] if prompt.inner is not None else None,
            adapter=prompt.adapter,
        )
        done = [rollout for rollout in rollouts if not rollout.undrawn]
        if prompt.rewriter is not None:  # a call pays for the rewrite once: it is a part of all of them
            usage = [
                query.usage if r.inner is None else self.rewrites.usage(prompt.rewriter, r.inner.inputs) for r in done
            ]
            done = [replace(r, usage=with_rewriting(r.usage, u, len(done))) for r, u in zip(done, usage, strict=True)]
        drawn = dict(zip(missing, done, strict=False))
        reservation.settle(completions=len(drawn))
        made = {i: Completion.of_rollout(r, start.key, i) for i, r in drawn.items()}
        # The spending is written first: after a crash in between, the ledger says too much, never too little.
        self._journal.write()
        # A failure that may pass by waiting is not kept: the next start of the run draws the completion again.
        self._ledger.extend([c.record for i, c in made.items() if not drawn[i].passing])
        return made

    async def _pull_one(self, start: _Start, drawn: Drawn | None, place: asyncio.Semaphore) -> Pulled | None:
        """Draw the missing completions of a pull, put them on disk, and score the whole pull.

        Completions that are drawn for the unit of costs only are not scored: None.
        """
        pull, reservation = start.pull, start.reservation
        example, prompt = self._examples[pull.query], self._prompts[pull.prompt]
        async with place:
            known = {i: Completion.of_record(r, prompt.program, prompt.inner) for i, r in start.stored.items()}
            if reservation is not None and drawn is not None:  # by a batch job: on disk already
                reservation.settle(completions=len(drawn))
                known.update((record.draw, Completion(record=record, prediction=said)) for record, said in drawn)
            elif reservation is not None and (self.unjudged or self._ledger.full):
                reservation.release()  # further completions could not be judged either, or could not be kept
            elif reservation is not None:
                known |= await self._sampled(start, reservation)
            completions = [known[i] for i in sorted(known)]
            if self._unit is not None and self._round == 0:
                self._unit.note(pull.prompt, pull.query, completions)
                if pull.prompt == self.n_prompts:
                    return None
            scored = await self._scorer.score(example, completions, self._labels[pull.query])
            if self._equal is not None:
                self._equal.add(pull.prompt, pull.query, example, completions, scored)
            if self._tries is not None:
                self._tries.add(pull.prompt, pull.query, completions, scored)
            pulled = self._observer.pulled(pull.prompt, completions, scored)
            self.unjudged += len(scored) - len(pulled.scored)
            before = self._ledger.known.get(start.cell, ())
            lost = sum(
                s is not None and s.error and c.record.error and c.record.draw in before
                for c, s in zip(completions, scored, strict=True)
            )
            self._tracker.try_adapter(prompt.adapter)
            self._tracker.add(pull.prompt, pull.query, completions, pulled.scored, others=lost)
            return pulled


def _tell(progress: Callable[[Progress], None], state: Progress) -> None:
    with contained():
        progress(state)
