"""Compiles in processes of their own that can be killed at any moment."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dspy
import litellm  # noqa: F401 - imported once, by the fork server

from iapo_dspy import IAPO, BatchAPI, BestOfN, Budget, Execution, MajorityVote, Objective, Preference, Rewriter, metered
from iapo_dspy.recordings import save
from tests.support.states import state_of
from tests.support.worlds import INSTRUCTIONS, exact, questions

THREADS = 8
MAX_N = 8
PREFERENCES = [Preference("quality", cost=0.0), Preference("balanced", cost=3.0), Preference("thrifty", cost=30.0)]


def compile_once(
    lm: Mapping[str, Any],
    log_dir: str | None,
    result: str,
    usd: float | None = None,
    batch: Mapping[str, Any] | None = None,
    budget: int = 800,
) -> None:
    """Compile and write the policy's saved state to a file."""
    with dspy.context(lm=dspy.LM("openai/fake", **lm)):
        optimizer = IAPO(
            metric=exact,
            strategy=MajorityVote("answer"),
            preferences=PREFERENCES,
            max_n=MAX_N,
            budget=Budget(budget, usd=usd),
            candidates=INSTRUCTIONS,
            num_threads=THREADS,
            log_dir=log_dir,
            execution=Execution(progress=False, batch=BatchAPI(**batch) if batch is not None else None),
        )
        program = optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(30))
    Path(result).write_text(json.dumps(state_of(program)))


def write_once(lm: Mapping[str, Any], writer: Mapping[str, Any], log_dir: str, result: str) -> None:
    """Compile with an LM that writes prompts, and write how many completions were spent to a file."""
    with dspy.context(lm=dspy.LM("openai/fake", **lm)):
        optimizer = IAPO(
            metric=exact,
            strategy=MajorityVote("answer"),
            preferences=PREFERENCES[:2],
            max_n=4,
            budget=150,
            candidates=INSTRUCTIONS[:2],
            prompt_model=dspy.LM("openai/writer", **writer),
            num_threads=THREADS,
            log_dir=log_dir,
            execution=Execution(progress=False),
        )
        program = optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(12))
    Path(result).write_text(json.dumps(program.detailed_results.spent.completions))


def judged(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None, lm: Any = None) -> bool:
    """Ask a judge for a draft, and then for a verdict on it."""
    draft = dspy.Predict("question, guess -> draft")
    final = dspy.Predict("question, guess, draft -> verdict")
    for step in (draft, final):
        if lm is not None:
            step.set_lm(lm)
    asked = {"question": example.question, "guess": prediction.answer}
    return bool(final(**asked, draft=draft(**asked).draft).verdict == "yes")


def judge_once(kind: str, lm: Mapping[str, Any], log_dir: str) -> None:
    """Compile with a judge of two steps: the configured LM, one of the metric's own, or of an objective."""
    configured = dspy.LM("openai/fake", **lm)
    own = metered(configured.copy(temperature=0.5, cache=kind == "cached"))
    by_own = functools.partial(judged, lm=own)
    objective = Objective("judged", lambda example, prediction: by_own(example, prediction))
    with dspy.context(lm=configured):
        optimizer = IAPO(
            metric={"configured": judged, "objective": None}.get(kind, by_own),
            strategy=BestOfN([objective]) if kind == "objective" else MajorityVote("answer"),
            preferences=PREFERENCES[:1],
            max_n=4,
            budget=60,
            candidates=INSTRUCTIONS,
            num_threads=64,
            log_dir=log_dir,
            execution=Execution(progress=False),
        )
        optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(30))


def rewrite_once(lm: Mapping[str, Any], rewriter: Mapping[str, Any], log_dir: str, result: str) -> None:
    """Compile with a rewriter, and write the policy's saved state to a file."""
    with dspy.context(lm=dspy.LM("openai/fake", **lm)):
        optimizer = IAPO(
            metric=exact,
            strategy=MajorityVote("answer"),
            preferences=PREFERENCES[:1],
            max_n=4,
            budget=200,
            candidates=INSTRUCTIONS[:1],
            rewriters=[Rewriter(dspy.LM("openai/rewriter", **rewriter))],
            num_threads=THREADS,
            log_dir=log_dir,
            execution=Execution(progress=False),
        )
        program = optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(30))
    Path(result).write_text(json.dumps(state_of(program)))


class Victim:
    """One such process. Imports are paid once, by a fork server."""

    def __init__(self, *args: Any, target: Callable[..., None] = compile_once) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._process = context.Process(target=target, args=args, daemon=True)
        self._process.start()

    def kill(self) -> None:
        """SIGKILL, as `kill -9` does: nothing in the process gets to run."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
        self.wait()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def wait(self) -> int:
        """Return the exit status."""
        self._process.join(60)
        assert self._process.exitcode is not None
        return self._process.exitcode


def record_once(lm: Mapping[str, Any], log_dir: str, path: str) -> None:
    """Record three prompts on eight questions to a file."""
    with dspy.context(lm=dspy.LM("openai/fake", **lm)):
        optimizer = IAPO(
            metric=exact,
            strategy=MajorityVote("answer"),
            preferences=PREFERENCES,
            num_threads=2,
            log_dir=log_dir,
            execution=Execution(progress=False),
        )
        recording = optimizer.record(
            dspy.Predict("question -> answer"),
            trainset=questions(8),
            candidates=INSTRUCTIONS,
            samples=6,
            about={"date": "2026-11-29"},
        )
    save(recording, path)
