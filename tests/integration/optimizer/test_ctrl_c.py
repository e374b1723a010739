"""Ctrl-C: one line says what is kept and how to go on, and the traceback ends at the user's call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import Preference
from iapo_dspy.optimizer import drawing
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.worlds import adder, questions, student

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = f"""
import sys, dspy
sys.path.insert(0, {str(ROOT)!r})
from iapo_dspy import IAPO, Execution, MajorityVote, Preference, Search
from iapo_dspy.proposers import Proposed
from tests.support.worlds import INSTRUCTIONS, exact, questions

class Writer:
    def propose(self, evidence, n):
        return [Proposed(candidate={{"self": dspy.settings.lm("Write.")[0]}}, by="writer")]

def main():
    dspy.configure(lm=dspy.LM("openai/fake", api_base=sys.argv[1], api_key="k", cache=False, seed=1))
    search = Search(proposers=Writer()) if "write" in sys.argv else Search()
    IAPO(metric=exact, strategy=MajorityVote("answer"), preferences=[Preference("q")], max_n=8, budget=300,
         candidates=INSTRUCTIONS, log_dir=sys.argv[2], search=search, execution=Execution(progress=True),
         num_threads=4).compile(dspy.Predict("question -> answer"), trainset=questions(30))

main()
"""


class Slow(Loopback):
    """Waits before it answers in the phase that is to be stopped."""

    def __init__(self, phase: str) -> None:
        super().__init__(self.answer)
        self.phase, self.in_phase, self.resumed = phase, threading.Event(), threading.Event()

    def answer(self, body: dict[str, Any], i: int) -> str:
        writes = "Write." in str(body["messages"])
        if not self.resumed.is_set() and (writes if self.phase == "write" else self.requests >= 12):
            self.in_phase.set()
            self.resumed.wait(20)
        return "Add slowly." if writes else adder(body, i)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("phase", ["pull", "write"])
def test_ctrl_c_stops_soon_with_one_line_and_the_run_can_go_on(phase: str, tmp_path: Path) -> None:
    with Slow(phase) as server:
        command = [sys.executable, "-W", "always", "-c", SCRIPT, server.base, str(tmp_path), phase]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None and server.in_phase.wait(60)
            process.send_signal(signal.SIGINT)
            start, took, lines = time.monotonic(), 60.0, []
            for line in process.stderr:
                lines.append(line.rstrip())
                if "Stopped by the user" in line:
                    took = time.monotonic() - start
            server.resumed.set()
        said = [line for line in lines if "Stopped by the user" in line]
        assert said == [said[0]] and f"They are kept in {tmp_path}; compile again to go on." in said[0]
        assert took < 1.0
        assert process.returncode != 0 and lines[-1] == "KeyboardInterrupt"
        ours = [line for line in lines if "iapo_dspy" in line and line.lstrip().startswith("File ")]
        assert len(ours) == 1 and ours[0].endswith("in compile")  # the user's own call
        assert not [line for line in lines if "never awaited" in line or "was destroyed" in line]
        stored = (tmp_path / "ledger.jsonl").read_text().count('"kind":"completion"')
        if phase == "write":
            return
        assert stored > 0
        before = server.completions
        done = subprocess.run(command, timeout=120, check=False, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0 and "restored" in done.stderr, done.stderr
        total = (tmp_path / "ledger.jsonl").read_text().count('"kind":"completion"')
        assert server.completions - before == total - stored


def test_the_line_also_comes_before_the_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The signal may come while the run looks at what its ledger has."""

    def interrupted(plan: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(drawing, "takes_all", interrupted)
    with Loopback(adder) as server, dspy.context(lm=server.lm()), pytest.raises(KeyboardInterrupt):
        optimizers(log_dir=tmp_path / "run")(Preference("quality")).compile(student(), trainset=questions(5))
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        f"Stopped by the user after 0 completions. They are kept in {tmp_path / 'run'}; compile again to go on."
    ]
