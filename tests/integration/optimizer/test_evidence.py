"""A run goes on from what earlier runs in its `log_dir` have paid for; the server counts what is paid."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import Budget, Cost, Preference
from iapo_dspy.errors import BudgetTooSmall, TooManyErrors
from iapo_dspy.events import Progress
from iapo_dspy.ledger import merge_ledgers
from iapo_dspy.sampling.ledger.reading import contents_of
from iapo_dspy.sampling.ledger.records import CompletionRecord
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback, chat
from tests.support.states import state_of
from tests.support.worlds import INSTRUCTIONS, Around, adder, questions, student

optimizer = optimizers(budget=90, num_threads=8)
MORE = ["Take your time.", "Say it twice.", "Add them up."]


def compiled(server: Loopback, log_dir: Path | None, n_queries: int = 20, **settings: Any) -> Any:
    with dspy.context(lm=server.lm(seed=1)):
        return optimizer(log_dir=log_dir, **settings).compile(student(), trainset=questions(n_queries))


def paid(server: Loopback, log_dir: Path, **settings: Any) -> tuple[Any, int]:
    """Compile, and return the program and how many completions the server has written for it."""
    before = server.completions
    program = compiled(server, log_dir, **settings)
    return program, server.completions - before


class Stopped(Exception):
    """The user's own reason to stop."""


def stopped_after(completions: int) -> Callable[[Progress], None]:
    """Return a function of progress that stops a run after so many completions."""

    def stop(progress: Progress) -> None:
        if progress.completions >= completions:
            raise Stopped

    return stop


class Unreliable(Around):
    """A student whose own code fails before every third call."""

    calls = failed = 0
    broken = True

    def forward(self, question: str) -> dspy.Prediction:
        Unreliable.calls += 1
        if self.broken and Unreliable.calls % 3 == 0:
            Unreliable.failed += 1
            raise RuntimeError("the search index is down")
        return super().forward(question)


def policy(program: Any) -> dict[str, Any]:
    """The saved policy without the time it took."""
    state = state_of(program)
    del state["spent"]["seconds"]
    return dict(state)


