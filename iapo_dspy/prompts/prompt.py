"""Prompts: candidate programs with their decoding, made from copies of the student, and their saved form."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError, StateError
from iapo_dspy.prompts.candidates import Proposal, read_candidates
from iapo_dspy.prompts.lms import Decodings, LMs, Served, combine
from iapo_dspy.types import Decoding

logger = logging.getLogger(__name__)

__all__ = [
    "Prompt",
    "build_prompts",
    "clone",
    "configured",
    "input_fields",
    "output_fields",
    "program_state",
    "restore",
]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One element of the prompt set: a program and how it is decoded.

    Attributes:
        program: A copy of the student with this candidate's instructions and demos.
        decoding: Settings that override the LM's own.
        candidate: Position in the user's list of candidates; of a combination, its number.
        lms: Predictor name -> the LM that belongs to this prompt: that of the run's `lms`, or one that the candidate
            brought. Other predictors use the student's.
        model: These LMs in words where the run has a choice between several, else "".
        options: Predictor name -> position of its instruction in the user's list for that predictor, where candidates
            were given predictor by predictor.
    """

    program: dspy.Module
    decoding: Decoding
    candidate: int
    lms: Mapping[str, dspy.BaseLM] = field(default_factory=dict, repr=False)
    model: str = ""
    options: Mapping[str, int] | None = None

    @property
    def instructions(self) -> dict[str, str]:
        """Predictor name -> instruction."""
        return {name: p.signature.instructions for name, p in self.program.named_predictors()}

    @property
    def label(self) -> str:
        """A short text for tables: the instructions, the model if there are several, the decoding if given."""
        texts = self.instructions
        text = next(iter(texts.values())) if len(texts) == 1 else "; ".join(f"{k}: {v}" for k, v in texts.items())
        words = [self.model] if self.model else []
        settings = ", ".join([*words, *(f"{k}={v}" for k, v in self.decoding.as_kwargs().items())])
        return f"{text} [{settings}]" if settings else text


def clone(program: dspy.Module, instead: Mapping[int, Any] | None = None) -> dspy.Module:
    """Copy a program deeply, sharing its LMs: copying those would copy their histories and connection pools.

    The predictors of the copy never write their LM into saved state, because settings of an LM (headers, provider
    credentials) are secrets; so loading a state leaves them the LM that they have.

    Args:
        program: The program.
        instead: id of a part of it -> what takes its place in the copy. A program that cannot be copied deeply is
            copied by DSPy, which knows nothing of this: look whether it was done.
    """
    shared = {id(p.lm): p.lm for _, p in program.named_predictors() if p.lm is not None}
    twin: dspy.Module
    try:
        twin = copy.deepcopy(program, memo={**shared, **(instead or {})})
    except Exception:  # noqa: BLE001  # any attribute may refuse; DSPy's own copy knows how to go around it
        twin = program.deepcopy()
        for (_, old), (_, new) in zip(program.named_predictors(), twin.named_predictors(), strict=True):
            new.lm = old.lm
    for _, predictor in twin.named_predictors():
        predictor.__class__ = _without_lm_in_state(type(predictor))
    return twin


_HIDDEN: dict[Any, Any] = {}  # class of predictor -> the class that writes no LM


def _without_lm_in_state(cls: Any) -> Any:
    if "_iapo_stands_for" in vars(cls):
        return cls
    if cls not in _HIDDEN:
        _HIDDEN[cls] = _make_hidden(cls)
    return _HIDDEN[cls]


def _make_hidden(cls: Any) -> Any:

    def dump_state(self: Any, json_mode: bool = True) -> dict[str, Any]:
        state: dict[str, Any] = {**cls.dump_state(self, json_mode=json_mode), "lm": None}
        return state

    def load_state(self: Any, state: dict[str, Any], **settings: Any) -> Any:
        lm = self.lm
        cls.load_state(self, state, **settings)
        self.lm = lm if self.lm is None else self.lm
        return self

    namespace = {
        "dump_state": dump_state,
        "load_state": load_state,
        "_iapo_stands_for": cls,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": lambda self, protocol: (_revive, (cls, self.__getstate__())),
    }
    return type(cls)(cls.__name__, (cls,), namespace)


