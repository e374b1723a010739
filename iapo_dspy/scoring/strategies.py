"""Strategies: how N completions become one answer, while compiling and when deployed."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import dspy
import numpy as np

from iapo_dspy.bandit.aggregators import Aggregator, BestOfNAggregator, MajorityVoteAggregator
from iapo_dspy.errors import ConfigurationError, LabelRequired, one_line
from iapo_dspy.scoring.answers import Normalize, answer_key, is_hashable_type, normalize_answer
from iapo_dspy.scoring.labels import InputsOnly, check_reads_no_label, label_message
from iapo_dspy.scoring.scores import Metric, Scored, as_score, check_bounds, function_digest
from iapo_dspy.types import FloatArray

logger = logging.getLogger(__name__)

__all__ = ["BestOfN", "MajorityVote", "Objective", "Selection", "Strategy"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the completions of one deployed call is returned, and why.

    Attributes:
        index: Position of the winner among the predictions.
        votes: Answer -> number of votes (majority vote), most first.
        utilities: Weighted objective of each prediction, None where scoring it failed (best-of-n).
        failures: Position -> why a prediction that was there could not take part.
    """

    index: int
    votes: Mapping[str, int] | None = None
    utilities: tuple[float | None, ...] | None = None
    failures: Mapping[int, str]


