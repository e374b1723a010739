"""The stream that `dspy.streamify` makes of a compiled program: the winner's fields, once it has been chosen.

N completions are drawn before one wins, so the text of none of them can be shown while it is written. After the choice,
each output field of the winner's predictor calls is sent as one `StreamResponse`, which is also its last chunk.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import dspy
from dspy.streaming import StreamResponse
from dspy.streaming.messages import sync_send_to_stream

from iapo_dspy.program.table import PolicyTable
from iapo_dspy.prompts.programs import Programs
from iapo_dspy.sampling.ledger.field_values import jsonable

logger = logging.getLogger(__name__)

TraceEntry = tuple[Any, Mapping[str, Any], Any]

_searching: ContextVar[bool] = ContextVar("iapo_dspy_searching_for_listeners", default=False)


def asked_for_listeners() -> bool:
    """Tell whether DSPy asks for predictors to find the one of a `StreamListener`.

    DSPy wants the listener's field to belong to one predictor only. The arms of a compiled program are alternatives, of
    which a call runs one, so for a listener they are one program: the student.
    """
    return _searching.get()


def _announce_searches() -> None:
    """Have DSPy's `streamify` say when it searches for the predictors of listeners: it has no hook for that."""
    module = importlib.import_module("dspy.streaming.streamify")
    find = getattr(module, "find_predictor_for_stream_listeners", None)
    if find is None:  # another version of DSPy: listeners must name their predictors then
        return

    @functools.wraps(find)
    def announced(program: Any, listeners: Any) -> Any:
        token = _searching.set(True)
        try:
            return find(program, listeners)
        finally:
            _searching.reset(token)

    module.find_predictor_for_stream_listeners = announced  # type: ignore[attr-defined]


_announce_searches()


def winner_chunks(programs: Programs, prompt: int, trace: Sequence[TraceEntry]) -> list[StreamResponse]:
    """Return the chunks of the winner: the fields that listeners ask for, or all fields where there are no listeners.

    A listener without `allow_reuse` gets its field once, as from any other program.
    """
    listeners = dspy.settings.stream_listeners or []
    slots = _slots(programs, prompt)
    unheard = set(slots.values()) - {name for name, _ in programs.of(prompt).named_predictors()}
    last = {field: id(predictor) for predictor, _, prediction in trace for field in prediction.keys()}
    chunks = []
    for predictor, _, prediction in trace:
        slot = slots.get(id(predictor))
        for field, value in prediction.items():
            if not listeners:
                chunks.append(_chunk(slot or "", field, value))
            for listener in listeners:
                heard = slots.get(id(listener.predict))
                theirs = listener.predict is predictor or (slot is not None and heard == slot)
                # A program of another class lacks the listener's predictor: its last field of that name is the same.
                theirs = theirs or (heard in unheard and last[field] == id(predictor))
                if not theirs or listener.signature_field_name != field:
                    continue
                if listener.stream_end and not listener.allow_reuse:
                    continue
                # This is how `streamify` knows that a listener has heard something.
                listener.stream_start = listener.stream_end = True
                chunks.append(_chunk(listener.predict_name or slot or "", field, value))
    return chunks


def _slots(programs: Programs, prompt: int) -> dict[int, str]:
    """Return id of a predictor -> its name in the student: the same for all arms."""
    slots: dict[int, str] = {}
    for program in (programs.student, *programs.arms, programs.of(prompt)):
        slots.update({id(p): name for name, p in program.named_predictors()})
        for path, module in program.named_sub_modules(dspy.Module):
            inner = getattr(module, "policy", None)
            if isinstance(inner, PolicyTable):  # a compiled program within this one has arms of its own
                for arm in (inner.student, *inner.programs.arms):
                    slots.update({id(p): f"{path}: {name}" for name, p in arm.named_predictors()})
    return slots


def _chunk(predictor: str, field: str, value: Any) -> StreamResponse:
    plain = isinstance(value, (str, dspy.Type))
    text = value if plain else json.dumps(jsonable(value), ensure_ascii=False)
    return StreamResponse(predictor, field, text, is_last_chunk=True)


def send(chunks: Sequence[StreamResponse]) -> None:
    """Send chunks to DSPy's stream from the thread that `streamify` runs a program in."""
    for chunk in chunks:
        try:
            sync_send_to_stream(dspy.settings.send_stream, chunk)
        except RuntimeError as error:
            # A thread that the program started itself (dspy.Parallel) cannot reach the stream; nor can DSPy's own LMs.
            logger.warning("The winner is not streamed from a thread that streamify did not start: %s", error)
            return


async def asend(chunks: Sequence[StreamResponse]) -> None:
    """Send chunks to DSPy's stream from the loop that it belongs to."""
    for chunk in chunks:
        await dspy.settings.send_stream.send(chunk)
