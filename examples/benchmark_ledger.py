"""Measure how long it takes to open a ledger, and how much memory that takes (a benchmark, minutes for the writing).

    python examples/benchmark_ledger.py [--completions 500000] [--size 8] [--text 300]

The script writes a ledger as a run does, pull after pull: what was spent, the pull's completions, and a score for each
of them. Then a fresh process opens it, looks up pulls and scores, and prints seconds and peak memory.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from iapo_dspy.sampling.ledger.ledger import Ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord, Record, ScoreRecord, SpentRecord
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.usage import Usage

WIDE = 500  # pulls of a round
LOOKED_UP = 1000


def write(log_dir: Path, completions: int, size: int, text: int) -> None:
    """Write the ledger of a run that drew so many completions, `size` a pull, of `text` characters each."""
    words = ("the number is even and then we add seven, " * (text // 40 + 1))[:text]
    with Ledger.open(log_dir, fingerprint="benchmark") as ledger:
        for pull in range(completions // size):
            key = divmod(pull, WIDE)
            names = range(size)
            records: list[Record] = [SpentRecord(spent=Spent(requests=pull + 1, completion_tokens=80 * size * pull))]
            records += [
                CompletionRecord(
                    round=key[0],
                    position=key[1],
                    index=i,
                    prompt=pull % 10,
                    query=key[1],
                    text=f"{words}[[ ## answer ## ]]\n{pull % 7}",
                    fields={"answer": str(pull % 7)},
                    usage=Usage(prompt_tokens=20.0, completion_tokens=80.0, usd=0.0001, shared_tokens=20.0),
                    seed=pull * size + i,
                )
                for i in names
            ]
            ledger.extend(records)
            ledger.extend(
                [ScoreRecord(key=f"{key[0]}/{key[1]}/{i}", scorer="s" * 16, answer="1", scores=[1.0]) for i in names]
            )


def measure(log_dir: Path) -> dict[str, float]:
    """Open a ledger in this process, and look up some of its records."""
    before = _peak_mb()
    start, cpu = time.perf_counter(), time.process_time()
    with Ledger.open(log_dir, fingerprint="benchmark") as ledger:
        opened, worked = time.perf_counter() - start, time.process_time() - cpu
        found = len(ledger.stored)
        drawn = [record.pull for record in ledger.completions((0, 0))]
        rng, pulls = random.Random(0), found // len(drawn)
        start = time.perf_counter()
        for pull in (rng.randrange(pulls) for _ in range(LOOKED_UP)):
            key = divmod(pull, WIDE)
            assert len(ledger.completions(key)) == len(drawn) and ledger.score(f"{key[0]}/{key[1]}/0") is not None
        looked_up = (time.perf_counter() - start) / LOOKED_UP
    return {
        "completions": found,
        "seconds": round(opened, 2),
        "cpu_seconds": round(worked, 2),
        "peak_mb": round(_peak_mb(), 1),
        "peak_mb_before": round(before, 1),
        "ms_per_pull_looked_up": round(1000 * looked_up, 3),
    }


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Write a ledger, and measure in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--completions", type=int, default=500_000)
    parser.add_argument("--size", type=int, default=8, help="completions of a pull")
    parser.add_argument("--text", type=int, default=300, help="characters of a completion")
    parser.add_argument("--open", type=Path, help="only open this log_dir, which the script wrote")
    given = parser.parse_args()
    if given.open is not None:
        print(json.dumps(measure(given.open)))
        return
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write(Path(folder), given.completions, given.size, given.text)
        megabytes = (Path(folder) / "ledger.jsonl").stat().st_size / 1e6
        print(f"written: {megabytes:.0f} MB in {time.perf_counter() - start:.1f} s")
        done = subprocess.run([sys.executable, __file__, "--open", folder], check=True, capture_output=True, text=True)
        for name, value in json.loads(done.stdout).items():
            print(f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {value:,}")


if __name__ == "__main__":
    main()
