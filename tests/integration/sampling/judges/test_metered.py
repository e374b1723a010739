"""Judges: LM calls of metrics and objectives in the run's own budget, against a real server on loopback."""

import logging
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import BestOfN, Budget, Cost, MajorityVote, Objective, metered
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError, LMRefused
from iapo_dspy.sampling.judges.metered import MeteredLM
from tests.support.compiling import optimizers
from tests.support.loopback import Faults, Loopback
from tests.support.worlds import CAREFUL, QUICK, adder, exact, outputs, questions, student, with_judge

VERDICT = "question, guess -> verdict"


world = with_judge(yes="yes", no="no", guess="guess")


def by_judge(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> bool:
    """A metric that asks the configured LM."""
    return bool(dspy.Predict(VERDICT)(question=example.question, guess=pred.answer).verdict == "yes")


def careless(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> float:
    """A metric that takes every error of its judge for a wrong answer."""
    try:
        return float(by_judge(example, pred))
    except Exception:  # noqa: BLE001 - just this is what must not pass for a verdict
        return 0.0


optimizer = optimizers(metric=by_judge, budget=120)


class Split(Loopback):
    """A server that tells judges' requests apart."""

    judge_requests = 0

    def _respond(self, handler: Any, body: dict[str, Any], fault: Any) -> None:
        with self._lock:
            self.judge_requests += "verdict" in outputs(body)
        super()._respond(handler, body, fault)


def test_judges_are_counted_in_the_runs_budget_and_told_apart() -> None:
    with Split(world) as server, dspy.context(lm=server.lm(seed=1)):
        results = optimizer().compile(student(), trainset=questions(10)).detailed_results
    spent = results.spent
    pulls = sum(r.pulls for r in results.rounds)
    assert spent.completions <= 120  # requests of judges are not completions of the task
    unit = 120 // 20  # completions that measure the student, the unit of costs, are not judged
    assert spent.requests == server.requests == pulls + unit + spent.judge_requests
    assert spent.judge_requests == server.judge_requests > 0
    assert spent.tokens == server.prompt_tokens + server.completion_tokens
    assert 0 < spent.judge_tokens < spent.tokens
    assert results.labels[results.policy[0].arm.prompt] == CAREFUL


@pytest.mark.slow
def test_identical_questions_are_asked_once_unless_the_judges_cache_is_off() -> None:
    def run(cache: bool) -> tuple[int, int]:
        with Split(world) as server, dspy.context(lm=server.lm(seed=1, cache=cache)):
            results = optimizer(candidates=[QUICK]).compile(student(), trainset=questions(3)).detailed_results
            assert results.failures.total == 0
        return server.judge_requests, results.spent.completions

    asked, completions = run(cache=False)
    assert asked == completions - 3  # one verdict per completion, without those that measure the student
    asked, completions = run(cache=True)
    assert asked == 3 < completions  # QUICK always says the same on a question


@pytest.mark.slow
def test_an_lm_that_the_metric_holds_is_metered_where_it_is_wrapped(caplog: pytest.LogCaptureFixture) -> None:
    def metric_of(lm: dspy.LM) -> Any:
        judge = dspy.Predict(VERDICT)
        judge.set_lm(lm)

        def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> bool:
            return bool(judge(question=example.question, guess=pred.answer).verdict == "yes")

        return metric

    with Split(world) as server, Split(world) as other, dspy.context(lm=server.lm(seed=1)):
        chooser = optimizer(metric=metric_of(metered(other.lm())))
        spent = chooser.compile(student(), trainset=questions(3)).detailed_results.spent
        assert spent.judge_requests == other.requests > 0 and spent.requests == server.requests + other.requests
        assert spent.judge_tokens == other.prompt_tokens + other.completion_tokens
        assert "does not count" not in caplog.text
        with caplog.at_level(logging.WARNING):
            spent = optimizer(metric=metric_of(other.lm())).compile(student(), trainset=questions(3))
        assert spent.detailed_results.spent.judge_requests == 0
        assert "metered(lm)" in caplog.text  # nobody meters it, and nobody can say it was not said


def test_outside_a_run_a_metered_lm_is_the_lm_itself() -> None:
    with Loopback(world) as server:
        lm = server.lm()
        wrapped = metered(lm)
        judge = dspy.Predict(VERDICT)
        judge.set_lm(wrapped)
        assert judge(question="1 + 2", guess="3").verdict == "yes"
        assert len(lm.history) == 1 and server.requests == 1
        assert metered(wrapped) is wrapped and isinstance(wrapped, MeteredLM)
        assert wrapped.dump_state() == lm.dump_state()
        warmer = wrapped.copy(temperature=0.7)
        judge.set_lm(warmer)
        judge(question="1 + 2", guess="3")
        assert server.bodies[-1]["temperature"] == 0.7
        with dspy.context(lm=wrapped):  # as a task's LM it is priced and sent like the LM itself
            program = optimizer(metric=exact, budget=40).compile(student(), trainset=questions(3))
        assert program.detailed_results.spent.judge_requests == 0
    with pytest.raises(ConfigurationError, match=r"give a dspy\.LM"):
        metered("openai/gpt-4o")


@pytest.mark.slow
def test_retries_of_judges_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.concurrency.retrying.backoff", lambda *a, **k: 0.01)
    with Split(world, faults=Faults(shares={500: 0.2})) as server:
        with dspy.context(lm=server.lm(seed=1, num_retries=8)):
            spent = optimizer().compile(student(), trainset=questions(5)).detailed_results.spent
    assert spent.requests == server.requests and spent.judge_requests == server.judge_requests
    assert server.statuses[500] > 0


@pytest.mark.slow
def test_a_judge_of_a_best_of_n_objective_is_metered_and_threads_of_dspy_too() -> None:
    def right(example: dspy.Example, pred: dspy.Prediction) -> float:
        judge = dspy.Predict(VERDICT)
        asked = dspy.Example(question=example.question, guess=pred.answer).with_inputs("question", "guess")
        (verdict,) = dspy.Parallel(num_threads=1, disable_progress_bar=True)([(judge, asked)])
        return float(verdict.verdict == "yes")

    with Split(world) as server, dspy.context(lm=server.lm(seed=1)):
        # One thread: dspy.Parallel empties tqdm's list of bars, and then another thread's bar raises KeyError.
        chooser = optimizer(strategy=BestOfN([Objective("right", right)]), metric=None, budget=60, num_threads=1)
        results = chooser.compile(student(), trainset=questions(3)).detailed_results
    assert results.failures.total == 0
    assert results.spent.requests == server.requests and results.spent.judge_requests == server.judge_requests > 0


@pytest.mark.slow
def test_a_compiled_program_that_judges_is_metered_too() -> None:
    with Split(world) as server, dspy.context(lm=server.lm(seed=1)):
        judge = optimizer(
            metric=lambda e, p, trace=None: e.verdict == p.verdict, strategy=MajorityVote("verdict")
        ).compile(
            dspy.Predict(VERDICT),
            trainset=[dspy.Example(question="1 + 2", guess="3", verdict="yes").with_inputs("question", "guess")],
        )
        before, judged = server.requests, server.judge_requests

        def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> bool:
            return bool(judge(question=example.question, guess=pred.answer).verdict == "yes")

        spent = optimizer(metric=metric).compile(student(), trainset=questions(4)).detailed_results.spent
    assert spent.requests == server.requests - before
    assert spent.judge_requests == server.judge_requests - judged > 0


@pytest.mark.parametrize("metric", [by_judge, pytest.param(careless, marks=pytest.mark.slow)])
def test_a_judge_that_does_not_fit_ends_the_run_with_the_best_policy_so_far(
    metric: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cost = Cost(completion_tokens=1, usd_per_million=(1000.0, 1000.0))
    with Split(world) as server, dspy.context(lm=server.lm(max_tokens=60, cache=False)):
        with caplog.at_level(logging.WARNING):
            chooser = optimizer(metric=metric, cost_unit=cost, budget=Budget(800, usd=25.0), num_threads=4)
            results = chooser.compile(student(), trainset=questions(20)).detailed_results
        billed = (server.prompt_tokens + server.completion_tokens) * 1e-3
    assert billed <= 25.0 and results.spent.usd == pytest.approx(billed)
    assert not results.complete and results.spent.judge_usd > 0
    assert "without a score" in caplog.text and "observations per preference" in caplog.text
    # A completion that was not judged is neither a failure nor a zero: QUICK is right on half of the questions anyway.
    assert results.failures.total == 0
    quick = results.labels.index(QUICK)
    assert 0.2 <= results.reward[0, quick, 0] <= 0.8


def test_a_budget_that_pays_for_no_verdict_is_too_small() -> None:
    cost = Cost(completion_tokens=1, usd_per_million={"openai/fake": (0, 0), "openai/judge": (1e6, 1e6)})
    with Loopback(world) as server, dspy.context(lm=server.lm(max_tokens=60)):
        judge = dspy.Predict(VERDICT)
        judge.set_lm(metered(server.lm("openai/judge", max_tokens=60)))

        def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> bool:
            return bool(judge(question=example.question, guess=pred.answer).verdict == "yes")

        with pytest.raises(BudgetTooSmall, match="and its score"):
            chooser = optimizer(metric=metric, cost_unit=cost, budget=Budget(120, usd=1.0))
            chooser.compile(student(), trainset=questions(3))
        assert not any("verdict" in outputs(body) for body in server.bodies)


def test_limits_that_a_judge_cannot_be_held_to_are_refused_before_the_first_call() -> None:
    held = dspy.Predict(VERDICT)

    def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> bool:
        return bool(held(question=example.question, guess=pred.answer).verdict == "yes")

    with Loopback(world) as server:
        mine = student()
        mine.set_lm(server.lm(max_tokens=60))
        with (
            dspy.context(lm=None),
            pytest.raises(ConfigurationError, match="configured LM, and there is none"),
        ):
            optimizer(candidates=[mine]).compile(mine, trainset=questions(3))
        with dspy.context(lm=server.lm()), pytest.raises(ConfigurationError, match=r"count in the budget.*max_tokens"):
            optimizer(candidates=[mine], budget=Budget(120, tokens=9000)).compile(mine, trainset=questions(3))
        held.set_lm(metered(server.lm("hosted_vllm/unknown", max_tokens=60)))
        prices: dict[str, Any] = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}
        with dspy.context(lm=server.lm(max_tokens=60, **prices)):
            with pytest.raises(ConfigurationError, match=r"count in the budget.*price"):
                optimizer(metric=metric, budget=Budget(120, usd=1)).compile(student(), trainset=questions(3))
        assert server.requests == 0


def test_a_judge_with_a_wrong_key_stops_the_run_at_once() -> None:
    with Loopback(adder) as server, Loopback(world, api_key="right") as other, dspy.context(lm=server.lm(seed=1)):
        judge = dspy.Predict(VERDICT)
        judge.set_lm(metered(other.lm(api_key="sk-wrong-1234567890")))

        def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> bool:
            return bool(judge(question=example.question, guess=pred.answer).verdict == "yes")

        with pytest.raises(LMRefused, match="every call of the metric") as caught:
            optimizer(metric=metric).compile(student(), trainset=questions(3))
        assert "wrong-1234567890" not in str(caught.value)


@pytest.mark.slow
def test_a_resumed_run_never_pays_a_judge_twice(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_at(n: int) -> Any:
        def progress(state: Any) -> None:
            if state.completions >= n:
                raise Stop

        return progress

    with Split(world) as server, dspy.context(lm=server.lm(seed=1, cache=False)):
        settings: dict[str, Any] = {"log_dir": tmp_path, "num_threads": 1}
        with pytest.raises(Stop):
            optimizer(progress=stop_at(60), **settings).compile(student(), trainset=questions(10))
        paid = server.judge_requests
        program = optimizer(**settings).compile(student(), trainset=questions(10))
        spent = program.detailed_results.spent
        whole = server.judge_requests
        assert 0 < paid < whole
        # Verdicts of pulls in flight when the run stopped may be lost on their way; everything else is asked once.
        judged = spent.completions - 120 // 20  # those that measure the student are not
        assert judged <= whole <= judged + 8
        assert spent.judge_requests >= whole - 8
        optimizer(**settings).compile(student(), trainset=questions(10))
        assert server.judge_requests == whole


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["usd", "tokens"])
def test_at_64_workers_no_limit_is_ever_exceeded(limit: str) -> None:
    """Sixteen runs with tiny budgets, judges and task together."""
    cost = Cost(completion_tokens=1, usd_per_million=(1000.0, 1000.0))
    with Loopback(world) as server:
        server.keep_bodies = False
        for run in range(8):
            before = server.prompt_tokens + server.completion_tokens
            most = 2500 + 600 * run
            budget = Budget(100, usd=most * 1e-3) if limit == "usd" else Budget(100, tokens=most)
            with dspy.context(lm=server.lm(max_tokens=40, cache=run % 2 == 0)):
                chooser = optimizer(metric=careless, cost_unit=cost, budget=budget, num_threads=64, seed=run, max_n=2)
                try:
                    spent = chooser.compile(student(), trainset=questions(4)).detailed_results.spent
                except BudgetTooSmall:
                    spent = None
            billed = server.prompt_tokens + server.completion_tokens - before
            assert billed <= most
            assert spent is None or spent.tokens == billed
