"""The whole path on vLLM."""

from __future__ import annotations

from collections import Counter
from typing import Any

import dspy
import pytest

from iapo_dspy import IAPO, Budget, MajorityVote
from iapo_dspy.demo.tasks import addition_task
from iapo_dspy.errors import ConfigurationError, LMRefused
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.servers.paths import MAX_N, Run, WholePath
from tests.support.compiling import iapo
from tests.support.counting import Counting
from tests.support.sampling import draw

pytestmark = pytest.mark.server
KIND = "vllm"
TASK = addition_task()
QUESTION = {"question": "What is 358 + 467?"}


def optimizer(**changes: Any) -> IAPO:
    settings: dict[str, Any] = {
        "metric": TASK.metric,
        "strategy": MajorityVote("answer"),
        "max_n": 8,
        "budget": 800,
        "candidates": TASK.instructions[:4],
        "progress": False,
    }
    return iapo(**{**settings, **changes})


class TestWholePath(WholePath):
    def test_one_request_a_pull(self, run: Run) -> None:
        pulls = Counter(r.pull for r in run.records)
        assert len(run.exchanges) == run.report.spent.requests == len(pulls)
        assert Counter(e.body.get("n", 1) for e in run.exchanges) == Counter(pulls.values())
        assert max(pulls.values()) == MAX_N


def test_a_token_limit_holds_and_the_server_counts_the_same(server: Any) -> None:
    before = server.metric("vllm:generation_tokens_total")
    with dspy.context(lm=server.lm()):
        program = optimizer(budget=Budget(completions=800, tokens=12_000)).compile(
            TASK.student(), trainset=TASK.train(50, 0)
        )
    spent = program.detailed_results.spent
    assert not program.detailed_results.complete
    assert server.metric("vllm:generation_tokens_total") - before == spent.completion_tokens
    assert 9_000 < spent.tokens <= 12_000


def test_sampling_at_temperature_0_is_refused_before_anything_is_sent(server: Any) -> None:
    with Counting(server.base) as proxy, dspy.context(lm=server.lm(proxy.base).copy(temperature=0.0)):
        with pytest.raises(ConfigurationError, match="all N completions would be the same"):
            optimizer().compile(TASK.student(), trainset=TASK.train(50, 0))
    assert proxy.exchanges == []


def test_several_completions_at_temperature_0_are_asked_for_one_by_one(server: Any) -> None:
    """vLLM answers n > 1 at temperature 0 by a 400."""
    with Counting(server.base) as proxy:
        sampler = Sampler(lm=server.lm(proxy.base).copy(temperature=0.0))
        rollouts = draw(sampler, TASK.student(), QUESTION, 3, key=0)
    assert [e.status for e in proxy.exchanges] == [200] * 3
    assert len({r.prediction.answer for r in rollouts if r.prediction is not None}) == 1


def test_a_prompt_that_is_too_long_fails_with_the_servers_words(server: Any) -> None:
    with Counting(server.base) as proxy:
        rollouts = draw(Sampler(lm=server.lm(proxy.base)), TASK.student(), {"question": "~" * 600}, 4, key=0)
    assert len(proxy.exchanges) == 1  # no n would help
    assert all(r.error and "maximum context length is 512 tokens" in str(r.failure) for r in rollouts)


def test_an_unknown_model_ends_the_run_at_once(server: Any) -> None:
    lm = server.lm()
    lm = dspy.LM("hosted_vllm/another", **{k: v for k, v in lm.kwargs.items() if v is not None}, cache=False)
    with dspy.context(lm=lm), pytest.raises(LMRefused, match="`another` does not exist"):
        optimizer().compile(TASK.student(), trainset=TASK.train(50, 0))
