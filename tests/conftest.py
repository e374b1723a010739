"""No test goes to the network: LiteLLM's price table is the one it ships with."""

import logging
import os
import signal

import anyio.from_thread  # noqa: F401 - pytest rewrites it when it is imported, which no other thread may disturb
import pytest
from hypothesis import settings

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
settings.register_profile("any machine", deadline=None)  # a busy machine is slow now and then
settings.load_profile("any machine")


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """Let Ctrl-C be tried where it is ignored, as in jobs that a shell runs in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _left_workers() -> None:
    """Keep a task of LiteLLM out of the log of tests: it is told of whenever a loop that has ended is collected."""
    logging.getLogger("asyncio").addFilter(lambda record: "LoggingWorker" not in record.getMessage())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse tests that are named by an address: two processes would collect different ones."""
    named = [item.nodeid for item in items if " at 0x" in item.nodeid]
    assert not named, f"give these cases ids of their own: {named[:3]}"
