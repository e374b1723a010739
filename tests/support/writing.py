"""Prompt-writing LMs that follow a script, and evidence for them to read."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy

from iapo_dspy.proposers import Aim, KnownPrompt, ProposalEvidence, Try
from tests.support.loopback import chat

Script = Callable[[dict[str, str], str, int], str]


def read(messages: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], str]:
    """Return the inputs of a request in ChatAdapter's form, and the name of the output that is asked for."""
    text = messages[-1]["content"]
    asked = re.search(r"starting with the field `\[\[ ## (\w+) ## \]\]`", text)
    assert asked is not None
    parts = re.split(r"\[\[ ## (\w+) ## \]\]\n", text[: asked.start()].rpartition("\n\nRespond with")[0])
    return dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True)), asked[1]


class Writer(dspy.BaseLM):
    """Answers by a script: (inputs, name of the output, number of the request) -> text of the output."""

    def __init__(self, script: Script | None = None, *, raw: bool = False) -> None:
        super().__init__("writer")
        self.script = script or (lambda inputs, output, i: f"Write it the way number {i}.")
        self.raw = raw
        self.asked: list[dict[str, str]] = []
        self.requests: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> list[str]:
        inputs, output = read(messages)
        with self._lock:
            number = len(self.asked)
            self.asked.append(inputs)
            self.requests.append(repr(messages))
        text = self.script(inputs, output, number)
        return [text if self.raw else chat(**{output: text})]


def tried(answer: str | None, right: float | None = None, label: int = 0, tokens: float = 10, **more: Any) -> Try:
    """Return a completion that answers this."""
    output = {"answer": answer} if answer is not None else {}
    score = right if answer is not None else None
    return Try(answer=answer, score=score, label=label, tokens=tokens, **{"output": output, **more})


def failed(why: str) -> Try:
    return tried(None, label=-1, failure=why)


def votes(right: str = "", times: int = 0, **wrong: int) -> list[Try]:
    """Return completions by their answers: `votes("7", 3, a8=4)` are three of "7", which is right, and four of "a8"."""
    answers = [(right, 1.0, times), *((name, 0.0, k) for name, k in wrong.items())]
    return [tried(name, score, label) for label, (name, score, k) in enumerate(answers) for _ in range(k)]


def known(index: int, text: str, tries: Mapping[int, Sequence[Try]] | None = None, **more: Any) -> KnownPrompt:
    """Return a prompt of a program that answers a question."""
    program = dspy.Predict(dspy.Signature("question -> answer", text))
    return KnownPrompt(index=index, program=program, **{"utility": (0.5,), "n": (4,), "tries": tries or {}, **more})


def evidence_of(*prompts: KnownPrompt, **more: Any) -> ProposalEvidence:
    """Return evidence on the questions 0 + 0, 1 + 1, ..., for a vote of four, from the first prompt."""
    questions = [dspy.Example(question=f"{i} + {i}", answer=str(2 * i)).with_inputs("question") for i in range(8)]
    settings = {
        "student": dspy.Predict("question -> answer"),
        "examples": tuple(questions),
        "aims": (Aim(preference="quality", context=0, cost=0.0, parent=0, n=4),),
        "aggregate": "vote",
        "field": "answer",
        "max_n": 8,
        "seed": 0,
        "prompts": prompts,
        "generation": 1,
    }
    return ProposalEvidence(**{**settings, **more})


def aimed(evidence: ProposalEvidence, **changes: Any) -> ProposalEvidence:
    """Return evidence whose one aim is changed."""
    return replace(evidence, aims=(replace(evidence.aims[0], **changes),))
