"""The worlds of `compare_methods`: what a task's LM answers, and what a chosen prompt is worth on held-out questions.

A world's LM is reached as any other one, by LiteLLM: `serving` makes it a provider of this process that counts
requests, completions and tokens. So dspy.GEPA, dspy.MIPROv2, dspy.BestOfN and IAPO all run as they do for users.

**Recorded.** The LM reads the number of the prompt in the instruction ("Instruction 7 of ...") and that of the question
("Question 12"), and draws an answer from the recorded law of the two; the k-th answer of a pair is the same for each
method that asks for it. Held-out values are exact. A recording has no text, so a request reads one token.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import dspy
import numpy as np

from iapo_dspy import MajorityVote, Preference
from iapo_dspy.environments.recorded.files import load
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.environments.recorded.stopped_values import StoppedValues
from iapo_dspy.sampling.lm.params import import_litellm
from iapo_dspy.types import Arm, FloatArray, IntArray

litellm = import_litellm()

PROVIDER = "compared"
NAMES = ("quality", "balanced", "thrifty")  # of three preferences
TOKEN = 1e-5  # utility of a token at cost weight 1 where a recording has no tokens: a cost of .01 is 1,000 of them
MOST_TOKENS = 4_000  # limit of a completion; recorded ones end before it


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


@dataclass(frozen=True)
class Law:
    """The law of the completions of some prompts.

    Attributes:
        recording: The law.
        tokens: Mean output tokens of a completion of each prompt [P].
    """

    recording: VotingRecording
    tokens: FloatArray
    _rewards: dict[tuple[int, int], FloatArray] = field(default_factory=dict, repr=False)

    @cached_property
    def _stopped(self) -> StoppedValues:
        return StoppedValues(recording=self.recording)

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
        readable = np.minimum(probs.sum(axis=1), 1.0)
        right = (probs * self.recording.scores).sum(axis=1)
        some = np.maximum(readable, 1e-12)
        asked = (1.0 - (1.0 - readable) ** n) / some  # 1 + f + ... + f^(n - 1) completions, f the share of failures
        asked = np.where(readable > 0, asked, n)
        return Value(right * asked, asked, asked * self.tokens[prompt])


# --- the LM ----------------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What an LM was asked for: requests, completions, tokens read and written."""

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


class _Provider(litellm.CustomLLM):  # type: ignore[misc, name-defined]
    def completion(self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        asked, response = dict(options.get("optional_params") or {}), options["model_response"]
        served = _models[model]
        reply = served.reply(messages, asked)
        with _lock:
            served.counts.requests += 1
            served.counts.completions += len(reply.texts)
            served.counts.read += reply.read
            served.counts.written += reply.written
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


class RecordedModel:
    """Draws answers from the recorded law of the prompt and the question that a request names.

    Args:
        recording: The law.
        tokens: Output tokens of a completion of each prompt [P].
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
        prompt, question = _number("Instruction", messages[0]), _number("Question", messages[-1])
        n = int(options.get("n") or 1)
        with _lock:
            if (prompt, question) not in self._streams:
                self._streams[prompt, question] = np.random.default_rng([*self._seed, prompt, question])
            uniform = self._streams[prompt, question].random(n)
        drawn = np.searchsorted(self._below[prompt, question], uniform, side="right").tolist()
        texts = [answer_text(a) if a < self._below.shape[2] else "This is not readable." for a in drawn]
        return Reply(texts, 1, max(round(n * float(self._tokens[prompt])), n))


def _number(word: str, message: Mapping[str, Any]) -> int:
    found = re.findall(rf"{word} (\d+)", str(message["content"]))
    if not found:
        raise ValueError(f"A recorded LM needs a message with '{word} ...': {message['content']!r}")
    return int(found[-1])


def answer_text(label: int) -> str:
    """Return a completion that says this answer, in the format of dspy.ChatAdapter."""
    return f"[[ ## answer ## ]]\nA{label}\n\n[[ ## completed ## ]]"


# --- worlds ----------------------------------------------------------------------------------------------------------


class World(Protocol):
    """A task with its LM."""

    name: str
    about: str  # the recording's checksum, or the LM
    max_n: int
    weights: FloatArray  # cost weight of each preference [C]
    rate: float  # utility of an output token at cost weight 1
    per_completion: float  # tokens of a single completion, roughly: read and written
    pool: Sequence[str]  # instructions that a prompt-writing LM can deal
    strategy: MajorityVote

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

    strategy = MajorityVote("answer")

    def __init__(self, path: Path, *, max_n: int) -> None:
        recording = load(path)
        if not isinstance(recording, VotingRecording):
            raise ValueError(f"{path.name} is a {type(recording).__name__}; this comparison takes recordings of votes.")
        self.recording, self.name, self.max_n = recording, path.stem, max_n
        self.about = f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
        self.weights = recording.contexts.cost
        self.tokens, self.rate = tokens_of(recording)
        self.per_completion = float(self.tokens.mean()) + 1
        self.pool: Sequence[str] = tuple(self._instruction(p) for p in range(1, recording.n_prompts))
        self._law = Law(recording, self.tokens)

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
        model = RecordedModel(self.recording, self.tokens, repetition)
        # A failure shall cost one completion, as it does to a deployed vote: not a second one in another format.
        adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
        with serving(self.name, model, max_tokens=MOST_TOKENS) as lm, dspy.context(lm=lm, adapter=adapter):
            yield model

    def key(self, program: dspy.Module) -> str:
        """Implement `World.key`."""
        return str(_number("Instruction", {"content": program.predictors()[0].signature.instructions}))

    def law(self, key: str) -> tuple[Law, int]:
        """Implement `World.law`."""
        return self._law, int(key)

    def held_out(self, repetition: int) -> IntArray:
        """Implement `World.held_out`."""
        return self._split(repetition)[1]

    def _split(self, repetition: int) -> tuple[IntArray, IntArray]:
        return self.recording.split(0, repetition, 0)


def tokens_of(recording: VotingRecording) -> tuple[FloatArray, float]:
    """Return output tokens of a completion of each prompt [P], and the utility of a token at cost weight 1."""
    return np.maximum(np.round(recording.cost / TOKEN), 1.0), TOKEN
