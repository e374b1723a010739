"""The examples in the package's docstrings do what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

import iapo_dspy

PACKAGE = Path(iapo_dspy.__file__).parent
WITH_EXAMPLES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert tried and not failed, capsys.readouterr().out


def test_every_port_shows_an_example() -> None:
    ports = {path for path in PACKAGE.rglob("port.py") if ">>>" not in path.read_text(encoding="utf-8")}
    assert not ports
