"""What a call of a compiled program returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy

if TYPE_CHECKING:
    from iapo_dspy.program.call import CallReport

__all__ = ["CompiledPrediction"]


class CompiledPrediction(dspy.Prediction):  # type: ignore[misc]  # dspy ships no types
    """The winner's fields, all successful completions in `completions`, and what the call did in `iapo`.

    The report is no field: code that goes through the fields of a prediction (`dspy.majority`, metrics, `toDict`, a web
    service) sees those of the student only.
    """

    def __init__(self, base: Any = None, **kwargs: Any) -> None:
        super().__init__(base, **kwargs)
        self._iapo: CallReport | None = getattr(base, "_iapo", None)

    @property
    def iapo(self) -> CallReport:
        """What the call did.

        Raises:
            AttributeError: This was not returned by a call, but made of fields.
        """
        if self._iapo is None:
            raise AttributeError("iapo")
        return self._iapo
