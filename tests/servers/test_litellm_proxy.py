"""LiteLLM's own proxy in front of two replicas, as it is installed: `python -m pytest -m server tests/servers`.

The proxy has an environment of its own; `IAPO_TEST_LITELLM_PROXY_PYTHON` names its Python.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import litellm
import pytest

from iapo_dspy import IAPO, BatchAPI, Execution, MajorityVote, Preference
from iapo_dspy.errors import BatchJobFailed, LMRefused
from iapo_dspy.sampling.ledger.reading import read_ledger
from iapo_dspy.sampling.ledger.records import CompletionRecord
from iapo_dspy.sampling.lm.refusals import is_fatal, is_retryable, is_throttled, retry_after
from tests.support.batching import BatchFaults
from tests.support.loopback import Faults, Loopback
from tests.support.worlds import INSTRUCTIONS, adder, exact, questions

pytestmark = pytest.mark.server

PYTHON = "IAPO_TEST_LITELLM_PROXY_PYTHON"
INSTALL = (
    f"LiteLLM's proxy: {PYTHON} is not set. Install it and set it: python -m venv proxy && "
    f"proxy/bin/python -m pip install 'litellm[proxy]==1.106.2' && export {PYTHON}=$PWD/proxy/bin/python"
)
START = 180.0  # seconds; on two busy cores it takes half a minute


@dataclass(frozen=True, kw_only=True)
class Proxy:
    base: str
    key: str
    replicas: tuple[Loopback, Loopback]

    def lm(self, model: str = "litellm_proxy/fake", **settings: Any) -> dspy.LM:
        given: dict[str, Any] = {
            "api_base": self.base,
            "api_key": self.key,
            "cache": False,
            "max_tokens": 60,
            "seed": 1,
        }
        return dspy.LM(model, **{**given, **settings})


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    python = os.environ.get(PYTHON)
    if not python:
        pytest.skip(INSTALL)
    folder = tmp_path_factory.mktemp("proxy")
    with Loopback(adder) as one, Loopback(adder) as two, Loopback(adder, batches=BatchFaults(missing=True)) as vllm:
        backends = [("fake", "openai/fake", one), ("fake", "openai/fake", two), ("vllm", "hosted_vllm/fake", vllm)]
        config = {
            "model_list": [
                {"model_name": name, "litellm_params": {"model": model, "api_base": s.base, "api_key": "sk-replica"}}
                for name, model, s in backends
            ],
            # What this package counts and decides must not be done behind its back.
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        }
        (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        key = f"sk-{secrets.token_hex(16)}"
        environment = {**os.environ, "LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        environment.pop("PYTHONPATH", None)
        program = str(Path(python).with_name("litellm"))
        command = [program, "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_ready(process, port, folder / "log")
            yield Proxy(base=f"http://127.0.0.1:{port}", key=key, replicas=(one, two))
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/readiness", timeout=2).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)


@pytest.fixture
def replicas(proxy: Proxy) -> tuple[Loopback, Loopback]:
    for server in proxy.replicas:
        server.faults, server._first = Faults(), []
        server.requests = server.completions = server.prompt_tokens = server.completion_tokens = 0
        server.bodies, server.statuses = [], Counter()
    return proxy.replicas


def compiled(lm: dspy.LM, log_dir: Path, batch: BatchAPI | None = None) -> Any:
    with dspy.context(lm=lm):
        return IAPO(
            metric=exact,
            strategy=MajorityVote("answer"),
            preferences=[Preference("quality", cost=0.0), Preference("thrifty", cost=30.0)],
            max_n=4,
            candidates=INSTRUCTIONS,
            budget=150,
            log_dir=log_dir,
            execution=Execution(progress=False, batch=batch),
        ).compile(dspy.Predict("question -> answer"), trainset=questions(12))


def found(program: Any) -> dict[str, Any]:
    state = json.loads(json.dumps(program.policy.dump_state()))
    return {k: v for k, v in state.items() if k != "spent"}


def pulls(log_dir: Path) -> int:
    return len({r.pull for r in read_ledger(log_dir)[1] if isinstance(r, CompletionRecord)})


def total(servers: tuple[Loopback, Loopback], name: str) -> int:
    return sum(getattr(s, name) for s in servers)


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is found without a proxy."""
    with Loopback(adder) as server:
        return found(compiled(server.lm(seed=1, max_tokens=60), tmp_path_factory.mktemp("direct")))


