"""The programs of saved prompts, each on the LMs that it was measured with."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError, StateError
from iapo_dspy.prompts.adapter_names import find_adapter, using, way
from iapo_dspy.prompts.copies import bare, clone, restore
from iapo_dspy.prompts.lms import LMs, ModelName, find_lm
from iapo_dspy.prompts.prompt import Prompt, PromptState
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.prompts.rewriters.rewriter_names import RewriterName, find_rewriter, way_to_give
from iapo_dspy.prompts.student import Kind, Student

_MAKING = threading.RLock()


class Programs:
    """One program for every prompt of a policy.

    Programs of compiled arms are there from the beginning, so that other optimizers can change them. The others are
    made when they are first needed.

    Args:
        student: The program that was compiled, or a fresh one of its class; it is copied.
        others: Fresh programs of the other classes that prompts are of.
        lms: LMs for prompts that have LMs of their own, found by model string.
        adapters: Adapters for prompts that have adapters of their own, found by class and settings.
        rewriters: Rewriters for prompts that have one; others are made of the file with one of `lms`.

    Attributes:
        student: The copy.
        others: Programs of the other kinds that prompts are of.
        arms: The programs of the compiled arms.
        in_use: Their prompts.
        lm: The LM that every prompt runs on, whatever it was measured with; None is each prompt's own.
    """

    def __init__(
        self,
        student: dspy.Module,
        lms: Sequence[LMs] = (),
        others: Sequence[dspy.Module] = (),
        adapters: Sequence[dspy.Adapter] = (),
        rewriters: Sequence[Rewriter] = (),
    ) -> None:
        self.student = bare(student)
        self._kind = Student(self.student).kind
        self.others: Mapping[Kind, dspy.Module] = {Student(other).kind: other for other in others}
        self.arms: list[dspy.Module] = []
        self.in_use: tuple[int, ...] = ()
        self.lm: dspy.BaseLM | None = None
        self.lms = tuple(lms)
        self._adapters = tuple(adapters)
        self._rewriters = tuple(rewriters)
        self._prompts: tuple[PromptState, ...] = ()
        self._measured: tuple[dspy.Module, ...] | None = None
        self._others: dict[int, dspy.Module] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Programs:
        """Copy the programs; LMs are shared."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.student = clone(self.student)
        twin.arms = memo[id(self.arms)] if id(self.arms) in memo else [clone(a) for a in self.arms]
        memo[id(self.arms)] = twin.arms
        twin._others = {}
        return twin

    def view(self) -> Programs:
        """Return the same programs; loading into one of the two does not change the other."""
        view = copy.copy(self)
        view.arms = list(self.arms)
        return view

    def load(
        self, prompts: Sequence[PromptState], in_use: Sequence[int], measured: Sequence[dspy.Module] | None = None
    ) -> None:
        """Take the prompts of another policy.

        Args:
            prompts: All of its prompts.
            in_use: Those with a compiled arm.
            measured: The program of every prompt, as it was measured; None makes them from the student.

        Raises:
            StateError: A prompt has other predictors than the student, or a class or an adapter that was not given;
                nothing is changed.
        """
        if measured is not None:
            pairs = zip(prompts, measured, strict=True)
            made = {p.kind: program for p, program in pairs if p.kind not in (None, self._kind)}
            self.others = {**made, **self.others}
        self._need({prompt.kind for prompt in prompts if prompt.kind is not None})
        try:
            _ = [self._adapter(prompts[p]) for p in in_use]
        except ConfigurationError as error:
            raise StateError(str(error)) from error
        arms = [self._make(prompts[p], None if measured is None else measured[p]) for p in in_use]
        self._prompts, self._measured = tuple(prompts), None if measured is None else tuple(measured)
        self._replace(in_use, arms)

    def as_saved(self, prompts: Sequence[PromptState]) -> Callable[[], tuple[dspy.Module, ...]]:
        """Return a function that makes the programs of saved prompts, as they were measured."""
        return functools.partial(_restored, self._make, self._adapters, prompts)

    def use(self, in_use: Sequence[int]) -> None:
        """Take other prompts as compiled arms; the programs stay as they are, also where they were changed."""
        self._replace(in_use, [self.of(p) for p in in_use])

    def clear(self) -> None:
        """Forget all prompts."""
        self._prompts, self._measured = (), None
        self._replace((), [])

    def _replace(self, in_use: Sequence[int], arms: Sequence[dspy.Module]) -> None:
        self.in_use, self._others = tuple(in_use), {}
        self.arms[:] = arms  # in place: the compiled program shares this list

    def of(self, prompt: int) -> dspy.Module:
        """Return the program of a prompt, whether or not its LMs are there."""
        if prompt in self.in_use:
            return self.arms[self.in_use.index(prompt)]
        with _MAKING:
            if prompt not in self._others:
                measured = None if self._measured is None else self._measured[prompt]
                self._others[prompt] = self._make(self._prompts[prompt], measured)
            program = self._others[prompt]
            for name, predictor in program.named_predictors():  # set_lm reaches the compiled arms only
                lm = self._set(name) or self._home(self._prompts[prompt], name)
                if predictor.lm is not lm:
                    predictor.lm = lm
            return program

    def runnable(self, prompt: int) -> dspy.Module:
        """Return the program of a prompt, on its LMs.

        Raises:
            ConfigurationError: An LM that it was measured with is not there. It never runs on another one by itself.
        """
        for predictor, name in self._missing(prompt).items():
            configured = dspy.settings.lm
            there = (
                f"the configured LM is {configured.model!r}" if isinstance(configured, dspy.BaseLM) else "none is set"
            )
            raise ConfigurationError(
                f"Prompt {prompt} ({self.label(prompt)}) was measured with the LM {name} for its predictor "
                f"{predictor!r}, which this program was not given ({there}). {ways(name)}"
            )
        return self.of(prompt)

    def adapter_of(self, prompt: int) -> dspy.Adapter | None:
        """Return the adapter that a prompt was measured with; None where that was the configured one.

        Raises:
            ConfigurationError: It is not there. A prompt never runs with another one.
        """
        return self._adapter(self._prompts[prompt])

    def rewriter_of(self, prompt: int) -> Rewriter | None:
        """Return the rewriter that a prompt was measured with; None where it had queries as they are.

        Raises:
            ConfigurationError: Its LM is not there. A prompt never runs without its rewriter by itself.
        """
        name = self._prompts[prompt].rewriter
        if name is None:
            return None
        if (found := self._rewriter(prompt, name)) is not None:
            return found
        raise ConfigurationError(
            f"The prompt {self.label(prompt)!r} was measured with the rewriter {name}, which is not there. "
            f"{way_to_give(name)}"
        )

    def _rewriter(self, prompt: int, name: RewriterName) -> Rewriter | None:
        students = [p.lm for _, p in self.of(prompt).named_predictors()]
        there = [lm for lm in (*students, dspy.settings.lm) if _is(lm, name.lm)]
        return find_rewriter(name, self._rewriters, (*self.lms, *there))

    def _adapter(self, prompt: PromptState) -> dspy.Adapter | None:
        name = prompt.adapter
        if name is None:
            return None
        if (found := find_adapter(self._adapters, name)) is not None:
            return found
        raise ConfigurationError(
            f"The prompt {prompt.label!r} was measured with the adapter {name}, which is not there. {way(name)}"
        )

    def lacking(self) -> dict[ModelName, set[int]]:
        """Return LMs that are nowhere to be found -> prompts in use that were measured with them."""
        found: dict[ModelName, set[int]] = {}
        for prompt in self.in_use:
            for name in self._missing(prompt).values():
                found.setdefault(name, set()).add(prompt)
            rewriter = self._prompts[prompt].rewriter
            if rewriter is not None and self._rewriter(prompt, rewriter) is None:
                found.setdefault(rewriter.lm, set()).add(prompt)
        return found

    def label(self, prompt: int) -> str:
        """Return a prompt in words, as it is now: another optimizer may have changed an arm."""
        saved = self._prompts[prompt]
        if prompt not in self.in_use:
            return saved.label
        now = Prompt(
            program=self.of(prompt),
            decoding=saved.decoding,
            candidate=saved.candidate,
            model=saved.model,
            kind=None if saved.kind == self._kind else saved.kind,
            mark=saved.mark,
            adapter_name=saved.adapter,
            rewriter_name=saved.rewriter,
        )
        return now.label

    def _make(self, prompt: PromptState, measured: dspy.Module | None) -> dspy.Module:
        if measured is not None:
            return clone(measured)
        program = restore(self._fresh(prompt.kind), prompt.state)
        for name, predictor in program.named_predictors():
            predictor.lm = self._home(prompt, name)
        return program

    def _fresh(self, kind: Kind | None) -> dspy.Module:
        """Return a program to copy prompts of this kind from; None is the student's."""
        return self.student if kind is None or kind == self._kind else self.others[kind]

    def _need(self, kinds: Collection[Kind]) -> None:
        """Refuse prompts of kinds of programs that were not given."""
        missing = sorted((kind for kind in kinds if kind != self._kind and kind not in self.others), key=str)
        if missing:
            fresh = ", ".join(f"{kind.short}(...)" for kind in missing)
            raise StateError(
                f"The saved program runs {' and '.join(map(str, missing))}, and was given "
                f"{' and '.join(map(str, [self._kind, *self.others]))}. Give it a fresh program of each class, made as "
                f"the candidates were: CompiledProgram(student, others=[{fresh}])."
            )

    def _home(self, prompt: PromptState, predictor: str) -> dspy.BaseLM | None:
        """Return the LM that a prompt's predictor has unless somebody sets another one; None is the configured one."""
        name = prompt.lms.get(predictor)
        students: dspy.BaseLM | None = dict(self._fresh(prompt.kind).named_predictors())[predictor].lm
        if name is None:
            return students
        found = find_lm(self.lms, predictor, name)
        return students if found is None and _is(students, name) else found

    def _missing(self, prompt: int) -> Mapping[str, ModelName]:
        """Give predictors their LMs where these were taken away; return those whose LM is nowhere to be found."""
        missing = {}
        for predictor_name, predictor in self.of(prompt).named_predictors():
            name = self._prompts[prompt].lms.get(predictor_name)
            if predictor.lm is None and name is not None:
                predictor.lm = self._home(self._prompts[prompt], predictor_name)  # `reset_copy` takes LMs away
                if predictor.lm is None and not _is(dspy.settings.lm, name):
                    missing[predictor_name] = name
        return missing

    def _set(self, predictor: str) -> dspy.BaseLM | None:
        """Return the LM that somebody has set for a predictor of all arms, such as an outer module's `set_lm`."""
        if self.lm is not None:
            return self.lm
        now = [
            (name, p.lm, self._prompts[index])
            for index, arm in zip(self.in_use, self.arms, strict=True)
            for name, p in arm.named_predictors()
        ]
        same = [of for of in now if of[0] == predictor] or now  # a program of a class without an arm is as all arms are
        lms = {id(lm): lm for _, lm, _ in same}
        if len(lms) != 1:
            return None
        moved = any(self._home(prompt, name) is not lm for name, lm, prompt in same)
        return next(iter(lms.values())) if moved else None


def _restored(
    make: Callable[[PromptState, None], dspy.Module], adapters: Sequence[dspy.Adapter], prompts: Sequence[PromptState]
) -> tuple[dspy.Module, ...]:
    found = ((make(p, None), None if p.adapter is None else find_adapter(adapters, p.adapter)) for p in prompts)
    return tuple(using(program, adapter) for program, adapter in found)


def _is(lm: Any, name: ModelName) -> bool:
    """Tell whether the student's or the configured LM has this name."""
    return isinstance(lm, dspy.BaseLM) and ModelName(lm.model) == name


def ways(name: ModelName) -> str:
    """Return the ways to give a program an LM that it lacks, in words."""
    order = "" if name.nth == 1 else ", all of this model string in the order of IAPO(lms=...)"
    return (
        f"Give it: CompiledProgram(student, lms=[dspy.LM({name.model!r}), ...]){order}. Or configure it with "
        "dspy.configure(lm=...). Or run every arm on one LM of your choice: program.set_lm(lm)."
    )
