"""Finds out whether a server counts the tokens of all n choices, or of the first one only (llama.cpp's server does).

Nobody says which tokenizer a server has, so the size of a text is measured in pieces (words, numbers, runs of signs),
and tokens per piece are an unknown of the LM. Either a server counts all choices or the first one: with S_j the pieces
of what is counted and R_j the tokens reported for request j,

    log(R_j / S_j) = log r + k_i + e_j,    log r ~ N(0, tau^2),    k_i ~ N(0, kappa^2),    e_j ~ N(0, sigma^2),

and both explanations have a closed likelihood. k_i belongs to the kind of the request: answers to one instruction may
be few words and those to another long sums, of which a tokenizer makes other numbers of tokens, and a run that asks
one more often than the other must not take that for a miscount. Requests for different numbers of completions say
what r is, choices of different lengths say which S fits, and where all choices have one length an r far below one
does.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from iapo_dspy.sampling.spending.pricing import Usage, check_usage

__all__ = ["UsageCheck", "pieces"]

_SIGMA = 0.3  # spread of log(tokens / pieces) between texts of one LM
_TAU = 0.5  # spread of log(tokens / pieces) between tokenizers
_KIND = 0.4  # spread of log(tokens / pieces) between kinds of requests of one LM
_KINDS = 512  # kinds told apart
_SURE = 4.0  # log odds that settle it, one way or the other
_PIECE = re.compile(
    r"[^\W\d_\u0370-\U0010ffff]{1,8}"  # Latin letters, long words in parts
    r"|\d{1,2}"
    r"|[\u0370-\u1fff]{1,3}"  # other alphabets
    r"|[\u2e80-\uffef\U00010000-\U0010ffff]"  # ideographs, syllables, emoji: one each
    r"|[^\w\s]+"
)


def pieces(text: str | None) -> int:
    """Return the size of a text in pieces, about as many as a tokenizer makes tokens; 0 for none, else >= 2."""
    if not text:
        return 0
    return len(_PIECE.findall(text)) + 1  # and the end


class _Explanation:
    """Residuals x_j = log(R_j / S_j) under one explanation, as sums for each kind of request."""

    __slots__ = ("kinds",)

    def __init__(self) -> None:
        self.kinds: dict[int, tuple[int, float, float]] = {}  # how many, their sum, their squares

    def add(self, kind: int, x: float) -> None:
        count, total, squares = self.kinds.get(kind, (0, 0.0, 0.0))
        self.kinds[kind] = count + 1, total + x, squares + x * x

    def _means(self) -> tuple[float, float, float]:
        """Sums over kinds of 1 / v, m / v and m^2 / v, with m the mean of a kind and v its variance given r."""
        weight, first, second = 0.0, 0.0, 0.0
        for count, total, _ in self.kinds.values():
            precision = 1.0 / (_KIND**2 + _SIGMA**2 / count)
            mean = total / count
            weight += precision
            first += precision * mean
            second += precision * mean * mean
        return weight, first, second

    @property
    def likelihood(self) -> float:
        """Log marginal likelihood, up to what both explanations share."""
        weight, first, second = self._means()
        within = sum(squares - total**2 / count for count, total, squares in self.kinds.values())
        return -0.5 * (second - first**2 / (weight + _TAU**-2) + within / _SIGMA**2)

    @property
    def ratio(self) -> float:
        """Tokens per piece, as expected by now."""
        weight, first, _ = self._means()
        return math.exp(first / (weight + _TAU**-2))


class UsageCheck:
    """Takes or corrects the usage that one LM's server reports, and learns from each reply whether to."""

    def __init__(self) -> None:
        self._all, self._first = _Explanation(), _Explanation()
        self._odds = 0.0  # log odds for "the first choice only"
        self._trusted = False

    @property
    def counts_first_only(self) -> bool:
        """Whether the server was found out to count one choice of n."""
        return self._odds >= _SURE

    def check(
        self,
        *,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        texts: Sequence[str | None],
        truncated: int,
        limit: int | None,
        prompt_tokens: Any,
        completion_tokens: Any,
    ) -> Usage:
        """Return the usage of one reply; arguments as for `pricing.check_usage`.

        Where the server counts the first choice only, its count is scaled by the pieces of all choices.
        """
        usage = check_usage(
            model=model,
            messages=messages,
            texts=texts,
            truncated=truncated,
            limit=limit,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )
        if self._trusted or not texts or not isinstance(completion_tokens, int) or completion_tokens < 1:
            return usage
        sizes = [pieces(text) for text in texts]
        known = self.counts_first_only
        # The verdict stays: late in a run one prompt is drawn at one n, which any explanation fits.
        if sizes[0] and not known:
            kind = zlib.crc32(str(messages[0].get("content")).encode()) % _KINDS if messages else 0
            self._learn(kind, completion_tokens, sizes)
        # Once it is known, the server's own count of one choice is better than a foreign tokenizer's of all.
        if len(texts) == 1 or not self.counts_first_only or (usage.recounted and not known):
            return usage
        per_piece = completion_tokens / sizes[0] if sizes[0] else self._first.ratio
        counted = math.ceil(per_piece * sum(sizes))
        if limit is not None:
            counted = min(counted, limit * len(texts))
        return Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=counted, recounted=True)

    def _learn(self, kind: int, reported: int, sizes: Sequence[int]) -> None:
        self._all.add(kind, math.log(reported / sum(sizes)))
        self._first.add(kind, math.log(reported / sizes[0]))
        self._odds = self._first.likelihood - self._all.likelihood
        # Once it is clear that all are counted, nothing needs to be measured any more.
        self._trusted = self._odds <= -2 * _SURE
