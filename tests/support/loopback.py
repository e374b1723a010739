"""A fault-injecting, OpenAI-compatible server on loopback that counts what it is asked."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import dspy

from tests.support.batching import BatchFaults, BatchJobs

Answer = Callable[[dict[str, Any], int], str]


def chat(**fields: str) -> str:
    """Write an answer as ChatAdapter reads it."""
    parts = [f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def cut_off(text: str, most: int | None) -> str:
    """Return the first words of a text."""
    ends = [found.end() for found in re.finditer(r"\S+", text)]
    return text if most is None or len(ends) <= most else text[: ends[most - 1]]


@dataclass
class Faults:
    """What goes wrong. Shares are probabilities per request, drawn from a seeded generator.

    `first` faults hit the first requests one after another, whatever the shares say: statuses, "hang", "truncated",
    "drop" (the connection ends without an answer). Bytes are a body that is sent with status 200 instead of the answer,
    which was made and is billed.
    """

    ignore_n: bool = False
    fewer: bool = False  # answer n > 1 with n - 1 choices
    refuse_n: bool = False  # answer n > 1 by a 400
    most_n: int | None = None  # answer n beyond it by a 400, as llama.cpp does beyond its slots
    miscount: bool = False  # report fewer tokens than there are choices
    count_first: bool = False  # count the first choice only, as llama.cpp's server does
    no_usage: bool = False
    hidden: int = 0  # tokens of each choice that are billed and not shown
    greedy_n_is_400: bool = False  # answer temperature 0 with n > 1 by a 400, as vLLM does
    first: Sequence[Any] = ()
    shares: dict[Any, float] = field(default_factory=dict)
    retry_after: str | None = None
    most_in_flight: int | None = None  # beyond it, requests are answered by a 429 at once
    hang: float = 30.0


Server = TypeVar("Server", bound="Loopback")


class Loopback:
    """The server, as a context manager.

    Args:
        answer: (request body, index of the choice over all requests) -> text.
        latency: Seconds per request, or (request body) -> seconds.
        faults: What goes wrong.
        api_key: If given, every other key is a 401.
        slots: Requests it works on at a time, as a machine does; the others wait. None: all.
        count: Tokens of a text; words by default. A message has `message_tokens` more.
        batches: What goes wrong with batch jobs; None: nothing. See `batching`.
        obeys: Whether it ends a choice after `max_tokens` words, as servers do.
        logprobs: (request body, text) -> the logprob of each token, for requests that ask for logprobs.
    """

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        latency: float | Callable[[dict[str, Any]], float] = 0.0,
        faults: Faults | None = None,
        api_key: str | None = None,
        seed: int = 0,
        slots: int | None = None,
        count: Callable[[str], int] = lambda text: len(text.split()),
        message_tokens: int = 0,
        batches: BatchFaults | None = None,
        obeys: bool = False,
        logprobs: Callable[[dict[str, Any], str], Sequence[float]] | None = None,
    ) -> None:
        self.count = count
        self.message_tokens = message_tokens
        self._slots = threading.Semaphore(slots) if slots is not None else contextlib.nullcontext()
        self.answer = answer or (lambda body, i: chat(answer=str(i)))
        self.latency = latency
        self.obeys = obeys
        self.logprobs = logprobs
        self.faults = faults or Faults()
        self.api_key = api_key
        self.requests = 0
        self.completions = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []  # names in lower case
        self.times: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.keep_bodies = True
        self.jobs = BatchJobs(self._answer_line, batches or BatchFaults())
        self._rng = random.Random(seed)
        self._first = list(self.faults.first)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    @property
    def base(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def lm(self, model: str = "openai/fake", **kwargs: Any) -> dspy.LM:
        """Return an LM that asks this server."""
        settings: dict[str, Any] = {"api_base": self.base, "api_key": "sk-loopback-secret", "cache": False}
        return dspy.LM(model, **{**settings, **kwargs})

    def __enter__(self: Server) -> Server:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if not owner._serve_batches(self, raw):
                    owner._serve(self, json.loads(raw))

            def do_GET(self) -> None:
                if not owner._serve_batches(self, b""):
                    owner._error(self, 404, "Not found")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 1024

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that hangs up is part of the tests

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve_batches(self, handler: BaseHTTPRequestHandler, raw: bytes) -> bool:
        """Answer a request to the files and batches endpoints; False for all others."""
        path = handler.path.partition("?")[0]
        if "/files" not in path and "/batches" not in path:
            return False
        if self._refuse_key(handler):
            return True
        status, content = self.jobs.handle(handler.command, handler.path, handler.headers, raw)
        if status is None:  # the connection breaks
            handler.close_connection = True
        else:
            self._write(handler, status, content)
        return True

    def _answer_line(self, body: dict[str, Any], fault: Any) -> tuple[int, dict[str, Any]]:
        """Answer one request of a batch job."""
        n = int(body.get("n") or 1)
        if isinstance(fault, int) or (n > 1 and self.faults.refuse_n):
            message = "injected" if isinstance(fault, int) else "n must be 1"
            return fault if isinstance(fault, int) else 400, {"error": {"message": message, "code": None}}
        with self._lock:
            self.requests += 1
            self.bodies.append(body)
        return 200, self._payload(body, n, fault)

    def _refuse_key(self, handler: BaseHTTPRequestHandler) -> bool:
        given = handler.headers.get("Authorization") or f"Bearer {handler.headers.get('api-key')}"
        if self.api_key is None or given == f"Bearer {self.api_key}":
            return False
        self._error(handler, 401, f"Incorrect API key provided: {given.removeprefix('Bearer ')}.")
        return True

    def _serve(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            self.requests += 1
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            self.times.append(time.monotonic())
            if self.keep_bodies:
                self.bodies.append(body)
                self.headers.append({k.lower(): v for k, v in handler.headers.items()})
            fault = self._fault()
            if self.faults.most_in_flight is not None and self.in_flight > self.faults.most_in_flight:
                fault = 429
        try:
            latency = self.latency(body) if callable(self.latency) else self.latency
            if latency and not (fault == 429 and self.faults.most_in_flight):
                with self._slots:
                    self._stop.wait(latency)
            self._respond(handler, body, fault)
        finally:
            with self._lock:
                self.in_flight -= 1

    def _fault(self) -> Any:
        if self._first:
            return self._first.pop(0)
        draw = self._rng.random()
        for kind, share in self.faults.shares.items():
            if draw < share:
                return kind
            draw -= share
        return None

    def _respond(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], fault: Any) -> None:
        n = int(body.get("n") or 1)
        if self._refuse_key(handler):
            return None
        if fault == "hang":
            self._stop.wait(self.faults.hang)
            return self._error(handler, 500, "too late")
        if fault == "drop":
            handler.close_connection = True
            return handler.connection.shutdown(socket.SHUT_RDWR)
        if isinstance(fault, bytes):
            self._payload(body, n, None)
            return self._write(handler, 200, fault)
        if fault == "truncated":
            return self._write(handler, 200, b'{"id": "x", "choices": [{"index": 0, "mess')
        if isinstance(fault, int):
            return self._error(handler, fault, "injected")
        if n > 1 and self.faults.refuse_n:
            return self._error(handler, 400, "n must be 1")
        if self.faults.most_n is not None and n > self.faults.most_n:
            return self._error(handler, 400, f"Field 'n': Value must be between 1 <= value <= {self.faults.most_n}")
        if n > 1 and self.faults.greedy_n_is_400 and body.get("temperature") == 0:
            return self._error(handler, 400, "n must be 1 when using greedy sampling")
        self._write(handler, 200, json.dumps(self._payload(body, n, fault)).encode())

    def _payload(self, body: dict[str, Any], n: int, fault: Any) -> dict[str, Any]:
        """Make and count the completions of a request."""
        count = 1 if self.faults.ignore_n else max(n - 1, 1) if (self.faults.fewer or fault == "fewer") else n
        with self._lock:
            first = self.completions
            self.completions += count
        texts = ["not what was asked for"] if fault == "garbage" else []
        texts += [self.answer(body, first + i) for i in range(len(texts), count)]
        whole = list(texts)
        if self.obeys:
            texts = [cut_off(t, body.get("max_completion_tokens") or body.get("max_tokens")) for t in texts]
        prompt = sum(self.count(str(m["content"])) + self.message_tokens for m in body["messages"])
        completion = sum(self.count(t) + self.faults.hidden for t in texts)
        with self._lock:
            self.prompt_tokens += prompt
            self.completion_tokens += completion
        reported = len(texts[0].split()) // 4 if self.faults.miscount else completion
        if self.faults.count_first:
            reported = len(texts[0].split()) + self.faults.hidden
        payload: dict[str, Any] = {
            "id": f"chatcmpl-{first}",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model"),
            "choices": [
                {
                    "index": i,
                    "message": {"role": "assistant", "content": t},
                    "finish_reason": "stop" if t == whole[i] else "length",
                    **({"logprobs": self._logprobs(body, t)} if self.logprobs and body.get("logprobs") else {}),
                }
                for i, t in enumerate(texts)
            ],
            "usage": {"prompt_tokens": prompt, "completion_tokens": reported, "total_tokens": prompt + reported},
        }
        if self.faults.no_usage:
            del payload["usage"]
        return payload

    def _logprobs(self, body: dict[str, Any], text: str) -> dict[str, Any]:
        assert self.logprobs is not None
        tokens: list[dict[str, Any]] = [
            {"token": str(i), "logprob": value, "bytes": None, "top_logprobs": []}
            for i, value in enumerate(self.logprobs(body, text))
        ]
        return {"content": tokens, "refusal": None}

    def _error(self, handler: BaseHTTPRequestHandler, status: int, message: str) -> None:
        body = json.dumps({"error": {"message": message, "type": "injected", "code": None, "param": None}}).encode()
        headers = {"Retry-After": self.faults.retry_after} if status == 429 and self.faults.retry_after else {}
        self._write(handler, status, body, headers)

    def _write(
        self, handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        with self._lock:
            self.statuses[status] += 1
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
