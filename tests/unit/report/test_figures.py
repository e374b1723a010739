"""Plots show the numbers that they are given."""

import numpy as np
import pytest

from iapo_dspy.report.figures import draw_curves, draw_frontier, draw_rounds, new_axes

pytestmark = pytest.mark.extra


@pytest.fixture(autouse=True)
def _without_windows():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    yield
    matplotlib.pyplot.close("all")


def test_the_frontier_is_of_arms_that_no_cheaper_one_beats():
    cost = np.array([3.0, 1.0, 2.0, 4.0, np.nan, 5.0])
    reward = np.array([0.7, 0.5, 0.4, 0.9, 1.0, np.nan])
    axes = draw_frontier(new_axes(), cost, reward, {"thrifty": (1.0, 0.5, (0.4, 0.7))}, unit="dollars")
    line, interval = axes.get_lines()
    assert list(interval.get_xdata()) == [1.0, 1.0] and list(interval.get_ydata()) == [0.4, 0.7]
    assert line.get_xdata().tolist() == [1.0, 3.0, 4.0] and line.get_ydata().tolist() == [0.5, 0.7, 0.9]
    points, marked = axes.collections
    assert len(points.get_offsets()) == 4
    assert marked.get_offsets().tolist() == [[1.0, 0.5]] and marked.get_label() == "thrifty"
    assert axes.get_xlabel() == "dollars per call"


def test_curves_are_over_n_from_one():
    middle = np.array([0.5, 0.6, 0.7])
    axes = draw_curves(new_axes(), {"first": (middle, middle - 0.1, middle + 0.1)})
    (line,) = axes.get_lines()
    assert line.get_xdata().tolist() == [1, 2, 3] and line.get_ydata().tolist() == middle.tolist()
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.4, 0.8))


def test_rounds_have_a_bar_each():
    axes = draw_rounds(new_axes(), [40, 10], [5, 3])
    assert [bar.get_height() for bar in axes.patches] == [40, 10]
    (twin,) = [a for a in axes.figure.axes if a is not axes]
    assert twin.get_lines()[0].get_ydata().tolist() == [5, 3]
