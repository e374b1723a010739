"""Adapters as part of the prompts: a model that keeps to one format only is asked in it, whatever is configured."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.adapters.base import Adapter

import iapo_dspy
from iapo_dspy import BestOfN, Budget, CompiledProgram, Decoding, Objective, attach
from iapo_dspy.command_line.saved_program import saved_programs
from iapo_dspy.errors import AllCompletionsFailed, ConfigurationError, StateError, TooManyErrors
from iapo_dspy.prompts.prompt import PromptState
from iapo_dspy.types import Arm
from tests.support.compiling import optimizers
from tests.support.listening import Listening
from tests.support.loopback import Loopback, chat
from tests.support.pipelines import PLAIN, Pipeline, asked, pipeline_world, right, step_of
from tests.support.worlds import CAREFUL, LAZY, TwoSteps, brevity, outputs, questions, student, total

ROOT = Path(__file__).parents[3]


def form(body: dict[str, Any]) -> str:
    """The format that a request asks for."""
    system, last = body["messages"][0]["content"], body["messages"][-1]["content"]
    if "JSON" in last:
        return "json"
    return "chat" if "[[ ##" in system else "xml" if "<answer>" in system else "bare"


def only_json(body: dict[str, Any], i: int) -> str:
    """Answer in JSON where that is asked for, right 9 times in 10 if asked for care; say nothing of use elsewhere."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    if form(body) != "json":
        return "I would rather not say."
    if "idea" in outputs(body):
        return json.dumps({"idea": "carry"})
    correct, careful = total(body), CAREFUL in body["messages"][0]["content"]
    return json.dumps(
        {"answer": str(correct if rng.random() < (0.9 if careful else 0.2) else correct + rng.randint(1, 9))}
    )


def both() -> list[Adapter]:
    return [dspy.ChatAdapter(), dspy.JSONAdapter()]


optimizer = optimizers(candidates=[LAZY, CAREFUL], budget=200, stopping=None)


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with Loopback(only_json) as running:
        yield running


@pytest.fixture(scope="module")
def program(server: Loopback) -> CompiledProgram:
    with dspy.context(lm=server.lm(seed=1), adapter=dspy.ChatAdapter()):
        return optimizer(adapters=both()).compile(student(), trainset=questions(20))


@pytest.fixture
def forms(server: Loopback) -> Iterator[list[str]]:
    """The formats that have been asked for since the test began, under a configured ChatAdapter."""

    class Since(list[str]):
        def __iter__(self) -> Iterator[str]:
            return iter([form(body) for body in server.bodies[start:]])

    start = len(server.bodies)
    with dspy.context(lm=server.lm(seed=1), adapter=dspy.ChatAdapter()):
        yield Since()


# -- the choice


def test_every_candidate_is_tried_with_every_adapter_and_the_readable_one_is_chosen(program: CompiledProgram) -> None:
    results = program.detailed_results
    assert results.labels == (f"{LAZY} [chat]", f"{LAZY} [json]", f"{CAREFUL} [chat]", f"{CAREFUL} [json]")
    assert results.failures.share[0] == results.failures.share[2] == 1.0
    assert results.failures.share[1] == results.failures.share[3] == 0.0
    assert {row.label for row in results.policy} == {f"{CAREFUL} [json]"}
    assert [p["adapter"] for p in results.to_dict()["prompts"]] == ["ChatAdapter()", "JSONAdapter()"] * 2
    assert "[json]" in str(results) and "[json]" in str(program.explain())


def test_one_adapter_alone_takes_the_place_of_the_configured_one(server: Loopback, forms: list[str]) -> None:
    alone = optimizer(adapters=[dspy.JSONAdapter()], budget=60).compile(student(), trainset=questions(10))
    assert set(forms) == {"json"}
    assert alone.detailed_results.labels == (LAZY, CAREFUL)  # without a choice there is nothing to name
    before = len(server.bodies)
    alone(question="20 + 41")
    assert form(server.bodies[before]) == "json"


