"""Options that are rarely set: how a run searches, and how it is carried out. `IAPO` takes one object for each."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from iapo_dspy.bandit.algorithms.port import Algorithm
from iapo_dspy.bandit.baselines.triple import Triple
from iapo_dspy.bandit.named import named
from iapo_dspy.bandit.stops import StopMode
from iapo_dspy.environments.live.progress import Progress
from iapo_dspy.errors import ConfigurationError, nearest
from iapo_dspy.events import Event
from iapo_dspy.preferences import is_number
from iapo_dspy.prompts.proposers.port import Proposer
from iapo_dspy.sampling.batches.running import BatchAPI
from iapo_dspy.sampling.rollouts.sampler import check_timeout
from iapo_dspy.sampling.spending.cost import Cost


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a run searches for the best arms: `IAPO(search=Search(algorithm="psst"))`.

    Attributes:
        algorithm: "auto", the default: shared queries, and predictions corrected by unbiased estimates. Or the paper's
            Algorithm 1, "psst"; "psst+k4" and the like add Top-K screening. Or another name of `bandit.named`, or an
            `Algorithm` such as `Auto(rounds=4)`.
        stopping: How deployed calls may stop before all N are drawn. "confidence", the default: in waves, by a rule
            that is tuned for each preference from the same draws, together with prompt and N. "exact": only where the
            rest cannot change the result. None: all N are drawn at once, in one request where the provider takes n.
        compound: Whether calls may combine several prompts where that is surely better, by the same draws: cascades,
            in which a cheap stage answers where it is sure, and mixtures, in which several prompts vote together. Not
            with `stopping=None`, by which all completions of a call come at once.
        cost_unit: The unit in which calls are priced: `Cost()` counts output tokens, `Cost(usd=1)` dollars; see `Cost`.
            `Preference(cost=...)` is the weight of that price. Default: output tokens, or dollars where `lms` have
            different prices.
        proposers: How prompts are written: objects of `iapo_dspy.proposers`, or your own. With them, prompts
            are also written where `candidates` are given. Default: those of the package.
        joint_limit: The largest number of combinations of instructions, LMs and decodings that is looked at as a
            whole, >= 1. More are searched one predictor at a time, from the first instruction of each list on.

    Raises:
        ConfigurationError: A value that cannot be used; the message says which and why.
    """

    algorithm: str | Algorithm = "auto"
    stopping: StopMode | None = "confidence"
    compound: bool = True
    cost_unit: Cost | None = None
    proposers: Proposer | Sequence[Proposer] | None = None
    joint_limit: int = 32

    def __post_init__(self) -> None:
        if isinstance(named(self.algorithm), Triple):
            raise ConfigurationError(
                f"algorithm={self.algorithm!r} looks at single completions only, and estimates nothing that a run "
                "could report of other N. It takes part in `iapo simulate`; give another, such as 'auto' or 'psst'."
            )
        if self.stopping not in ("confidence", "exact", None):
            raise ConfigurationError(
                f'stopping={self.stopping!r}: give "confidence", "exact", or None to draw all N at once.'
            )
        if not isinstance(self.compound, bool):
            raise ConfigurationError(f"compound={self.compound!r}: give True or False.")
        if self.cost_unit is not None and not isinstance(self.cost_unit, Cost):
            raise ConfigurationError(
                f"cost_unit={self.cost_unit!r}: give a Cost, such as Cost(usd=1); the weight of costs is "
                "Preference(cost=...)."
            )
        object.__setattr__(self, "proposers", read_proposers(self.proposers))  # an iterator is read once
        check_whole("joint_limit", self.joint_limit, least=1)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run, and the calls of the program that it compiles, are carried out: `IAPO(execution=Execution(...))`.

    Attributes:
        rollout_timeout: Seconds that a program may work without asking an LM, > 0 or None. After them its rollout
            counts as a failed completion, so that a program that hangs does not hold up the run.
        outage_patience: Seconds, >= 0, for which a run waits for a provider that is down (refused or broken
            connections, 5xx, timeouts, 429s alone) before it stops with what it knows. Other providers work on
            meanwhile. What an outage has cost is no result: the same run, started again, draws it.
        max_unreadable: Share of a prompt's completions that may be unreadable, in (0, 1]. A run in which surely more of
            every prompt's are stops early, with `MostlyUnreadable`, which says what may help; one readable prompt is
            enough to go on. None, or 1, goes on unless nothing works at all.
        batch: True, or `BatchAPI(...)`: draw each round by batch jobs at the provider, at half the price with most of
            them, within hours (docs/how-to/batch-api.md). For students of one predictor; needs `log_dir`, because a
            job is paid for even if this process ends before it.
        default_preference: Name of the preference that a call uses when it names none. Default: the first one.
        preference_field: Keyword by which calls choose their preference. None if the student has an input field of
            that name: then `program.with_preference(...)` chooses.
        progress: Whether a bar, and above it a line for each round, are shown. The log has the lines at INFO, shown or
            not.
        callbacks: Functions that are called with each event of a run (`iapo_dspy.events`), in the thread that called
            `compile`, such as `iapo_dspy.callbacks.MLflowCallback()`. One that raises costs a warning, and can neither
            end the run nor lose a completion; only KeyboardInterrupt ends the run, as Ctrl-C does.

    Raises:
        ConfigurationError: A value that cannot be used; the message says which and why.
    """

    rollout_timeout: float | None = 600.0
    outage_patience: float = 600.0
    max_unreadable: float | None = 0.5
    batch: BatchAPI | bool | None = None
    default_preference: str | None = None
    preference_field: str | None = "preference"
    progress: bool | Callable[[Progress], None] = True
    callbacks: Sequence[Callable[[Event], object]] = ()

    def __post_init__(self) -> None:
        check_timeout(self.rollout_timeout)
        if not (is_number(self.outage_patience) and self.outage_patience >= 0):
            raise ConfigurationError(f"outage_patience={self.outage_patience!r}: give seconds >= 0.")
        most = self.max_unreadable
        if most is not None and not (is_number(most) and 0 < most <= 1):
            raise ConfigurationError(f"max_unreadable={most!r}: give a share in (0, 1], or None for any.")
        BatchAPI.of(self.batch)
        if not isinstance(self.progress, bool) and not callable(self.progress):
            raise ConfigurationError(f"progress={self.progress!r}: give True or False.")
        found = tuple(self.callbacks) if isinstance(self.callbacks, Iterable) else None
        if found is None or any(map(_is_no_callback, found)):
            raise ConfigurationError(
                f"callbacks={self.callbacks!r}: give a list of functions of one event, such as [MLflowCallback()]; "
                "classes and async functions are not called."
            )
        object.__setattr__(self, "callbacks", found)  # an iterator is read once
        default, field = self.default_preference, self.preference_field
        if default is not None and not isinstance(default, str):
            raise ConfigurationError(f"default_preference={default!r}: give the name of a preference.")
        if field is not None and not (isinstance(field, str) and field.isidentifier()):
            raise ConfigurationError(f"preference_field={field!r}: give a keyword, or None.")


def _is_no_callback(given: Any) -> bool:
    return isinstance(given, type) or not callable(given) or inspect.iscoroutinefunction(given)


OLD_NAMES = {"cost": "cost_unit"}  # settings that have another name today
OTHER_NAMES = {
    "reflection_lm": "prompt_model",
    "task_model": "lms",
    "max_metric_calls": "budget",
    "max_full_evals": "budget",
    "reward_fn": "metric",
    "N": "max_n",
}  # what other optimizers of DSPy call it -> its name here


def with_old_keywords(
    search: Search, execution: Execution, old: Mapping[str, Any], known: Iterable[str]
) -> tuple[Search, Execution]:
    """Return both objects with the keywords that stood beside them in version 0.1, such as `IAPO(algorithm=...)`.

    Args:
        search: As given.
        execution: As given.
        old: Further keywords of `IAPO`.
        known: Its keywords of today.

    Raises:
        ConfigurationError: A keyword that was never known, or a value that cannot be used.
    """
    today = {OLD_NAMES.get(name, name): value for name, value in old.items()}
    places = {f.name for kind in (Search, Execution) for f in fields(kind)}
    for name in old:
        if OLD_NAMES.get(name, name) not in places:
            here = f" Use {OTHER_NAMES[name]!r}." if name in OTHER_NAMES else nearest(name, {*known, *places})
            raise ConfigurationError(f"IAPO(...) has no parameter {name!r}.{here}")
    if not old:
        return search, execution
    searching = {f.name: today[f.name] for f in fields(Search) if f.name in today}
    executing = {f.name: today[f.name] for f in fields(Execution) if f.name in today}
    spelled = [
        f"{place}({', '.join(f'{name}=...' for name in own)})"
        for place, own in (("search=Search", searching), ("execution=Execution", executing))
        if own
    ]
    warnings.warn(
        f"IAPO({', '.join(f'{name}=...' for name in old)}) is spelled IAPO({', '.join(spelled)}) today.",
        DeprecationWarning,
        stacklevel=3,
    )
    return replace(search, **searching), replace(execution, **executing)


def read_proposers(given: Any) -> tuple[Proposer, ...] | None:
    """Return the proposers; None stands for those of the package."""
    if given is None:
        return None
    found = tuple(given) if isinstance(given, Iterable) else (given,)
    wrong = [p for p in found if isinstance(p, type) or not isinstance(p, Proposer)]
    if wrong or not found:
        raise ConfigurationError(
            f"proposers={given!r}: give objects with propose(evidence, n), such as those of "
            "iapo_dspy.proposers, or leave it out."
        )
    return found


def check_whole(name: str, value: Any, *, least: int) -> None:
    """Refuse a value that is not a whole number >= least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}={value!r}: give a whole number >= {least}.")
