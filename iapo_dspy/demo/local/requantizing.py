"""Write the matrices of a GGUF file anew in another format; everything else stays as it is.

llama.cpp in the wheel of `xllamacpp` has fast code for Q8_0 and slow code for Q4_1, so a Q4_1 file is worth rewriting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iapo_dspy.demo.local.needs import needed


def requantize(source: Path, target: Path) -> None:
    """Write the tensors of `source` that are Q4_1 as Q8_0 into `target`; all other tensors and values are copied.

    A Q8_0 block of 32 values has one scale and 8 bits a value, so it renders what 4 bits said within half a percent of
    the block's largest value.

    Args:
        source: A GGUF file.
        target: The file to write; what is there is overwritten.

    Raises:
        LocalModelError: The package gguf is missing.
        OSError: `source` cannot be read, or `target` not written.
    """
    gguf = needed("gguf")
    old, new = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    try:
        for name, field in reader.fields.items():
            if not name.startswith("GGUF.") and name != "general.architecture":  # the writer has its own
                _copy_value(gguf, writer, name, field)
        for tensor in reader.tensors:
            kind, data = tensor.tensor_type, tensor.data
            if kind == old:
                kind, data = new, gguf.quants.quantize(gguf.quants.dequantize(data, old), new)
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _copy_value(gguf: Any, writer: Any, name: str, field: Any) -> None:
    if name == "general.file_type":
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
        return
    kind = field.types[0]
    element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(name, field.contents(), kind, sub_type=element)
