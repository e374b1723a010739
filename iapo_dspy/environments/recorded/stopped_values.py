"""The true values of arms that stop early, in a recorded environment.

Best-of-N is valued in closed form. A stopped vote of many answers is not; it is replayed on seeded sequences of
completions, the same ones for every rule, and compared with the vote of all N on the same sequence. Only the difference
is sampled, and the reward of all N, which is known exactly, is added to it: a rule that never changes an answer gains
exactly 0, and with the default number of sequences a mean over 300 queries is good to a few 1e-4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from iapo_dspy.bandit.stopping.replays import VoteTally, vote_ends
from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Arm, FloatArray, IntArray, Policy, Stop

SEQUENCES = 400
_KEPT = 8  # prompts whose sequences are kept
_LENGTH = 32  # sequences are a multiple of this long
_STREAM = 7  # keeps these random numbers apart from others of the same seed


@dataclass(frozen=True, kw_only=True, eq=False)
class Calls:
    """Expected calls of a policy, mean over queries.

    Attributes:
        gain: Reward at the stop minus that of all N completions [C].
        completions: Completions [C].
        waves: Waves [C].
        saved: Utility of the completions that are not drawn, less that of further waves [C].
    """

    gain: FloatArray
    completions: FloatArray
    waves: FloatArray
    saved: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class StoppedValues:
    """Values arms that stop early.

    Attributes:
        recording: The law of the completions.
        sequences: Sequences of completions per query that votes are replayed on.
    """

    recording: Recording
    sequences: int = SEQUENCES
    _sampled: dict[tuple[int, int], VoteTally] = field(default_factory=dict, repr=False)
    _known: dict[tuple[int, Arm], FloatArray] = field(default_factory=dict, repr=False)

    def calls(self, policy: Policy, queries: IntArray | None = None) -> Calls:
        """Return the expected calls of a policy, on average over these queries or over all."""
        recording, contexts = self.recording, self.recording.contexts
        cost = recording.cost_on
        parts, spared = np.empty((3, len(policy))), np.empty(len(policy))
        kept = slice(None) if queries is None else queries
        for context, arm in enumerate(policy.arms):
            law = self.law(context, arm)[:, kept]
            parts[:, context] = law.mean(axis=1)
            spared[context] = (cost[arm.prompt, kept] * (arm.n - law[1])).mean()
        gain, completions, waves = parts
        price = spared - recording.overhead[[arm.prompt for arm in policy.arms]] * (waves - 1.0)
        return Calls(gain=gain, completions=completions, waves=waves, saved=contexts.cost * price)

    def law(self, context: int, arm: Arm) -> FloatArray:
        """Return the expected gain, completions and waves of a context's calls on every query [3, X].

        Raises:
            ConfigurationError: A recording that is neither of votes nor of scored outcomes.
        """
        if arm.stop is None:
            out = np.zeros((3, self.recording.n_queries))
            out[1], out[2] = arm.n, 1.0
            return out
        weights = self.recording.contexts.weights
        row = int((weights == weights[context]).all(axis=1).argmax())  # the first context with the same weights
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
            below = np.minimum(np.cumsum(recording.probs[prompt], axis=1), 1.0)
            streams = (np.random.default_rng([0, _STREAM, prompt, i]) for i in range(n))
            uniform = np.stack([rng.random((recording.n_queries, self.sequences)) for rng in streams], axis=2)
            label = (uniform[..., None] >= below[:, None, None, :]).sum(axis=3)
            complete = recording.probs[prompt].sum(axis=1) > 1 - 1e-9
            label = np.minimum(label, np.where(complete, below.shape[1] - 1, below.shape[1])[:, None, None])
            label = np.where(label == below.shape[1], -1, label)
            self._sampled[prompt, n] = VoteTally(label.reshape(-1, n), below.shape[1])
        return self._sampled[prompt, n]


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
