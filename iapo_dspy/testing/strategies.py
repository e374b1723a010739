"""Rules that every strategy keeps, for the tests of their authors.

```python
from iapo_dspy.testing import check_strategy

def test_my_strategy() -> None:
    check_strategy(MyStrategy("answer"), examples, predictions, metric)
```

`pytest_cases.StrategyCases` runs the same rules as one test each.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from typing import Any

import cloudpickle  # DSPy itself saves whole programs with it
import dspy
import numpy as np

from iapo_dspy.bandit.aggregators.port import block_layout
from iapo_dspy.scoring.answers.classes import Equates, classes_of, grouped
from iapo_dspy.scoring.scores import Metric, Scored
from iapo_dspy.scoring.strategies.port import Selection, Settles, Strategy, bounds_of, columns_of
from iapo_dspy.types import FloatArray, IntArray

_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
_LARGEST_CASE = 4  # completions whose orders are all tried


@dataclass(kw_only=True)
class StrategyTrial:
    """A strategy and the material that its rules are tried on; the fields are those of `check_strategy`."""

    strategy: Strategy
    examples: Sequence[dspy.Example]
    predictions: Sequence[dspy.Prediction]
    metric: Metric | None = None
    cases: int = 20
    other_process: bool = True
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        assert self.examples and len(self.predictions) > 1, "give at least one example and two predictions"
        assert isinstance(self.strategy, Strategy), f"{self.strategy!r} lacks a method of the port `Strategy`"
        self.pool = [*self.predictions, dspy.Prediction()]

    def example(self) -> dspy.Example:
        """Draw an example."""
        return self.examples[int(self.rng.integers(len(self.examples)))]

    def draw(self, size: int) -> list[dspy.Prediction]:
        """Draw completions of few kinds, so that some of them agree."""
        some = [self.pool[i] for i in self.rng.integers(len(self.pool), size=max(2, size // 2))]
        return [copy.copy(some[i]) for i in self.rng.integers(len(some), size=size)]

    def weights(self) -> FloatArray:
        """Draw a preference's weights of the objectives."""
        return self.rng.dirichlet(np.ones(len(self.strategy.objectives)))

    def read(self, example: dspy.Example, predictions: Sequence[dspy.Prediction]) -> list[Scored]:
        """Read completions as a deployed call does."""
        inputs = dict(example.inputs().items())
        return [self.strategy.read(inputs, p) for p in predictions]


def check_strategy(
    strategy: Strategy,
    examples: Sequence[dspy.Example],
    predictions: Sequence[dspy.Prediction],
    metric: Metric | None = None,
    *,
    cases: int = 20,
    seed: int = 0,
    other_process: bool = True,
) -> None:
    """Check that a strategy does what the optimizer and the compiled program rely on.

    Args:
        strategy: The strategy.
        examples: Training examples, with inputs and labels.
        predictions: A pool of completions that each of the examples may get: right and wrong ones, some that agree,
            and some that the strategy cannot use.
        metric: The metric, for strategies that need one.
        cases: Random calls that each rule is tried on.
        seed: Where their randomness comes from.
        other_process: Whether to compute the digest in another process too, which takes a few seconds. Strategy and
            metric are sent there by `cloudpickle`.

    Raises:
        AssertionError: A rule is broken; the message says which one, and for which completions.
    """
    trial = StrategyTrial(
        strategy=strategy,
        examples=examples,
        predictions=predictions,
        metric=metric,
        cases=cases,
        other_process=other_process,
        rng=np.random.default_rng(seed),
    )
    for rule in STRATEGY_RULES.values():
        rule(trial)


def _check_names(trial: StrategyTrial) -> None:
    objectives, columns = trial.strategy.objectives, columns_of(trial.strategy)
    assert objectives and all(isinstance(o, str) and o for o in objectives), (
        f"objectives are {objectives!r}: give names"
    )
    assert len(set(columns)) == len(columns), f"columns must differ, got {columns}"
    assert columns[: len(objectives)] == tuple(objectives), f"columns {columns} must begin with {objectives}"


def _check_scores(trial: StrategyTrial) -> None:
    usable = 0
    for example, prediction in product(trial.examples, trial.pool):
        strategy, before = trial.strategy, repr(sorted(prediction.items()))
        scored = _called("score", strategy.score, example, prediction, trial.metric)
        read = _called("read", strategy.read, dict(example.inputs().items()), prediction)
        assert repr(sorted(prediction.items())) == before, f"score or read changed the prediction {before}"
        assert scored.scores is not None or scored.failure is not None, (
            f"score must return scores or say why there are none, got {scored} for {prediction}"
        )
        if scored.scores is None:
            assert not _usable(read), f"read can use {prediction}, but score says: {scored.failure}"
            continue
        usable += 1
        assert len(scored.scores) == len(columns_of(strategy)), (
            f"score returned {len(scored.scores)} numbers for the columns {columns_of(strategy)}"
        )
        assert np.isfinite(scored.scores).all(), f"score returned {scored.scores} for {prediction}"
        assert read.failure is None, f"score could use {prediction}, but read says: {read.failure}"
        assert read.answer == scored.answer, (
            f"score and read disagree on the answer of {prediction}: {scored.answer!r} and {read.answer!r}"
        )
        if isinstance(strategy, Equates):
            stored = replace(scored, value=strategy.value(prediction))
            labels, _ = grouped([read, stored, scored], classes_of(strategy))
            assert len(set(labels)) == 1, f"{prediction} is not in one class with itself"
        _check_unscored(trial, example, prediction, read)
    assert usable, "the strategy can use none of the predictions: give others"


