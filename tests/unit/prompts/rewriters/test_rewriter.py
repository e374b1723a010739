"""Rewriters as a user makes them, and BPO's published request and decodings."""

from __future__ import annotations

from collections import Counter
from typing import Any

import dspy
import pytest

from iapo_dspy import Decoding, Objective, Rewriter
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.prompts.rewriters.rewriter import fitted_rewriters
from iapo_dspy.prompts.rewriters.rewriter_names import RewriterName, find_rewriter, named_rewriters
from iapo_dspy.prompts.rewriters.rewriting import chosen_of, law_of
from iapo_dspy.rewriters import BPO_AGGRESSIVE, BPO_STABLE, bpo

LM = dspy.LM("openai/writer", api_key="sk-secret-of-mine", api_base="http://nowhere", max_tokens=50)


def longer(query: dspy.Example, text: str) -> float:
    return float(len(text) - len(query.question))


# -- BPO


def test_bpo_asks_as_its_model_was_taught() -> None:
    text = bpo(dspy.LM("text-completion-openai/bpo", api_key="k")).messages("Why?")
    assert bpo(dspy.LM("openai/bpo", model_type="text", api_key="k")).messages("Why?") == text
    assert text == [
        {
            "role": "user",
            "content": "[INST] You are an expert prompt engineer. Please help me improve this prompt to get a more "
            "helpful and harmless response:\nWhy? [/INST]",
        }
    ]
    (chat,) = bpo(LM).messages("Why?")
    assert f"[INST] {chat['content']} [/INST]" == text[0]["content"]  # a chat server writes the marks by itself


def test_bpo_has_a_stable_and_an_aggressive_decoding() -> None:
    assert BPO_STABLE == Decoding(temperature=0.6, top_p=0.9, max_tokens=1024)
    assert BPO_AGGRESSIVE == Decoding(temperature=0.9, top_p=0.9, max_tokens=1024)
    stable, aggressive, own = bpo(LM), bpo(LM, "aggressive"), bpo(LM, Decoding(temperature=0.1))
    assert [r.name for r in (stable, aggressive, own)] == ["bpo, stable", "bpo, aggressive", "bpo, own decoding"]
    assert stable.params["temperature"] == 0.6 and aggressive.params["temperature"] == 0.9
    assert stable.read("  One.\nTwo. [PROTECT]") == "One.\nTwo. [PROTECT]"
    assert aggressive.read("  One. [PROTECT]\nTwo.") == "One."
    with pytest.raises(ConfigurationError, match="stable"):
        bpo(LM, "wild")  # type: ignore[arg-type]


