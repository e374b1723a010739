"""Compare what a user would try, at equal spend, on recordings and on a small LM that is served.

    python examples/compare_methods.py --folder compared --worlds examples/data/*.npz --markdown all.md --json all.json
    python examples/compare_methods.py --folder compared --tasks sst2=sst2.tsv --api-base http://127.0.0.1:8080/v1

Each method may spend T completions (`--spend`) of the task's LM and of the prompt-writing LM together:

- `student`: the program as it is, one completion a call; it spends nothing;
- `single`: the best of the known prompts by single completions, T divided equally among them; N = 1;
- `single+n`: half of T as in `single`, then N of that prompt tuned with the other half;
- `majority16`: the student's prompt with a vote of 16; it spends nothing;
- `best-of-n`: dspy.BestOfN on the student with N = 16. A vote task has no reward without labels, so its reward is what
  users take there, whether the completion can be read; the first one that can is returned. It spends nothing;
- `mipro+n` and `gepa+n`: dspy.MIPROv2 and dspy.GEPA with three quarters of T, then N of their prompt tuned with the
  rest. Their prompt-writing LM is `scripted_writer`, which deals the known prompts, each once before any comes again;
- `psst`: IAPO with the paper's algorithm on all known prompts;
- `ours`: IAPO with its default algorithm on all known prompts, calls drawing all N, as those of all methods above do;
- `ours+stop`: the same with calls that stop early, which is the package's default.

N is tuned by IAPO with the prompt as its only candidate. Everything that is chosen is valued on held-out questions,
exactly on the law of completions of its prompt. Repetition r has its own split of the questions and its own draws,
which all methods share.

Intervals are of paired differences, method minus `ours`, on the same questions of the same repetition. Their standard
errors are clustered in two ways, by repetition and by question, because repetitions share questions; the quantile is
Student's with one degree of freedom less than there are repetitions.

`--unit tokens` makes the second table: each method may spend as many tokens of the task's LM as `ours` took in the same
repetition of the first table, whatever number of completions that buys. Both rows of `ours` are the runs of the first
table. Runs are kept in `--folder`, each in a file of its own, so that a call that is repeated goes on where it ended.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dspy
import numpy as np
from compared_worlds import Counts, DirectEngine, Live, LiveWorld, Model, RecordedWorld, Value, World, preferences_of
from equal_spend import gepa, mipro
from scipy.stats import t as student_t
from scripted_writer import ScriptedWriter

from iapo_dspy import IAPO, Budget, Execution, Search
from iapo_dspy.types import Arm, FloatArray, IntArray, Stop

SEARCH, HALF = 0.75, 0.5  # shares of GEPA and MIPROv2, and of single completions, before N is tuned
LEAST = 0.05  # share with which N is tuned even where MIPROv2 took more than it was given
FIXED_N = 16  # of majority16 and dspy.BestOfN
LEVEL = 0.95
THREADS = 8
START, END = "<!-- tables -->", "<!-- end of tables -->"  # in a page that --markdown renews
OURS, TOO = "ours", "ours+stop"  # the same draws; calls stop early in the second one


@dataclass(frozen=True)
class Choice:
    """The choice of a method for one preference: a prompt, N, and how a call makes one answer of its completions.

    `claimed` is what IAPO says of it: its utility, and the ends of the 95 % interval.
    """

    program: dspy.Module
    n: int
    stop: Stop | None = None
    how: str = "vote"
    claimed: tuple[float, float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of a method: where, which repetition, how much it may spend of which unit, and what was counted."""

    world: World
    repetition: int
    spend: int
    unit: str
    model: Model
    writer: ScriptedWriter

    @property
    def counts(self) -> Counts:
        """Return what the task's LM was asked for."""
        return self.model.counts

    def direct(self) -> Any:
        """Return a context in which DSPy asks the task's LM without LiteLLM."""
        settings = {n: dspy.settings.lm.kwargs[n] for n in ("temperature", "max_tokens")}
        lm = dspy.LM(f"direct/{self.world.name}", engine=DirectEngine(self.model), cache=False, **settings)
        return dspy.context(lm=lm)

    def spent(self) -> int:
        """Return how much of the spend is gone."""
        if self.unit == "tokens":
            return self.counts.read + self.counts.written
        return self.counts.completions + self.writer.completions

    def completions(self, amount: float) -> int:
        """Return how many single completions an amount of the spend pays for."""
        return int(amount / self.world.per_completion) if self.unit == "tokens" else int(amount)

    def iapo(self, candidates: Any, amount: int, **search: Any) -> list[Choice]:
        """Compile the student by IAPO with such an amount."""
        optimizer = IAPO(
            metric=self.world.metric,
            strategy=self.world.strategy,
            preferences=preferences_of(self.world),
            max_n=self.world.max_n,
            budget=Budget(tokens=amount) if self.unit == "tokens" else Budget(amount),
            candidates=candidates,
            seed=self.repetition,
            search=Search(**{"stopping": None, **search}),
            execution=Execution(progress=False),
        )
        read, written = self.counts.read, self.counts.written
        program = optimizer.compile(self.world.student(), trainset=self.world.trainset(self.repetition))
        found = program.detailed_results
        # Some servers count the tokens of the first of n completions only, which IAPO sees and corrects.
        self.counts.read, self.counts.written = (
            read + found.spent.prompt_tokens,
            written + found.spent.completion_tokens,
        )
        said = [(r.utility, *r.interval) if r.interval is not None else None for r in found.policy]
        arms = zip(program.policy.ready.arms, said, strict=True)
        return [Choice(found.candidate_programs[a.prompt], a.n, a.stop, claimed=claim) for a, claim in arms]

    def everywhere(self, program: Any, n: int, how: str = "vote") -> list[Choice]:
        """Return the same choice for all preferences."""
        return [Choice(program, n, how=how)] * len(self.world.weights)


