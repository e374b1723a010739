"""`IAPO.compile` against a real HTTP server on loopback."""

import asyncio
import logging
import math
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import BestOfN, Budget, CompiledProgram, Decoding, MajorityVote, Objective, Preference
from iapo_dspy.errors import (
    AllCompletionsFailed,
    BudgetTooSmall,
    ConfigurationError,
    LabelRequired,
    LedgerMismatch,
    LMRefused,
    ReservedFieldName,
    ScoreError,
    StateError,
    TooManyErrors,
    UnknownPreference,
)
from tests.support.compiling import optimizers
from tests.support.loopback import Faults, Loopback, chat
from tests.support.states import state_of
from tests.support.worlds import (
    CAREFUL,
    LAZY,
    QUICK,
    Around,
    TwoSteps,
    adder,
    after_ideas,
    after_reasoning,
    brevity,
    checked,
    exact,
    questions,
    student,
)

ROOT = Path(__file__).parents[3]


optimizer = optimizers(max_n=8, budget=800, stopping=None)  # so that a call is one request of all N


# -- the main path


def test_the_best_arms_are_found_within_the_budget_and_each_pull_is_one_request() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer().compile(student(), trainset=questions(40))
        results = program.detailed_results
        pulls = sum(r.pulls for r in results.rounds)
        assert server.requests == pulls + 16 == results.spent.requests  # 16 measure the student, the unit of costs
        assert all(body.get("n", 1) >= 1 for body in server.bodies)
        assert server.completions == results.spent.completions <= 800
        quality, thrifty = program.solve("quality"), program.solve("thrifty")
    assert results.labels[quality.prompt] == CAREFUL and quality.n >= 5
    assert results.labels[thrifty.prompt] == QUICK and thrifty.n == 1
    assert results.policy[0].reward > 0.9 and results.policy[1].reward == pytest.approx(0.5, abs=0.25)
    assert results.complete and results.failures.total == 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_policy_and_evidence() -> None:
    def run() -> CompiledProgram:
        with Loopback(adder, latency=0.001) as server, dspy.context(lm=server.lm(seed=7)):
            return optimizer(budget=400, num_threads=16).compile(student(), trainset=questions(20))

    one, two = run(), run()
    assert one.policy.ready.arms == two.policy.ready.arms
    assert state_of(one)["evidence"] == state_of(two)["evidence"]


@pytest.mark.slow
def test_the_budget_holds_under_64_workers_and_broken_answers() -> None:
    faults = Faults(shares={"fewer": 0.2, 500: 0.1, "garbage": 0.1})
    with Loopback(adder, faults=faults) as server:
        with dspy.context(lm=server.lm(seed=1, num_retries=6)):
            program = optimizer(budget=500, num_threads=64).compile(student(), trainset=questions(20))
        spent = program.detailed_results.spent
        assert spent.completions <= 500
        assert server.completions <= 500  # 500s bring none, and what is missing is asked for again
        assert spent.requests == server.requests
        assert server.max_in_flight <= 64


def test_a_dollar_budget_ends_the_run_early_with_the_best_policy_so_far(caplog: pytest.LogCaptureFixture) -> None:
    prices: dict[str, Any] = {"input_cost_per_token": 1e-3, "output_cost_per_token": 1e-3}
    with Loopback(adder) as server, caplog.at_level(logging.WARNING):
        with dspy.context(lm=server.lm(max_tokens=40, **prices)):
            program = optimizer(budget=Budget(800, usd=8.0)).compile(student(), trainset=questions(20))
        billed = (server.prompt_tokens + server.completion_tokens) * 1e-3
    assert billed <= 8.0 and program.detailed_results.spent.usd == pytest.approx(billed)
    assert not program.detailed_results.complete
    assert "ended the run early" in caplog.text