# -- arguments


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"template": "no place"}, "in the place"),
        ({"decoding": {"temperature": 1}}, "Decoding"),
        ({"field": ""}, "input field"),
        ({"name": " "}, "short text"),
        ({"until": "\n"}, "tuple"),
        ({"k": 0}, "whole number"),
        ({"k": 2}, "need a reward"),
        ({"reward": longer}, "several rewrites"),
        ({"k": 2, "reward": 1}, "give a function"),
        ({"k": 2, "reward": lambda text: 1.0}, "reward\\(query, text\\)"),
        ({"k": 2, "reward": longer, "tilt": 0}, "tilt"),
        ({"k": 2, "reward": longer, "choose": "worst"}, "draw"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Rewriter(LM, **settings)


def test_an_lm_is_needed_and_no_secret_is_shown() -> None:
    with pytest.raises(ConfigurationError, match=r"give a dspy\.LM"):
        Rewriter("openai/gpt-4o")
    assert "sk-secret" not in repr(Rewriter(LM))


def test_a_field_is_found_where_one_input_is_text() -> None:
    examples = [{"question": "a", "year": 1, "context": "c"}, {"question": "b", "year": 2, "context": "d"}]
    (one,) = fitted_rewriters([Rewriter(LM)], ["question", "year"], examples)
    assert one.field == "question"
    (named,) = fitted_rewriters([Rewriter(LM, field="context")], ["question", "context"], examples)
    assert named.field == "context"
    for rewriter, inputs, words in (
        (Rewriter(LM), ["question", "context"], "does not say"),
        (Rewriter(LM), ["year"], "does not say"),
        (Rewriter(LM, field="year"), ["question", "year"], "not text"),
        (Rewriter(LM, field="answer"), ["question"], "not an input"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            fitted_rewriters([rewriter], inputs, examples)


def test_what_decides_the_texts_tells_rewriters_apart_and_keys_and_addresses_do_not() -> None:
    same = Rewriter(dspy.LM("openai/writer", api_key="another", api_base="http://elsewhere", max_tokens=50), name="x")
    assert same.digest == Rewriter(LM).digest
    several: dict[str, Any] = {"k": 2, "reward": longer}
    others = [
        Rewriter(LM, template="{}?"),
        Rewriter(LM, decoding=Decoding(temperature=0.5)),
        Rewriter(LM, field="context"),
        Rewriter(LM, until=("\n",)),
        Rewriter(LM, **several),
        Rewriter(LM, **several, tilt=0.5),
        Rewriter(LM, **several, choose="best"),
        Rewriter(LM, **{**several, "k": 3}),
    ]
    assert len({r.digest for r in (same, *others)}) == 9


# -- rewards and choices


def test_a_reward_is_a_function_or_an_objective_and_its_failure_has_no_worth() -> None:
    query = {"question": "abc"}
    assert Rewriter(LM, field="question", k=2, reward=longer).worth(query, "abcde") == 2.0
    brief = Objective("brief", lambda example, prediction: len(prediction.question) < 5)
    assert Rewriter(LM, field="question", k=2, reward=brief).worth(query, "abcde") == 0.0
    assert Rewriter(LM, field="question", k=2, reward=brief).worth(query, "abc") == 1.0
    for broken in (lambda q, t: q.answer, lambda q, t: float("nan"), lambda q, t: "good"):
        assert Rewriter(LM, field="question", k=2, reward=broken).worth(query, "abc") is None


def test_rewrites_are_drawn_by_the_tilted_law_and_the_best_is_the_first_of_the_largest() -> None:
    drawn = Rewriter(LM, k=3, reward=longer, tilt=1.0)
    rewards = [0.0, 1.0, 2.0]
    law = law_of(drawn, rewards)
    counts = Counter(chosen_of(drawn, [f"{i} a", f"{i} b", f"{i} c"], rewards) for i in range(4000))
    assert [counts[i] / 4000 for i in range(3)] == pytest.approx(law.tolist(), abs=0.03)
    assert chosen_of(drawn, ["x", "y", "z"], rewards) == chosen_of(drawn, ["x", "y", "z"], rewards)
    best = Rewriter(LM, k=3, reward=longer, choose="best")
    assert chosen_of(best, ["x", "y", "z"], [1.0, 2.0, 2.0]) == 1
    assert law_of(best, [1.0, 2.0, 2.0]).tolist() == [0, 0.5, 0.5]


# -- names


def test_names_have_everything_but_the_lm_and_the_reward() -> None:
    two = fitted_rewriters([bpo(LM), bpo(LM, "aggressive"), Rewriter(LM, k=2, reward=longer)], ["q"], [{"q": "a"}])
    names = named_rewriters([*two, Rewriter(LM, field="q", template="{}!")])
    assert [name.words for name in names] == ["bpo, stable", "bpo, aggressive", "own", "own (2)"]
    for name in names:
        data = name.to_json()
        assert RewriterName.from_json(data) == name
        assert "sk-secret" not in str(data) and "nowhere" not in str(data)
    assert names[2].reward == "longer" and "(openai/writer)" in str(names[0])
    made = find_rewriter(names[1], [], [LM])
    assert made is not None and made.digest == two[1].digest
    other = dspy.LM("openai/other", api_key="k")
    assert find_rewriter(names[1], [], [other]) is None
    assert find_rewriter(names[1], [], [{"rewriter": LM}]) is not None
    assert find_rewriter(names[2], [], [LM]) is None  # a reward is code of the user's
    again = [bpo(LM), bpo(LM, "aggressive"), Rewriter(LM, k=2, reward=longer)]
    found = find_rewriter(names[2], again, [])
    assert found is not None and found.reward is longer and found.field == "q"
    for damaged in ({}, {**names[0].to_json(), "template": 3}, {**names[0].to_json(), "words": ""}):
        with pytest.raises((KeyError, TypeError)):
            RewriterName.from_json(damaged)
