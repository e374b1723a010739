"""Summaries of simulations: means, standard errors, paired tests, JSON."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iapo_dspy.errors import ConfigurationError, storing, whole_file
from iapo_dspy.simulation.runner import SimulatedRun, Trial, need
from iapo_dspy.types import FloatArray

_MEANS = {"spent": "spent", "regret": "regret", "best_arm": "best", "completions": "completions", "waves": "waves"}
_MEANS |= {name: name for name in ("compound", "escalates", "abstains")}


_HONESTY = ("bias", "coverage", "half_width")


def summarize(environment: str, runs: Sequence[SimulatedRun], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Summarize runs as plain data.

    Args:
        environment: Its name.
        runs: The runs.
        settings: Settings of the simulation; stored as they are.

    Returns:
        `{"environment", "settings", "references", "results", "tests"}`. Each result has `algorithm`, `budget`, `runs`,
        `acr` (mean on the held-out queries), `sem` (its standard error over runs), `spent` (mean completions), `regret`
        (mean simple regret on the training queries), `best_arm` (share of contexts with an arm as good as the best one
        that draws all its N), `completions` and `waves` (means over calls of the policy on the held-out queries),
        `compound` (share of contexts whose arm is a cascade or a mixture), `escalates` and `abstains` (shares of calls
        that go on to a second stage, and that end without an answer because none was sure enough),
        `bias` (reported minus exact utility of the chosen arms on the training queries), `coverage` and `half_width`
        (of the reported 95 % intervals, for the mean over all queries). Numbers are `null` where the algorithm refused
        the budget, the last three also where it has no intervals. Where prompts join while a run goes on, each result
        has `generations` too, one `{"prompts", "chosen", "completions", "put_aside", "most_put_aside"}` for each: mean
        number of its prompts in the policy, mean completions of a prompt, of those that are not in the policy, and the
        most that one of these took (`null` where there are none). `references` has the mean ACR of the policy that is
        best on the training queries, and of the best one on the held-out queries.
    """
    keys = list(runs[0].trials)
    results = [
        {"algorithm": name, "budget": budget, **_cell([r.trials[name, budget] for r in runs])} for name, budget in keys
    ]
    return {
        "environment": environment,
        "settings": dict(settings),
        "references": {
            "train_best": float(np.mean([r.train_best for r in runs])),
            "oracle": float(np.mean([r.oracle for r in runs])),
        },
        "results": results,
        "tests": paired_tests(runs),
    }


def _cell(trials: Sequence[Trial | None]) -> dict[str, Any]:
    made = [t for t in trials if t is not None]
    if len(made) < len(trials):  # a budget is refused in every run or in none
        return {"runs": 0, **dict.fromkeys(("acr", "sem", *_MEANS, *_HONESTY))}
    acr = np.array([t.acr for t in made])
    return {
        "runs": len(made),
        "acr": float(acr.mean()),
        "sem": float(acr.std(ddof=1) / math.sqrt(len(acr))) if len(acr) > 1 else None,
        **{name: float(np.mean([getattr(t, field) for t in made])) for name, field in _MEANS.items()},
        **{name: _mean([getattr(t, name) for t in made]) for name in _HONESTY},
        **({"generations": _generations(made)} if made[0].newcomers else {}),
    }


def _generations(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    found = []
    for generation in sorted({g for g, _, _ in trials[0].newcomers}):
        members = [(n, chosen) for t in trials for g, n, chosen in t.newcomers if g == generation]
        aside = [n for n, chosen in members if not chosen]
        found.append(
            {
                "prompts": len(members) // len(trials),
                "chosen": (len(members) - len(aside)) / len(trials),
                "completions": float(np.mean([n for n, _ in members])),
                "put_aside": float(np.mean(aside)) if aside else None,
                "most_put_aside": max(aside, default=None),
            }
        )
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def paired_tests(runs: Sequence[SimulatedRun], *, alpha: float = 0.05) -> list[dict[str, Any]]:
    """Compare every two algorithms at every budget by Wilcoxon's paired two-sided test over runs.

    Args:
        runs: The runs.
        alpha: Level; the paper's is 0.05, without a correction for the number of pairs.

    Returns:
        One `{"budget", "first", "second", "difference", "p", "significant"}` per pair; the difference is the mean ACR
        of the first minus that of the second.
    """
    names = list(dict.fromkeys(name for name, _ in runs[0].trials))
    budgets = list(dict.fromkeys(budget for _, budget in runs[0].trials))
    found = []
    for budget in budgets:
        acr = {name: [r.trials[name, budget] for r in runs] for name in names}
        for first, second in itertools.combinations(names, 2):
            pairs = [(a.acr, b.acr) for a, b in zip(acr[first], acr[second], strict=True) if a and b]
            if len(pairs) < len(runs):
                continue
            difference = np.subtract(*np.array(pairs).T)
            p = wilcoxon(difference)
            found.append(
                {
                    "budget": budget,
                    "first": first,
                    "second": second,
                    "difference": float(difference.mean()),
                    "p": p,
                    "significant": p < alpha,
                }
            )
    return found


def wilcoxon(difference: FloatArray) -> float:
    """Return the p-value of Wilcoxon's signed-rank test, two-sided, for paired differences; 1 where all are 0.

    Raises:
        ImportError: scipy is not installed.
    """
    if not np.any(difference):
        return 1.0
    return float(need("scipy.stats", "simulation").wilcoxon(difference).pvalue)


def write_json(summary: Mapping[str, Any], path: str | Path) -> None:
    """Write a summary.

    Raises:
        ConfigurationError: The folder does not exist.
        StorageError: The file cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ConfigurationError(f"Cannot write {path}: there is no folder {path.parent}.")
    with storing(path), whole_file(path) as part:
        part.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
