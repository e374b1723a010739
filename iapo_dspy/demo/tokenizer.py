"""A small lossless tokenizer: leftmost-longest match over a list of strings, bytes for everything else.

The vocabulary is stored as a Hugging Face ``tokenizer.json`` (``tokenizers`` reads the same file and gives the same
ids, which a test checks). It holds, in this order: control tokens, one token for each byte, and then whole strings: the
fixed text of DSPy's chat template and the words of the demo's instructions.
Digits are always single tokens. Text that was never seen costs one token a character, so no prompt can fail here.

This tokenizer belongs to a test fixture. It says nothing about the tokenizers of large language models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

CONTROL_TOKENS: Final = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
"""Control tokens, in the order of their ids. ``encode`` never produces them from text."""

CHAT_TEMPLATE: Final = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The Jinja form of `Tokenizer.encode_chat`, for servers that read ``tokenizer_config.json``."""

TEMPLATE_STRINGS: Final = (
    "Your input fields are:\n1. `",
    "\nYour output fields are:\n1. `",
    "` (str):",
    "` (int):",
    "\n2. `",
    "\nAll interactions will be structured in the following way, with the appropriate values filled in.\n\n",
    "[[ ## question ## ]]\n",
    "[[ ## target ## ]]\n",
    "[[ ## reasoning ## ]]\n",
    "[[ ## answer ## ]]\n",
    "[[ ## reasoning ## ]]",
    "[[ ## answer ## ]]",
    "\n\n[[ ## completed ## ]]",
    "[[ ## ",
    " ## ]]",
    "{question}",
    "{target}",
    "{reasoning}",
    "{answer}",
    "\n\n",
    "        # note: the value you produce must be a single int value",
    "\nIn adhering to this structure, your objective is: \n        ",
    "\n\nRespond with the corresponding output fields, starting with the field `",
    " (must be formatted as a valid Python int)",
    ", then `",
    ", and then ending with the marker for `",
    "[[ ## completed ## ]]",
    "Given the fields `",
    "`, produce the fields `",
    "`.",
)
"""The fixed text of DSPy's chat template, in pieces."""

