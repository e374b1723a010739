from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import compare_methods
import dspy
import numpy as np
import pytest
from compared_worlds import UNREADABLE, Law, RecordedModel, RecordedWorld, Reply, asked

from iapo_dspy.recordings import Draws, VotingRecording, save
from iapo_dspy.types import Arm, Stop

EASY, HARD = [0.8, 0.1], [0.1, 0.8]  # right and wrong answer; one in ten completions cannot be read


def recording(*prompts: list[list[float]], queries: int = 1) -> VotingRecording:
    """Return a recording in which class 0 is right; each prompt has the same law on every query."""
    return VotingRecording(
        probs=np.array([np.broadcast_to(p, (queries, len(p[0]))) for p in prompts]),
        answers=np.zeros(queries, dtype=int),
        cost=np.linspace(0.01, 0.02, len(prompts)),
        cost_weights=np.array([0.0, 0.5]),
    )


def messages(prompt: int, question: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": f"Instruction {prompt} of a recording."},
        {"role": "user", "content": f"Question {question}"},
    ]


@pytest.fixture
def world(tmp_path: Path) -> RecordedWorld:
    save(recording([EASY], [HARD], queries=10), tmp_path / "small.npz")
    return RecordedWorld(tmp_path / "small.npz", max_n=3)


# --- the recorded LM -------------------------------------------------------------------------------------------------


def test_the_recorded_lm_follows_the_law_of_the_prompt_and_the_question() -> None:
    probs = np.array([[[0.7, 0.2], [0.0, 1.0]], [[0.5, 0.5], [0.2, 0.2]]])
    world = VotingRecording(probs=probs, answers=np.zeros(2, dtype=int), cost=np.ones(2), cost_weights=np.zeros(1))
    model = RecordedModel(world, np.array([7.0, 30.0]), 0)
    for prompt in range(2):
        for question in range(2):
            reply = asked(model, messages(prompt, question), {"n": 4_000})
            shares = [reply.texts.count(text) / 4_000 for text in ("A0", "A1", UNREADABLE)]
            law = [*probs[prompt, question], 1 - probs[prompt, question].sum()]
            assert shares == pytest.approx(law, abs=0.03)  # four standard errors
            assert (reply.read, reply.written) == (1, 4_000 * (7, 30)[prompt])
    assert (model.counts.requests, model.counts.completions, model.counts.read) == (4, 16_000, 4)
    assert model.counts.written == 2 * 4_000 * 37


def test_a_recording_with_completions_gives_each_one_with_its_own_tokens() -> None:
    drawn = Draws(
        outcome=np.array([[[0, 0, 1, -1]]]),
        tokens=np.array([[[10, 10, 20, 40]]]),
        prompt_tokens=np.array([[7]]),
        finish=np.zeros((1, 1, 4), dtype=int),
        endings=("stop",),
        failures=np.array([[1]]),
        causes=("unreadable",),
    )
    world = VotingRecording(
        probs=drawn.law(2), answers=np.zeros(1, dtype=int), cost=np.ones(1), cost_weights=np.zeros(1), drawn=drawn
    )
    model = RecordedModel(world, np.array([20.0]), 0)
    replies = [model.reply(messages(0, 0), {"n": 1}) for _ in range(400)]
    assert {(r.texts[0], r.read, r.written) for r in replies} == {("A0", 7, 10), ("A1", 7, 20), (UNREADABLE, 7, 40)}
    assert sum(r.texts[0] == "A0" for r in replies) / 400 == pytest.approx(0.5, abs=0.1)


def test_completions_of_a_pair_are_the_same_however_they_are_asked_for_and_differ_between_seeds() -> None:
    def drawn(seed: int, *sizes: int) -> list[str]:
        model = RecordedModel(recording([EASY], [HARD]), np.array([1.0, 1.0]), seed)
        return [text for n in sizes for text in model.reply(messages(1, 0), {"n": n}).texts]

    assert drawn(0, 40) == drawn(0, 1, 9, 30) != drawn(1, 40)


def test_a_request_that_names_no_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="Instruction"):
        RecordedModel(recording([EASY]), np.ones(1), 0).reply([{"role": "user", "content": "Hello"}], {})


def test_dspy_best_of_n_returns_the_first_readable_completion_on_a_world(world: RecordedWorld) -> None:
    question = world.trainset(0)[0]
    expected = [t for t in _texts(world, str(question.question), 8) if t != UNREADABLE]
    with world.serving(0) as model:
        best = dspy.BestOfN(world.student(), N=16, reward_fn=lambda args, pred: 1.0, threshold=1.0)
        assert best(question=question.question).answer == expected[0]
    assert model.counts.completions == _texts(world, str(question.question), 8).index(expected[0]) + 1


def _texts(world: RecordedWorld, question: str, n: int) -> list[str]:
    model = RecordedModel(world.recording, np.ones(2), 0)
    reply: Reply = model.reply(messages(0, int(question.split()[1])), {"n": n})
    return list(reply.texts)


# --- values ----------------------------------------------------------------------------------------------------------


def test_votes_are_valued_exactly() -> None:
    law = Law(recording([[0.6, 0.4]], [HARD]), np.array([[10.0], [20.0]]))
    one, three = law.vote(Arm(0, 1)), law.vote(Arm(0, 3))
    assert one.reward.tolist() == pytest.approx([0.6]) and one.tokens.tolist() == [10.0]
    assert three.reward.tolist() == pytest.approx([0.6**3 + 3 * 0.6**2 * 0.4])  # two or three of three are right
    assert three.completions.tolist() == [3.0] and three.tokens.tolist() == [30.0]


