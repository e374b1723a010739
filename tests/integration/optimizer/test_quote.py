"""Expected spends of quotes, against real spends on a loopback server that counts as the model's tokenizer."""

import functools
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import BestOfN, Budget, Cost, Objective, Preference
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.lm.params import import_litellm
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.worlds import (
    CAREFUL,
    LAZY,
    QUICK,
    TwoSteps,
    adder,
    after_ideas,
    brevity,
    checked,
    exact,
    outputs,
    questions,
)

PREFERENCES = [Preference("quality", cost=0.0), Preference("balanced", cost=0.2), Preference("thrifty", cost=1.0)]
PRICES = Cost(completion_tokens=1, usd_per_million=(0.15, 0.60))


@functools.cache
def tokens(text: str) -> int:
    return int(import_litellm().token_counter(model="openai/fake", text=text))


def server(answer: Any) -> Loopback:
    return Loopback(answer, count=tokens, message_tokens=3)


def alike(body: dict[str, Any], i: int) -> str:
    """The adder with answers of nearly one length, whatever the instruction."""
    text = adder(body, i)
    return text if text.startswith("step") else "step " * 25 + "\n\n" + text


def wordy(body: dict[str, Any], i: int) -> str:
    """Completions of three lengths, up to half as long again; the skill is the adder's."""
    system = body["messages"][0]["content"]
    more = 16 if LAZY in system else 8 if QUICK in system else 0
    text = adder(body, i)
    return ("word " * (more + 26) + "\n\n" + text) if not text.startswith("step") else text


def length_of(text: str) -> float:
    return float(tokens(text + chat(answer="31")))


STEP, WORD = "step " * 25 + "\n\n", "word "
CASES: dict[str, tuple[Any, Any, Any]] = {
    "a predictor": (lambda: dspy.Predict("question -> answer"), alike, lambda: length_of(STEP)),
    "chain of thought": (
        lambda: dspy.ChainOfThought("question -> answer"),
        lambda body, i: "[[ ## reasoning ## ]]\nbecause\n\n" + alike(body, i),
        lambda: length_of("[[ ## reasoning ## ]]\nbecause\n\n" + STEP),
    ),
    "three lengths": (
        lambda: dspy.Predict("question -> answer"),
        wordy,
        lambda: [length_of(WORD * 42 + "\n\n"), length_of(WORD * 34 + "\n\n"), length_of(STEP)],
    ),
}


optimizer = optimizers(preferences=PREFERENCES, max_n=8, budget=1200, cost_unit=PRICES)


def compare(quote: Any, spent: Any) -> dict[str, float]:
    """How far what was expected is off, as a share of what was real.

    How many completions share a request is learnt in the run, so requests and prompt tokens may be anywhere between the
    simulated runs.
    """
    off = {
        name: getattr(quote.expected, name) / getattr(spent, name) - 1 for name in ("completions", "completion_tokens")
    }
    for name in ("requests", "prompt_tokens", "usd"):
        real, (low, high) = getattr(spent, name), quote.expected.spread[name]
        off[name] = max(low / real - 1, 1 - high / real, 0.0)
    return off