_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def _byte_characters() -> tuple[str, ...]:
    """One printable character for each byte, as byte-level BPE vocabularies (GPT-2's and all since) write them."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


_BYTE_CHARACTERS: Final = _byte_characters()


def render_chat(
    *, instruction: str, field: str, value: str, reasoning: bool, integer: bool = False
) -> list[dict[str, str]]:
    """The messages that DSPy 3.4's `ChatAdapter` sends for ``<field> -> answer`` without demonstrations.

    The model is trained on this text; a test compares it with the installed DSPy.

    Args:
        instruction: The signature's instruction.
        field: The name of the only input field.
        value: Its value.
        reasoning: Whether a `reasoning` field comes first, as in `dspy.ChainOfThought`.
        integer: Whether the answer is typed ``int``.

    Returns:
        A system and a user message.
    """
    kind, note, hint = (
        (
            "int",
            "        # note: the value you produce must be a single int value",
            " (must be formatted as a valid Python int)",
        )
        if integer
        else ("str", "", "")
    )
    outputs = f"1. `reasoning` (str): \n2. `answer` ({kind}):" if reasoning else f"1. `answer` ({kind}):"
    shape = "[[ ## reasoning ## ]]\n{reasoning}\n\n" if reasoning else ""
    order = "[[ ## reasoning ## ]]`, then `[[ ## answer ## ]]" if reasoning else "[[ ## answer ## ]]"
    system = (
        f"Your input fields are:\n1. `{field}` (str):\nYour output fields are:\n{outputs}\n"
        "All interactions will be structured in the following way, with the appropriate values filled in.\n\n"
        f"[[ ## {field} ## ]]\n{{{field}}}\n\n{shape}[[ ## answer ## ]]\n{{answer}}{note}\n\n[[ ## completed ## ]]\n"
        f"In adhering to this structure, your objective is: \n        {instruction}"
    )
    user = (
        f"[[ ## {field} ## ]]\n{value}\n\nRespond with the corresponding output fields, starting with the field "
        f"`{order}`{hint}, and then ending with the marker for `[[ ## completed ## ]]`."
    )
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


class Tokenizer:
    """Turns text into ids and back without loss.

    Args:
        strings: The multi-character tokens, in the order of their ids. Duplicates and single characters are refused.

    Raises:
        ValueError: A string is shorter than two characters, repeated, or equal to a control token.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """Builds the id tables; see the class for the arguments."""
        taken = set(CONTROL_TOKENS)
        for text in strings:
            if len(text) < 2 or text in taken:
                raise ValueError(f"a vocabulary string must be new and longer than one character, got {text!r}")
            taken.add(text)
        self.strings = tuple(strings)
        self._first_char = len(CONTROL_TOKENS)
        self._first_string = self._first_char + 256
        self._pieces: list[bytes] = [t.encode() for t in CONTROL_TOKENS]
        self._pieces += [bytes([i]) for i in range(256)]
        self._pieces += [text.encode() for text in strings]
        self._ids = {text: self._first_string + i for i, text in enumerate(strings)}
        rests: dict[str, list[str]] = {}
        for text in sorted(strings, key=len, reverse=True):
            rests.setdefault(text[0], []).append(re.escape(text[1:]))
        # Grouped by first character, longest first: the same matches as one flat alternation, several times as fast.
        groups = [f"{re.escape(first)}(?:{'|'.join(group)})" for first, group in rests.items()]
        self._pattern = re.compile("|".join([*groups, r"[\s\S]"]))
        self._cached = lru_cache(maxsize=4096)(self._encode)
        self.pad_id, self.end_id, self._system_id, self._user_id, self._assistant_id = range(len(CONTROL_TOKENS))
        self._role_ids = {
            "system": self._system_id,
            "user": self._user_id,
            "assistant": self._assistant_id,
        }
        self.digit_ids = tuple(self._first_char + ord("0") + i for i in range(10))
        """The ids of the tokens ``0`` to ``9``."""

    def __len__(self) -> int:
        """The number of tokens in the vocabulary."""
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Encodes plain text; control tokens written in the text are plain characters.

        Args:
            text: Any string. Lone surrogates become ``?``.

        Returns:
            The ids, one or more a character of unknown text.
        """
        return list(self._cached(text))

    def _encode(self, text: str) -> tuple[int, ...]:
        out: list[int] = []
        for piece in self._pattern.findall(text):
            known = self._ids.get(piece)
            if known is not None:
                out.append(known)
            elif piece < "\x80":
                out.append(self._first_char + ord(piece))
            else:
                out += [self._first_char + byte for byte in piece.encode("utf-8", errors="replace")]
        return tuple(out)

    def decode(self, ids: Iterable[int]) -> str:
        """Turns ids back into text.

        Args:
            ids: Token ids; control tokens are left out.

        Returns:
            The text. Bytes that are not UTF-8 become U+FFFD.
        """
        raw = b"".join(self._pieces[i] for i in ids if i >= self._first_char)
        return raw.decode("utf-8", errors="replace")

    def piece(self, token: int) -> str:
        """The text of one token as a vocabulary lists it: bytes in the byte-level alphabet, the rest as it is."""
        if self._first_char <= token < self._first_string:
            return _BYTE_CHARACTERS[token - self._first_char]
        return self._pieces[token].decode()

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Encodes a conversation up to the point where the assistant answers.

        Args:
            messages: OpenAI-style messages. ``content`` is a string or a list of ``{"type": "text", "text": ...}``.

        Returns:
            The prompt's ids: a role token before each message, the end token after each assistant message and the
            assistant's role token last.

        Raises:
            ValueError: No message, an unknown role, or content that is not text.
        """
        if not messages:
            raise ValueError("messages must hold at least one message")
        out: list[int] = []
        for position, message in enumerate(messages):
            role = _ROLES.get(str(message.get("role")))
            if role is None:
                raise ValueError(
                    f"messages[{position}].role must be one of {sorted(_ROLES)}, got {message.get('role')!r}"
                )
            out.append(self._role_ids[role])
            out += self.encode(_text_of(message.get("content"), position))
            if role == "assistant":
                out.append(self.end_id)
        out.append(self._assistant_id)
        return out

    def to_json(self) -> dict[str, Any]:
        """The vocabulary as the content of a Hugging Face ``tokenizer.json``.

        Bytes are written in the byte-level alphabet, because `transformers` reads a Qwen2 folder with a byte-level
        tokenizer whatever the file says: a space that the vocabulary called " " would be lost there.
        """
        base = {self.piece(i): i for i in range(self._first_string)}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        added = [
            {
                "id": i,
                "content": self.piece(i),
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": i < self._first_char,
            }
            for i in (*range(self._first_char), *range(self._first_string, len(self)))
        ]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": base,
                "merges": [],
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tokenizer:
        """Reads what `to_json` wrote.

        Args:
            data: The parsed ``tokenizer.json``.

        Returns:
            The tokenizer.

        Raises:
            ValueError: The file describes another kind of tokenizer.
        """
        plain = sorted((t for t in data.get("added_tokens", []) if not t["special"]), key=lambda t: int(t["id"]))
        built = cls([str(t["content"]) for t in plain])
        if built.to_json() != data:
            raise ValueError("not a tokenizer.json written by iapo_dspy.demo")
        return built

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Reads a ``tokenizer.json`` from disk; see `from_json`."""
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")))


def _text_of(content: object, position: int) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
    raise ValueError(f"messages[{position}].content must be text, got {type(content).__name__}")
