"""A completion that was cut off, stopped or refused is a failed one, whichever LM, program or adapter asked for it."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any

import dspy
import litellm
import pytest
from dspy.lm15 import Message, Request, Response, TextPart, Usage

from iapo_dspy import CompiledProgram, ReplicatedLM
from iapo_dspy.errors import AllCompletionsFailed
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.sampling import draw

pytestmark = pytest.mark.filterwarnings("ignore:Implementing custom LMs")
QUESTION = {"question": "how many?"}
KINDS = (
    "n",
    "one by one",
    "replicas",
    "responses",
    "responses by LiteLLM",
    "text",
    "a subclass",
    "own forward",
    "own engine",
)
optimizer = optimizers(budget=160)


class Endings(Loopback):
    """Answers "10", a half of "1006", each as it is told to end it: (finish reason, refusal)."""

    def __init__(self, *endings: tuple[str, str | None], text: str = chat(answer="10")) -> None:
        super().__init__(lambda body, i: text)
        self.endings = list(endings)

    def _payload(self, body: dict[str, Any], n: int, fault: Any) -> dict[str, Any]:
        payload = super()._payload({**body, "messages": body.get("messages", [])}, n, fault)
        for i, choice in enumerate(payload["choices"]):
            reason, refusal = self.endings[(self.completions - n + i) % len(self.endings)]
            choice["finish_reason"] = reason
            if refusal:
                choice["message"]["refusal"] = refusal
        return payload

    def _respond(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], fault: Any) -> None:
        if handler.path.endswith("/responses"):
            self._write(handler, 200, json.dumps(self._response(body)).encode())
        elif handler.path.endswith("/chat/completions"):
            super()._respond(handler, body, fault)
        else:  # text completions
            payload = self._payload(body, int(body.get("n") or 1), fault)
            payload["object"] = "text_completion"
            for choice in payload["choices"]:
                choice["text"] = choice.pop("message")["content"]
            self._write(handler, 200, json.dumps(payload).encode())

    def _response(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer of the Responses API; its word for "length" is "max_output_tokens"."""
        (choice,) = self._payload(body, 1, None)["choices"]
        reason, text = choice["finish_reason"], choice["message"]["content"]
        whole = reason == "stop"
        content: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
        if "refusal" in choice["message"]:
            content = {"type": "refusal", "refusal": choice["message"]["refusal"]}
        return {
            "id": "resp",
            "object": "response",
            "created_at": 0,
            "model": body["model"],
            "status": "completed" if whole else "incomplete",
            "incomplete_details": None if whole else {"reason": "max_output_tokens" if reason == "length" else reason},
            "error": None,
            "output": [
                {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [content]}
            ],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
            "usage": {"input_tokens": 5, "output_tokens": 9, "total_tokens": 14},
        }


class Steps(dspy.Module):
    """Two steps; the second one answers."""

    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.Predict("question -> answer")
        self.say = dspy.Predict("question, draft -> answer")

    def forward(self, question: str) -> Any:
        return self.say(question=question, draft=self.think(question=question).answer)


class OwnForward(dspy.BaseLM):
    """A user's LM in DSPy's old form."""

    def __init__(self, reason: str) -> None:
        super().__init__("own")
        self.reason = reason

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        message = {"content": chat(answer="10")}
        choice = {"index": 0, "finish_reason": self.reason, "message": message}
        return litellm.ModelResponse(**{"model": "own", "choices": [choice], "usage": {}})


