"""Every command beside a number of the docs is found, and can be run."""

from __future__ import annotations

import re
from pathlib import Path

import print_numbers as numbers
import pytest

FOUND = list(numbers.commands_of(numbers.pages()))


def test_commands_are_found_in_the_text_on_lines_of_their_own_and_over_several_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "Text with `python examples/a.py --runs\n  2` and `examples/b.py`.\n\n"
        "    OMP_NUM_THREADS=1 python examples/c.py MATH_FILE\n\n"
        "```bash\npython -m iapo_dspy.simulation --runs 3 \\\n  --jobs 2\n"
        "python examples/a.py --runs 2  # the same\n```\n",
        encoding="utf-8",
    )
    first, second, third = numbers.commands_of([page])
    assert (first.page, first.text) == ("page.md", "python examples/a.py --runs 2")
    assert second.text == "OMP_NUM_THREADS=1 python examples/c.py MATH_FILE"
    assert third.text == "python -m iapo_dspy.simulation --runs 3 --jobs 2"
    assert [each.script.name for each in (first, second, third)] == ["a.py", "c.py", "__main__.py"]
    assert first.missing({}) == [] and second.missing({}) == ["MATH_FILE"] and second.missing({"MATH_FILE": "x"}) == []


def test_a_command_runs_with_its_files_and_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "a.py").write_text(
        "import os, sys\nopen('out', 'w').write(os.environ['LEVEL'] + ' ' + sys.argv[1])\nsys.exit(3)\n"
    )
    command = numbers.Command(page="page.md", text="LEVEL=7 python examples/a.py MATH_FILE")
    assert command.run({"MATH_FILE": "a file.npz"}) == 3
    assert (tmp_path / "out").read_text() == "7 a file.npz"


def test_many_pages_have_commands() -> None:
    assert {"README.md", "docs/explanation/algorithm.md"} <= {each.page for each in FOUND} and len(FOUND) > 30


@pytest.mark.parametrize("command", FOUND, ids=lambda command: f"{command.page}: {command.text}")
def test_each_command_names_a_script_that_exists_and_options_that_it_has(command: numbers.Command) -> None:
    assert command.script.is_file()
    if command.script.name != "__main__.py":
        source = command.script.read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in re.findall(r" (--[\w-]+)", command.text))
