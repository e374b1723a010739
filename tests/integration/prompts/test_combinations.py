"""Candidates given predictor by predictor, from `compile` to a loaded program, against a server on loopback."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import CompiledProgram, Decoding, Preference
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.prompts.combinations import Combinations
from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.states import state_of
from tests.support.worlds import TwoSteps, outputs, questions, total

PLANS = ["Plan 0.", "Plan 1.", "Plan 2.", "Plan 3."]
ASKS = ["Ask 0.", "Ask 1.", "Ask 2.", "Ask 3."]
DECODINGS = [Decoding(temperature=t) for t in (0.5, 0.8, 1.1)]
CANDIDATES = {"plan": PLANS, "ask": ASKS}
SKILL = {"Plan": (0.3, 0.5, 0.9, 0.4), "Ask": (0.4, 0.9, 0.3, 0.5)}  # shares of good ideas, and of what is made of them
BEST = {"plan": 2, "ask": 1}
PREFERENCES = [Preference("quality", cost=0.0), Preference("thrifty", cost=20.0)]


def world(body: dict[str, Any], i: int) -> str:
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    system, user = body["messages"][0]["content"], body["messages"][-1]["content"]
    own = [("Plan" if outputs(body) == ["idea"] else "Ask", "0")]  # the student as it is: the unit of costs
    kind, option = (re.findall(r"(Plan|Ask) (\d)\.", system) or own)[0]
    good = rng.random() < SKILL[kind][int(option)]
    if kind == "Plan":
        return chat(idea="good" if good else "bad")
    correct, right = total(body), good and "good" in user.split("idea")[1]
    return chat(answer=str(correct if right else correct + rng.randint(1, 30)))


optimizer = optimizers(preferences=PREFERENCES, max_n=8, budget=400, candidates=CANDIDATES, decoding=DECODINGS)


def options(program: CompiledProgram, preference: str) -> Any:
    return program.policy.ready.prompts[program.solve(preference).prompt].options


@pytest.mark.slow
def test_a_small_product_is_looked_at_as_a_whole() -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer(decoding=None, budget=320).compile(TwoSteps(), trainset=questions(10))
    assert len(program.detailed_results.labels) == 16
    assert options(program, "quality")["plan"] == BEST["plan"]


@pytest.mark.slow
def test_a_large_one_is_searched_predictor_by_predictor(tmp_path: Path) -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1)):
        data = questions(30)
        program = optimizer(budget=320).compile(TwoSteps(), trainset=data[:22], valset=data[22:])
        results = program.detailed_results
        assert options(program, "quality") == BEST
        assert results.spent.completions <= 320 and results.complete
        # Only what was drawn is in the results, in the policy and in the file.
        drawn = program.policy.ready.prompts
        assert 9 <= len(drawn) < 32 and len(results.labels) == len(drawn) == len(results.failures.share)
        assert results.q.shape == (2, len(drawn), 8)
        assert [p.label for p in drawn] == list(results.labels)
        assert len({p.candidate for p in drawn}) <= 16 and {p.candidate for p in drawn} != set(range(len(drawn)))
        for prompt in drawn:
            assert prompt.options is not None
            assert prompt.candidate == 4 * prompt.options["plan"] + prompt.options["ask"]
            assert prompt.state["plan"]["signature"]["instructions"] == PLANS[prompt.options["plan"]]
        assert results.policy[0].held_out is not None and results.policy[0].held_out.queries > 0

        unseen = Preference(cost=3.0)
        arm = program.solve(unseen)
        program.save(tmp_path / "program.json")
        loaded = CompiledProgram(TwoSteps())
        loaded.load(tmp_path / "program.json")
        assert loaded.solve("quality") == program.solve("quality") and loaded.solve(unseen) == arm
        assert options(loaded, "quality") == BEST
        assert loaded(question="3 + 4").iapo.label == results.labels[program.solve("quality").prompt]


@pytest.mark.slow
def test_a_run_that_died_goes_on_at_its_coordinate(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def run(server: Loopback, log_dir: Path | None, **kwargs: Any) -> dict[str, Any]:
        with dspy.context(lm=server.lm(seed=1)):
            program = optimizer(log_dir=log_dir, num_threads=4, budget=130, **kwargs).compile(
                TwoSteps(), trainset=questions(12)
            )
        return {k: v for k, v in state_of(program).items() if k != "spent"}

    with Loopback(world) as server:
        whole = run(server, None)
        bill = set(body["seed"] for body in server.bodies)
    with Loopback(world) as server:
        for limit in (30, 95):

            def stop(progress: Any, limit: int = limit) -> None:
                if progress.completions >= limit:
                    raise Killed

            with pytest.raises(Killed):
                run(server, tmp_path, progress=stop)
        assert run(server, tmp_path) == whole
        again = Counter(body["seed"] for body in server.bodies)
        assert set(again) == bill
        requests = server.requests
        assert run(server, tmp_path) == whole and server.requests == requests
    settings, records = read_ledger(tmp_path)
    drawn = {r.prompt for r in records if isinstance(r, CompletionRecord)}
    assert len(drawn) - 1 == len(whole["prompts"])  # beside the student as it is, the unit of costs
    assert settings["shape"] == [4, 4, 3]


@pytest.mark.slow
def test_a_log_dir_needs_no_more_of_the_combinations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: set[int] = set()
    make = Combinations._make

    def counted(self: Combinations, combination: int) -> Any:
        made.add(combination)
        return make(self, combination)

    def stop(progress: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Combinations, "_make", counted)
    candidates = {"plan": [f"Plan 0. {i}" for i in range(20)], "ask": [f"Ask 1. {i}" for i in range(20)]}
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=1)):
        run = optimizer(
            log_dir=tmp_path, candidates=candidates, decoding=None, budget=1000, progress=stop, num_threads=1
        )
        with pytest.raises(KeyboardInterrupt):
            run.compile(TwoSteps(), trainset=questions(10))
        run.quote(TwoSteps(), trainset=questions(10))
    assert len(made) < 100


def test_what_cannot_be_searched_is_refused_before_any_call() -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm()):
        with pytest.raises(ConfigurationError, match=r"48 combinations, more than joint_limit=32.*psst"):
            optimizer(algorithm="psst").compile(TwoSteps(), trainset=questions(3))
        with pytest.raises(BudgetTooSmall, match="at least 9"):
            optimizer(budget=8).compile(TwoSteps(), trainset=questions(3))
        with pytest.raises(ConfigurationError, match=r"predictor 'answer'; the student has \['plan', 'ask'\]"):
            optimizer().compile(TwoSteps(), trainset=questions(3), candidates={"answer": ["a"]})
        with pytest.raises(ConfigurationError, match="temperature 0"):
            optimizer(decoding=[*DECODINGS, Decoding(temperature=0.0)]).compile(TwoSteps(), trainset=questions(3))
        with pytest.raises(ConfigurationError, match="joint_limit=0"):
            optimizer(joint_limit=0)
        assert optimizer(joint_limit=48, budget=48).quote(TwoSteps(), trainset=questions(3)).least_completions == 48
        quote = optimizer().quote(TwoSteps(), trainset=questions(3), output_tokens=5)
        assert (quote.prompts, quote.least_completions, quote.expected) == (48, 9, None)
        assert not server.requests
