"""`Rewriter`: an LM that rewrites one input of a query, and how it is asked."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import dspy

from iapo_dspy.errors import ConfigurationError, one_line
from iapo_dspy.preferences import is_number
from iapo_dspy.sampling.concurrency.contained import contained
from iapo_dspy.sampling.ledger.digests import digest
from iapo_dspy.sampling.lm.params import check_decoding, effective_temperature, generation_params, request_params
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.scores import as_score, function_digest
from iapo_dspy.scoring.user_functions import misfit, name_of
from iapo_dspy.types import Decoding

logger = logging.getLogger(__name__)

Reward: TypeAlias = Callable[[dspy.Example, Any], Any]
"""`reward(query, text)`, or an `Objective`."""

PLACE = "{}"  # where the text stands in a template
TEMPLATE = (
    "Rewrite the text below, which somebody sends to a language model, so that the model understands better what is "
    "wanted. Keep its meaning and every fact in it. Do not answer it. Reply with the rewritten text alone.\n\n{}"
)


@dataclass(frozen=True)
class Rewriter:
    """Rewrites one input field of a query before the student sees it: `IAPO(rewriters=[Rewriter(lm)])`.

    Every candidate is tried with the queries as they are and with those that each rewriter makes of them. The tokens
    and dollars of a rewrite are a part of the price of a call, which pays for it once, whatever its number of
    completions. Where the LM fails or answers with nothing, the query stays as it is.

    Args:
        lm: Rewrites. Its calls are held within the budget, and are not counted as completions.
        template: What it is asked, with `{}` in the place of the text. Default: a request in plain words.
        decoding: Its decoding; fields that are None are the LM's own settings.
        field: The input field that it rewrites. Default: the student's only input that is text.
        name: How tables name it.
        until: The rewritten text ends before the first of these; () takes all of it.
        k: How many rewrites of a query are asked for, >= 1. Several need a `reward`, and one of them is chosen.
        reward: What a rewrite is worth: `reward(query, text) -> number`, where the query shows its inputs, or an
            `Objective` of a prediction whose field `field` is the text. It must need no label. LMs that it asks are
            judges (`Spent.judge_tokens`).
        choose: "draw" draws rewrite i with the probability exp(r_i / tilt), divided by their sum: the optimal prompter
            of Align-Pro, equation (10) of arXiv 2501.03486, on k rewrites. "best" takes that of the largest reward.
        tilt: Lambda of "draw", > 0. The larger it is, the less the reward matters.

    Raises:
        ConfigurationError: An argument that cannot be used; the message says which and why.
    """

    lm: dspy.BaseLM = dataclasses.field(repr=False)
    _: dataclasses.KW_ONLY
    template: str = TEMPLATE
    decoding: Decoding = Decoding()  # noqa: RUF009  # frozen
    field: str | None = None
    name: str = "own"
    until: tuple[str, ...] = ()
    k: int = 1
    reward: Reward | None = None
    choose: Literal["draw", "best"] = "draw"
    tilt: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.lm, dspy.BaseLM):
            raise ConfigurationError(f"Rewriter({self.lm!r}): give a dspy.LM that rewrites.")
        if not isinstance(self.template, str) or PLACE not in self.template:
            raise ConfigurationError(
                f"Rewriter template={self.template!r}: give a text with {PLACE} in the place of the query."
            )
        if not isinstance(self.decoding, Decoding):
            raise ConfigurationError(f"Rewriter decoding={self.decoding!r}: give a Decoding(temperature=...).")
        if self.field is not None and not (isinstance(self.field, str) and self.field):
            raise ConfigurationError(
                f"Rewriter field={self.field!r}: give the name of an input field, or leave it out."
            )
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigurationError(f"Rewriter name={self.name!r}: give a short text, or leave it out.")
        if isinstance(self.until, str) or not all(isinstance(mark, str) and mark for mark in self.until):
            raise ConfigurationError(f"Rewriter until={self.until!r}: give a tuple of texts, such as ('\\n',).")
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ConfigurationError(f"Rewriter k={self.k!r}: give a whole number >= 1.")
        if self.choose not in ("draw", "best"):
            raise ConfigurationError(f"Rewriter choose={self.choose!r}: give 'draw' or 'best'.")
        if not is_number(self.tilt) or not self.tilt > 0:
            raise ConfigurationError(f"Rewriter tilt={self.tilt!r}: give a finite number > 0.")
        if (self.k > 1) != (self.reward is not None):
            raise ConfigurationError(
                f"Rewriter k={self.k}, reward={self.reward!r}: several rewrites need a reward to choose by, and a "
                "reward needs several rewrites, such as k=4."
            )
        if self.reward is not None and not callable(self.reward):
            raise ConfigurationError(f"Rewriter reward={self.reward!r}: give a function reward(query, text).")
        if self.reward is not None and (found := misfit(self.reward)) is not None:
            raise ConfigurationError(
                f"Rewriter reward{found} must be callable as reward(query, text): when the program is deployed there "
                "is no label."
            )

    def messages(self, text: str) -> list[dict[str, Any]]:
        """Return the request to rewrite a text."""
        return [{"role": "user", "content": self.template.replace(PLACE, text)}]

    @property
    def params(self) -> dict[str, Any]:
        """The settings of the request, complete; they hold the LM's key."""
        return request_params(self.lm, None, self.decoding)

    def read(self, answer: str) -> str:
        """Return the rewritten text in an answer; "" where there is none."""
        text = answer.strip()
        ends = [at for mark in self.until if (at := text.find(mark)) >= 0]
        return text[: min(ends, default=len(text))].strip()

    @property
    def digest(self) -> str:
        """A digest of all that its texts depend on, without secrets and without the address of its server."""
        lm = {"model": self.lm.model, "model_type": self.lm.model_type, **generation_params(self.lm.kwargs)}
        parts: list[Any] = [lm, self.template, self.decoding.as_kwargs(), self.field, list(self.until)]
        if self.reward is not None:
            by = getattr(self.reward, "score", self.reward)
            parts.append([self.k, self.choose, self.tilt if self.choose == "draw" else None, function_digest(by)])
        return digest(parts)

    @property
    def reward_name(self) -> str | None:
        """The name of its reward, for saved programs."""
        if self.reward is None:
            return None
        return self.reward.name if isinstance(self.reward, Objective) else name_of(self.reward)

    def worth(self, inputs: Mapping[str, Any], text: str) -> float | None:
        """Return the reward of a rewrite of these inputs; None where it fails."""
        if self.reward is None:
            return None
        query = dspy.Example(**inputs).with_inputs(*inputs)
        try:
            with contained():
                made = dspy.Prediction(**{self.field or "": text}) if isinstance(self.reward, Objective) else text
                value = self.reward(query, made)
                return as_score(value, what="The reward of a rewriter", bounds=None)
        except Exception as error:  # noqa: BLE001 - the user's code: its failure is this rewrite's
            logger.debug("The reward of a rewrite failed (%s).", one_line(error))
            return None


