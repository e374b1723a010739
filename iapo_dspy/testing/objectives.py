"""Rules that every objective keeps, for the tests of their authors."""

from __future__ import annotations

import concurrent.futures
import contextvars
import copy
import json
import math
from collections.abc import Sequence
from typing import Any

import dspy

from iapo_dspy.errors import LabelRequired, one_line
from iapo_dspy.scoring.no_labels import InputsOnly
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.strategies.best_of_n import BestOfN


def check_objective(
    objective: Objective,
    examples: Sequence[dspy.Example],
    predictions: Sequence[dspy.Prediction],
    *,
    deterministic: bool = True,
    tolerance: float = 1e-6,
    threads: int = 8,
) -> None:
    """Check that an objective keeps the rules that Best-of-N relies on.

    1. It scores every prediction by a finite number, within its bounds unless it is calibrated.
    2. It reads no label: neither does it ask for one, nor does its score change where labels do.
    3. Equal inputs and predictions have equal scores, unless it is said not to be deterministic.
    4. It changes neither the example nor the prediction.
    5. It may be called by many threads at once, and scores there as it does alone.
    6. Best-of-N reads the same scores when deployed, and knows the objective again in every process.

    Args:
        objective: The objective.
        examples: Inputs, marked by `with_inputs`, and labels if it has some.
        predictions: One for each example, all of which can be scored.
        deterministic: Whether equal calls must have equal scores. A judge at a temperature above 0 is not.
        tolerance: How far equal scores may be apart: models in batches round differently.
        threads: Calls at once, >= 2.

    Raises:
        AssertionError: A rule is broken; the message says which one, where, and which scores were found.
        ValueError: There are no examples, or not as many predictions.
    """
    if not examples or len(examples) != len(predictions) or threads < 2:
        raise ValueError("Give as many predictions as examples, at least one, and two threads or more.")
    assert isinstance(objective, Objective), f"{objective!r} is not an Objective."
    name = objective.name
    cases = list(zip(examples, predictions, strict=True))

    def score(example: dspy.Example, prediction: dspy.Prediction) -> float:
        shown = InputsOnly(example, objective=name)
        value = objective(shown, prediction)
        assert shown.label_read is None, f"{name} reads the label {shown.label_read!r}, and hides it."
        return value

    def same(one: float, other: float) -> bool:
        return not deterministic or math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)

    first: list[float] = []
    for i, (example, prediction) in enumerate(cases):
        before = copy.deepcopy((dict(example.items()), dict(prediction.items())))
        try:
            value = score(example, prediction)
        except LabelRequired as error:
            raise AssertionError(f"{name} reads a label: {error}") from error
        except Exception as error:
            if isinstance(error, AssertionError):
                raise
            raise AssertionError(f"{name} cannot score predictions[{i}]: {one_line(error)}") from error
        low, high = objective.bounds
        bounded = objective.calibrate is not None or low <= value <= high
        assert isinstance(value, float) and math.isfinite(value) and bounded, (
            f"{name} scores predictions[{i}] {value!r}, outside of {objective.bounds}."
        )
        after = (dict(example.items()), dict(prediction.items()))
        assert after == before, f"{name} changes what it scores: predictions[{i}] was {before}, and is {after}."
        first.append(value)

    for i, (example, prediction) in enumerate(cases):
        again = score(copy.deepcopy(example), copy.deepcopy(prediction))
        assert same(again, first[i]), f"{name} scores equal predictions[{i}] {first[i]!r} and {again!r}."
        inputs = dict(example.inputs().items())
        scrambled = {k: v if k in inputs else f"another {k}" for k, v in example.items()}
        other = score(dspy.Example(**scrambled).with_inputs(*inputs), prediction)
        assert same(other, first[i]), f"{name} depends on labels: {first[i]!r} becomes {other!r} for predictions[{i}]."

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        # In copies of the context, as the optimizer's threads are: the configured LM is in it.
        rounds = [(i, contextvars.copy_context()) for _ in range(3) for i in range(len(cases))]
        work = [(i, pool.submit(context.run, score, *cases[i])) for i, context in rounds]
        for i, future in work:
            problem = future.exception()
            assert problem is None, f"{name} fails among threads, for predictions[{i}]: {problem!r}"
            found = future.result()
            assert same(found, first[i]), f"{name} scores predictions[{i}] {first[i]!r}, and {found!r} among threads."

    strategy = BestOfN([objective])
    for i, (example, prediction) in enumerate(cases):
        read = strategy.read(dict(example.inputs().items()), prediction)
        assert read.scores is not None, f"{name} fails when deployed, for predictions[{i}]: {read.failure}"
        found = read.scores[0]
        assert same(found, first[i]), f"{name} scores predictions[{i}] {first[i]!r}, and {found!r} when deployed."
    described: Any = strategy.to_dict()
    assert json.loads(json.dumps(described)) == described, f"{name} has no JSON form: {described}."
    twin = BestOfN([objective]).digest(None)
    assert strategy.digest(None) == twin and " at 0x" not in repr(described), f"{name} is not known again."
