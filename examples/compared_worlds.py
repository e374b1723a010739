"""The worlds of `compare_methods`: what a task's LM answers, and what a chosen prompt is worth on held-out questions.

A world's LM is reached as any other one, by LiteLLM: `serving` makes it a provider of this process that counts
requests, completions and tokens. So dspy.GEPA, dspy.MIPROv2, dspy.BestOfN and IAPO all run as they do for users; the
three of DSPy reach it directly, which changes nothing but this machine's time.

**Recorded.** The LM reads the number of the prompt in the instruction ("Instruction 7 of ...") and that of the question
("Question 12"), and draws a completion from what was recorded of the two; the k-th one of a pair is the same for each
method that asks for it. Held-out values are exact. A recording without tokens has a token for each 1e-5 of its costs,
and a request to it reads one token.

**Live.** The LM is a server's, and the task one of `iapo_dspy.tasks` with demonstrations as turns of the chat. Prompts
that are chosen are recorded on held-out questions, once for all methods and repetitions, and valued exactly on that.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import dspy
import numpy as np
from dspy.lm15 import Message, Request, Response, TextPart, Usage
from equal_spend import law_of, prompt_of

from iapo_dspy import MajorityVote, Preference, Strategy
from iapo_dspy.adapters import PlainTextAdapter
from iapo_dspy.environments.recorded.files import load, save
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.environments.recorded.stopped_values import StoppedValues
from iapo_dspy.sampling.lm.params import import_litellm
from iapo_dspy.tasks import task
from iapo_dspy.types import Arm, Contexts, FloatArray, IntArray

litellm = import_litellm()

PROVIDER = "compared"
NAMES = ("quality", "balanced", "thrifty")  # of three preferences
TOKEN = 1e-5  # utility of a token at cost weight 1 where a recording has no tokens
UNREADABLE = "```"  # a completion in which PlainTextAdapter finds nothing


# --- values ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """Calls of one arm on held-out questions, exactly.

    Attributes:
        reward: Expected reward on each question [X].
        completions: Expected completions of a call on each question [X].
        tokens: Expected output tokens of a call on each question [X].
    """

    reward: FloatArray
    completions: FloatArray
    tokens: FloatArray


class Law:
    """The law of the completions of some prompts, and what arms are worth under it.

    Args:
        recording: The law.
        tokens: Mean output tokens of a completion of each prompt on each question [P, X], or [P, 1].
    """

    def __init__(self, recording: VotingRecording, tokens: FloatArray) -> None:
        self.recording = recording
        self.tokens = np.broadcast_to(tokens, recording.probs.shape[:2])
        self._stopped = StoppedValues(recording=recording)
        self._rewards: dict[tuple[int, int], FloatArray] = {}

    def vote(self, arm: Arm) -> Value:
        """Return the worth of a majority vote."""
        key = arm.prompt, arm.n
        if key not in self._rewards:
            one = self.recording.of_prompts(np.array([arm.prompt]))
            self._rewards[key] = one.exact(arm.n).reward[0, 0, :, -1]
        gain, completions, _ = self._stopped.law(0, arm)
        return Value(self._rewards[key] + gain, completions, completions * self.tokens[arm.prompt])

    def first(self, prompt: int, n: int) -> Value:
        """Return the worth of the first readable completion of at most n, for which dspy.BestOfN stops."""
        probs = self.recording.probs[prompt]
        failing = np.maximum(1.0 - probs.sum(axis=1), 0.0)
        asked = (failing[:, None] ** np.arange(n)).sum(axis=1)  # a further completion where all before it failed
        right = (probs * self.recording.scores).sum(axis=1)
        return Value(right * asked, asked, asked * self.tokens[prompt])


# --- the LM ----------------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """Counts of an LM: requests, completions, tokens read and written."""

    requests: int = 0
    completions: int = 0
    read: int = 0
    written: int = 0


@dataclass(frozen=True)
class Reply:
    """Texts of n completions, and tokens read and written."""

    texts: Sequence[str]
    read: int
    written: int


class Model(Protocol):
    """The port of an LM."""

    counts: Counts

    def reply(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Reply:
        """Answer a request; `options` are its parameters, n among them."""


_models: dict[str, Model] = {}
_lock = threading.Lock()


def asked(model: Model, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Reply:
    """Ask a model, and count it."""
    reply = model.reply(messages, options)
    with _lock:
        model.counts.requests += 1
        model.counts.completions += len(reply.texts)
        model.counts.read += reply.read
        model.counts.written += reply.written
    return reply


class _Provider(litellm.CustomLLM):  # type: ignore[misc, name-defined]
    def completion(self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        response = options["model_response"]
        reply = asked(_models[model], messages, options.get("optional_params") or {})
        response.choices = [
            litellm.Choices(index=i, finish_reason="stop", message=litellm.Message(role="assistant", content=text))
            for i, text in enumerate(reply.texts)
        ]
        response.model, response.created = f"{PROVIDER}/{model}", int(time.time())
        total = reply.read + reply.written
        response.usage = litellm.Usage(prompt_tokens=reply.read, completion_tokens=reply.written, total_tokens=total)
        return response

    async def acompletion(self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        return await asyncio.to_thread(self.completion, model, messages, **options)


@contextmanager
def serving(name: str, model: Model, **options: Any) -> Iterator[dspy.LM]:
    """Serve a model to LiteLLM in this process, and yield its LM."""
    if not any(entry["provider"] == PROVIDER for entry in litellm.custom_provider_map):
        litellm.custom_provider_map.append({"provider": PROVIDER, "custom_handler": _Provider()})
        litellm.utils.custom_llm_setup()
    prices = {"litellm_provider": PROVIDER, "mode": "chat", "input_cost_per_token": 0.0, "output_cost_per_token": 0.0}
    litellm.register_model({f"{PROVIDER}/{name}": prices})
    _models[name] = model
    try:
        yield dspy.LM(f"{PROVIDER}/{name}", engine="litellm", temperature=1.0, cache=False, **options)
    finally:
        del _models[name]


class DirectEngine:
    """An engine of `dspy.LM` that asks a model without LiteLLM, which takes most of the time of a recorded answer.

    dspy.GEPA, dspy.MIPROv2 and dspy.Evaluate ask for every completion by a request of its own.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        self._served = model

    def complete(self, request: Request) -> Response:
        """Answer a request."""
        told = [("system", request.system)] if request.system else []
        told += [(m.role, "".join(part.text for part in m.parts)) for m in request.messages]
        messages = [{"role": role, "content": text} for role, text in told]
        config = request.config
        reply = asked(self._served, messages, {"temperature": config.temperature, "max_tokens": config.max_tokens})
        message = Message(role="assistant", parts=(TextPart(reply.texts[0]),))
        usage = Usage(input_tokens=reply.read, output_tokens=reply.written)
        return Response(id="x", model=request.model, message=message, finish_reason="stop", usage=usage)

    def __deepcopy__(self, memo: Any) -> DirectEngine:
        return self


