"""Values of every prompt on every visited query at every scale, worked out where they are asked for.

P prompts on V queries at N scales are too many numbers to keep: 200 x 20,000 x 64 doubles take 2 GB. Most of them are
predictions for cells that were never drawn, and follow from a few numbers per query and per prompt. So a `Surface`
gives them prompt by prompt or arm by arm, and `Patched` puts the values of drawn cells over it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from iapo_dspy.bandit.cells import Cells
from iapo_dspy.types import FloatArray, IntArray

_CHUNK = 1 << 21  # array elements that one step may hold


class Surface(Protocol):
    """Predictions for every prompt on every visited query, as for a cell without draws of its own."""

    def block(self, prompts: IntArray) -> FloatArray:
        """Return the values of these prompts [Q, V, N], a new array."""
        ...

    def at(self, prompts: IntArray, scales: IntArray) -> FloatArray:
        """Return the values of these arms [M, V], a new array; scales are 1-based."""
        ...


@dataclass(frozen=True, eq=False)
class Dense:
    """A surface that is kept as an array.

    Attributes:
        values: [P, V, N].
    """

    values: FloatArray

    def block(self, prompts: IntArray) -> FloatArray:
        """Implement `Surface.block`."""
        return np.asarray(self.values[prompts])

    def at(self, prompts: IntArray, scales: IntArray) -> FloatArray:
        """Implement `Surface.at`."""
        return np.asarray(self.values[prompts, :, scales - 1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Patched:
    """A surface with the values of the drawn cells over it.

    Attributes:
        surface: The values elsewhere.
        cells: The drawn cells.
        drawn: Their values [G, N].
    """

    surface: Surface
    cells: Cells
    drawn: FloatArray

    def block(self, prompts: IntArray) -> FloatArray:
        """Implement `Surface.block`."""
        out = self.surface.block(prompts)
        at, cell = self.cells.of_prompts(prompts)
        out[at, self.cells.query[cell]] = self.drawn[cell]
        return out

    def at(self, prompts: IntArray, scales: IntArray) -> FloatArray:
        """Implement `Surface.at`."""
        out = self.surface.at(prompts, scales)
        at, cell = self.cells.of_prompts(prompts)
        out[at, self.cells.query[cell]] = self.drawn[cell, scales[at] - 1]
        return out


def groups(n_prompts: int, n_visited: int, max_n: int) -> Iterator[IntArray]:
    """Cut the prompts 0 .. P - 1 into groups whose blocks fit into memory."""
    step = max(1, _CHUNK // (n_visited * max_n))
    for begin in range(0, n_prompts, step):
        yield np.arange(begin, min(begin + step, n_prompts))
