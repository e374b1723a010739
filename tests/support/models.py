"""A server of embeddings and reward models on loopback, as OpenAI and vLLM shape their requests and answers."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Vector = Callable[[str], Sequence[float]]
Logits = Callable[[Any], Any]


class ModelServer:
    """The server, as a context manager.

    Args:
        vector: Text -> embedding.
        logits: What `/pooling` and `/classify` are shown -> numbers; `/score` is given the pair and takes the first.
        first: What happens to the first requests, in order: a status, "hang", "garbage", "drop", or None for nothing.
        latency: Seconds per request.
        api_key: If given, every other key is a 401.
        model: If given, every other model is a 404.
    """

    def __init__(
        self,
        *,
        vector: Vector | None = None,
        logits: Logits | None = None,
        first: Sequence[Any] = (),
        latency: float = 0.0,
        api_key: str | None = None,
        model: str | None = None,
        usage: bool = True,
    ) -> None:
        self.vector = vector or (lambda text: [float(len(text)), 1.0])
        self.logits = logits or (lambda shown: [float(len(str(shown)))])
        self.latency, self.api_key, self.model, self.usage = latency, api_key, model, usage
        self.requests: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.embedded: Counter[str] = Counter()
        self.tokens = 0
        self.most_in_flight = 0
        self._in_flight = 0
        self.faults = list(first)
        self._lock = threading.Lock()
        self._stop = threading.Event()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ModelServer:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner._serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers.get("Content-Length", 0))))
        with self._lock:
            self.requests[handler.path] += 1
            self.bodies.append(body)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            fault = self.faults.pop(0) if self.faults else None
        try:
            time.sleep(self.latency)
            self._answer(handler, body, fault)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], fault: Any) -> None:
        if fault == "hang":
            self._stop.wait(30)
        if fault in ("hang", "drop"):
            handler.close_connection = True
            return
        if fault == "garbage":
            return _send(handler, 200, b"<html>")
        if self.api_key is not None and handler.headers.get("Authorization") != f"Bearer {self.api_key}":
            return _error(handler, 401, f"Wrong key {handler.headers.get('Authorization')}")
        if isinstance(fault, int):
            return _error(handler, fault, "Fault")
        if self.model is not None and body.get("model") != self.model:
            return _error(handler, 404, f"The model {body.get('model')} does not exist.")
        found = self._respond(handler.path, body)
        if found is None:
            return _error(handler, 404, "Not Found")
        _send(handler, 200, json.dumps({"id": "x", "object": "list", "model": body.get("model"), **found}).encode())

    def _respond(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if path == "/v1/embeddings":
            texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
            tokens = sum(len(t.split()) for t in texts)
            with self._lock:
                self.embedded.update(texts)
                self.tokens += tokens
            data = [{"object": "embedding", "index": i, "embedding": list(self.vector(t))} for i, t in enumerate(texts)]
            usage = {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}} if self.usage else {}
            return {"data": data[::-1], **usage}  # in another order than was asked: `index` says which is which
        usage = {"usage": {"prompt_tokens": 1, "total_tokens": 1}}
        if path == "/score":
            return {
                "data": [{"index": 0, "object": "score", "score": self.logits((body["text_1"], body["text_2"]))[0]}]
            }
        shown = body["messages"] if "messages" in body else body["input"]
        if path == "/pooling":
            return {"data": [{"index": 0, "object": "pooling", "data": self.logits(shown)}], **usage}
        if path == "/classify":
            probs = self.logits(shown)
            entry = {"index": 0, "label": "LABEL_0", "probs": probs, "num_classes": len(probs)}
            return {"data": [entry], **usage}
        return None


def _error(handler: BaseHTTPRequestHandler, status: int, message: str) -> None:
    _send(handler, status, json.dumps({"error": {"message": message, "code": status}}).encode())


def _send(handler: BaseHTTPRequestHandler, status: int, raw: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(raw)))
    handler.end_headers()
    handler.wfile.write(raw)
