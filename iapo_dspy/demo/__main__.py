"""`python -m iapo_dspy.demo`: the main job end to end, offline, on the language model that ships."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import dspy

from iapo_dspy.demo.experiment import Experiment, Row, TaskReport
from iapo_dspy.demo.tasks import MODEL, addition_task, splitting_task
from iapo_dspy.errors import storing
from iapo_dspy.preferences import Preference

EVEN = {"correctness": 0.5, "brevity": 0.5}
PREFERENCES = {
    "mv": (
        Preference("quality", cost=0.0),
        Preference("balanced", cost=0.2),
        Preference("thrifty", cost=1.0),
        Preference("frugal", cost=5.0),
    ),
    "bon": (
        Preference("exact", cost=0.0, weights={"correctness": 0.95, "brevity": 0.05}),
        Preference("balanced", cost=0.2, weights=EVEN),
        Preference("short", cost=0.5, weights={"correctness": 0.2, "brevity": 0.8}),
        Preference("frugal", cost=3.0, weights=EVEN),
    ),
}
SETTINGS = {
    "mv": {"budget": 4000, "train": 400, "heldout": 100, "max_n": 32},
    "bon": {"budget": 1600, "train": 200, "heldout": 80, "max_n": 16},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns:
        The exit status: 0, or 2 for arguments that cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m iapo_dspy.demo", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there")
    parser.add_argument("--model", help="your own LM, as LiteLLM names it (default: the one that ships)")
    parser.add_argument("--api-base", help="where it is served, for example http://localhost:8000/v1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies budgets and held-out questions")
    parser.add_argument("--task", choices=("mv", "bon", "both"), default="both")
    parser.add_argument("--progress", action="store_true", help="show progress bars")
    arguments = parser.parse_args(argv)
    if arguments.api_base and not arguments.model:
        parser.error("--api-base needs --model")
    if arguments.scale <= 0 or arguments.seed < 0:
        parser.error("--scale must be > 0 and --seed >= 0")
    if arguments.json is not None and not arguments.json.resolve().parent.is_dir():
        parser.error(f"--json: the folder of {arguments.json} does not exist")
    logging.basicConfig(level=logging.ERROR)
    start = time.perf_counter()
    _configure(arguments.model, arguments.api_base, arguments.seed)
    reports = {}
    for name in ("mv", "bon") if arguments.task == "both" else (arguments.task,):
        experiment = _experiment(name, arguments.seed, arguments.scale, arguments.progress)
        reports[name] = experiment.run(lambda line: print(f"... {line}", file=sys.stderr))
        _show(experiment, reports[name])
    if arguments.json is not None:
        data = {name: report.to_dict() for name, report in reports.items()}
        with storing(arguments.json):
            arguments.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        print(f"results written to {arguments.json}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0


def _configure(model: str | None, api_base: str | None, seed: int) -> None:
    if model is None:
        from iapo_dspy.demo.provider import register  # LiteLLM takes seconds to import

        register()
        lm = dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False, seed=seed)
        print(
            "The LM is a real sampler of about one million parameters, made for this demo. It exercises the whole\n"
            "path from prompt to vote and is no evidence about large language models."
        )
    else:
        extra = {"api_base": api_base, "api_key": "none"} if api_base else {}  # local servers want a key to be there
        lm = dspy.LM(model, engine="litellm", temperature=1.0, max_tokens=400, cache=False, **extra)
        print(f"The LM is {model}.")
    dspy.configure(lm=lm)


def _experiment(name: str, seed: int, scale: float, progress: bool) -> Experiment:
    task = addition_task() if name == "mv" else splitting_task()
    settings = SETTINGS[name]
    return Experiment(
        task=task,
        preferences=PREFERENCES[name],
        max_n=settings["max_n"],
        budget=max(round(settings["budget"] * scale), len(task.instructions) * settings["max_n"]),
        train=settings["train"],
        heldout=max(round(settings["heldout"] * scale), 10),
        seed=seed,
        progress=progress,
    )


def _show(experiment: Experiment, report: TaskReport) -> None:
    task = experiment.task
    kind = "Best-of-N" if task.objectives else "majority vote"
    print(f"\n== {task.name} ({kind}), {len(task.instructions)} instructions, N up to {experiment.max_n}")
    print(f"compiled with {report.completions:,} completions, {report.tokens:,} tokens, {report.seconds:.0f} s")
    head = f"{'preference':<12}{'cost':>5}{'N':>4}{report.reward_name:>10}{'tokens':>8}{'utility':>9}  instruction"
    print(f"\n{head}\n{'-' * len(head)}")
    for row in report.rows:
        print(_line(row.name, row))
    print("\ninstead, on the same held-out questions:")
    for preference in experiment.preferences:
        print(f"  for {preference.name} (cost {preference.cost:g}):")
        for row in report.baselines:
            if row.preference == preference.name:
                print("  " + _line(row.name, row, width=34))
    print(f"\nmean utility over the preferences (ACR): {report.acr:.3f}")
    for name, acr in report.baseline_acr().items():
        print(f"  {name:<38}{acr:.3f}")


def _line(name: str, row: Row, width: int = 12) -> str:
    cost = f"{row.cost:>5g}" if width == 12 else ""
    return f"{name:<{width}}{cost}{row.n:>4}{row.reward:>10.3f}{row.tokens:>8.0f}{row.utility:>9.3f}  {row.instruction}"


if __name__ == "__main__":
    sys.exit(main())
