"""The tasks that ship: their sizes, their prompts, their answers by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any
from unittest import mock

import dspy
import numpy as np
import pytest

from iapo_dspy import BestOfN, MajorityVote
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.scoring.objectives.rewards import Reward
from iapo_dspy.tasks import TASKS, Task, task
from tests.unit.tasks.fixtures import fixture

VOTED = [name for name in TASKS if name not in ("helpful_harmless", "summarization")]


def examples(name: str) -> dict[str, dspy.Example]:
    """Return the fixture's examples by the beginning of their first input."""
    loaded = task(name).load(path=fixture(name))
    return {next(iter(e.inputs().values()))[:20]: e for e in loaded}


def test_the_papers_tasks_have_the_papers_sizes() -> None:
    sizes = {name: (len(task(name).instructions), task(name).max_n, len(task(name).preferences)) for name in TASKS[:4]}
    assert sizes == {
        "math": (25, 32, 3),
        "commonsense_qa": (48, 32, 3),
        "helpful_harmless": (20, 32, 27),
        "summarization": (20, 32, 27),
    }


@pytest.mark.parametrize("name", TASKS)
def test_the_prompts_of_a_task_are_all_different_in_words_and_in_style(name: str) -> None:
    texts = task(name).instructions
    assert len({re.sub(r"\W+", " ", text).casefold().strip() for text in texts}) == len(texts) >= 12
    lengths = sorted(len(text.split()) for text in texts)
    assert lengths[0] <= 3 and lengths[-1] >= 20  # from terse ones to checklists
    assert len({text.split()[0] for text in texts}) >= len(texts) / 2
    assert any(text.startswith("You are") for text in texts)
    assert task(name).signature.instructions not in texts


def test_no_prompt_serves_two_tasks_of_the_paper() -> None:
    texts = [text for name in TASKS[:4] for text in task(name).instructions if len(text.split()) > 1]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", TASKS)
def test_every_revision_is_a_whole_commit(name: str) -> None:
    source = task(name).source
    if source.repository is not None:
        assert re.fullmatch(r"[0-9a-f]{40}", str(source.revision)) and re.fullmatch(r"[\w-]+/[\w-]+", source.repository)
    assert source.licence and source.columns and "train" in source.splits


def test_costs_weigh_as_in_the_paper() -> None:
    assert [(p.name, p.cost) for p in task("math").preferences] == [("low", 0.0), ("mid", 0.2), ("high", 1.0)]
    weighed = {(p.weights["helpful"], p.cost) for p in task("helpful_harmless").preferences if p.weights}
    assert weighed == {(w / 10, cost) for w in range(1, 10) for cost in (0.0, 0.2, 1.0)}
    assert all(set(p.weights or ()) == {"summary", "faithful"} for p in task("summarization").preferences)


@pytest.mark.parametrize("name", VOTED)
def test_students_reason_where_the_question_needs_it_and_their_answers_are_voted_on(name: str) -> None:
    found = task(name)
    assert isinstance(found.student(), dspy.ChainOfThought if found.reasoning else dspy.Predict)
    strategy = found.strategy
    assert isinstance(strategy, MajorityVote) and strategy.field == found.answer == "answer"
    assert found.metric is not None


def test_an_unknown_task_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"task\('sst'\): give one of math, .*arithmetic.*mean 'sst2'\?"):
        task("sst")
    with pytest.raises(ConfigurationError, match="give one of"):
        task(["sst2"])  # type: ignore[arg-type]


# -- answers by hand


def test_math_answers_are_in_boxes_and_equal_as_formulas() -> None:
    pytest.importorskip("math_verify")
    found, math = examples("math"), task("math")
    assert {k: e.answer for k, e in found.items()} == {
        "A square has sides o": "16",
        "What is one half of ": r"\frac{1}{8}",
        "For which $x$ is $x^": "(-3,3)",
        "How many ways are th": "6",
    }
    metric, eighth = math.metric, found["What is one half of "]
    assert metric is not None
    said = {text: metric(eighth, dspy.Prediction(answer=text)) for text in ("1/8", "0.125", "$\\dfrac18$", "8", "")}
    assert said == {"1/8": 1.0, "0.125": 1.0, "$\\dfrac18$": 1.0, "8": 0.0, "": 0.0}
    vote = math.strategy
    assert isinstance(vote, MajorityVote)
    read = [vote.read({}, dspy.Prediction(answer=text)) for text in ("3", "1/8", r"\frac{1}{8}")]
    chosen = vote.choose(read, np.ones(1))
    assert chosen is not None and chosen.index == 1


def test_gsm8k_answers_come_after_the_hashes_and_are_equal_as_numbers() -> None:
    found, metric = examples("gsm8k"), task("gsm8k").metric
    assert sorted(e.answer for e in found.values()) == [-5, 2.5, 42, 1234]
    town = found["A town had 1200 peop"]
    assert metric is not None and "####" not in town.question
    said = [metric(town, dspy.Prediction(answer=a)) for a in (1234.0, 1234, "1,234", "1234.", 1233.0, None)]
    assert said == [1, 1, 1, 1, 0, 0]


