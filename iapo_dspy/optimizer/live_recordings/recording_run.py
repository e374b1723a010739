"""Records a language model: a run that draws S completions of every prompt on every query."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from iapo_dspy.bandit.algorithms.every_cell import EveryCell
from iapo_dspy.environments.recorded.from_ledger import KINDS, recording_of
from iapo_dspy.environments.recorded.recording import Recording
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.optimizer.drawing import draw
from iapo_dspy.optimizer.live_recordings.card import card_of, check_facts
from iapo_dspy.optimizer.live_recordings.on_ray import draw_on_ray, gather
from iapo_dspy.optimizer.options import check_whole
from iapo_dspy.optimizer.plan import Plan, make_plan
from iapo_dspy.optimizer.settings import Settings, is_auto
from iapo_dspy.optimizer.watching.watch import RunWatch
from iapo_dspy.sampling.spending.budget import Budget

logger = logging.getLogger(__name__)

_ENOUGH = 10**15  # completions of a budget that says nothing about them
_TOGETHER = 1_000_000  # combinations of instructions that can be recorded


def record_live(
    settings: Settings,
    student: Any,
    trainset: Any,
    candidates: Any,
    *,
    samples: int,
    budget: Budget | int | None,
    about: Mapping[str, Any],
    ray: bool = False,
) -> Recording:
    """Record every prompt on every query. Arguments are those of `IAPO.record`, and the budget that the user gave.

    Raises:
        ConfigurationError: Something cannot work; raised before the first LM call.
        BudgetTooSmall: Completions are missing in the end; the message says how many.
        Exception: As `draw` does.
    """
    plan = recording_plan(settings, student, trainset, candidates, samples=samples, budget=budget)
    check_facts(about)
    with _kept(plan) as plan:
        assert plan.settings.log_dir is not None
        gather(plan.settings.log_dir)
        if ray:
            draw_on_ray(plan, samples)
        with RunWatch(plan.settings) as watch:
            draw(plan, watch)
        recording = recording_of(plan.settings.log_dir, samples=samples)
        card = card_of(plan, recording, samples, about)
        return replace(recording, card=card, parts=plan.problem.parts)


def recording_plan(
    settings: Settings, student: Any, trainset: Any, candidates: Any, *, samples: int, budget: Budget | int | None
) -> Plan:
    """Check a recording from end to end without an LM call.

    Raises:
        ConfigurationError: Something cannot work.
    """
    check_whole("samples", samples, least=1)
    kind = settings.strategy.to_dict().get("kind")
    if kind not in KINDS:
        raise ConfigurationError(
            f"strategy={settings.strategy!r} cannot be recorded: recordings hold majority votes (MajorityVote) and "
            "Best-of-N (BestOfN)."
        )
    given = None if budget is None else Budget.of(budget)
    most = _ENOUGH if given is None or given.completions is None else given.completions
    asked = candidates if candidates is not None else settings.candidates
    settings = replace(
        settings,
        algorithm=EveryCell(samples=samples),
        max_n=1,
        stopping=None,
        budget=replace(given or Budget(completions=most), completions=most),
        candidates=None,
        prompt_model=None,
        proposers=None,
        joint_limit=_TOGETHER,
    )
    plan = make_plan(settings, student, trainset, [student] if asked is None or is_auto(asked) else asked)
    total = plan.problem.n_prompts * plan.problem.n_queries * samples
    if settings.log_dir is None and most < total:
        raise BudgetTooSmall(
            f"The recording takes {total:,} completions, and the budget has {most:,}. Give log_dir='runs/...' to draw "
            "a part of them now and the rest another time, or a larger budget.",
            given=most,
            least=total,
        )
    settings = replace(settings, budget=replace(settings.budget, completions=min(most, total)))
    return replace(plan, settings=settings, unit=None, as_it_is=None, recorded=True).of(min(most, total))


@contextlib.contextmanager
def _kept(plan: Plan) -> Iterator[Plan]:
    """Give the plan a directory where it has none. It stays there if the recording fails, since it was paid for."""
    if plan.settings.log_dir is not None:
        yield plan
        return
    folder = Path(tempfile.mkdtemp(prefix="iapo_dspy-record-"))
    try:
        yield replace(plan, settings=replace(plan.settings, log_dir=folder))
    except BaseException:
        if (folder / "ledger.jsonl").is_file():
            logger.warning(
                "The completions that were drawn are in %s: record again with log_dir=%r.", folder, str(folder)
            )
        else:
            shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
