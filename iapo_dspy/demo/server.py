"""An OpenAI-compatible server for the demo models, with the standard library only.

``with DemoServer() as server`` serves on a free loopback port; ``python -m iapo_dspy.demo.server --port 8000`` serves
until it is interrupted. Model strings for LiteLLM: ``openai/tiny-adder`` and ``hosted_vllm/tiny-adder`` with
``api_base=server.api_base`` and any API key, and the same with ``tiny-adder-q3`` (`iapo_dspy.demo.shipped`).

The models are test fixtures of about a million parameters and no evidence about large language models.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from iapo_dspy.demo.batching import Batcher, SeedSource, parse_request, shared_batcher
from iapo_dspy.demo.generation import ContextLengthError, Generation, InvalidRequestError
from iapo_dspy.demo.shipped import BITS, MODEL_NAME

_MOST_BYTES: Final = 4_000_000
_MOST_SECONDS: Final = 300.0
_HANG_UP_SECONDS: Final = 0.25  # between two looks at a waiting client's connection
_RETRY_SECONDS: Final = 1
_CONCURRENT_REQUESTS: Final = 512
_log = logging.getLogger(__name__)


class DemoServer:
    """Serves ``/v1/chat/completions`` and ``/v1/models`` from a thread.

    Args:
        host: The address to bind to.
        port: The port, 0 for a free one.
        seed: Makes requests without a seed reproducible; None draws fresh randomness for each.
        allow_remote: Must be True to bind to an address that is not loopback: the server asks for no API key.
        batcher: Where requests to ``tiny-adder`` run, the only model then; by default the process's own batchers of all
            shipped models, shared with the LiteLLM provider.
        max_concurrent_requests: The most requests that are waiting or in a batch, of all models; one more is answered
            429 with a ``Retry-After`` in seconds. A client that hangs up, or closes its sending side, is noticed within
            a quarter of a second: its request is cancelled and frees its place.

    Raises:
        ValueError: The host is not loopback and ``allow_remote`` is False, or ``max_concurrent_requests`` is below 1.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int | None = None,
        allow_remote: bool = False,
        batcher: Batcher | None = None,
        max_concurrent_requests: int = _CONCURRENT_REQUESTS,
    ) -> None:
        if not allow_remote and not _is_loopback(host):
            raise ValueError(f"{host!r} is not a loopback address; pass allow_remote=True to serve other machines")
        if max_concurrent_requests < 1:
            raise ValueError(f"max_concurrent_requests must be at least 1, got {max_concurrent_requests}")
        self._address = (host, port)
        self._most = max_concurrent_requests
        self._open = 0
        self._batcher = batcher
        self._models = tuple(BITS) if batcher is None else (MODEL_NAME,)
        self._seeds = SeedSource(seed)
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.requests = 0
        """Requests for chat completions so far, refused ones included."""
        self.completions = 0
        """Completions returned so far."""
        self.prompt_tokens = 0
        """Tokens read for them, once for each request."""
        self.completion_tokens = 0
        """Tokens written in them."""
        self.cancelled = 0
        """Requests cancelled so far: the client hung up, or the model took too long."""

    @property
    def api_base(self) -> str:
        """The base URL, e.g. ``http://127.0.0.1:8000/v1``.

        Raises:
            RuntimeError: The server is not running.
        """
        if self._server is None:
            raise RuntimeError("the server is not running; use it in a with statement or call start()")
        host, port = self._server.server_address[:2]
        name = str(host)
        return f"http://{f'[{name}]' if ':' in name else name}:{port}/v1"

    def start(self) -> DemoServer:
        """Loads ``tiny-adder``, starts to serve and returns this server; other models load at their first request.

        Raises:
            OSError: The port is taken.
        """
        if self._server is None:
            self._batcher_of(MODEL_NAME)
            self._server = _Server(self._address, self)
            self._thread = threading.Thread(target=self._server.serve_forever, name="iapo-demo-server", daemon=True)
            self._thread.start()
            _log.info("serving %s at %s", ", ".join(self._models), self.api_base)
        return self

    def stop(self) -> None:
        """Stops serving; does nothing if the server is not running."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def __enter__(self) -> DemoServer:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _batcher_of(self, model: str) -> Batcher:
        return self._batcher or shared_batcher(model)

    def _complete(self, data: bytes, hung_up: Callable[[], bool]) -> dict[str, Any]:
        with self._lock:
            self.requests += 1
        body = json.loads(data)
        if not isinstance(body, dict):
            raise InvalidRequestError("the body must be a JSON object")
        model = body.get("model")
        if model not in self._models:
            message = f"The model {model!r} does not exist; this server has {', '.join(self._models)}."
            raise _RefusedError(HTTPStatus.NOT_FOUND, "model_not_found", message)
        messages = body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise InvalidRequestError("messages must be a list of objects")
        with self._place():
            batcher = self._batcher_of(model)
            seed = self._seeds.next(json.dumps(body, sort_keys=True))
            future = batcher.submit(parse_request(messages, body, batcher.model.tokenizer, seed=seed))
            try:
                result = _wait(future, hung_up)
            finally:
                if future.cancel():
                    with self._lock:
                        self.cancelled += 1
        with self._lock:
            self.completions += len(result.choices)
            self.prompt_tokens += result.prompt_tokens
            self.completion_tokens += result.completion_tokens
        return _response(result, model)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Holds one of the places for requests, or refuses the request before it takes a seed."""
        with self._lock:
            if self._open >= self._most:
                message = f"The server has {self._most} requests already; ask again in {_RETRY_SECONDS} s."
                raise _RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_exceeded", message)
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], owner: DemoServer) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)
        self.owner = owner

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("connection from %s broke off", client_address, exc_info=True)


