"""Prompts and their saved form: candidate programs, made from copies of the student, each with its LMs and decoding."""

from __future__ import annotations

import copy
import functools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
import numpy as np

from iapo_dspy.errors import ConfigurationError, StateError
from iapo_dspy.prompts.candidates import Proposal, read_candidates
from iapo_dspy.prompts.lms import Decodings, LMs, ModelName, Served, combine, model_names
from iapo_dspy.prompts.student import Student
from iapo_dspy.types import Decoding, IntArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One element of the prompt set: a program and how it is decoded.

    Attributes:
        program: A copy of the student with this candidate's instructions and demos.
        decoding: Settings that override the LM's own.
        candidate: Position in the user's list of candidates; the number of the combination where candidates were given
            predictor by predictor.
        lms: Predictor name -> the LM that belongs to this prompt: an LM of the run's `lms`, or one that the candidate
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

    @functools.cached_property
    def student(self) -> Student:
        """The program with its predictors, fields and LMs."""
        return Student(self.program)

    @property
    def label(self) -> str:
        """A short text for tables: the instructions, the model if there are several, the decoding if given."""
        texts = self.student.instructions
        text = next(iter(texts.values())) if len(texts) == 1 else "; ".join(f"{k}: {v}" for k, v in texts.items())
        words = [self.model] if self.model else []
        settings = ", ".join([*words, *(f"{k}={v}" for k, v in self.decoding.as_kwargs().items())])
        return f"{text} [{settings}]" if settings else text


def clone(program: dspy.Module, instead: Mapping[int, Any] | None = None) -> dspy.Module:
    """Copy a program deeply, sharing its LMs: copies of LMs would have histories and connection pools of their own.

    The predictors of the copy never write their LM into saved state, because settings of an LM (headers, provider
    credentials) are secrets. Loading a state leaves them the LM that they have.

    Args:
        program: The program.
        instead: id of a part of it -> the part that takes its place in the copy. A program that cannot be copied deeply
            is copied by DSPy, which does not know of this: check that the part was replaced.
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
        kind: Any = type(predictor)
        predictor.__class__ = _without_lm_in_state(kind)
    return twin


@functools.cache
def _without_lm_in_state(cls: Any) -> Any:
    """Return a subclass of a predictor's class that looks like it and writes no LM into its state."""
    if "_iapo_stands_for" in vars(cls):
        return cls

    def dump_state(self: Any, json_mode: bool = True) -> dict[str, Any]:
        return {**cls.dump_state(self, json_mode=json_mode), "lm": None}

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
    """Make an instance again when it is copied or pickled: the class made above has no name to import it by."""
    hidden = _without_lm_in_state(cls)
    twin = hidden.__new__(hidden)
    twin.__setstate__(dict(state))
    return twin


def build_prompts(
    student: Student, candidates: Iterable[Any] | None, decodings: Decodings, lms: Sequence[LMs] = ()
) -> tuple[Prompt, ...]:
    """Return the prompt set P: every candidate with every LM, and with every decoding or those of its model.

    Raises:
        ConfigurationError: A candidate or a mapping of LMs cannot be used with this student, or two prompts are the
            same.
    """
    names = list(student.predictors)
    servers = combine(lms, names, decodings)
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for index, proposal in enumerate(read_candidates(candidates, names)):
        program = _apply(student, proposal, index)
        bound = {name: p.lm for name, p in program.named_predictors()}
        ids = [id(lm) for lm in bound.values()]
        identity = f"{_identity(program)} {ids}"
        if identity in seen:
            raise ConfigurationError(
                f"candidates[{index}] is the same as candidates[{seen[identity]}]: leave one of them out, or the "
                "budget pays for it twice."
            )
        seen[identity] = index
        own = {name: lm for name, lm in bound.items() if lm is not None and lm is not student.predictors[name].lm}
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
        )
        for served in servers
        for bound in [_served(program, served)]
        for decoding in served.decodings
    ]


def _served(program: dspy.Module, served: Served) -> dspy.Module:
    """Return the program on these LMs: a copy, unless there are none."""
    if not served.lms:
        return program
    twin = clone(program)
    for name, predictor in twin.named_predictors():
        predictor.lm = served.lms.get(name, predictor.lm)
    return twin


