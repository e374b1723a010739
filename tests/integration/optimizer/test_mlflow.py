"""MLflow's autologging and model flavour, with the real package and a store on disk."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import Budget, CompiledProgram, Cost, Decoding, MajorityVote, Preference
from iapo_dspy.callbacks import MLflowCallback
from iapo_dspy.errors import AllCompletionsFailed, BudgetTooSmall, TooManyErrors
from iapo_dspy.events import Event, RoundEnded
from iapo_dspy.types import Arm
from tests.support.compiling import optimizers
from tests.support.deployed import deploy
from tests.support.loopback import Loopback
from tests.support.worlds import CAREFUL, QUICK, adder, questions, student

mlflow = pytest.importorskip("mlflow")
pytest.importorskip("mlflow.dspy")
pytestmark = pytest.mark.extra
PREFERENCES = [Preference("quality", cost=0.0), Preference("thrifty & quick", cost=30.0)]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make one sqlite store; making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        yield folder
        mlflow.set_tracking_uri(before)


@pytest.fixture
def store(database: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Track to an experiment of the test's own; undo what autologging does to DSPy."""
    name = request.node.name
    mlflow.set_experiment(experiment_id=mlflow.create_experiment(name, artifact_location=(database / name).as_uri()))
    settings = dspy.settings.callbacks, dspy.settings.track_usage
    yield
    mlflow.dspy.autolog(disable=True, silent=True)
    dspy.settings.configure(callbacks=settings[0], track_usage=settings[1])
    while mlflow.active_run() is not None:
        mlflow.end_run()


optimizer = optimizers(preferences=PREFERENCES, budget=60, candidates=[QUICK, CAREFUL])


def test_a_compile_is_logged_with_settings_results_and_the_program(store: None) -> None:
    mlflow.dspy.autolog(log_compiles=True, silent=True)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        compiler = optimizer()
        attributes = set(vars(compiler))
        program = compiler.compile(dspy.Predict("question -> answer"), trainset=questions(8))
    assert set(vars(compiler)) == attributes  # MLflow adds to what get_params returns
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.params["max_n"] == "4" and run.data.params["metric"].endswith("exact")
    assert CAREFUL in run.data.params["candidates"] and "completions" in run.data.params["budget"]
    rows = program.detailed_results.policy
    for name, row in zip(("quality", "thrifty _ quick"), rows, strict=True):
        assert run.data.metrics[f"{name}/n"] == row.arm.n
        assert run.data.metrics[f"{name}/utility"] == pytest.approx(row.utility)
    assert run.data.metrics["spent/completions"] == program.detailed_results.spent.completions
    state = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="best_model.json"))
    loaded = CompiledProgram(dspy.Predict("question -> answer"))
    loaded.load(state)
    assert loaded.policy.ready.arms == program.policy.ready.arms
    everything = json.dumps(run.to_dictionary()) + state.read_text()
    assert "secret" not in everything and "quality" in mlflow.artifacts.load_text(
        f"runs:/{run.info.run_id}/iapo_result.txt"
    )


def test_the_callback_starts_a_run_of_its_own_and_logs_each_round_at_its_step(store: None) -> None:
    rounds: list[RoundEnded] = []

    def note(event: Event) -> None:
        rounds.extend([event] if isinstance(event, RoundEnded) else [])

    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        compiler = optimizer(callbacks=[MLflowCallback(), note])
        program = compiler.compile(dspy.Predict("question -> answer"), trainset=questions(8))
    assert mlflow.active_run() is None
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED" and run.data.params["max_n"] == "4"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "round/quality/utility")
    assert [(m.step, m.value) for m in history] == [
        (r.round, pytest.approx(r.leaders[0].utility)) for r in rounds if r.leaders[0].utility == r.leaders[0].utility
    ]
    assert history and run.data.metrics["quality/n"] == program.detailed_results.policy[0].arm.n


def test_a_run_that_fails_is_logged_as_failed(store: None) -> None:
    with Loopback(lambda body, i: "no field") as server, dspy.context(lm=server.lm(seed=1)):
        with pytest.raises(TooManyErrors):
            optimizer(callbacks=[MLflowCallback()]).compile(student(), trainset=questions(8))
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FAILED" and run.data.metrics["spent/requests"] > 0


def test_a_run_that_never_began_leaves_none_open(store: None) -> None:
    callback = MLflowCallback()
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        compiler = optimizer(
            candidates=[QUICK, CAREFUL],
            budget=Budget(usd=1e-9),
            callbacks=[copy.deepcopy(callback)],
            cost_unit=Cost(usd_per_million=(1.0, 4.0)),
            decoding=Decoding(max_tokens=50),
        )
        with pytest.raises(BudgetTooSmall):
            compiler.compile(dspy.Predict("question -> answer"), trainset=questions(8))
    assert mlflow.active_run() is None and not mlflow.search_runs(output_format="list")


