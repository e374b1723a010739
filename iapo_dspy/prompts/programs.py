"""The programs of saved prompts, each on the LMs that it was measured with."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.prompts.lms import LMs, ModelName, find_lm
from iapo_dspy.prompts.prompt import Prompt, PromptState, clone, restore

_MAKING = threading.RLock()


class Programs:
    """One program for every prompt of a policy.

    Programs of compiled arms are there from the beginning, so that other optimizers can change them. The others are
    made when they are first needed.

    Args:
        student: The program that was compiled, or a fresh one of its class; it is copied.
        lms: LMs for prompts that have LMs of their own, found by model string.

    Attributes:
        student: The copy.
        arms: The programs of the compiled arms.
        in_use: Their prompts.
        lm: The LM that every prompt runs on, whatever it was measured with; None is each prompt's own.
    """

    def __init__(self, student: dspy.Module, lms: Sequence[LMs] = ()) -> None:
        self.student = clone(student)
        self.arms: list[dspy.Module] = []
        self.in_use: tuple[int, ...] = ()
        self.lm: dspy.BaseLM | None = None
        self.lms = tuple(lms)
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
            StateError: A prompt has other predictors than the student; nothing is changed.
        """
        arms = [self._make(prompts[p], None if measured is None else measured[p]) for p in in_use]
        self._prompts, self._measured = tuple(prompts), None if measured is None else tuple(measured)
        self._replace(in_use, arms)

    def as_saved(self, prompts: Sequence[PromptState]) -> Callable[[], tuple[dspy.Module, ...]]:
        """Return a function that makes the programs of saved prompts, as they were measured."""
        return functools.partial(_restored, self._make, prompts)

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

    def lacking(self) -> dict[ModelName, set[int]]:
        """Return LMs that are nowhere to be found -> prompts in use that were measured with them."""
        found: dict[ModelName, set[int]] = {}
        for prompt in self.in_use:
            for name in self._missing(prompt).values():
                found.setdefault(name, set()).add(prompt)
        return found

    def label(self, prompt: int) -> str:
        """Return a prompt in words, as it is now: another optimizer may have changed an arm."""
        saved = self._prompts[prompt]
        if prompt not in self.in_use:
            return saved.label
        return Prompt(program=self.of(prompt), decoding=saved.decoding, candidate=0, model=saved.model).label

    def _make(self, prompt: PromptState, measured: dspy.Module | None) -> dspy.Module:
        if measured is not None:
            return clone(measured)
        program = restore(self.student, prompt.state)
        for name, predictor in program.named_predictors():
            predictor.lm = self._home(prompt, name)
        return program

    def _home(self, prompt: PromptState, predictor: str) -> dspy.BaseLM | None:
        """Return the LM that a prompt's predictor has unless somebody sets another one; None is the configured one."""
        name = prompt.lms.get(predictor)
        students: dspy.BaseLM | None = dict(self.student.named_predictors())[predictor].lm
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
        now = [dict(arm.named_predictors())[predictor].lm for arm in self.arms]
        if any(lm is not now[0] for lm in now):
            return None
        moved = any(self._home(self._prompts[index], predictor) is not now[0] for index in self.in_use)
        return now[0] if moved else None


def _restored(
    make: Callable[[PromptState, None], dspy.Module], prompts: Sequence[PromptState]
) -> tuple[dspy.Module, ...]:
    return tuple(make(prompt, None) for prompt in prompts)


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
