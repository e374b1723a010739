"""Built-in objectives and metrics that ask nobody: worked out by hand."""

import json
import math
import threading
from typing import Any

import dspy
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy import (
    BestOfN,
    ConfigurationError,
    LabelRequired,
    MajorityVote,
    Objective,
    ScoreError,
    metrics,
    objectives,
)
from iapo_dspy.scoring.objectives.judging import read_verdict
from iapo_dspy.scoring.objectives.microbatch import MicroBatcher
from iapo_dspy.scoring.once_per_call import once, sharing
from iapo_dspy.testing import check_objective

EXAMPLE = dspy.Example(question="Capital of France?", answer="Paris").with_inputs("question")


def of(objective: Objective, **fields: Any) -> float:
    return objective(EXAMPLE.inputs(), dspy.Prediction(**fields))


# -- patterns


@pytest.mark.parametrize(
    ("pattern", "whole", "text", "score"),
    [
        (r"\d+", False, "about 40 of them", 1),
        (r"\d+", True, "about 40 of them", 0),
        (r"\d+", True, "40", 1),
        (r"(?i)^yes\b", False, "YES, it is", 1),
        (r"^yes\b", False, "YES, it is", 0),
        (r"\d+", True, 40, 1),
        (r"x", False, None, 0),
        (r'"city": "Paris"', False, {"city": "Paris"}, 1),
    ],
)
def test_patterns(pattern: str, whole: bool, text: Any, score: float) -> None:
    assert of(objectives.regex_match("answer", pattern, whole=whole), answer=text) == score


def test_a_pattern_that_is_none_raises_when_it_is_given() -> None:
    for bad in ("(", 3, None):
        with pytest.raises(ConfigurationError, match="not a regular expression"):
            objectives.regex_match("answer", bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="is not the name of a field"):
        objectives.regex_match("the answer", "x")


def test_a_missing_field_is_named_with_those_there_are() -> None:
    with pytest.raises(ScoreError, match=r"no field 'answer'; it has \['reply'\]"):
        of(objectives.regex_match("answer", "x"), reply="x")


# -- JSON


class City(pydantic.BaseModel):
    name: str
    people: int


SCHEMA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize(
    ("value", "schema", "score"),
    [
        ('{"name": "Paris"}', None, 1),
        ('{"name": "Paris"', None, 0),
        ('```json\n{"name": "Paris"}\n```', None, 0),
        ("NaN", None, 0),
        ("[" * 100_000, None, 0),
        ("3", None, 1),
        ("", None, 0),
        ({"name": "Paris"}, SCHEMA, 1),
        ('{"name": 3}', SCHEMA, 0),
        ('{"name": "Paris", "people": 2}', City, 1),
        ('{"name": "Paris", "people": "many"}', City, 0),
        (City(name="Paris", people=2), City, 1),
        ([City(name="Paris", people=2)], {"type": "array", "items": City.model_json_schema()}, 1),
    ],
)
def test_json(value: Any, schema: Any, score: float) -> None:
    assert of(objectives.json_valid("answer", schema), answer=value) == score


