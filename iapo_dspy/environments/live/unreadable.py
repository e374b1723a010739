"""Counts the completions that cannot be read, and tells when most of every prompt's are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from iapo_dspy.scoring.failures import UnreadableText, worst_examples

LEAST = 64  # completions before which a run does not stop for completions that cannot be read
TELLING = (
    8  # completions that tell of a prompt whether more than half of them cannot be read, if all or all but none do
)
_LEVEL = 0.01


class UnreadableShares:
    """Counts, and keeps one example of each prompt.

    A run stops where every prompt that was asked surely has more unreadable completions than allowed. Surely means that
    a prompt whose share is what is allowed has as many with a probability of at most .01: with half allowed, 7 of 7, 10
    of 11 or 15 of 19. The counts are looked at after every pull, so a prompt can be misjudged more often than once in a
    hundred times: where the half of its completions can be read, 7 of 100 times within 256 completions, and where 60 %
    can, 1 of 300 times. One readable prompt is enough to go on.

    Args:
        n_prompts: P.
        most: The share that is allowed, in (0, 1]; None and 1 allow any.
    """

    def __init__(self, n_prompts: int, most: float | None) -> None:
        self._most = 1.0 if most is None else most
        self._count = [0] * n_prompts
        self._examples: list[tuple[int, int, UnreadableText] | None] = [None] * n_prompts
        self._asked: set[int] = set()

    @property
    def total(self) -> int:
        """Completions that could not be read."""
        return sum(self._count)

    def ask(self, prompts: Iterable[int]) -> None:
        """Say which prompts a round asks: each of them must be judged before a run stops."""
        self._asked.update(p for p in prompts if p < len(self._count))

    def add(self, prompt: int, query: int, found: Iterable[tuple[int, str | None, str | None]]) -> None:
        """Take in the unreadable completions of a pull: the draw, the text and the cause of each.

        The example of a prompt is that of its first query, whichever answer came first.
        """
        for draw, text, cause in found:
            self._count[prompt] += 1
            kept = self._examples[prompt]
            if kept is None or (query, draw) < kept[:2]:
                self._examples[prompt] = query, draw, UnreadableText.of(prompt, text, cause)

    def shares(self, drawn: Sequence[int]) -> tuple[float, ...]:
        """Return the share of each prompt's completions [P]; NaN for a prompt without any."""
        return tuple(n / d if d else math.nan for n, d in zip(self._count, drawn, strict=True))

    def examples(self, drawn: Sequence[int]) -> tuple[UnreadableText, ...]:
        """Return examples of the prompts with the largest shares."""
        return worst_examples(self.shares(drawn), [e and e[2] for e in self._examples])

    def too_many(self, drawn: Sequence[int]) -> bool:
        """Whether no prompt that was asked can be read often enough.

        Args:
            drawn: Completions of each prompt [P].
        """
        if sum(drawn) < LEAST or not self._asked:
            return False
        return all(surely_above(self._most, self._count[p], drawn[p]) for p in self._asked)


def surely_above(share: float, found: int, drawn: int) -> bool:
    """Tell whether a share so small gives so many, or more, with a probability of at most .01."""
    if found <= share * drawn:
        return False
    yes, no, all_ways = math.log(share), math.log1p(-share), math.lgamma(drawn + 1)  # logarithms: the ways are too many
    more = (
        math.exp(all_ways - math.lgamma(k + 1) - math.lgamma(drawn - k + 1) + k * yes + (drawn - k) * no)
        for k in range(found, drawn + 1)
    )
    return sum(more) <= _LEVEL
