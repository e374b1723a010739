"""A module compiled inside of a pipeline, against a real HTTP server on loopback."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import BestOfN, Budget, CompiledProgram, Cost, Decoding, MajorityVote, Objective, Preference, attach
from iapo_dspy.errors import ConfigurationError, LedgerMismatch, ScoreError, TooManyErrors
from iapo_dspy.optimizer.pipelines import inner_inputs
from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import CallRecord, CompletionRecord
from tests.support.compiling import optimizers
from tests.support.loopback import Faults, Loopback, chat
from tests.support.pipelines import INSTRUCTIONS, PLAIN, WORDY, Pipeline, asked, pipeline_world, right, step_of
from tests.support.states import state_of

optimizer = optimizers(
    metric=right,
    strategy=MajorityVote("number"),
    candidates=INSTRUCTIONS,
    max_n=8,
    budget=200,
    stopping=None,  # so that a call is one request of all N
)


def steps(server: Loopback) -> Counter[str]:
    return Counter(step_of(body) for body in server.bodies)


@pytest.mark.slow
def test_the_best_inner_prompt_is_the_one_that_serves_the_pipeline() -> None:
    with Loopback(pipeline_world) as server, dspy.context(lm=server.lm(seed=1)):
        pipeline = optimizer().compile(Pipeline(), trainset=asked(12), inner="solve")
        asked_of = steps(server)
        compiled = pipeline.solve
        assert isinstance(pipeline, Pipeline) and isinstance(compiled, CompiledProgram)
        results = pipeline.detailed_results
        assert results is compiled.detailed_results
        quality = compiled.solve("quality")
        assert results.labels[quality.prompt] == PLAIN and quality.n >= 5
        assert results.policy[0].reward > 0.9
        # One rewritten question serves all prompts and rounds.
        assert asked_of["rewrite"] == 12
        assert server.completions == 12 + 2 * results.spent.completions
        assert results.spent.requests == server.requests

        alone = optimizer(metric=lambda e, p, t=None: p.number.startswith(e.answer)).compile(
            dspy.Predict("sum -> number"),
            trainset=[
                dspy.Example(sum=f"{i} + {2 * i + 1}", answer=str(3 * i + 1)).with_inputs("sum") for i in range(1, 21)
            ],
        )
        assert alone.detailed_results.reward[0, :, 0].argmax() == INSTRUCTIONS.index(WORDY)


def test_a_deployed_pipeline_asks_the_steps_around_once_and_the_inner_module_n_times() -> None:
    with Loopback(pipeline_world) as server, dspy.context(lm=server.lm(seed=1)):
        pipeline = optimizer(budget=90).compile(Pipeline(), trainset=asked(12), inner="solve")
        n = pipeline.solve.solve().n
        server.bodies.clear()
        prediction = pipeline(question="What are 5 and 7?")
        assert [(step_of(b), b.get("n", 1)) for b in server.bodies] == [("rewrite", 1), ("solve", n), ("report", 1)]
        assert prediction.answer == "12"
        pipeline.solve = pipeline.solve.with_preference(Preference(cost=1e6))
        server.bodies.clear()
        pipeline(question="What are 5 and 8?")
        assert server.bodies[1].get("n", 1) == 1


def test_what_is_paid_once_and_what_each_completion_adds() -> None:
    """Prompts are counted as 10 tokens for the rewriting, 20 for the solving, 40 for the report; answers by hand."""
    prompt = {"rewrite": 10, "solve": 20, "report": 40}

    def world(body: dict[str, Any], i: int) -> str:
        step = step_of(body)
        if step == "solve":
            return chat(number=str(i % 2)) + " x" * 5  # two different reports at most per pull
        return chat(**{"rewrite": {"sum": "s"}, "report": {"answer": "1"}}[step])

    words = {"rewrite": len(chat(sum="s").split()), "solve": len(chat(number="1").split()) + 5}
    words["report"] = len(chat(answer="1").split())

    class Counted(Loopback):
        def _payload(self, body: dict[str, Any], n: int, fault: Any) -> dict[str, Any]:
            found = super()._payload(body, n, fault)
            read, usage = prompt[step_of(body)], found["usage"]
            usage |= {"prompt_tokens": read, "total_tokens": read + usage["completion_tokens"]}
            return found

    cost = Cost(completion_tokens=1, prompt_tokens=100)
    with Counted(world) as server, dspy.context(lm=server.lm()):
        pipeline = optimizer(
            cost_unit=cost, candidates=[PLAIN], max_n=4, budget=40, preferences=[Preference("q")]
        ).compile(Pipeline(), trainset=asked(10), inner="solve")
        results = pipeline.detailed_results
        # Around: 10 + 40 prompt tokens (whatever the number of reports that a pull asked for), and the prompt of the
        # inner module is shared by its n completions.
        once = 100 * (10 + 20 + 40) + words["rewrite"] + words["report"]
        assert results.costs[0] == pytest.approx([once + n * words["solve"] for n in (1, 2, 3, 4)])
        assert results.tokens[0] == pytest.approx([n * words["solve"] for n in (1, 2, 3, 4)])
        # What was really paid: each query's rewriting once, every report.
        rewritten = [b["messages"][-1]["content"] for b in server.bodies if step_of(b) == "rewrite"]
        assert len(rewritten) == len(set(rewritten)) >= 9
        assert results.spent.prompt_tokens == sum(prompt[step_of(b)] for b in server.bodies)


@pytest.mark.slow
def test_a_provider_without_n_pays_the_inner_prompt_per_completion_and_the_rest_once() -> None:
    def world(body: dict[str, Any], i: int) -> str:
        return chat(**{"rewrite": {"sum": "s"}, "solve": {"number": "1"}, "report": {"answer": "1"}}[step_of(body)])

    with Loopback(world, faults=Faults(ignore_n=True)) as server, dspy.context(lm=server.lm()):
        pipeline = optimizer(
            cost_unit=Cost(prompt_tokens=1), candidates=[PLAIN], max_n=4, budget=60, preferences=[Preference("q")]
        ).compile(Pipeline(), trainset=asked(5), inner="solve")
        by_step: dict[str, set[int]] = {"rewrite": set(), "solve": set(), "report": set()}
        for body in server.bodies:
            if step_of(body) == "solve" and PLAIN not in body["messages"][0]["content"]:
                continue  # the student as it is: it is drawn for the unit of costs
            by_step[step_of(body)].add(sum(len(str(m["content"]).split()) for m in body["messages"]))
    (around_1,), (each,), (around_2,) = by_step["rewrite"], by_step["solve"], by_step["report"]
    found = pipeline.detailed_results.costs[0]
    assert found[1] - found[0] == pytest.approx(each, rel=0.35)  # some pulls were still asked with n
    assert found[0] == pytest.approx(around_1 + around_2 + each, rel=0.06)


def test_it_is_saved_and_loaded_with_the_lms_of_a_fresh_pipeline(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.json"
    with Loopback(pipeline_world) as server, dspy.context(lm=server.lm(seed=1)):
        pipeline = optimizer(budget=90).compile(Pipeline(), trainset=asked(12), inner="solve")
        pipeline.rewrite.signature = pipeline.rewrite.signature.with_instructions("Rewritten since.")
        pipeline.save(path)
        assert "sk-loopback-secret" not in path.read_text() and server.base not in path.read_text()

        fresh = Pipeline()
        fresh.rewrite.lm = own = server.lm("openai/own", seed=1)
        loaded = attach(fresh, "solve")
        with pytest.raises(ConfigurationError, match="no policy yet"):
            loaded(question="What are 1 and 2?")
        loaded.load(path)
        assert isinstance(fresh.solve, dspy.Predict)  # the fresh one is as it was
        assert loaded.solve.solve("quality") == pipeline.solve.solve("quality")
        assert loaded.solve.solve(Preference(cost=2.0)) == pipeline.solve.solve(Preference(cost=2.0))
        assert loaded.rewrite.signature.instructions == "Rewritten since."
        assert loaded.rewrite.lm is own
        server.bodies.clear()
        assert loaded(question="What are 5 and 7?").answer == "12"
        assert [b["model"] for b in server.bodies][:2] == ["own", "fake"]


@pytest.mark.slow
def test_a_run_that_died_goes_on_with_the_answers_it_had(tmp_path: Path) -> None:
    def run(server: Loopback, log_dir: Path | None, **kwargs: Any) -> Any:
        with dspy.context(lm=server.lm(seed=1)):
            return optimizer(log_dir=log_dir, num_threads=4, budget=90, **kwargs).compile(
                Pipeline(), trainset=asked(12), inner="solve"
            )

    def comparable(pipeline: Any) -> dict[str, Any]:
        state = state_of(pipeline.solve)
        return {k: v for k, v in state.items() if k != "spent"}

    with Loopback(pipeline_world) as server:
        whole = run(server, None)
        bill = Counter(body["seed"] for body in server.bodies)
    assert max(bill.values()) == 1

    class Killed(Exception):
        pass

    with Loopback(pipeline_world) as server:
        for limit in (25, 60):

            def stop(progress: Any, limit: int = limit) -> None:
                if progress.completions >= limit:
                    raise Killed

            with pytest.raises(Killed):
                run(server, tmp_path, progress=stop)
        resumed = run(server, tmp_path)
        again = Counter(body["seed"] for body in server.bodies)
        assert set(again) == set(bill)
        assert sum(again.values()) - len(again) <= 2 * 4 * 12  # only what was in flight
        rewrites = Counter(b["seed"] for b in server.bodies if step_of(b) == "rewrite")
        assert max(rewrites.values()) <= 2
        requests = server.requests
        finished = run(server, tmp_path)
        assert server.requests == requests  # a finished run asks nothing again
    assert comparable(resumed) == comparable(whole) == comparable(finished)
    _, records = read_ledger(tmp_path)
    completions = [r for r in records if isinstance(r, CompletionRecord)]
    queries = {r.query for r in records if isinstance(r, CallRecord)}
    assert len(queries) >= 8
    assert all(r.inner is not None and r.inner["inputs"]["sum"].count("draft") == 1 for r in completions)
    assert all(len({r.inner["inputs"]["sum"] for r in completions if r.query == x and r.inner}) == 1 for x in queries)
    with Loopback(pipeline_world) as server, pytest.raises(LedgerMismatch, match="around"):
        other = Pipeline()
        other.report.signature = other.report.signature.with_instructions("Other.")
        with dspy.context(lm=server.lm(seed=1)):
            optimizer(log_dir=tmp_path, num_threads=4, budget=90).compile(other, trainset=asked(12), inner="solve")


# -- semantics


@pytest.mark.slow
def test_a_step_after_the_inner_module_that_fails_leaves_the_vote_and_costs_the_score() -> None:
    class Fussy(Pipeline):
        def forward(self, question: str) -> dspy.Prediction:
            found = self.solve(sum=question)
            if found.number == "2":
                raise ValueError("two is too many")
            return dspy.Prediction(answer=found.number)

    def world(body: dict[str, Any], i: int) -> str:
        return chat(number="1" if i % 3 == 0 else "2")

    with Loopback(world) as server, dspy.context(lm=server.lm()):
        pipeline = optimizer(
            candidates=[PLAIN], budget=120, max_n=8, metric=lambda e, p, t=None: p.answer == "1"
        ).compile(Fussy(), trainset=asked(4), inner="solve")
    results = pipeline.detailed_results
    # The wrong answer has two thirds of the votes: it would be chosen, and the pipeline would fail.
    assert results.reward[0, 0, 0] == pytest.approx(1 / 3, abs=0.1)
    assert results.reward[0, 0, 7] < 0.3
    assert results.failures.total == pytest.approx(results.failures.completions * 2 / 3, abs=2)
    assert "two is too many" in str(results.failures)


@pytest.mark.slow
def test_votes_do_not_even_out_what_is_before_the_inner_module() -> None:
    """Half of the drafts mislead every reader: a deployed call has one draft, and so have all draws of a query."""
    drafts: list[str] = []

    def world(body: dict[str, Any], i: int) -> str:
        if step_of(body) == "rewrite":
            drafts.append("good" if len(drafts) % 2 else "bad")
            return chat(sum=drafts[-1])
        good = "good" in body["messages"][-1]["content"]
        if step_of(body) == "solve":
            return chat(number=("1" if good else "2") if i % 5 else "3")
        return chat(answer="1" if "\n1\n" in body["messages"][-1]["content"] else "2")

    with Loopback(world) as server, dspy.context(lm=server.lm()):
        pipeline = optimizer(
            candidates=[PLAIN, WORDY], budget=400, metric=lambda e, p, t=None: p.answer == "1"
        ).compile(Pipeline(), trainset=asked(8), inner="solve")
    assert len(drafts) == 8
    single, voted = pipeline.detailed_results.reward[0][:, [0, 7]].T
    assert single == pytest.approx(0.4, abs=0.06)
    assert voted == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("times", [0, 2])
def test_an_inner_module_that_is_not_called_exactly_once_is_a_failure_that_says_so(times: int) -> None:
    class Other(Pipeline):
        def forward(self, question: str) -> dspy.Prediction:
            for _ in range(times):
                try:
                    self.solve(sum=question)
                except ConfigurationError:  # whatever a pipeline makes of it
                    pass
            return dspy.Prediction(answer="1")

    said = "not at all" if times == 0 else "2 times"
    with Loopback(lambda body, i: chat(number="1")) as server, dspy.context(lm=server.lm()):
        with pytest.raises(TooManyErrors, match=f"called its inner module {said}"):
            optimizer(budget=64).compile(Other(), trainset=asked(4), inner="solve")
        assert server.completions <= 64


@pytest.mark.slow
def test_objectives_of_best_of_n_see_the_inner_module() -> None:
    seen: list[tuple[set[str], set[str]]] = []

    def brief(example: dspy.Example, prediction: dspy.Prediction) -> float:
        seen.append((set(example.keys()), set(prediction.keys())))
        assert "draft" in example.sum
        return float(len(prediction.number) <= 2)

    with Loopback(pipeline_world) as server, dspy.context(lm=server.lm(seed=1)):
        pipeline = optimizer(strategy=BestOfN([Objective("brief", brief)]), metric=None, budget=60).compile(
            Pipeline(), trainset=asked(8), inner="solve"
        )
        pipeline(question="What are 5 and 7?")
    assert set(map(str, seen)) == {str(({"sum"}, {"number"}))}
    assert pipeline.detailed_results.policy[0].reward == pytest.approx(1.0, abs=0.02)


def test_an_inner_module_that_takes_anything_has_the_inputs_of_its_predictors() -> None:
    class Anything(Two):
        def forward(self, **inputs: Any) -> dspy.Prediction:  # type: ignore[override]
            return super().forward(**inputs)

    assert inner_inputs(Anything()) == ["question", "sum"]
    assert inner_inputs(Two()) == ["question"]
    assert inner_inputs(dspy.ChainOfThought("a, b -> c")) == ["a", "b"]


def test_decoding_is_the_inner_modules_and_other_steps_are_asked_as_always() -> None:
    with Loopback(pipeline_world) as server, dspy.context(lm=server.lm(max_tokens=50)):
        student = Pipeline()
        student.report.config["temperature"] = 0.0
        optimizer(decoding=Decoding(temperature=0.6, max_tokens=33), budget=48).compile(
            student, trainset=asked(4), inner="solve"
        )
        sent = {(step_of(b), b.get("temperature"), b["max_tokens"]) for b in server.bodies}
    assert sent == {("rewrite", None, 50), ("solve", 0.6, 33), ("report", 0.0, 50)}


def test_inputs_that_differ_for_another_reason_than_lms_are_told(caplog: pytest.LogCaptureFixture) -> None:
    numbers = iter(range(10**6))

    class Random(Pipeline):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer=self.solve(sum=f"1 + {next(numbers)}").number)

    with Loopback(pipeline_world) as server, dspy.context(lm=server.lm()), caplog.at_level(logging.WARNING):
        optimizer(budget=48).compile(Random(), trainset=asked(4), inner="solve")
    assert caplog.text.count("different inputs on one and the same example") == 1


class Nested(dspy.Module):
    """The inner module is a program of two predictors, deep inside, called with positional arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = {"first": Around()}

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=self.stages["first"](question).number)