def test_a_schema_that_is_none_raises_and_no_reference_is_fetched() -> None:
    with pytest.raises(ConfigurationError, match="not a valid JSON schema"):
        objectives.json_valid("answer", {"type": "sausage"})
    remote = objectives.json_valid("answer", {"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(Exception, match=r"127\.0\.0\.1") as caught:  # it is unknown, and stays so
        of(remote, answer="3")
    assert "Unresolvable" in type(caught.value).__name__ or "Ref" in type(caught.value).__name__


# -- length


@pytest.mark.parametrize(
    ("limits", "text", "score"),
    [
        ({"target": 4}, "a b c d", 1.0),
        ({"target": 4}, "a b", 0.5),
        ({"target": 4}, "a b c d e f g h", 0.5),
        ({"target": 4}, "", 0.0),
        ({"most": 2}, "a b", 1.0),
        ({"most": 2}, "", 1.0),
        ({"most": 2}, "a b c d", 0.5),
        ({"least": 4}, "a", 0.25),
        ({"least": 4}, "a b c d e", 1.0),
        ({"least": 2, "most": 3}, "a b c d", 0.75),
        ({"least": 2, "most": 3}, "a", 0.5),
        ({"least": 2, "most": 3}, "a b", 1.0),
        ({"most": 4, "unit": "characters"}, "äöü12345", 0.5),
        ({"most": 2, "unit": "words"}, ["a", "b"], 1.0),  # as JSON: '["a", "b"]'
    ],
)
def test_length(limits: dict[str, Any], text: Any, score: float) -> None:
    assert of(objectives.length("answer", **limits), answer=text) == score


def test_length_in_tokens_is_that_of_a_tokenizer() -> None:
    text = "Tokenizers split uncommon words."  # Token|izers| split| uncommon| words|.
    assert of(objectives.length("answer", target=6, unit="tokens"), answer=text) == 1.0
    assert of(objectives.length("answer", most=1, unit="tokens"), answer=text) == pytest.approx(1 / 6)
    assert of(objectives.length("answer", most=1, unit="tokens"), answer="") == 1.0


@pytest.mark.parametrize("limits", [{}, {"target": 3, "most": 4}, {"least": 5, "most": 4}, {"most": 0}, {"most": 2.5}])
def test_lengths_that_make_no_sense_raise(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="length"):
        objectives.length("answer", **limits)
    with pytest.raises(ConfigurationError, match="unit"):
        objectives.length("answer", most=1, unit="lines")  # type: ignore[arg-type]


@given(
    text=st.text(max_size=200),
    a=st.integers(1, 50),
    b=st.integers(0, 50),
    unit=st.sampled_from(["words", "characters"]),
)
def test_lengths_are_scores_and_monotone_beyond_the_limits(text: str, a: int, b: int, unit: Any) -> None:
    most = objectives.length("answer", least=a, most=a + b, unit=unit)
    assert 0 <= of(most, answer=text) <= 1
    only = objectives.length("answer", most=a, unit="characters")
    assert of(only, answer=text + "!") <= of(only, answer=text)


# -- settings are part of what a stored score belongs to


def test_other_settings_are_other_scorers_and_equal_ones_the_same() -> None:
    made = [
        objectives.regex_match("answer", "a"),
        objectives.regex_match("answer", "b"),
        objectives.regex_match("answer", "b", whole=True),
        objectives.regex_match("reply", "b"),
        objectives.json_valid("answer"),
        objectives.json_valid("answer", SCHEMA),
        objectives.length("answer", most=3),
        objectives.length("answer", most=4),
        objectives.judge("Is it polite?"),
        objectives.judge("Is it short?"),
        objectives.judge("Is it short?", scale=(1, 5)),
        objectives.judge("Is it short?", lm=dspy.LM("openai/a", api_key="sk-one-secret")),
        objectives.judge("Is it short?", lm=dspy.LM("openai/b", api_key="sk-one-secret")),
        objectives.similarity("answer", "question", model="openai/a", api_key="sk-one-secret"),
        objectives.similarity("answer", text="question", model="openai/a"),
        objectives.similarity("answer", "question", model="openai/a", dimensions=3),
        objectives.served_reward_model("m", "http://127.0.0.1:1"),
        objectives.served_reward_model("m", "http://127.0.0.1:1", form=lambda q, a: a),
        objectives.served_reward_model("m", "http://127.0.0.1:1", form=lambda q, a: q),
    ]
    digests = [BestOfN([o]).digest(None) for o in made]
    assert len(set(digests)) == len(made)
    again = objectives.judge(
        "Is it short?", lm=dspy.LM("openai/b", api_key="sk-another", api_base="http://127.0.0.1:1")
    )
    assert BestOfN([again]).digest(None) == digests[12]  # not what it is reached by
    moved = objectives.served_reward_model("m", "http://127.0.0.1:2", api_key="sk-another")
    assert BestOfN([moved]).digest(None) == digests[16]
    shown = json.dumps([BestOfN([o]).to_dict() for o in made]) + repr(made)
    assert "secret" not in shown and "another" not in shown


# -- metrics with labels


def test_exact_match_and_f1_are_dspys_own() -> None:
    exact, f1 = metrics.exact_match("answer"), metrics.f1("answer")
    assert exact(EXAMPLE, dspy.Prediction(answer="The  PARIS!")) == 1.0
    assert exact(EXAMPLE, dspy.Prediction(answer="Paris, France")) == 0.0
    assert f1(EXAMPLE, dspy.Prediction(answer="Paris, France")) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    several = dspy.Example(question="?", gold=["Lutetia", "Paris"]).with_inputs("question")
    assert metrics.exact_match("answer", "gold")(several, dspy.Prediction(answer="paris")) == 1.0
    assert metrics.exact_match("answer", "gold")(several, dspy.Prediction(answer="Rome"), None, "pred", []) == 0.0
    assert metrics.exact_match("answer")(dspy.Example(answer=42).with_inputs(), dspy.Prediction(answer="42")) == 1.0
    with pytest.raises(ScoreError, match="no field 'gold'"):
        metrics.f1("answer", "gold")(EXAMPLE, dspy.Prediction(answer="x"))
    with pytest.raises(ScoreError, match="no right answer"):
        metrics.f1("answer")(dspy.Example(answer=[]).with_inputs(), dspy.Prediction(answer="x"))


def test_metrics_serve_majority_vote_and_evaluate_and_are_no_objectives() -> None:
    exact = metrics.exact_match("answer")
    MajorityVote("answer").check(metric=exact)
    assert MajorityVote("answer").digest(exact) != MajorityVote("answer").digest(metrics.exact_match("answer", "gold"))

    class Fixed(dspy.Module):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer="paris")

    evaluate = dspy.Evaluate(devset=[EXAMPLE, EXAMPLE.copy(answer="Rome")], metric=exact, num_threads=1)
    assert evaluate(Fixed()).score == 50.0
    for metric in (exact, metrics.f1("answer", "gold")):
        with pytest.raises(LabelRequired, match="which is not an input"):
            Objective("exact", metric)
        with pytest.raises(LabelRequired, match="which is not an input"):
            BestOfN([metric])  # type: ignore[list-item]


# -- verdicts of judges


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("7", 0.7),
        (" **7** ", 0.7),
        ("7.5", 0.75),
        ("7,5", 0.75),
        ("7/10", 0.7),
        ("7 out of 10", 0.7),
        ("Score: 7", 0.7),
        ("7.", 0.7),
        ("I give it 7. It is a 7.", 0.7),
        ("10", 1.0),
        ("0", 0.0),
    ],
)
def test_numbers_that_judges_write(text: str, score: float) -> None:
    assert read_verdict(text, (0.0, 10.0)) == pytest.approx(score)


