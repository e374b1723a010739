"""SmolLM2 itself, fetched and served: `python -m pytest -m server tests/servers/test_local_model.py`.

The model stays in the cache folder of the user, so that only the first run downloads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import dspy
import pytest
from click.testing import CliRunner

from iapo_dspy.command_line.main import demo
from iapo_dspy.demo.local.fetching import SMOLLM2, fetched
from iapo_dspy.demo.local.llama_server import LlamaServer
from iapo_dspy.sampling.rollouts.sampler import Sampler
from tests.support.counting import Counting
from tests.support.sampling import draw

pytestmark = pytest.mark.server

Q8_0 = "0c1d3326cd9793cfb7296113c063dd5c24e2bd734b48ec1a3d01b7158eca9387"


@pytest.fixture(scope="module")
def server() -> Iterator[LlamaServer]:
    for name in ("gguf", "xllamacpp"):
        pytest.importorskip(name, reason=f'{name}: python -m pip install "iapo_dspy[local]"')
    with LlamaServer(fetched()) as running:
        yield running


def test_the_file_is_the_one_that_was_measured(server: LlamaServer) -> None:
    assert hashlib.sha256(fetched(SMOLLM2).read_bytes()).hexdigest() == Q8_0


def test_it_answers_in_words(server: LlamaServer) -> None:
    (answer,) = server.lm(max_tokens=40, temperature=0.0)("Tell me: what is the capital of France?")
    assert "Paris" in answer


def test_sixteen_completions_come_in_one_request_and_are_counted(server: LlamaServer) -> None:
    with Counting(server.api_base) as proxy:
        sampler = Sampler(lm=server.lm(api_base=proxy.base, max_tokens=24))
        rollouts = draw(sampler, dspy.Predict("question -> answer"), {"question": "Name an animal."}, 16, key=0)
    (exchange,) = proxy.exchanges
    assert exchange.status == 200 and len(exchange.choices) == len(rollouts) == 16
    assert len({text for text, _ in exchange.choices}) > 4


def test_the_demo_runs_on_it(server: LlamaServer, tmp_path: Path) -> None:
    """In small: which candidate is best is noise here, whether answers can be read is not."""
    path = tmp_path / "out.json"
    done = CliRunner().invoke(demo, ["--local-model", "--scale", "0.1", "--json", str(path)])
    assert done.exit_code == 0, done.output
    report = json.loads(path.read_text())["sentiment"]
    assert 0 < report["spent"]["completions"] <= 13 * 16
    assert all(row["n"] >= 1 and row["tokens_per_question"] > 1 for row in report["preferences"])
    student = [b["accuracy"] for b in report["baselines"] if b["name"] == "student as it is"]
    assert max(p["accuracy"] for p in report["preferences"]) > max(student)
