"""One call of a compiled program: draw stage by stage in waves, stop when enough is known, choose the winner."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import dspy

from iapo_dspy.bandit.aggregators.port import Stoppable
from iapo_dspy.bandit.compound.deciding import decided, least_sure
from iapo_dspy.bandit.confidence.confidence_map import ConfidenceMap
from iapo_dspy.bandit.stopping.rules import reached
from iapo_dspy.errors import AllCompletionsFailed, one_line
from iapo_dspy.preferences import Preference
from iapo_dspy.program.call_report import Abstention, CallReport, CompiledPrediction, PromptReport, StageReport
from iapo_dspy.program.stages import Drawable, Drawn, DrawnStage, Ending, Verdict, Wave, judged
from iapo_dspy.prompts.lms import models_of
from iapo_dspy.prompts.rewriters.rewriting import CallRewrites
from iapo_dspy.sampling.concurrency.contained import CodeExited, contained
from iapo_dspy.sampling.concurrency.once import Once
from iapo_dspy.sampling.concurrency.threads import in_thread
from iapo_dspy.sampling.judges.judge_usage import JudgeUsage
from iapo_dspy.sampling.rollouts.rollout import Rollout
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.sampling.spending.pricing import Prices
from iapo_dspy.scoring.objectives.opponents import beside
from iapo_dspy.scoring.once_per_call import sharing
from iapo_dspy.scoring.scores import Scored
from iapo_dspy.scoring.strategies import Selection, Settles, Strategy
from iapo_dspy.types import Arm, FloatArray


@dataclass(kw_only=True)
class _Draws:
    """The completions of a call while it is drawn; see `Drawn`."""

    sampler: Sampler
    judges: JudgeUsage
    rewrites: CallRewrites
    rollouts: list[Rollout] = field(default_factory=list)
    read: list[Scored] = field(default_factory=list)
    waves: list[Wave] = field(default_factory=list)

    def of(self, prompt: int) -> int:
        """Return how many completions of a prompt there are."""
        return sum(wave.end - wave.begin for wave in self.waves if wave.prompt == prompt)


@dataclass(frozen=True, kw_only=True)
class Call:
    """Everything that one call of a compiled program needs. Calls share nothing of it.

    Attributes:
        preference: The preference.
        arm: Its arm.
        drawables: The prompts that the arm may draw, by index.
        inputs: The inputs of the call.
        outputs: The names of the student's output fields.
        strategy: The strategy.
        cost: The unit of costs.
        calibration: How sure the arm's answers are; None where that is not known.
        student: The program as it was, which objectives may compare with; see `objectives.prefers`.
    """

    preference: Preference
    arm: Arm
    drawables: Mapping[int, Drawable]
    inputs: Mapping[str, Any]
    outputs: Sequence[str]
    strategy: Strategy
    cost: Cost
    calibration: ConfidenceMap | None = None
    student: dspy.Module | None = None

    @functools.cached_property
    def _shared(self) -> Once[Hashable, Any]:
        """The values that the completions of all waves share; see `once_per_call`."""
        return Once(keep_errors=True)

    @functools.cached_property
    def weights(self) -> FloatArray:
        """The preference's weights of the objectives [K]."""
        return self.preference.vector(self.strategy.objectives)

    async def draw(self) -> Drawn:
        """Draw stage after stage until one is sure enough. To be awaited on the sampling loop."""
        start = time.perf_counter()
        judges = JudgeUsage(dspy.settings.usage_tracker, self.cost.prices)
        sampler = _sampler(self.cost.prices)
        draws = _Draws(sampler=sampler, judges=judges, rewrites=CallRewrites(sampler, self.inputs, judges))
        stages: list[DrawnStage] = []
        end = start
        for arm in self.arm.stages:
            before = stages[-1] if stages else None
            own, stopped = await self._draw_stage(arm, draws)
            end = time.perf_counter()
            weight = before.arm.then.weight if before is not None and before.arm.then is not None else 0
            counted = [i for i in range(own.begin, own.end) for _ in range(max(weight, 1))]
            if before is not None and weight:
                counted = [*before.counted, *counted]
            shuffle = repr(self.inputs) if weight or arm.beside else None
            judge = functools.partial(judged, self.strategy, self.weights, draws.read, counted, shuffle=shuffle)
            verdict = await in_thread(judge)
            stages.append(
                DrawnStage(
                    arm=arm,
                    weight=max(weight, 1),
                    begin=own.begin,
                    end=own.end,
                    waves=own.waves,
                    stopped=stopped,
                    counted=tuple(counted),
                    verdict=verdict,
                    ending=_ending(arm, verdict, stopped),
                )
            )
            if stages[-1].ending != "went on":
                break
        in_turn = sum(stage.waves for stage in stages) + len(draws.rewrites.found)
        return Drawn(
            rollouts=tuple(draws.rollouts),
            read=tuple(draws.read),
            waves=tuple(draws.waves),
            stages=tuple(stages),
            seconds=end - start if in_turn > 1 else max(r.usage.latency_s for r in draws.rollouts),
            judges=judges,
            rewrites=draws.rewrites,
        )

    async def _draw_stage(self, arm: Arm, draws: _Draws) -> tuple[_Own, str | None]:
        """Draw one stage; return its completions, and why fewer were drawn than planned."""
        begin = len(draws.rollouts)
        if arm.stop is None:
            await self._wave({share.prompt: share.n for share in arm.shares}, draws)
            return _Own(begin, len(draws.rollouts), 1), None
        ends, waves, stopped = arm.stop.waves, 0, None
        while stopped is None and waves < len(ends):
            await self._wave({arm.prompt: begin + ends[waves] - len(draws.rollouts)}, draws)
            waves += 1
            if waves < len(ends):
                stopped = await in_thread(functools.partial(self._stopped, arm, draws.read[begin:]))
        return _Own(begin, len(draws.rollouts), waves), stopped

    async def _wave(self, sizes: Mapping[int, int], draws: _Draws) -> None:
        """Draw completions of several prompts at the same time, and read them."""
        drawing = (self._request(prompt, size, draws) for prompt, size in sizes.items())
        found = await asyncio.gather(*drawing)
        begin = len(draws.rollouts)
        for prompt, rollouts in zip(sizes, found, strict=True):
            at = len(draws.rollouts)
            draws.waves.append(Wave(prompt=prompt, begin=at, end=at + len(rollouts)))
            draws.rollouts += rollouts
        draws.read += await self._read_all(draws.rollouts[begin:], draws.judges)

    async def _request(self, prompt: int, size: int, draws: _Draws) -> list[Rollout]:
        drawable = self.drawables[prompt]
        return await draws.sampler.sample(
            drawable.program,
            await draws.rewrites.of(drawable.rewriter),
            size,
            key=_key(self.arm.prompts.index(prompt), draws.of(prompt)),
            decoding=drawable.decoding,
            adapter=drawable.adapter,
            record=True,
            most_tokens=drawable.tokens_each,
        )

    async def _read_all(self, rollouts: Sequence[Rollout], judges: JudgeUsage) -> list[Scored]:
        """Read completions in threads, at once. The usage of judges is counted, and reported as any usage is."""
        # A judge is not a step of the program: its calls must not enter the trace, nor its tokens the stream.
        callbacks = [*(dspy.settings.callbacks or ()), judges.watcher]
        settings = {"usage_tracker": judges, "callbacks": callbacks, "trace": [], "send_stream": None}
        with dspy.context(**settings), sharing(self._shared), beside(self.student):
            return list(await asyncio.gather(*(in_thread(functools.partial(self._read, r)) for r in rollouts)))

    def _read(self, rollout: Rollout) -> Scored:
        if rollout.prediction is None:
            return Scored(failure=rollout.failure or "failed", error=rollout.error)
        try:
            with contained():
                return self.strategy.read(self.inputs, rollout.prediction)
        except CodeExited as error:  # a strategy of the user's own has let it pass
            return Scored(failure=one_line(error), error=True)

    def _stopped(self, stage: Arm, read: Sequence[Scored]) -> str | None:
        """Say why no further completion of a stage is needed; None where one is."""
        settled = isinstance(self.strategy, Settles) and self.strategy.settled(read, self.weights, stage.n - len(read))
        if settled and stage.then is None:
            return "settled"
        selection = self.strategy.choose(read, self.weights)
        if stage.then is not None:
            return self._decided(stage, read, selection, settled)
        if selection is None or stage.stop is None:
            return None
        return reached(stage.stop, list((selection.votes or {}).values()), _best(selection))

    def _decided(self, stage: Arm, read: Sequence[Scored], selection: Selection | None, settled: bool) -> str | None:
        """Say how a stage that may go on will end whatever its other completions are; None where that is open."""
        aggregator = self.strategy.aggregator()
        if isinstance(aggregator, Stoppable) and aggregator.settling(2) is not None:
            if selection is not None and selection.votes is None:  # a strategy that does not tell its votes
                return None
            votes = list(selection.votes.values()) if selection is not None and selection.votes else []
            return decided(stage, votes, len(read), None, settled)
        if selection is None or selection.votes is not None:  # votes with weights: nothing is sure before the end
            return None
        return decided(stage, None, len(read), _best(selection), settled)

    def conclude(self, drawn: Drawn) -> CompiledPrediction:
        """Return the winner with the call's report, or an `Abstention`.

        Raises:
            AllCompletionsFailed: No completion could be used, and the arm does not abstain; the message has the causes.
        """
        rollouts, selection = drawn.rollouts, drawn.last.verdict.selection
        abstained = drawn.last.ending == "abstained"
        failures = {i: s.failure for i, s in enumerate(drawn.read) if s.failure is not None}
        if selection is None and not abstained:
            counted = sorted(set(drawn.last.counted))
            causes = tuple(f"completion {i}: {failures.get(i, 'no usable answer')}" for i in counted)
            shown = "; ".join(causes[:3]) + ("; ..." if len(causes) > 3 else "")
            raise AllCompletionsFailed(
                f"All {len(counted)} completions of this call failed: {shown}",
                causes=causes,
                prompt_tokens=drawn.usage.prompt_tokens,
                completion_tokens=drawn.usage.completion_tokens,
            )
        withheld: dict[str, Any] = {}
        for stage in drawn.stages:
            failures.update(stage.verdict.selection.failures if stage.verdict.selection is not None else {})
        if selection is not None:
            prediction = _merge([r.prediction for r in rollouts], selection.index)
            for name, value in selection.replaced.items():
                prediction[name] = value
            withheld = dict(prediction.items())
        if selection is None or abstained:
            prediction = Abstention(**dict.fromkeys(withheld or self.outputs))
        prediction._iapo = self._report(drawn, failures, withheld if abstained else None)
        trace, most = dspy.settings.trace, dspy.settings.max_trace_size
        # DSPy's default is one trace for the whole process, so it must have an end.
        if trace is not None and most > 0 and selection is not None and not abstained:
            trace.extend(rollouts[selection.index].trace)
            del trace[:-most]
        return prediction

    def _report(self, drawn: Drawn, failures: dict[int, str], withheld: dict[str, Any] | None) -> CallReport:
        rollouts, last = drawn.rollouts, drawn.last
        selection, sureness = last.verdict.selection, last.verdict.sureness
        number = len(drawn.stages) - 1
        stopped = last.stopped
        if stopped is None and len(rollouts) < self.arm.most:
            stopped = "sure" if last.arm.then is not None and last.ending == "answered" else "unsure"
        rewriting = drawn.rewrites.usage
        parts = [self.cost.split([r.usage for r in rollouts[w.begin : w.end]]) for w in drawn.waves]
        parts.append(self.cost.split([rewriting]))
        cost = sum(once + sum(each) for once, each in parts)
        prompt = last.arm.prompt if selection is None else drawn.prompt_of(selection.index)
        return CallReport(
            preference=self.preference.name,
            cost_weight=self.preference.cost,
            asked=self.preference.to_dict(),
            prompt=prompt,
            label=self.drawables[prompt].label,
            model=models_of(self.drawables[prompt].program),
            n=len(rollouts),
            planned=self.arm.most,
            waves=sum(stage.waves for stage in drawn.stages),
            stopped=stopped,
            votes=_votes(selection),
            utilities=selection.utilities if selection is not None else None,
            winner=selection.index if selection is not None else None,
            failures=failures,
            replaced=dict(selection.replaced) if selection is not None else {},
            stages=tuple(self._stage_report(drawn, stage) for stage in drawn.stages),
            stage=number,
            sureness=sureness,
            confidence=None
            if sureness is None or self.calibration is None
            else self.calibration.confidence(number, sureness, _logprob(drawn)),
            abstained=withheld is not None,
            withheld=withheld,
            prompt_tokens=drawn.usage.prompt_tokens,
            completion_tokens=drawn.usage.completion_tokens,
            usd=drawn.usage.usd,
            seconds=drawn.seconds,
            cost=None if self.cost.usd and drawn.usage.usd is None else cost,
            cost_unit=self.cost.unit,
            judge_tokens=int(drawn.judges.usage.tokens),
            judge_usd=drawn.judges.usage.usd,
            rewritten={name: found.text for name, found in drawn.rewrites.found.items() if found.text is not None},
            not_rewritten={n: found.failure for n, found in drawn.rewrites.found.items() if found.failure is not None},
            rewriter_tokens=int(rewriting.tokens),
            rewriter_usd=None if rewriting.unpriced else rewriting.usd or 0.0,
        )

    def _stage_report(self, drawn: Drawn, stage: DrawnStage) -> StageReport:
        drawn_of = {share.prompt: 0 for share in stage.arm.shares}
        for wave in drawn.waves:
            if stage.begin <= wave.begin < stage.end:
                drawn_of[wave.prompt] += wave.end - wave.begin
        selection = stage.verdict.selection
        return StageReport(
            prompts=tuple(
                PromptReport(
                    prompt=prompt,
                    label=self.drawables[prompt].label,
                    model=models_of(self.drawables[prompt].program),
                    n=n,
                )
                for prompt, n in drawn_of.items()
            ),
            n=stage.end - stage.begin,
            planned=stage.arm.size,
            waves=stage.waves,
            weight=stage.weight,
            counted=len(stage.counted),
            stopped=stage.stopped,
            ending=stage.ending,
            sureness=stage.verdict.sureness,
            below=stage.arm.then.below if stage.arm.then is not None else None,
            votes=_votes(selection),
            utilities=selection.utilities if selection is not None else None,
        )