@pytest.mark.slow
def test_best_of_n_with_objectives_that_pull_apart() -> None:
    def world(body: dict[str, Any], i: int) -> str:
        text = adder(body, i)
        return text if CAREFUL in body["messages"][0]["content"] else chat(answer="1")  # short, and wrong

    strategy = BestOfN([Objective("right", checked), Objective("short", brevity)])
    preferences = [
        Preference("right", weights={"right": 0.9, "short": 0.1}),
        Preference("short", weights={"right": 0.05, "short": 0.95}),
    ]
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=3)):
        compiler = optimizer(strategy=strategy, metric=None, preferences=preferences, candidates=[QUICK, CAREFUL])
        program = compiler.compile(student(), trainset=questions(30, start=400))
        labels = program.detailed_results.labels
        assert labels[program.solve("right").prompt] == CAREFUL and program.solve("right").n >= 2
        assert labels[program.solve("short").prompt] == QUICK
        prediction = program(question="400 + 801", preference="right")
    assert prediction.answer == "1201"
    assert prediction.iapo.utilities[prediction.iapo.winner] == max(prediction.iapo.utilities)


@pytest.mark.parametrize("make", [lambda: dspy.ChainOfThought("question -> answer"), Around])
def test_other_students_cost_one_request_per_pull_too(make: Any) -> None:
    with Loopback(after_reasoning(adder)) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer(budget=200).compile(make(), trainset=questions(10))
        pulls = sum(r.pulls for r in program.detailed_results.rounds)
        assert server.requests == pulls + 10  # ten measure the student, the unit of costs
        before = server.requests
        answer = program(question="3 + 4", preference="quality")
        assert server.requests == before + 1 and answer.iapo.n == program.solve("quality").n


def test_a_program_of_two_steps_compiles_and_runs() -> None:
    candidates = [{"ask": QUICK}, {"ask": CAREFUL, "plan": "Have an idea."}]
    with Loopback(after_ideas(adder)) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer(candidates=candidates, budget=300).compile(TwoSteps(), trainset=questions(20))
        assert "Work carefully" in program.detailed_results.policy[0].label
        prediction = program(question="5 + 6", preference="quality")
    assert prediction.answer == "11" and prediction.iapo.completion_tokens > 0


@pytest.mark.slow
def test_a_prompt_whose_completions_all_fail_loses_on_merit() -> None:
    def world(body: dict[str, Any], i: int) -> str:
        return "no fields here" if CAREFUL in body["messages"][0]["content"] else adder(body, i)

    with Loopback(world) as server, dspy.context(lm=server.lm()):
        results = optimizer().compile(student(), trainset=questions(20)).detailed_results
    assert results.labels[results.policy[0].arm.prompt] == QUICK
    assert results.failures.share[2] == 1.0 and results.failures.share[1] == 0.0
    assert results.failures.errors == 0 and "AdapterParseError" in results.failures.causes[0][0]


def test_when_nothing_works_the_run_stops() -> None:
    with Loopback(adder, faults=Faults(shares={400: 1.0})) as server, dspy.context(lm=server.lm()):
        with pytest.raises(TooManyErrors, match="Nothing has worked"):
            optimizer().compile(student(), trainset=questions(20))
        assert server.requests < 800


@pytest.mark.slow
def test_max_errors_stops_the_run() -> None:
    faults = Faults(shares={400: 0.5})
    with Loopback(adder, faults=faults) as server, dspy.context(lm=server.lm()):
        with pytest.raises(TooManyErrors, match="max_errors=5"):
            optimizer(max_errors=5).compile(student(), trainset=questions(20))


def test_a_wrong_key_stops_at_once() -> None:
    with Loopback(adder, api_key="right") as server, dspy.context(lm=server.lm(api_key="sk-wrong-1234567890")):
        with pytest.raises(LMRefused, match="Authentication") as caught:
            optimizer().compile(student(), trainset=questions(20))
        assert server.completions == 0
        assert "wrong-1234567890" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.slow
def test_decodings_are_part_of_the_prompt_set() -> None:
    def world(body: dict[str, Any], i: int) -> str:
        return chat(answer="0") if body["temperature"] > 1 else adder(body, i)

    decoding = [Decoding(temperature=1.5), Decoding(temperature=0.5, max_tokens=50)]
    with Loopback(world) as server, dspy.context(lm=server.lm()):
        program = optimizer(decoding=decoding, budget=1500).compile(student(), trainset=questions(30))
        assert len(program.detailed_results.labels) == 6
        server.bodies.clear()
        program(question="3 + 4", preference="quality")
    assert server.bodies[0]["temperature"] == 0.5 and server.bodies[0]["max_tokens"] == 50


# -- bad input costs nothing