class Two(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.Predict("question -> sum")
        self.say = dspy.Predict("sum -> number")

    def forward(self, question: str) -> dspy.Prediction:
        return self.say(sum=self.think(question=question).sum)


class Around(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock: Any = None
        self.solve = Two()

    def forward(self, question: str) -> dspy.Prediction:
        return self.solve(question)


@pytest.mark.slow
@pytest.mark.parametrize("copies", ["deeply", "part by part"])
def test_an_inner_program_of_several_predictors_deep_inside(copies: str, tmp_path: Path) -> None:
    import threading

    student = Nested()
    if copies == "part by part":
        student.client = threading.Lock()  # refuses to be copied
    candidates = {"think": ["Rewrite.", None], "say": INSTRUCTIONS}
    with Loopback(pipeline_world) as server, dspy.context(lm=server.lm(seed=1)):
        pipeline = optimizer(candidates=candidates, budget=130).compile(
            student, trainset=asked(10), inner="stages['first'].solve"
        )
        compiled = pipeline.stages["first"].solve
        assert isinstance(compiled, CompiledProgram) and isinstance(student.stages["first"].solve, Two)
        arm = compiled.solve("quality")
        options = compiled.policy.ready.prompts[arm.prompt].options
        assert options is not None and options["say"] == INSTRUCTIONS.index(PLAIN)
        pipeline.save(tmp_path / "nested.json")
        loaded = attach(Nested(), "stages[first].solve")
        loaded.load(tmp_path / "nested.json")
        assert loaded.stages["first"].solve.solve("quality") == arm
        assert loaded.deepcopy()(question="What are 2 and 3?").answer


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ("nowhere", r"no module of that name.*\['rewrite', 'solve', 'report'\]"),
        ("", "no module of that name"),
        ("self", "no module of that name"),
        (3, "no module of that name"),
    ],
)
def test_a_wrong_path_is_refused_before_any_call(inner: Any, said: str) -> None:
    with Loopback(pipeline_world) as server, dspy.context(lm=server.lm()):
        with pytest.raises(ConfigurationError, match=said):
            optimizer().compile(Pipeline(), trainset=asked(3), inner=inner)
        assert not server.requests


