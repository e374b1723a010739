"""Shared parts of the comparisons of optimizers: GEPA and MIPROv2 within a spend, laws of prompts, and files of runs.

GEPA is stopped by the count at the first iteration after its share. MIPROv2 makes as many trials as its share pays for,
with a candidate for every one and a half trials, as it advises itself.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dspy

from iapo_dspy import Budget, Decoding, Strategy
from iapo_dspy.environments.live.environment import LiveEnvironment, LivePrompt
from iapo_dspy.environments.recorded.empirical import Kind
from iapo_dspy.environments.recorded.recorder import record
from iapo_dspy.environments.recorded.recording import Recording
from iapo_dspy.sampling.ledger.ledger import NullLedger
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import Meter
from iapo_dspy.scoring.scores import Metric
from iapo_dspy.types import Contexts

GEPA_VALSET = 30  # one validation question for so many completions of T
MINIBATCH, FULL_EVERY, MIPRO_VALSET = 35, 5, 100  # MIPROv2's own: its minibatch and the validation set of "light"


def gepa(
    student: dspy.Module,
    trainset: Sequence[dspy.Example],
    *,
    metric: Callable[..., float],
    writer: dspy.BaseLM,
    spend: int,
    over: Callable[[], bool],
    seed: int,
    num_threads: int = 8,
) -> dspy.Module:
    """Run GEPA until its share is over.

    Args:
        student: The program.
        trainset: The training questions.
        metric: As GEPA calls it, with five positional arguments.
        writer: The LM that writes prompts.
        spend: T in completions; it sets the size of the validation set.
        over: Tells after each iteration whether the share is gone.
        seed: Of the search.
        num_threads: Evaluations at once.
    """
    valset = min(max(spend // GEPA_VALSET, 10), len(trainset) // 2)
    optimizer = dspy.GEPA(
        metric=metric,
        max_metric_calls=spend,
        reflection_lm=writer,
        num_threads=num_threads,
        track_stats=True,
        seed=seed,
        gepa_kwargs={"stop_callbacks": lambda state: over()},
    )
    return optimizer.compile(student, trainset=list(trainset[valset:]), valset=list(trainset[:valset]))


def candidates_for(trials: int) -> int:
    """Return the number of candidates for which MIPROv2 advises so many trials, >= 2."""
    return max(round(trials / 1.5), 2)


def mipro_cost(trials: int, valset: int = MIPRO_VALSET) -> int:
    """Return the completions that MIPROv2 takes for so many trials.

    It evaluates the student on the validation set, every trial on a minibatch, and the best one so far on the
    validation set after each `FULL_EVERY` trials and at the end. Its writer describes the data (ten calls and a
    summary), and the program, its module and the new instruction for each candidate.
    """
    full = 1 + trials // FULL_EVERY + (trials % FULL_EVERY != 0)
    return valset * full + min(MINIBATCH, valset) * trials + 11 + 3 * candidates_for(trials)


def mipro(
    student: dspy.Module,
    trainset: Sequence[dspy.Example],
    *,
    metric: Callable[..., float],
    writer: dspy.BaseLM,
    spend: float,
    seed: int,
    num_threads: int = 8,
) -> dspy.Module:
    """Run MIPROv2 without demos of its own, with as many trials as the spend pays for, at least one.

    Args:
        student: The program.
        trainset: The training questions; 100 of them, or half of fewer than 200, are the validation set.
        metric: `metric(example, prediction, trace)`.
        writer: The LM that writes prompts.
        spend: Completions for the search.
        seed: Of the search, >= 0.
        num_threads: Evaluations at once.
    """
    valset = min(MIPRO_VALSET, len(trainset) // 2)
    trials = next(k for k in itertools.count(1) if mipro_cost(k + 1, valset) > spend)
    optimizer = dspy.MIPROv2(
        metric=metric,
        prompt_model=writer,
        task_model=dspy.settings.lm,
        auto=None,
        num_candidates=candidates_for(trials),
        max_bootstrapped_demos=0,
        max_labeled_demos=0,
        num_threads=num_threads,
        seed=seed + 1,  # it takes 0 for none
    )
    return optimizer.compile(
        student,
        trainset=list(trainset[valset:]),
        valset=list(trainset[:valset]),
        num_trials=trials,
        minibatch_size=min(MINIBATCH, valset),
        minibatch_full_eval_steps=FULL_EVERY,
    )


def prompt_of(program: dspy.Module) -> dict[str, list[Any]]:
    """Return the prompt of each predictor, its instruction and its demos, as plain data."""
    return {n: [p.signature.instructions, *map(dict, p.demos)] for n, p in program.named_predictors()}


def law_of(
    program: dspy.Module,
    questions: Sequence[dspy.Example],
    *,
    samples: int,
    strategy: Strategy,
    metric: Metric | None,
    contexts: Contexts,
    kind: Kind,
    max_concurrency: int = 64,
) -> Recording:
    """Return the law of a prompt's completions on these questions, from so many of them on each; a token costs 1."""
    meter = Meter(Budget(completions=len(questions) * samples))
    live = LiveEnvironment(
        prompts=[LivePrompt(program=program, decoding=Decoding())],
        examples=list(questions),
        strategy=strategy,
        metric=metric,
        sampler=Sampler(max_concurrency=max_concurrency, meter=meter, seed=0),
        meter=meter,
        ledger=NullLedger(),
    )
    recording = record(live, contexts, kind=kind, samples=samples, cost_scale=1.0)
    live.close(finished=True)
    return recording


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
