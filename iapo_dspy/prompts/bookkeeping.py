"""Attributes that others have hung on a program, such as the scores and logs of the optimizer that made it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType
from typing import Any

import dspy
from dspy.predict.parameter import Parameter

_COMPUTED = frozenset(("setattr", "__setattr__", "__dict__", "vars"))  # they set attributes that no code names

_HUNG = frozenset(  # by DSPy's own optimizers
    "score trial_logs candidate_programs mb_candidate_programs detailed_results total_calls prompt_model_total_calls "
    "results_best results_latest simba_idx flag_compilation_error_occurred".split()
)


def bookkeeping(module: dspy.Module) -> list[str]:
    """Return the attributes of a module that have no part in what it does.

    Those are public attributes that the code of its class never names: neither its methods nor those that it inherits.
    Optimizers hang them on a program once they have made it (`score`, `total_calls`, `candidate_programs`,
    `trial_logs`, `detailed_results` and the like). An attribute with a predictor or a module in it, as DSPy finds them,
    is the program's own. Where the class sets some by computed names (`setattr`, `__dict__`), only those count that
    DSPy's own optimizers hang on programs.
    """
    kind: Any = type(module)
    known, computed = _known(kind)
    return [
        name
        for name, value in vars(module).items()
        if not (name.startswith("_") or name in known or hasattr(kind, name) or _has_modules(value))
        and (name in _HUNG or not computed)
    ]


def _has_modules(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(part, (dspy.Module, Parameter)) for part in inside)


@functools.cache
def _known(cls: type) -> tuple[frozenset[str], bool]:
    """Return the names in the code of a class, and whether code of the user's sets attributes by computed names."""
    known: set[str] = set()
    computed = False
    for base in cls.__mro__[:-1]:
        names = {name for member in vars(base).values() for code in _codes(member) for name in _names(code)}
        computed |= bool(names & _COMPUTED) and base.__module__.partition(".")[0] != "dspy"
        known |= names
    return frozenset(known), computed


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from (c for c in code.co_consts if isinstance(c, str) and c.isidentifier())  # getattr(self, "name", None)


def _codes(member: Any) -> Iterator[CodeType]:
    """Yield the code of a member of a class: of the functions in it and around it, and of those within these."""
    todo, seen = [member], set()
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, CodeType):
            yield part
            todo += [c for c in part.co_consts if isinstance(c, CodeType)]
        elif isinstance(part, FunctionType):
            around = [part.__dict__.get("__wrapped__"), *map(_inside, part.__closure__ or ())]
            todo += [part.__code__, *(f for f in around if isinstance(f, FunctionType))]
        else:
            inside = ("__func__", "__wrapped__", "fget", "fset", "fdel", "func")  # of class methods and properties
            todo += [f for name in inside if isinstance(f := getattr(part, name, None), FunctionType)]


def _inside(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None
