"""Tells the events of one run to the log, the terminal, and the user's callbacks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from iapo_dspy.callbacks import MLflowCallback, autologged, metric_name
from iapo_dspy.environments.live.progress import Progress
from iapo_dspy.errors import one_line
from iapo_dspy.events import Event, LeadingArm, PolicyChosen, RunEnded
from iapo_dspy.optimizer.settings import Settings
from iapo_dspy.optimizer.watching.console import Console
from iapo_dspy.program.results import CompileResult
from iapo_dspy.sampling.concurrency.contained import contained
from iapo_dspy.sampling.spending.budget import Spent

logger = logging.getLogger(__name__)


class RunWatch:
    """Tells the events of one run, from `with` to its end; `RunEnded` comes whatever ends it.

    Callbacks are called one after the other, in the thread that called `compile`. One that raises is told of by one
    warning, and is called again at the next event: it can neither end the run nor lose a completion.

    Attributes:
        started: When the run began, as `time.monotonic` counts.
        spent: Returns what the run has taken by now.
    """

    def __init__(self, settings: Settings) -> None:
        shown = settings.progress
        self.started = time.monotonic()
        self.spent: Callable[[], Spent] = Spent
        self._console = Console(shown=not callable(shown) and shown)
        self._function = shown if callable(shown) else None
        own = [MLflowCallback()] if autologged() else []
        self._callbacks: list[Callable[[Event], object]] = [*own, *settings.callbacks]
        self._blamed: set[int] = set()
        self._result: CompileResult | None = None

    def tell(self, event: Event) -> None:
        """Tell an event."""
        self._console(event)
        if self._function is not None and isinstance(event, Progress):
            with contained():
                self._function(event)
        for i, callback in enumerate(self._callbacks):
            try:
                with contained():
                    callback(event)
            except Exception as error:  # noqa: BLE001 - a user's function raises anything, and must not end the run
                if i not in self._blamed:
                    self._blamed.add(i)
                    logger.warning(
                        "The callback %s failed at %s, and the run goes on: %s. Further failures of it are not told.",
                        getattr(callback, "__name__", type(callback).__name__), type(event).__name__, one_line(error),
                    )  # fmt: skip

    def say(self, text: str) -> None:
        """Say something that is not an event."""
        self._console.say(text)

    def close(self) -> None:
        """Close the bar."""
        self._console.close()

    def found(self, result: CompileResult) -> None:
        """Tell the policy."""
        self._result = result
        arms = tuple(
            LeadingArm(
                preference=row.preference.name or "",
                prompt=row.arm.prompt,
                label=row.label,
                n=row.arm.n,
                utility=row.utility,
                standard_error=row.choice.standard_error if row.choice is not None else float("nan"),
                words=row.words if row.arm.compound else "",
            )
            for row in result.policy
        )
        measured = tuple(row.held_out is not None or bool(row.choice and row.choice.measured) for row in result.policy)
        self.tell(PolicyChosen(arms=arms, measured=measured))

    def __enter__(self) -> RunWatch:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the bar, and tell the end."""
        self.close()
        status: Literal["finished", "stopped", "failed"] = "finished" if error is None else "failed"
        self.tell(
            RunEnded(
                status="stopped" if isinstance(error, KeyboardInterrupt) else status,
                error=one_line(error) if error is not None else None,
                spent=self.spent(),
                seconds=time.monotonic() - self.started,
                metrics={**_spending(self.spent()), **(metrics_of(self._result) if self._result is not None else {})},
                summary=str(self._result) if self._result is not None else "",
            )
        )


def metrics_of(result: CompileResult) -> dict[str, float]:
    """Return the findings and the price of a run as numbers by name; those of a preference begin with its name."""
    found: dict[str, float] = {}
    for row in result.policy:
        values = {
            "utility": row.utility, "reward": row.reward, "tokens": row.tokens, "cost": row.cost,
            "n": float(row.arm.n), "prompt": float(row.arm.prompt), "evidence": float(row.evidence),
            "completions": row.completions, "stages": float(len(row.arm.stages)),
        }  # fmt: skip
        if row.arm.abstains:
            values["abstains"] = row.abstains
        if row.choice is not None:
            values |= {
                "standard_error": row.choice.standard_error,
                "probability_best": row.choice.probability_best,
            }
        if row.held_out is not None:
            values["held_out_utility"] = row.held_out.utility
        name = metric_name(row.preference.name or "ad hoc")
        found |= {f"{name}/{key}": float(value) for key, value in values.items() if value == value}
    if result.failures is not None:
        found["failures"] = float(result.failures.total)
    return found | _spending(result.spent)


def _spending(spent: Spent) -> dict[str, float]:
    return {f"spent/{key}": float(value) for key, value in spent.to_dict().items()}
