"""Every strategy through `compile`, calls, saving and quotes, against a server on loopback."""

from __future__ import annotations

import json
import random
import re
import uuid
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest

from iapo_dspy import (
    IAPO,
    BestOfN,
    CompiledProgram,
    Execution,
    MajorityVote,
    Mean,
    Median,
    Mixed,
    Objective,
    Preference,
    WeightedVote,
    close,
)
from iapo_dspy.errors import ConfigurationError, LedgerError, ScoreError, StateError
from iapo_dspy.ledger import recording_of
from iapo_dspy.scoring.scores import Scored
from iapo_dspy.scoring.strategies.port import Selection
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.observing import observed
from tests.support.worlds import CAREFUL, QUICK, adder, checked, questions, total

QUALITY = [Preference("quality", cost=0.0), Preference("thrifty", cost=3.0)]
NOISY, BIASED = "Guess freely.", "Guess low."


def compiled(answer: Any, student: Any, **settings: Any) -> tuple[CompiledProgram, IAPO]:
    trainset = settings.pop("trainset", None) or questions(25)
    optimizer = optimizers(preferences=QUALITY, max_n=6, budget=300)(**settings)
    with Loopback(answer) as server, dspy.context(lm=server.lm(seed=1)):
        return optimizer.compile(dspy.Predict(student), trainset=trainset), optimizer


def call(program: CompiledProgram, answer: Any, **inputs: Any) -> dspy.Prediction:
    with Loopback(answer) as server, dspy.context(lm=server.lm(seed=5)):
        return program(**inputs)


def quoted(optimizer: IAPO, student: Any, trainset: list[dspy.Example]) -> Any:
    with dspy.context(lm=dspy.LM("openai/fake", api_key="none", max_tokens=100)):
        return optimizer.quote(dspy.Predict(student), trainset=trainset, output_tokens=20)


def saved_and_loaded(program: CompiledProgram, student: Any, path: Path, strategy: Any = None) -> CompiledProgram:
    program.save(str(path))
    other = CompiledProgram(dspy.Predict(student), strategy)
    other.load(str(path))
    return other


def guesser(body: dict[str, Any], i: int) -> str:
    """Numbers around the sum in question: a noisy one that is right on average, and a steady one that is 8 too low."""
    rng = body.setdefault("_rng", random.Random(body.get("seed")))
    noisy = NOISY in body["messages"][0]["content"]
    return chat(answer=f"{total(body) + (rng.gauss(0, 8) if noisy else -8 + rng.gauss(0, 0.5)):.3f}")


def sums(n: int = 25) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"{i} + {2 * i}", answer=float(3 * i)).with_inputs("question") for i in range(1, n + 1)
    ]


# -- typed votes


class Total(pydantic.BaseModel):
    value: int
    unit: Literal["apples", "pears"] = "apples"


def totals(body: dict[str, Any], i: int) -> str:
    text = adder(body, i)
    number = re.findall(r"\n(\d+)\n", text)[-1]
    return chat(answer=json.dumps({"value": int(number)} | ({"unit": "apples"} if i % 2 else {})))


class Adding(dspy.Signature):
    """Add."""

    question: str = dspy.InputField()
    answer: Total = dspy.OutputField()


def apples() -> list[dspy.Example]:
    return [
        dspy.Example(question=e.question, answer=Total(value=int(e.answer))).with_inputs("question")
        for e in questions(25)
    ]


def right_total(example: Any, pred: Any, trace: Any = None) -> bool:
    return bool(example.answer == pred.answer)


def test_models_are_voted_on_as_they_are(tmp_path: Path) -> None:
    program, _ = compiled(totals, Adding, strategy=MajorityVote("answer"), metric=right_total, trainset=apples())
    assert program.detailed_results.labels[program.solve("quality").prompt] == CAREFUL
    assert program.solve("quality").n > 2
    loaded = saved_and_loaded(program, Adding, tmp_path / "p.json")
    found = call(loaded, totals, question="4 + 5")
    assert found.answer == Total(value=9)
    assert max(found.iapo.votes.values()) > 1 and "Total(unit=" in next(iter(found.iapo.votes))


class Decimals(dspy.Signature):
    """Add."""

    question: str = dspy.InputField()
    answer: float = dspy.OutputField()


