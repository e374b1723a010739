from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

import litellm
import pytest

from iapo_dspy.demo.batching import Batcher, shared_batcher
from iapo_dspy.demo.generation import Generation, GenerationRequest, SampledText
from iapo_dspy.demo.model import TinyLM
from iapo_dspy.demo.server import DemoServer
from iapo_dspy.demo.server import main as serve
from iapo_dspy.demo.shipped import BITS, MODEL_NAME
from tests.support.demo_chat import render_chat

MESSAGES = render_chat(
    instruction="Work column by column, carrying, before you answer.",
    field="question",
    value="What is 123 + 456?",
    reasoning=False,
)


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer() as running:
        yield running


def call(server: DemoServer, method: str, path: str, body: object = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(server.api_base).netloc, timeout=30)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, body=data)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def chat(**changes: object) -> dict[str, object]:
    return {"model": MODEL_NAME, "messages": MESSAGES, **changes}


@pytest.mark.parametrize("prefix", ["openai", "hosted_vllm"])
def test_litellm_gets_n_choices_from_one_http_request(server: DemoServer, prefix: str) -> None:
    response = litellm.completion(
        model=f"{prefix}/{MODEL_NAME}",
        api_base=server.api_base,
        api_key="any",
        messages=MESSAGES,
        n=8,
        temperature=1.0,
        seed=4,
    )
    assert (server.requests, server.completions) == (1, 8)
    assert len({c.message.content for c in response.choices}) > 1
    assert 40 < response.usage.prompt_tokens < 70
    assert response.usage.completion_tokens > 8 * 20
    assert (server.prompt_tokens, server.completion_tokens) == (
        response.usage.prompt_tokens,
        response.usage.completion_tokens,
    )


@pytest.mark.parametrize("prefix", ["openai", "hosted_vllm"])
def test_litellm_gets_typed_errors(server: DemoServer, prefix: str) -> None:
    ask = {"model": f"{prefix}/{MODEL_NAME}", "api_base": server.api_base, "api_key": "any", "max_retries": 0}
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**ask, messages=[{"role": "user", "content": "~" * 600}])
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**ask, messages=MESSAGES, n=-1)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**ask, "model": f"{prefix}/other"}, messages=MESSAGES)


async def test_dspy_works_through_the_server_with_requests_in_flight(server: DemoServer) -> None:
    import dspy

    lm = dspy.LM(
        f"openai/{MODEL_NAME}", engine="litellm", api_base=server.api_base, api_key="any", temperature=1.0, cache=False
    )
    with dspy.context(lm=lm):
        predict = dspy.Predict("question -> answer")
        answers = await asyncio.gather(*(predict.acall(question=f"What is {a} + 321?") for a in range(111, 143)))
    assert server.completions >= 32
    assert sum(a.answer.isdigit() and len(a.answer) == 3 for a in answers) >= 30


def test_models_are_listed(server: DemoServer) -> None:
    status, body = call(server, "GET", "/v1/models")
    assert status == 200
    assert [m["id"] for m in body["data"]] == list(BITS)
    assert server.requests == 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_request"),
        (b"\xff", 400, "invalid_request"),
        ([], 400, "invalid_request"),
        (chat(messages="hi"), 400, "invalid_request"),
        (chat(messages=[]), 400, "invalid_request"),
        (chat(n=0), 400, "invalid_request"),
        (chat(n="two"), 400, "invalid_request"),
        (chat(stream=True), 400, "invalid_request"),
        (chat(model="gpt"), 404, "model_not_found"),
        (chat(messages=[{"role": "user", "content": "~" * 600}]), 400, "context_length_exceeded"),
    ],
)
def test_bad_requests_get_json_errors(server: DemoServer, body: object, status: int, code: str) -> None:
    got, content = call(server, "POST", "/v1/chat/completions", body)
    assert (got, content["error"]["code"]) == (status, code)
    assert content["error"]["message"]
    assert server.completions == 0


