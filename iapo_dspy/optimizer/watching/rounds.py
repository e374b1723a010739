"""Tells the rounds and the generations of a run while it goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from iapo_dspy.bandit.outcome import Outcome, SearchRun, Wish
from iapo_dspy.environments.live.environment import LiveEnvironment
from iapo_dspy.events import LeadingArm, PromptsProposed, ProposedPrompt, RoundEnded
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.optimizer.watching.watch import RunWatch
from iapo_dspy.prompts.prompt import Prompt
from iapo_dspy.prompts.proposers.written import WrittenPrompt
from iapo_dspy.sampling.spending.budget import Meter, Spent
from iapo_dspy.types import Interim, Pulls


class Rounds:
    """Follows one run.

    Args:
        watch: Is told.
        meter: Knows the budget and the spending.
        environment: Draws.
        resumed: Whether `log_dir` had some of the run already.
    """

    def __init__(self, watch: RunWatch, meter: Meter, environment: LiveEnvironment, *, resumed: bool) -> None:
        self._watch = watch
        self._meter = meter
        self._environment = environment
        self._resumed = resumed
        self._before = meter.spent
        self._rounds = 0

    def of(self, plan: Plan) -> SearchRun:
        """Start the run, and tell each round once the next one, a wish or the outcome says what is known.

        A batch without `Pulls.interim` goes on with the round before.
        """
        self._plan, run = plan, plan.start()
        drawn, completions, restored = np.empty(0, dtype=np.int64), 0, 0

        def end(known: Interim) -> None:
            nonlocal drawn, completions, restored
            if len(drawn):
                self._end(known, len(drawn), completions, restored)
            drawn, completions, restored = drawn[:0], 0, 0

        answer = None
        try:
            while True:
                try:
                    asked = run.send(answer)  # type: ignore[arg-type]  # None starts it
                except StopIteration as stop:
                    outcome: Outcome = stop.value
                    end(outcome.interim)
                    return outcome
                if isinstance(asked, Wish):
                    end(asked.outcome.interim)
                elif asked.interim is not None:
                    end(asked.interim)
                stored = self._environment.restored
                answer = yield asked
                if isinstance(asked, Pulls):
                    made = answer.pulls.completions  # type: ignore[union-attr]  # observations answer pulls
                    drawn, completions = np.union1d(drawn, asked.prompt), completions + made
                    restored += min(self._environment.restored - stored, made)
        finally:
            run.close()

    def wrote(self, plan: Plan, wish: Wish, prompts: Sequence[Prompt], written: Sequence[WrittenPrompt]) -> None:
        """Tell the prompts of a generation, the last ones of a plan that has grown by them."""
        self._plan, first = plan, len(plan.prompts) - len(prompts)
        names = [p.name or "" for p in plan.settings.preferences]
        front = {
            name: {p: float(wins[p]) for p in np.flatnonzero(wins).tolist()}
            for name, wins in zip(names, wish.front, strict=True)
        }
        self._watch.tell(
            PromptsProposed(
                generation=wish.generation + 1,
                prompts=tuple(
                    ProposedPrompt(
                        prompt=first + i,
                        texts={n: p.signature.instructions for n, p in prompt.program.named_predictors()},
                        by=origin.by,
                        parents=origin.parents,
                        preference=origin.preference,
                    )
                    for i, (prompt, origin) in enumerate(zip(prompts, written, strict=True))
                ),
                front=front if any(front.values()) else {},
                gain=wish.gain,
                restored=self._resumed and not self._drawn(self._meter.spent),
            )
        )

    def _drawn(self, spent: Spent) -> int:
        """Return how many completions and LM calls of writers are new."""
        new = spent - self._before
        return new.completions - self._environment.restored + new.writer_requests

    def _end(self, known: Interim, prompts: int, completions: int, restored: int) -> None:
        self._rounds += 1
        plan, spent = self._plan, self._meter.spent
        names, budget = [p.name or "" for p in plan.settings.preferences], plan.settings.budget
        total = plan.completions
        leaders = tuple(
            LeadingArm(
                preference=name,
                prompt=arm.prompt,
                label=plan.prompts[arm.prompt].label,
                n=arm.n,
                utility=float(utility),
                standard_error=float(error),
            )
            for name, arm, utility, error in zip(names, known.policy.arms, known.utility, known.standard_error)  # noqa: B905
        )
        self._watch.tell(
            RoundEnded(
                round=self._rounds,
                rounds=None if known.rounds_left is None else self._rounds + known.rounds_left,
                prompts=prompts,
                leaders=leaders,
                completions=completions,
                restored=restored,
                spent=spent,
                completions_left=max(total - spent.completions, 0) if total is not None else None,
                usd_left=max(budget.usd - spent.usd, 0.0) if budget.usd is not None else None,
                seconds=time.monotonic() - self._watch.started,
                seconds_left=self._seconds_left(spent, total),
                unreadable=self._environment.failures.unreadable_share,
            )
        )

    def _seconds_left(self, spent: Spent, total: int | None) -> float | None:
        """Return when the first limit is reached at the pace of this process."""
        budget, new = self._plan.settings.budget, spent - self._before
        limits = [
            (total, spent.completions, new.completions - self._environment.restored),
            (budget.tokens, spent.tokens, new.tokens),
            (budget.usd, spent.usd, new.usd),
            (budget.seconds, spent.seconds, new.seconds),
        ]
        elapsed = time.monotonic() - self._watch.started
        left = [max(most - used, 0) * elapsed / made for most, used, made in limits if most is not None and made > 0]
        return min(left) if left and self._drawn(spent) else None
