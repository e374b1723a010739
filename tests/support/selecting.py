"""A whole deployed call in one step: read every prediction, then choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from iapo_dspy.scoring.strategies import Selection, Strategy
from iapo_dspy.types import FloatArray


def select(
    strategy: Strategy, inputs: Mapping[str, Any], predictions: Sequence[dspy.Prediction], weights: FloatArray
) -> Selection | None:
    return strategy.choose([strategy.read(inputs, p) for p in predictions], weights)
