"""The mix shares the work, drops repeats, and outlives its proposers."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy
import pytest

from iapo_dspy.errors import BudgetExceeded, ConfigurationError
from iapo_dspy.proposers import Aim, Mix, ProposalEvidence, Proposed, default_proposers
from tests.support.writing import Writer, evidence_of, known, votes


@dataclass
class Says:
    """A proposer that says these texts, or raises this."""

    texts: Sequence[Any] = ()
    error: BaseException | None = None
    name: str = "says"

    def __post_init__(self) -> None:
        self.shares: list[int] = []
        self.aims: list[str] = []

    def propose(self, evidence: ProposalEvidence, n: int) -> list[Any]:
        self.shares.append(n)
        self.aims += [aim.preference for aim in evidence.aims]
        if self.error is not None:
            raise self.error
        return [t if not isinstance(t, str) else Proposed(candidate={"self": t}, by=self.name) for t in self.texts[:n]]


def evidence(**more: Any) -> ProposalEvidence:
    return evidence_of(known(0, "Add up.", {0: votes("0", 2)}), **more)


def texts(found: Sequence[Proposed]) -> list[str]:
    return [p.candidate["self"] for p in found]


def test_candidates_are_shared_in_turns_over_generations() -> None:
    one, two = Says(["One a.", "One b.", "One c."]), Says(["Two a.", "Two b."])
    mix = Mix(proposers=[one, two, one])
    assert texts(mix.propose(evidence(generation=0), 4)) == ["One a.", "One b.", "One c.", "Two a."]
    assert (one.shares, two.shares) == ([3], [1])
    mix.propose(evidence(generation=1), 4)  # goes on at the second one: two, one, one, two
    assert (one.shares[1:], two.shares[1:]) == ([2], [2])


def test_each_gets_the_aims_of_its_share() -> None:
    aims = tuple(Aim(preference=name, context=0, cost=0.0, parent=0, n=1) for name in "abc")
    one, two = Says(["One a.", "One b."]), Says(["Two."])
    Mix(proposers=[one, two]).propose(evidence(aims=aims, generation=0), 3)
    assert (one.aims, two.aims) == (["a", "c"], ["b"])


def test_what_one_leaves_goes_to_the_others_once() -> None:
    silent, rich = Says(), Says(["A one.", "A two.", "A three.", "A four."])
    found = Mix(proposers=[silent, rich]).propose(evidence(generation=0), 4)
    assert rich.shares == [2, 2] and silent.shares == [2] and texts(found) == ["A one.", "A two."]


def test_the_opening_ends_with_the_first_completions() -> None:
    first, later = Says(["First."]), Says(["Later."])
    mix = Mix(proposers=[later], opening=[first])
    assert texts(mix.propose(evidence_of(known(0, "Add up.")), 1)) == ["First."]
    assert texts(mix.propose(evidence(), 1)) == ["Later."]


def test_repeats_and_what_cannot_be_used_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    odd = ["add  UP.", '"New one."', "new ONE.", "", "x" * 10_000, 3, None, "Another."]
    unknown = Proposed(candidate={"other": "Add."}, by="says")
    orphan = Proposed(candidate={"self": "Add."}, by="says", parents=(99,))
    found = Mix(proposers=[Says([*odd, unknown, orphan])]).propose(evidence(), 10)
    assert texts(found) == ['"New one."', "Another."]
    for words in (
        "is a int",
        "is a NoneType",
        "more than 8,000",
        "names the predictor 'other'",
        "is empty",
        "parents [99]",
    ):
        assert words in caplog.text


def test_errors_are_contained_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    mix = Mix(proposers=[Says(error=ValueError("broken sk-abcdefgh")), Says(error=SystemExit(3)), Says(["Good."])])
    for generation in range(3):
        assert texts(mix.propose(evidence(generation=generation), 3)) == ["Good."]
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert sorted(warned) == [
        "The proposer Says was left out (CodeExited: SystemExit: 3).",
        "The proposer Says was left out (ValueError: broken [secret]).",
    ]


def test_a_budget_that_ends_stops_the_asking() -> None:
    silent, good = Says(), Says(["Good."])
    found = Mix(proposers=[Says(error=BudgetExceeded("used up")), silent, good]).propose(evidence(generation=0), 3)
    assert texts(found) == ["Good."] and good.shares == [1]  # the share of the silent one is not asked for


def test_ctrl_c_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        Mix(proposers=[Says(error=KeyboardInterrupt())]).propose(evidence(), 1)


def test_a_proposer_that_hangs_is_left(caplog: pytest.LogCaptureFixture) -> None:
    end, asked = threading.Event(), []

    class Hangs:
        def propose(self, evidence: ProposalEvidence, n: int) -> list[Proposed]:
            asked.append(evidence.generation)
            end.wait(30)
            return []

    began = time.monotonic()
    mix = Mix(proposers=[Hangs(), Says(["Good."])], timeout=0.2)
    try:
        found = [mix.propose(evidence(generation=generation), 2) for generation in (0, 1)]
        alone = Mix(proposers=[mix.proposers[0]], timeout=0.2)
        assert alone.propose(evidence(), 1) == alone.propose(evidence(generation=2), 1) == []
    finally:
        end.set()
    assert [texts(f) for f in found] == [["Good."], ["Good."]] and time.monotonic() - began < 10
    assert asked == [0, 1]  # once by each mix
    assert "Hangs is left out from now on: it did not end within 0.2 seconds" in caplog.text


def test_a_mix_is_a_proposer_in_a_mix() -> None:
    inner = Mix(proposers=[Says(["Good."])])
    assert texts(Mix(proposers=[inner]).propose(evidence(), 1)) == ["Good."]


@pytest.mark.parametrize("given", [{"proposers": []}, {"proposers": [3]}, {"proposers": [Says()], "timeout": 0}])
def test_what_cannot_propose_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Mix(**given)


def test_a_fresh_mix_forgets_what_the_mixes_in_it_have_met(caplog: pytest.LogCaptureFixture) -> None:
    inner = Mix(proposers=[Says(error=RuntimeError("broken")), Says(["Two."])])
    mix = Mix(proposers=[inner, Says(["One."]), inner])
    for _ in range(2):
        mix.fresh().propose(evidence(), 3)
    assert len(caplog.records) == 2 and inner._said == set()  # one warning a run
    first, _, third = mix.fresh().proposers
    assert first is third is not inner


def test_the_default_opens_without_completions_and_then_reflects() -> None:
    with dspy.context(lm=Writer(lambda i, output, k: "X wins." if output == "verdict" else f"Write it the way {k}.")):
        mix = default_proposers()
        opening = mix.propose(evidence_of(known(0, "Add up.", utility=(float("nan"),)), generation=0), 4)
        assert sorted(p.by for p in opening) == ["grounded", "grounded", "paraphrase", "shorten"]
        one = known(0, "Add up.", {0: votes("0", 3), 1: votes(x=3), 2: votes("4", 1, y=2)})
        other = known(1, "Think.", {0: votes(z=3), 1: votes("2", 3), 2: votes("4", 1, y=2)})
        later = mix.propose(replace(evidence_of(one, other), generation=0), 10)
    assert [p.by for p in later].count("reflective") == 5
    assert {p.by for p in later} == {"reflective", "merge", "history", "gradients", "demos", "pairwise"}
