"""Names and sizes that keep the package easy to draw; the directions of imports are contracts in pyproject.toml.

`python -m pytest -n 0 -s tests/unit/test_architecture.py` prints the numbers.
"""

import ast
from collections import Counter, defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

import iapo_dspy

PACKAGE = Path(iapo_dspy.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_MODULES = 12  # in a folder, beside its sub-folders and `__init__`
FACADES = {
    "adapters.py",
    "ledger.py",
    "metrics.py",
    "objectives.py",
    "proposers.py",
    "recordings.py",
}  # what users import
REPEATED = {"__init__", "__main__", "port"}  # names of modules that may stand more than once


def places(named: dict[str, list[str]]) -> str:
    return "; ".join(f"{name}: {', '.join(sorted(where))}" for name, where in sorted(named.items()))


def test_no_module_name_stands_twice() -> None:
    where = defaultdict(list)
    for path in MODULES:
        where[path.stem].append(str(path.relative_to(PACKAGE)))
    twice = {name: paths for name, paths in where.items() if len(set(paths) - FACADES) > 1 and name not in REPEATED}
    print(f"\n{len(MODULES)} modules; names that stand twice: {len(twice)}")
    assert not twice, places(twice)


def test_no_public_class_name_stands_twice() -> None:
    where = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(str(path.relative_to(PACKAGE)))
    twice = {name: paths for name, paths in where.items() if len(paths) > 1}
    print(f"\n{len(where)} names of public classes; names that stand twice: {len(twice)}")
    assert not twice, places(twice)


def test_no_folder_has_more_than_a_dozen_modules() -> None:
    sizes = Counter(str(path.parent.relative_to(PACKAGE)) for path in MODULES if path.stem != "__init__")
    print("\nmodules per folder:", ", ".join(f"{folder} {size}" for folder, size in sizes.most_common()))
    assert max(sizes.values()) <= MOST_MODULES, {folder: size for folder, size in sizes.items() if size > MOST_MODULES}


def test_no_module_imports_itself_through_others() -> None:
    graph = grimp.build_graph("iapo_dspy", cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    print(f"\n{len(imported)} modules, {graph.count_imports()} imports among them")
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


def test_no_text_has_marks_of_a_merge() -> None:
    root = PACKAGE.parent
    folders = [root / name for name in ("docs", "examples", "iapo_dspy", "tests")]
    texts = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".md", ".py", ".txt")]
    marked = [str(p.relative_to(root)) for p in texts if "\n" + "<" * 7 + " " in p.read_text(encoding="utf-8")]
    assert len(texts) > 500 and not marked, marked
