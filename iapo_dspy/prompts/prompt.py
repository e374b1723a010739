"""Prompts and their saved form: candidate programs, made from copies of the student, each with its LMs and decoding."""

from __future__ import annotations

import functools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy
import numpy as np

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.prompts.adapter_names import AdapterName, adapted
from iapo_dspy.prompts.candidates import Proposal, read_candidates
from iapo_dspy.prompts.copies import bare, clone, identity_of, program_state, stripped
from iapo_dspy.prompts.lms import Decodings, LMs, ModelName, Served, combine, model_names
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.prompts.rewriters.rewriter_names import RewriterName, named_rewriters
from iapo_dspy.prompts.student import Kind, Student, class_of
from iapo_dspy.types import Decoding, IntArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One element of the prompt set: a program and how it is decoded.

    Attributes:
        program: A copy of the student with this candidate's instructions and demos; or another program, if that is the
            candidate.
        decoding: Settings that override the LM's own.
        candidate: Position in the user's list of candidates; the number of the combination where candidates were given
            predictor by predictor.
        lms: Predictor name -> the LM that belongs to this prompt: an LM of the run's `lms`, or one that the candidate
            brought. Other predictors use the student's.
        model: These LMs in words where the run has a choice between several, else "".
        options: Predictor name -> position of its instruction in the user's list for that predictor, where candidates
            were given predictor by predictor.
        kind: What its program is, where that is another one than the student.
        mark: What tells its label from equal ones, such as "#3"; "" where nothing needs to.
        adapter: Writes its calls and reads their answers; None is the configured one.
        adapter_name: The name of this adapter.
        rewriter: Rewrites the query before its program sees it; None leaves the query as it is.
        rewriter_name: The name of this rewriter.
    """

    program: dspy.Module
    decoding: Decoding
    candidate: int
    lms: Mapping[str, dspy.BaseLM] = field(default_factory=dict, repr=False)
    model: str = ""
    options: Mapping[str, int] | None = None
    kind: Kind | None = None
    mark: str = ""
    adapter: dspy.Adapter | None = field(default=None, repr=False)
    adapter_name: AdapterName | None = None
    rewriter: Rewriter | None = field(default=None, repr=False)
    rewriter_name: RewriterName | None = None

    @functools.cached_property
    def student(self) -> Student:
        """The program with its predictors, fields and LMs."""
        return Student(self.program)

    @property
    def label(self) -> str:
        """A short text for tables: the class if it is not the student's, the instructions, and the rest in brackets.

        The rest is the model and the adapter if there are several, the decoding if given, the rewriter if there is one,
        the mark, and how many demos there are.
        """
        program = f"[{self.kind.short}] " if self.kind is not None else ""
        decoding = [f"{k}={v}" for k, v in self.decoding.as_kwargs().items()]
        adapter = self.adapter_name.words if self.adapter_name is not None else ""
        rewriter = f"rewriter: {self.rewriter_name.words}" if self.rewriter_name is not None else ""
        rest = ", ".join(filter(None, [self.model, *decoding, adapter, rewriter, self.mark, self.student.demos]))
        return f"{program}{self.student.text}" + (f" [{rest}]" if rest else "")


def build_prompts(
    student: Student,
    candidates: Any,
    decodings: Decodings,
    lms: Sequence[LMs] = (),
    adapters: Sequence[dspy.Adapter] = (),
    rewriters: Sequence[Rewriter] = (),
) -> tuple[Prompt, ...]:
    """Return the prompt set P: every candidate with every LM, with every decoding or those of its model, and adapter.

    Each of them is there with the query as it is, and with each rewriter.

    Repeats of a candidate are left out, with a log line.

    Raises:
        ConfigurationError: A candidate or a mapping of LMs cannot be used with this student.
    """
    combine(lms, list(student.predictors), decodings)  # the mappings in lms must fit the student first of all
    programs = _Programs(student)
    prompts: list[Prompt] = []
    seen: dict[tuple[Any, ...], str] = {}
    repeats: list[str] = []
    for index, (proposal, where) in enumerate(read_candidates(candidates, list(student.predictors))):
        program, kind = programs.of(proposal, where)
        bound = {name: p.lm for name, p in program.named_predictors()}
        identity = identity_of(program)
        if identity in seen:
            repeats.append(f"{where} is the same as {seen[identity]}")
            continue
        seen[identity] = where
        mine = {name: p.lm for name, p in student.predictors.items()} if kind is None else {}
        own = {name: lm for name, lm in bound.items() if lm is not None and lm is not mine.get(name)}
        if own and lms:
            name, lm = next(iter(own.items()))
            raise ConfigurationError(
                f"{where} brings the LM {lm.model!r} for its predictor {name!r}, and lms= is given too. "
                "Every candidate is tried with every one of lms: take its own away, candidate.set_lm(None), or leave "
                "lms out to compare programs with LMs of their own."
            )
        of = "the student" if kind is None else f"{where}, a {kind.short},"
        servers = combine(lms, list(bound), decodings, of)
        prompts += configured(program, index, servers, own, adapters, rewriters, kind=kind)
    if repeats:
        logger.info("%d of the candidates are repeats and are left out: %s.", len(repeats), "; ".join(repeats))
    labels = Counter(prompt.label for prompt in prompts)
    return tuple(replace(p, mark=f"#{p.candidate}") if labels[p.label] > 1 else p for p in prompts)


def configured(
    program: dspy.Module,
    candidate: int,
    servers: Sequence[Served],
    own: Mapping[str, dspy.BaseLM],
    adapters: Sequence[dspy.Adapter] = (),
    rewriters: Sequence[Rewriter] = (),
    options: Mapping[str, int] | None = None,
    kind: Kind | None = None,
) -> list[Prompt]:
    """Return a candidate's prompts: the program on every choice of LMs, under every decoding, with every adapter.

    Rewriters change fastest; the first of them is none.

    `own` are LMs that the candidate brought; there are none where the run has a choice of LMs.
    """
    return [
        Prompt(
            program=bound,
            decoding=decoding,
            candidate=candidate,
            lms=served.lms or own,
            model=served.model,
            options=options,
            kind=kind,
            adapter=chosen.adapter,
            adapter_name=chosen.name,
            rewriter=rewriter,
            rewriter_name=rewriter_name,
        )
        for served in servers
        for bound in [_served(program, served)]
        for decoding in served.decodings
        for chosen in adapted(adapters)
        for rewriter, rewriter_name in [(None, None), *zip(rewriters, named_rewriters(rewriters), strict=True)]
    ]


def _served(program: dspy.Module, served: Served) -> dspy.Module:
    """Return the program on these LMs: a copy, unless there are none."""
    if not served.lms:
        return program
    twin = clone(program)
    for name, predictor in twin.named_predictors():
        predictor.lm = served.lms.get(name, predictor.lm)
    return twin


class _Programs:
    """Makes the programs of candidates, and refuses those that a saved program could not tell apart."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self._first = {student.kind: (bare(student.module), "the student")}  # of each kind

    def of(self, proposal: Proposal, where: str) -> tuple[dspy.Module, Kind | None]:
        """Return a candidate's program, and its kind if it is another one than the student's."""
        student, _ = self._first[self._student.kind]
        if isinstance(proposal, dict):
            program = clone(student)
            for name, predictor in program.named_predictors():
                if name in proposal:
                    predictor.signature = predictor.signature.with_instructions(proposal[name])
            return program, None
        program = bare(proposal)
        kind = Student(program).kind
        first, its = self._first.setdefault(kind, (program, where))
        if class_of(first) is not class_of(program):
            raise ConfigurationError(
                f"{where} and {its} are programs of two classes that are both called {kind.name}, with the same "
                "predictors. A saved program finds its classes by their names: rename one of them."
            )
        own, theirs = plain_attributes(first), plain_attributes(program)
        differing = sorted(k for k in own.keys() | theirs.keys() if own.get(k) != theirs.get(k))
        if differing:
            raise ConfigurationError(
                f"{where} differs from {its} in {differing}. A saved program holds classes, instructions, demos and "
                "decoding, so other attributes must be equal within a class, or the compiled program would not be the "
                "one that was measured. Make them equal, or write a subclass with other ones."
            )
        return program, None if kind == self._student.kind else kind


