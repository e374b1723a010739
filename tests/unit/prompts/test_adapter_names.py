"""Adapters have names by which tables show them and saved programs find or make them again."""

from __future__ import annotations

import json
from typing import Any

import dspy
import pytest
from dspy.adapters.base import Adapter

from iapo_dspy import Decoding
from iapo_dspy.adapters import PlainTextAdapter
from iapo_dspy.prompts.adapter_names import AdapterName, adapted, find_adapter, read_adapters, using
from iapo_dspy.prompts.combinations import prompt_set, student_prompt
from iapo_dspy.prompts.prompt import PromptState, prompt_states, shared_parts
from iapo_dspy.prompts.student import Student
from tests.support.worlds import TwoSteps, student

PLAIN = (Decoding(),)


class Mine(Adapter):
    """An adapter of the user's own."""

    def __init__(self, word: str = "") -> None:
        super().__init__()
        self.word = word


def names(*adapters: Adapter) -> list[AdapterName]:
    return [one.name for one in adapted(adapters) if one.name is not None]


KNOWN: list[Any] = [
    dspy.ChatAdapter(),
    dspy.ChatAdapter(use_json_adapter_fallback=False),
    dspy.JSONAdapter(parallel_tool_calls=True),
    dspy.XMLAdapter(use_native_function_calling=True),
    PlainTextAdapter(),
    PlainTextAdapter(pattern=r"answer: (\w+)"),
    PlainTextAdapter(read="label", constrain="grammar"),
]


@pytest.mark.parametrize("adapter", KNOWN, ids=[name.words for name in names(*KNOWN)])
def test_known_adapters_are_made_again_from_json(adapter: Any) -> None:
    (name,) = names(adapter)
    again = AdapterName.from_json(json.loads(json.dumps(name.to_json())))
    made = find_adapter((), again)
    assert again == name and type(made) is type(adapter)
    assert vars(made) == vars(adapter)


def test_words_name_what_tells_adapters_apart() -> None:
    assert [n.words for n in names(*KNOWN)] == [
        "chat",
        "chat use_json_adapter_fallback=False",
        "json",
        "xml",
        "plain text",
        r"plain text pattern='answer: (\\w+)'",
        "plain text read='label' constrain='grammar'",
    ]
    assert [n.words for n in names(Mine("a"), dspy.ChatAdapter(), Mine("b"))] == ["Mine", "chat", "Mine (2)"]
    assert [n.words for n in names(dspy.JSONAdapter())] == [""]
    assert str(names(dspy.ChatAdapter(use_json_adapter_fallback=False))[0]) == (
        "ChatAdapter(use_json_adapter_fallback=False)"
    )


class Heard(dspy.JSONAdapter):
    """A subclass may do anything."""


def changed() -> Any:
    adapter: Any = dspy.ChatAdapter()
    adapter.mine = 1
    return adapter


@pytest.mark.parametrize(
    "adapter",
    [
        Mine(),
        Heard(),
        dspy.TwoStepAdapter(dspy.LM("openai/m", api_key="sk-secret")),
        dspy.ChatAdapter(native_response_types=[dspy.Reasoning]),
        changed(),
    ],
    ids=["own", "subclass", "with an LM", "types", "changed"],
)
def test_others_are_found_by_their_class_only_and_never_made(adapter: Any) -> None:
    (name,) = names(adapter)
    assert name.settings is None and "secret" not in json.dumps(name.to_json())
    assert find_adapter((), name) is None
    assert find_adapter((dspy.JSONAdapter(), adapter), name) is adapter


def test_an_adapter_that_is_given_goes_before_one_that_is_made() -> None:
    given = [dspy.JSONAdapter(use_native_function_calling=False), dspy.JSONAdapter(callbacks=[object()])]
    assert find_adapter(given, names(dspy.JSONAdapter())[0]) is given[1]
    first, second = Mine("a"), Mine("b")
    assert find_adapter((dspy.ChatAdapter(), first, second), names(first, second)[1]) is second
    assert find_adapter((first,), names(first, second)[1]) is None


def test_reading_leaves_the_users_order() -> None:
    assert read_adapters(None) == ()
    assert read_adapters(iter(KNOWN)) == tuple(KNOWN)


# -- prompts


def test_every_candidate_is_combined_with_every_adapter_fastest() -> None:
    chat, json_ = dspy.ChatAdapter(), dspy.JSONAdapter()
    decodings = (Decoding(temperature=0.5), Decoding(temperature=1.0))
    prompts = prompt_set(Student(student()), ["a", "b"], decodings, 64, (), (chat, json_))
    assert [p.adapter for p in prompts] == [chat, json_] * 4
    assert [p.label for p in prompts][:3] == [
        "a [temperature=0.5, chat]",
        "a [temperature=0.5, json]",
        "a [temperature=1.0, chat]",
    ]
    states = [PromptState.from_dict(json.loads(json.dumps(s.to_dict()))) for s in prompt_states(prompts)]
    assert [s.adapter and s.adapter.kind for s in states] == ["ChatAdapter", "JSONAdapter"] * 4
    parts = shared_parts(states)
    assert parts is not None and parts.tolist() == [[i, j, k] for i in range(2) for j in range(2) for k in range(2)]


def test_combinations_have_adapters_among_their_configurations() -> None:
    chat, json_ = dspy.ChatAdapter(), dspy.JSONAdapter()
    lists = {"plan": ["a", "b"], "ask": ["c", "d"]}
    prompts = prompt_set(Student(TwoSteps()), lists, PLAIN, 2, (), (chat, json_))
    assert prompts.shape == (2, 2, 2) and len(prompts) == 8
    assert [p.adapter for p in prompts] == [chat, json_] * 4
    assert {p.adapter for p in prompts.shown} == {chat, json_}


def test_the_student_as_it_is_has_the_first_adapter() -> None:
    own = Student(student())
    chat, json_ = dspy.ChatAdapter(), dspy.JSONAdapter()
    for adapters in ((chat, json_), (json_, chat)):
        prompts = prompt_set(own, ["a", student()], PLAIN, 64, (), adapters)
        assert student_prompt(prompts, own, PLAIN, (), adapters)[0] == 2
    place, as_it_is = student_prompt(
        prompt_set(own, ["a"], PLAIN, 64, (), (json_, chat)), own, PLAIN, (), (json_, chat)
    )
    assert place is None and as_it_is.adapter is json_


def test_a_program_without_an_adapter_of_its_own_stays_as_it_is() -> None:
    program = student()
    assert using(program, None) is program
    twin = using(program, dspy.JSONAdapter())
    assert not program.callbacks and len(twin.callbacks) == 1
