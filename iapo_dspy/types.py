"""The words of the package as types: frozen, validated, shared by every layer.

Axes, always in this order where an array has several of them:

| letter | axis | index |
| --- | --- | --- |
| C | contexts (the user's preferences) | position in `Contexts` |
| P | prompts (candidate programs) | position in the run's list of prompts |
| X | queries (training examples) | position in the training set |
| N | scales | column n - 1 holds scale n |
| K | objectives | position in the strategy's list of objectives; behind them, score columns without a weight |
| R | resources that calls take | position in `RESOURCES` |
| A | answer classes of one query | integer label >= 0; -1 is not a vote |
| B | pulls of one batch | position in `Pulls` |
| S | completions of one batch | pull after pull, S = sum of the pulls' sizes |

Scores: higher is better. Costs: >= 0, in the run's raw unit (output tokens in a live run, unless the user chose
another), turned into utility by `cost_scale`. A query costs an overhead once and a part per completion.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.preferences import RESOURCES, Preference, is_number

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When a deployed call ends before all N completions are drawn: it draws in waves and looks after each of them.

    A call always stops where the rest cannot change the result. A rule may stop it earlier:

    Attributes:
        waves: Completions drawn by the end of each wave, ascending, >= 1; the last one is N.
        confidence: Majority vote: stop once the leading answer's share of the votes of the two leading answers exceeds
            one half with this probability, P(Beta(a + 1, b + 1) > 1/2) >= confidence (Adaptive-Consistency,
            arXiv 2305.11860). In (0.5, 1]; None switches the rule off.
        threshold: Best-of-N: stop once the best weighted objective reaches it (Weitzman 1979). None switches the rule
            off.
    """

    waves: tuple[int, ...]
    confidence: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        waves = tuple(self.waves)
        object.__setattr__(self, "waves", waves)
        if not waves or waves[0] < 1 or any(a >= b for a, b in itertools.pairwise(waves)):
            raise ConfigurationError(f"Stop(waves={self.waves!r}): give ascending whole numbers >= 1.")
        if self.confidence is not None and not (is_number(self.confidence) and 0.5 < self.confidence <= 1):
            raise ConfigurationError(f"Stop(confidence={self.confidence!r}): give a number in (0.5, 1], or None.")
        if self.threshold is not None and not is_number(self.threshold):
            raise ConfigurationError(f"Stop(threshold={self.threshold!r}): give a finite number, or None.")

    @property
    def in_words(self) -> str:
        """The waves and the rule in words."""
        rules = ["once the rest cannot change the result"]
        if self.confidence is not None:
            rules.append(f"once the leading answer is ahead with confidence {self.confidence:g}")
        if self.threshold is not None:
            rules.append(f"once a completion reaches {self.threshold:g}")
        return f"drawn in waves up to {', '.join(map(str, self.waves))}, and stopped {', or '.join(rules)}"


@dataclass(frozen=True, kw_only=True)
class Share:
    """Part of a mixture: so many completions of one prompt, in the same vote as those of others.

    Attributes:
        prompt: Index of the prompt, 0-based.
        n: Its completions, >= 1.
    """

    prompt: int
    n: int

    def __post_init__(self) -> None:
        if self.prompt < 0 or self.n < 1:
            raise ConfigurationError(f"Share(prompt={self.prompt}, n={self.n}): need prompt >= 0 and n >= 1.")


NEVER_SURE = 1e9
"""As `Escalation.below`: no stage is so sure, so that the call goes on, or abstains, in any case."""


@dataclass(frozen=True, kw_only=True)
class Escalation:
    """How a call goes on where the answer of a stage is not sure enough.

    A stage is as sure as its leading answer's share of all completions that count, failed ones among them, in [0, 1];
    with Best-of-N, as its best weighted objective is high.

    Attributes:
        below: The call goes on where the stage is less sure than this.
        arm: The next stage; None: the call abstains.
        weight: How often each completion of the next stage counts where those of the stages before count once, >= 1;
            0: the stages before do not count any more.
    """

    below: float
    arm: Arm | None = None
    weight: int = 0

    def __post_init__(self) -> None:
        if not is_number(self.below):
            raise ConfigurationError(f"Escalation(below={self.below!r}): give a finite number.")
        whole = isinstance(self.weight, int) and not isinstance(self.weight, bool)
        if not whole or self.weight < 0 or (self.arm is None and self.weight):
            raise ConfigurationError(
                f"Escalation(weight={self.weight!r}): give a whole number >= 0, and 0 where the call abstains."
            )
        if self.weight and self.arm is not None and self.arm.stop is not None:
            raise ConfigurationError(
                f"Escalation(weight={self.weight}): completions of earlier stages count in the next one, so it draws "
                "all of its own at once: leave its stop out, or give weight 0."
            )


