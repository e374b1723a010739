"""Tries a metric on the training labels before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError, LabelRequired, LMRefused, ScoreError, one_line
from iapo_dspy.prompts.student import Student
from iapo_dspy.sampling.judges.metered import refusing
from iapo_dspy.scoring.no_labels import label_message
from iapo_dspy.scoring.scores import Metric

PROBED = 100  # examples on which a metric is tried before anything is spent


class ProbeReachedLM(Exception):  # this is not an error: the probe has found a judge
    """A metric asked the configured LM while it was tried: it is a judge, and judges are not tried."""


class _NoCalls(dspy.BaseLM):  # type: ignore[misc]  # dspy ships no types
    """The configured LM while a metric is tried: every call is noted and refused."""

    def __init__(self) -> None:
        super().__init__(model="iapo_dspy/no-calls")
        self.reached = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.reached = True
        raise ProbeReachedLM

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        self.reached = True
        raise ProbeReachedLM


def probe(
    trial: Callable[[dspy.Example, dspy.Prediction, Metric | None], None],
    metric: Metric | None,
    examples: Sequence[dspy.Example],
    student: Student,
) -> list[Any]:
    """Try the metric or the objectives on examples' own labels, so that a wrong one costs nothing.

    Args:
        trial: Scores one prediction, as `Strategy.probe` does.
        metric: The user's.
        examples: The training set; the first of them are tried.
        student: The whole program, which makes the predictions.

    Returns:
        The models that it asks, as far as they are known: the configured LM (None where there is none), or those of
        `refusing`.
    """
    configured, silent = dspy.settings.lm, _NoCalls()
    with refusing(ProbeReachedLM()) as asked, dspy.context(lm=silent):
        for i, example in enumerate(examples[:PROBED]):
            prediction = StandIn(example, student.output_fields, is_open=student.input_fields is None)
            problem: Exception | None = None
            try:
                trial(example, prediction, metric)
            except Exception as exc:  # noqa: BLE001 - explained below
                problem = exc
            if isinstance(problem, (ConfigurationError, LMRefused)):
                raise problem
            if silent.reached or asked:  # whatever became of the refused call in the user's code
                return [*asked, *([configured] if silent.reached else [])]
            if problem is not None:
                _explain(problem, metric, example, prediction, i)
    return []


def _explain(
    problem: Exception, metric: Metric | None, example: dspy.Example, prediction: StandIn, position: int
) -> None:
    """Raise an error that a user can act on, unless the user's code had good reason to fail."""
    if isinstance(problem, ScoreError):
        raise ScoreError(
            f"{problem} (trainset[{position}] with its own labels as the prediction; nothing was spent)"
        ) from problem
    hidden = [n for n in example.labels().keys() if repr(n) in str(problem)]
    if metric is None and isinstance(problem, (KeyError, AttributeError)) and hidden:
        raise LabelRequired(label_message("of Best-of-N", hidden)) from problem
    if prediction.made_up_read:  # a field without a label was made up: the user's code may well refuse it
        return
    what = "The metric" if metric is not None else "An objective"
    raise ScoreError(
        f"{what} raised {one_line(problem)} for trainset[{position}] with its own labels as the prediction. Mend it, "
        "or the example's fields; no LM call was made."
    ) from problem


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
