"""The base of LMs that stand in for another one."""

from __future__ import annotations

from typing import Any

import dspy

__all__ = ["METERING", "StandInLM"]

METERING = "iapo_metering"
"""The DSPy setting under which an LM call finds the run that meters it; see `metered`."""


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

    @property
    def supports_function_calling(self) -> bool:
        """As the LM says."""
        return bool(self._lm.supports_function_calling)

    @property
    def supports_reasoning(self) -> bool:
        """As the LM says."""
        return bool(self._lm.supports_reasoning)

    @property
    def supports_response_schema(self) -> bool:
        """As the LM says."""
        return bool(self._lm.supports_response_schema)

    @property
    def supported_params(self) -> set[str]:
        """As the LM says."""
        return set(self._lm.supported_params)

    def __getattr__(self, name: str) -> Any:
        """Take public attributes of the LM's own kind from the LM."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._lm, name)