def test_nothing_is_logged_where_it_was_not_asked_for(store: None) -> None:
    mlflow.dspy.autolog(silent=True)  # traces only
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        optimizer().compile(dspy.Predict("question -> answer"), trainset=questions(4))
        with mlflow.start_run() as active:
            optimizer().compile(dspy.Predict("question -> answer"), trainset=questions(4))
    assert not mlflow.get_run(active.info.run_id).data.params
    assert len(mlflow.search_runs(output_format="list")) == 1
    assert not mlflow.search_traces(return_type="list")


def test_a_store_that_fails_does_not_lose_the_program(
    store: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("the disk is full")

    mlflow.dspy.autolog(log_compiles=True, silent=True)
    monkeypatch.setattr(mlflow, "log_metrics", broken)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)), caplog.at_level(logging.WARNING):
        assert optimizer().compile(dspy.Predict("question -> answer"), trainset=questions(4)).arms
    assert "the disk is full" in caplog.text


@pytest.mark.parametrize("way", ["call", "acall", "batch"])
def test_a_call_is_one_trace_with_spans_and_usage(store: None, way: str) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        arms = {"q": Arm(0, 4)}
        program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [CAREFUL], arms)
    mlflow.dspy.autolog(silent=True)
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        if way == "call":
            prediction = program(question="3 + 4")
        elif way == "acall":
            prediction = asyncio.run(program.acall(question="3 + 4"))
        else:
            row = dspy.Example(question="3 + 4").with_inputs("question")
            (prediction,) = program.batch([row], disable_progress_bar=True)
        sent = server.prompt_tokens, server.completion_tokens
    (trace,) = mlflow.search_traces(return_type="list")
    assert trace.info.status == "OK" or str(trace.info.state).endswith("OK")
    (root,) = [s for s in trace.data.spans if s.parent_id is None]
    assert root.name == "CompiledProgram.forward"
    assert root.inputs["question"] == "3 + 4" and root.outputs == {"answer": prediction.answer}
    usage = root.attributes["mlflow.chat.tokenUsage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == sent
    kinds = [s.span_type for s in trace.data.spans]
    assert kinds.count("CHAT_MODEL") == 4 and all(s.end_time_ns for s in trace.data.spans)
    assert "secret" not in trace.to_json()


def test_a_failed_call_is_a_failed_trace(store: None) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [CAREFUL], {"q": Arm(0, 2)})
    mlflow.dspy.autolog(silent=True)
    with Loopback(lambda body, i: "garbage") as server, dspy.context(lm=server.lm(seed=1)):
        with pytest.raises(AllCompletionsFailed):
            program(question="3 + 4")
    (trace,) = mlflow.search_traces(return_type="list")
    assert "ERROR" in str(trace.info.state) and "AllCompletionsFailed" in trace.to_json()


@pytest.mark.parametrize("dspys_own", [False, True], ids=["cloudpickle", "DSPy's save"])
def test_a_saved_model_is_loaded_and_served(store: None, tmp_path: Path, dspys_own: bool) -> None:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=1)):
        arms = {"quality": Arm(0, 4), "thrifty": Arm(1, 1)}
        program = deploy(dspy.Predict("question -> answer"), MajorityVote("answer"), [CAREFUL, QUICK], arms)
        path = str(tmp_path / "model")
        thrifty = program.with_preference("thrifty")
        mlflow.dspy.save_model(thrifty, path, pip_requirements=[], use_dspy_model_save=dspys_own)
        loaded = mlflow.dspy.load_model(path)
        prediction = loaded(question="4 + 4")
        assert isinstance(loaded, CompiledProgram) and loaded is not thrifty
        assert (prediction.answer, prediction.iapo.preference) == ("8", "thrifty")
        assert loaded.solve("quality") == program.solve("quality")
        assert mlflow.pyfunc.load_model(path).predict({"question": "4 + 4"}) == {"answer": "8"}


def test_settings_are_plain_data_without_keys() -> None:
    lm = dspy.LM("openai/x", api_key="sk-very-secret")
    bound = dspy.Predict("question -> answer")
    bound.set_lm(lm)
    compiler = optimizer(candidates=[bound, {"self": "Answer."}], strategy=MajorityVote("answer", normalize=str.lower))
    params = compiler.get_params()
    text = json.dumps(params)
    assert "very-secret" not in text and "lower" in text and "Predict" in text
    params["max_n"] = 99
    assert compiler.max_n == 4
