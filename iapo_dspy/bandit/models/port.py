"""The port of models that predict the reward of every cell at every scale, also above the number drawn.

`Predictor.predict` is called after every round with everything that was drawn by then; a predictor may start from what
it learnt in the call before. Its predictions need not be unbiased: `CorrectedEstimator` corrects them by unbiased
estimates of the same cells, which is why `given_others` must not use a cell's own draws. A predictor raises nothing of
its own: a prompt without draws gets the prediction of a typical prompt.

Example:
    >>> import numpy as np
    >>> class Half:
    ...     '''Expect half a point of every completion, whatever was drawn.'''
    ...     def predict(self, cells):
    ...         half = np.full((1, cells.n_prompts, cells.n_visited, 4), 0.5)  # one row of weights, max_n = 4
    ...         return Predictions(given_all=half, given_others=half)
    >>> isinstance(Half(), Predictor)
    True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.models.information import Knowledge
from iapo_dspy.bandit.models.surfaces import Dense, Patched, Surface
from iapo_dspy.bandit.stopping.estimates import StopEstimates
from iapo_dspy.types import FloatArray, IntArray


@runtime_checkable
class FittedModel(Protocol):
    """A model after a fit, which says more than rewards: when calls may stop."""

    def stops(self, row: int, prompts: IntArray, max_n: int, *, exact: bool = False) -> StopEstimates | None:
        """Estimate the stopping rules of some prompts.

        Args:
            row: Which row of objective weights.
            prompts: The prompts [Q], ascending.
            max_n: Largest scale.
            exact: Whether only rules that never change a result are asked for.

        Returns:
            The estimates; None where there is no rule to estimate.
        """


@runtime_checkable
class Informed(Protocol):
    """A fitted model that says what it does not know, by which the next pulls get their size."""

    def knowledge(self, row: int) -> Knowledge | None:
        """Return what the fit leaves open of the prompts.

        Args:
            row: Which row of objective weights.

        Returns:
            The knowledge; None where every completion so far is worth the same.
        """


class Simulated(NamedTuple):
    """Completions as a model expects them, in rows of n on the visited queries; the rows of a query are neighbours.

    Attributes:
        label: Answer classes [Q, V * copies, n], -1 where there is no vote; labels of one row mean the same for all
            prompts.
        value: Value of each completion under the row of weights [Q, V * copies, n]; NaN for failed ones.
    """

    label: IntArray
    value: FloatArray


@runtime_checkable
class Simulates(Protocol):
    """A fitted model that draws completions of several prompts together, as they may come on the visited queries."""

    def simulate(self, row: int, prompts: IntArray, n: int, copies: int, rng: np.random.Generator) -> Simulated:
        """Draw completions from what all draws say of them.

        Args:
            row: Which row of objective weights.
            prompts: The prompts [Q], ascending; each was drawn.
            n: Completions of a row.
            copies: Rows of each visited query. They differ in everything that the draws leave open.
            rng: Source of randomness.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Expected task rewards on the visited queries, in two readings.

    Attributes:
        given_all: From everything that was drawn [W, P, V, N].
        given_others: From everything but the cell's own draws [W, P, V, N]: independent of them, so that their mean
            difference from unbiased estimates of the same cells is the model's bias.
        model: The model behind them; None where calls are not to stop by it.
    """

    given_all: FloatArray
    given_others: FloatArray
    model: FittedModel | None = None

    def of_cells(self, cells: Cells) -> CellPredictions:
        """Return them cell by cell. A cell without draws has one reading: it has nothing to leave out."""
        at = cells.prompt, cells.query
        return CellPredictions(
            elsewhere=tuple(map(Dense, self.given_others)),
            given_all=self.given_all[:, at[0], at[1]],
            given_others=self.given_others[:, at[0], at[1]],
            model=self.model,
        )


@dataclass(frozen=True, kw_only=True)
class CellPredictions:
    """The same, cell by cell: what large data need.

    Attributes:
        elsewhere: Predictions for cells that were not drawn [W].
        given_all: Of the drawn cells, from everything that was drawn [W, G, N].
        given_others: Of the drawn cells, from everything but their own draws [W, G, N].
        model: The model behind them; None where calls are not to stop by it.
    """

    elsewhere: tuple[Surface, ...]
    given_all: FloatArray
    given_others: FloatArray
    model: FittedModel | None = None

    def of_cells(self, cells: Cells) -> CellPredictions:
        """Return them as they are."""
        return self

    def dense(self, cells: Cells) -> Predictions:
        """Return them for every prompt on every visited query, where these are few."""
        everyone = np.arange(cells.n_prompts)

        def whole(drawn: FloatArray) -> FloatArray:
            pairs = zip(self.elsewhere, drawn, strict=True)
            return np.stack([Patched(surface=s, cells=cells, drawn=d).block(everyone) for s, d in pairs])

        return Predictions(given_all=whole(self.given_all), given_others=whole(self.given_others), model=self.model)


@runtime_checkable
class Predictor(Protocol):
    """Learns from draws and predicts the reward of every prompt on every visited query."""

    def predict(self, cells: Cells) -> Predictions | CellPredictions:
        """Fit to all cells and predict, for the rows of weights, the prompts and the scales that it was made for."""
        ...
