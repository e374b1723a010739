"""Errors of providers: which ones pass by waiting, which never will, and which ones were billed."""

from __future__ import annotations

import asyncio
import email.utils
import re
import time
from collections.abc import Mapping
from typing import Any

from iapo_dspy.errors import BudgetExceeded, ConfigurationError, ProviderDown, StorageError

_FATAL = frozenset(
    {
        "AuthenticationError",
        "PermissionDeniedError",
        "NotFoundError",
        "PaymentRequiredError",
        "BudgetExceededError",
        "LMAuthError",
        "LMBillingError",
        "LMConfigurationError",
        "LMNotConfiguredError",
        "LMUnsupportedModelError",
    }
)
_FATAL_OR_ALONE = frozenset({"PermissionDeniedError", "NotFoundError", "LMUnsupportedModelError"})
# LiteLLM reports these as bad requests, although every other request would fail the same way.
_FATAL_BAD_REQUESTS = (
    "LLM Provider NOT provided",
    "Invalid model name passed in model=",  # its proxy, for a model that it does not serve
    "No connected db",  # its proxy without a database, for any key but its own master key
)
_TRANSIENT = frozenset(
    {"Timeout", "APITimeoutError", "APIConnectionError", "LMTimeoutError", "LMTransportError", "LMRateLimitError"}
)
LATER = frozenset({408, 409, 429})
"""HTTP statuses below 500 that may pass by waiting."""
# The answer was on its way: it was made, so it may be billed, whatever status LiteLLM gives the error.
_BROKEN = frozenset(
    {
        "ClientPayloadError",
        "ContentLengthError",
        "IncompleteRead",
        "JSONDecodeError",
        "ReadError",
        "ReadTimeout",
        "RemoteProtocolError",
        "ServerDisconnectedError",
    }
)
# The provider was not reached at all.
_UNREACHED = frozenset(
    {
        "ClientConnectorError",
        "ConnectError",
        "ConnectTimeout",
        "ConnectionRefusedError",
        "ConnectionTimeoutError",
        "PoolTimeout",
        "UnsupportedProtocol",
        "gaierror",
    }
)
_SECRET_NAME = re.compile(r"key|secret|password|token$|credential|authorization", re.IGNORECASE)


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _status(error: BaseException) -> int | None:
    value: Any = getattr(error, "status_code", None) or getattr(error, "status", None)
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def is_fatal(error: BaseException) -> bool:
    """Whether every other request will fail the same way: wrong key, no permission, no money, no such model."""
    names = _names(error)
    status, text = _status(error), str(error)
    if names & _FATAL or isinstance(error, ConfigurationError | StorageError) or status in (401, 402, 403, 404):
        return True
    if "RateLimitError" in names or status == 429:
        return "insufficient_quota" in text
    return "BadRequestError" in names and any(reason in text for reason in _FATAL_BAD_REQUESTS)


def may_concern_one(error: BaseException) -> bool:
    """Whether a fatal error may be about the content of one request all the same: some gateways refuse by a 403."""
    names = _names(error)
    return bool(names & _FATAL_OR_ALONE) or _status(error) in (403, 404) or "BadRequestError" in names


def is_retryable(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if is_fatal(error) or is_undrawn(error):
        return False
    if isinstance(error, (asyncio.TimeoutError, TimeoutError, ConnectionError)) or _names(error) & _TRANSIENT:
        return True
    if is_unsent(error) or _is_broken(error):
        return True
    status = _status(error) or 0
    return status in LATER or status >= 500


def is_free_to_repeat(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later, and this attempt surely cost nothing."""
    return is_retryable(error) and (is_unsent(error) or is_refused(error))


def is_undrawn(error: BaseException | None) -> bool:
    """Whether a completion was never drawn, for a reason that says nothing about its prompt."""
    return isinstance(error, (BudgetExceeded, ProviderDown))


def is_unsent(error: BaseException) -> bool:
    """Whether no replica was asked, because all of them have failed a moment ago."""
    return bool(_names(error) & {"RouterRateLimitError", "RouterRateLimitErrorBasic"})


def may_refuse_params(error: BaseException) -> bool:
    """Whether a provider may have refused a request because of its parameters, n among them."""
    other = {"ContextWindowExceededError", "ContentPolicyViolationError"}
    refusals = {"BadRequestError", "UnsupportedParamsError", "UnprocessableEntityError", "LMUnsupportedFeatureError"}
    return bool(_names(error) & refusals or _status(error) in (400, 422)) and not _names(error) & other


def is_throttled(error: BaseException) -> bool:
    """Whether the provider says that it gets too many requests at a time."""
    return _status(error) == 429 or "LMRateLimitError" in _names(error)


def is_refused(error: BaseException) -> bool:
    """Whether the provider surely billed nothing: it answered with an error status, or was not reached.

    LiteLLM gives a status of 500 to answers that it cannot read as well, and those are billed. So a status of 500 or
    more counts only where the HTTP response that had it is among the causes.
    """
    chain = _chain(error)
    if any(_names(link) & _UNREACHED for link in chain):
        return True
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)) or _names(error) & {"Timeout", "APITimeoutError"}:
        return False
    if _is_broken(error):
        return False
    if any(_answered(link) for link in chain):
        return True
    # LiteLLM itself refuses some requests before it sends them. A plain `Exception` is its sign of a status that it has
    # read in the body of an answer.
    return 400 <= (_status(error) or 0) < 500 and not any(type(link) is Exception for link in chain)


def _answered(link: BaseException) -> bool:
    """Whether this is the error of an HTTP response with an error status, as the HTTP client raised it."""
    if "HTTPStatusError" in _names(link):
        return int(getattr(getattr(link, "response", None), "status_code", 0) or 0) >= 400
    return "ClientResponseError" in _names(link) and (_status(link) or 0) >= 400


def _is_broken(error: BaseException) -> bool:
    """Whether an answer was cut off or garbled on its way."""
    return any(_names(link) & _BROKEN for link in _chain(error))


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and everything it was raised from."""
    chain: list[BaseException] = [error]
    for link in chain:
        chain += [e for e in (link.__cause__, link.__context__) if e is not None and e not in chain]
    return chain


def retry_after(error: BaseException) -> float | None:
    """Return the seconds that the provider asks to wait, wherever its headers are kept; None if it does not say."""
    for link in _chain(error):  # some of LiteLLM's errors have lost the headers that the provider's own error still has
        for holder in (getattr(link, "response", None), link):
            for name in ("headers", "litellm_response_headers", "response_headers"):
                if (seconds := _asked(getattr(holder, name, None))) is not None:
                    return seconds
    return _number(getattr(error, "cooldown_time" if is_unsent(error) else "retry_after", None))


def _asked(headers: Any) -> float | None:
    if headers is None or not hasattr(headers, "items"):
        return None
    found = {str(k).lower(): str(v) for k, v in headers.items()}
    for key in ("retry-after-ms", "llm_provider-retry-after-ms"):
        if (seconds := _number(found.get(key))) is not None:
            return seconds / 1000
    for key in ("retry-after", "llm_provider-retry-after"):
        if key in found:
            return _seconds(found[key])
    return None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number < float("inf") else None


def _seconds(value: str) -> float | None:
    if (number := _number(value)) is not None:
        return number
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None


def secrets_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the secret values among an LM's settings, headers included, so that they can be kept out of messages."""
    found: list[str] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += [v for v in value.values() if isinstance(v, str)] if "headers" in name else secrets_of(value)
        elif isinstance(value, str) and _SECRET_NAME.search(name):
            found.append(value)
    return tuple(v for v in found if len(v) >= 6)
