"""Callbacks that log a run elsewhere: MLflow (extra `mlflow`), Weights & Biases (extra `wandb`).

    IAPO(..., execution=Execution(callbacks=[WandbCallback(project="math")]))

A service that cannot be reached costs one warning; the run goes on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.events import Event, PromptsProposed, RoundEnded, RunEnded, RunStarted

__all__ = ["MLflowCallback", "WandbCallback"]

_LONGEST_PARAM = 500


class MLflowCallback:
    """Logs settings, rounds, written prompts and results into a run of MLflow.

    That is the active run; without one a run is started, and ended with the compile. The metrics of a round have its
    number as their step.

    `mlflow.dspy.autolog(log_compiles=True)` uses this callback without being asked to.

    Raises:
        ConfigurationError: MLflow is not installed.
    """

    def __init__(self) -> None:
        with _needed("mlflow", "MLflowCallback"):
            import mlflow  # noqa: F401
        self._own = self._started = False

    def __call__(self, event: Event) -> None:
        """Log an event."""
        import mlflow

        if isinstance(event, RunStarted):
            self._started = False
            self._own = mlflow.active_run() is None
            if self._own:
                mlflow.start_run()
            given = {name: value for name, value in event.settings.items() if value is not None}
            self._started = True
            mlflow.log_params({name: str(value)[:_LONGEST_PARAM] for name, value in given.items()})
        elif not self._started:  # what MLflow logs without a run opens one, which nothing would end
            return
        elif isinstance(event, RoundEnded):
            mlflow.log_metrics(round_metrics(event), step=event.round)
        elif isinstance(event, PromptsProposed):
            mlflow.log_dict(
                {str(new.prompt): {**new.texts, "by": new.by, "parents": list(new.parents)} for new in event.prompts},
                f"iapo_generation_{event.generation}.json",
            )
        elif isinstance(event, RunEnded):
            try:
                mlflow.log_metrics(dict(event.metrics))
                if event.summary:
                    mlflow.log_text(event.summary, "iapo_result.txt")
            finally:
                self._started = False
                if self._own:
                    ended = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
                    mlflow.end_run(status=ended[event.status])


class WandbCallback:
    """Logs settings, rounds, written prompts and results into a run of Weights & Biases.

    That is the active run; without one a run is started, and finished with the compile.

    Args:
        **init: Arguments of `wandb.init`, such as `project="math"` or `mode="offline"`.

    Raises:
        ConfigurationError: Weights & Biases is not installed.
    """

    def __init__(self, **init: Any) -> None:
        with _needed("wandb", "WandbCallback"):
            import wandb  # noqa: F401
        self._init = init
        self._run: Any = None
        self._own = False
        self._written: list[list[Any]] = []

    def __call__(self, event: Event) -> None:
        """Log an event."""
        import wandb

        if isinstance(event, RunStarted):
            self._own, self._written = wandb.run is None, []
            self._run = wandb.init(**self._init) if self._own else wandb.run
            self._run.config.update(dict(event.settings), allow_val_change=True)
        elif self._run is None:
            return
        elif isinstance(event, RoundEnded):
            self._run.log({"round": event.round, **round_metrics(event)})
        elif isinstance(event, PromptsProposed):
            for new in event.prompts:
                parents = ", ".join(map(str, new.parents))
                text = "\n\n".join(new.texts.values())
                self._written.append([event.generation, new.prompt, new.by, parents, text])
            columns = ["generation", "prompt", "by", "parents", "text"]
            self._run.log({"written prompts": wandb.Table(columns=columns, data=list(self._written))})
        elif isinstance(event, RunEnded):
            self._run.summary.update({**event.metrics, "status": event.status, "result": event.summary})
            run, self._run = self._run, None
            if self._own:
                run.finish(exit_code=0 if event.status == "finished" else 1)


def autologged() -> bool:
    """Return whether `mlflow.dspy.autolog(log_compiles=True)` has opened a run for this compile.

    MLflow's patch of `compile` opens a run, and saves the program's JSON state and the training set. It logs the
    arguments of `compile`, but neither the optimizer's settings nor any result. MLflow is never imported here: a user
    that logs with it has imported it.
    """
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or "mlflow.dspy" not in sys.modules:
        return False
    from mlflow.utils.autologging_utils import autologging_is_disabled, get_autologging_config

    wanted = not autologging_is_disabled("dspy") and get_autologging_config("dspy", "log_compiles", False)
    return bool(wanted) and mlflow.active_run() is not None


def round_metrics(event: RoundEnded) -> Mapping[str, float]:
    """Return a round as numbers by name, each beginning with "round/"."""
    found: dict[str, float] = {"prompts": event.prompts, "completions": event.spent.completions}
    found |= {"usd": event.spent.usd, "seconds": event.seconds}
    for arm in event.leaders:
        values = {"utility": arm.utility, "standard_error": arm.standard_error, "n": arm.n, "prompt": arm.prompt}
        found |= {f"{metric_name(arm.preference)}/{name}": value for name, value in values.items()}
    return {f"round/{name}": float(value) for name, value in found.items() if value == value}


def metric_name(text: str) -> str:
    """Return a text with the characters alone that MLflow takes in the name of a metric."""
    return re.sub(r"[^\w .\-/]", "_", text)


@contextmanager
def _needed(package: str, by: str) -> Iterator[None]:
    """Say what to install where a package is missing."""
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(f"{by} needs the package {package}: pip install 'iapo_dspy[{package}]'.") from error
