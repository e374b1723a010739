"""What DSPy's other optimizers return, as candidates."""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import CompiledProgram, Cost, candidates_of
from iapo_dspy.errors import ConfigurationError, StateError
from iapo_dspy.prompts.prompt import build_prompts
from iapo_dspy.prompts.student import Student, class_of
from iapo_dspy.types import Decoding
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.optimizers import PROPOSED, teacher
from tests.support.worlds import CAREFUL, LAZY, QUICK, TwoSteps, exact, outputs, questions, total

TRAIN, VAL = questions(6, start=50), questions(4, start=70)
ONCE = (Decoding(),)
QUIET = {"num_threads": 2, "display_progress": False, "display_table": 0}

Optimize = Callable[[dspy.Module, dspy.BaseLM], dspy.Module]

optimizer = optimizers(budget=100, max_n=2)


def thinker() -> dspy.Module:
    return dspy.ChainOfThought("question -> answer")


def writers() -> Callable[[dict[str, Any], int], str]:
    """Answer as `teacher` does, also chains of thought, and write a new instruction at every request."""
    number = itertools.count()

    def answer(body: dict[str, Any], i: int) -> str:
        if outputs(body) == ["reasoning", "answer"]:
            helped = PROPOSED in body["messages"][0]["content"] or len(body["messages"]) > 2
            right = helped or total(body) % 2 == 0
            return chat(reasoning="because", answer=str(total(body) + (0 if right else 1)))
        return teacher(body, i).replace(PROPOSED, f"{PROPOSED} {next(number)}")

    return answer


def gepa(program: dspy.Module, lm: dspy.BaseLM) -> dspy.Module:
    def feedback(example: Any, pred: Any, trace: Any = None, name: Any = None, calls: Any = None) -> dspy.Prediction:
        return dspy.Prediction(score=float(exact(example, pred)), feedback="Say the sum.")

    made = dspy.GEPA(metric=feedback, max_metric_calls=40, reflection_lm=lm, num_threads=2, seed=0, track_stats=True)
    return made.compile(program, trainset=TRAIN, valset=VAL)


def mipro(program: dspy.Module, lm: dspy.BaseLM) -> dspy.Module:
    made = dspy.MIPROv2(
        metric=exact, auto=None, num_candidates=3, prompt_model=lm, task_model=lm, num_threads=2, seed=1,
        max_bootstrapped_demos=1, max_labeled_demos=1,
    )  # fmt: skip
    settings = {"num_trials": 5, "minibatch_size": 2, "minibatch_full_eval_steps": 3}
    simple = {"program_aware_proposer": False, "data_aware_proposer": False}
    return made.compile(program, trainset=TRAIN, valset=VAL, **settings, **simple)


def simba(program: dspy.Module, lm: dspy.BaseLM) -> dspy.Module:
    made = dspy.SIMBA(metric=exact, bsize=4, num_candidates=2, max_steps=2, max_demos=1, num_threads=2, prompt_model=lm)
    return made.compile(program, trainset=TRAIN, seed=0)


def copro(program: dspy.Module, lm: dspy.BaseLM) -> dspy.Module:
    return dspy.COPRO(metric=exact, breadth=3, depth=2, prompt_model=lm, track_stats=True).compile(
        program, trainset=TRAIN, eval_kwargs=QUIET
    )


def random_search(program: dspy.Module, lm: dspy.BaseLM) -> dspy.Module:
    made = dspy.BootstrapFewShotWithRandomSearch(
        metric=exact, max_bootstrapped_demos=1, max_labeled_demos=2, num_candidate_programs=2, num_threads=2
    )
    return made.compile(program, trainset=TRAIN, valset=VAL)


def rules(program: dspy.Module, lm: dspy.BaseLM) -> dspy.Module:
    made = dspy.InferRules(metric=exact, num_candidates=2, num_rules=2, num_threads=2, max_bootstrapped_demos=1)
    return made.compile(program, trainset=TRAIN, valset=VAL)


def iapo(program: dspy.Module, lm: dspy.BaseLM) -> dspy.Module:
    return optimizer(candidates=[LAZY, CAREFUL, QUICK]).compile(program, trainset=TRAIN)


@pytest.fixture
def served() -> Iterator[Loopback]:
    with Loopback(writers()) as server, dspy.context(lm=server.lm(seed=1), num_threads=2):
        yield server


def contents(program: dspy.Module) -> list[Any]:
    """What an LM is told by a program beside the question."""
    return [(p.signature.instructions, [dict(d) for d in p.demos]) for _, p in program.named_predictors()]


def distinct(programs: Any) -> list[Any]:
    found = [contents(program) for program in programs]
    return [one for i, one in enumerate(found) if one not in found[:i]]


