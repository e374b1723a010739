"""Copies of programs, and their saved states."""

from __future__ import annotations

import copy
import functools
import json
import logging
from collections.abc import Mapping
from typing import Any

import dspy

from iapo_dspy.errors import StateError
from iapo_dspy.prompts.bookkeeping import bookkeeping
from iapo_dspy.prompts.student import Student

logger = logging.getLogger(__name__)


def clone(program: dspy.Module, instead: Mapping[int, Any] | None = None) -> dspy.Module:
    """Copy a program deeply, sharing its LMs: copies of LMs would have histories and connection pools of their own.

    The predictors of the copy never write their LM into saved state, because settings of an LM (headers, provider
    credentials) are secrets. Loading a state leaves them the LM that they have.

    Args:
        program: The program.
        instead: id of a part of it -> the part that takes its place in the copy. A program that cannot be copied deeply
            is copied by DSPy, which does not know of this: check that the part was replaced.
    """
    shared = {id(p.lm): p.lm for _, p in program.named_predictors() if p.lm is not None}
    twin: dspy.Module
    try:
        twin = copy.deepcopy(program, memo={**shared, **(instead or {})})
    except Exception:  # noqa: BLE001  # any attribute may refuse; DSPy's own copy knows how to go around it
        twin = program.deepcopy()
        for (_, old), (_, new) in zip(program.named_predictors(), twin.named_predictors(), strict=True):
            new.lm = old.lm
    for _, predictor in twin.named_predictors():
        kind: Any = type(predictor)
        predictor.__class__ = _without_lm_in_state(kind)
    return twin


def bare(program: dspy.Module) -> dspy.Module:
    """Copy a program as `clone` does, without what others have hung on it (`bookkeeping`).

    The logs of an optimizer hold hundreds of programs: they are left out before anything is copied.
    """
    names = bookkeeping(program)
    thin = copy.copy(program) if names else program
    for name in names:
        del vars(thin)[name]
    twin = clone(thin)
    for _, module in list(twin.named_sub_modules(dspy.Module)):
        for name in bookkeeping(module):
            del vars(module)[name]
    return twin


@functools.cache
def _without_lm_in_state(cls: Any) -> Any:
    """Return a subclass of a predictor's class that looks like it and writes no LM into its state."""
    if "_iapo_stands_for" in vars(cls):
        return cls

    def dump_state(self: Any, json_mode: bool = True) -> dict[str, Any]:
        thin = copy.copy(self)
        thin.lm = None  # an LM may hold what cannot be saved, such as an engine of the user's own
        state: dict[str, Any] = cls.dump_state(thin, json_mode=json_mode)
        return state

    def load_state(self: Any, state: dict[str, Any], **settings: Any) -> Any:
        lm = self.lm
        cls.load_state(self, state, **settings)
        self.lm = lm if self.lm is None else self.lm
        return self

    namespace = {
        "dump_state": dump_state,
        "load_state": load_state,
        "_iapo_stands_for": cls,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": lambda self, protocol: (_revive, (cls, self.__getstate__())),
    }
    return type(cls)(cls.__name__, (cls,), namespace)


def _revive(cls: type, state: Mapping[str, Any]) -> Any:
    """Make an instance again when it is copied or pickled: the class made above has no name to import it by."""
    hidden = _without_lm_in_state(cls)
    twin = hidden.__new__(hidden)
    twin.__setstate__(dict(state))
    return twin


def program_state(program: dspy.Module) -> dict[str, Any]:
    """Return instructions, demos, config and the like of every predictor as JSON data, without any LM."""
    found = {}
    for name, predictor in program.named_predictors():
        thin = copy.copy(predictor)
        thin.lm = None  # it may hold what cannot be saved, such as an engine of the user's own
        found[name] = {**thin.dump_state(), "config": _json_only(predictor.config), "lm": None}
    return found


def _json_only(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out settings that JSON cannot hold, such as a `response_format` that is a class."""
    kept = {}
    for name, value in config.items():
        try:
            kept[name] = json.loads(json.dumps(value))
        except TypeError:
            logger.warning("Predictor config %r is not saved with the program: JSON cannot hold it.", name)
    return kept


def restore(student: dspy.Module, state: Mapping[str, Any]) -> dspy.Module:
    """Make a copy of the student with a saved state; its predictors keep the student's LMs.

    Raises:
        StateError: The state names other predictors than the student has.
    """
    program = clone(student)
    predictors = dict(program.named_predictors())
    if set(predictors) != set(state):
        raise StateError(
            f"The saved program has the predictors {sorted(state)}, this student has {sorted(predictors)}. Load it "
            "into the class of student that it was compiled from."
        )
    for name, predictor in predictors.items():
        lm = predictor.lm
        predictor.load_state(dict(state[name]))
        predictor.lm = lm
    return program


def identity_of(program: dspy.Module) -> tuple[Any, ...]:
    """Return what two programs of a run share if they are the same: kind, state and LMs."""
    given = Student(program)
    state = json.dumps(stripped(program_state(program)), sort_keys=True, default=str)
    return given.kind, state, tuple(id(p.lm) for p in given.predictors.values())


def stripped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a program's state without blanks around instructions, which make no difference to an LM."""
    data: dict[str, Any] = json.loads(json.dumps(state, default=str))
    for predictor in data.values():
        instructions = predictor.get("signature", {}).get("instructions")
        if isinstance(instructions, str):
            predictor["signature"]["instructions"] = instructions.strip()
    return data
