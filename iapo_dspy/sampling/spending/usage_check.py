"""Takes the usage that a server reports, or corrects it where it cannot be right.

Some servers leave usage out. Others, such as llama.cpp's, count the tokens of the first choice only, however many
choices they return.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from iapo_dspy.sampling.lm.params import canonical
from iapo_dspy.sampling.spending.pricing import count_text, count_tokens
from iapo_dspy.sampling.spending.usage import Usage

logger = logging.getLogger(__name__)

_RATIO = 4  # tokens per piece lie between 1/4 and 4; a vocabulary that has whole phrases was seen to make 0.31
_HIDDEN = 2.0  # tokens per piece beyond which a reply has text that it does not show
_PIECE = re.compile(
    r"[^\W\d_\u0370-\U0010ffff]{1,8}"  # Latin letters, long words in parts
    r"|\d{1,2}"
    r"|[\u0370-\u1fff]{1,3}"  # other alphabets
    r"|[\u2e80-\uffef\U00010000-\U0010ffff]"  # ideographs, syllables, emoji: one each
    r"|[^\w\s]+"
)


def reported_tokens(told: Any) -> tuple[Any, Any]:
    """Return the prompt and completion tokens of a server's usage, with those that only its other numbers show.

    Some servers leave the tokens of hidden reasoning out of `completion_tokens`, but not out of `total_tokens` or of
    the details.

    Args:
        told: The usage as an object or a mapping; None where there is none.
    """

    def number(holder: Any, name: str) -> Any:
        return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)

    prompt, written = number(told, "prompt_tokens"), number(told, "completion_tokens")
    if not isinstance(prompt, int) or not isinstance(written, int):
        return prompt, written
    total, thought = number(told, "total_tokens"), number(number(told, "completion_tokens_details"), "reasoning_tokens")
    if isinstance(thought, int) and thought > written:
        written += thought
    return prompt, max(written, total - prompt) if isinstance(total, int) else written


class FirstChoiceCheck:
    """Finds out whether one LM's server counts the first choice of n only, and scales its counts then.

    Attributes:
        first_only: Whether a reply has shown it. It stays.
        one_by_one: Whether a limit holds only if completions are asked for one at a time: a reply with several choices
            left doubt about its tokens. It stays.
    """

    def __init__(self) -> None:
        self.first_only = False
        self.one_by_one = False
        self._single = (0.0, 0.0)  # tokens and pieces of replies with one choice

    @property
    def knows(self) -> bool:
        """Whether a reply with one choice has shown how many tokens the server counts for a text."""
        return self._single[1] > 0

    def doubts(self, usage: Usage, texts: Sequence[str | None]) -> bool:
        """Whether the tokens of one reply may be those of its first choice alone; hidden tokens are looked for, too.

        The tokens per piece of text tell: they should be nearer to the usual rate if all choices are counted than if
        the first one is. The usual rate is that of a reply with one choice. Before there is one, it is taken to be 1,
        and a rate above 2 is hidden text, which the choices may differ in.

        Args:
            usage: Of the reply, as `check_usage` returns it.
            texts: Its choices, each as `whole_text`.
        """
        sizes = [max(pieces(text), 1) for text in texts]
        if usage.recounted or len(sizes) < 2:
            if sizes and not usage.recounted:
                self._single = self._single[0] + usage.completion_tokens, self._single[1] + sizes[0]
            return False
        rate, usual = usage.completion_tokens / sum(sizes), self._single[0] / self._single[1] if self.knows else 1.0
        middle = math.sqrt(sizes[0] / sum(sizes))  # of the two rates that are compared, on a logarithmic scale
        doubt = rate < usual * middle or (not self.knows and rate > _HIDDEN)
        self.one_by_one |= doubt
        return doubt

    def scaled(self, reported: Any, texts: Sequence[str | None], limit: int | None = None) -> Any:
        """Return the completion tokens of one reply.

        Args:
            reported: As the server says.
            texts: The choices that came back, each as `whole_text`.
            limit: `max_tokens`.

        Returns:
            The server's number. Where the server counts the first choice only, its number scaled by the sizes of all
            choices; None where the first choice is empty, so that its number says nothing about the others.
        """
        if len(texts) < 2 or not isinstance(reported, int) or reported < 1:
            return reported
        sizes = [pieces(text) for text in texts]
        # Too few tokens for all choices, and enough for the first one.
        self.first_only |= 0 < sizes[0] <= _RATIO * reported < sum(sizes)
        if not self.first_only:
            return reported
        if not sizes[0]:
            return None
        scaled = math.ceil(reported * sum(sizes) / sizes[0])
        return scaled if limit is None else min(scaled, limit * len(texts))


def check_usage(
    *,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    texts: Sequence[str | None],
    truncated: int,
    limit: int | None,
    reported: tuple[Any, Any],
    first_choice: FirstChoiceCheck | None = None,
) -> Usage:
    """Take the usage that a server reports for one request, or count anew where it cannot be right.

    It cannot be right where there are no tokens, fewer than choices that are not empty, or fewer than `max_tokens` for
    every choice that was cut off there.

    Args:
        model: A new count uses the tokenizer of this model, as far as LiteLLM has it.
        messages: The prompt that was sent.
        texts: The choices that came back, each as `whole_text`.
        truncated: How many choices were cut off at the limit.
        limit: `max_tokens`.
        reported: Prompt and completion tokens as the server says.
        first_choice: Remembers how the server counts; None trusts its numbers for several choices.
    """
    prompt_tokens, told = reported
    completion_tokens = first_choice.scaled(told, texts, limit) if first_choice is not None else told
    full = [text for text in texts if text]
    least = max(len(full), truncated * (limit or 0), 1)
    sound = isinstance(prompt_tokens, int) and isinstance(completion_tokens, int) and prompt_tokens > 0
    if sound and completion_tokens >= least:
        recounted = completion_tokens != told
        return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, recounted=recounted)
    if not (isinstance(prompt_tokens, int) and prompt_tokens > 0):
        prompt_tokens = count_tokens(model, messages)
    counted = sum(count_text(model, text) for text in full)
    logger.debug("The usage that %s reports for %d choices cannot be right; it was recounted.", model, len(texts))
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=max(counted, least), recounted=True)


def pieces(text: str | None) -> int:
    """Return the size of a text in pieces, about as many as a tokenizer makes tokens; 0 for none, else >= 2."""
    return len(_PIECE.findall(text)) + 1 if text else 0  # and the end


def whole_text(output: Any) -> str | None:
    """Return everything that the LM wrote for one choice, for counting."""
    if isinstance(output, str) or output is None:
        return output
    parts = [output.get("reasoning_content"), output.get("text")]
    parts += [canonical(call) for call in output.get("tool_calls") or ()]
    return "\n".join(p for p in parts if p) or None
