"""Cells and ballots against values worked out by hand and a dictionary that is filled completion by completion."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.bandit.cells import Ballots, Cells, ballots
from iapo_dspy.types import Observations
from tests.support.draws import observe

NAN = float("nan")
HUGE = 2**61  # labels may be hashes


def by_hand() -> Cells:
    first = observe([(1, 7, 2), (0, 7, 1), (1, 3, 1)], [1, 0, 1, 0.5], [4, 9, 4, 2])
    second = observe([(1, 7, 3), (2, 3, 2)], [NAN, 0, 0.5, 0, NAN], [4, 5, 4, -1, -1])
    return Cells.of([first, second], n_prompts=3, n_objectives=1)


def test_cells_come_by_query_then_prompt_and_keep_the_order_of_drawing() -> None:
    cells = by_hand()
    assert cells.visited.tolist() == [3, 7] and cells.n_visited == 2
    assert list(zip(cells.prompt, cells.visited[cells.query], strict=True)) == [(1, 3), (2, 3), (0, 7), (1, 7)]
    assert cells.size.tolist() == [1, 2, 1, 5] and len(cells) == 4
    assert cells.start.tolist() == [0, 1, 3, 4]
    assert cells.owner.tolist() == [0, 1, 1, 2, 3, 3, 3, 3, 3]
    assert cells.label.tolist() == [2, -1, -1, 4, 4, 9, 4, 5, 4]
    np.testing.assert_array_equal(cells.score[:, 0], [0.5, 0, NAN, 1, 1, 0, NAN, 0, 0.5])
    assert cells.failed.tolist() == [False, False, True, False, False, False, True, False, False]
    assert cells.by_query(cells.size).tolist() == [3, 6]
    assert cells.by_query(np.stack([cells.size, cells.prompt], axis=1)).tolist() == [[3, 3], [6, 1]]


def test_ballots_by_hand() -> None:
    found = ballots(by_hand())
    # Query 3: answer 2. Query 7: answers 4, 5, 9. A failed completion has no vote, whatever its label.
    assert found.votes.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0], [2, 1, 1]]
    assert found.silent.tolist() == [0, 2, 0, 1]
    assert found.seen.tolist() == [[1, 0, 0], [3, 1, 1]]
    np.testing.assert_allclose(found.credit, [[0.5, 0, 0], [2.5 / 3, 0, 0]])
    np.testing.assert_allclose(found.worth, [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.75, 0.0, 0.0]])


def test_cells_without_votes() -> None:
    cells = Cells.of([observe([(0, 0, 2), (1, 4, 1)], [0, NAN, 1], [-1, -1, -1])], n_prompts=2, n_objectives=1)
    found = ballots(cells)
    assert found.votes.shape == (2, 0) and found.credit.shape == found.seen.shape == (2, 0)
    assert found.silent.tolist() == [2, 1]


def test_without_observations_there_are_no_cells() -> None:
    for observations in ([], [observe([], np.empty((0, 2)))]):
        cells = Cells.of(observations, n_prompts=3, n_objectives=2)
        assert len(cells) == cells.n_visited == 0 and cells.score.shape == (0, 2)
        assert ballots(cells).votes.shape == (0, 0)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Observations], int]:
    """A few batches over few cells, so that cells are drawn again; answers are any integers."""
    n_prompts = draw(st.integers(1, 3))
    pull = st.tuples(st.integers(0, n_prompts - 1), st.integers(0, 4), st.integers(1, 3))
    names = draw(st.lists(st.integers(-1, 5) | st.integers(HUGE, HUGE + 3), min_size=1, max_size=5))
    out = []
    for pulls in draw(st.lists(st.lists(pull, max_size=5), min_size=1, max_size=4)):
        total = sum(size for _, _, size in pulls)
        label = draw(st.lists(st.sampled_from(names), min_size=total, max_size=total))
        value = st.sampled_from([0.0, 0.25, 1.0, NAN])
        score = draw(st.lists(st.tuples(value, value), min_size=total, max_size=total))
        out.append(observe(pulls, np.array(score).reshape(-1, 2), np.array(label, dtype=np.int64)))
    return out, n_prompts


@settings(max_examples=150, deadline=None)
@given(batches())
def test_cells_and_ballots_are_what_a_dictionary_says(given: tuple[list[Observations], int]) -> None:
    observations, n_prompts = given
    content: dict[tuple[int, int], list[tuple[int, list[float]]]] = defaultdict(list)
    for o in observations:
        at = 0
        for pull in o.pulls:
            for s in range(at, at + pull.size):
                content[pull.query, pull.prompt].append((int(o.label[s]), o.score[s].tolist()))
            at += pull.size
    cells = Cells.of(observations, n_prompts, 2)
    keys = sorted(content)
    assert [(int(cells.visited[x]), int(p)) for x, p in zip(cells.query, cells.prompt, strict=True)] == keys
    assert cells.visited.tolist() == sorted({x for x, _ in keys})
    found: Ballots = ballots(cells)
    assert (found.seen.sum(axis=0) > 0).all()  # no answer that nobody gave on any query
    for g, key in enumerate(keys):
        inside = slice(cells.start[g], cells.start[g] + cells.size[g])
        np.testing.assert_array_equal(cells.label[inside], [label for label, _ in content[key]])
        np.testing.assert_array_equal(cells.score[inside], [score for _, score in content[key]])
        assert (cells.owner[inside] == g).all()
    for v, x in enumerate(cells.visited.tolist()):
        votes: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        credit: dict[int, list[float]] = defaultdict(list)
        for p in range(n_prompts):
            for label, score in content.get((x, p), []):
                if label >= 0 and not np.isnan(score).any():
                    votes[p][label] += 1
                    credit[label].append(score[0])
        names = sorted(credit)
        assert found.seen[v].tolist() == [len(credit[a]) for a in names] + [0] * (found.seen.shape[1] - len(names))
        means = [float(np.mean(credit[a])) for a in names]
        np.testing.assert_allclose(found.credit[v], means + [0.0] * (found.credit.shape[1] - len(names)))
        for row in np.flatnonzero(cells.query == v):
            mine = votes[int(cells.prompt[row])]
            expected = [mine[a] for a in names] + [0] * (found.votes.shape[1] - len(names))
            assert found.votes[row].tolist() == expected
            assert found.silent[row] == cells.size[row] - sum(expected)


def test_prompts_and_queries_out_of_order_in_one_batch_are_pooled() -> None:
    cells = Cells.of([observe([(1, 0, 1), (0, 0, 1), (1, 0, 1)], [1, 2, 3])], n_prompts=2, n_objectives=1)
    assert cells.size.tolist() == [1, 2]
    np.testing.assert_array_equal(cells.score[:, 0], [2, 1, 3])


@pytest.mark.parametrize("name", [0, 3, HUGE])
def test_answers_are_numbered_from_zero_whatever_they_are_called(name: int) -> None:
    pulls = [(0, x, 2) for x in range(20)]
    cells = Cells.of([observe(pulls, [1.0] * 40, [name, name + 1] * 20)], n_prompts=1, n_objectives=1)
    assert ballots(cells).votes.tolist() == [[1, 1]] * 20
