"""Everything that a run observes, also what measures the chosen arms, which is no part of a saved policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from iapo_dspy.environments.live.environment import LiveEnvironment
from iapo_dspy.types import Observations, Pulls


@contextmanager
def observed() -> Iterator[list[Observations]]:
    """Collect the observations of the runs within, pull by pull."""
    found: list[Observations] = []
    pull = LiveEnvironment.pull

    def noted(self: LiveEnvironment, pulls: Pulls) -> Observations:
        found.append(pull(self, pulls))
        return found[-1]

    with patch.object(LiveEnvironment, "pull", noted):
        yield found