def nan_metric(example: Any, pred: Any, trace: Any = None) -> float:
    return math.nan


def text_metric(example: Any, pred: Any, trace: Any = None) -> str:
    return "good"


def raising_metric(example: Any, pred: Any, trace: Any = None) -> float:
    return float(example.no_such_field)


class Typed(dspy.Signature):
    question: str = dspy.InputField()
    answer: list[Callable[[], str]] = dspy.OutputField()


class Empty(dspy.Module):
    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=question)


BAD: dict[str, tuple[type[Exception], str, Any]] = {
    "empty trainset": (ConfigurationError, "trainset is empty", lambda: optimizer().compile(student(), trainset=[])),
    "no examples": (ConfigurationError, "list of dspy.Example", lambda: optimizer().compile(student(), trainset=3)),  # type: ignore[call-overload]
    "no inputs marked": (
        ConfigurationError,
        "with_inputs",
        lambda: optimizer().compile(student(), trainset=[dspy.Example(question="q", answer="a")]),
    ),
    "an input is missing": (
        ConfigurationError,
        "lacks the input fields",
        lambda: optimizer().compile(student(), trainset=[dspy.Example(query="q").with_inputs("query")]),
    ),
    "no candidates": (
        ConfigurationError,
        "No candidates",
        lambda: optimizer(candidates=[]).compile(student(), trainset=questions(3)),
    ),
    "an empty candidate": (
        ConfigurationError,
        r"candidates\[1\]",
        lambda: optimizer(candidates=["a", " "]).compile(student(), trainset=questions(3)),
    ),
    "a candidate for another predictor": (
        ConfigurationError,
        "names the predictor",
        lambda: optimizer(candidates=[{"nobody": "a"}]).compile(student(), trainset=questions(3)),
    ),
    "a candidate with other inputs": (
        ConfigurationError,
        r"Candidate #1, Predict .* cannot stand beside the student",
        lambda: optimizer(candidates=["a", dspy.Predict("query -> answer")]).compile(student(), trainset=questions(3)),
    ),
    "a candidate without the voted output": (
        ConfigurationError,
        r"Candidate #0, Predict .* cannot stand beside the student",
        lambda: optimizer(candidates=[dspy.Predict("question -> reply")]).compile(student(), trainset=questions(3)),
    ),
    "one string for several predictors": (
        ConfigurationError,
        "has the predictors",
        lambda: optimizer().compile(TwoSteps(), trainset=questions(3)),
    ),
    "an unknown default preference": (
        ConfigurationError,
        "must be one of",
        lambda: optimizer(default_preference="best"),
    ),
    "two preferences of one name": (
        ConfigurationError,
        "must differ",
        lambda: optimizer(preferences=[Preference("a"), Preference("a", cost=1)]),
    ),
    "a negative cost": (ConfigurationError, ">= 0", lambda: Preference("a", cost=-1)),
    "a cost that is no number": (ConfigurationError, "finite", lambda: Preference("a", cost=math.nan)),
    "an unknown objective": (
        ConfigurationError,
        "objectives are",
        lambda: optimizer(preferences=[Preference("a", weights={"style": 1})]),
    ),
    "max_n below 1": (ConfigurationError, "max_n=0", lambda: optimizer(max_n=0)),
    "a budget below the least": (
        BudgetTooSmall,
        "at least 3",
        lambda: optimizer(budget=2).compile(student(), trainset=questions(3)),
    ),
    "a budget below the least of psst": (
        BudgetTooSmall,
        "at least 24",
        lambda: optimizer(budget=20, algorithm="psst").compile(student(), trainset=questions(3)),
    ),
    "a negative budget": (ConfigurationError, ">= 1", lambda: optimizer(budget=-5)),
    "a metric that returns NaN": (
        ScoreError,
        "returned nan",
        lambda: optimizer(metric=nan_metric).compile(student(), trainset=questions(3)),
    ),
    "a metric that returns a string": (
        ScoreError,
        "returned 'good'",
        lambda: optimizer(metric=text_metric).compile(student(), trainset=questions(3)),
    ),
    "a metric that raises": (
        ScoreError,
        "own labels",
        lambda: optimizer(metric=raising_metric).compile(student(), trainset=questions(3)),
    ),
    "no metric": (ConfigurationError, "needs a metric", lambda: optimizer(metric=None)),
    "a field that the student lacks": (
        ConfigurationError,
        "output fields are",
        lambda: optimizer(strategy=MajorityVote("anwser")).compile(student(), trainset=questions(3)),
    ),
    "an objective that wants a label": (
        LabelRequired,
        "`answer`",
        lambda: optimizer(strategy=BestOfN([Objective("right", exact)])),
    ),
    "a student without predictors": (
        ConfigurationError,
        "no predictors",
        lambda: optimizer().compile(Empty(), trainset=questions(3)),
    ),
    "no program at all": (
        ConfigurationError,
        "dspy.Module",
        lambda: optimizer().compile("question -> answer", trainset=questions(3)),
    ),
    "a field of a type that cannot be counted": (
        ConfigurationError,
        "their addresses",
        lambda: optimizer().compile(dspy.Predict(Typed), trainset=questions(3)),
    ),
    "temperature 0": (
        ConfigurationError,
        "temperature 0",
        lambda: optimizer(decoding=Decoding(temperature=0.0)).compile(student(), trainset=questions(3)),
    ),
    "a dollar budget without a price": (
        ConfigurationError,
        "needs a price|needs a limit",
        lambda: optimizer(budget=Budget(100, usd=1.0)).compile(student(), trainset=questions(3)),
    ),
    "an input called preference": (
        ReservedFieldName,
        "with_preference",
        lambda: optimizer().compile(
            dspy.Predict("preference -> answer"),
            trainset=[dspy.Example(preference="tea", answer="a").with_inputs("preference")],
        ),
    ),
    "an unknown algorithm": (ConfigurationError, "psst", lambda: optimizer(algorithm="magic")),
    "a teacher": (
        ConfigurationError,
        "teacher",
        lambda: optimizer().compile(student(), trainset=questions(3), teacher=student()),
    ),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_a_clear_error_before_any_request(case: str) -> None:
    error, message, act = BAD[case]
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        with pytest.raises(error, match=message):
            act()
        assert server.requests == 0


def test_without_an_lm_the_error_says_how_to_configure_one() -> None:
    with dspy.context(lm=None), pytest.raises(ConfigurationError, match=r"dspy\.configure"):
        optimizer().compile(student(), trainset=questions(3))


# -- names of fields


def test_an_input_called_context_works_unchanged() -> None:
    train = [e.copy(context="maths").with_inputs("question", "context") for e in questions(10)]
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        program = optimizer(budget=100).compile(dspy.Predict("context, question -> answer"), trainset=train)
        assert program(question="3 + 4", context="maths", preference="thrifty").answer


def test_an_input_called_preference_has_a_way_out() -> None:
    train = [e.copy(preference="tea").with_inputs("question", "preference") for e in questions(10)]
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        compiler = optimizer(budget=100, preference_field=None)
        program = compiler.compile(dspy.Predict("preference, question -> answer"), trainset=train)
        chosen = program.with_preference("thrifty")
        prediction = chosen(question="3 + 4", preference="coffee")
        assert prediction.iapo.preference == "thrifty"
        assert "coffee" in server.bodies[-1]["messages"][-1]["content"]


# -- quote


def test_a_quote_bounds_the_run_without_a_request() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(max_tokens=60)):
        compiler = optimizer(budget=400)
        quote = compiler.quote(student(), trainset=questions(20))
        assert server.requests == 0
        spent = compiler.compile(student(), trainset=questions(20)).detailed_results.spent
    assert quote.prompts == 3 and quote.least_completions == 3
    assert quote.requests is not None and spent.requests <= quote.requests <= 400
    assert spent.completions <= quote.completions == 400
    assert quote.prompt_tokens is not None and spent.prompt_tokens <= quote.prompt_tokens
    assert quote.completion_tokens == 400 * 60 >= spent.completion_tokens
    assert quote.usd is None and any("price" in n for n in quote.notes)


