"""LMs as part of the prompts, `IAPO(lms=[small, large])`: their names, and how a loaded program finds them.

No LM is ever saved: a saved program has model strings, and is given LMs of these models again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import dspy

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.lm.params import canonical
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.sampling.spending.pricing import price_of
from iapo_dspy.types import Decoding

LMs: TypeAlias = dspy.BaseLM | Mapping[str, dspy.BaseLM]
"""One LM for every predictor, or predictor name -> LM; predictors left out keep the student's."""

Decodings: TypeAlias = tuple[Decoding, ...] | Mapping[str, tuple[Decoding, ...]]
"""Decoding configurations of every LM, or model string -> decoding configurations of that model."""


@dataclass(frozen=True)
class ModelName:
    """How a saved program names an LM.

    Attributes:
        model: Its model string.
        nth: Where a run had several LMs of one model string, with other settings: which of them, from 1.
    """

    model: str
    nth: int = 1

    def __str__(self) -> str:
        return self.model if self.nth == 1 else f"{self.model} ({self.nth})"

    def to_json(self) -> str | list[Any]:
        """Return plain JSON data that `from_json` reads back."""
        return self.model if self.nth == 1 else [self.model, self.nth]

    @classmethod
    def from_json(cls, data: str | Sequence[Any]) -> ModelName:
        """Read data that `to_json` wrote."""
        return cls(data) if isinstance(data, str) else cls(str(data[0]), int(data[1]))


def read_lms(lms: Any) -> tuple[LMs, ...]:
    """Read the user's LMs.

    Raises:
        ConfigurationError: It is not a list, or an element is neither an LM nor a mapping from predictor names to LMs.
    """
    if lms is None:
        return ()
    if isinstance(lms, (str, Mapping, dspy.BaseLM)) or not isinstance(lms, Iterable):
        raise ConfigurationError(
            f"lms={_show(lms)}: give a list, such as lms=[dspy.LM('a/small'), dspy.LM('a/large')]."
        )
    found = tuple(lms)
    if not found:
        raise ConfigurationError("lms=[]: give at least one dspy.LM, or leave it out to use the configured one.")
    for i, element in enumerate(found):
        if isinstance(element, Mapping):
            wrong = {k: v for k, v in element.items() if not (isinstance(k, str) and isinstance(v, dspy.BaseLM))}
            if wrong or not element:
                raise ConfigurationError(
                    f"lms[{i}] is {_show(element)}; a mapping must lead from names of the student's predictors to "
                    "dspy.LM objects."
                )
        elif not isinstance(element, dspy.BaseLM):
            raise ConfigurationError(
                f"lms[{i}] is {_show(element)}; give a dspy.LM, such as dspy.LM('openai/gpt-4o-mini'), or a mapping "
                "from names of predictors to such LMs."
            )
    return tuple(dict(e) if isinstance(e, Mapping) else e for e in found)


def read_distinct_lms(lms: Any) -> tuple[LMs, ...]:
    """Read LMs that are to be compared: as `read_lms` does, but two that would get the same answers are refused."""
    found = read_lms(lms)
    _refuse_twins([e if isinstance(e, Mapping) else {"": e} for e in found])
    return found


def _refuse_twins(bound: Sequence[Mapping[str, dspy.BaseLM]]) -> None:
    seen: dict[str, int] = {}
    for i, lms in enumerate(bound):
        identity = canonical({name: _identity(lm) for name, lm in lms.items()})
        if identity in seen:
            raise ConfigurationError(
                f"lms[{i}] is the same as lms[{seen[identity]}] ({_show(lms.get('', lms))} with the same settings): "
                "leave one of them out, or the budget pays for it twice."
            )
        seen[identity] = i


