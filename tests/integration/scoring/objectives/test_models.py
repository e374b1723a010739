"""Objectives that ask models, against real servers on loopback: judges, embeddings, served reward models."""

import concurrent.futures
import math
from typing import Any

import dspy
import pytest

from iapo_dspy import IAPO, BestOfN, Budget, Cost, Objective, Preference, objectives
from iapo_dspy.errors import AllCompletionsFailed, ConfigurationError, LabelRequired, LMRefused, ScoreError
from iapo_dspy.testing import check_objective
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.models import ModelServer
from tests.support.worlds import CAREFUL, QUICK, adder, questions, student, with_judge

EXAMPLE = dspy.Example(question="1 + 2", answer="3").with_inputs("question")
RUBRIC = "Is the sum right?"


world = with_judge(yes="10", no="2")


def said(text: str) -> Loopback:
    """A judge that always writes the same."""
    return Loopback(lambda body, i: text)


def optimizer(objective: Objective | list[Objective], **settings: Any) -> IAPO:
    several = objective if isinstance(objective, list) else [objective]
    return optimizers(strategy=BestOfN(several), metric=None, budget=90)(**settings)


def of(objective: Objective, example: dspy.Example = EXAMPLE, **fields: Any) -> float:
    return objective(example.inputs(), dspy.Prediction(**fields))


# -- judges


def test_a_judge_sees_inputs_rubric_and_answer_and_its_number_becomes_a_score() -> None:
    with said(chat(verdict="7/10")) as server:
        judge = objectives.judge(RUBRIC, lm=server.lm())
        assert of(judge, reasoning="because", answer="3") == 0.7
        system, user = (m["content"] for m in server.bodies[0]["messages"])
        assert RUBRIC in system and "from 0 (worst) to 10 (best)" in system and "not to be obeyed" in system
        assert "1 + 2" in user and "because" not in user  # a chain of thought is judged only where it is named
        everything = objectives.judge(RUBRIC, lm=server.lm(), fields=["answer", "reasoning"])
        of(everything, reasoning="because", answer="3")
        assert "because" in server.bodies[1]["messages"][-1]["content"]


def test_a_judge_may_think_aloud_and_give_words() -> None:
    with said(chat(reasoning="It is 3.", verdict="Partly.")) as server:
        judge = objectives.judge(RUBRIC, lm=server.lm(), scale={"no": 0, "partly": 0.5, "yes": 1}, reasoning=True)
        assert of(judge, answer="3") == 0.5
        assert "reasoning" in server.bodies[0]["messages"][0]["content"]


def test_fields_that_collide_with_the_judges_own_are_told_apart() -> None:
    with said(chat(judge_verdict="1")) as server:
        example = dspy.Example(answer="old").with_inputs("answer")
        assert of(objectives.judge(RUBRIC, lm=server.lm()), example, verdict="good", answer="new") == 0.1
        user = server.bodies[0]["messages"][-1]["content"]
        assert "[[ ## answer ## ]]\nold" in user and "[[ ## answer_of_completion ## ]]\nnew" in user


@pytest.mark.parametrize("text", ["8", "Score: **8**", "[[ ## verdict ## ]]\n8"])
def test_a_verdict_without_dspys_markers_is_read_without_asking_again(text: str) -> None:
    with said(text) as server:
        assert of(objectives.judge(RUBRIC, lm=server.lm()), answer="3") == 0.8
        assert server.requests == 1


@pytest.mark.parametrize("text", ["It depends.", chat(verdict="7 or 8"), chat(verdict="12"), ""])
def test_an_unreadable_verdict_is_a_failure_with_its_cause_and_never_a_zero(text: str) -> None:
    with said(text) as server:
        strategy = BestOfN([objectives.judge(RUBRIC, lm=server.lm())])
        read = strategy.read({"question": "1 + 2"}, dspy.Prediction(answer="3"))
        assert read.scores is None and read.error and read.failure is not None
        assert "erdict" in read.failure or "Empty" in read.failure
        scored = strategy.score(EXAMPLE, dspy.Prediction(answer="3"), None)
        assert scored.scores is None and scored.failure == read.failure


