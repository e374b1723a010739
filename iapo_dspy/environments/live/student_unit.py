"""The unit of costs: the student's average call for a single completion, as the first round of a run measures it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iapo_dspy.environments.live.stored import Completion
from iapo_dspy.sampling.ledger.ledger import LedgerPort
from iapo_dspy.sampling.ledger.records import UnitRecord
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.types import Pulls


@dataclass(frozen=True, kw_only=True)
class UnitPlan:
    """Which completions of a run's first round measure the student.

    Attributes:
        prompt: Its number in the prompt set; None where it is not a candidate.
        queries: Positions of the training questions that it is measured on.
        draws: Completions at most that are drawn for this only, of the prompt behind the prompt set: one on each of
            these questions that the algorithm does not ask the student anyway.
    """

    prompt: int | None
    queries: tuple[int, ...]
    draws: int


class StudentUnit:
    """Measures the student's average call for a single completion; the ledger keeps what was found.

    Args:
        plan: What to measure.
        behind: Number of the prompt behind the prompt set: P.
        cost: Turns usage into costs.
        ledger: Where the unit is kept. One that an earlier process or another run found stays.
    """

    def __init__(self, plan: UnitPlan, behind: int, cost: Cost, ledger: LedgerPort) -> None:
        self._plan = plan
        self._behind = behind
        self._cost = cost
        self._ledger = ledger
        self._calls: dict[int, float] = {}  # query -> mean cost of a call
        self._known = ledger.unit.cost if ledger.unit is not None else None

    def pulls(self, asked: Pulls) -> Pulls:
        """Return the pulls that the first round makes beside those that the algorithm has asked for."""
        known = set(asked.query[asked.prompt == self._plan.prompt].tolist())
        queries = [x for x in self._plan.queries if x not in known][: self._plan.draws]
        one = np.ones(len(queries), dtype=np.int64)
        return Pulls(self._behind * one, np.array(queries, dtype=np.int64), one)

    def note(self, prompt: int, query: int, completions: Sequence[Completion]) -> None:
        """Take in a pull of the first round. A completion that failed before it cost anything shows no price."""
        usages = [c.record.usage for c in completions]
        overhead, costs = self._cost.split(usages)
        paid = [
            cost for c, cost in zip(completions, costs, strict=True) if cost or overhead or c.record.failure is None
        ]
        if prompt in (self._plan.prompt, self._behind) and paid:
            self._calls[query] = overhead + sum(paid) / len(paid)

    def found(self) -> float | None:
        """Return the unit after the first round; None where the student has no completion with a price.

        The questions of the plan count, as far as they were drawn: they are the same for other candidates.
        """
        if self._known is None:
            planned = [self._calls[x] for x in self._plan.queries if x in self._calls]
            calls = planned or [self._calls[x] for x in sorted(self._calls)]
            unit = sum(calls) / len(calls) if calls else 0.0
            if unit > 0:
                self._known = unit
                self._ledger.append(UnitRecord(cost=unit, queries=len(calls)))
        return self._known
