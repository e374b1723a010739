"""Asks the writer, reads instructions from its answers, and makes candidates of them."""

from __future__ import annotations

import itertools
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import dspy
import numpy as np
from dspy.utils.exceptions import AdapterParseError

from iapo_dspy.errors import LMRefused, one_line
from iapo_dspy.prompts.candidates import Proposal
from iapo_dspy.prompts.copies import clone
from iapo_dspy.prompts.proposers.port import Aim, KnownPrompt, ProposalEvidence, Proposed
from iapo_dspy.sampling.lm.refusals import is_undrawn

logger = logging.getLogger(__name__)

LONGEST = 8000  # characters of an instruction
_MARKER = re.compile(r"\[\[ ## \w+ ## \]\]")
_FENCE = re.compile(r"```[\w-]*\n(.*?)\n?```", re.DOTALL)
_PREAMBLE = re.compile(
    r"^[\s*#]*(?:(?:sure|certainly|of course|okay|ok|absolutely)\b[^\n:]{0,40}?[,.!:]\s*)?"
    r"(?:here(?:'s|\u2019s| is| are)\b[^\n:]{0,100}:|(?:the |my |a |your )?(?:[a-z-]+ ){0,3}instructions?\s*:)[\s*]*",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^(?:i['\u2019]?m (?:sorry|unable)\b|i am sorry\b|sorry\b|as an ai\b|i apologi[sz]e\b|unfortunately, i\b|"
    r"i (?:cannot|can['\u2019]?t|won['\u2019]?t|am unable)\b)",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "\u2018": "\u2019", "«": "»", "„": "“"}


def ask(task: str, /, *, output: str = "instruction", **inputs: str) -> str:
    """Ask the writer, `dspy.settings.lm`, once, and return one field of its answer; "" where there is none.

    An answer without the fields' marks is taken as a whole, so that a writer that does not keep to the format is not
    paid a second time.

    Args:
        task: What it is to do.
        output: Name of the field that it is to write.
        inputs: What it reads.
    """
    fields: dict[str, Any] = {name: (str, dspy.InputField()) for name in inputs}
    signature = dspy.Signature({**fields, output: (str, dspy.OutputField())}, task)
    with answering():
        try:
            text = getattr(dspy.Predict(signature)(**inputs), output, None)
        except AdapterParseError as error:
            text = error.lm_response
    return text if isinstance(text, str) else ""


def answering() -> Any:
    """Return the context in which a writer is asked: it answers in DSPy's chat format, once."""
    return dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False), trace=[])


def instruction_of(text: Any) -> str | None:
    """Return the instruction in a writer's answer; None where there is none, or one that is too long.

    Marks of fields, code fences, JSON, preambles and quotes around it are taken away.
    """
    if not isinstance(text, str):
        return None
    sendable = text.encode(errors="replace").decode()
    found = next((part.strip() for part in _MARKER.split(sendable) if part.strip()), "")
    for _ in range(4):  # one may stand in another
        bare = _bare(found)
        if bare == found:
            break
        found = bare
    if not re.search(r"[^\W\d_]{2}", found) or len(found) > LONGEST or _REFUSAL.match(found):
        return None
    return found


def _bare(text: str) -> str:
    text = _PREAMBLE.sub("", text.strip()).strip()
    fence = _FENCE.search(text)
    if fence and fence.start() == 0:
        return fence[1].strip()
    if text[:1] in ("{", "[") and (value := _json(text)) is not None:
        return value
    for opening, closing in _QUOTES.items():
        inner = text[1:-1]
        if len(text) > 1 and text[0] == opening and text[-1] == closing and opening not in inner:
            return inner.strip()
    return text


