"""The failed completions of a run, and what may help where they cannot be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

REMARKABLE = 0.2  # share of unreadable completions that a run remarks on
_EXAMPLES = 3
_LONGEST = 160  # characters of an example
_CUT_OFF = "cut off"  # as `sampling.requests.endings` says it


@dataclass(frozen=True, kw_only=True)
class UnreadableText:
    """A completion that could not be read.

    Attributes:
        prompt: Number of its prompt.
        text: The text, in one line and shortened.
        cause: Why it could not be read.
    """

    prompt: int
    text: str
    cause: str

    @classmethod
    def of(cls, prompt: int, text: str | None, cause: str | None) -> UnreadableText:
        """Shorten a text."""
        line = " ".join((text or "").split())
        return cls(
            prompt=prompt,
            text=line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}...",
            cause=cause or "it could not be read",
        )

    def __str__(self) -> str:
        """Return it in words."""
        return f"prompt {self.prompt}: {self.text!r}" if self.text else f"prompt {self.prompt}: an empty text"


@dataclass(frozen=True, kw_only=True)
class FailureReport:
    """Failed completions of a run.

    Attributes:
        completions: All completions of the run.
        total: Failed ones: those that could not be read, which have no vote, and those that could not be scored, which
            vote as they do when deployed and are worth the lowest value.
        errors: Failed ones where an exception, not the completion's text, was the cause.
        share: Share of failed completions per prompt [P]; NaN for a prompt that was never pulled.
        causes: The most frequent causes with their numbers.
        unread: Failed ones that the LM answered, and whose text could not be read: it did not have the form that the
            adapter asks for, or was cut off. None where it is not known, in programs that older versions saved.
        unreadable: Their share per prompt [P]; NaN for a prompt that was never pulled. Empty where it is not known.
        examples: Up to three of them, of the prompts with the largest shares. They are not saved with a program,
            because they may hold what users wrote; the ledger has all texts.
    """

    completions: int
    total: int
    errors: int
    share: tuple[float, ...]
    causes: tuple[tuple[str, int], ...]
    unread: int | None = None
    unreadable: tuple[float, ...] = ()
    examples: tuple[UnreadableText, ...] = ()

    def only(self, prompts: Sequence[int]) -> FailureReport:
        """Return the report of these prompts, which are all that were drawn."""
        number = {p: i for i, p in enumerate(prompts)}
        return replace(
            self,
            share=tuple(self.share[p] for p in prompts),
            unreadable=tuple(self.unreadable[p] for p in prompts) if self.unreadable else (),
            examples=tuple(replace(e, prompt=number[e.prompt]) for e in self.examples if e.prompt in number),
        )

    def without_examples(self) -> FailureReport:
        """Return the report without the texts of completions."""
        return replace(self, examples=())

    def unreadable_of(self, prompt: int) -> float | None:
        """Return the share of a prompt's completions that could not be read; None where it is not known."""
        share = self.unreadable[prompt] if self.unreadable else math.nan
        return None if math.isnan(share) else share

    @property
    def unreadable_share(self) -> float:
        """Share of all completions that could not be read; NaN where it is not known."""
        return math.nan if self.unread is None or not self.completions else self.unread / self.completions

    @property
    def remark(self) -> str | None:
        """A remark with what may help; None where at most a fifth of the completions cannot be read."""
        if not self.unreadable_share > REMARKABLE:
            return None
        known = [share for share in self.unreadable if not math.isnan(share)]
        between = f", {min(known):.0%} to {max(known):.0%} by prompt" if len(known) > 1 else ""
        return (
            f"{self.unreadable_share:.0%} of the completions could not be read{between}: they cost as much as others "
            f"and cast no vote. What may help: {' '.join(self.remedies)}"
        )

    @property
    def remedies(self) -> tuple[str, ...]:
        """What may help against completions that cannot be read, by their causes: a sentence each."""
        cut = sum(n for cause, n in self.causes if _CUT_OFF in cause)
        form = max((self.unread or 0) - cut, 0)
        # A model that does not find the end of its answer writes until it is cut off: then the form is the cause, too.
        longer = ("Larger max_tokens of the LM or of Decoding, because many are cut off.",) if cut > form / 4 else ()
        json = any("JSON" in cause for cause, _ in self.causes)
        other = "dspy.ChatAdapter()" if json else "dspy.JSONAdapter()"
        return (
            *longer,
            "For one output field, dspy.configure(adapter=PlainTextAdapter()) of iapo_dspy.adapters, which asks for "
            "the bare answer: with demonstrations in the candidates, and with constrain= where the server can.",
            f"Another form: dspy.configure(adapter={other}).",
            "Several at a time, so that the run chooses: "
            "IAPO(adapters=[dspy.ChatAdapter(), dspy.JSONAdapter(), PlainTextAdapter()]).",
            "Fewer output fields, where there are several.",
        )

    def __str__(self) -> str:
        """Return one line for a log."""
        causes = "; ".join(f"{n} x {cause}" for cause, n in self.causes[:3])
        return f"{self.total} of {self.completions} completions failed and count as spent: {causes}"


def worst_examples(
    share: Sequence[float], texts: Sequence[UnreadableText | None], most: int = _EXAMPLES
) -> tuple[UnreadableText, ...]:
    """Return the examples of the prompts with the largest shares [P] of unreadable completions."""
    worst = sorted((-share[p], p) for p, text in enumerate(texts) if text is not None)
    return tuple(text for _, p in worst[:most] if (text := texts[p]) is not None)
