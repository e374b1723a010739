"""A reverse proxy on loopback that counts what a real server is asked and what it answers."""

from __future__ import annotations

import http.client
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Exchange:
    """One request: what was sent, the status, the choices as (text, finish reason), and the usage that was reported."""

    body: dict[str, Any]
    status: int
    choices: tuple[tuple[str, str], ...]
    prompt_tokens: int
    completion_tokens: int


class Counting:
    """Passes requests on, as a context manager.

    Args:
        base: The server's address, such as `http://127.0.0.1:8000/v1`.

    Attributes:
        exchanges: What was asked and answered, in the order of the answers.
    """

    def __init__(self, base: str) -> None:
        self._target = urlsplit(base).netloc
        self.exchanges: list[Exchange] = []
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def base(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Counting:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner._pass_on(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 1024

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def _pass_on(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self._target, timeout=300)
        try:
            headers = {k: v for k, v in handler.headers.items() if k.lower() in ("content-type", "authorization")}
            connection.request("POST", handler.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        self._count(json.loads(body), answer.status, content)
        handler.send_response(answer.status)
        handler.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _count(self, body: dict[str, Any], status: int, content: bytes) -> None:
        answer = json.loads(content) if status == 200 else {}
        texts = tuple((c["message"]["content"] or "", str(c["finish_reason"])) for c in answer.get("choices", ()))
        usage = answer.get("usage") or {}
        exchange = Exchange(body, status, texts, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
        with self._lock:
            self.exchanges.append(exchange)