def plain_attributes(program: dspy.Module) -> dict[str, Any]:
    """Return the plain attributes of a program and its sub-modules, without the state of predictors."""
    return {
        f"{path}.{name}": value
        for path, module in program.named_sub_modules(dspy.Module)
        if not isinstance(module, dspy.Predict)
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, (str, int, float, bool, type(None)))
    }


def same_prompt(one: Prompt, other: Prompt) -> bool:
    """Tell whether two prompts of a run ask the same LMs with the same instructions, demos, settings and adapter.

    They ask the same about queries that the same rewriter has rewritten, or none.
    """
    alike = one.decoding == other.decoding and one.adapter is other.adapter and one.rewriter is other.rewriter
    return alike and identity_of(one.program) == identity_of(other.program)


@dataclass(frozen=True, kw_only=True)
class PromptState:
    """A prompt in its saved form. Attributes that are not listed are those of `Prompt`.

    Attributes:
        state: Predictor name -> its DSPy state (instructions, demos), without an LM.
        label: A short text for tables.
        kind: What its program is, where the prompts are programs of several kinds; saved as "program".
        lms: Predictor name -> name of the LM that belongs to it; the LM itself is not saved.
        adapter: The name of its adapter; None is the configured one.
        rewriter: The name of its rewriter; None leaves queries as they are.
    """

    state: Mapping[str, Any]
    decoding: Decoding
    candidate: int
    label: str
    lms: Mapping[str, ModelName]
    model: str = ""
    options: Mapping[str, int] | None = None
    kind: Kind | None = None
    mark: str = ""
    adapter: AdapterName | None = None
    rewriter: RewriterName | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `from_dict` reads back."""
        return {
            "state": dict(self.state),
            "decoding": self.decoding.as_kwargs(),
            "candidate": self.candidate,
            "label": self.label,
            "lms": {name: lm.to_json() for name, lm in self.lms.items()},
            "model": self.model,
            **({"options": dict(self.options)} if self.options is not None else {}),
            **({"program": self.kind.to_json()} if self.kind is not None else {}),
            **({"mark": self.mark} if self.mark else {}),
            **({"adapter": self.adapter.to_json()} if self.adapter is not None else {}),
            **({"rewriter": self.rewriter.to_json()} if self.rewriter is not None else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PromptState:
        """Read data that `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: The data are damaged.
        """
        lms = {name: ModelName.from_json(lm) for name, lm in data["lms"].items()}
        for name, state in data["state"].items():
            signature, config = state.get("signature", {}), state.get("config", {})
            if not isinstance(config, Mapping) or not isinstance(signature.get("instructions", ""), str):
                raise TypeError(f"the state of the predictor {name!r}: instructions must be text, config an object")
        texts = {name: data.get(name, "") for name in ("label", "model", "mark")}
        if "label" not in data or not all(isinstance(text, str) for text in texts.values()):
            raise TypeError(f"{texts}: they must be text")
        kind = Kind.from_json(data["program"]) if "program" in data else None
        adapter = AdapterName.from_json(data["adapter"]) if "adapter" in data else None
        rewriter = RewriterName.from_json(data["rewriter"]) if "rewriter" in data else None
        rest = {name: value for name, value in data.items() if name != "program"}
        decoding = Decoding(**data["decoding"])
        read = {"decoding": decoding, "lms": lms, "kind": kind, "adapter": adapter, "rewriter": rewriter}
        return cls(**{**rest, **read})


def prompt_states(prompts: Sequence[Prompt]) -> tuple[PromptState, ...]:
    """Save the prompts of a run."""
    names = model_names([p.lms for p in prompts])
    mixed = any(p.kind is not None for p in prompts)
    return tuple(
        PromptState(
            state=program_state(p.program),
            decoding=p.decoding,
            candidate=p.candidate,
            label=p.label,
            lms=lms,
            model=p.model,
            options=p.options,
            kind=p.student.kind if mixed else None,
            mark=p.mark,
            adapter=p.adapter_name,
            rewriter=p.rewriter_name,
        )
        for p, lms in zip(prompts, names, strict=True)
    )


def shared_parts(prompts: Sequence[PromptState]) -> IntArray | None:
    """Return labels of the parts that prompts have in common.

    Parts are the program, the instructions of each predictor, the rest of its state (demos and the like), the decoding,
    the LMs, the adapter and the rewriter.

    Returns:
        Labels >= 0 [P, F] of those parts in which some prompts are alike and others differ, numbered as they come, each
        division of the prompts once; `None` where there are none.
    """
    parts = [_parts(prompt) for prompt in prompts]
    names = dict.fromkeys(name for part in parts for name in part)
    columns = dict.fromkeys(_labels(part.get(name, "") for part in parts) for name in names)
    shared = [column for column in columns if 0 < max(column) < len(prompts) - 1]
    return np.array(shared, dtype=np.int64).T if shared else None


def _parts(prompt: PromptState) -> dict[tuple[str, ...], str]:
    parts: dict[tuple[str, ...], str] = {}
    for name, state in stripped(prompt.state).items():
        parts[name, "instructions"] = str(state.get("signature", {}).pop("instructions", None))
        parts[name, "rest"] = json.dumps(state, sort_keys=True)
    lms = {name: str(lm) for name, lm in prompt.lms.items()}
    return {
        **parts,
        ("decoding",): json.dumps(prompt.decoding.as_kwargs(), sort_keys=True),
        ("lms",): json.dumps(lms, sort_keys=True),
        ("program",): str(prompt.kind),
        ("adapter",): str(prompt.adapter),
        ("rewriter",): str(prompt.rewriter),
    }


def _labels(column: Iterable[str]) -> tuple[int, ...]:
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(part, len(numbers)) for part in column)
