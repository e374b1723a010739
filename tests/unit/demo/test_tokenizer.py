from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.demo.model import WEIGHTS
from iapo_dspy.demo.tokenizer import CONTROL_TOKENS, TEMPLATE_STRINGS, Tokenizer, render_chat

TOKENIZER = Tokenizer.load(WEIGHTS / "tokenizer.json")

anything = st.lists(
    st.one_of(st.text(max_size=12), st.sampled_from([*TOKENIZER.strings, *CONTROL_TOKENS, "<0xE2>", "12 + 7"]))
).map("".join)


@given(anything)
@settings(max_examples=200, deadline=None)
def test_any_text_survives_the_round_trip_and_no_control_token_comes_from_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(len(CONTROL_TOKENS) <= i < len(TOKENIZER) for i in ids)


@given(anything)
@settings(max_examples=200, deadline=None)
def test_hugging_face_reads_the_same_file_and_gives_the_same_ids(text: str) -> None:
    import tokenizers

    other = tokenizers.Tokenizer.from_str(json.dumps(TOKENIZER.to_json()))
    for name in CONTROL_TOKENS:  # Hugging Face parses these in text, this tokenizer takes them as plain text
        text = text.replace(name, "")
    assert other.encode(text, add_special_tokens=False).ids == TOKENIZER.encode(text)
    assert other.decode(TOKENIZER.encode(text)) == text


@given(anything)
@settings(max_examples=200, deadline=None)
def test_a_reader_that_brings_its_own_byte_level_rules_gives_the_same_ids(text: str) -> None:
    """`transformers` takes the vocabulary of a Qwen2 folder and puts Qwen2's pre-tokenizer around it."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Other

    data = TOKENIZER.to_json()
    other = Other(models.BPE(vocab=data["model"]["vocab"], merges=[]))
    split = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer, other.decoder = pre_tokenizers.Sequence([split, byte_level]), decoders.ByteLevel()
    for token in sorted(data["added_tokens"], key=lambda t: t["id"]):
        other.add_tokens([AddedToken(token["content"], normalized=False, special=token["special"])])
    for name in CONTROL_TOKENS:
        text = text.replace(name, "")
    assert other.encode(text, add_special_tokens=False).ids == TOKENIZER.encode(text)
    assert other.decode(TOKENIZER.encode(text)) == text


def test_the_longest_string_wins_from_the_left() -> None:
    tokenizer = Tokenizer(["ab", "abc", "bcd"])
    assert [tokenizer.piece(i) for i in tokenizer.encode("abcdxbcd")] == ["abc", "d", "x", "bcd"]


@pytest.mark.parametrize("strings", [["ab", "ab"], ["a"], [""], ["<|end|>"]])
def test_bad_vocabularies_are_refused(strings: list[str]) -> None:
    with pytest.raises(ValueError, match="vocabulary string"):
        Tokenizer(strings)


def test_a_foreign_file_is_refused() -> None:
    data = TOKENIZER.to_json()
    data["normalizer"] = {"type": "Lowercase"}
    with pytest.raises(ValueError, match="not a tokenizer"):
        Tokenizer.from_json(data)


def test_lone_surrogates_do_not_crash() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a?b"


def test_chat_puts_roles_around_messages_and_ends_assistant_turns() -> None:
    ids = TOKENIZER.encode_chat(
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "u"}]},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "v"},
        ]
    )
    assert "".join(TOKENIZER.piece(i) for i in ids) == "<|system|>s<|user|>u<|assistant|>a<|end|><|user|>v<|assistant|>"


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "tool", "content": "x"}], [{"role": "user", "content": None}], [{"role": "user", "content": [{}]}]],
)
def test_messages_that_are_not_text_are_refused(messages: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match="messages"):
        TOKENIZER.encode_chat(messages)


@pytest.mark.parametrize("field", ["question", "target"])
@pytest.mark.parametrize("reasoning", [False, True])
@pytest.mark.parametrize("integer", [False, True])
def test_the_training_prompts_are_those_of_the_installed_dspy(field: str, reasoning: bool, integer: bool) -> None:
    import dspy

    signature = dspy.Signature(f"{field} -> answer" + (": int" if integer else "")).with_instructions("Answer at once.")
    if reasoning:
        signature = dspy.ChainOfThought(signature).predict.signature
    ours = render_chat(instruction="Answer at once.", field=field, value="123", reasoning=reasoning, integer=integer)
    if not dspy.__version__.startswith("3.4."):
        pytest.skip("the model was trained on the template of DSPy 3.4")
    assert dspy.ChatAdapter().format(signature, [], {field: "123"}) == ours


def test_a_prompt_is_short_because_the_template_is_in_the_vocabulary() -> None:
    assert set(TEMPLATE_STRINGS) <= set(TOKENIZER.strings)
    prompt = render_chat(instruction="Answer at once.", field="question", value="What is 123 + 456?", reasoning=False)
    assert 30 <= len(TOKENIZER.encode_chat(prompt)) <= 60
