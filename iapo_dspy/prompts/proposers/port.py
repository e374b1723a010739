"""The port of proposers: evidence of a run goes in, new candidates come out.

A proposer asks LMs through `dspy.settings.lm` only (`dspy.Predict(...)` and the like): while it works, that is the
run's `prompt_model`, and every call is counted in the run's budget and kept in its ledger. So it keeps no state, and
the same evidence makes the same requests: a run that is started again repeats no paid call.

Example:
    >>> class Polite:
    ...     '''Ask politely.'''
    ...     def propose(self, evidence, n):
    ...         old = evidence.prompts[0].instructions
    ...         return [Proposed(candidate={k: "Please. " + text for k, text in old.items()}, by="polite")][:n]
    >>> isinstance(Polite(), Proposer)
    True
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import dspy

from iapo_dspy.prompts.candidates import Proposal


@dataclass(frozen=True, kw_only=True)
class Try:
    """One completion that was drawn for a question.

    Attributes:
        answer: What it votes for, or else its output, as text; None where it failed.
        score: Its metric, or its mean objective, in units of the rewards' range [0, 1]; None where it has none.
        label: Its answer class within the question, -1 where it has no vote.
        tokens: Its output tokens.
        output: Its output fields as text.
        failure: Why it failed, in one line; None if it did not.
        feedback: What the metric said of it, where it says something (`dspy.Prediction(score=..., feedback=...)`).
        inputs: The inputs that the student was called with inside of a pipeline; None where they are the question's.
    """

    answer: str | None
    score: float | None
    label: int
    tokens: float
    output: Mapping[str, str]
    failure: str | None = None
    feedback: str | None = None
    inputs: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class KnownPrompt:
    """A prompt of the run and what is known of it.

    Attributes:
        index: Its number in the prompt set.
        program: A copy of its program.
        utility: Estimated utility of its best arm under each preference, the largest first N [C]; NaN without evidence.
        n: The scale of that arm under each preference [C].
        tries: Position of a question in `ProposalEvidence.examples` -> its completions.
        by: The proposer that made it; None for a candidate that was given.
        parents: The prompts that it was made from, by `index`.
    """

    index: int
    program: dspy.Module
    utility: tuple[float, ...]
    n: tuple[int, ...]
    tries: Mapping[int, Sequence[Try]]
    by: str | None = None
    parents: tuple[int, ...] = ()

    @property
    def instructions(self) -> dict[str, str]:
        """Predictor -> instruction."""
        return {name: p.signature.instructions for name, p in self.program.named_predictors()}


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a new candidate is wanted for.

    Attributes:
        preference: Name of the preference.
        context: Its position among the preferences.
        cost: Its cost weight: 0 is quality at any price.
        parent: The prompt to start from, by its position in `ProposalEvidence.prompts`: drawn from the front of those
            that are best on some question at the preference's own N, as often as they are.
        n: How many completions the preference aggregates now.
    """

    preference: str
    context: int
    cost: float
    parent: int
    n: int


@dataclass(frozen=True, kw_only=True)
class ProposalEvidence:
    """What proposers may see of a run. Questions that confirm a winner later are never in it.

    Attributes:
        student: A copy of the student.
        examples: The training questions that may be read, with labels.
        prompts: The prompts of the run, the best (mean over preferences) first; never empty.
        aims: What is wanted, one for each candidate that is asked for; a proposer takes them in turn.
        aggregate: How N completions become one answer: "vote", "best" (Best-of-N), or "mean".
        field: The voted output field; None where there is none.
        max_n: The largest N.
        seed: Root of the proposer's random choices, another one for each generation.
        generation: 0 for the first one, which may have seen no completion yet.
    """

    student: dspy.Module
    examples: tuple[dspy.Example, ...]
    prompts: tuple[KnownPrompt, ...]
    aims: tuple[Aim, ...]
    aggregate: str
    field: str | None
    max_n: int
    seed: int
    generation: int = 0


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """A new candidate.

    Attributes:
        candidate: Predictor -> instruction, or a whole program of a class that the run knows (to add demos).
        by: The proposer.
        parents: The prompts that it was made from, by `KnownPrompt.index`.
        preference: What it was written for; None for all preferences.
    """

    candidate: Proposal
    by: str
    parents: tuple[int, ...] = ()
    preference: str | None = None


@runtime_checkable
class Proposer(Protocol):
    """Writes candidates. `iapo_dspy.testing.check_proposer` checks the rules that it has to keep."""

    def propose(self, evidence: ProposalEvidence, n: int) -> Iterable[Proposed]:
        """Return, or yield, at most n candidates; fewer, or none, where it has nothing to say.

        Raises:
            Exception: Anything; the run logs it, goes on with other proposers, and never ends by it.
        """
        ...


def texts_of(candidate: Any) -> dict[str, str]:
    """Return predictor -> instruction of a proposed candidate."""
    if isinstance(candidate, dspy.Module):
        return {name: p.signature.instructions for name, p in candidate.named_predictors()}
    return dict(candidate)