def test_other_settings_that_cannot_work_are_refused_before_any_call(tmp_path: Path) -> None:
    with Loopback(pipeline_world) as server, dspy.context(lm=server.lm(max_tokens=20)):
        with pytest.raises(ConfigurationError, match="draws one request per completion"):
            optimizer(batch=True, log_dir=tmp_path).compile(Pipeline(), trainset=asked(3), inner="solve")
        with pytest.raises(ConfigurationError, match=r"'answer'.*number"):
            optimizer(strategy=MajorityVote("answer")).compile(Pipeline(), trainset=asked(3), inner="solve")
        with pytest.raises(ConfigurationError, match="question"):
            optimizer().compile(Pipeline(), trainset=[dspy.Example(x=1).with_inputs("x")], inner="solve")
        with pytest.raises(ConfigurationError, match="needs a program around it"):
            attach("no program", "solve")
        student = Pipeline()
        student.report.lm = dspy.LM("openai/unpriced")
        with pytest.raises(ConfigurationError, match="max_tokens"):
            optimizer(budget=Budget(100, tokens=10_000)).compile(student, trainset=asked(3), inner="solve")
        quote = optimizer().quote(Pipeline(), trainset=asked(3), inner="solve", output_tokens=10)
        assert quote.expected is not None and quote.requests == 3 * 200 and "made-up answers" in str(quote)
        assert not server.requests


