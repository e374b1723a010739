"""Caps and exchange rates from the request to the saved program, against a real server on loopback."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import BatchAPI, CompiledProgram, Cost, Preference
from iapo_dspy.errors import AllCompletionsFailed, CapsTooTight, ConfigurationError
from iapo_dspy.program.evidence.columns import unpacked
from iapo_dspy.sampling.concurrency.loop import run_on_loop
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.types import Arm
from tests.support.compiling import optimizers
from tests.support.loopback import Faults, Loopback, chat
from tests.support.observing import observed
from tests.support.worlds import TwoSteps, outputs, questions, student, total

WORDY, BRIEF = "Work carefully.", "Answer quickly."
ANSWER = 11  # words of an answer without working
PRICES = (1.0, 10.0)  # dollars per million


def world(body: dict[str, Any], i: int) -> str:
    """WORDY is right 19 times in 20 and takes 51 words, now and then 131; BRIEF is right 13 times in 20, in 11."""
    rng = body.setdefault("_rng", random.Random(body.get("seed", i)))
    if "idea" in outputs(body):
        return "so " * rng.choice([2, 2, 2, 40]) + "\n\n" + chat(idea="add them")
    correct, wordy = total(body), WORDY in body["messages"][0]["content"]
    working = "so " * rng.choice([40] * 14 + [120]) + "\n\n" if wordy else ""
    right = rng.random() < (0.95 if wordy else 0.65)
    return working + chat(answer=str(correct if right else correct + rng.randint(1, 9)))


# Without stopping, a call is one request of all N.
optimizer = optimizers(max_n=8, budget=300, candidates=[WORDY, BRIEF], stopping=None)


def tokens_of(program: CompiledProgram, question: str, **kwargs: Any) -> float:
    """Return the output tokens of a call, also of one without a result."""
    try:
        return float(program(question=question, **kwargs).iapo.completion_tokens)
    except AllCompletionsFailed as error:
        assert "cut off at max_tokens" in str(error)
        return error.completion_tokens


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that was compiled without caps, with an LM whose price is unknown."""
    path = tmp_path_factory.mktemp("saved") / "program.json"
    with Loopback(world) as server, dspy.context(lm=server.lm(seed=5)):
        optimizer(Preference("quality")).compile(student(), trainset=questions(30)).save(str(path))
    return path


def load(path: Path) -> CompiledProgram:
    program = CompiledProgram(student())
    program.load(str(path))
    return program


def changed(path: Path, to: Path, **policy: Any) -> Path:
    """Write a saved program with other contents of its policy."""
    state = json.loads(path.read_text())
    state["policy"].update(policy)
    to.write_text(json.dumps(state))
    return to


# -- tokens