def pool_of(program: dspy.Module) -> Any:
    """Where each optimizer leaves what it tried; None where it leaves nothing."""
    return getattr(program, "candidate_programs", None) or getattr(program, "detailed_results", None)


def programs_in(pool: Any) -> list[dspy.Module]:
    if isinstance(pool, list):
        return [entry["program"] for entry in pool]
    return list(getattr(pool, "candidates", None) or pool.candidate_programs)


@pytest.mark.parametrize(
    ("optimize", "carries"),
    [
        (gepa, 2),
        pytest.param(mipro, 2, marks=pytest.mark.extra),  # it needs Optuna
        (simba, 2),
        (copro, 3),
        (random_search, 3),
        (rules, 1),
        (iapo, 3),
    ],
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_an_optimizer_returns_is_candidates(served: Loopback, optimize: Optimize, carries: int) -> None:
    best = optimize(thinker(), served.lm(seed=2, temperature=1.0))
    shown = candidates_of(best)
    assert len(shown) >= carries and len(distinct(shown)) == len(shown)
    first = best.arms[0] if isinstance(best, CompiledProgram) else best
    assert contents(shown[0]) == contents(first)
    assert all(not hasattr(p, name) for p in shown for name in ("candidate_programs", "trial_logs", "total_calls"))
    asked = served.requests
    for given in (best, [best], shown, [thinker(), *shown][1:]):
        prompts = build_prompts(Student(thinker()), given, ONCE)
        assert [contents(p.program) for p in prompts] == [contents(p) for p in shown]
    labels = [p.label for p in prompts]
    assert len(set(labels)) == len(labels)
    if (pool := pool_of(best)) is not None:  # the pool alone, as the optimizer left it
        from_pool = build_prompts(Student(thinker()), pool, ONCE)
        assert [contents(p.program) for p in from_pool] == distinct(programs_in(pool))
    assert served.requests == asked
    program = optimizer(candidates=[best, LAZY], budget=60).compile(thinker(), trainset=TRAIN)
    expected = distinct([*shown, *[p.program for p in build_prompts(Student(thinker()), [LAZY], ONCE)]])
    assert [contents(p) for p in program.detailed_results.candidate_programs] == expected


def handler(body: dict[str, Any], i: int) -> str:
    """Direct answers are always wrong; a chain of thought is right; two steps are right with their idea."""
    if outputs(body) == ["idea"]:
        return chat(idea="carry")
    thought = outputs(body) == ["reasoning", "answer"]
    right = thought or "carry" in body["messages"][-1]["content"]
    reasoning = {"reasoning": "because " * 30} if thought else {}
    return chat(**reasoning, answer=str(total(body) + (0 if right else 1)))


def direct() -> dspy.Module:
    return dspy.Predict("question -> answer")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Loopback, CompiledProgram, Path]]:
    """A program whose prompts are programs of three classes; its saved form."""
    saved = tmp_path_factory.mktemp("mixed") / "program.json"
    with Loopback(handler) as server, dspy.context(lm=server.lm(seed=1)):
        made = optimizer(candidates=[direct(), thinker(), TwoSteps(), "Be brief."], log_dir=saved.parent / "log")
        quoted = made.quote(direct(), trainset=TRAIN)
        assert server.requests == 0 and quoted.completions == 100
        program = made.compile(direct(), trainset=TRAIN)
        asked = server.requests
        assert quoted.requests is not None and asked <= quoted.requests
        again = made.compile(direct(), trainset=TRAIN)  # everything is in the ledger
        assert server.requests == asked
        assert again.solve("quality") == program.solve("quality")
        program.save(saved)
        yield server, program, saved


def test_candidates_are_programs_of_several_classes(mixed: tuple[Loopback, CompiledProgram, Path]) -> None:
    _, program, _ = mixed
    results = program.detailed_results
    assert [class_of(p) for p in results.candidate_programs] == [
        dspy.Predict, dspy.ChainOfThought, TwoSteps, dspy.Predict
    ]  # fmt: skip
    assert results.labels[1].startswith("[ChainOfThought] ") and results.labels[2].startswith("[TwoSteps] plan: ")
    assert results.labels[3] == "Be brief."
    assert program.solve("quality").prompt in (1, 2)  # the direct answer is always wrong
    assert program(question="3 + 4", preference="quality").answer == "7"
    assert asyncio.run(program.acall(question="3 + 4", preference="quality")).answer == "7"


