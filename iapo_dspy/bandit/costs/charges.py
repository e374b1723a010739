"""Resources that arms take, priced by contexts, and capped where a context sets a limit.

**Prices.** A context subtracts cost_weight * scale * cost(p, n) from the reward, and rate_r * use_r(p, n) for every
resource r that it prices by itself. Costs and uses are affine in what is drawn (a part per request, a part per
completion), so a price is too: price(c, p) = per_wave * waves + per_completion * completions.

**Caps.** An arm keeps a cap where an upper bound of what one call takes lies within it (`bounds`). Every wave of a call
takes its seconds anew; tokens and dollars add up whatever the waves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.bandit.costs.affine import AffineCosts
from iapo_dspy.bandit.costs.bounds import affine_seconds, upper_amounts, upper_seconds
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.preferences import RESOURCES
from iapo_dspy.types import Contexts, FloatArray, IntArray, Observations

_TOKENS, _PROMPT, _SECONDS = (RESOURCES.index(r) for r in ("tokens", "prompt_tokens", "seconds"))


class Charges:
    """Resources that the arms of one run take, with the prices and caps of its contexts.

    Args:
        contexts: Their cost weights, rates and caps.
        n_prompts: P.
        max_n: N.

    Attributes:
        answered: Which prompts have answered, with a completion that did not fail [P].
    """

    def __init__(self, contexts: Contexts, n_prompts: int, max_n: int) -> None:
        self._contexts = contexts
        self._n_prompts = n_prompts
        self._max_n = max_n
        self._costs = AffineCosts(n_prompts)
        self._pulls: list[tuple[IntArray, IntArray, FloatArray, FloatArray]] = []
        self.answered = np.zeros(n_prompts, dtype=bool)
        self._upper: FloatArray | None = None

    def update(self, observations: Observations) -> None:
        """Take in one more batch.

        Raises:
            ConfigurationError: Contexts price or cap a resource that the environment does not measure.
        """
        if not len(observations.pulls):
            return
        self._costs.update(observations)
        self.answered[np.repeat(observations.pulls.prompt, observations.pulls.size)[~observations.failed]] = True
        used, once = observations.used, observations.once
        if used is None or once is None:
            if not self._contexts.plain:
                raise ConfigurationError(
                    "A preference prices or caps tokens, dollars or seconds by themselves, and these observations do "
                    "not say what calls took of them (a recording, or a program saved by an older version). Use "
                    "Preference(cost=...), or compile again."
                )
            return
        self._pulls.append((observations.pulls.prompt, observations.pulls.size, used, once))
        self._upper = None

    def parts(self) -> tuple[FloatArray, FloatArray]:
        """Return mean use per request and per completion of every prompt [R, P] each; NaN where it is not known."""
        if not self._pulls:
            nothing = np.full((len(RESOURCES), self._n_prompts), np.nan)
            return nothing, nothing
        prompt, size, used, once = self._joined()
        pulls = np.bincount(prompt, minlength=self._n_prompts)
        completions = np.bincount(prompt, weights=size, minlength=self._n_prompts)
        with np.errstate(invalid="ignore", divide="ignore"):
            fixed = np.stack([np.bincount(prompt, weights=o, minlength=self._n_prompts) / pulls for o in once.T])
            rest = (used - once).T
            each = np.stack([np.bincount(prompt, weights=r, minlength=self._n_prompts) / completions for r in rest])
        fixed[_SECONDS], each[_SECONDS] = affine_seconds(prompt, size, used[:, _SECONDS], self._n_prompts)
        return fixed, each

    def use(self) -> FloatArray:
        """Return the mean use of a call of every arm [R, P, N]; NaN where it is not known."""
        fixed, each = self.parts()
        return np.asarray(fixed[:, :, None] + each[:, :, None] * np.arange(1, self._max_n + 1))

    def upper(self) -> FloatArray:
        """Return an upper bound of the use of a call of every arm [R, P, N]; NaN: not known.

        All N are drawn by one request; `upper_parts` has the amount of a further request.
        """
        if self._upper is None:
            request, completion = self.upper_parts()
            found = request[:, :, None] + completion[:, :, None] * np.arange(1, self._max_n + 1)
            if self._pulls:
                prompt, size, used, _ = self._joined()
                found[_TOKENS] = np.maximum(found[_TOKENS], np.arange(1, self._max_n + 1))  # no completion is empty
                found[_SECONDS] = upper_seconds(prompt, size, used[:, _SECONDS], self._n_prompts, self._max_n)
            self._upper = found
        return self._upper

    def upper_parts(self) -> tuple[FloatArray, FloatArray]:
        """Return upper bounds of a request and of a completion [R, P] each; NaN where not known, and of seconds."""
        shape = len(RESOURCES), self._n_prompts
        request, completion = np.full(shape, np.nan), np.full(shape, np.nan)
        if not self._pulls:
            return request, completion
        prompt, size, used, once = self._joined()
        paid = used[:, _TOKENS] + used[:, _PROMPT] > 0  # the others were refused before they took anything
        for r in range(len(RESOURCES)):
            if r != _SECONDS:
                drawn = prompt[paid], size[paid], used[paid, r], once[paid, r]
                request[r], completion[r] = upper_amounts(*drawn, self._n_prompts)
        return request, completion

    def prices(self, scale: float) -> tuple[FloatArray, FloatArray]:
        """Return the utility that a request and that a completion takes [C, P] each; NaN without evidence.

        Args:
            scale: Utility of one raw unit of cost at cost weight 1.
        """
        weight = self._contexts.cost[:, None] * scale
        per_wave, per_completion = weight * self._costs.fixed, weight * self._costs.per_completion
        if self._contexts.rates.any():
            fixed, each = self.parts()
            for r in np.flatnonzero(self._contexts.rates.any(axis=0)).tolist():
                rate = self._contexts.rates[:, r, None]
                # A resource that is not known does not matter where it has no price.
                per_wave = per_wave + np.where(rate > 0, rate * fixed[r], 0.0)
                per_completion = per_completion + np.where(rate > 0, rate * each[r], 0.0)
        return per_wave, per_completion

    def surcharge(self) -> FloatArray:
        """Return the utility that rates take from every arm, beside the cost [C, P, N]."""
        rates = self._contexts.rates
        if not rates.any():
            return np.zeros((len(rates), self._n_prompts, self._max_n))
        use = self.use()
        priced = [np.where(rates[:, r, None, None] > 0, rates[:, r, None, None] * use[r], 0.0) for r in range(len(use))]
        return np.asarray(np.sum(priced, axis=0))

    def most_waves(self) -> IntArray:
        """Return the largest number of waves in which an arm breaks no cap [C, P, N]; 0: it always breaks one.

        With caps, prompts that have never answered count as breaking them: a cheap failure is not an answer.
        """
        caps = self._contexts.caps
        most = np.full((len(caps), self._n_prompts, self._max_n), self._max_n, dtype=np.int64)
        if np.isinf(caps).all():
            return most
        upper, (request, _) = self.upper(), self.upper_parts()
        most[np.ix_(np.isfinite(caps).any(axis=1), ~self.usable)] = 0
        for r in np.flatnonzero(np.isfinite(caps).any(axis=0)).tolist():
            cap = caps[:, r, None, None]
            with np.errstate(invalid="ignore", divide="ignore"):
                if r == _SECONDS:  # every wave takes its time
                    waves = cap / upper[r]
                else:  # every wave after the first takes the part of a request once more
                    once = request[r, :, None]
                    more = np.where(once > 0, (cap - upper[r]) / once, np.inf)
                    waves = np.where(upper[r] <= cap, 1.0 + np.maximum(more, 0.0), 0.0)
            waves = np.where(
                np.isinf(cap), np.inf, np.nan_to_num(waves, nan=0.0, posinf=np.inf)
            )  # unknown: not trusted
            most = np.minimum(most, np.minimum(waves, self._max_n).astype(np.int64))
        return most

    def keeps(self) -> NDArray[np.bool_]:
        """Return which arms keep every cap of the context [C, P, N]."""
        return np.asarray(self.most_waves() > 0)

    def allowed(self) -> NDArray[np.bool_]:
        """Return which arms a context may choose [C, P, N]: those that keep its caps, or the nearest one if none."""
        keeps = self.keeps()
        for c in np.flatnonzero(~keeps.any(axis=(1, 2))).tolist():
            prompt, n = self.nearest(c)
            keeps[c, prompt, n - 1] = True
        return keeps

    def nearest(self, context: int) -> tuple[int, int]:
        """Return prompt and scale of the arm that comes nearest to keeping the caps of a context."""
        capped = np.isfinite(self._contexts.caps[context])
        excess = np.max(self.upper()[capped] / self._contexts.caps[context, capped, None, None], axis=0, initial=0.0)
        excess = np.where(np.isnan(excess) | ~self.usable[:, None], np.inf, excess)
        prompt, scale = divmod(int(excess.argmin()), self._max_n)
        return prompt, scale + 1

    @property
    def caps(self) -> FloatArray:
        """Most that a call may take of a resource [C, R]; infinite where there is no cap."""
        return self._contexts.caps

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which prompts have answered [P]; all of them where none has."""
        return self.answered if self.answered.any() else np.ones(self._n_prompts, dtype=bool)

    def _joined(self) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
        prompt, size, used, once = (np.concatenate(parts) for parts in zip(*self._pulls, strict=True))
        return prompt, size, used, once
