"""Errors of servers: how long to wait, whether to try again, and what to keep out of logs."""

from __future__ import annotations

import asyncio
import email.utils
import time

from iapo_dspy.errors import ConfigurationError, one_line
from iapo_dspy.sampling.lm.refusals import is_fatal, is_refused, is_retryable, retry_after, secrets_of


class Response:
    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers


class RateLimitError(Exception):
    status_code = 429

    def __init__(self, message: str = "slow down", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.response = Response(headers or {})


def test_retry_after_in_all_its_forms() -> None:
    assert retry_after(RateLimitError(headers={"Retry-After": "3"})) == 3.0
    assert retry_after(RateLimitError(headers={"retry-after-ms": "250", "retry-after": "9"})) == 0.25
    assert retry_after(RateLimitError()) is None
    assert retry_after(RateLimitError(headers={"Retry-After": "soon"})) is None
    date = email.utils.formatdate(time.time() + 20, usegmt=True)
    assert 15 < (retry_after(RateLimitError(headers={"Retry-After": date})) or 0) <= 20
    late = RateLimitError()
    late.litellm_response_headers = {"llm_provider-retry-after": "4"}  # type: ignore[attr-defined]
    assert retry_after(late) == 4.0


def test_errors_are_told_apart() -> None:
    assert is_retryable(RateLimitError()) and is_refused(RateLimitError()) and not is_fatal(RateLimitError())
    assert is_fatal(RateLimitError("insufficient_quota")) and not is_retryable(RateLimitError("insufficient_quota"))
    assert is_fatal(ConfigurationError("x"))
    for error in (asyncio.TimeoutError(), TimeoutError(), ConnectionResetError()):
        assert is_retryable(error) and not is_refused(error) and not is_fatal(error)
    assert not is_retryable(ValueError("x")) and not is_fatal(ValueError("x"))


def test_failures_are_one_line_without_keys() -> None:
    secrets = secrets_of({"api_key": "my-private-key", "extra_headers": {"X-A": "header-value"}, "model": "m"})
    error = ValueError("\n\nkey my-private-key header-value sk-proj-abcdefgh12 Bearer abc.def\nsecond line")
    line = one_line(error, secrets)
    assert line == "ValueError: key [secret] [secret] [secret] [secret]"
    gone = one_line(OSError("https://me:hush@judge.example/v1 and https://judge.example/a@b are gone"))
    assert gone == "OSError: https://[secret]@judge.example/v1 and https://judge.example/a@b are gone"
    assert len(one_line(ValueError("x" * 1000))) == 300
    assert one_line(KeyError()) == "KeyError"