@dataclass(frozen=True)
class Arm:
    """A prompt together with a scale, and with a rule that stops early if there is one; or a compound of several.

    Attributes:
        prompt: Index of the prompt, 0-based; in a cascade that of the first stage, in a mixture that of its first part.
        n: Completions of it that are drawn and aggregated, >= 1; with `stop`, at most so many.
        stop: Waves and stopping rule; None draws all n at once.
        beside: A mixture: completions of other prompts in the same vote, drawn at the same time.
        then: A cascade: how a call goes on where it is not sure enough. None answers in any case.
    """

    prompt: int
    n: int
    stop: Stop | None = None
    beside: tuple[Share, ...] = ()
    then: Escalation | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "beside", tuple(self.beside))
        if self.prompt < 0 or self.n < 1:
            raise ConfigurationError(f"Arm(prompt={self.prompt}, n={self.n}): need prompt >= 0 and n >= 1.")
        if self.stop is not None and self.stop.waves[-1] != self.n:
            raise ConfigurationError(f"Arm(n={self.n}): the last wave of its stop {self.stop.waves} must be n.")
        prompts = [share.prompt for share in self.shares]
        if len(set(prompts)) < len(prompts) or (self.beside and self.stop is not None):
            raise ConfigurationError(f"Arm(beside={self.beside}): each prompt once, and without a stop.")
        rule = self.stop is not None and (self.stop.confidence, self.stop.threshold) != (None, None)
        if self.then is not None and rule:
            raise ConfigurationError(f"Arm(then=...): {self.stop}: a stage that goes on has waves, and no other rule.")

    @property
    def shares(self) -> tuple[Share, ...]:
        """The parts of this stage: one, or several in a mixture."""
        return (Share(prompt=self.prompt, n=self.n), *self.beside)

    @property
    def stages(self) -> tuple[Arm, ...]:
        """This stage and those after it."""
        following = self.then.arm.stages if self.then is not None and self.then.arm is not None else ()
        return (self, *following)

    @property
    def compound(self) -> bool:
        """Whether it is more than one prompt, or may abstain."""
        return bool(self.beside) or self.then is not None

    @property
    def size(self) -> int:
        """Completions of this stage at most."""
        return sum(share.n for share in self.shares)

    @property
    def most(self) -> int:
        """Completions of a whole call at most, by its worst path."""
        return sum(stage.size for stage in self.stages)

    @property
    def prompts(self) -> tuple[int, ...]:
        """The prompts that a call may draw, each once, in the order of drawing."""
        return tuple(dict.fromkeys(share.prompt for stage in self.stages for share in stage.shares))

    @property
    def abstains(self) -> bool:
        """Whether a call may end without an answer."""
        last = self.stages[-1].then
        return last is not None and last.arm is None


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How completions are sampled. A field left at None is the LM's own setting.

    Attributes:
        temperature: >= 0.
        top_p: In (0, 1].
        max_tokens: >= 1.
        reasoning_effort: As the LM's provider names it: "none", "minimal", "low", "medium", "high" and the like.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    reasoning_effort: str | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not (is_number(self.temperature) and self.temperature >= 0):
            raise ConfigurationError(f"Decoding temperature {self.temperature!r}: give a finite number >= 0.")
        if self.top_p is not None and not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ConfigurationError(f"Decoding top_p {self.top_p!r}: give a number in (0, 1].")
        whole = isinstance(self.max_tokens, int) and not isinstance(self.max_tokens, bool)
        if self.max_tokens is not None and not (whole and self.max_tokens >= 1):
            raise ConfigurationError(f"Decoding max_tokens {self.max_tokens!r}: give a whole number >= 1.")
        effort = self.reasoning_effort
        if effort is not None and (not isinstance(effort, str) or not effort.strip()):
            raise ConfigurationError(
                f'Decoding reasoning_effort {effort!r}: give a word such as "low", or leave it out.'
            )

    def as_kwargs(self) -> dict[str, Any]:
        """Return the settings that were given, by their request names."""
        pairs = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in pairs.items() if v is not None}