def jittered(body: dict[str, Any], i: int) -> str:
    rng = body.setdefault("_jitter", random.Random(body.get("seed")))
    number = float(re.findall(r"\n(\d+)\n", adder(body, i))[-1])
    return chat(answer=f"{number + rng.uniform(-0.004, 0.004):.5f}")


def near(example: Any, pred: Any, trace: Any = None) -> bool:
    return abs(float(example.answer) - float(pred.answer)) < 0.01


@pytest.mark.slow
def test_numbers_within_a_tolerance_are_one_answer_in_training_and_when_deployed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"metric": near, "candidates": [QUICK, CAREFUL]}
    exactly, _ = compiled(jittered, Decimals, strategy=MajorityVote("answer"), **settings)
    program, _ = compiled(jittered, Decimals, strategy=MajorityVote("answer", tolerance=0.01), **settings)
    careful = program.detailed_results.labels.index(CAREFUL)
    curve, flat = (p.detailed_results.curve(careful, "quality")[0] for p in (program, exactly))
    assert curve[-1] > flat[-1] + 0.08  # without it every answer has one vote, and nothing is gained
    loaded = saved_and_loaded(program, Decimals, tmp_path / "p.json")
    assert isinstance(loaded.policy.strategy, MajorityVote) and loaded.policy.strategy.equal == close(absolute=0.01)
    found = call(loaded, jittered, question="4 + 5")
    assert found.answer == pytest.approx(9, abs=0.01) and found.iapo.n >= 2
    assert max(found.iapo.votes.values()) > found.iapo.n / 2
    with pytest.raises(StateError, match="compiled with the strategy"):
        saved_and_loaded(program, Decimals, tmp_path / "p.json", MajorityVote("answer", tolerance=0.02))


