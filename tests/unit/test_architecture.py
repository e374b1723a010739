"""Data flows one way: nothing later is imported by anything earlier."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "iapo_dspy"

# Layer -> the layers it may import besides itself.
EARLY = {"errors", "preferences", "types"}
ALLOWED = {
    "errors": set(),
    "preferences": {"errors"},
    "types": {"errors", "preferences"},
    "bandit": EARLY,
    "sampling": EARLY,
    "scoring": EARLY | {"bandit", "sampling"},  # judges, embeddings and reward models are calls, metered as such
    "proposers": EARLY,
    "environments": EARLY | {"bandit", "scoring", "sampling"},
    "report": EARLY | {"bandit"},
    "simulation": EARLY | {"bandit", "environments", "report"},
    "program": EARLY | {"bandit", "scoring", "sampling", "proposers", "environments", "report"},
    "demo": None,  # an application of the package: may use everything
    "__init__": None,
}
# Third-party names that only these layers may import.
THIRD_PARTY = {
    "litellm": {"sampling", "demo"},
    "dspy": {"scoring", "sampling", "proposers", "environments", "program", "demo"},
    "torch": {"scoring"},
    "transformers": {"scoring"},
}
BANDIT_MAY_IMPORT = {"numpy", "iapo_dspy"}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports(path: Path) -> list[tuple[str, list[str]]]:
    """Every (module, names) imported anywhere in the file, also inside functions."""
    found: list[tuple[str, list[str]]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.extend((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction of data"
            found.append((node.module or "", [alias.name for alias in node.names]))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_directions(path: Path) -> None:
    layer = layer_of(path)
    assert layer in ALLOWED, f"{path} is in no known layer"
    allowed = ALLOWED[layer]
    for module, names in imports(path):
        root, _, rest = module.partition(".")
        if root in THIRD_PARTY:
            assert layer in THIRD_PARTY[root], f"{path} imports {module}"
        if layer == "bandit":
            import sys

            assert root in BANDIT_MAY_IMPORT or root in sys.stdlib_module_names, f"{path} imports {module}"
        if root != "iapo_dspy" or allowed is None:
            continue
        targets = [rest.split(".")[0]] if rest else names
        for target in targets:
            assert target == layer or target in allowed, f"{path} ({layer}) imports iapo_dspy.{target}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_program_and_the_demo_know_modules_and_teleprompters(path: Path) -> None:
    if layer_of(path) in {"program", "demo"}:
        return
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dspy":
            assert node.attr not in {"Module", "Teleprompter"}, f"{path}: dspy.{node.attr}"
    for module, names in imports(path):
        assert not module.startswith("dspy.teleprompt"), f"{path} imports {module}"
        assert not (module.startswith("dspy") and {"Module", "Teleprompter"} & set(names)), f"{path} imports {names}"


def test_the_bandit_has_no_clock_and_no_io() -> None:
    for path in (PACKAGE / "bandit").rglob("*.py"):
        roots = {module.split(".")[0] for module, _ in imports(path)}
        assert not roots & {"time", "datetime", "os", "io", "pathlib", "random", "threading", "asyncio"}, path
