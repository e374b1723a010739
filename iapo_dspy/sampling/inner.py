"""Which part of a pipeline's rollout is its inner module: before it, inside of it, after it.

A rollout of a pipeline draws one completion of the module inside of it. What happens before that module is called is
the same for all completions of a deployed call, so it must be the same for those that are to be compared; what happens
before and after is paid once per call. The module itself says when it is entered and left (`inner_call`), and an LM
call finds out where it comes from by `phase`.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.rollout import InnerCall

__all__ = ["Phase", "Watch", "current_watch", "inner_call"]

Phase = Literal["before", "inside", "after"]

current_watch: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("iapo_dspy_watch", default=None)
_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("iapo_dspy_inside", default=False)


class Watch:
    """Follows one rollout of a pipeline."""

    def __init__(self) -> None:
        self.calls = 0
        self.call: InnerCall | None = None

    @property
    def phase(self) -> Phase:
        """Where the caller's code stands."""
        if _inside.get():
            return "inside"
        return "after" if self.calls else "before"

    @property
    def problem(self) -> str | None:
        """What is wrong with the way in which a rollout that has ended called the inner module; None if nothing is."""
        if self.calls == 1:
            return None
        times = f"{self.calls} times" if self.calls else "not at all"
        return (
            f"the pipeline called its inner module {times} in one run; it must call it exactly once, as a module "
            "(self.inner(...), not its forward)"
        )


@contextlib.contextmanager
def inner_call(inputs: Mapping[str, Any]) -> Iterator[Callable[[Any], None]]:
    """Mark a call of the inner module.

    Args:
        inputs: What it is called with.

    Yields:
        A function that takes what it returned. Outside of a rollout that is watched, nothing is noted.

    Raises:
        ConfigurationError: It was called before in this rollout.
    """
    watch = current_watch.get()
    if watch is None:
        yield lambda prediction: None
        return
    watch.calls += 1
    if watch.calls > 1:
        raise ConfigurationError(f"{watch.problem}.")
    watch.call = InnerCall(inputs=dict(inputs))

    def note(prediction: Any) -> None:
        watch.call = InnerCall(inputs=dict(inputs), prediction=prediction)

    token = _inside.set(True)
    try:
        yield note
    finally:
        _inside.reset(token)
