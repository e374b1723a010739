"""Rules that every proposer keeps, for the tests of their authors."""

from __future__ import annotations

import concurrent.futures
import contextvars
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import dspy

from iapo_dspy.errors import BudgetExceeded, one_line
from iapo_dspy.prompts.copies import program_state
from iapo_dspy.prompts.proposers.mix import problem_of
from iapo_dspy.prompts.proposers.port import Aim, KnownPrompt, ProposalEvidence, Proposer, Try
from iapo_dspy.sampling.concurrency.threads import WORKERS
from iapo_dspy.sampling.judges.judge_usage import LMWatcher
from iapo_dspy.sampling.judges.metered import Case, metered
from iapo_dspy.sampling.lm.proxy import METERING

Answer = Callable[[Sequence[Mapping[str, Any]]], str]
_MOST_CALLS = 100  # for two candidates


def check_proposer(
    proposer: Proposer,
    evidence: Sequence[ProposalEvidence] = (),
    *,
    answer: Answer | None = None,
    timeout: float = 60.0,
) -> None:
    """Check that a proposer keeps the rules that a run relies on.

    1. It returns at most n candidates, and each can be used: a text of at most 8,000 characters for each predictor
       that it names, or a program. This holds whatever its LM answers.
    2. It asks no LM but `dspy.settings.lm` and those that are wrapped by `metered`, for the run counts only these.
    3. Equal evidence makes equal calls and equal candidates: a run that is started again pays for no call twice.
    4. It changes nothing in the evidence.
    5. It does not fail where no completion is known yet, nor where there is a single prompt.
    6. It ends where the budget does: it does not repeat a call for ever that raises `BudgetExceeded`.

    Args:
        proposer: The proposer.
        evidence: Further evidence to try it on, such as some of your own student.
        answer: The messages of a call -> what the LM answers. Default: an instruction in each field that is asked for.
        timeout: Seconds that it gets for two candidates, > 0.

    Raises:
        AssertionError: A rule is broken; the message says which one.
    """
    name = type(proposer).__name__
    assert isinstance(proposer, Proposer), f"{name} has no method propose(evidence, n)."
    answer = answer or _answer
    for case, given in {**_evidences(), **{f"evidence[{i}]": e for i, e in enumerate(evidence)}}.items():
        trial, again = (_Trial(proposer, given, case, timeout) for _ in range(2))
        before = _shown(given)
        found, others = trial.run(answer), again.run(answer)
        assert sorted(trial.asked) == sorted(again.asked), f"{name} asks differently for equal evidence ({case})."
        assert found == others, f"{name} proposes differently for equal evidence ({case}): {found} and {others}."
        for nonsense in ("", "{", "x" * 100_000):
            _Trial(proposer, given, f"{case}, odd answers", timeout).run(partial(_say, nonsense), may_fail=True)
        _Trial(proposer, given, f"{case}, the budget is used up", timeout).run(_refuse, may_fail=True)
        assert _shown(given) == before, f"{name} changes the evidence ({case})."


class _EnoughError(BaseException):
    """Ends a proposer that would ask for ever, whichever exceptions it catches."""


class _Trial:
    """One call of a proposer, as a run makes it: it meters LMs by what it answers for them."""

    def __init__(self, proposer: Proposer, evidence: ProposalEvidence, case: str, timeout: float) -> None:
        self.asked: list[str] = []
        self._proposer = proposer
        self._evidence = evidence
        self._case = f"({case})"
        self._timeout = timeout
        self._answer: Answer = _answer

    async def ask(self, case: Case, lm: Any, messages: Sequence[Mapping[str, Any]], params: Any, n: int) -> list[str]:
        """Answer a metered call."""
        self.asked.append(json.dumps([messages, n], default=str))
        if len(self.asked) > _MOST_CALLS:
            raise _EnoughError
        return [self._answer(messages)] * n

    def run(self, answer: Answer, *, may_fail: bool = False) -> list[str]:
        """Have two candidates written; return them as text."""
        self._answer, name, case = answer, type(self._proposer).__name__, self._case
        others: list[str] = []
        watcher = LMWatcher(lambda lm: others.append(str(getattr(lm, "model", lm))))
        run: Any = self
        with dspy.context(**{"lm": metered(dspy.LM("writer")), "callbacks": [watcher], METERING: Case(run)}):
            done = self._started()
        end = time.monotonic() + self._timeout
        while not done.done() and len(self.asked) <= _MOST_CALLS and time.monotonic() < end:
            concurrent.futures.wait([done], timeout=0.05)
        assert len(self.asked) <= _MOST_CALLS, f"{name} makes more than {_MOST_CALLS} calls for two candidates {case}."
        assert done.done(), f"{name} does not end within {self._timeout:g} seconds {case}."
        assert not others, f"{name} asks {others[0]}, which a run does not count: ask dspy.settings.lm, or metered(lm)."
        error = done.exception()
        if error is not None:
            assert may_fail, f"{name} fails {case}: {one_line(error)}"
            return []
        found = done.result()
        assert len(found) <= 2, f"{name} returns {len(found)} candidates where two are asked for {case}."
        for proposed in found:
            problem = problem_of(self._evidence, proposed)
            assert problem is None, f"{name} proposes what cannot be used {case}: {problem}."
        return [_told(p.candidate) + repr((p.by, p.parents, p.preference)) for p in found]

    def _started(self) -> concurrent.futures.Future[list[Any]]:
        future: concurrent.futures.Future[list[Any]] = concurrent.futures.Future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                future.set_result(context.run(lambda: list(self._proposer.propose(self._evidence, 2))))
            except BaseException as error:  # noqa: BLE001 - the check tells of it
                future.set_exception(error)

        WORKERS.submit(work)
        return future


