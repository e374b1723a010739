"""Command line for ledgers of finished runs: `python -m iapo_dspy.environments --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from iapo_dspy.environments.recorded.files import save
from iapo_dspy.environments.recorded.from_ledger import recording_of
from iapo_dspy.errors import IAPOError
from iapo_dspy.sampling.ledger.export import export


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    asked = _parser().parse_args(arguments)
    try:
        if asked.command == "export":
            rows = export(asked.log_dir, asked.path)
            print(f"{asked.path}: {rows} completions")
        else:
            found = recording_of(asked.log_dir, prompts=asked.prompts, common_queries=asked.common_queries)
            save(found, asked.path)
            print(f"{asked.path}: {found.n_prompts} prompts, {found.n_queries} queries")
    except (IAPOError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m iapo_dspy.environments", description="Use a run's ledger.")
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("export", help="one Parquet row per completion, with its scores")
    record = commands.add_parser("record", help="a recorded environment (.npz or .parquet), to replay without an LM")
    for command in (table, record):
        command.add_argument("log_dir", type=Path, help="the run's log_dir")
        command.add_argument("path", type=Path, help="the file to write")
    record.add_argument("--prompts", type=int, nargs="+", help="indices of the prompts to keep (default: all)")
    record.add_argument(
        "--common-queries", action="store_true", help="keep only the queries that every kept prompt was asked"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
