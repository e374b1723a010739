"""Situations that users meet sooner or later: mended metrics, outages, other LMs, small budgets, judges, nesting."""

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import BestOfN, Budget, CompiledProgram, MajorityVote, Objective, Preference
from iapo_dspy.errors import (
    BudgetTooSmall,
    ConfigurationError,
    LabelRequired,
    LedgerMismatch,
    ProviderDown,
    ScoreError,
    StorageError,
)
from tests.support.compiling import optimizers
from tests.support.loopback import Faults, Loopback, chat
from tests.support.worlds import CAREFUL, INSTRUCTIONS, QUICK, Around, adder, exact, questions, student

ROOT = Path(__file__).parents[3]

optimizer = optimizers(max_n=8, budget=800, stopping=None)  # so that a call is one request of all N


# -- candidates are deployed as they were measured


def test_a_candidate_program_keeps_its_own_lm_and_config() -> None:
    with Loopback(adder) as server, Loopback(adder) as other, dspy.context(lm=server.lm()):
        mine = dspy.Predict("question -> answer", max_tokens=17)
        mine.signature = mine.signature.with_instructions(CAREFUL)
        mine.lm = other.lm("openai/other")
        program = optimizer(candidates=[mine], budget=50).compile(student(), trainset=questions(5))
        assert server.requests == 0
        program(question="1 + 2")
        assert server.requests == 0 and other.bodies[-1]["max_tokens"] == 17


def test_candidates_may_differ_in_their_lm_only_and_loading_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Loopback(adder) as server, Loopback(lambda b, i: chat(answer="0")) as poor, dspy.context(lm=server.lm()):
        worse = student()
        worse.lm = poor.lm("openai/poor")
        program = optimizer(candidates=[student(), worse], budget=300).compile(student(), trainset=questions(20))
        assert program.solve("quality").prompt == 0 and poor.requests > 0
        one = optimizer(candidates=[worse], budget=50).compile(student(), trainset=questions(5))
    one.save(tmp_path / "p.json")
    with caplog.at_level(logging.WARNING):
        CompiledProgram(student()).load(tmp_path / "p.json")
    assert "openai/poor" in caplog.text


def test_candidates_that_differ_where_json_cannot_follow_are_refused() -> None:
    odd = Around()
    odd.style = "terse"
    with dspy.context(lm=dspy.LM("openai/x", api_key="k")), pytest.raises(ConfigurationError, match=r"self\.style"):
        optimizer(candidates=[odd]).compile(Around(), trainset=questions(3))


@pytest.mark.slow
def test_programs_of_an_earlier_run_are_candidates() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        first = optimizer(budget=50).compile(student(), trainset=questions(5))
        again = optimizer(candidates=first.detailed_results.candidate_programs, budget=50)
        assert again.compile(student(), trainset=questions(5)).policy.ready.prompts[2].label == CAREFUL


@pytest.mark.slow
def test_set_lm_reaches_every_prompt() -> None:
    with Loopback(adder) as server, Loopback(adder) as new, dspy.context(lm=server.lm(seed=1)):
        only = [Preference("quality", cost=0.0)]
        program = optimizer(preferences=only).compile(student(), trainset=questions(40))
        cheap = Preference(cost=100.0)
        assert program.solve(cheap).prompt != program.solve("quality").prompt
        program(question="1 + 2", preference=cheap)
        program.set_lm(new.lm())
        before = server.requests
        program(question="1 + 2", preference=cheap)
        program(question="1 + 2", preference="quality")
        assert server.requests == before and new.requests == 2


# -- resuming


def test_a_mended_metric_takes_effect_without_new_calls(tmp_path: Path) -> None:
    def never(example: Any, pred: Any, trace: Any = None) -> float:
        return 0.0

    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        wrong = optimizer(budget=100, log_dir=tmp_path, metric=never).compile(student(), trainset=questions(10))
        assert wrong.detailed_results.policy[0].reward == pytest.approx(0.0, abs=0.03)  # predicted, not seen
        (tmp_path / "ledger.jsonl").write_text(
            "".join(x for x in (tmp_path / "ledger.jsonl").read_text().splitlines(True) if '"kind":"spent"' not in x)
        )  # as if the run had died before its end
        requests = server.requests
        right = optimizer(budget=24, max_n=8, log_dir=tmp_path / "b").compile(student(), trainset=questions(10))
        mended = optimizer(budget=100, log_dir=tmp_path).compile(student(), trainset=questions(10))
    assert right.detailed_results.policy[0].reward > 0
    assert mended.detailed_results.policy[0].reward > 0
    assert server.requests - requests <= 100  # only what the other rewards made the algorithm ask for


