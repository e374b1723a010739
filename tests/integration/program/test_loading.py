"""A saved program is a file from elsewhere: it loads as it was, or an error says where, and nothing changes."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import dspy
import pytest

from iapo_dspy import BestOfN, CompiledProgram, MajorityVote, Mixed, WeightedVote, objectives
from iapo_dspy.errors import StateError, StorageError
from iapo_dspy.program import compiled
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.scoring.strategies import Strategy

SAVED: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "v0_1" / "vote" / "program.json").read_text()
)
FIELDS = "question -> answer"


def loaded(state: Any, folder: Path, student: Any = FIELDS, **kwargs: Any) -> CompiledProgram:
    path = folder / "program.json"
    path.write_text(state if isinstance(state, str) else json.dumps(state))
    program = CompiledProgram(dspy.Predict(student) if isinstance(student, str) else student, **kwargs)
    program.load(path)
    return program


def changed(place: str, value: Any) -> dict[str, Any]:
    """Return the saved state with another value at a place, such as `prompts.0.state`."""
    state = copy.deepcopy(SAVED)
    inner, names = state["policy"], place.split(".")
    for name in names[:-1]:
        inner = inner[int(name)] if isinstance(inner, list) else inner[name]
    if value is KeyError:
        del inner[names[-1]]
    else:
        inner[int(names[-1]) if isinstance(inner, list) else names[-1]] = value
    return state


DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
WRONG: dict[str, list[Any]] = {
    "preferences.0.arm": [[1, 500], [True, 4], [7, 2], [-1, 2], [1, 0], [1], "11", None, ["1", 2], [1, 1.5]],
    "preferences": [[], {}, "x", [1], KeyError],
    "preferences.0.stop": [{"waves": [3, 9]}],
    "preferences.0.beside": ["x", 3, [[1]], [[9, 2]], [[0, 5]], [[1, 2], [1, 2]], [[True, 1]]],
    "preferences.0.then": [
        None,
        {},
        {"below": 0.5, "weight": 0},
        {"below": "x", "weight": 0, "stage": None},
        {"below": 0.5, "weight": 1, "stage": None},
        {"below": 0.5, "weight": -1, "stage": {"arm": [0, 1]}},
        {"below": 0.5, "weight": 0, "stage": {"arm": [9, 1]}},
        {"below": 0.5, "weight": 0, "stage": {"arm": [0, 99]}},
        {"below": 0.5, "weight": 0, "stage": [0, 1]},
        DEEP,
    ],
    "preferences.0.cost": ["x"],
    "max_n": [0, -1, 1.5, "4", None, 10**30, True, KeyError],
    "n_queries": [0, -1, 1.5, "4", None, 10**30, True, KeyError],
    "cost_scale": ["x", -1, None, [], KeyError],
    "default": ["nobody", 3, None],
    "stopping": ["sometimes", 3],
    "prompts": [[], "x", [1], DEEP],
    "prompts.1.state": [{}, [], "x", {"other": {}}, {"self": 1}],
    "prompts.2.state": ["x", [1], -1],
    "prompts.2.state.self.config": [True, "x", [1]],
    "prompts.2.state.self.signature": ["x", {"instructions": []}],
    "prompts.2.model": [1.5],
    "prompts.2.label": [None],
    "prompts.1.lms": ["x", {"self": []}],
    "strategy": [{}, [], {"kind": "majority_vote"}, {"kind": "best_of_n", "objectives": [1]}],
    "evidence": ["x", [1], [{}], {}],
    "evidence.0.prompt": ["0 0 0 1 1 1 2 2 9", "0", "a b", 3, "nan " * 9, "1e300 " * 9],
    "evidence.0.query": ["2 4 3 2 4 3 2 4 77"],
    "evidence.0.size": ["4 4 4 4 4 4 4 4 2000000000"],
    "evidence.0.cost": ["-1 " * 36],
    "evidence.0.score": [["inf " * 36], [SAVED["policy"]["evidence"][0]["score"][0]] * 2],
    "calls": [{"default": "nobody"}, {"default": [1]}, {"preference_field": 3}, [1]],
    "cost": [{"unknown": 1}],
    "spent": [3],
    "version": [99, "4"],
}
EDITS = [(place, value) for place, values in WRONG.items() for value in values]


@pytest.mark.parametrize(("place", "value"), EDITS)
def test_an_edit_is_refused_with_its_place_and_nothing_changes(place: str, value: Any, tmp_path: Path) -> None:
    program = loaded(SAVED, tmp_path)
    before = program.dump_state()
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(changed(place, value)))
    with pytest.raises(StateError, match=re.escape(str(path))):
        program.load(path)
    assert program.dump_state() == before


def test_the_message_says_which_arm_asks_for_too_many(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"preferences\[0\].*arm=\[1, 500\].*at most max_n=4"):
        loaded(changed("preferences.0.arm", [1, 500]), tmp_path)


def test_the_message_says_which_stage_is_wrong(tmp_path: Path) -> None:
    third = {"arm": [1, 2], "beside": [[0, 9]]}
    second = {"arm": [0, 1], "then": {"below": 0.9, "weight": 1, "stage": third}}
    with pytest.raises(StateError, match=r"preferences\[0\].*stage 3: arm=\[0, 9\].*at most max_n=4"):
        loaded(changed("preferences.0.then", {"below": 0.5, "weight": 0, "stage": second}), tmp_path)
    for _ in range(40):
        second = {"arm": [0, 1], "then": {"below": 0.9, "weight": 1, "stage": second}}
    with pytest.raises(StateError, match=r"preferences\[0\].*more than 16 stages"):
        loaded(changed("preferences.0.then", {"below": 0.5, "weight": 0, "stage": second}), tmp_path)


OTHERS = ["", "[1, 2]", "{}", "null", "{" * 5000, '{"metadata": {}}']
OTHERS += ['{"policy": 3, "metadata": {"dependency_versions": {}}}']


@pytest.mark.parametrize("text", OTHERS)
def test_other_files_are_refused_by_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"program\.json cannot be loaded"):
        loaded(text, tmp_path)


def test_a_file_that_is_not_there_or_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = CompiledProgram(dspy.Predict(FIELDS))
    with pytest.raises(StorageError, match=r"none\.json cannot be read: No such file"):
        program.load(tmp_path / "none.json")
    monkeypatch.setattr(compiled, "_LARGEST", 100)
    with pytest.raises(StateError, match=r"has [\d,]+ bytes; a saved program has at most 100"):
        loaded(SAVED, tmp_path)


class Custom(dspy.Module):
    def __init__(self, signature: str) -> None:
        super().__init__()
        self.step = dspy.Predict(signature)

    def forward(self, question: str) -> dspy.Prediction:
        return self.step(question=question)


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("other", ["question -> result", "question -> answer, why", "query -> answer"])
@pytest.mark.parametrize("kind", [dspy.Predict, Custom])
def test_a_student_with_other_fields_is_refused(kind: Any, other: str, names: bool, tmp_path: Path) -> None:
    state = json.loads(json.dumps(SAVED))
    for prompt in state["policy"]["prompts"]:
        if kind is Custom:
            prompt["state"] = {"step": prompt["state"]["self"]}
    program = loaded(state, tmp_path, kind(FIELDS))
    if names:  # as it is saved today; older programs have DSPy's descriptions only
        program.save(tmp_path / "today.json")
        state = json.loads((tmp_path / "today.json").read_text())
        assert state["policy"]["student"]
    with pytest.raises(StateError, match=r"has the fields .* and this student's has"):
        loaded(state, tmp_path, kind(other))


def test_a_given_strategy_must_fit_the_student(tmp_path: Path) -> None:
    state = changed("strategy", {**SAVED["policy"]["strategy"], "field": "result"})
    for strategy in (None, MajorityVote("result")):
        with pytest.raises(StateError, match=r"does not fit the strategy.*output fields are \['answer'\]"):
            loaded(state, tmp_path, strategy=strategy)


JUDGE = dspy.LM("openai/judge", temperature=0, api_key="sk-secret-key")
BUILT_IN = [
    objectives.length("answer", most=20, least=2, unit="characters", name="short"),
    objectives.length("answer", target=3),
    objectives.regex_match("answer", re.compile(r"^\d+$", re.IGNORECASE), whole=True),
    objectives.json_valid("answer", {"type": "integer"}),
    objectives.judge("Is it right?", lm=JUDGE, fields="answer", scale={"no": 0.0, "yes": 1.0}),
    objectives.judge("Is it right?", inputs=["question"], reasoning=True, name="second"),
    objectives.similarity("answer", "question", model="openai/text-embedding-3-small", dimensions=64),
]
with mock.patch("importlib.util.find_spec"):  # torch is not needed to name a model
    BUILT_IN += [
        objectives.reward_model("helpful", question="question"),
        objectives.reward_model("some/model", form="pair", label=1, probability=True, max_length=64),
    ]


def policy_of(strategy: Strategy) -> dict[str, Any]:
    """Return the saved program as if it had been compiled with a strategy of other columns."""
    state = json.loads(json.dumps(SAVED))
    columns = len(getattr(strategy, "columns", strategy.objectives))
    for observations in state["policy"]["evidence"]:
        observations["score"] = observations["score"] * columns
    state["policy"]["strategy"] = strategy.to_dict()
    return state


def calibrated(strategy: Any) -> Strategy:
    found: Strategy = strategy
    if not getattr(strategy, "calibrated", True):
        found = strategy.calibrate([[0.0] * len(getattr(strategy, "columns", strategy.objectives))])
    return found


STRATEGIES = [
    *[BestOfN([objective]) for objective in BUILT_IN],
    BestOfN(BUILT_IN[:4:2]),
    WeightedVote("answer", weight=BUILT_IN[2], tolerance=0.5),
    Mixed(MajorityVote("answer"), objectives=BUILT_IN[:1], name="right"),
    Mixed(WeightedVote("answer", weight=BUILT_IN[3]), objectives=BUILT_IN[1:3]),
]


@pytest.mark.parametrize("made", STRATEGIES, ids=lambda s: "+".join(s.objectives) if hasattr(s, "objectives") else "")
def test_built_in_objectives_load_with_their_parameters(
    made: Strategy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = calibrated(made)
    first = loaded(policy_of(strategy), tmp_path, strategy=strategy)
    first.save(tmp_path / "saved.json")
    assert "sk-secret" not in (tmp_path / "saved.json").read_text()
    program = CompiledProgram(dspy.Predict(FIELDS), lms=[JUDGE])
    monkeypatch.setattr("importlib.util.find_spec", mock.Mock())
    program.load(tmp_path / "saved.json")
    assert program.policy.strategy.to_dict() == strategy.to_dict()
    assert program.policy.strategy.digest(None) == strategy.digest(None)  # the same code, and the same parameters
    assert program.dump_state() == first.dump_state()


def test_a_judge_needs_its_lm(tmp_path: Path) -> None:
    strategy = BestOfN([BUILT_IN[4]])
    loaded(policy_of(strategy), tmp_path, strategy=strategy).save(tmp_path / "saved.json")
    with pytest.raises(StateError, match=r"asks the LM 'openai/judge'.*lms=\[dspy.LM\('openai/judge'\)"):
        CompiledProgram(dspy.Predict(FIELDS)).load(tmp_path / "saved.json")
    with dspy.context(lm=JUDGE):
        CompiledProgram(dspy.Predict(FIELDS)).load(tmp_path / "saved.json")


def test_an_address_in_a_file_is_used_only_where_the_file_is_trusted(tmp_path: Path) -> None:
    server = objectives.served_reward_model("a/reward", "http://elsewhere:8000/v1", answer="answer")
    strategy = calibrated(BestOfN([server]))
    loaded(policy_of(strategy), tmp_path, strategy=strategy).save(tmp_path / "saved.json")
    program = CompiledProgram(dspy.Predict(FIELDS))
    with pytest.raises(StateError, match=r"http://elsewhere:8000, an address.*allow_unsafe_lm_state=True"):
        program.load(tmp_path / "saved.json")
    program.load(tmp_path / "saved.json", allow_unsafe_lm_state=True)
    assert program.policy.strategy.digest(None) == strategy.digest(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "os.system"}, "known are"),
        ({"trust_remote_code": True}, "arguments.*trust_remote_code"),
        ({"most": -1}, "whole numbers"),
        ({"most": 3}, ""),
    ],
)
def test_a_recipe_that_was_edited_is_checked(change: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    strategy = BestOfN(BUILT_IN[:1])
    loaded(policy_of(strategy), tmp_path, strategy=strategy).save(tmp_path / "saved.json")
    state = json.loads((tmp_path / "saved.json").read_text())
    state["policy"]["objectives"]["objectives"][0] |= change
    if message:
        with pytest.raises(StateError, match=message):
            loaded(state, tmp_path)
    else:
        assert loaded(state, tmp_path).policy.strategy.to_dict() == strategy.to_dict()


def test_code_of_the_user_and_keys_are_not_saved(tmp_path: Path) -> None:
    served = objectives.served_reward_model("a/b", "http://x", api_key="sk-1234567890", answer="answer")
    for objective in (served, objectives.similarity("answer", text="a text", model="openai/e", api_key="sk-1234567")):
        strategy = calibrated(BestOfN([objective]))
        loaded(policy_of(strategy), tmp_path, strategy=strategy).save(tmp_path / "saved.json")
        assert "sk-" not in (tmp_path / "saved.json").read_text()
        with pytest.raises(StateError, match="Pass the same strategy again"):
            CompiledProgram(dspy.Predict(FIELDS)).load(tmp_path / "saved.json", allow_unsafe_lm_state=True)


def test_a_program_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = loaded(SAVED, tmp_path)
    program.save(tmp_path / "saved.json")
    before = (tmp_path / "saved.json").read_bytes()

    def full(self: CompiledPolicy) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CompiledPolicy, "to_dict", full)
    with pytest.raises(StorageError, match=r"saved\.json cannot be written: No space left.*Make room") as caught:
        program.save(tmp_path / "saved.json")
    assert caught.value.errno == 28 and isinstance(caught.value, OSError)
    assert (tmp_path / "saved.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["program.json", "saved.json"]
    monkeypatch.undo()
    with pytest.raises(StorageError, match=r"none/p\.json cannot be written: No such file.*Make its directory first"):
        program.save(tmp_path / "none" / "p.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(StorageError, match=r"folder\.json cannot be written"):
        program.save(tmp_path / "folder.json")