def read_rewriters(rewriters: Any) -> tuple[Rewriter, ...]:
    """Read the user's rewriters.

    Raises:
        ConfigurationError: It is not a list of rewriters.
    """
    if rewriters is None:
        return ()
    if isinstance(rewriters, (str, Mapping, type, Rewriter)) or not isinstance(rewriters, Iterable):
        raise ConfigurationError(f"rewriters={rewriters!r}: give a list, such as rewriters=[Rewriter(lm)].")
    found = tuple(rewriters)
    if not found:
        raise ConfigurationError("rewriters=[]: give at least one Rewriter(lm), or leave it out.")
    for i, rewriter in enumerate(found):
        if not isinstance(rewriter, Rewriter):
            raise ConfigurationError(f"rewriters[{i}] is {rewriter!r}; give a Rewriter(lm). Identity is always tried.")
    return found


def read_distinct_rewriters(rewriters: Any) -> tuple[Rewriter, ...]:
    """Read rewriters that are to be compared: as `read_rewriters` does, but two that ask the same are refused."""
    found = read_rewriters(rewriters)
    seen: dict[Any, int] = {}
    for i, rewriter in enumerate(found):
        check_decoding(rewriter.lm, None, rewriter.decoding)
        if rewriter.k > 1 and effective_temperature(rewriter.lm, None, rewriter.decoding) == 0:
            raise ConfigurationError(
                f"rewriters[{i}] asks for k={rewriter.k} rewrites at temperature 0: all of them would be the same. Set "
                "a temperature > 0, Rewriter(decoding=Decoding(temperature=1.0)), or k=1."
            )
        first = seen.setdefault((rewriter.digest, id(rewriter.lm)), i)
        if first != i:
            raise ConfigurationError(
                f"rewriters[{i}] asks the same as rewriters[{first}]: leave one of them out, or the budget pays twice."
            )
    return found


def fitted_rewriters(
    rewriters: Sequence[Rewriter], inputs: Sequence[str], examples: Sequence[Mapping[str, Any]]
) -> tuple[Rewriter, ...]:
    """Return rewriters that know their fields.

    Args:
        rewriters: As the user gave them.
        inputs: The names of the student's inputs.
        examples: The inputs of the examples.

    Raises:
        ConfigurationError: A field is not an input, is not text, or was not given where there are several.
    """
    texts = [name for name in inputs if all(isinstance(example.get(name), str) for example in examples)]
    found = []
    for i, rewriter in enumerate(rewriters):
        name = rewriter.field
        if name is None and len(texts) != 1:
            raise ConfigurationError(
                f"rewriters[{i}] does not say which input it rewrites; the inputs that are text in every example are "
                f"{texts}. Name one: Rewriter(lm, field=...)."
            )
        if name is not None and name not in texts:
            why = "is not text in every example" if name in inputs else f"is not an input; these are {list(inputs)}"
            raise ConfigurationError(f"rewriters[{i}] rewrites the field {name!r}, which {why}.")
        found.append(rewriter if name is not None else dataclasses.replace(rewriter, field=texts[0]))
    return tuple(found)
