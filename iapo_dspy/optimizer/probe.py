"""Tries a metric on the training labels before anything is spent."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
import pydantic
from dspy.adapters.utils import parse_value
from dspy.utils.callback import BaseCallback

from iapo_dspy.environments.live.equal_scores import shown
from iapo_dspy.errors import ConfigurationError, LabelRequired, LMRefused, ScoreError, one_line
from iapo_dspy.prompts.student import Student
from iapo_dspy.sampling.judges.metered import refusing
from iapo_dspy.scoring.no_labels import label_message
from iapo_dspy.scoring.objectives.opponents import beside
from iapo_dspy.scoring.scores import Metric, as_score
from iapo_dspy.scoring.user_functions import name_of

logger = logging.getLogger(__name__)

PROBED = 100  # examples on which a metric is tried before anything is spent
SECONDS = 5.0  # for which it is tried at most, and the example that is under way
_SHOWN = 3


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


class _CallEnded(BaseException):
    """Ends a call of an LM that the metric holds itself: DSPy swallows an `Exception` of a callback."""


class _OwnLMs(BaseCallback):  # type: ignore[misc]  # dspy ships no types
    """Ends the calls of LMs that a metric holds itself before they are sent."""

    def __init__(self) -> None:
        self.reached = False

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note the call, and end it."""
        self.reached = True
        raise _CallEnded


@dataclass(frozen=True, kw_only=True)
class Probed:
    """The findings of trying a metric.

    Attributes:
        judges: The models that it asks and the budget may count, as far as they are known: the configured LM (None
            where there is none), or those of `refusing`.
        doubtful: Whether it gave its lowest value to the label itself on every example that says something.
    """

    judges: tuple[Any, ...] = ()
    doubtful: bool = False


@dataclass(frozen=True, kw_only=True)
class _Tried:
    position: int
    example: dspy.Example
    prediction: StandIn
    score: float


def probe(
    trial: Callable[[dspy.Example, dspy.Prediction, Metric | None], None],
    metric: Metric | None,
    examples: Sequence[dspy.Example],
    student: Student,
    lowest: float = 0.0,
) -> Probed:
    """Try the metric or the objectives on examples' own labels, so that a wrong one costs nothing.

    Args:
        trial: Scores one prediction, as `Strategy.probe` does.
        metric: The user's.
        examples: The training set; the first of them are tried, for a few seconds.
        student: The whole program, which makes the predictions.
        lowest: Lowest value of the metric.

    Raises:
        ScoreError: There is no score for an example, or the metric could be satisfied only by values of another type
            than the program returns.
    """
    configured, silent, own = dspy.settings.lm, _NoCalls(), _OwnLMs()
    noted, scores = (None, []) if metric is None else _noting(metric)
    tried: list[_Tried] = []
    start = time.monotonic()

    def attempt(example: dspy.Example, prediction: StandIn) -> BaseException | None:
        scores.clear()
        try:
            trial(example, prediction, noted)
        except (Exception, _CallEnded) as exc:  # noqa: BLE001 - explained below
            return exc
        return None

    callbacks = [own, *(dspy.settings.callbacks or ())]
    with refusing(ProbeReachedLM()) as asked, dspy.context(lm=silent, callbacks=callbacks), beside(student.module):
        for i, example in enumerate(examples[:PROBED]):
            prediction = StandIn(example, student.output_fields, is_open=student.input_fields is None)
            problem = attempt(example, prediction)
            if isinstance(problem, (ConfigurationError, LMRefused)):
                raise problem
            if silent.reached or asked or own.reached:  # whatever became of the refused call in the user's code
                found = (*asked, *([silent] if silent.reached else []))
                return Probed(judges=tuple(configured if judge is silent else judge for judge in found))
            if isinstance(problem, Exception):
                _explain(problem, metric, example, prediction, i)
            elif scores and not prediction.made_up_read and not prediction.doubted:
                tried.append(_Tried(position=i, example=example, prediction=prediction, score=scores[0]))
            if time.monotonic() - start > SECONDS:
                break
        if metric is None or not tried or any(t.score > lowest for t in tried):
            return Probed()
        for t in tried[:_SHOWN]:
            raw = StandIn(t.example, student.output_fields, is_open=True)
            if t.prediction.converted and attempt(t.example, raw) is None and scores and scores[0] > lowest:
                raise ScoreError(_other_type(metric, lowest, len(tried), t))
    logger.warning(
        "The metric %s scores %g, its lowest value, for the label itself on all %d training examples that were tried, "
        "such as trainset[%d]: the prediction %s beside the labels %s. If the program can answer like that, nothing "
        "can satisfy the metric: mend it. The run stops early if no completion scores more.",
        name_of(metric), lowest, len(tried), tried[0].position, shown(tried[0].prediction),
        shown(tried[0].example.labels()),
    )  # fmt: skip
    return Probed(doubtful=True)