def test_adapters_lms_and_decodings_are_combined(server: Loopback) -> None:
    lms, decodings = [server.lm(seed=1), server.lm(seed=2)], [Decoding(temperature=t) for t in (0.5, 1.0)]
    with dspy.context(adapter=dspy.ChatAdapter()):
        made = optimizer(adapters=both(), lms=lms, decoding=decodings, budget=600)
        quote = made.quote(student(), trainset=questions(10))
        single = optimizer(lms=lms, decoding=decodings, budget=600).quote(student(), trainset=questions(10))
    assert (single.prompts, quote.prompts) == (8, 16)


def test_best_of_n_chooses_an_adapter_too(server: Loopback, forms: list[str]) -> None:
    strategy = BestOfN([Objective("brevity", brevity)])
    made = optimizer(strategy=strategy, metric=None, adapters=both(), budget=100)
    program = made.compile(student(), trainset=questions(10))
    assert all("[json]" in row.label for row in program.detailed_results.policy)
    before = len(server.bodies)
    assert program(question="20 + 41").answer
    assert {form(body) for body in server.bodies[before:]} == {"json"}


# -- deployed calls


def test_calls_use_the_arms_adapter_in_every_way_of_calling(program: CompiledProgram, forms: list[str]) -> None:
    async def in_async() -> None:
        await program.acall(question="20 + 41")
        await dspy.asyncify(program)(question="21 + 41")

    program(question="22 + 41")
    asyncio.run(in_async())
    program.batch([dspy.Example(question=f"{i} + 41").with_inputs("question") for i in range(3)])
    dspy.Evaluate(devset=questions(2), metric=lambda e, p, t=None: True, display_progress=False)(program)
    for twin in (program.deepcopy(), program.reset_copy(), program.with_preference("thrifty")):
        twin(question="23 + 41")
    program.as_runnable().invoke({"question": "24 + 41"}) if _has_langchain() else None
    assert set(forms) == {"json"}


def _has_langchain() -> bool:
    try:
        import langchain_core  # noqa: F401
    except ImportError:
        return False
    return True


def test_callbacks_hear_of_calls_with_the_arms_adapter(program: CompiledProgram, forms: list[str]) -> None:
    heard = Listening()
    with dspy.context(callbacks=[heard]):
        program(question="20 + 41")
    assert set(forms) == {"json"}
    assert {type(h.instance) for h in heard.calls.values() if h.kind == "format"} == {dspy.JSONAdapter}


def test_an_arm_of_ones_own_choice_has_its_adapter(program: CompiledProgram, forms: list[str]) -> None:
    found = program.detailed_results.best()
    program.with_arm(replace(found, arm=Arm(1, 1)))(question="20 + 41")
    with pytest.raises(AllCompletionsFailed):
        program.with_arm(replace(found, arm=Arm(2, 1)))(question="20 + 41")
    assert list(forms) == ["json", "chat"]


def test_candidate_programs_use_their_adapters(program: CompiledProgram, forms: list[str], tmp_path: Path) -> None:
    program.save(tmp_path / "p.json")
    for results in (program.detailed_results, iapo_dspy.load(tmp_path / "p.json").detailed_results):
        before = len(list(forms))
        careful = results.candidate_programs[3]
        assert careful(question="20 + 41").answer
        assert asyncio.run(careful.acall(question="21 + 41")).answer
        assert list(forms)[before:] == ["json", "json"]
        assert type(dspy.settings.adapter) is dspy.ChatAdapter


def test_a_program_in_a_program_has_its_adapter_and_leaves_the_others_theirs(
    server: Loopback, program: CompiledProgram
) -> None:
    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = program.deepcopy(), dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            self.inner(question=question)
            return self.last(question=question)

    with Loopback(lambda body, i: only_json(body, i) if form(body) == "json" else chat(answer="1")) as other:
        with dspy.context(lm=other.lm(seed=1), adapter=dspy.ChatAdapter()):
            Outer()(question="20 + 41")
        assert [form(body) for body in other.bodies] == ["json", "chat"]


# -- saving and loading


def test_a_fresh_process_asks_in_the_arms_format(server: Loopback, program: CompiledProgram, tmp_path: Path) -> None:
    program.save(tmp_path / "p.json")
    assert "sk-loopback" not in (tmp_path / "p.json").read_text()
    script = (
        "import dspy, iapo_dspy\n"
        f"lm = dspy.LM('openai/fake', api_base={server.base!r}, api_key='x')\n"
        "dspy.configure(lm=lm, adapter=dspy.ChatAdapter())\n"
        f"program = iapo_dspy.load({str(tmp_path / 'p.json')!r})\n"
        "print(program(question='20 + 41').iapo.label)\n"
    )
    before = len(server.bodies)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == f"{CAREFUL} [json]", done.stderr
    assert {form(body) for body in server.bodies[before:]} == {"json"}


