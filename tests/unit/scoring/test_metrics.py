"""Exact match and F1."""

import dspy
import pytest

from iapo_dspy import BestOfN, MajorityVote, Objective, metrics
from iapo_dspy.errors import LabelRequired, ScoreError

EXAMPLE = dspy.Example(question="Capital of France?", answer="Paris").with_inputs("question")


def test_exact_match_and_f1_are_dspys_own() -> None:
    exact, f1 = metrics.exact_match("answer"), metrics.f1("answer")
    assert exact(EXAMPLE, dspy.Prediction(answer="The  PARIS!")) == 1.0
    assert exact(EXAMPLE, dspy.Prediction(answer="Paris, France")) == 0.0
    assert f1(EXAMPLE, dspy.Prediction(answer="Paris, France")) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    several = dspy.Example(question="?", gold=["Lutetia", "Paris"]).with_inputs("question")
    assert metrics.exact_match("answer", "gold")(several, dspy.Prediction(answer="paris")) == 1.0
    assert metrics.exact_match("answer", "gold")(several, dspy.Prediction(answer="Rome"), None, "pred", []) == 0.0
    assert metrics.exact_match("answer")(dspy.Example(answer=42).with_inputs(), dspy.Prediction(answer="42")) == 1.0
    with pytest.raises(ScoreError, match="no field 'gold'"):
        metrics.f1("answer", "gold")(EXAMPLE, dspy.Prediction(answer="x"))
    with pytest.raises(ScoreError, match="no right answer"):
        metrics.f1("answer")(dspy.Example(answer=[]).with_inputs(), dspy.Prediction(answer="x"))


def test_metrics_serve_majority_vote_and_evaluate_and_are_not_objectives() -> None:
    exact = metrics.exact_match("answer")
    MajorityVote("answer").check(metric=exact)
    assert MajorityVote("answer").digest(exact) != MajorityVote("answer").digest(metrics.exact_match("answer", "gold"))

    class Fixed(dspy.Module):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer="paris")

    evaluate = dspy.Evaluate(devset=[EXAMPLE, EXAMPLE.copy(answer="Rome")], metric=exact, num_threads=1)
    assert evaluate(Fixed()).score == 50.0
    for metric in (exact, metrics.f1("answer", "gold")):
        with pytest.raises(LabelRequired, match="which is not an input"):
            Objective("exact", metric)
        with pytest.raises(LabelRequired, match="which is not an input"):
            BestOfN([metric])  # type: ignore[list-item]
