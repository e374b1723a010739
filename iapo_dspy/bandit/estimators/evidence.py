"""Evidence of every arm, query by query."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from iapo_dspy.bandit.estimators.port import Estimates
from iapo_dspy.bandit.models.port import FittedModel
from iapo_dspy.bandit.models.surfaces import Surface, groups
from iapo_dspy.types import FloatArray, IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Evidence of every arm, query by query, so that arms can be compared on the same queries.

    Attributes:
        values: Corrected task rewards of every arm on every visited query, one surface per row of weights [W]; their
            mean over V is the estimate.
        influence: The same with the whole residual at scale 1 [W]: their spread over V tells the error of the
            estimate. A prompt's level is fitted to the very draws that the residual is made of, so that its error shows
            in the residual's spread only, however small a share of the residual the estimate takes.
        n_visited: V.
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

    values: tuple[Surface, ...]
    influence: tuple[Surface, ...]
    n_visited: int
    bias: FloatArray
    doubt: FloatArray
    queries: IntArray
    row: IntArray
    factor: FloatArray
    cost: FloatArray
    model: FittedModel | None = None
    modelled: bool = True

    @cached_property
    def _moments(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean of the values and variance of the influence over V [W, P, N] each, and the range of the values [W]."""
        n_prompts, max_n = self.bias.shape[1:]
        mean, variance = np.empty((2, *self.bias.shape))
        spread = np.empty(len(self.values))
        for w, (values, influence) in enumerate(zip(self.values, self.influence, strict=True)):
            low, high = np.inf, -np.inf
            for prompts in groups(n_prompts, self.n_visited, max_n):
                block = values.block(prompts)
                mean[w, prompts] = block.mean(axis=1)
                low, high = min(low, float(block.min())), max(high, float(block.max()))
                variance[w, prompts] = influence.block(prompts).var(axis=1)
            spread[w] = high - low
        return mean, variance, spread

    @cached_property
    def _errors(self) -> FloatArray:
        """Standard errors [W, P, N]."""
        return np.asarray(np.sqrt(self._moments[1] / max(self.n_visited - 1, 1) + self.doubt))

    @property
    def spread(self) -> FloatArray:
        """Range of the values under each row of weights [W]."""
        return self._moments[2]

    def reward(self) -> FloatArray:
        """Implement `ArmEvidence.reward`."""
        return np.asarray(self.factor[:, None, None] * self._moments[0][self.row])

    def standard_error(self) -> FloatArray:
        """Implement `ArmEvidence.standard_error`, for new queries like the visited ones."""
        return np.asarray(self.factor[:, None, None] * self._errors[self.row])

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
        arms = values.at(np.append(prompts, prompt), np.append(scales, scale))
        difference = arms[:-1] - arms[-1]
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
