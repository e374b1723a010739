"""An optimizer's settings as plain data, for experiment trackers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dspy

from iapo_dspy.bandit.named import named, short_name
from iapo_dspy.sampling.ledger.field_values import jsonable
from iapo_dspy.scoring.user_functions import name_of

if TYPE_CHECKING:
    from iapo_dspy.optimizer.iapo import IAPO

__all__ = ["params_of"]


def params_of(optimizer: IAPO) -> dict[str, Any]:
    """Return an optimizer's settings as plain JSON data that no change of can change the optimizer.

    Functions are there by name and candidate programs by class, because they may hold LMs with their keys.
    """
    candidates = optimizer.candidates
    return {
        "strategy": jsonable(optimizer.strategy.to_dict()),
        "metric": name_of(optimizer.metric) if optimizer.metric is not None else None,
        "preferences": [jsonable(p.to_dict()) for p in optimizer.preferences],
        "default_preference": optimizer.default_preference,
        "preference_field": optimizer.preference_field,
        "cost": jsonable(optimizer.cost.to_dict()),
        "cost_unit": optimizer.cost.unit,
        "max_n": optimizer.max_n,
        "budget": {k: v for k, v in dataclasses.asdict(optimizer.budget).items() if v is not None},
        "candidates": _candidates(candidates),
        "decoding": _decodings(optimizer.decoding),
        "lms": [_models(element) for element in optimizer.lms],
        "joint_limit": optimizer.joint_limit,
        "algorithm": short_name(named(optimizer.algorithm)),
        "stopping": optimizer.stopping,
        "seed": optimizer.seed,
        "num_threads": optimizer.num_threads,
        "rollout_timeout": optimizer.rollout_timeout,
        "max_errors": optimizer.max_errors,
        "log_dir": str(optimizer.log_dir) if optimizer.log_dir is not None else None,
        "batch": optimizer.batch is not None,
        "track_stats": optimizer.track_stats,
    }


def _candidates(candidates: Any) -> Any:
    if candidates is None:
        return None
    if isinstance(candidates, Mapping):  # predictor -> its instructions
        return {str(name): [_candidate(c) for c in options] for name, options in candidates.items()}
    return [_candidate(c) for c in candidates]


def _decodings(decodings: Any) -> Any:
    if isinstance(decodings, Mapping):  # model string -> its decodings
        return {str(model): _decodings(own) for model, own in decodings.items()}
    return [d.as_kwargs() for d in decodings]


def _models(element: Any) -> Any:
    """An element of `lms` by its model strings: the LMs may hold keys."""
    if isinstance(element, Mapping):
        return {str(name): lm.model for name, lm in element.items()}
    return element.model


def _candidate(candidate: Any) -> Any:
    if isinstance(candidate, dspy.Module):
        instructions = {name: p.signature.instructions for name, p in candidate.named_predictors()}
        return {"program": type(candidate).__name__, "instructions": instructions}
    return jsonable(candidate) if isinstance(candidate, (str, dict)) else type(candidate).__name__
