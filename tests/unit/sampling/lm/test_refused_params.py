"""Which parameter a refusal is about, and what is sent instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from iapo_dspy.sampling.lm.refused_params import RefusedParams, refused_param, without

SENT: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 50, "seed": 3, "stop": ["."], "model": "m"}


class BadRequestError(Exception):
    """As LiteLLM and OpenAI call it."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@pytest.mark.parametrize(
    ("message", "changes", "name"),
    [
        ("Unsupported parameter: 'temperature' is not supported with this model.", {}, "temperature"),
        (
            "'temperature' does not support 0.7. Only the default (1) value is supported.",
            {"temperature": 0.7},
            "temperature",
        ),
        (
            "`temperature` and `top_p` cannot both be specified for this model.",
            {},
            "temperature",
        ),  # nobody chose the 1.0
        ("`temperature` and `top_p` cannot both be specified for this model.", {"temperature": 0.7}, "top_p"),
        (
            "`temperature` may only be set to 1 when thinking is enabled.",
            {"temperature": 0.7, "thinking": {}},
            "temperature",
        ),
        ("x does not support parameters: ['temperature'], for model=m.", {"temperature": 0.2}, "temperature"),
        ("Unrecognized request argument supplied: seed", {}, "seed"),
        ("body.seed: Extra inputs are not permitted", {}, "seed"),
        ("temperature must be in (0, 1)", {}, "temperature"),
        ("temperature must be in [0, 1]", {"temperature": 1.5}, None),  # the user's own value, out of range
        ("'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", {}, "max_tokens"),
        ("max_tokens is too large: 50. This model supports at most 40 completion tokens", {}, None),
        ("`max_tokens` must be greater than `thinking.budget_tokens`.", {"thinking": {"budget_tokens": 90}}, None),
        ("n must be 1", {}, None),
        ("What is an unsupported operation?", {}, None),
        ("model m is not supported", {}, None),
    ],
)
def test_the_parameter_that_a_refusal_names(message: str, changes: Mapping[str, Any], name: str | None) -> None:
    assert refused_param(BadRequestError(message), {**SENT, **changes}) == name


def test_the_name_may_stand_beside_the_message() -> None:
    assert refused_param(BadRequestError("Unsupported value", param="temperature"), SENT) == "temperature"


def test_other_errors_name_no_parameter() -> None:
    class ContextWindowExceededError(BadRequestError):
        pass

    assert refused_param(ContextWindowExceededError("max_tokens is not supported"), SENT) is None
    assert refused_param(TimeoutError("temperature is not supported"), SENT) is None


def test_a_limit_changes_its_name_and_stays() -> None:
    assert without({"max_tokens": 5, "x": 1}, "max_tokens") == {"x": 1, "max_completion_tokens": 5}
    known = RefusedParams(left_out={"top_p"}, renamed={"max_tokens": "max_completion_tokens"})
    assert known.fit({"max_tokens": 5, "top_p": 0.5}) == {"max_completion_tokens": 5}
    assert known.fit({"max_tokens": 5, "max_completion_tokens": 9}) == {"max_completion_tokens": 5}
    assert RefusedParams().fit(SENT) == SENT


def _asked(known: RefusedParams, refusals: Mapping[str, str], sent: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what was sent to a server that refuses some parameters."""
    asked, trial = [], known.trial(sent, "m")
    while True:
        asked.append(trial.params)
        refusal = next((BadRequestError(text) for name, text in refusals.items() if name in trial.params), None)
        if refusal is None:
            trial.worked()
            return asked
        if not trial.leave_out(refusal):
            raise refusal


def test_a_refused_parameter_is_left_out_once_and_for_all(caplog: pytest.LogCaptureFixture) -> None:
    known, refusals = (
        RefusedParams(),
        {"temperature": "no support: temperature is not supported", "seed": "unknown field: seed"},
    )
    assert len(_asked(known, refusals, SENT)) == 3
    for _ in range(2):
        (sent,) = _asked(known, refusals, SENT)
        assert sent == {k: v for k, v in SENT.items() if k not in refusals}
    assert len(caplog.messages) == 2 and "m refuses temperature" in caplog.text


def test_what_does_not_help_is_not_remembered() -> None:
    known = RefusedParams()
    always = {"temperature": "temperature is not supported", "model": "not supported either"}
    with pytest.raises(BadRequestError, match="either"):
        _asked(known, always, SENT)
    assert not known.left_out and not known.renamed


def test_a_limit_that_is_refused_by_both_names_fails() -> None:
    both = {name: f"{name} is not supported" for name in ("max_tokens", "max_completion_tokens")}
    with pytest.raises(BadRequestError):
        _asked(RefusedParams(), both, SENT)