# --- methods ---------------------------------------------------------------------------------------------------------


def single(case: Case, share: float) -> Any:
    """Return the candidate with the best mean score of single completions, each on the same questions."""
    candidates, questions = case.world.candidates(), case.world.trainset(case.repetition)
    each = max(case.completions(share * case.spend) // len(candidates), 1)
    devset = [questions[i % len(questions)] for i in range(each)]
    evaluate = dspy.Evaluate(
        devset=devset, metric=case.world.metric, num_threads=THREADS, max_errors=len(devset) + 1, failure_score=0.0
    )
    with case.direct():
        scores = [evaluate(with_prompt(case.world, candidate)).score for candidate in candidates]
    return candidates[int(np.argmax(scores))]


def with_prompt(world: World, candidate: Any) -> dspy.Module:
    """Return the student with a candidate's prompt."""
    if isinstance(candidate, dspy.Module):
        return candidate
    program = world.student()
    for predictor in program.predictors():
        predictor.signature = predictor.signature.with_instructions(candidate)
    return program


def with_n_tuned(case: Case, candidate: Any) -> list[Choice]:
    """Tune N of one prompt with what is left of the spend."""
    return case.iapo([candidate], max(case.spend - case.spent(), round(LEAST * case.spend)))


def by_gepa(case: Case) -> dspy.Module:
    """Run GEPA with its share."""
    with case.direct():
        return gepa(
            case.world.student(),
            case.world.trainset(case.repetition),
            metric=case.world.metric,
            writer=case.writer.lm(),
            spend=case.completions(case.spend),
            over=lambda: case.spent() >= SEARCH * case.spend,
            seed=case.repetition,
            num_threads=THREADS,
        )


def by_mipro(case: Case) -> dspy.Module:
    """Run MIPROv2 with its share."""
    with case.direct():
        return mipro(
            case.world.student(),
            case.world.trainset(case.repetition),
            metric=case.world.metric,
            writer=case.writer.lm(),
            spend=SEARCH * case.completions(case.spend),
            seed=case.repetition,
            num_threads=THREADS,
        )


METHODS: dict[str, tuple[str, Callable[[Case], list[Choice]]]] = {
    "student": ("the student as it is", lambda case: case.everywhere(case.world.student(), 1)),
    "single": (
        "best single-shot prompt, N = 1",
        lambda case: case.everywhere(with_prompt(case.world, single(case, 1.0)), 1),
    ),
    "single+n": ("best single-shot prompt, then N tuned", lambda case: with_n_tuned(case, single(case, HALF))),
    "majority16": ("the student, vote of 16", lambda case: case.everywhere(case.world.student(), FIXED_N)),
    "best-of-n": (
        "the student, dspy.BestOfN of 16",
        lambda case: case.everywhere(case.world.student(), FIXED_N, how="first"),
    ),
    "mipro+n": ("MIPROv2, then N tuned", lambda case: with_n_tuned(case, by_mipro(case))),
    "gepa+n": ("GEPA, then N tuned", lambda case: with_n_tuned(case, by_gepa(case))),
    "psst": ("IAPO with PSST", lambda case: case.iapo(case.world.candidates(), case.spend, algorithm="psst")),
    "ours": ("IAPO", lambda case: case.iapo(case.world.candidates(), case.spend)),
    "ours+stop": (
        "IAPO, calls stop early",
        lambda case: case.iapo(case.world.candidates(), case.spend, stopping="confidence"),
    ),
}


# --- runs ------------------------------------------------------------------------------------------------------------


def run(world: World, method: str, repetition: int, spend: int, unit: str) -> dict[str, Any]:
    """Run a method once, and return what it chose and took."""
    world.key(world.student())  # its law makes the price of a token, so that nobody's run pays for it
    with ScriptedWriter(world.pool, seed=repetition) as writer, world.serving(repetition) as model:
        case = Case(world=world, repetition=repetition, spend=spend, unit=unit, model=model, writer=writer)
        started = time.perf_counter()
        with dspy.context(max_errors=10**9):
            choices = METHODS[method][1](case)
        seconds, took = time.perf_counter() - started, asdict(model.counts)
        arms = [
            {
                "prompt": world.key(c.program),
                "n": c.n,
                "how": c.how,
                "claimed": c.claimed,
                "stop": None if c.stop is None else {"waves": list(c.stop.waves), "confidence": c.stop.confidence},
            }
            for c in choices
        ]
    about = {"world": world.name, "about": world.about, "method": method, "repetition": repetition}
    writing = {"writer_requests": writer.requests, "writer_completions": writer.completions}
    return {**about, "unit": unit, "spend": spend, "seconds": seconds, **took, **writing, "arms": arms}


def kept(folder: Path, world: World, method: str, repetition: int, unit: str, spend: int) -> Path:
    """Return the file of a run."""
    return folder / "runs" / f"{world.name}--{unit}-{spend}--{method}--{repetition}.json"


def values(world: World, row: Mapping[str, Any]) -> list[Value]:
    """Return the value of each preference's arm on all questions of the world."""
    found = []
    for arm in row["arms"]:
        law, prompt = world.law(arm["prompt"])
        if arm["how"] == "first":
            found.append(law.first(prompt, arm["n"]))
        else:
            stop = arm["stop"] and Stop(waves=tuple(arm["stop"]["waves"]), confidence=arm["stop"]["confidence"])
            found.append(law.vote(Arm(prompt, arm["n"], stop)))
    return found


# --- numbers ---------------------------------------------------------------------------------------------------------


def interval(differences: Sequence[FloatArray], questions: Sequence[IntArray]) -> tuple[float, float]:
    """Return the mean of paired differences and half the width of its 95 % interval.

    The variance is clustered in two ways (Cameron, Gelbach and Miller 2011): that of sums over a repetition, plus that
    of sums over a question, less that of single differences, which both of them hold; at least either of the two.

    Args:
        differences: Of each repetition, on each of its questions [R][X].
        questions: Which questions these are [R][X].
    """
    runs = len(differences)
    weight = np.concatenate([np.full(len(d), 1.0 / (runs * len(d))) for d in differences])
    every = np.concatenate(differences)
    mean = float(weight @ every)
    rest = weight * (every - mean)
    of_run = np.repeat(np.arange(runs), [len(d) for d in differences])
    _, of_question = np.unique(np.concatenate(questions), return_inverse=True)

    def clustered(group: IntArray) -> float:
        sums = np.bincount(group, weights=rest)
        return float(len(sums) / (len(sums) - 1) * (sums**2).sum()) if len(sums) > 1 else 0.0

    by_run, by_question, single = clustered(of_run), clustered(of_question), clustered(np.arange(len(rest)))
    variance = max(by_run + by_question - single, by_run, by_question)
    freedom = runs - 1 if runs > 1 else int(of_question.max())
    return mean, float(student_t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance)) if freedom else float("nan")


