"""One call of a compiled program: draw in waves, stop when enough is known, choose the winner."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from iapo_dspy.bandit.stopping.rules import reached
from iapo_dspy.errors import AllCompletionsFailed, one_line
from iapo_dspy.preferences import Preference
from iapo_dspy.program.call_report import CallReport, CompiledPrediction
from iapo_dspy.prompts.lms import models_of
from iapo_dspy.sampling.concurrency.contained import CodeExited, contained
from iapo_dspy.sampling.concurrency.threads import in_thread
from iapo_dspy.sampling.judges.judge_usage import JudgeUsage
from iapo_dspy.sampling.rollouts.rollout import Rollout
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.sampling.spending.pricing import Prices
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.scoring.once_per_call import sharing
from iapo_dspy.scoring.scores import Scored
from iapo_dspy.scoring.strategies import Selection, Settles, Strategy
from iapo_dspy.types import Arm, Decoding, FloatArray


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The completions of one call.

    Attributes:
        rollouts: The completions, in the order of drawing.
        read: Each of them as the strategy reads it.
        waves: Completions drawn by the end of each wave that was drawn.
        stopped: Why fewer were drawn than planned; None where all were.
        seconds: From sending the call to its last completion.
        judges: Usage of LMs and embedding models that objectives asked.
    """

    rollouts: tuple[Rollout, ...]
    read: tuple[Scored, ...]
    waves: tuple[int, ...]
    stopped: str | None
    seconds: float
    judges: JudgeUsage

    @property
    def usage(self) -> Usage:
        """The usage of all completions together."""
        return sum((r.usage for r in self.rollouts), Usage())


