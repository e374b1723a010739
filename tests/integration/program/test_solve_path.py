"""The path of a preference: `solve` goes through the rooms of the package, and back to none that it left."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import dspy
import pytest

import iapo_dspy
from iapo_dspy import Preference
from tests.fixtures.make_v0_1 import CASES, lm, load, program_within, world
from tests.support.loopback import Loopback

PACKAGE = Path(iapo_dspy.__file__).parent
FILES = Path(__file__).parents[2] / "fixtures" / "v0_1"


def room_of(frame: FrameType) -> str | None:
    """Return the folder of the package with the code of a frame; None for `types` and the like, and for others."""
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(PACKAGE) or path.parent == PACKAGE:
        return None
    return path.relative_to(PACKAGE).parts[0]


def rooms_within(frame: FrameType | None, outermost: FrameType) -> tuple[str, ...]:
    """Return the rooms of the calls from `outermost` to this frame, each once for calls in a row."""
    rooms = []
    while frame is not None and frame is not outermost:
        rooms.append(room_of(frame))
        frame = frame.f_back
    return tuple(room for room, _ in itertools.groupby(r for r in reversed(rooms) if r is not None))


@pytest.mark.parametrize("name", ["vote", "psst", "best_of_n", "caps"])
def test_solving_a_preference_goes_back_to_no_room(name: str) -> None:
    paths: set[tuple[str, ...]] = set()
    here = sys._getframe()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and room_of(frame) is not None:
            paths.add(rooms_within(frame, here))

    with Loopback(world) as server, dspy.context(lm=lm(server.base)):
        program = program_within(CASES[name], load(CASES[name], FILES / name / "program.json", server.base))
        sys.setprofile(watch)
        try:
            program.solve(Preference(cost=0.37))
        finally:
            sys.setprofile(None)
        assert not server.requests
    print("\n" + "\n".join(" > ".join(path) for path in sorted(paths)))
    assert {("program",), ("program", "bandit")} <= paths
    assert all(len(set(path)) == len(path) for path in paths)