def summary(world: World, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the numbers of one world: for each method its utilities, differences and spending."""
    names = [p.name for p in preferences_of(world)]
    price = world.rate * np.asarray(world.weights)
    worth: dict[str, list[FloatArray]] = {}  # method -> utility of each repetition [R][C, X]
    calls: dict[str, list[FloatArray]] = {}  # method -> completions and tokens of a call [R][2, C]
    held: dict[str, list[IntArray]] = {}
    for method, rows in runs.items():
        for row in rows:
            questions = world.held_out(row["repetition"])
            found = values(world, row)
            utility = np.stack([v.reward - p * v.tokens for v, p in zip(found, price, strict=True)])[:, questions]
            call = np.array([[getattr(v, n)[questions].mean() for v in found] for n in ("completions", "tokens")])
            worth.setdefault(method, []).append(utility)
            calls.setdefault(method, []).append(call)
            held.setdefault(method, []).append(questions)
    methods = {}
    for method, rows in runs.items():
        about: dict[str, Any] = {"name": METHODS[method][0], "repetitions": len(rows), "preferences": {}}
        pairs = []
        if OURS in worth and method != OURS:
            there = {row["repetition"]: u for row, u in zip(runs[OURS], worth[OURS], strict=True)}
            pairs = [
                (u - there[row["repetition"]], q)
                for row, u, q in zip(rows, worth[method], held[method], strict=True)
                if row["repetition"] in there
            ]
        for c, name in enumerate([*names, "mean"]):
            which: Any = slice(None) if name == "mean" else slice(c, c + 1)
            entry = {
                "utility": float(np.mean([u[which].mean() for u in worth[method]])),
                "completions_per_call": float(np.mean([k[0, which].mean() for k in calls[method]])),
                "tokens_per_call": float(np.mean([k[1, which].mean() for k in calls[method]])),
            }
            if pairs:
                mean, half = interval([d[which].mean(axis=0) for d, _ in pairs], [q for _, q in pairs])
                entry |= {"difference": mean, "half_width": half}
            about["preferences"][name] = entry
        about["spent"] = {
            name: float(np.mean([row[name] for row in rows]))
            for name in ("completions", "writer_completions", "requests", "read", "written", "seconds")
        }
        if (said := claims(rows, worth[method], names)) is not None:
            about["claims"] = said
        methods[method] = about
    return {"world": world.name, "about": world.about, "methods": methods}


def claims(rows: Sequence[Mapping[str, Any]], worth: Sequence[FloatArray], names: Sequence[str]) -> Any:
    """Return what IAPO said of its choices beside their worth on held-out questions; None where it said nothing.

    The standard error of the worth is that of the mean over the held-out questions.
    """
    found = {}
    for c, name in enumerate(names):
        said = [(row["arms"][c].get("claimed"), u[c]) for row, u in zip(rows, worth, strict=True)]
        pairs = [(claim, float(u.mean()), float(u.std(ddof=1) / len(u) ** 0.5)) for claim, u in said if claim]
        if pairs and len(pairs) == len(rows):
            mean = np.mean([[*claim, value, error] for claim, value, error in pairs], axis=0).tolist()
            held = sum(low <= value <= high for (_, low, high), value, _ in pairs)
            found[name] = [*mean, held, len(pairs)]
    return found or None


# --- tables ----------------------------------------------------------------------------------------------------------


def markdown(found: Sequence[Mapping[str, Any]], unit: str, spend: str) -> str:
    """Return the tables of all worlds, a table over worlds, and the places where ours does not win."""
    said = f"as many tokens as {OURS} took at {spend} completions" if unit == "tokens" else f"{spend} completions"
    parts = [f"## At equal {unit}: {said}\n"]
    parts += [world_table(world) for world in found]
    parts.append("### Over all worlds\n\n" + over_worlds(found))
    parts.append(f"### Where {OURS} does not win\n\n" + "\n".join(losses(found) or ["Nowhere."]))
    return "\n\n".join(parts) + "\n"


def world_table(world: Mapping[str, Any]) -> str:
    """Return the tables of one world: utilities beside ours, and what calls and the search took."""
    methods = world["methods"]
    names = list(next(iter(methods.values()))["preferences"])
    lines = [
        f"### {world['world']}\n\n{world['about']}\n",
        row_of(["method", *names]),
        row_of(["---"] * (len(names) + 1)),
    ]
    for about in methods.values():
        cells = []
        for entry in about["preferences"].values():
            beside = f" ({signed(entry['difference'])} ± {short(entry['half_width'])})" if "difference" in entry else ""
            cells.append(f"{short(entry['utility'])}{beside}")
        lines.append(row_of([about["name"], *cells]))
    heads = [
        "method",
        "completions a call",
        "tokens",
        "completions spent",
        "by the writer",
        "tokens",
        "requests",
        "seconds",
    ]
    lines += ["", row_of(heads), row_of(["---"] * len(heads))]
    for about in methods.values():
        mean, spent = about["preferences"]["mean"], about["spent"]
        taken = [spent["completions"], spent["writer_completions"], spent["read"] + spent["written"], spent["requests"]]
        calls = [f"{mean['completions_per_call']:.1f}", f"{mean['tokens_per_call']:,.0f}"]
        lines.append(row_of([about["name"], *calls, *(f"{n:,.0f}" for n in taken), f"{spent['seconds']:.0f}"]))
    if any("claims" in about for about in methods.values()):
        heads = ["said after the run", "preference", "utility", "95 % interval", "held out", "inside"]
        lines += ["", row_of(heads), row_of(["---"] * len(heads))]
    for about in methods.values():
        for name, (utility, low, high, value, error, held, runs) in about.get("claims", {}).items():
            ends, worth = f"{short(low)} to {short(high)}", f"{short(value)} (s.e. {short(error)})"
            lines.append(row_of([about["name"], name, short(utility), ends, worth, f"{held} of {runs}"]))
    return "\n".join(lines)


def row_of(cells: Sequence[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"


def over_worlds(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the table over worlds: means, and in how many worlds a method is above, beside or below ours."""
    lines = [row_of(["method", "mean utility", "less ours", "above, beside, below ours"]), row_of(["---"] * 4)]
    for method, (name, _) in METHODS.items():
        entries = [w["methods"][method]["preferences"]["mean"] for w in found if method in w["methods"]]
        if not entries:
            continue
        utility = np.mean([e["utility"] for e in entries])
        pairs = [(e["difference"], e["half_width"]) for e in entries if "difference" in e]
        if pairs:
            above, below = sum(d > h for d, h in pairs), sum(d < -h for d, h in pairs)
            difference = signed(float(np.mean([d for d, _ in pairs])))
            beside = f"{difference} | {above}, {len(pairs) - above - below}, {below}"
        else:
            beside = " | "
        lines.append(f"| {name} | {short(float(utility))} | {beside} |")
    return "\n".join(lines)


def losses(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each method, world and preference with a higher mean than ours."""
    said = []
    for world in found:
        for method, about in world["methods"].items():
            for name, entry in about["preferences"].items():
                difference = entry.get("difference", 0.0)
                if method.startswith(OURS) or name == "mean" or difference <= 0:
                    continue
                sure = "outside" if difference > entry["half_width"] else "within"
                said.append(
                    f"- {world['world']}, {name}: {about['name']} is {short(difference)} above, {sure} its interval of "
                    f"± {short(entry['half_width'])}."
                )
    return said


def renew(path: Path, tables: str) -> None:
    """Write the tables to a page, between its marks if it has them; the text around them stays."""
    before, after = "", ""
    if path.exists():
        before, mark, rest = path.read_text(encoding="utf-8").partition(START)
        after = rest.partition(END)[2] if mark else ""
        before = before if mark else ""
    path.write_text(f"{before}{START}\n\n{tables}\n{END}{after}", encoding="utf-8")


def short(number: float) -> str:
    """Return a number with three digits after the point."""
    return f"{number:.3f}".replace("0.", ".", 1)


def signed(number: float) -> str:
    """Return a number with its sign."""
    return f"{'-' if number < 0 else '+'}{short(abs(number))}"


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where runs are kept; made if missing")
    parser.add_argument("--worlds", nargs="*", default=[], help="recordings of votes")
    parser.add_argument("--tasks", nargs="*", default=[], help="tasks on the server, NAME or NAME=FILE of its rows")
    parser.add_argument("--model", default="openai/smollm2", help="LiteLLM's name of the server's model")
    parser.add_argument("--api-base", default="http://127.0.0.1:8080/v1", help="of the server")
    parser.add_argument("--samples", type=int, default=32, help="completions of a chosen prompt on a held-out question")
    parser.add_argument("--demos", type=int, default=6, help="demonstrations of every prompt on the server")
    parser.add_argument("--demo-seed", type=int, default=0, help="chooses the demonstrations")
    parser.add_argument("--max-tokens", type=int, default=48, help="of a completion on the server")
    parser.add_argument("--live-max-n", type=int, default=16, help="the largest N on the server")
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--spend", type=int, default=2_000, help="T, in completions")
    parser.add_argument("--unit", default="completions", help='"completions", "tokens", or "completions,tokens"')
    parser.add_argument("--max-n", type=int, default=32, help="the largest N on recordings")
    parser.add_argument("--markdown", type=Path, help="write the tables to this page, between its marks")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--table", action="store_true", help="run nothing, print the tables of what there is")
    asked = parser.parse_args()
    (asked.folder / "runs").mkdir(parents=True, exist_ok=True)
    worlds: list[World] = [RecordedWorld(Path(path), max_n=asked.max_n) for path in asked.worlds]
    for name, _, path in (given.partition("=") for given in asked.tasks):
        live = Live(
            model=asked.model,
            api_base=asked.api_base,
            path=Path(path) if path else None,
            demos=asked.demos,
            seed=asked.demo_seed,
            max_tokens=asked.max_tokens,
            samples=asked.samples,
        )
        worlds.append(LiveWorld(name, live, max_n=asked.live_max_n, folder=asked.folder))
    methods, pages, numbers = asked.methods.split(","), [], {}
    for unit in asked.unit.split(","):
        found: dict[str, dict[str, list[dict[str, Any]]]] = {world.name: {} for world in worlds}
        for repetition, world, method in itertools.product(range(asked.repetitions), worlds, methods):
            row = done(asked, world, method, repetition, unit)
            if row is not None:
                found[world.name].setdefault(method, []).append(row)
        numbers[unit] = [summary(world, found[world.name]) for world in worlds if found[world.name]]
        pages.append(markdown(numbers[unit], unit, f"{asked.spend:,}"))
    print("\n".join(pages))
    if asked.markdown:
        renew(asked.markdown, "\n".join(pages))
    if asked.json:
        asked.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def done(asked: argparse.Namespace, world: World, method: str, repetition: int, unit: str) -> dict[str, Any] | None:
    """Return a run from its file, or run it; None where it is missing and nothing shall be run."""
    unit = "completions" if method in (OURS, TOO) else unit
    path = kept(asked.folder, world, method, repetition, unit, asked.spend)
    if not path.exists():
        if asked.table:
            return None
        spend = asked.spend
        if unit == "tokens":
            ours = done(asked, world, OURS, repetition, "completions")
            assert ours is not None
            spend = ours["read"] + ours["written"]
        row = run(world, method, repetition, spend, unit)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(row), encoding="utf-8")
        part.replace(path)
        print("...", world.name, unit, method, repetition, f"{row['seconds']:.0f} s", flush=True)
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


if __name__ == "__main__":
    for logger in ("dspy", "iapo_dspy", "LiteLLM"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # unreadable completions are no errors here
    main()
