"""Built-in objectives as plain JSON data: the name of their function in `iapo_dspy.objectives`, and its arguments.

A saved program is a file from elsewhere. So a recipe holds neither keys nor code. An address in it is used only where
the file is trusted, because completions are sent there.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import dspy

from iapo_dspy.errors import StateError
from iapo_dspy.sampling.judges.metered import MeteredLM
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.objectives.constraints import JsonValid, Length, RegexMatch, json_valid, length, regex_match
from iapo_dspy.scoring.objectives.judging import Judge, judge
from iapo_dspy.scoring.objectives.opponents import StudentOpponent
from iapo_dspy.scoring.objectives.pairs import Form, Pairing, known
from iapo_dspy.scoring.objectives.preferring import Prefers, prefers
from iapo_dspy.scoring.objectives.rewards import Reward, reward_model
from iapo_dspy.scoring.objectives.served import ServedReward, served_reward_model
from iapo_dspy.scoring.objectives.similar import DECIDING, Similarity, similarity

_MAKE: dict[str, Callable[..., Objective]] = {
    f.__name__: f
    for f in (json_valid, judge, length, prefers, regex_match, reward_model, served_reward_model, similarity)
}
_ADDRESS = "api_base"
_NAMES = {
    kind: {p.name for p in inspect.signature(make).parameters.values() if p.kind is not p.VAR_KEYWORD}
    for kind, make in _MAKE.items()
}
_NAMES["regex_match"] |= {"flags"}
_NAMES["similarity"] |= {*DECIDING, _ADDRESS}


def recipe_of(objective: Objective) -> dict[str, Any] | None:
    """Return the recipe of a built-in objective; None where plain JSON cannot hold it: other code, or a key."""
    scorer = objective.score
    if isinstance(scorer, Length):
        return _recipe(objective, "length", "field", "target", "most", "least", "unit", "tokenizer")
    if isinstance(scorer, RegexMatch):
        return _recipe(objective, "regex_match", "field", "pattern", "flags", "whole")
    if isinstance(scorer, JsonValid):
        schema = None if scorer.schema is None else json.loads(scorer.schema)
        return _recipe(objective, "json_valid", "field", schema=schema)
    if isinstance(scorer, Judge):
        scale = dict(scorer.scale) if isinstance(scorer.scale[0], tuple) else scorer.scale
        model = None if scorer.lm is None else scorer.lm.model
        return _recipe(objective, "judge", "rubric", "fields", "inputs", "reasoning", scale=scale, lm=model)
    if isinstance(scorer, Prefers):
        if not isinstance(scorer.judge, MeteredLM) or scorer.opponents != (StudentOpponent(),):
            return None
        names: tuple[str, ...] = ("criterion", "fields", "inputs", "orders", "reasoning")
        return _recipe(objective, "prefers", *names, judge=scorer.judge.model)
    if isinstance(scorer, Reward) and (form := _form_of(scorer.model, scorer.form)) is not None and not scorer.loading:
        names = ("model", "revision", "label", "probability", "max_length", "batch_size")
        where = {"device": scorer.source.device, "dtype": scorer.source.dtype}
        return _recipe(objective, "reward_model", *names, **form, **where, **_scaled(objective, scorer.pairing))
    if isinstance(scorer, ServedReward) and (form := _form_of(scorer.model, scorer.form)) is not None:
        names = ("model", "endpoint", "label", "activation", "max_length")
        more = {**form, **_scaled(objective, scorer.pairing), _ADDRESS: scorer.server.address}
        return None if scorer.server.secret else _recipe(objective, "served_reward_model", *names, **more)
    if isinstance(scorer, Similarity) and scorer.embed.settings.keys() <= _NAMES["similarity"]:
        return _recipe(objective, "similarity", "field", "to", "text", "model", **scorer.embed.settings)
    return None


def _recipe(objective: Objective, kind: str, *names: str, **more: Any) -> dict[str, Any]:
    given = {**{n: getattr(objective.score, n) for n in names}, **more}
    return {"kind": kind, "name": objective.name, **json.loads(json.dumps(given))}


def made_of(recipe: Mapping[str, Any], lms: Iterable[dspy.BaseLM], trusted: bool) -> Objective:
    """Return the objective of a recipe.

    Args:
        recipe: As `recipe_of` returned it, perhaps changed since.
        lms: LMs that were given, one of which may be the judge's.
        trusted: Whether to send completions to an address that stands in it.

    Raises:
        StateError: It names no built-in objective, lacks its LM, or has an address that must be trusted first.
        ConfigurationError, TypeError: Its arguments cannot be used.
    """
    arguments = dict(recipe)
    kind, name = arguments.pop("kind"), arguments["name"]
    if kind not in _MAKE:
        raise StateError(f"The objective {name!r} is of the kind {kind!r}; known are {sorted(_MAKE)}.")
    if _ADDRESS in arguments and not trusted:
        raise StateError(
            f"The objective {name!r} sends completions to {arguments[_ADDRESS]}, an address that stands in the file. "
            "If you trust the file: program.load(path, allow_unsafe_lm_state=True). Otherwise pass the strategy again: "
            "CompiledProgram(student, strategy=...)."
        )
    if unknown := sorted(arguments.keys() - _NAMES[kind]):  # `trust_remote_code`, say
        raise StateError(f"The objective {name!r} has the arguments {unknown}, which no saved {kind!r} has.")
    if kind == "regex_match":
        arguments["pattern"] = re.compile(arguments["pattern"], arguments.pop("flags", 0))
    asked = {"judge": "lm", "prefers": "judge"}.get(kind, "")
    if arguments.get(asked) is not None:
        arguments[asked] = _judge_lm(name, str(arguments[asked]), lms)
    return _MAKE[kind](**arguments)


def _judge_lm(name: str, model: str, lms: Iterable[dspy.BaseLM]) -> dspy.BaseLM:
    for lm in (*lms, dspy.settings.lm):
        if isinstance(lm, dspy.BaseLM) and lm.model == model:
            return lm
    raise StateError(
        f"The judge {name!r} asks the LM {model!r}, which a saved program does not hold. Give it: "
        f"CompiledProgram(student, lms=[dspy.LM({model!r}), ...]), or configure it while you load."
    )


def _form_of(model: str, form: Form | None) -> dict[str, Any] | None:
    """Return the form as an argument; none where the model's name says it; None for a function of the user's."""
    entry = known(model)[1]
    if entry is not None and form is entry.form:
        return {}
    return {"form": form} if form is None or isinstance(form, str) else None


def _scaled(objective: Objective, pairing: Pairing) -> dict[str, Any]:
    bounds = objective.bounds if objective.calibrate is None else None
    return {
        "question": pairing.question,
        "answer": pairing.answer,
        "calibrate": objective.calibrate,
        "bounds": bounds,
    }
