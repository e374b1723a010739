"""Judges that compare, against real servers on loopback: metered, resumed, deployed, and without a single label."""

import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

import iapo_dspy
from iapo_dspy import IAPO, BestOfN, Budget, Cost, MajorityVote, Mixed, Preference, objectives
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.program.results.compile_result import CompileResult
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import CAREFUL, INSTRUCTIONS, LAZY, adder, after_ideas, questions, student

QUALITY = Preference("quality", cost=0.0)
QUERIES = 16


def unlabelled(n: int, start: int = 1) -> list[dspy.Example]:
    """Questions of `worlds` with nothing but their inputs."""
    return [dspy.Example(question=e.question).with_inputs("question") for e in questions(n, start)]


def shown(body: dict[str, Any]) -> tuple[str, str, str]:
    """Return the question and both answers that a judge is shown."""
    user = body["messages"][-1]["content"]
    question, first, second = (
        re.search(rf"\[\[ ## {name} ## \]\]\n(.*)", user) for name in ("question", "first_answer", "second_answer")
    )
    assert question and first and second
    return question[1].strip(), first[1].strip(), second[1].strip()


def fair(body: dict[str, Any], i: int = 0) -> str:
    """A judge that adds up the question itself."""
    question, first, second = shown(body)
    right = str(sum(int(x) for x in question.split(" + ")))
    return chat(better="tie" if (first == right) == (second == right) else "first" if first == right else "second")


def biased(share: float) -> Any:
    """A judge that names the first place in this share of its verdicts, whatever stands there."""

    def judge(body: dict[str, Any], i: int) -> str:
        rng = random.Random(str(body["messages"]))
        return chat(better="first") if rng.random() < share else fair(body)

    return judge


