"""Cost of an arm: a part per query whatever its scale, and a part per completion."""

from __future__ import annotations

import numpy as np

from iapo_dspy.types import FloatArray, IntArray, Observations


class AffineCosts:
    """Affine costs of every arm: cost(p, n) = fixed(p) + n * per_completion(p).

    The fixed part is paid once per query, however many completions are drawn (`Observations.overhead`), such as the
    prompt tokens of a request that brings all n. Both parts are means over everything that was observed of a prompt, so
    that all of its arms are priced by the same evidence, completions outside whole blocks included.

    Args:
        n_prompts: P.
    """

    def __init__(self, n_prompts: int) -> None:
        self._fixed = _Means(n_prompts)
        self._completion = _Means(n_prompts)

    def update(self, observations: Observations) -> None:
        """Take in one more batch."""
        pulls = observations.pulls
        if len(pulls) == 1:  # sequential algorithms make thousands of them
            prompt = int(pulls.prompt[0])
            self._fixed.add_one(prompt, observations.overhead)
            self._completion.add_one(prompt, observations.cost)
        elif len(pulls):
            self._fixed.add(pulls.prompt, observations.overhead)
            self._completion.add(np.repeat(pulls.prompt, pulls.size), observations.cost)

    @property
    def fixed(self) -> FloatArray:
        """Mean overhead of a pull [P]; NaN without evidence."""
        return self._fixed.means()

    @property
    def per_completion(self) -> FloatArray:
        """Mean cost of a completion beside the overhead [P]; NaN without evidence."""
        return self._completion.means()

    def arms(self, max_n: int) -> FloatArray:
        """Return the cost of every arm up to `max_n` [P, N]; NaN for prompts without evidence."""
        scales = np.arange(1, max_n + 1)
        return np.asarray(self.fixed[:, None] + scales * self.per_completion[:, None])


class _Means:
    """Mean of each group's values, exact where all values of a group are equal.

    Sums are of differences from the group's first value: a recording's constant costs give back that constant, not a
    sum of roundings that depends on how many completions were drawn.
    """

    def __init__(self, n: int) -> None:
        self._count = np.zeros(n, dtype=np.int64)
        self._first = np.zeros(n)
        self._excess = np.zeros(n)

    def add_one(self, group: int, values: FloatArray) -> None:
        """Add values [G] of one group."""
        if not self._count[group]:
            self._first[group] = values[0]
        self._count[group] += len(values)
        self._excess[group] += (values - self._first[group]).sum()

    def add(self, group: IntArray, values: FloatArray) -> None:
        """Add values [G], each of its group [G]."""
        present, position = np.unique(group, return_index=True)
        new = self._count[present] == 0
        self._first[present[new]] = values[position[new]]
        self._count += np.bincount(group, minlength=len(self._count))
        self._excess += np.bincount(group, weights=values - self._first[group], minlength=len(self._count))

    def means(self) -> FloatArray:
        """Return the mean of every group [n], NaN where it is empty."""
        count = np.where(self._count > 0, self._count, np.nan)
        return np.asarray(self._first + self._excess / count)
