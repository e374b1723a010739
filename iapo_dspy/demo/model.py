"""The forward pass of the demo language model in numpy.

The model is a small Qwen2 decoder: RMSNorm, rotary positions, grouped-query attention with biases on q, k and v, SwiGLU
and tied embeddings. Its folder is a Hugging Face model folder (``config.json``, ``model.safetensors``,
``tokenizer.json``), so other servers can load the same weights.

Axes used below: B sequences in the batch, T positions of a prompt, L cached positions, H heads, J key-value
heads, G heads for each key-value head, D size of a head, W width, V vocabulary.

The model is a test fixture of about a million parameters. It is no evidence about large language models.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from iapo_dspy.demo.tokenizer import Tokenizer

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Tensors = Mapping[str, npt.NDArray[Any]]

WEIGHTS: Final = Path(__file__).parent / "weights"
"""The folder of the shipped weights."""

CACHE_ROUND: Final = 32
"""Cached positions are padded to a multiple of this."""

MANY_ROWS: Final = 16
"""Rows of a matrix come in multiples of this: BLAS then works on each row the same way, whatever the batch is."""

_ROUND_PROMPT: Final = 16


@dataclass(frozen=True, kw_only=True)
class _Layer:
    qkv: FloatArray  # (W, (H + 2 J) D), the norm and the attention's scale folded in
    qkv_bias: FloatArray  # ((H + 2 J) D,)
    out: FloatArray  # (H D, W)
    gate_up: FloatArray  # (W, 2 I), the norm folded in
    down: FloatArray  # (I, W)


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The state kept of a prompt: keys and values (layers, J, T, D), and the logits (V,) of its last position."""

    keys: FloatArray  # (layers, J, T, D)
    values: FloatArray  # (layers, J, T, D)
    logits: FloatArray  # (V,)


