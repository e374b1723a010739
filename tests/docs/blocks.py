"""The code blocks of a page: Python and shell ones run in their order, and blocks of text are compared with the output.

A page is run by Sybil. Blocks of one page share their names. A ``text`` block stands for what the block before it
printed, and a ``log`` block for what it wrote on the standard error; ``...`` in them stands for any text. A comment
``<!-- skip: next, "reason" -->`` leaves the next block out.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from inspect import CO_COROUTINE
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from iapo_dspy.command_line.main import iapo

ROOT = Path(__file__).parents[2]
OWN = re.compile(r"iapo |python -m iapo_dspy")  # commands of this package
PRINTED, LOGGED = " printed", " logged"  # names that no page can take


def run_python(example: Example) -> None:
    """Run a block in the page's names, with `await` at the top, and keep what it prints."""
    source = example.parsed
    for real, stand_in in example.namespace.get(" addresses", {}).items():
        source = source.replace(real, stand_in)
    tree = ast.parse(source, example.path)
    ast.increment_lineno(tree, example.line + example.parsed.line_offset)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(tree, example.path, "exec", flags=flags, dont_inherit=True)  # the imports from the future, above
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.redirect_stderr(io.StringIO()) as logged,
    ):
        if code.co_flags & CO_COROUTINE:
            asyncio.run(eval(code, example.namespace))
        else:
            exec(code, example.namespace)
    example.namespace.update({PRINTED: printed.getvalue(), LOGGED: logged.getvalue()})


def run_shell(example: Example) -> None:
    """Run the commands of this package, one a line; others are for the reader."""
    printed = []
    for line in example.parsed.replace("\\\n", " ").splitlines():
        command = line.partition("  #")[0].removeprefix("$ ").strip()
        if not OWN.match(command):
            continue
        first, *rest = shlex.split(command)
        if first == "iapo":
            ran = CliRunner().invoke(iapo, rest, prog_name="iapo")
            status, output = ran.exit_code, ran.output
        else:
            done = subprocess.run([sys.executable, *rest], capture_output=True, text=True, timeout=200)
            status, output = done.returncode, done.stdout
        assert status == 0, f"{command}\n{output}"
        printed.append(output)
    example.namespace[PRINTED] = "".join(printed)
    example.namespace.pop(LOGGED, None)


def compare(example: Example, stream: str = PRINTED) -> str | None:
    """Compare a block of text with what the block before it printed, or a log with its standard error."""
    expected = example.parsed.rstrip() + "\n"
    printed = example.namespace.get(stream)
    if printed is None:
        return f"{example.path}:{example.line}: no block that prints stands before this text"
    shown = "\n".join(line.rstrip() for line in printed.splitlines()).rstrip() + "\n"
    if doctest.OutputChecker().check_output(expected, shown, doctest.ELLIPSIS):
        return None
    return f"{example.path}:{example.line}: shown\n{expected}\nand printed\n{shown}"


PAGES = Sybil(
    parsers=[
        CodeBlockParser(language="python", evaluator=run_python),
        CodeBlockParser(language="bash", evaluator=run_shell),
        CodeBlockParser(language="text", evaluator=compare),
        CodeBlockParser(language="log", evaluator=partial(compare, stream=LOGGED)),
        SkipParser(),
    ],
    path=str(ROOT),
    pattern="**/*.md",
)


def run_page(path: Path, names: Mapping[str, Any]) -> dict[str, Any]:
    """Run the blocks of a page with these names at hand, and return all names.

    Raises:
        SybilFailure: A text is not what was printed; what a block raises goes through.
    """
    document: Document = PAGES.parse(path)
    document.namespace.update(names)
    for example in document.examples():
        example.evaluate()
    return document.namespace


def skips(path: Path) -> Iterator[str]:
    """The reasons of the blocks that a page leaves out."""
    yield from re.findall(r'<!--+ *skip: next,? *"?([^">]*)"? *-*-->', path.read_text(encoding="utf-8"))
