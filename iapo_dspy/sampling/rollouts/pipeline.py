"""Pipelines around an inner module: their LM calls before, inside of and after that module.

A rollout of a pipeline draws one completion of the inner module. The steps before that module are the same for all
completions of a deployed call, so they must be the same for the completions that are compared. The steps before and
after it are paid once per call. The inner module has a DSPy callback, `InnerModule`, which tells the rollout's
`Watch` when the module is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Literal

import dspy
from dspy.utils.callback import BaseCallback

from iapo_dspy.sampling.concurrency.once import AsyncOnce
from iapo_dspy.sampling.ledger.field_values import jsonable
from iapo_dspy.sampling.ledger.records import CallRecord
from iapo_dspy.sampling.requests.port import Choice
from iapo_dspy.sampling.rollouts.rollout import InnerCall

Phase = Literal["before", "inside", "after"]

WATCH = "iapo_watch"
"""The DSPy setting that holds the watch of a rollout: the threads of `dspy.Parallel` take settings over."""


def current_watch() -> Watch | None:
    """Return the watch of the rollout that this thread or task works for; None outside of pipelines."""
    watch: Watch | None = dspy.settings.get(WATCH)
    return watch


class Watch:
    """Follows one rollout of a pipeline.

    Args:
        adapter: The adapter of calls inside of the inner module; None is that of the steps around it.
    """

    def __init__(self, adapter: Any = None) -> None:
        self.adapter = adapter
        self.calls = 0
        self.call: InnerCall | None = None
        self._context = contextlib.ExitStack()
        self._call_id: str | None = None
        self._module: Any = None

    def enter(self, call_id: str, module: Any, inputs: Mapping[str, Any]) -> None:
        """Note a call of the inner module with these inputs."""
        self.calls += 1
        if self.calls == 1:
            self._call_id, self._module, self.call = call_id, module, InnerCall(inputs=inputs)
            if self.adapter is not None:
                self._context.enter_context(dspy.context(adapter=self.adapter))

    def leave(self, call_id: str, prediction: Any) -> None:
        """Note the prediction of a call; None for a call that raised."""
        if self.call is not None and call_id == self._call_id:
            self._context.close()
            self.call = InnerCall(inputs=self.call.inputs, prediction=prediction)

    @property
    def phase(self) -> Phase:
        """Where the caller's code stands."""
        if not self.calls:
            return "before"
        return "inside" if any(m is self._module for m in dspy.settings.caller_modules or ()) else "after"

    @property
    def problem(self) -> str | None:
        """The error of a rollout that has ended without exactly one call of the inner module; None if there was one."""
        if self.calls == 1:
            return None
        times = f"{self.calls} times" if self.calls else "not at all"
        return (
            f"the pipeline called its inner module {times} in one run; it must call it exactly once, as a module "
            "(self.inner(...), not its forward and not a copy of it)"
        )


class InnerModule(BaseCallback):  # type: ignore[misc]  # dspy ships no types
    """The callback of an inner module. Outside of a rollout that is watched, it does nothing.

    DSPy swallows what a callback raises. So a second call of the module is refused where it asks an LM (`SamplingLM`).

    Args:
        names: The names of the module's inputs, in the order of positional arguments.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note the call."""
        if (watch := current_watch()) is not None:
            given = {**dict(zip(self._names, inputs["args"], strict=False)), **inputs["kwargs"]}
            watch.enter(call_id, instance, given)

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Note its prediction."""
        if (watch := current_watch()) is not None:
            watch.leave(call_id, outputs)


Key = tuple[str, int]


class Upstream:
    """The answers of one query. To be used on the sampling loop only.

    Args:
        query: Digest of the query's inputs.
        known: The answers that earlier processes of the run got.
        keep: Told of every answer before it is used.
    """

    def __init__(
        self, query: str, *, known: Iterable[CallRecord] = (), keep: Callable[[CallRecord], None] = lambda record: None
    ) -> None:
        self.query = query
        self._keep = keep
        self._known: dict[Key, Choice] = {
            (r.call, r.repeat): Choice(text=r.text, output=r.output, usage=r.usage, seed=r.seed) for r in known
        }
        self._open: AsyncOnce[Key, Choice] = AsyncOnce()

    async def answer(self, call: str, repeat: int, draw: Callable[[], Coroutine[Any, Any, Choice]]) -> Choice:
        """Return the answer to a request, which is drawn when it is first asked for. A failure is not kept.

        Args:
            call: The request (`call_of`).
            repeat: How many equal ones the same rollout made before.
            draw: Asks for one answer.
        """
        key = call, repeat
        if key in self._known:
            return self._known[key]
        return await self._open(key, lambda: self._draw(key, draw))

    async def _draw(self, key: Key, draw: Callable[[], Coroutine[Any, Any, Choice]]) -> Choice:
        choice = await draw()
        if choice.error is None:
            self._keep(
                CallRecord(
                    query=self.query,
                    call=key[0],
                    repeat=key[1],
                    output=jsonable(choice.output),
                    text=choice.text,
                    usage=choice.usage,
                    seed=choice.seed,
                )
            )
            self._known[key] = choice
        return choice

    def cancel(self) -> None:
        """Cancel the requests that are in flight."""
        self._open.cancel()
