"""`kill -9` while queries are rewritten: no rewrite that is on disk is paid for again, and the texts stay the same."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import RewriteRecord
from tests.support.killing import THREADS, Victim, rewrite_once
from tests.support.loopback import Loopback
from tests.support.worlds import adder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 and fork servers are POSIX")


def texts(log_dir: Path) -> dict[str, str | None]:
    """The rewrites on disk, by their keys."""
    path = log_dir / "ledger.jsonl"
    if not path.is_file() or not path.stat().st_size:
        return {}
    return {r.key: r.text for r in read_ledger(log_dir)[1] if isinstance(r, RewriteRecord)}


@pytest.mark.slow
def test_a_killed_run_repeats_no_rewrite(tmp_path: Path) -> None:
    def different(body: dict[str, Any], i: int) -> str:
        return f"In other words, number {i}: {body['messages'][-1]['content'].splitlines()[-1]}"

    settings = {"api_key": "sk-x", "cache": False}
    result, known = tmp_path / "result.json", dict[str, str | None]()
    with Loopback(adder, latency=0.02) as server, Loopback(different, latency=0.05) as rewriter:
        args = {"api_base": server.base, **settings}, {"api_base": rewriter.base, **settings}
        for kill_at in (5, 14, None):
            victim = Victim(*args, str(tmp_path / "run"), str(result), target=rewrite_once)
            if kill_at is None:
                assert victim.wait() == 0
            else:
                while victim.alive and rewriter.requests < kill_at:
                    time.sleep(0.002)
                victim.kill()
            found = texts(tmp_path / "run")
            assert {key: found[key] for key in known} == known
            known = found
        asked = Counter(body["messages"][0]["content"] for body in rewriter.bodies)
    assert result.exists() and len(known) == len(asked) <= 30
    assert sum(asked.values()) - len(asked) <= 2 * THREADS  # only those in flight when it was killed