def test_a_quote_knows_dollars_and_caps_them() -> None:
    prices: dict[str, Any] = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    with Loopback(adder) as server, dspy.context(lm=server.lm(max_tokens=60, **prices)):
        quote = optimizer(budget=400).quote(student(), trainset=questions(20))
        assert quote.usd == pytest.approx((quote.prompt_tokens or 0) * 1e-6 + 400 * 60 * 2e-6)
        assert optimizer(budget=Budget(400, usd=0.01)).quote(student(), trainset=questions(20)).usd == 0.01
        assert "note" in str(optimizer().quote(TwoStepsOne(), trainset=questions(3)))


class TwoStepsOne(Around):
    pass


# -- the ledger


def test_a_run_that_died_repeats_no_paid_call_and_ends_with_the_same_policy(tmp_path: Path) -> None:
    class Died(Exception):
        pass

    def dying(progress: Any) -> None:
        if progress.completions >= 150:
            raise Died

    train = questions(30)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=5)):
        whole = optimizer(budget=500).compile(student(), trainset=train)
        alone = server.completions
        with pytest.raises(Died):
            optimizer(budget=500, log_dir=tmp_path, progress=dying).compile(student(), trainset=train)
        resumed = optimizer(budget=500, log_dir=tmp_path).compile(student(), trainset=train)
        stored = sum('"kind":"completion"' in line for line in (tmp_path / "ledger.jsonl").read_text().splitlines())
        assert stored == alone  # every completion is there once
        requests = server.requests
        again = optimizer(budget=500, log_dir=tmp_path).compile(student(), trainset=train)
        assert server.requests == requests
    assert whole.policy.ready.arms == resumed.policy.ready.arms == again.policy.ready.arms
    assert state_of(again)["evidence"] == state_of(whole)["evidence"]
    assert again.detailed_results.spent.completions == whole.detailed_results.spent.completions
    assert "sk-loopback-secret" not in (tmp_path / "ledger.jsonl").read_text()


