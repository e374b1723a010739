"""Opponents: the outputs that completions are compared with, each drawn once for a query."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any, Protocol

import dspy
from dspy.utils.exceptions import AdapterParseError

from iapo_dspy.errors import ConfigurationError, one_line
from iapo_dspy.sampling.concurrency.contained import contained
from iapo_dspy.sampling.concurrency.identity_cache import IdentityCache
from iapo_dspy.sampling.judges.metered import MeteredLM, drawn_once
from iapo_dspy.sampling.ledger.digests import digest
from iapo_dspy.sampling.ledger.field_values import decode_prediction, encode_prediction
from iapo_dspy.sampling.lm.params import generation_params
from iapo_dspy.sampling.lm.refusals import is_fatal, is_retryable, is_undrawn
from iapo_dspy.sampling.rollouts.prepare import Prepared, predictors_of, prepare, quiet_adapter, state_of
from iapo_dspy.scoring.once_per_call import once
from iapo_dspy.scoring.scores import function_digest, is_program
from iapo_dspy.scoring.user_functions import name_of

Baseline = Callable[..., Any] | Mapping[Any, Any]
"""A program of DSPy, a function of the inputs by their names, or a mapping from queries to outputs."""

_STUDENT = "iapo_student"  # the DSPy setting under which a comparison finds the student
_prepared: IdentityCache[Prepared] = IdentityCache()


@contextlib.contextmanager
def beside(student: Any) -> Iterator[None]:
    """Let comparisons within, in the threads of DSPy too, have a student as the opponent that was left out."""
    with dspy.context(**{_STUDENT: student}):
        yield


@dataclass(frozen=True, kw_only=True)
class Said:
    """The output of an opponent.

    Attributes:
        prediction: Its fields; None where it failed, and loses.
        text: The output, where it is a text and not fields.
    """

    prediction: dspy.Prediction | None = None
    text: str | None = None


class Opponent(Protocol):
    """Somebody whose output completions are compared with."""

    def check(self, examples: Sequence[dspy.Example]) -> None:
        """Raise ConfigurationError where there is no output for one of these queries."""

    def lms(self) -> Sequence[dspy.BaseLM]:
        """Return the LMs that it will ask."""

    def answer(self, inputs: Mapping[str, Any]) -> Said:
        """Return its output for a query."""


def opponent_of(baseline: Any) -> Opponent:
    """Return an opponent as a user gives it.

    Raises:
        ConfigurationError: It is none.
    """
    if hasattr(baseline, "with_preference"):
        raise ConfigurationError(
            "prefers(baseline=a compiled program): it draws completions of its own, which no budget counts. Give one "
            "of its prompts, program.detailed_results.candidate_programs[i], or a mapping from queries to its outputs."
        )
    if is_program(baseline):
        return ProgramOpponent(identity_of(baseline), baseline)
    if isinstance(baseline, Mapping):
        if not baseline:
            raise ConfigurationError("prefers(baseline={}): give an output for each query.")
        return KnownOpponent(digest(sorted((digest(k), digest(v)) for k, v in baseline.items())), dict(baseline))
    if callable(baseline):
        return FunctionOpponent(function_digest(baseline), baseline)
    raise ConfigurationError(
        f"prefers(baseline={baseline!r}): give a program, a function of the inputs, a mapping from queries to outputs, "
        "a list of such, or nothing, which stands for the student."
    )


def identity_of(program: Any) -> str:
    """Return a digest of all that a program's outputs depend on, but for the configured LM and code of its own."""
    states = [
        [{**p.dump_state(), "lm": None}, p.lm and [p.lm.model, generation_params(p.lm.kwargs)]]
        for p in predictors_of(program)
    ]
    return digest([type(program).__qualname__, states])


@dataclass(frozen=True)
class KnownOpponent:
    """Outputs that are known."""

    identity: str
    outputs: Mapping[Any, Any] = attribute(compare=False, repr=False)

    def check(self, examples: Sequence[dspy.Example]) -> None:
        """Raise ConfigurationError where an example has no output."""
        for example in examples:
            self.answer(dict(example.inputs().items()))

    def lms(self) -> Sequence[dspy.BaseLM]:
        """Return none."""
        return ()

    def answer(self, inputs: Mapping[str, Any]) -> Said:
        """Look the output up by the only input, or by all inputs in their order."""
        values = tuple(inputs.values())
        key = values[0] if len(values) == 1 else values
        try:
            found = self.outputs[key]
        except (KeyError, TypeError):
            raise ConfigurationError(
                f"prefers(baseline={{...}}): there is no output for the query {str(key)[:80]!r}. Its keys must be the "
                "values of the only input, or tuples of all inputs in the order in which the examples have them."
            ) from None
        return said(found)


