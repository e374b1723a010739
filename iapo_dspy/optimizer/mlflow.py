"""Adds settings and results to the runs that `mlflow.dspy.autolog(log_compiles=True)` opens (extra `mlflow`).

MLflow's patch of `compile` opens a run, and saves the program's JSON state and the training set. It logs the arguments
of `compile`, but neither the optimizer's settings nor any result; those are added here, into the same run.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

from iapo_dspy.program.results import CompileResult

logger = logging.getLogger(__name__)

_LONGEST_PARAM = 500


def log_compile(params: Mapping[str, Any], result: CompileResult) -> None:
    """Log settings (`IAPO.get_params()`) and results into MLflow's active run, if autologging of compiles is on.

    MLflow is never imported here: a user who logs with it has imported it. A store that cannot be reached costs a
    warning only, because the run has been paid for.
    """
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or "mlflow.dspy" not in sys.modules:
        return
    try:
        from mlflow.utils.autologging_utils import autologging_is_disabled, get_autologging_config

        if autologging_is_disabled("dspy") or not get_autologging_config("dspy", "log_compiles", False):
            return
        if mlflow.active_run() is None:
            return
        mlflow.log_params({name: str(value)[:_LONGEST_PARAM] for name, value in params.items() if value is not None})
        mlflow.log_metrics(metrics_of(result))
        mlflow.log_text(str(result), "iapo_result.txt")
    except Exception as error:  # noqa: BLE001 - a broken store raises anything, and must not lose the program
        logger.warning("MLflow did not take the results of the run: %s: %s", type(error).__name__, error)


def metrics_of(result: CompileResult) -> dict[str, float]:
    """Return the findings and the price of a run as numbers by name; those of a preference begin with its name."""
    found: dict[str, float] = {}
    for row in result.policy:
        name = re.sub(r"[^\w .\-/]", "_", row.preference.name or "ad hoc")
        values = {
            "utility": row.utility, "reward": row.reward, "tokens": row.tokens, "cost": row.cost,
            "n": float(row.arm.n), "prompt": float(row.arm.prompt), "evidence": float(row.evidence),
        }  # fmt: skip
        if row.choice is not None:
            values |= {
                "standard_error": row.choice.standard_error,
                "probability_best": row.choice.probability_best,
            }
        if row.held_out is not None:
            values["held_out_utility"] = row.held_out.utility
        found |= {f"{name}/{key}": float(value) for key, value in values.items() if value == value}
    spent = {key: value for key, value in result.spent.to_dict().items() if value is not None}
    found |= {f"spent/{key}": float(value) for key, value in spent.items()}
    if result.failures is not None:
        found["failures"] = float(result.failures.total)
    return found