def test_a_ledger_of_another_student_or_model_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        optimizer(budget=100, log_dir=tmp_path).compile(student(), trainset=questions(10))
        requests = server.requests
        with pytest.raises(LedgerMismatch, match=r'models \(was \["openai/fake"\], is \["openai/other"\]\)'):
            with dspy.context(lm=server.lm(model="openai/other")):
                optimizer(budget=100, log_dir=tmp_path).compile(student(), trainset=questions(10))
        with pytest.raises(LedgerMismatch, match=r"student \(was .*, is .ChainOfThought.\)"):
            optimizer(budget=100, log_dir=tmp_path).compile(
                dspy.ChainOfThought("question -> answer"), trainset=questions(10)
            )
        with pytest.raises(LedgerMismatch, match="adapter"), dspy.context(adapter=dspy.JSONAdapter()):
            optimizer(budget=100, log_dir=tmp_path).compile(student(), trainset=questions(10))
        assert server.requests == requests


# -- the compiled program


@pytest.fixture(scope="module")
def compiled() -> Any:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer().compile(student(), trainset=questions(40))
        server.compiled = program  # type: ignore[attr-defined]
        yield server, program


def test_a_call_draws_the_arm_in_one_request_and_says_what_it_did(compiled: Any) -> None:
    server, program = compiled
    with dspy.context(lm=server.lm(seed=1)):
        before = server.requests
        prediction = program(question="20 + 41", preference="quality")
        assert server.requests == before + 1
    report = prediction.iapo
    arm = program.solve("quality")
    assert (report.preference, report.prompt, report.n) == ("quality", arm.prompt, arm.n)
    assert prediction.answer == "61" == next(iter(report.votes))
    assert sum(report.votes.values()) + len(report.failures) == arm.n
    assert len(prediction.completions) == arm.n and report.completion_tokens > arm.n and report.usd is None


def test_preferences_named_default_ad_hoc_and_unknown(compiled: Any) -> None:
    server, program = compiled
    with dspy.context(lm=server.lm(seed=1)):
        assert program(question="1 + 2").iapo.preference == "quality"
        assert program.with_preference("thrifty")(question="1 + 2").iapo.n == 1
        assert program(question="1 + 2").iapo.preference == "quality"  # unchanged
        requests = server.requests
        assert program.solve(Preference("mine", cost=30.0)) == program.solve("thrifty")
        middle = program.solve(Preference(cost=0.3))
        assert 1 <= middle.n <= program.solve("quality").n
        assert server.requests == requests  # solved from the evidence
        for bad, error in (("best", UnknownPreference), (3, ConfigurationError)):
            with pytest.raises(error):
                program(question="1 + 2", preference=bad)
        with pytest.raises(ConfigurationError, match="objectives are"):
            program(question="1 + 2", preference=Preference(weights={"style": 1.0}))
        assert server.requests == requests
    with pytest.raises(KeyError, match="quality"):
        program.solve("best")


