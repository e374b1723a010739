"""From OpenAI-style requests to batches: a few worker threads serve what arrives from any thread or event loop."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final

from cachetools import LRUCache, cached

from iapo_dspy.demo.blas import one_blas_thread
from iapo_dspy.demo.engine import Engine
from iapo_dspy.demo.generation import Generation, GenerationRequest, InvalidRequestError
from iapo_dspy.demo.model import TinyLM
from iapo_dspy.demo.shipped import MODEL_NAME, load_shipped
from iapo_dspy.demo.tokenizer import Tokenizer

GATHER_SECONDS: Final = 0.003
"""How long an idle worker waits for company after the first request arrives."""


def parse_request(
    messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], tokenizer: Tokenizer, *, seed: int
) -> GenerationRequest:
    """Reads a request for an OpenAI chat completion.

    Args:
        messages: The conversation.
        options: ``n``, ``temperature`` (default 1), ``top_p``, ``top_k`` (0 or -1 for all), ``max_tokens`` or
            ``max_completion_tokens``, ``stop`` (a text or a list) and ``seed``; None means the default.
        tokenizer: Encodes the conversation.
        seed: The seed of a request without one.

    Raises:
        InvalidRequestError: An option has a wrong type or range, asks for something that this model cannot do
            (streaming, tools, log-probabilities, another response format than text), or a message is not text.
    """
    for name in ("stream", "tools", "functions", "logprobs", "top_logprobs"):
        if options.get(name):
            raise InvalidRequestError(f"{name} is not supported by the demo model")
    form = options.get("response_format")
    if form is not None and not (isinstance(form, Mapping) and form.get("type") == "text"):
        raise InvalidRequestError("response_format must be text for the demo model")
    stop = options.get("stop")
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(text, str) for text in stops):
        raise InvalidRequestError(f"stop must be a text or a list of texts, got {stop!r}")
    longest, given, n = (_whole(options, name) for name in ("max_completion_tokens", "seed", "n"))
    try:
        prompt = tuple(tokenizer.encode_chat(messages))
    except (ValueError, AttributeError) as error:
        raise InvalidRequestError(str(error)) from error
    return GenerationRequest(
        prompt=prompt,
        n=1 if n is None else n,
        temperature=_number(options, "temperature"),
        top_p=_number(options, "top_p"),
        top_k=0 if options.get("top_k") == -1 else _whole(options, "top_k") or 0,
        max_tokens=_whole(options, "max_tokens") if longest is None else longest,
        stop=stops,
        seed=seed if given is None else given,
    )


class SeedSource:
    """Seeds for requests that bring none. Thread-safe.

    Args:
        seed: The k-th request with the same content always gets the same seed, in whatever order different requests
            arrive. None draws fresh seeds.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._lock = threading.Lock()
        self._seed = seed
        self._seen: Counter[bytes] = Counter()

    def next(self, content: object) -> int:
        """The seed, in 0..2**63-1, for a request that the ``repr`` of ``content`` identifies."""
        with self._lock:
            if self._seed is None:
                return secrets.randbits(63)
            key = hashlib.sha256(repr(content).encode()).digest()
            self._seen[key] += 1
            text = f"{self._seed}/{self._seen[key]}/".encode() + key
            return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


