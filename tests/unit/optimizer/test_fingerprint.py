"""Prompts and runs are known by all that decides their answers, and by nothing else."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from iapo_dspy.optimizer.fingerprint import about, facts_of, prompt_ids
from iapo_dspy.optimizer.plan import make_plan
from iapo_dspy.proposers import Demos, History, Mix, ProposalEvidence, Proposed
from iapo_dspy.sampling.ledger.ledger import fingerprint_of
from tests.support.compiling import optimizers
from tests.support.worlds import Around, questions


def alike(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    return str(example.answer) == str(prediction.answer)


optimizer = optimizers(budget=90, candidates=["A", "B"], metric=alike)


class Hops(dspy.Module):
    def __init__(self, hops: int) -> None:
        super().__init__()
        self.hops = hops
        self.ask = dspy.Predict("question -> answer")


def lm(base: str = "http://127.0.0.1:9/v1", model: str = "openai/fake") -> dspy.LM:
    return dspy.LM(model, api_base=base, api_key="x")


def known(student: Any = "question -> answer", adapter: Any = None, base: str = "http://a:1/v1") -> Any:
    """The ids of a run's prompts, its fingerprint, and what it writes about itself."""
    module = dspy.Predict(student) if isinstance(student, str) else student
    with dspy.context(lm=lm(base), adapter=adapter):
        plan = make_plan(optimizer().settings, module, questions(20), ["A", "B"])
        id_of = prompt_ids(plan)
        return [id_of(i) for i in range(2)], fingerprint_of(facts_of(plan)), about(plan, id_of)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"student": "question -> answer: int"}),
        ({"student": "question -> answer: Literal['a', 'b']"}, {"student": "question -> answer: Literal['a', 'c']"}),
        ({"student": Hops(1)}, {"student": Hops(3)}),
        (
            {"adapter": dspy.TwoStepAdapter(lm(model="openai/small"))},
            {"adapter": dspy.TwoStepAdapter(lm(model="openai/large"))},
        ),
    ],
)
def test_what_decides_an_answer_makes_other_prompts_and_another_run(one: Any, other: Any) -> None:
    ids, run, _ = known(**one)
    others, another, _ = known(**other)
    assert not set(ids) & set(others) and run != another
    assert known(**one)[:2] == (ids, run)


def test_the_default_adapter_and_another_address_are_the_same_prompts() -> None:
    ids, run, written = known(base="http://user:secret@a:1/v1")
    assert known(adapter=dspy.ChatAdapter())[0] == ids
    moved = known(base="http://b:2/v1")
    assert moved[:2] == (ids, run) and written["servers"][ids[0]] == ["a:1"] != moved[2]["servers"][ids[0]]
    assert known("question -> answer: int")[2]["signature"] == "self: question -> answer: int"


class Mine:
    """A proposer of a user's."""

    def __init__(self, tone: str) -> None:
        self.tone = tone
        self._asked = object()

    def propose(self, evidence: ProposalEvidence, n: int) -> list[Proposed]:
        return []


def test_the_settings_of_proposers_tell_runs_apart() -> None:
    def writing(*proposers: Any) -> Any:
        with dspy.context(lm=lm()):
            settings = optimizer(proposers=proposers).settings
            return facts_of(make_plan(settings, dspy.Predict("question -> answer"), questions(20), ["A"]))["writing"][2]

    assert writing(Demos(), History()) == ["Demos", "History"]  # as runs of earlier versions have them
    assert writing(Demos(size=4), Mine("loud")) == [["Demos", {"size": 4}], ["Mine", {"tone": "loud"}]]
    assert writing(Mix(proposers=[Mine("low"), Demos()], timeout=9.0)) == [
        ["Mix", {"proposers": [["Mine", {"tone": "low"}], "Demos"], "timeout": 9.0}]
    ]


class Loud(Around):
    """Another class with the predictors and fields of its parent."""


def test_a_candidate_of_another_class_changes_the_ids_of_no_others() -> None:
    with dspy.context(lm=lm()):
        found = {}
        lists: dict[str, list[Any]] = {"alone": ["A", "B"], "beside": ["A", Around(), "B", Loud()]}
        for name, candidates in lists.items():
            plan = make_plan(optimizer().settings, Around(), questions(20), candidates)
            found[name] = [prompt_ids(plan)(i) for i in range(len(candidates))]
    assert found["alone"] == found["beside"][::2]
    assert len(set(found["beside"])) == 4  # `Around` and `Loud` have the same instructions


def ids_and_facts(configured: Any, *adapters: Any) -> tuple[list[str], str, Any]:
    """The ids of the first candidate's prompts, one for each adapter; the run's fingerprint, and what it says."""
    with dspy.context(lm=lm(), adapter=configured):
        settings = optimizer(adapters=adapters or None).settings
        plan = make_plan(settings, dspy.Predict("question -> answer"), questions(20), ["A", "B"])
        id_of = prompt_ids(plan)
        return [id_of(i) for i in range(len(adapters) or 1)], fingerprint_of(facts_of(plan)), about(plan, id_of)


def test_a_prompt_is_known_by_its_own_adapter() -> None:
    (plain,), unnamed, told = ids_and_facts(None)
    (as_json,), *_ = ids_and_facts(dspy.JSONAdapter())
    both, run, named = ids_and_facts(None, dspy.ChatAdapter(), dspy.JSONAdapter())
    # What was drawn with the configured adapter serves a run that names it, and the other way round.
    assert both == [plain, as_json] and plain != as_json
    assert ids_and_facts(dspy.XMLAdapter(), dspy.JSONAdapter(), dspy.ChatAdapter())[0] == both[::-1]
    assert run != unnamed and ids_and_facts(None, dspy.ChatAdapter())[1] != unnamed
    assert (told["adapter"], named["adapter"]) == ("ChatAdapter", "ChatAdapter, JSONAdapter")


def test_lms_inside_of_other_adapters_do_not_change_a_prompts_name() -> None:
    small, large = (dspy.TwoStepAdapter(lm(model=f"openai/{size}")) for size in ("small", "large"))
    (plain,), *_ = ids_and_facts(None)
    first, run, _ = ids_and_facts(None, dspy.ChatAdapter(), small)
    second, other, _ = ids_and_facts(None, dspy.ChatAdapter(), large)
    assert first[0] == second[0] == plain and len({first[1], second[1], plain}) == 3
    assert run != other