async def test_async_calls_gather(compiled: Any) -> None:
    server, program = compiled
    with dspy.context(lm=server.lm(seed=1)):
        calls = [program.acall(question=f"{i} + {i}", preference="quality") for i in range(6)]
        answers = await asyncio.gather(*calls)
        assert [a.answer for a in answers] == [str(2 * i) for i in range(6)]
        assert program(question="2 + 2").answer == "4"  # the blocking form, inside a running loop


def test_evaluate_batch_parallel_and_usage(compiled: Any) -> None:
    server, program = compiled
    with dspy.context(lm=server.lm(seed=1)):
        test = questions(8, start=100)
        evaluate = dspy.Evaluate(devset=test, metric=exact, num_threads=4, display_progress=False)
        assert evaluate(program).score >= 75
        assert [p.answer for p in program.batch(test[:3], disable_progress_bar=True)] == [e.answer for e in test[:3]]
        pairs = [(program, e.inputs()) for e in test[:2]]
        assert len(dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)) == 2
        with dspy.context(track_usage=True):
            prediction = program(question="1 + 2", preference="thrifty")
        (usage,) = prediction.get_lm_usage().values()
        assert usage["completion_tokens"] == prediction.iapo.completion_tokens


def test_inside_an_outer_module_with_trace_and_history(compiled: Any) -> None:
    server, program = compiled

    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = program

        def forward(self, question: str) -> dspy.Prediction:
            return self.inner(question=question)

    outer = Outer()
    with dspy.context(lm=server.lm(seed=1), trace=[]):
        prediction = outer(question="2 + 3")
        trace = dspy.settings.trace
    assert len(trace) == 1 and trace[0][2].answer == prediction.answer
    assert trace[0][0] in [p for _, p in outer.named_predictors()]
    assert len(outer.history) == 1  # one request


def test_the_student_is_not_changed_and_copies_are_independent(compiled: Any) -> None:
    original = student()
    before = original.dump_state()
    server, program = compiled
    with dspy.context(lm=server.lm(seed=1)):
        optimizer(budget=100).compile(original, trainset=questions(5))
    assert original.dump_state() == before
    twin = program.deepcopy()
    assert twin.solve("quality") == program.solve("quality")
    twin.arms[0].signature = twin.arms[0].signature.with_instructions("changed")
    assert program.arms[0].signature.instructions != "changed"
    assert program.reset_copy().solve("quality") == program.solve("quality")


def test_save_and_load_plain_json_without_secrets(compiled: Any, tmp_path: Path) -> None:
    server, program = compiled
    bound = program.deepcopy()
    bound.set_lm(server.lm(extra_headers={"Authorization": "Bearer hush-hush"}))
    path = tmp_path / "program.json"
    bound.save(path)
    text = path.read_text()
    assert "hush-hush" not in text and "sk-loopback" not in text and server.base not in text
    loaded = CompiledProgram(student())
    with pytest.raises(ConfigurationError, match="no policy yet"):
        loaded(question="1 + 2")
    loaded.load(path)
    assert loaded.policy.dump_state() == program.policy.dump_state()
    odd = Preference(cost=0.37)
    assert loaded.solve(odd) == program.solve(odd)
    with dspy.context(lm=server.lm(seed=1)):
        assert loaded(question="1 + 2").answer == program(question="1 + 2").answer


def test_nested_programs_save_and_load(compiled: Any, tmp_path: Path) -> None:
    server, program = compiled

    class Outer(dspy.Module):
        def __init__(self, inner: dspy.Module) -> None:
            super().__init__()
            self.inner = inner
            self.after = dspy.Predict("answer -> verdict")

        def forward(self, question: str) -> dspy.Prediction:
            return self.inner(question=question)

    outer = Outer(program.deepcopy())
    outer.set_lm(server.lm(extra_headers={"X-Token": "hush-hush"}))
    outer.after.lm = None
    outer.inner.arms[0].demos = [dspy.Example(question="1 + 1", answer="2")]  # as another optimizer would
    outer.save(tmp_path / "outer.json")
    assert "hush-hush" not in (tmp_path / "outer.json").read_text()
    fresh = Outer(CompiledProgram(student()))
    fresh.load(tmp_path / "outer.json")
    assert fresh.inner.solve("quality") == program.solve("quality")
    assert len(fresh.inner.arms[0].demos) == 1
    with dspy.context(lm=server.lm(seed=1)):
        assert fresh(question="1 + 2").iapo.preference == "quality"