@pytest.mark.parametrize("text", ["", "good", "7 or 8", "11", "-1", "7/5", "3/10 and 4/10", "v2", "nan", "1e9999"])
def test_a_verdict_that_cannot_be_read_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(ScoreError, match="erdict") as caught:
        read_verdict(text, (0.0, 10.0))
    assert repr(text.strip()) in str(caught.value)


def test_scales_need_not_start_at_zero_and_may_be_words() -> None:
    assert [read_verdict(t, (1.0, 5.0)) for t in ("1", "3", "5/5")] == [0.0, 0.5, 1.0]
    assert read_verdict("-1", (-1.0, 1.0)) == 0.0
    words = (("no", 0.0), ("partly", 0.5), ("yes, fully", 1.0))
    for text, score in [("No.", 0), ("**Partly**", 0.5), ("I say: yes, fully!", 1), ("Yes, fully", 1), ("NO", 0)]:
        assert read_verdict(text, words) == score
    for text in ("nope", "yes", "no, or partly", ""):
        with pytest.raises(ScoreError, match="not one of"):
            read_verdict(text, words)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"rubric": " "},
        {"lm": "openai/gpt-4o"},
        {"scale": (3, 3)},
        {"scale": (1, math.inf)},
        {"scale": "1-5"},
        {"scale": {"yes": 1.0}},
        {"scale": {"yes": 1.0, "no": -1.0}},
        {"scale": {"yes": 1.0, "YES": 0.0}},
        {"fields": []},
        {"inputs": ["not a name"]},
    ],
)
def test_judges_that_cannot_work_raise_when_they_are_made(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="judge"):
        objectives.judge(**{"rubric": "Is it good?", **kwargs})


@pytest.mark.parametrize(
    "make",
    [
        lambda: objectives.similarity("answer", model="openai/e"),
        lambda: objectives.similarity("answer", "question", text="x", model="openai/e"),
        lambda: objectives.similarity("answer", text="", model="openai/e"),
        lambda: objectives.similarity("answer", "question", model=""),
        lambda: objectives.served_reward_model("m", "localhost:8000"),
        lambda: objectives.served_reward_model("", "http://x"),
        lambda: objectives.served_reward_model("m", "http://x", endpoint="embed"),  # type: ignore[arg-type]
        lambda: objectives.served_reward_model("m", "http://x", endpoint="score", form="chat"),
        lambda: objectives.served_reward_model("m", "http://x", form="prose"),  # type: ignore[arg-type]
        lambda: objectives.served_reward_model("m", "http://x", label=-1),
        lambda: objectives.served_reward_model("m", "http://x", num_retries=-1),
        lambda: objectives.served_reward_model("m", "http://x", timeout=0),
        lambda: objectives.served_reward_model("m", "http://x", bounds=(0, 5), calibrate="rank"),
    ],
)
def test_models_that_cannot_be_asked_raise_when_they_are_made(make: Any) -> None:
    with pytest.raises(ConfigurationError):
        make()


# -- once for a call, and in batches


