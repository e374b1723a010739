"""Options that are rarely set: two objects, checked when they are made, and old keywords in their place."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from iapo_dspy import IAPO, BatchAPI, Budget, Cost, Execution, MajorityVote, Preference, Search, proposers
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.events import Event
from iapo_dspy.optimizer.options import OTHER_NAMES
from tests.support.worlds import exact

WRITER = proposers.Shorten()
OLD: dict[str, tuple[Any, type, str]] = {
    "cost": (Cost(usd=1), Search, "cost_unit"),
    "algorithm": ("psst", Search, "algorithm"),
    "stopping": (None, Search, "stopping"),
    "joint_limit": (4, Search, "joint_limit"),
    "proposers": (WRITER, Search, "proposers"),
    "rollout_timeout": (3.0, Execution, "rollout_timeout"),
    "outage_patience": (0.0, Execution, "outage_patience"),
    "batch": (BatchAPI(poll_seconds=5.0), Execution, "batch"),
    "default_preference": ("thrifty", Execution, "default_preference"),
    "preference_field": ("mood", Execution, "preference_field"),
    "progress": (False, Execution, "progress"),
}


@pytest.mark.parametrize("name", OLD)
def test_a_keyword_of_version_0_1_does_what_its_option_does(name: str) -> None:
    value, kind, today = OLD[name]
    place = kind.__name__.lower()
    with pytest.warns(
        DeprecationWarning, match=rf"IAPO\({name}=\.\.\.\) .* IAPO\({place}={kind.__name__}\({today}="
    ) as told:
        old = IAPO(metric=exact, log_dir="runs/x", **{name: value})
    assert len(told) == 1 and told[0].filename == __file__, "the warning is about the line of the user"
    new = IAPO(metric=exact, log_dir="runs/x", **{place: kind(**{today: value})})
    default = IAPO(metric=exact, log_dir="runs/x")
    assert getattr(old, name) == getattr(new, today) == getattr(new.settings, today)
    assert getattr(old, name) != getattr(default, today)
    assert old.settings == dataclasses.replace(new.settings, strategy=old.strategy)


def test_every_option_can_still_be_given_beside_the_others() -> None:
    known = {f.name for kind in (Search, Execution) for f in dataclasses.fields(kind)}
    assert {today for _, _, today in OLD.values()} == known - {"callbacks", "compound", "max_unreadable"}, (
        "new options are not old keywords"
    )


def test_several_old_keywords_warn_once_and_stand_beside_new_ones() -> None:
    with pytest.warns(DeprecationWarning) as told:
        made = IAPO(metric=exact, algorithm="psst", progress=False, stopping=None, search=Search(joint_limit=5))
    assert len(told) == 1 and "search=Search(algorithm=..., stopping=...), execution=Execution(progress=...)" in str(
        told[0].message
    )
    assert isinstance(made.algorithm, PSST) and made.joint_limit == 5 and made.stopping is None


@pytest.mark.parametrize(
    ("given", "hint"),
    [("candidtes", "candidates"), ("metrik", "metric"), ("algoritm", "algorithm"), ("prefernces", "preferences")],
)
def test_a_keyword_that_was_never_known_is_refused_with_the_nearest_one(given: str, hint: str) -> None:
    settings: dict[str, Any] = {"metric": exact, given: []}
    with pytest.raises(ConfigurationError, match=rf"no parameter '{given}'. Did you mean '{hint}'\?"):
        IAPO(**settings)
    with pytest.raises(ConfigurationError, match=r"no parameter 'zzz'\.$"):
        IAPO(metric=exact, zzz=1)


def test_a_keyword_of_another_optimizer_is_refused_with_its_name_here() -> None:
    with pytest.raises(ConfigurationError, match=r"no parameter 'reflection_lm'\. Use 'prompt_model'\."):
        IAPO(metric=exact, reflection_lm=None)
    parameters = {*inspect.signature(IAPO).parameters, *(f.name for f in dataclasses.fields(Search))}
    assert set(OTHER_NAMES.values()) <= parameters and not set(OTHER_NAMES) & parameters


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Search, {"algorithm": "unheard of"}, "algorithm='unheard of'"),
        (Search, {"algorithm": "triple"}, "algorithm='triple' looks at single completions only"),
        (Search, {"stopping": "now"}, "stopping='now'"),
        (Search, {"cost_unit": 0.5}, r"give a Cost, .* Preference\(cost=\.\.\.\)"),
        (Search, {"proposers": "shorten"}, "proposers='shorten'"),
        (Search, {"proposers": []}, "proposers="),
        (Search, {"joint_limit": 0}, "joint_limit=0: give a whole number >= 1"),
        (Execution, {"rollout_timeout": 0}, "rollout_timeout=0"),
        (Execution, {"outage_patience": -1.0}, "outage_patience=-1.0"),
        (Execution, {"max_unreadable": 0}, r"max_unreadable=0: give a share in \(0, 1\], or None"),
        (Execution, {"max_unreadable": 1.5}, "max_unreadable=1.5"),
        (Execution, {"max_unreadable": True}, "max_unreadable=True"),
        (Execution, {"max_unreadable": "half"}, "max_unreadable='half'"),
        (Execution, {"batch": "yes"}, "batch='yes'"),
        (Execution, {"default_preference": 3}, "default_preference=3"),
        (Execution, {"preference_field": "two words"}, "preference_field='two words'"),
    ],
)
def test_options_are_checked_when_they_are_made(kind: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        kind(**given)


def test_a_metric_is_enough() -> None:
    made = IAPO(metric=exact, auto="light")
    assert made.strategy.to_dict() == MajorityVote().to_dict() and made.get_params()["strategy"]["field"] is None
    assert (made.max_n, made.budget.completions) == (8, 1500)
    assert [p.name for p in made.preferences] == ["quality", "balanced", "thrifty"]
    with pytest.raises(ConfigurationError, match=r"MajorityVote\(\) needs a metric"):
        IAPO()


def test_there_are_at_most_nineteen_parameters_and_all_are_documented() -> None:
    parameters = [name for name in inspect.signature(IAPO.__init__).parameters if name not in ("self", "old")]
    assert parameters[:4] == ["metric", "strategy", "preferences", "auto"] and parameters[-2:] == [
        "search",
        "execution",
    ]
    assert len(parameters) <= 19
    for kind, names in (
        (IAPO, parameters),
        *((k, [f.name for f in dataclasses.fields(k)]) for k in (Search, Execution)),
    ):
        assert all(f"\n        {name}: " in (kind.__doc__ or "") for name in names)


def test_a_setting_is_read_and_set_by_its_own_name_and_its_old_one() -> None:
    made = IAPO(metric=exact, preferences=[Preference("a"), Preference("b")])
    assert made.cost == made.cost_unit == Cost()
    made.cost_unit = Cost(usd=1)
    assert made.cost == Cost(usd=1) == made.settings.cost_unit
    with pytest.raises(ConfigurationError, match="joint_limit=0"):
        made.joint_limit = 0
    with pytest.raises(ConfigurationError, match="strategy='majorty'"):
        made.strategy = "majorty"
    assert made.joint_limit == 32 and isinstance(made.strategy, MajorityVote)


def test_what_is_set_later_is_read_as_it_is_when_the_optimizer_is_built() -> None:
    made = IAPO(metric=exact, auto="medium")
    made.algorithm, made.log_dir, made.preferences = "psst", "runs", [Preference("mine")]
    assert isinstance(made.algorithm, PSST) and made.log_dir == Path("runs") and made.default_preference == "mine"
    assert made.search == Search(algorithm="psst")
    made.search = Search(stopping="exact")
    assert made.stopping == "exact" and isinstance(made.algorithm, Auto)
    made.execution = Execution(progress=False)
    assert made.settings.progress is False
    made.budget = 500
    assert (made.budget, made.auto, made.max_n) == (Budget(500), None, 16)
    made.auto = "light"
    assert (made.budget, made.max_n) == (Budget(1_500), 8)


def test_iterators_are_read_once() -> None:
    heard: list[Event] = []
    execution = Execution(callbacks=(f for f in [heard.append]))  # type: ignore[arg-type]
    assert IAPO(metric=exact, execution=execution).settings.callbacks == (heard.append,)
    search = Search(proposers=iter([WRITER]))  # type: ignore[arg-type]
    assert IAPO(metric=exact, search=search).settings.proposers == (WRITER,)


@pytest.mark.parametrize("place", ["search", "execution"])
@pytest.mark.parametrize("wrong", [None, {"algorithm": "psst"}, Search, Execution, "psst"], ids=repr)
def test_options_that_are_something_else_are_refused(place: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{place}=.*: give {place.title()}\(\.\.\.\), or leave it out"):
        IAPO(metric=exact, **{place: wrong})


@pytest.mark.parametrize("wrong", [None, "no", 3])
def test_progress_is_true_or_false(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="give True or False"):
        Execution(progress=wrong)
