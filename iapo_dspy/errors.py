"""Every error this package raises on purpose, under one root.

```text
IAPOError
├── ConfigurationError (ValueError)     an argument cannot be used as given
│   ├── BudgetTooSmall                  no algorithm can work with so few completions
│   ├── LabelRequired                   a Best-of-N objective reads a training label
│   ├── ReservedFieldName               a student field collides with a word of the compiled program
│   └── UnknownPreference (KeyError)    no such named preference
├── ScoreError (ValueError)             a metric or objective returned something that is no bounded score
├── BudgetExceeded                      a reservation did not fit the budget (never shown to users of `compile`)
├── LedgerError                         a run directory cannot be used as it is
│   ├── LedgerMismatch                  it belongs to another run
│   └── LedgerLocked                    another process is using it
├── TooManyErrors                       more completions failed than `max_errors` allows
├── AllCompletionsFailed                every completion of one deployed call failed
└── StateError                          a saved program cannot be loaded
```

Messages say what was given, what is needed and what to do.
"""

from __future__ import annotations

__all__ = [
    "AllCompletionsFailed",
    "BudgetExceeded",
    "BudgetTooSmall",
    "ConfigurationError",
    "IAPOError",
    "LabelRequired",
    "LedgerError",
    "LedgerLocked",
    "LedgerMismatch",
    "ReservedFieldName",
    "ScoreError",
    "StateError",
    "TooManyErrors",
    "UnknownPreference",
]


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
    """A reservation did not fit what is left of the budget."""


class LedgerError(IAPOError):
    """A run directory cannot be used as it is."""


class LedgerMismatch(LedgerError):
    """The run directory belongs to a run with another student, candidates, data or settings."""


class LedgerLocked(LedgerError):
    """Another process holds the run directory."""


class TooManyErrors(IAPOError):
    """More completions failed than `max_errors` allows; what was paid for is in the ledger."""


class AllCompletionsFailed(IAPOError):
    """Every completion of one call of a compiled program failed.

    Attributes:
        causes: One line per failed completion.
    """

    def __init__(self, message: str, *, causes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.causes = causes


class StateError(IAPOError):
    """A saved program cannot be loaded into this object."""