def test_what_a_call_shares_is_worked_out_once_errors_included() -> None:
    calls = []
    together = threading.Barrier(4)

    def compute() -> int:
        calls.append(1)
        return len(calls)

    def fails() -> int:
        calls.append(1)
        raise ScoreError("no")

    def ask(context: Any, found: list[int]) -> None:
        together.wait()
        found.append(context.run(once, "a", compute))

    import contextvars

    found: list[int] = []
    with sharing():
        threads = [threading.Thread(target=ask, args=(contextvars.copy_context(), found)) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert found == [1, 1, 1, 1] and once("b", compute) == 2
        for _ in range(2):
            with pytest.raises(ScoreError):
                once("c", fails)
        assert len(calls) == 3
    assert once("a", compute) == 4 and once("a", compute) == 5  # outside of a call nothing is shared


def test_items_that_come_while_a_batch_runs_are_taken_together() -> None:
    batches: list[list[int]] = []
    running, go = threading.Event(), threading.Event()

    def run(items: Any) -> list[int]:
        batches.append(list(items))
        running.set()
        go.wait(5)
        return [i * 10 for i in items]

    batcher: MicroBatcher[int, int] = MicroBatcher(run, 4)
    results: dict[int, int] = {}

    def ask(i: int) -> None:
        results[i] = batcher(i)

    threads = [threading.Thread(target=ask, args=(0,))]
    threads[0].start()
    assert running.wait(5) and batches == [[0]]  # the first one waits for nobody
    threads += [threading.Thread(target=ask, args=(i,)) for i in range(1, 8)]
    for t in threads[1:]:
        t.start()
    while len(batcher._waiting) < 7:
        pass
    go.set()
    for t in threads:
        t.join(5)
    assert results == {i: i * 10 for i in range(8)}
    assert [len(b) for b in batches] == [1, 4, 3]


def test_one_item_that_cannot_be_worked_on_takes_no_other_with_it() -> None:
    running, go = threading.Event(), threading.Event()

    def run(items: Any) -> list[int]:
        running.set()
        go.wait(5)
        if 3 in items:
            raise ValueError("three")
        return list(items)

    batcher: MicroBatcher[int, int] = MicroBatcher(run, 8)
    results: dict[int, Any] = {}

    def ask(i: int) -> None:
        try:
            results[i] = batcher(i)
        except ValueError as error:
            results[i] = str(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    assert running.wait(5)
    go.set()
    for t in threads:
        t.join(5)
    assert results == {0: 0, 1: 1, 2: 2, 3: "three", 4: 4, 5: 5}


# -- conformance

CASES = [EXAMPLE, EXAMPLE.copy(question="Sum?", answer="4")]
ANSWERS = [dspy.Prediction(answer='"It is Paris"', tags=["a"]), dspy.Prediction(answer='{"sum": 4}', tags=[])]


@pytest.mark.parametrize(
    "objective",
    [
        objectives.regex_match("answer", "Paris"),
        objectives.json_valid("answer", {"type": "object"}),
        objectives.length("answer", most=2),
        objectives.length("answer", target=9, unit="tokens"),
        Objective("raw", lambda e, p: 3.0 * len(p.answer), calibrate="rank"),
    ],
    ids=lambda o: str(o.name),
)
def test_objectives_that_conform(objective: Objective) -> None:
    check_objective(objective, CASES, ANSWERS)


class Unsteady:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, example: Any, prediction: Any) -> float:
        self.calls += 1
        return (self.calls % 10) / 10


class NotThreadSafe:
    def __init__(self) -> None:
        self.busy = threading.Lock()

    def __call__(self, example: Any, prediction: Any) -> float:
        if not self.busy.acquire(blocking=False):
            raise RuntimeError("already borrowed")
        try:
            threading.Event().wait(0.005)
            return 0.5
        finally:
            self.busy.release()


def mutates(example: Any, prediction: Any) -> float:
    prediction.tags.append("seen")
    return 0.5


def peeks(example: Any, prediction: Any) -> float:
    return float(getattr(example, "ans" + "wer") == prediction.answer)


def hides(example: Any, prediction: Any) -> float:
    try:
        return float(getattr(example, "ans" + "wer") == prediction.answer)
    except Exception:  # noqa: BLE001 - just this is what must not pass
        return 0.0


@pytest.mark.parametrize(
    ("score", "kwargs", "message"),
    [
        (lambda e, p: 1.5, {}, "cannot score"),
        (lambda e, p: math.nan, {"calibrate": "rank"}, "cannot score"),
        (Unsteady(), {}, "scores equal"),
        (NotThreadSafe(), {}, "among threads"),
        (mutates, {}, "changes what it scores"),
        (peeks, {}, "reads a label"),
        (hides, {}, "reads the label"),
        (lambda e, p: 1 / 0, {}, "ZeroDivisionError"),
    ],
)
def test_objectives_that_do_not_conform(score: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_objective(Objective("broken", score, **kwargs), CASES, ANSWERS)
    with pytest.raises(ValueError, match="as many predictions"):
        check_objective(Objective("broken", score, **kwargs), CASES, [])


def test_an_objective_may_be_said_not_to_be_deterministic() -> None:
    check_objective(Objective("unsteady", Unsteady()), CASES, ANSWERS, deterministic=False)
