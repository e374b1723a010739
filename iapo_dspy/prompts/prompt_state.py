"""Prompts in their saved form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iapo_dspy.prompts.lms import ModelName, model_names
from iapo_dspy.prompts.prompt import Prompt, program_state
from iapo_dspy.types import Decoding

__all__ = ["PromptState", "prompt_states"]


@dataclass(frozen=True, kw_only=True)
class PromptState:
    """A prompt in its saved form.

    Attributes:
        state: Predictor name -> its DSPy state (instructions, demos), without an LM.
        decoding: Settings that override the LM's own.
        candidate: Position in the user's list of candidates; the number of the combination where candidates were given
            predictor by predictor.
        label: A short text for tables.
        lms: Predictor name -> name of the LM that belongs to it; the LM itself is not saved.
        model: These LMs in words where the run had a choice between several, else "".
        options: Predictor name -> position of its instruction in the user's list for that predictor, where candidates
            were given predictor by predictor.
    """

    state: Mapping[str, Any]
    decoding: Decoding
    candidate: int
    label: str
    lms: Mapping[str, ModelName]
    model: str = ""
    options: Mapping[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `from_dict` reads back."""
        return {
            "state": dict(self.state),
            "decoding": self.decoding.as_kwargs(),
            "candidate": self.candidate,
            "label": self.label,
            "lms": {name: lm.to_json() for name, lm in self.lms.items()},
            "model": self.model,
            **({"options": dict(self.options)} if self.options is not None else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PromptState:
        """Read data that `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: The data are damaged.
        """
        lms = {name: ModelName.from_json(lm) for name, lm in data["lms"].items()}
        return cls(**{**data, "decoding": Decoding(**data["decoding"]), "lms": lms})


def prompt_states(prompts: Sequence[Prompt]) -> tuple[PromptState, ...]:
    """Save the prompts of a run."""
    names = model_names([p.lms for p in prompts])
    return tuple(
        PromptState(
            state=program_state(p.program),
            decoding=p.decoding,
            candidate=p.candidate,
            label=p.label,
            lms=lms,
            model=p.model,
            options=p.options,
        )
        for p, lms in zip(prompts, names, strict=True)
    )