def _check_unscored(trial: StrategyTrial, example: dspy.Example, prediction: dspy.Prediction, read: Scored) -> None:
    """Check that a completion that can be read takes part although the metric raises, and is worth the least."""
    if trial.metric is None:
        return
    asked = []

    def broken(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        asked.append(prediction)
        raise ValueError("this metric cannot score anything")

    scored, lowest = _called("score", trial.strategy.score, example, prediction, broken), bounds_of(trial.strategy)[0]
    if asked:
        assert scored.scores is not None and scored.failure is not None and scored.answer == read.answer, (
            f"read can use {prediction}, so it takes part when deployed; where the metric raises, score must return "
            f"its answer, the lowest score and the failure, not {scored}"
        )
        assert scored.scores[0] == lowest, f"what the metric cannot score is worth {lowest}, not {scored.scores[0]}"


def _usable(read: Scored) -> bool:
    return read.failure is None and (read.answer is not None or read.scores is not None)


def _called(name: str, function: Any, *args: Any) -> Scored:
    try:
        found = function(*args)
    except Exception as exc:
        raise AssertionError(
            f"{name} raised {type(exc).__name__}: {exc} for {args[1]}; it must return Scored(failure=...)"
        ) from exc
    assert isinstance(found, Scored), f"{name} returned {found!r}, which is not a Scored"
    return found


def _check_choice(trial: StrategyTrial) -> None:
    for _ in range(trial.cases):
        size = int(trial.rng.integers(1, 8))
        read, weights = trial.read(trial.example(), trial.draw(size)), trial.weights()
        given = list(read)
        chosen = trial.strategy.choose(read, weights)
        again = copy.deepcopy(trial.strategy).choose(list(read), weights)
        assert list(read) == given, "choose changed the list of completions"
        assert chosen == again, f"choose is not deterministic: {chosen} and {again}"
        usable = [i for i, s in enumerate(read) if _usable(s)]
        assert (chosen is None) == (not usable), f"choose returned {chosen}, but the usable completions are {usable}"
        if chosen is not None:
            assert chosen.index in usable and chosen.index not in chosen.failures, (
                f"choose returned completion {chosen.index}; it may return one of {usable}"
            )


def _check_settled(trial: StrategyTrial) -> None:
    strategy, rng, pool = trial.strategy, trial.rng, trial.pool
    if not isinstance(strategy, Settles):
        return
    for _ in range(trial.cases):
        example = trial.example()
        few = [pool[i] for i in rng.permutation(len(pool))[:2]]  # with few kinds of completions calls settle early
        read = trial.read(example, [few[int(rng.random() < 0.2)] for _ in range(int(rng.integers(1, 8)))])
        remaining, weights = int(rng.integers(0, 6)), trial.weights()
        if not strategy.settled(read, weights, remaining):
            continue
        settled = strategy.choose(read, weights)
        later = [trial.read(example, [p]) * remaining for p in pool]
        later += [trial.read(example, [pool[i] for i in rng.integers(len(pool), size=remaining)]) for _ in range(5)]
        for more in later:
            for end in range(remaining + 1):
                after = strategy.choose([*read, *more[:end]], weights)
                assert _returned(settled) == _returned(after), (
                    f"settled said that {remaining} more completions cannot change {settled}, but {more[:end]} lead to "
                    f"{after}"
                )


def _returned(selection: Selection | None) -> tuple[int, dict[str, Any]] | None:
    return None if selection is None else (selection.index, dict(selection.replaced))


def _check_identity(trial: StrategyTrial) -> None:
    strategy, metric = trial.strategy, trial.metric
    about = strategy.to_dict()
    try:
        text = json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise AssertionError(f"to_dict must return plain JSON data: {exc}") from exc
    assert json.loads(text) == about, f"to_dict must survive JSON unchanged: {about}"
    assert isinstance(about.get("kind"), str), f"to_dict must say which kind of strategy it is: {about}"
    assert not _ADDRESS.search(text), f"to_dict has the address of an object, which no other process has: {text}"
    digest = strategy.digest(metric)
    assert isinstance(digest, str) and digest, f"digest must be a string, got {digest!r}"
    assert digest == strategy.digest(metric) == copy.deepcopy(strategy).digest(metric), (
        "digest changes from call to call"
    )
    if trial.other_process:
        there = _elsewhere(strategy, metric)
        assert there == [digest, about], f"in another process digest and to_dict are {there}, here {[digest, about]}"


def _elsewhere(strategy: Strategy, metric: Metric | None) -> Any:
    """Return digest and data of a strategy as another process has them, with other hashes of strings."""
    sent = base64.b64encode(cloudpickle.dumps((strategy, metric))).decode()
    program = (
        "import base64, json, pickle, sys; s, m = pickle.loads(base64.b64decode(sys.stdin.read())); "
        "print(json.dumps([s.digest(m), s.to_dict()]))"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", program], input=sent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"the strategy does not work in another process: {done.stderr[-500:]}"
    return json.loads(done.stdout.splitlines()[-1])


def _check_rewards(trial: StrategyTrial) -> None:
    aggregator, k = trial.strategy.aggregator(), len(columns_of(trial.strategy))
    aggregator.check(k)
    for _ in range(trial.cases):
        size = int(trial.rng.integers(1, _LARGEST_CASE + 1))
        example, predictions, weights = trial.example(), trial.draw(size), trial.weights()
        padded = np.concatenate([weights, np.zeros(k - len(weights))])[None]
        estimated, real, partitions = [], [], set()
        for order in permutations(predictions):
            label, score = _observed(trial, example, order)
            reward = aggregator.reward(label, score, padded)
            assert reward.shape == (1, 1), f"reward of one pull in one context has the shape {reward.shape}"
            estimated.append(float(reward[0, 0]))
            _check_blocks(aggregator, label, score, padded)
            at = [next(i for i, q in enumerate(predictions) if q is p) for p in order]
            partitions.add(_partition(at, label[0]))
            real.append(_worth(trial, example, order, weights))
        if len(partitions) > 1 or any(r is None for r in real):
            continue  # an equality that is not transitive makes other classes in other orders
        expected = float(np.mean([r for r in real if r is not None]))
        assert np.isclose(np.mean(estimated), expected, rtol=1e-6, atol=1e-9), (
            f"the aggregator's reward of {predictions} under the weights {weights} is {np.mean(estimated):.9g}; the "
            f"completion that choose returns is worth {expected:.9g} on average over all orders of drawing"
        )


def _check_blocks(aggregator: Any, label: IntArray, score: FloatArray, weights: FloatArray) -> None:
    layout = block_layout(label.shape[1], label.shape[1])
    blocks = aggregator.blocks(label, score, weights, layout)
    one_by_one = [
        aggregator.reward(label[:, a:b], score[:, a:b], weights)
        for a, b in zip(layout.start.tolist(), layout.end.tolist(), strict=True)
    ]
    assert np.allclose(blocks, np.stack(one_by_one, axis=1)), "blocks and reward of the aggregator disagree"


def _observed(
    trial: StrategyTrial, example: dspy.Example, order: Sequence[dspy.Prediction]
) -> tuple[IntArray, FloatArray]:
    """Return labels [1, m] and scores [1, m, K] as the live environment makes them."""
    scored = [trial.strategy.score(example, p, trial.metric) for p in order]
    labels, failures = grouped(scored, classes_of(trial.strategy))
    failed = (float("nan"),) * len(columns_of(trial.strategy))
    rows = [failed if s.scores is None or i in failures else s.scores for i, s in enumerate(scored)]
    return np.array([[-1 if a is None else a for a in labels]]), np.array([rows], dtype=float)


def _worth(
    trial: StrategyTrial, example: dspy.Example, order: Sequence[dspy.Prediction], weights: FloatArray
) -> float | None:
    """Return the weighted objectives of the prediction that a call would return; None where it returns nothing."""
    chosen = trial.strategy.choose(trial.read(example, order), weights)
    if chosen is None:
        return None
    returned = dspy.Prediction(**{**dict(order[chosen.index].items()), **chosen.replaced})
    scored = trial.strategy.score(example, returned, trial.metric)
    assert scored.scores is not None, f"choose returned {returned}, which fails when it is scored: {scored.failure}"
    return float(np.dot(weights, scored.scores[: len(weights)]))


def _partition(at: Sequence[int], label: IntArray) -> frozenset[frozenset[int]]:
    """Return which completions, by position in the pool, are in one class."""
    classes: dict[int, set[int]] = {}
    for i, a in zip(at, label.tolist(), strict=True):
        classes.setdefault(a, set()).add(i)
    return frozenset(frozenset(c) for c in classes.values())


_RULES = (_check_names, _check_scores, _check_choice, _check_settled, _check_identity, _check_rewards)
STRATEGY_RULES: Mapping[str, Callable[[StrategyTrial], None]] = {r.__name__.removeprefix("_check_"): r for r in _RULES}
"""The rules by name; each raises AssertionError where it is broken."""
