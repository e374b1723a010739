"""The quote of the first compilation of a script."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iapo_dspy.errors import ConfigurationError, IAPOError
from iapo_dspy.optimizer.iapo import IAPO
from iapo_dspy.optimizer.quoting.quote import Quote


class _Asked(BaseException):  # not an Exception, so that the script does not catch it
    def __init__(self, found: Quote | IAPOError) -> None:
        super().__init__()
        self.found = found


def quote_of_script(script: Path, arguments: Sequence[str] = (), output_tokens: float | None = None) -> Quote:
    """Run a script up to its first `IAPO.compile`, and return the quote of that call.

    Args:
        script: A Python file.
        arguments: Its command line.
        output_tokens: See `IAPO.quote`.

    Raises:
        ConfigurationError: The script fails, or ends without compiling.
        IAPOError: Its compilation would be refused.
    """

    def quoted(optimizer: IAPO, student: Any, **given: Any) -> None:
        given.pop("teacher", None)
        try:
            found: Quote | IAPOError = optimizer.quote(student, output_tokens=output_tokens, **given)
        except IAPOError as error:
            found = error
        raise _Asked(found)

    try:
        with _changed(IAPO, "compile", quoted), _as_started(script, arguments):
            runpy.run_path(str(script), run_name="__main__")
    except _Asked as asked:
        if isinstance(asked.found, IAPOError):
            raise asked.found from None
        return asked.found
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"{_place(script, error)}: {type(error).__name__}: {error}") from error
    raise ConfigurationError(f"{script} ended without a call of IAPO.compile, so that there is nothing to quote.")


@contextmanager
def _as_started(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Give the script its own command line and folder, as `python script` does."""
    folder = os.fspath(script.resolve().parent)
    with _changed(sys, "argv", [os.fspath(script), *arguments]), _changed(sys, "path", [folder, *sys.path]):
        yield


@contextmanager
def _changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _place(script: Path, error: BaseException) -> str:
    """Return the script and the last of its lines that ran."""
    inside = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == script]
    if isinstance(error, SyntaxError):
        inside.append(error.lineno)
    return f"{script}, line {inside[-1]}" if inside else str(script)
