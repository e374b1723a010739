"""Modules inside of pipelines: where one is, how it is sampled there, and the pipeline with the compiled one in it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from iapo_dspy.environments.live.environment import LivePrompt
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.program.compiled import CompiledProgram
from iapo_dspy.prompts.copies import clone
from iapo_dspy.prompts.prompt import Prompt
from iapo_dspy.prompts.rewriters.inside_pipelines import with_rewritten_inputs
from iapo_dspy.prompts.rewriters.rewriting import Rewrites
from iapo_dspy.prompts.student import Student
from iapo_dspy.sampling.rollouts.pipeline import InnerModule
from iapo_dspy.scoring.strategies import Strategy


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A program and the module inside of it that is compiled.

    Attributes:
        outer: The program as given; it is never changed.
        path: Where the module is, as DSPy names it: "generate", "steps[0]", "solve.draft".
        inner: The module.
    """

    outer: dspy.Module
    path: str
    inner: dspy.Module

    @classmethod
    def of(cls, outer: Any, path: Any) -> Pipeline:
        """Find the module.

        Raises:
            ConfigurationError: There is none at this path, or DSPy does not find its predictors.
        """
        if not isinstance(outer, dspy.Module):
            raise ConfigurationError(f"inner={path!r} needs a program around it, a dspy.Module; got {outer!r}.")
        parts = {_tidy(name): m for name, m in outer.named_sub_modules(dspy.Module) if m is not outer}
        if not isinstance(path, str) or _tidy(path) not in parts:
            usable = [name for name, m in parts.items() if m.named_predictors()]
            raise ConfigurationError(
                f"inner={path!r}: the pipeline {type(outer).__name__} has no module of that name. Those with "
                f"predictors are {usable}."
            )
        inner = parts[_tidy(path)]
        reached = {id(p) for p in outer.predictors()}
        if missing := [name for name, p in inner.named_predictors() if id(p) not in reached]:
            raise ConfigurationError(
                f"inner={path!r}: DSPy does not find the module's predictors {missing} from the pipeline, so that it "
                "could not save them. It does not look into lists inside of lists or dictionaries, nor into "
                "sub-modules with `_compiled = True`."
            )
        return cls(outer=outer, path=_tidy(path), inner=inner)

    @property
    def around(self) -> list[tuple[str, Any]]:
        """The predictors that are not the inner module's, by name."""
        mine = {id(p) for _, p in self.inner.named_predictors()}
        return [(name, p) for name, p in self.outer.named_predictors() if id(p) not in mine]

    def with_inner(self, module: dspy.Module) -> dspy.Module:
        """Return a copy of the pipeline with another program in the place of the inner module."""
        twin = clone(self.outer, instead={id(self.inner): module})
        if not any(m is module for _, m in twin.named_sub_modules(dspy.Module)):
            # A pipeline that refuses to be copied deeply was copied part by part, with a copy of the inner module.
            copied = dict((_tidy(name), m) for name, m in twin.named_sub_modules(dspy.Module))[self.path]
            _replace(twin, copied, module)
        return twin


def attach(pipeline: dspy.Module, inner: str, strategy: Strategy | None = None, **settings: Any) -> dspy.Module:
    """Return a copy of a fresh pipeline that is ready to load the result of `IAPO.compile(..., inner=...)`.

        pipeline = attach(Pipeline(), "generate")
        pipeline.load("pipeline.json")

    Args:
        pipeline: A new one, made as the compiled one was.
        inner: Where its inner module is.
        strategy: Needed where the strategy has functions of yours (objectives, `normalize`), as for `CompiledProgram`.
        **settings: Further arguments of `CompiledProgram`.

    Raises:
        ConfigurationError: There is no such module.
    """
    found = Pipeline.of(pipeline, inner)
    return found.with_inner(CompiledProgram(found.inner, strategy, **settings))


class LivePrompts(Sequence[LivePrompt]):
    """The prompt set as it is sampled; elements are made when they are first asked for, and kept.

    Args:
        prompts: The prompt set.
        pipeline: The program around each of them, if there is one.
        student: One more prompt behind all that may come, if there is one.
        id_of: Names a prompt by its content.
        room: How many prompts there may be in the end. Default: as many as there are.
        rewrites: Rewrites the inputs of inner modules; None where there are none.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        pipeline: Pipeline | None = None,
        student: Prompt | None = None,
        *,
        id_of: Callable[[int], str] = str,
        room: int | None = None,
        rewrites: Rewrites | None = None,
    ) -> None:
        self.grow(prompts, id_of)
        self._rewrites = rewrites
        self._room = len(prompts) if room is None else room
        self._student = student
        self._pipeline = pipeline
        self._made: dict[int, LivePrompt] = {}

    def __len__(self) -> int:
        """Return how many there may be."""
        return self._room + (self._student is not None)

    def grow(self, prompts: Sequence[Prompt], id_of: Callable[[int], str]) -> None:
        """Take a prompt set that has more prompts behind those of the one before."""
        self._prompts = prompts
        self._id_of = id_of

    def __getitem__(self, index: Any) -> Any:
        """Return a prompt by its number."""
        if index not in self._made:
            pipeline, student = self._pipeline, self._student
            behind = student is not None and index == self._room
            prompt = student if student is not None and behind else self._prompts[index]
            self._made[index] = LivePrompt(
                program=prompt.program if pipeline is None else pipeline.with_inner(watched(self._inner(prompt))),
                decoding=prompt.decoding,
                inner=None if pipeline is None else prompt.program,
                id=self._id_of(len(self._prompts) if behind else int(index)),
                adapter=prompt.adapter,
                rewriter=prompt.rewriter,
            )
        return self._made[index]

    def _inner(self, prompt: Prompt) -> dspy.Module:
        if prompt.rewriter is None or self._rewrites is None:
            return prompt.program
        return with_rewritten_inputs(prompt.program, inner_inputs(prompt.program), prompt.rewriter, self._rewrites)


def inner_inputs(inner: dspy.Module) -> list[str]:
    """Return the names of a module's inputs: a predictor's fields, or the parameters of its `forward`.

    A `forward(**inputs)` does not say; it is taken to have the inputs of its predictors.
    """
    fields = Student(inner).input_fields
    if fields is not None:
        return list(fields)
    forward = getattr(type(inner), "forward", None) or getattr(type(inner), "aforward", None)
    parameters = list(inspect.signature(forward).parameters.values())[1:] if forward is not None else []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        names += [name for p in inner.predictors() for name in p.signature.input_fields if name not in names]
    return names


def _tidy(name: str) -> str:
    """Return a module's name without "self" in front and quotes around keys, which DSPy writes in some places."""
    return name.removeprefix("self").removeprefix(".").replace("'", "").replace('"', "")


def _replace(program: dspy.Module, old: Any, new: Any) -> None:
    """Put another module wherever a program holds one: in attributes, and in lists, tuples and dictionaries."""

    def change(value: Any) -> Any:
        if value is old:
            return new
        if type(value) in (list, tuple) and any(v is old for v in value):
            return type(value)(change(v) for v in value)
        if type(value) is dict and any(v is old for v in value.values()):
            return {k: change(v) for k, v in value.items()}
        return value

    for _, module in list(program.named_sub_modules(dspy.Module)):
        for name, value in list(vars(module).items()):
            changed = change(value)
            if changed is not value:
                setattr(module, name, changed)


def watched(program: dspy.Module) -> dspy.Module:
    """Return the program as a module that tells when it is called; its predictors are shared."""
    twin: dspy.Module = copy.copy(program)
    twin.callbacks = [*program.callbacks, InnerModule(inner_inputs(program))]
    return twin
