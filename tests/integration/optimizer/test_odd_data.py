"""Data that JSON does not have: whatever a run accepts without a ledger, it accepts with one, and resumes."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pydantic
import pytest

from iapo_dspy.sampling.ledger.digests import digest
from iapo_dspy.sampling.ledger.ledger import Ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import CAREFUL, QUICK, adder, questions, student

optimizer = optimizers(budget=24, max_n=2, candidates=[QUICK, CAREFUL], stopping=None)


class Doc(pydantic.BaseModel):
    """A model with a field of any kind."""

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    text: str
    extra: Any = None


@dataclasses.dataclass
class Page:
    """A dataclass around anything."""

    extra: Any


class Colour(enum.Enum):
    """An enum without a type."""

    RED = object()
    BLUE = object()


class Plain:
    """An object without a repr of its own."""

    def __init__(self) -> None:
        self.size = 3


def endless() -> list[Any]:
    found: list[Any] = [1]
    found.append(found)
    return found


ODD: dict[str, Any] = {
    "array in a model": Doc(text="t", extra=np.arange(3.0)),
    "bytes in a model": Doc(text="t", extra=b"\xff\xd8"),
    "function in a model": Doc(text="t", extra=len),
    "set in a model": Doc(text="t", extra={"a", "b", "c"}),
    "model in a dataclass": Page(extra=Doc(text="t", extra=b"\xff")),
    "set": {"a", "b", "c"},
    "array": np.arange(3.0),
    "large array": np.arange(5_000),
    "objects in an array": np.array([{"a": 1}, None], dtype=object),
    "bytes": b"\xff\xd8",
    "date": datetime.datetime(2024, 1, 2),
    "enum": Colour.RED,
    "object": Plain(),
    "itself": endless(),
    "half a pair": "\ud83d",
}


class Reads(dspy.Module):
    """Takes an input that no LM sees, and returns it beside the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str, odd: Any) -> dspy.Prediction:
        return dspy.Prediction(answer=self.ask(question=question).answer, odd=odd)


@pytest.mark.parametrize("kind", ODD)
def test_inputs_and_outputs_that_json_does_not_have_are_kept_and_resumed(kind: str, tmp_path: Path) -> None:
    train = [dspy.Example(**e, odd=ODD[kind]).with_inputs("question", "odd") for e in questions(4)]
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        first = optimizer(log_dir=tmp_path).compile(Reads(), trainset=train)
        assert first.detailed_results.failures.errors == 0
        requests = server.requests
        again = optimizer(log_dir=tmp_path).compile(Reads(), trainset=train)
        assert server.requests == requests
        assert again.policy.ready.arms == first.policy.ready.arms
        other = [dspy.Example(**e, odd="other").with_inputs("question", "odd") for e in questions(4)]
        optimizer(log_dir=tmp_path).compile(Reads(), trainset=other)
        assert server.requests > requests, "these are other queries"


def test_half_a_surrogate_pair_in_a_completion_is_kept_as_it_is(tmp_path: Path) -> None:
    def cut(body: dict[str, Any], i: int) -> str:
        return chat(answer="\ud83d ok") if i % 4 == 0 else adder(body, i)

    with Loopback(cut) as server, dspy.context(lm=server.lm(seed=1)):
        optimizer(log_dir=tmp_path).compile(student(), trainset=questions(4))
        requests = server.requests
        optimizer(log_dir=tmp_path).compile(student(), trainset=questions(4))
        assert server.requests == requests
    text = (tmp_path / "ledger.jsonl").read_bytes().decode()  # UTF-8 as any reader takes it
    assert "\\ud83d" in text


def test_a_ledger_gives_back_half_a_pair(tmp_path: Path) -> None:
    record = CompletionRecord(prompt="p", query="q", draw=0, first=0, text="a\ud83d", fields={"x": "\udc00"})
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.append(record)
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        found = ledger.completions(("p", "q"), [0])[0]
    assert (found.text, found.fields) == (record.text, record.fields)


def test_the_identity_of_data_is_the_same_in_every_process_and_tells_values_apart() -> None:
    script = (
        "import json; from iapo_dspy.sampling.ledger.digests import digest; "
        "from tests.integration.optimizer.test_odd_data import ODD; "
        "print(json.dumps({k: digest(v) for k, v in ODD.items()}))"
    )
    here = {kind: digest(value) for kind, value in ODD.items()}
    root = str(Path(__file__).parents[3])
    settings = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", script], env=settings, cwd=root, capture_output=True, check=True)
    assert json.loads(done.stdout) == here
    assert len(set(here.values())) == len(here)
    large = np.arange(5_000)
    large[2_500] = 0  # a repr does not show it
    assert digest(large) != here["large array"]
    assert digest(Colour.BLUE) != here["enum"]
    assert digest(Doc(text="t", extra=np.arange(4.0))) != here["array in a model"]