def test_a_judge_of_an_objective_counts_in_the_runs_budget_and_judges_equal_answers_once() -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1, cache=True)):
        results = optimizer(objectives.judge(RUBRIC), candidates=[QUICK]).compile(student(), trainset=questions(3))
        spent = results.detailed_results.spent
        assert spent.completions > 3 == spent.judge_requests  # QUICK says the same to a question every time
        assert spent.requests == server.requests
        assert spent.tokens == server.prompt_tokens + server.completion_tokens and spent.judge_tokens > 0
        before = server.requests
        program = optimizer(objectives.judge(RUBRIC, lm=server.lm("openai/judge"))).compile(
            student(), trainset=questions(8)
        )
        results = program.detailed_results
        assert results.spent.requests == server.requests - before and results.spent.judge_requests > 0
        assert results.labels[program.solve("quality").prompt] == CAREFUL
        assert results.failures.total == 0


def test_a_dollar_budget_holds_with_a_judge_and_is_checked_before_the_first_call() -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm(max_tokens=60)):
        judge = objectives.judge(RUBRIC, lm=server.lm("openai/judge"))
        chooser = optimizer(judge, budget=Budget(90, tokens=9_000))
        with pytest.raises(ConfigurationError, match=r"count in the budget.*'openai/judge'"):
            chooser.compile(student(), trainset=questions(3))
        assert server.requests == 0
        cost = Cost(completion_tokens=1, usd_per_million=(1000.0, 1000.0))
        judge = objectives.judge(RUBRIC, lm=server.lm("openai/judge", max_tokens=60))
        chooser = optimizer(judge, budget=Budget(300, usd=12.0), cost_unit=cost)
        results = chooser.compile(student(), trainset=questions(9))
        billed = (server.prompt_tokens + server.completion_tokens) * 1e-3
        assert billed <= 12.0 and results.detailed_results.spent.usd == pytest.approx(billed)


def compiled(server: Loopback, objective: Objective | list[Objective], **kwargs: Any) -> Any:
    with dspy.context(lm=server.lm(seed=1)):
        settings = {"preferences": [Preference("quality")], "candidates": [CAREFUL], **kwargs}
        return optimizer(objective, **settings).compile(student(), trainset=questions(4))


def test_a_deployed_call_reports_its_judges_tells_the_users_tracker_and_keeps_out_of_the_trace() -> None:
    with Loopback(world) as server, Loopback(world) as other:
        lm = other.lm("openai/judge", input_cost_per_token=1e-3, output_cost_per_token=2e-3)
        program = compiled(server, objectives.judge(RUBRIC, lm=lm))
        assert program.solve().n == 4
        asked, prompt, completion = other.requests, other.prompt_tokens, other.completion_tokens
        with (
            dspy.context(lm=server.lm(seed=2), trace=[], disable_history=False),
            dspy.track_usage() as usage,
        ):
            mine, theirs = server.prompt_tokens, server.completion_tokens
            report = program(question="17 + 25").iapo
            trace = list(dspy.settings.trace)
        prompt, completion = other.prompt_tokens - prompt, other.completion_tokens - completion
        assert report.judge_tokens == prompt + completion > 0
        assert report.judge_usd == pytest.approx(prompt * 1e-3 + completion * 2e-3)
        assert report.prompt_tokens == server.prompt_tokens - mine  # the task's are as they were
        assert report.completion_tokens == server.completion_tokens - theirs
        assert report.cost == report.completion_tokens  # what the arm was chosen by
        total = usage.get_total_tokens()
        assert total["openai/judge"]["completion_tokens"] == completion
        assert total["openai/fake"]["completion_tokens"] == report.completion_tokens
        assert len(lm.history) == other.requests - asked > 0
        assert [list(step[0].signature.output_fields) for step in trace] == [["answer"]]  # and no verdict


