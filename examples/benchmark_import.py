"""Seconds that `import iapo_dspy` takes beside `import dspy`, each in fresh processes that take turns.

    python examples/benchmark_import.py

Prints the median of each. `from iapo_dspy import IAPO` imports what a compilation needs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = {
    "import dspy": "import dspy",
    "import iapo_dspy": "import dspy, iapo_dspy",
    "from iapo_dspy import IAPO": "import dspy; from iapo_dspy import IAPO",
}
TURNS = 7


def seconds(code: str) -> float:
    """The processor seconds of one fresh process, which other work on the machine hardly changes."""
    timed = f"{code}; import resource as r; u = r.getrusage(r.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"
    done = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Take turns, and print the medians."""
    found: dict[str, list[float]] = {name: [] for name in CODE}
    for _ in range(TURNS + 1):
        for name, code in CODE.items():
            found[name].append(seconds(code))
    medians = {name: statistics.median(times[1:]) for name, times in found.items()}  # the first ones compile bytecode
    for name, median in medians.items():
        print(f"{name:<28}{median:6.2f} s   {median - medians['import dspy']:+.2f} s")


if __name__ == "__main__":
    main()
