"""Batch jobs at a provider, through LiteLLM: upload, submit, look, find, fetch, cancel."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dspy

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.lm.params import import_litellm

logger = logging.getLogger(__name__)

# LiteLLM can list the jobs of these, so that a killed run finds its job again, and their files are in OpenAI's form.
PROVIDERS = ("openai", "azure", "hosted_vllm", "litellm_proxy")
_REFUSED = {
    "bedrock": "its jobs read and write files in a bucket of yours, in another form",
    "mistral": "LiteLLM cannot list its jobs, so a killed run could not find the one it had just submitted",
    "vertex_ai": "its jobs read and write files in a bucket of yours, in another form",
    "xai": "its jobs have no metadata and another form of list, in which this package does not look yet",
}
_OVER = frozenset({"completed", "failed", "expired", "cancelled"})
_PAGE = 100
_PAGES = 50
_TIMEOUT = 600.0  # seconds per request; files are large
_CONNECTION = (
    "api_key",
    "api_version",
    "organization",
    "extra_headers",
    "azure_ad_token",
    "tenant_id",
    "client_id",
    "client_secret",
)


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """How far a job is.

    Attributes:
        id: The provider's name of the job.
        status: The provider's word: "validating", "in_progress", "finalizing", "completed", "failed", "expired",
            "cancelling" or "cancelled".
        output_file: File with the answers, None if there is none.
        error_file: File with the requests that failed, None if there is none.
        total: Requests of the job, 0 if not known.
        done: Answered or failed requests.
        problems: The provider's errors about the job as a whole.
    """

    id: str
    status: str
    output_file: str | None = None
    error_file: str | None = None
    total: int = 0
    done: int = 0
    problems: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.status in _OVER

    def __str__(self) -> str:
        """Return a few words for people."""
        return f"{self.id}: {self.status}, {self.done} of {self.total} requests"


def check_lm(lm: dspy.BaseLM) -> tuple[str, str | None, str | None]:
    """Return the provider of an LM that can be asked by batch jobs, with its address and key.

    Raises:
        ConfigurationError: It cannot; the message says why.
    """
    kind = f"The LM {lm.model!r} is a {type(lm).__name__}"
    if type(lm) is not dspy.LM or not isinstance(lm.engine, str):
        raise ConfigurationError(
            f"{kind}; batch jobs need a plain dspy.LM('openai/...'), because the provider's file and batch endpoints "
            "are asked, not the LM. Leave out batch=..., or give such an LM."
        )
    if lm.model_type != "chat":
        raise ConfigurationError(f"{kind} with model_type={lm.model_type!r}; batch jobs need model_type='chat'.")
    given = lm.kwargs.get("api_base") or lm.kwargs.get("base_url")
    try:  # as LiteLLM resolves them for completions, from the environment too
        _, provider, key, base = import_litellm().get_llm_provider(
            model=lm.model, custom_llm_provider=lm.kwargs.get("custom_llm_provider"), api_base=given
        )
    except Exception as error:
        raise ConfigurationError(
            f"LiteLLM knows no provider of {lm.model!r}; batch jobs need one of {', '.join(PROVIDERS)}: "
            "dspy.LM('openai/gpt-4o-mini')."
        ) from error
    base, key = given or base, lm.kwargs.get("api_key") or key
    if provider not in PROVIDERS:
        why = _REFUSED.get(provider, "LiteLLM has no batch API for it")
        raise ConfigurationError(
            f"batch=... does not work with {lm.model!r}, provider {provider!r}: {why}. Providers that do: "
            f"{', '.join(PROVIDERS)}. Leave out batch=... to send ordinary requests."
        )
    if provider in ("hosted_vllm", "litellm_proxy") and not base:
        # LiteLLM would send the files to OpenAI.
        raise ConfigurationError(
            f"{lm.model!r} has no address: give dspy.LM({lm.model!r}, api_base='http://...'). vLLM's own server has no "
            "batch endpoints; LiteLLM's proxy in front of it has."
        )
    return str(provider), base, key


class LiteLLMJobs:
    """Jobs at the provider of a `dspy.LM`, with its address and key.

    Args:
        lm: The language model; only read.

    Attributes:
        url: The address of a request in a line of an input file.

    Raises:
        ConfigurationError: See `check_lm`.
    """

    def __init__(self, lm: dspy.BaseLM) -> None:
        provider, base, key = check_lm(lm)
        call: dict[str, Any] = {k: lm.kwargs[k] for k in _CONNECTION if lm.kwargs.get(k) is not None}
        if base:
            call["api_base"] = base
        if provider == "litellm_proxy":
            # A proxy serves many models and finds the one a file is for by this header.
            name = lm.model.split("/", 1)[-1]
            call["extra_headers"] = {"x-litellm-model": name, **(call.get("extra_headers") or {})}
        if provider in ("hosted_vllm", "litellm_proxy"):  # LiteLLM would send OpenAI's key otherwise
            call["api_key"] = key or "none"
        # No silent retries: a job that is submitted twice is paid for twice.
        self._call = {**call, "custom_llm_provider": provider, "max_retries": 0, "timeout": _TIMEOUT}
        self.url = "/chat/completions" if provider == "azure" else "/v1/chat/completions"

    async def upload(self, content: bytes, name: str) -> str:
        """Store an input file; return its id. Not billed."""
        file = (name, content, "application/jsonl")
        made = await import_litellm().acreate_file(file=file, purpose="batch", **self._call)
        return str(made.id)

    async def submit(self, file_id: str, tag: str) -> str:
        """Start a job with a tag; return its id. Billed from here on; sent once, never silently again."""
        # A proxy would try again by itself where its own connection to the provider breaks.
        once = {"extra_body": {"max_retries": 0}} if self._call["custom_llm_provider"] == "litellm_proxy" else {}
        made = await import_litellm().acreate_batch(
            completion_window="24h",
            endpoint="/v1/chat/completions",
            input_file_id=file_id,
            metadata={"name": tag},
            **once,
            **self._call,
        )
        return str(made.id)

    async def look(self, job: str) -> JobStatus:
        """Return how far a job is."""
        # LiteLLM would fetch the whole output file, once per look, to price it for its own log.
        quiet = {"batch_ignore_default_logging": True}
        found = await import_litellm().aretrieve_batch(batch_id=job, litellm_metadata=quiet, **self._call)
        return _status(found)

    async def find(self, tag: str, since: float) -> str | None:
        """Return the id of the job with a tag, made after a moment (seconds since 1970); None if there is none."""
        after: str | None = None
        for _ in range(_PAGES):
            page = await self._list(after)
            jobs = list(_get(page, "data") or ())
            for job in jobs:
                if (_get(job, "metadata") or {}).get("name") == tag:
                    return str(_get(job, "id"))
            # Newest first; a clock that is an hour off does no harm.
            if not jobs or not _get(page, "has_more") or (_get(jobs[-1], "created_at") or since) < since - 3600:
                return None
            after = str(_get(jobs[-1], "id"))
        return None

    async def _list(self, after: str | None) -> Any:
        call = self._call
        if call["custom_llm_provider"] == "azure" or not call.get("extra_headers"):
            return await import_litellm().alist_batches(after=after, limit=_PAGE, **call)
        # LiteLLM leaves the headers out here, by which its proxy knows where to look; so the client that it wraps.
        import openai

        async with openai.AsyncOpenAI(
            api_key=call.get("api_key"),
            base_url=call.get("api_base"),
            organization=call.get("organization"),
            default_headers=call["extra_headers"],
            max_retries=0,
            timeout=_TIMEOUT,
        ) as client:
            return await (client.batches.list(limit=_PAGE, after=after) if after else client.batches.list(limit=_PAGE))

    async def fetch(self, file_id: str) -> bytes:
        """Return a file's content."""
        found = await import_litellm().afile_content(file_id=file_id, **self._call)
        return bytes(found.content)

    async def cancel(self, job: str) -> None:
        """Stop a job; its answers so far stay, and are billed."""
        await import_litellm().acancel_batch(batch_id=job, **self._call)


def _status(found: Any) -> JobStatus:
    counts = _get(found, "request_counts")
    problems = _get(_get(found, "errors"), "data") or ()
    lines = tuple(": ".join(str(x) for x in (_get(p, "code"), _get(p, "message")) if x) for p in problems)
    return JobStatus(
        id=str(_get(found, "id")),
        status=str(_get(found, "status")),
        output_file=_get(found, "output_file_id"),
        error_file=_get(found, "error_file_id"),
        total=int(_get(counts, "total") or 0),
        done=int(_get(counts, "completed") or 0) + int(_get(counts, "failed") or 0),
        problems=lines,
    )


def _get(value: Any, name: str) -> Any:
    """Read a field of an answer: some of LiteLLM's providers give objects, others dictionaries."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
