"""An algorithm is driven by the observations of an environment, and a search by prompts that come when it wishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.algorithms.auto import Ranking
from iapo_dspy.bandit.outcome import Outcome, SearchRun, Wish
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Observations, Pulls
from tests.support.draws import Coins, problem_of

START = problem_of(MajorityVoteAggregator(), n_prompts=1)


class Asking:
    """A search that draws once, wishes, and draws every prompt that is there; it keeps what it was sent."""

    def __init__(self) -> None:
        self.sent: list[Observations | Problem] = []
        self.closed = False

    def run(self) -> SearchRun:
        """Pulls, a wish, pulls."""
        outcome = Ranking(START).outcome(complete=True)
        try:
            self.sent.append((yield pulls_of(1)))
            answer = yield Wish(outcome=outcome, front=np.zeros((1, 1)), n=3, generation=0, gain=0.1)
            self.sent.append(answer)
            assert isinstance(answer, Problem)
            self.sent.append((yield pulls_of(answer.n_prompts)))
        finally:
            self.closed = True
        return outcome


def pulls_of(n_prompts: int) -> Pulls:
    """One completion of the first query from each prompt."""
    return Pulls(np.arange(n_prompts), np.zeros(n_prompts, dtype=np.int64), np.ones(n_prompts, dtype=np.int64))


def test_pulls_go_to_the_environment_and_wishes_to_the_writer() -> None:
    search, env, wishes = Asking(), Coins(np.ones((3, 50))), list[Wish]()

    def more(wish: Wish) -> Problem:
        wishes.append(wish)
        return replace(START, n_prompts=3)

    outcome = drive(search.run(), env, more)
    assert isinstance(outcome, Outcome) and [w.n for w in wishes] == [3]
    assert [pulls.prompt.tolist() for pulls in env.asked] == [[0], [0, 1, 2]]
    first, answer, last = search.sent
    assert isinstance(first, Observations) and first.pulls is env.asked[0]
    assert isinstance(answer, Problem) and answer.n_prompts == 3
    assert isinstance(last, Observations) and last.score.shape == (3, 1)


def failing(wish: Wish) -> Problem:
    """A writer that breaks."""
    raise OSError("no writer")


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [(None, ConfigurationError, "a function `more`"), (failing, OSError, "no writer")],
)
def test_a_search_is_closed_where_its_wish_is_not_answered(
    more: Callable[[Wish], Problem] | None, error: type[Exception], message: str
) -> None:
    search, env = Asking(), Coins(np.ones((1, 50)))
    with pytest.raises(error, match=message):
        drive(search.run(), env, more)
    assert search.closed and len(env.asked) == len(search.sent) == 1