class Batcher:
    """Runs an `Engine` in each of a few daemon threads, started when requests arrive.

    Numpy lets other threads run while it calculates, so two engines use two cores. A completion's text does not depend
    on which of them makes it.

    Args:
        model: The model.
        slots: The most sequences in one batch, a multiple of 16.
        workers: Threads at most; None: one a core, at most two.
    """

    def __init__(self, model: TinyLM, *, slots: int = 128, workers: int | None = None) -> None:
        self.model = model
        self._slots = slots
        self._workers = workers or min(2, os.cpu_count() or 1)
        self._changed = threading.Condition()
        self._inbox: deque[tuple[GenerationRequest, Future[Generation]]] = deque()
        self._threads: list[threading.Thread] = []
        self._kept: LRUCache[GenerationRequest, Generation] | None = None

    def keep(self, completions: int) -> None:
        """Keeps that many completions, the last ones used, and answers from them what is asked again.

        A completion depends on its request, its seed and its index alone, so the answers are those that the model would
        give. Without it, every request is work for the model.
        """
        with self._changed:
            if self._kept is None:
                self._kept = LRUCache(completions, getsizeof=lambda kept: len(kept.choices))

    def submit(self, request: GenerationRequest) -> Future[Generation]:
        """Queues a request; the future's exception is `ContextLengthError` if the prompt is too long.

        Cancelling the future takes the request out of the queue or the batch, until its last token is drawn.
        """
        future: Future[Generation] = Future()
        if self._kept is not None:
            with self._changed:
                kept = self._kept.get(replace(request, n=1))
            if kept is not None and len(kept.choices) >= request.n:
                future.set_result(replace(kept, choices=kept.choices[: request.n]))
                return future
            future.add_done_callback(lambda done: self._keep(request, done))
        with self._changed:
            # After a fork the threads are gone in the child: is_alive is then false.
            self._threads = [t for t in self._threads if t.is_alive()]
            while len(self._threads) < self._workers:
                self._threads.append(threading.Thread(target=self._run, name="iapo-demo-lm", daemon=True))
                self._threads[-1].start()
            self._inbox.append((request, future))
            self._changed.notify()
        return future

    def _keep(self, request: GenerationRequest, done: Future[Generation]) -> None:
        if self._kept is None or done.cancelled() or done.exception() is not None:
            return
        with self._changed:
            key, made = replace(request, n=1), done.result()
            before = self._kept.get(key)
            fits = len(made.choices) <= self._kept.maxsize
            if fits and (before is None or len(before.choices) < len(made.choices)):
                self._kept[key] = made

    def _run(self) -> None:
        engine = Engine(self.model, slots=self._slots)
        while True:
            with self._changed:
                while not self._inbox:
                    self._changed.wait()
                self._changed.wait_for(lambda: len(self._inbox) >= self._slots, timeout=GATHER_SECONDS)
            with one_blas_thread():
                if not self._work(engine):
                    engine = Engine(self.model, slots=self._slots)

    def _work(self, engine: Engine) -> bool:
        """Serves what has arrived and what arrives meanwhile; returns whether the engine is still sound."""
        pending: list[Future[Generation]] = []
        busy = True
        while busy:
            arrived = self._take(self._slots - engine.active - engine.waiting)
            if arrived:
                pending = [future for future in pending if not future.done()]
                pending += [future for _, future in arrived]
            try:
                for request, future in arrived:
                    try:
                        engine.submit(request, future)
                    except InvalidRequestError as error:
                        _fail(future, error)
                busy = engine.step()
            except Exception as error:  # noqa: BLE001 (whatever went wrong, nobody may wait for ever)
                for future in pending:
                    _fail(future, error)
                return False
        return True

    def _take(self, room: int) -> list[tuple[GenerationRequest, Future[Generation]]]:
        """Take as many requests as there is room for; the rest, unless cancelled, is for the other workers."""
        taken = []
        with self._changed:
            cancelled = {future for _, future in self._inbox if future.cancelled()}
            if cancelled:
                self._inbox = deque(entry for entry in self._inbox if entry[1] not in cancelled)
                for future in cancelled:
                    future.set_running_or_notify_cancel()
            while self._inbox and room > 0:
                taken.append(self._inbox.popleft())
                room -= taken[-1][0].n
            if self._inbox:
                self._changed.notify()
        return taken


def _fail(future: Future[Generation], error: Exception) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)


@cached({}, key=lambda name=MODEL_NAME: name, lock=threading.Lock())
def shared_batcher(name: str = MODEL_NAME) -> Batcher:
    """The process's batcher for a shipped model; loaded when first used."""
    return Batcher(load_shipped(name))


def _whole(options: Mapping[str, Any], name: str) -> int | None:
    value = options.get(name)
    if isinstance(value, bool) or not isinstance(value, int | None):
        raise InvalidRequestError(f"{name} must be a whole number, got {value!r}")
    return value


def _number(options: Mapping[str, Any], name: str) -> float:
    value = options.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise InvalidRequestError(f"{name} must be a number, got {value!r}")
    return 1.0 if value is None else float(value)
