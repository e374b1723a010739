"""Parameters that a deployment refuses: they are left out, or go by their other name, from then on."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dspy

from iapo_dspy.sampling.lm.params import deployment_of
from iapo_dspy.sampling.lm.refusals import may_refuse_params

logger = logging.getLogger(__name__)

# A request makes sense without any of these. Where a refusal names several, the first one in this order goes.
_DISPENSABLE = (
    "seed",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "user",
    "verbosity",
    "parallel_tool_calls",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_p",
    "top_k",
    "top_p",
    "temperature",
    "stop",
    "response_format",
    "reasoning_effort",
    "thinking",
)
# A limit is never left out, because budgets and caps rest on it.
_OTHER_NAME = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_SAMPLING = {
    "temperature": " Completions of one query differ as far as the model's own temperature makes them.",
    "seed": " Its completions cannot be repeated.",
}
_NEUTRAL = {"temperature": 1.0, "top_p": 1.0}
_UNSUPPORTED = re.compile(
    r"unsupported|not (?:be )?(?:support|allow|permit|accept|available|compatible|recogni[sz]ed|implemented)"
    r"|n[o']t support|(?:un(?:known|expected|recogni[sz]ed)|invalid|extra) (?:\w+ )?(?:param|field|arg|input|key|value)"
    r"|deprecated|cannot both|cannot be (?:used|set|specified|combined|given)|only (?:the )?(?:default|one)"
    r"|(?:may|can|must) only be|must be (?:unset|omitted|removed)|or unset",
    re.IGNORECASE,
)


@dataclass(eq=False)
class RefusedParams:
    """The parameters that one deployment has refused.

    Attributes:
        left_out: Their names.
        renamed: Name -> the name that the deployment takes instead.
    """

    left_out: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)

    def fit(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters without those that were refused."""
        kept = {self.renamed.get(name, name): value for name, value in params.items() if name not in self.left_out}
        if self.renamed:  # both names may have been given
            limits = {self.renamed[name]: params[name] for name in self.renamed if params.get(name) is not None}
            kept |= {name: min(limit, params.get(name) or limit) for name, limit in limits.items()}
        return kept

    def trial(self, params: Mapping[str, Any], model: str) -> ShrinkingRequest:
        """Return a request of these parameters that can be sent again without those that it is refused for."""
        return ShrinkingRequest(known=self, model=model, params=self.fit(params))

    def remember(self, name: str, model: str) -> None:
        """Leave a parameter out from now on, after a request has worked without it."""
        other = _OTHER_NAME.get(name)
        if name in self.left_out or name in self.renamed:
            return
        if other is None:
            self.left_out.add(name)
            logger.warning("%s refuses %s; it is asked without it from now on.%s", model, name, _SAMPLING.get(name, ""))
        else:
            self.renamed[name] = other
            logger.warning("%s refuses %s; it is sent %s instead from now on.", model, name, other)


@dataclass(eq=False, kw_only=True)
class ShrinkingRequest:
    """One request, sent with fewer parameters after each refusal that names one.

    Attributes:
        params: The parameters to send.
    """

    known: RefusedParams
    model: str
    params: dict[str, Any]
    gone: list[str] = field(default_factory=list)

    def leave_out(self, error: Exception) -> bool:
        """Leave out the parameter that a refusal names; False where it names none that can go."""
        name = refused_param(error, self.params)
        if name is None or _OTHER_NAME.get(name) in self.gone:
            return False
        self.gone.append(name)
        self.params = without(self.params, name)
        return True

    def worked(self) -> None:
        """Say that the request was answered: what it left out is left out from now on."""
        for name in self.gone:
            self.known.remember(name, self.model)


def refused_params_of(lm: dspy.BaseLM) -> RefusedParams:
    """Return what is known of an LM's deployment: one object for all LMs and all runs of this process that share it."""
    return _of_deployment(deployment_of(lm)) if isinstance(lm, dspy.LM) else RefusedParams()


@functools.lru_cache(maxsize=1024)
def _of_deployment(_: Hashable) -> RefusedParams:
    return RefusedParams()


def refused_param(error: BaseException, sent: Mapping[str, Any]) -> str | None:
    """Return the parameter that a refusal is about; None where it names none that can go.

    A value that the user chose must be said not to be supported, not merely to be out of range. Values that change
    nothing, such as a temperature of 1, may go whatever the refusal says of them.

    Args:
        error: Why the request failed.
        sent: Its parameters.
    """
    if not may_refuse_params(error):
        return None
    text = f"{error} {getattr(error, 'param', None) or ''}"
    named = [
        name for name in (*_OTHER_NAME, *_DISPENSABLE) if name in sent and re.search(rf"(?<!\w){name}(?!\w)", text)
    ]
    neutral = [name for name in named if name in _NEUTRAL and sent[name] == _NEUTRAL[name]]
    if neutral:
        return neutral[0]
    unsupported = [n for n in named if n not in _OTHER_NAME or _OTHER_NAME[n] not in sent]
    return unsupported[0] if unsupported and _UNSUPPORTED.search(text) else None


def without(sent: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return parameters without one of them, or with its other name."""
    left = {k: v for k, v in sent.items() if k != name}
    return {**left, _OTHER_NAME[name]: sent[name]} if name in _OTHER_NAME else left