def test_equal_answers_of_one_call_are_judged_once_and_different_ones_each() -> None:
    def task(body: dict[str, Any], i: int) -> str:
        return chat(answer=str(3 + i % 2))  # 3 and 4 in turn

    with Loopback(task) as server, Loopback(world, latency=0.05) as other:
        program = compiled(server, objectives.judge(RUBRIC, lm=other.lm(cache=False)))
        before = other.requests
        with dspy.context(lm=server.lm(seed=2)):
            prediction = program(question="1 + 2")
        assert prediction.iapo.n == 4 and prediction.answer == "3"
        assert sorted(prediction.iapo.utilities) == pytest.approx([0.2, 0.2, 1.0, 1.0])
        assert other.requests - before == 2


def test_an_unknown_price_makes_the_sum_unknown_and_calls_without_a_judge_cost_nothing() -> None:
    with Loopback(world) as server:
        program = compiled(server, objectives.judge(RUBRIC))
        with dspy.context(lm=server.lm(seed=2)):
            report = program(question="17 + 25").iapo
        assert report.judge_tokens > 0 and report.judge_usd is None
        program = compiled(server, objectives.length("answer", most=1))
        with dspy.context(lm=server.lm(seed=2)):
            report = program(question="17 + 25").iapo
        assert (report.judge_tokens, report.judge_usd) == (0, 0.0)


@pytest.mark.slow
def test_judges_of_threads_that_dspy_starts_are_counted_too() -> None:
    def right(example: dspy.Example, pred: dspy.Prediction) -> float:
        judge = dspy.Predict("question, answer -> verdict")
        judge.signature = judge.signature.with_instructions(RUBRIC)
        asked = dspy.Example(question=example.question, answer=pred.answer).with_inputs("question", "answer")
        (found,) = dspy.Parallel(num_threads=1, disable_progress_bar=True)([(judge, asked)])
        return float(found.verdict) / 10

    with Loopback(world) as server:
        program = compiled(server, Objective("right", right), budget=16)
        before = server.prompt_tokens + server.completion_tokens
        with dspy.context(lm=server.lm(seed=2)):
            report = program(question="17 + 25").iapo
        took = server.prompt_tokens + server.completion_tokens - before
        assert report.judge_tokens == took - report.prompt_tokens - report.completion_tokens > 0


def test_judges_conform() -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm()):
        cases = questions(3)
        answers = [dspy.Prediction(answer=e.answer) for e in cases]
        check_objective(objectives.judge(RUBRIC), cases, answers)
    with ModelServer() as models:
        settings = {"model": "openai/e", "api_base": models.base + "/v1", "api_key": "sk-loopback"}
        check_objective(objectives.similarity("answer", "question", **settings), cases, answers)
        for endpoint in ("pooling", "classify", "score"):
            served = objectives.served_reward_model("rm", models.base, endpoint=endpoint)
            check_objective(served, cases, answers)


# -- embeddings

VECTORS = {"north": [0.0, 2.0], "east": [3.0, 0.0], "south": [0.0, -1.0], "north-east": [1.0, 1.0], "zero": [0.0, 0.0]}


def vector(text: str) -> list[float]:
    return VECTORS.get(text) or [float(sum(map(ord, text)) % 7 + 1), 1.0]


def similar(server: ModelServer, *args: Any, **kwargs: Any) -> Objective:
    settings = {"model": "openai/embed", "api_base": f"{server.base}/v1", "api_key": "sk-loopback", **kwargs}
    return objectives.similarity("answer", *args, **settings)


@pytest.mark.parametrize(
    ("answer", "score"),
    [("north", 1.0), ("east", 0.5), ("south", 0.0), ("north-east", (1 + math.sqrt(0.5)) / 2)],
)
def test_similarity_is_the_cosine_from_zero_to_one(answer: str, score: float) -> None:
    with ModelServer(vector=vector) as server:
        assert of(similar(server, text="north"), answer=answer) == pytest.approx(score)
        example = dspy.Example(where="north").with_inputs("where")
        assert of(similar(server, "where"), example, answer=answer) == pytest.approx(score)
        assert server.requests["/v1/embeddings"] == 2  # both texts in one request


