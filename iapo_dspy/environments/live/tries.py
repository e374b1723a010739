"""Keeps the completions of the training questions that writers of prompts may read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import dspy
import numpy as np

from iapo_dspy.environments.live.stored import Completion
from iapo_dspy.errors import ScoreError
from iapo_dspy.prompts.proposers.port import Try
from iapo_dspy.scoring.answers.classes import classes_of, grouped
from iapo_dspy.scoring.fields import text_of
from iapo_dspy.scoring.scores import Scored
from iapo_dspy.scoring.strategies import Calibrates, Strategy, highest_of, lowest_of


class Tries:
    """Keeps completions with their scores, cell by cell.

    Args:
        queries: The questions that may be read.
    """

    def __init__(self, queries: Collection[int]) -> None:
        self.queries = frozenset(queries)
        self._drawn: dict[int, dict[tuple[int, int], tuple[Completion, Scored]]] = {q: {} for q in sorted(queries)}

    def add(self, prompt: int, query: int, completions: Sequence[Completion], scored: Sequence[Scored | None]) -> None:
        """Take in a pull."""
        for completion, s in zip(completions, scored, strict=True) if query in self.queries else ():
            if s is not None:
                self._drawn[query][prompt, completion.record.draw] = completion, s

    def of(self, strategy: Strategy) -> Mapping[int, Mapping[int, Sequence[Try]]]:
        """Return prompt -> query -> its completions in order of drawing, whichever answer came first."""
        found: dict[int, dict[int, list[Try]]] = {}
        for query, drawn in self._drawn.items():
            cells = [(prompt, *drawn[prompt, draw]) for prompt, draw in sorted(drawn)]
            labels, _ = grouped([s for *_, s in cells], classes_of(strategy))
            for (prompt, completion, scored), label in zip(cells, labels, strict=True):
                made = _try(completion, scored, -1 if label is None else label, strategy)
                found.setdefault(prompt, {}).setdefault(query, []).append(made)
        return found


def _try(completion: Completion, scored: Scored, label: int, strategy: Strategy) -> Try:
    said = completion.inner.prediction if completion.inner is not None else completion.prediction
    return Try(
        answer=scored.answer,
        score=_share(scored, strategy),
        label=label,
        tokens=completion.record.usage.completion_tokens,
        output=_texts(said) if said is not None else {},
        failure=scored.failure,
        feedback=scored.feedback,
        inputs=completion.inner.inputs if completion.inner is not None else None,
    )


def _share(scored: Scored, strategy: Strategy) -> float | None:
    """Return the mean of the objectives as a share of their ranges; None for a failure."""
    if scored.scores is None:
        return None
    placed = strategy.place(scored.scores) if isinstance(strategy, Calibrates) else scored.scores
    low, high = np.array(lowest_of(strategy)), np.array(highest_of(strategy))
    return float(np.clip((np.array(placed[: len(low)]) - low) / (high - low), 0.0, 1.0).mean())


def _texts(prediction: dspy.Prediction) -> dict[str, str]:
    texts = {}
    for name, value in prediction.items():
        try:
            texts[name] = text_of(value)
        except ScoreError:  # without a JSON form
            texts[name] = repr(value)
    return texts
