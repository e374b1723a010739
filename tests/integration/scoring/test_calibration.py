"""Calibration in whole runs: learnt from the first batch, the same when resumed, loaded and deployed."""

import json
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import BestOfN, CompiledProgram, Objective, Preference
from iapo_dspy.errors import StateError
from iapo_dspy.ledger import recording_of
from iapo_dspy.scoring.calibration import fit
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.observing import observed
from tests.support.worlds import CAREFUL, adder, questions, student


def closeness(example: dspy.Example, pred: dspy.Prediction) -> float:
    """Minus ten times how far off a sum is: no bounds that anybody would know beforehand."""
    return -10.0 * abs(sum(int(x) for x in example.question.split(" + ")) - int(pred.answer))


def brevity(example: dspy.Example, pred: dspy.Prediction) -> float:
    return 1.0 - min(len(pred.answer), 10) / 10


def strategy(kind: Any = "minmax") -> BestOfN:
    return BestOfN([Objective("close", closeness, calibrate=kind), Objective("brief", brevity)])


optimizer = optimizers(
    metric=None,
    strategy=strategy(),
    preferences=[Preference("right", weights={"close": 1.0}), Preference("cheap", cost=10.0)],
    budget=150,
)


def records(log_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (log_dir / "ledger.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("kind") == kind]


@pytest.mark.parametrize("kind", ["minmax", "rank"])
def test_the_first_batch_teaches_the_scale_that_everything_later_uses(tmp_path: Path, kind: Any) -> None:
    given = strategy(kind)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)), observed() as seen:
        chooser = optimizer(strategy=given, log_dir=tmp_path)
        program = chooser.compile(student(), trainset=questions(10))
        assert not given.calibrated and chooser.strategy is given  # the user's own object is as it was
        lines = records(tmp_path, "score")
        scores = {r["key"]: r["scores"] for r in lines}
        assert len({r["key"].split("/")[0] for r in lines if r["calibrates"]}) == 3  # without the student, unscored
        first = [r["scores"][0] for r in lines if r["calibrates"] and r["scores"] is not None]
        later = [r["scores"][0] for r in lines if not r["calibrates"] and r["scores"] is not None]
        assert min(first) < -20 and later  # the ledger has raw scores
        expected = fit(kind, first)
        learnt = program.policy.ready.strategy["calibration"]
        assert learnt == {"close": expected.to_dict()}
        evidence = np.concatenate([o.score for o in seen])
        assert np.nanmin(evidence) >= 0 and np.nanmax(evidence) <= 1
        assert len(evidence) == len(scores)
        assert sorted(evidence[:, 0].tolist()) == pytest.approx(sorted(expected(s[0]) for s in scores.values()))
        best = program.solve("right")
        assert program.detailed_results.labels[best.prompt] == CAREFUL and best.n > 1

        prediction = program(question="3 + 4", preference="right")
        report = prediction.iapo
        raw = [closeness(dspy.Example(question="3 + 4"), p) for p in _completions(prediction)]
        assert max(report.utilities) == pytest.approx(expected(max(raw)))
        assert report.utilities[report.winner] == max(report.utilities)
        with pytest.raises(StateError, match="calibrated while compiling"):
            given.choose([given.read({"question": "3 + 4"}, prediction)], np.array([1.0, 0.0]))


def _completions(prediction: dspy.Prediction) -> list[dspy.Prediction]:
    return [dspy.Prediction(answer=a) for a in prediction.completions.answer]


def test_a_loaded_program_chooses_by_the_scale_of_its_run(tmp_path: Path) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer().compile(student(), trainset=questions(10))
        program.save(tmp_path / "program.json")
        given = strategy()
        loaded = CompiledProgram(student(), strategy=given)
        loaded.load(tmp_path / "program.json")
        unseen = Preference(cost=0.3, weights={"close": 0.7, "brief": 0.3})
        assert loaded.solve(unseen) == program.solve(unseen)
        same = [p(question="5 + 11", preference="right").iapo.utilities for p in (program, loaded)]
        assert same[0] == same[1]
        assert not given.calibrated
        # A scale that the given strategy brings from elsewhere is not that of the saved evidence.
        other = CompiledProgram(student(), strategy=given.calibrate([(-1.0, 0.0), (1.0, 0.0)]))
        other.load(tmp_path / "program.json")
        assert other(question="5 + 11", preference="right").iapo.utilities == same[0]
        with pytest.raises(StateError, match="compiled with the strategy"):
            CompiledProgram(student(), strategy=strategy("rank")).load(tmp_path / "program.json")
        again = loaded.deepcopy()
        assert again(question="5 + 11", preference="right").iapo.utilities == same[0]


@pytest.mark.parametrize("at", [8, 60])
@pytest.mark.slow
def test_a_killed_run_that_is_resumed_learns_the_same_scale(tmp_path: Path, at: int) -> None:
    class Stop(Exception):
        pass

    def progress(state: Any) -> None:
        if state.completions >= at:
            raise Stop

    def learnt(program: CompiledProgram) -> Any:
        data = program.policy.ready
        return data.strategy, data.arms, [o.score.tolist() for o in data.evidence]

    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        whole = learnt(optimizer().compile(student(), trainset=questions(10)))
        before = server.completions
        with pytest.raises(Stop):
            optimizer(log_dir=tmp_path, progress=progress, num_threads=1).compile(student(), trainset=questions(10))
        paid = server.completions - before
        assert 0 < paid < before
        resumed = learnt(optimizer(log_dir=tmp_path).compile(student(), trainset=questions(10)))
        assert resumed == whole
        after = server.completions
        assert learnt(optimizer(log_dir=tmp_path).compile(student(), trainset=questions(10))) == whole
        assert server.completions == after  # the third run only reads


def test_a_strategy_that_was_calibrated_before_keeps_its_scale(tmp_path: Path) -> None:
    known = strategy().calibrate([(-1000.0, 0.0), (0.0, 1.0)])
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer(strategy=known, log_dir=tmp_path).compile(student(), trainset=questions(10))
    assert program.policy.ready.strategy == known.to_dict()
    assert np.nanmin(np.concatenate([o.score[:, 0] for o in program.policy.ready.evidence])) > 0.85


@pytest.mark.slow
def test_a_recording_and_a_quote_of_the_ledger_are_on_the_scale_of_the_run(tmp_path: Path) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        chooser = optimizer(log_dir=tmp_path, budget=300)
        program = chooser.compile(student(), trainset=questions(4))
        quote = chooser.quote(student(), trainset=questions(4))
    recording = recording_of(tmp_path, common_queries=True)
    outcomes: Any = recording.outcomes  # type: ignore[attr-defined]
    assert outcomes.min() >= 0 and outcomes.max() <= 1
    best = program.solve("right").prompt
    rewards = (outcomes[..., 0] * recording.probs).sum(axis=2).mean(axis=1)
    assert rewards.argmax() == best and 0.5 < rewards[best] <= 1
    assert quote.expected is not None and quote.expected.completions > 0


def test_a_completion_with_no_finite_score_is_a_failed_one() -> None:
    def brittle(example: dspy.Example, pred: dspy.Prediction) -> float:
        found = closeness(example, pred)
        return float("nan") if found < -50 else found

    strict = BestOfN([Objective("close", brittle, calibrate="rank")])
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        chooser = optimizer(strategy=strict, preferences=[Preference("a")])
        results = chooser.compile(student(), trainset=questions(10)).detailed_results
    assert 0 < results.failures.total < results.spent.completions
    assert results.failures.errors == results.failures.total
