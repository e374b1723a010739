"""Measure the size of ledgers, and how long it takes to write and to open them (a benchmark of some minutes).

    python examples/benchmark_ledger.py [--completions 2000 20000 200000] [--size 8] [--text 300]

The script writes a ledger as a run does, pull after pull: what was spent, the pull's completions, and a score for each
of them. Then a fresh process opens it as a new run does, looks up pulls and scores, and prints seconds and peak memory.
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
from typing import Any

from iapo_dspy.sampling.ledger.ledger import Ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord, Record, ScoreRecord, SpentRecord
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.usage import Usage

PROMPTS, QUERIES = 10, 500
LOOKED_UP = 1000


def cell_of(pull: int) -> tuple[str, str]:
    """Return the cell of a pull: prompts take turns on each query, and queries come again."""
    return f"{pull % PROMPTS:016x}", f"{pull // PROMPTS % QUERIES:016x}"


def write(log_dir: Path, completions: int, size: int, text: int) -> None:
    """Write the ledger of a run that drew so many completions, `size` a pull, of `text` characters each."""
    words = ("the number is even and then we add seven, " * (text // 40 + 1))[:text]
    with Ledger.open(log_dir, fingerprint="benchmark") as ledger:
        for pull in range(completions // size):
            prompt, query = cell_of(pull)
            first = pull // (PROMPTS * QUERIES) * size
            draws = range(first, first + size)
            records: list[Record] = [SpentRecord(spent=Spent(requests=pull + 1, completion_tokens=80 * size * pull))]
            records += [
                CompletionRecord(
                    prompt=prompt,
                    query=query,
                    draw=draw,
                    first=first,
                    text=f"{words}[[ ## answer ## ]]\n{pull % 7}",
                    fields={"answer": str(pull % 7)},
                    usage=Usage(prompt_tokens=20.0, completion_tokens=80.0, usd=0.0001, shared_tokens=20.0),
                    seed=pull * size,
                )
                for draw in draws
            ]
            ledger.extend(records)
            ledger.extend(
                [ScoreRecord(key=f"{prompt}/{query}/{d}", scorer="s" * 33, answer="1", scores=[1.0]) for d in draws]
            )


def measure(log_dir: Path) -> dict[str, Any]:
    """Open a ledger in this process as another run does, and look up some of its records."""
    before = _peak_mb()
    start, cpu = time.perf_counter(), time.process_time()
    with Ledger.open(log_dir, fingerprint="another run") as ledger:
        opened, worked = time.perf_counter() - start, time.process_time() - cpu
        cells = sorted(ledger.known)
        rng = random.Random(0)
        start = time.perf_counter()
        for _ in range(LOOKED_UP):
            prompt, query = cells[rng.randrange(len(cells))]
            draws = ledger.known[prompt, query][:8]
            assert len(ledger.completions((prompt, query), draws)) == len(draws)
            assert ledger.score(f"{prompt}/{query}/{draws[0]}", "s" * 33) is not None
        looked_up = (time.perf_counter() - start) / LOOKED_UP
        found = sum(map(len, ledger.known.values()))
    return {
        "completions": found,
        "seconds_to_open": round(opened, 2),
        "cpu_seconds_to_open": round(worked, 2),
        "peak_mb": round(_peak_mb(), 1),
        "peak_mb_before": round(before, 1),
        "ms_per_pull_looked_up": round(1000 * looked_up, 3),
    }


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Write ledgers, and measure each in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--completions", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--size", type=int, default=8, help="completions of a pull")
    parser.add_argument("--text", type=int, default=300, help="characters of a completion")
    parser.add_argument("--open", type=Path, help="only open this log_dir, which the script wrote")
    given = parser.parse_args()
    if given.open is not None:
        print(json.dumps(measure(given.open)))
        return
    for completions in given.completions:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            write(Path(folder), completions, given.size, given.text)
            took = time.perf_counter() - start
            megabytes = (Path(folder) / "ledger.jsonl").stat().st_size / 1e6
            command = [sys.executable, __file__, "--open", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        facts = {"mb": round(megabytes, 1), "seconds_to_write": round(took, 1), **json.loads(done.stdout)}
        print(", ".join(f"{name} {value:,}" for name, value in facts.items()), flush=True)


if __name__ == "__main__":
    main()