def _show(value: Any) -> str:
    """Return a value in words without settings of an LM: they may hold keys."""
    if isinstance(value, dspy.BaseLM):
        return f"the LM {value.model!r}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_show(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _identity(lm: dspy.BaseLM) -> Any:
    """Return data that tell two LMs apart. An LM of another kind than `dspy.LM` is only the same as itself."""
    if not isinstance(lm, dspy.LM):
        return id(lm)
    return [type(lm).__qualname__, lm.model, lm.model_type, getattr(lm, "replicas", None), lm.kwargs]


def _at(element: LMs, predictor: str) -> dspy.BaseLM | None:
    return element.get(predictor) if isinstance(element, Mapping) else element


# -- the prompt set


def read_decodings(decoding: Any, lms: Sequence[LMs]) -> Decodings:
    """Read the user's decoding configurations.

    Args:
        decoding: A Decoding, a list of them, or a mapping from model strings of `lms` to either; None is the LMs' own.
        lms: The run's LMs; a mapping needs them.

    Raises:
        ConfigurationError: It is something else, two are the same, or a mapping names a model that no LM has.
    """
    if not isinstance(decoding, Mapping):
        return _decodings(decoding)
    several = next((i for i, e in enumerate(lms) if len(_strings(e)) > 1), None)
    if not lms or several is not None:
        what = "lms= is not given" if not lms else f"lms[{several}] has several models: {_show(lms[several or 0])}"
        raise ConfigurationError(
            f"decoding={{{', '.join(map(repr, decoding))}}} chooses decodings by model, but {what}. Give a list of "
            "Decoding, which every LM is tried with."
        )
    models = {model for e in lms for model in _strings(e)}
    unknown = sorted(str(name) for name in decoding if name not in models)
    if unknown:
        raise ConfigurationError(f"decoding names the models {unknown}; those of lms are {sorted(models)}.")
    return {str(model): _decodings(given) for model, given in decoding.items()}


def _decodings(decoding: Any) -> tuple[Decoding, ...]:
    if decoding is None or isinstance(decoding, Decoding):
        return (decoding or Decoding(),)
    given = tuple(decoding) if isinstance(decoding, Iterable) else ()
    if not given or not all(isinstance(d, Decoding) for d in given):
        raise ConfigurationError(f"decoding={decoding!r}: give a Decoding(temperature=...), or a list of them.")
    if len(set(given)) < len(given):
        raise ConfigurationError(f"decoding={decoding!r}: two of them are the same.")
    return given


def lms_in(element: LMs) -> list[dspy.BaseLM]:
    """Return the LMs of an element of `lms`."""
    return list(element.values()) if isinstance(element, Mapping) else [element]


def _strings(element: LMs) -> set[str]:
    return {lm.model for lm in lms_in(element)}


@dataclass(frozen=True, kw_only=True)
class Served:
    """The LMs that serve a candidate, and the decodings that they are tried with.

    Attributes:
        lms: Predictor name -> LM; predictors left out keep the student's.
        model: The LMs in words; "" where the run has no choice between LMs.
        decodings: At least one.
    """

    lms: Mapping[str, dspy.BaseLM]
    model: str
    decodings: tuple[Decoding, ...]


def combine(
    lms: Sequence[LMs], predictors: Sequence[str], decodings: Decodings, of: str = "the student"
) -> tuple[Served, ...]:
    """Fold LMs and decodings into the list that a program with these predictors is combined with, LM after LM.

    Raises:
        ConfigurationError: A mapping names a predictor that the program lacks (`of` says which program), or two
            elements are the same.
    """
    if not lms:
        assert not isinstance(decodings, Mapping)  # `read_decodings` has refused it
        return (Served(lms={}, model="", decodings=decodings),)
    bound = []
    for i, element in enumerate(lms):
        unknown = sorted(set(element) - set(predictors)) if isinstance(element, Mapping) else []
        if unknown:
            instead = "" if of == "the student" else " Programs of several classes take LMs, not mappings."
            raise ConfigurationError(f"lms[{i}] names the predictors {unknown}; {of} has {list(predictors)}.{instead}")
        given = {name: _at(element, name) for name in predictors}
        bound.append({name: lm for name, lm in given.items() if lm is not None})
    _refuse_twins(bound)  # again: a mapping may have the same LM for every predictor
    return tuple(
        Served(lms=mine, model=_words(names, predictors) if len(lms) > 1 else "", decodings=_of(decodings, element))
        for element, mine, names in zip(lms, bound, model_names(bound), strict=True)
    )


