"""`program.explain` says what was asked, what serves it and why, without LM calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

from iapo_dspy import IAPO, BestOfN, CompiledProgram, Execution, MajorityVote, Objective, Preference
from iapo_dspy.errors import ConfigurationError, UnknownPreference
from iapo_dspy.types import Arm, Stop
from tests.support.deployed import deploy
from tests.support.loopback import Loopback, chat
from tests.support.worlds import CAREFUL, INSTRUCTIONS, QUICK, adder, brevity, checked, exact, questions

PREFERENCES = [Preference("quality", cost=0.0), Preference("thrifty", cost=30.0)]


@pytest.fixture(scope="module")
def compiled() -> Iterator[tuple[Loopback, CompiledProgram]]:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        optimizer = IAPO(
            metric=exact, strategy=MajorityVote("answer"), preferences=PREFERENCES, max_n=6, budget=300,
            candidates=INSTRUCTIONS, execution=Execution(progress=False))  # fmt: skip
        yield server, optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(20))


def test_estimates_are_those_of_the_run(compiled: Any) -> None:
    server, program = compiled
    before = server.requests
    for row in program.detailed_results.policy:
        told = program.explain(preference=row.preference.name)
        assert (told.chosen.prompt, told.chosen.n) == (row.arm.prompt, row.arm.n)
        assert told.chosen.utility == pytest.approx(row.utility, abs=1e-6)
        assert told.chosen.reward == pytest.approx(row.reward, abs=1e-6)
        assert told.chosen.cost == pytest.approx(row.cost, rel=1e-6)
        assert told.standard_error == pytest.approx(row.choice.standard_error, abs=1e-6)
        assert told.probability_best == pytest.approx(row.choice.probability_best, abs=0.01)
        assert told.evidence == row.evidence and told.call is None
    assert server.requests == before


def test_alternatives_are_the_best_of_their_kind(compiled: Any) -> None:
    _, program = compiled
    told = program.explain(preference="quality")
    q = program.policy.ready.solve([PREFERENCES[0]], program.policy.strategy).q[0]
    by_what = {option.what: option for option in told.alternatives}
    other = by_what["best other prompt"]
    assert other.prompt != told.chosen.prompt
    assert other.utility == max(max(row) for p, row in enumerate(q.tolist()) if p != told.chosen.prompt)
    single = by_what["one completion of the same prompt"]
    assert (single.prompt, single.n) == (told.chosen.prompt, 1)
    assert single.utility == pytest.approx(q[told.chosen.prompt, 0]) and single.utility < told.chosen.utility
    assert [o.utility for o in told.alternatives] == sorted((o.utility for o in told.alternatives), reverse=True)
    assert len({(o.prompt, o.n) for o in (told.chosen, *told.alternatives)}) == 1 + len(told.alternatives)


def test_a_call_is_told_as_it_was(compiled: Any) -> None:
    server, program = compiled
    with dspy.context(lm=server.lm(seed=1)):
        prediction = program(question="3 + 4")
    before = server.requests
    told = program.explain(prediction)
    assert told == program.explain(prediction.iapo) and told.call is prediction.iapo
    assert (told.chosen.prompt, told.chosen.n) == (prediction.iapo.prompt, prediction.iapo.planned)
    text = str(told)
    assert text.startswith("Preference: quality (cost weight 0).\nArm: N=")
    report = prediction.iapo
    drew = f"drew all {report.n}" if report.n == report.planned else f"drew {report.n} of {report.planned}"
    assert CAREFUL in text and f"{drew} in {report.waves} wave" in text and "votes '7'" in text
    assert all(len(line) < 250 for line in text.splitlines()) and 4 <= len(text.splitlines()) <= 7
    assert json.loads(json.dumps(told.to_dict()))["call"]["votes"]["7"] >= 1
    assert server.requests == before


def test_ad_hoc_preferences_are_told_from_their_call(compiled: Any) -> None:
    server, program = compiled
    odd = Preference(cost=2.5)
    with dspy.context(lm=server.lm(seed=1)):
        told = program.explain(program(question="3 + 4", preference=odd))
    assert "unnamed (cost weight 2.5): an average single completion costs 0.025" in told.preference
    assert (told.chosen.prompt, told.chosen.n) == (program.solve(odd).prompt, program.solve(odd).n)


def test_the_default_follows_the_program(compiled: Any) -> None:
    _, program = compiled
    assert program.explain().preference.startswith("quality")
    assert program.with_preference("thrifty").explain().preference.startswith("thrifty")


def test_a_stop_and_its_effect_are_told() -> None:
    with Loopback(lambda body, i: chat(answer="7")) as server, dspy.context(lm=server.lm(seed=1)):
        stop = Stop(waves=(2, 4, 6), confidence=0.8)
        program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [CAREFUL], {"q": Arm(0, 6, stop)})
        told = program.explain(program(question="3 + 4"))
    assert told.stop is not None and "waves up to 2, 4, 6" in told.stop and "confidence 0.8" in told.stop
    assert "drew 2 of 6 in 1 wave (confident: the leading answer was ahead by enough); votes '7' 2" in str(told)


@pytest.mark.slow
def test_failures_and_dollars_are_told() -> None:
    prices: dict[str, Any] = {"input_cost_per_token": 1e-3, "output_cost_per_token": 1e-3}
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1, **prices)):
        program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [QUICK], {"q": Arm(0, 4)})
        server.answer = lambda body, i: chat(answer="8") if i % 2 else "garbage"
        text = str(program.explain(program(question="4 + 4")))
    assert "2 failed ('AdapterParseError" in text and ", $" in text


@pytest.mark.slow
def test_best_of_n_with_weights() -> None:
    strategy = BestOfN([Objective("right", checked), Objective("short", brevity)])
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        wish = Preference("both", weights={"right": 0.75, "short": 0.25})
        program = deploy(
            dspy.Predict("question -> answer"),
            strategy,
            [CAREFUL],
            {"both": Arm(0, 3)},
            metric=None,
            preferences=[wish],
        )
        told = program.explain(program(question="3 + 4"))
    assert "weights right=0.75, short=0.25" in told.preference and "was the best with 0." in str(told)


def test_what_cannot_be_explained_says_why(compiled: Any) -> None:
    server, program = compiled
    with dspy.context(lm=server.lm(seed=1)):
        prediction = program(question="3 + 4")
        with pytest.raises(ConfigurationError, match="not both"):
            program.explain(prediction, preference="quality")
    with pytest.raises(ConfigurationError, match="iapo"):
        program.explain(dspy.Prediction(answer="7"))
    with pytest.raises(ConfigurationError, match="iapo"):
        program.explain("quality")
    with pytest.raises(UnknownPreference):
        program.explain(preference="best")
    other = prediction.iapo.model_copy(update={"prompt": 17})
    with pytest.raises(ConfigurationError, match="prompt 17"):
        program.explain(other)
