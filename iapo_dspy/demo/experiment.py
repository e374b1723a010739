"""The demo's experiment: compile on a task, then compare with simple baselines on held-out questions.

The LM that ships is a fixture of a million parameters. It exercises the whole path on a real sampler and is no evidence
about large language models. The same experiment runs on any other LM.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import dspy
import numpy as np

from iapo_dspy.errors import AllCompletionsFailed
from iapo_dspy.optimizer.iapo import IAPO
from iapo_dspy.optimizer.options import Execution
from iapo_dspy.preferences import Preference
from iapo_dspy.program.compiled import CompiledProgram
from iapo_dspy.program.results import CompileResult
from iapo_dspy.scoring.strategies import BestOfN, MajorityVote, Objective, Strategy
from iapo_dspy.types import Arm

EVEN = {"correctness": 0.5, "brevity": 0.5}
PREFERENCES = {
    "mv": (
        Preference("quality", cost=0.0),
        Preference("balanced", cost=0.2),
        Preference("thrifty", cost=1.0),
        Preference("frugal", cost=5.0),
    ),
    "bon": (
        Preference("exact", cost=0.0, weights={"correctness": 0.95, "brevity": 0.05}),
        Preference("balanced", cost=0.2, weights=EVEN),
        Preference("short", cost=0.5, weights={"correctness": 0.2, "brevity": 0.8}),
        Preference("frugal", cost=3.0, weights=EVEN),
    ),
}
SETTINGS = {
    "mv": {"budget": 4000, "train": 400, "heldout": 100, "max_n": 32},
    "bon": {"budget": 1600, "train": 200, "heldout": 80, "max_n": 16},
}


class ExperimentTask(Protocol):
    """The task of an experiment, such as `DemoTask`."""

    @property
    def name(self) -> str:
        """Its name, for people."""

    @property
    def answer_field(self) -> str:
        """The output field that is voted on or scored."""

    @property
    def candidates(self) -> Sequence[str | dspy.Module]:
        """Instructions and programs to choose from, all different; the first one is the student as it is."""

    @property
    def objectives(self) -> Mapping[str, Callable[[Any, Any], float]]:
        """Objectives without labels by name; empty where answers are right or wrong."""

    @property
    def metric(self) -> Callable[..., Any]:
        """Whether an answer is right."""

    def student(self) -> dspy.Module:
        """A new student."""

    def train(self, n: int, seed: int) -> list[dspy.Example]:
        """The questions to compile on, n of them."""

    def heldout(self, n: int, seed: int) -> list[dspy.Example]:
        """Other questions, n of them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One program under one preference on the held-out questions.

    Attributes:
        name: The preference, or the baseline.
        preference: The preference by whose weights the utility is counted.
        cost: Its cost weight.
        instruction: Instruction of the prompt.
        n: Completions per question.
        reward: Mean accuracy, or mean weighted objective, in [0, 1].
        tokens: Mean output tokens per question.
        utility: `reward - cost * cost_scale * tokens`.
    """

    name: str
    preference: str
    cost: float
    instruction: str
    n: int
    reward: float
    tokens: float
    utility: float


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """One task's results.

    Attributes:
        reward_name: "accuracy" or "reward".
        rows: The compiled program, one row per preference.
        baselines: Every baseline under every preference.
        acr: Mean utility of the compiled program over the preferences (eq. 4), held out.
        completions: Completions that the compilation drew.
        tokens: Tokens that it took, prompt and completion.
        seconds: Its wall-clock time.
    """

    reward_name: str
    rows: tuple[Row, ...]
    baselines: tuple[Row, ...]
    acr: float
    completions: int
    tokens: int
    seconds: float

    def baseline_acr(self) -> dict[str, float]:
        """Mean utility of each baseline over the preferences."""
        names = dict.fromkeys(b.name for b in self.baselines)
        return {name: float(np.mean([b.utility for b in self.baselines if b.name == name])) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return {
            "preferences": [{"name": r.name, "cost": r.cost, **self._measured(r)} for r in self.rows],
            "baselines": [{"name": b.name, "preference": b.preference, **self._measured(b)} for b in self.baselines],
            "acr": self.acr,
            "spent": {"completions": self.completions, "tokens": self.tokens, "seconds": self.seconds},
        }

    def _measured(self, row: Row) -> dict[str, Any]:
        return {
            "instruction": row.instruction,
            "n": row.n,
            self.reward_name: row.reward,
            "tokens_per_question": row.tokens,
            "utility": row.utility,
        }


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Settings of one task's experiment.

    Attributes:
        task: The task.
        preferences: Preferences that the program is compiled for.
        max_n: Largest N.
        budget: Completions of the compilation. The search for the best single-shot prompt may draw an eighth of it,
            for it looks at N = 1 alone; the tuning of that prompt's N a quarter.
        train: Training questions.
        heldout: Held-out questions.
        seed: Root of the random choices.
        fixed_n: Completions of the baseline that samples the student as it is.
        num_threads: Calls at once while compiling; None is the default of `IAPO`.
        execution: How the compilations are carried out.
    """

    task: ExperimentTask
    preferences: tuple[Preference, ...]
    max_n: int
    budget: int
    train: int
    heldout: int
    seed: int = 0
    fixed_n: int = 16
    num_threads: int | None = None
    execution: Execution = field(default_factory=lambda: Execution(progress=False))

    def run(self, say: Callable[[str], None] = lambda line: None) -> TaskReport:
        """Compile, find the baselines, and evaluate all of them with the configured LM.

        Args:
            say: Told of each step.
        """
        train = self.task.train(self.train, self.seed)
        say(f"{self.task.name}: compiling on {self.train} questions with {self.budget:,} completions")
        start = time.perf_counter()
        candidates = self.task.candidates
        program = self._compile(candidates, self.max_n, self.budget, train)
        seconds = time.perf_counter() - start
        say(f"{self.task.name}: the baselines")
        single = self._compile(candidates, 1, self.budget // 8, train)
        # A prompt that was chosen without a thought of N: the best one for the first preference, at N = 1.
        best = single.policy.ready.arms[0].prompt
        tuned = at_scale_of(program, self._compile([candidates[best]], self.max_n, self.budget // 4, train))
        say(f"{self.task.name}: {self.heldout} held-out questions")
        heldout = self.task.heldout(self.heldout, self.seed)
        return asyncio.run(self._evaluate(program, best, tuned, heldout, seconds))

    async def _evaluate(
        self,
        program: CompiledProgram,
        best: int,
        tuned: CompiledProgram,
        heldout: Sequence[dspy.Example],
        seconds: float,
    ) -> TaskReport:
        result: CompileResult = program.detailed_results
        measured: dict[Any, Sequence[dspy.Prediction | AllCompletionsFailed]] = {}

        async def row(name: str, source: CompiledProgram, arm: Arm, preference: Preference) -> Row:
            """Measure one arm on every held-out question, and price it by this preference."""
            # One completion, and a vote, are the same for every preference, so one measurement serves all of them.
            weights = preference.weights if self.task.objectives and arm.n > 1 else None
            key = (id(source), arm, tuple((weights or {}).items()))
            if key not in measured:
                measured[key] = await answers_of(with_arm(source, preference, arm), heldout)
            reward, used = self._means(measured[key], preference, heldout)
            return Row(
                name=name,
                preference=str(preference.name),
                cost=preference.cost,
                instruction=source.policy.ready.prompts[arm.prompt].label,
                n=arm.n,
                reward=reward,
                tokens=used,
                utility=reward - preference.cost * result.cost_scale * used,
            )

        rows = [await row(str(p.name), program, program.solve(p), p) for p in self.preferences]
        student = 0  # of the candidates
        fixed = "best-of-n" if self.task.objectives else "majority vote"
        baselines = []
        for preference in self.preferences:
            plain = [
                ("student as it is", program, Arm(student, 1)),
                ("best single-shot prompt", program, Arm(best, 1)),
                ("best single-shot prompt, N tuned", tuned, tuned.solve(preference)),
                (f"student, {fixed} at N={self.fixed_n}", program, Arm(student, min(self.fixed_n, self.max_n))),
            ]
            baselines += [await row(*each, preference) for each in plain]
        return TaskReport(
            reward_name="reward" if self.task.objectives else "accuracy",
            rows=tuple(rows),
            baselines=tuple(baselines),
            acr=float(np.mean([r.utility for r in rows])),
            completions=result.spent.completions,
            tokens=result.spent.tokens,
            seconds=seconds,
        )

    def _means(
        self,
        answers: Sequence[dspy.Prediction | AllCompletionsFailed],
        preference: Preference,
        heldout: Sequence[dspy.Example],
    ) -> tuple[float, float]:
        """Return mean reward and mean output tokens of the answers to the held-out questions."""
        rewards, tokens = [], []
        for example, answer in zip(heldout, answers, strict=True):
            if isinstance(answer, AllCompletionsFailed):  # no answer is a wrong answer
                rewards.append(0.0)
                tokens.append(answer.completion_tokens)
            else:
                rewards.append(self._reward(example, answer, preference))
                tokens.append(answer.iapo.completion_tokens)
        return float(np.mean(rewards)), float(np.mean(tokens))

    def _reward(self, example: dspy.Example, prediction: dspy.Prediction, preference: Preference) -> float:
        if not self.task.objectives:
            return float(self.task.metric(example, prediction))
        weights = preference.vector(list(self.task.objectives))
        return float(np.dot(weights, [f(example, prediction) for f in self.task.objectives.values()]))

    def _compile(
        self, candidates: Sequence[str | dspy.Module], max_n: int, budget: int, train: Sequence[dspy.Example]
    ) -> CompiledProgram:
        objectives = [Objective(name, function) for name, function in self.task.objectives.items()]
        strategy: Strategy = BestOfN(objectives) if objectives else MajorityVote(self.task.answer_field)
        optimizer = IAPO(
            metric=None if objectives else self.task.metric,
            strategy=strategy,
            preferences=self.preferences,
            max_n=max_n,
            budget=budget,
            candidates=candidates,
            seed=self.seed,
            num_threads=self.num_threads,
            execution=self.execution,
        )
        return optimizer.compile(self.task.student(), trainset=train)


async def answers_of(
    program: CompiledProgram, questions: Sequence[dspy.Example]
) -> list[dspy.Prediction | AllCompletionsFailed]:
    """Call a program on every question, as an application would; a call may fail because all completions did."""
    results = await asyncio.gather(*(program.acall(**e.inputs()) for e in questions), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, AllCompletionsFailed):
            raise result
    return results


def with_arm(program: CompiledProgram, preference: Preference, arm: Arm) -> CompiledProgram:
    """Return a program that draws this arm for this preference, whatever was compiled."""
    policy = program.policy.ready
    fixed = dataclasses.replace(policy, preferences=(preference,), arms=(arm,), default=str(preference.name))
    return CompiledProgram(program.policy.student, program.policy.strategy, fixed)


def at_scale_of(program: CompiledProgram, other: CompiledProgram) -> CompiledProgram:
    """Return another program with its arms chosen anew at the cost scale of this one, from its own draws."""
    policy, strategy = other.policy.ready, other.policy.strategy
    policy = dataclasses.replace(policy, cost_scale=program.policy.ready.cost_scale)
    arms = policy.solve(policy.preferences, strategy).policy.arms
    return CompiledProgram(other.policy.student, strategy, dataclasses.replace(policy, arms=arms))
