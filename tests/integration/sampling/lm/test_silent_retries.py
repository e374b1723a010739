"""No provider of LiteLLM's is asked more often than we know: every attempt is seen and counted."""

from __future__ import annotations

import socket
from typing import Any

import dspy
import pytest

from iapo_dspy import ReplicatedLM
from iapo_dspy.sampling.lm.params import DROPS_MAX_RETRIES, import_litellm
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.support.loopback import Faults, Loopback, chat
from tests.support.sampling import draw

QUESTION = {"question": "q"}


@pytest.fixture(autouse=True)
def nothing_but_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    find = socket.getaddrinfo

    def only(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("127.0.0.1", "localhost"):
            raise socket.gaierror(f"{host} is not to be asked")
        return find(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", only)


def asked(model: str, fault: Any, **settings: Any) -> tuple[int, int]:
    """Return the requests that the server saw and those that were counted, for one attempt."""
    with Loopback(faults=Faults(first=[fault] * 9)) as server:
        sampler = Sampler(lm=server.lm(model, num_retries=0, **settings), timeout=5)
        drawn = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 1, key=0)
        assert not drawn[0].ok
        return server.requests, sampler.meter.spent.requests


@pytest.mark.parametrize("fault", [500, 429, "drop"])
@pytest.mark.parametrize("provider", sorted(DROPS_MAX_RETRIES))
def test_providers_whose_max_retries_litellm_loses_are_asked_once(provider: str, fault: Any) -> None:
    assert asked(f"{provider}/m", fault, drop_params=True) == (1, 1)  # some know no temperature


@pytest.mark.parametrize("fault", [500, *(pytest.param(f, marks=pytest.mark.slow) for f in (429, "drop"))])
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "litellm_proxy", "groq", "together_ai", "anthropic"])
def test_other_providers_are_asked_once(provider: str, fault: Any) -> None:
    assert asked(f"{provider}/m", fault, drop_params=True) == (1, 1)  # some know no temperature


def test_provider_named_apart_from_the_model() -> None:
    assert asked("m", 500, custom_llm_provider="sambanova") == (1, 1)


def test_they_answer_too() -> None:
    with Loopback(lambda body, i: chat(answer="yes")) as server:
        sampler = Sampler(lm=server.lm("sambanova/m"))
        drawn = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 2, key=0)
    assert [r.prediction.answer for r in drawn if r.prediction] == ["yes"] * 2
    assert server.headers[0]["authorization"] == "Bearer sk-loopback-secret"


@pytest.mark.slow
def test_no_other_provider_of_this_litellm_retries_silently() -> None:
    """Every provider that can be sent to loopback; one that is new here belongs into `DROPS_MAX_RETRIES`."""
    silent = {}
    reached = 0
    with Loopback(faults=Faults(first=[500] * 10_000)) as server:
        server.keep_bodies = False
        for provider in sorted({str(getattr(p, "value", p)) for p in import_litellm().openai_compatible_providers}):
            before = server.requests
            lm = server.lm(f"{provider}/m", num_retries=0, drop_params=True)
            try:
                draw(Sampler(lm=lm, timeout=5), dspy.Predict("question -> answer"), QUESTION, 1, key=0)
            except Exception:  # noqa: BLE001 - a provider that wants more than an address and a key
                continue
            reached += server.requests > before
            if server.requests - before > 1:
                silent[provider] = server.requests - before
    assert not silent
    assert reached > 30


def test_replicas_of_such_a_provider_are_asked_once() -> None:
    with Loopback(faults=Faults(first=[500] * 9)) as server:
        base = server.lm("openai/m").kwargs["api_base"]
        for lm in (
            ReplicatedLM("sambanova/m", replicas=[base], api_key="k", num_retries=0),
            ReplicatedLM("openai/m", replicas=[{"api_base": base, "model": "zai/m"}], api_key="k", num_retries=0),
        ):
            sampler = Sampler(lm=lm, timeout=5)
            before = server.requests
            (rollout,) = draw(sampler, dspy.Predict("question -> answer"), QUESTION, 1, key=0)
            assert not rollout.ok
            assert server.requests - before == sampler.meter.spent.requests == 1
            with pytest.raises(Exception, match="injected"):
                lm("q")
            assert server.requests - before == 2
