from typing import Any

import dspy
import pytest

from iapo_dspy.environments.live.equal_scores import COMPLETIONS, QUERIES, EqualScores
from iapo_dspy.environments.live.stored import Completion
from iapo_dspy.sampling.ledger.records import CompletionRecord
from iapo_dspy.scoring.scores import Scored
from iapo_dspy.scoring.strategies import BestOfN, MajorityVote, Mixed, Objective
from iapo_dspy.scoring.strategies.port import Strategy

VOTE = MajorityVote("answer")


def add(equal: EqualScores, *scores: Any, prompt: int = 0, query: int = 0) -> None:
    record = CompletionRecord(prompt=str(prompt), query=str(query), draw=0, first=0)
    said = Completion(record=record, prediction=dspy.Prediction(answer=f"answer {query}"))
    scored = [Scored(failure="unreadable") if s is None else Scored(answer="a", scores=s) for s in scores]
    example = dspy.Example(question="q", answer=f"label {query}").with_inputs("question")
    equal.add(prompt, query, example, [said] * len(scores), scored)


def filled(score: Any, strategy: Strategy = VOTE, *, queries: int = QUERIES, doubtful: bool = False) -> EqualScores:
    equal = EqualScores(strategy, 2, 30, doubtful=doubtful)
    for query in range(queries):
        for prompt in (0, 1):
            add(equal, score, prompt=prompt, query=query)
    return equal


def test_scores_that_are_all_equal_end_a_run_and_are_shown_beside_labels() -> None:
    text = filled((0.0,)).verdict
    assert text is not None and "metric 0" in text and f"All {2 * QUERIES} completions" in text
    for query in (0, 1, 2):
        assert f"trainset[{query}]: prediction (answer='answer {query}'), labels (answer='label {query}')" in text
    assert "trainset[3]" not in text
    assert filled((0.5,)).verdict is not None


def test_a_run_goes_on_where_scores_differ_are_the_highest_or_are_few() -> None:
    different = filled((0.0,))
    add(different, (0.1,))
    assert different.verdict is None
    assert filled((1.0,)).verdict is None
    assert filled((0.0,), queries=QUERIES - 1).verdict is None
    one_prompt = EqualScores(VOTE, 2, 30)
    for query in range(30):
        add(one_prompt, (0.0,), query=query)
    assert one_prompt.verdict is None and 2 * QUERIES > COMPLETIONS


def test_half_as_much_is_enough_where_labels_did_not_satisfy_the_metric() -> None:
    assert filled((0.0,), queries=QUERIES // 2, doubtful=True).verdict is not None
    assert filled((0.0,), queries=QUERIES // 2 - 1, doubtful=True).verdict is None
    assert EqualScores(VOTE, 2, 30, doubtful=True).verdict is None


def test_few_training_examples_are_enough_where_there_are_no_more() -> None:
    equal = EqualScores(VOTE, 1, 3)
    for query in range(3):
        add(equal, *[(0.0,)] * 6, query=query)
    assert equal.verdict is not None


def test_completions_without_a_score_say_nothing() -> None:
    assert filled(None, queries=30).verdict is None


@pytest.mark.parametrize(
    ("score", "ends"), [((0.0, 0.5, 0.3), True), ((1.0, 2.0, 0.3), False), ((1.0, 1.0, 0.3), True)]
)
def test_all_objectives_count_and_other_columns_do_not(score: Any, ends: bool) -> None:
    strategy = Mixed(VOTE, objectives=[Objective("style", lambda e, p: 1, bounds=(0, 2))])
    equal = filled(score, strategy)
    add(equal, (*score[:2], 0.9))
    assert (equal.verdict is not None) is ends
    best = filled((0.5,), BestOfN([Objective("style", lambda e, p: 1)]))
    assert best.verdict is not None and "style 0.5" in best.verdict