def test_every_text_is_embedded_once_however_many_threads_want_it() -> None:
    with ModelServer(vector=vector, latency=0.02) as server:
        objective = similar(server, "to the north of here")  # no name, so it is the text itself
        answers = ["north", "east", "south", "north-east"] * 8
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            scores = list(pool.map(lambda a: of(objective, answer=a), answers))
        assert len(set(scores)) == 4 and server.embedded == dict.fromkeys(["to the north of here", *answers[:4]], 1)
        assert server.most_in_flight > 1


def test_texts_that_cannot_be_compared_are_failures() -> None:
    with ModelServer(vector=vector) as server:
        with pytest.raises(ScoreError, match="no text to embed"):
            of(similar(server, text="north"), answer=" ")
        with pytest.raises(ScoreError, match="as zeros"):
            of(similar(server, text="north"), answer="zero")
    broken = ModelServer(vector=lambda text: [float("nan")])
    with broken as server, pytest.raises(Exception, match=r"nan|finite|NaN"):
        of(similar(server, text="north", num_retries=0), answer="x")


def test_embeddings_are_asked_for_again_and_failures_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.concurrency.retrying.backoff", lambda *a: 0.01)
    with ModelServer(vector=vector, first=[500, 429, "drop"]) as server:
        assert of(similar(server, text="north"), answer="east") == 0.5
        assert server.requests["/v1/embeddings"] == 4
    with ModelServer(vector=vector, first=[400]) as server:
        objective = similar(server, text="north")
        with pytest.raises(Exception, match="Fault"):
            of(objective, answer="east")
        assert of(objective, answer="east") == 0.5
        assert server.requests["/v1/embeddings"] == 2


@pytest.mark.slow
def test_embeddings_count_in_a_runs_budget_as_judges_do() -> None:
    prices = {"openai/fake": (0.0, 0.0), "openai/embed": (1000.0, 0.0)}
    cost = Cost(completion_tokens=1, usd_per_million=prices)
    with Loopback(adder) as task, ModelServer(vector=vector) as server, dspy.context(lm=task.lm(seed=1, max_tokens=60)):
        objective = similar(server, "question")
        results = optimizer(objective, cost_unit=cost).compile(student(), trainset=questions(6)).detailed_results
        spent = results.spent
        assert spent.judge_requests == server.requests["/v1/embeddings"] > 0
        assert spent.judge_tokens == server.tokens and spent.judge_usd == pytest.approx(server.tokens * 1e-3)
        assert set(server.embedded.values()) == {1}
        with ModelServer(vector=vector) as other:
            chooser = optimizer(similar(other, "question"), cost_unit=cost, budget=Budget(90, usd=0.03))
            results = chooser.compile(student(), trainset=questions(6)).detailed_results
            assert 0 < other.tokens * 1e-3 <= 0.03 and not results.complete
            assert results.failures.total == 0  # what could not be paid for is no failure of a prompt
        with ModelServer(vector=vector) as other:
            chooser = optimizer(similar(other, "question"), budget=Budget(90, usd=1.0), cost_unit=Cost())
            with pytest.raises(ConfigurationError, match=r"price.*openai/(embed|fake)"):
                chooser.compile(student(), trainset=questions(6))
            assert not other.requests


def test_embeddings_of_a_deployed_call_are_in_its_report_and_in_the_users_tracker() -> None:
    with Loopback(adder) as task, ModelServer(vector=vector) as server:
        program = compiled(task, similar(server, "question", input_cost_per_token=1e-3))
        before = server.tokens
        with dspy.context(lm=task.lm(seed=2)), dspy.track_usage() as usage:
            report = program(question="1234 + 4321").iapo
        took = server.tokens - before
        assert report.judge_tokens == took > 0 and report.judge_usd == pytest.approx(took * 1e-3)
        assert usage.get_total_tokens()["openai/embed"]["total_tokens"] == took


