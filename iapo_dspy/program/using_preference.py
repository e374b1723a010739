"""The preference of every compiled program that is called within a `with` block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import dspy

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.preferences import Preference

_SETTING = "iapo_preference"


@contextlib.contextmanager
def using_preference(preference: str | Preference | None) -> Iterator[None]:
    """Set the preference of every compiled program called within that is given none by its call.

    It goes before a program's own default (`with_preference`) and behind the keyword of a call. It is one of DSPy's
    settings, so it reaches programs nested in others, and the threads and tasks that DSPy starts.

        with iapo_dspy.using_preference("thrifty"):
            pipeline(question="...")

    Args:
        preference: A name, which every compiled program called within must know, or a `Preference`; None lifts the
            one of an enclosing block.

    Raises:
        ConfigurationError: It is something else.
    """
    if preference is not None and not isinstance(preference, (str, Preference)):
        raise ConfigurationError(
            f"using_preference({preference!r}): give the name of a compiled preference, or a Preference(cost=...)."
        )
    with dspy.context(**{_SETTING: preference}):
        yield


def current_preference() -> str | Preference | None:
    """Return the preference of the innermost `using_preference` block; None outside of one."""
    found: str | Preference | None = dspy.settings.get(_SETTING)
    return found