class TinyLM:
    """The weights and the forward pass.

    Args:
        config: The fields of a Hugging Face Qwen2 ``config.json``.
        tensors: The weights under their Hugging Face names.
        tokenizer: The tokenizer that the weights were trained with.

    Raises:
        ValueError: The configuration is not a Qwen2 with tied embeddings, or does not fit the tokenizer.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Tensors, tokenizer: Tokenizer) -> None:
        if config.get("model_type") != "qwen2" or not config.get("tie_word_embeddings"):
            raise ValueError("the demo model must be a qwen2 with tied embeddings")
        if config["vocab_size"] != len(tokenizer):
            raise ValueError(f"the model has {config['vocab_size']} tokens, the tokenizer {len(tokenizer)}")
        self.config = dict(config)
        self.tokenizer = tokenizer
        self.context = int(config["max_position_embeddings"])
        """The most tokens of a prompt and its completion together."""
        self.heads = int(config["num_attention_heads"])
        self.kv_heads = int(config["num_key_value_heads"])
        self.width = int(config["hidden_size"])
        self.head_size = self.width // self.heads
        self._eps = np.float32(config["rms_norm_eps"])

        def get(name: str) -> FloatArray:
            return np.asarray(tensors[name], dtype=np.float32)

        self.embeddings = get("model.embed_tokens.weight")
        self._unembed = np.ascontiguousarray((self.embeddings * get("model.norm.weight")).T)
        scale = np.float32(self.head_size**-0.5)
        self._layers = []
        for i in range(int(config["num_hidden_layers"])):
            at = f"model.layers.{i}."
            into = get(at + "input_layernorm.weight")
            q, k, v = (get(f"{at}self_attn.{x}_proj.weight") * into for x in "qkv")
            biases = [get(f"{at}self_attn.{x}_proj.bias") for x in "qkv"]
            post = get(at + "post_attention_layernorm.weight")
            gate, up = (get(f"{at}mlp.{x}_proj.weight") * post for x in ("gate", "up"))
            self._layers.append(
                _Layer(
                    qkv=np.ascontiguousarray(np.concatenate([q * scale, k, v]).T),
                    qkv_bias=np.concatenate([biases[0] * scale, *biases[1:]]),
                    out=np.ascontiguousarray(get(at + "self_attn.o_proj.weight").T),
                    gate_up=np.ascontiguousarray(np.concatenate([gate, up]).T),
                    down=np.ascontiguousarray(get(at + "mlp.down_proj.weight").T),
                )
            )
        angles = np.arange(self.context)[:, None] * float(config["rope_theta"]) ** (
            -np.arange(0, self.head_size, 2) / self.head_size
        )
        self._cos: FloatArray = np.tile(np.cos(angles), 2).astype(np.float32)  # (context, D)
        self._sin: FloatArray = np.concatenate([-np.sin(angles), np.sin(angles)], axis=1).astype(np.float32)

    @classmethod
    def load(cls, change: Callable[[Tensors], Tensors] = lambda tensors: tensors) -> TinyLM:
        """Loads the shipped weights, after a change."""
        config = json.loads((WEIGHTS / "config.json").read_text(encoding="utf-8"))
        tensors = change(read_safetensors(WEIGHTS / "model.safetensors"))
        return cls(config, tensors, Tokenizer.load(WEIGHTS / "tokenizer.json"))

    def _block(
        self,
        x: FloatArray,
        layer: _Layer,
        cos: FloatArray,
        sin: FloatArray,
        attend: Callable[[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]], FloatArray],
    ) -> FloatArray:
        """One layer on rows of shape (M, W); ``attend`` gets q (M, H, D), k and v (M, J, D) and returns (M, H D)."""
        size, half = self.head_size, self.head_size // 2
        projected = self._norm(x) @ layer.qkv
        projected += layer.qkv_bias
        heads = projected.reshape(len(x), -1, size)
        turned = heads[:, : self.heads + self.kv_heads]
        swapped = np.concatenate([turned[..., half:], turned[..., :half]], axis=-1)
        turned = turned * cos[:, None] + swapped * sin[:, None]
        mixed = attend(turned[:, : self.heads], turned[:, self.heads :], heads[:, self.heads + self.kv_heads :])
        x = x + mixed @ layer.out
        wide = self._norm(x) @ layer.gate_up
        inner = wide.shape[1] // 2
        gate = wide[:, :inner]
        gated = np.exp(-gate)
        gated += 1
        np.divide(gate, gated, out=gated)
        gated *= wide[:, inner:]
        return np.asarray(x + gated @ layer.down, dtype=np.float32)

    def _norm(self, x: FloatArray) -> FloatArray:
        mean = np.einsum("ij,ij->i", x, x) / np.float32(self.width)
        return np.asarray(x * (1 / np.sqrt(mean + self._eps))[:, None], dtype=np.float32)

    def _logits(self, x: FloatArray) -> FloatArray:
        return np.asarray(self._norm(x) @ self._unembed, dtype=np.float32)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """Runs prompts of any lengths through the model.

        Args:
            prompts: Token ids, each at least one and fewer than the context.

        Returns:
            For each prompt its keys, values and the logits of the next token.
        """
        count = len(prompts)
        longest = round_up(max(map(len, prompts)), _ROUND_PROMPT)
        ids = np.zeros((count, longest), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        rows, groups = count * longest, self.heads // self.kv_heads
        cos = np.tile(self._cos[:longest], (count, 1))
        sin = np.tile(self._sin[:longest], (count, 1))
        hidden = np.triu(np.full((longest, longest), -np.inf, dtype=np.float32), 1)
        kept: list[tuple[FloatArray, FloatArray]] = []

        def attend(q: npt.NDArray[Any], k: npt.NDArray[Any], v: npt.NDArray[Any]) -> FloatArray:
            keys, values = (
                np.ascontiguousarray(a.reshape(count, longest, self.kv_heads, -1).transpose(0, 2, 1, 3)) for a in (k, v)
            )
            kept.append((keys, values))
            queries = q.reshape(count, longest, self.kv_heads, groups, -1).transpose(0, 2, 3, 1, 4)
            scores = queries @ keys[:, :, None].swapaxes(-1, -2) + hidden  # (count, J, G, T, T)
            mixed = _softmax(scores) @ values[:, :, None]  # (count, J, G, T, D)
            return np.ascontiguousarray(mixed.transpose(0, 3, 1, 2, 4)).reshape(rows, -1)

        with np.errstate(over="ignore"):
            x = self.embeddings[ids.reshape(-1)]
            for layer in self._layers:
                x = self._block(x, layer, cos, sin, attend)
        last = x.reshape(count, longest, -1)[np.arange(count), [len(p) - 1 for p in prompts]]
        padded = np.zeros((round_up(count, MANY_ROWS), self.width), dtype=np.float32)
        padded[:count] = last
        logits = self._logits(padded)
        return [
            Prefix(
                keys=np.stack([k[row, :, : len(prompt)] for k, _ in kept]),
                values=np.stack([v[row, :, : len(prompt)] for _, v in kept]),
                logits=logits[row].copy(),
            )
            for row, prompt in enumerate(prompts)
        ]

    def decode(self, tokens: IntArray, lengths: IntArray, keys: FloatArray, values: FloatArray) -> FloatArray:
        """Runs one new token of each sequence and adds its keys and values to the cache.

        Args:
            tokens: The new tokens, (B,).
            lengths: How many positions of each sequence are cached already, (B,).
            keys: The cache, (layers, B, J, L, D) with L above every length; written in place.
            values: Likewise.

        Returns:
            The logits of the next token, (B, V).
        """
        count, groups = len(tokens), self.heads // self.kv_heads
        rows = np.arange(count)
        hidden = np.where(np.arange(keys.shape[3]) > lengths[:, None], np.float32(-np.inf), np.float32(0))
        cos, sin = self._cos[lengths], self._sin[lengths]
        caches = iter(zip(keys, values, strict=True))

        def attend(q: npt.NDArray[Any], k: npt.NDArray[Any], v: npt.NDArray[Any]) -> FloatArray:
            key, value = next(caches)
            key[rows, :, lengths] = k
            value[rows, :, lengths] = v
            scores = q.reshape(count, self.kv_heads, groups, -1) @ key.swapaxes(-1, -2)  # (B, J, G, L)
            scores += hidden[:, None, None]
            return np.asarray(_softmax(scores) @ value, dtype=np.float32).reshape(count, -1)

        with np.errstate(over="ignore"):
            x = self.embeddings[tokens]
            for layer in self._layers:
                x = self._block(x, layer, cos, sin, attend)
        return self._logits(x)


def read_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Reads the tensors of a safetensors file by name.

    Raises:
        ValueError: A tensor is neither float16 nor float32.
    """
    blob = path.read_bytes()
    (size,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + size])
    kinds: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
    out: dict[str, npt.NDArray[Any]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in kinds:
            raise ValueError(f"{name} has type {entry['dtype']}; only F16 and F32 can be read")
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        out[name] = np.frombuffer(blob[start:end], dtype=kinds[entry["dtype"]]).reshape(entry["shape"])
    return out


def _softmax(scores: FloatArray) -> FloatArray:
    """Softmax over the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def round_up(value: int, step: int = CACHE_ROUND) -> int:
    """The next multiple of `step`."""
    return -(-value // step) * step
