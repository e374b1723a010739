"""Reward models that vLLM serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any, Literal

import dspy

from iapo_dspy.errors import ConfigurationError, ScoreError
from iapo_dspy.sampling.judges.metered import tried
from iapo_dspy.sampling.judges.reward_server import RewardServer
from iapo_dspy.sampling.lm.proxy import noted
from iapo_dspy.scoring.calibration import Kind
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.objectives.pairs import Form, Pairing, check_form, known
from iapo_dspy.scoring.once_per_call import once

Endpoint = Literal["pooling", "classify", "score"]


def served_reward_model(
    model: str,
    api_base: str,
    *,
    question: str | None = None,
    answer: str | None = None,
    endpoint: Endpoint = "pooling",
    form: Form | None = None,
    label: int | None = None,
    activation: bool = False,
    calibrate: Kind | None = None,
    bounds: tuple[float, float] | None = None,
    max_length: int | None = None,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    num_retries: int = 3,
    name: str | None = None,
) -> Objective:
    """Score completions by a reward model behind vLLM's HTTP API.

        vllm serve Skywork/Skywork-Reward-V2-Qwen3-0.6B --runner pooling

        served_reward_model("Skywork/Skywork-Reward-V2-Qwen3-0.6B", "http://localhost:8000")

    One request a completion, as many at a time as completions are read: vLLM batches them itself. Requests that fail
    for a moment (no connection, 408, 409, 429, 5xx) are sent again. It is your own server: no budget counts it.

    Args:
        model: As the server calls it. The short names of `reward_model` set the form, and stand for the full name.
        api_base: The server's address, with or without `/v1`.
        question: Input field that was answered. Default: the only one.
        answer: Output field that is scored. Default: the only one, `reasoning` aside.
        endpoint: "pooling" serves every kind of reward model; of one that scores every token, the last token's score
            counts. "classify" is for sequence classifiers only, "score" for cross-encoders, which read (question,
            answer) as two texts.
        form: Text for the model; see `Form`. A pair is joined where the endpoint takes one text. Default: "chat",
            by the model's own chat template; with endpoint "score" it is "pair".
        label: Which number is the score, where the model gives several.
        activation: Whether the server applies the model's activation (softmax or logistic), which puts scores into
            [0, 1]; without it they are logits, as those of `reward_model`.
        calibrate: How logits get to [0, 1]; see `Objective`. Default: "minmax", unless `bounds` or `activation` is
            given.
        bounds: Of the score, where you know them, instead of a calibration.
        max_length: Tokens that a text is cut to. Default: what the model takes.
        api_key: Sent as a bearer token.
        headers: Sent with every request.
        timeout: Seconds per attempt.
        num_retries: Attempts after the first one.
        name: Of the objective. Default: the short name, else the last part of the model's.

    Raises:
        ConfigurationError: An argument cannot be used.
    """
    if not isinstance(model, str) or not model:
        raise ConfigurationError(f"served_reward_model({model!r}): give the model's name, as the server calls it.")
    if endpoint not in ("pooling", "classify", "score"):
        raise ConfigurationError(f"endpoint={endpoint!r}: give 'pooling', 'classify' or 'score'.")
    if form == "chat" and endpoint == "score":
        raise ConfigurationError("endpoint='score' reads two texts: leave form out, or give form='pair'.")
    if label is not None and (isinstance(label, bool) or not isinstance(label, int) or label < 0):
        raise ConfigurationError(f"label={label!r}: give the index of a label, >= 0; a server does not name labels.")
    short, entry = known(model)
    if entry is not None:
        model, form, label = entry.model, form or entry.form, entry.label if label is None else label
    scorer = ServedReward(
        model,
        Pairing(question, answer),
        endpoint,
        check_form(form or ("pair" if endpoint == "score" else "chat")),
        label,
        activation,
        max_length,
        RewardServer(api_base, api_key=api_key, timeout=timeout, num_retries=num_retries, headers=headers),
    )
    if bounds is None and not activation and calibrate is None:
        calibrate = "minmax"
    title = name or short or model.rstrip("/").rsplit("/", 1)[-1]
    return Objective(title, scorer, bounds or (0.0, 1.0), inputs=[question] if question else (), calibrate=calibrate)


@dataclass(frozen=True)
class ServedReward:
    """The score of a reward model on a server."""

    model: str
    pairing: Pairing
    endpoint: Endpoint
    form: Form
    label: int | None
    activation: bool
    max_length: int | None
    server: RewardServer = attribute(compare=False, repr=False)

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
        """Score one completion."""
        pair = self.pairing.of(example, prediction)
        with noted():
            score = once((id(self), pair), lambda: self._score(*pair))
        tried(self.server)
        return score

    def _score(self, question: str, answer: str) -> float:
        body = {
            "model": self.model,
            "use_activation": self.activation,
            "truncate_prompt_tokens": -1 if self.max_length is None else self.max_length,
            **self._shown(question, answer),
        }
        return self._read(self.server.post(f"/{self.endpoint}", body))

    def _shown(self, question: str, answer: str) -> dict[str, Any]:
        if self.form == "chat":
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            return {"messages": turns}
        text = (question, answer) if self.form == "pair" else self.form(question, answer)
        if self.endpoint == "score":
            one, two = text if isinstance(text, tuple) else (question, text)
            return {"text_1": one, "text_2": two}
        return {"input": text if isinstance(text, str) else "".join(text)}

    def _read(self, reply: Any) -> float:
        try:
            (entry,) = reply["data"]
            found = entry[{"pooling": "data", "classify": "probs", "score": "score"}[self.endpoint]]
        except (KeyError, TypeError, ValueError):
            raise ScoreError(f"/{self.endpoint} answered without a score: {str(reply)[:200]}") from None
        numbers = found if isinstance(found, list) else [found]
        if numbers and isinstance(numbers[0], list):
            numbers = numbers[-1]  # one row a token: the last one has read everything
        if not numbers or not all(isinstance(v, (int, float)) for v in numbers):
            raise ScoreError(f"/{self.endpoint} answered no numbers: {str(found)[:200]}")
        if self.label is None and len(numbers) > 1:
            raise ConfigurationError(
                f"{self.model} gives {len(numbers)} numbers for a completion; say which one is the score, label=0."
            )
        index = self.label or 0
        if index >= len(numbers):
            raise ConfigurationError(f"{self.model} gives {len(numbers)} numbers, and label={index} is none of them.")
        return float(numbers[index])
