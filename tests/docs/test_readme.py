"""The README's first program, as a reader runs it: pasted into a file, in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SNIPPET = re.compile(r"<!-- snippet -->\s*```python\n(.*?)```.*?```text\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_the_first_program_prints_what_the_readme_shows(tmp_path: Path) -> None:
    found = SNIPPET.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    program, shown = found.groups()
    (tmp_path / "first.py").write_text(program, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [sys.executable, "first.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert [line.rstrip() for line in done.stdout.splitlines()] == shown.splitlines()
