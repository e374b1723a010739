"""The whole path on llama.cpp's llama-server."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

from iapo_dspy import PlainTextAdapter
from iapo_dspy.demo.tasks import addition_task
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.servers.paths import Run, WholePath, true_tokens
from tests.support.counting import Counting
from tests.support.sampling import draw

pytestmark = pytest.mark.server
KIND = "llama-cpp"
STUDENT = addition_task().student
QUESTION = {"question": "What is 358 + 467?"}


class TestWholePath(WholePath):
    tokens_within = 0.05  # recounted by a tokenizer that is not the model's

    def test_one_request_a_pull(self, run: Run) -> None:
        pulls = Counter(r.pull for r in run.records)
        assert len(run.exchanges) == run.report.spent.requests == len(pulls)
        assert Counter(e.body.get("n", 1) for e in run.exchanges) == Counter(pulls.values())

    def test_the_servers_own_sampling_defaults_are_off(self, run: Run) -> None:
        sent = {(e.body.get("top_k"), e.body.get("min_p"), e.body.get("top_p")) for e in run.exchanges}
        assert sent == {(0, 0.0, 1.0)}


def test_the_server_counts_one_choice_of_n(server: Any) -> None:
    """Why usage is checked. Where this fails, llama.cpp has mended it."""
    with Counting(server.base) as proxy:
        draw(Sampler(lm=server.lm(proxy.base)), STUDENT(), QUESTION, 8, key=0)
    (exchange,) = proxy.exchanges
    assert exchange.completion_tokens * 8 == pytest.approx(true_tokens((exchange,)), rel=0.5)


def test_n_beyond_the_slots_is_asked_for_in_parts(server: Any, tmp_path: Path) -> None:
    from local_servers import Server

    few = Server(server.kind, tmp_path, ["--parallel", "8", "--ctx-size", "4096"])
    with few, Counting(few.base) as proxy:
        sampler = Sampler(lm=few.lm(proxy.base))
        for m in (4, 32, 32):
            rollouts = draw(sampler, STUDENT(), QUESTION, m, key=m)
            assert sum(r.prediction is not None for r in rollouts) >= m - 1
    assert proxy.exchanges[1].status == 400 and proxy.exchanges[1].body["n"] == 32
    assert all(e.status == 200 and 4 <= e.body["n"] <= 8 for e in proxy.exchanges[-4:])
    assert sum(len(e.choices) for e in proxy.exchanges) == 68


def test_a_grammar_allows_nothing_but_labels(server: Any) -> None:
    signature = dspy.Signature({"text": (str, dspy.InputField()), "kind": (Literal["cat", "dog"], dspy.OutputField())})
    with Counting(server.base) as proxy, dspy.context(adapter=PlainTextAdapter(constrain="grammar")):
        rollouts = draw(Sampler(lm=server.lm(proxy.base)), dspy.Predict(signature), {"text": "It barks."}, 8, key=0)
    assert all(r.prediction is not None and r.prediction.kind in ("cat", "dog") for r in rollouts)
    (exchange,) = proxy.exchanges
    assert exchange.body["n"] == 8 and exchange.body["top_k"] == 0  # the LM's own settings stay
    assert {text for text, _ in exchange.choices} <= {"cat", "dog"}
