"""The true values of arms that stop early, of cascades and of mixtures, in a recorded environment.

Best-of-N is valued in closed form. A stopped vote of many answers is not; it is replayed on seeded sequences of
completions, the same ones for every rule, and compared with the vote of all N on the same sequence. Only the difference
is sampled, and the reward of all N, which is known exactly, is added to it: a rule that never changes an answer gains
exactly 0, and with the default number of sequences a mean over 300 queries is good to a few 1e-4.

Stages of a cascade that decide alone are independent given the query, so each is valued on its own, and the last one,
like any arm of one prompt, exactly. A stage that may go on, stages that decide together and mixtures are played on
sequences from the law: `played.play`. These are the same ones for every arm, and stratified: at each position, the R
sequences of a query have each answer as often as its probability says. The rewards of their single prompts, which are
known exactly, correct what is left (control variates).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from iapo_dspy.bandit.compound.played import play
from iapo_dspy.bandit.compound.sequences import Part, Sequences
from iapo_dspy.bandit.models.winning import Ties
from iapo_dspy.bandit.stopping.replays import VoteTally, vote_ends
from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Arm, Escalation, FloatArray, IntArray, Policy, Stop

SEQUENCES = 400
_KEPT = 8  # prompts whose sequences are kept
_AT_ONCE = 400_000  # completions that are played at once
_LENGTH = 32  # sequences are a multiple of this long
_STREAM, _STRATA = 7, 8  # keep these random numbers apart from others of the same seed


@dataclass(frozen=True, kw_only=True, eq=False)
class Calls:
    """Expected calls of a policy, mean over queries; a compound arm is compared with all N of its first prompt.

    Attributes:
        gain: Reward at the stop minus that of all N completions [C].
        completions: Completions [C].
        waves: Waves one after the other [C]; those of a mixture's prompts run at once.
        saved: Utility of the completions that are not drawn, less that of further waves [C]; below 0 where a compound
            arm takes more than all N of its first prompt.
        escalates: Share of calls that go on to a second stage [C].
        abstains: Share of calls without an answer because none was sure enough [C].
    """

    gain: FloatArray
    completions: FloatArray
    waves: FloatArray
    saved: FloatArray
    escalates: FloatArray
    abstains: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class OnQueries:
    """Expected calls of one arm on every query.

    Attributes:
        reward: Reward [X]; that of a call without a vote where the call abstains.
        cost: Cost in utility [X], at cost weight 1.
        completions: Completions of each prompt [P, X].
        waves: Waves of each prompt [P, X].
        in_turn: Waves one after the other [X]; those of a mixture's prompts run at once.
        escalates: Probability that a call goes on to a second stage [X].
        abstains: Probability that it ends without an answer because none was sure enough [X].
    """

    reward: FloatArray
    cost: FloatArray
    completions: FloatArray
    waves: FloatArray
    in_turn: FloatArray
    escalates: FloatArray
    abstains: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class StoppedValues:
    """Values arms that stop early, cascades and mixtures.

    Attributes:
        recording: The law of the completions.
        sequences: Sequences of completions per query that calls are played on.
        ties: How votes that are tied are credited where several completions decide at once.
    """

    recording: Recording
    sequences: int = SEQUENCES
    ties: Ties = "paper"
    _sampled: dict[tuple[int, int], VoteTally] = field(default_factory=dict, repr=False)
    _known: dict[tuple[int, Arm], FloatArray] = field(default_factory=dict, repr=False)
    _drawn: dict[int, list[IntArray]] = field(default_factory=dict, repr=False)
    _parts: dict[tuple[int, Arm], _Stages] = field(default_factory=dict, repr=False)
    _rewards: dict[tuple[int, int], FloatArray] = field(default_factory=dict, repr=False)

    def calls(self, policy: Policy, queries: IntArray | None = None) -> Calls:
        """Return the expected calls of a policy, on average over these queries or over all."""
        kept = slice(None) if queries is None else queries
        found = np.empty((6, len(policy)))
        for context, arm in enumerate(policy.arms):
            found[:, context] = self._compared(context, arm, kept)
        gain, completions, waves, saved, escalates, abstains = found
        return Calls(
            gain=gain,
            completions=completions,
            waves=waves,
            saved=self.recording.contexts.cost * saved,
            escalates=escalates,
            abstains=abstains,
        )

    def _compared(self, context: int, arm: Arm, kept: IntArray | slice) -> tuple[float, ...]:
        """Compare the calls of an arm with all N completions of its first prompt; costs at cost weight 1."""
        cost, overhead = self.recording.cost_on[arm.prompt, kept], float(self.recording.overhead[arm.prompt])
        if arm.compound:
            mine = self.on_queries(context, arm)
            spared = arm.n * cost + overhead - mine.cost[kept]
            gain = mine.reward - self.reward(context, arm.prompt, arm.n)
            parts = gain, mine.completions.sum(axis=0), mine.in_turn
            shares = float(mine.escalates[kept].mean()), float(mine.abstains[kept].mean())
            return *(float(part[kept].mean()) for part in parts), float(spared.mean()), *shares
        gain, completions, waves = self.law(context, arm)[:, kept]
        spared = cost * (arm.n - completions) - overhead * (waves - 1.0)
        return *(float(part.mean()) for part in (gain, completions, waves, spared)), 0.0, 0.0

    def reward(self, context: int, prompt: int, n: int) -> FloatArray:
        """Return the exact reward of all n completions of one prompt on every query [X]."""
        row = self._row(context)
        known = self._rewards.get((row, prompt))
        if known is None or known.shape[1] < n:
            one = self.recording.of_prompts(np.array([prompt])).exact(_LENGTH * math.ceil(n / _LENGTH), self.ties)
            known = self._rewards[row, prompt] = one.reward[one.row[context], 0]
        return known[:, n - 1]

    def on_queries(self, context: int, arm: Arm) -> OnQueries:
        """Return the expected calls of any arm on every query.

        Raises:
            ConfigurationError: The recording's aggregator cannot tell how sure an answer is, which the arm needs.
        """
        recording = self.recording
        size = recording.n_queries
        reward, in_turn, escalates, reach = np.zeros(size), np.zeros(size), np.zeros(size), np.ones(size)
        completions, waves = np.zeros((2, recording.n_prompts, size))
        groups = _groups(arm)
        for number, group in enumerate(groups):
            found = self._stages(context, group)
            reward += reach * found.reward
            in_turn += reach * found.in_turn
            completions[group.prompts, :] += reach * found.completions
            waves[group.prompts, :] += reach * found.waves
            if number == 0:
                escalates = found.later + (found.goes_on if len(groups) > 1 else 0.0)
            reach = reach * found.goes_on
        reward += reach * self._floor(context)
        cost = (recording.cost_on * completions).sum(axis=0) + recording.overhead @ waves
        return OnQueries(
            reward=reward,
            cost=cost,
            completions=completions,
            waves=waves,
            in_turn=in_turn,
            escalates=escalates,
            abstains=reach,
        )

    def _row(self, context: int) -> int:
        """Return the first context with the same weights."""
        weights = self.recording.contexts.weights
        return int((weights == weights[context]).all(axis=1).argmax())

    def _floor(self, context: int) -> float:
        """Return the reward of a call without a vote."""
        weights = self.recording.contexts.weights[context]
        none = np.full((1, 1), -1), np.full((1, 1, len(weights)), np.nan)
        return float(self.recording.aggregator(self.ties).reward(*none, weights[None])[0, 0])

    def _stages(self, context: int, arm: Arm) -> _Stages:
        """Value stages that decide together, or one stage."""
        key = self._row(context), arm
        if key not in self._parts:
            self._parts[key] = self._played(context, arm) if arm.compound else self._single(context, arm)
        return self._parts[key]

    def _single(self, context: int, arm: Arm) -> _Stages:
        gain, completions, waves = self.law(context, arm)
        none = np.zeros(self.recording.n_queries)
        reward = self.reward(context, arm.prompt, arm.n) + gain
        return _Stages(
            reward=reward,
            goes_on=none,
            later=none,
            in_turn=waves,
            completions=completions[None],
            waves=waves[None],
        )

    def _played(self, context: int, arm: Arm) -> _Stages:
        """Play calls on sequences, a few queries at a time, and correct their means by what is known exactly."""
        prompts, length = np.unique(arm.prompts), dict[int, int]()
        controls, means = [], []
        for stage in arm.stages:
            for share in stage.shares:
                begin = length.get(share.prompt, 0)
                length[share.prompt] = begin + share.n
                controls.append(Part(share.prompt, begin, begin + share.n))
                means.append(self.reward(context, share.prompt, share.n))
        values, known = [], []
        each = max(_AT_ONCE // (arm.most * self.sequences), 1)
        for first in range(0, self.recording.n_queries, each):
            queries = np.arange(first, min(first + each, self.recording.n_queries))
            rows = self.rows(context, prompts, max(length.values()), queries)
            ended = play(arm, rows)
            in_turn = ended.waves.sum(axis=1)
            for number, stage in enumerate(arm.stages):
                in_turn -= (ended.stage >= number) * len(stage.beside)
            shares = ~ended.answered, ended.stage > 0, in_turn
            parts = np.where(ended.answered, ended.reward, 0.0), *shares, *ended.completions.T, *ended.waves.T
            values.append(np.stack(parts, axis=1).reshape(len(queries), self.sequences, -1))
            seen = [rows.reward([part]) for part in controls]
            known.append(np.stack(seen, axis=1).reshape(len(queries), self.sequences, -1))
        mean = _controlled(np.concatenate(values), np.concatenate(known), np.stack(means, axis=1)).T
        at = np.searchsorted(prompts, arm.prompts)
        return _Stages(
            reward=mean[0],
            goes_on=np.clip(mean[1], 0.0, 1.0),
            later=np.clip(mean[2], 0.0, 1.0),
            in_turn=mean[3],
            completions=mean[4 : 4 + len(prompts)][at],
            waves=mean[4 + len(prompts) :][at],
        )

    def rows(self, context: int, prompts: IntArray, length: int, queries: IntArray) -> Sequences:
        """Return the sequences that calls are played on, R for each of these queries, one query after the other.

        Args:
            context: Whose weights count.
            prompts: Their prompts, ascending.
            length: Completions of each prompt.
            queries: Which queries.
        """
        recording = self.recording
        for prompt in prompts.tolist():
            self._draw(prompt, length)
        shape = len(queries) * self.sequences, length
        query = np.repeat(queries, self.sequences)
        label = np.empty((len(prompts), *shape), dtype=np.int64)
        score = np.empty((len(prompts), *shape, recording.contexts.n_objectives))
        for at, prompt in enumerate(prompts.tolist()):
            outcome = np.stack([d[queries].reshape(-1) for d in self._drawn[prompt][:length]], axis=1).astype(np.int64)
            seen = recording.observe(
                np.full(outcome.size, prompt), np.repeat(query, outcome.shape[1]), outcome.reshape(-1)
            )
            label[at], score[at] = seen[0].reshape(shape), seen[1].reshape(*shape, -1)
        return Sequences(
            prompts=prompts,
            label=label,
            score=score,
            query=query - queries[0],
            n_queries=len(queries),
            aggregator=recording.aggregator(self.ties),
            weights=recording.contexts.weights[context],
        )

    def _draw(self, prompt: int, length: int) -> None:
        """Draw outcomes of a prompt [X, R] at each position; the last index + 1 stands for a failure."""
        probs = self.recording.probs[prompt]
        drawn = self._drawn.setdefault(prompt, [])
        for position in range(len(drawn), length):
            rng = np.random.default_rng([0, _STRATA, prompt, position])
            stratum = rng.random((len(probs), self.sequences)).argsort(axis=1)
            uniform = (stratum + rng.random(stratum.shape)) / self.sequences
            drawn.append(_outcomes(probs, uniform).astype(np.int16))

    def law(self, context: int, arm: Arm) -> FloatArray:
        """Return the expected gain, completions and waves of a context's calls of one prompt on every query [3, X].

        Raises:
            ConfigurationError: A recording that is neither of votes nor of scored outcomes.
        """
        if arm.stop is None:
            out = np.zeros((3, self.recording.n_queries))
            out[1], out[2] = arm.n, 1.0
            return out
        row, weights = self._row(context), self.recording.contexts.weights
        if (row, arm) not in self._known:
            if isinstance(self.recording, VotingRecording):
                self._known[row, arm] = self._vote(self.recording, arm.prompt, arm.stop)
            elif isinstance(self.recording, BestOfRecording):
                values = self.recording.outcomes[arm.prompt] @ weights[context]
                self._known[row, arm] = best_of_stopped(values, self.recording.probs[arm.prompt], arm.stop)
            else:
                raise ConfigurationError(f"Stopped arms of a {type(self.recording).__name__} cannot be valued.")
        return self._known[row, arm]

    def _vote(self, recording: VotingRecording, prompt: int, stop: Stop) -> FloatArray:
        tally = self._tally(recording, prompt, _LENGTH * math.ceil(stop.waves[-1] / _LENGTH))
        credit = np.repeat(recording.scores, self.sequences, axis=0)
        ended = vote_ends(tally, credit, (stop,))
        return np.stack([part[:, 0].reshape(-1, self.sequences).mean(axis=1) for part in ended])

    def _tally(self, recording: VotingRecording, prompt: int, n: int) -> VoteTally:
        """Return votes of X * sequences sequences of n; shorter sequences are the beginnings of longer ones."""
        if (prompt, n) not in self._sampled:
            if len(self._sampled) >= _KEPT:
                self._sampled.pop(next(iter(self._sampled)))
            streams = (np.random.default_rng([0, _STREAM, prompt, i]) for i in range(n))
            uniform = np.stack([rng.random((recording.n_queries, self.sequences)) for rng in streams], axis=2)
            n_answers = recording.probs.shape[2]
            label = _outcomes(recording.probs[prompt], uniform.reshape(recording.n_queries, -1)).reshape(-1, n)
            self._sampled[prompt, n] = VoteTally(np.where(label == n_answers, -1, label), n_answers)
        return self._sampled[prompt, n]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stages:
    """Stages that decide together, on every query.

    Attributes:
        reward: Expected reward of the calls that end in them, 0 for the others [X].
        goes_on: Probability that a call goes on after them [X].
        later: Probability that it reaches the second of them [X].
        in_turn: Waves one after the other [X].
        completions: Completions of each of their prompts, in the order of `Arm.prompts` [Q, X].
        waves: Waves likewise [Q, X].
    """

    reward: FloatArray
    goes_on: FloatArray
    later: FloatArray
    in_turn: FloatArray
    completions: FloatArray
    waves: FloatArray


def _groups(arm: Arm) -> list[Arm]:
    """Cut a cascade where earlier stages do not count any more; a part that goes on ends as if it abstained."""
    groups: list[list[Arm]] = [[]]
    for stage in arm.stages:
        groups[-1].append(stage)
        if stage.then is not None and stage.then.arm is not None and not stage.then.weight:
            groups.append([])
    found = []
    for group in groups:
        then = group[-1].then
        whole = replace(group[-1], then=None if then is None else Escalation(below=then.below))
        for stage in reversed(group[:-1]):
            assert stage.then is not None
            whole = replace(stage, then=replace(stage.then, arm=whole))
        found.append(whole)
    return found


def _outcomes(probs: FloatArray, uniform: FloatArray) -> IntArray:
    """Return the outcomes of uniform numbers [X, S] by probabilities [X, M]; M stands for what is missing to 1."""
    size, n_outcomes = probs.shape
    below = np.minimum(np.cumsum(probs, axis=1), 1.0)
    largest = np.where(below[:, -1] > 1 - 1e-9, n_outcomes - 1, n_outcomes)
    found = np.stack([np.searchsorted(below[x], uniform[x], side="right") for x in range(size)])
    return np.asarray(np.minimum(found, largest[:, None]))


def _controlled(values: FloatArray, controls: FloatArray, known: FloatArray) -> FloatArray:
    """Return means of values [X, R, V] over R, corrected by controls [X, R, Z] whose means are known [X, Z].

    One slope serves all queries.
    """
    mean, seen = values.mean(axis=1), controls.mean(axis=1)
    within = (controls - seen[:, None]).reshape(-1, controls.shape[2])
    slope = np.linalg.lstsq(within, (values - mean[:, None]).reshape(-1, values.shape[2]), rcond=None)[0]
    return np.asarray(mean - (seen - known) @ slope)


def best_of_stopped(values: FloatArray, probs: FloatArray, stop: Stop) -> FloatArray:
    """Return gain, completions and waves of stopped calls of Best-of-N, exactly [3, G].

    With F(v) the probability that a draw fails or scores below v, a call goes on after w draws with probability
    F(threshold)^w, and the best score at the stop reaches a level v >= threshold in the wave from w to w' with
    F(threshold)^w (1 - F(v)^(w' - w)).

    Args:
        values: Weighted score of each outcome [G, M].
        probs: Probability of each outcome [G, M]; the rest to 1 is the probability of a failure.
        stop: The rule; without a threshold all is drawn.
    """
    order = np.argsort(values, axis=1)
    ascending = np.take_along_axis(values, order, axis=1)
    mass = np.take_along_axis(probs, order, axis=1)
    failed = np.maximum(1.0 - mass.sum(axis=1, keepdims=True), 0.0)
    below = np.minimum(failed + np.cumsum(mass, axis=1) - mass, 1.0)
    threshold = np.inf if stop.threshold is None else stop.threshold
    reaching = ascending >= threshold
    going = np.where(reaching, 0.0, mass).sum(axis=1) + failed[:, 0]
    width = np.diff(ascending, axis=1, prepend=np.nan)
    width = np.where(reaching & (np.arange(values.shape[1]) > 0), width, 0.0)
    gain = -(width * (1.0 - below ** stop.waves[-1])).sum(axis=1)
    completions, waves = np.zeros(len(values)), np.zeros(len(values))
    for before, end in pairwise((0, *stop.waves)):
        alive = going**before
        gain += alive * (width * (1.0 - below ** (end - before))).sum(axis=1)
        completions += (end - before) * alive
        waves += alive
    return np.stack([gain, completions, waves])
