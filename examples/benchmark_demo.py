"""Measure algorithms on the demo's addition task with 33 candidates and a thin budget.

    python examples/benchmark_demo.py --recording demo33.npz --algorithms auto,psst,uniform --budgets 1500,4000
    python examples/benchmark_demo.py --recording demo33.npz --algorithms auto --live --seeds 3

The candidates are the shipped ones and 20 more of mixed quality. Preferences, the largest N and the unit of costs (the
student's own average call costs .01) are those of the demo. The first call records every candidate on every question
in `--recording`, in about a quarter of an hour. The other benchmarks can run on that file too.

Each seed trains on another four fifths of the recorded questions. Its policy is valued exactly on all of them: mean
utility over the four preferences, without stopping early. So the best fixed policy is the same for every seed. A prompt
scales if its vote of the largest N is right nearly as often as the best prompt's (`NEARLY`). It is dropped early if no
completion is asked of it after the first quarter of those that choose the arms.

`--price` multiplies the cost weights: with .254 the average call of the shipped candidates costs .01, as it did before
costs were counted in the student's own calls. `--live` compiles with `IAPO` on the demo's language model instead of the
recording, on the same questions.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dspy
import numpy as np
from tqdm import tqdm

from iapo_dspy import IAPO, Budget, Decoding, Execution, MajorityVote, Search
from iapo_dspy.bandit.measurement import reserved
from iapo_dspy.bandit.named import has_intervals, named
from iapo_dspy.demo.experiment import PREFERENCES, SETTINGS
from iapo_dspy.demo.provider import register
from iapo_dspy.demo.tasks import MODEL, addition_task
from iapo_dspy.environments.live.environment import LiveEnvironment, LivePrompt
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.files import load, save
from iapo_dspy.environments.recorded.recorder import record
from iapo_dspy.environments.recorded.recording import ExactValues, Recording, VotingRecording
from iapo_dspy.sampling.ledger.ledger import NullLedger
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import Meter
from iapo_dspy.simulation.sources import RecordedSource
from iapo_dspy.types import Arm, Contexts, Observations

TASK = addition_task()
OTHERS = (  # orders, formats, roles, lists, digressions and single words
    "Give only the answer, in plain digits.",
    "You are a helpful assistant. Answer directly, without any steps.",
    "Solve it step by step.",
    "Just say the sum.",
    "Add.",
    "Carry.",
    "Guess.",
    "Show your work in the columns, then give the sum. Double-check nothing.",
    "Column by column, carry, sum, answer.",
    "SUM = A + B. Return SUM.",
    "- read the two numbers\n- add them\n- answer",
    "Let the units be added first. Carry. Then the tens. Carry. Then the hundreds. Then answer.",
    "Teach a child what addition means, then work column by column.",
    '{"role": "calculator", "output": "integer"}',
    "Start with the hundreds and go from left to right.",
    "Answer in French, like a poet.",
    "You are a strict accountant. Wrong totals cost you your job.",
    "Tell me about the weather in spring, then answer the question.",
    "Think step by step, then answer with the sum.",
    "Round the answer to the nearest ten.",
)
CANDIDATES = (*TASK.instructions, *OTHERS)
STUDENT = 0  # the first candidate is DSPy's own instruction
NEARLY = 0.1  # accuracy that a prompt that scales may lose to the best one
EARLY = 0.25  # share of the completions that choose the arms


@dataclass(frozen=True, kw_only=True)
class Run:
    """One seed: mean utility over the preferences, and the share of the scaling prompts that was dropped early."""

    utility: float
    dropped: float


def recorded(candidates: Sequence[str], questions: Sequence[dspy.Example], samples: int) -> Recording:
    """Record every candidate on every question on the configured LM."""
    total = len(candidates) * len(questions) * samples
    meter = Meter(Budget(completions=total))
    programs = [dspy.Predict(dspy.Signature(TASK.signature, text)) for text in candidates]
    live = LiveEnvironment(
        prompts=[LivePrompt(program=program, decoding=Decoding()) for program in programs],
        examples=questions,
        strategy=MajorityVote(TASK.answer_field),
        metric=TASK.metric,
        sampler=Sampler(max_concurrency=64, meter=meter, seed=0),
        meter=meter,
        ledger=NullLedger(),
    )
    contexts = Contexts.from_preferences(PREFERENCES["mv"], ["accuracy"])
    with tqdm(total=total, unit="completion") as bar:
        found = record(live, contexts, kind="vote", samples=samples, progress=lambda n, _: bar.update(n - bar.n))
    live.close(finished=True)
    return replace(found, cost=found.cost * 0.01 / found.cost[STUDENT])


def priced(recording: Recording, price: float) -> RecordedSource:
    """Return the recording as a source, with its cost weights multiplied by a price."""
    assert isinstance(recording, VotingRecording)
    recording, max_n = replace(recording, cost_weights=recording.cost_weights * price), SETTINGS["mv"]["max_n"]
    return RecordedSource(name="demo", recording=recording, values=recording.exact(max_n), ties="paper", max_n=max_n)


def scaling(values: ExactValues) -> np.ndarray:
    """Return which prompts scale [P]."""
    accuracy = values.reward[0, :, :, -1].mean(axis=1)
    return np.asarray(accuracy >= accuracy.max() - NEARLY)


def dropped_early(rounds: Sequence[Observations], prompts: np.ndarray) -> float:
    """Return the share of these prompts [P, booleans] that is dropped early."""
    drawn, last = 0, np.zeros(len(prompts))
    for observations in rounds:
        drawn += observations.pulls.completions
        last[observations.pulls.prompt] = drawn
    return float((last[prompts] <= EARLY * drawn).mean())


def valued(where: RecordedSource, arms: Sequence[Arm], rounds: Sequence[Observations]) -> Run:
    """Value the arm of each preference on all recorded questions."""
    q = where.values.q()
    utility = float(np.mean([q[context, arm.prompt, arm.n - 1] for context, arm in enumerate(arms)]))
    return Run(utility=utility, dropped=dropped_early(rounds, scaling(where.values)))


def simulated(where: RecordedSource, algorithm: str, budget: int, seed: int) -> Run:
    """Run an algorithm on a recording, without the completions that `compile` keeps to measure the chosen arms."""
    train = where.instance(0, seed).train
    problem, chosen, kept = train.problem(where.max_n), named(algorithm), 0
    if has_intervals(chosen):
        kept = reserved(budget, problem, chosen.least(problem), problem.n_queries)
    outcome = drive(chosen.start(problem, budget=budget - kept, seed=seed), train.environment(seed, budget))
    return valued(where, outcome.policy.arms, outcome.observations)


def compiled(where: RecordedSource, algorithm: str, budget: int, seed: int) -> Run:
    """Compile on the configured LM, with the training questions of the same seed."""
    questions, train = TASK.train(where.recording.n_queries, 0), where.instance(0, seed).train_queries
    costs = where.recording.contexts.cost.tolist()
    optimizer = IAPO(
        metric=TASK.metric,
        strategy=MajorityVote(TASK.answer_field),
        preferences=[replace(p, cost=cost) for p, cost in zip(PREFERENCES["mv"], costs, strict=True)],
        max_n=where.max_n,
        budget=budget,
        candidates=CANDIDATES,
        seed=seed,
        search=Search(algorithm=algorithm, stopping=None),
        execution=Execution(progress=False),
    )
    program = optimizer.compile(TASK.student(), trainset=[questions[x] for x in train])
    return valued(where, program.policy.ready.arms, program.policy.ready.evidence)


def main() -> None:
    """Record if need be, and print a row for every algorithm and budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path, required=True, help="`.npz`; made where it is missing")
    parser.add_argument("--questions", type=int, default=240, help="of a new recording")
    parser.add_argument("--samples", type=int, default=48, help="of a new recording, for each candidate and question")
    parser.add_argument("--algorithms", default="auto,psst,uniform", help="separated by commas")
    parser.add_argument("--budgets", default="1500,4000", help="separated by commas")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--price", type=float, default=1.0, help="multiplies the demo's cost weights")
    parser.add_argument("--live", action="store_true", help="compile on the demo's language model")
    asked = parser.parse_args()
    if asked.recording.suffix != ".npz" or not asked.recording.resolve().parent.is_dir():
        parser.error(f"--recording {asked.recording}: give a .npz file in a folder that exists")
    logging.basicConfig(level=logging.ERROR)
    register()
    dspy.configure(lm=dspy.LM(MODEL, engine="litellm", temperature=1.0, max_tokens=200, cache=False, seed=0))
    if not asked.recording.exists():
        save(recorded(CANDIDATES, TASK.train(asked.questions, 0), asked.samples), asked.recording)
    where = priced(load(asked.recording), asked.price)
    best, scale = where.values.q().max(axis=(1, 2)), scaling(where.values)
    print(f"{len(scale)} candidates, {scale.sum()} of which scale; {where.recording.n_queries} questions")
    print(f"best fixed policy: {best.mean():.3f} ({', '.join(f'{u:.3f}' for u in best)} for the four preferences)\n")
    print("| algorithm | T | mean utility | SD | worst seed | scaling ones dropped early | each seed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in asked.algorithms.split(","):
        for budget in map(int, asked.budgets.split(",")):
            runs = [(compiled if asked.live else simulated)(where, name, budget, seed) for seed in range(asked.seeds)]
            utility = np.array([run.utility for run in runs])
            row = f"| {name} | {budget:,} | {utility.mean():.3f} | {utility.std(ddof=1):.3f} | {utility.min():.3f}"
            print(f"{row} | {np.mean([run.dropped for run in runs]):.0%} | {' '.join(f'{u:.3f}' for u in utility)} |")


if __name__ == "__main__":
    main()
