"""The sampler refuses bad arguments, takes another completer, and imports LiteLLM only when it is used."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import dspy
import pytest
from dspy.utils import DummyLM

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.requests.port import CompletionRequest
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.support.sampling import draw

ROOT = Path(__file__).parents[4]


def test_litellm_is_not_imported_before_it_is_used() -> None:
    code = (
        "import sys\nfrom iapo_dspy.sampling.rollouts.sampler import Sampler\n"
        "Sampler(); print('litellm.main' in sys.modules or 'litellm.utils' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_bad_arguments_are_refused() -> None:
    program = dspy.Predict("question -> answer")
    for m in (0, -1, 1.5, True):
        with pytest.raises(ConfigurationError, match="m="):
            draw(Sampler(lm=DummyLM([])), program, {}, m, key=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_concurrency"):
        Sampler(max_concurrency=0)
    with dspy.context(lm=None), pytest.raises(ConfigurationError, match=r"dspy\.configure"):
        draw(Sampler(), program, {"question": "q"}, 1, key=0)


def test_another_completer_can_be_plugged_in(caplog: pytest.LogCaptureFixture) -> None:
    from iapo_dspy.sampling.requests.port import Choice, Completer

    class Fixed:
        async def complete(self, request: CompletionRequest) -> list[Choice]:
            text = "[[ ## answer ## ]]\nprivate"
            return [Choice(text=text, output=text)] * request.n

    fixed = Fixed()
    assert isinstance(fixed, Completer)
    sampler = Sampler(lm=dspy.LM("openai/x"), completer=lambda lm: fixed)
    with caplog.at_level(logging.INFO):
        rollouts = draw(sampler, dspy.Predict("question -> answer"), {"question": "private"}, 3, key=0)
    assert [r.prediction.answer for r in rollouts if r.prediction] == ["private"] * 3
    assert "private" not in caplog.text