class Logged(dspy.LM):
    """A user's subclass that does something around each call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return await super().acall(*args, **kwargs)


class Engine:
    """A user's engine in DSPy's new form."""

    def __init__(self, reason: Any) -> None:
        self.reason = reason

    def complete(self, request: Request) -> Response:
        message = Message(role="assistant", parts=(TextPart(chat(answer="10")),))
        return Response(
            id="x",
            model=request.model,
            message=message,
            finish_reason=self.reason,
            usage=Usage(input_tokens=1, output_tokens=1),
        )


def _lms(server: Endings, reason: str) -> dict[str, dspy.BaseLM]:
    settings = {"api_base": server.base, "api_key": "sk-none", "cache": False, "num_retries": 0}
    return {
        "n": server.lm(num_retries=0),
        "one by one": server.lm("mistral/m", num_retries=0),
        "replicas": ReplicatedLM("openai/fake", replicas=[server.base, server.base], api_key="k", num_retries=0),
        "responses": dspy.LM("openai/fake", model_type="responses", **settings),
        "responses by LiteLLM": dspy.LM("openai/fake", model_type="responses", engine="litellm", **settings),
        "text": dspy.LM("openai/fake", model_type="text", **settings),
        "a subclass": Logged("openai/fake", **settings),
        "own forward": OwnForward(reason),
        "own engine": dspy.LM("own/fake", engine=Engine(reason), cache=False),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reason", ["length", "content_filter"])
@pytest.mark.parametrize("program", [dspy.Predict("question -> answer"), Steps()], ids=["predict", "module"])
def test_an_incomplete_completion_fails_though_it_can_be_read(kind: str, reason: str, program: Any) -> None:
    with Endings((reason, None)) as server, dspy.context(lm=_lms(server, reason)[kind]):
        rollouts = draw(Sampler(), program, QUESTION, 2, key="x")
    expected = "cut off at max_tokens" if reason == "length" else "stopped by a content filter"
    assert [r.prediction for r in rollouts] == [None, None]
    assert all(expected in (r.failure or "") and not r.error for r in rollouts), rollouts
    assert all(r.text == chat(answer="10") for r in rollouts)  # shown, but it does not vote


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_one_is_read(kind: str) -> None:
    with Endings(("stop", None)) as server, dspy.context(lm=_lms(server, "stop")[kind]):
        rollouts = draw(Sampler(), dspy.Predict("question -> answer"), QUESTION, 2, key="x")
    assert [r.prediction.answer for r in rollouts if r.prediction is not None] == ["10", "10"]


@pytest.mark.parametrize("kind", ["n", "one by one", "replicas", "responses", "responses by LiteLLM"])
def test_a_refusal_is_said_to_be_one(kind: str) -> None:
    with Endings(("stop", "I cannot help with that.")) as server, dspy.context(lm=_lms(server, "stop")[kind]):
        (rollout,) = draw(Sampler(), dspy.Predict("question -> answer"), QUESTION, 1, key="x")
    assert "the model refused to answer" in (rollout.failure or "") and rollout.prediction is None


@pytest.mark.parametrize(
    ("adapter", "text"),
    [
        (dspy.JSONAdapter(), '{"answer": "10'),  # which is mended where it is read
        (dspy.XMLAdapter(), "<answer>10</answer>"),
        (dspy.ChatAdapter(), "[[ ## answer ## ]]\n10"),
    ],
)
@pytest.mark.parametrize("program", [dspy.Predict("question -> answer"), Steps()], ids=["predict", "module"])
def test_no_adapter_reads_half_an_answer(adapter: Any, text: str, program: Any) -> None:
    with Endings(("length", None), text=text) as server, dspy.context(lm=server.lm(), adapter=adapter):
        rollouts = draw(Sampler(), program, QUESTION, 2, key="x")
    assert all("cut off at max_tokens" in (r.failure or "") for r in rollouts)


def test_of_n_completions_only_the_complete_ones_vote() -> None:
    """Compiled, deployed, awaited and streamed alike: six in ten are cut off."""
    endings = [("length", None)] * 6 + [("stop", None)] * 4
    with Endings(*endings) as server, dspy.context(lm=server.lm()):
        train = [dspy.Example(question=f"q{i}", answer="10").with_inputs("question") for i in range(4)]
        program = optimizer(max_n=10, stopping=None).compile(dspy.Predict("question -> answer"), trainset=train)
        failures = program.detailed_results.failures
        assert 0 < failures.total == sum(n for cause, n in failures.causes if "cut off" in cause) < failures.completions
        assert failures.errors == 0
        called = program(question="q1", preference="quality")
        assert called.iapo.votes["10"] + len(called.iapo.failures) == called.iapo.n
        streamed = dspy.streamify(program, async_streaming=False)(question="q1", preference="quality")
        last = [chunk for chunk in streamed if isinstance(chunk, dspy.Prediction)][-1]
        assert last.iapo.votes["10"] + len(last.iapo.failures) == last.iapo.n


def test_a_call_of_which_everything_is_cut_off_says_so() -> None:
    with Endings(("stop", None)) as server, dspy.context(lm=server.lm()):
        train = [dspy.Example(question=f"q{i}", answer="10").with_inputs("question") for i in range(4)]
        program: CompiledProgram = optimizer(max_n=2, budget=60).compile(
            dspy.Predict("question -> answer"), trainset=train
        )
        server.endings = [("length", None)]
        with pytest.raises(AllCompletionsFailed, match="cut off at max_tokens"):
            program(question="q1")
