"""A compiled program among DSPy's other optimizers: before, after, beside and within them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import CompiledProgram, candidates_of
from tests.support.compiling import PREFERENCES, optimizers
from tests.support.loopback import Loopback
from tests.support.optimizers import PROPOSED, teacher
from tests.support.worlds import CAREFUL, LAZY, QUICK, exact, questions, student

TRAIN, VAL = questions(8, start=50), questions(4, start=70)


optimizer = optimizers(budget=250, candidates=[QUICK, CAREFUL, LAZY])


def instructions(program: dspy.Module) -> list[str]:
    return [p.signature.instructions for _, p in program.named_predictors()]


def feedback(example: Any, pred: Any, trace: Any = None, name: Any = None, calls: Any = None) -> dspy.Prediction:
    return dspy.Prediction(score=float(exact(example, pred)), feedback="Say the sum.")


def gepa(lm: dspy.BaseLM) -> Callable[[dspy.Module], dspy.Module]:
    made = dspy.GEPA(
        metric=feedback, max_metric_calls=40, reflection_lm=lm, num_threads=2, seed=0, component_selector="all"
    )
    return lambda program: made.compile(program, trainset=TRAIN, valset=VAL)


def mipro(lm: dspy.BaseLM) -> Callable[[dspy.Module], dspy.Module]:
    made = dspy.MIPROv2(
        metric=exact, auto=None, num_candidates=2, prompt_model=lm, task_model=lm, num_threads=2, seed=1,
        max_bootstrapped_demos=1, max_labeled_demos=1,
    )  # fmt: skip
    settings = {"num_trials": 3, "minibatch": False, "program_aware_proposer": False, "data_aware_proposer": False}
    return lambda program: made.compile(program, trainset=TRAIN, valset=VAL, **settings)


def bootstrap(lm: dspy.BaseLM) -> Callable[[dspy.Module], dspy.Module]:
    made = dspy.BootstrapFewShot(metric=exact, max_bootstrapped_demos=2, max_labeled_demos=2)
    return lambda program: made.compile(program, trainset=TRAIN)


def copro(lm: dspy.BaseLM) -> Callable[[dspy.Module], dspy.Module]:
    made = dspy.COPRO(metric=exact, breadth=2, depth=1, prompt_model=lm)
    settings = {"num_threads": 2, "display_progress": False, "display_table": 0}
    return lambda program: made.compile(program, trainset=TRAIN, eval_kwargs=settings)


def simba(lm: dspy.BaseLM) -> Callable[[dspy.Module], dspy.Module]:
    made = dspy.SIMBA(metric=exact, bsize=4, num_candidates=2, max_steps=2, max_demos=1, num_threads=2, prompt_model=lm)
    return lambda program: made.compile(program, trainset=TRAIN, seed=0)


@pytest.fixture(scope="module")
def compiled() -> Any:
    with Loopback(teacher) as server, dspy.context(lm=server.lm(seed=1)):
        yield server, optimizer().compile(student(), trainset=questions(20))


@pytest.mark.parametrize(
    "other",
    [
        gepa,
        bootstrap,
        pytest.param(mipro, marks=pytest.mark.extra),  # it needs Optuna
        pytest.param(copro, marks=pytest.mark.slow),
        pytest.param(simba, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_program_is_a_student_of_other_optimizers(compiled: Any, other: Any, tmp_path: Path) -> None:
    server, program = compiled[0], compiled[1].with_preference("thrifty")  # whose arm is wrong half of the time
    before = instructions(program), [list(p.demos) for _, p in program.named_predictors()]
    with dspy.context(lm=server.lm(seed=1), num_threads=2):
        better = other(server.lm(seed=2, temperature=1.0))(program)
        assert (instructions(program), [list(p.demos) for _, p in program.named_predictors()]) == before
        changed = instructions(better) != before[0] or any(p.demos for _, p in better.named_predictors())
        assert changed
        assert isinstance(better, CompiledProgram)
        assert [better.solve(p) for p in PREFERENCES] == [program.solve(p) for p in PREFERENCES]
        better.save(tmp_path / "better.json")
        loaded = CompiledProgram(student())
        loaded.load(tmp_path / "better.json")
        assert instructions(loaded) == instructions(better)
        assert loaded.dump_state() == better.dump_state()
        answer = loaded(question="3 + 4", preference="thrifty")  # QUICK is wrong about odd sums
        assert answer.iapo.n == 1 and answer.answer == "7"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["copro -> iapo", "iapo -> copro", "iapo -> copro -> iapo"])
def test_better_together(compiled: Any, strategy: str) -> None:
    server, _ = compiled
    lm = server.lm(seed=3)
    together = dspy.BetterTogether(
        exact,
        iapo=optimizer(default_preference="thrifty", candidates=[LAZY, QUICK, CAREFUL]),
        copro=dspy.COPRO(metric=exact, breadth=2, depth=1, prompt_model=lm),
    )
    start = student()
    start.signature = start.signature.with_instructions(LAZY)
    start.set_lm(lm)
    settings = {"copro": {"eval_kwargs": {"num_threads": 2, "display_progress": False, "display_table": 0}}}
    better = together.compile(
        start, trainset=questions(10), valset=VAL, strategy=strategy, seed=0, optimizer_compile_args=settings
    )
    assert not better.flag_compilation_error_occurred
    found = {row["strategy"]: row for row in better.candidate_programs}
    assert found[strategy]["score"] > found[""]["score"]
    assert candidates_of(better).candidate_scores[0] is not None
    last = found[strategy]["program"]
    assert isinstance(last, CompiledProgram) and last.policy.student.named_predictors()[0][0] == "self"
    if strategy == "iapo -> copro -> iapo":  # what COPRO made of an arm is a candidate of the second run, and wins
        assert PROPOSED in [p.label for p in last.policy.ready.prompts]
        assert last.policy.ready.prompts[last.solve("quality").prompt].label == PROPOSED


def test_compiling_again_starts_from_the_arms_and_draws_each_completion_once(compiled: Any) -> None:
    server, program = compiled
    with dspy.context(lm=server.lm(seed=1)):
        before = server.completions
        again = optimizer(candidates=[QUICK, "Be brief."], budget=60).compile(program, trainset=questions(6))
        assert server.completions - before == again.detailed_results.spent.completions <= 60
    assert set(again.detailed_results.labels) == {*instructions(program), QUICK, "Be brief."}


@pytest.mark.slow
def test_an_ensemble_of_compiled_programs(compiled: Any) -> None:
    server, program = compiled
    members = [program.with_preference("quality"), program.with_preference("thrifty"), program]
    with dspy.context(lm=server.lm(seed=1)):
        together = dspy.Ensemble(reduce_fn=dspy.majority).compile(members)
        with dspy.context(track_usage=True):
            before = server.completion_tokens
            answer = together(question="3 + 4")
            (usage,) = answer.get_lm_usage().values()
            assert usage["completion_tokens"] == server.completion_tokens - before
    assert answer.answer == "7"
