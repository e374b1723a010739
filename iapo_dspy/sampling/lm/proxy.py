"""The base of LMs that stand in for another one, and the run that meters them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import dspy

METERING = "iapo_metering"
"""The DSPy setting under which an LM call finds the run that meters it; see `metered`."""


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Report errors raised within to the run that scores, if there is one."""
    try:
        yield
    except Exception as error:
        scope = dspy.settings.get(METERING)
        if scope is not None:
            scope.note(error)
        raise


class StandInLM(dspy.BaseLM):  # type: ignore[misc]  # dspy ships no types
    """Looks like the LM it stands in for, down to public attributes of the LM's own kind.

    Args:
        lm: The LM it stands in for.
        cache: As `dspy.BaseLM` has it.
    """

    def __init__(self, lm: dspy.BaseLM, *, cache: bool = False) -> None:
        super().__init__(model=lm.model, model_type=lm.model_type, cache=cache, num_retries=lm.num_retries)
        self.kwargs = dict(lm.kwargs)
        self._lm = lm

    # `dspy.BaseLM` has these as properties, which `__getattr__` does not reach.
    supports_function_calling = property(attrgetter("_lm.supports_function_calling"))
    supports_reasoning = property(attrgetter("_lm.supports_reasoning"))
    supports_response_schema = property(attrgetter("_lm.supports_response_schema"))
    supported_params = property(attrgetter("_lm.supported_params"))

    def __getattr__(self, name: str) -> Any:
        """Take public attributes of the LM's own kind from the LM."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._lm, name)
