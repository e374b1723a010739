"""The completions that a recording was made from, one by one: the joint law of outcome, tokens and ending."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """S completions of every prompt on every query, in the order of their draws.

    Attributes:
        outcome: Index of the outcome, in a vote of the answer class [P, X, S]; -1 for a failure and for a completion
            without a vote.
        tokens: Output tokens [P, X, S].
        prompt_tokens: Tokens of the prompt of one request, rounded mean over the requests of a cell [P, X].
        finish: Why the completion ended, as an index into `endings` [P, X, S].
        endings: The reasons as the provider says ("stop", "length"); "" where it does not say.
        failures: Completions of each prompt that failed for each of the `causes` [P, F].
        causes: The causes of failures in a few words, without text of a completion.

    Raises:
        ConfigurationError: An array of another shape, or an index out of range.
    """

    outcome: IntArray
    tokens: IntArray
    prompt_tokens: IntArray
    finish: IntArray
    endings: tuple[str, ...]
    failures: IntArray
    causes: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = np.shape(self.outcome)
        if len(shape) != 3 or not min(shape):
            raise ConfigurationError(f"outcome must be [P, X, S] with an entry in each axis, got shape {shape}.")
        object.__setattr__(self, "endings", tuple(map(str, self.endings)))
        object.__setattr__(self, "causes", tuple(map(str, self.causes)))
        needed = {
            "outcome": shape,
            "tokens": shape,
            "prompt_tokens": shape[:2],
            "finish": shape,
            "failures": (shape[0], len(self.causes)),
        }
        for name, wanted in needed.items():
            array = np.asarray(getattr(self, name))
            least = -1 if name == "outcome" else 0
            if array.shape != wanted or array.dtype.kind not in "iu" or (array < least).any():
                raise ConfigurationError(
                    f"{name} must be whole numbers >= {least} of shape {wanted}, got {array.dtype} of {array.shape}."
                )
            object.__setattr__(self, name, array.astype(np.int64))
        if (self.finish >= len(self.endings)).any():
            raise ConfigurationError(f"finish must be below {len(self.endings)}, the number of endings.")

    @property
    def samples(self) -> int:
        """S."""
        return int(self.outcome.shape[2])

    def law(self, n_outcomes: int) -> FloatArray:
        """Return the share of each of M outcomes among the completions of each cell [P, X, M].

        Raises:
            ConfigurationError: An outcome that is not below M.
        """
        if (self.outcome >= n_outcomes).any():
            raise ConfigurationError(f"outcome must be below {n_outcomes}, the number of outcomes.")
        counts = [(self.outcome == m).sum(axis=2) for m in range(n_outcomes)]
        return np.stack(counts, axis=2) / self.samples

    def relative_tokens(self) -> FloatArray:
        """Return the tokens of each completion over the mean of its prompt [P, X, S]; 1 for a prompt without tokens."""
        mean = self.tokens.mean(axis=(1, 2))[:, None, None]
        return np.where(mean > 0, self.tokens / np.where(mean > 0, mean, 1.0), 1.0)

    def of_prompts(self, prompts: IntArray) -> Draws:
        """Return the completions of these prompts only, in this order."""
        names = ("outcome", "tokens", "prompt_tokens", "finish", "failures")
        kept: dict[str, Any] = {name: getattr(self, name)[prompts] for name in names}
        return replace(self, **kept)

    def of_queries(self, queries: IntArray) -> Draws:
        """Return the completions on these queries only, in this order; `failures` still counts those on all of them."""
        names = ("outcome", "tokens", "prompt_tokens", "finish")
        kept: dict[str, Any] = {name: getattr(self, name)[:, queries] for name in names}
        return replace(self, **kept)