@pytest.mark.parametrize("swapped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_loaded_program_is_given_the_other_classes(
    mixed: tuple[Loopback, CompiledProgram, Path], swapped: bool
) -> None:
    _, program, saved = mixed
    given = [thinker(), direct(), TwoSteps()] if swapped else [direct(), TwoSteps(), thinker()]
    loaded = CompiledProgram(given[0], others=given[1:])
    loaded.load(saved)
    for each in (loaded, copy.deepcopy(loaded), loaded.reset_copy()):
        assert each.solve("quality") == program.solve("quality")
        assert each(question="3 + 4", preference="quality").answer == "7"
        assert str(each.explain(preference="thrifty")) == str(program.explain(preference="thrifty"))
    if not swapped:
        assert loaded.dump_state() == program.dump_state()
    shown, before = candidates_of(loaded), candidates_of(program)
    assert [contents(p) for p in shown] == [contents(p) for p in before]


def test_a_class_that_is_missing_when_loading_is_named(mixed: tuple[Loopback, CompiledProgram, Path]) -> None:
    _, _, saved = mixed
    for others, missing in (
        ((), r"ChainOfThought with .* and TwoSteps with .*others=\[ChainOfThought\(\.\.\.\), TwoSteps\(\.\.\.\)\]"),
        ((TwoSteps(),), r"runs ChainOfThought with .* was given Predict with .* and TwoSteps"),
        ((TwoSteps(), dspy.ChainOfThought("query -> answer")), r"'question', 'reasoning'.* was given .*'query'"),
    ):
        program = CompiledProgram(direct(), others=others)
        with pytest.raises(StateError, match=missing):
            program.load(saved)
        assert program.arms == []
    with pytest.raises(ConfigurationError, match=r"others= is not a list of programs"):
        CompiledProgram(direct(), others=[thinker().predict.signature])


@pytest.mark.parametrize("preference", ["quality", "thrifty"])
def test_a_listener_hears_whichever_class_answers(
    mixed: tuple[Loopback, CompiledProgram, Path], preference: str
) -> None:
    _, program, _ = mixed
    listener = dspy.streaming.StreamListener(signature_field_name="answer")
    stream = dspy.streamify(program, stream_listeners=[listener])

    async def heard() -> list[Any]:
        return [chunk async for chunk in stream(question="3 + 4", preference=preference)]

    *chunks, last = asyncio.run(heard())
    assert isinstance(last, dspy.Prediction)
    assert "".join(c.chunk for c in chunks if isinstance(c, dspy.streaming.StreamResponse)) == last.answer


def test_the_winner_of_several_classes_goes_through_another_optimizer(
    mixed: tuple[Loopback, CompiledProgram, Path],
) -> None:
    _, program, _ = mixed
    better = dspy.LabeledFewShot(k=2).compile(program, trainset=TRAIN)
    assert all(p.demos for _, p in better.named_predictors())
    assert better(question="3 + 4", preference="quality").answer == "7"
    assert [len(student.demos) for student in map(Student, candidates_of(better, top=1))] == [len("2 demos")]


def test_repeats_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "iapo_dspy"):
        found = build_prompts(Student(direct()), [direct(), *[direct(), thinker()], "Be brief.", " Be brief. "], ONCE)
    assert [p.candidate for p in found] == [0, 2, 3]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("2 of the candidates are repeats and are left out: candidates[1] is the same as")


class Checked(dspy.Module):
    """A pipeline around a part that may be of another class."""

    def __init__(self) -> None:
        super().__init__()
        self.solve = direct()

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=self.solve(question=question).answer, seen=question)


def test_the_part_of_a_pipeline_may_be_of_another_class() -> None:
    with Loopback(handler) as server, dspy.context(lm=server.lm(seed=1)):
        made = optimizer(candidates=[direct(), TwoSteps()], budget=60)
        for wrong in (dspy.Predict("question, hint -> answer"), dspy.Predict("question -> reply")):
            with pytest.raises(ConfigurationError, match=r"Candidate #0, Predict with .* cannot stand beside"):
                made.compile(Checked(), trainset=TRAIN, inner="solve", candidates=[wrong])
        assert server.requests == 0
        pipeline = made.compile(Checked(), trainset=TRAIN, inner="solve")
        assert pipeline.solve.solve("quality").prompt == 1
        found = pipeline(question="3 + 4")
        assert (found.answer, found.seen) == ("7", "3 + 4")


@pytest.mark.slow
def test_every_class_is_tried_with_every_lm() -> None:
    with Loopback(handler) as server, dspy.context(lm=server.lm(seed=1)):
        lms = [server.lm(seed=1), server.lm(model="openai/other", seed=1)]
        cost = Cost(completion_tokens=1)
        made = optimizer(candidates=[direct(), thinker()], lms=lms, cost_unit=cost, budget=60)
        program = made.compile(direct(), trainset=TRAIN)
        assert [p.candidate for p in program.detailed_results.compiled.prompts] == [0, 0, 1, 1]
        with pytest.raises(ConfigurationError, match="Programs of several classes take LMs, not mappings"):
            optimizer(candidates=[thinker()], lms=[{"self": lms[0]}], cost_unit=cost).compile(direct(), trainset=TRAIN)
