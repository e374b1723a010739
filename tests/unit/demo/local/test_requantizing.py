"""Q4_1 to Q8_0, on a file of 64 numbers that is made here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iapo_dspy.demo.local.needs import needed
from iapo_dspy.demo.local.requantizing import requantize
from iapo_dspy.errors import LocalModelError

pytestmark = pytest.mark.extra


@pytest.fixture
def gguf() -> Any:
    return pytest.importorskip("gguf")


@pytest.fixture
def source(gguf: Any, tmp_path: Path) -> Path:
    """A Q4_1 matrix of two blocks of 32 numbers, a vector as it was trained, and values of several kinds."""
    path = tmp_path / "q4.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_token_list(["a", "b"])
    writer.add_token_types([1, 1])
    # A block of Q4_1: scale and least value in half precision, then 16 bytes of two 4-bit numbers each. The low half of
    # byte i is number i, the high half number i + 16. So these blocks are 0.5 * q - 1 and 2 * q, with q as below.
    low, high = np.arange(16, dtype=np.uint8), np.arange(16, dtype=np.uint8)[::-1]
    packed = low | (high << 4)
    blocks = [
        np.concatenate([np.array([scale, least], dtype=np.float16).view(np.uint8), packed])
        for scale, least in ((0.5, -1.0), (2.0, 0.0))
    ]
    matrix = np.stack(blocks)
    writer.add_tensor("blk.0.ffn_up.weight", matrix, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("blk.0.ffn_norm.weight", np.array([1.5, -2.25, 1 / 3], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_matrix_has_the_same_numbers_within_half_a_step_of_eight_bits(gguf: Any, source: Path) -> None:
    target = source.with_name("q8.gguf")
    requantize(source, target)
    tensors = {t.name: t for t in gguf.GGUFReader(target).tensors}
    matrix = tensors["blk.0.ffn_up.weight"]
    assert matrix.tensor_type == gguf.GGMLQuantizationType.Q8_0
    up = np.arange(16)
    expected = np.stack([0.5 * np.concatenate([up, up[::-1]]) - 1, 2.0 * np.concatenate([up, up[::-1]])])
    got = gguf.quants.dequantize(matrix.data, matrix.tensor_type)
    # Q8_0: the largest of a block is 127 steps, so no number is off by more than half of its 127th part, beside the
    # rounding of the scale to half precision.
    steps = np.abs(expected).max(axis=1, keepdims=True) / 127
    assert got.shape == (2, 32) and np.all(np.abs(got - expected) <= 0.5 * steps + expected.max() * 2**-11)
    assert not np.array_equal(got, np.roll(expected, 1, axis=0))


def test_all_else_is_as_it_was(gguf: Any, source: Path) -> None:
    target = source.with_name("q8.gguf")
    requantize(source, target)
    reader = gguf.GGUFReader(target)
    (vector,) = (t for t in reader.tensors if t.name == "blk.0.ffn_norm.weight")
    assert vector.tensor_type == gguf.GGMLQuantizationType.F32
    assert np.array_equal(vector.data, np.array([1.5, -2.25, 1 / 3], dtype=np.float32))
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert values == {
        "general.architecture": "llama",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q8_0,
        "general.name": "tiny",
        "llama.context_length": 64,
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.token_type": [1, 1],
    }


def test_a_missing_package_says_how_to_install_it() -> None:
    with pytest.raises(LocalModelError, match=r'pip install "iapo_dspy\[local\]"'):
        needed("a_package_that_nobody_has")
