"""From scored completions to the observations that an algorithm receives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from iapo_dspy.environments.live.progress import Tracker
from iapo_dspy.environments.live.scoring import Scorer
from iapo_dspy.environments.live.stored import Completion
from iapo_dspy.errors import one_line
from iapo_dspy.preferences import RESOURCES
from iapo_dspy.sampling.ledger.records import CompletionRecord
from iapo_dspy.sampling.spending.cost import Cost, use_of
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.scoring.scores import Scored
from iapo_dspy.scoring.strategies import classes_of, columns_of
from iapo_dspy.types import FloatArray, Observations, Pulls


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """The completions of one pull; fewer than asked for where the budget ended in between.

    Attributes:
        scored: Their scores.
        cost: The cost of each.
        overhead: The cost of the pull that does not depend on its size.
        used: Resources of a completion [R].
        once: Resources of the pull, whatever its size [R].
        logprobs: Mean logprob of a token of each completion; NaN where the LM gives none.
    """

    scored: tuple[Scored, ...]
    cost: tuple[float, ...]
    overhead: float
    used: tuple[float, ...]
    once: tuple[float, ...]
    logprobs: tuple[float, ...]


class Observer:
    """Puts the results of a run into the order of the pulls, so that nothing depends on which answer came first.

    Args:
        scorer: Knows the strategy and its scales.
        tracker: Counts answers that cannot be compared as failures.
        cost: Turns usage into costs.
        n_prompts: P.
        n_queries: X.
    """

    def __init__(self, scorer: Scorer, tracker: Tracker, cost: Cost, n_prompts: int, n_queries: int) -> None:
        self._scorer = scorer
        self._tracker = tracker
        self._cost = cost
        self._tokens = np.zeros((2, n_prompts))  # output tokens and completions
        self._classes = [classes_of(scorer.strategy) for _ in range(n_queries)]

    @property
    def output_tokens(self) -> FloatArray:
        """Mean output tokens of a prompt's completions [P]; NaN for a prompt without any."""
        total, drawn = self._tokens
        return np.asarray(total / np.where(drawn > 0, drawn, np.nan))

    def pulled(self, prompt: int, completions: Sequence[Completion], scored: Sequence[Scored | None]) -> Pulled:
        """Return one pull's result, without the completions that could not be judged."""
        usages = _as_one_pull([c.record for c in completions])
        self._tokens[:, prompt] += sum(u.completion_tokens - u.shared_completion_tokens for u in usages), len(usages)
        overhead, cost = self._cost.split(usages)
        logprobs = [np.nan if c.record.logprob is None else c.record.logprob for c in completions]
        found = zip(scored, cost, usages, logprobs, strict=True)
        judged = [(s, c, u, p) for s, c, u, p in found if s is not None]
        used, once = use_of([u for _, _, u, _ in judged])
        return Pulled(
            scored=tuple(s for s, *_ in judged),
            cost=tuple(c for _, c, *_ in judged),
            overhead=overhead,
            used=used,
            once=once,
            logprobs=tuple(p for *_, p in judged),
        )

    def observations(self, pulls: Pulls, results: Sequence[Pulled | None]) -> Observations:
        """Return the observations of a batch of pulls; None stands for a pull that was not made."""
        made = [(i, r) for i, r in enumerate(results) if r is not None and r.scored]
        index = np.array([i for i, _ in made], dtype=np.int64)
        size = np.array([len(r.scored) for _, r in made], dtype=np.int64)
        columns = len(columns_of(self._scorer.strategy))
        logprob = np.array([p for _, r in made for p in r.logprobs], dtype=np.float64)
        place = self._scorer.place([s.scores for _, r in made for s in r.scored if s.scores is not None])
        label: list[int] = []
        score: list[tuple[float, ...]] = []
        for i, result in made:
            for s in result.scored:
                found, raw = self._label(int(pulls.prompt[i]), int(pulls.query[i]), s)
                label.append(found)
                score.append(place(raw) if raw is not None else (float("nan"),) * columns)
        return Observations(
            pulls=Pulls(pulls.prompt[index], pulls.query[index], size),
            label=np.array(label, dtype=np.int64),
            score=np.array(score, dtype=np.float64).reshape(len(score), columns),
            cost=np.array([c for _, r in made for c in r.cost], dtype=np.float64),
            overhead=np.array([r.overhead for _, r in made], dtype=np.float64),
            used=np.array([r.used for _, r in made], dtype=np.float64).reshape(len(made), len(RESOURCES)),
            once=np.array([r.once for _, r in made], dtype=np.float64).reshape(len(made), len(RESOURCES)),
            exhausted=int(size.sum()) < pulls.completions,
            logprob=None if np.isnan(logprob).all() else logprob,
        )

    def _label(self, prompt: int, query: int, scored: Scored) -> tuple[int, tuple[float, ...] | None]:
        """Return a completion's answer class, -1 without a vote, and its scores, None for a failure.

        Classes are made in the order of the pulls, so that a run that is resumed makes the same.
        """
        if scored.scores is None or scored.answer is None:
            return -1, scored.scores
        try:
            label = self._classes[query].place(scored)
        except Exception as exc:  # noqa: BLE001  # the user's equality: its failure is this completion's
            self._tracker.spoil(prompt, one_line(exc))
            return -1, None
        return (-1 if label is None else label), scored.scores


def _as_one_pull(records: Sequence[CompletionRecord]) -> list[Usage]:
    """Return the usages of completions as if one pull had drawn them: what each of several paid once, it pays once."""
    pulls = len({r.pull for r in records})
    if pulls < 2:
        return [r.usage for r in records]
    more = 1 - 1 / pulls
    return [
        replace(
            u,
            prompt_tokens=u.prompt_tokens - more * u.shared_tokens,
            completion_tokens=u.completion_tokens - more * u.shared_completion_tokens,
            usd=None if u.usd is None else u.usd - more * u.shared_usd,
            shared_tokens=u.shared_tokens / pulls,
            shared_completion_tokens=u.shared_completion_tokens / pulls,
            shared_usd=u.shared_usd / pulls,
        )
        for u in (r.usage for r in records)
    ]
