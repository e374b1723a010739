"""The draws of a call, stage by stage, and the completion of a stage that is its answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import dspy
import numpy as np

from iapo_dspy.bandit.aggregators.port import Sure
from iapo_dspy.bandit.compound.deciding import share_of_leader
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.prompts.rewriters.rewriting import CallRewrites
from iapo_dspy.sampling.judges.judge_usage import JudgeUsage
from iapo_dspy.sampling.rollouts.rollout import Rollout
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.scoring.scores import Scored
from iapo_dspy.scoring.strategies import Selection, Strategy, columns_of
from iapo_dspy.types import Arm, Decoding, FloatArray

Ending = Literal["answered", "went on", "abstained"]


@dataclass(frozen=True, kw_only=True)
class Drawable:
    """A prompt that a call may draw.

    Attributes:
        prompt: Its index.
        label: It in words.
        program: It as a program, on its LMs.
        decoding: How it is sampled.
        adapter: The adapter that it was measured with; None is the configured one.
        rewriter: The rewriter that it was measured with; None leaves the query as it is.
        tokens_each: Output tokens that each of its completions may take; None: any.
    """

    prompt: int
    label: str
    program: dspy.Module
    decoding: Decoding
    adapter: dspy.Adapter | None
    rewriter: Rewriter | None = None
    tokens_each: int | None = None


@dataclass(frozen=True, kw_only=True)
class Wave:
    """Completions that were drawn by one request: those of a prompt from `begin` to `end` of the call."""

    prompt: int
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer of a stage.

    Attributes:
        selection: The choice, by positions among the completions of the call; None where no completion can be used.
        sureness: How sure it is, see `Escalation`; None where there is no answer, or the strategy does not tell.
    """

    selection: Selection | None
    sureness: float | None


@dataclass(frozen=True, kw_only=True)
class DrawnStage:
    """One stage of a call.

    Attributes:
        arm: The stage.
        weight: How often each of its own completions counts.
        begin: Its first completion, by position in the call.
        end: Its last one, exclusive.
        waves: Waves in which they were drawn, one after another.
        stopped: Why fewer were drawn than planned; None where all were.
        counted: Positions of the completions that count, each as often as it counts.
        verdict: The answer.
        ending: What the call did after it.
    """

    arm: Arm
    weight: int
    begin: int
    end: int
    waves: int
    stopped: str | None
    counted: tuple[int, ...]
    verdict: Verdict
    ending: Ending


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The completions of one call.

    Attributes:
        rollouts: The completions, in the order of drawing.
        read: Each of them as the strategy reads it.
        waves: Which of them were drawn by one request.
        stages: The stages that were drawn, at least one.
        seconds: From sending the call to its last completion.
        judges: Usage of LMs and embedding models that objectives asked.
        rewrites: What rewriters made of the query.
    """

    rollouts: tuple[Rollout, ...]
    read: tuple[Scored, ...]
    waves: tuple[Wave, ...]
    stages: tuple[DrawnStage, ...]
    seconds: float
    judges: JudgeUsage
    rewrites: CallRewrites

    @property
    def last(self) -> DrawnStage:
        """The stage in which the call ended."""
        return self.stages[-1]

    @property
    def usage(self) -> Usage:
        """The usage of all completions and of the rewriters together."""
        return sum((r.usage for r in self.rollouts), self.rewrites.usage)

    def prompt_of(self, position: int) -> int:
        """Return the prompt of a completion."""
        return next(wave.prompt for wave in self.waves if wave.begin <= position < wave.end)


def judged(
    strategy: Strategy, weights: FloatArray, read: Sequence[Scored], counted: Sequence[int], *, shuffle: str | None
) -> Verdict:
    """Choose the answer of a stage, and say how sure it is.

    Args:
        strategy: The strategy.
        weights: The preference's weights of the objectives [K].
        read: All completions of the call so far.
        counted: Positions of those that count, each as often as it counts.
        shuffle: Given where they are not of one prompt, or do not count alike: a tie must then not go to the prompt
            that was drawn first, so they are shuffled, by this text and by what they are.
    """
    order = list(counted)
    if shuffle is not None:
        random.Random(repr([shuffle, *((read[i].answer, read[i].scores) for i in order)])).shuffle(order)
    found = strategy.choose([read[i] for i in order], weights)
    if found is None:
        return Verdict(selection=None, sureness=None)
    failures = {order[i]: cause for i, cause in found.failures.items()}
    utilities: list[float | None] | None = None
    if found.utilities is not None:
        utilities = [None] * len(read)
        for i, utility in zip(order, found.utilities, strict=True):
            utilities[i] = utility
    selection = Selection(
        index=order[found.index],
        votes=found.votes,
        utilities=None if utilities is None else tuple(utilities),
        failures=failures,
        replaced=found.replaced,
    )
    sureness = None
    if found.votes is not None:
        silent = sum(i in failures or read[i].failure is not None for i in order)
        sureness = share_of_leader(list(found.votes.values()), len(order), silent)
    elif found.utilities is not None:
        sureness = found.utilities[found.index]
    else:
        sureness = _as_estimated(strategy, weights, [read[i] for i in order])
    return Verdict(selection=selection, sureness=sureness)


def _as_estimated(strategy: Strategy, weights: FloatArray, read: Sequence[Scored]) -> float | None:
    """Return how sure the aggregator is of these completions, for a strategy whose choice does not tell."""
    aggregator = strategy.aggregator()
    if not isinstance(aggregator, Sure):
        return None
    numbers: dict[str | None, int] = {None: -1}
    label = np.array([numbers.setdefault(s.answer, len(numbers) - 1) for s in read])
    columns = len(columns_of(strategy))
    known = [s.scores if s.scores is not None and len(s.scores) == columns else (0.0,) * columns for s in read]
    score = np.array(known)
    score[[s.failure is not None for s in read]] = np.nan
    return float(aggregator.sureness(label[None], score[None], np.append(weights, np.zeros(columns - len(weights))))[0])
