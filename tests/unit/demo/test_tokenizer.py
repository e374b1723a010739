from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.demo.model import WEIGHTS
from iapo_dspy.demo.tokenizer import CONTROL_TOKENS, Tokenizer
from tests.support.demo_chat import render_chat

TOKENIZER = Tokenizer.load(WEIGHTS / "tokenizer.json")
DATA = json.loads((WEIGHTS / "tokenizer.json").read_text(encoding="utf-8"))
STRINGS = [token["content"] for token in DATA["added_tokens"] if not token["special"]]

anything = st.lists(
    st.one_of(st.text(max_size=12), st.sampled_from([*STRINGS, *CONTROL_TOKENS, "<0xE2>", "12 + 7"]))
).map("".join)


@given(anything)
@settings(max_examples=200, deadline=None)
def test_any_text_survives_the_round_trip_and_no_control_token_comes_from_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(len(CONTROL_TOKENS) <= i < len(TOKENIZER) for i in ids)


def byte_level_reader() -> tokenizers.Tokenizer:
    """Read the vocabulary as `transformers` does: of a Qwen2 folder it takes the tokens, and its own pre-tokenizer."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

    reader = tokenizers.Tokenizer(models.BPE(vocab=DATA["model"]["vocab"], merges=[]))
    split = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    reader.pre_tokenizer, reader.decoder = pre_tokenizers.Sequence([split, byte_level]), decoders.ByteLevel()
    tokens = sorted(DATA["added_tokens"], key=lambda t: t["id"])
    reader.add_tokens([AddedToken(t["content"], normalized=False, special=t["special"]) for t in tokens])
    return reader


READER = byte_level_reader()


@given(anything)
@settings(max_examples=200, deadline=None)
def test_a_reader_that_brings_its_own_byte_level_rules_gives_the_same_ids(text: str) -> None:
    for name in CONTROL_TOKENS:  # there they would be parsed in text
        text = text.replace(name, "")
    assert READER.encode(text, add_special_tokens=False).ids == TOKENIZER.encode(text)
    assert READER.decode(TOKENIZER.encode(text)) == text


def test_the_longest_string_wins_from_the_left_and_digits_are_single_tokens() -> None:
    assert _pieces(TOKENIZER.encode("123 + 45")) == ["1", "2", "3", " + ", "4", "5"]
    longest = max((s for s in STRINGS if any(s != t and s.startswith(t) for t in STRINGS)), key=len)
    assert _pieces(TOKENIZER.encode(longest)) == [longest]


def test_the_shipped_vocabulary_has_these_ids() -> None:
    assert len(TOKENIZER) == len(CONTROL_TOKENS) + 256 + len(STRINGS)
    assert TOKENIZER.encode("a~") == [len(CONTROL_TOKENS) + ord("a"), len(CONTROL_TOKENS) + ord("~")]
    assert TOKENIZER.encode(STRINGS[0]) == [len(CONTROL_TOKENS) + 256]


def test_a_foreign_vocabulary_is_refused() -> None:
    from tokenizers import models

    foreign = tokenizers.Tokenizer(models.WordLevel({"hello": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(ValueError, match="control tokens"):
        Tokenizer(foreign)


def test_lone_surrogates_do_not_crash() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a?b"


def test_bytes_that_are_not_a_text_are_replaced() -> None:
    assert TOKENIZER.decode([len(CONTROL_TOKENS) + 0xE2, len(CONTROL_TOKENS) + ord("x")]) == "\ufffdx"


def test_chat_puts_roles_around_messages_and_ends_assistant_turns() -> None:
    ids = TOKENIZER.encode_chat(
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "u"}]},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "v"},
        ]
    )
    assert "".join(map(str, _pieces(ids))) == "<|system|>s<|user|>u<|assistant|>a<|end|><|user|>v<|assistant|>"


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "tool", "content": "x"}], [{"role": "user", "content": None}], [{"role": "user", "content": [{}]}]],
)
def test_messages_that_are_not_text_are_refused(messages: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match="messages"):
        TOKENIZER.encode_chat(messages)


def test_a_prompt_is_short_because_the_template_is_in_the_vocabulary() -> None:
    prompt = render_chat(instruction="Answer at once.", field="question", value="What is 123 + 456?", reasoning=False)
    assert 30 <= len(TOKENIZER.encode_chat(prompt)) <= 60


def _pieces(ids: list[int]) -> list[str | None]:
    return [TOKENIZER.core.id_to_token(i) for i in ids]
