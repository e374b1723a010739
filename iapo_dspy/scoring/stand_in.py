"""A prediction made of labels, to try a metric on before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

__all__ = ["StandIn"]


class StandIn(dspy.Prediction):  # type: ignore[misc]  # dspy ships no types
    """A prediction made of an example's labels, to try a metric on before anything is spent.

    Output fields without a label are made up; `made_up_read` tells whether any of those was looked at, for then a
    metric may fail with good reason. So does a field that is missing, where the program makes its own prediction.

    Args:
        example: Has the labels.
        outputs: Output field -> annotation, as the program's predictors declare them.
        is_open: Whether the program's own `forward` may return other fields than those.
    """

    def __init__(self, example: dspy.Example, outputs: Mapping[str, Any], *, is_open: bool = False) -> None:
        labels = dict(example.labels().items())
        made_up = {f: _blank(annotation) for f, annotation in outputs.items() if f not in labels}
        super().__init__(**{**made_up, **labels})
        self._iapo_made_up = frozenset(made_up)
        self._iapo_open = is_open
        self._iapo_read = False

    @property
    def made_up_read(self) -> bool:
        """Whether a field without a label was looked at, or one that only the program may know."""
        return self._iapo_read

    def _note(self, name: Any) -> None:
        missing = self.__dict__.get("_iapo_open") and not str(name).startswith("_") and name not in self
        if missing or name in self.__dict__.get("_iapo_made_up", ()):
            self._iapo_read = True

    def __getattr__(self, name: str) -> Any:
        self._note(name)
        return super().__getattr__(name)

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def items(self, include_dspy: bool = False) -> Any:
        """Return all fields, as `dspy.Example.items` does."""
        self._iapo_read = self._iapo_read or bool(self._iapo_made_up)
        return super().items(include_dspy)


def _blank(annotation: Any) -> Any:
    for kind in (bool, int, float, list, dict):
        if annotation is kind:
            return kind()
    return "text"