def test_an_embedding_model_with_a_wrong_key_stops_the_run_at_once() -> None:
    with Loopback(adder) as task, ModelServer(vector=vector, api_key="right") as server:
        with dspy.context(lm=task.lm(seed=1)), pytest.raises(LMRefused, match="every call of the metric") as caught:
            optimizer(similar(server, "question", api_key="sk-wrong-1234567890")).compile(
                student(), trainset=questions(3)
            )
        assert "wrong-1234567890" not in str(caught.value)


def test_similarity_to_a_label_is_refused_before_the_first_call() -> None:
    with Loopback(adder) as task, ModelServer() as server, dspy.context(lm=task.lm()):
        with pytest.raises(LabelRequired, match="`answer`"):
            optimizer(similar(server, "answer")).compile(student(), trainset=questions(3))
        assert task.requests == 0 and not server.requests


# -- reward models on a server


def test_what_the_endpoints_are_sent_and_what_they_answer() -> None:
    def logits(shown: Any) -> Any:
        text = shown if isinstance(shown, str) else shown[-1]
        return [float(len(text["content"] if isinstance(text, dict) else text))]

    with ModelServer(logits=logits, model="rm") as server:
        served = objectives.served_reward_model("rm", f"{server.base}/v1/")
        assert served.name == "rm" and served.calibrate == "minmax"
        assert of(served, answer="fifteen letters") == 15.0
        turns = [{"role": "user", "content": "1 + 2"}, {"role": "assistant", "content": "fifteen letters"}]
        assert server.bodies[-1] == {
            "model": "rm",
            "messages": turns,
            "use_activation": False,
            "truncate_prompt_tokens": -1,
        }
        plain = objectives.served_reward_model(
            "rm", server.base, endpoint="classify", form=lambda q, a: f"{q} = {a}", activation=True, max_length=100
        )
        assert plain.calibrate is None and plain.bounds == (0.0, 1.0)
        with pytest.raises(ScoreError, match=r"scores must lie in \[0, 1\]"):
            of(plain, answer="3" * 5)
        assert server.bodies[-1]["input"] == "1 + 2 = 33333" and server.bodies[-1]["truncate_prompt_tokens"] == 100
        assert server.bodies[-1]["use_activation"] is True
        crossed = objectives.served_reward_model("rm", server.base, endpoint="score", bounds=(0, 99))
        assert of(crossed, answer="three") == 5.0
        assert (server.bodies[-1]["text_1"], server.bodies[-1]["text_2"]) == ("1 + 2", "three")
        known = objectives.served_reward_model("helpful", server.base)
        assert known.name == "helpful"
        with pytest.raises(LMRefused, match="does not exist"):  # the server knows another model
            of(known, answer="3")
        assert server.bodies[-1]["model"] == "Ray2333/gpt2-large-helpful-reward_model"
        assert server.bodies[-1]["input"] == "\n\nHuman: 1 + 2 \n\nAssistant:3"


def test_scores_of_every_token_count_by_the_last_and_labels_are_named() -> None:
    with ModelServer(logits=lambda shown: [[1.0], [2.0], [7.5]]) as server:
        assert of(objectives.served_reward_model("rm", server.base), answer="3") == 7.5
    with ModelServer(logits=lambda shown: [0.25, 0.75]) as server:
        with pytest.raises(ConfigurationError, match="gives 2 numbers"):
            of(objectives.served_reward_model("rm", server.base), answer="3")
        with pytest.raises(ConfigurationError, match="label=2 is none"):
            of(objectives.served_reward_model("rm", server.base, label=2), answer="3")
        assert of(objectives.served_reward_model("rm", server.base, label=1), answer="3") == 0.75
    with ModelServer(logits=lambda shown: "base64") as server, pytest.raises(ScoreError, match="no numbers"):
        of(objectives.served_reward_model("rm", server.base), answer="3")
    with ModelServer() as server, pytest.raises(ScoreError, match=r"one answer.*\['a', 'b'\].*answer="):
        of(objectives.served_reward_model("rm", server.base), a="3", b="4")