def test_settings_of_an_adapter_are_saved_and_shown(server: Loopback, program: CompiledProgram, tmp_path: Path) -> None:
    given = [dspy.JSONAdapter(), dspy.JSONAdapter(use_native_function_calling=False)]
    with dspy.context(lm=server.lm(seed=1), adapter=None):
        made = optimizer(adapters=given, budget=60, candidates=[CAREFUL]).compile(student(), trainset=questions(10))
    made.save(tmp_path / "p.json")
    saved = json.loads((tmp_path / "p.json").read_text())["policy"]["prompts"]
    assert [p["adapter"] for p in saved] == [
        {"class": "JSONAdapter", "settings": {}, "words": "json"},
        {
            "class": "JSONAdapter",
            "settings": {"use_native_function_calling": False},
            "words": "json use_native_function_calling=False",
        },
    ]
    loaded = iapo_dspy.load(tmp_path / "p.json")
    found = [loaded.policy.programs.adapter_of(p) for p in range(2)]
    assert [type(a) for a in found] == [dspy.JSONAdapter] * 2
    assert [a.use_native_function_calling for a in found if a is not None] == [True, False]
    (shown,) = saved_programs(tmp_path / "p.json")
    assert "adapter: JSONAdapter(" in str(shown)


class Bare(Adapter):
    """An adapter of the user's own: a JSON object of the answer."""

    def __init__(self, word: str = "JSON") -> None:
        super().__init__()
        self.word = word

    def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        system = f"{signature.instructions} Your output fields are:\n1. `answer`"
        return [
            {"role": "system", "content": system},
            {"role": "user", "content": f"{inputs['question']} in {self.word}"},
        ]

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        return {"answer": json.loads(completion)["answer"]}


def test_an_adapter_of_the_users_own_is_given_again(server: Loopback, tmp_path: Path, forms: list[str]) -> None:
    given = [dspy.ChatAdapter(), Bare("XML"), Bare()]
    made = optimizer(adapters=given, budget=120, candidates=[CAREFUL]).compile(student(), trainset=questions(10))
    assert made.detailed_results.labels == tuple(f"{CAREFUL} [{a}]" for a in ("chat", "Bare", "Bare (2)"))
    assert made.solve().prompt == 2
    made.save(tmp_path / "p.json")
    with pytest.raises(StateError, match=r"adapter Bare \(2\), which is not there.*adapters=\[Bare\(\.\.\.\)\]"):
        iapo_dspy.load(tmp_path / "p.json")
    with pytest.raises(StateError, match=r"in the order of IAPO\(adapters=\.\.\.\)"):
        iapo_dspy.load(tmp_path / "p.json", adapters=[Bare("XML")])
    loaded = iapo_dspy.load(tmp_path / "p.json", adapters=given[1:])
    assert loaded.policy.programs.adapter_of(2) is given[2]
    before = len(server.bodies)
    assert loaded(question="20 + 41").answer
    assert server.bodies[before]["messages"][-1]["content"] == "20 + 41 in JSON"


@pytest.mark.parametrize(
    "damage", [3, "json", {}, {"class": 3}, {"class": "JSONAdapter", "settings": "x"}, {"class": "A", "nth": "x"}]
)
def test_damage_is_refused(program: CompiledProgram, damage: Any, tmp_path: Path) -> None:
    program.save(tmp_path / "p.json")
    state = json.loads((tmp_path / "p.json").read_text())
    state["policy"]["prompts"][3]["adapter"] = damage
    (tmp_path / "p.json").write_text(json.dumps(state))
    with pytest.raises(StateError, match="prompts"):
        iapo_dspy.load(tmp_path / "p.json")


