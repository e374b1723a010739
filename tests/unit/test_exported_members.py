"""The public names: complete, importable, in order, and each with words a user can read."""

import inspect
from types import ModuleType

import pytest

import iapo_dspy
import iapo_dspy.testing
from iapo_dspy.prompts import proposers
from iapo_dspy.scoring import metrics, objectives, strategies

FACADES = [iapo_dspy, iapo_dspy.testing, objectives, proposers, strategies]


def in_isort_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as ruff sorts `__all__`."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2), name


@pytest.mark.parametrize("module", FACADES, ids=lambda module: str(module.__name__))
def test_everything_a_module_imports_for_users_is_exported(module: ModuleType) -> None:
    names = set(module.__all__)
    private = {name for name in vars(module) if name.startswith("_")} - names
    own = {name for name, value in vars(module).items() if inspect.ismodule(value)} - names
    others = {
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", module.__name__).split(".")[0] not in ("iapo_dspy", "builtins")
    }
    assert set(vars(module)) - private - own - others == names
    assert module.__all__ == sorted(names, key=in_isort_order)


@pytest.mark.parametrize("module", [*FACADES, metrics], ids=lambda module: str(module.__name__))
def test_every_public_name_says_what_it_is(module: ModuleType) -> None:
    assert module.__doc__
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) or inspect.ismodule(value):
            said = inspect.getdoc(value) or ""
            assert len(said) > 20 and not said.startswith(f"{name}("), f"{name} has no docstring of its own"
