"""The whole path on `transformers serve`, which answers n > 1 with one choice and a 200."""

from __future__ import annotations

import pytest

from tests.servers.paths import Run, WholePath

pytestmark = pytest.mark.server
KIND = "transformers"


class TestWholePath(WholePath):
    def test_what_is_missing_is_asked_for_one_by_one(self, run: Run) -> None:
        assert all(len(e.choices) == 1 for e in run.exchanges)
        assert run.report.spent.requests == run.report.spent.completions
        together = [i for i, e in enumerate(run.exchanges) if e.body.get("n", 1) > 1]
        # Those in flight before two of them were answered; none later.
        assert 2 <= len(together) <= 64 and max(together) < 2 * 64