@dataclass(frozen=True)
class Contexts:
    """The finite set C of contexts as arrays.

    Attributes:
        weights: Objective weights [C, K], >= 0.
        cost: Cost weights [C], >= 0.
        rates: Utility that one unit of a resource takes, beside the cost [C, R], >= 0. Default: zeros.
        caps: Most that a call may take of a resource [C, R], > 0. Default: infinities.
        confidence: Share of the answers that is right at least [C], in [0, 1); 0 promises nothing. Default: zeros.
    """

    weights: FloatArray
    cost: FloatArray
    rates: FloatArray = None  # type: ignore[assignment]  # `None` becomes zeros
    caps: FloatArray = None  # type: ignore[assignment]  # `None` becomes infinities
    confidence: FloatArray = None  # type: ignore[assignment]  # `None` becomes zeros

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights, dtype=float)
        cost = np.asarray(self.cost, dtype=float)
        if weights.ndim != 2 or cost.shape != weights.shape[:1] or not weights.size:
            raise ConfigurationError(f"Contexts: need weights [C, K] and cost [C], got {weights.shape}, {cost.shape}.")
        if not (np.isfinite(weights).all() and np.isfinite(cost).all() and (weights >= 0).all() and (cost >= 0).all()):
            raise ConfigurationError("Contexts: every weight must be finite and >= 0.")
        shape = len(cost), len(RESOURCES)
        given: tuple[FloatArray | None, ...] = self.rates, self.caps, self.confidence
        rates = np.zeros(shape) if given[0] is None else np.asarray(given[0], dtype=float)
        caps = np.full(shape, np.inf) if given[1] is None else np.asarray(given[1], dtype=float)
        if rates.shape != shape or caps.shape != shape or not (np.isfinite(rates) & (rates >= 0) & (caps > 0)).all():
            raise ConfigurationError(
                f"Contexts: need rates >= 0 and caps > 0 {shape}, got {rates.shape}, {caps.shape}."
            )
        confidence = np.zeros(len(cost)) if given[2] is None else np.asarray(given[2], dtype=float)
        if confidence.shape != cost.shape or not ((confidence >= 0) & (confidence < 1)).all():
            raise ConfigurationError(f"Contexts: need confidence [C] in [0, 1), got {confidence.tolist()}.")
        arrays = {"weights": weights, "cost": cost, "rates": rates, "caps": caps, "confidence": confidence}
        for name, array in arrays.items():
            object.__setattr__(self, name, array)

    @property
    def plain(self) -> bool:
        """Whether there are neither rates nor caps: only the cost counts against the reward."""
        return not self.rates.any() and bool(np.isinf(self.caps).all())

    def __len__(self) -> int:
        """Return C."""
        return len(self.cost)

    @property
    def n_objectives(self) -> int:
        """K."""
        return int(self.weights.shape[1])

    @classmethod
    def from_preferences(
        cls, preferences: Sequence[Preference], objectives: Sequence[str], columns: Sequence[str] = ()
    ) -> Contexts:
        """Stack preferences in order.

        Args:
            preferences: The contexts.
            objectives: The objectives that they weigh.
            columns: The K axis where scores have more columns: the objectives first, others weigh 0.
        """
        weights = np.zeros((len(preferences), max(len(objectives), len(columns))))
        weights[:, : len(objectives)] = [p.vector(objectives) for p in preferences]
        return cls(
            weights=weights,
            cost=np.array([p.cost for p in preferences], dtype=float),
            rates=np.array([[(p.rates or {}).get(r, 0.0) for r in RESOURCES] for p in preferences]),
            caps=np.array([[p.caps.get(r, np.inf) for r in RESOURCES] for p in preferences]),
            confidence=np.array([p.min_confidence or 0.0 for p in preferences]),
        )


@dataclass(frozen=True)
class Pull:
    """`size` completions of one prompt on one query."""

    prompt: int
    query: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Interim:
    """The estimates of a run at the end of a round (the interim analysis of a sequential experiment).

    Attributes:
        policy: The arm that each context would choose now [C]; empty where the run looks at some of its contexts only.
        utility: Estimated utility of these arms, as `policy`; NaN where there is no evidence.
        standard_error: Their standard errors, as `policy`; NaN from estimators that have none.
        rounds_left: Rounds that are still planned; a run may end earlier. None where the run does not know.
    """

    policy: Policy
    utility: FloatArray
    standard_error: FloatArray
    rounds_left: int | None = None


@dataclass(frozen=True)
class Pulls:
    """A batch of pulls that may all be in flight together.

    Attributes:
        prompt: Prompt indices [B].
        query: Query indices [B].
        size: Completions per pull [B], >= 1.
        interim: What the algorithm knows before this batch, which begins a new round. None in the first batch, and in
            one that goes on with the round before. Environments do not look at it.
    """

    prompt: IntArray
    query: IntArray
    size: IntArray
    interim: Interim | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        arrays = [np.asarray(a, dtype=np.int64) for a in (self.prompt, self.query, self.size)]
        if any(a.ndim != 1 or a.shape != arrays[0].shape for a in arrays) or (arrays[2] < 1).any():
            raise ConfigurationError("Pulls: need three arrays [B] of one length, every size >= 1.")
        for name, array in zip(("prompt", "query", "size"), arrays, strict=True):
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        """Return B."""
        return len(self.size)

    def __iter__(self) -> Iterator[Pull]:
        """Return the pulls one by one."""
        return map(Pull, self.prompt.tolist(), self.query.tolist(), self.size.tolist())

    @property
    def completions(self) -> int:
        """S, the completions that the batch draws."""
        return int(self.size.sum())

    def in_turns(self) -> IntArray:
        """Return positions in an order in which prompts take turns: a budget that ends early starves none of them."""
        order = np.argsort(self.prompt, kind="stable")
        prompt = self.prompt[order]
        turn = np.arange(len(prompt)) - np.searchsorted(prompt, prompt)
        return order[np.lexsort((prompt, turn))]

    def take(self, index: IntArray) -> Pulls:
        """Return the pulls at these positions."""
        return Pulls(self.prompt[index], self.query[index], self.size[index])

    def and_then(self, other: Pulls) -> Pulls:
        """Return these pulls and then others."""
        parts = ((getattr(self, name), getattr(other, name)) for name in ("prompt", "query", "size"))
        return Pulls(*(np.concatenate(pair) for pair in parts))


