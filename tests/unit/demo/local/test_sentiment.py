"""The reviews that ship, the candidates, and data of the user's own."""

import re
from pathlib import Path

import pytest

from iapo_dspy.adapters import PlainTextAdapter
from iapo_dspy.demo.local.sentiment import DEMONSTRATIONS, INSTRUCTIONS, REVIEWS, sentiment_task
from iapo_dspy.errors import ConfigurationError


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_the_reviews_are_balanced_short_and_all_different() -> None:
    header, *lines = REVIEWS.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    assert header == "label\tsentence" and len(rows) >= 240
    assert [label for label, _ in rows].count("1") * 2 == len(rows) and {label for label, _ in rows} == {"0", "1"}
    assert all(4 <= len(sentence.split()) <= 25 for _, sentence in rows)
    sentences = [sentence for _, sentence in rows] + [sentence for sentence, _, _ in DEMONSTRATIONS]
    assert len({" ".join(words(s)) for s in sentences}) == len(sentences)


def test_held_out_sentences_are_not_trained_on_and_have_their_labels() -> None:
    task = sentiment_task(seed=3)
    heldout, train = task.heldout(100, 3), task.train(200, 3)
    assert (len(heldout), len(train)) == (100, 200)
    assert not {e.sentence for e in heldout} & {e.sentence for e in train}
    labels = {e.sentence: e.answer for e in task.examples}
    assert labels["The soup arrived hot, smelled of thyme, and I scraped the bowl clean."] == "positive"
    assert labels["There is nothing here that I would want to eat again."] == "negative"
    assert sentiment_task(seed=4).heldout(100, 4) != heldout


def test_a_candidate_is_an_instruction_and_turns_before_the_question() -> None:
    adapter, task = PlainTextAdapter(), sentiment_task()
    student, *candidates = task.candidates
    assert len(candidates) == len(INSTRUCTIONS) and 10 <= len(candidates) <= 13
    for given, program in zip(INSTRUCTIONS, candidates, strict=True):
        ((_, predictor),) = program.named_predictors()
        system, *turns = adapter.format(predictor.signature, predictor.demos, {"sentence": "So so."})
        assert system["content"].startswith(given.text) and turns[-1] == {"role": "user", "content": "So so."}
        assert len(turns) == 2 * given.demonstrations + 1
        shown = [t["content"] for t in turns if t["role"] == "assistant"]
        read = [adapter.parse(predictor.signature, text)["answer"] for text in shown]
        assert read == [label for _, _, label in DEMONSTRATIONS[: given.demonstrations]]
        assert read.count("positive") * 2 == len(read)
        assert (":" in shown[0]) == (given.shows == "strong words")
    ((_, bare),) = student.named_predictors()
    assert not bare.demos


def test_data_of_ones_own_take_the_place_of_the_reviews(tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text("".join(f"{i % 2}\tSentence {i} of mine.\n" for i in range(40)))
    task = sentiment_task(path)
    assert {e.sentence: e.answer for e in task.examples}["Sentence 7 of mine."] == "positive"
    assert len(task.examples) == 40 and task.name == "sentiment, your data"
    path.write_text("1\tThe only one.\n")
    with pytest.raises(ConfigurationError, match=r"mine\.tsv has 1 sentences: give at least 40"):
        sentiment_task(path)
    path.write_text("good\tThe only one.\n")
    with pytest.raises(ConfigurationError, match=r"mine\.tsv, row 1: 'label' is 'good'"):
        sentiment_task(path)
