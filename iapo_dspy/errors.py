"""Every error this package raises on purpose, under one root.

```text
IAPOError
├── ConfigurationError (ValueError)     an argument cannot be used as given
│   ├── BudgetTooSmall                  no algorithm can work with so few completions
│   ├── CapsTooTight                    no arm keeps the hard caps of a preference
│   ├── LabelRequired                   a Best-of-N objective reads a training label
│   ├── ReservedFieldName               a student field collides with a word of the compiled program
│   └── UnknownPreference (KeyError)    no such named preference
├── ScoreError (ValueError)             a metric or objective returned something else than a bounded score
├── BudgetExceeded                      a reservation did not fit the budget (never shown to users of `compile`)
├── LedgerError                         a run directory cannot be used as it is
│   ├── LedgerMismatch                  nothing in it can serve this run
│   └── LedgerLocked                    another process is using it
├── LMRefused                           the provider refuses every request: a wrong key, an unknown model
├── ProviderDown                        the provider was down for longer than the run waits
├── IncompleteCompletion                a completion was cut off, stopped by a filter or refused
├── BatchJobFailed                      a provider's batch job was refused, was stopped or does not end
├── TooManyErrors                       more completions failed than `max_errors` allows
│   └── MostlyUnreadable                most completions of every prompt cannot be read
├── AllCompletionsFailed                every completion of one deployed call failed
├── StateError                          a saved program cannot be loaded
├── LocalModelError                     the demo's local model cannot be fetched or served
└── StorageError (OSError)              the operating system refuses a file: a full disk, no permission
```

Messages say which argument was given, which one is needed, and the way out.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_SECRET_TEXT = re.compile(r"\b(sk|pk|rk|gsk|xai|hf|AIza)[-_][A-Za-z0-9_\-*]{6,}|Bearer\s+\S+|(?<=://)[^/\s@]+(?=@)")
_LONGEST_LINE = 300


def one_line(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Return type and message of any exception as one short line without keys."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    for secret in secrets:
        text = text.replace(secret, "[secret]")
    text = text.encode(errors="backslashreplace").decode()  # half a surrogate pair cannot be printed
    return _SECRET_TEXT.sub("[secret]", text)[:_LONGEST_LINE]


def nearest(word: str, known: Iterable[str], least: float = 0.6) -> str:
    """Return " Did you mean 'preference'?" where a known word is as near to this one as `least` in [0, 1], else ""."""
    found = difflib.get_close_matches(word, sorted({*known}), n=1, cutoff=least)
    return f" Did you mean {found[0]!r}?" if found else ""


class IAPOError(Exception):
    """Root of every error that `iapo_dspy` raises on purpose."""


class ConfigurationError(IAPOError, ValueError):
    """An argument cannot be used as given; nothing was spent."""


class BudgetTooSmall(ConfigurationError):
    """The budget cannot pay for the least an algorithm needs.

    Attributes:
        given: Completions that the budget allows.
        least: Completions that would be enough.
    """

    def __init__(self, message: str, *, given: int, least: int) -> None:
        super().__init__(message)
        self.given = given
        self.least = least


class CapsTooTight(ConfigurationError):
    """No arm keeps the hard caps of a preference.

    Attributes:
        arm: The arm that comes nearest.
        needs: Cap -> the least value of it that this arm keeps.
    """

    def __init__(self, message: str, *, arm: Any, needs: Mapping[str, float]) -> None:
        super().__init__(message)
        self.arm = arm
        self.needs = dict(needs)


class LabelRequired(ConfigurationError):
    """A Best-of-N objective reads a training label, which does not exist when the program is deployed."""


class ReservedFieldName(ConfigurationError):
    """A field of the student has a name that the compiled program needs for itself."""


class UnknownPreference(ConfigurationError, KeyError):
    """No preference of that name was compiled."""

    def __str__(self) -> str:
        """Return the message itself: `KeyError` would show its repr."""
        return str(self.args[0]) if self.args else ""


class ScoreError(IAPOError, ValueError):
    """A metric or objective returned something that is not a score within its bounds."""


class BudgetExceeded(IAPOError):
    """A reservation did not fit the rest of the budget."""


class LedgerError(IAPOError):
    """A run directory cannot be used as it is."""


class LedgerMismatch(LedgerError):
    """Nothing in the run directory can serve this run: another student, another model or another adapter."""


class LedgerLocked(LedgerError):
    """Another process holds the run directory."""


class LMRefused(IAPOError):
    """The provider refuses every request, for example because of a wrong key or an unknown model."""


class IncompleteCompletion(IAPOError):
    """A completion was cut off, stopped by a filter or refused; it casts no vote, even where it can be read."""


class ProviderDown(IAPOError):
    """A provider was out of reach, broke off or failed (5xx) for longer than the run waits for it."""


class BatchJobFailed(IAPOError):
    """A provider's batch job was refused or stopped, or does not end; its completions are in the ledger."""


class TooManyErrors(IAPOError):
    """More completions failed than `max_errors` allows; all paid completions are in the ledger."""


class MostlyUnreadable(TooManyErrors):
    """The LM answers, but most completions of every prompt cannot be read; all paid completions are in the ledger.

    Attributes:
        share: Share of the completions so far that could not be read.
        examples: Some of their texts, shortened.
        remedies: What may help, a sentence each.
    """

    def __init__(self, message: str, *, share: float, examples: tuple[str, ...], remedies: tuple[str, ...]) -> None:
        super().__init__(message)
        self.share = share
        self.examples = examples
        self.remedies = remedies


class AllCompletionsFailed(IAPOError):
    """Every completion of one call of a compiled program failed.

    Attributes:
        causes: One line per failed completion.
        prompt_tokens: Input tokens that were paid for.
        completion_tokens: Output tokens that were paid for.
    """

    def __init__(
        self,
        message: str,
        *,
        causes: tuple[str, ...] = (),
        prompt_tokens: float = 0.0,
        completion_tokens: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.causes = causes
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens


class StateError(IAPOError):
    """A saved program cannot be loaded into this object."""


class LocalModelError(IAPOError):
    """The local model cannot be fetched or served; the message says what to install or to do."""


class StorageError(IAPOError, OSError):
    """The operating system refuses to read or to write a file; `errno` and `filename` are those of the `OSError`."""

    def __str__(self) -> str:
        """Return the message itself: `OSError` would put the number of the error before it."""
        return str(self.strerror)


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def storing(path: str | os.PathLike[str], what: str = "written", kept: str = "") -> Iterator[None]:
    """Turn an error of the operating system into one that names the file and the way out.

    Args:
        path: The file.
        what: What cannot be done: "written" or "read".
        kept: A sentence about the work that is safe all the same.

    Raises:
        StorageError: The file cannot be read or written.
    """
    try:
        yield
    except StorageError:
        raise
    except (OSError, RuntimeError) as error:  # DSPy wraps errors of writing
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        if cause.errno in _FULL:
            advice = "Make room on that disk, or choose another place."
        elif cause.errno == errno.ENOENT:
            advice = "Make its directory first, or correct the path."
        else:
            advice = "Choose a place that you may use, or change its permissions."
        reason = cause.strerror or type(cause).__name__
        message = " ".join(filter(None, [f"{path} cannot be {what}: {reason}.", kept, advice]))
        raise StorageError(cause.errno, message, str(path)) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to, of the same suffix; what was written there takes the file's place at the end."""
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