def test_unknown_paths_are_404(server: DemoServer) -> None:
    assert call(server, "GET", "/v1/nothing")[0] == 404
    assert call(server, "POST", "/v1/completions", {})[0] == 404


def test_one_connection_serves_many_requests_and_survives_errors(server: DemoServer) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.api_base).netloc, timeout=30)
    for n in (1, 0, 2):
        connection.request("POST", "/v1/chat/completions", body=json.dumps(chat(n=n, max_tokens=2)))
        response = connection.getresponse()
        content = json.loads(response.read())
        assert response.status == (200 if n else 400)
        assert len(content.get("choices", [])) == n
    connection.close()


def test_a_seed_of_the_request_or_the_server_makes_texts_repeat() -> None:
    runs = []
    for _ in range(2):
        with DemoServer(seed=1) as server:
            runs.append([call(server, "POST", "/v1/chat/completions", chat(n=3))[1]["choices"] for _ in range(2)])
            seeded = [call(server, "POST", "/v1/chat/completions", chat(n=3, seed=2))[1]["choices"] for _ in range(2)]
            assert seeded[0] == seeded[1]
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_other_addresses_than_loopback_are_refused(host: str) -> None:
    with pytest.raises(ValueError, match="allow_remote"):
        DemoServer(host=host)
    DemoServer(host=host, allow_remote=True)  # not started: only the check is tested


def test_a_stopped_server_has_no_address_and_can_start_again() -> None:
    server = DemoServer()
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.api_base
    for _ in range(2):
        with server:
            assert call(server, "GET", "/v1/models")[0] == 200
    server.stop()


HELD = {"max_tokens": 7}


class Holding(Batcher):
    """Keeps the requests with the options `HELD`; the model serves the others."""

    def __init__(self) -> None:
        super().__init__(shared_batcher().model)
        self.held: list[Future[Generation]] = []

    def submit(self, request: GenerationRequest) -> Future[Generation]:
        if request.max_tokens != HELD["max_tokens"]:
            return shared_batcher().submit(request)
        self.held.append(Future())
        return self.held[-1]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def begin(server: DemoServer, **changes: object) -> http.client.HTTPConnection:
    """Send a request and do not wait for the answer."""
    connection = http.client.HTTPConnection(urlsplit(server.api_base).netloc, timeout=30)
    connection.request("POST", "/v1/chat/completions", body=json.dumps(chat(**changes)))
    return connection


def made(text: str) -> Generation:
    return Generation(choices=(SampledText(text=text, tokens=(1,), finish_reason="stop"),), prompt_tokens=1)


def test_a_full_server_answers_429_and_when_to_ask_again() -> None:
    batcher = Holding()
    with DemoServer(batcher=batcher, max_concurrent_requests=2, seed=1) as server:
        clients = []
        for _ in range(2):
            clients.append(begin(server, **HELD))
            until(lambda: len(batcher.held) == len(clients))  # so that the futures have the clients' order
        refused = begin(server, n=3)
        response = refused.getresponse()
        assert (response.status, response.headers["Retry-After"]) == (429, "1")
        assert json.loads(response.read())["error"]["code"] == "rate_limit_exceeded"
        with pytest.raises(litellm.RateLimitError):
            litellm.completion(
                model=f"openai/{MODEL_NAME}", api_base=server.api_base, api_key="any", max_retries=0, messages=MESSAGES
            )
        assert call(server, "POST", "/v1/chat/completions", chat(n=0))[0] == 429
        assert call(server, "GET", "/v1/models")[0] == 200

        for i, (client, future) in enumerate(zip(clients, batcher.held, strict=True)):
            future.set_result(made(str(i)))
            response = client.getresponse()
            assert json.loads(response.read())["choices"][0]["message"]["content"] == str(i)
            client.close()
        # The refused client asks again on its connection, and gets what the seed would have given it at first.
        refused.request("POST", "/v1/chat/completions", body=json.dumps(chat(n=3)))
        choices = json.loads(refused.getresponse().read())["choices"]
        refused.close()
        assert (server.requests, server.completions, server.cancelled) == (6, 5, 0)
    with DemoServer(seed=1) as fresh:
        assert call(fresh, "POST", "/v1/chat/completions", chat(n=3))[1]["choices"] == choices


