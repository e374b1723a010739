"""Writers of prompts see the completions in the order of drawing, with their scores and feedback."""

from dataclasses import replace

import dspy

from iapo_dspy import BestOfN, MajorityVote, Mixed
from iapo_dspy.environments.live.stored import Completion
from iapo_dspy.environments.live.tries import Tries
from iapo_dspy.sampling.ledger.records import CompletionRecord
from iapo_dspy.sampling.rollouts.rollout import InnerCall
from iapo_dspy.sampling.spending.usage import Usage
from iapo_dspy.scoring.objective import Objective
from iapo_dspy.scoring.scores import Heard, Scored
from iapo_dspy.scoring.strategies import Strategy


def completion(draw: int, answer: str | None, prompt: str = "p") -> Completion:
    usage = Usage(completion_tokens=10 + draw)
    record = CompletionRecord(prompt=prompt, query="x", draw=draw, first=0, usage=usage, failure=None)
    return Completion(
        record=record, prediction=None if answer is None else dspy.Prediction(answer=answer, steps=[1, 2])
    )


def test_completions_stand_in_the_order_of_drawing_and_share_their_classes_of_answers() -> None:
    tries = Tries([3])
    wrong, right = Scored(answer="8", scores=(0.0,)), Scored(answer="7", scores=(1.0,), feedback="Well done.")
    failed = Scored(failure="no answer", error=False)
    tries.add(1, 3, [completion(2, "7"), completion(0, "8")], [right, wrong])  # the later draw came first
    tries.add(0, 3, [completion(0, "7"), completion(1, None)], [right, failed])
    tries.add(0, 4, [completion(0, "9")], [right])  # a question that may not be read
    tries.add(0, 3, [completion(5, "9")], [None])  # could not be judged
    found = tries.of(MajorityVote("answer"))
    assert {p: {q: [t.label for t in drawn] for q, drawn in cells.items()} for p, cells in found.items()} == {
        0: {3: [0, -1]},
        1: {3: [1, 0]},
    }
    first, second = found[1][3]
    assert (first.answer, first.score, first.tokens, first.output) == ("8", 0.0, 10, {"answer": "8", "steps": "[1, 2]"})
    assert second.feedback == "Well done." and found[0][3][1].failure == "no answer" and found[0][3][1].score is None


def test_inside_of_a_pipeline_the_inputs_of_the_inner_module_are_kept() -> None:
    inner = InnerCall(inputs={"question": "1 + 2", "hint": [4]}, prediction=dspy.Prediction(answer="3"))
    tries = Tries([0])
    tries.add(
        0, 0, [replace(completion(0, "3"), inner=inner), completion(1, "3")], [Scored(answer="3", scores=(1.0,))] * 2
    )
    found = tries.of(MajorityVote("answer"))[0][0]
    assert [t.inputs for t in found] == [{"question": "1 + 2", "hint": [4]}, None]


def test_scores_are_shares_of_their_ranges() -> None:
    length = Objective("length", lambda example, prediction: 0.0, bounds=(-1.0, 3.0))
    cases: list[tuple[Strategy, tuple[float, ...], float]] = [
        (BestOfN([length]), (1.0,), 0.5),
        (MajorityVote("answer", bounds=(0.0, 4.0)), (1.0,), 0.25),
        (Mixed(MajorityVote("answer"), objectives=[length]), (1.0, 2.0), 0.875),
    ]
    for strategy, scores, share in cases:
        tries = Tries([0])
        tries.add(0, 0, [completion(0, "7")], [Scored(answer="7", scores=scores)])
        assert tries.of(strategy)[0][0][0].score == share


def test_a_metric_that_is_listened_to_keeps_its_name_and_its_feedback() -> None:
    def judge(example: object, prediction: object, trace: object = None) -> dspy.Prediction:
        return dspy.Prediction(score=0.5, feedback=" Say less. ")

    heard = Heard(judge)
    assert heard(1, 2).score == 0.5 and heard.feedback == "Say less."
    assert heard.__qualname__ == judge.__qualname__
    assert Heard(lambda example, prediction: 1.0)(1, 2) == 1.0
