"""`iapo demo`: the main job end to end, offline, on the language model that ships."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import dspy

from iapo_dspy.command_line.another_process import AnotherProcess
from iapo_dspy.demo.experiment import PREFERENCES, SETTINGS, Experiment, Row, TaskReport
from iapo_dspy.demo.tasks import addition_task, splitting_task
from iapo_dspy.errors import storing
from iapo_dspy.optimizer.options import Execution

_KEPT: Final = 16_384  # completions; the held-out questions are asked with the same seeds again and again


def show_demo(
    show: Callable[[str], None],
    say: Callable[[str], None],
    *,
    path: Path | None = None,
    model: str | None = None,
    api_base: str | None = None,
    seed: int = 0,
    scale: float = 1.0,
    task: str = "both",
    progress: bool = False,
) -> None:
    """Run the demo.

    Args:
        show: Called with each result.
        say: Told of each step. Another process may call it, so it must be a function of a module.
        path: Where the results are written as JSON; None writes none.
        model: The LM, as LiteLLM names it; None is the one that ships.
        api_base: Where it is served.
        seed: Root of the random choices, >= 0.
        scale: Multiplies budgets and held-out questions, > 0.
        task: "mv", "bon" or "both".
        progress: Whether bars are shown.
    """
    logging.basicConfig(level=logging.ERROR)
    start = time.perf_counter()
    experiments = {
        name: _experiment(name, seed, scale, progress) for name in (("mv", "bon") if task == "both" else (task,))
    }
    apart = model is None and not progress and len(experiments) > 1 and (os.cpu_count() or 1) > 1
    reports = {}
    with AnotherProcess(_found, "bon", seed, scale, say) if apart else nullcontext() as other:
        show(_configure(model, api_base, seed))
        for name, experiment in experiments.items():
            reports[name] = _run(experiment, say) if other is None or name != "bon" else other.result()
            show(tables(experiment, reports[name]))
    finish(show, reports, path, start)


def finish(show: Callable[[str], None], reports: Mapping[str, TaskReport], path: Path | None, start: float) -> None:
    """Write the results as JSON where that is asked for, and show how long all took.

    Args:
        show: Called with each line.
        reports: Name of a task -> its results.
        path: The file; None writes none.
        start: When the command began, by `time.perf_counter`.

    Raises:
        StorageError: The file cannot be written.
    """
    if path is not None:
        data = {name: report.to_dict() for name, report in reports.items()}
        with storing(path):
            path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        show(f"results written to {path}")
    show(f"{time.perf_counter() - start:.0f} s in all")


def _found(name: str, seed: int, scale: float, say: Callable[[str], None]) -> TaskReport:
    """Run one task in a process that does nothing else, on the LM that ships."""
    logging.basicConfig(level=logging.ERROR)
    _configure(None, None, seed)
    return _run(_experiment(name, seed, scale, progress=False), say)


def _run(experiment: Experiment, say: Callable[[str], None]) -> TaskReport:
    return experiment.run(lambda line: say(f"... {line}"))


def _configure(model: str | None, api_base: str | None, seed: int) -> str:
    """Configure DSPy's LM, and say which it is."""
    if model is None:
        from iapo_dspy.demo.batching import shared_batcher
        from iapo_dspy.demo.provider import lm  # LiteLLM takes seconds to import

        shared_batcher().keep(_KEPT)
        dspy.configure(lm=lm(seed=seed))
        return (
            "The LM is a real sampler of about one million parameters, made for this demo. It exercises the whole\n"
            "path from prompt to vote and is no evidence about large language models."
        )
    extra = {"api_base": api_base, "api_key": "none"} if api_base else {}  # local servers want a key to be there
    dspy.configure(lm=dspy.LM(model, engine="litellm", temperature=1.0, max_tokens=400, cache=False, **extra))
    return f"The LM is {model}."


def _experiment(name: str, seed: int, scale: float, progress: bool) -> Experiment:
    task = addition_task() if name == "mv" else splitting_task()
    settings = SETTINGS[name]
    return Experiment(
        task=task,
        preferences=PREFERENCES[name],
        max_n=settings["max_n"],
        budget=max(round(settings["budget"] * scale), len(task.candidates) * settings["max_n"]),
        train=settings["train"],
        heldout=max(round(settings["heldout"] * scale), 10),
        seed=seed,
        execution=Execution(progress=progress),
    )


def tables(experiment: Experiment, report: TaskReport) -> str:
    """Return the tables of one task as text."""
    task = experiment.task
    kind = "Best-of-N" if task.objectives else "majority vote"
    head = f"{'preference':<12}{'cost':>5}{'N':>4}{report.reward_name:>10}{'tokens':>8}{'utility':>9}  instruction"
    lines = [
        f"\n== {task.name} ({kind}), {len(task.candidates)} candidates, N up to {experiment.max_n}",
        f"compiled with {report.completions:,} completions, {report.tokens:,} tokens, {report.seconds:.0f} s",
        f"\n{head}\n{'-' * len(head)}",
        *(_line(row.name, row) for row in report.rows),
        "\ninstead, on the same held-out questions:",
    ]
    for preference in experiment.preferences:
        lines.append(f"  for {preference.name} (cost {preference.cost:g}):")
        rows = [row for row in report.baselines if row.preference == preference.name]
        lines += ["  " + _line(row.name, row, width=34) for row in rows]
    lines.append(f"\nmean utility over the preferences (ACR): {report.acr:.3f}")
    lines += [f"  {name:<38}{acr:.3f}" for name, acr in report.baseline_acr().items()]
    return "\n".join(lines)


def _line(name: str, row: Row, width: int = 12) -> str:
    cost = f"{row.cost:>5g}" if width == 12 else ""
    return f"{name:<{width}}{cost}{row.n:>4}{row.reward:>10.3f}{row.tokens:>8.0f}{row.utility:>9.3f}  {row.instruction}"
