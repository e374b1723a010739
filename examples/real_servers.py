"""Compile, save, load in a fresh process and run, on a real server that this script starts and stops.

needs: one of vLLM, llama.cpp's llama-server or transformers[serving]; docs/how-to/real-servers.md has the commands

    python examples/real_servers.py vllm
    python examples/real_servers.py llama-cpp
    python examples/real_servers.py transformers
    python examples/real_servers.py export --out model     # the demo's language model, for a server of your own

The language model is the demo's: a fixture of a million parameters, and not evidence about large language models.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from local_servers import KINDS, MODEL, Server, ServerFailed, export_folder, export_gguf

from iapo_dspy import IAPO, Budget, CompiledProgram, Execution, MajorityVote, Preference
from iapo_dspy.demo.tasks import addition_task
from iapo_dspy.errors import AllCompletionsFailed
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.types import Arm

TASK = addition_task()
PREFERENCES = (Preference("quality", cost=0.0), Preference("balanced", cost=0.2), Preference("thrifty", cost=1.0))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm on the held-out questions.

    Attributes:
        preference: The preference that chose it.
        n: Completions per question.
        instruction: Its prompt.
        accuracy: Share of right answers.
        tokens: Mean output tokens per question, as the server counts them.
    """

    preference: str
    n: int
    instruction: str
    accuracy: float
    tokens: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results on one server.

    Attributes:
        chosen: The compiled program, a row per preference.
        single: The best single-shot prompt, asked once and at the largest N.
        spent: The spending of the compilation.
        seconds: Its wall-clock time.
        failures: Share of its completions that failed.
        calls_seconds: Wall-clock time of all calls on the held-out questions, in the fresh process.
        calls: Completions of those calls.
    """

    chosen: tuple[Row, ...]
    single: tuple[Row, ...]
    spent: Spent
    seconds: float
    failures: float
    calls_seconds: float
    calls: int


def end_to_end(
    server: Server, folder: Path, *, budget: Budget, max_n: int, heldout: int, api_base: str | None = None
) -> Report:
    """Compile with the server's LM, save, load in a fresh process and answer the held-out questions there.

    Args:
        server: A running server.
        folder: For the saved programs and the ledger.
        budget: Completions of the compilation.
        max_n: Largest N.
        heldout: Number of held-out questions.
        api_base: Another way to the server, such as a proxy in front of it.
    """
    api_base = api_base or server.base
    with dspy.context(lm=server.lm(api_base=api_base)):
        start = time.perf_counter()
        program = compiled(max_n, budget, log_dir=folder / "ledger")
        seconds = time.perf_counter() - start
        result = program.detailed_results
        program.save(folder / "program.json")
        # The way without this package: find the best prompt for a single answer, and then sample it.
        best = compiled(1, Budget(max((budget.completions or 0) // 8, 300))).solve("quality").prompt
    once, often = Preference("once", cost=1.0), Preference("at the largest N", cost=0.0)
    policy = dataclasses.replace(
        program.policy.ready, preferences=(once, often), arms=(Arm(best, 1), Arm(best, max_n)), default="once"
    )
    CompiledProgram(dspy.Predict(TASK.signature), MajorityVote("answer"), policy).save(folder / "single.json")
    start = time.perf_counter()
    chosen, single = (answer_in_a_fresh_process(server, folder / f, heldout, api_base) for f in FILES)
    return Report(
        chosen=chosen,
        single=single,
        spent=result.spent,
        seconds=seconds,
        failures=result.failures.total / max(result.failures.completions, 1),
        calls_seconds=time.perf_counter() - start,
        calls=heldout * sum(row.n for row in (*chosen, *single)),
    )


FILES = ("program.json", "single.json")


def compiled(max_n: int, budget: Budget, log_dir: Path | None = None) -> CompiledProgram:
    """Compile the demo's additions with the configured LM."""
    optimizer = IAPO(
        metric=TASK.metric,
        strategy=MajorityVote("answer"),
        preferences=PREFERENCES,
        max_n=max_n,
        budget=budget,
        candidates=TASK.instructions,
        log_dir=log_dir,
        execution=Execution(progress=False),
    )
    return optimizer.compile(dspy.Predict(TASK.signature), trainset=TASK.train(400, 0))


def answer_in_a_fresh_process(server: Server, path: Path, heldout: int, api_base: str) -> tuple[Row, ...]:
    """Load a saved program in a new Python process and answer the held-out questions there."""
    options = ["--kind", server.kind.name, "--model", str(server.model), "--api-base", api_base]
    options += [] if server.plain else ["--server-defaults"]
    command = [sys.executable, __file__, "answer", str(path), *options, "--heldout", str(heldout)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"The fresh process ended with {done.returncode}:\n{done.stderr}")
    return tuple(Row(**row) for row in json.loads(done.stdout.splitlines()[-1]))