@dataclass(frozen=True, kw_only=True)
class Observations:
    """The results of a batch of pulls, completion after completion.

    Attributes:
        pulls: The pulls that were really made. An environment whose budget ends returns fewer than it was asked for.
        label: Answer class of each completion within its query [S]; -1 where there is no vote. Labels of one query
            mean the same in every batch of a run. Best-of-N does not use them.
        score: Scores [S, K]; NaN in every column marks a failed completion.
        cost: Raw cost of each completion [S], >= 0, without the overhead.
        overhead: Raw cost that each pull takes once whatever its size [B], >= 0, such as the prompt tokens of a request
            that brings all of its completions. Default: zeros.
        used: Amounts of every resource that each pull took, all its completions together [B, R]; NaN where an amount is
            not known. None from environments that do not measure them.
        once: The part of `used` that a query takes once whatever the pull's size [B, R].
        unit: Raw cost of the student's average call for a single completion, > 0: `Preference.cost` weighs costs by it.
            None where this batch does not tell it.
        exhausted: True when no further pull can be paid for.
        logprob: Mean logprob of a token of each completion [S], <= 0, in nats; NaN where it is not known. None where
            none is known.
        present: Where prompts join while a run goes on: how many can be drawn by now, prompts 0 to present - 1; it
            never falls. None: all of them.
    """

    pulls: Pulls
    label: IntArray
    score: FloatArray
    cost: FloatArray
    overhead: FloatArray = None  # type: ignore[assignment]  # `None` becomes zeros
    used: FloatArray | None = None
    once: FloatArray | None = None
    unit: float | None = None
    exhausted: bool = False
    logprob: FloatArray | None = None
    present: int | None = None

    def __post_init__(self) -> None:
        label = np.asarray(self.label, dtype=np.int64)
        score = np.asarray(self.score, dtype=float)
        cost = np.asarray(self.cost, dtype=float)
        given: FloatArray | None = self.overhead
        overhead = np.zeros(len(self.pulls)) if given is None else np.asarray(given, dtype=float)
        total = self.pulls.completions
        if label.shape != (total,) or score.ndim != 2 or len(score) != total or cost.shape != (total,):
            raise ConfigurationError(
                f"Observations of {total} completions: got label {label.shape}, score {score.shape}, cost {cost.shape}."
            )
        if overhead.shape != (len(self.pulls),):
            raise ConfigurationError(f"Observations of {len(self.pulls)} pulls: got overhead {overhead.shape}.")
        for name, array in (("label", label), ("score", score), ("cost", cost), ("overhead", overhead)):
            object.__setattr__(self, name, array)
        if self.logprob is not None and np.shape(self.logprob) != (total,):
            raise ConfigurationError(f"Observations of {total} completions: got logprob {np.shape(self.logprob)}.")
        shapes = [None if a is None else np.shape(a) for a in (self.used, self.once)]
        if shapes not in ([None, None], [(len(self.pulls), len(RESOURCES))] * 2):
            raise ConfigurationError(f"Observations of {len(self.pulls)} pulls: got used and once {shapes}.")
        if self.present is not None and self.present <= self.pulls.prompt.max(initial=0):
            raise ConfigurationError(f"Observations: present is {self.present}, and prompts from there on were drawn.")

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Which completions failed [S]."""
        failed: NDArray[np.bool_] = np.isnan(self.score).max(axis=1, initial=False)
        return failed

    @property
    def logprobs(self) -> FloatArray:
        """Mean logprob of a token of each completion [S]; NaN where it is not known."""
        return np.full(len(self.label), np.nan) if self.logprob is None else self.logprob


@dataclass(frozen=True)
class Policy:
    """Context -> arm (the paper's pi).

    Attributes:
        arms: One arm per context, in the order of the contexts [C].
    """

    arms: tuple[Arm, ...]

    def __getitem__(self, context: int) -> Arm:
        """Return the arm of one context."""
        return self.arms[context]

    def __len__(self) -> int:
        """Return C."""
        return len(self.arms)
