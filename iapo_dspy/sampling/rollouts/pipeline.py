"""Which part of a pipeline's rollout is its inner module: before it, inside of it, after it.

A rollout of a pipeline draws one completion of the module inside of it. What happens before that module is called is
the same for all completions of a deployed call, so it must be the same for those that are to be compared; what happens
before and after is paid once per call. The module itself says when it is entered and left (`inner_call`), and an LM
call finds out where it comes from by `phase`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import dspy

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.ledger.field_values import jsonable
from iapo_dspy.sampling.ledger.records import CallRecord
from iapo_dspy.sampling.lm.params import canonical, generation_params
from iapo_dspy.sampling.requests.port import Choice
from iapo_dspy.sampling.rollouts.rollout import InnerCall

__all__ = ["Phase", "Upstream", "Upstreams", "Watch", "current_watch", "inner_call"]

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


Key = tuple[str, int]


class Upstream:
    """The answers of one query. To be used on the sampling loop only.

    Args:
        query: Index of the query.
        known: What earlier processes of the run were answered.
        keep: Told of every answer before it is used.
    """

    def __init__(
        self, query: int, *, known: Iterable[CallRecord] = (), keep: Callable[[CallRecord], None] = lambda record: None
    ) -> None:
        self.query = query
        self._keep = keep
        self._known: dict[Key, Choice] = {(r.call, r.repeat): _choice(r) for r in known}
        self._open: dict[Key, asyncio.Task[Choice]] = {}

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
        if key not in self._open:
            task = self._open[key] = asyncio.ensure_future(self._draw(key, draw))
            task.add_done_callback(lambda _: self._open.pop(key, None))
        # A pull that is cancelled must not take the answer away from others that wait for it.
        return await asyncio.shield(self._open[key])

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
        """Give up what is still asked for."""
        for task in list(self._open.values()):
            task.cancel()


class Upstreams:
    """The answers of all queries of a run.

    Args:
        known: What earlier processes of the run were answered.
        keep: Told of every answer before it is used.
    """

    def __init__(self, known: Iterable[CallRecord], keep: Callable[[CallRecord], None]) -> None:
        self._keep = keep
        self._stored: dict[int, list[CallRecord]] = {}
        for record in known:
            self._stored.setdefault(record.query, []).append(record)
        self._made: dict[int, Upstream] = {}

    def __getitem__(self, query: int) -> Upstream:
        """Return those of one query."""
        if query not in self._made:
            self._made[query] = Upstream(query, known=self._stored.pop(query, ()), keep=self._keep)
        return self._made[query]

    def cancel(self) -> None:
        """Give up what is still asked for."""
        for upstream in self._made.values():
            upstream.cancel()


def call_of(lm: dspy.BaseLM, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> str:
    """Return a hash that is equal for equal requests in every process; keys and addresses have no part in it."""
    text = canonical([lm.model, list(messages), generation_params(params)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _choice(record: CallRecord) -> Choice:
    return Choice(
        text=record.text,
        output=record.output,
        usage=record.usage,
        seed=record.seed,
    )
