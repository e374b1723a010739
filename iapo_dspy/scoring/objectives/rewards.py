"""Reward models of Hugging Face: sequence classifiers that run in this process (extra `rewards`)."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any

import dspy
import numpy as np

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.concurrency.once import Once
from iapo_dspy.sampling.judges.metered import tried
from iapo_dspy.sampling.lm.proxy import noted
from iapo_dspy.scoring.calibration import Kind
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.objectives.microbatch import MicroBatcher
from iapo_dspy.scoring.objectives.pairs import Form, Pairing, check_form, known
from iapo_dspy.scoring.once_per_call import once

logger = logging.getLogger(__name__)

_LONGEST = 4096  # tokens, for models that do not say how long a text may be


def reward_model(
    model: str,
    *,
    question: str | None = None,
    answer: str | None = None,
    form: Form | None = None,
    label: int | str | None = None,
    probability: bool = False,
    calibrate: Kind | None = None,
    bounds: tuple[float, float] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    revision: str | None = None,
    name: str | None = None,
    **loading: Any,
) -> Objective:
    """Score completions by a sequence classifier, such as a reward model, that runs in this process.

        reward_model("helpful", question="prompt", answer="response")  # Ray2333/gpt2-large-helpful-reward_model

    It is loaded once in a process, when the first completion is scored (or a run is checked), however many objectives
    use it. Completions that are scored at the same time share forward passes. Numbers may differ by rounding with what
    else is in a pass.

    Args:
        model: On the Hugging Face hub, or a directory. Known by short name, with the form that their cards
            document: "helpful", "harmless", "summary", "faithful" (`REWARD_MODELS`).
        question: Input field that was answered. Default: the only one.
        answer: Output field that is scored. Default: the only one, `reasoning` aside.
        form: Text for the model; see `Form`. Default: "chat" where its tokenizer has a chat template, else "pair".
        label: Which logit is the score, by index or by name; needed where there are several.
        probability: Score by the label's probability (softmax, or the logistic function of a single logit), which
            lies in [0, 1], instead of by its logit.
        calibrate: How logits get to [0, 1]; see `Objective`. Default: "minmax", unless `bounds` or `probability` is
            given.
        bounds: Of the score, where you know them, instead of a calibration.
        device: As torch names it. Default: "cuda" or "mps" where there is one, else "cpu".
        dtype: As torch names it, "bfloat16". Default: as the model is stored.
        max_length: Tokens beyond which a text is cut off at its end (of a pair, the longer one). Default: what the
            model takes.
        batch_size: Completions in a forward pass at most, >= 1.
        revision: Of the model, on the hub.
        name: Of the objective. Default: the short name, else the last part of the model's.
        **loading: Passed to `from_pretrained` of the model and of its tokenizer, such as `trust_remote_code=True`.

    Raises:
        ConfigurationError: transformers or torch is not installed, or an argument cannot be used.
    """
    if not isinstance(model, str) or not model:
        raise ConfigurationError(f"reward_model({model!r}): give the name of a model on the Hugging Face hub.")
    if missing := [m for m in ("torch", "transformers") if importlib.util.find_spec(m) is None]:
        raise ConfigurationError(f'reward_model needs {" and ".join(missing)}: pip install "iapo_dspy[rewards]"')
    for what, value in (("batch_size", batch_size), ("max_length", max_length)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigurationError(f"reward_model({what}={value!r}): give a whole number >= 1.")
    short, entry = known(model)
    if entry is not None:
        model, form, label = entry.model, form or entry.form, entry.label if label is None else label
    source = _Source(model, revision, device, dtype, tuple(sorted((k, repr(v)) for k, v in loading.items())))
    scorer = Reward(
        model,
        revision,
        Pairing(question, answer),
        None if form is None else check_form(form),
        label,
        probability,
        max_length,
        batch_size,
        source,
        loading,
    )
    if bounds is None and not probability and calibrate is None:
        calibrate = "minmax"
    title = name or short or os.path.basename(os.path.normpath(model))
    return Objective(title, scorer, bounds or (0.0, 1.0), inputs=[question] if question else (), calibrate=calibrate)


@dataclass(frozen=True)
class _Source:
    """Identity of a loaded model: objectives with equal sources share it."""

    model: str
    revision: str | None
    device: str | None
    dtype: str | None
    loading: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Reward:
    """The score of a reward model in this process."""

    model: str
    revision: str | None
    pairing: Pairing
    form: Form | None
    label: int | str | None
    probability: bool
    max_length: int | None
    batch_size: int = attribute(compare=False)
    source: _Source = attribute(compare=False, repr=False)
    loading: dict[str, Any] = attribute(compare=False, repr=False)

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
        """Score one completion."""
        pair = self.pairing.of(example, prediction)
        with noted():
            score = once((id(self), pair), lambda: self._score(*pair))
        tried(self)  # one example is enough to try it on: a forward pass may take its time
        return score

    def _score(self, question: str, answer: str) -> float:
        loaded = _LOADED(self.source, lambda: _Loaded(self.source, self.loading, self.batch_size))
        index = loaded.index_of(self.label)
        logits = loaded.score((loaded.text(self.form, question, answer), self.max_length))
        if not self.probability:
            return logits[index]
        return _probability(logits, index)


def _probability(logits: Sequence[float], index: int) -> float:
    if len(logits) == 1:
        return float(1.0 / (1.0 + np.exp(-logits[0])))
    shifted = np.exp(np.asarray(logits) - max(logits))
    return float(shifted[index] / shifted.sum())


_Text = str | tuple[str, str]


class _Loaded:
    """A model in memory."""

    def __init__(self, source: _Source, loading: dict[str, Any], batch_size: int) -> None:
        import torch
        import transformers

        self._torch = torch
        device = source.device or _best_device(torch)
        dtype = None if source.dtype is None else getattr(torch, source.dtype, None)
        if source.dtype is not None and not isinstance(dtype, torch.dtype):
            raise ConfigurationError(f"reward_model(dtype={source.dtype!r}): torch has no such dtype.")
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                source.model, revision=source.revision, **loading
            )
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                source.model, revision=source.revision, **loading
            )
            self._model = model.to(device=device, dtype=dtype).eval() if dtype is not None else model.to(device).eval()
        except (OSError, ValueError, RuntimeError) as exc:
            reason = str(exc).strip().splitlines() or [type(exc).__name__]
            raise ConfigurationError(f"reward_model({source.model!r}) cannot be loaded: {reason[0]}") from exc
        self._device = device
        self._name = source.model
        if self._tokenizer.pad_token_id is None:  # GPT-2 has none; batches need one
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if self._model.config.pad_token_id is None:
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        if self._tokenizer.pad_token_id is None:
            batch_size = 1
        self._tokenizer.padding_side = "right"
        self.score: MicroBatcher[tuple[_Text, int | None], list[float]] = MicroBatcher(self._forward, batch_size)
        logger.info("Loaded the reward model %s on %s.", source.model, device)

    def index_of(self, label: int | str | None) -> int:
        """Return the index of the logit that counts.

        Raises:
            ConfigurationError: There are several and none is named, or there is no such label.
        """
        names = dict(self._model.config.id2label or {})
        count = int(self._model.config.num_labels)
        by_name = {str(v).casefold(): int(k) for k, v in names.items()}
        index = by_name.get(label.casefold(), -1) if isinstance(label, str) else label
        if index is None and count == 1:
            return 0
        if index is None or not 0 <= index < count:
            raise ConfigurationError(
                f"reward_model({self._name!r}, label={label!r}): it has {count} labels, {names}; say which one is the "
                "score, label=1 or label='name'."
            )
        return int(index)

    def text(self, form: Form | None, question: str, answer: str) -> _Text:
        """Return the text that the model is shown of a completion."""
        if form is None:
            form = "chat" if getattr(self._tokenizer, "chat_template", None) else "pair"
        if form == "pair":
            return question, answer
        if form == "chat":
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False))
        return form(question, answer)

    def _forward(self, items: Sequence[tuple[_Text, int | None]]) -> list[list[float]]:
        """Return the logits of some texts [n, labels], by one forward pass."""
        limits = [limit for _, limit in items]
        if len(set(limits)) > 1:  # objectives that share a model need not share a limit
            return [row for item in items for row in self._forward([item])]
        texts = [text for text, _ in items]
        pairs = [text for text in texts if isinstance(text, tuple)]
        if pairs and len(pairs) < len(texts):
            return [row for item in items for row in self._forward([item])]
        first, second = [list(part) for part in zip(*pairs, strict=True)] if pairs else [texts, None]
        batch = self._tokenizer(
            first,
            second,
            return_tensors="pt",
            padding=len(items) > 1,
            truncation="longest_first",
            max_length=limits[0] or self._longest,
        ).to(self._device)
        accepted = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
        with self._torch.inference_mode():
            logits = self._model(**accepted).logits
        rows: list[list[float]] = logits.float().cpu().tolist()
        return rows

    @property
    def _longest(self) -> int:
        config = self._model.config
        known = [getattr(config, n, None) for n in ("max_position_embeddings", "n_positions")]
        limits = [self._tokenizer.model_max_length, *known]
        sound = [int(v) for v in limits if isinstance(v, int) and 0 < v < 10**7]
        return min(sound, default=_LONGEST)


def _best_device(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


_LOADED: Once[_Source, _Loaded] = Once()
