"""Evidence of every arm, query by query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.estimators.port import Estimates
from iapo_dspy.bandit.models.port import FittedModel
from iapo_dspy.types import FloatArray, IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Evidence of every arm, query by query, so that arms can be compared on the same queries.

    Attributes:
        values: Corrected task rewards [W, P, V, N]; their mean over V is the estimate.
        influence: The same with the whole residual at scale 1 [W, P, V, N]: their spread over V tells the error of the
            estimate. A prompt's level is fitted to the very draws that the residual is made of, so that its error shows
            in the residual's spread only, however small a share of the residual the estimate takes.
        bias: Variance of the bias that may be left in the estimate [W, P, N], as prompts are ranked for further draws.
        doubt: The same as standard errors count it [W, P, N]: above the scales with evidence it grows with every
            doubling by as much as the model's bias was seen to grow from scale to scale.
        queries: Queries with evidence of the scale [P, N].
        row: Which of the W rows each context uses [C].
        factor: Multiplier of the row's values in each context [C].
        cost: Raw cost of an arm [P, N]; NaN for prompts without evidence.
        model: The model behind the values; None where calls are not to stop by it.
        modelled: Whether `values` come from a model of how cells vary. Plain effects of prompts and queries say nothing
            of that, and then arms are as far apart as `influence` says.
    """

    values: FloatArray
    influence: FloatArray
    bias: FloatArray
    doubt: FloatArray
    queries: IntArray
    row: IntArray
    factor: FloatArray
    cost: FloatArray
    model: FittedModel | None = None
    modelled: bool = True

    @property
    def n_visited(self) -> int:
        """Implement `ArmEvidence.n_visited`: V."""
        return int(self.values.shape[2])

    def reward(self) -> FloatArray:
        """Implement `ArmEvidence.reward`."""
        return np.asarray(self.factor[:, None, None] * self.values.mean(axis=2)[self.row])

    def standard_error(self) -> FloatArray:
        """Implement `ArmEvidence.standard_error`, for new queries like the visited ones."""
        variance = self.influence.var(axis=2) / max(self.n_visited - 1, 1) + self.doubt
        return np.asarray(self.factor[:, None, None] * np.sqrt(variance)[self.row])

    def against(
        self, context: int, prompts: IntArray, scales: IntArray, prompt: int, scale: int, *, model: bool = False
    ) -> FloatArray:
        """Implement `ArmEvidence.against`.

        With `model`, prompts' levels are taken as the model has them, without their error: how far the arms seem apart.
        It ranks prompts for further draws slightly better than the whole error does.
        """
        row = self.row[context]
        values = self.values[row] if model and self.modelled else self.influence[row]
        bias = self.bias[row] if model else self.doubt[row]
        difference = values[prompts, :, scales - 1] - values[prompt, :, scale - 1]
        variance = difference.var(axis=1) / max(self.n_visited - 1, 1)
        # The bias of one prompt at neighbouring scales is mostly the same bias.
        shared = np.where(prompts == prompt, np.minimum(bias[prompts, scales - 1], bias[prompt, scale - 1]), 0.0)
        variance += bias[prompts, scales - 1] + bias[prompt, scale - 1] - 2.0 * shared
        return np.asarray(self.factor[context] * np.sqrt(np.maximum(variance, 0.0)))

    def estimates(self) -> Estimates:
        """Implement `ArmEvidence.estimates`; prompts that were never drawn have no estimate."""
        drawn = self.queries[:, :1] > 0
        return Estimates(
            reward=np.where(drawn, self.reward(), np.nan),
            cost=self.cost,
            count=self.queries,
            standard_error=np.where(drawn, self.standard_error(), np.nan),
        )
