"""The snippets of CONTRIBUTING.md run as they are written."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["objective", "strategy", "algorithm"])
def test_a_snippet_runs(snippet: str, tmp_path: Path) -> None:
    assert "def test_" in snippet
    exec(compile(snippet, str(tmp_path / "snippet.py"), "exec"), {"__name__": "snippet"})
