"""Calls of cascades and mixtures, and calls that abstain, in every way in which DSPy calls a program."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from dspy.streaming import StreamListener

import iapo_dspy
from iapo_dspy import Abstention, BestOfN, CompiledProgram, Cost, MajorityVote, Objective, Preference, metrics
from iapo_dspy.errors import AllCompletionsFailed, CapsTooTight, ConfigurationError
from iapo_dspy.types import Arm, Escalation, Share
from tests.support.deployed import deploy
from tests.support.loopback import Loopback, chat
from tests.support.worlds import CAREFUL, QUICK, total

CASCADE = Arm(0, 4, then=Escalation(below=0.75, arm=Arm(1, 2)))
ARMS = {
    "cascade": CASCADE,
    "mixture": Arm(0, 2, beside=(Share(prompt=1, n=3),)),
    "carrying": Arm(0, 4, then=Escalation(below=0.75, arm=Arm(1, 2), weight=2)),
    "safe": Arm(0, 4, then=Escalation(below=0.75)),
    "twice": Arm(0, 4, then=Escalation(below=0.75, arm=Arm(0, 3))),
    "single": Arm(1, 1),
}
EVEN, ODD = "3 + 5", "3 + 4"  # the quick one is sure of even sums only


def world(body: dict[str, Any], i: int) -> str:
    """QUICK is right on even sums, and every answer of an odd one is another one; CAREFUL is always right."""
    right = total(body)
    quick = QUICK in body["messages"][0]["content"]
    return chat(answer=str(right + i % 1000 + 1 if quick and right % 2 else right))


@pytest.fixture(scope="module")
def deployed() -> Iterator[tuple[Loopback, CompiledProgram]]:
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1)):
        yield (
            server,
            deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [QUICK, CAREFUL], ARMS, budget=16),
        )


def asked(server: Loopback, before: int) -> list[tuple[str, int]]:
    """Return which prompts were asked for how many completions since then."""
    return [
        ("quick" if QUICK in b["messages"][0]["content"] else "careful", b.get("n") or 1)
        for b in server.bodies[before:]
    ]


def test_a_call_that_is_sure_ends_with_the_first_stage(deployed: Any) -> None:
    server, program = deployed
    before = len(server.bodies)
    prediction = program(question=EVEN, preference="cascade")
    report = prediction.iapo
    assert prediction.answer == "8" and asked(server, before) == [("quick", 4)]
    assert (report.prompt, report.n, report.planned, report.waves, report.stopped) == (0, 4, 6, 1, "sure")
    assert (report.stage, report.sureness, report.confidence, report.abstained) == (0, 1.0, None, False)
    assert report.withheld is None and report.way == (
        "prompt 0 was 100% sure after 4 completions, at least 75%, so the call answered"
    )
    (stage,) = report.stages
    assert (stage.n, stage.planned, stage.below, stage.ending, stage.votes) == (4, 4, 0.75, "answered", {"8": 4})


def test_a_call_that_is_not_sure_goes_on(deployed: Any) -> None:
    server, program = deployed
    before = len(server.bodies)
    prediction = program(question=ODD, preference="cascade")
    report = prediction.iapo
    assert prediction.answer == "7" and asked(server, before) == [("quick", 4), ("careful", 2)]
    assert (report.prompt, report.label, report.n, report.planned) == (1, program.policy.programs.label(1), 6, 6)
    assert (report.waves, report.stopped, report.stage, report.votes, report.winner) == (2, None, 1, {"7": 2}, 4)
    first, second = report.stages
    assert (first.ending, first.sureness, second.ending, second.sureness) == ("went on", 0.25, "answered", 1.0)
    assert [p.prompt for p in (*first.prompts, *second.prompts)] == [0, 1]
    assert report.way == "prompt 0 was 25% sure after 4 completions, below 75%, so prompt 1 decided"
    assert report.way in str(program.explain(prediction))
    assert len(prediction.completions) == 6 and prediction.completions[0].answer == "7"


def test_tokens_and_costs_are_those_of_all_stages(deployed: Any) -> None:
    server, program = deployed
    for preference in ARMS:
        spent = server.prompt_tokens, server.completion_tokens
        with dspy.context(track_usage=True):
            prediction = program(question=ODD, preference=preference)
        took = server.prompt_tokens - spent[0], server.completion_tokens - spent[1]
        assert (prediction.iapo.prompt_tokens, prediction.iapo.completion_tokens) == pytest.approx(took)
        assert prediction.iapo.cost == pytest.approx(took[1])  # the unit is an output token
        usage = prediction.get_lm_usage().values()
        assert (sum(u["prompt_tokens"] for u in usage), sum(u["completion_tokens"] for u in usage)) == took


def test_all_of_a_mixture_are_drawn_at_once_and_vote_together() -> None:
    with Loopback(world, latency=0.3) as server, dspy.context(lm=server.lm(seed=1)):
        program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [QUICK, CAREFUL], ARMS, budget=16)
        server.max_in_flight, before = 0, len(server.bodies)
        report = program(question=ODD, preference="mixture").iapo
    assert sorted(asked(server, before)) == [("careful", 3), ("quick", 2)] and server.max_in_flight == 2
    assert (report.n, report.waves, report.prompt, report.votes["7"]) == (5, 1, 1, 3)
    assert report.sureness == 0.6 and report.seconds >= 0.3
    assert report.way == "prompts 0 and 1 decided together"
    assert [(p.prompt, p.n) for p in report.stages[0].prompts] == [(0, 2), (1, 3)]


def test_votes_of_all_stages_may_count(deployed: Any) -> None:
    _, program = deployed
    report = program(question=ODD, preference="carrying").iapo
    assert report.votes["7"] == 4 and len(report.votes) == 5  # two votes that count twice, and four others
    assert (report.stages[1].weight, report.stages[1].counted, report.sureness) == (2, 8, 0.5)
    assert report.way.endswith("so prompt 1 decided with the 4 completions before")


def test_no_request_repeats_the_seed_of_another_one(deployed: Any) -> None:
    server, program = deployed
    for preference in ("cascade", "mixture", "twice"):
        before = len(server.bodies)
        program(question=ODD, preference=preference)
        seeds = [body["seed"] for body in server.bodies[before:]]
        assert len(seeds) == len(set(seeds)) == 2


# -- abstention


ENTRIES: dict[str, Callable[[dspy.Module, str], Any]] = {
    "call": lambda p, q: p(question=q),
    "acall": lambda p, q: asyncio.run(p.acall(question=q)),
    "asyncify": lambda p, q: asyncio.run(dspy.asyncify(p)(question=q)),
    "batch": lambda p, q: p.batch([dspy.Example(question=q).with_inputs("question")], disable_progress_bar=True)[0],
    "parallel": lambda p, q: dspy.Parallel(num_threads=2, disable_progress_bar=True)([(p, {"question": q})])[0],
}


@pytest.mark.parametrize("entry", sorted(ENTRIES))
def test_an_abstention_is_a_result(deployed: Any, entry: str) -> None:
    _, program = deployed
    safe = program.with_preference("safe")
    prediction = ENTRIES[entry](safe, ODD)
    report = prediction.iapo
    assert isinstance(prediction, Abstention) and dict(prediction.items()) == {"answer": None}
    assert report.abstained and list(report.withheld) == ["answer"] and report.withheld["answer"] in report.votes
    assert (report.sureness, report.n, report.planned, report.stopped) == (0.25, 4, 4, None)
    assert report.way == "prompt 0 was 25% sure after 4 completions, below 75%, so the call abstained"
    assert report.way in str(safe.explain(prediction))
    sure = ENTRIES[entry](safe, EVEN)
    assert not isinstance(sure, Abstention) and sure.answer == "8"


def test_an_evaluation_counts_abstentions_as_not_right(deployed: Any) -> None:
    _, program = deployed
    devset = [dspy.Example(question=f"{i} + 1", answer=str(i + 1)).with_inputs("question") for i in range(30)]
    for metric in (metrics.exact_match("answer"), metrics.f1("answer"), lambda e, p, trace=None: e.answer == p.answer):
        evaluate = dspy.Evaluate(devset=devset, metric=metric, display_progress=False, max_errors=1)
        result = evaluate(program.with_preference("safe"))
        assert result.score == 50.0
        assert sum(isinstance(prediction, Abstention) for _, prediction, _ in result.results) == 15


@pytest.mark.parametrize("listening", [False, True])
def test_a_stream_says_nothing_of_what_is_withheld(deployed: Any, listening: bool) -> None:
    _, program = deployed
    listeners = [StreamListener(signature_field_name="answer")] if listening else []
    streamed = dspy.streamify(program.with_preference("safe"), stream_listeners=listeners, async_streaming=False)
    (last,) = list(streamed(question=ODD))
    assert isinstance(last, Abstention)
    chunk, last = list(streamed(question=EVEN))
    assert chunk.chunk == last.answer == "8"


def test_an_abstention_is_not_a_demonstration(deployed: Any) -> None:
    _, program = deployed
    with dspy.context(trace=[]):
        program(question=ODD, preference="safe")
        assert dspy.settings.trace == []
        program(question=EVEN, preference="safe")
        assert len(dspy.settings.trace) == 1


def test_the_report_of_an_abstention_is_json(deployed: Any) -> None:
    _, program = deployed
    report = program(question=ODD, preference="safe").iapo
    assert type(report).model_validate_json(report.model_dump_json()) == report
    assert "withheld" in report._repr_html_()


def test_a_call_without_any_answer_abstains_where_it_may(deployed: Any) -> None:
    _, program = deployed
    with Loopback(lambda body, i: "garbage") as server, dspy.context(lm=server.lm(seed=1)):
        prediction = program(question=EVEN, preference="safe")
        assert isinstance(prediction, Abstention) and prediction.answer is None
        report = prediction.iapo
        assert (report.withheld, report.winner, report.sureness, len(report.failures)) == ({}, None, None, 4)
        assert report.way == "prompt 0 had no answer after 4 completions, so the call abstained"
        assert "4 failed" in str(program.explain(prediction))
        with pytest.raises(AllCompletionsFailed, match="All 2 completions"):
            program(question=EVEN, preference="cascade")


def test_a_failed_stage_is_not_sure() -> None:
    broken = {"quick": True}

    def handler(body: dict[str, Any], i: int) -> str:
        quick = QUICK in body["messages"][0]["content"]
        return "garbage" if quick and broken["quick"] else chat(answer=str(total(body)))

    with Loopback(handler) as server, dspy.context(lm=server.lm(seed=1)):
        program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [QUICK, CAREFUL], ARMS, budget=16)
        report = program(question=ODD, preference="cascade").iapo
    assert (report.stage, report.prompt, set(report.failures)) == (1, 1, {0, 1, 2, 3})
    assert report.way == "prompt 0 had no answer after 4 completions, so prompt 1 decided"


def test_the_best_of_n_is_as_sure_as_its_best() -> None:
    best = BestOfN([Objective("short", lambda example, prediction: 1 / len(prediction.answer))])
    arms = {"cascade": Arm(0, 2, then=Escalation(below=0.4, arm=Arm(1, 3, then=Escalation(below=0.4))))}

    def handler(body: dict[str, Any], i: int) -> str:
        long = "long" in body["messages"][-1]["content"]
        return chat(answer="x" * (4 if QUICK in body["messages"][0]["content"] or long else 2))

    with Loopback(handler) as server, dspy.context(lm=server.lm(seed=1)):
        program = deploy(dspy.Predict("question -> answer"), best, [QUICK, CAREFUL], arms, budget=16)
        answered, withheld = program(question="short"), program(question="long")
    assert answered.answer == "xx" and answered.iapo.utilities == (None, None, 0.5, 0.5, 0.5)
    assert answered.iapo.way == (
        "prompt 0 scored 0.25 after 2 completions, below 0.4; "
        "prompt 1 scored 0.5 after 3 completions, at least 0.4, so the call answered"
    )
    assert isinstance(withheld, Abstention) and withheld.iapo.withheld == {"answer": "xxxx"}
    assert withheld.iapo.stage == 1


# -- the program around the calls


def test_it_is_saved_and_loaded(deployed: Any, tmp_path: Path) -> None:
    server, program = deployed
    program.save(tmp_path / "program.json")
    for load in (iapo_dspy.load, None):
        if load is None:
            again = CompiledProgram(dspy.Predict("question -> answer"))
            again.load(tmp_path / "program.json")
        else:
            again = load(tmp_path / "program.json")
        assert again.policy.ready.arms == tuple(ARMS.values())
        for preference in ARMS:
            before = len(server.bodies)
            one, other = (p(question=ODD, preference=preference) for p in (program, again))
            assert type(one) is type(other) and one.iapo.way == other.iapo.way
            half = len(server.bodies[before:]) // 2
            seeds = [
                sorted(b["seed"] for b in part)
                for part in (server.bodies[before:][:half], server.bodies[before:][half:])
            ]
            assert seeds[0] == seeds[1]


def test_every_prompt_of_an_arm_is_a_part_of_the_program(deployed: Any) -> None:
    server, program = deployed
    assert program.policy.programs.in_use == (0, 1)
    assert [name for name, _ in program.named_parameters()] == ["policy", "arms[0]", "arms[1]"]
    twin = copy.deepcopy(program)
    for predictor in twin.predictors():
        predictor.signature = predictor.signature.with_instructions(CAREFUL)
    before = len(server.bodies)
    assert twin(question=ODD, preference="cascade").iapo.stage == 0  # the first stage is careful, too
    assert program(question=ODD, preference="cascade").iapo.stage == 1
    assert asked(server, before) == [("careful", 4), ("quick", 4), ("careful", 2)]


def test_one_lm_may_run_all_stages(deployed: Any) -> None:
    server, program = deployed
    twin = copy.deepcopy(program)
    twin.set_lm(server.lm("openai/other", seed=3))
    before = len(server.bodies)
    report = twin(question=ODD, preference="cascade").iapo
    assert {body["model"] for body in server.bodies[before:]} == {"other"}
    assert [p.model for stage in report.stages for p in stage.prompts] == ["openai/other"] * 2


def test_a_preference_may_stand_around_the_call(deployed: Any) -> None:
    _, program = deployed
    with iapo_dspy.using_preference("safe"):
        assert isinstance(program(question=ODD), Abstention)
    assert program(question=ODD).iapo.stage == 1  # the default is the cascade
    assert program(question=ODD, preference="single").answer == "7"
    assert json.loads(json.dumps(program.explain(preference="cascade").to_dict()))


def test_any_arm_may_be_fixed(deployed: Any) -> None:
    _, program = deployed
    found: Any = SimpleNamespace(arm=CASCADE, preference=Preference("mine", cost=0.3))
    assert program.with_arm(found)(question=ODD).iapo.stage == 1
    found.arm = Arm(0, 1, then=Escalation(below=0.5, arm=Arm(7, 1)))
    with pytest.raises(ConfigurationError, match="1 of prompt 0; 1 of prompt 7 instead"):
        program.with_arm(found)


@pytest.mark.extra
def test_langchain_gets_none_where_a_call_abstains(deployed: Any) -> None:
    pytest.importorskip("langchain_core")
    _, program = deployed
    runnable = program.as_runnable("safe")
    assert runnable.batch([{"question": q} for q in (ODD, EVEN)]) == [{"answer": None}, {"answer": "8"}]
    assert list(runnable.stream(ODD)) == [{"answer": None}]
    assert isinstance(program.as_runnable("safe", output="prediction").invoke(ODD), Abstention)


def test_caps_hold_on_the_worst_path(deployed: Any) -> None:
    server, program = deployed
    policy = dataclasses.replace(
        program.policy.ready,
        preferences=(Preference("capped", max_tokens=160), Preference("tight", max_tokens=10)),
        arms=(CASCADE, CASCADE),
        default="capped",
        calibrations=None,
    )
    capped = CompiledProgram(dspy.Predict("question -> answer"), MajorityVote("answer"), policy)
    before = len(server.bodies)
    assert capped(question=ODD).iapo.stage == 1
    limits = [(body.get("max_tokens"), body.get("n")) for body in server.bodies[before:]]
    assert sum(most * n for most, n in limits) <= 160 and min(most for most, _ in limits) > 10
    with pytest.raises(CapsTooTight, match="4 of prompt 0; 2 of prompt 1 instead"):
        capped(question=ODD, preference="tight")


def test_lms_of_all_stages_are_needed(deployed: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server, _ = deployed
    lms = [server.lm("openai/small", seed=1), server.lm("openai/large", seed=2)]
    one = {"cascade": Arm(0, 2, then=Escalation(below=1.0, arm=Arm(1, 2)))}
    settings: dict[str, Any] = {"lms": lms, "budget": 16, "cost_unit": Cost()}
    program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [QUICK], one, **settings)
    program.save(tmp_path / "program.json")
    assert program.models == ("openai/small", "openai/large")
    half = CompiledProgram(dspy.Predict("question -> answer"), lms=lms[:1])
    half.load(tmp_path / "program.json")
    assert "['cascade'] run on the LM openai/large" in caplog.text
    with pytest.raises(ConfigurationError, match="measured with the LM openai/large"):
        half(question=EVEN)  # before anything is asked
    whole = CompiledProgram(dspy.Predict("question -> answer"), lms=lms)
    whole.load(tmp_path / "program.json")
    before = len(server.bodies)
    whole(question=ODD)
    assert [body["model"] for body in server.bodies[before:]] == ["small", "large"]
