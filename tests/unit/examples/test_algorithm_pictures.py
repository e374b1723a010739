"""The pictures of docs/explanation/algorithm.md: all are there, and can be drawn."""

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[3] / "docs"
SHOWN = re.findall(
    r"!\[[^\]]+\]\(\.\./pictures/(\w+)\.svg\)", (DOCS / "explanation" / "algorithm.md").read_text(encoding="utf-8")
)
SMALL: dict[str, dict[str, Any]] = {
    "shared": {"repetitions": 50},
    "law": {},
    "parts": {"questions": 5},
    "information": {"queries": 12},
    "correction": {"seeds": 1, "most": 12},
    "allocation": {"budget": 300},
    "newcomers": {"runs": 1, "budget": 300},
    "end": {"budget": 400},
    "measuring": {"runs": 2, "per_prompt": (20,)},
}


def test_the_page_shows_each_picture_once():
    drawn = {path.stem for path in (DOCS / "pictures").iterdir()} - {"frontier"}  # the README's
    assert sorted(SHOWN) == sorted(drawn) == sorted(SMALL)
    assert all(path.suffix == ".svg" and path.stat().st_size < 60_000 for path in (DOCS / "pictures").iterdir())


@pytest.mark.extra
@pytest.mark.parametrize("name", SMALL)
def test_a_picture_can_be_drawn(name):
    pytest.importorskip("matplotlib")
    from algorithm_pictures import PICTURES

    figure = PICTURES[name](**SMALL[name])
    assert all(axes.has_data() and axes.get_xlabel() for axes in figure.axes) and figure.axes[0].get_ylabel()