def strict(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    return bool(prediction.answer == example.answer and int(prediction.answer) % 2 == 0)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `log_dir` of a finished run of 90 completions."""
    folder = tmp_path_factory.mktemp("first")
    with Loopback(adder) as server:
        compiled(server, folder)
    return folder


def copied(first: Path, folder: Path) -> int:
    """Copy its ledger, and return how many completions of the candidates are in it."""
    (folder / "ledger.jsonl").write_bytes((first / "ledger.jsonl").read_bytes())
    contents = contents_of(folder)
    mine = contents.about["prompts"][: len(INSTRUCTIONS)]
    return sum(r.prompt in mine for r in contents.completions)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"seed": 5},
        {"budget": 40},
        {"preferences": [Preference("other", cost=1.0)]},
        {"metric": strict},
        {"max_n": 16},
        {"n_queries": 30},
        {"candidates": INSTRUCTIONS[1:], "budget": 40},
        {"stopping": None},
    ],
    ids=lambda changed: next(iter(changed), "nothing"),
)
def test_what_the_evidence_answers_costs_nothing(
    changed: dict[str, Any], first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = copied(first, tmp_path)
    settings = {"budget": known, **changed} if changed else {}
    with Loopback(adder) as server, caplog.at_level(logging.INFO, logger="iapo_dspy.optimizer"):
        program = compiled(server, tmp_path, **settings)
        again = compiled(server, tmp_path, **settings)
        assert not server.requests
    assert policy(again) == policy(program), "the same settings twice are the same run"
    assert "restored " in caplog.text
    if "candidates" in changed:
        assert "completions are of 1 prompt that this run does not have" in caplog.text
    else:
        assert program.detailed_results.spent.completions >= known


def test_a_larger_budget_pays_the_difference_and_the_same_run_pays_nothing(
    first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = copied(first, tmp_path)
    with Loopback(adder) as server:
        with caplog.at_level(logging.INFO, logger="iapo_dspy.optimizer"):
            larger, more = paid(server, tmp_path, budget=150)
        assert f"restored {known} of 150 completions" in caplog.text
        assert 0 < more == larger.detailed_results.spent.completions - known <= 150 - known
        requests = server.requests
        assert policy(compiled(server, tmp_path, budget=150)) == policy(larger)
        mine = compiled(server, tmp_path)  # the first run is what it was, although another one has written since
        assert server.requests == requests
        with Loopback(adder) as other:
            alone = compiled(other, None)
    assert {**policy(mine), "spent": None} == {**policy(alone), "spent": None}
    names = [r.key for r in contents_of(tmp_path).all(CompletionRecord)]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_beside_another_one(first: Path, tmp_path: Path) -> None:
    with Loopback(adder) as server:
        with pytest.raises(Stopped):
            compiled(server, tmp_path, progress=stopped_after(40))
        other = compiled(server, tmp_path, preferences=[Preference("other", cost=2.0)])
        program = compiled(server, tmp_path)
        total = server.completions
        assert total < 90 + 90, "each of them took what the other had drawn"
        for settings, found in (({}, program), ({"preferences": [Preference("other", cost=2.0)]}, other)):
            assert policy(compiled(server, tmp_path, **settings)) == policy(found)  # type: ignore[arg-type]
        assert server.completions == total


def test_new_candidates_are_paid_for_and_a_budget_that_cannot_is_refused(first: Path, tmp_path: Path) -> None:
    known = copied(first, tmp_path)
    with Loopback(adder) as server:
        with pytest.raises(BudgetTooSmall, match=rf"{known} completions are in .*{known + 3}\)") as caught:
            compiled(server, tmp_path, budget=known + 2, candidates=[*INSTRUCTIONS, *MORE])
        assert not server.requests and caught.value.least == known + 3
        program, more = paid(server, tmp_path, budget=known + 60, candidates=[*MORE, *INSTRUCTIONS])
        assert 3 <= more <= 60 and program.detailed_results.spent.completions == known + more
        # another `Cost` measures the student anew, beside the first look at each new candidate
        cost = Cost(prompt_tokens=1.0, completion_tokens=4.0)
        compiled(server, tmp_path, budget=known + more + 12, cost_unit=cost, candidates=[*MORE, *INSTRUCTIONS, "Add."])
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert all(any(text in system for system in asked) for text in MORE)


def test_a_candidate_more_leaves_those_of_a_typed_student_their_completions(tmp_path: Path) -> None:
    typed = dspy.Predict("question -> answer: int")

    def right(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return bool(prediction.answer == int(example.answer))

    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        spent = []
        for candidates, budget in ((INSTRUCTIONS, 90), ([*INSTRUCTIONS, MORE[0]], 110)):
            before = server.completions
            optimizer(log_dir=tmp_path, metric=right, candidates=candidates, budget=budget).compile(
                typed, trainset=questions(20)
            )
            spent.append(server.completions - before)
    assert spent[0] >= 80 and spent[1] <= 110 - spent[0] + 5


def test_another_algorithm_takes_what_is_stored(first: Path, tmp_path: Path) -> None:
    copied(first, tmp_path)
    with Loopback(adder) as server:
        program, more = paid(server, tmp_path, budget=100, algorithm="psst", max_n=2)
        spent = program.detailed_results.spent.completions
        assert more < spent <= 100
        requests = server.requests
        assert policy(compiled(server, tmp_path, budget=100, algorithm="psst", max_n=2)) == policy(program)
        assert server.requests == requests


def test_a_budget_of_dollars_counts_what_other_runs_paid(first: Path, tmp_path: Path) -> None:
    prices: dict[str, Any] = {"input_cost_per_token": 1e-3, "output_cost_per_token": 1e-3, "max_tokens": 60}
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1, **prices)):
        spent = 0.0
        for usd in (20.0, 30.0):
            program = optimizer(log_dir=tmp_path, budget=Budget(usd=usd)).compile(student(), trainset=questions(20))
            billed = (server.prompt_tokens + server.completion_tokens) * 1e-3
            assert spent < billed <= usd and program.detailed_results.spent.usd == pytest.approx(billed)
            spent = billed
        known = program.detailed_results.spent.completions
        contents = contents_of(tmp_path)
        mine = contents.about["prompts"][: len(INSTRUCTIONS)]
        assert known == sum(r.prompt in mine for r in contents.completions), "the larger one goes on from all of them"
        requests = server.requests
        optimizer(log_dir=tmp_path, budget=Budget(usd=20.0)).compile(student(), trainset=questions(20))
        assert server.requests == requests


@pytest.mark.slow
def test_a_quote_says_what_is_paid_for_already(first: Path, tmp_path: Path) -> None:
    known = copied(first, tmp_path)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        quote = optimizer(log_dir=tmp_path, budget=150).quote(student(), trainset=questions(20))
        other = optimizer(log_dir=tmp_path, algorithm="psst", max_n=2).quote(student(), trainset=questions(20))
        trained, rest = questions(15), questions(20)[15:]
        measured = optimizer(log_dir=tmp_path, budget=150).quote(student(), trainset=trained, valset=rest)
        fewer = optimizer(log_dir=tmp_path, candidates=INSTRUCTIONS[1:]).quote(student(), trainset=questions(20))
        assert not server.requests
    assert quote.left is not None and quote.left.spent.completions == known and quote.left.completions == 150 - known
    assert f"spent so far: {known} completions" in str(quote) and "left to pay: " in str(quote)
    assert other.left is not None and not other.left.exact and "left to pay: at least " in str(other)
    assert measured.left is not None and measured.left.completions is not None
    assert 150 - known < measured.left.completions < 150, "those on the validation set may be of other arms"
    assert fewer.left is not None and "1 prompt that this run does not have" in fewer.left.unused


def test_two_half_runs_that_are_merged_know_what_one_run_would(tmp_path: Path) -> None:
    halves, into = [tmp_path / "a", tmp_path / "b"], tmp_path / "both"
    with Loopback(adder) as server:
        for seed, half in enumerate(halves):
            with dspy.context(lm=server.lm(seed=seed)):
                optimizer(log_dir=half, seed=seed, budget=60).compile(student(), trainset=questions(20))
        completions, tokens = server.completions, server.prompt_tokens + server.completion_tokens
        merge_ledgers(into, *halves)
        merged = contents_of(into)
        assert len(merged.completions) == completions
        requests = server.requests
        program, more = paid(server, into, budget=60)  # less than is known
        assert not more and server.requests == requests
        spent = program.detailed_results.spent
        assert spent.tokens == tokens and 60 < spent.completions <= completions
    assert program.policy.ready.arms[0].prompt == 2


@pytest.mark.slow
def test_a_stopped_run_counts_the_dollars_that_another_one_has_paid_since(tmp_path: Path) -> None:
    prices: dict[str, Any] = {"input_cost_per_token": 1e-3, "output_cost_per_token": 1e-3, "max_tokens": 60}
    limit: dict[str, Any] = {"log_dir": tmp_path, "budget": Budget(300, usd=10.0), "num_threads": 1, "max_n": 2}
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1, **prices)):
        with pytest.raises(Stopped):
            optimizer(**limit, progress=stopped_after(20)).compile(student(), trainset=questions(60))
        optimizer(**limit, seed=4).compile(student(), trainset=questions(60))
        with_other = (server.prompt_tokens + server.completion_tokens) * 1e-3
        quote = optimizer(**limit).quote(student(), trainset=questions(60))
        assert quote.left is not None and quote.left.usd is not None and 0 < quote.left.usd <= 10.0 - with_other
        optimizer(**limit).compile(student(), trainset=questions(60))
        assert (server.prompt_tokens + server.completion_tokens) * 1e-3 <= 10.0


def test_a_replay_that_is_stopped_leaves_its_run_finished(first: Path, tmp_path: Path) -> None:
    copied(first, tmp_path)
    with Loopback(adder) as server:
        with pytest.raises(Stopped):
            compiled(server, tmp_path, progress=stopped_after(20))
        assert not server.requests
    contents = contents_of(tmp_path)
    assert contents.run is not None and contents.paid(contents.run.fingerprint).after.finished


@pytest.mark.slow
def test_errors_of_a_finished_run_do_not_count_against_those_of_the_next(tmp_path: Path) -> None:
    Unreliable.broken = True
    asked = Unreliable()
    settings: dict[str, Any] = {"log_dir": tmp_path, "max_n": 2, "candidates": INSTRUCTIONS[:2], "num_threads": 1}
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        optimizer(**settings, budget=60).compile(asked, trainset=questions(10))
        assert Unreliable.failed > 3
        Unreliable.broken = False
        optimizer(**settings, budget=80, max_errors=3).compile(asked, trainset=questions(10))
        Unreliable.broken = True
        with pytest.raises(TooManyErrors, match="max_errors=3"):
            optimizer(**settings, budget=140, max_errors=3).compile(asked, trainset=questions(10))


@pytest.mark.slow
def test_completions_that_are_drawn_again_are_draws_of_their_own(tmp_path: Path) -> None:
    def draw(body: dict[str, Any], i: int) -> str:
        return chat(answer=str(body.setdefault("_rng", random.Random(body["seed"])).randrange(10**9)))

    Unreliable.broken = True
    asked = Unreliable()
    settings: dict[str, Any] = {"log_dir": tmp_path, "algorithm": "psst", "candidates": INSTRUCTIONS[:2], "max_n": 4}
    with Loopback(draw) as server, dspy.context(lm=server.lm(seed=1)):
        with pytest.raises(TooManyErrors):
            optimizer(**settings, num_threads=1, max_errors=5).compile(asked, trainset=questions(10))
        Unreliable.broken = False
        optimizer(**settings).compile(asked, trainset=questions(10))
    texts = [(r.prompt, r.query, r.text) for r in contents_of(tmp_path).completions]
    assert len(set(texts)) == len(texts) > 40
