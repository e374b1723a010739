"""The recordings of small models under examples/data: what they hold, what they do not, and simulations on them."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iapo_dspy.environments.recorded.files import load
from iapo_dspy.simulation.entrants import entrants
from iapo_dspy.simulation.runner import simulate
from iapo_dspy.simulation.sources import source
from iapo_dspy.tasks import task

DATA = Path(__file__).parents[3] / "examples" / "data"
FILES = sorted(DATA.glob("*.npz"))
LARGEST = 1_000_000  # bytes
each = pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])


def texts(value: Any) -> Iterator[str]:
    """All texts in JSON data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def test_there_are_three_tasks_and_two_models() -> None:
    cards = [load(path).card or {} for path in FILES]
    assert {card["task"] for card in cards} >= {"sst2", "subj", "arithmetic/one_step"}
    assert len({card["revision"] for card in cards}) >= 2


@each
def test_a_recording_is_small_and_large_enough(path: Path) -> None:
    recording = load(path)
    assert path.stat().st_size < LARGEST
    assert recording.drawn is not None
    assert 12 <= recording.n_prompts <= 16 and recording.n_queries >= 120 and recording.drawn.samples >= 16
    assert np.allclose(recording.probs, recording.drawn.law(recording.probs.shape[2]))


@each
def test_a_card_says_where_a_recording_comes_from(path: Path) -> None:
    card = load(path).card or {}
    needed = {
        "task",
        "models",
        "revision",
        "licence",
        "server",
        "adapter",
        "data",
        "samples",
        "seed",
        "command",
        "date",
    }
    assert needed <= card.keys() and card["command"].startswith(f"iapo record {card['task']} {path.name} ")
    digests = [prompt["digest"] for prompt in card["prompts"]]
    assert len(set(digests)) == len(digests) == load(path).n_prompts
    assert len(set(card["queries"])) == load(path).n_queries
    assert all(re.fullmatch(r"[0-9a-f]{16}", digest) for digest in [*digests, *card["queries"]])


@each
def test_a_recording_holds_no_sentence_that_is_not_ours(path: Path) -> None:
    card = load(path).card or {}
    ours = {*task(card["task"]).instructions, card["command"], card["revision"], card["signature"]}
    assert [text for text in texts(card) if text not in ours and len(text.split()) > 4] == []


@each
def test_the_page_lists_a_recording_with_its_checksum_and_its_command(path: Path) -> None:
    page = (DATA / "README.md").read_text(encoding="utf-8")
    card = load(path).card or {}
    assert hashlib.sha256(path.read_bytes()).hexdigest() in page
    assert card["command"] in re.sub(r" \\\n +", " ", page)


@each
def test_the_default_algorithm_chooses_better_arms_than_chance(path: Path) -> None:
    where = source(str(path), max_n=16)
    runs = simulate(where, entrants(["auto", "random"]), [1500], runs=4, seed=0)
    trials = [(run.trials["auto", 1500], run.trials["random", 1500]) for run in runs]
    lost = np.array(
        [[ours.regret, chance.regret] for ours, chance in trials if ours is not None and chance is not None]
    )
    assert lost.shape == (4, 2) and all(ours is not None and ours.spent <= 1500 for ours, _ in trials)
    assert lost[:, 0].mean() < 0.75 * lost[:, 1].mean(), lost
