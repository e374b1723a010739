"""What the plain-text adapter writes and reads, and what it refuses."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from typing import Any, Literal

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from pydantic import BaseModel

from iapo_dspy import PlainTextAdapter
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.adapters.constrained import Constrain
from iapo_dspy.sampling.adapters.plain_text import Read
from iapo_dspy.sampling.ledger.digests import digest
from iapo_dspy.sampling.rollouts.prepare import format_once, formats_and_parses_only

Mood = Literal["positive", "negative"]


class Side(enum.Enum):
    LEFT = "on the left"
    RIGHT = "on the right"


class Point(BaseModel):
    x: int


def task(answer: Any, instructions: str = "Judge it.") -> Any:
    return dspy.Signature({"text": (str, dspy.InputField()), "label": (answer, dspy.OutputField())}, instructions)


def reasoned(answer: Any, instructions: str = "Judge it.") -> Any:
    return dspy.ChainOfThought(task(answer, instructions)).predict.signature


def read(signature: Any, text: str, adapter: PlainTextAdapter | None = None) -> Any:
    return (adapter or PlainTextAdapter()).parse(signature, text)["label"]


def said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


class TestMessages:
    def test_the_bare_input_and_nothing_about_a_format(self) -> None:
        messages = PlainTextAdapter().format(task(str, "Name the capital."), [], {"text": "France"})
        assert messages == [said("system", "Name the capital."), said("user", "France")]

    def test_demonstrations_are_turns_with_the_bare_answer(self) -> None:
        demos = [dspy.Example(text="great", label="positive"), {"text": "dull", "label": "negative"}]
        messages = PlainTextAdapter().format(task(Mood, "Positive or negative?"), demos, {"text": "fine"})
        assert messages == [
            said("system", "Positive or negative?"),
            said("user", "great"),
            said("assistant", "positive"),
            said("user", "dull"),
            said("assistant", "negative"),
            said("user", "fine"),
        ]

    @pytest.mark.parametrize(
        ("signature", "line"),
        [
            (task(Mood), "Answer with one of: positive, negative."),
            (task(Mood, "Say positive or not."), "Answer with one of: positive, negative."),
            (task(Mood, "Say positively or negatively."), "Answer with one of: positive, negative."),
            (task(bool), "Answer with one of: True, False."),
            (task(Side), "Answer with one of: on the left, on the right."),
            (
                reasoned(Mood),
                "Think step by step first. Then write the answer on a last line of its own: "
                "one of: positive, negative.",
            ),
            (reasoned(str), "Think step by step first. Then write the answer on a last line of its own."),
        ],
    )
    def test_a_line_on_the_answer_where_the_instructions_do_not_say(self, signature: Any, line: str) -> None:
        system = PlainTextAdapter().format(signature, [], {"text": "x"})[0]["content"]
        assert system == f"{signature.instructions}\n{line}"

    @pytest.mark.parametrize(
        "signature",
        [task(Mood, "NEGATIVE or Positive?"), task(bool, "Is it so? Yes or no."), task(int), task(float), task(str)],
    )
    def test_no_line_where_they_do(self, signature: Any) -> None:
        assert PlainTextAdapter().format(signature, [], {"text": "x"})[0]["content"] == signature.instructions

    def test_a_structure_is_told_by_its_schema(self) -> None:
        system = PlainTextAdapter().format(task(list[int]), [], {"text": "x"})[0]["content"]
        assert system == 'Judge it.\nAnswer with JSON of this schema: {"items": {"type": "integer"}, "type": "array"}.'

    def test_several_inputs_are_named_lines(self) -> None:
        signature = dspy.Signature("question, context: list[str], hint -> answer", "Go.")
        inputs = {"question": "who?", "context": ["a", "b"], "hint": None}
        assert PlainTextAdapter().format(signature, [], inputs)[1:] == [
            said("user", 'question: who?\ncontext: ["a", "b"]')
        ]

    def test_an_empty_input_is_still_a_message(self) -> None:
        assert PlainTextAdapter().format(task(str), [], {"text": " "})[1:] == [said("user", "text:")]

    def test_reasoning_stands_above_the_answer(self) -> None:
        demos = [{"text": "1 + 1", "reasoning": "one and one", "label": "2"}]
        messages = PlainTextAdapter().format(reasoned(str), demos, {"text": "2 + 2"})
        assert messages[1:] == [said("user", "1 + 1"), said("assistant", "one and one\n2"), said("user", "2 + 2")]

    def test_incomplete_demonstrations(self) -> None:
        signature = dspy.Signature("a, b -> label", "Go.")
        demos: list[dict[str, Any]] = [
            {"a": "1", "b": "2", "label": "3"},
            {"a": "1", "b": "2"},  # there is nothing to show
            {"label": "3"},
            {"a": "4", "label": "5"},
            {"b": "6", "label": None},
        ]
        assert PlainTextAdapter().format_demos(signature, demos) == [
            said("user", "a: 4"),
            said("assistant", "5"),
            said("user", "a: 1\nb: 2"),
            said("assistant", "3"),
        ]
        bare = [{"text": "x", "label": "y"}]  # a labelled example has no reasoning
        assert PlainTextAdapter().format_demos(reasoned(str), bare) == [said("user", "x"), said("assistant", "y")]

    def test_history_is_turns_too(self) -> None:
        signature = dspy.Signature("history: dspy.History, text -> label", "Go.")
        history = dspy.History(messages=[{"text": "hello", "label": "hi"}])
        demos = [{"text": "bye", "label": "see you"}]
        assert PlainTextAdapter().format(signature, demos, {"history": history, "text": "again"}) == [
            said("system", "Go."),
            said("user", "bye"),
            said("assistant", "see you"),
            said("user", "hello"),
            said("assistant", "hi"),
            said("user", "again"),
        ]

    def test_images_are_parts_of_the_message(self) -> None:
        signature = dspy.Signature("picture: dspy.Image, question -> label", "Go.")
        inputs = {"picture": dspy.Image("https://host/x.png"), "question": "what?"}
        parts = PlainTextAdapter().format(signature, [], inputs)[1]["content"]
        assert parts == [
            {"type": "text", "text": "picture: "},
            {"type": "image_url", "image_url": {"url": "https://host/x.png"}},
            {"type": "text", "text": "\nquestion: what?"},
        ]

    def test_values_are_shown_as_the_model_shall_write_them(self) -> None:
        adapter = PlainTextAdapter()
        for answer, value, text in [(Side, Side.LEFT, "on the left"), (bool, True, "True"), (list[int], [1], "[1]")]:
            assert adapter.format_demos(task(answer), [{"text": "x", "label": value}])[1]["content"] == text


class TestLabels:
    @pytest.mark.parametrize(
        "text",
        [
            "positive",
            "  Positive.\n",
            "POSITIVE!",
            "**Positive**",
            "**Positive.**",
            "`positive`",
            '"positive"',
            "“Positive”",
            "<positive>",
            "<label>positive</label>",
            "Answer: positive",
            "**Answer:** Positive",
            "**Answer**: **Positive**",
            "The answer is positive.",
            "Label: positive",
            "label = positive",
            "Answer:\n\npositive",
            "I would say that it is positive",
            '{"label": "positive"}',
            "positive\n\nAnother one: awful.\nnegative",  # the model writes on, as a base model does
            "The answer is positive. It is not negative.",
            "- positive",
        ],
    )
    def test_readable(self, text: str) -> None:
        assert read(task(Mood), text) == "positive"

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("positive or negative", "More than one label in 'positive or negative': 'positive', 'negative'."),
            ("The answer is positive or negative.", "More than one label"),
            ("Hard to say.", "No label in 'Hard to say.'."),
            ("positively", "No label"),
            ("posi", "No label"),
            ("It is not positive.", "'It is not positive.' says what the label is not."),
            ("It isn't really positive", "says what the label is not"),
            ("non-positive", "says what the label is not"),
            ("", "No label in ''."),
            (" \n ", "No label"),
        ],
    )
    def test_unreadable(self, text: str, reason: str) -> None:
        with pytest.raises(AdapterParseError) as raised:
            read(task(Mood), text)
        assert reason in str(raised.value).splitlines()[0]
        assert raised.value.adapter_name == "PlainTextAdapter" and raised.value.lm_response == text

    def test_the_longest_label_counts(self) -> None:
        kinds = task(Literal["positive", "very positive", "not_entailed"])
        assert read(kinds, "It is very positive.") == "very positive"
        assert read(kinds, "This is not entailed") == "not_entailed"

    def test_labels_that_differ_in_case_only_are_told_apart(self) -> None:
        kinds = task(Literal["US", "us"])
        assert read(kinds, "us") == "us" and read(kinds, "It is US.") == "US"
        with pytest.raises(AdapterParseError):
            read(kinds, "Us")

    @pytest.mark.parametrize(
        ("text", "letter"),
        [("b", "B"), ("(A)", "A"), ("A) Paris", "A"), ("A good choice is B.", "B"), ("A is right", "A"), ("C. x", "C")],
    )
    def test_letters(self, text: str, letter: str) -> None:
        assert read(task(Literal["A", "B", "C"]), text) == letter

    @pytest.mark.parametrize("text", ["A good film", "It is a film", "A or B"])
    def test_words_are_not_letters(self, text: str) -> None:
        with pytest.raises(AdapterParseError):
            read(task(Literal["A", "B", "C"]), text)

    def test_digits_of_a_number_are_no_labels(self) -> None:
        stars = task(Literal[1, 2, 3])
        assert read(stars, "2 stars.") == 2
        for text in ("1.5", "12", "1,000", "-1"):
            with pytest.raises(AdapterParseError):
                read(stars, text)

    def test_enums_and_booleans(self) -> None:
        for text in ("on the left", "LEFT", "It is on the left.", "left"):
            assert read(task(Side), text) is Side.LEFT
        assert read(task(bool), "Yes.") is True and read(task(bool), "false") is False
        assert read(task(bool), "no, it is false") is False
        with pytest.raises(AdapterParseError):
            read(task(bool), "no, it is true")

    def test_optional_fields_have_labels_too(self) -> None:
        assert read(task(Mood | None), "Positive.") == "positive"

    @pytest.mark.parametrize(
        ("text", "answer", "reasoning"),
        [
            ("Not negative at all.\npositive", "positive", "Not negative at all."),
            ("positive words,\nnegative ones win\n\n**Negative**", "negative", "positive words,\nnegative ones win"),
            ("Some say negative. I say positive.", "positive", "Some say negative. I say positive."),
            (
                "The answer is positive. Its end is negative.",
                "positive",
                "The answer is positive. Its end is negative.",
            ),
            ("negative", "negative", "negative"),
        ],
    )
    def test_after_reasoning_the_last_one_counts(self, text: str, answer: str, reasoning: str) -> None:
        fields = PlainTextAdapter().parse(reasoned(Mood), text)
        assert fields == {"reasoning": dspy.Reasoning(content=reasoning), "label": answer}


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("42", "42"),
            ("= 42.", "42"),
            ("1,234", "1234"),
            ("$1,234.50", "1234.5"),
            ("-$5", "-5"),
            ("-0.0", "0"),
            ("+7", "7"),
            ("\u22127", "-7"),
            (".5", "0.5"),
            ("1e3", "1000"),
            ("The answer is 42.", "42"),
            ("I count 42 of them", "42"),
            ("3 + 4 = 7", "7"),
            ("**Answer:** 42", "42"),
            ("\\boxed{42}", "42"),
            ("6 * 7, so #### 42", "42"),
            ("42\n\nbecause 40 + 2 is that", "42"),
            ("42 and again 42", "42"),
            ("3/4", "3/4"),
            ("3 / 4", "3/4"),
            ("50%", "50%"),
            ("50 %", "50%"),
        ],
    )
    def test_canonical_text(self, text: str, number: str) -> None:
        assert read(task(str), text, PlainTextAdapter("number")) == number

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "forty",
            "12 or 30",
            "42km",
            "1,5",
            "1.2.3",
            "1,23,4",
            "2024-01-02",
            "x = 3, y = 4",
            "B2B",
            "1e999999",
            "\\frac{1}{2}",
        ],
    )
    def test_unclear(self, text: str) -> None:
        with pytest.raises(AdapterParseError):
            read(task(str), text, PlainTextAdapter("number"))

    def test_types(self) -> None:
        assert read(task(int), "1,234") == 1234 and type(read(task(int), "42.0")) is int
        assert read(task(float), "It is 1.5.") == 1.5 and type(read(task(float), "2")) is float
        for kind, text in [(int, "1.5"), (int, "3/4"), (float, "3/4"), (int, "50%"), (float, "50%")]:
            with pytest.raises(AdapterParseError, match=f"is not a {kind.__name__}|and not a {kind.__name__}"):
                read(task(kind), text)

    def test_after_reasoning_the_last_one_counts(self) -> None:
        text = "There are 3 and 4.\nTogether 3 + 4 = 7, less 2 is 5."
        assert read(reasoned(int), text) == 5
        assert read(reasoned(int), f"The answer is 7.\n{text}\nI have checked 2 times") == 7


class TestLines:
    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("\n Paris. \nIt lies on the Seine.", "Paris"),
            ("**Paris**", "Paris"),
            ("'Paris'", "Paris"),
            ("Answer: `Paris`", "Paris"),
            ("Answer:\nParis", "Paris"),
            ("```\nParis\n```", "Paris"),
            ("The U.S.", "The U.S."),
            ("Wait...", "Wait..."),
            ('"yes" or "no"', '"yes" or "no"'),
            ("snake_case_name", "snake_case_name"),
        ],
    )
    def test_first_line(self, text: str, line: str) -> None:
        assert read(task(str), text) == line

    def test_last_line(self) -> None:
        text = "Paris?\nNo.\n\nLyon.\n"
        assert read(task(str), text, PlainTextAdapter("last_line")) == "Lyon"
        assert PlainTextAdapter().parse(reasoned(str), text) == {
            "reasoning": dspy.Reasoning(content="Paris?\nNo."),
            "label": "Lyon",
        }

    def test_all_text(self) -> None:
        assert read(task(str), " one\ntwo.\n", PlainTextAdapter("text")) == "one\ntwo."
        assert read(task(list[int]), "[1,\n 2]") == [1, 2]
        assert read(task(Point), '```json\n{"x": 1}\n```') == Point(x=1)
        with pytest.raises(AdapterParseError, match="is not a Point"):
            read(task(Point), "nothing like it")

    def test_nothing(self) -> None:
        for adapter in (PlainTextAdapter(), PlainTextAdapter("last_line"), PlainTextAdapter("text")):
            with pytest.raises(AdapterParseError):
                read(task(str), " \n", adapter)

    def test_a_line_of_a_field_with_labels_is_read_as_one(self) -> None:
        assert read(task(Mood), "It is positive.\nnegative", PlainTextAdapter("first_line")) == "positive"


class TestPatterns:
    def test_the_first_group_or_the_whole_match(self) -> None:
        assert read(task(str), "so (x) is it, and (y)", PlainTextAdapter(pattern=r"\((\w)\)")) == "x"
        assert read(task(str), "code AB-12.", PlainTextAdapter(pattern=r"[A-Z]+-\d+")) == "AB-12"
        assert read(reasoned(str), "(x)\n(y)", PlainTextAdapter(pattern=r"\((\w)\)")) == "y"

    def test_what_it_finds_is_read_as_the_type(self) -> None:
        adapter = PlainTextAdapter(pattern=r"(?i)verdict: (.*)")
        assert read(task(Mood), "negative?\nVERDICT: Positive.", adapter) == "positive"
        assert read(task(int), "3 times\nverdict: 1,000", adapter) == 1000

    def test_not_found(self) -> None:
        for pattern in ("x(.)", "(x)?oh"):
            with pytest.raises(AdapterParseError, match="is not found"):
                read(task(str), "oh", PlainTextAdapter(pattern=pattern))


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "problem"),
        [
            ({"read": "labels"}, "PlainTextAdapter.read='labels'.: give one of 'auto', 'first_line'"),
            ({"constrain": "regex"}, "give one of None, 'response_format', 'grammar'"),
            ({"pattern": "("}, "is not a regular expression"),
            ({"pattern": 3}, "is not a regular expression"),
            ({"pattern": "x", "read": "label"}, "give one of them"),
        ],
    )
    def test_settings(self, settings: Any, problem: str) -> None:
        with pytest.raises(ConfigurationError, match=problem):
            PlainTextAdapter(**settings)

    @pytest.mark.parametrize(
        ("adapter", "signature", "problem"),
        [
            (PlainTextAdapter(), dspy.Signature("q -> a, b, c"), "but the signature has a, b, c"),
            (PlainTextAdapter(), dspy.Signature("q -> score: int, answer"), "but the signature has score, answer"),
            (PlainTextAdapter("label"), task(str), "needs an output field with labels, but 'label' is a str"),
            (PlainTextAdapter("text"), reasoned(str), "leaves none for 'reasoning'"),
        ],
    )
    def test_signatures(self, adapter: PlainTextAdapter, signature: Any, problem: str) -> None:
        with pytest.raises(ConfigurationError, match=problem):
            adapter.format(signature, [], {"q": "x"})


class TestIdentity:
    SETTINGS: tuple[dict[str, Any], ...] = (
        {},
        {"read": "label"},
        {"pattern": "(x)"},
        {"constrain": "grammar"},
        {"read": "label", "constrain": "grammar"},
    )

    def test_equal_settings_are_equal(self) -> None:
        for settings in self.SETTINGS:
            adapter = PlainTextAdapter(**settings)
            assert PlainTextAdapter(**json.loads(json.dumps(adapter.to_dict()))) == adapter
            assert hash(PlainTextAdapter(**settings)) == hash(adapter)
            assert eval(repr(adapter)) == adapter
        assert len({PlainTextAdapter(**s) for s in self.SETTINGS}) == len(self.SETTINGS)
        assert PlainTextAdapter() != dspy.ChatAdapter()
        assert repr(PlainTextAdapter()) == "PlainTextAdapter()"
        assert repr(PlainTextAdapter("label", constrain="grammar")) == (
            "PlainTextAdapter(read='label', constrain='grammar')"
        )

    def test_digests_are_those_of_other_processes(self) -> None:
        code = (
            "from iapo_dspy import PlainTextAdapter as A; from iapo_dspy.sampling.ledger.digests import digest\n"
            f"print(*(digest(A(**s)) for s in {self.SETTINGS!r}))"
        )
        there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert there == [digest(PlainTextAdapter(**s)) for s in self.SETTINGS]
        assert len(set(there)) == len(there)

    def test_messages_of_equal_calls_are_written_once_but_not_those_of_a_subclass(self) -> None:
        class Mine(PlainTextAdapter):
            """May ask an LM."""

        adapter, inputs = PlainTextAdapter(), {"text": "x"}
        assert formats_and_parses_only(adapter) and not formats_and_parses_only(Mine())
        once = format_once(adapter)
        assert once is not adapter and once.format(task(Mood), [], inputs) == adapter.format(task(Mood), [], inputs)


def request(
    constrain: Constrain, signature: Any, lm_body: Any = None, given: Any = None, read: Read = "auto"
) -> dict[str, Any]:
    lm = dspy.LM("openai/x", extra_body=lm_body) if lm_body else dspy.LM("openai/x")
    settings: dict[str, Any] = dict(given or {})
    PlainTextAdapter(read, constrain=constrain)._call_preprocess(lm, settings, signature, {"text": "x"})
    return settings


class TestConstraints:
    def test_grammar(self) -> None:
        assert request("grammar", task(Literal['say "a"', "b\\c"])) == {
            "extra_body": {"grammar": 'root ::= "say \\"a\\"" | "b\\\\c"'}
        }

    def test_choices_of_vllm(self) -> None:
        assert request("structured_outputs", task(bool)) == {
            "extra_body": {"structured_outputs": {"choice": ["True", "False"]}}
        }
        assert request("guided_choice", task(Side)) == {
            "extra_body": {"guided_choice": ["on the left", "on the right"]}
        }

    def test_the_body_of_the_lm_and_of_the_predictor_stay(self) -> None:
        lm_body = {"top_k": 40, "structured_outputs": {"disable_any_whitespace": True}}
        own = {"extra_body": {"min_p": 0.1}, "temperature": 0.5}
        assert request("structured_outputs", task(Mood), lm_body, own) == {
            "temperature": 0.5,
            "extra_body": {
                "top_k": 40,
                "min_p": 0.1,
                "structured_outputs": {"disable_any_whitespace": True, "choice": ["positive", "negative"]},
            },
        }
        assert lm_body == {"top_k": 40, "structured_outputs": {"disable_any_whitespace": True}}
        assert own["extra_body"] == {"min_p": 0.1}

    def test_response_format(self) -> None:
        label = {"type": "string", "enum": ["positive", "negative"]}
        schema = {
            "type": "object",
            "properties": {"reasoning": {"type": "string"}, "label": label},
            "required": ["reasoning", "label"],
            "additionalProperties": False,
        }
        assert request("response_format", reasoned(Mood)) == {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": schema},
            }
        }

    def test_answers_in_json(self) -> None:
        adapter = PlainTextAdapter(constrain="response_format")
        demos = [{"text": "x", "reasoning": "so", "label": "positive"}]
        messages = adapter.format(reasoned(Mood), demos, {"text": "y"})
        assert messages[0]["content"] == (
            'Judge it.\nAnswer in JSON: {"reasoning": ..., "label": ...}. The label is one of: positive, negative.'
        )
        assert messages[2]["content"] == '{"reasoning": "so", "label": "positive"}'
        assert adapter.parse(reasoned(Mood), messages[2]["content"]) == {
            "reasoning": dspy.Reasoning(content="so"),
            "label": "positive",
        }
        assert read(task(bool), '{"label": "False"}', adapter) is False
        assert read(task(Mood), "Positive.", adapter) == "positive"  # a server that does not know the setting
        with pytest.raises(AdapterParseError):
            read(task(Mood), '{"label": "neutral", "of": "positive"}', adapter)

    def test_only_labels_can_be_constrained(self) -> None:
        with pytest.raises(ConfigurationError, match="needs an output field with labels, but 'label' is a int"):
            request("grammar", task(int))
        with pytest.raises(ConfigurationError, match="leaves no room for 'reasoning' before the answer"):
            request("guided_choice", reasoned(Mood))