@dataclass(frozen=True, kw_only=True)
class Call:
    """Everything that one call of a compiled program needs. Calls share nothing of it."""

    preference: Preference
    arm: Arm
    label: str
    inputs: Mapping[str, Any]
    program: dspy.Module
    decoding: Decoding
    adapter: dspy.Adapter | None
    strategy: Strategy
    cost: Cost
    tokens_each: int | None = None

    @functools.cached_property
    def weights(self) -> FloatArray:
        """The preference's weights of the objectives [K]."""
        return self.preference.vector(self.strategy.objectives)

    async def draw(self) -> Drawn:
        """Draw wave after wave until the arm's N is reached or enough is known. To be awaited on the sampling loop."""
        start = time.perf_counter()
        sampler = _sampler(self.cost.prices)
        planned = self.arm.stop.waves if self.arm.stop is not None else (self.arm.n,)
        rollouts: list[Rollout] = []
        read: list[Scored] = []
        waves: list[int] = []
        stopped: str | None = None
        judges = JudgeUsage(dspy.settings.usage_tracker, self.cost.prices)
        for end in planned:
            size, before = end - len(rollouts), len(rollouts)
            key = ["call", before] if before else "call"
            rollouts += await sampler.sample(
                self.program,
                self.inputs,
                size,
                key=key,
                decoding=self.decoding,
                adapter=self.adapter,
                record=True,
                most_tokens=self.tokens_each,
            )
            read += await self._read_all(rollouts[before:], judges)
            waves.append(end)
            stopped = await in_thread(functools.partial(self._stopped, read)) if end < self.arm.n else None
            if stopped is not None:
                break
        return Drawn(
            rollouts=tuple(rollouts),
            read=tuple(read),
            waves=tuple(waves),
            stopped=stopped,
            seconds=time.perf_counter() - start if len(waves) > 1 else max(r.usage.latency_s for r in rollouts),
            judges=judges,
        )

    async def _read_all(self, rollouts: Sequence[Rollout], judges: JudgeUsage) -> list[Scored]:
        """Read completions in threads, at once. The usage of judges is counted, and reported as any usage is."""
        # A judge is not a step of the program: its calls must not enter the trace, nor its tokens the stream.
        callbacks = [*(dspy.settings.callbacks or ()), judges.watcher]
        settings = {"usage_tracker": judges, "callbacks": callbacks, "trace": [], "send_stream": None}
        with dspy.context(**settings), sharing():
            return list(await asyncio.gather(*(in_thread(functools.partial(self._read, r)) for r in rollouts)))

    def _read(self, rollout: Rollout) -> Scored:
        if rollout.prediction is None:
            return Scored(failure=rollout.failure or "failed", error=rollout.error)
        try:
            with contained():
                return self.strategy.read(self.inputs, rollout.prediction)
        except CodeExited as error:  # a strategy of the user's own has let it pass
            return Scored(failure=one_line(error), error=True)

    def _stopped(self, read: Sequence[Scored]) -> str | None:
        """Say why no further completion is needed; None where one is."""
        if isinstance(self.strategy, Settles) and self.strategy.settled(read, self.weights, self.arm.n - len(read)):
            return "settled"
        selection = self.strategy.choose(read, self.weights)
        if selection is None or self.arm.stop is None:
            return None
        best = selection.utilities[selection.index] if selection.utilities is not None else None
        return reached(self.arm.stop, list((selection.votes or {}).values()), best)

    def conclude(self, drawn: Drawn) -> CompiledPrediction:
        """Return the winner with the call's report.

        Raises:
            AllCompletionsFailed: No completion could be used; the message has the causes.
        """
        rollouts = drawn.rollouts
        selection = self.strategy.choose(drawn.read, self.weights)
        failures = {i: s.failure for i, s in enumerate(drawn.read) if s.failure is not None}
        if selection is None:
            causes = tuple(f"completion {i}: {failures.get(i, 'no usable answer')}" for i in range(len(rollouts)))
            shown = "; ".join(causes[:3]) + ("; ..." if len(causes) > 3 else "")
            raise AllCompletionsFailed(
                f"All {len(rollouts)} completions of this call failed: {shown}",
                causes=causes,
                prompt_tokens=drawn.usage.prompt_tokens,
                completion_tokens=drawn.usage.completion_tokens,
            )
        failures = {**failures, **selection.failures}
        prediction = _merge([r.prediction for r in rollouts], selection.index)
        for name, value in selection.replaced.items():
            prediction[name] = value
        prediction._iapo = self._report(drawn, selection, failures)
        trace, most = dspy.settings.trace, dspy.settings.max_trace_size
        if trace is not None and most > 0:  # DSPy's default is one trace for the whole process, so it must have an end
            trace.extend(rollouts[selection.index].trace)
            del trace[:-most]
        return prediction

    def _report(self, drawn: Drawn, selection: Selection, failures: dict[int, str]) -> CallReport:
        rollouts = drawn.rollouts
        ends = (0, *drawn.waves)
        parts = [self.cost.split([r.usage for r in rollouts[a:b]]) for a, b in itertools.pairwise(ends)]
        cost = sum(once + sum(each) for once, each in parts)
        return CallReport(
            preference=self.preference.name,
            cost_weight=self.preference.cost,
            asked=self.preference.to_dict(),
            prompt=self.arm.prompt,
            label=self.label,
            model=models_of(self.program),
            n=len(rollouts),
            planned=self.arm.n,
            waves=len(drawn.waves),
            stopped=drawn.stopped,
            votes=dict(selection.votes) if selection.votes is not None else None,
            utilities=selection.utilities,
            winner=selection.index,
            failures=failures,
            replaced=dict(selection.replaced),
            prompt_tokens=drawn.usage.prompt_tokens,
            completion_tokens=drawn.usage.completion_tokens,
            usd=drawn.usage.usd,
            seconds=drawn.seconds,
            cost=None if self.cost.usd and drawn.usage.usd is None else cost,
            cost_unit=self.cost.unit,
            judge_tokens=int(drawn.judges.usage.tokens),
            judge_usd=drawn.judges.usage.usd,
        )


@functools.cache
def _sampler(prices: Prices | None) -> Sampler:
    """One sampler for all deployed calls of the process, so that together they respect one bound of concurrency.

    Programs with other prices of the user have a sampler of their own.
    """
    sampler = Sampler(prices=prices)
    sampler.sound = True  # the run was answered by these models, so a call that is refused fails alone
    return sampler


def _merge(predictions: Sequence[dspy.Prediction | None], winner: int) -> CompiledPrediction:
    """Return the winner's fields; where all have the same fields, with all of them as its completions."""
    best = predictions[winner]
    assert best is not None  # a failed completion is never chosen
    others = [p for i, p in enumerate(predictions) if i != winner and p is not None]
    rows = [dict(p.items()) for p in (best, *others)]
    if rows[0] and all(row.keys() == rows[0].keys() for row in rows):
        merged: CompiledPrediction = CompiledPrediction.from_completions(rows)
        return merged
    return CompiledPrediction(**rows[0])
