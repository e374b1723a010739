"""Texts for reward models: question and answer of a completion, in the form that the model was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import dspy

from iapo_dspy.errors import ConfigurationError, ScoreError
from iapo_dspy.scoring.fields import check_name, field_of, text_of

Form = Callable[[str, str], str | tuple[str, str]] | Literal["pair", "chat"]
"""From (question, answer) to one text, or to two that a tokenizer puts together; "pair" is (question, answer) as they
are, "chat" the model's own chat template with the question as the user's turn and the answer as the assistant's."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A reward model that is known by name.

    Attributes:
        model: On the Hugging Face hub.
        form: What its card documents.
        label: Which logit is the score; None where there is one only.
    """

    model: str
    form: Form
    label: int | None = None


def _dialogue(question: str, answer: str) -> tuple[str, str]:
    return f"\n\nHuman: {question} \n\nAssistant:", answer


def _summary_first(question: str, answer: str) -> str:
    return f"{answer} <|endoftext|> {question}"


def _answer_first(question: str, answer: str) -> tuple[str, str]:
    return answer, question


REWARD_MODELS = {
    "helpful": Known(model="Ray2333/gpt2-large-helpful-reward_model", form=_dialogue),
    "harmless": Known(model="Ray2333/gpt2-large-harmless-reward_model", form=_dialogue),
    "summary": Known(model="Tristan/gpt2_reward_summarization", form=_summary_first),
    # Its labels are 0, hallucinated, and 1, faithful; the summary comes first.
    "faithful": Known(model="CogComp/bart-faithful-summary-detector", form=_answer_first, label=1),
}
"""The reward models of the paper by short name: helpfulness and harmlessness of dialogues (Anthropic's HH), and quality
and faithfulness of summaries."""


def known(model: str) -> tuple[str | None, Known | None]:
    """Return the short name and the entry of a known model, found by its short or its full name."""
    for name, entry in REWARD_MODELS.items():
        if model in (name, entry.model):
            return name, entry
    return None, None


@dataclass(frozen=True)
class Pairing:
    """Where the question and the answer of a completion are.

    Attributes:
        question: Input field; None where the student has one only.
        answer: Output field; None where the student has one only, `reasoning` aside.
    """

    question: str | None
    answer: str | None

    def __post_init__(self) -> None:
        for value, what in ((self.question, "question="), (self.answer, "answer=")):
            if value is not None:
                check_name(value, what)

    def of(self, example: dspy.Example, prediction: dspy.Prediction) -> tuple[str, str]:
        """Return question and answer as text.

        Raises:
            ScoreError: A field is missing, or there are several and none is named.
        """
        question = field_of(example, self._one(example, self.question, "question"), "example")
        answer = field_of(prediction, self._one(prediction, self.answer, "answer"))
        return text_of(question), text_of(answer)

    @staticmethod
    def _one(holder: dspy.Example, name: str | None, role: str) -> str:
        if name is not None:
            return name
        names = [str(n) for n in holder.keys() if n != "reasoning"]
        if len(names) != 1:
            raise ScoreError(f"A reward model needs one {role}, and there are {names}: name it, {role}='...'.")
        return names[0]


def check_form(form: object) -> Form:
    """Return a form.

    Raises:
        ConfigurationError: It is not a form.
    """
    if form in ("pair", "chat") or callable(form):
        return form
    raise ConfigurationError(f"form={form!r}: give 'pair', 'chat', or a function (question, answer) -> text or pair.")