def test_a_vote_that_stops_early_is_charged_for_what_it_draws() -> None:
    law = Law(recording([[0.6, 0.4]]), np.array([[10.0]]))
    full, stopped = law.vote(Arm(0, 3)), law.vote(Arm(0, 3, Stop(waves=(2, 3))))
    assert stopped.reward.tolist() == pytest.approx(full.reward.tolist())  # two equal votes of three settle it
    assert stopped.completions[0] == pytest.approx(2 + 2 * 0.6 * 0.4, abs=0.1)
    assert stopped.tokens[0] == pytest.approx(10 * stopped.completions[0])


def test_the_first_readable_completion_is_valued_exactly() -> None:
    law = Law(recording([[0.3, 0.2]]), np.array([[10.0]]))
    value = law.first(0, 2)  # the first half of the time; otherwise a second one is asked for
    assert value.reward.tolist() == pytest.approx([0.3 + 0.5 * 0.3])
    assert value.completions.tolist() == pytest.approx([1.5]) and value.tokens.tolist() == pytest.approx([15.0])


# --- intervals -------------------------------------------------------------------------------------------------------


def test_an_interval_is_clustered_by_repetition_and_by_question() -> None:
    differences = [np.array([0.4, 0.2]), np.array([0.1, 0.1])]
    mean, half = compare_methods.interval(differences, [np.array([0, 1]), np.array([1, 2])])
    # residuals over 4: .2, 0 | -.1, -.1; summed by repetition .2, -.2; by question .2, -.1, -.1
    by_run = 2 / 1 * (0.2**2 + 0.2**2) / 16
    by_question = 3 / 2 * (0.2**2 + 0.1**2 + 0.1**2) / 16
    single = 4 / 3 * (0.2**2 + 0.1**2 + 0.1**2) / 16
    assert mean == pytest.approx(0.2)
    variance = by_run + by_question - single
    assert half == pytest.approx(12.7062 * np.sqrt(variance), rel=1e-4)  # Student's t, one degree of freedom


def test_a_difference_that_is_always_the_same_has_an_interval_of_no_width() -> None:
    same = [np.full(4, 0.2)] * 3
    mean, half = compare_methods.interval(same, [np.arange(4)] * 3)
    assert mean == pytest.approx(0.2) and half == pytest.approx(0.0, abs=1e-12)


def test_one_repetition_has_an_interval_over_questions() -> None:
    mean, half = compare_methods.interval([np.array([0.0, 0.2])], [np.array([5, 6])])
    assert mean == pytest.approx(0.1) and half == pytest.approx(12.706 * 0.1, rel=1e-4)


# --- the whole -------------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_methods.py", *arguments])
    compare_methods.main()


@pytest.mark.slow
def test_methods_are_compared_and_a_repeated_call_draws_nothing(
    world: RecordedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out, page = tmp_path / "small.npz", tmp_path / "all.json", tmp_path / "all.md"
    arguments = [
        "--folder",
        str(tmp_path / "kept"),
        "--worlds",
        str(path),
        "--methods",
        "student,majority16,single,ours",
    ]
    arguments += ["--repetitions", "2", "--spend", "60", "--max-n", "3", "--json", str(out), "--markdown", str(page)]
    run(monkeypatch, *arguments)
    numbers = json.loads(out.read_text())["completions"][0]
    methods: dict[str, Any] = numbers["methods"]
    student = methods["student"]["preferences"]
    assert student["cost 0"]["utility"] == pytest.approx(0.8)
    assert student["cost 0.5"]["utility"] == pytest.approx(0.8 - 0.5 * 0.01)
    assert methods["single"]["preferences"]["cost 0"]["utility"] == pytest.approx(0.8)
    assert methods["single"]["spent"]["completions"] == 60 and methods["student"]["spent"]["requests"] == 0
    ours = methods["ours"]
    assert 0.8 <= ours["preferences"]["cost 0"]["utility"] and 0 < ours["spent"]["completions"] <= 60
    pair = student["cost 0"]
    assert pair["difference"] == pytest.approx(pair["utility"] - ours["preferences"]["cost 0"]["utility"])
    assert "sha256" in numbers["about"] and numbers["about"] in page.read_text()

    monkeypatch.setattr(compare_methods, "run", None)  # would fail if it were called
    before = out.read_text()
    run(monkeypatch, *arguments)
    assert out.read_text() == before
    capsys.readouterr()


def test_at_equal_tokens_methods_may_spend_what_ours_took(
    world: RecordedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all.json"
    arguments = [
        "--folder",
        str(tmp_path / "kept"),
        "--worlds",
        str(tmp_path / "small.npz"),
        "--methods",
        "single,ours",
    ]
    arguments += ["--repetitions", "1", "--spend", "60", "--max-n", "3", "--unit", "tokens", "--json", str(out)]
    run(monkeypatch, *arguments)
    methods = json.loads(out.read_text())["tokens"][0]["methods"]
    single, ours = (methods[m]["spent"]["read"] + methods[m]["spent"]["written"] for m in ("single", "ours"))
    assert 0.9 * ours <= single <= ours  # as many single completions as the mean tokens of a completion pay for
    capsys.readouterr()


def test_tables_are_renewed_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n{compare_methods.START}\nold\n{compare_methods.END}\nAfter.\n")
    compare_methods.renew(page, "new")
    assert page.read_text() == f"Before.\n{compare_methods.START}\n\nnew\n{compare_methods.END}\nAfter.\n"


def test_losses_are_named_with_their_interval() -> None:
    entry = {"utility": 0.8, "difference": 0.02, "half_width": 0.01}
    methods = {"single": {"name": "best single-shot prompt", "preferences": {"quality": entry}}}
    assert compare_methods.losses([{"world": "w", "methods": methods}]) == [
        "- w, quality: best single-shot prompt is .020 above, outside its interval of ± .010."
    ]
