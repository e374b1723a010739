"""One request's refusal and everybody's are told apart by the outcome of the other requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from iapo_dspy.sampling.lm.shared_refusals import SharedRefusals


class NotFoundError(Exception):
    """As LiteLLM calls it."""


class AuthenticationError(Exception):
    """As LiteLLM calls it."""


class Timeout(Exception):
    """As LiteLLM calls it."""


async def _request(shared: SharedRefusals, query: str, outcome: Any, after: float = 0.0) -> str:
    """Return what becomes of a request: "answer", "alone" or "all"."""
    try:
        with shared.request():
            await asyncio.sleep(after)
            if outcome is not None:
                raise outcome
    except Exception as error:  # noqa: BLE001 - any
        all_of_them = await shared.concern_all(error, [{"content": "instruction"}, {"content": query}])
        return "all" if all_of_them else "alone"
    return "answer"


async def _at_once(shared: SharedRefusals, *requests: tuple[str, Any, float]) -> list[str]:
    return await asyncio.wait_for(asyncio.gather(*(_request(shared, *request) for request in requests)), 5)


async def test_a_refusal_that_comes_first_waits_for_the_others() -> None:
    shared = SharedRefusals()
    outcomes = await _at_once(shared, ("q1", NotFoundError(), 0.0), ("q2", None, 0.02), ("q1", NotFoundError(), 0.01))
    assert outcomes == ["alone", "answer", "alone"]
    assert await _at_once(shared, ("q1", NotFoundError(), 0.0)) == ["alone"]  # it is known by now


async def test_where_nothing_is_answered_it_concerns_all() -> None:
    requests = [(f"q{i}", NotFoundError(), 0.005 * i) for i in range(3)]
    assert await _at_once(SharedRefusals(), *requests) == ["all"] * 3
    assert await _at_once(SharedRefusals(), ("q1", NotFoundError(), 0.0)) == ["all"]


async def test_where_something_else_goes_wrong_it_is_not_known() -> None:
    assert await _at_once(SharedRefusals(), ("q1", NotFoundError(), 0.0), ("q2", Timeout(), 0.02)) == ["alone"] * 2


async def test_a_wrong_key_always_concerns_all() -> None:
    shared = SharedRefusals(sound=True)
    assert await _at_once(shared, ("q1", AuthenticationError(), 0.0), ("q2", None, 0.0)) == ["all", "answer"]


@pytest.mark.parametrize("same", [True, False])
async def test_a_model_that_is_taken_away_concerns_all_after_eight_queries(same: bool) -> None:
    """One query under many prompts is still one query."""
    shared = SharedRefusals(sound=True)
    outcomes = [await _request(shared, "q" if same else f"q{i}", NotFoundError()) for i in range(20)]
    assert outcomes == ["alone"] * 20 if same else ["alone"] * 7 + ["all"] * 13
    assert await _request(shared, "q", None) == "answer" and await _request(shared, "q", NotFoundError()) == "alone"
