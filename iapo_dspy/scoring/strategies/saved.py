"""Strategies as plain JSON data: rebuild those that need no code of the user's, and compare others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.scoring.answers.equality import saved_equality
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.objectives.recipes import made_of, recipe_of
from iapo_dspy.scoring.strategies.averages import Mean, Median
from iapo_dspy.scoring.strategies.best_of_n import BestOfN
from iapo_dspy.scoring.strategies.mixed import Mixed
from iapo_dspy.scoring.strategies.port import Calibrates, Strategy
from iapo_dspy.scoring.strategies.vote import MajorityVote
from iapo_dspy.scoring.strategies.weighted_vote import WeightedVote

_FUNCTIONS = ("normalize", "score", "equal")  # where a function of the user's is kept by its name


@dataclass(frozen=True, kw_only=True)
class Given:
    """The parts that a strategy is rebuilt with, beside its own data.

    Attributes:
        recipes: Recipes of its built-in objectives, as `recipes_of` returned them.
        lms: LMs that judges may ask.
        trusted: Whether addresses in the file are used.
        strict: Whether the student must declare the field that is read.
    """

    recipes: Mapping[str, Any] = field(default_factory=dict)
    lms: Sequence[dspy.BaseLM] = ()
    trusted: bool = False
    strict: bool = False

    def objectives(self, part: str, saved: Sequence[Mapping[str, Any]]) -> list[Objective] | None:
        """Return the objectives of a part of the strategy; None where one of them is code of the user's."""
        found = self.recipes.get(part) or ()
        if len(found) != len(saved) or not all(found):
            return None
        return [made_of({**r, "name": o["name"]}, self.lms, self.trusted) for r, o in zip(found, saved, strict=True)]


def rebuilt(data: Mapping[str, Any], given: Given) -> Strategy | None:
    """Rebuild a strategy that needs no code of the user's; None for others.

    Raises:
        StateError: A built-in objective lacks its LM, or an address must be trusted first.
    """
    kind = data.get("kind")
    if kind in ("best_of_n", "mixed"):
        best = given.objectives("objectives", data["objectives"])
        vote = rebuilt(data["vote"], given) if kind == "mixed" else None
        if best is None or kind == "best_of_n":
            return BestOfN(best) if best is not None else None
        return Mixed(vote, objectives=best, name=data["name"]) if isinstance(vote, MajorityVote) else None
    if functions_of({**data, "weight": None}):
        return None
    if kind in ("majority_vote", "weighted_vote"):
        settings: dict[str, Any] = {"bounds": tuple(data["bounds"]), "strict": given.strict}
        settings["equal"] = saved_equality(data.get("equal"))
        if kind == "majority_vote":
            return MajorityVote(data["field"], **settings)
        weights = given.objectives("weight", data["weight"])
        return WeightedVote(data["field"], weight=weights[0], **settings) if weights else None
    if kind in ("mean", "median"):
        if data.get("affine"):
            return Mean(data["field"], affine=True, bounds=tuple(data["bounds"]), strict=given.strict)
        loss = {k: data[k] for k in ("label", "loss", "scale")}
        make = Mean if kind == "mean" else Median
        return make(data["field"], range=tuple(data["range"]), **loss, strict=given.strict)
    return None


def for_solving(data: Mapping[str, Any]) -> Strategy | None:
    """Rebuild a strategy that solves preferences from stored evidence, and has no code of the user's to score with.

    None for a class of strategy that is the user's own.
    """
    found = rebuilt({**_codeless(data), "vote": _codeless(data.get("vote") or {})}, _Unscored())
    if isinstance(found, Calibrates) and data.get("calibration"):
        return found.restore(data["calibration"])
    return found


def _codeless(data: Mapping[str, Any]) -> dict[str, Any]:
    return {**data, "normalize": None, "equal": None}


class _Unscored(Given):
    """Gives objectives of the right names and bounds that score nothing."""

    def objectives(self, part: str, saved: Sequence[Mapping[str, Any]]) -> list[Objective] | None:
        """Return stand-ins of a part of the strategy."""
        return [
            Objective(o["name"], _unscored, calibrate=o["calibrate"])
            if "calibrate" in o
            else Objective(o["name"], _unscored, o["bounds"])
            for o in saved
        ]


def _unscored(example: dspy.Example, prediction: dspy.Prediction) -> float:
    raise ConfigurationError("This strategy was read without its functions: it solves preferences and scores nothing.")


def recipes_of(strategy: Strategy) -> dict[str, Any]:
    """Return the recipes of a strategy's objectives as JSON data, null for those that are code of the user's."""
    best = strategy.best if isinstance(strategy, Mixed) else strategy
    vote = strategy.vote if isinstance(strategy, Mixed) else strategy
    found = {}
    if isinstance(best, BestOfN):
        found["objectives"] = [recipe_of(objective) for objective in best.parts]
    if isinstance(vote, WeightedVote):
        found["weight"] = [recipe_of(vote.weight)]
    return found


def functions_of(data: Any) -> list[str]:
    """Return the names of the user's functions in a strategy's data, wherever they are."""
    if isinstance(data, Mapping):
        own = [data[k] for k in _FUNCTIONS if isinstance(data.get(k), str)]
        return own + [name for v in data.values() for name in functions_of(v)]
    return [name for v in data for name in functions_of(v)] if isinstance(data, (list, tuple)) else []


def without_functions(data: Any) -> Any:
    """Return a strategy's data without the names of its functions, and without the scales that a run has learnt."""
    if isinstance(data, Mapping):
        return {
            k: "a function" if k in _FUNCTIONS and isinstance(v, str) else without_functions(v)
            for k, v in data.items()
            if k != "calibration"
        }
    return [without_functions(v) for v in data] if isinstance(data, (list, tuple)) else data
