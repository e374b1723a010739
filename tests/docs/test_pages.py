"""Every code block of the docs runs, and every output that is shown is the one that is printed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from tests.docs.stand_in import stand_in
from tests.support.loopback import Loopback

pytest.importorskip("sybil")

from tests.docs.blocks import ROOT, run_page, skips

START = ROOT / "docs" / "how-to" / "index.md"
PAGES = [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if path != START and "```" in path.read_text(encoding="utf-8")
]
NEEDED = {
    "docs/how-to/deploy-with-fastapi.md": ("fastapi",),
    "docs/how-to/langchain.md": ("langchain_core",),
    "docs/how-to/mlflow.md": ("mlflow", "wandb"),
    "docs/how-to/read-the-results.md": ("matplotlib", "pandas", "plotly"),
    "docs/how-to/simulate.md": ("matplotlib",),
    "docs/reference/candidates.md": ("optuna",),
    "docs/reference/command-line.md": ("plotly",),
    "docs/tutorial.md": ("fastapi", "plotly"),
}
ALONE = {"docs/tutorial.md", "docs/index.md"}  # pages that begin by themselves


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with stand_in() as running:
        yield running


@pytest.fixture
def names(server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Make a folder and an environment of its own for a page, and undo what it configures."""
    before = dict(dspy.settings.copy())
    monkeypatch.chdir(tmp_path)
    for key in ("OPENAI_API_KEY", "HOSTED_VLLM_API_KEY", "LITELLM_MASTER_KEY"):
        monkeypatch.setenv(key, "none")
    monkeypatch.setenv("OPENAI_API_BASE", server.base)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    hosts = ("localhost:8000", "localhost:8001", "localhost:4000", "127.0.0.1:4000", "gpu1:8000", "gpu2:8000")
    there = server.base.removeprefix("http://").removesuffix("/v1")
    yield {" addresses": {f"http://{host}": f"http://{there}" for host in hosts}}
    dspy.configure(**before)


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning:mlflow.*")
@pytest.mark.parametrize("path", PAGES, ids=name)
def test_the_blocks_of_a_page_run(path: Path, names: dict[str, Any]) -> None:
    for package in NEEDED.get(name(path), ()):
        pytest.importorskip(package)
    if name(path) not in ALONE:
        names = run_page(START, names)
    run_page(path, names)


@pytest.mark.extra
def test_the_start_of_each_page_runs(names: dict[str, Any]) -> None:
    assert run_page(START, names)["train"][0].question


def test_few_blocks_are_left_out_and_each_has_a_reason() -> None:
    reasons = [reason for path in PAGES for reason in skips(path)]
    assert all(len(reason) > 10 for reason in reasons), reasons
    assert len(reasons) < 10, reasons
