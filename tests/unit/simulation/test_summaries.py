"""Summaries and paired tests of simulations."""

import json
import math

import numpy as np
import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.simulation.summaries import paired_tests, summarize, wilcoxon, write_json
from tests.support.simulated import RUNS


def test_means_errors_spend_and_regret():
    summary = summarize("world", RUNS, {"runs": 10})
    cells = {(r["algorithm"], r["budget"]): r for r in summary["results"]}
    a = cells["a", 100]
    values = [0.51 + 0.01 * i for i in range(10)]
    assert a["acr"] == pytest.approx(np.mean(values))
    assert a["sem"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(10))
    assert (a["spent"], a["best_arm"], a["runs"]) == (99, 0.5, 10)
    assert a["regret"] == pytest.approx(1 - 0.545)
    assert (a["completions"], a["waves"]) == (7.5, 1.5)
    assert (a["compound"], a["escalates"], a["abstains"]) == (0.0, 0.0, 0.0)
    numbers = ("acr", "sem", "spent", "regret", "best_arm", "completions", "waves", "bias", "coverage", "half_width")
    refused = {"runs": 0, **dict.fromkeys((*numbers, "compound", "escalates", "abstains"))}
    assert cells["c", 200] == {"algorithm": "c", "budget": 200, **refused}
    assert summary["environment"] == "world" and summary["references"] == pytest.approx(
        {"train_best": 0.9, "oracle": 0.95}
    )
    assert summary["settings"] == {"runs": 10}


def test_one_run_has_no_standard_error():
    assert summarize("world", RUNS[:1], {})["results"][0]["sem"] is None


def test_paired_tests_are_wilcoxons():
    found = paired_tests(RUNS)
    assert [(t["budget"], t["first"], t["second"]) for t in found] == [(100, "a", "b"), (200, "a", "b")]
    assert found[0]["difference"] == pytest.approx(0.1 - 0.009)
    assert found[0]["p"] == pytest.approx(2 / 2**10)  # all ten differences on one side
    assert found[0]["significant"] is True


def test_wilcoxon_by_hand():
    assert wilcoxon(np.zeros(20)) == 1.0
    # Ranks 1, 2, 3 with one negative difference, the smallest: P(W- <= 1) = 2 / 8 on either side.
    assert wilcoxon(np.array([-1.0, 2.0, 3.0])) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    assert wilcoxon(rng.normal(0.0, 1.0, 50)) > 0.05 > wilcoxon(rng.normal(1.0, 1.0, 50))


def test_json_is_plain_and_complete(tmp_path):
    summary = summarize("world", RUNS, {"seed": 0})
    write_json(summary, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == summary
    with pytest.raises(ConfigurationError, match="no folder"):
        write_json(summary, tmp_path / "missing" / "out.json")