@pytest.mark.parametrize(("algorithm", "budget"), [("auto", 500), pytest.param("psst", 916, marks=pytest.mark.slow)])
def test_the_best_arm_that_keeps_the_cap_and_every_request_says_so(algorithm: str, budget: int) -> None:
    preferences = [Preference("quality"), Preference("short", max_tokens=95)]  # eight short answers, or no long one
    with Loopback(world, obeys=True) as server, dspy.context(lm=server.lm(seed=8)):
        program = optimizer(*preferences, algorithm=algorithm, budget=budget).compile(student(), trainset=questions(40))
        assert all("max_tokens" not in body for body in server.bodies)  # what is measured is not limited
        quality, short = program.solve("quality"), program.solve("short")
        assert quality.prompt == 0
        assert short.prompt == 1 and 3 <= short.n <= 8
        results = {r.preference.name: r for r in program.detailed_results.policy}
        assert results["short"].keeps_caps and results["short"].tokens <= 95
        server.bodies.clear()
        for question in ("3 + 4", "10 + 11"):
            assert tokens_of(program, question, preference="short") <= 95
        assert [(b.get("n", 1), b["max_tokens"]) for b in server.bodies] == [(short.n, 95 // short.n)] * 2
        server.bodies.clear()
        program(question="3 + 4", preference="quality")
        assert "max_tokens" not in server.bodies[0]


@pytest.mark.slow
def test_a_cap_is_kept_where_answers_are_sometimes_long() -> None:
    """One answer in fifteen has 131 words; under the cap it is cut off, fails, and the others decide."""
    cap = 330
    with Loopback(world, obeys=True) as server, dspy.context(lm=server.lm(seed=4)):
        program = optimizer(Preference("capped", max_tokens=cap), candidates=[WORDY]).compile(
            student(), trainset=questions(40)
        )
        arm = program.solve()
        assert 2 <= arm.n <= 6  # 330 tokens are six completions of average length
        server.bodies.clear()
        reports = [program(question=e.question).iapo for e in questions(40, start=100)]
        assert {(b["n"], b["max_tokens"]) for b in server.bodies} == {(arm.n, cap // arm.n)}
    assert max(r.completion_tokens for r in reports) <= cap
    failures = [text for r in reports for text in r.failures.values()]
    assert failures and all("cut off at max_tokens" in text for text in failures)


@pytest.mark.parametrize(("own", "sent"), [(30, 30), (10**6, 80)])
def test_the_lms_own_limit_stays_where_it_is_lower(own: int, sent: int) -> None:
    with Loopback(world, obeys=True) as server, dspy.context(lm=server.lm(max_tokens=own)):
        program = optimizer(Preference("one", max_tokens=80), candidates=[BRIEF], max_n=1, budget=20).compile(
            student(), trainset=questions(10)
        )
        program(question="3 + 4")
        assert server.bodies[-1]["max_tokens"] == sent and server.bodies[0]["max_tokens"] == own


def test_a_reasoning_models_limit_has_its_own_name() -> None:
    with Loopback(world, obeys=True) as server, dspy.context(lm=server.lm("openai/gpt-5-mini")):
        program = optimizer(Preference("one", max_tokens=80), candidates=[BRIEF], max_n=1, budget=20).compile(
            student(), trainset=questions(10)
        )
        program(question="3 + 4")
        assert server.bodies[-1]["max_completion_tokens"] == 80 and "max_tokens" not in server.bodies[-1]


def test_all_steps_of_a_rollout_share_its_part_of_the_cap() -> None:
    cap = 320
    with Loopback(world, obeys=True) as server, dspy.context(lm=server.lm()):
        program = optimizer(Preference("capped", max_tokens=cap), candidates=[{"ask": BRIEF}], max_n=4).compile(
            TwoSteps(), trainset=questions(40)
        )
        arm = program.solve()
        assert arm.n >= 2
        for example in questions(25, start=100):
            server.bodies.clear()
            before = server.completion_tokens
            tokens = tokens_of(program, example.question)
            assert tokens == server.completion_tokens - before <= cap
            first, second = server.bodies[0], server.bodies[1:]
            assert (first["n"], first["max_tokens"]) == (arm.n, cap // arm.n)
            assert all(b["max_tokens"] < cap // arm.n for b in second)  # what the first step has left


class AtATime(dspy.Module):
    """A student that asks twice at a time: by tasks of one event loop, or by threads that start one after another."""

    def __init__(self, threads: bool) -> None:
        super().__init__()
        self.one = dspy.Predict("question -> answer")
        self.two = dspy.Predict("question -> answer")
        self.threads = threads

    async def _both(self, question: str) -> list[Any]:
        return list(await asyncio.gather(self.one.acall(question=question), self.two.acall(question=question)))

    def forward(self, question: str) -> dspy.Prediction:
        if self.threads:
            pairs = [(self.one, {"question": question}), (self.two, {"question": question})]
            found = dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)
        else:
            found = asyncio.run(self._both(question))
        return dspy.Prediction(answer=" ".join(p.answer for p in found if p is not None))


@pytest.mark.parametrize("threads", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("own", [None, 30])
def test_calls_that_a_rollout_makes_at_a_time_share_its_tokens(threads: bool, own: int | None) -> None:
    """Two calls of 11 words each fit into 40, whether they are limited to halves or one waits for the other."""
    with Loopback(world, obeys=True, latency=0.02) as server, dspy.context(lm=server.lm(max_tokens=own)):
        sampler = Sampler()
        rollouts = run_on_loop(
            sampler.sample(AtATime(threads), {"question": "3 + 4"}, 3, key="x", record=True, most_tokens=40)
        )
        assert [r.failure for r in rollouts] == [None] * 3
        assert [r.usage.completion_tokens for r in rollouts] == [2 * ANSWER] * 3
        limits = [b["max_tokens"] for b in server.bodies]
        assert max(limits) <= (own or 40)
        # Too little for both: a rollout never takes more.
        before = server.completion_tokens
        rollouts = run_on_loop(
            sampler.sample(AtATime(threads), {"question": "3 + 4"}, 3, key="y", record=True, most_tokens=8)
        )
        assert all(r.usage.completion_tokens <= 8 for r in rollouts) and server.completion_tokens - before <= 24
        assert threads or all(r.prediction is None for r in rollouts)  # dspy.Parallel leaves out what has failed


def test_a_rollout_without_tokens_left_fails_and_says_why() -> None:
    class Three(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            return [self.ask(question=question, config={"top_p": 0.9 + i / 100}) for i in range(3)][-1]

    with Loopback(world, obeys=True) as server, dspy.context(lm=server.lm()):
        sampler = Sampler()
        rollouts = run_on_loop(sampler.sample(Three(), {"question": "3 + 4"}, 2, key="x", most_tokens=2 * ANSWER))
        assert [r.usage.completion_tokens for r in rollouts] == [2 * ANSWER] * 2
        assert all("22 output tokens that a completion may take are used up" in str(r.failure) for r in rollouts)


# -- seconds


@pytest.mark.slow
def test_the_snappy_arm_answers_in_time() -> None:
    """WORDY takes a second, BRIEF a fiftieth of one."""

    def latency(body: dict[str, Any]) -> float:
        return 1.0 if WORDY in body["messages"][0]["content"] else 0.02

    preferences = [
        Preference("quality"),
        Preference("snappy", max_latency_s=0.8),
        Preference.worth("hurried", seconds=0.02),  # a second is half a point
    ]
    with Loopback(world, latency=latency) as server, dspy.context(lm=server.lm()):
        program = optimizer(*preferences, max_n=4, budget=64, num_threads=8).compile(student(), trainset=questions(20))
        assert program.solve("quality").prompt == 0
        assert program.solve("snappy").prompt == program.solve("hurried").prompt == 1
        assert program.solve(Preference(max_latency_s=60)).prompt == 0
        assert program(question="3 + 4", preference="snappy").iapo.seconds < 0.8
        with pytest.raises(CapsTooTight, match=r"N=1 \('Answer quickly\.'\).* seconds, by estimate"):
            program.solve(Preference(max_latency_s=0.005))


# -- what no arm keeps


def test_caps_too_tight_names_the_cheapest_arm_and_what_it_needs(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = load(saved)
    with pytest.raises(CapsTooTight) as caught:
        program.solve(Preference("tiny", max_tokens=5))
    error, text = caught.value, str(caught.value)
    assert error.arm == Arm(1, 1) and BRIEF in text and "prompt 1 with N=1" in text
    assert "max_tokens=5" in text and "Raise the cap" in text
    assert error.needs == {"max_tokens": pytest.approx(ANSWER, rel=0.2)}  # WORDY varies, and BRIEF might
    # What the message asks for is enough.
    shown = int(text.split("takes up to ")[1].split(" ")[0])
    assert program.solve(Preference("tiny", max_tokens=shown)) == Arm(1, 1)
    with pytest.raises(CapsTooTight):
        program.solve(Preference("tiny", max_tokens=shown - 1))


def test_a_compiled_preference_that_no_arm_serves_is_warned_of_and_raises(caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm()):
        program = optimizer(Preference("quality"), Preference("tiny", max_tokens=5)).compile(
            student(), trainset=questions(20)
        )
        assert "No arm keeps the caps of tiny (cost weight 0, at most 5 output tokens)" in caplog.text
        assert "NO ARM KEEPS THE CAPS" in str(program.detailed_results)
        requests = server.requests
        with pytest.raises(CapsTooTight):
            program(question="3 + 4", preference="tiny")
        assert server.requests == requests
        assert program(question="3 + 4").answer  # the others are served


# -- unseen preferences on a loaded program


def test_capped_preferences_that_were_never_compiled(saved: Path) -> None:
    program = load(saved)
    arms = {cap: program.solve(Preference(max_tokens=cap)) for cap in (15, 30, 60, 100, 10_000)}
    assert arms[15] == Arm(1, 1)
    assert arms[10_000] == program.solve("quality") and arms[10_000].prompt == 0
    for cap, arm in arms.items():
        assert arm.n * (ANSWER if arm.prompt else 50) <= cap
    with Loopback(world, obeys=True) as server, dspy.context(lm=server.lm()):
        report = program(question="3 + 4", preference=Preference("mine", max_tokens=100)).iapo
        assert (report.prompt, report.n) == (arms[100].prompt, arms[100].n) and report.completion_tokens <= 100
        assert server.bodies[0]["max_tokens"] == 100 // arms[100].n


def test_unknown_prices_say_what_to_do(saved: Path) -> None:
    program = load(saved)
    for preference in (Preference("cheap", max_usd=0.001), Preference.worth("careful", usd=0.001)):
        with pytest.raises(ConfigurationError, match=r"program\.reprice\(usd_per_million=.*Cost\(usd_per_million"):
            program.solve(preference)
    with Loopback(world) as server, dspy.context(lm=server.lm()):
        with pytest.raises(ConfigurationError, match=r"'openai/fake'.*usd_per_million"):
            optimizer(Preference("cheap", max_usd=0.001)).compile(student(), trainset=questions(5))
        assert server.requests == 0
    priced = program.reprice(PRICES)
    assert priced.solve(Preference("rich", max_usd=1.0)).prompt == 0
    assert priced.solve(Preference("poor", max_usd=0.0003)).prompt == 1  # 130 prompt tokens, and 10 dollars a million


def test_the_limit_of_a_dollar_cap_follows_the_lm_that_answers(saved: Path) -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm()):
        program = load(saved).reprice({"fake": PRICES, "dear": (2 * PRICES[0], 2 * PRICES[1])})
        poor = Preference("poor", max_usd=0.0015)
        for lm in (server.lm(), server.lm("openai/dear"), server.lm()):
            program.set_lm(lm)
            program(question="3 + 4", preference=poor)
        limits = [body["max_tokens"] for body in server.bodies]
        assert limits[0] == limits[2] > 2 * limits[1]


@pytest.mark.slow
def test_dollars_of_every_completion_are_limited() -> None:
    with Loopback(world, obeys=True) as server, dspy.context(lm=server.lm()):
        cost = Cost(completion_tokens=1, usd_per_million=PRICES)
        cap = 0.0012
        program = optimizer(Preference("poor", max_usd=cap), candidates=[BRIEF], cost_unit=cost).compile(
            student(), trainset=questions(20)
        )
        report = program(question="3 + 4").iapo
        assert report.usd is not None and report.usd <= cap and report.n == 8
        limit = server.bodies[-1]["max_tokens"]
        assert report.prompt_tokens * 1e-6 + 8 * limit * 1e-5 <= cap < report.prompt_tokens * 1.1e-6 + 9 * limit * 1e-5


def test_a_refused_request_does_not_make_prices_unknown() -> None:
    faults = Faults(shares={500: 0.15})
    with Loopback(world, faults=faults) as server, dspy.context(lm=server.lm(num_retries=0)):
        cost = Cost(completion_tokens=1, usd_per_million=PRICES)
        program = optimizer(
            Preference("poor", max_usd=0.0007), Preference("fast", max_latency_s=30), cost_unit=cost
        ).compile(student(), trainset=questions(20))
        assert server.statuses[500] > 3
        assert program.solve("poor").n >= 1 and program.solve("fast").n >= 1  # neither raises


# -- what older versions, and other ways of drawing, have not measured


def test_programs_of_version_3_load_and_say_what_they_do_not_know(saved: Path, tmp_path: Path) -> None:
    state = json.loads(saved.read_text())["policy"]
    evidence = [{k: v for k, v in o.items() if k not in ("used", "once")} for o in unpacked(state["evidence"])]
    old = load(changed(saved, tmp_path / "old.json", version=3, evidence=evidence))
    new = load(saved)
    for preference in (Preference(cost=0.3), Preference(cost=2.0), "quality"):
        assert old.solve(preference) == new.solve(preference)
    for preference in (
        Preference("x", max_tokens=100), Preference("x", max_latency_s=1), Preference.worth("x", tokens=100)
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=r"saved by an older version.*Compile it again"):
            old.solve(preference)
    with pytest.raises(ConfigurationError, match="saved by an older version"):
        old.reprice(PRICES)


@pytest.mark.slow
def test_batch_jobs_measure_no_seconds(tmp_path: Path) -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm()):
        batch = BatchAPI(poll_seconds=0.05, settle_seconds=0.0)
        with pytest.raises(ConfigurationError, match=r"batch=\.\.\. measures no latency"):
            optimizer(Preference("fast", max_latency_s=1), batch=batch, log_dir=tmp_path).compile(
                student(), trainset=questions(5)
            )
        program = optimizer(Preference("any"), batch=batch, log_dir=tmp_path, budget=40).compile(
            student(), trainset=questions(10)
        )
    with pytest.raises(ConfigurationError, match=r"counts seconds, and the run measured none"):
        program.solve(Preference("fast", max_latency_s=1))
    assert program.solve(Preference("short", max_tokens=15)) == Arm(1, 1)


def test_thin_evidence_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with Loopback(world) as server, dspy.context(lm=server.lm()):
        program = optimizer(Preference("quality"), budget=8).compile(student(), trainset=questions(20))
        program.solve(Preference("unseen", cost=0.3, max_tokens=200))
    assert "rests on 3 observations only" in caplog.text


def test_a_wide_error_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """The error of BRIEF's utility is .13 after a few examples, and .05 after 36; rewards range from 0 to 1."""
    found = []
    for budget in (22, 160):
        caplog.clear()
        with Loopback(world) as server, dspy.context(lm=server.lm(seed=6)):
            program = optimizer(Preference("quality"), candidates=[BRIEF], max_n=2, budget=budget).compile(
                student(), trainset=questions(120)
            )
        program.solve("quality")
        assert "standard error" not in caplog.text  # what was compiled for is as good as its budget
        program.solve(Preference("unseen", cost=0.3))
        found.append("has a standard error of 0.1" in caplog.text)
    assert found == [True, False]


def test_uses_are_the_servers(saved: Path) -> None:
    """What is stored of every pull adds up to what the server counted."""
    with Loopback(world) as server, dspy.context(lm=server.lm()), observed() as evidence:
        program = optimizer(Preference("quality"), budget=60).compile(student(), trainset=questions(10))
    used = np.concatenate([o.used for o in evidence if o.used is not None])
    student_used = 3 * 0.01 / program.policy.ready.cost_scale  # three of its completions are the unit of costs
    assert used[:, 0].sum() + student_used == pytest.approx(server.completion_tokens)
    asked = len(used) + 3
    assert server.requests == asked and used[:, 1].sum() < server.prompt_tokens
    assert np.isnan(used[:, 2]).all() and (used[:, 3] > 0).all()