def _revive(cls: type, state: Mapping[str, Any]) -> Any:
    """Make an instance again when it is copied or pickled: the class made above has no importable name."""
    hidden = _without_lm_in_state(cls)
    twin = hidden.__new__(hidden)
    twin.__setstate__(dict(state))
    return twin


def build_prompts(
    student: dspy.Module, candidates: Iterable[Any] | None, decodings: Decodings, lms: Sequence[LMs] = ()
) -> tuple[Prompt, ...]:
    """Fold candidates, LMs and decoding configurations into the prompt set P.

    Args:
        student: The program to optimize; it is not changed.
        candidates: What the user gave.
        decodings: Every candidate is combined with every decoding, or with those of its model.
        lms: Every candidate is combined with every LM; none for the student's or the configured one.

    Raises:
        ConfigurationError: A candidate or a mapping of LMs cannot be used with this student, or two prompts are the
            same.
    """
    names = [name for name, _ in student.named_predictors()]
    servers = combine(lms, names, decodings)
    proposals = read_candidates(candidates, names, lambda c: isinstance(c, dspy.Module))
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for index, proposal in enumerate(proposals):
        program = _apply(student, proposal, index)
        ids = [id(p.lm) for _, p in program.named_predictors()]
        identity = json.dumps([_stripped(program_state(program)), ids], sort_keys=True, default=str)
        if identity in seen:
            raise ConfigurationError(
                f"candidates[{index}] is the same as candidates[{seen[identity]}]: leave one of them out, or the "
                "budget pays for it twice."
            )
        seen[identity] = index
        own = _own_lms(program, student)
        if own and lms:
            name, lm = next(iter(own.items()))
            raise ConfigurationError(
                f"candidates[{index}] brings the LM {lm.model!r} for its predictor {name!r}, and lms= is given too. "
                "Every candidate is tried with every one of lms: take its own away, candidate.set_lm(None), or leave "
                "lms out to compare programs with LMs of their own."
            )
        prompts += configured(program, index, servers, own)
    return tuple(prompts)


def configured(
    program: dspy.Module,
    candidate: int,
    servers: Sequence[Served],
    own: Mapping[str, dspy.BaseLM],
    options: Mapping[str, int] | None = None,
) -> list[Prompt]:
    """Return a candidate's prompts: the program on every choice of LMs, under every decoding.

    Args:
        program: The candidate.
        candidate: Its number.
        servers: What every candidate is combined with (`combine`).
        own: LMs that the candidate brought; there are none where the run has a choice of LMs.
        options: See `Prompt`.
    """
    return [
        Prompt(
            program=bound,
            decoding=decoding,
            candidate=candidate,
            lms=served.lms or own,
            model=served.model,
            options=options,
        )
        for served, bound in ((served, _served(program, served)) for served in servers)
        for decoding in served.decodings
    ]


def _own_lms(program: dspy.Module, student: dspy.Module) -> dict[str, dspy.BaseLM]:
    """Predictor name -> LM of the predictors whose LM is not the student's."""
    plain = {name: p.lm for name, p in student.named_predictors()}
    found = {name: p.lm for name, p in program.named_predictors()}
    return {name: lm for name, lm in found.items() if lm is not None and lm is not plain.get(name)}


def _served(program: dspy.Module, served: Served) -> dspy.Module:
    """Return the program on these LMs: a copy, unless there are none."""
    if not served.lms:
        return program
    twin = clone(program)
    for name, predictor in twin.named_predictors():
        predictor.lm = served.lms.get(name, predictor.lm)
    return twin


