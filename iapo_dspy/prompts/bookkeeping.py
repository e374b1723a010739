"""Attributes that DSPy's optimizers hang on the programs that they return: scores, logs, and what they tried."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import dspy

_HUNG = frozenset(
    "score trial_logs candidate_programs mb_candidate_programs detailed_results total_calls prompt_model_total_calls "
    "results_best results_latest simba_idx flag_compilation_error_occurred".split()
)


def bookkeeping(module: dspy.Module) -> list[str]:
    """Return the attributes of a module that an optimizer has hung on it, and that have no part in what it does.

    An attribute of such a name that the code of the module's class names is the module's own.
    """
    kind: Any = type(module)
    return [name for name in vars(module) if name in _HUNG and name not in _known(kind)]


@functools.cache
def _known(cls: type) -> frozenset[str]:
    """Return the names in the code of a class and of those that it inherits from."""
    members = [member for base in cls.__mro__ for member in vars(base).values()]
    functions = [inspect.unwrap(getattr(m, "__func__", getattr(m, "fget", m))) for m in members if m is not None]
    return frozenset(n for f in functions if isinstance(f, FunctionType) for n in _names(f.__code__))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