class _RefusedError(Exception):
    """A request that gets an error: its HTTP status, code and message."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for head and body
    disable_nagle_algorithm = True
    timeout = 60
    server: _Server

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/v1/models":
            about = {"object": "model", "created": 0, "owned_by": "iapo_dspy", "max_model_len": 512}
            models = self.server.owner._models
            self._reply(HTTPStatus.OK, {"object": "list", "data": [{"id": m, **about} for m in models]})
        else:
            self._fail(HTTPStatus.NOT_FOUND, "not_found", f"no such path: {self.path}")

    def do_POST(self) -> None:
        try:
            body = self._body()
            if self.path.rstrip("/") != "/v1/chat/completions":
                raise _RefusedError(HTTPStatus.NOT_FOUND, "not_found", f"no such path: {self.path}")
            self._reply(HTTPStatus.OK, self.server.owner._complete(body, self._hung_up))
        except _RefusedError as error:
            self._fail(*error.args)
        except ContextLengthError as error:
            self._fail(HTTPStatus.BAD_REQUEST, "context_length_exceeded", str(error))
        except (InvalidRequestError, json.JSONDecodeError, UnicodeDecodeError) as error:
            self._fail(HTTPStatus.BAD_REQUEST, "invalid_request", str(error))
        except ConnectionError as error:
            self.close_connection = True
            _log.debug("no answer to %s: %s", self.client_address, error)
        except FutureTimeoutError:
            self._fail(HTTPStatus.SERVICE_UNAVAILABLE, "timeout", "the model took too long")
        except Exception:  # noqa: BLE001 (the client gets an answer, the log the traceback)
            _log.exception("a request failed")
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "internal error")

    def _body(self) -> bytes:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            self.close_connection = True
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, None, "a Content-Length is needed") from None
        if not 0 <= length <= _MOST_BYTES:
            self.close_connection = True
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, None, f"at most {_MOST_BYTES} bytes are read")
        return self.rfile.read(length)

    def _hung_up(self) -> bool:
        self.connection.setblocking(False)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)  # the next request stays to be read
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        finally:
            self.connection.settimeout(self.timeout)

    def _fail(self, status: HTTPStatus, code: str | None, message: str) -> None:
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            kind = "rate_limit_error"
        else:
            kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
        self._reply(status, {"error": {"message": message, "type": kind, "param": None, "code": code}})

    def _reply(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self.send_header("Retry-After", str(_RETRY_SECONDS))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def _wait(future: Future[Generation], hung_up: Callable[[], bool]) -> Generation:
    end = time.monotonic() + _MOST_SECONDS
    while not wait([future], timeout=_HANG_UP_SECONDS).done:
        if hung_up():
            raise ConnectionAbortedError("the client hung up")
        if time.monotonic() >= end:
            raise FutureTimeoutError
    return future.result()


def _response(result: Generation, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text},
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for i, choice in enumerate(result.choices)
        ],
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "total_tokens": result.prompt_tokens + result.completion_tokens,
        },
    }


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(arguments: list[str] | None = None) -> None:
    """Serves until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m iapo_dspy.demo.server", description="Serves the demo model.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=None, help="make requests without a seed reproducible")
    parser.add_argument("--allow-remote", action="store_true", help="allow an address that is not loopback")
    parser.add_argument(
        "--max-concurrent-requests",
        type=int,
        default=_CONCURRENT_REQUESTS,
        help="the most requests that are waiting or in a batch; one more is answered 429 (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        server = DemoServer(
            host=options.host,
            port=options.port,
            seed=options.seed,
            allow_remote=options.allow_remote,
            max_concurrent_requests=options.max_concurrent_requests,
        )
    except ValueError as error:
        parser.error(str(error))
    with server:
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            _log.info("stopped")


if __name__ == "__main__":
    main()
