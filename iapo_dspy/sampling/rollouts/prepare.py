"""Programs that run on stand-ins for their LMs; the program itself is never touched."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.primitives.base_module import BaseModule
from dspy.utils.exceptions import AdapterParseError

logger = logging.getLogger(__name__)

_PLAIN = frozenset({str, int, float, bool, type(None)})
_MOST_KNOWN = 64  # messages kept per pull


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A program ready to be sampled.

    Attributes:
        program: The program itself where no predictor has an LM of its own, else a copy on stand-ins.
        originals: id of a predictor of the copy -> the program's own predictor.
        state: The state of the program that was copied; while it is the same, the copy can be used again.
        kept: Objects whose ids `state` and `originals` name, kept alive.
    """

    program: Any
    originals: dict[int, Any]
    state: tuple[Any, ...]
    kept: tuple[Any, ...]


def state_of(program: Any) -> tuple[Any, ...]:
    """Return a value that differs for two states of a program. It is cheap: identities are compared, not contents."""
    return tuple(
        (id(p.signature), id(p.demos), len(p.demos), id(p.lm), repr(sorted(p.config.items(), key=lambda kv: kv[0])))
        for p in predictors_of(program)
    )


def prepare(program: Any, stand_in: Callable[[dspy.BaseLM], dspy.BaseLM]) -> Prepared:
    """Return the program, or a copy whose bound LMs are replaced and whose predictors ask for one sample at a time.

    The copy is made once, not per rollout: rollouts of one program share it as calls of one program share its
    attributes.
    """
    state = state_of(program)
    lms = {id(v): v for m in _modules(program) for v in vars(m).values() if isinstance(v, dspy.BaseLM)}
    several = any(p.config.get("n") or p.config.get("num_generations") for p in predictors_of(program))
    kept = tuple(x for p in predictors_of(program) for x in (p.signature, p.demos, p.lm))
    if not lms and not several:
        return Prepared(program=program, originals={}, state=state, kept=kept)
    stand_ins: dict[int, Any] = {key: stand_in(lm) for key, lm in lms.items()}
    try:
        # deepcopy finds the stand-ins where it would copy the LMs, however deep they lie (bound methods, tools).
        copied = copy.deepcopy(program, dict(stand_ins))
    except Exception as error:  # noqa: BLE001 - locks and clients refuse in many ways; sharing them is right then
        logger.debug("A %s is shared instead of copied (%s).", type(program).__name__, type(error).__name__)
        copied = _clone(program, stand_ins)
    originals: dict[int, Any] = {}
    for mine, theirs in zip(_modules(copied), _modules(program), strict=True):
        mine.callbacks = theirs.callbacks
        if isinstance(mine, dspy.Predict):
            originals[id(mine)] = theirs
            mine.config = {k: v for k, v in mine.config.items() if k not in ("n", "num_generations")}
    return Prepared(program=copied, originals=originals, state=state, kept=(*kept, copied))


def adapter_or_configured(adapter: dspy.Adapter | None) -> Any:
    """Return an adapter, or where there is none the configured one; DSPy's default is a `ChatAdapter`."""
    return adapter or dspy.settings.adapter or dspy.ChatAdapter()


def quiet_adapter(adapter: dspy.Adapter | None, stand_in: Callable[[dspy.BaseLM], dspy.BaseLM]) -> Any:
    """Return an adapter, or where there is none the configured one, as rollouts use it.

    ChatAdapter would answer an unparseable completion by a second call in JSON mode. While sampling, a completion is
    one call, so its text is read as JSON instead: a model that answers in JSON whatever format it is asked for is
    understood, and nothing more is paid. An LM that an adapter keeps for itself is replaced like those of predictors.
    """
    adapter = adapter_or_configured(adapter)
    changes: dict[str, Any] = {k: stand_in(v) for k, v in vars(adapter).items() if isinstance(v, dspy.BaseLM)}
    if getattr(adapter, "use_json_adapter_fallback", False):
        changes["use_json_adapter_fallback"] = False
        if not isinstance(adapter, dspy.JSONAdapter):
            changes["parse"] = _reading_json_too(adapter)
    if not changes:
        return adapter
    quiet = copy.copy(adapter)
    vars(quiet).update(changes)
    return quiet


def _reading_json_too(adapter: dspy.ChatAdapter) -> Callable[[Any, str], dict[str, Any]]:
    """Return the adapter's `parse`, with that of its fallback for completions that hold a JSON object."""
    read, fallback = adapter.parse, adapter._make_json_adapter_fallback()

    def parse(signature: Any, completion: str) -> dict[str, Any]:
        try:
            fields: dict[str, Any] = read(signature, completion)
        except AdapterParseError:
            if (found := _json_object(completion)) is None:
                raise
            with contextlib.suppress(AdapterParseError):  # then the adapter's own reason is the better one
                fields = fallback.parse(signature, found)
                return fields
            raise
        return fields

    return parse


def _json_object(text: str) -> str | None:
    """Return the JSON object that begins at the first brace of a text; None where there is none.

    JSON that is damaged is not mended: that takes minutes for some texts.
    """
    start = text.find("{")
    try:
        _, end = json.JSONDecoder().raw_decode(text, start) if start >= 0 else (None, 0)
    except (ValueError, RecursionError):
        return None
    return text[start:end] or None


def formats_and_parses_only(adapter: Any) -> bool:
    """Tell whether an adapter writes equal messages for equal calls, and asks no LM while it parses.

    DSPy's own adapters do, and classes that say so in their own body; a subclass may do anything else.
    """
    kind = type(adapter)
    return kind.__module__.startswith("dspy.") or vars(kind).get("formats_and_parses_only") is True


def format_once(adapter: Any) -> Any:
    """Return an adapter that writes the messages of equal calls once: the rollouts of a pull begin with the same one.

    Only adapters that write the same messages for the same call (`formats_and_parses_only`), and only calls whose
    inputs are plain values. Callbacks of an adapter are told of every call, so an adapter that has any stays as it is.
    """
    if not formats_and_parses_only(adapter) or adapter.callbacks:
        return adapter
    known: dict[Any, tuple[Any, Any, list[dict[str, Any]]]] = {}
    write = adapter.format

    def format(signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        if not all(type(value) in _PLAIN for value in inputs.values()):
            return list(write(signature, demos, inputs))
        kept = tuple(demos)  # kept beside the messages, so that no other object gets one of these ids
        key = (id(signature), tuple(map(id, kept)), tuple((k, type(v), v) for k, v in inputs.items()))
        entry = known.get(key)
        if entry is None:
            if len(known) >= _MOST_KNOWN:
                known.clear()
            entry = known[key] = (signature, kept, write(signature, demos, inputs))
        return [dict(message) for message in entry[2]]

    quiet = copy.copy(adapter)
    quiet.format = format
    return quiet


def _modules(program: Any) -> list[Any]:
    return [m for _, m in program.named_sub_modules()] if isinstance(program, BaseModule) else []


def predictors_of(program: Any) -> list[Any]:
    """Return every predictor of a program; unlike `named_predictors`, also those of sub-modules marked as compiled."""
    return [m for m in _modules(program) if isinstance(m, dspy.Predict)]


def _clone(value: Any, memo: dict[int, Any]) -> Any:
    """Copy modules and the containers that hold them; share everything else."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, BaseModule):
        twin = copy.copy(value)
        memo[id(value)] = twin
        vars(twin).update({k: _clone(v, memo) for k, v in vars(value).items()})
        return twin
    if type(value) is dict:
        return {k: _clone(v, memo) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_clone(v, memo) for v in value)
    return value
