"""A server that counts one choice of n is found out, and no tokenizer is mistaken for one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from iapo_dspy.sampling.lm.params import import_litellm
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.sampling.spending.usage_check import FirstChoiceCheck, check_usage, pieces
from tests.support.loopback import chat

WORDS = {
    "english": "the quick brown fox jumps over a lazy dog while engineers discuss their inference servers".split(),
    "german": "die Donaudampfschifffahrt beschließt außerordentliche Maßnahmen internationaler Zusammenarbeit".split(),
    "russian": "быстрая лисица прыгает через ленивую собаку пока инженеры обсуждают производительность".split(),
    "arabic": "الثعلب البني السريع يقفز فوق الكلب الكسول بينما يناقش المهندسون".split(),
    "hindi": "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है".split(),
    "chinese": list("敏捷的棕色狐狸跳过了懒狗而工程师们正在讨论服务器的吞吐量"),
    "digits": [str(random.Random(i).randrange(10 ** (1 + i % 6))) for i in range(30)],
    "code": "def f(x): return x + 1 ; for i in range(10): print(i, end='') ; if a == b: e[f] = {g: h}".split(),
}


def litellms(text: str) -> int:
    return int(import_litellm().token_counter(model="gpt-4", text=text)) + 1


TOKENIZERS: dict[str, Callable[[str], int]] = {
    "litellm": litellms,
    "bytes": lambda text: len(text.encode()) + 1,
    "characters": lambda text: len(text) + 1,
    "four bytes": lambda text: len(text.encode()) // 4 + 1,
}


def draw(rng: random.Random, language: str, longest: int) -> str:
    name = rng.choice(list(WORDS)) if language == "mixed" else language
    space = "" if name == "chinese" else " "
    return chat(answer=space.join(rng.choice(WORDS[name]) for _ in range(rng.randint(1, longest))))


def check(checker: FirstChoiceCheck, texts: Sequence[str], reported: int, limit: int | None = None) -> Usage:
    return check_usage(
        model="m",
        messages=[{"role": "user", "content": "q"}],
        texts=texts,
        truncated=0,
        limit=limit,
        reported=(5, reported),
        first_choice=checker,
    )


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("language", [*WORDS, "mixed"])
def test_no_language_and_no_tokenizer_is_mistaken(language: str, tokenizer: str) -> None:
    count = TOKENIZERS[tokenizer]
    rng = random.Random(f"{language}/{tokenizer}")
    for n in (1, 2, 3, 4, 8, 32):
        for longest in (3, 40):
            checker = FirstChoiceCheck()
            for _ in range(10):
                texts = [draw(rng, language, longest) for _ in range(n)]
                truth = sum(count(t) for t in texts)
                assert check(checker, texts, truth) == Usage(prompt_tokens=5, completion_tokens=truth)


@pytest.mark.parametrize("n", [4, 8, 32])
@pytest.mark.parametrize("language", ["english", "chinese", "digits", "code"])
def test_a_server_that_counts_the_first_choice_is_found_out(language: str, n: int) -> None:
    rng = random.Random(f"{language}/{n}")
    checker = FirstChoiceCheck()
    counted = truth = 0.0
    for i in range(40):
        texts = [draw(rng, language, 20) for _ in range(n)]
        usage = check(checker, texts, litellms(texts[0]))
        if i >= 15:
            assert usage.recounted
            counted += usage.completion_tokens
            truth += sum(litellms(t) for t in texts)
    assert counted == pytest.approx(truth, rel=0.1)


def test_eight_choices_of_one_length_are_enough_without_anything_else() -> None:
    checker = FirstChoiceCheck()
    text = chat(reasoning="three plus five is eight and nothing is carried over to the tens", answer="58")
    usage = check(checker, [text] * 8, litellms(text))
    assert usage == Usage(prompt_tokens=5, completion_tokens=8 * litellms(text), recounted=True)
    assert checker.first_only
    capped = check(checker, [text] * 8, litellms(text), limit=litellms(text) - 4)
    assert capped.completion_tokens == 8 * (litellms(text) - 4)


def test_once_found_out_it_stays_so_and_short_answers_are_scaled_too() -> None:
    """Seen on llama.cpp: a vocabulary with whole phrases, then many requests of one prompt at one n."""
    checker = FirstChoiceCheck()
    long, short = chat(reasoning="8 + 7 + 0 = 15; 5 + 6 + 1 = 12; 3 + 4 + 1 = 08", answer="825"), chat(answer="825")
    assert check(checker, [long] * 16, 33).completion_tokens == 16 * 33
    for _ in range(100):
        assert check(checker, [short] * 16, 6).completion_tokens == 16 * 6
        assert check(checker, [short] * 8, 6).completion_tokens == 8 * 6


def test_hidden_reasoning_is_not_a_miscount_and_a_first_choice_without_text_is_not_evidence() -> None:
    checker = FirstChoiceCheck()
    for _ in range(20):
        texts = [chat(answer="yes")] * 8
        assert not check(checker, texts, 9_000).recounted
    assert not checker.first_only
    checker = FirstChoiceCheck()
    text = chat(answer="a dozen words that say very little about anything at all, I fear")
    check(checker, [text] * 32, litellms(text))
    usage = check(checker, ["", text, text], 3)
    assert usage.recounted and usage.completion_tokens == pytest.approx(2 * litellms(text), rel=0.25)


def test_pieces_are_about_tokens() -> None:
    assert pieces(None) == pieces("") == 0
    assert pieces("[[ ## answer ## ]]") == 6
    assert pieces("1234") == 3
    assert pieces("狐狸跳") == 4


def test_long_answers_asked_in_twos_and_short_ones_in_eights_are_not_a_miscount() -> None:
    """A tokenizer with one token for all boilerplate makes few tokens of short answers and many of long sums."""
    short, long = "[[ ## answer ## ]]\n123\n\n[[ ## completed ## ]]", "carry one, then two, and so on " * 3
    checker = FirstChoiceCheck()
    for _ in range(40):
        for text, tokens, n in ((long, 60, 2), (short, 6, 8)):
            usage = check(checker, [text] * n, tokens * n)
            assert usage.completion_tokens == tokens * n and not usage.recounted
    assert not checker.first_only


@pytest.mark.parametrize(
    ("reported", "texts", "truncated", "recounted"),
    [
        ((10, 5), ["a", "b"], 0, False),
        ((10, 1), ["a", "b"], 0, True),
        ((10, 1), ["a", None], 0, False),
        ((None, None), ["a", "b"], 0, True),
        ((0, 5), ["a"], 0, True),
        ((10, 9), ["a", "b"], 1, True),  # cut off at 10 tokens, so there must be 10
        ((10, 12), ["a", "b"], 1, False),
    ],
)
def test_usage_is_checked(reported: Any, texts: Any, truncated: int, recounted: bool) -> None:
    usage = check_usage(
        model="openai/x",
        messages=[{"role": "user", "content": "hi"}],
        texts=texts,
        truncated=truncated,
        limit=10,
        reported=reported,
    )
    assert usage.recounted == recounted
    assert usage.prompt_tokens > 0 and usage.completion_tokens >= len([t for t in texts if t])