class RecordedModel:
    """Draws completions from what was recorded of the prompt and the question that a request names.

    Args:
        recording: The recording.
        tokens: Output tokens of a completion of each prompt [P], where the recording has no completions.
        seed: Seeds of the draws.
    """

    def __init__(self, recording: VotingRecording, tokens: FloatArray, *seed: int) -> None:
        self.counts = Counts()
        self._recording, self._tokens, self._seed = recording, tokens, seed
        self._below = np.minimum(np.cumsum(recording.probs, axis=2), 1.0)
        self._below[self._below > 1.0 - 1e-9] = 1.0
        self._streams: dict[tuple[int, int], np.random.Generator] = {}

    def reply(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Reply:
        """Implement `Model.reply`."""
        cell = numbered("Instruction", messages[0]), numbered("Question", messages[-1])
        n = int(options.get("n") or 1)
        with _lock:
            if cell not in self._streams:
                self._streams[cell] = np.random.default_rng([*self._seed, *cell])
            uniform = self._streams[cell].random(n)
        drawn = self._recording.drawn
        if drawn is None:
            outcome = np.searchsorted(self._below[cell], uniform, side="right")
            read, written = 1, round(n * float(self._tokens[cell[0]]))
        else:
            which = (uniform * drawn.samples).astype(int)
            outcome, written = drawn.outcome[cell][which], int(drawn.tokens[cell][which].sum())
            read = int(drawn.prompt_tokens[cell])
        texts = [f"A{a}" if 0 <= a < self._below.shape[2] else UNREADABLE for a in outcome.tolist()]
        return Reply(texts, max(read, 1), max(written, n))


def numbered(word: str, message: Mapping[str, Any]) -> int:
    """Return the last number behind a word in a message.

    Raises:
        ValueError: There is none.
    """
    found = re.findall(rf"{word} (\d+)", str(message["content"]))
    if not found:
        raise ValueError(f"A recorded LM needs a message with '{word} ...': {message['content']!r}")
    return int(found[-1])


class TaskAdapter(PlainTextAdapter):
    """Plain text for the task's own signature; the signatures of optimizers, which write prompts, keep DSPy's format.

    Args:
        inputs: Input fields of the task.
    """

    formats_and_parses_only: ClassVar[bool] = True

    def __init__(self, inputs: Sequence[str]) -> None:
        super().__init__()
        self.inputs = sorted(inputs)

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        """Ask in the format of the signature."""
        if sorted(signature.input_fields) == self.inputs:
            return super().__call__(lm, lm_kwargs, signature, demos, inputs)
        return dspy.ChatAdapter()(lm, lm_kwargs, signature, demos, inputs)


class ForwardingModel:
    """Passes requests on to a server.

    Args:
        model: LiteLLM's name of the model, such as "openai/smollm2".
        options: Of `litellm.completion`, such as `api_base`.
    """

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        self.counts = Counts()
        self._model, self._options = model, dict(options)

    def reply(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Reply:
        """Implement `Model.reply`."""
        found = litellm.completion(model=self._model, messages=list(messages), **{**self._options, **options})
        texts = [choice.message.content or "" for choice in found.choices]
        return Reply(texts, found.usage.prompt_tokens, found.usage.completion_tokens)


# --- worlds ----------------------------------------------------------------------------------------------------------


class World(Protocol):
    """A task with its LM."""

    name: str
    about: str  # the recording's checksum, or the LM
    max_n: int
    weights: FloatArray  # cost weight of each preference [C]
    pool: Sequence[str]  # instructions that a prompt-writing LM can deal
    strategy: Strategy

    @property
    def rate(self) -> float:
        """Utility of an output token at cost weight 1."""

    @property
    def per_completion(self) -> float:
        """Tokens of a single completion, roughly: read and written."""

    def student(self) -> dspy.Module:
        """Return the program as it is."""

    def candidates(self) -> list[Any]:
        """Return the prompts that are known, the student's first."""

    def trainset(self, repetition: int) -> list[dspy.Example]:
        """Return the training questions of a repetition."""

    def metric(self, example: Any, prediction: Any, trace: Any = None, name: Any = None, calls: Any = None) -> float:
        """Return the score of a prediction."""

    def serving(self, repetition: int) -> Any:
        """Return a context with the LM and the adapter set; it yields the model."""

    def key(self, program: dspy.Module) -> str:
        """Return what a run's file knows a prompt by, and make sure that its law is known."""

    def law(self, key: str) -> tuple[Law, int]:
        """Return the law of a prompt, and the prompt's index in it."""

    def held_out(self, repetition: int) -> IntArray:
        """Return the held-out questions of a repetition, as columns of a law."""


def preferences_of(world: World) -> tuple[Preference, ...]:
    """Return the preferences at the world's price of a token; the same utility whichever prompts a run knows."""
    names = NAMES if len(world.weights) == len(NAMES) else [f"cost {w:g}" for w in world.weights]
    rates = [world.rate * float(w) for w in world.weights]
    return tuple(Preference(n, rates={"tokens": r} if r else None) for n, r in zip(names, rates, strict=True))


class RecordedWorld:
    """A recording of votes, split anew for each repetition: 80 % of the questions to train on, the rest held out.

    The student's prompt is the recording's first one, as in `iapo simulate`.

    Args:
        path: The recording.
        max_n: The largest N.

    Raises:
        ValueError: The recording is not one of votes.
    """

    def __init__(self, path: Path, *, max_n: int) -> None:
        recording = load(path)
        if not isinstance(recording, VotingRecording):
            raise ValueError(f"{path.name} is a {type(recording).__name__}; this comparison takes recordings of votes.")
        self.recording, self.name, self.max_n = recording, path.stem, max_n
        self.strategy: Strategy = MajorityVote("answer")
        self.about = f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
        self.weights: FloatArray = recording.contexts.cost
        drawn = recording.drawn
        if drawn is None:
            self.rate, self._tokens = TOKEN, np.maximum(np.round(recording.cost / TOKEN), 1.0)
            mean, self.per_completion, self.longest = self._tokens[:, None], 1 + float(self._tokens.mean()), 1.0
        else:
            mean, self.longest = drawn.tokens.mean(axis=2), float(drawn.tokens.max())
            self._tokens = mean.mean(axis=1)
            self.rate = float(recording.cost.sum() / self._tokens.sum())
            self.per_completion = float(self._tokens.mean() + drawn.prompt_tokens.mean())
        self.longest = max(self.longest, float(self._tokens.max()))
        self.pool: Sequence[str] = tuple(self._instruction(p) for p in range(1, recording.n_prompts))
        self._law = Law(recording, mean)

    def _instruction(self, prompt: int) -> str:
        return f"Instruction {prompt} of {self.name}."

    def student(self) -> dspy.Module:
        """Implement `World.student`."""
        return dspy.Predict(dspy.Signature("question -> answer", self._instruction(0)))

    def candidates(self) -> list[Any]:
        """Implement `World.candidates`."""
        return [self._instruction(0), *self.pool]

    def trainset(self, repetition: int) -> list[dspy.Example]:
        """Implement `World.trainset`."""
        train, _ = self._split(repetition)
        return [dspy.Example(question=f"Question {x}", answer=int(x)).with_inputs("question") for x in train]

    def metric(self, example: Any, prediction: Any, trace: Any = None, name: Any = None, calls: Any = None) -> float:
        """Return the recorded score of the answer; an example's `answer` is the number of its question."""
        found = re.fullmatch(r"A(\d+)", str(prediction.answer))
        return float(self.recording.scores[example.answer, int(found[1])]) if found else 0.0

    @contextmanager
    def serving(self, repetition: int) -> Iterator[Model]:
        """Implement `World.serving`."""
        model = RecordedModel(self.recording, self._tokens, repetition)
        with (
            serving(self.name, model, max_tokens=int(self.longest)) as lm,
            dspy.context(lm=lm, adapter=TaskAdapter(["question"])),
        ):
            yield model

    def key(self, program: dspy.Module) -> str:
        """Implement `World.key`."""
        return str(numbered("Instruction", {"content": program.predictors()[0].signature.instructions}))

    def law(self, key: str) -> tuple[Law, int]:
        """Implement `World.law`."""
        return self._law, int(key)

    def held_out(self, repetition: int) -> IntArray:
        """Implement `World.held_out`."""
        return self._split(repetition)[1]

    def _split(self, repetition: int) -> tuple[IntArray, IntArray]:
        return self.recording.split(0, repetition, 0)


@dataclass(frozen=True, kw_only=True)
class Live:
    """Settings of a live world.

    Attributes:
        model: LiteLLM's name of the model, such as "openai/smollm2".
        api_base: Of the server.
        path: A local file of the task's rows; None: as `Task.load` finds them.
        demos: Demonstrations of every prompt.
        seed: Chooses the demonstrations and the order of the questions.
        train: Training questions of a repetition.
        questions: Held-out questions, the same ones for all repetitions.
        samples: Completions of a chosen prompt on each of them.
        max_tokens: Of a completion.
        concurrency: Requests in flight while prompts are recorded.
    """

    model: str
    api_base: str
    path: Path | None = None
    demos: int = 6
    seed: int = 0
    train: int = 120
    questions: int = 200
    samples: int = 32
    max_tokens: int = 48
    concurrency: int = 4


class LiveWorld:
    """A task of `iapo_dspy.tasks` on a server.

    The student is the task's, and all prompts have the same demonstrations.

    Args:
        name: Of the task, with a majority vote.
        live: Settings.
        max_n: The largest N.
        folder: Where the laws of prompts are kept.
    """

    def __init__(self, name: str, live: Live, *, max_n: int, folder: Path) -> None:
        self._task, self._live, self._folder = task(name), live, folder
        self.name, self.max_n, self.strategy = f"{name}-live", max_n, self._task.strategy
        self.about = (
            f"{live.model}, {live.demos} demonstrations, {live.samples} completions on {live.questions} questions"
        )
        self.weights: FloatArray = np.array([p.cost for p in self._task.preferences])
        self._demos = self._task.demonstrations(live.demos, path=live.path, seed=live.seed)
        rows = self._task.load(path=live.path, seed=live.seed, without=self._demos)
        if len(rows) < live.questions + live.train:
            raise ValueError(f"{name} has {len(rows)} rows; needed are {live.questions} + {live.train}.")
        self._questions, self._rest = rows[: live.questions], rows[live.questions :]
        self._metric = self._task.metric
        self.pool: Sequence[str] = self._task.instructions
        self._laws: dict[str, Law] = {}

    @cached_property
    def rate(self) -> float:
        """A hundredth of a point for a completion of the student, as `Preference(cost=1)` says."""
        law, prompt = self.law(self.key(self.student()))
        return 0.01 / float(law.tokens[prompt].mean())

    @cached_property
    def per_completion(self) -> float:
        """Tokens of a single completion of the student: read, by the words of its prompt, and written."""
        law, prompt = self.law(self.key(self.student()))
        words = len(json.dumps(prompt_of(self.student()), default=str).split())
        return 1.3 * words + float(law.tokens[prompt].mean())

    def student(self) -> dspy.Module:
        """Implement `World.student`."""
        program = self._task.student()
        for predictor in program.predictors():
            predictor.demos = [demo.copy() for demo in self._demos]
        return program

    def candidates(self) -> list[Any]:
        """Implement `World.candidates`."""
        return [self.student(), *self._task.candidates(self._demos)]

    def trainset(self, repetition: int) -> list[dspy.Example]:
        """Implement `World.trainset`."""
        order = np.random.default_rng([repetition, 0]).permutation(len(self._rest))
        return [self._rest[i] for i in order[: self._live.train]]

    def metric(self, example: Any, prediction: Any, trace: Any = None, name: Any = None, calls: Any = None) -> float:
        """Return the task's metric."""
        assert self._metric is not None, "a task with a majority vote has a metric"
        return float(self._metric(example, prediction))

    @property
    def _options(self) -> dict[str, Any]:
        more = {
            "top_k": 40,
            "top_p": 1.0,
            "min_p": 0.0,
        }  # without them llama.cpp sorts its whole vocabulary for each token
        return {"api_base": self._live.api_base, "api_key": "none", "extra_body": more}

    @property
    def _adapter(self) -> TaskAdapter:
        return TaskAdapter(list(self._task.signature.input_fields))

    @contextmanager
    def serving(self, repetition: int) -> Iterator[Model]:
        """Implement `World.serving`."""
        model = ForwardingModel(self._live.model, self._options)
        with (
            serving(self.name, model, max_tokens=self._live.max_tokens) as lm,
            dspy.context(lm=lm, adapter=self._adapter),
        ):
            yield model

    def key(self, program: dspy.Module) -> str:
        """Implement `World.key`; a prompt that is new is recorded."""
        prompt = json.dumps(prompt_of(program), sort_keys=True, default=str)
        key = hashlib.sha256(prompt.encode()).hexdigest()[:16]
        path = self._path(key)
        if not path.exists():
            at = {"temperature": 1.0, "max_tokens": self._live.max_tokens, "cache": False}
            lm = dspy.LM(self._live.model, engine="litellm", **at, **self._options)
            with dspy.context(lm=lm, adapter=self._adapter):
                recording = law_of(
                    program,
                    self._questions,
                    samples=self._live.samples,
                    strategy=self.strategy,
                    metric=self.metric,
                    contexts=Contexts(np.ones((len(self.weights), 1)), self.weights),
                    kind="vote",
                    max_concurrency=self._live.concurrency,
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            save(recording, path)
        return key

    def law(self, key: str) -> tuple[Law, int]:
        """Implement `World.law`."""
        if key not in self._laws:
            recording = load(self._path(key))
            assert isinstance(recording, VotingRecording)
            self._laws[key] = Law(recording, recording.cost[:, None])  # a token costs 1 in `law_of`
        return self._laws[key], 0

    def held_out(self, repetition: int) -> IntArray:
        """Implement `World.held_out`."""
        return np.arange(len(self._questions))

    def _path(self, key: str) -> Path:
        return self._folder / "laws" / f"{self.name}-{key}.npz"
