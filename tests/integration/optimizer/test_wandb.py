"""Weights & Biases, with the real package and a run on disk."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy.callbacks import WandbCallback
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.events import Event, PolicyChosen
from iapo_dspy.proposers import Proposed
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import CAREFUL, QUICK, adder, questions, student

optimizer = optimizers(budget=120, candidates=[QUICK, CAREFUL])


class Writer:
    """Writes one instruction."""

    def propose(self, evidence: Any, n: int) -> Any:
        return [Proposed(candidate={"self": f"{CAREFUL} And check."}, by="writer")]


@pytest.mark.extra
@pytest.mark.slow
def test_a_run_is_logged_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    seen: dict[str, Any] = {}

    def look(event: Event) -> None:
        if isinstance(event, PolicyChosen):
            seen.update(summary=dict(wandb.run.summary), config=dict(wandb.run.config))

    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        logged = WandbCallback(project="sums", mode="offline", dir=tmp_path)  # the package reads WANDB_DIR only once
        compiler = optimizer(callbacks=[logged, look], proposers=Writer())
        compiler.compile(student(), trainset=questions(12))
    assert wandb.run is None  # it was finished
    assert seen["config"]["max_n"] == 4 and seen["config"]["seed"] == 0
    assert seen["summary"]["round"] >= 1 and "round/quality/n" in seen["summary"]
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 30.0  # a process of the package's own writes it
    while b"spent/completions" not in (data := file.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"round/quality/n" in data and b"spent/completions" in data and b"sk-loopback-secret" not in data
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/table/*.json"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from iapo_dspy import callbacks

    monkeypatch.setitem(sys.modules, name, None)
    kind = {"wandb": callbacks.WandbCallback, "mlflow": callbacks.MLflowCallback}[name]
    with pytest.raises(ConfigurationError, match=rf"pip install 'iapo_dspy\[{name}\]'"):
        kind()
