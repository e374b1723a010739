"""The settings of an optimizer: read as its attributes, checked whenever they change, never changed by their data."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from iapo_dspy import IAPO, Budget, Cost, MajorityVote, Preference
from iapo_dspy.errors import ConfigurationError
from tests.support.compiling import iapo
from tests.support.worlds import exact


def optimizer(**given: Any) -> IAPO:
    return iapo(**{"strategy": MajorityVote("answer"), "metric": exact, "budget": 100, **given})


def test_settings_are_attributes_of_the_optimizer() -> None:
    made = optimizer(log_dir="runs/x", preferences=[Preference("a"), Preference("b", cost=1.0)])
    assert made.budget == Budget(100) and made.cost == Cost() and made.log_dir == Path("runs/x")
    assert made.default_preference == "a" and made.lms == () and made.batch is None
    assert {f.name for f in dataclasses.fields(made.settings)} < {n for n in dir(made.settings)}
    with pytest.raises(AttributeError, match="'IAPO' object has no attribute 'nothing'"):
        _ = made.nothing
    assert copy.copy(made).max_n == made.max_n


def test_a_changed_setting_is_checked() -> None:
    made = optimizer()
    made.max_n = 4
    assert made.settings.max_n == made.max_n == made.get_params()["max_n"] == 4
    with pytest.raises(ConfigurationError, match="max_n=0"):
        made.max_n = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.settings.max_n = 5  # type: ignore[misc]
    assert made.max_n == 4


def test_params_are_data_of_their_own() -> None:
    made = optimizer(candidates=["one", "two"])
    params = made.get_params()
    params["candidates"].append("three")
    params["preferences"].clear()
    assert made.get_params()["candidates"] == ["one", "two"] and len(made.preferences) == 3


def test_candidates_of_a_generator_are_read_once() -> None:
    made = optimizer(candidates=(text for text in ("one", "two")))
    assert made.get_params()["candidates"] == made.get_params()["candidates"] == ["one", "two"]
