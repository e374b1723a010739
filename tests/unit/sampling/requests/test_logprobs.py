from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from iapo_dspy.sampling.requests.logprobs import mean_logprob
from iapo_dspy.sampling.requests.port import Choice


@pytest.mark.parametrize(
    ("given", "mean"),
    [
        ({"content": [{"logprob": -1.0}, {"logprob": -0.5}]}, -0.75),
        (SimpleNamespace(content=[SimpleNamespace(logprob=-1.0), SimpleNamespace(logprob=None)]), -1.0),
        ({"token_logprobs": [None, -0.25, -0.75]}, -0.5),  # the first token of an echoed prompt has none
        ({"content": None, "token_logprobs": [-2.0]}, -2.0),
        ({"content": [{"logprob": 1e-9}]}, 0.0),  # rounding
        ({"content": [{"logprob": float("nan")}]}, None),
        ({"content": []}, None),
        ({"content": None}, None),
        (None, None),
        (3, None),
    ],
)
def test_the_mean_over_the_tokens_in_any_form(given: Any, mean: float | None) -> None:
    assert mean_logprob(given) == mean
    assert Choice(text="a", output={"text": "a", "logprobs": given}).logprob == mean


def test_most_choices_have_none() -> None:
    assert Choice(text="a", output="a").logprob is Choice(error=ValueError()).logprob is None