async def answer(path: Path, heldout: int) -> list[Row]:
    """Load a saved program and answer the held-out questions with each of its preferences."""
    program = CompiledProgram(dspy.Predict(TASK.signature))
    program.load(path)
    rows = []
    for preference in program.preferences:
        examples = TASK.heldout(heldout, 0)
        calls = (program.acall(**e.inputs(), preference=preference.name) for e in examples)
        predictions = await asyncio.gather(*calls, return_exceptions=True)
        right, tokens = 0, 0.0
        for example, prediction in zip(examples, predictions, strict=True):
            if isinstance(prediction, AllCompletionsFailed):  # a missing answer is a wrong answer
                tokens += prediction.completion_tokens
            elif isinstance(prediction, BaseException):
                raise prediction
            else:
                right += TASK.metric(example, prediction)
                tokens += prediction.iapo.completion_tokens
        arm = program.solve(preference.name)
        rows.append(
            Row(
                preference=str(preference.name),
                n=arm.n,
                instruction=program.policy.programs.label(arm.prompt),
                accuracy=right / heldout,
                tokens=tokens / heldout,
            )
        )
    return rows


def show(report: Report, server: Server) -> None:
    """Print the report as a small table."""
    spent = report.spent
    print(
        f"{server.kind.name}: up after {server.seconds_to_start:.1f} s\n"
        f"compiled: {spent.completions:,} completions in {spent.requests:,} requests, {spent.tokens:,} tokens, "
        f"{report.seconds:.0f} s ({spent.completions / report.seconds:.0f} completions/s), "
        f"{report.failures:.1%} of them failed\n"
        f"saved, loaded in a fresh process, called there: {report.calls:,} completions, {report.calls_seconds:.0f} s\n"
    )
    print(f"{'on held-out questions':<42}{'N':>3}{'accuracy':>10}{'tokens':>8}  instruction")
    rows = [(f"chosen for {row.preference}", row) for row in report.chosen]
    rows += [(f"best single-shot prompt, {row.preference}", row) for row in report.single]
    for name, row in rows:
        print(f"{name:<42}{row.n:>3}{row.accuracy:>10.3f}{row.tokens:>8.0f}  {row.instruction}")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the options and run one server, or export the model.

    Returns:
        The exit status: 0, or 1 where the server is not installed or does not come up.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write the demo's language model as a Hugging Face folder, or as GGUF")
    export.add_argument("--out", type=Path, required=True)
    export.add_argument("--gguf", action="store_true", help="for llama.cpp; needs the package gguf")
    for kind in KINDS.values():
        run = commands.add_parser(kind.name, help=f"found by {kind.variable}, or where this Python or PATH has it")
        run.add_argument("--budget", type=int, default=8000, help="completions of the compilation (default: 8000)")
        run.add_argument("--max-n", type=int, default=32)
        run.add_argument("--heldout", type=int, default=100, help="held-out questions (default: 100)")
        run.add_argument("--option", action="append", default=[], help="one more argument for the server; repeatable")
        run.add_argument("--server-defaults", action="store_true", help="leave the server's sampling defaults on")
        run.add_argument("--json", type=Path, metavar="PATH", help="write the report there")
    fresh = commands.add_parser("answer", help="(used by the others) answer with a saved program")
    fresh.add_argument("program", type=Path)
    fresh.add_argument("--kind", choices=sorted(KINDS), required=True)
    fresh.add_argument("--model", type=Path, required=True)
    fresh.add_argument("--api-base", required=True)
    fresh.add_argument("--heldout", type=int, required=True)
    fresh.add_argument("--server-defaults", action="store_true")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # then the server is stopped too
    try:
        return _run(options)
    except ServerFailed as error:
        print(error, file=sys.stderr)
        return 1


def _run(options: Any) -> int:
    if options.command == "export":
        print(export_gguf(options.out / f"{MODEL}.gguf") if options.gguf else export_folder(options.out))
        return 0
    if options.command == "answer":
        dspy.configure(lm=KINDS[options.kind].lm(options.api_base, options.model, plain=not options.server_defaults))
        print(json.dumps([dataclasses.asdict(row) for row in asyncio.run(answer(options.program, options.heldout))]))
        return 0
    kind = KINDS[options.command]
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(kind, Path(folder), options.option, plain=not options.server_defaults) as server,
    ):
        report = end_to_end(
            server,
            Path(folder),
            budget=Budget(completions=options.budget),
            max_n=options.max_n,
            heldout=options.heldout,
        )
        show(report, server)
    if options.json is not None:
        options.json.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