@dataclass(frozen=True)
class FunctionOpponent:
    """A function of the inputs, asked once for a query."""

    identity: str
    function: Callable[..., Any] = attribute(compare=False, repr=False)

    def check(self, examples: Sequence[dspy.Example]) -> None:
        """Take any examples: the function is asked when it is needed."""

    def lms(self) -> Sequence[dspy.BaseLM]:
        """Return none that is known."""
        return ()

    def answer(self, inputs: Mapping[str, Any]) -> Said:
        """Ask the function; where it raises, it has failed."""

        def ask() -> dict[str, Any]:
            try:
                with contained():
                    return _written(said(self.function(**inputs)))
            except Exception as error:  # the user's code: its failure is the opponent's
                if _is_ours(error):
                    raise
                return {"failure": one_line(error)}

        return _drawn([name_of(self.function), self.identity, inputs], ask)


@dataclass(frozen=True)
class ProgramOpponent:
    """A program, run once for a query: as it is, with its own LM, or the configured one, and its own decoding."""

    identity: str
    program: Any = attribute(compare=False, repr=False)

    def check(self, examples: Sequence[dspy.Example]) -> None:
        """Take any examples."""

    def lms(self) -> Sequence[dspy.BaseLM]:
        """Return the LMs of its predictors."""
        own = (p.lm or dspy.settings.lm for p in predictors_of(self.program))
        return list({id(lm): lm for lm in own if isinstance(lm, dspy.BaseLM)}.values())

    def answer(self, inputs: Mapping[str, Any]) -> Said:
        """Run the program, or take what it said before on this query in this run, or in this deployed call."""

        def ask() -> dict[str, Any]:
            ready = _prepared.get(
                self.program, lambda: prepare(self.program, _lasting), fresh=lambda p: p.state == state_of(self.program)
            )
            lm = dspy.settings.lm
            settings: dict[str, Any] = {"lm": _lasting(lm)} if isinstance(lm, dspy.BaseLM) else {}
            try:
                with contained(), dspy.context(**settings, adapter=quiet_adapter(None, _lasting), trace=[]):
                    return _written(said(ready.program(**inputs)))
            except Exception as error:  # explained above `_is_ours`
                if _is_ours(error):
                    raise
                return {"failure": one_line(error)}

        asked = [[_plain(lm).model, generation_params(lm.kwargs)] for lm in self.lms()]
        return _drawn([self.identity, asked, inputs], ask)


@dataclass(frozen=True)
class StudentOpponent:
    """The student of the run, or of the deployed program, as it was given."""

    def check(self, examples: Sequence[dspy.Example]) -> None:
        """Take any examples."""

    def lms(self) -> Sequence[dspy.BaseLM]:
        """Return the LMs of the student's predictors."""
        return self._program().lms()

    def answer(self, inputs: Mapping[str, Any]) -> Said:
        """Run the student."""
        return self._program().answer(inputs)

    @staticmethod
    def _program() -> ProgramOpponent:
        student = dspy.settings.get(_STUDENT)
        if student is None:
            raise ConfigurationError(
                "prefers(judge) without a baseline compares with the student of a run, and there is no run here. Give "
                "the opponent: prefers(judge, baseline=program)."
            )
        return ProgramOpponent(identity_of(student), student)


def said(output: Any) -> Said:
    """Read an output as a user gives it.

    Raises:
        ConfigurationError: It is neither a text nor fields.
    """
    if isinstance(output, str):
        return Said(text=output)
    if isinstance(output, dspy.Example):  # a prediction is one
        return Said(prediction=dspy.Prediction(**dict(output.items())))
    if isinstance(output, Mapping):
        return Said(prediction=dspy.Prediction(**output))
    raise ConfigurationError(
        f"prefers(baseline=...): the baseline returned {output!r}. It must return a text, a mapping of output fields "
        "or a dspy.Prediction."
    )


def _is_ours(error: Exception) -> bool:
    """Tell whether an error says nothing of the opponent: the budget, the provider, or the way it was set up.

    What cannot be read, and what the provider refuses for this query alone, is a failure of the opponent.
    """
    if isinstance(error, AdapterParseError):
        return False
    return is_undrawn(error) or is_fatal(error) or is_retryable(error) or isinstance(error, ConfigurationError)


def _drawn(what: Any, ask: Callable[[], dict[str, Any]]) -> Said:
    """Return what an opponent says, asked once in a run, and kept in its ledger; or once in a deployed call."""
    key = f"opponent-{digest(what)}"
    found: dict[str, Any] = once(key, lambda: drawn_once(key, ask))
    if "failure" in found:
        return Said()
    return Said(text=found["text"]) if "text" in found else Said(prediction=decode_prediction(found["fields"]))


def _written(found: Said) -> dict[str, Any]:
    if found.text is not None:
        return {"text": found.text}
    assert found.prediction is not None
    return {"fields": encode_prediction(found.prediction)}


def _plain(lm: dspy.BaseLM) -> dspy.BaseLM:
    return lm.metered_lm if isinstance(lm, MeteredLM) else lm


def _lasting(lm: dspy.BaseLM) -> MeteredLM:
    """Return a metered LM whose answers a run keeps, whatever the `cache` of the LM is: a query has one opponent."""
    found = MeteredLM(_plain(lm))
    found.cache = True
    return found