@pytest.mark.parametrize("bad", [{"n": 0}, {"messages": [{"role": "user", "content": "~" * 600}]}])
def test_bad_requests_and_served_ones_give_their_places_back(bad: dict[str, object]) -> None:
    with DemoServer(max_concurrent_requests=1) as server:
        connection = http.client.HTTPConnection(urlsplit(server.api_base).netloc, timeout=30)
        for body, status in ((chat(**bad), 400), (chat(max_tokens=2), 200), (chat(max_tokens=2), 200)):
            connection.request("POST", "/v1/chat/completions", body=json.dumps(body))
            response = connection.getresponse()
            response.read()
            assert response.status == status
        connection.close()


def test_a_client_that_hangs_up_gives_its_place_to_another() -> None:
    batcher = Holding()
    with DemoServer(batcher=batcher, max_concurrent_requests=2) as server:
        leaves, stays = (begin(server, **HELD) for _ in range(2))
        until(lambda: len(batcher.held) == 2)
        assert call(server, "POST", "/v1/chat/completions", chat(max_tokens=2))[0] == 429
        leaves.close()
        until(lambda: call(server, "POST", "/v1/chat/completions", chat(max_tokens=2))[0] == 200)
        gone, kept = sorted(batcher.held, key=lambda future: not future.cancelled())
        assert gone.cancelled() and not kept.cancelled()
        kept.set_result(made("579"))
        response = stays.getresponse()
        assert json.loads(response.read())["choices"][0]["message"]["content"] == "579"
        # Looking whether the client is still there took nothing from its connection.
        stays.request("POST", "/v1/chat/completions", body=json.dumps(chat(max_tokens=2)))
        assert stays.getresponse().status == 200
        stays.close()
        assert (server.cancelled, server.completions) == (1, 3)


def test_the_model_stops_working_for_clients_that_hung_up(monkeypatch: pytest.MonkeyPatch) -> None:
    decode, steps, go_on = TinyLM.decode, [0], threading.Event()

    def held(*arguments: Any) -> Any:
        steps[0] += 1
        assert go_on.wait(20)
        return decode(*arguments)

    batcher = Batcher(shared_batcher().model, slots=16, workers=1)
    monkeypatch.setattr(TinyLM, "decode", held)
    with DemoServer(batcher=batcher) as server:
        first = begin(server, n=1024)  # 64 batches one after another, if it stays
        until(lambda: steps[0] == 1)
        second = begin(server, n=1024)  # waits for a slot
        stays = begin(server, n=3, max_tokens=5, seed=8)
        until(lambda: server.requests == 3)
        first.close()
        second.close()
        until(lambda: server.cancelled == 2)
        go_on.set()
        choices = json.loads(stays.getresponse().read())["choices"]
        stays.close()
        assert steps[0] <= 1 + 4  # of the five tokens, the prompt's pass gives the first
        assert server.completions == 3
        alone = call(server, "POST", "/v1/chat/completions", chat(n=3, max_tokens=5, seed=8))[1]
        assert alone["choices"] == choices


@pytest.mark.parametrize("most", [0, -1])
def test_a_server_without_a_place_for_requests_is_refused(most: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="max_concurrent_requests must be at least 1"):
        DemoServer(max_concurrent_requests=most)
    with pytest.raises(SystemExit):
        serve([f"--max-concurrent-requests={most}"])
    assert "max_concurrent_requests must be at least 1" in capsys.readouterr().err
