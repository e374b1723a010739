"""Semantic similarity: the cosine of two embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any

import dspy
import numpy as np

from iapo_dspy.errors import ConfigurationError, ScoreError
from iapo_dspy.sampling.judges.embeddings import Embedder
from iapo_dspy.scoring.fields import check_name, field_of, text_of
from iapo_dspy.scoring.objective import Objective

DECIDING = ("dimensions", "encoding_format", "input_type", "user")  # settings that decide vectors; `user` may route


def similarity(
    field: str,
    to: str | None = None,
    *,
    text: str | None = None,
    model: str,
    name: str | None = None,
    **settings: Any,
) -> Objective:
    """Score how near a field's meaning is to an input's or to a fixed text's: (1 + cosine of the embeddings) / 2.

    Embeddings are asked for through `litellm.embedding`, once for each text among the last few thousand, the input and
    the completion in one request where both are new. While compiling they count in the run's budget, as judges do.

    Args:
        field: Output field.
        to: An input field, by its name; or a fixed text, where it is not a single word.
        text: A fixed text, also a single word, instead of `to`.
        model: LiteLLM's model string, such as "openai/text-embedding-3-small".
        name: Of the objective. Default: "similarity".
        **settings: What `litellm.embedding` takes: `api_base`, `api_key`, `dimensions`, ...; `num_retries` (3),
            `timeout` (60 seconds), and `input_cost_per_token` where LiteLLM knows no price.

    Raises:
        ConfigurationError: Neither `to` nor `text`, both, or no model.
    """
    if to is not None and not to.isidentifier():
        to, text = None, to if text is None else ""
    if (to is None) == (text is None) or (to is None and not text):
        raise ConfigurationError(
            f"similarity({field!r}): give to='question' (an input field) or text='...', one of them."
        )
    if not isinstance(model, str) or not model:
        raise ConfigurationError(f"similarity(model={model!r}): give a model string of LiteLLM.")
    scorer = Similarity(
        check_name(field, "similarity"),
        to,
        text,
        model,
        tuple((k, repr(settings[k])) for k in DECIDING if k in settings),
        Embedder(model, settings),
    )
    return Objective(name or "similarity", scorer, inputs=() if to is None else (to,))


@dataclass(frozen=True)
class Similarity:
    """The cosine of two embeddings, from 0 to 1."""

    field: str
    to: str | None
    text: str | None
    model: str
    settings: tuple[tuple[str, str], ...]
    embed: Embedder = attribute(compare=False, repr=False)

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> float:
        """Score one completion."""
        given = text_of(field_of(prediction, self.field))
        other = self.text if self.to is None else text_of(field_of(example, self.to, "example"))
        if not given.strip() or not (other or "").strip():
            raise ScoreError(f"There is no text to embed: {self.field!r} or what it is compared to is empty.")
        one, two = self.embed([given, str(other)])
        size = float(np.linalg.norm(one) * np.linalg.norm(two))
        if size == 0.0:
            raise ScoreError(f"{self.model} embedded a text as zeros, which have no direction.")
        return float(np.clip((1.0 + float(one @ two) / size) / 2.0, 0.0, 1.0))
