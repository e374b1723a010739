"""Settings of batches are checked."""

from __future__ import annotations

from typing import Any

import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.batches.running import BatchAPI


@pytest.mark.parametrize(
    "wrong",
    [
        {"poll_seconds": 0},
        {"poll_seconds": True},
        {"timeout_hours": float("inf")},
        {"discount": 1.0},
        {"discount": -0.1},
        {"retries": -1},
        {"retries": 1.5},
        {"settle_seconds": -1},
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        BatchAPI(**wrong)


def test_truth_values_are_settings() -> None:
    assert BatchAPI.of(True) == BatchAPI() and BatchAPI.of(None) is None and BatchAPI.of(False) is None
    assert BatchAPI.of(BatchAPI(discount=0.5)) == BatchAPI(discount=0.5)