@pytest.mark.slow
def test_after_an_outage_the_same_directory_goes_on(tmp_path: Path) -> None:
    with Loopback(adder, faults=Faults(shares={500: 1.0})) as server, dspy.context(lm=server.lm(seed=1, num_retries=0)):
        with pytest.raises(ProviderDown, match="has not answered once"):
            optimizer(budget=200, log_dir=tmp_path).compile(student(), trainset=questions(10))
        server.faults.shares = {}
        program = optimizer(budget=200, log_dir=tmp_path).compile(student(), trainset=questions(10))
        assert program.detailed_results.failures.total == 0
        assert program.detailed_results.spent.completions == server.completions <= 200


@pytest.mark.slow
def test_dollars_and_requests_of_a_killed_run_are_not_forgotten(tmp_path: Path) -> None:
    prices: dict[str, Any] = {"input_cost_per_token": 1e-3, "output_cost_per_token": 1e-3, "max_tokens": 40}

    class Died(Exception):
        pass

    def dying(progress: Any) -> None:
        if progress.completions >= 60:
            raise Died

    budget = Budget(400, usd=12.0)
    settings: dict[str, Any] = {"budget": budget, "log_dir": tmp_path, "algorithm": "psst"}
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1, **prices)):
        for _ in range(3):
            with pytest.raises(Died):
                optimizer(**settings, progress=dying).compile(student(), trainset=questions(20))
        last = optimizer(**settings).compile(student(), trainset=questions(20))
        billed = (server.prompt_tokens + server.completion_tokens) * 1e-3
        assert billed <= 12.0
        assert last.detailed_results.spent.usd == pytest.approx(billed, rel=0.15)
        assert last.detailed_results.spent.requests >= server.requests - 3 * 64


@pytest.mark.slow
def test_sampling_settings_are_part_of_what_a_run_is(tmp_path: Path) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        cool, hot = (dspy.Predict("question -> answer", temperature=t) for t in (0.3, 1.5))
        optimizer(budget=50, log_dir=tmp_path).compile(cool, trainset=questions(5))
        drawn = server.completions
        program = optimizer(budget=50, log_dir=tmp_path).compile(hot, trainset=questions(5))
        assert server.completions - drawn == program.detailed_results.spent.completions, "none of the others serves"
        with dspy.context(adapter=dspy.JSONAdapter()), pytest.raises(LedgerMismatch, match="adapter"):
            optimizer(budget=50, log_dir=tmp_path).compile(cool, trainset=questions(5))


@pytest.mark.slow
def test_what_a_run_is_does_not_depend_on_the_order_of_sets(tmp_path: Path) -> None:
    script = (
        "import dspy, sys\nfrom iapo_dspy.sampling.ledger.digests import digest\n"
        "e = dspy.Example(q='x', allowed={'one', 'uno', 'eins', 'un'}).with_inputs('q')\n"
        "print(digest([dict(e.items())]))\n"
    )
    seen = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        run = [sys.executable, "-c", script]
        done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT, env=env, timeout=60)
        seen.add(done.stdout)
    assert len(seen) == 1
    with pytest.raises(ConfigurationError, match="order"), dspy.context(lm=dspy.LM("openai/x", api_key="k")):
        optimizer(candidates={"a", "b"}).compile(student(), trainset=questions(3))


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        with pytest.raises(StorageError, match=r"cannot be made.*Choose a place"):
            optimizer(log_dir=tmp_path / "file" / "run").compile(student(), trainset=questions(3))
        assert server.requests == 0


# -- budgets


