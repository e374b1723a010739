"""Prompts that have parts in common: what some of them show says something of their relatives.

A number of interest of prompt p, such as its level, is taken to be

    typical + sum over parts f of effect[f, label of p in f] + own deviation,

with normal effects and own deviations (crossed random effects; Henderson 1975). Given the variances, the effects are
predicted from noisy estimates of the prompts (best linear unbiased prediction, BLUP). The variances are fitted by
expectation maximisation. As a few prompts say little of them, each part has a pseudo-label of typical size, own
deviations a pseudo-prompt and a least share. Where a part says nothing its effects come out as about 0, and prompts are
shrunk to the typical one, nearly as without parts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from iapo_dspy.types import FloatArray, IntArray

_LEAST_OWN = 0.1  # share of own deviations in the variance
_STEPS = 2  # of expectation maximisation at a time


class Relatives:
    """Learns how much numbers of prompts, K of each for B events, owe to the parts of the prompts.

    Args:
        n_events: B.
        parts: Labels [P, F], see `Problem.parts`.
        own: Variance of own deviations to start from [K], > 0.
        effects: Variance of the effects of all parts together to start from [K], > 0.

    Attributes:
        own: Variance of own deviations [B, K].
        effects: Variance of the effects of each part [B, K, F].
    """

    def __init__(self, n_events: int, parts: IntArray, *, own: FloatArray, effects: FloatArray) -> None:
        n_parts = parts.shape[1]
        labels = [parts[:, f, None] == np.unique(parts[:, f]) for f in range(n_parts)]
        self._design: FloatArray = np.concatenate([np.ones((len(parts), 1)), *labels], axis=1)  # [P, 1 + L]
        part = np.repeat(np.arange(n_parts), [found.shape[1] for found in labels])
        self._of_part: FloatArray = (part == np.arange(n_parts)[:, None]).astype(np.float64)  # [F, L]
        self._typical = effects[:, None] / n_parts
        self.own: FloatArray = np.tile(own, (n_events, 1))
        self.effects: FloatArray = np.tile(self._typical, (n_events, 1, n_parts))

    @property
    def share(self) -> FloatArray:
        """Share of own deviations in the variance between prompts [B, K], in (0, 1]."""
        return np.asarray(self.own / (self.own + self.effects.sum(axis=2)))

    def blup(self, noise: FloatArray) -> Callable[[FloatArray], FloatArray]:
        """Return what makes of estimates of all prompts [B, P, K] what the parts of every prompt say of it [B, P, K].

        Args:
            noise: Variances of their errors [B, P, K]; infinite where a prompt was not drawn. 0 says that the
                estimates are already shrunk to what comes out for them, and gives the mode of both.
        """
        weight = self._weight(noise)
        design, precision = self._equations(weight)
        gain = np.linalg.solve(precision, np.swapaxes(design * weight[..., None], 2, 3))

        def expected(values: FloatArray) -> FloatArray:
            effect = gain @ np.swapaxes(values, 1, 2)[..., None]
            return np.swapaxes((design @ effect)[..., 0], 1, 2)

        return expected

    def learn(self, values: FloatArray, noise: FloatArray) -> None:
        """Fit the variances some more.

        Args:
            values: Estimates of all prompts, not shrunk [B, P, K].
            noise: Variances of their errors [B, P, K]; infinite where a prompt was not drawn.
        """
        values = np.swapaxes(values, 1, 2)
        drawn = np.isfinite(np.swapaxes(noise, 1, 2))
        number, labels = drawn.sum(axis=2) + 1, self._of_part.sum(axis=1) + 1
        for _ in range(_STEPS):
            weight = self._weight(noise)
            design, precision = self._equations(weight)
            covariance = np.asarray(np.linalg.inv(precision))
            effect = covariance @ (np.swapaxes(design, 2, 3) @ (weight * values)[..., None])
            expected = (design @ effect)[..., 0]
            trust = self.own[..., None] * weight  # of the prompt's own deviation
            variance = self.own[..., None] * (1.0 - trust) + trust**2 * _leverage(design, covariance)
            square = (trust * (values - expected)) ** 2 + variance
            own = ((square * drawn).sum(axis=2) + self.own) / number  # as is where nothing was drawn
            square = effect[..., 0] ** 2 + np.diagonal(covariance, axis1=2, axis2=3)  # in units of the part's variance
            self.effects = (self.effects * (square[..., 1:] @ self._of_part.T) + self._typical) / labels
            self.own = np.maximum(own, _LEAST_OWN / (1.0 - _LEAST_OWN) * self.effects.sum(axis=2))

    def unexplained(self, noise: FloatArray) -> FloatArray:
        """Return the share of the variance of each prompt that the others' estimates leave [B, P, K], in (0, 1].

        The typical prompt is taken to be known.

        Args:
            noise: Variances of the errors of all prompts [B, P, K]; infinite where a prompt was not drawn.
        """
        weight = self._weight(noise)
        design, precision = self._equations(weight)
        known = _leverage(design[..., 1:], np.asarray(np.linalg.inv(precision[..., 1:, 1:])))
        effects, own = self.effects.sum(axis=2)[..., None], self.own[..., None]
        others = np.minimum(known / np.maximum(1.0 - weight * known, 1e-9), effects)  # without the prompt itself
        return np.swapaxes((own + others) / (own + effects), 1, 2)

    def _weight(self, noise: FloatArray) -> FloatArray:
        return np.asarray(1.0 / (self.own[..., None] + np.swapaxes(noise, 1, 2)))

    def _equations(self, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the design in units of each part's deviation [B, K, P, 1 + L], and the precision of its effects."""
        scale = np.concatenate([np.ones((*self.own.shape, 1)), np.sqrt(self.effects) @ self._of_part], axis=2)
        design = self._design * scale[:, :, None]
        precision = np.swapaxes(design * weight[..., None], 2, 3) @ design
        label = np.arange(1, precision.shape[-1])
        precision[..., label, label] += 1.0
        precision[..., 0, 0] += 1e-9  # where nothing was drawn
        return design, precision


def _leverage(design: FloatArray, covariance: FloatArray) -> FloatArray:
    """Return the variance of what the effects make of every prompt [B, K, P]."""
    return np.asarray(((design @ covariance) * design).sum(axis=3))
