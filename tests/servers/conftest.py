"""Real servers, opt-in: `python -m pytest -m server tests/servers`; docs/how-to/real-servers.md has the commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))  # the servers are started as real_servers.py does

OPT_IN = "needs a real server: python -m pytest -m server tests/servers (docs/how-to/real-servers.md)"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "server" in str(config.getoption("-m")).split():
        return
    for item in items:
        if item.get_closest_marker("server"):
            item.add_marker(pytest.mark.skip(reason=OPT_IN))


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The server of the module's `KIND`; skips where it is not installed."""
    from local_servers import KINDS, Server, ServerFailed

    kind = KINDS[request.module.KIND]
    try:
        kind.program()
    except ServerFailed as missing:
        pytest.skip(str(missing))
    if kind.name == "llama-cpp":
        pytest.importorskip("gguf", reason="llama-cpp: python -m pip install gguf")
    with Server(kind, tmp_path_factory.mktemp(kind.name), getattr(request.module, "OPTIONS", ())) as running:
        yield running


@pytest.fixture(scope="module")
def run(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Compile, save, load in a fresh process, run: once a module, counted by a proxy in front of the server."""
    from tests.servers.paths import run_counted

    return run_counted(server, tmp_path_factory.mktemp("run"))
