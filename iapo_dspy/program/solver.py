"""Chooses the arm of a preference from a policy's evidence, without LM calls."""

from __future__ import annotations

import copy
import logging
import threading
from dataclasses import dataclass

import dspy
import numpy as np
from cachetools import FIFOCache

from iapo_dspy.preferences import Preference
from iapo_dspy.program.caps import check_caps, tokens_of_each
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.prompts.programs import Programs
from iapo_dspy.sampling.spending.pricing import Price, price_of
from iapo_dspy.scoring.strategies import Strategy
from iapo_dspy.types import Arm

logger = logging.getLogger(__name__)

__all__ = ["Chosen", "Solver"]

_MOST_SOLVED = 256  # ad hoc preferences whose arms are remembered
_THIN_EVIDENCE = 8  # blocks below which the estimate of an arm that was never compiled deserves a warning
_WIDE_ERROR = 0.1  # standard error, in units of the range of the completions' rewards, above which it does, too
_REMEMBERING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The answer to a preference.

    Attributes:
        arm: Its arm.
        tokens_each: Output tokens that each of its completions may take, so that its caps are kept; None: any.
    """

    arm: Arm
    tokens_each: int | None = None


class Solver:
    """Answers for any preference, and remembers its answers.

    Args:
        policy: The arms of compiled preferences, and the evidence that answers for others.
        strategy: The strategy that the policy was compiled with.
        programs: The programs of its prompts.
    """

    def __init__(self, policy: CompiledPolicy, strategy: Strategy, programs: Programs) -> None:
        self.policy = policy
        self.strategy = strategy
        self._programs = programs
        self._solved: FIFOCache[Preference, Chosen] = FIFOCache(_MOST_SOLVED)

    def over(self, programs: Programs) -> Solver:
        """Return a solver over copies of the programs, with the same answers so far."""
        twin = copy.copy(self)
        twin._programs = programs
        with _REMEMBERING:
            twin._solved = FIFOCache(_MOST_SOLVED)
            twin._solved.update(self._solved)
        return twin

    def forget(self) -> None:
        """Forget the answers: they depend on the prices of the programs' LMs."""
        with _REMEMBERING:
            self._solved.clear()

    def choose(self, preference: Preference) -> Chosen:
        """Return the arm of any preference, and the limit of each of its completions.

        Raises:
            CapsTooTight: No arm keeps its caps.
            ConfigurationError: It prices or caps something that was not measured.
        """
        with _REMEMBERING:
            found = self._solved.get(preference)
        if found is None:
            found = self._within_caps(preference, self.policy.arm(preference) or self._solve(preference))
            with _REMEMBERING:
                self._solved[preference] = found
        return found

    def _solve(self, preference: Preference) -> Arm:
        outcome = self.policy.solve(preference, self.strategy)
        arm = outcome.policy[0]
        evidence = int(outcome.evidence[0])
        if evidence < _THIN_EVIDENCE:
            logger.warning(
                "%s was solved from stored evidence; its arm (prompt %d, n=%d) rests on %d observations only. Compile "
                "with this preference for a firmer choice.", preference, arm.prompt, arm.n, evidence,
            )  # fmt: skip
        elif outcome.estimates.standard_error is not None:
            error = float(outcome.estimates.standard_error[0, arm.prompt, arm.n - 1])
            weights = preference.vector(self.strategy.objectives)
            scores = np.concatenate([o.score for o in self.policy.evidence]) @ weights
            if error > _WIDE_ERROR * np.ptp(scores[~np.isnan(scores)]):
                logger.warning(
                    "%s was solved from stored evidence; the utility of its arm (prompt %d, n=%d) has a standard error "
                    "of %.3f, because the run drew that prompt on %d examples only. Compile with this preference for a "
                    "firmer choice.", preference, arm.prompt, arm.n, error, evidence,
                )  # fmt: skip
        return arm

    def _within_caps(self, preference: Preference, arm: Arm) -> Chosen:
        if not preference.caps:
            return Chosen(arm=arm)
        charges = self.policy.charges(preference)
        check_caps(preference, arm, charges, self._programs.label(arm.prompt))
        price = self._price(arm.prompt) if preference.max_usd is not None else None
        return Chosen(arm=arm, tokens_each=tokens_of_each(preference, arm, charges, price))

    def _price(self, prompt: int) -> Price | None:
        """Return the price of a prompt's LM; None where it is not known, or where its predictors have several."""
        lms = [p.lm or dspy.settings.lm for _, p in self._programs.of(prompt).named_predictors()]
        prices = {price_of(lm, self.policy.cost.prices) if isinstance(lm, dspy.BaseLM) else None for lm in lms}
        return prices.pop() if len(prices) == 1 else None