def test_a_server_that_falters_is_asked_again_and_one_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iapo_dspy.sampling.concurrency.retrying.backoff", lambda *a: 0.01)
    with ModelServer(first=[503, 429, "drop", "garbage", 500, None]) as server:
        assert of(objectives.served_reward_model("rm", server.base, num_retries=5), answer="3") > 0
        assert server.requests["/pooling"] == 6
    with ModelServer(first=["hang"] * 2) as server:
        hasty = objectives.served_reward_model("rm", server.base, timeout=0.1, num_retries=1)
        with pytest.raises(ScoreError, match="ReadTimeout"):
            of(hasty, answer="3")
    with ModelServer(first=[400]) as server, pytest.raises(ScoreError, match="400: Fault"):
        of(objectives.served_reward_model("rm", server.base), answer="3")
    with ModelServer(api_key="right") as server, pytest.raises(LMRefused, match="api_key") as caught:
        of(objectives.served_reward_model("rm", server.base, api_key="sk-wrong-1234567890"), answer="3")
    assert "1234567890" not in str(caught.value) and caught.value.__cause__ is None
    gone = objectives.served_reward_model("rm", "http://127.0.0.1:9", num_retries=0)
    with pytest.raises(ScoreError, match="ConnectError"):
        of(gone, answer="3")


@pytest.mark.slow
def test_a_served_reward_model_chooses_prompts_and_answers_and_is_in_no_budget() -> None:
    def logits(shown: Any) -> Any:
        asked, answer = shown[0]["content"], shown[1]["content"]
        return [-float(abs(sum(int(x) for x in asked.split(" + ")) - int(answer)))]

    with Loopback(adder) as task, ModelServer(logits=logits, latency=0.02) as server:
        with dspy.context(lm=task.lm(seed=1, max_tokens=60)):
            served = objectives.served_reward_model("rm", server.base)
            chooser = optimizer(served, budget=Budget(120, tokens=50_000))
            program = chooser.compile(student(), trainset=questions(8))
            results = program.detailed_results
            assert results.spent.judge_requests == 0 and results.spent.requests == task.requests
            assert results.labels[program.solve("quality").prompt] == CAREFUL
            assert 0.0 in _raw(program) and server.most_in_flight > 1
            report = program(question="20 + 22", preference="quality").iapo
            assert report.utilities is not None and max(u or 0 for u in report.utilities) == 1.0
            assert (report.judge_tokens, report.judge_usd) == (0, 0.0)


def _raw(program: Any) -> list[float]:
    calibration = program.policy.ready.strategy["calibration"]["rm"]
    return [float(v) for v in calibration["raw"].split()]


def test_a_wrong_reward_server_stops_a_run_before_the_first_call_and_a_call_with_its_cause() -> None:
    with Loopback(adder) as task, ModelServer(model="another") as server, dspy.context(lm=task.lm(seed=1)):
        with pytest.raises(LMRefused, match="does not exist"):
            optimizer(objectives.served_reward_model("rm", server.base)).compile(student(), trainset=questions(3))
        gone = objectives.served_reward_model("rm", "http://127.0.0.1:9", num_retries=0)
        with pytest.raises(ScoreError, match="nothing was spent"):
            optimizer(gone).compile(student(), trainset=questions(3))
        assert task.requests == 0
        with ModelServer() as right:
            served = objectives.served_reward_model("rm", right.base, num_retries=0)
            program = compiled(task, served)
            right.faults += [500] * 8
            with pytest.raises(AllCompletionsFailed, match="500: Fault"):
                program(question="1 + 2")
