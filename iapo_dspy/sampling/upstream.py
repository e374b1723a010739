"""What a pipeline asks before it calls its inner module: asked once per query, and shared by all rollouts.

At deployment the steps before the inner module run once, and all N completions are drawn on what they bring. So the
completions that an estimate is made of must stand on one answer of each such step too: votes over completions that saw
different retrievals or drafts would even out what no vote evens out later. One answer serves all rollouts of a query,
whatever their prompt and their round: completions of one query are then draws from one law, prompts are compared on the
same inputs, and what the answer cost is paid once. Over the queries, answers vary as they will at deployment.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import dspy

from iapo_dspy.sampling.client import Choice
from iapo_dspy.sampling.fields import jsonable
from iapo_dspy.sampling.params import canonical, generation_params
from iapo_dspy.sampling.records import CallRecord

__all__ = ["Upstream", "Upstreams"]

Key = tuple[str, int]
"""(hash of a request, how many equal ones the same rollout made before)."""


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
                    prompt_tokens=choice.prompt_tokens,
                    completion_tokens=choice.completion_tokens,
                    usd=choice.usd,
                    latency_s=choice.latency_s,
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
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens,
        usd=record.usd,
        latency_s=record.latency_s,
        seed=record.seed,
    )