@runtime_checkable
class Strategy(Protocol):
    """What the optimizer and the compiled program need to know of a strategy."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names on the K axis."""

    def aggregator(self) -> Aggregator:
        """Return the vectorised form that estimates expected rewards."""

    def check(self, *, metric: Metric | None) -> None:
        """Raise ConfigurationError if the strategy cannot work with this metric. Called when the optimizer is built."""

    def check_student(self, inputs: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Raise ConfigurationError if the student's fields (outputs: name -> annotation) do not fit."""

    def score(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> Scored:
        """Score one completion of a training query; exceptions of user code become failures."""

    def probe(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> None:
        """Score once before anything is spent; problems raise instead of becoming failures."""

    def select(
        self, inputs: Mapping[str, Any], predictions: Sequence[dspy.Prediction], weights: FloatArray
    ) -> Selection | None:
        """Choose among the predictions of a deployed call; None if none of them can take part."""

    def digest(self, metric: Metric | None) -> str:
        """Return a hash of the code that scores; stored scores of other code are not used again."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that identifies the strategy; callables by name only."""


class MajorityVote:
    """Majority vote over one output field (eq. 2 of the paper).

    The answer with most votes wins, ties with probability 1/t each: the tied answer that was drawn first is
    returned, which is the same in law because completions are exchangeable.

    Args:
        field: Output field that is voted on.
        normalize: Field value -> hashable form in which answers are compared. Default: `normalize_answer`.
        bounds: Lowest and highest value of the metric.
        strict: Whether `field` must be declared by one of the student's predictors. Set it to False for a module
            that builds its own Prediction with another field.

    Raises:
        ConfigurationError: `field` is no name, `normalize` is not callable, or the bounds are wrong.
    """

    def __init__(
        self,
        field: str,
        *,
        normalize: Normalize | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        strict: bool = True,
    ) -> None:
        if not isinstance(field, str) or not field.isidentifier():
            raise ConfigurationError(f"MajorityVote({field!r}): give the name of the output field to vote on.")
        if normalize is not None and not callable(normalize):
            raise ConfigurationError(f"MajorityVote: normalize must be callable, got {normalize!r}.")
        self.field = field
        self.normalize: Normalize = normalize or normalize_answer
        self.bounds = check_bounds(bounds, "MajorityVote")
        self.strict = strict

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metric is the only objective."""
        return ("metric",)

    def aggregator(self) -> Aggregator:
        """Return eq. 2 in vectorised form."""
        return MajorityVoteAggregator(floor=self.bounds[0])

    def check(self, *, metric: Metric | None) -> None:
        """Raise ConfigurationError without a callable metric."""
        if metric is None or not callable(metric):
            raise ConfigurationError(
                f"MajorityVote needs a metric to know which answers are right, got metric={metric!r}. Pass "
                "metric(example, prediction, trace=None) -> bool or a number."
            )
        misfit = _misfit(metric)
        if misfit is not None:
            raise ConfigurationError(
                f"metric {_name(metric)}{misfit}: it must be callable as metric(example, prediction, trace=None)."
            )

    def check_student(self, inputs: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Raise ConfigurationError if the student lacks the field, or its type cannot be counted."""
        if self.field not in outputs:
            if not self.strict:
                return
            raise ConfigurationError(
                f"MajorityVote({self.field!r}): the student's output fields are {sorted(outputs)}. Name one of them; "
                "for a module that builds its own Prediction, pass strict=False."
            )
        annotation = outputs[self.field]
        if self.normalize is normalize_answer and not is_hashable_type(annotation):
            raise ConfigurationError(
                f"MajorityVote({self.field!r}): values of type {annotation} are not hashable, so they cannot be "
                "counted. Pass normalize=, a function that returns a string, a number or a tuple."
            )

    def key(self, prediction: dspy.Prediction) -> str | None:
        """Return the key under which this prediction votes; None for no vote."""
        # Not getattr: a field may be called `labels` or `items`, as methods of a Prediction are.
        return answer_key(prediction[self.field], self.normalize)

    def score(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> Scored:
        """Score one completion with the metric."""
        try:
            return self._score(example, prediction, metric)
        except Exception as exc:  # noqa: BLE001  # user code: its failure is this completion's, kept with its cause
            return Scored(failure=one_line(exc), error=True)

    def probe(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> None:
        """Score a stand-in prediction; raises what `score` would hide."""
        if metric is not None and self.field in prediction:
            as_score(metric(example, prediction), what=_name(metric), bounds=self.bounds)

    def _score(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> Scored:
        if metric is None:
            raise ConfigurationError("MajorityVote needs a metric.")
        if self.field not in prediction:
            return Scored(failure=f"the prediction has no field {self.field!r}")
        answer = self.key(prediction)
        if answer is None:
            return Scored(failure=f"field {self.field!r} is empty")
        value = metric(example, prediction)
        return Scored(answer=answer, scores=(as_score(value, what=_name(metric), bounds=self.bounds),))

    def select(
        self, inputs: Mapping[str, Any], predictions: Sequence[dspy.Prediction], weights: FloatArray
    ) -> Selection | None:
        """Return the first prediction of the answer with most votes."""
        votes: dict[str, int] = {}
        first: dict[str, int] = {}
        failures: dict[int, str] = {}
        for i, prediction in enumerate(predictions):
            if self.field not in prediction:
                failures[i] = f"the prediction has no field {self.field!r}"
                continue
            try:
                answer = self.key(prediction)
            except Exception as exc:  # noqa: BLE001  # the user's normalize
                failures[i] = one_line(exc)
                continue
            if answer is None:
                failures[i] = f"field {self.field!r} is empty"
                continue
            votes[answer] = votes.get(answer, 0) + 1
            first.setdefault(answer, i)
        if not votes:
            return None
        ranked = dict(sorted(votes.items(), key=lambda item: (-item[1], first[item[0]])))
        return Selection(index=first[next(iter(ranked))], votes=ranked, failures=failures)

    def digest(self, metric: Metric | None) -> str:
        """Return a hash of the metric's and the normalisation's code."""
        return function_digest(metric, self.normalize, self.bounds)

    def to_dict(self) -> dict[str, Any]:
        """Return what identifies this strategy as JSON data."""
        custom = None if self.normalize is normalize_answer else _name(self.normalize)
        return {"kind": "majority_vote", "field": self.field, "normalize": custom, "bounds": list(self.bounds)}


@dataclass(frozen=True)
class Objective:
    """One bounded, label-free score of a completion (the paper's O_k).

    Attributes:
        name: How preferences weigh it.
        score: `(example, prediction) -> bool or number`; the example shows its inputs only, here and when deployed.
        bounds: Lowest and highest score, both allowed; higher is better.
        inputs: Input fields of the student that the function reads from the example and, under the same name, from the
            prediction. Otherwise a field that is read from both is taken for a label.
    """

    name: str
    score: Callable[[dspy.Example, dspy.Prediction], Any]
    bounds: tuple[float, float] = (0.0, 1.0)
    inputs: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigurationError(f"Objective name {self.name!r}: give a non-empty string.")
        if not callable(self.score):
            raise ConfigurationError(f"Objective {self.name!r}: score must be callable, got {self.score!r}.")
        object.__setattr__(self, "bounds", check_bounds(self.bounds, f"Objective {self.name!r}"))
        misfit = _misfit(self.score)
        if misfit is not None:
            raise LabelRequired(
                f"Objective {self.name!r}: score{misfit} must be callable as score(example, prediction). When the "
                "program is deployed there is nothing else to give it, no label and no gold answer."
            )
        check_reads_no_label(self.name, self.score, declared=self.inputs)

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
        """Score one completion.

        Raises:
            ScoreError: The function returned something that is no score within the bounds.
        """
        return as_score(self.score(example, prediction), what=f"Objective {self.name!r}", bounds=self.bounds)


class BestOfN:
    """Best-of-N over weighted, label-free objectives (eq. 1 of the paper).

    Args:
        objectives: At least one; names are unique.

    Raises:
        ConfigurationError: No objective, or two of one name.
        LabelRequired: An objective reads a label of the example.
    """

    def __init__(self, objectives: Iterable[Objective]) -> None:
        if isinstance(objectives, (str, Mapping)) or not isinstance(objectives, Iterable):
            raise ConfigurationError(f"BestOfN({objectives!r}): give a list of Objective('name', function).")
        self._objectives = tuple(objectives)
        if not self._objectives:
            raise ConfigurationError("BestOfN: give at least one Objective(name, score, bounds).")
        for objective in self._objectives:
            if not isinstance(objective, Objective):
                raise ConfigurationError(
                    f"BestOfN: {objective!r} is no Objective; wrap it: Objective('name', function)."
                )
        names = self.objectives
        if len(set(names)) < len(names):
            raise ConfigurationError(f"BestOfN: objective names must differ, got {list(names)}.")

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names on the K axis."""
        return tuple(o.name for o in self._objectives)

    def aggregator(self) -> Aggregator:
        """Return eq. 1 in vectorised form."""
        return BestOfNAggregator(floors=[o.bounds[0] for o in self._objectives])

    def check(self, *, metric: Metric | None) -> None:
        """Say that a metric is not used: Best-of-N selects by its objectives, also when deployed."""
        if metric is not None:
            logger.warning(
                "BestOfN selects by its objectives alone, so metric=%s is not used. Make it an Objective if it needs "
                "no label, or evaluate the compiled program with it.",
                _name(metric),
            )

    def check_student(self, inputs: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Raise LabelRequired if an objective reads an example field that is no input of the student."""
        for objective in self._objectives:
            check_reads_no_label(objective.name, objective.score, inputs)

    def score(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> Scored:
        """Score one completion under every objective."""
        try:
            return Scored(scores=self._scores(example, prediction))
        except LabelRequired:
            raise  # no completion of this run can be scored: the objective itself is wrong
        except Exception as exc:  # noqa: BLE001  # user code: its failure is this completion's, kept with its cause
            return Scored(failure=one_line(exc), error=True)

    def probe(self, example: dspy.Example, prediction: dspy.Prediction, metric: Metric | None) -> None:
        """Score a stand-in prediction; raises what `score` would hide."""
        self._scores(example, prediction)

    def _scores(self, example: dspy.Example, prediction: dspy.Prediction) -> tuple[float, ...]:
        scores = []
        for objective in self._objectives:
            shown = InputsOnly(example, objective=objective.name)
            scores.append(objective(shown, prediction))
            if shown.label_read is not None:  # the objective caught what reading a label raised
                raise LabelRequired(label_message(objective.name, [shown.label_read]))
        return tuple(scores)

    def select(
        self, inputs: Mapping[str, Any], predictions: Sequence[dspy.Prediction], weights: FloatArray
    ) -> Selection | None:
        """Return the prediction of the highest weighted objective; the earliest of equals."""
        example = dspy.Example(**inputs).with_inputs(*inputs)
        utilities: list[float | None] = []
        failures: dict[int, str] = {}
        for i, prediction in enumerate(predictions):
            try:
                utilities.append(float(np.dot(weights, self._scores(example, prediction))))
            except Exception as exc:  # noqa: BLE001  # user code: this completion is never the best
                utilities.append(None)
                failures[i] = one_line(exc)
        scored = [(u, -i) for i, u in enumerate(utilities) if u is not None]
        if not scored:
            return None
        return Selection(index=-max(scored)[1], utilities=tuple(utilities), failures=failures)

    def digest(self, metric: Metric | None) -> str:
        """Return a hash of the objectives' code."""
        return function_digest(*(part for o in self._objectives for part in (o.score, o.bounds)))

    def to_dict(self) -> dict[str, Any]:
        """Return what identifies this strategy as JSON data."""
        return {
            "kind": "best_of_n",
            "objectives": [
                {"name": o.name, "score": _name(o.score), "bounds": list(o.bounds)} for o in self._objectives
            ],
        }


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _misfit(function: Callable[..., Any]) -> str | None:
    """Return the signature of a function that cannot be called with two arguments; None if it can."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None  # not introspectable (a builtin): the probe before the run will tell
    try:
        signature.bind(object(), object())
    except TypeError:
        return str(signature)
    return None


class StandIn(dspy.Prediction):  # type: ignore[misc]  # dspy ships no types
    """A prediction made of an example's labels, to try a metric on before anything is spent.

    Output fields without a label are made up; `made_up_read` tells whether any of those was looked at, for then a
    metric may fail with good reason.
    """

    def __init__(self, example: dspy.Example, outputs: Mapping[str, Any]) -> None:
        labels = dict(example.labels().items())
        made_up = {f: _blank(annotation) for f, annotation in outputs.items() if f not in labels}
        super().__init__(**{**made_up, **labels})
        self._iapo_made_up = frozenset(made_up)
        self._iapo_read = False

    @property
    def made_up_read(self) -> bool:
        """Whether a field without a label was looked at."""
        return self._iapo_read

    def _note(self, name: Any) -> None:
        if name in self.__dict__.get("_iapo_made_up", ()):
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
