from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import iapo_dspy.demo as demo
from iapo_dspy.demo import tasks
from iapo_dspy.demo.batching import shared_batcher
from iapo_dspy.demo.generation import GenerationRequest, SampledText
from tests.support.demo_chat import render_chat
from tests.support.demo_model import generate

ADDITION, SPLITTING = tasks.addition_task(), tasks.splitting_task()


def completions(task: tasks.DemoTask, style: str, values: list[str], n: int) -> list[list[SampledText]]:
    """n completions for each value under the first instruction of a style."""
    instruction = next(text for text, name in task.styles.items() if name == style)
    model = shared_batcher().model
    field = task.signature.split(" ")[0]
    prompts = [render_chat(instruction=instruction, field=field, value=v, reasoning=False) for v in values]
    requests = [
        GenerationRequest(prompt=tuple(model.tokenizer.encode_chat(p)), n=n, seed=i) for i, p in enumerate(prompts)
    ]
    return [list(g.choices) for g in generate(model, requests)]


def answer(choice: SampledText) -> str:
    return choice.text.partition("[[ ## answer ## ]]\n")[2].partition("\n\n[[ ## completed ## ]]")[0]


def tokens(choices: list[list[SampledText]]) -> float:
    lengths = [len(c.tokens) for row in choices for c in row]
    return sum(lengths) / len(lengths)


def voted_accuracy(examples: list[Any], choices: list[list[SampledText]], n: int) -> float:
    """Mean accuracy of a majority vote over blocks of n; ties count a share."""
    total, blocks = 0.0, 0
    for example, row in zip(examples, choices, strict=True):
        for start in range(0, len(row), n):
            votes = Counter(answer(c) for c in row[start : start + n])
            top = [text for text, count in votes.items() if count == max(votes.values())]
            total += (example.answer in top) / len(top)
            blocks += 1
    return total / blocks


@pytest.fixture(scope="module")
def added() -> tuple[list[Any], dict[str, list[list[SampledText]]]]:
    examples = ADDITION.heldout(80, 11)
    values = [e.question for e in examples]
    sizes = {"direct": 16, "steps": 16, "check": 4, "careful": 2, "rough": 4}
    return examples, {style: completions(ADDITION, style, values, n) for style, n in sizes.items()}


def test_the_best_prompt_for_one_sample_is_the_wrong_one_to_scale(
    added: tuple[list[Any], dict[str, list[list[SampledText]]]],
) -> None:
    examples, by_style = added
    direct, steps = by_style["direct"], by_style["steps"]
    assert voted_accuracy(examples, direct, 1) > voted_accuracy(examples, steps, 1) + 0.02
    assert voted_accuracy(examples, steps, 16) > voted_accuracy(examples, direct, 1) + 0.15
    assert voted_accuracy(examples, steps, 16) > voted_accuracy(examples, direct, 16) + 0.15
    assert voted_accuracy(examples, direct, 16) < voted_accuracy(examples, direct, 1) + 0.1


def test_the_decoys_cost_more_or_never_get_right(added: tuple[list[Any], dict[str, list[list[SampledText]]]]) -> None:
    examples, by_style = added
    assert tokens(by_style["check"]) > 1.5 * tokens(by_style["steps"])
    assert abs(voted_accuracy(examples, by_style["check"], 1) - voted_accuracy(examples, by_style["steps"], 1)) < 0.1
    assert voted_accuracy(examples, by_style["rough"], 4) < 0.3
    assert tokens(by_style["direct"]) < 10 < tokens(by_style["steps"]) < tokens(by_style["careful"])


@pytest.mark.slow
def test_splits_trade_correctness_against_brevity_and_retries_rescue_the_short_ones() -> None:
    examples = SPLITTING.heldout(60, 5)
    means: dict[str, tuple[float, float, float]] = {}
    for style in ("pair", "long", "echo"):
        rows = completions(SPLITTING, style, [e.target for e in examples], 16)
        right = [[tasks.correctness(e, _p(answer(c))) for c in r] for e, r in zip(examples, rows, strict=True)]
        short = [[tasks.brevity(e, _p(answer(c))) for c in r] for e, r in zip(examples, rows, strict=True)]
        means[style] = (
            sum(map(sum, right)) / 960,
            sum(map(max, right)) / 60,
            sum(map(sum, short)) / 960,
        )
    assert means["long"][0] > means["pair"][0] + 0.25
    assert means["pair"][1] > means["pair"][0] + 0.25
    assert means["pair"][2] > means["long"][2] + 0.5
    assert means["echo"][1] < 0.1 and means["echo"][2] > 0.95


