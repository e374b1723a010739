"""Print the numbers of the README and the docs anew: finds the commands that stand beside them, and runs them.

    python examples/print_numbers.py --list
    python examples/print_numbers.py --only algorithm.md --file MATH_FILE=math.npz --file CQA_FILE=cqa.npz
    python examples/print_numbers.py

A command is what a page shows as `python examples/...` or `python -m iapo_dspy.simulation ...`, in the text or on a
line of its own. Words in capitals stand for recordings, which `--file` names; a command whose file is not given is not
run, and the script says so. All take many hours; `--only` chooses those whose page or command has the given text.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
START = r"(?:[A-Z_]+=\S+ )?python (?:examples/|-m iapo_dspy\.(?:simulation|demo) )"
COMMAND = re.compile(rf"`({START}[^`]+)`|^(?: {{4}}|\$ )?({START}(?:.*\\\n)*.*)$", re.MULTILINE)
FILE = re.compile(r"\b[A-Z0-9]+_FILE\b|\b(?:FILE|RECORDING|ENVIRONMENTS|DIR)\b")
OTHER = ("print_numbers.py", "real_servers.py")  # this one, and the one that starts servers


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that a page names.

    Attributes:
        page: The page, from the root of the repository.
        text: The command on one line, without a comment.
    """

    page: str
    text: str

    @property
    def script(self) -> Path:
        """The script, or the main module, that it runs."""
        words = shlex.split(self.text.partition("python ")[2])
        return ROOT / (f"{words[1].replace('.', '/')}/__main__.py" if words[0] == "-m" else words[0])

    def missing(self, files: Mapping[str, str]) -> list[str]:
        """Names of files that it needs and that are not among these."""
        return [name for name in FILE.findall(self.text) if name not in files]

    def run(self, files: Mapping[str, str]) -> int:
        """Run it with these files, and return its exit status."""
        text = FILE.sub(lambda found: shlex.quote(files[found.group()]), self.text)
        before, _, arguments = text.partition("python ")
        settings = dict(each.split("=", 1) for each in before.split())
        done = subprocess.run([sys.executable, *shlex.split(arguments)], cwd=ROOT, env={**os.environ, **settings})
        return done.returncode


def commands_of(pages: Sequence[Path]) -> Iterator[Command]:
    """Find the commands of some pages, each once a page."""
    for page in pages:
        found = (quoted or line for quoted, line in COMMAND.findall(page.read_text(encoding="utf-8")))
        texts = dict.fromkeys(" ".join(each.partition("  #")[0].replace("\\\n", " ").split()) for each in found)
        for text in texts:
            command = Command(page=page.relative_to(ROOT).as_posix(), text=text)
            if command.script.name not in OTHER:
                yield command


def pages() -> list[Path]:
    """Return the README and the pages of the docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    """List or run the commands.

    Returns:
        0, or 1 where a command failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show the commands by page, and run nothing")
    parser.add_argument("--only", default="", help="part of a page's name or of a command")
    parser.add_argument("--file", action="append", default=[], metavar="NAME=PATH", help="a recording, by its word")
    asked = parser.parse_args()
    if wrong := [each for each in asked.file if "=" not in each]:
        parser.error(f"--file {wrong[0]}: give NAME=PATH, for example MATH_FILE=math.npz")
    files = {name: str(Path(path).resolve()) for name, path in (each.split("=", 1) for each in asked.file)}
    chosen = [each for each in commands_of(pages()) if asked.only in each.page or asked.only in each.text]
    done: dict[str, int] = {}
    for each in chosen:
        if asked.list:
            print(f"{each.page}: {each.text}")
        elif missing := each.missing(files):
            print(f"\n== {each.page}: {each.text}\nnot run: give --file {missing[0]}=PATH", flush=True)
        elif each.text not in done:  # two pages may show the numbers of one command
            print(f"\n== {each.page}: {each.text}", flush=True)
            done[each.text] = each.run(files)
    failed = [text for text, status in done.items() if status]
    for text in failed:
        print(f"failed: {text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
