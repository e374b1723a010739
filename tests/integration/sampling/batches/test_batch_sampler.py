"""Rounds as batch jobs, through LiteLLM to the loopback server's files and batches."""

from __future__ import annotations

import _thread
import itertools
import json
import logging
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import IAPO, BatchAPI, Budget, Cost, Decoding, ReplicatedLM
from iapo_dspy.errors import BatchJobFailed, ConfigurationError, LMRefused, TooManyErrors
from iapo_dspy.ledger import cancel_batches
from iapo_dspy.sampling.batches import batch_sampler as batches
from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import BatchRecord, CompletionRecord
from iapo_dspy.sampling.spending.usage import Usage
from tests.support.batching import BatchFaults
from tests.support.compiling import optimizers
from tests.support.loopback import Faults, Loopback
from tests.support.states import state_of
from tests.support.worlds import INSTRUCTIONS, adder, questions

FAST = BatchAPI(poll_seconds=0.01, settle_seconds=0.05)
PRICES = {"input_cost_per_token": 1e-3, "output_cost_per_token": 2e-3}
KEY = "sk-loopback-secret"


def optimizer(log_dir: Path | None, batch: Any = FAST, budget: Any = 150, **more: Any) -> IAPO:
    return optimizers(budget=budget, log_dir=log_dir, batch=batch)(**more)


def compiled(
    server: Loopback,
    log_dir: Path | None,
    batch: Any = FAST,
    *,
    model: str = "openai/fake",
    lm: Any = None,
    **more: Any,
) -> Any:
    used = server.lm(model, **{"seed": 1, "max_tokens": 60, **(lm or {})})
    with dspy.context(lm=used):
        return optimizer(log_dir, batch, **more).compile(dspy.Predict("question -> answer"), trainset=questions(12))


def policy(program: Any) -> dict[str, Any]:
    """What was found, and what it took, without the time and the name of the provider."""
    state = json.loads(json.dumps(state_of(program)))
    del state["spent"]["seconds"], state["results"]["models"]
    return dict(state)