@pytest.mark.parametrize(
    "case", [case if case == "a predictor" else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
@pytest.mark.parametrize(
    "shared",
    [
        pytest.param(True, id="n shares prompts"),
        pytest.param(False, id="a request per completion", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_what_is_expected_is_within_20_percent_of_what_is_spent(
    case: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, world, lengths = CASES[case]
    if not shared:
        for module in (
            "iapo_dspy.sampling.requests.litellm",
            "iapo_dspy.optimizer.quoting.expected_spend",
            "iapo_dspy.optimizer.quoting.quote",
        ):
            monkeypatch.setattr(f"{module}.supports_n", lambda *_: False)
    settings: dict[str, Any] = {} if shared else {"budget": 400}
    with server(world) as loopback, dspy.context(lm=loopback.lm(seed=1, max_tokens=200)):
        quote = optimizer(**settings).quote(make(), trainset=questions(40), output_tokens=lengths())
        assert loopback.requests == 0
        program = optimizer(**settings).compile(make(), trainset=questions(40))
        spent = program.detailed_results.spent
        assert (spent.prompt_tokens, spent.completion_tokens) == (loopback.prompt_tokens, loopback.completion_tokens)
    off = compare(quote, spent)
    assert max(abs(share) for share in off.values()) <= 0.2, off
    assert quote.expected is not None
    assert (quote.requests or 0) >= quote.expected.requests > 0
    assert (quote.prompt_tokens or 0) >= quote.expected.prompt_tokens > 0
    assert "expected" in str(quote) and "output_tokens as given" in str(quote)


@pytest.mark.slow
def test_best_of_n_is_expected_too() -> None:
    objectives = [Objective("right", checked), Objective("short", brevity)]
    settings = {"strategy": BestOfN(objectives), "metric": None, "budget": 600}
    with server(alike) as loopback, dspy.context(lm=loopback.lm(seed=1, max_tokens=200)):
        chooser = optimizer(**settings)
        quote = chooser.quote(
            dspy.Predict("question -> answer"), trainset=questions(20), output_tokens=CASES["a predictor"][2]()
        )
        spent = chooser.compile(dspy.Predict("question -> answer"), trainset=questions(20)).detailed_results.spent
    off = compare(quote, spent)
    assert max(abs(share) for share in off.values()) <= 0.35, off  # its pulls are larger than those of made-up scores


def test_a_dollar_budget_ends_what_is_expected() -> None:
    settings = {"budget": Budget(5000, usd=0.02)}
    with server(alike) as loopback, dspy.context(lm=loopback.lm(seed=1, max_tokens=60)):
        chooser = optimizer(**settings, num_threads=16)
        quote = chooser.quote(
            dspy.Predict("question -> answer"), trainset=questions(20), output_tokens=CASES["a predictor"][2]()
        )
        spent = chooser.compile(dspy.Predict("question -> answer"), trainset=questions(20)).detailed_results.spent
    assert quote.expected is not None and (quote.expected.usd or 0) <= 0.02 and spent.usd <= 0.02
    off = compare(quote, spent)
    assert max(abs(share) for share in off.values()) <= 0.2, off


@pytest.mark.slow
def test_an_earlier_ledger_tells_lengths_and_judges(tmp_path: Path) -> None:
    def judged(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> bool:
        dspy.Predict("guess -> verdict")(guess=f"{example.question} {pred.answer}")
        return bool(exact(example, pred))

    def world(body: dict[str, Any], i: int) -> str:
        return chat(verdict="yes") if "verdict" in outputs(body) else after_ideas(alike, "idea {i}")(body, i)

    candidates = [{"ask": QUICK}, {"ask": CAREFUL}]
    settings: dict[str, Any] = {"metric": judged, "candidates": candidates, "max_n": 4}
    with server(world) as loopback, dspy.context(lm=loopback.lm(seed=1, max_tokens=200, cache=False)):
        quote = optimizer(**settings, budget=240).quote(TwoSteps(), trainset=questions(10))
        assert quote.expected is None and any("ledger" in note for note in quote.notes)
        optimizer(**settings, budget=60, log_dir=tmp_path).compile(TwoSteps(), trainset=questions(10))
        quote = optimizer(**settings, budget=240, log_dir=tmp_path).quote(TwoSteps(), trainset=questions(10))
        spent = optimizer(**settings, budget=240).compile(TwoSteps(), trainset=questions(10)).detailed_results.spent
    off = compare(quote, spent)
    assert max(abs(share) for share in off.values()) <= 0.25, off
    assert spent.judge_requests > 0 and quote.expected is not None and "ledger" in quote.expected.basis


@pytest.mark.slow
def test_an_earlier_ledger_of_a_predictor_gives_its_lengths(tmp_path: Path) -> None:
    make, world, _ = CASES["three lengths"]
    with server(world) as loopback, dspy.context(lm=loopback.lm(seed=1, max_tokens=200)):
        optimizer(budget=120, log_dir=tmp_path).compile(make(), trainset=questions(40))
        quote = optimizer(log_dir=tmp_path).quote(make(), trainset=questions(40))
        spent = optimizer().compile(make(), trainset=questions(40)).detailed_results.spent
    off = compare(quote, spent)
    assert max(abs(share) for share in off.values()) <= 0.2, off


def test_without_lengths_nothing_is_expected_and_wrong_ones_are_refused() -> None:
    with server(alike) as loopback, dspy.context(lm=loopback.lm(max_tokens=200)):
        quote = optimizer().quote(dspy.Predict("question -> answer"), trainset=questions(5))
        assert quote.expected is None and any("output_tokens=" in note for note in quote.notes)
        for wrong in ([1, 2], -1, "many", float("nan")):
            with pytest.raises(ConfigurationError, match="output_tokens"):
                optimizer().quote(dspy.Predict("question -> answer"), trainset=questions(5), output_tokens=wrong)  # type: ignore[arg-type]
        assert loopback.requests == 0