def test_a_metric_may_read_fields_that_only_the_pipeline_makes_but_not_labels_that_nobody_has() -> None:
    class Own(Pipeline):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(verdict=self.solve(sum="1 + 2").number)

    with Loopback(lambda body, i: chat(number="3")) as server, dspy.context(lm=server.lm()):
        for metric in (lambda e, p, t=None: p.verdict == "3", lambda e, p, t=None: p["verdict"] == "3"):
            own = optimizer(metric=metric, budget=12).compile(Own(), trainset=asked(4), inner="solve")
            assert own.detailed_results.failures.total == 0
        requests = server.requests
        for wrong in (lambda e, p, t=None: p.answer == e.anwser, lambda e, p, t=None: p["answer"] == e["anwser"]):
            with pytest.raises(ScoreError, match="anwser"):
                optimizer(metric=wrong, budget=12).compile(Own(), trainset=asked(4), inner="solve")
        with pytest.raises(ScoreError, match="returned 2"):
            optimizer(metric=lambda e, p, t=None: 2, budget=12).compile(Own(), trainset=asked(4), inner="solve")
        assert server.requests == requests


@pytest.mark.slow
def test_a_budget_of_tokens_pays_for_all_steps(caplog: pytest.LogCaptureFixture) -> None:
    with (
        Loopback(pipeline_world) as server,
        dspy.context(lm=server.lm(max_tokens=30)),
        caplog.at_level(logging.WARNING),
    ):
        pipeline = optimizer(budget=Budget(200, tokens=9_000)).compile(Pipeline(), trainset=asked(12), inner="solve")
        spent = pipeline.detailed_results.spent
        assert server.prompt_tokens + server.completion_tokens == spent.tokens <= 9_000
    assert not pipeline.detailed_results.complete and "ended the run early" in caplog.text


