"""The light OpenAI client sends and reads what LiteLLM's own would."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from iapo_dspy.sampling.lm.openai_client import OpenAIClients
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.support.loopback import Faults, Loopback, chat
from tests.support.sampling import draw

QUESTION = {"question": "q"}
SETTINGS: dict[str, Any] = {
    "max_tokens": 50,
    "stop": ["!"],
    "top_p": 0.9,
    "response_format": {"type": "json_object"},
    "extra_body": {"top_k": 0, "min_p": 0.0},
    "extra_headers": {"X-Tenant": "a"},
}


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenAIClients, "settings", lambda self, params: {})


def test_requests_and_answers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with Loopback(lambda body, i: chat(answer=f"ä{i % 3}")) as server:
        seen = []
        for light in (True, False):
            if not light:
                plain(monkeypatch)
            lm = server.lm(input_cost_per_token=1e-6, output_cost_per_token=2e-6, **SETTINGS)
            drawn = draw(Sampler(lm=lm), dspy.Predict("question -> answer"), QUESTION, 3, key=0, record=True)
            (entry,) = lm.history
            seen.append(([(r.text, r.failure, r.usage.prompt_tokens, r.usage.usd) for r in drawn], entry["usage"]))
        assert seen[0] == seen[1]
        assert seen[0][0][1][0] == chat(answer="ä1")
        assert server.bodies[0] == server.bodies[1]
        assert server.bodies[0]["top_k"] == 0 and server.bodies[0]["n"] == 3
        names = ("authorization", "content-type", "x-tenant")
        assert [server.headers[0].get(n) for n in names] == [server.headers[1].get(n) for n in names]
        assert server.headers[0]["x-tenant"] == "a"


@pytest.mark.parametrize("fault", [400, 404, 429, 500, "truncated"])
def test_errors_are_the_same(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for light in (True, False):
        if not light:
            plain(monkeypatch)
        with Loopback(faults=Faults(first=[fault], retry_after="0.1")) as server:
            sampler = Sampler(lm=server.lm(num_retries=0))
            try:
                (rollout,) = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 1, key=0)
                said.append((rollout.failure or "").split(":")[0])
            except Exception as error:  # noqa: BLE001 - a 404 is fatal
                said.append(type(error).__name__)
            assert sampler.meter.spent.requests == server.requests == 1
    if fault != "truncated":  # garbled JSON is one kind of internal error or another; both are asked again
        assert said[0] == said[1]
    assert all(said)


def test_litellm_keeps_its_own_client_where_it_was_told_how_to_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"api_base": "http://127.0.0.1:9/v1", "api_key": "k"}
    for model, params in (
        ("openai/m", {"api_key": "k"}),
        ("openai/m", {"api_base": "http://127.0.0.1:9/v1"}),
        ("openai/m", {**base, "organization": "o"}),
        ("openai/m", {**base, "client": object()}),
        ("openai/m", {**base, "custom_llm_provider": "azure"}),
        ("hosted_vllm/m", base),
        ("gpt-4o-mini", base),
    ):
        assert OpenAIClients(model).settings(params) == {}
    clients = OpenAIClients("openai/m")
    first = clients.settings(base)["client"]
    assert clients.settings(base)["client"] is first
    assert clients.settings({**base, "api_key": "other"})["client"].api_key == "other"
    monkeypatch.setenv("OPENAI_ORGANIZATION", "o")
    assert clients.settings(base) == {}