def _apply(student: dspy.Module, proposal: Proposal, index: int) -> dspy.Module:
    if proposal.program is None:
        program = clone(student)
        for name, predictor in program.named_predictors():
            if name in proposal.instructions:
                predictor.signature = predictor.signature.with_instructions(proposal.instructions[name])
        return program
    given = proposal.program
    mine, theirs = _shape(student), _shape(given)
    if _kind(given) is not _kind(student) or mine != theirs:
        raise ConfigurationError(
            f"candidates[{index}] is a {type(given).__name__} with predictors {theirs}; the student is a "
            f"{type(student).__name__} with {mine}. A program that is a candidate must be of the student's class and "
            "have its predictors and fields, or the compiled program could not be loaded again."
        )
    own, others = _attributes(student), _attributes(given)
    differing = sorted(k for k in own.keys() | others.keys() if own.get(k) != others.get(k))
    if differing:
        raise ConfigurationError(
            f"candidates[{index}] differs from the student in {differing}. A saved program holds instructions, demos "
            "and decoding, so other attributes must be the student's own, or the compiled program would not be the one "
            "that was measured."
        )
    return clone(given)


def _kind(module: Any) -> type:
    kind: type = getattr(type(module), "_iapo_stands_for", type(module))
    return kind


def _attributes(program: dspy.Module) -> dict[str, Any]:
    """Plain attributes of a program and its sub-modules, predictors' own state left out."""
    found: dict[str, Any] = {}
    for path, module in program.named_sub_modules(dspy.Module):
        if isinstance(module, dspy.Predict):
            continue
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(value, (str, int, float, bool, type(None))):
                found[f"{path}.{name}"] = value
    return found


def _stripped(state: Mapping[str, Any]) -> dict[str, Any]:
    """A program's state with blanks around instructions removed, which no LM tells apart."""
    text = json.dumps(state, default=str)
    data: dict[str, Any] = json.loads(text)
    for predictor in data.values():
        instructions = predictor.get("signature", {}).get("instructions")
        if isinstance(instructions, str):
            predictor["signature"]["instructions"] = instructions.strip()
    return data


def _shape(program: dspy.Module) -> dict[str, list[str]]:
    return {name: sorted(p.signature.fields) for name, p in program.named_predictors()}


def program_state(program: dspy.Module) -> dict[str, Any]:
    """Return instructions, demos, config and the like of every predictor as JSON data, without any LM."""
    return {
        name: {**p.dump_state(), "config": _json_only(p.config), "lm": None} for name, p in program.named_predictors()
    }


def _json_only(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what JSON cannot hold, such as a `response_format` that is a class."""
    kept = {}
    for name, value in config.items():
        try:
            kept[name] = json.loads(json.dumps(value))
        except TypeError:
            logger.warning("Predictor config %r is not saved with the program: JSON cannot hold it.", name)
    return kept


def restore(student: dspy.Module, state: Mapping[str, Any]) -> dspy.Module:
    """Make a copy of the student with a saved state; its predictors keep the student's LMs.

    Raises:
        StateError: The state names other predictors than the student has.
    """
    program = clone(student)
    predictors = dict(program.named_predictors())
    if set(predictors) != set(state):
        raise StateError(
            f"The saved program has the predictors {sorted(state)}, this student has {sorted(predictors)}. Load it "
            "into the class of student that it was compiled from."
        )
    for name, predictor in predictors.items():
        lm = predictor.lm
        predictor.load_state(dict(state[name]))
        predictor.lm = lm
    return program


def input_fields(student: dspy.Module) -> tuple[str, ...] | None:
    """Return the student's input fields, or None for a module whose `forward` alone knows them."""
    predictors = student.named_predictors()
    if isinstance(student, (dspy.Predict, dspy.ChainOfThought)) and len(predictors) == 1:
        return tuple(predictors[0][1].signature.input_fields)
    return None


def output_fields(student: dspy.Module) -> dict[str, Any]:
    """Return output field -> annotation over all predictors; later predictors win."""
    fields: dict[str, Any] = {}
    for _, predictor in student.named_predictors():
        fields.update({name: f.annotation for name, f in predictor.signature.output_fields.items()})
    return fields