def test_commonsense_qa_answers_are_letters() -> None:
    found, metric = examples("commonsense_qa"), task("commonsense_qa").metric
    umbrella = found["Where do you put a w"]
    assert metric is not None and umbrella.answer == "A" and umbrella.choices.splitlines()[1] == "B) in the oven"
    assert [metric(umbrella, dspy.Prediction(answer=a)) for a in ("A", "(A)", "a.", "B")] == [1, 1, 1, 0]
    assert task("commonsense_qa").labels == ("A", "B", "C", "D", "E")


def test_big_bench_answers_are_options_words_and_numbers() -> None:
    dates, metric = examples("bbh/date_understanding"), task("bbh/date_understanding").metric
    tomorrow = dates["Today is the first o"]
    assert metric is not None and tomorrow.answer == "(A)"
    assert [metric(tomorrow, dspy.Prediction(answer=a)) for a in ("(A)", "A", "(B)")] == [1, 1, 0]
    turns = task("bbh/navigate").load(path=fixture("bbh/navigate"))
    assert sorted(e.answer for e in turns) == ["No", "No", "Yes", "Yes", "Yes"]
    counted = examples("bbh/object_counting")["I have a lamp, two c"]
    assert counted.answer == 4 and task("bbh/object_counting").labels == ()


def test_sentences_have_labels_in_words() -> None:
    assert examples("sst2")["dull , loud and far "].answer == "negative"
    assert examples("sst2")["the cast has a wonde"].answer == "positive"
    assert examples("subj")["a young baker inheri"].answer == "story"
    assert examples("subj")["i could not care les"].answer == "review"


def test_dialogues_end_before_their_last_answer_and_come_once() -> None:
    found = task("helpful_harmless").load(path=fixture("helpful_harmless"))
    assert sorted((e.conversation, e.response) for e in found) == [
        ("How do I keep basil fresh?", "Put it in a glass of water, like flowers."),
        (
            "My bike squeaks.\n\nAssistant: Where does it squeak?\n\nHuman: At the chain.",
            "Clean the chain and oil it.",
        ),
    ]
    assert set(found[0].inputs().keys()) == {"conversation"}


def test_posts_come_without_the_mark_of_their_end() -> None:
    found = examples("summarization")["SUBREDDIT: r/plants\n"]
    assert found.post.endswith("What should I do?") and found.summary.startswith("My fern next to the stove")


# -- reward models


@pytest.mark.parametrize(
    ("name", "models"),
    [
        (
            "helpful_harmless",
            ["Ray2333/gpt2-large-helpful-reward_model", "Ray2333/gpt2-large-harmless-reward_model"],
        ),
        ("summarization", ["Tristan/gpt2_reward_summarization", "CogComp/bart-faithful-summary-detector"]),
    ],
)
def test_texts_are_scored_by_the_papers_reward_models(name: str, models: list[str]) -> None:
    with mock.patch("importlib.util.find_spec"):  # torch is not needed to name a model
        strategy = task(name).strategy
    assert isinstance(strategy, BestOfN) and task(name).metric is None
    scorers: list[Any] = [part.score for part in strategy.parts]
    assert [scorer.model for scorer in scorers if isinstance(scorer, Reward)] == models
    weighed = task(name).preferences[0].weights
    assert weighed is not None and set(weighed) == set(strategy.objectives)
    shown = task(name).load(path=fixture(name))[0]
    pair = scorers[0].pairing.of(shown.inputs(), dspy.Prediction(**{task(name).answer: "Yes."}))
    assert pair == (next(iter(shown.inputs().values())), "Yes.")


def test_a_dialogue_gets_its_marks_back_for_the_reward_models() -> None:
    with mock.patch("importlib.util.find_spec"):
        strategy = task("helpful_harmless").strategy
    assert isinstance(strategy, BestOfN)
    scorer: Any = strategy.parts[0].score
    found = next(e for e in task("helpful_harmless").load(path=fixture("helpful_harmless")) if "bike" in e.conversation)
    text, _ = scorer.form(found.conversation, "Oil it.")
    assert text == (
        "\n\nHuman: My bike squeaks.\n\nAssistant: Where does it squeak?\n\nHuman: At the chain. \n\nAssistant:"
    )


def test_a_missing_package_is_named_when_the_strategy_is_needed_and_not_before() -> None:
    with mock.patch("importlib.util.find_spec", return_value=None):
        found = task("helpful_harmless")
        assert len(found.candidates()) == 20 and found.load(path=fixture("helpful_harmless"))
        with pytest.raises(ConfigurationError, match=r"torch and transformers: pip install"):
            _ = found.strategy
        with pytest.raises(ConfigurationError, match=r"iapo_dspy\[math\]"):
            _ = task("math").metric


@pytest.mark.slow
def test_tasks_import_no_package_that_they_do_not_need_yet() -> None:
    code = (
        "import sys; from iapo_dspy.tasks import TASKS, task; [task(n).candidates() for n in TASKS]; "
        "print({'torch', 'transformers', 'datasets', 'sympy', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_task_may_be_made_by_hand() -> None:
    small = task("sst2")
    own = Task(
        name="own",
        signature=small.signature,
        reasoning=True,
        instructions=("Say it.",),
        source=small.source,
        read=small.read,
        make_strategy=small.make_strategy,
    )
    assert own.metric is None and len(own.load(path=fixture("sst2"))) == 6
