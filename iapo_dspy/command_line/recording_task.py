"""`iapo record TASK`: a language model on a task, every prompt on every query, in a file to replay and simulate."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy

from iapo_dspy.adapters import PlainTextAdapter
from iapo_dspy.environments.recorded.files import save
from iapo_dspy.environments.recorded.recording import Recording
from iapo_dspy.errors import ConfigurationError, one_line
from iapo_dspy.optimizer.iapo import IAPO
from iapo_dspy.sampling.lm.replicas import ReplicatedLM
from iapo_dspy.sampling.spending.budget import Budget
from iapo_dspy.tasks import Task, task

ADAPTERS: dict[str, Callable[[], dspy.Adapter]] = {
    "chat": dspy.ChatAdapter,
    "json": dspy.JSONAdapter,
    "plain": PlainTextAdapter,
}
_SILENT = ("--log-dir", "--threads")
_PATIENCE = 5.0  # seconds for a server to say what it is


def record_task(
    *,
    name: str,
    output: Path | None,
    model: str,
    api_base: Sequence[str],
    samples: int,
    queries: int | None,
    split: str,
    data: Path | None,
    prompts: Path | None,
    demos: Sequence[int],
    adapters: Sequence[str],
    temperature: float,
    max_tokens: int | None,
    extra_body: str | None,
    budget: int | None,
    usd: float | None,
    log_dir: Path | None,
    seed: int,
    ray: bool,
    threads: int | None,
    facts: Mapping[str, str],
    command: str,
) -> str:
    """Record a model on a task, and return a line about the file that was written.

    Args:
        name: The task.
        output: The file, .npz or .parquet; None is TASK.npz.
        model: The LM, as LiteLLM names it.
        api_base: Where it is served; several are replicas of one model.
        samples: S.
        queries: So many queries at most; None is all.
        split: Of the task's data.
        data: A local file with rows of the split; None is where the task gets them.
        prompts: A file with one instruction a line; None is the task's prompt set.
        demos: Numbers of demonstrations; every instruction is recorded with each of them.
        adapters: Names of `ADAPTERS`; every prompt is recorded with each of them.
        temperature: Of the LM.
        max_tokens: Of the LM; None leaves it out.
        extra_body: More of the request's body, as a JSON object.
        budget: Completions at most, those of earlier calls included.
        usd: Dollars at most.
        log_dir: Where completions are kept; None is runs/record/TASK.
        seed: Each request gets a seed that is derived from it.
        ray: Whether a Ray cluster shares the work.
        threads: LM requests in flight at most.
        facts: What the user says of the recording: revision, licence, server.
        command: The command, for the card.

    Raises:
        ConfigurationError: An argument that cannot be used; raised before the first LM call.
        Exception: As `IAPO.record` does.
    """
    chosen = task(name)
    path = output or Path(f"{name}.npz")
    _check_path(path)
    if prompts is not None:
        chosen = replace(chosen, instructions=_lines(prompts))
    body = _body(extra_body)
    found = {k: chosen.demonstrations(k, split=split, path=data, seed=seed) for k in sorted({*demos} or {0})}
    rows = chosen.load(split, path=data, limit=queries, seed=seed, without=found[max(found)])
    candidates = [program for shown in found.values() for program in chosen.candidates(shown)]
    lm = _lm(model, api_base, temperature=temperature, max_tokens=max_tokens, seed=seed, **body)
    about = {
        "task": name,
        "data": _data(chosen, split, data),
        "server": facts.get("server") or [_server(base) for base in api_base],
        "seed": seed,
        "command": command,
        **{key: value for key, value in facts.items() if value and key != "server"},
    }
    chosen_adapters = [ADAPTERS[adapter]() for adapter in dict.fromkeys(adapters)]
    optimizer = IAPO(
        metric=chosen.metric,
        strategy=chosen.strategy,
        preferences=chosen.preferences,
        budget=None if budget is None and usd is None else Budget(completions=budget, usd=usd),
        adapters=chosen_adapters if len(chosen_adapters) > 1 else None,
        num_threads=threads,
        seed=seed,
        log_dir=log_dir or Path("runs", "record", name),
    )
    with dspy.context(lm=lm, adapter=chosen_adapters[0] if chosen_adapters else dspy.settings.adapter):
        recording = optimizer.record(
            chosen.student(), trainset=rows, candidates=candidates, samples=samples, about=about, ray=ray
        )
    save(recording, path)
    return _told(path, recording)


def command_of(arguments: Sequence[str]) -> str:
    """Return the command of a recording without what does not change the file: folders, and how fast it is drawn."""
    kept, skipped = [], False
    for argument in arguments:
        name = argument.split("=")[0]
        if not skipped and name not in (*_SILENT, "--ray"):
            kept.append(Path(argument).name if os.sep in argument and Path(argument).exists() else argument)
        skipped = name in _SILENT and "=" not in argument
    return shlex.join(["iapo", *kept])


def _told(path: Path, recording: Recording) -> str:
    drawn = recording.drawn
    assert drawn is not None  # what `IAPO.record` returns has its completions
    failed = int(drawn.failures.sum())
    return (
        f"{path}: {recording.n_prompts} prompts, {recording.n_queries} queries, {drawn.samples} completions each, "
        f"{failed / drawn.outcome.size:.1%} of them failed"
    )


def _check_path(path: Path) -> None:
    """Refuse a file that could not be written, before anything is drawn.

    Raises:
        ConfigurationError: Another suffix, or a folder that is missing or cannot be written to.
    """
    if path.suffix not in (".npz", ".parquet"):
        raise ConfigurationError(f"Cannot write {path.name}: a recording is a .npz or a .parquet file.")
    folder = path.resolve().parent
    if not folder.is_dir() or path.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigurationError(f"Cannot write {path}: give a file in a folder that exists and can be written to.")


def _lines(path: Path) -> tuple[str, ...]:
    texts = tuple(dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()))
    if not texts:
        raise ConfigurationError(f"{path} has no instruction: give one a line.")
    return texts


def _body(extra_body: str | None) -> dict[str, Any]:
    if extra_body is None:
        return {}
    try:
        body = json.loads(extra_body)
    except ValueError as error:
        raise ConfigurationError(f"--extra-body {extra_body!r}: give a JSON object ({one_line(error)}).") from error
    if not isinstance(body, dict):
        raise ConfigurationError(f"--extra-body {extra_body!r}: give a JSON object, such as '{{\"top_k\": 40}}'.")
    return {"extra_body": body}


def _lm(model: str, api_base: Sequence[str], **settings: Any) -> dspy.LM:
    settings = {name: value for name, value in settings.items() if value is not None} | {"cache": False}
    if api_base and "OPENAI_API_KEY" not in os.environ:
        settings["api_key"] = "none"  # local servers want a key to be there
    if len(api_base) > 1:
        return ReplicatedLM(model, replicas=list(api_base), **settings)
    return dspy.LM(model, engine="litellm", **settings, **({"api_base": api_base[0]} if api_base else {}))


def _data(chosen: Task, split: str, path: Path | None) -> dict[str, Any]:
    source = chosen.source
    facts = {"split": split, "licence": source.licence}
    if path is not None:
        return {**facts, "file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    return {**facts, "repository": source.repository, "revision": source.revision}


def _server(base: str) -> dict[str, Any]:
    """Ask a server what it is; llama.cpp's says more.

    Raises:
        ConfigurationError: Nothing answers at the address.
    """
    found: dict[str, Any] = {}
    with _asked(f"{base.rstrip('/')}/models") as told:
        models = told.get("data")
        first = models[0] if isinstance(models, list) and models and isinstance(models[0], Mapping) else {}
        found |= {name: first[name] for name in ("id", "owned_by") if isinstance(first.get(name), str)}
    with _asked(f"{base.rstrip('/').removesuffix('/v1')}/props") as told:
        names = ("build_info", "model_ftype", "model_path", "total_slots")
        found |= {name: told[name] for name in names if isinstance(told.get(name), (str, int))}
    if "model_path" in found:
        found["model_path"] = Path(str(found["model_path"])).name
    return found


@contextlib.contextmanager
def _asked(url: str) -> Iterator[Mapping[str, Any]]:
    """Yield what a server says at an address; nothing where it does not know it."""
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"--api-base: {url!r} is not an address; give one such as http://localhost:8000/v1.")
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
            told = json.loads(answer.read())
    except urllib.error.HTTPError:  # it is there, and does not tell
        told = {}
    except ValueError:
        told = {}
    except OSError as error:
        raise ConfigurationError(
            f"Nothing answers at {url}: {one_line(error)}. Start the server, or give --server TEXT not to ask it."
        ) from error
    yield told if isinstance(told, Mapping) else {}