@pytest.mark.parametrize("task", [ADDITION, SPLITTING], ids=lambda t: t.name)
def test_examples_are_different_reproducible_and_pools_are_disjoint(task: tasks.DemoTask) -> None:
    field = task.signature.split(" ")[0]
    train, heldout = ([e[field] for e in pool(200, 1)] for pool in (task.train, task.heldout))
    assert len(set(train)) == len(set(heldout)) == 200
    assert not set(train) & set(heldout)
    assert train == [e[field] for e in task.train(200, 1)] != [e[field] for e in task.train(200, 2)]
    assert all(set(e.inputs().keys()) == {field} for e in task.train(3, 0))


def test_swapped_operands_stay_in_their_pool() -> None:
    assert all(
        tasks.is_heldout_pair(a, b) == tasks.is_heldout_pair(b, a) for a in range(100, 130) for b in range(100, 900)
    )


def test_questions_have_right_labels_and_the_stated_share_of_carries() -> None:
    examples = ADDITION.train(1000, 0)
    pairs = [tuple(int(w.strip("?")) for w in e.question.split() if w.strip("?").isdigit()) for e in examples]
    assert all(int(e.answer) == a + b <= 999 for e, (a, b) in zip(examples, pairs, strict=True))
    assert abs(sum(tasks.has_carry(a, b) for a, b in pairs) / 1000 - tasks.CARRY_SHARE) < 0.05


@pytest.mark.parametrize("n", [0, 10**6])
def test_impossible_numbers_of_examples_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="n must be between"):
        SPLITTING.heldout(n, 0)


@pytest.mark.parametrize("task", [ADDITION, SPLITTING], ids=lambda t: t.name)
def test_candidates_are_many_and_different_and_begin_with_dspys_own(task: tasks.DemoTask) -> None:
    assert len(set(task.instructions)) == len(task.instructions) >= 8
    assert len(ADDITION.instructions) >= 10
    assert task.student().signature.instructions == task.instructions[0]
    assert "reasoning" in task.student(reasoning=True).predict.signature.output_fields


@pytest.mark.parametrize(
    ("given", "right"),
    [("579", True), (" 579. ", True), ("0579", True), ("5 79", True), ("578", False), ("", False), ("579!", False)],
)
def test_exact_match_compares_numbers(given: str, right: bool) -> None:
    assert ADDITION.metric(SimpleNamespace(answer="579"), _p(given)) is right


def test_a_prediction_without_the_field_is_wrong() -> None:
    empty = SimpleNamespace()
    assert ADDITION.metric(SimpleNamespace(answer="579"), empty) is False
    assert tasks.correctness(SimpleNamespace(target="579"), empty) == 0.0
    assert tasks.brevity(SimpleNamespace(target="579"), empty) == 0.0


@pytest.mark.parametrize(
    ("text", "right", "short"),
    [
        ("300 + 279", 1.0, 1.0),
        ("300+279", 1.0, 1.0),
        ("300 + 200 + 79", 1.0, 13 / 18),
        ("300 + 278", 0.4 * 49 / 50, 1.0),
        ("300 + 100", 0.0, 1.0),
        ("579", 0.0, 1.0),
        ("579 + 0", 0.0, 1.0),
        ("100 + 200 + 100 + 100 + 50 + 29", 1.0, 0.0),
        ("300 plus 279", 0.0, 0.0),
        ("+", 0.0, 0.0),
    ],
)
def test_objectives_on_known_answers(text: str, right: float, short: float) -> None:
    inputs = SimpleNamespace(target="579")
    assert tasks.correctness(inputs, _p(text)) == pytest.approx(right)
    assert tasks.brevity(inputs, _p(text)) == pytest.approx(short)
    assert SPLITTING.metric(inputs, _p(text)) is (right == 1.0)


@given(st.one_of(st.none(), st.text(alphabet="0123456789+ x٣\n"), st.integers(), st.text()), st.text())
def test_objectives_never_raise_and_stay_in_their_range(given_answer: object, target: str) -> None:
    inputs = SimpleNamespace(target=target)
    for objective in SPLITTING.objectives.values():
        assert 0.0 <= objective(inputs, _p(given_answer)) <= 1.0
    assert isinstance(ADDITION.metric(SimpleNamespace(answer=target), _p(given_answer)), bool)


def test_public_names_load_when_used() -> None:
    assert demo.addition_task().name == "addition"
    assert set(demo.__all__) == set(dir(demo))
    with pytest.raises(AttributeError, match="nothing"):
        _ = demo.nothing


def _p(text: object) -> Any:
    return SimpleNamespace(answer=text)