def _told(candidate: Any) -> str:
    return json.dumps(candidate if isinstance(candidate, dict) else program_state(candidate), default=str)


def _shown(evidence: ProposalEvidence) -> str:
    """Return all that there is in evidence as text."""
    programs = [_told(program) for program in (evidence.student, *(p.program for p in evidence.prompts))]
    hidden: Any = None  # their representation holds addresses
    prompts = tuple(replace(p, program=hidden) for p in evidence.prompts)
    return repr((programs, replace(evidence, student=hidden, prompts=prompts)))


def _say(text: str, messages: Sequence[Mapping[str, Any]]) -> str:
    return text


def _refuse(messages: Sequence[Mapping[str, Any]]) -> str:
    raise BudgetExceeded("The budget is used up.")


def _answer(messages: Sequence[Mapping[str, Any]]) -> str:
    """Write an instruction in each field that DSPy's adapters ask for, another one for another request."""
    asked = str(messages[-1]["content"]).rpartition("Respond with")[2]
    text = f"X. Take way {sum(map(ord, json.dumps(messages, default=str))) % 10_000} to the answer."
    if "JSON" in asked:
        return json.dumps(dict.fromkeys(re.findall(r"`(\w+)`", asked), text))
    fields = [name for name in re.findall(r"\[\[ ## (\w+) ## \]\]", asked) if name != "completed"]
    return "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name in fields) or text


def _evidences() -> dict[str, ProposalEvidence]:
    """Return evidence of a vote, of a run that begins, and of Best-of-N with a single prompt."""

    def tries(score: float, *answers: str) -> list[Try]:
        return [
            Try(answer=a, score=score if i else 1.0, label=i, tokens=9.0 + i, output={"answer": a}, feedback="Short.")
            for i, a in enumerate(answers)
        ]

    def prompt(index: int, text: str, utility: float, **known: list[Try]) -> KnownPrompt:
        program = dspy.Predict(dspy.Signature("question -> answer", text))
        drawn = {int(name[1:]): found for name, found in known.items()}
        return KnownPrompt(index=index, program=program, utility=(utility,), n=(4,), tries=drawn)

    examples = tuple(dspy.Example(question=f"{i} + {i}", answer=str(2 * i)).with_inputs("question") for i in range(4))
    failed = Try(answer=None, score=None, label=-1, tokens=3.0, output={}, failure="It has no answer.")
    one = prompt(0, "Add up.", 0.4, q0=tries(0.0, "0", "1", "1"), q1=[*tries(0.0, "2"), failed])
    other = prompt(1, "Think first.", 0.5, q0=tries(0.0, "0"), q1=tries(0.0, "2", "3", "3"), q2=[failed])
    vote = ProposalEvidence(
        student=dspy.Predict("question -> answer"),
        examples=examples,
        prompts=(other, one),
        aims=(
            Aim(preference="quality", context=0, cost=0.0, parent=0, n=4),
            Aim(preference="thrifty", context=0, cost=1.0, parent=1, n=1),
        ),
        aggregate="vote",
        field="answer",
        max_n=4,
        seed=0,
        generation=1,
    )
    first, scored = prompt(0, "Add up.", float("nan")), prompt(0, "Add up.", 0.4, q0=tries(0.2, "0", "1"))
    aims = (replace(vote.aims[0], parent=0),)
    return {
        "a vote": vote,
        "before any completion": replace(vote, prompts=(first,), aims=aims, generation=0),
        "Best-of-N": replace(vote, prompts=(scored,), aims=aims, aggregate="best", field=None),
    }