def _logprob(drawn: Drawn) -> float | None:
    """Return the mean logprob of a token over the completions that gave the answer; None where it is not known."""
    last = drawn.last
    selection = last.verdict.selection
    if selection is None:
        return None
    answer = drawn.read[selection.index].answer
    same = [selection.index] if answer is None else [i for i in last.counted if drawn.read[i].answer == answer]
    known = [v for i in dict.fromkeys(same) if (v := drawn.rollouts[i].logprob) is not None]
    return sum(known) / len(known) if known else None


class _Own(NamedTuple):
    """The completions of one stage by position in the call, and the waves that drew them."""

    begin: int
    end: int
    waves: int


def _ending(stage: Arm, verdict: Verdict, stopped: str | None) -> Ending:
    """Say what a call does after a stage; an answer that is not there is not sure enough."""
    if stage.then is None or stopped == "sure":
        return "answered"
    sureness = verdict.sureness
    doubtful = verdict.selection is None or (sureness is not None and sureness < least_sure(stage.then))
    if stopped != "unsure" and not doubtful:
        return "answered"
    return "went on" if stage.then.arm is not None else "abstained"


def _key(position: int, before: int) -> Any:
    """Name a request: no other one of the call has its name, so that none repeats another one's completions.

    Args:
        position: Of the prompt among those of the arm.
        before: Completions of this prompt that the call has drawn before.
    """
    if position:
        return ["call", before, position]
    return ["call", before] if before else "call"


def _best(selection: Selection) -> float | None:
    return selection.utilities[selection.index] if selection.utilities is not None else None


def _votes(selection: Selection | None) -> dict[str, float] | None:
    return dict(selection.votes) if selection is not None and selection.votes is not None else None


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