def test_one_request_per_pull_shared_by_both_replicas(
    proxy: Proxy, replicas: tuple[Loopback, Loopback], direct: dict[str, Any], tmp_path: Path
) -> None:
    program = compiled(proxy.lm(), tmp_path)
    spent = program.policy.dump_state()["spent"]
    assert total(replicas, "requests") == spent["requests"] == pulls(tmp_path)
    assert min(s.requests for s in replicas) > 0
    for name in ("completions", "prompt_tokens", "completion_tokens"):
        assert total(replicas, name) == spent[name]
    assert found(program) == direct
    assert proxy.key not in (tmp_path / "ledger.jsonl").read_text()


async def test_errors_keep_their_types(proxy: Proxy, replicas: tuple[Loopback, Loopback]) -> None:
    async def error(lm: dspy.LM) -> Exception:
        with pytest.raises(Exception) as caught:
            await litellm.acompletion(
                model=lm.model,
                messages=[{"role": "user", "content": "1 + 1"}],
                api_base=lm.kwargs["api_base"],
                api_key=lm.kwargs["api_key"],
                num_retries=0,
                max_retries=0,
            )
        return caught.value

    # Without a database, the proxy answers a key that it does not know as a bad request.
    assert is_fatal(await error(proxy.lm(api_key="sk-wrong")))
    assert is_fatal(await error(proxy.lm("litellm_proxy/nothing")))
    for server in replicas:
        server.faults.retry_after, server._first = "7", [429]
    throttled = await error(proxy.lm())
    assert isinstance(throttled, litellm.RateLimitError) and is_throttled(throttled) and is_retryable(throttled)
    assert retry_after(throttled) == 7.0
    for status, kind in ((500, litellm.InternalServerError), (400, litellm.BadRequestError)):
        for server in replicas:
            server._first = [status]
        failed = await error(proxy.lm())
        assert isinstance(failed, kind) and not is_fatal(failed) and is_retryable(failed) == (status == 500)


def test_retries_are_ours_and_are_counted(
    proxy: Proxy, replicas: tuple[Loopback, Loopback], direct: dict[str, Any], tmp_path: Path
) -> None:
    for server in replicas:
        server.faults.retry_after, server._first = "0.2", [429, None, 500, None, 429]
    program = compiled(proxy.lm(num_retries=4), tmp_path)
    assert total(replicas, "requests") == program.policy.dump_state()["spent"]["requests"] == pulls(tmp_path) + 6
    assert found(program) == direct


def test_a_wrong_key_and_an_unknown_model_stop_the_run(proxy: Proxy, tmp_path: Path) -> None:
    lms = [proxy.lm(api_key="sk-wrong"), proxy.lm("litellm_proxy/nothing")]
    for i, lm in enumerate(lms):
        with pytest.raises(LMRefused) as caught:
            compiled(lm, tmp_path / str(i))
        assert proxy.key not in str(caught.value) and "sk-wrong" not in str(caught.value)


def test_batch_jobs_go_through_it(
    proxy: Proxy, replicas: tuple[Loopback, Loopback], direct: dict[str, Any], tmp_path: Path
) -> None:
    program = compiled(proxy.lm(), tmp_path, BatchAPI(poll_seconds=0.05))
    jobs = [job for s in replicas for job in s.jobs.jobs]
    rounds = program.detailed_results.rounds
    assert len(jobs) == len(rounds)
    assert total(replicas, "requests") == pulls(tmp_path) == program.policy.dump_state()["spent"]["requests"]
    assert found(program) == direct


def test_a_job_whose_submission_got_lost_is_found_again_through_it(
    proxy: Proxy, replicas: tuple[Loopback, Loopback], direct: dict[str, Any], tmp_path: Path
) -> None:
    before = sum(len(s.jobs.jobs) for s in replicas)
    for server in replicas:
        server.jobs.faults.lost = 1
    program = compiled(proxy.lm(), tmp_path, BatchAPI(poll_seconds=0.05, settle_seconds=0.5))
    rounds = program.detailed_results.rounds
    assert sum(len(s.jobs.jobs) for s in replicas) - before == len(rounds)
    assert any(s.jobs.faults.lost == 0 for s in replicas)
    assert max(Counter(b["seed"] for s in replicas for b in s.bodies).values()) == 1
    assert found(program) == direct


def test_batch_jobs_for_a_vllm_server_without_a_database_are_refused_clearly(proxy: Proxy, tmp_path: Path) -> None:
    with pytest.raises((BatchJobFailed, LMRefused)) as caught:
        compiled(proxy.lm("litellm_proxy/vllm"), tmp_path, BatchAPI(poll_seconds=0.05))
    assert "database" in str(caught.value).lower()