def completions(log_dir: Path) -> list[CompletionRecord]:
    return [r for r in read_ledger(log_dir)[1] if isinstance(r, CompletionRecord)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The policy that ordinary requests find."""
    with Loopback(adder) as server:
        return policy(compiled(server, tmp_path_factory.mktemp("plain"), None))


@pytest.mark.parametrize(
    "model",
    [
        "openai/fake",
        pytest.param("hosted_vllm/fake", marks=pytest.mark.slow),
        pytest.param("litellm_proxy/fake", marks=pytest.mark.slow),
        pytest.param("azure/fake", marks=pytest.mark.slow),
    ],
)
def test_a_round_is_one_job_and_finds_what_ordinary_requests_find(
    model: str, tmp_path: Path, plain: dict[str, Any]
) -> None:
    with Loopback(adder, api_key=KEY) as server:
        more = {"api_version": "2024-10-21"} if model.startswith("azure") else {}
        program = compiled(server, tmp_path, model=model, lm=more)
        rounds = program.detailed_results.rounds
        assert len(server.jobs.jobs) == len(rounds) > 2
        assert server.requests == sum(len(ids) for ids in server.jobs.custom_ids)
        assert all(len(set(ids)) == len(ids) for ids in server.jobs.custom_ids)
        lines = [line for job in server.jobs.jobs for line in server.jobs.lines(job)]
        # One request per pull, with n as large as the pull, and nothing fetched twice.
        assert len(lines) == len({r.pull for r in completions(tmp_path)})
        assert sum(line["body"].get("n", 1) for line in lines) == len(completions(tmp_path)) == server.completions
        assert {line["body"]["model"] for line in lines} == {"fake"}
        fetched = [path for method, path in server.jobs.calls if path.endswith("/content")]
        assert len(fetched) == len(set(fetched)) == len(rounds)
        url = "/chat/completions" if model.startswith("azure") else "/v1/chat/completions"
        assert {(line["url"], line["method"]) for line in lines} == {(url, "POST")}
        uploaded = b"".join(server.jobs.files.values())
        assert all(h.get("x-litellm-model") == "fake" for h in server.jobs.headers) or "proxy" not in model
    if model != "openai/fake":  # seeds follow from the model's name, among others
        with Loopback(adder, api_key=KEY) as server:
            plain = policy(compiled(server, None, None, model=model, lm=more))
    assert policy(program) == plain
    assert KEY.encode() not in uploaded and KEY not in (tmp_path / "ledger.jsonl").read_text()
    assert read_ledger(tmp_path)[1][-1].finished  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_finished_run_is_read_from_its_ledger(tmp_path: Path) -> None:
    with Loopback(adder) as server:
        first = compiled(server, tmp_path)
        calls = len(server.jobs.calls)
        assert policy(compiled(server, tmp_path)) == policy(first)
        assert len(server.jobs.calls) == calls


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(ignore_n=True), id="ignores n", marks=pytest.mark.slow),
        pytest.param(Faults(refuse_n=True), id="refuses n"),
        pytest.param(Faults(fewer=True), id="fewer", marks=pytest.mark.slow),
        pytest.param(Faults(miscount=True), id="miscounts", marks=pytest.mark.slow),
        pytest.param(Faults(no_usage=True), id="no usage", marks=pytest.mark.slow),
    ],
)
def test_every_completion_is_drawn_however_a_provider_treats_n(faults: Faults, tmp_path: Path) -> None:
    with Loopback(adder, faults=faults) as server:
        program = compiled(server, tmp_path)
        jobs, rounds = len(server.jobs.jobs), len(program.detailed_results.rounds)
        spent = program.policy.dump_state()["spent"]
        assert server.completions == spent["completions"] == len(completions(tmp_path))
    assert jobs <= 2 * rounds, "what is missing comes with the next job of the round, no more than one"
    assert program.detailed_results.failures.total == 0


@pytest.mark.slow
def test_requests_that_failed_are_asked_again_in_the_next_job(tmp_path: Path, plain: dict[str, Any]) -> None:
    draws = itertools.count()

    def line(body: dict[str, Any], job: int) -> Any:
        # Each kind of failure hits the first job of a round only: jobs of retries are few.
        return {0: 429, 1: 500, 2: "garbled", 3: "missing"}.get(next(draws) % 10) if job % 2 == 0 else None

    with Loopback(adder, batches=BatchFaults(line=line)) as server:
        program = compiled(server, tmp_path)
        paid = Counter(body["seed"] for body in server.bodies)
    assert program.detailed_results.failures.total == 0
    assert {k: v for k, v in policy(program).items() if k != "spent"} == {
        k: v for k, v in plain.items() if k != "spent"
    }
    assert max(paid.values()) == 2, "what got lost was paid for, and the request keeps its seed"


@pytest.mark.slow
def test_what_never_succeeds_fails_after_the_retries_and_costs_nothing(tmp_path: Path) -> None:
    with Loopback(adder, batches=BatchFaults(line=lambda body, job: 500 if body["seed"] % 7 == 0 else None)) as server:
        program = compiled(server, tmp_path, BatchAPI(poll_seconds=0.01, retries=1))
        lines = Counter(line["body"]["seed"] for job in server.jobs.jobs for line in server.jobs.lines(job))
    assert {n for seed, n in lines.items() if seed % 7 == 0} == {2}
    assert {n for seed, n in lines.items() if seed % 7} == {1}
    report = program.detailed_results.failures
    assert 0 < report.total == report.errors < report.completions
    assert any("500" in cause for cause, _ in report.causes)
    failed = [r for r in completions(tmp_path) if r.failure]
    assert all(r.error and r.usage == Usage() for r in failed)


@pytest.mark.slow
def test_requests_that_are_wrong_are_not_asked_again(tmp_path: Path) -> None:
    with Loopback(adder, batches=BatchFaults(line=lambda body, job: 400 if body["seed"] % 7 == 0 else None)) as server:
        program = compiled(server, tmp_path)
        assert len(server.jobs.jobs) == len(program.detailed_results.rounds)
    assert program.detailed_results.failures.total > 0


@pytest.mark.slow
def test_an_unreadable_completion_fails_alone(tmp_path: Path) -> None:
    with Loopback(adder, batches=BatchFaults(line=lambda body, job: "garbage")) as server:
        program = compiled(server, tmp_path)
        paid = len(server.bodies)
        measured = sum(not any(text in str(body) for text in INSTRUCTIONS) for body in server.bodies)
    report = program.detailed_results.failures
    assert (report.total, report.errors) == (paid - measured, 0) and 0 < measured <= 16  # the student's: not scored


@pytest.mark.slow
def test_a_job_that_expires_is_followed_by_one_for_the_rest(tmp_path: Path, plain: dict[str, Any]) -> None:
    with Loopback(adder, batches=BatchFaults(ends=["expired"])) as server:
        program = compiled(server, tmp_path)
        first, second, *_ = server.jobs.custom_ids
        assert set(second) == set(first[len(first) // 2 :])
        assert max(Counter(b["seed"] for b in server.bodies).values()) == 1
    assert policy(program)["evidence"] == plain["evidence"]


@pytest.mark.slow
def test_a_cut_off_file_is_fetched_again(tmp_path: Path, plain: dict[str, Any]) -> None:
    with Loopback(adder, batches=BatchFaults(cut=1, looks=[500, 429, 503])) as server:
        assert policy(compiled(server, tmp_path)) == plain


@pytest.mark.slow
def test_a_file_that_stays_cut_off_costs_its_bound(tmp_path: Path) -> None:
    with Loopback(adder, batches=BatchFaults(cut=2)) as server:
        program = compiled(server, tmp_path, budget=Budget(150, usd=1000.0), lm=PRICES)
        billed = server.prompt_tokens * 1e-3 + server.completion_tokens * 2e-3
    assert program.detailed_results.failures.total == 0
    assert billed < program.policy.dump_state()["spent"]["usd"] < billed + 5


@pytest.mark.parametrize("status", ["failed", pytest.param("cancelled", marks=pytest.mark.slow)])
def test_a_job_that_is_stopped_stops_the_run_and_the_next_one_goes_on(
    status: str, tmp_path: Path, plain: dict[str, Any]
) -> None:
    with Loopback(adder, batches=BatchFaults(ends=["completed", status])) as server:
        with pytest.raises(BatchJobFailed, match=r"batch_1 was (refused: invalid_model: injected|cancelled)"):
            compiled(server, tmp_path)
        paid = len(server.bodies)
        assert len([r for r in completions(tmp_path) if not r.failure]) == server.completions
        program = compiled(server, tmp_path)
        assert len(server.jobs.jobs) == 1 + len(program.detailed_results.rounds)
        assert max(Counter(b["seed"] for b in server.bodies).values()) == 1
        assert len(server.bodies) > paid
    assert policy(program)["evidence"] == plain["evidence"]


@pytest.mark.slow
def test_a_lost_answer_to_a_submission_makes_no_second_job(tmp_path: Path, plain: dict[str, Any]) -> None:
    with Loopback(adder, batches=BatchFaults(lost=2, hidden=1, page=1, refuse=[500, 429])) as server:
        program = compiled(server, tmp_path)
        assert policy(program) == plain
        assert max(Counter(b["seed"] for b in server.bodies).values()) == 1
        assert len(server.jobs.jobs) == len(program.detailed_results.rounds)


@pytest.mark.slow
def test_headers_go_with_every_call(tmp_path: Path) -> None:
    with Loopback(adder, batches=BatchFaults(lost=1)) as server:
        compiled(server, tmp_path, lm={"extra_headers": {"X-Team": "blue"}})
        assert ("GET", "/batches") in server.jobs.calls
        assert {h.get("x-team") for h in server.jobs.headers} == {"blue"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "variable"),
    [("litellm_proxy/fake", "LITELLM_PROXY_API_KEY"), ("hosted_vllm/fake", "HOSTED_VLLM_API_KEY")],
)
def test_keys_of_the_environment_are_the_providers_own(
    model: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-openai-only")
    monkeypatch.setenv(variable, KEY)
    with Loopback(adder, api_key=KEY, batches=BatchFaults(lost=1)) as server:
        compiled(server, tmp_path, model=model, lm={"api_key": None})
        assert not [h for h in server.jobs.headers if "sk-for-openai-only" in str(h)]


@pytest.mark.slow
def test_refusals_are_said_clearly_and_show_no_key(tmp_path: Path) -> None:
    with Loopback(adder, api_key="sk-another") as server, pytest.raises(LMRefused, match="Incorrect API key") as caught:
        compiled(server, tmp_path / "key")
    assert KEY not in str(caught.value)
    with Loopback(adder, batches=BatchFaults(missing=True)) as server:
        with pytest.raises(LMRefused, match="no batch endpoints of its own"):
            compiled(server, tmp_path / "none", model="hosted_vllm/fake")
    with Loopback(adder, batches=BatchFaults(refuse=[400])) as server:
        with pytest.raises(BatchJobFailed, match="does not take the batch job"):
            compiled(server, tmp_path / "bad")
        assert compiled(server, tmp_path / "bad") is not None  # nothing is left open
    with Loopback(adder, batches=BatchFaults(line=lambda body, job: 401)) as server:
        with pytest.raises(LMRefused, match="401"):
            compiled(server, tmp_path / "line")


@pytest.mark.slow
def test_dollars_are_those_of_jobs_and_are_never_exceeded(tmp_path: Path) -> None:
    half = BatchAPI(poll_seconds=0.01, discount=0.5)
    with Loopback(adder) as server:
        program = compiled(server, tmp_path / "half", half, budget=Budget(150, usd=1e4), lm=PRICES)
        billed = 0.5 * (server.prompt_tokens * 1e-3 + server.completion_tokens * 2e-3)
        assert program.policy.dump_state()["spent"]["usd"] == pytest.approx(billed, abs=1e-6)
        assert sum(r.usage.usd or 0.0 for r in completions(tmp_path / "half")) == pytest.approx(billed)
        assert len(server.jobs.jobs) == len(program.detailed_results.rounds)
    cap = 0.6 * billed
    with Loopback(adder) as server:
        program = compiled(server, tmp_path / "cap", half, budget=Budget(150, usd=cap), lm=PRICES)
        billed = 0.5 * (server.prompt_tokens * 1e-3 + server.completion_tokens * 2e-3)
        # Upper bounds of a whole round do not fit: it becomes several jobs, one after another.
        assert len(server.jobs.jobs) > len(program.detailed_results.rounds)
        assert max(Counter(b["seed"] for b in server.bodies).values()) == 1
    spent = program.policy.dump_state()["spent"]
    assert billed == pytest.approx(spent["usd"]) and 0.3 * cap < spent["usd"] <= cap
    assert spent["completions"] < 150


@pytest.mark.slow
def test_the_quote_knows_the_price_of_jobs(tmp_path: Path) -> None:
    lm = dspy.LM("openai/gpt-4o-mini", max_tokens=100)
    with dspy.context(lm=lm):
        student, train = dspy.Predict("question -> answer"), questions(12)
        full = optimizer(tmp_path, None).quote(student, trainset=train).usd
        assert full is not None
        assert optimizer(tmp_path, True).quote(student, trainset=train).usd == pytest.approx(full / 2)
        expected: list[Any] = [
            optimizer(tmp_path, batch).quote(student, trainset=train, output_tokens=20).expected.usd  # type: ignore[union-attr]
            for batch in (None, True)
        ]
        assert expected[1] == pytest.approx(expected[0] / 2)
        own = Cost(usd_per_million=(1.0, 2.0))
        dear = optimizer(tmp_path, None, cost_unit=own).quote(student, trainset=train).usd
        assert dear is not None
        assert optimizer(tmp_path, True, cost_unit=own).quote(student, trainset=train).usd == pytest.approx(dear)
        half = optimizer(tmp_path, BatchAPI(discount=0.5), cost_unit=own).quote(student, trainset=train).usd
        assert half == pytest.approx(dear / 2)
        fifth = optimizer(tmp_path, BatchAPI(discount=0.2)).quote(student, trainset=train).usd
        assert fifth == pytest.approx(0.8 * full)


class Twice(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> hint")
        self.second = dspy.Predict("question, hint -> answer")

    def forward(self, question: str) -> Any:
        return self.second(question=question, hint=self.first(question=question).hint)


@pytest.mark.parametrize(
    ("lm", "message"),
    [
        (dspy.LM("anthropic/claude-sonnet-4-5"), "LiteLLM has no batch API for it"),
        (dspy.LM("mistral/mistral-small"), "cannot list its jobs"),
        (dspy.LM("hosted_vllm/m"), "has no address"),
        (dspy.LM("openai/m", model_type="text"), "model_type"),
        (ReplicatedLM("hosted_vllm/m", replicas=["http://127.0.0.1:9/v1"]), "plain dspy.LM"),
        (dspy.LM("nowhere/m"), "no provider"),
        (dspy.utils.DummyLM([{"answer": "1"}]), "plain dspy.LM"),
    ],
    ids=lambda value: getattr(value, "model", None),
)
def test_lms_without_batch_jobs_are_refused_before_anything_is_sent(
    lm: dspy.BaseLM, message: str, tmp_path: Path
) -> None:
    with dspy.context(lm=lm), pytest.raises(ConfigurationError, match=message):
        optimizer(tmp_path / "run").quote(dspy.Predict("question -> answer"), trainset=questions(4))
    assert not (tmp_path / "run").exists()


def test_other_choices_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs log_dir"):
        optimizer(None)
    with pytest.raises(ConfigurationError, match="batch='yes'"):
        optimizer(tmp_path, "yes")
    with pytest.raises(ConfigurationError, match="measures no latency"):
        optimizer(tmp_path, cost_unit=Cost(usd=1, seconds=1))
    with dspy.context(lm=dspy.LM("openai/fake", api_base="http://127.0.0.1:9/v1")):
        several = [{"first": "Hint.", "second": "Answer."}, {"first": "Help.", "second": "Say."}]
        with pytest.raises(ConfigurationError, match=r"one dspy\.Predict or dspy\.ChainOfThought; Twice"):
            optimizer(tmp_path, candidates=several).compile(Twice(), trainset=questions(4))
        with dspy.context(adapter=dspy.TwoStepAdapter(dspy.LM("openai/fake"))):
            with pytest.raises(ConfigurationError, match="TwoStepAdapter"):
                optimizer(tmp_path).compile(dspy.Predict("question -> answer"), trainset=questions(4))


@pytest.mark.slow
def test_several_decodings_and_chains_of_thought(tmp_path: Path) -> None:
    with Loopback(lambda body, i: "[[ ## reasoning ## ]]\nx\n\n" + adder(body, i)) as server:
        with dspy.context(lm=server.lm(seed=1, top_k=3, extra_body={"min_p": 0.1})):
            made = optimizer(
                tmp_path, candidates=INSTRUCTIONS[1:], decoding=[Decoding(temperature=0.5), Decoding(temperature=1.0)]
            ).compile(dspy.ChainOfThought("question -> answer"), trainset=questions(12))
        sent = [line["body"] for job in server.jobs.jobs for line in server.jobs.lines(job)]
    assert made.detailed_results.failures.total == 0
    assert {b["temperature"] for b in sent} == {0.5, 1.0} and all((b["top_k"], b["min_p"]) == (3, 0.1) for b in sent)


@pytest.mark.slow
def test_a_large_round_is_several_jobs(tmp_path: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_MOST_LINES", 5)
    monkeypatch.setattr(batches, "_MOST_BYTES", 4000)
    with Loopback(adder) as server:
        assert policy(compiled(server, tmp_path)) == plain
        assert all(len(ids) <= 5 for ids in server.jobs.custom_ids)
        assert all(len(server.jobs.files[job["input_file_id"]]) <= 4000 for job in server.jobs.jobs)


def interrupted(server: Loopback, log_dir: Path, **more: Any) -> list[Any]:
    """Compile until the first job is waited for, then press Ctrl-C."""
    seen: list[Any] = []

    def press(progress: Any) -> None:
        if progress.waiting and not seen:
            seen.append(progress)
            _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        compiled(server, log_dir, progress=press, **more)
    return seen


@pytest.mark.slow
def test_after_ctrl_c_the_job_goes_on_and_the_next_run_picks_it_up(
    tmp_path: Path, plain: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with Loopback(adder, batches=BatchFaults(polls=10**6)) as server:
        with caplog.at_level(logging.WARNING, logger="iapo_dspy"):
            (seen,) = interrupted(server, tmp_path)
        server.jobs.faults.polls = 1
        assert seen.waiting == "batch_0: in_progress, 0 of 0 requests"
        assert "batch_0 go on at the provider" in caplog.text and "cancel_batches" in caplog.text
        assert len(server.jobs.jobs) == 1
        program = compiled(server, tmp_path)
        assert policy(program) == plain
        assert len(server.jobs.jobs) == len(program.detailed_results.rounds)
        assert max(Counter(b["seed"] for b in server.bodies).values()) == 1


@pytest.mark.slow
def test_a_job_left_behind_is_used_by_a_run_of_ordinary_requests(tmp_path: Path, plain: dict[str, Any]) -> None:
    with Loopback(adder, batches=BatchFaults(polls=10**6)) as server:
        interrupted(server, tmp_path)
        server.jobs.faults.polls = 1
        assert policy(compiled(server, tmp_path, None)) == plain
        assert len(server.jobs.jobs) == 1
        assert max(Counter(b["seed"] for b in server.bodies).values()) == 1


@pytest.mark.slow
def test_a_cancelled_job_gives_what_it_has(tmp_path: Path, plain: dict[str, Any]) -> None:
    with Loopback(adder, batches=BatchFaults(polls=10**6)) as server:
        interrupted(server, tmp_path)
        lm = server.lm()
        assert cancel_batches(tmp_path, lm) == ("batch_0",)
        assert cancel_batches(tmp_path, lm) == ()
        server.jobs.faults.polls = 1
        assert policy(compiled(server, tmp_path))["evidence"] == plain["evidence"]
        assert max(Counter(b["seed"] for b in server.bodies).values()) == 1


@pytest.mark.slow
def test_a_job_that_the_provider_forgot_can_be_given_up(tmp_path: Path, plain: dict[str, Any]) -> None:
    with Loopback(adder, batches=BatchFaults(polls=10**6)) as server:
        interrupted(server, tmp_path)
        server.jobs.jobs.clear()
        server.jobs.faults.polls = 1
        with pytest.raises(BatchJobFailed, match="does not know the job"):
            compiled(server, tmp_path)
        assert cancel_batches(tmp_path, server.lm()) == ()
        assert policy(compiled(server, tmp_path))["evidence"] == plain["evidence"]


@pytest.mark.slow
def test_waiting_ends_and_can_be_taken_up(tmp_path: Path, plain: dict[str, Any]) -> None:
    with Loopback(adder, batches=BatchFaults(polls=10**6)) as server:
        with pytest.raises(BatchJobFailed, match=r"in_progress, .* goes on"):
            compiled(server, tmp_path, BatchAPI(poll_seconds=0.01, timeout_hours=1e-5))
        server.jobs.faults.polls = 1
        program = compiled(server, tmp_path)
        assert policy(program) == plain
        assert len(server.jobs.jobs) == len(program.detailed_results.rounds)


@pytest.mark.slow
def test_dollars_of_a_job_left_behind_count_once(tmp_path: Path) -> None:
    budget = Budget(150, usd=1e4)
    with Loopback(adder, batches=BatchFaults(polls=10**6)) as server:
        interrupted(server, tmp_path, budget=budget, lm=PRICES)
        server.jobs.faults.polls = 1
        (job,) = (r for r in read_ledger(tmp_path)[1] if isinstance(r, BatchRecord) and r.state == "intended")
        assert job.reserved_usd == pytest.approx(sum(line["usd"] for line in job.lines)) and job.reserved_usd > 0
        program = compiled(server, tmp_path, budget=budget, lm=PRICES)
        billed = server.prompt_tokens * 1e-3 + server.completion_tokens * 2e-3
    assert program.policy.dump_state()["spent"]["usd"] == pytest.approx(billed, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("faults", [Faults(), Faults(ignore_n=True)], ids=["n", "one by one"])
def test_costs_in_dollars_are_those_of_ordinary_requests(faults: Faults, tmp_path: Path) -> None:
    found = []
    for batch in (None, FAST):
        with Loopback(adder, faults=faults) as server:
            program = compiled(
                server,
                tmp_path / str(batch is None),
                batch,
                cost_unit=Cost(usd_per_million=(500.0, 1000.0)),
                max_n=2,
                budget=60,
            )
            found.append(state_of(program))
    if faults.ignore_n:  # which pull finds out that n is ignored differs, and with it a few seeds
        assert found[1]["spent"]["usd"] == pytest.approx(found[0]["spent"]["usd"], rel=0.2)
    else:
        assert {k: v for k, v in found[1].items() if k != "spent"} == {
            k: v for k, v in found[0].items() if k != "spent"
        }
        assert found[1]["spent"]["usd"] == found[0]["spent"]["usd"] > 0


@pytest.mark.slow
def test_seconds_that_are_over_submit_nothing_more(tmp_path: Path) -> None:
    with Loopback(adder, batches=BatchFaults(polls=30)) as server:
        program = compiled(server, tmp_path, budget=Budget(150, seconds=0.3))
        assert len(server.jobs.jobs) == 1
    assert program.policy.dump_state()["spent"]["completions"] == server.completions


@pytest.mark.slow
def test_a_run_inside_a_running_loop_and_a_thread(tmp_path: Path, plain: dict[str, Any]) -> None:
    found: list[Any] = []
    with Loopback(adder) as server:
        thread = threading.Thread(target=lambda: found.append(policy(compiled(server, tmp_path))))
        thread.start()
        thread.join()
    assert found == [plain]


class _Refusing(Loopback):
    """Answers lines of jobs by errors of its own: (body) -> (status, message), or None."""

    def __init__(self, refusal: Any) -> None:
        super().__init__(adder)
        self.refusal = refusal

    def _answer_line(self, body: dict[str, Any], fault: Any) -> tuple[int, dict[str, Any]]:
        if (said := self.refusal(body)) is not None:
            return said[0], {"error": {"message": said[1], "code": None}}
        return super()._answer_line(body, fault)


@pytest.mark.slow
def test_a_parameter_that_is_refused_is_left_out_of_the_next_job(tmp_path: Path) -> None:
    said = "Unsupported parameter: 'temperature' is not supported with this model."
    with _Refusing(lambda body: (400, said) if "temperature" in body else None) as server:
        results = compiled(server, tmp_path).detailed_results
        assert results.failures.total == 0
        rounds = results.rounds
        assert len(server.jobs.jobs) == len(rounds) + 1  # the first job was refused


@pytest.mark.slow
def test_one_line_that_is_refused_does_not_stop_the_run(tmp_path: Path) -> None:
    asked = questions(12)[3].question
    with _Refusing(lambda body: (404, "Not found") if asked in body["messages"][-1]["content"] else None) as server:
        failures = compiled(server, tmp_path).detailed_results.failures
        assert 0 < failures.errors == failures.total < failures.completions / 2
    with _Refusing(lambda body: (404, "Not found")) as server, pytest.raises(LMRefused, match="Not found"):
        compiled(server, tmp_path / "other")


def test_lines_that_were_cut_off_do_not_vote(tmp_path: Path) -> None:
    """Half of "1006" could be read as well."""
    with Loopback(lambda body, i: "[[ ## answer ## ]]\n10 06", obeys=True) as server:
        with pytest.raises(TooManyErrors, match="cut off at max_tokens"):
            compiled(server, tmp_path, lm={"max_tokens": 6})