def _apply(student: Student, proposal: Proposal, index: int) -> dspy.Module:
    if isinstance(proposal, dict):
        program = clone(student.module)
        for name, predictor in program.named_predictors():
            if name in proposal:
                predictor.signature = predictor.signature.with_instructions(proposal[name])
        return program
    given, mine = proposal, student.module
    fields, others = _shape(student), _shape(Student(given))
    if _kind(given) is not _kind(mine) or fields != others:
        raise ConfigurationError(
            f"candidates[{index}] is a {type(given).__name__} with predictors {others}; the student is a "
            f"{type(mine).__name__} with {fields}. A program that is a candidate must be of the student's class and "
            "have its predictors and fields, or the compiled program could not be loaded again."
        )
    own, theirs = plain_attributes(mine), plain_attributes(given)
    differing = sorted(k for k in own.keys() | theirs.keys() if own.get(k) != theirs.get(k))
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


def _shape(student: Student) -> dict[str, list[str]]:
    return {name: sorted(p.signature.fields) for name, p in student.predictors.items()}


def plain_attributes(program: dspy.Module) -> dict[str, Any]:
    """Return the plain attributes of a program and its sub-modules, without the state of predictors."""
    return {
        f"{path}.{name}": value
        for path, module in program.named_sub_modules(dspy.Module)
        if not isinstance(module, dspy.Predict)
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, (str, int, float, bool, type(None)))
    }


def same_program(one: Prompt, other: Prompt) -> bool:
    """Tell whether two prompts of a run ask the same LMs with the same instructions, demos and settings."""
    asked = ({name: id(p.lm) for name, p in prompt.student.predictors.items()} for prompt in (one, other))
    return next(asked) == next(asked) and _identity(one.program) == _identity(other.program)


def _identity(program: dspy.Module) -> str:
    return json.dumps(_stripped(program_state(program)), sort_keys=True, default=str)


def _stripped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a program's state without blanks around instructions, which make no difference to an LM."""
    data: dict[str, Any] = json.loads(json.dumps(state, default=str))
    for predictor in data.values():
        instructions = predictor.get("signature", {}).get("instructions")
        if isinstance(instructions, str):
            predictor["signature"]["instructions"] = instructions.strip()
    return data


def program_state(program: dspy.Module) -> dict[str, Any]:
    """Return instructions, demos, config and the like of every predictor as JSON data, without any LM."""
    return {
        name: {**p.dump_state(), "config": _json_only(p.config), "lm": None} for name, p in program.named_predictors()
    }


def _json_only(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out settings that JSON cannot hold, such as a `response_format` that is a class."""
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


@dataclass(frozen=True, kw_only=True)
class PromptState:
    """A prompt in its saved form. Attributes that are not listed are those of `Prompt`.

    Attributes:
        state: Predictor name -> its DSPy state (instructions, demos), without an LM.
        label: A short text for tables.
        lms: Predictor name -> name of the LM that belongs to it; the LM itself is not saved.
    """

    state: Mapping[str, Any]
    decoding: Decoding
    candidate: int
    label: str
    lms: Mapping[str, ModelName]
    model: str = ""
    options: Mapping[str, int] | None = None

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
        if not isinstance(data["label"], str) or not isinstance(data.get("model", ""), str):
            raise TypeError(f"label={data['label']!r}, model={data.get('model')!r}: they must be text")
        return cls(**{**data, "decoding": Decoding(**data["decoding"]), "lms": lms})


def prompt_states(prompts: Sequence[Prompt]) -> tuple[PromptState, ...]:
    """Save the prompts of a run."""
    names = model_names([p.lms for p in prompts])
    return tuple(
        PromptState(
            state=program_state(p.program),
            decoding=p.decoding,
            candidate=p.candidate,
            label=p.label,
            lms=lms,
            model=p.model,
            options=p.options,
        )
        for p, lms in zip(prompts, names, strict=True)
    )


def shared_parts(prompts: Sequence[PromptState]) -> IntArray | None:
    """Return labels of the parts that prompts have in common.

    Parts are the instructions of each predictor, the rest of its state (demos and the like), the decoding and the LMs.

    Returns:
        Labels >= 0 [P, F] of those parts in which some prompts are alike and others differ, numbered as they come, each
        division of the prompts once; `None` where there are none.
    """
    columns = dict.fromkeys(_labels(column) for column in zip(*(_parts(prompt) for prompt in prompts), strict=True))
    shared = [column for column in columns if 0 < max(column) < len(prompts) - 1]
    return np.array(shared, dtype=np.int64).T if shared else None


def _parts(prompt: PromptState) -> Iterator[str]:
    for state in _stripped(prompt.state).values():
        yield str(state.get("signature", {}).pop("instructions", None))
        yield json.dumps(state, sort_keys=True)
    yield json.dumps(prompt.decoding.as_kwargs(), sort_keys=True)
    yield json.dumps({name: str(lm) for name, lm in prompt.lms.items()}, sort_keys=True)


def _labels(column: Iterable[str]) -> tuple[int, ...]:
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(part, len(numbers)) for part in column)
