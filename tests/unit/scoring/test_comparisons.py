"""Comparisons are counted once each, and the bias of a judge comes with an interval by query."""

import math

import pytest

from iapo_dspy.scoring.comparisons import Comparison, Comparisons, PositionBias


def made(query: int, number: int, ahead: float | None, behind: float | None) -> Comparison:
    return Comparison(key=f"{query:08}{number:08}", ahead=ahead, behind=behind)


@pytest.mark.parametrize(
    ("ahead", "behind", "score"),
    [
        (1.0, 0.0, 1.0),  # it wins in both places
        (0.0, 1.0, 0.0),  # it loses in both
        (1.0, 1.0, 0.5),  # the first place wins twice
        (0.0, 0.0, 0.5),  # the second place does
        (0.5, 0.5, 0.5),
        (1.0, 0.5, 0.75),  # a tie counts half of its order
        (0.8, 0.4, 0.7),  # probabilities: (0.8 + 0.6) / 2
        (1.0, None, 1.0),  # one order
        (None, 1.0, 0.0),
    ],
)
def test_the_score_of_a_comparison(ahead: float | None, behind: float | None, score: float) -> None:
    assert made(0, 0, ahead, behind).score == pytest.approx(score)


def test_bias_counts_comparisons_whose_orders_contradict_each_other() -> None:
    pairs = [(1.0, 0.0), (0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (0.9, 0.6), (1.0, 1.0), (0.0, 0.0), (1.0, None)]
    bias = PositionBias.of([made(i, i, *pair) for i, pair in enumerate(pairs)])
    assert (bias.compared, bias.contradicted, bias.first, bias.share) == (7, 4, 3, 0.75)
    assert bias.interval is not None
    low, high = bias.interval
    assert 0.0 < low < 0.75 < high < 1.0
    assert "4 of 7 comparisons contradict" in str(bias) and "the first place wins 75%" in str(bias)


def test_an_interval_rests_on_queries_and_not_on_comparisons() -> None:
    apart = PositionBias.of([made(i, i, float(i % 2), float(i % 2)) for i in range(40)])
    together = PositionBias.of([made(i // 10, i, float(i // 10 % 2), float(i // 10 % 2)) for i in range(40)])
    assert (apart.share, together.share) == (0.5, 0.5)
    assert apart.interval is not None and together.interval is not None
    assert apart.interval[1] - apart.interval[0] < 0.34
    assert together.interval[1] - together.interval[0] > 0.7  # four queries that agree within themselves
    alone = PositionBias.of([made(0, i, 1.0, 1.0) for i in range(40)])
    assert alone.share == 1.0 and alone.interval is None


def test_nothing_to_count() -> None:
    assert math.isnan(PositionBias.of([]).share) and str(PositionBias.of([])) == (
        "no comparison was asked in both orders"
    )
    agreed = PositionBias.of([made(0, 0, 1.0, 0.0)])
    assert (agreed.compared, agreed.contradicted) == (1, 0) and str(agreed).startswith("0 of 1 comparisons")


def test_a_tally_counts_a_comparison_once_however_often_it_is_made() -> None:
    tally = Comparisons()
    for _ in range(3):
        tally.add(Comparison.from_json(made(1, 2, 1.0, 1.0).to_json()))
    assert tally.bias.compared == 1
