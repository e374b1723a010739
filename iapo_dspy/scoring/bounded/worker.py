"""The program of the process that can be killed: formulas, JSON schemas and patterns.

It is started by its path and imports nothing of this package, so that it starts fast and stays small. Requests and
replies are lines of JSON. A watchdog ends the process that works on a request after its time, also inside of one long
instruction.

Where the system can fork, the process that was started only waits: a fork of it works, and when the watchdog has ended
that one, the next fork has all modules already.
"""

from __future__ import annotations

import faulthandler
import functools
import importlib
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

_POINTS = 4  # at which formulas are evaluated
_DIGITS = 50


def main() -> None:
    """Answer requests until there are none; the first line has the settings."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    silent = os.open(os.devnull, os.O_RDWR)
    os.dup2(silent, 0)
    os.dup2(silent, 1)  # libraries may print
    settings = json.loads(requests.readline())
    sys.path[:] = settings["path"]
    for task, *arguments in settings["warm"]:
        _TASKS[task](*arguments)  # imports what it needs, which is not the fault of an answer
    _answer(replies, "ready")
    while hasattr(os, "fork"):
        worker = os.fork()
        if not worker:
            break
        if os.waitpid(worker, 0)[1] == 0:
            return
        _answer(replies, "limit")
    _limit_memory(settings["bytes"])
    _work(requests, replies, settings["seconds"], silent)


def _work(requests: Any, replies: Any, seconds: float, silent: int) -> None:
    for line in iter(requests.readline, b""):
        faulthandler.dump_traceback_later(seconds, exit=True, file=silent)
        try:
            task, *arguments = json.loads(line)
            status, result = "done", _TASKS[task](*arguments)
        except MemoryError:
            os._exit(1)
        except Exception as exc:  # noqa: BLE001 - the asking process decides
            status, result = "error", type(exc).__name__
        faulthandler.cancel_dump_traceback_later()
        _answer(replies, status, result)
    os._exit(0)


def _answer(replies: Any, status: str, result: Any = None) -> None:
    replies.write(json.dumps([status, result]).encode() + b"\n")


def _limit_memory(most: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, OSError, ValueError):  # not every system can
        pass


def find(pattern: str, flags: int, whole: bool, text: str) -> bool:
    """Tell whether a pattern is found in a text."""
    compiled = re.compile(pattern, flags)
    return (compiled.fullmatch(text) if whole else compiled.search(text)) is not None


def valid(schema: str, value: Any) -> bool:
    """Tell whether a value is valid under a JSON schema."""
    return bool(validator(schema).is_valid(value))


@functools.lru_cache(maxsize=64)
def validator(schema: str) -> Any:
    """Return the validator of a schema that is given as JSON."""
    import jsonschema
    import referencing

    found = json.loads(schema)
    kind = jsonschema.validators.validator_for(found, default=jsonschema.Draft202012Validator)
    # A registry of its own: the default one fetches references over the network.
    return kind(found, registry=referencing.Registry())


def evaluate(formulas: list[str]) -> list[Any]:
    """Return the values of LaTeX formulas without relations, sets and units.

    Returns:
        For each of them None where it cannot be read or has no finite value, else its real and imaginary parts at fixed
        points of its variables, as text [points][2]; one point where it is rational: the exact fraction.
    """
    return [_values(formula) for formula in formulas]


@functools.lru_cache(maxsize=256)
def _values(formula: str) -> list[list[str]] | None:
    sympy = importlib.import_module("sympy")
    try:
        expression = _parsed(formula)
    except Exception:  # noqa: BLE001 - the grammar refuses it by errors of many classes
        return None
    if not isinstance(expression, sympy.Expr):
        return None
    expression = expression.doit()
    if expression.is_Rational:
        return [[str(expression), "0"]]
    symbols = sorted(expression.free_symbols, key=lambda s: s.name)
    found = []
    for k in range(_POINTS if symbols else 1):
        at = {s: _point(sympy, s.name, k) for s in symbols}
        value = expression.evalf(_DIGITS, subs=at)
        if not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
            return None
        found.append([_shown(part) for part in value.as_real_imag()])
    return found


def _parsed(formula: str) -> Any:
    """Return a formula as the parser of math-verify reads the whole of it; it raises where it cannot."""
    parser = importlib.import_module("latex2sympy2_extended.latex2sympy2")
    config = parser.ConversionConfig(lowercase_symbols=False)
    return parser.latex2sympy(formula, normalization_config=None, conversion_config=config)


def _point(sympy: Any, name: str, k: int) -> Any:
    """Return where a variable is put at point k: the same in every process, of both signs, and equal to no other's."""
    if name == "i":
        return sympy.I
    number = int.from_bytes(name.encode(), "big") % 9973
    return sympy.Rational((-1) ** (k + number * (k // 2)) * (10007 + 37 * number + 1009 * k), 17389 + 13 * k)


def _shown(part: Any) -> str:
    return "0" if getattr(part, "_prec", 2) == 1 else str(part)  # one bit of precision is what cancellation leaves


_TASKS: dict[str, Callable[..., Any]] = {"find": find, "valid": valid, "evaluate": evaluate}

if __name__ == "__main__":
    main()
