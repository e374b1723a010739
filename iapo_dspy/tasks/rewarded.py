"""Texts that reward models score: answers in a dialogue (Helpful-Harmless), and summaries of posts (TL;DR)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from iapo_dspy.preferences import preference_grid
from iapo_dspy.scoring.objectives.rewards import reward_model
from iapo_dspy.scoring.strategies import BestOfN
from iapo_dspy.tasks.data_source import DataSource
from iapo_dspy.tasks.instructions.assistants import ASSISTANTS
from iapo_dspy.tasks.instructions.summarizing import SUMMARIZING
from iapo_dspy.tasks.task import Task

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_END = "TL;DR:"


def _read_dialogue(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the dialogue before its last answer; the form of the reward models puts the first "Human:" before it."""
    dialogue = row["chosen"]
    if not isinstance(dialogue, str) or not dialogue.startswith(_HUMAN):
        said = str(dialogue)[:30]
        raise ValueError(rf"'chosen' begins with {said!r}; it must be a dialogue, '\n\nHuman: ...\n\nAssistant: ...'.")
    before, _, response = dialogue.rpartition(_ASSISTANT)
    conversation = before.removeprefix(_HUMAN).strip()
    return {"conversation": conversation, "response": response.strip()} if conversation else None


def _read_post(row: Mapping[str, Any]) -> Mapping[str, Any]:
    post, summary = row["prompt"], row["completion"]
    if not isinstance(post, str) or not isinstance(summary, str):
        raise ValueError(f"'prompt' is {str(post)[:30]!r} and 'completion' {str(summary)[:30]!r}; both must be text.")
    return {"post": post.strip().removesuffix(_END).strip(), "summary": summary.strip()}


HELPFUL_HARMLESS = Task(
    name="helpful_harmless",
    signature=dspy.Signature("conversation: str -> response: str", "Write the assistant's next reply."),
    reasoning=False,
    instructions=ASSISTANTS,
    preferences=preference_grid("helpful", "harmless"),
    make_strategy=lambda: BestOfN(
        [reward_model(name, question="conversation", answer="response") for name in ("helpful", "harmless")]
    ),
    source=DataSource(
        repository="Anthropic/hh-rlhf",
        splits={"train": "train", "test": "test"},
        revision="09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
        licence="MIT",
        columns=("chosen",),
    ),
    read=_read_dialogue,
)

SUMMARIZATION = Task(
    name="summarization",
    signature=dspy.Signature("post: str -> summary: str", "Summarize the post."),
    reasoning=False,
    instructions=SUMMARIZING,
    preferences=preference_grid("summary", "faithful"),
    make_strategy=lambda: BestOfN(
        [reward_model(name, question="post", answer="summary") for name in ("summary", "faithful")]
    ),
    source=DataSource(
        repository="trl-lib/tldr",
        splits={"train": "train", "validation": "validation", "test": "test"},
        revision="21233da376667088e6eb1ce4ce19ed832c2935d3",
        licence="not stated",
        columns=("prompt", "completion"),
    ),
    read=_read_post,
)
