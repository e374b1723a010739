"""Chooses the arm of a preference from a policy's evidence, without LM calls."""

from __future__ import annotations

import logging
import operator
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cachetools import FIFOCache, cachedmethod

from iapo_dspy.bandit.confidence.confidence_map import ConfidenceMap
from iapo_dspy.bandit.confidence.learning import calibrated
from iapo_dspy.preferences import Preference
from iapo_dspy.program.evidence.caps import PromptUse, check_caps, most_of_prompts
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.scoring.strategies import Strategy
from iapo_dspy.types import Arm

logger = logging.getLogger(__name__)

_MOST_SOLVED = 256  # preferences whose arms are remembered
_THIN_EVIDENCE = 8  # blocks below which the estimate of an arm that was never compiled deserves a warning
_WIDE_ERROR = 0.1  # standard error, in units of the range of the completions' rewards, above which it does, too
_REMEMBERING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The answer to a preference.

    Attributes:
        arm: Its arm.
        uses: Prompt -> the most that a call takes of it, by estimate plus its uncertainty; nothing without caps.
        calibration: How sure its answers are; None where that is not known.
    """

    arm: Arm
    uses: Mapping[int, PromptUse] = field(default_factory=dict)
    calibration: ConfidenceMap | None = None


class Solver:
    """Answers for any preference, and remembers its answers: they depend on the policy and on nothing else.

    Args:
        policy: The arms of compiled preferences, and the evidence that answers for others.
        strategy: The strategy that the policy was compiled with.
    """

    def __init__(self, policy: CompiledPolicy, strategy: Strategy) -> None:
        self.policy = policy
        self.strategy = strategy
        self._solved: FIFOCache[Any, Chosen] = FIFOCache(_MOST_SOLVED)

    @cachedmethod(operator.attrgetter("_solved"), lock=lambda _: _REMEMBERING)
    def choose(self, preference: Preference) -> Chosen:
        """Return the arm of any preference.

        Raises:
            CapsTooTight: No arm keeps its caps.
            ConfigurationError: It prices or caps something that was not measured.
        """
        arm = self.policy.arm(preference)
        calibration = None if arm is None else self.policy.calibration(preference, arm)
        if arm is None:
            arm, calibration = self._solve(preference)
        if not preference.caps:
            return Chosen(arm=arm, calibration=calibration)
        charges = self.policy.charges(preference)
        check_caps(preference, arm, charges, self.policy.prompts[arm.prompt].label)
        return Chosen(arm=arm, uses=most_of_prompts(arm, charges), calibration=calibration)

    def _solve(self, preference: Preference) -> tuple[Arm, ConfidenceMap | None]:
        outcome = self.policy.solve([preference], self.strategy)
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
        for promise in outcome.promises:
            if promise is not None and not promise.kept:
                logger.warning("%s: %s.", preference, promise.in_words)
        (found,) = calibrated(self.policy.problem([preference], self.strategy), outcome)
        return arm, None if found is None else found.map
