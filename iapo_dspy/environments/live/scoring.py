"""The scores of a live run: every completion is scored once in the life of the run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import dspy

from iapo_dspy.environments.live.stored import Completion
from iapo_dspy.errors import one_line
from iapo_dspy.sampling.concurrency.contained import CodeExited, contained
from iapo_dspy.sampling.judges.metered import Metering
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import ScoreRecord
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.scoring.comparisons import Comparison, Comparisons, PositionBias, comparing, hearing
from iapo_dspy.scoring.inside_pipeline import score_inside
from iapo_dspy.scoring.objectives.opponents import beside, identity_of
from iapo_dspy.scoring.scores import Heard, Metric, Scored
from iapo_dspy.scoring.strategies import Calibrates, Equates, Strategy, columns_of

logger = logging.getLogger(__name__)


class Scorer:
    """Scores completions in threads, as many at a time as requests may be in flight: a metric may wait for a judge.

    Args:
        strategy: Scores a completion.
        metric: For strategies that need labels.
        sampler: Sends the requests of judges.
        ledger: Keeps the scores.
        student: The program that completions are compared with where a comparison has no other baseline.
        around: The pipeline around it, which is compared where the metric sees the pipeline's result.
    """

    def __init__(
        self,
        strategy: Strategy,
        metric: Metric | None,
        sampler: Sampler,
        ledger: LedgerPort,
        student: Any = None,
        around: Any = None,
    ) -> None:
        self.strategy = strategy
        self._metric = metric
        self._ledger = ledger
        self._student = student
        self._around = around or student
        self._comparing = comparing(strategy, metric)
        self._tallies = {column: Comparisons() for column in self._comparing}
        duels = any(c.duels for c in self._comparing.values())
        opponents = [identity_of(p) for p in (self._student, self._around) if duels]
        self._digest = "/".join([strategy.digest(metric), *dict.fromkeys(opponents)])
        self._metering = Metering.of(sampler, sampler.meter, ledger, "judge")
        self._threads = concurrent.futures.ThreadPoolExecutor(sampler.max_concurrency, "iapo-dspy-score")
        self._warned = False

    @property
    def bias(self) -> dict[str, PositionBias]:
        """How judges that compare take places, by the column of their scores; also of completions scored earlier."""
        return {column: tally.bias for column, tally in self._tallies.items()}

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def score(
        self, example: dspy.Example, completions: Sequence[Completion], labels: str = ""
    ) -> list[Scored | None]:
        """Score completions of one example; None for those whose judge the budget does not pay for.

        `labels` is a digest of the example's labels: a score that was made with others is not used again.
        """
        self._compare_inputs([c.record.inner["inputs"] for c in completions if c.record.inner is not None])
        loop = asyncio.get_running_loop()
        contexts = [contextvars.copy_context() for _ in completions]
        return await asyncio.gather(
            *(
                loop.run_in_executor(self._threads, context.run, self._contained, example, completion, labels)
                for context, completion in zip(contexts, completions, strict=True)
            )
        )

    def place(self, raw: Sequence[Sequence[float]]) -> Callable[[tuple[float, ...]], tuple[float, ...]]:
        """Return the function from raw scores to final ones. The first batch that has any scores sets the scales."""
        if not isinstance(self.strategy, Calibrates):
            return tuple
        if not self.strategy.calibrated and raw:
            self.strategy = self.strategy.calibrate(raw)
        assert isinstance(self.strategy, Calibrates)
        return self.strategy.place

    def _contained(self, example: dspy.Example, completion: Completion, labels: str) -> Scored | None:
        try:
            with contained():
                return self._score(example, completion, f"{self._digest}/{labels}")
        except CodeExited as error:  # a strategy of the user's own has let it pass
            return Scored(failure=one_line(error), error=True)

    def _score(self, example: dspy.Example, completion: Completion, scorer: str) -> Scored | None:
        record, inner = completion.record, completion.inner
        said = inner.prediction if inner is not None else completion.prediction  # a vote is read from it
        if said is None:  # a pipeline that makes an answer of its own instead has no vote either when deployed
            return Scored(failure=record.failure or "the inner module failed", error=record.error)
        known = self._ledger.score(record.key, scorer)
        columns = len(columns_of(self.strategy))
        if known is not None and known.scores is not None and len(known.scores) != columns:
            known = None  # somebody has changed the ledger
        if known is not None and not known.error:
            if (found := self._stored(known, said)) is not None:
                self._count(found, anew=False)
                return found
        heard = Heard(self._metric) if self._metric is not None else None
        with self._metering.case(record.key) as case, beside(self._student), hearing() as compared:
            if inner is not None and inner.prediction is not None:
                scored = score_inside(
                    self.strategy,
                    example,
                    inputs=inner.inputs,
                    said=inner.prediction,
                    outcome=completion.prediction,
                    metric=heard,
                    around=self._around,
                    failure=record.failure,
                    error=record.error,
                )
            else:
                scored = self.strategy.score(example, completion.prediction, heard)
        if not case.conclude():
            return None
        if heard is not None and heard.feedback is not None:
            scored = replace(scored, feedback=heard.feedback)
        if compared:
            scored = replace(scored, compared=compared)
            self._count(scored, anew=True)
        self._ledger.append(
            ScoreRecord(
                key=record.key,
                answer=scored.answer,
                scores=scored.scores,
                failure=scored.failure,
                error=scored.error,
                scorer=scorer,
                feedback=scored.feedback,
                compared=compared or None,
                calibrates=isinstance(self.strategy, Calibrates) and not self.strategy.calibrated,
            )
        )
        return scored

    def _count(self, scored: Scored, *, anew: bool) -> None:
        """Count the comparisons of a completion; an objective knows those that it has made anew."""
        for column, compares in self._comparing.items():
            for data in (scored.compared or {}).get(compares.name, ()):
                self._tallies[column].add(comparison := Comparison.from_json(data))
                if not anew:
                    compares.tally.add(comparison)

    def _stored(self, known: ScoreRecord, said: dspy.Prediction) -> Scored | None:
        """Return a stored score; None where its answer cannot be read any more, so that it has to be scored anew."""
        scores, value = tuple(known.scores) if known.scores is not None else None, None
        if scores is not None and known.answer is not None and isinstance(self.strategy, Equates):
            try:
                with contained():
                    value = self.strategy.value(said)
            except Exception as error:  # noqa: BLE001 - the user's normalize; scoring keeps its failure
                logger.debug("A stored answer is scored anew (%s).", type(error).__name__)
                return None
        return Scored(
            answer=known.answer,
            scores=scores,
            failure=known.failure,
            error=known.error,
            value=value,
            feedback=known.feedback,
            compared=known.compared,
        )

    def _compare_inputs(self, inputs: Sequence[object]) -> None:
        """Warn once of a pipeline that does something random before its inner module."""
        if not self._warned and any(other != inputs[0] for other in inputs[1:]):
            self._warned = True
            logger.warning(
                "The inner module was called with different inputs on one and the same example: before it, the "
                "pipeline does something other than asking LMs that is different every time. A deployed call draws all "
                "completions on one input. So estimates for N > 1 are too high where inputs decide the answer."
            )
