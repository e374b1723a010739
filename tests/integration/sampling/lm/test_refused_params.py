"""Models that take no temperature, not every parameter, or only some together: what the server is asked for."""

from __future__ import annotations

import json
import logging
from http.server import BaseHTTPRequestHandler
from typing import Any

import dspy
import pytest

from iapo_dspy import Budget, Decoding, ReplicatedLM
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import Meter
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.sampling import draw

PREDICT = dspy.Predict("question -> answer")
QUESTION = {"question": "how many?"}
optimizer = optimizers(budget=60, max_n=2)


class Refusing(Loopback):
    """Refuses parameters as OpenAI does, names of limits included."""

    def __init__(
        self, *refused: str, message: str = "Unsupported parameter: '{}' is not supported with this model."
    ) -> None:
        super().__init__(lambda body, i: chat(answer=str(i % 3)))
        self.refused = refused
        self.message = message

    def _respond(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], fault: Any) -> None:
        for name in self.refused:
            if name in body:
                return self._error(handler, 400, self.message.format(name))
        if handler.path.endswith("/responses"):
            return self._write(handler, 200, json.dumps(_response(body)).encode())
        super()._respond(handler, body, fault)


def _response(body: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "output_text", "text": chat(answer="1"), "annotations": []}]
    return {
        "id": "r",
        "object": "response",
        "created_at": 0,
        "model": body["model"],
        "status": "completed",
        "output": [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": content}],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "usage": {"input_tokens": 5, "output_tokens": 9, "total_tokens": 14},
    }


@pytest.mark.parametrize("kind", ["n", "replicas", "responses", "responses by LiteLLM", "subclass"])
def test_a_refusal_is_answered_by_leaving_the_parameter_out(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """One request is refused; its answer is known to every later LM of the same deployment."""

    class Own(dspy.LM):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    def lm(server: Loopback) -> dspy.LM:
        settings = {"api_base": server.base, "api_key": "k", "cache": False, "num_retries": 0, "temperature": 0.7}
        if kind == "replicas":
            return ReplicatedLM("openai/m", replicas=[server.base], api_key="k", num_retries=0, temperature=0.7)
        if kind == "n":
            return dspy.LM("openai/m", **settings)
        engine = "litellm" if "LiteLLM" in kind else "auto"
        make = Own if kind == "subclass" else dspy.LM
        return make("openai/m", model_type="responses" if "responses" in kind else "chat", engine=engine, **settings)

    with Refusing("temperature") as server:
        for _ in range(3):
            (rollout,) = draw(Sampler(lm=lm(server)), PREDICT, QUESTION, 1, key="x")
            assert rollout.ok, rollout.failure
        assert server.statuses == {400: 1, 200: 3}
        assert ["temperature" in body for body in server.bodies] == [True, False, False, False]
    assert [r.levelno for r in caplog.records if "refuses temperature" in r.message] == [logging.WARNING]


@pytest.mark.parametrize("model_type", ["chat", "responses"])
def test_a_refusal_costs_nothing(model_type: Any) -> None:
    """Nothing of its upper bound, 500 tokens and the prompt, counts as spent."""
    with Refusing("temperature") as server:
        settings = {"api_base": server.base, "api_key": "k", "cache": False, "num_retries": 0, "max_tokens": 500}
        lm = dspy.LM("openai/m", model_type=model_type, temperature=0.7, **settings)
        sampler = Sampler(lm=lm, meter=Meter(Budget(completions=9, tokens=10**6)))
        (rollout,) = draw(sampler, PREDICT, QUESTION, 1, key="x")
        assert rollout.ok and server.statuses == {400: 1, 200: 1}
        assert sampler.meter.spent.completion_tokens < 50 and sampler.meter.spent.requests == 2


def test_a_limit_goes_by_its_other_name() -> None:
    """As OpenAI's reasoning models behind a name of one's own say; no limit is ever left out."""
    message = "Unsupported parameter: '{}' is not supported with this model. Use 'max_completion_tokens' instead."
    with Refusing("max_tokens", message=message) as server:
        rollouts = draw(Sampler(lm=server.lm(max_tokens=70)), PREDICT, QUESTION, 3, key="x", most_tokens=40)
        assert all(r.ok for r in rollouts) and server.bodies[-1]["max_completion_tokens"] == 40
        assert "max_tokens" not in server.bodies[-1] and server.bodies[-1]["n"] == 3


def test_several_parameters_and_n_are_refused_one_after_another() -> None:
    with Refusing("temperature", "seed", "top_p") as server:
        server.faults.refuse_n = True
        lm = server.lm(seed=1, temperature=0.5, top_p=0.5)
        rollouts = draw(Sampler(lm=lm), PREDICT, QUESTION, 4, key="x")
        assert [r.ok for r in rollouts] == [True] * 4 and {r.seed for r in rollouts} == {None}


@pytest.mark.parametrize(
    ("model", "settings", "sent"),
    [
        ("openai/m", {}, 1.0),  # OpenAI's servers take one, says LiteLLM
        ("hosted_vllm/m", {}, 1.0),
        ("openai/m", {"top_p": 0.9}, None),  # some models take only one of the two
        ("openai/m", {"temperature": 0.4, "top_p": 0.9}, 0.4),
        ("openai/gpt-5-search-api", {}, None),
    ],
)
def test_a_temperature_that_nobody_set_is_sent_where_litellm_says_so(model: str, settings: Any, sent: Any) -> None:
    with Loopback(lambda body, i: chat(answer="1")) as server:
        draw(Sampler(lm=server.lm(model, **settings)), PREDICT, QUESTION, 2, key="x")
        assert {body.get("temperature") for body in server.bodies} == {sent}


@pytest.mark.filterwarnings("ignore:Implementing custom LMs")
def test_nothing_that_nobody_set_is_sent_to_an_lm_of_the_users_own() -> None:
    asked: list[dict[str, Any]] = []

    class Mine(dspy.BaseLM):
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            import litellm

            asked.append(kwargs)
            return litellm.ModelResponse(choices=[{"message": {"content": chat(answer="1")}}])

    (rollout,) = draw(Sampler(lm=Mine("mine", top_k=3)), PREDICT, QUESTION, 1, key="x")
    assert rollout.ok and "temperature" not in {k for call in asked for k, v in call.items() if v is not None}


def test_compiled_and_deployed_without_a_temperature(caplog: pytest.LogCaptureFixture) -> None:
    """The run says that nothing but the model's own temperature makes its completions differ."""
    train = [dspy.Example(question=f"q{i}", answer="1").with_inputs("question") for i in range(4)]
    with Refusing("temperature") as server, dspy.context(lm=server.lm()):
        program = optimizer(decoding=[Decoding(), Decoding(max_tokens=30)]).compile(PREDICT, trainset=train)
        refused = server.statuses[400]
        assert program.detailed_results.failures.total == 0 and program(question="q1").answer in "012"
        assert server.statuses[400] == refused  # the deployed program knows what the run has learnt
    assert caplog.text.count("refuses temperature") == 1 and "own temperature" in caplog.text


class Thinking(Loopback):
    """Anthropic's messages; it refuses a budget for thinking that leaves no room."""

    def _respond(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], fault: Any) -> None:
        budget = (body.get("thinking") or {}).get("budget_tokens", 0)
        if budget and (body["max_tokens"] <= budget or budget < 1024):
            return self._error(handler, 400, "`max_tokens` must be greater than `thinking.budget_tokens`.")
        said = {
            "id": "x",
            "type": "message",
            "role": "assistant",
            "model": "c",
            "stop_reason": "end_turn",
            "content": [{"type": "text", "text": chat(answer="1")}],
            "usage": {"input_tokens": 50, "output_tokens": 300},
        }
        self._write(handler, 200, json.dumps(said).encode())


@pytest.mark.parametrize(
    ("settings", "most", "budget"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, 500, None),  # no budget is as small
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, 1500, 1024),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, 2500, 2048),
        ({"reasoning_effort": "high"}, 500, None),  # LiteLLM makes a budget of 4,096 tokens of it
        ({"reasoning_effort": "high"}, 3000, 1500),
        ({"reasoning_effort": "low"}, 3000, 1024),
    ],
)
def test_a_cap_and_a_budget_for_thinking_move_together(settings: Any, most: int, budget: int | None) -> None:
    with Thinking() as server:
        base = server.base.removesuffix("/v1")
        lm = server.lm("anthropic/claude-sonnet-4-5", api_base=base, max_tokens=9000, num_retries=0, **settings)
        (rollout,) = draw(Sampler(lm=lm), PREDICT, QUESTION, 1, key="x", most_tokens=most)
        assert rollout.ok, rollout.failure
        body = server.bodies[-1]
        assert body["max_tokens"] == most and (body.get("thinking") or {}).get("budget_tokens") == budget
        assert body.get("temperature") in (None, 1.0)