@pytest.mark.parametrize(("usd", "why"), [(0.001, "one round"), (0.3, "single completion")])
def test_a_budget_that_pays_for_nothing_is_an_error_not_a_policy(usd: float, why: str) -> None:
    prices: dict[str, Any] = {"input_cost_per_token": 1e-3, "output_cost_per_token": 1e-3, "max_tokens": 40}
    with Loopback(adder) as server, dspy.context(lm=server.lm(**prices)):
        with pytest.raises(BudgetTooSmall, match=f"{why}.* least that surely pays"):
            optimizer(budget=Budget(100, usd=usd)).compile(student(), trainset=questions(5))
        assert server.completions == 0


@pytest.mark.slow
def test_a_budget_that_ends_early_is_shared_by_all_prompts() -> None:
    prices: dict[str, Any] = {"input_cost_per_token": 1e-3, "output_cost_per_token": 1e-3, "max_tokens": 40}
    with Loopback(adder) as server, dspy.context(lm=server.lm(**prices)):
        compiler = optimizer(budget=Budget(500, usd=3.5), max_n=2)
        program = compiler.compile(student(), trainset=questions(20))
    assert not program.detailed_results.complete
    assert all(share == share for share in program.detailed_results.failures.share)  # NaN: never tried


def test_a_single_arm_is_measured() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        compiler = optimizer(candidates=[QUICK], max_n=1, budget=100)
        results = compiler.compile(student(), trainset=questions(10)).detailed_results
    assert server.completions == 10 + 5  # and five of the student, the unit of costs
    assert results.cost_scale > 0 and 0.0 < results.policy[0].reward < 1.0


@pytest.mark.slow
def test_a_prompt_that_never_answers_is_not_chosen_for_being_cheap() -> None:
    def world(body: dict[str, Any], i: int) -> str:
        return "no" if QUICK in body["messages"][0]["content"] else adder(body, i)

    preferences = [Preference("cheap", cost=500.0)]
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1)):
        compiler = optimizer(candidates=[QUICK, CAREFUL], preferences=preferences, budget=200)
        program = compiler.compile(student(), trainset=questions(10))
        assert program.solve("cheap").prompt == 1
        assert program(question="1 + 2", preference="cheap").answer


# -- metrics and objectives before anything is spent


def test_a_broken_metric_is_found_although_the_reasoning_has_no_label() -> None:
    cot = dspy.ChainOfThought("question -> answer")

    def typo(example: Any, pred: Any, trace: Any = None) -> bool:
        return bool(example.anwser == pred.answer)

    def some_labels_missing(example: Any, pred: Any, trace: Any = None) -> bool:
        return bool(example.answer == pred.answer)

    def reads_reasoning(example: Any, pred: Any, trace: Any = None) -> bool:
        return len(pred.reasoning) > 10 and 1 / (len(pred.reasoning) - 4) > 0  # fails for a made-up reasoning only

    train = questions(5)
    train[3] = dspy.Example(question="1 + 1").with_inputs("question")
    with Loopback(lambda b, i: chat(reasoning="because it is", answer="4")) as server, dspy.context(lm=server.lm()):
        with pytest.raises(ScoreError, match="anwser"):
            optimizer(metric=typo).compile(cot, trainset=questions(5))
        with pytest.raises(ScoreError, match=r"trainset\[3\]"):
            optimizer(metric=some_labels_missing).compile(cot, trainset=train)
        with pytest.raises(ConfigurationError, match="callable as"):
            optimizer(metric=lambda pred: True)
        assert server.requests == 0
        optimizer(metric=reads_reasoning, budget=24).compile(cot, trainset=questions(5))
        assert server.requests > 0


def test_judges_are_not_called_before_the_run() -> None:
    judge = dspy.Predict("question, answer -> verdict: bool")

    def judged(example: Any, pred: Any, trace: Any = None) -> bool:
        return bool(judge(question=example.question, answer=pred.answer).verdict)

    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        optimizer(metric=judged).quote(student(), trainset=questions(4))
        assert server.requests == 0


def test_labels_read_through_dictionaries_are_found_before_the_run() -> None:
    for sneaky in (lambda e, p: float(e.toDict()["answer"] == p.answer), lambda e, p: float(e.labels().answer == "1")):
        strategy = BestOfN([Objective("sneaky", sneaky)])
        with Loopback(adder) as server, dspy.context(lm=server.lm()):
            with pytest.raises(LabelRequired):
                compiler = optimizer(strategy=strategy, metric=None)
                compiler.compile(dspy.ChainOfThought("question -> answer"), trainset=questions(3))
            assert server.requests == 0