def test_settings_of_another_version_are_asked_for(program: CompiledProgram, tmp_path: Path) -> None:
    program.save(tmp_path / "p.json")
    state = json.loads((tmp_path / "p.json").read_text())
    state["policy"]["prompts"][3]["adapter"]["settings"] = {"not_yet": 1}
    (tmp_path / "p.json").write_text(json.dumps(state))
    with pytest.raises(StateError, match=r"JSONAdapter\(not_yet=1\), which is not there"):
        iapo_dspy.load(tmp_path / "p.json")


def test_prompts_without_adapters_are_saved_as_before(server: Loopback, forms: list[str], tmp_path: Path) -> None:
    with dspy.context(adapter=dspy.JSONAdapter()):
        made = optimizer(budget=40).compile(student(), trainset=questions(10))
    made.save(tmp_path / "p.json")
    prompts = json.loads((tmp_path / "p.json").read_text())["policy"]["prompts"]
    assert all("adapter" not in prompt for prompt in prompts)
    assert all(PromptState.from_dict(prompt).adapter is None for prompt in prompts)
    before = len(server.bodies)
    with dspy.context(adapter=dspy.JSONAdapter()):
        made(question="20 + 41")
    assert {form(body) for body in server.bodies[before:]} == {"json"}  # the one that is configured then


# -- ledgers


def test_a_ledger_serves_by_adapter(server: Loopback, tmp_path: Path) -> None:
    def run(log_dir: Path, budget: int = 40, adapter: Any = None, **own: Any) -> tuple[int, Any]:
        before = server.completions
        with dspy.context(lm=server.lm(seed=1), adapter=adapter):
            made = optimizer(log_dir=log_dir, candidates=[LAZY, CAREFUL], budget=Budget(budget), **own)
            found = made.compile(student(), trainset=questions(10))
        return server.completions - before, found

    first, program = run(tmp_path / "a", adapters=both(), budget=100)
    assert first > 0
    again, same = run(tmp_path / "a", adapters=both(), budget=100)
    assert again == 0 and same.policy.ready.arms == program.policy.ready.arms
    # What was drawn with the configured adapter serves a run that names it; what it did not draw is drawn.
    configured, _ = run(tmp_path / "b", adapter=dspy.JSONAdapter())
    more, wider = run(tmp_path / "b", budget=100, adapters=both())
    assert 0 < more <= 100 - configured
    json_prompts = wider.detailed_results.count[1, 0] + wider.detailed_results.count[3, 0]
    assert json_prompts > 0


# -- programs with several predictors, pipelines, batch jobs, LMs inside


def test_every_predictor_of_a_program_uses_the_adapter(server: Loopback, forms: list[str]) -> None:
    candidates = [{"ask": LAZY}, {"ask": CAREFUL}]
    made = optimizer(adapters=both(), candidates=candidates, budget=120)
    program = made.compile(TwoSteps(), trainset=questions(10))
    assert all("json" in row.label for row in program.detailed_results.policy)
    before = len(server.bodies)
    program(question="20 + 41")
    assert {form(body) for body in server.bodies[before:]} == {"json"}


def test_combinations_of_instructions_have_adapters_as_configurations(server: Loopback, forms: list[str]) -> None:
    lists = {"plan": ["Plan.", "Think."], "ask": [LAZY, CAREFUL]}
    program = optimizer(adapters=both(), candidates=lists, joint_limit=2, budget=300).compile(
        TwoSteps(), trainset=questions(10)
    )
    assert all("json" in row.label for row in program.detailed_results.policy)
    assert set(forms) == {"chat", "json"}


def test_a_run_stops_where_nothing_works_with_any_adapter() -> None:
    with Loopback(lambda body, i: "I would rather not say.") as server, dspy.context(lm=server.lm()):
        with pytest.raises(TooManyErrors, match="Nothing has worked so far"):
            optimizer(adapters=both()).compile(student(), trainset=questions(10))
        assert {form(body) for body in server.bodies} == {"chat", "json"} and server.completions < 100


