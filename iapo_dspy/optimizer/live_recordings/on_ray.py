"""Shares a recording out over a Ray cluster: each worker draws some prompts, and the ledgers become one."""

from __future__ import annotations

import importlib
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy

from iapo_dspy.bandit.algorithms.every_cell import EveryCell
from iapo_dspy.optimizer.drawing import draw
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.optimizer.watching.watch import RunWatch
from iapo_dspy.sampling.ledger.merging import merge_ledgers

_SHARDS = "shards"  # the folder in a `log_dir` that has the ledgers of workers


def draw_on_ray(plan: Plan, samples: int) -> None:
    """Draw what a recording's ledger lacks on the cluster that `RAY_ADDRESS` names, or on a local one.

    Each worker keeps its completions in a directory of its own below `log_dir`, so all machines must share this
    folder. Requests, with their seeds, are those of one process.

    Args:
        plan: The recording.
        samples: S.

    Raises:
        ImportError: Ray is not installed.
        Exception: As `draw` does, from the first worker that failed. What the others drew is kept.
    """
    log_dir = plan.settings.log_dir
    assert log_dir is not None
    folder = log_dir.resolve() / _SHARDS
    with _cluster() as ray, RunWatch(plan.settings) as watch:
        shards = _shards(plan, samples, max(int(ray.cluster_resources().get("CPU", 1)), 1), folder)
        for shard in shards:
            assert shard.settings.log_dir is not None
            if (log_dir / "ledger.jsonl").is_file():
                merge_ledgers(shard.settings.log_dir, log_dir)
        watch.say(f"{len(plan.prompts)} prompts on {len(shards)} workers")
        work = ray.remote(_draw)
        running = [work.remote(shard, dspy.settings.lm, dspy.settings.adapter) for shard in shards]
        total = len(running)
        while running:
            (done,), running = ray.wait(running)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            watch.say(f"{total - len(running)} of {total} workers are done")
    gather(log_dir)


def gather(log_dir: Path) -> None:
    """Merge what workers have left into the ledger of a recording, also those of a process that was killed."""
    folder = log_dir / _SHARDS
    left = [path for path in sorted(folder.glob("*")) if (path / "ledger.jsonl").is_file()]
    if left:
        merge_ledgers(log_dir, *left)
    if folder.is_dir():
        shutil.rmtree(folder)


def _shards(plan: Plan, samples: int, workers: int, folder: Path) -> list[Plan]:
    """Return a plan for each worker: neighbouring prompts, and the part of the budget that pays for them."""
    n_prompts, each = len(plan.prompts), len(plan.examples) * samples
    size, budget = math.ceil(n_prompts / workers), plan.settings.budget
    starts = range(0, n_prompts, size)
    found = []
    for start in starts:
        prompts = tuple(range(start, min(start + size, n_prompts)))
        completions = min(len(prompts) * each, (plan.completions or 0) - start * each)
        if completions <= 0:
            break
        own = replace(
            budget,
            completions=completions,
            usd=None if budget.usd is None else budget.usd / len(starts),
            tokens=None if budget.tokens is None else budget.tokens // len(starts),
        )
        settings = replace(
            plan.settings,
            algorithm=(algorithm := EveryCell(samples=samples, prompts=prompts)),
            budget=own,
            log_dir=folder / str(start),
            callbacks=(),
            progress=False,
        )
        found.append(replace(plan, settings=settings, search=algorithm).of(completions))
    return found


def _draw(plan: Plan, lm: Any, adapter: Any) -> None:
    """Draw a shard, in a worker."""
    with dspy.context(lm=lm, adapter=adapter), RunWatch(plan.settings) as watch:
        draw(plan, watch)


@contextmanager
def _cluster() -> Iterator[Any]:
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ImportError('A Ray cluster needs ray: pip install "iapo_dspy[ray]"') from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()
