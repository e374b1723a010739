"""Short reviews to label, on a model so small that demonstrations decide whether it answers at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import dspy

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.tasks import task

REVIEWS: Final = Path(__file__).parents[1] / "data" / "reviews.tsv"
"""Short reviews of our own writing, half of them positive, in the format of SST-2: label (1: positive), sentence."""

DEMONSTRATIONS: Final = (  # sentence, its strong words, label; in pairs, so that any even number is balanced
    ("The staff were kind, and the garden was a joy.", "kind, a joy", "positive"),
    ("A tired plot, wooden actors, and no end in sight.", "tired, wooden", "negative"),
    ("The charger broke within a week.", "broke", "negative"),
    ("I was afraid of a long evening, but the play flew by.", "flew by", "positive"),
    ("The view was lovely; the rest of the stay was a nightmare.", "a nightmare", "negative"),
    ("Not once did the engine let us down.", "not once let down", "positive"),
)
"""They come in no file of reviews, so that no held-out question is one of them."""

_WORDS: Final = "strong words"
_LABEL: Final = "label"


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One candidate.

    Attributes:
        text: The instruction.
        demonstrations: How many of `DEMONSTRATIONS` are shown before the question.
        shows: "label", or "strong words": then the words that decide come before the label in each demonstration.
    """

    text: str
    demonstrations: int
    shows: str = _LABEL


_ONE_WORD: Final = "Say whether the review is positive or negative. Answer with one word."

INSTRUCTIONS: Final = (
    Instruction(text=_ONE_WORD, demonstrations=2),
    Instruction(text=_ONE_WORD, demonstrations=4),
    Instruction(text=_ONE_WORD, demonstrations=6),
    Instruction(text="positive or negative?", demonstrations=6),
    Instruction(text="Weigh the praise against the blame. Then answer positive or negative.", demonstrations=6),
    Instruction(text="You sort letters of customers into two boxes, positive and negative.", demonstrations=4),
    Instruction(
        text="positive: the writer would come back or buy it again. negative: the writer would not. Name one of them.",
        demonstrations=4,
    ),
    Instruction(text="Is the writer pleased? Answer positive for yes, negative for no.", demonstrations=6),
    Instruction(
        text="Reviews may be ironic. Read to the end, then answer positive or negative by what is meant.",
        demonstrations=6,
    ),
    Instruction(
        text="Name the strong words of the review, then say whether it is positive or negative.",
        demonstrations=4,
        shows=_WORDS,
    ),
    Instruction(
        text="Name the strong words of the review, then say whether it is positive or negative.",
        demonstrations=6,
        shows=_WORDS,
    ),
    Instruction(
        text="Note what the writer praises or blames, then give the verdict, positive or negative.",
        demonstrations=6,
        shows=_WORDS,
    ),
)


@dataclass(frozen=True, kw_only=True)
class SentimentTask:
    """The experiment's task: the student of SST-2, our candidates, and labelled sentences.

    Attributes:
        examples: The sentences, in random order. The first ones are held out.
        name: Its name.
        answer_field: The output field that is voted on.
        objectives: Empty: answers are right or wrong.
    """

    examples: tuple[dspy.Example, ...]
    name: str = "sentiment"
    answer_field: str = "answer"
    objectives: Mapping[str, Callable[[Any, Any], float]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def candidates(self) -> tuple[dspy.Module, ...]:
        """The student as it is, and each instruction with its demonstrations."""
        return (self.student(), *map(self._candidate, INSTRUCTIONS))

    @property
    def metric(self) -> Callable[..., Any]:
        """Whether the label is right."""
        found = task("sst2").metric
        assert found is not None
        return found

    def student(self) -> dspy.Module:
        """A new `dspy.Predict` of `sentence -> answer`, without demonstrations."""
        return task("sst2").student()

    def heldout(self, n: int, seed: int) -> list[dspy.Example]:
        """The first n sentences. Their order has been chosen already, so the seed has no part in it."""
        return list(self.examples[:n])

    def train(self, n: int, seed: int) -> list[dspy.Example]:
        """The last n sentences."""
        return list(self.examples[-n:])

    def _candidate(self, given: Instruction) -> dspy.Module:
        program = self.student()
        for _, predictor in program.named_predictors():
            predictor.signature = predictor.signature.with_instructions(given.text)
            predictor.demos = [
                dspy.Example(sentence=sentence, answer=f"{words}: {label}" if given.shows == _WORDS else label)
                for sentence, words, label in DEMONSTRATIONS[: given.demonstrations]
            ]
        return program


def sentiment_task(path: Path | None = REVIEWS, *, seed: int = 0, least: int = 40) -> SentimentTask:
    """Return the task on our reviews, or on other sentences.

    Args:
        path: A file in the format of SST-2, such as lines of "1", tab, sentence; None loads SST-2 itself by `datasets`.
        seed: Of the order, >= 0.
        least: How many sentences are needed, >= 1.

    Raises:
        ConfigurationError: The data cannot be reached or read, or there are too few.
    """
    examples = task("sst2").load(path=path, seed=seed)
    if len(examples) < least:
        raise ConfigurationError(f"{path} has {len(examples)} sentences: give at least {least}.")
    return SentimentTask(examples=tuple(examples), name="sentiment" if path == REVIEWS else "sentiment, your data")