@pytest.mark.slow
def test_a_pipeline_with_a_compiled_module_is_compiled_again_for_another_one() -> None:
    with Loopback(pipeline_world) as server, dspy.context(lm=server.lm(seed=1)):
        first = optimizer(budget=90).compile(Pipeline(), trainset=asked(8), inner="solve")
        n = first.solve.solve().n
        assert n > 1
        server.bodies.clear()
        second = optimizer(
            strategy=MajorityVote("answer"), candidates=["Copy the number.", "Repeat it."], budget=32
        ).compile(first, trainset=asked(8), inner="report")
        counts: Counter[str] = Counter()
        for body in server.bodies:
            counts[step_of(body)] += body.get("n", 1)
        # The votes of the first module stand in front of the second: they are cast once per question.
        visited = counts["rewrite"]
        assert 2 < visited <= 8
        assert counts == {"rewrite": visited, "solve": visited * n, "report": counts["report"]}
        assert 20 <= counts["report"] <= 32
        assert isinstance(second.solve, CompiledProgram) and isinstance(second.report, CompiledProgram)
        assert second.solve.solve() == first.solve.solve()
        assert second(question="What are 5 and 7?").answer == "12"


@pytest.mark.slow
def test_a_valset_measures_the_pipeline() -> None:
    with Loopback(pipeline_world) as server, dspy.context(lm=server.lm(seed=1)):
        data = asked(20)
        pipeline = optimizer(budget=150).compile(Pipeline(), trainset=data[:12], valset=data[12:], inner="solve")
        assert steps(server)["rewrite"] <= 20
    held_out = pipeline.detailed_results.policy[0].held_out
    assert held_out is not None and held_out.queries > 2 and not math.isnan(held_out.utility)
    assert json.dumps(pipeline.solve.policy.dump_state())
