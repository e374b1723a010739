"""The card of a recording: where it comes from, without a sentence of the data."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from iapo_dspy.environments.recorded.recording import Recording
from iapo_dspy.errors import ConfigurationError, one_line
from iapo_dspy.optimizer.fingerprint import about, prompt_ids, public_params
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.prompts.prompt import Prompt
from iapo_dspy.sampling.ledger.field_values import jsonable


def check_facts(facts: Mapping[str, Any]) -> None:
    """Refuse facts that are not JSON data.

    Raises:
        ConfigurationError: They are not.
    """
    try:
        json.dumps(dict(facts), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"about={facts!r}: give JSON data by name ({one_line(error)}).") from error


def card_of(plan: Plan, recording: Recording, samples: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card of a recording as JSON data.

    Queries are there by the digest of their inputs. Prompts are there by their digest, with their instructions and the
    number of their demonstrations; a demonstration may be a sentence of the data.

    Args:
        plan: The run that it was recorded by.
        recording: The recording.
        samples: S.
        facts: What the user says of it; these facts come last, so that they can correct others.
    """
    told, drawn = about(plan, prompt_ids(plan)), recording.drawn
    failed = {} if drawn is None else dict(zip(drawn.causes, drawn.failures.sum(axis=0).tolist(), strict=True))
    settings = plan.settings
    return {
        "samples": samples,
        "strategy": plan.strategy.to_dict()["kind"],
        "signature": told["signature"],
        "models": told["models"],
        "adapter": told["adapter"],
        "servers": sorted({server for servers in told["servers"].values() for server in servers}),
        "prompts": [
            {"digest": digest, **_told(prompt)} for digest, prompt in zip(told["prompts"], plan.prompts, strict=True)
        ],
        "queries": told["queries"],
        "preferences": [jsonable(p.to_dict()) for p in settings.preferences],
        "cost_unit": settings.cost_unit.unit,
        "failures": failed,
        "package": f"iapo_dspy {version('iapo_dspy')}",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        **facts,
    }


def _told(prompt: Prompt) -> dict[str, Any]:
    predictors = list(prompt.program.named_predictors())
    return {
        "instructions": {name: p.signature.instructions for name, p in predictors},
        "demonstrations": sum(len(p.demos) for _, p in predictors),
        "lms": {name: jsonable(public_params(lm)) for name, lm in prompt.student.lms.items()},
        "decoding": jsonable(prompt.decoding.as_kwargs()),
        **({"adapter": str(prompt.adapter_name)} if prompt.adapter_name is not None else {}),
        **({"rewriter": str(prompt.rewriter_name)} if prompt.rewriter_name is not None else {}),
    }
