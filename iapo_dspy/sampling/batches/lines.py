"""The lines of a batch job's files, requests and answers, in the form of OpenAI's batch API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from iapo_dspy.errors import IAPOError, LedgerError, one_line
from iapo_dspy.sampling.ledger.records import PullKey
from iapo_dspy.sampling.lm.params import import_litellm, max_output_tokens
from iapo_dspy.sampling.requests.choices import read_response, seed_of
from iapo_dspy.sampling.requests.port import Choice
from iapo_dspy.sampling.rollouts.single_predictor import PredictorCall
from iapo_dspy.sampling.spending.pricing import Price, prompt_bound
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.sampling.spending.usage_check import reported_tokens

_CONNECTION = frozenset(
    {"api_base", "api_type", "api_version", "base_url", "extra_headers", "headers", "organization", "timeout"}
)
_FOR_LITELLM = frozenset({"additional_drop_params", "allowed_openai_params", "drop_params"})


class LineError(IAPOError):
    """One request of a batch job failed.

    Attributes:
        status_code: The provider's HTTP status; 500 where it gives none.
        code: The provider's word for it.
    """

    def __init__(self, message: str, *, status_code: int = 500, code: str | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.code = code


@dataclass(frozen=True, kw_only=True)
class BatchLine:
    """One request of a job.

    Attributes:
        id: Its `custom_id`, unique within its job.
        prompt: Digest of the prompt.
        query: Digest of the query's inputs.
        first: Number of the first draw of the pull that it belongs to.
        draws: Numbers of the draws that it asks for; as many as the request's n.
        seed: The seed that is sent.
        tokens: Upper bound of its tokens; 0 where no budget needs one.
        usd: Upper bound of its dollars; 0 where no budget needs one.
        alone: Whether the provider does not take n, so that each completion pays for its prompt.
    """

    id: str
    prompt: str
    query: str
    first: int
    draws: tuple[int, ...]
    seed: int | None = None
    tokens: int = 0
    usd: float = 0.0
    alone: bool = False

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> BatchLine:
        """Return the line that `dataclasses.asdict` and JSON have made plain.

        Raises:
            LedgerError: It is not such a line.
        """
        try:
            return cls(**{**data, "draws": tuple(data["draws"])})
        except (KeyError, TypeError) as error:
            raise LedgerError(
                f"The ledger has a batch job with a line that is damaged ({one_line(error)}): {str(data)[:100]}. "
                "Repair it, or choose another log_dir."
            ) from error


def make_line(
    pull: PullKey,
    draws: Sequence[int],
    *,
    ready: PredictorCall,
    price: Price | None,
    bounded: bool,
    alone: bool = False,
) -> BatchLine:
    """Return the line that asks for some completions of a pull.

    A pull that is asked for as a whole gets the seed that an ordinary request would have, so that jobs draw the same
    completions. `bounded` says whether the budget needs upper bounds, and `alone` that the provider does not take n.
    """
    prompt, query, first = pull
    seed = seed_of(ready.lm, list(pull), ready.messages, draws[0] - first)
    tokens, usd = 0, 0.0
    if bounded:
        read = prompt_bound(ready.messages, ready.params)
        written = len(draws) * (max_output_tokens(ready.params) or 0)
        tokens = read + written
        usd = price.bound(read, written) if price is not None else 0.0
    return BatchLine(
        id=f"{prompt}-{query}-{draws[0]}",
        prompt=prompt,
        query=query,
        first=first,
        draws=tuple(draws),
        seed=seed,
        tokens=tokens,
        usd=usd,
        alone=alone,
    )


def chat_body(
    lm: dspy.BaseLM, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any], *, n: int, seed: int | None
) -> dict[str, Any]:
    """Return the body that LiteLLM would send for a request, without the connection's settings and keys.

    The LM's provider decides the form; `params` are the request's settings (`params.request_params`).
    """
    litellm = import_litellm()
    from litellm.types.utils import LlmProviders, all_litellm_params
    from litellm.utils import ProviderConfigManager

    model, provider, *_ = litellm.get_llm_provider(
        model=lm.model, custom_llm_provider=params.get("custom_llm_provider"), api_base=params.get("api_base")
    )
    kept = (_FOR_LITELLM | params.keys()) - _CONNECTION - (frozenset(all_litellm_params) - _FOR_LITELLM)
    sent = {k: params[k] for k in params if k in kept}
    if n > 1:
        sent["n"] = n
    if seed is not None:
        sent["seed"] = seed
    content = [dict(m) for m in messages]
    options = litellm.get_optional_params(model=model, custom_llm_provider=provider, messages=content, **sent)
    config = ProviderConfigManager.get_provider_chat_config(model=model, provider=LlmProviders(provider))
    body: dict[str, Any] = config.transform_request(
        model=model, messages=content, optional_params=options, litellm_params={}, headers={}
    )
    extra = body.pop("extra_body", None) or {}
    for name in ("stream", "max_retries", "extra_headers"):  # of the transport; a job has another one
        body.pop(name, None)
    return {**body, **extra}


def write_line(line: BatchLine, body: Mapping[str, Any], *, url: str) -> bytes:
    """Return a line of a job's input file; `url` is relative to the provider's address."""
    entry = {"custom_id": line.id, "method": "POST", "url": url, "body": body}
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


LineResult = Mapping[str, Any] | LineError
"""The result of one line: a chat completion's body, or an error."""


def read_results(content: bytes) -> tuple[dict[str, LineResult], bool]:
    """Read an output or error file.

    Returns:
        The results by `custom_id`; and whether every line could be read, which the last line of a file that was cut off
        cannot.
    """
    found: dict[str, LineResult] = {}
    whole = True
    for raw in content.splitlines():
        if not raw.strip():
            continue
        try:
            line = json.loads(raw)
            found[str(line["custom_id"])] = _result(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
    return found, whole


def _result(line: Mapping[str, Any]) -> LineResult:
    response = line.get("response") or {}
    body, status = response.get("body"), response.get("status_code", 200 if response else 500)
    problem = line.get("error") or (body.get("error") if isinstance(body, Mapping) else None)
    if problem is None and status == 200 and isinstance(body, Mapping):
        return body
    details = problem if isinstance(problem, Mapping) else {"message": problem}
    text = details.get("message") or "the provider does not say why"
    code = details.get("code")
    return LineError(f"{status}: {text}", status_code=int(status), code=None if code is None else str(code))


def read_choices(
    ready: PredictorCall, line: BatchLine, body: Mapping[str, Any], price: Price | None
) -> tuple[list[Choice], Usage]:
    """Read one answer, at the job's price.

    Returns:
        At most as many choices as were asked for, each with its share of the usage; and the usage of the whole request.

    Raises:
        Exception: It is not a chat completion.
    """
    litellm = import_litellm()
    from litellm.litellm_core_utils.llm_response_utils.convert_dict_to_response import convert_to_model_response_object

    response = convert_to_model_response_object(
        response_object=dict(body), model_response_object=litellm.ModelResponse()
    )
    reported = reported_tokens(body.get("usage"))
    reading = read_response(ready.lm, response, ready.params, ready.messages, reported=reported)
    usage = reading.usage
    if price is not None:
        usage = replace(usage, usd=price.of(usage.prompt_tokens, usage.completion_tokens))
    n = len(line.draws)
    shared = len(reading.outputs) > 1 or (n == 1 and not line.alone)
    return replace(reading, usage=usage).choices(n, shared=shared, price=price, seed=line.seed), usage