def _noting(metric: Metric) -> tuple[Metric, list[float]]:
    """Return the metric, and the list to which it adds its scores of stand-in predictions."""
    scores: list[float] = []

    def noted(example: Any, prediction: Any, *args: Any, **kwargs: Any) -> Any:
        value = metric(example, prediction, *args, **kwargs)
        if isinstance(prediction, StandIn):
            with contextlib.suppress(ScoreError):  # the strategy will say so
                scores.append(as_score(value, what="", bounds=None))
        return value

    functools.update_wrapper(noted, metric)
    noted.__qualname__ = name_of(metric)
    return noted, scores


def _other_type(metric: Metric, lowest: float, count: int, tried: _Tried) -> str:
    name, (label, value) = next(iter(tried.prediction.converted.items()))
    return (
        f"The metric {name_of(metric)} scores {lowest:g}, its lowest value, for the right answer of all {count} "
        f"training examples that were tried, because of its type. trainset[{tried.position}] has the label "
        f"{name}={label!r} ({type(label).__name__}), and the program returns {name}={value!r} "
        f"({type(value).__name__}). Let the metric convert one of them, such as str(example.{name}) == "
        f"str(prediction.{name}), or give field and label the same type. No LM call was made."
    )


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
    types = [
        f" The program returns {name}={value!r} ({type(value).__name__}) where the label is {label!r}."
        for name, (label, value) in prediction.converted.items()
    ]
    raise ScoreError(
        f"{what} raised {one_line(problem)} for trainset[{position}] with its own labels as the prediction."
        f"{''.join(types)} Mend it, or the example's fields; no LM call was made."
    ) from problem


class StandIn(dspy.Prediction):  # type: ignore[misc]  # dspy ships no types
    """A prediction made of an example's labels, to try a metric on before anything is spent.

    A label stands in its output field as the program would return it: 4 as "4" in a field of type str, "red" as a
    member of an enum. Where the program's own `forward` may return anything, labels stay as they are.

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
        typed = {} if is_open else {f: _returned(labels[f], outputs[f]) for f in labels if f in outputs}
        known = {f: value for f, (value, sure) in typed.items() if sure}
        super().__init__(**{**made_up, **labels, **known})
        self._iapo_known = {f: (labels[f], v) for f, v in known.items() if type(v) is not type(labels[f])}
        self._iapo_doubtful = frozenset(typed.keys() - known.keys())
        self._iapo_seen: set[str] = set()
        self._iapo_made_up = frozenset(made_up)
        self._iapo_open = is_open
        self._iapo_read = False

    @property
    def made_up_read(self) -> bool:
        """Whether a field without a label was looked at, or one that only the program may know."""
        return self._iapo_read

    @property
    def converted(self) -> dict[str, tuple[Any, Any]]:
        """Field -> label and value, for those that were looked at and are of another type than their label."""
        return {f: pair for f, pair in self._iapo_known.items() if f in self._iapo_seen}

    @property
    def doubted(self) -> bool:
        """Whether a field was looked at whose label does not say what the program would return."""
        return bool(self._iapo_seen & self._iapo_doubtful)

    def _note(self, name: Any) -> None:
        if not str(name).startswith("_") and "_iapo_seen" in self.__dict__:
            self._iapo_seen.add(str(name))
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
        self._iapo_seen.update(map(str, self.keys()))
        return super().items(include_dspy)


def _blank(annotation: Any) -> Any:
    for kind in (bool, int, float, list, dict):
        if annotation is kind:
            return kind()
    return "text"


def _returned(label: Any, annotation: Any) -> tuple[Any, bool]:
    """Return the value of a field whose right answer is this label, and whether the label says it."""
    if annotation in (Any, None):
        return label, True
    try:
        return pydantic.TypeAdapter(annotation).validate_python(label, strict=True), True
    except Exception:  # noqa: BLE001 - it is of another type, or the annotation is not for pydantic
        pass
    try:
        if isinstance(label, bool) or label is None:
            return label, False
        if isinstance(label, (str, numbers.Number, datetime.date, datetime.time)):
            return parse_value(str(label), annotation), True  # as an adapter reads it
        if annotation is str:  # several right answers, or anything
            return label, False
        return pydantic.TypeAdapter(annotation).validate_python(label), True
    except Exception:  # noqa: BLE001 - the program cannot return it
        return label, False
