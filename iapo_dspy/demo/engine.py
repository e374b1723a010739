"""Continuous batching for the demo model: sequences join when a slot is free and leave when they end.

Axes used below: B sequences in the batch, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from iapo_dspy.demo.generation import ContextLengthError, Generation, GenerationRequest, SampledText
from iapo_dspy.demo.model import CACHE_ROUND, MANY_ROWS, FloatArray, IntArray, Prefix, TinyLM, round_up

# One sequence of the batch: positions cached, tokens drawn, the most tokens, the last token; how it is decoded.
_SEQUENCE = np.dtype(
    [
        *((name, np.int64) for name in ("cached", "made", "limit", "last")),
        ("temperature", np.float64),
        ("top_p", np.float64),
        ("top_k", np.int64),
        ("stops", np.bool_),
    ]
)


@dataclass(kw_only=True, eq=False)
class _Job:
    request: GenerationRequest
    future: Future[Generation]  # pending until the last choice, so that it can be cancelled
    limit: int
    started: int = 0
    choices: dict[int, SampledText] = field(default_factory=dict)


class Engine:
    """Serves many requests in one batch: sequences join when a slot is free and leave when they end.

    Not thread-safe: one thread submits and steps.

    Args:
        model: The model.
        slots: The most sequences in the batch, a multiple of 16.
        prefixes: How many prompts' keys and values are kept for requests with the same prompt.
    """

    def __init__(self, model: TinyLM, *, slots: int = 128, prefixes: int = 128) -> None:
        if slots < MANY_ROWS or slots % MANY_ROWS:
            raise ValueError(f"slots must be a positive multiple of {MANY_ROWS}, got {slots}")
        self.model = model
        self._slots = slots
        self._waiting: deque[_Job] = deque()
        self._owners: list[tuple[_Job, int]] = []  # one (job, index of the choice) for each active slot
        self._prefixes: LRUCache[tuple[int, ...], Prefix] = LRUCache(prefixes)
        shape = (len(model._layers), slots, model.kv_heads, 2 * CACHE_ROUND, model.head_size)
        self._keys: FloatArray = np.zeros(shape, dtype=np.float32)
        self._values: FloatArray = np.zeros(shape, dtype=np.float32)
        self._sequences = np.zeros(slots, dtype=_SEQUENCE)
        self._tokens = np.zeros((slots, model.context), dtype=np.int64)
        self._uniforms = np.zeros((slots, model.context), dtype=np.float64)

    @property
    def active(self) -> int:
        """The number of sequences in the batch."""
        return len(self._owners)

    @property
    def waiting(self) -> int:
        """The number of completions that have no slot yet."""
        return sum(job.request.n - job.started for job in self._waiting)

    def submit(self, request: GenerationRequest, future: Future[Generation]) -> None:
        """Queues a request; `step` gives its result to ``future``, or drops the request if that was cancelled.

        Raises:
            ContextLengthError: The prompt has no room for one more token.
        """
        room = self.model.context - len(request.prompt)
        if room < 1:
            raise ContextLengthError(
                f"This model's maximum context length is {self.model.context} tokens. However, your messages have "
                f"{len(request.prompt)} tokens, which leaves no room for a completion."
            )
        limit = min(room, request.max_tokens or room)
        self._waiting.append(_Job(request=request, future=future, limit=limit))

    def step(self) -> bool:
        """Drops what was cancelled, lets waiting sequences in, adds a token to each; returns whether work is left."""
        self._drop_cancelled()
        free = self._slots - self.active
        if self._waiting and (free >= self._slots // 8 or free >= self.waiting):
            self._admit(free)
        if self._owners:
            # Whole groups of sixteen rows: BLAS then works on every row the same way, whatever the batch is.
            count = round_up(self.active, MANY_ROWS)
            cached = self._sequences["cached"]
            cached[self.active : count] = 0
            span = round_up(int(cached[:count].max()) + 1)
            self._grow(span)
            logits = self.model.decode(
                self._sequences["last"][:count],
                cached[:count],
                self._keys[:, :count, :, :span],
                self._values[:, :count, :, :span],
            )
            cached[: self.active] += 1
            self._take(0, self.active, logits[: self.active])
        return bool(self._owners or self._waiting)

    def _drop_cancelled(self) -> None:
        jobs = {*self._waiting, *(job for job, _ in self._owners)}
        cancelled = {job for job in jobs if job.future.cancelled()}
        if not cancelled:
            return
        self._waiting = deque(job for job in self._waiting if job not in cancelled)
        for slot in reversed(range(self.active)):
            if self._owners[slot][0] in cancelled:
                self._free(slot)
        for job in cancelled:
            job.future.set_running_or_notify_cancel()

    def _grow(self, span: int) -> None:
        if span > self._keys.shape[3]:
            more = [(0, 0), (0, 0), (0, 0), (0, span + CACHE_ROUND - self._keys.shape[3]), (0, 0)]
            self._keys, self._values = np.pad(self._keys, more), np.pad(self._values, more)

    def _admit(self, free: int) -> None:
        """Gives free slots to waiting completions and draws their first tokens."""
        batch: list[tuple[_Job, int]] = []  # (job, how many of its choices)
        while self._waiting and free:
            job = self._waiting[0]
            count = min(free, job.request.n - job.started)
            batch.append((job, count))
            free -= count
            if job.started + count == job.request.n:
                self._waiting.popleft()
            else:
                break
        prefixes = self._prefill([job.request.prompt for job, _ in batch])
        first = self.active
        rows: list[FloatArray] = []
        for job, count in batch:
            at, request, prefix = self.active, job.request, prefixes[job.request.prompt]
            here, length = slice(at, at + count), len(request.prompt)
            self._grow(round_up(length))
            self._keys[:, here, :, :length] = prefix.keys[:, None]
            self._values[:, here, :, :length] = prefix.values[:, None]
            decoding = (request.temperature, request.top_p, request.top_k, bool(request.stop))
            self._sequences[here] = (length, 0, job.limit, 0, *decoding)
            for slot in range(at, at + count):
                index = job.started + slot - at
                if request.temperature > 0:
                    stream = np.random.Generator(np.random.PCG64([request.seed % 2**63, index]))
                    self._uniforms[slot, : job.limit] = stream.random(job.limit)
                self._owners.append((job, index))
            rows += [prefix.logits] * count
            job.started += count
        self._take(first, self.active, np.stack(rows))

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Prefix]:
        out = {prompt: self._prefixes[prompt] for prompt in dict.fromkeys(prompts) if prompt in self._prefixes}
        missing = sorted(dict.fromkeys(prompt for prompt in prompts if prompt not in out), key=len)
        for start in range(0, len(missing), 32):
            some = missing[start : start + 32]
            for prompt, prefix in zip(some, self.model.prefill(some), strict=True):
                out[prompt] = self._prefixes[prompt] = prefix
        return out

    def _take(self, first: int, end: int, logits: FloatArray) -> None:
        """Draws a token for the slots first..end and retires the sequences that end with it."""
        here = slice(first, end)
        slots = np.arange(first, end)
        sequences = self._sequences[here]
        drawn = draw(
            logits,
            self._uniforms[slots, sequences["made"]],
            temperature=sequences["temperature"],
            top_p=sequences["top_p"],
            top_k=sequences["top_k"],
        )
        self._tokens[slots, sequences["made"]] = sequences["last"] = drawn
        sequences["made"] += 1
        ended = drawn == self.model.tokenizer.end_id
        ended |= (sequences["made"] >= sequences["limit"]) | sequences["stops"]
        for slot in (np.flatnonzero(ended)[::-1] + first).tolist():
            choice = self._ended(slot)
            if choice is not None:
                self._retire(slot, choice)

    def _ended(self, slot: int) -> SampledText | None:
        tokens = tuple(self._tokens[slot, : self._sequences["made"][slot]].tolist())
        text = self.model.tokenizer.decode(tokens)
        at = min((i for stop in self._owners[slot][0].request.stop if (i := text.find(stop)) >= 0), default=-1)
        if at >= 0:
            return SampledText(text=text[:at], tokens=tokens, finish_reason="stop")
        if tokens[-1] == self.model.tokenizer.end_id:
            return SampledText(text=text, tokens=tokens, finish_reason="stop")
        if len(tokens) >= self._sequences["limit"][slot]:
            return SampledText(text=text, tokens=tokens, finish_reason="length")
        return None

    def _retire(self, slot: int, choice: SampledText) -> None:
        """Keeps a choice, frees its slot, and reports the request that it completes."""
        job, index = self._owners[slot]
        self._free(slot)
        job.choices[index] = choice
        if len(job.choices) == job.request.n and job.future.set_running_or_notify_cancel():
            choices = tuple(job.choices[i] for i in range(job.request.n))
            job.future.set_result(Generation(choices=choices, prompt_tokens=len(job.request.prompt)))

    def _free(self, slot: int) -> None:
        """Moves the last sequence into a slot."""
        last = len(self._owners) - 1
        if slot != last:
            length, made = int(self._sequences["cached"][last]), int(self._sequences["made"][last])
            self._owners[slot] = self._owners[last]
            self._keys[:, slot, :, :length] = self._keys[:, last, :, :length]
            self._values[:, slot, :, :length] = self._values[:, last, :, :length]
            self._tokens[slot, :made] = self._tokens[last, :made]
            self._uniforms[slot] = self._uniforms[last]
            self._sequences[slot] = self._sequences[last]
        self._owners.pop()


def draw(
    logits: FloatArray,
    uniforms: npt.NDArray[np.float64],
    *,
    temperature: npt.NDArray[np.float64],
    top_p: npt.NDArray[np.float64],
    top_k: IntArray,
) -> IntArray:
    """Draws one token for each row (B,) of logits (B, V) by inverting the cumulative distribution at `uniforms` (B,).

    The options (B,) are those of `GenerationRequest`; where the temperature is 0, the most likely token is taken.
    """
    out: IntArray = logits.argmax(axis=1)
    rows = np.flatnonzero(temperature > 0)
    if len(rows) == 0:
        return out
    every = len(rows) == len(logits)
    scores = logits if every else logits[rows]
    scores = (scores - scores.max(axis=1, keepdims=True)) / temperature[rows, None].astype(np.float32)
    chances = np.exp(scores)
    filtered = np.flatnonzero((top_p[rows] < 1) | (top_k[rows] > 0))
    if len(filtered):
        chances[filtered] = _keep(chances[filtered], top_p[rows[filtered]], top_k[rows[filtered]])
    cumulative = chances.cumsum(axis=1, dtype=np.float64)
    goal = uniforms[rows] * cumulative[:, -1]
    out[rows] = (cumulative > goal[:, None]).argmax(axis=1)
    return out


def _keep(chances: FloatArray, top_p: npt.NDArray[np.float64], top_k: IntArray) -> FloatArray:
    """Sets to 0 the chances of tokens that top_k and then top_p leave out; (B, V) in and out."""
    order = np.argsort(-chances, axis=1, kind="stable")
    ranked = np.take_along_axis(chances, order, axis=1).astype(np.float64)
    rank = np.arange(chances.shape[1])
    ranked[(top_k[:, None] > 0) & (rank >= top_k[:, None])] = 0
    before = ranked.cumsum(axis=1) - ranked
    ranked[before >= top_p[:, None] * ranked.sum(axis=1, keepdims=True)] = 0
    out = np.zeros_like(chances)
    np.put_along_axis(out, order, ranked.astype(np.float32), axis=1)
    return out