def test_predictors_of_a_frozen_child_are_named() -> None:
    frozen = Around()
    frozen.ask._compiled = True

    class Pipe(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = frozen
            self.inner._compiled = True

        def forward(self, question: str) -> dspy.Prediction:
            return self.inner(question=question)

    with pytest.raises(ConfigurationError, match="_compiled"):
        optimizer().compile(Pipe(), trainset=questions(3))


def test_inputs_that_forward_does_not_take_are_found_before_the_run() -> None:
    train = [e.copy(hint="x").with_inputs("question", "hint") for e in questions(3)]
    with dspy.context(lm=dspy.LM("openai/x", api_key="k")), pytest.raises(ConfigurationError, match="does not take"):
        optimizer().compile(Around(), trainset=train)


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": MajorityVote},
        {"preferences": 5},
        {"decoding": 5},
        {"candidates": 5},
        {"num_threads": 0},
        {"seed": -1},
        {"max_errors": "x"},
    ],
    ids=str,
)
def test_wrong_types_are_clear_errors(settings: dict[str, Any]) -> None:
    with dspy.context(lm=dspy.LM("openai/x", api_key="k")), pytest.raises(ConfigurationError):
        optimizer(**settings).compile(student(), trainset=questions(3))


# -- the compiled program


def test_defaults_survive_saving(tmp_path: Path) -> None:
    train = [e.copy(preference="tea").with_inputs("question", "preference") for e in questions(5)]
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        compiler = optimizer(budget=50, preference_field=None)
        program = compiler.compile(dspy.Predict("preference, question -> answer"), trainset=train)
        program.with_preference("thrifty").save(tmp_path / "p.json")
        loaded = CompiledProgram(dspy.Predict("preference, question -> answer"))
        loaded.load(tmp_path / "p.json")
        assert loaded(question="1 + 2", preference="coffee").iapo.preference == "thrifty"
        assert "coffee" in server.bodies[-1]["messages"][-1]["content"]
        ad_hoc = program.with_preference(Preference(cost=0.5))
        ad_hoc.save(tmp_path / "q.json")
        loaded.load(tmp_path / "q.json")
        assert loaded(question="1 + 2", preference="coffee").iapo.cost_weight == 0.5


@pytest.mark.slow
def test_labels_follow_what_another_optimizer_made_of_an_arm() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer(budget=100).compile(student(), trainset=questions(5))
        arm = program.arms[0]
        arm.signature = arm.signature.with_instructions("Something new.")
        name = next(p.name for p, a in zip(program.preferences, program.policy.ready.arms, strict=True)
                    if a.prompt == program.policy.programs.in_use[0])  # fmt: skip
        assert program(question="1 + 2", preference=name).iapo.label == "Something new."
        assert program.reset_copy().solve("quality") == program.solve("quality")


@pytest.mark.slow
def test_bootstrap_few_shot_around_a_compiled_program() -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer().compile(student(), trainset=questions(20))
        shots = dspy.BootstrapFewShot(metric=exact, max_bootstrapped_demos=2, max_labeled_demos=0)
        better = shots.compile(program, trainset=questions(6, start=50))
        assert any(p.demos for _, p in better.named_predictors())
        assert better(question="3 + 4").answer


@pytest.mark.parametrize("calls", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_compiled_programs_inside_compiled_programs_do_not_starve(calls: int) -> None:
    class Wrapper(dspy.Module):
        def __init__(self, inner: dspy.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer=self.inner(question=question).answer)

    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        inner = optimizer(budget=100, candidates=INSTRUCTIONS).compile(student(), trainset=questions(5))
        outer = optimizer(budget=16, max_n=2, candidates=[Wrapper(inner)], preferences=[Preference("q")])
        program = outer.compile(Wrapper(inner), trainset=questions(3))

        async def go() -> list[dspy.Prediction]:
            work = asyncio.gather(*(program.acall(question=f"{i} + 2") for i in range(calls)))
            return await asyncio.wait_for(work, 60)

        assert len(asyncio.run(go())) == calls
