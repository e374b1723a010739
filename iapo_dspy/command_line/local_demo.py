"""`iapo demo --local-model`: the demo's experiment on a real small language model, served on this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import dspy

from iapo_dspy.adapters import PlainTextAdapter
from iapo_dspy.command_line.demonstration import finish, tables
from iapo_dspy.demo.experiment import PREFERENCES, Experiment
from iapo_dspy.demo.local.fetching import SMOLLM2, fetched
from iapo_dspy.demo.local.llama_server import LlamaServer
from iapo_dspy.demo.local.sentiment import REVIEWS, SentimentTask, sentiment_task
from iapo_dspy.errors import IAPOError
from iapo_dspy.optimizer.options import Execution

_BUDGET: Final = 2_000  # completions
_HELDOUT: Final = 50
_FIXED_N: Final = 4  # the student rambles without demonstrations: sixteen of its answers take minutes
_TRAIN: Final = 300
_MAX_N: Final = 16
_THREADS: Final = 2
_PATIENCE: Final = 10.0  # seconds; a server in a process of ours does not come back


def show_local_demo(
    show: Callable[[str], None],
    say: Callable[[str], None],
    *,
    path: Path | None = None,
    data: Path | None = REVIEWS,
    cache: Path | None = None,
    seed: int = 0,
    scale: float = 1.0,
) -> None:
    """Fetch the model, serve it, compile a sentiment task on it, and show the tables of the demo.

    Args:
        show: Called with each result.
        say: Told of each step.
        path: Where the results are written as JSON; None writes none.
        data: A file in the format of SST-2; None loads SST-2 by `datasets`.
        cache: Where the model is kept; None is the user's cache folder.
        seed: Root of the random choices, >= 0; the server's own choices are random all the same.
        scale: Multiplies budget and held-out questions, > 0.

    Raises:
        IAPOError: The model cannot be fetched or served, it has ended, or the data cannot be used.
    """
    logging.basicConfig(level=logging.ERROR)
    start = time.perf_counter()
    experiment = _experiment(sentiment_task(data, seed=seed), seed, scale)
    model = fetched(folder=cache, say=lambda line: say(f"... {line}"))
    with LlamaServer(model) as server:

        def step(line: str) -> None:
            server.check()
            say(f"... {line}")

        show(
            f"The LM is {SMOLLM2.name}, a real instruction-tuned model of 135 million parameters, served by llama.cpp\n"
            "on this machine. It is weak at this task. The numbers are those of one run on "
            f"{experiment.heldout} held-out sentences;\n"
            f"each accuracy has a standard error of up to {0.5 / experiment.heldout**0.5:.2f}."
        )
        with dspy.context(lm=server.lm(max_tokens=20, stop=["\n"]), adapter=PlainTextAdapter()):
            try:
                report = experiment.run(step)
            except IAPOError:
                server.check()
                raise
        server.check()
    show(tables(experiment, report))
    finish(show, {"sentiment": report}, path, start)


def _experiment(task: SentimentTask, seed: int, scale: float) -> Experiment:
    heldout = min(max(round(_HELDOUT * scale), 10), len(task.examples) // 2)
    return Experiment(
        task=task,
        preferences=PREFERENCES["mv"][:3],
        max_n=_MAX_N,
        budget=max(round(_BUDGET * scale), len(task.candidates) * _MAX_N),
        train=min(_TRAIN, len(task.examples) - heldout),
        heldout=heldout,
        seed=seed,
        fixed_n=_FIXED_N,
        num_threads=_THREADS,
        execution=Execution(progress=True, outage_patience=_PATIENCE),
    )
