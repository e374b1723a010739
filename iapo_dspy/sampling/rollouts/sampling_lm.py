"""The LM that a program sees while it is sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import dspy
from dspy.utils.callback import with_callbacks

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.lm.params import request_params
from iapo_dspy.sampling.lm.proxy import StandInLM
from iapo_dspy.sampling.rollouts.group import Seat
from iapo_dspy.sampling.rollouts.pipeline import current_watch

SEAT = "iapo_seat"
"""The DSPy setting that holds the seat of a rollout: the threads of `dspy.Parallel` take settings over."""


def current_seat() -> Seat | None:
    """Return the rollout that this thread or task works for."""
    seat: Seat | None = dspy.settings.get(SEAT)
    return seat


F = TypeVar("F", bound=Callable[..., Any])
_with_callbacks = cast(Callable[[F], F], with_callbacks)


class SamplingLM(StandInLM):
    """Stands in for an LM while rollouts run: its calls go to the group of the rollout that makes them.

    Args:
        lm: The LM it stands in for.
        alone: Answers a call that belongs to no rollout, such as one from a thread that a program started without
            its context: messages and parameters in, output out.
    """

    def __init__(
        self, lm: dspy.BaseLM, alone: Callable[[dspy.BaseLM, Sequence[dict[str, Any]], Mapping[str, Any]], Any]
    ) -> None:
        super().__init__(lm)
        self.kwargs = {k: v for k, v in lm.kwargs.items() if k not in ("n", "num_generations")}
        self._alone = alone

    @property
    def callbacks(self) -> list[Any]:
        """The LM's own callbacks, where the rollout is recorded."""
        seat = current_seat()
        return list(self._lm.callbacks or []) if seat is not None and seat.group.records else []

    @callbacks.setter
    def callbacks(self, value: Any) -> None:
        """Do nothing: they are the LM's."""

    def __deepcopy__(self, memo: dict[int, Any]) -> SamplingLM:
        """Return itself: a copy of a program made by a rollout asks the same LM."""
        return self

    @_with_callbacks
    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> list[Any]:
        """Return outputs as DSPy adapters expect them."""
        seat, content, params, n = self._request(prompt, messages, kwargs)
        if seat is None:
            return [self._alone(self._lm, content, params) for _ in range(n)]
        answers = [seat.group.arrive(seat, self._lm, content, params) for _ in range(n)]
        return [answer.result() for answer in answers]

    @_with_callbacks
    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> list[Any]:
        """Return outputs as DSPy adapters expect them."""
        seat, content, params, n = self._request(prompt, messages, kwargs)
        if seat is None:
            return [await asyncio.to_thread(self._alone, self._lm, content, params) for _ in range(n)]
        answers = [seat.group.arrive(seat, self._lm, content, params) for _ in range(n)]
        return list(await asyncio.gather(*(asyncio.wrap_future(answer) for answer in answers)))

    def _request(
        self, prompt: Any, messages: Any, kwargs: Mapping[str, Any]
    ) -> tuple[Seat | None, Sequence[dict[str, Any]], dict[str, Any], int]:
        if "request" in kwargs or not (messages or isinstance(prompt, str)):
            raise TypeError("While sampling, an LM takes a prompt or messages, not an lm15 Request.")
        seat = current_seat()
        content = list(messages) if messages else [{"role": "user", "content": prompt}]
        watch = current_watch()
        if watch is not None and watch.calls > 1:
            raise ConfigurationError(f"{watch.problem}.")
        if watch is not None and watch.phase != "inside":
            # These steps are not optimized: they are asked as they will be after deployment.
            params = request_params(self, kwargs)
            if kwargs.get("temperature", self.kwargs.get("temperature")) is None:
                params.pop("temperature", None)
        else:
            params = request_params(self, kwargs, seat.group.decoding if seat is not None else None)
        # Only a direct call of an LM still asks for n: predictors have lost theirs in `prepare`.
        return seat, content, params, int(kwargs.get("n") or 1)
