"""The models that ship: one set of weights, as it is and rounded to three bits.

Rounding the matrices of a model to a few bits is how people make a cheaper build of it. It makes a second model of less
skill without more weights to ship: it slips more often in every step of its work, and voting mends part of that.

The models are test fixtures of about a million parameters and no evidence about large language models or their
quantised builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from iapo_dspy.demo.model import FloatArray, Tensors, TinyLM

MODEL_NAME: Final = "tiny-adder"
SMALL_MODEL_NAME: Final = "tiny-adder-q3"
BITS: Final[Mapping[str, int | None]] = MappingProxyType({MODEL_NAME: None, SMALL_MODEL_NAME: 3})
"""Name of a shipped model -> bits of a weight; None as trained."""

GROUP: Final = 32
"""Weights of one row that share a scale."""


def load_shipped(name: str = MODEL_NAME) -> TinyLM:
    """Loads a shipped model, one of `BITS`.

    Raises:
        ValueError: No model of that name ships.
    """
    if name not in BITS:
        raise ValueError(f"no model {name!r} ships; there are {list(BITS)}")
    bits = BITS[name]
    return TinyLM.load() if bits is None else TinyLM.load(lambda tensors: quantized(tensors, bits))


def quantized(tensors: Tensors, bits: int) -> dict[str, npt.NDArray[Any]]:
    """Rounds the matrices of a model to ``bits`` a weight, as round-to-nearest builds do; not vectors and embeddings.

    Raises:
        ValueError: ``bits`` is not between 2 and 8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be between 2 and 8, got {bits}")
    return {k: _rounded(v, bits) if v.ndim == 2 and "embed" not in k else v for k, v in tensors.items()}


def _rounded(matrix: npt.NDArray[Any], bits: int) -> FloatArray:
    """Symmetric, with the largest weight of each group on the grid: whole multiples of its 1 / (2^(bits - 1) - 1)."""
    groups = np.asarray(matrix, dtype=np.float32).reshape(len(matrix), -1, GROUP)
    step = np.abs(groups).max(axis=-1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    whole = np.round(np.divide(groups, step, out=np.zeros_like(groups), where=step > 0))
    return np.asarray(whole * step, dtype=np.float32).reshape(matrix.shape)