def _of(decodings: Decodings, element: LMs) -> tuple[Decoding, ...]:
    if not isinstance(decodings, Mapping):
        return decodings
    (model,) = _strings(element)
    return decodings.get(model, (Decoding(),))


def _words(names: Mapping[str, ModelName], predictors: Sequence[str]) -> str:
    different = set(names.values())
    if len(different) == 1 and len(names) == len(predictors):
        return str(different.pop())
    return ", ".join(f"{predictor}: {name}" for predictor, name in names.items())


# -- names and how LMs are found by them


def model_names(bound: Sequence[Mapping[str, dspy.BaseLM]]) -> tuple[dict[str, ModelName], ...]:
    """Name the LMs of every prompt, or of every element of `lms`: predictor name -> LM becomes predictor name -> name.

    Among the LMs of one predictor, those of one model string are numbered in the order in which they come.
    """

    def name(predictor: str, lm: dspy.BaseLM) -> ModelName:
        same = [id(other) for other in _of_model(bound, predictor, lm.model)]
        return ModelName(lm.model, 1 + same.index(id(lm)))

    return tuple({predictor: name(predictor, lm) for predictor, lm in lms.items()} for lms in bound)


def find_lm(elements: Sequence[LMs], predictor: str, name: ModelName) -> dspy.BaseLM | None:
    """Return the LM of this name for a predictor, among LMs as the user gave them; None where there is none."""
    found = _of_model(elements, predictor, name.model)
    return found[name.nth - 1] if len(found) >= name.nth else None


def _of_model(elements: Sequence[LMs], predictor: str, model: str) -> list[dspy.BaseLM]:
    lms = [lm for e in elements if (lm := _at(e, predictor)) is not None and lm.model == model]
    return list({id(lm): lm for lm in lms}.values())


def models_of(program: dspy.Module) -> str | tuple[str, ...]:
    """Return the model string of the LM that a program runs on now; one for each predictor where they differ."""
    lms = [predictor.lm or dspy.settings.lm for _, predictor in program.named_predictors()]
    models = tuple(lm.model for lm in lms if isinstance(lm, dspy.BaseLM))
    return models[0] if len(set(models)) == 1 else models


# -- the cost of their completions


def default_cost(lms: Sequence[LMs]) -> Cost:
    """Return the unit of costs where the user gives none.

    A token of a large model is not worth a token of a small one. So output tokens count only where all LMs have one
    price or one model string; where they have different prices, dollars count.

    Raises:
        ConfigurationError: There are several models, and the prices of some are not known.
    """
    given = [lm for element in lms for lm in lms_in(element)]
    prices = {lm.model: price_of(lm) for lm in given}
    rates = {(p.prompt, p.completion) for p in map(price_of, given) if p is not None}
    unknown = sorted(model for model, price in prices.items() if price is None)
    if len(prices) < 2 and unknown:  # one model, or none
        return Cost()
    if unknown:
        table = ", ".join(f"{model!r}: (0.15, 0.60)" for model in prices)
        raise ConfigurationError(
            f"lms has several models, whose tokens are not worth the same, and LiteLLM knows no price of {unknown}. "
            "Give yours, in dollars per million input and output tokens: Search("
            f"cost_unit=Cost(usd_per_million={{{table}}})). Or count "
            "their tokens alike: Search(cost_unit=Cost(completion_tokens=1))."
        )
    return Cost() if len(rates) < 2 else Cost(usd=1.0)