def test_loading_in_a_fresh_process_needs_only_the_student_class(compiled: Any, tmp_path: Path) -> None:
    server, program = compiled
    program.save(tmp_path / "p.json")
    script = (
        "import sys, dspy\nfrom iapo_dspy import CompiledProgram\n"
        "p = CompiledProgram(dspy.Predict('question -> answer')); p.load(sys.argv[1])\n"
        "dspy.configure(lm=dspy.LM('openai/fake', api_base=sys.argv[2], api_key='k', cache=False, seed=1))\n"
        "print(p(question='20 + 41', preference='quality').answer, p.solve('quality').n)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "p.json"), server.base],
        capture_output=True, text=True, timeout=60, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.split() == ["61", str(program.solve("quality").n)]


def test_what_cannot_be_loaded_says_why(compiled: Any, tmp_path: Path) -> None:
    _, program = compiled
    path = tmp_path / "p.json"
    program.save(path)
    with pytest.raises(StateError, match="predictors"):
        CompiledProgram(TwoSteps()).load(path)
    with pytest.raises(StateError, match="strategy"):
        CompiledProgram(student(), strategy=MajorityVote("question")).load(path)
    student().save(tmp_path / "plain.json")
    with pytest.raises(StateError, match="not a saved CompiledProgram"):
        CompiledProgram(student()).load(tmp_path / "plain.json")


def test_user_functions_are_given_again_when_loading(tmp_path: Path) -> None:
    strategy = BestOfN([Objective("right", checked), Objective("short", brevity)])
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        compiler = optimizer(strategy=strategy, metric=None, budget=100, preferences=[Preference("all")])
        program = compiler.compile(student(), trainset=questions(10))
    program.save(tmp_path / "p.json")
    with pytest.raises(StateError, match="strategy="):
        CompiledProgram(student()).load(tmp_path / "p.json")
    loaded = CompiledProgram(student(), strategy=strategy)
    loaded.load(tmp_path / "p.json")
    other = Preference(weights={"right": 0.3, "short": 0.7}, cost=0.1)
    assert loaded.solve("all") == program.solve("all") and loaded.solve(other) == program.solve(other)


def test_failed_completions_are_reported_and_all_failed_raises(compiled: Any) -> None:
    _, program = compiled

    def half(body: dict[str, Any], i: int) -> str:
        return "garbage" if i % 2 else adder(body, i)

    with Loopback(half) as server, dspy.context(lm=server.lm(seed=1)):
        report = program(question="20 + 41", preference="quality").iapo
        assert 0 < len(report.failures) < report.n
        server.answer = lambda body, i: "garbage"
        with pytest.raises(AllCompletionsFailed, match="AdapterParseError") as caught:
            program(question="20 + 41", preference="quality")
        assert len(caught.value.causes) == report.n


def test_the_optimizer_is_an_ordinary_teleprompter(compiled: Any) -> None:
    server, _ = compiled
    compiler = optimizer(budget=100)
    assert isinstance(compiler, dspy.teleprompt.Teleprompter)
    assert compiler.get_params()["max_n"] == 8
    with dspy.context(lm=server.lm(seed=1)):
        again = compiler.compile(student(), trainset=questions(5))
        assert not again._compiled
        assert next(name for name, _ in again.named_predictors()).startswith("arms[0]")


@pytest.mark.slow
def test_candidate_programs_bring_their_demos() -> None:
    shown = student()
    shown.demos = [dspy.Example(question="1 + 1", answer="2")]
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        program = optimizer(candidates=[shown, LAZY], budget=100).compile(student(), trainset=questions(5))
        assert any(len(b["messages"]) == 4 for b in server.bodies)
    assert any(len(p.demos) == 1 for p in program.detailed_results.candidate_programs)