class Seeded:
    """Answers as the adder does, with a seed for the first, second, ... request of the same messages."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()

    def __call__(self, body: dict[str, Any], i: int) -> str:
        if body.get("seed") is None:
            with self.lock:
                messages = str(body["messages"])
                body["seed"] = f"{messages}{self.asked[messages]}"
                self.asked[messages] += 1
        return adder(body, i)


@pytest.fixture
def world() -> Iterator[Loopback]:
    with Loopback(Seeded()) as server, dspy.context(lm=server.lm()):
        yield server


def optimizer(metric: Any, **settings: Any) -> IAPO:
    return optimizers(metric=metric, strategy="majority", budget=160)(QUALITY, **settings)


def compiled(metric: Any, n: int = QUERIES, **settings: Any) -> Any:
    return optimizer(metric, **settings).compile(student(), trainset=unlabelled(n))


def result_of(program: Any) -> CompileResult:
    result = program.detailed_results
    assert isinstance(result, CompileResult)
    return result


# -- the best prompt, without labels and scores


@pytest.mark.parametrize(("strategy", "max_n"), [("majority", 4), ("majority", 1), ("best_of_n", 4), ("best_of_n", 1)])
def test_the_best_prompt_is_found_without_labels(world: Loopback, strategy: str, max_n: int) -> None:
    with Loopback(fair) as judge:
        metric = objectives.prefers(judge.lm(cache=True))
        program = compiled(metric, strategy=strategy, max_n=max_n)
        result, row = result_of(program), result_of(program).policy[0]
        assert CAREFUL in row.label
        found = row.wins["metric"]
        # The student is right once in five, and the careful one four times: .8 * .8 won, .2 * .2 lost, alone
        assert found.rate > 0.6 and found.wins > found.losses and found.measured
        assert found.interval is not None
        assert found.interval[0] < found.rate <= found.interval[1]
        assert found.wins + found.ties + found.losses == pytest.approx(1.0)
        assert result.bias["metric"].contradicted == 0 and result.bias["metric"].compared > QUERIES
        assert metric.bias() == result.bias["metric"]
        assert f"{found.rate:.3f}" in str(result) and "0 of" in str(result)
        plain = result.to_dict()
        assert plain["wins"]["quality"]["metric"]["queries"] == found.queries
        assert plain["position_bias"]["metric"]["compared"] == result.bias["metric"].compared


@pytest.mark.slow
def test_mixed_strategies_name_the_comparison_by_its_column(world: Loopback) -> None:
    with Loopback(fair) as judge:
        strategy = Mixed(MajorityVote("answer"), objectives=[objectives.prefers(judge.lm(cache=True), name="better")])
        preference = Preference("both", cost=0.0, weights={"metric": 1.0, "better": 1.0})
        metric = objectives.prefers(judge.lm(cache=True))
        program = optimizers(metric=metric, strategy=strategy, budget=200)(preference).compile(
            student(), trainset=unlabelled(16)
        )
        result = result_of(program)
        assert set(result.bias) == {"metric", "better"} == set(result.policy[0].wins)
        assert result.bias["metric"] == result.bias["better"]  # the same judge and the same opponents


@pytest.mark.slow
def test_a_prompt_against_itself_comes_out_at_a_half(world: Loopback) -> None:
    with Loopback(fair) as judge:
        metric = objectives.prefers(judge.lm(cache=True), baseline=student())
        program = optimizer(metric, max_n=1, budget=600).compile(
            student(), trainset=unlabelled(120), candidates=[student()]
        )
        found = result_of(program).policy[0].wins["metric"]
        assert found.queries > 100 and abs(found.rate - 0.5) < 0.1  # the standard error is 0.03


# -- judges that are not fair


def test_a_judge_of_places_is_found_out_and_chooses_nothing(world: Loopback) -> None:
    with Loopback(lambda body, i: chat(better="second")) as judge:
        metric = objectives.prefers(judge.lm(cache=True))
        result = result_of(compiled(metric, max_n=1))
        found = result.bias["metric"]
        assert found.compared == found.contradicted > 10 and found.share == 0.0
        assert result.policy[0].wins["metric"].rate == 0.5
        assert "the first place wins 0%" in str(result)


@pytest.mark.slow
def test_bias_is_measured_and_both_orders_take_it_out(world: Loopback) -> None:
    with Loopback(biased(0.7)) as judge:
        metric = objectives.prefers(judge.lm(cache=True))
        program = compiled(metric, n=40, max_n=1, budget=300)
        found = result_of(program).bias["metric"]
        asked = Counter(tuple(sorted(shown(body))) for body in judge.bodies)
        assert set(asked.values()) == {2}  # each pair once in each order
        verdicts = {shown(body): biased(0.7)(body, 0) for body in judge.bodies}
        turned = {pair: verdicts[(pair[0], pair[2], pair[1])] for pair in verdicts}
        contradicted = [p for p, v in verdicts.items() if v == turned[p] and "tie" not in v]
        assert found.compared == len(asked) and found.contradicted == len(contradicted) // 2
        assert found.first * 2 == sum("first" in verdicts[p] for p in contradicted)
        assert found.interval is not None and found.share > 0.8 and found.interval[0] > 0.5
        assert CAREFUL in result_of(program).policy[0].label


def test_a_verdict_that_cannot_be_read_is_a_failure_with_its_text(world: Loopback) -> None:
    with Loopback(lambda body, i: "Both are fine, first and second.") as judge:
        strategy = BestOfN([objectives.prefers(judge.lm(cache=True), baseline=lambda question: "nothing")])
        read = strategy.read({"question": "1 + 2"}, dspy.Prediction(answer="3"))
        assert read.scores is None and read.failure is not None
        assert "Both are fine" in read.failure and "'tie'" in read.failure


# -- money


def test_a_resumed_run_has_the_same_opponents_and_repeats_no_paid_call(world: Loopback, tmp_path: Path) -> None:
    with Loopback(fair) as judge, Loopback(Seeded()) as other:
        opponent = student()
        opponent.set_lm(other.lm())  # its cache is off: the run keeps its answers all the same

        def metric() -> Any:
            return objectives.prefers(judge.lm(cache=True), baseline=opponent)

        first = compiled(metric(), log_dir=tmp_path, max_n=1)
        asked = world.requests, judge.requests, other.requests
        assert asked[2] == QUERIES  # one for each question
        again = metric()
        second = compiled(again, log_dir=tmp_path, max_n=1)
        assert (world.requests, judge.requests, other.requests) == asked
        assert result_of(second).bias == result_of(first).bias and again.bias() == result_of(first).bias["metric"]
        assert result_of(second).policy[0].wins == result_of(first).policy[0].wins
        # another criterion scores anew, against the same opponents
        compiled(objectives.prefers(judge.lm(cache=True), baseline=opponent, criterion="The shorter one."),
                 log_dir=tmp_path, max_n=1)  # fmt: skip
        assert other.requests == asked[2] and judge.requests > asked[1]


def test_a_run_that_ends_early_goes_on_with_its_opponents(world: Loopback, tmp_path: Path) -> None:
    with Loopback(fair) as judge, Loopback(Seeded()) as other:
        opponent = student()
        opponent.set_lm(other.lm(temperature=1.0))
        for budget in (50, 160):
            metric = objectives.prefers(judge.lm(cache=True), baseline=opponent)
            result = result_of(compiled(metric, log_dir=tmp_path, max_n=1, budget=budget))
        assert other.requests == QUERIES
        asked = Counter(str(body["messages"]) for body in judge.bodies)
        assert set(asked.values()) == {1}
        assert result.bias["metric"] == metric.bias()


def test_another_student_makes_other_opponents(world: Loopback, tmp_path: Path) -> None:
    def rate(instructions: str) -> float:
        program = dspy.Predict(dspy.Signature("question -> answer", instructions))
        metric = objectives.prefers(judge.lm(cache=True))
        made = optimizer(metric, log_dir=tmp_path, max_n=1, candidates=[CAREFUL], budget=80).compile(
            program, trainset=unlabelled(QUERIES)
        )
        return result_of(made).policy[0].wins["metric"].rate

    with Loopback(fair) as judge:
        assert rate(LAZY) > 0.65 > rate(CAREFUL)


def test_a_budget_of_dollars_holds_judges_and_opponents(world: Loopback) -> None:
    prices = Cost(usd_per_million=(1.0, 10.0))

    def billed(*servers: Loopback) -> float:
        return sum(s.prompt_tokens + 10.0 * s.completion_tokens for s in servers) / 1e6

    with Loopback(fair) as judge, Loopback(Seeded()) as other:
        opponent = student()
        opponent.set_lm(other.lm(max_tokens=40))
        metric = objectives.prefers(judge.lm(cache=True, max_tokens=20), baseline=opponent)
        with dspy.context(lm=world.lm(max_tokens=60)):
            program = compiled(metric, max_n=1, budget=Budget(usd=0.06), cost_unit=prices)
        spent = result_of(program).spent
        assert billed(world, judge, other) <= 0.06
        assert spent.usd == pytest.approx(billed(world, judge, other))
        assert spent.judge_usd == pytest.approx(billed(judge, other)) and other.requests > 0 < judge.requests


def test_a_judge_or_an_opponent_whose_price_is_not_known_is_refused_before_the_first_call(world: Loopback) -> None:
    with Loopback(fair) as judge:
        unknown = judge.lm("openai/never-heard-of", max_tokens=20)
        known = judge.lm(max_tokens=20)
        opponent = student()
        opponent.set_lm(unknown)
        prices = {"openai/fake": (1.0, 1.0)}
        for metric in (objectives.prefers(unknown, baseline=lambda question: "x"),
                       objectives.prefers(known, baseline=opponent)):  # fmt: skip
            with (
                dspy.context(lm=world.lm(max_tokens=60)),
                pytest.raises(ConfigurationError, match="never-heard-of"),
            ):
                compiled(metric, budget=Budget(usd=1.0), cost_unit=Cost(usd_per_million=prices))
        assert world.requests == judge.requests == 0


def test_a_mapping_that_lacks_a_query_is_refused_before_the_first_call(world: Loopback) -> None:
    with Loopback(fair) as judge:
        known = {e.question: "1" for e in unlabelled(QUERIES - 1)}
        with pytest.raises(ConfigurationError, match="no output for the query"):
            compiled(objectives.prefers(judge.lm(), baseline=known))
        assert world.requests == judge.requests == 0


# -- opponents


def test_an_opponent_that_cannot_be_read_loses_and_is_not_asked_again(world: Loopback, tmp_path: Path) -> None:
    with Loopback(fair) as judge, Loopback(lambda body, i: "I do not know the format.") as other:
        opponent = student()
        opponent.set_lm(other.lm())
        for _ in range(2):
            metric = objectives.prefers(judge.lm(), baseline=opponent)
            row = result_of(compiled(metric, max_n=1, log_dir=tmp_path)).policy[0]
            assert row.wins["metric"].rate == 1.0 and judge.requests == 0 and other.requests == QUERIES


def test_an_opponent_whose_provider_refuses_every_call_ends_the_run(world: Loopback) -> None:
    with Loopback(fair) as judge, Loopback(Seeded(), api_key="right") as other:
        opponent = student()
        opponent.set_lm(other.lm(api_key="wrong"))
        with pytest.raises(Exception, match=r"[Aa]uth|key"):
            compiled(objectives.prefers(judge.lm(), baseline=opponent))


def test_a_compiled_program_is_refused_because_nobody_counts_its_calls(world: Loopback) -> None:
    compiled_one = iapo_dspy.CompiledProgram(student())
    with pytest.raises(ConfigurationError, match="compiled program"):
        objectives.prefers(fair, baseline=compiled_one)
    assert world.requests == 0


def test_opponents_of_several_steps_are_run_once_for_a_query(world: Loopback) -> None:
    class Steps(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plan = dspy.Predict("question -> idea")
            self.ask = dspy.Predict("question, idea -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            return self.ask(question=question, idea=self.plan(question=question).idea)

    with Loopback(fair) as judge, Loopback(after_ideas(Seeded())) as other:
        opponent = Steps()
        opponent.set_lm(other.lm())
        compiled(objectives.prefers(judge.lm(cache=True), baseline=opponent), max_n=1)
        assert other.requests == 2 * QUERIES


def test_a_pipeline_is_compared_as_a_whole_where_its_result_is_the_metrics(world: Loopback) -> None:
    class Loud(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer=f"{self.ask(question=question).answer}!")

    def loud(example: dspy.Example, first: dspy.Prediction, second: dspy.Prediction) -> float:
        assert first.answer.endswith("!") and second.answer.endswith("!")
        right = f"{sum(int(x) for x in example.question.split(' + '))}!"
        return 0.5 + (first.answer == right) / 2 - (second.answer == right) / 2

    program = optimizer(objectives.prefers(loud), max_n=1).compile(
        Loud(), trainset=unlabelled(QUERIES), candidates=INSTRUCTIONS, inner="ask"
    )
    result = program.detailed_results
    assert CAREFUL in result.policy[0].label and result.failures.total == 0
    assert result.policy[0].wins["metric"].rate > 0.6


# -- deployed calls


def test_a_deployed_call_compares_with_one_opponent_and_reports_its_tokens(world: Loopback) -> None:
    with Loopback(fair) as judge:
        metric = objectives.prefers(judge.lm(), baseline=student())
        program = compiled(metric, strategy="best_of_n", max_n=4, stopping=None)
        arm = program.solve()
        assert arm.n > 1
        before = world.completions, world.prompt_tokens + world.completion_tokens, judge.requests
        tokens = judge.prompt_tokens + judge.completion_tokens
        called = program(question="400 + 500")
        assert world.completions - before[0] == arm.n + 1  # one opponent
        report = called.iapo
        own = report.prompt_tokens + report.completion_tokens
        paid = world.prompt_tokens + world.completion_tokens - before[1] - own
        paid += judge.prompt_tokens + judge.completion_tokens - tokens
        assert report.judge_tokens == paid > 0 and len(report.utilities) == arm.n


def test_waves_of_a_call_share_their_opponent(world: Loopback) -> None:
    with Loopback(lambda body, i: chat(better="tie")) as judge, Loopback(Seeded()) as other:
        opponent = student()
        opponent.set_lm(other.lm())
        better = objectives.prefers(judge.lm(cache=True), baseline=opponent)
        program = compiled(better, strategy="best_of_n", max_n=4)
        waves = iapo_dspy.types.Stop(waves=(1, 2, 3, 4))
        row = result_of(program).policy[0]
        arm = iapo_dspy.types.Arm(row.arm.prompt, 4, waves)
        asked = other.requests
        found = result_of(program).best()
        called = program.with_arm(type(found)(**{**vars(found), "arm": arm}))(question="7 + 8")
        assert called.iapo.waves == 4 and other.requests == asked + 1


def test_a_saved_program_duels_with_its_student(world: Loopback, tmp_path: Path) -> None:
    with Loopback(fair) as judge:
        lm = judge.lm("openai/judge")
        program = compiled(objectives.prefers(lm), strategy="best_of_n")
        program.save(tmp_path / "program.json")
        loaded = iapo_dspy.load(tmp_path / "program.json", lms=[lm])
        asked = judge.requests
        world.answer = lambda body, i: chat(answer="800" if any(p in str(body) for p in INSTRUCTIONS) else "799")
        assert loaded(question="300 + 500").answer == "800" and judge.requests == asked + 2
        was, now = result_of(program), result_of(loaded)
        assert now.bias == was.bias and [r.wins for r in now.policy] == [r.wins for r in was.policy]


def test_a_deployed_vote_asks_no_judge(world: Loopback) -> None:
    with Loopback(fair) as judge:
        program = compiled(objectives.prefers(judge.lm(cache=True)))
        asked = judge.requests
        program(question="3 + 4")
        assert judge.requests == asked