def test_in_a_pipeline_only_the_inner_module_uses_the_adapter(tmp_path: Path) -> None:
    def world(body: dict[str, Any], i: int) -> str:
        text = pipeline_world(body, i)
        if step_of(body) != "solve":
            assert form(body) == "chat"
            return text
        if form(body) == "chat":
            return "I would rather not say."
        return json.dumps({"number": text.partition("]]\n")[2].partition("\n")[0]})

    made = optimizers(
        metric=right, strategy=iapo_dspy.MajorityVote("number"), candidates=[PLAIN], budget=60, stopping=None
    )(adapters=both())
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1), adapter=dspy.ChatAdapter()):
        quote = made.quote(Pipeline(), trainset=asked(8), inner="solve")
        assert quote.prompts == 2
        pipeline = made.compile(Pipeline(), trainset=asked(8), inner="solve")
        assert "[json]" in pipeline.detailed_results.policy[0].label
        pipeline.save(tmp_path / "p.json")
        loaded = attach(Pipeline(), "solve")
        loaded.load(tmp_path / "p.json")
        server.bodies.clear()
        loaded(question="What are 5 and 7?")
        assert [(step_of(b), form(b)) for b in server.bodies] == [
            ("rewrite", "chat"), ("solve", "json"), ("report", "chat"),
        ]  # fmt: skip


def test_batch_jobs_ask_with_every_adapter(tmp_path: Path) -> None:
    with Loopback(only_json) as server, dspy.context(lm=server.lm(seed=1), adapter=dspy.ChatAdapter()):
        made = optimizer(
            adapters=both(),
            batch=iapo_dspy.BatchAPI(poll_seconds=0.01),
            log_dir=tmp_path,
            budget=60,
            candidates=[CAREFUL],
        )
        program = made.compile(student(), trainset=questions(10))
        assert {form(body) for body in server.bodies} == {"chat", "json"}
        assert program.detailed_results.labels[program.solve().prompt] == f"{CAREFUL} [json]"
        with pytest.raises(ConfigurationError, match="cannot use the adapter TwoStepAdapter"):
            two = dspy.TwoStepAdapter(server.lm("openai/fake"))
            optimizer(adapters=[two], batch=True, log_dir=tmp_path / "b").compile(student(), trainset=questions(4))


def test_an_lm_inside_of_an_adapter_is_asked_and_counted() -> None:
    def world(body: dict[str, Any], i: int) -> str:
        return chat(answer="61") if body["model"] == "reader" else "It is 61."

    with Loopback(world) as server:
        prices: Any = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}
        reader = server.lm("openai/reader", max_tokens=99)
        two = dspy.TwoStepAdapter(reader)
        with dspy.context(lm=server.lm(max_tokens=99, **prices), adapter=dspy.ChatAdapter()):
            made = optimizer(adapters=[dspy.ChatAdapter(), two], budget=40, candidates=[CAREFUL])
            program = made.compile(student(), trainset=questions(6))
            assert program.detailed_results.spent.requests == server.requests
            assert program.detailed_results.labels == (f"{CAREFUL} [chat]", f"{CAREFUL} [TwoStepAdapter]")
            assert {body["model"] for body in server.bodies} == {"fake", "reader"}
            with pytest.raises(ConfigurationError, match=r"TwoStepAdapter asks an LM.*reader"):
                optimizer(adapters=[two], budget=Budget(completions=40, usd=1)).compile(
                    student(), trainset=questions(6)
                )


# -- errors before the first call


class Picky(Bare):
    """Takes programs with a numeric answer only."""

    def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        raise ValueError("the answer must be a number")


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ("json", r"adapters='json': give a list"),
        (dspy.JSONAdapter(), "give a list"),
        (dspy.JSONAdapter, "give a list"),
        ([], "give at least one"),
        ([dspy.JSONAdapter], r"adapters\[0\] is a class\. Give an object of it: JSONAdapter\(\)"),
        ([dspy.ChatAdapter(), "json"], r"adapters\[1\] is 'json'; give a dspy\.Adapter"),
        ([dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.ChatAdapter()], r"adapters\[2\] is the same as adapters\[0\]"),
        ([Bare(), Bare()], "the same"),
    ],
)
def test_what_is_no_list_of_different_adapters_is_refused(adapters: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        optimizer(adapters=adapters)


def test_an_adapter_that_cannot_write_the_call_is_refused_before_it(server: Loopback) -> None:
    before = server.requests
    with dspy.context(lm=server.lm()), pytest.raises(ConfigurationError, match=r"Picky.*the answer must be a number"):
        optimizer(adapters=[dspy.ChatAdapter(), Picky()]).compile(student(), trainset=questions(4))
    assert server.requests == before
