"""A program and what a run needs to know of it: its predictors, their fields and their LMs, each looked up once."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError


def class_of(module: Any) -> type:
    """Return the class of a module; a predictor that was copied for a run has a hidden class that stands for it."""
    kind: type = getattr(type(module), "_iapo_stands_for", type(module))
    return kind


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a program is beside its instructions and demos: those of one kind can take each other's saved states.

    Attributes:
        name: The qualified name of its class.
        fields: (predictor, names of its fields in alphabetical order) for each of its predictors.
    """

    name: str
    fields: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def short(self) -> str:
        """The name of the class without what is around it."""
        return self.name.rpartition(".")[2]

    def __str__(self) -> str:
        fields = {name: list(names) for name, names in self.fields}
        return f"{self.short} with {fields}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data that `from_json` reads back."""
        return {"class": self.name, "fields": {name: list(fields) for name, fields in self.fields}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Kind:
        """Read data that `to_json` wrote.

        Raises:
            KeyError, TypeError: The data are damaged.
        """
        fields = tuple((str(name), tuple(map(str, names))) for name, names in dict(data["fields"]).items())
        return cls(name=str(data["class"]), fields=fields)


@dataclass(frozen=True)
class Student:
    """A program with one or several predictors. The program must not be changed while this is used.

    Attributes:
        module: The program.
    """

    module: dspy.Module

    @functools.cached_property
    def predictors(self) -> dict[str, Any]:
        """Name -> predictor, in DSPy's order."""
        return dict(self.module.named_predictors())

    @functools.cached_property
    def kind(self) -> Kind:
        """Its class and its predictors with their fields."""
        fields = ((name, tuple(sorted(p.signature.fields))) for name, p in self.predictors.items())
        return Kind(name=class_of(self.module).__qualname__, fields=tuple(sorted(fields)))

    @functools.cached_property
    def is_direct(self) -> bool:
        """Whether a call of it is one call of one predictor."""
        return class_of(self.module) in (dspy.Predict, dspy.ChainOfThought) and len(self.predictors) == 1

    @functools.cached_property
    def input_fields(self) -> tuple[str, ...] | None:
        """The input fields; None for a module whose `forward` alone knows them."""
        if isinstance(self.module, (dspy.Predict, dspy.ChainOfThought)) and len(self.predictors) == 1:
            (predictor,) = self.predictors.values()
            return tuple(predictor.signature.input_fields)
        return None

    @functools.cached_property
    def output_fields(self) -> dict[str, Any]:
        """Output field -> annotation, over all predictors; of two fields of one name the later one counts."""
        signatures = [p.signature for p in self.predictors.values()]
        return {name: field.annotation for s in signatures for name, field in s.output_fields.items()}

    @functools.cached_property
    def instructions(self) -> dict[str, str]:
        """Name of a predictor -> its instruction."""
        return {name: p.signature.instructions for name, p in self.predictors.items()}

    @property
    def text(self) -> str:
        """The instructions as one text."""
        texts = self.instructions
        return next(iter(texts.values())) if len(texts) == 1 else "; ".join(f"{k}: {v}" for k, v in texts.items())

    @property
    def demos(self) -> str:
        """How many demos there are, in words; "" for none."""
        count = sum(len(p.demos) for p in self.predictors.values())
        return f"{count} demo{'s' * (count > 1)}" if count else ""

    @functools.cached_property
    def lms(self) -> dict[str, dspy.BaseLM]:
        """Name of a predictor -> the LM that it will ask: its own, or the configured one.

        Raises:
            ConfigurationError: A predictor has none.
        """
        return {name: lm_of(name, predictor) for name, predictor in self.predictors.items()}


def lm_of(name: str, predictor: Any) -> dspy.BaseLM:
    """Return the LM that a predictor will ask: its own, or the configured one.

    Raises:
        ConfigurationError: It has none.
    """
    lm = predictor.lm or dspy.settings.lm
    if not isinstance(lm, dspy.BaseLM):
        raise ConfigurationError(
            f"Predictor {name!r} has no LM (found {lm!r}): call dspy.configure(lm=dspy.LM('provider/model')) first."
        )
    return lm