class Untyped(dspy.Module):
    """A module that returns a typed field as text."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict(Decimals)

    def forward(self, question: str) -> dspy.Prediction:
        answer = self.ask(question=question).answer
        return dspy.Prediction(answer=f" {answer:.2f}0" if len(question) % 2 else f"{answer:.1f}")


@pytest.mark.slow
def test_a_typed_field_that_a_module_returns_as_text_is_read_as_its_type(tmp_path: Path) -> None:
    def right(example: Any, pred: Any, trace: Any = None) -> bool:
        return float(example.answer) == float(pred.answer)

    def plain(body: dict[str, Any], i: int) -> str:
        return adder(body, i)

    optimizer = IAPO(
        metric=right,
        strategy=MajorityVote("answer"),
        candidates=[CAREFUL],
        max_n=4,
        budget=60,
        execution=Execution(progress=False),
    )
    with Loopback(plain) as server, dspy.context(lm=server.lm(seed=1)):
        program = optimizer.compile(Untyped(), trainset=questions(10))
        program.save(str(tmp_path / "p.json"))
        loaded = CompiledProgram(Untyped())
        loaded.load(str(tmp_path / "p.json"))
        for p in (program, loaded):
            assert all(key.isdigit() for key in p(question="4 + 5", preference=Preference(cost=0.0)).iapo.votes)


def test_a_run_that_is_resumed_makes_the_same_classes(tmp_path: Path) -> None:
    """Keys are on disk, values are not: a resumed run compares what it reads back."""
    asked: list[tuple[float, float]] = []

    def alike(a: float, b: float) -> bool:
        asked.append((a, b))
        return abs(a - b) < 0.01

    settings: dict[str, Any] = {
        "metric": near,
        "strategy": MajorityVote("answer", equal=alike),
        "candidates": [QUICK, CAREFUL],
        "log_dir": tmp_path / "run",
        "budget": 160,
    }
    first, _ = compiled(jittered, Decimals, **settings)
    before = len(asked)
    assert before and all(isinstance(v, float) for pair in asked for v in pair)

    def unpaid(body: dict[str, Any], i: int) -> str:
        raise AssertionError("nothing is drawn again")

    settings["strategy"] = MajorityVote("answer", equal=alike)  # nothing is remembered
    second, _ = compiled(unpaid, Decimals, **settings)
    assert second.policy.dump_state()["evidence"] == first.policy.dump_state()["evidence"]
    assert asked[before:] == asked[:before]


@pytest.mark.slow
def test_an_equality_that_raises_costs_completions_and_no_run() -> None:
    def fussy(a: str, b: str) -> bool:
        if b.endswith("7"):
            raise ValueError("sevens cannot be compared")
        return a == b

    with observed() as evidence:
        program, _ = compiled(adder, "question -> answer", strategy=MajorityVote("answer", equal=fussy), budget=200)
    failures = program.detailed_results.failures
    assert 0 < failures.errors < failures.completions / 2
    assert any("sevens cannot be compared" in cause for cause, _ in failures.causes)
    assert sum(int(o.failed.sum()) for o in evidence) == failures.total


# -- weighted votes, mixed


@pytest.mark.slow
def test_a_checker_as_the_weight_of_votes_beats_the_majority() -> None:
    def answer(body: dict[str, Any], i: int) -> str:
        """Wrong the same way three times out of four."""
        rng = body.setdefault("_rng", random.Random(body.get("seed")))
        return chat(answer=str(total(body) if rng.random() < 0.35 else total(body) + 10))

    settings: dict[str, Any] = {"candidates": [CAREFUL], "budget": 250, "max_n": 8}
    majority, _ = compiled(answer, "question -> answer", strategy=MajorityVote("answer"), **settings)
    weighted = WeightedVote("answer", weight=checked)
    program, optimizer = compiled(answer, "question -> answer", strategy=weighted, **settings)
    plain, better = (p.detailed_results.policy[0] for p in (majority, program))
    assert plain.reward < 0.5 and better.reward > 0.85 and better.arm.n >= 5
    found = [call(program, answer, question=f"{i} + 5") for i in range(6)]
    assert sum(p.answer == str(i + 5) for i, p in enumerate(found)) >= 4
    for i, p in enumerate(found):
        votes = p.iapo.votes  # a right answer has its number of votes, a wrong one has none
        assert votes.get(str(i + 15), 0) == 0 and votes.get(str(i + 5), 1) >= 1
    quote = quoted(optimizer, "question -> answer", questions(25))
    assert 0 < quote.expected.completions <= 250


def brief(example: Any, pred: Any) -> float:
    return 1.0 / (1.0 + len(pred.reasoning.split()))


def worded(body: dict[str, Any], i: int) -> str:
    rng = body.setdefault("_words", random.Random(body.get("seed")))
    answer = re.findall(r"\n(\d+)\n", adder(body, i))[-1]
    return chat(reasoning="word " * rng.randint(0, 9), answer=answer)


STYLED = "question -> reasoning, answer"


def test_mixed_votes_and_returns_the_best_of_those_that_agree(tmp_path: Path) -> None:
    strategy = Mixed(MajorityVote("answer"), then=BestOfN([Objective("brief", brief)]), name="right")
    preferences = [
        Preference("right", weights={"right": 1.0}),
        Preference("brief", weights={"right": 0.5, "brief": 0.5}),
    ]
    program, optimizer = compiled(worded, STYLED, strategy=strategy, preferences=preferences)
    right, both = program.detailed_results.policy
    assert right.reward > 0.85
    assert program.detailed_results.labels[both.arm.prompt] == CAREFUL and both.arm.n >= 4
    found = call(program, worded, question="4 + 5")
    assert found.answer == "9"
    chosen = call(program.with_preference("brief"), worded, question="4 + 5")
    agreeing = [u for u in chosen.iapo.utilities if u is not None]
    assert len(agreeing) == chosen.iapo.votes["9"]
    assert chosen.iapo.utilities[chosen.iapo.winner] == max(agreeing)
    assert program.solve(Preference(weights={"brief": 1.0})).n >= 1  # an unseen preference, from stored evidence
    with pytest.raises(StateError, match="brief"):
        saved_and_loaded(program, STYLED, tmp_path / "p.json")
    loaded = saved_and_loaded(program, STYLED, tmp_path / "p.json", strategy)
    unseen = Preference(weights={"right": 0.2, "brief": 0.8})
    assert loaded.solve(unseen) == program.solve(unseen)
    quote = quoted(optimizer, STYLED, questions(25))
    assert 0 < quote.expected.completions <= 300


# -- means and medians


@pytest.mark.slow
def test_a_noisy_unbiased_prompt_wins_with_a_mean_of_many_and_only_pairs_are_drawn(tmp_path: Path) -> None:
    strategy = Mean("answer", range=(0, 100), scale=100)
    settings: dict[str, Any] = {"strategy": strategy, "metric": None, "candidates": [BIASED, NOISY], "max_n": 16}
    preferences = [Preference("quality", cost=0.0), Preference("thrifty", cost=100.0)]
    program, optimizer = compiled(
        guesser, "question -> answer", trainset=sums(), preferences=preferences, budget=200, **settings
    )
    results = program.detailed_results
    assert {int(m) for o in program.policy.ready.evidence for m in o.pulls.size} == {2}
    quality, thrifty = results.policy
    assert (results.labels[quality.arm.prompt], quality.arm.n) == (NOISY, 16)
    assert quality.reward == pytest.approx(1 - 64 / 16 / 100, abs=0.15)
    assert results.reward[0, quality.arm.prompt, 15] == pytest.approx(1 - 64 / 16 / 100, abs=0.08)
    assert thrifty.arm.n == 1
    loaded = saved_and_loaded(program, "question -> answer", tmp_path / "p.json")
    found = call(loaded, guesser, question="20 + 20")
    drawn = [float(a) for a in found.completions.answer]
    assert found.iapo.n == 16 and found.iapo.stopped is None
    assert found.answer == pytest.approx(sum(drawn) / 16) and found.iapo.replaced == {"answer": found.answer}
    nearest = min(drawn, key=lambda v: abs(v - found.answer))
    assert float(found.completions[0].answer) == nearest
    quote = quoted(optimizer, "question -> answer", sums())
    assert 0 < quote.expected.completions <= 200


@pytest.mark.slow
def test_a_median_is_estimated_from_what_was_drawn() -> None:
    def wild(body: dict[str, Any], i: int) -> str:
        rng = body.setdefault("_wild", random.Random(body.get("seed")))
        return chat(answer="1e6") if rng.random() < 0.2 else guesser(body, i)

    program, _ = compiled(
        wild,
        "question -> answer",
        strategy=Median("answer", range=(0, 100)),
        metric=None,
        candidates=[NOISY],
        trainset=sums(),
        preferences=QUALITY[:1],
    )
    assert program.solve("quality").n >= 4
    assert call(program, wild, question="20 + 20").answer == pytest.approx(40, abs=15)


@pytest.mark.slow
def test_an_affine_metric_needs_single_completions_only(tmp_path: Path) -> None:
    def rating(example: Any, pred: Any, trace: Any = None) -> float:
        return float(pred.answer) / 100

    settings: dict[str, Any] = {"candidates": [BIASED, NOISY], "max_n": 8, "trainset": sums()}
    program, _ = compiled(
        guesser, "question -> answer", strategy=Mean("answer", affine=True, bounds=(-1, 2)), metric=rating, **settings
    )
    assert {int(m) for o in program.policy.ready.evidence for m in o.pulls.size} == {1}
    assert [program.detailed_results.labels[program.solve(p).prompt] for p in ("quality", "thrifty")] == [NOISY] * 2
    assert [program.solve(p).n for p in ("quality", "thrifty")] == [1, 1]
    assert saved_and_loaded(program, "question -> answer", tmp_path / "p.json").solve("quality").n == 1

    def closeness(example: Any, pred: Any, trace: Any = None) -> float:
        return 1 - abs(example.answer - float(pred.answer)) / 100

    with pytest.raises(ConfigurationError, match="straight line"):
        compiled(guesser, "question -> answer", strategy=Mean("answer", affine=True), metric=closeness, **settings)


def test_labels_that_are_not_numbers_in_the_range_are_refused() -> None:
    for strategy, message in (
        (Mean("answer", range=(0, 1)), "must be a number in the range"),
        (Mean("answer", range=(0, 1), label="gold"), "no label 'gold'"),
    ):
        with pytest.raises(ScoreError, match=message):
            compiled(guesser, "question -> answer", strategy=strategy, metric=None, trainset=sums())


# -- strategies of the user


class Shortest(MajorityVote):
    """A plug-in: the shortest answer; it knows neither when it is settled nor how to make up completions."""

    settled = None  # type: ignore[assignment]

    def choose(self, read: Any, weights: Any) -> Selection | None:
        usable = [i for i, s in enumerate(read) if s.failure is None]
        if not usable:
            return None
        return Selection(index=min(usable, key=lambda i: (len(read[i].answer or ""), i)), failures={})

    def aggregator(self) -> Any:
        return ShortestAggregator()

    def score(self, example: Any, prediction: Any, metric: Any) -> Scored:
        scored = super().score(example, prediction, metric)
        if scored.scores is None:
            return scored
        return Scored(answer=scored.answer, scores=(*scored.scores, float(len(scored.answer or ""))))

    @property
    def columns(self) -> tuple[str, ...]:
        return ("metric", "length")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "shortest", "field": self.field}


class ShortestAggregator:
    def check(self, n_objectives: int) -> None:
        assert n_objectives == 2

    def reward(self, label: Any, score: Any, weights: Any) -> Any:
        import numpy as np

        length = np.where(np.isnan(score[:, :, 1]), np.inf, score[:, :, 1])
        best = length == length.min(axis=1, keepdims=True)
        worth = np.where(best, np.nan_to_num(score[:, :, 0]), 0.0).sum(axis=1) / best.sum(axis=1)
        return weights[:, :1] * np.where(np.isinf(length).all(axis=1), 0.0, worth)

    def blocks(self, label: Any, score: Any, weights: Any, layout: Any) -> Any:
        import numpy as np

        spans = zip(layout.start, layout.end, strict=True)
        return np.stack([self.reward(label[:, a:b], score[:, a:b], weights) for a, b in spans], axis=1)


@pytest.mark.parametrize("algorithm", ["auto", pytest.param("psst", marks=pytest.mark.slow)])
def test_a_strategy_of_the_user_runs_under_both_algorithms(algorithm: str, tmp_path: Path) -> None:
    strategy = Shortest("answer")
    program, optimizer = compiled(
        adder, "question -> answer", strategy=strategy, algorithm=algorithm, log_dir=tmp_path / "run"
    )
    found = call(program, adder, question="4 + 5")
    assert found.iapo.n == program.solve("quality").n
    assert len(found.answer) == min(len(a) for a in found.completions.answer)
    quote = quoted(optimizer, "question -> answer", questions(25))
    assert 0 < quote.expected.completions <= 300
    with pytest.raises(StateError, match="shortest"):
        saved_and_loaded(program, "question -> answer", tmp_path / "p.json")
    assert saved_and_loaded(program, "question -> answer", tmp_path / "p.json", strategy).solve("thrifty").n == 1
    with pytest.raises(LedgerError, match="majority votes and Best-of-N only"):
        recording_of(tmp_path / "run")


# -- calls of tools: the provider gives each an id of its own


class Calling(Loopback):
    """Answers by a native call of a tool, with the text as its argument."""

    def _payload(self, body: dict[str, Any], n: int, fault: Any) -> dict[str, Any]:
        payload = super()._payload(body, n, fault)
        for choice in payload["choices"]:
            function = {"name": "search", "arguments": json.dumps({"text": choice["message"]["content"]})}
            call = {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
            choice["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
            choice["finish_reason"] = "tool_calls"
        return payload


class Route(dspy.Signature):
    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    calls: dspy.ToolCalls = dspy.OutputField()


def search(text: str) -> str:
    """Search for a text."""
    return text


def test_equal_calls_of_tools_are_one_answer(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], i: int) -> str:
        return "wrong" if i % 4 == 0 else "right"

    def found(example: Any, pred: Any, trace: Any = None) -> bool:
        return bool(pred.calls.tool_calls[0].args["text"] == example.want)

    tools = [dspy.Tool(search)]
    train = [
        dspy.Example(question=f"Q{i}", tools=tools, want="right").with_inputs("question", "tools") for i in range(8)
    ]
    optimizer = optimizers(preferences=QUALITY[:1], max_n=6, budget=100, candidates=["Search."], log_dir=tmp_path)
    made = optimizer(strategy=MajorityVote("calls"), metric=found, stopping=None)
    adapter = dspy.ChatAdapter(use_native_function_calling=True)
    with Calling(answer) as server, dspy.context(lm=server.lm("openai/gpt-4o-mini"), adapter=adapter):
        program = made.compile(dspy.Predict(Route), trainset=train)
        drawn = program(question="Q1", tools=tools)
        asked = server.requests
        made.compile(dspy.Predict(Route), trainset=train)
        assert server.requests == asked, "all is in the ledger"
    key = 'ToolCalls(tool_calls=[ToolCall(args={{"text": "{}"}}, name="search")])'
    assert drawn.iapo.n == 6 and drawn.calls.tool_calls[0].args == {"text": "right"}
    assert drawn.iapo.votes.keys() == {key.format("right"), key.format("wrong")}
    assert max(drawn.iapo.votes.values()) >= 4
