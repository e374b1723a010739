"""What a writer reads of N completions, worked by hand."""

import numpy as np

from iapo_dspy.prompts.proposers.accounts import account, count, goal, kind_of, sampled, value_of
from tests.support.writing import aimed, evidence_of, failed, known, tried, votes


def told(tries: list, aggregate: str = "vote") -> str:
    evidence = evidence_of(known(0, "Add.", {3: tries}), aggregate=aggregate)
    return account(evidence, evidence.prompts[0], [3])


def test_a_right_answer_that_lost_is_told_with_the_one_that_won() -> None:
    text = told([*votes("6", 3, seven=4, eight=1), failed("the answer is not a number")])
    assert text.startswith("Question 1\nquestion: 3 + 3\nexpected answer: 6\n9 completions were drawn.")
    assert 'The right answer "6" came 3 times and was outvoted by "seven", which came 4 times.' in text
    assert 'Other wrong answers: "eight" once.' in text
    assert "Once a completion failed: the answer is not a number." in text
    assert "A wrong completion said:\nanswer: seven\nA right completion said:\nanswer: 6" in text


def test_a_tie_is_told_and_is_no_win() -> None:
    tries = votes("6", 2, seven=2)
    assert 'came 2 times and tied with "seven", which came 2 times.' in told(tries)
    assert count(tries).kind == "outvoted"


def test_other_ends_of_a_question_are_told() -> None:
    assert 'The right answer never came. Wrong answers: "a" 2 times, "b" once.' in told(votes(a=2, b=1))
    won = told([tried("6", 1.0, 0, 20), tried("6", 1.0, 0, 30), tried("7", 0.0, 1, 70)])
    assert 'The right answer won: "6" came 2 times. Wrong answers: "7" once. Mean length: 40 tokens.' in won
    assert "3 completions" in won
    lost = told([failed("cut off"), failed("cut off")])
    assert "None of them gave an answer.\n2 times a completion failed: cut off." in lost


def test_the_metrics_feedback_is_told_of_the_completion_it_is_about() -> None:
    text = told([tried("7", 0.0, 1, feedback="One too many."), *votes("6", 1)])
    assert "A wrong completion said:\nanswer: 7\nThe metric said of it: One too many.\nA right" in text
    assert "The metric said of one: Empty." in told([tried(None, label=-1, failure="cut off", feedback="Empty.")])


def test_answers_of_one_class_are_one_answer() -> None:
    found = count([tried("6", 1.0, 0), tried("six", 1.0, 0), tried("7", 0.0, 1)])
    assert found.right == {"6": 2} and found.wrong == {"7": 1} and found.kind == "won"


def test_scores_are_told_where_nobody_votes() -> None:
    tries = [tried("a", 0.2, -1), tried("b", 0.9, -1), tried("b", 0.4, -1)]
    text = told(tries, "best")
    assert "2 of them are different. Scores from 0 to 1: best 0.90, mean 0.50, worst 0.20." in text
    assert "Scores from 0 to 1: best 0.90" in told(tries, "mean") and "different" not in told(tries, "mean")
    assert kind_of(tries, "best") == "high" and kind_of(tries[:1], "best") == "low"
    assert kind_of([failed("cut off")], "best") == "failed"


def test_long_texts_are_cut() -> None:
    assert len(told([tried("x" * 100_000, 0.0, 1)])) < 2000


def test_values_are_those_of_n_completions() -> None:
    tries = votes("6", 1, a=1, b=1)
    assert value_of(tries, "vote", 1) == 1 / 3 and value_of(tries, "mean", 3) == 1 / 3
    assert value_of(votes("6", 2, a=1), "vote", 3) == 1 and value_of(tries, "vote", 3) == 0
    assert value_of(tries[::-1], "best", 2) == 0 and value_of(tries[::-1], "best", 3) == 1


def test_questions_are_sampled_of_each_kind_by_the_seed() -> None:
    tries = {
        0: votes("0", 4), 1: votes("2", 4), 2: votes("4", 4), 3: votes("6", 1, a=2),
        4: votes("8", 1, a=2), 5: votes(a=3), 6: [failed("cut off")],
    }  # fmt: skip
    evidence = evidence_of(known(0, "Add.", tries))
    kinds = {x: count(t).kind for x, t in tries.items()}
    draws = [sampled(evidence, evidence.prompts[0], np.random.default_rng(s), 5) for s in range(20)]
    for found in draws:
        assert [kinds[x] for x in found] == ["outvoted", "never", "won", "failed", "outvoted"]
    assert len({tuple(found) for found in draws}) > 3
    assert draws[0] == sampled(evidence, evidence.prompts[0], np.random.default_rng(0), 5)
    assert sampled(evidence, known(1, "Sum."), np.random.default_rng(0), 5) == []


def test_the_goal_is_the_preferences_own() -> None:
    evidence = evidence_of(known(0, "Add."))
    quality = goal(evidence, evidence.aims[0])
    assert "4 completions" in quality and "scattered" in quality and "paid for" not in quality
    costly = aimed(evidence, cost=1.0)
    assert "scattered" in goal(costly, costly.aims[0]) and "shorter" in goal(costly, costly.aims[0])
    single = aimed(evidence, n=1)
    assert "short completions" in goal(single, single.aims[0]) and "scattered" not in goal(single, single.aims[0])
    best = evidence_of(known(0, "Add."), aggregate="best")
    assert "vary" in goal(best, best.aims[0])
