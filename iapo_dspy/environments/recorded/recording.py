"""Recorded environments: the law of every completion as tables, sampled at will and valued exactly.

Two kinds, both frozen:

- `VotingRecording`: `probs [P, X, A]`, `answers [X]`, `cost [P]`, `cost_weights [C]`, and `credit [X, A]` where scores
  are graded;
- `BestOfRecording`: `outcomes [P, X, M, K]`, `probs [P, X, M]`, `cost [P]`, `weights [C, K + 1]`, the cost's weight
  last.

A is the number of answer classes, M of outcomes. Probabilities of a cell may sum to less than 1: the rest are failed
completions. `cost` is in utility: cost weight 1 takes it off the reward once per completion, and `overhead [P]`, which
both kinds may have, once per query. Both may also have `parts [P, F]`, which prompts have which part in common.

Recordings of language models also have the completions themselves (`drawn`), one by one. Their law is `probs`, so what
is stored is the joint law of outcome and tokens: an environment draws one of the S completions of a cell, with
replacement, and this completion costs in proportion to its own tokens. `cost` is the mean. `card` says where a
recording comes from. See `files` for the format on disk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.models.exact import best_of_n_rewards, majority_vote_rewards
from iapo_dspy.bandit.models.winning import Ties
from iapo_dspy.bandit.problem import Problem, checked_parts
from iapo_dspy.environments.recorded.drawn import Draws
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Contexts, FloatArray, IntArray, Observations, Pulls

_ROUNDING = 1e-5  # recordings may be stored as float32
_EXACT = 1e-12  # sums of float64 may be off by this much, which is left alone


@dataclass(frozen=True, kw_only=True)
class ExactValues:
    """Expected rewards of every arm on every query, in closed form.

    Attributes:
        reward: Expected task reward [W, P, X, N] of each distinct row of objective weights.
        row: Which of the W rows each context uses [C].
        contexts: The contexts.
        cost: Expected cost of a completion on each query [P, X], in utility.
        overhead: Cost of a query whatever the scale [P], in utility.
    """

    reward: FloatArray
    row: IntArray
    contexts: Contexts
    cost: FloatArray
    overhead: FloatArray

    def q(self, queries: IntArray | None = None) -> FloatArray:
        """Return Q (eq. 3) over these queries, or over all of them [C, P, N]."""
        reward = self.reward if queries is None else self.reward[:, :, queries]
        cost = (self.cost if queries is None else self.cost[:, queries]).mean(axis=1)
        price = self.overhead[:, None] + cost[:, None] * np.arange(1, self.reward.shape[3] + 1)
        return np.asarray(reward.mean(axis=2)[self.row] - self.contexts.cost[:, None, None] * price)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording(ABC):
    """The parts that both kinds of recording share.

    Attributes:
        probs: Probability of each outcome, in a vote of each answer class [P, X, M].
        cost: Mean cost of one completion [P], in utility.
        overhead: Cost of a query whatever the scale [P], in utility; `None` means zeros.
        parts: Labels of the parts that each prompt is made of [P, F], see `Problem.parts`.
        drawn: The completions one by one; `probs` is their law. `None` where only the law is known.
        card: Where the recording comes from, as JSON data: the model, its server, the decoding, the prompts by digest.
            A part of a recording keeps the card of the whole.
    """

    probs: FloatArray
    cost: FloatArray
    overhead: FloatArray = None  # type: ignore[assignment]  # `None` becomes zeros
    parts: IntArray | None = None
    drawn: Draws | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        probs = _probabilities(self.probs)
        overhead = np.zeros(len(probs)) if self.overhead is None else _costs("overhead", self.overhead, probs)
        _store(self, probs=probs, cost=_costs("cost", self.cost, probs), overhead=overhead)
        if self.parts is not None:
            _store(self, parts=checked_parts(self.parts, len(probs)))
        if self.drawn is not None:
            shape = self.drawn.outcome.shape[:2]
            if shape != probs.shape[:2] or not np.allclose(self.drawn.law(probs.shape[2]), probs, atol=_ROUNDING):
                raise ConfigurationError(f"probs {probs.shape} are not the shares of the outcomes drawn, {shape}.")

    @property
    def n_prompts(self) -> int:
        """P."""
        return int(self.probs.shape[0])

    @property
    def n_queries(self) -> int:
        """X."""
        return int(self.probs.shape[1])

    @property
    @abstractmethod
    def contexts(self) -> Contexts:
        """The contexts of the recording."""

    @abstractmethod
    def aggregator(self, ties: Ties = "paper") -> Aggregator:
        """Return the strategy that the recording is for."""

    @abstractmethod
    def subset(self, queries: IntArray) -> Recording:
        """Return the recording of these queries only."""

    @property
    def cost_on(self) -> FloatArray:
        """Expected cost of a completion on each query [P, X]: where tokens are recorded, longer answers cost more."""
        if self.drawn is None:
            return np.broadcast_to(self.cost[:, None], self.probs.shape[:2])
        return np.asarray(self.cost[:, None] * self.drawn.relative_tokens().mean(axis=2))

    def of_prompts(self, prompts: IntArray) -> Recording:
        """Return the recording of these prompts only, in this order."""
        arrays = {name: getattr(self, name, None) for name in ("probs", "cost", "overhead", "parts", "outcomes")}
        kept = {name: array[prompts] for name, array in arrays.items() if array is not None}
        return replace(self, **kept, drawn=None if self.drawn is None else self.drawn.of_prompts(prompts))

    def _of_queries(self, queries: IntArray) -> dict[str, Any]:
        """Return the parts that both kinds have, for these queries only."""
        parts: dict[str, Any] = {"probs": self.probs[:, queries]}
        if self.drawn is not None:
            parts |= {"drawn": self.drawn.of_queries(queries), "cost": self.cost_on[:, queries].mean(axis=1)}
        return parts

    @abstractmethod
    def exact(self, max_n: int, ties: Ties = "paper") -> ExactValues:
        """Value every arm up to `max_n` exactly."""

    @abstractmethod
    def observe(self, prompt: IntArray, query: IntArray, outcome: IntArray) -> tuple[IntArray, FloatArray]:
        """Return label [S] and score [S, K] of drawn outcomes [S]; the last index + 1 stands for a failure."""

    def problem(self, max_n: int, ties: Ties = "paper") -> Problem:
        """Return the bandit problem that this recording poses; recorded costs are utilities already."""
        return Problem(
            n_prompts=self.n_prompts,
            n_queries=self.n_queries,
            max_n=max_n,
            contexts=self.contexts,
            aggregator=self.aggregator(ties),
            cost_scale=1.0,
            parts=self.parts,
        )

    def environment(self, *seed: int) -> RecordedEnvironment:
        """Return an environment that samples from this recording."""
        return RecordedEnvironment(self, seed)

    def split(self, *seed: int, train: float = 0.8) -> tuple[IntArray, IntArray]:
        """Shuffle the queries and cut them.

        Args:
            seed: Seeds of the shuffle.
            train: Share of the first part, rounded down, with at least one query on either side.

        Returns:
            Query indices of the training and the test part.

        Raises:
            ConfigurationError: A share outside (0, 1), or fewer than two queries.
        """
        if not 0 < train < 1 or self.n_queries < 2:
            raise ConfigurationError(f"Cannot split {self.n_queries} queries at {train!r}: need 2, and 0 < train < 1.")
        order = np.random.default_rng(seed).permutation(self.n_queries)
        cut = min(max(int(train * self.n_queries), 1), self.n_queries - 1)
        return order[:cut], order[cut:]


@dataclass(frozen=True, kw_only=True, eq=False)
class VotingRecording(Recording):
    """Answers of a majority-vote task.

    Attributes:
        answers: The right class of each query [X]; -1 where none is right.
        cost_weights: Cost weight of each context [C].
        credit: Score of each class [X, A] where scores are graded; `None` means 1 for the right one and 0 elsewhere.
        scores: `credit`, filled in [X, A].
    """

    answers: IntArray
    cost_weights: FloatArray
    credit: FloatArray | None = None
    scores: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        answers, cost_weights = _real("answers", self.answers), _real("cost_weights", self.cost_weights)
        _, n_queries, n_answers = self.probs.shape
        known = (answers == np.floor(answers)) & (answers >= -1) & (answers < n_answers)
        if answers.shape != (n_queries,) or not known.all():
            raise ConfigurationError(f"answers must be [X={n_queries}] whole numbers below {n_answers}, or -1.")
        exact = np.arange(n_answers) == answers[:, None]
        scores = exact.astype(float) if self.credit is None else _real("credit", self.credit)
        if scores.shape != exact.shape or not np.isfinite(scores).all():
            raise ConfigurationError(f"credit must be finite [X, A] = {exact.shape}, got {scores.shape}.")
        if cost_weights.ndim != 1:
            raise ConfigurationError(f"cost_weights must be [C], got shape {cost_weights.shape}.")
        _store(self, answers=answers.astype(np.int64), scores=scores, cost_weights=cost_weights)
        _ = self.contexts

    @property
    def contexts(self) -> Contexts:
        """One context per cost weight; the single objective weighs 1."""
        return Contexts(np.ones((len(self.cost_weights), 1)), self.cost_weights)

    def aggregator(self, ties: Ties = "paper") -> MajorityVoteAggregator:
        """Implement `Recording.aggregator`."""
        return MajorityVoteAggregator(ties=ties)

    def subset(self, queries: IntArray) -> VotingRecording:
        """Implement `Recording.subset`."""
        credit = None if self.credit is None else self.scores[queries]
        return replace(self, **self._of_queries(queries), answers=self.answers[queries], credit=credit)

    def exact(self, max_n: int, ties: Ties = "paper") -> ExactValues:
        """Implement `Recording.exact`."""
        shape = self.probs.shape
        credit = np.broadcast_to(self.scores, shape).reshape(-1, shape[2])
        reward = majority_vote_rewards(self.probs.reshape(-1, shape[2]), credit, max_n, ties=ties)
        row = np.zeros(len(self.cost_weights), dtype=np.int64)
        reward = reward.reshape(1, *shape[:2], max_n)
        return ExactValues(reward=reward, row=row, contexts=self.contexts, cost=self.cost_on, overhead=self.overhead)

    def observe(self, prompt: IntArray, query: IntArray, outcome: IntArray) -> tuple[IntArray, FloatArray]:
        """Implement `Recording.observe`."""
        failed = outcome == self.probs.shape[2]
        score = self.scores[query, np.where(failed, 0, outcome)]
        return np.where(failed, -1, outcome), np.where(failed, np.nan, score)[:, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class BestOfRecording(Recording):
    """Scored outcomes of a Best-of-N task.

    Attributes:
        outcomes: Scores of each outcome [P, X, M, K]; axes of length 1 are repeated, for outcomes shared by cells.
        weights: Weights of each context [C, K + 1]; the last one is the cost's.
    """

    outcomes: FloatArray
    weights: FloatArray

    def __post_init__(self) -> None:
        super().__post_init__()
        outcomes, weights, shape = _real("outcomes", self.outcomes), _real("weights", self.weights), self.probs.shape
        if outcomes.ndim != 4 or not np.isfinite(outcomes).all():
            raise ConfigurationError(f"outcomes must be finite [P, X, M, K], got shape {outcomes.shape}.")
        if any(have not in (1, want) for have, want in zip(outcomes.shape[:3], shape, strict=True)):
            raise ConfigurationError(f"outcomes {outcomes.shape} do not fit probs {shape}.")
        if weights.ndim != 2 or weights.shape[1] != outcomes.shape[3] + 1:
            raise ConfigurationError(f"weights must be [C, K + 1 = {outcomes.shape[3] + 1}], got {weights.shape}.")
        _store(self, outcomes=np.broadcast_to(outcomes, (*shape, outcomes.shape[3])), weights=weights)
        _ = self.contexts

    @property
    def contexts(self) -> Contexts:
        """The rows of `weights`."""
        return Contexts(self.weights[:, :-1], self.weights[:, -1])

    def aggregator(self, ties: Ties = "paper") -> BestOfNAggregator:
        """Implement `Recording.aggregator`; Best-of-N has no ties to credit."""
        return BestOfNAggregator()

    def subset(self, queries: IntArray) -> BestOfRecording:
        """Implement `Recording.subset`."""
        return replace(self, **self._of_queries(queries), outcomes=self.outcomes[:, queries])

    def exact(self, max_n: int, ties: Ties = "paper") -> ExactValues:
        """Implement `Recording.exact`."""
        rows, row = np.unique(self.weights[:, :-1], axis=0, return_inverse=True)
        reward = np.empty((len(rows), self.n_prompts, self.n_queries, max_n))
        for prompt in range(self.n_prompts):
            for i, weights in enumerate(rows):
                reward[i, prompt] = best_of_n_rewards(self.outcomes[prompt] @ weights, self.probs[prompt], max_n)
        row = row.reshape(-1)
        return ExactValues(reward=reward, row=row, contexts=self.contexts, cost=self.cost_on, overhead=self.overhead)

    def observe(self, prompt: IntArray, query: IntArray, outcome: IntArray) -> tuple[IntArray, FloatArray]:
        """Implement `Recording.observe`."""
        failed = outcome == self.probs.shape[2]
        score = self.outcomes[prompt, query, np.where(failed, 0, outcome)]
        return np.zeros(len(outcome), dtype=np.int64), np.where(failed[:, None], np.nan, score)


class RecordedEnvironment:
    """Samples completions from a recording.

    Args:
        recording: The law of the completions.
        seed: Seeds of the random stream.
    """

    def __init__(self, recording: Recording, seed: tuple[int, ...]) -> None:
        self.n_prompts, self.n_queries = recording.n_prompts, recording.n_queries
        self._recording = recording
        self._rng = np.random.default_rng(seed)
        self._outcomes = recording.probs.shape[2]
        if (drawn := recording.drawn) is not None:
            self._cost = recording.cost[:, None, None] * drawn.relative_tokens()
            return
        # One ascending table for all cells: the entries of cell i lie in [i, i + 1], so one binary search draws.
        cells = np.arange(recording.n_prompts * recording.n_queries).reshape(recording.n_prompts, -1, 1)
        below = np.minimum(np.cumsum(recording.probs, axis=2), 1.0)
        complete = below[:, :, -1] > 1 - _ROUNDING
        below[complete, -1] = 1.0
        self._table = (below + cells).reshape(-1)
        self._largest = np.where(complete, self._outcomes - 1, self._outcomes)

    def pull(self, pulls: Pulls) -> Observations:
        """Draw every completion of the pulls independently."""
        prompt = np.repeat(pulls.prompt, pulls.size)
        query = np.repeat(pulls.query, pulls.size)
        if (drawn := self._recording.drawn) is not None:
            which = self._rng.integers(drawn.samples, size=len(prompt))
            outcome, cost = drawn.outcome[prompt, query, which], self._cost[prompt, query, which]
            outcome = np.where(outcome < 0, self._outcomes, outcome)
        else:
            cell = prompt * self._recording.n_queries + query
            found = np.searchsorted(self._table, cell + self._rng.random(len(cell)), side="right")
            outcome = np.minimum(found - cell * self._outcomes, self._largest[prompt, query])
            cost = self._recording.cost[prompt]
        label, score = self._recording.observe(prompt, query, outcome)
        overhead = self._recording.overhead[pulls.prompt]
        return Observations(pulls=pulls, label=label, score=score, cost=cost, overhead=overhead)


def _real(name: str, values: object) -> FloatArray:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":  # a cast would drop imaginary parts and read numbers out of text
        raise ConfigurationError(f"{name} must be real numbers, got an array of {array.dtype}.")
    return array.astype(float)


def _probabilities(values: FloatArray) -> FloatArray:
    probs = _real("probs", values)
    if probs.ndim != 3 or not probs.size:
        raise ConfigurationError(f"probs must have three axes and an entry in each, got shape {probs.shape}.")
    total = probs.sum(axis=2, keepdims=True)
    if not np.isfinite(probs).all() or (probs < 0).any() or (total > 1 + _ROUNDING).any():
        raise ConfigurationError("probs must be >= 0 and sum to at most 1 in every (prompt, query).")
    # Sums off by rounding become exact; a sum that is really smaller leaves room for failures.
    off = (total > 1 - _ROUNDING) & (np.abs(total - 1) > _EXACT)
    return np.where(off, probs / np.where(off, total, 1.0), probs)


def _costs(name: str, values: FloatArray, probs: FloatArray) -> FloatArray:
    cost = _real(name, values)
    if cost.shape != probs.shape[:1] or not np.isfinite(cost).all() or (cost < 0).any():
        raise ConfigurationError(f"{name} must be [P={probs.shape[0]}] finite numbers >= 0, got shape {cost.shape}.")
    return cost


def _store(recording: Recording, **arrays: FloatArray | IntArray) -> None:
    for name, array in arrays.items():
        object.__setattr__(recording, name, array)
