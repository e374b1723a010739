"""The public names: complete, importable, in order, and each with words a user can read."""

import ast
import importlib
import inspect
from types import ModuleType

import pytest

import iapo_dspy
import iapo_dspy.testing
from iapo_dspy import adapters, ledger, metrics, objectives, proposers, tasks
from iapo_dspy.scoring import strategies

FACADES = [iapo_dspy, iapo_dspy.testing, adapters, ledger, metrics, objectives, proposers, strategies, tasks]


def in_isort_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as ruff sorts `__all__`."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2), name


@pytest.mark.parametrize("module", FACADES, ids=lambda module: str(module.__name__))
def test_everything_a_module_imports_for_users_is_exported(module: ModuleType) -> None:
    names = set(module.__all__)
    assert all(hasattr(module, name) for name in names)  # the root imports a name when it is first used
    private = {name for name in vars(module) if name.startswith("_")} - names
    own = {name for name, value in vars(module).items() if inspect.ismodule(value)} - names
    others = {
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", module.__name__).split(".")[0] not in ("iapo_dspy", "builtins")
    }
    assert set(vars(module)) - private - own - others == names
    assert module.__all__ == sorted(names, key=in_isort_order)


@pytest.mark.parametrize("module", FACADES, ids=lambda module: str(module.__name__))
def test_every_public_name_says_what_it_is(module: ModuleType) -> None:
    assert module.__doc__
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) or inspect.ismodule(value):
            said = inspect.getdoc(value) or ""
            assert len(said) > 20 and not said.startswith(f"{name}("), f"{name} has no docstring of its own"


def test_the_root_has_about_twenty_five_names_and_the_others_are_in_modules_of_their_own() -> None:
    assert len(iapo_dspy.__all__) <= 32
    for name in (
        "adapters",
        "errors",
        "objectives",
        "metrics",
        "ledger",
        "proposers",
        "events",
        "callbacks",
        "demo",
        "tasks",
    ):
        assert importlib.import_module(f"iapo_dspy.{name}") is getattr(iapo_dspy, name)


@pytest.mark.parametrize("name", iapo_dspy._MOVED)
def test_a_name_that_has_left_the_root_is_still_found_there(name: str) -> None:
    place = f"iapo_dspy.{iapo_dspy._MOVED[name]}"
    with pytest.warns(DeprecationWarning, match=rf"iapo_dspy\.{name} is {place}\.{name} today") as told:
        found = getattr(iapo_dspy, name)
    assert found is getattr(importlib.import_module(place), name) and told[0].filename == __file__


def test_a_name_that_never_was_there_is_not_found() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = iapo_dspy.Nothing  # type: ignore[attr-defined]


def test_type_checkers_do_not_take_any_name_for_a_public_one() -> None:
    module = ast.parse(inspect.getsource(iapo_dspy))
    assert not any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in module.body)