def _json(text: str) -> str | None:
    """Return the instruction in JSON data, "" where it has none; None where it is not JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    held = [v for v in value.values() if isinstance(v, str)] if isinstance(value, dict) else []
    named = [v for k, v in value.items() if "instruction" in str(k).lower() and v in held] if held else []
    found = named or held
    return found[0].strip() if len(found) == 1 else ""


def normal(text: str) -> str:
    """Return a text without case, white space, quotes and fences around it: equal for what is the same to an LM."""
    return " ".join(_bare(text).casefold().split())


def identity(evidence: ProposalEvidence, candidate: Proposal) -> tuple[Any, ...]:
    """Return what tells a candidate apart: its class, the normal texts of its instructions, and its demos."""
    program = candidate if isinstance(candidate, dspy.Module) else evidence.student
    texts = {name: p.signature.instructions for name, p in program.named_predictors()}
    if isinstance(candidate, Mapping):
        texts |= candidate
    demos = {name: [dict(demo) for demo in p.demos] for name, p in program.named_predictors()}
    kinds = [type(p).__qualname__ for p in program.predictors()]
    fields = [list(p.signature.fields) for p in program.predictors()]
    return (
        type(program).__qualname__,
        repr([kinds, fields]),
        repr({k: normal(v) for k, v in texts.items()}),
        repr(demos),
    )


def rng_of(evidence: ProposalEvidence, by: str, attempt: int = 0) -> np.random.Generator:
    """Return the random numbers of one attempt of a proposer."""
    return np.random.default_rng([abs(evidence.seed), evidence.generation, zlib.crc32(by.encode()), attempt])


def turns(evidence: ProposalEvidence, n: int) -> Iterator[tuple[int, Aim, KnownPrompt, str]]:
    """Yield n attempts: number, aim, its parent, and the predictor of the parent whose instruction is written."""
    for attempt in range(n if evidence.aims else 0):
        aim = evidence.aims[attempt % len(evidence.aims)]
        parent = evidence.prompts[aim.parent]
        names = list(parent.instructions)
        yield attempt, aim, parent, names[(evidence.generation + attempt) % len(names)]


def gathered(items: Iterator[Proposed], n: int) -> list[Proposed]:
    """Return at most n candidates, also where a later one could not be written.

    Raises:
        Exception: The first one could not be written.
    """
    found: list[Proposed] = []
    try:
        for item in itertools.islice(items, n):
            found.append(item)
    except Exception as error:
        if not found:
            raise
        log = logger.info if is_undrawn(error) or isinstance(error, LMRefused) else logger.warning
        log("A proposer stopped after %d candidates (%s).", len(found), one_line(error))
    return found


def rewritten(evidence: ProposalEvidence, parent: KnownPrompt, predictor: str, text: str) -> Proposal:
    """Return the parent with another instruction for one predictor: as texts where these say all of it."""
    student, program = evidence.student, parent.program
    own, theirs = dict(student.named_predictors()), dict(program.named_predictors())
    same = type(program) is type(student) and own.keys() == theirs.keys()
    if same and all(_beside(own[name]) == _beside(theirs[name]) for name in own):
        return {**parent.instructions, predictor: text}
    twin = clone(program)
    for name, found in twin.named_predictors():
        if name == predictor:
            found.signature = found.signature.with_instructions(text)
    return twin


def _beside(predictor: Any) -> Any:
    """Return what belongs to a predictor beside its instruction."""
    return list(predictor.signature.fields), [dict(demo) for demo in predictor.demos], predictor.config


def task_of(evidence: ProposalEvidence, parent: KnownPrompt, predictor: str) -> str:
    """Return in words what a predictor does: its fields, and the other steps of its program."""
    predictors = dict(parent.program.named_predictors())
    lines = [f"The instruction is for a call of a language model: {fields_of(predictors[predictor].signature)}"]
    if len(predictors) > 1:
        lines[0] = f"The instruction is for the step {predictor!r} of a program: {lines[0].partition(': ')[2]}"
        lines += [
            f"Another step, {name!r}: {fields_of(p.signature)} Its instruction: {p.signature.instructions}"
            for name, p in predictors.items()
            if name != predictor
        ]
    if evidence.field is not None:
        lines.append(f"The answer stands in the output {evidence.field!r}.")
    return "\n".join(lines)


def fields_of(signature: Any) -> str:
    """Return a signature's fields in words."""
    sides = (signature.input_fields, signature.output_fields)
    given, wanted = (", ".join(_field(name, declared) for name, declared in side.items()) for side in sides)
    return f"it reads {given} and writes {wanted}."


def _field(name: str, declared: Any) -> str:
    said = (declared.json_schema_extra or {}).get("desc", "")
    return name if not said or said == f"${{{name}}}" else f"{name} ({said})"


def shown(fields: Mapping[str, Any], longest: int = 400) -> str:
    """Return named values, one a line, each cut in the middle where it is longer."""
    return "\n".join(f"{name}: {cut(str(value), longest)}" for name, value in fields.items())


def cut(text: str, longest: int) -> str:
    """Return a text with its middle left out where it is longer than this."""
    text = text.strip()
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} [...] {text[-half:]}"
