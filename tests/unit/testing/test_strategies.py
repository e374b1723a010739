"""Every built-in strategy keeps the rules, and the suite catches each rule that is broken."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import BestOfN, MajorityVote, Mean, Median, Mixed, Objective, WeightedVote, close, math_equal
from iapo_dspy.scoring.scores import Scored
from iapo_dspy.scoring.strategies.port import Selection, Strategy
from iapo_dspy.testing.strategies import check_strategy
from iapo_dspy.types import FloatArray

TEXTS = ["4", "4.0", "Paris", "paris.", "", "5", "four"]
WORDS = [dspy.Prediction(answer=a, reasoning="x" * (3 * i)) for i, a in enumerate(TEXTS)]
EXAMPLES = [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in (("2 + 2", "4"), ("city", "Paris"))]
NUMBERS = [dspy.Prediction(answer=a) for a in (1.0, 2, "3", 3.5, "nine", None, 1_000_000, float("nan"))]
RATED = [dspy.Example(question="q", answer=g).with_inputs("question") for g in (2.0, 7)]


def exact(example: Any, pred: Any, trace: Any = None) -> bool:
    return str(example.answer).lower() == str(pred.answer).lower()


def by_style(example: Any, pred: Any, trace: Any = None) -> float:
    """A metric that sees more of a completion than its answer."""
    return 0.5 * exact(example, pred) + 0.02 * len(pred.reasoning)


def longer(example: Any, pred: Any) -> float:
    return min(len(pred.reasoning) / 20, 1.0)


def polite(example: Any, pred: Any) -> float:
    return float("a" in pred.answer) + float(pred.answer == "5")


def rating(example: Any, pred: Any, trace: Any = None) -> float:
    return float(pred.answer) / 10


def rounded_alike(a: str, b: str) -> bool:
    return a[:1] == b[:1]


def picky(a: str, b: str) -> bool:
    if "four" in (a, b):
        raise RuntimeError("cannot compare words")
    return a == b


STYLE = [Objective("long", longer), Objective("polite", polite, bounds=(0, 2))]
WEIGHED = WeightedVote("answer", weight=Objective("long", longer, bounds=(0, 1)))
VOTES: dict[str, tuple[Strategy, Any]] = {
    "majority": (MajorityVote("answer"), exact),
    "majority, metric beyond the answer": (MajorityVote("answer"), by_style),
    "tolerance": (MajorityVote("answer", tolerance=0.5), exact),
    "chain of tolerances": (MajorityVote("answer", equal=close(absolute=1.0)), exact),
    "math": (MajorityVote("answer", equal=math_equal()), exact),
    "user's equality": (MajorityVote("answer", equal=rounded_alike), exact),
    "user's equality that raises": (MajorityVote("answer", equal=picky), exact),
    "user's normalize": (MajorityVote("answer", normalize=len, bounds=(-1, 1)), exact),
    "weighted": (WEIGHED, by_style),
    "weighted, tolerant": (WeightedVote("answer", weight=longer, tolerance=0.5), exact),
    "best of n": (BestOfN(STYLE), None),
    "mixed": (Mixed(MajorityVote("answer"), then=BestOfN(STYLE)), exact),
    "mixed, metric beyond the answer": (Mixed(MajorityVote("answer"), objectives=STYLE[1:], name="right"), by_style),
    "mixed and weighted": (Mixed(WEIGHED, objectives=STYLE[1:]), by_style),
}
VALUES = {
    "mean": (Mean("answer", range=(0, 10)), None),
    "mean, absolute": (Mean("answer", range=(0, 10), loss="absolute", scale=3), None),
    "mean, affine": (Mean("answer", affine=True, bounds=(0, 200_000)), rating),
    "median": (Median("answer", range=(0, 10)), None),
    "median, squared": (Median("answer", range=(-5, 10), loss="squared"), None),
}


@pytest.mark.parametrize("name", VOTES)
def test_votes_and_best_of_n_conform(name: str) -> None:
    strategy, metric = VOTES[name]
    check_strategy(strategy, EXAMPLES, WORDS, metric, cases=10, other_process=False)


@pytest.mark.parametrize("name", VALUES)
def test_means_and_medians_conform(name: str) -> None:
    strategy, metric = VALUES[name]
    check_strategy(strategy, RATED, NUMBERS, metric, cases=10, other_process=False)


@pytest.mark.slow
def test_identities_are_the_same_in_another_process() -> None:
    check_strategy(Mixed(WEIGHED, objectives=STYLE[1:]), EXAMPLES, WORDS, by_style, cases=2)


# -- one broken strategy for each rule


class Broken(MajorityVote):
    def __init__(self) -> None:
        super().__init__("answer")


class SameNames(Broken):
    columns = ("metric", "metric")


class OtherNames(Broken):
    columns = ("score", "metric")


class RaisesInRead(Broken):
    def read(self, inputs: Any, prediction: Any) -> Scored:
        return Scored(answer=self.key(prediction))  # an empty prediction has none


class RaisesInScore(Broken):
    def score(self, example: Any, prediction: Any, metric: Any) -> Scored:
        read = self.read({}, prediction) if prediction.keys() else Scored(answer=prediction.answer)
        return read if read.answer is None else Scored(answer=read.answer, scores=(metric(example, prediction),))


class LosesVotes(Broken):
    """It takes the vote of a completion that the metric cannot score, while compiling only."""

    def score(self, example: Any, prediction: Any, metric: Any) -> Scored:
        scored = super().score(example, prediction, metric)
        return Scored(failure=scored.failure) if scored.failure is not None else scored


class PraisesTheUnscored(Broken):
    def _unscored(self, read: Scored, failure: str) -> Scored:
        return Scored(answer=read.answer, scores=(0.5,), failure=failure)


class OtherAnswers(Broken):
    def read(self, inputs: Any, prediction: Any) -> Scored:
        read = super().read(inputs, prediction)
        return read if read.answer is None else Scored(answer=read.answer + "!")


class TooManyScores(Broken):
    def score(self, example: Any, prediction: Any, metric: Any) -> Scored:
        scored = super().score(example, prediction, metric)
        return scored if scored.scores is None else Scored(answer=scored.answer, scores=(*scored.scores, 0.0))


class NotANumber(Broken):
    def score(self, example: Any, prediction: Any, metric: Any) -> Scored:
        scored = super().score(example, prediction, metric)
        return scored if scored.scores is None else Scored(answer=scored.answer, scores=(float("nan"),))


class NeedsTheLabel(Broken):
    def read(self, inputs: Any, prediction: Any) -> Scored:
        return super().read(inputs, prediction) if "gold" in inputs else Scored(failure="no label")


class Writes(Broken):
    def read(self, inputs: Any, prediction: Any) -> Scored:
        prediction.seen = len(prediction.keys())
        return super().read(inputs, prediction)


class ChoosesAtRandom(Broken):
    numbers = itertools.count()

    def choose(self, read: Sequence[Scored], weights: FloatArray) -> Selection | None:
        usable = [i for i, s in enumerate(read) if s.failure is None]
        at = usable[next(self.numbers) % len(usable)] if usable else None
        return None if at is None else Selection(index=at, failures={})


class ChoosesTheFailed(Broken):
    def choose(self, read: Sequence[Scored], weights: FloatArray) -> Selection | None:
        chosen = super().choose(read, weights)
        return None if chosen is None else Selection(index=0, failures=chosen.failures)


class GivesUp(Broken):
    def choose(self, read: Sequence[Scored], weights: FloatArray) -> Selection | None:
        chosen = super().choose(read, weights)
        return chosen if chosen is None or max((chosen.votes or {}).values()) > 1 else None


class ChangesTheList(Broken):
    def choose(self, read: Any, weights: FloatArray) -> Selection | None:
        chosen = super().choose(list(read), weights)
        read.clear()
        return chosen


class StopsEarly(Broken):
    def settled(self, read: Sequence[Scored], weights: FloatArray, remaining: int) -> bool:
        return super().settled(read, weights, max(remaining - 1, 0))


class TiesToTheLatest(Broken):
    """Sound to choose, but the answer of a tie is not the one that is settled on."""

    def settled(self, read: Sequence[Scored], weights: FloatArray, remaining: int) -> bool:
        return super().settled(read, weights, remaining)

    def choose(self, read: Sequence[Scored], weights: FloatArray) -> Selection | None:
        chosen = super().choose(read, weights)
        if chosen is None or chosen.votes is None:
            return chosen
        most = max(chosen.votes.values())
        tied = {a for a, v in chosen.votes.items() if v == most}
        last = max(i for i, s in enumerate(read) if s.answer in tied)
        return Selection(index=last, votes=chosen.votes, failures=chosen.failures)


class DigestsItsAddress(Broken):
    def digest(self, metric: Any) -> str:
        return str(id(self))


class ShowsAnAddress(Broken):
    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "of": repr(object())}


class IsNoJSON(Broken):
    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "bounds": {0.0, 1.0}}


class HasNoKind(Broken):
    def to_dict(self) -> dict[str, Any]:
        return {"field": self.field}


class Optimist:
    """An aggregator that takes the best answer for the winner."""

    def __init__(self, blocks: float = 0.0) -> None:
        self._off = blocks

    def check(self, n_objectives: int) -> None:
        pass

    def reward(self, label: Any, score: FloatArray, weights: FloatArray) -> FloatArray:
        best = np.nanmax(np.where(np.isnan(score), 0.0, score)[:, :, 0], axis=1)
        return np.asarray(weights[:, :1] * best)

    def blocks(self, label: Any, score: FloatArray, weights: FloatArray, layout: Any) -> FloatArray:
        parts = [
            self.reward(label[:, a:b], score[:, a:b], weights) for a, b in zip(layout.start, layout.end, strict=True)
        ]
        return np.stack(parts, axis=1) + self._off


class PromisesMore(Broken):
    def aggregator(self) -> Any:
        return Optimist()


class BlocksDiffer(Broken):
    def aggregator(self) -> Any:
        return Optimist(blocks=0.1)


class Hashed(Broken):
    """Its digest is that of a string's hash, which every process has another of."""

    def digest(self, metric: Any) -> str:
        return str(hash("digest"))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (SameNames, "columns must differ"),
        (OtherNames, "must begin with"),
        (RaisesInRead, "read raised"),
        (RaisesInScore, "score raised"),
        (LosesVotes, "it takes part when deployed"),
        (PraisesTheUnscored, "is worth 0.0, not 0.5"),
        (OtherAnswers, "disagree on the answer"),
        (TooManyScores, "2 numbers for the columns"),
        (NotANumber, "score returned .*nan"),
        (NeedsTheLabel, "but read says: no label"),
        (Writes, "changed the prediction"),
        (ChoosesAtRandom, "not deterministic"),
        (ChoosesTheFailed, "it may return one of"),
        (GivesUp, "choose returned None"),
        (ChangesTheList, "changed the list"),
        (StopsEarly, "settled said"),
        (TiesToTheLatest, "settled said"),
        (DigestsItsAddress, "digest changes"),
        (ShowsAnAddress, "address of an object"),
        (IsNoJSON, "plain JSON"),
        (HasNoKind, "which kind"),
        (PromisesMore, "aggregator's reward"),
        (BlocksDiffer, "blocks and reward"),
    ],
)
def test_a_broken_strategy_is_caught(broken: type[Broken], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_strategy(broken(), EXAMPLES, WORDS, exact, other_process=False)


@pytest.mark.slow
def test_a_digest_that_differs_in_another_process_is_caught() -> None:
    with pytest.raises(AssertionError, match="in another process"):
        check_strategy(Hashed(), EXAMPLES, WORDS, exact, cases=2)


def test_a_value_that_is_not_a_strategy_is_refused() -> None:
    with pytest.raises(AssertionError, match="lacks a method"):
        check_strategy(object(), EXAMPLES, WORDS, exact)  # type: ignore[arg-type]
