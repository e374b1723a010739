"""The demo model's tokenizer: Hugging Face's `tokenizers` on the `tokenizer.json` that ships.

The vocabulary holds, in this order: control tokens, one token for each byte, and whole strings, which are the fixed
text of DSPy's chat template and the words of the demo's instructions. Digits are always single tokens. Text that the
model has never seen costs one token a byte, so that every prompt can be encoded.

This tokenizer belongs to a test fixture. It says nothing about the tokenizers of large language models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import tokenizers

CONTROL_TOKENS: Final = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
"""Control tokens, in the order of their ids. `Tokenizer.encode` never produces them from text."""


class Tokenizer:
    """Turns text into ids and back without loss.

    Args:
        core: The vocabulary. The control tokens have its first ids.

    Raises:
        ValueError: The vocabulary does not begin with the control tokens.
    """

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        if tuple(core.id_to_token(i) for i in range(len(CONTROL_TOKENS))) != CONTROL_TOKENS:
            raise ValueError(f"The vocabulary must begin with the control tokens {CONTROL_TOKENS}.")
        core.encode_special_tokens = True  # control tokens that are written in a text are plain text
        self.core = core
        self.pad_id, self.end_id, system, user, assistant = range(len(CONTROL_TOKENS))
        self._role_ids = {"system": system, "developer": system, "user": user, "assistant": assistant}
        self._cached = lru_cache(maxsize=4096)(self._encode)

    def __len__(self) -> int:
        return int(self.core.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Encode plain text; lone surrogates become "?"."""
        return list(self._cached(text))

    def _encode(self, text: str) -> tuple[int, ...]:
        whole = text.encode("utf-8", errors="replace").decode("utf-8")
        return tuple(self.core.encode(whole, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids back into text, without control tokens. Bytes that are not UTF-8 become U+FFFD."""
        return str(self.core.decode([i for i in ids if i >= len(CONTROL_TOKENS)]))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Encode a conversation up to the point where the assistant answers.

        Args:
            messages: OpenAI-style messages. `content` is a string or a list of `{"type": "text", "text": ...}`.

        Returns:
            The prompt's ids: a role token before each message, the end token after each assistant message, and the
            assistant's role token last.

        Raises:
            ValueError: There is not a single message, a role is unknown, or content is not text.
        """
        if not messages:
            raise ValueError("messages must hold at least one message")
        out: list[int] = []
        for position, message in enumerate(messages):
            role = str(message.get("role"))
            if role not in self._role_ids:
                known = sorted(self._role_ids)
                raise ValueError(f"messages[{position}].role must be one of {known}, got {message.get('role')!r}")
            out.append(self._role_ids[role])
            out += self.encode(_text_of(message.get("content"), position))
            if role == "assistant":
                out.append(self.end_id)
        out.append(self._role_ids["assistant"])
        return out

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`."""
        return cls(tokenizers.Tokenizer.from_file(str(path)))


def _text_of(content: object, position: int) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    raise ValueError(f"messages[{position}].content must be text, got {type(content).__name__}")
