"""The points of the README's picture come from the demo's results, each once and cheapest first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import frontier_picture
import pytest
from frontier_picture import OURS, SINGLE, STUDENT, TUNED, draw, points_of


def row(tokens: float, accuracy: float, **name: str) -> dict[str, Any]:
    return {"tokens_per_question": tokens, "accuracy": accuracy, **name}


DEMO = {
    "mv": {
        "preferences": [row(600, 0.9), row(15, 0.6), row(600, 0.9)],
        "baselines": [
            row(6, 0.58, name=SINGLE),
            row(30, 0.63, name=TUNED),
            row(6, 0.4, name=STUDENT),
            row(1, 1, name="x"),
        ],
    }
}


def test_points_are_those_of_each_way() -> None:
    assert points_of(DEMO) == {
        OURS: [(15, 0.6), (600, 0.9)],
        TUNED: [(30, 0.63)],
        SINGLE: [(6, 0.58)],
        STUDENT: [(6, 0.4)],
    }
    assert set(frontier_picture.LOOKS) == set(points_of(DEMO))


def test_the_picture_is_the_same_file_again_on_a_transparent_ground(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        draw(points_of(DEMO), tmp_path / name)
    first = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert first == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "#2f81f7" in first and "#ffffff" not in first
