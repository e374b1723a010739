"""The settings of a run: read and checked once, when the optimizer is built."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from iapo_dspy.bandit.algorithms.port import Algorithm
from iapo_dspy.bandit.named import named, short_name
from iapo_dspy.bandit.stops import StopMode
from iapo_dspy.environments.live.progress import Progress
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.events import Event
from iapo_dspy.optimizer.options import Execution, Search, check_whole, read_proposers
from iapo_dspy.preferences import Preference
from iapo_dspy.prompts.adapter_names import adapted, read_distinct_adapters
from iapo_dspy.prompts.lms import Decodings, LMs, default_cost, read_decodings, read_distinct_lms
from iapo_dspy.prompts.proposers.port import Proposer
from iapo_dspy.prompts.rewriters.rewriter import Rewriter, read_distinct_rewriters
from iapo_dspy.sampling.batches.running import BatchAPI
from iapo_dspy.sampling.ledger.field_values import jsonable
from iapo_dspy.sampling.spending.budget import Budget
from iapo_dspy.sampling.spending.cost import Cost
from iapo_dspy.scoring.scores import Metric
from iapo_dspy.scoring.strategies import Strategy, strategy_of
from iapo_dspy.scoring.user_functions import name_of


@dataclass(frozen=True, kw_only=True)
class Level:
    """The meaning of `IAPO(auto=...)`, in numbers.

    Attributes:
        completions: The budget.
        generations: Generations of new prompts at most.
        max_n: Largest number of completions per call.
    """

    completions: int
    generations: int
    max_n: int


LEVELS: dict[str, Level] = {
    "light": Level(completions=1_500, generations=2, max_n=8),
    "medium": Level(completions=5_000, generations=4, max_n=16),
    "heavy": Level(completions=20_000, generations=8, max_n=32),
}
GENERATIONS, MAX_N = 4, 16  # where the user gives a budget and nothing else


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `IAPO`, checked and with their defaults filled in; `IAPO` says what each of them means."""

    strategy: Strategy
    metric: Metric | None
    preferences: tuple[Preference, ...]
    default_preference: str
    preference_field: str | None
    cost_unit: Cost
    max_n: int
    budget: Budget
    generations: int
    candidates: Any
    prompt_model: dspy.BaseLM | None
    proposers: tuple[Proposer, ...] | None
    decoding: Decodings
    lms: tuple[LMs, ...]
    adapters: tuple[dspy.Adapter, ...]
    rewriters: tuple[Rewriter, ...]
    joint_limit: int
    algorithm: Algorithm
    stopping: StopMode | None
    compound: bool
    seed: int
    num_threads: int | None
    rollout_timeout: float | None
    outage_patience: float
    max_unreadable: float | None
    max_errors: int | None
    log_dir: Path | None
    batch: BatchAPI | None
    track_stats: bool
    progress: bool | Callable[[Progress], None]
    callbacks: tuple[Callable[[Event], object], ...]

    def __post_init__(self) -> None:
        for name, least in (("max_n", 1), ("seed", 0)):
            check_whole(name, getattr(self, name), least=least)
        for name, least in (("num_threads", 1), ("max_errors", 0)):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least=least)
        if not isinstance(self.strategy, Strategy):
            raise ConfigurationError(f"strategy={self.strategy!r}: give a Strategy, such as MajorityVote('answer').")
        for kind in (Search, Execution):
            kind(**{f.name: getattr(self, f.name) for f in dataclasses.fields(kind)})
        if self.batch is not None and self.log_dir is None:
            raise ConfigurationError(
                "batch=... needs log_dir='runs/...': a batch job takes hours and is paid for from the moment it is "
                "submitted; only the run's ledger knows it after this process has ended."
            )
        if self.batch is not None and self.cost_unit.seconds:
            raise ConfigurationError("batch=... measures no latency: leave seconds out of Cost(...), or batch=...")
        names = [p.name for p in self.preferences]
        if self.default_preference not in names:
            raise ConfigurationError(f"default_preference={self.default_preference!r}: it must be one of {names}.")

    @property
    def combines(self) -> bool:
        """Whether calls may combine several prompts."""
        return self.compound and self.stopping is not None

    @classmethod
    def of(cls, search: Search, execution: Execution, **given: Any) -> Settings:
        """Read the arguments of `IAPO` as a user gives them.

        Raises:
            ConfigurationError: An argument that cannot be used; the message says which and why.
        """
        for name, options, kind in (("search", search, Search), ("execution", execution, Execution)):
            if not isinstance(options, kind):
                raise ConfigurationError(f"{name}={options!r}: give {kind.__name__}(...), or leave it out.")
            given |= {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
        if callable(given["progress"]):
            warnings.warn(
                "Execution(progress=function) is spelled Execution(callbacks=[function]) today. A callback is called "
                "with every event of iapo_dspy.events; `Progress` is the one that comes after every pull.",
                DeprecationWarning,
                stacklevel=3,
            )
        metric = given["metric"]
        if metric is not None and not callable(metric):
            raise ConfigurationError(f"metric={metric!r}: give a function metric(example, prediction, trace=None).")
        strategy = strategy_of(given["strategy"], metric)
        if given["strategy"] != "best_of_n":  # which selects by the metric: the check would say that it is not used
            strategy.check(metric=metric)
        preferences = _preferences(given["preferences"], strategy.objectives)
        lms, level = read_distinct_lms(given["lms"]), _level(given["auto"], given["budget"])
        default, candidates, log_dir = given["default_preference"], given["candidates"], given["log_dir"]
        read = {
            "strategy": strategy,
            "preferences": preferences,
            "default_preference": default if default is not None else preferences[0].name,
            "algorithm": named(given["algorithm"]),
            "cost_unit": given["cost_unit"] or default_cost(lms),
            "budget": Budget.of(given["budget"] if level is None else level.completions),
            "max_n": given["max_n"] if given["max_n"] is not None else MAX_N if level is None else level.max_n,
            "generations": GENERATIONS if level is None else level.generations,
            "prompt_model": _prompt_model(given["prompt_model"]),
            "proposers": read_proposers(given["proposers"]),
            "candidates": list(candidates) if isinstance(candidates, Iterator) else candidates,
            "decoding": read_decodings(given["decoding"], lms),
            "lms": lms,
            "adapters": read_distinct_adapters(given["adapters"]),
            "rewriters": read_distinct_rewriters(given["rewriters"]),
            "log_dir": Path(log_dir) if log_dir is not None else None,
            "batch": BatchAPI.of(given["batch"]),
            "callbacks": tuple(given["callbacks"]),
        }
        return cls(**{**{k: v for k, v in given.items() if k != "auto"}, **read})

    @property
    def writes(self) -> bool:
        """Whether a run writes prompts, whichever candidates it has."""
        return self.prompt_model is not None or self.proposers is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON data: a change of these data does not change the optimizer.

        Functions are there by name and candidate programs by class, because they may hold LMs with their keys.
        """
        plain = (
            "default_preference", "preference_field", "max_n", "generations", "joint_limit", "stopping", "compound",
            "seed", "num_threads", "rollout_timeout", "outage_patience", "max_errors", "max_unreadable", "track_stats",
        )  # fmt: skip
        return {
            **{name: getattr(self, name) for name in plain},
            "strategy": jsonable(self.strategy.to_dict()),
            "metric": name_of(self.metric) if self.metric is not None else None,
            "preferences": [jsonable(p.to_dict()) for p in self.preferences],
            "cost_unit": jsonable(self.cost_unit.to_dict()),
            "budget": {k: v for k, v in dataclasses.asdict(self.budget).items() if v is not None},
            "algorithm": short_name(self.algorithm),
            "candidates": _candidates(self.candidates),
            "prompt_model": self.prompt_model.model if self.prompt_model is not None else None,
            "proposers": [type(p).__name__ for p in self.proposers] if self.proposers is not None else None,
            "decoding": _decodings(self.decoding),
            "lms": [_models(element) for element in self.lms],
            "adapters": [str(one.name) for one in adapted(self.adapters) if one.name is not None],
            "rewriters": [rewriter.name for rewriter in self.rewriters],
            "log_dir": str(self.log_dir) if self.log_dir is not None else None,
            "batch": self.batch is not None,
        }


def _level(auto: Any, budget: Any) -> Level | None:
    """Return the level of a run; None where the user gives a budget."""
    if auto is not None and budget is not None:
        raise ConfigurationError(f"auto={auto!r} and budget={budget!r}: auto sets the budget; give one of them.")
    if auto is None and budget is not None:
        return None
    name = "light" if auto is None else auto
    if name not in LEVELS:
        raise ConfigurationError(f"auto={auto!r}: give one of {', '.join(map(repr, LEVELS))}, or a budget.")
    return LEVELS[name]


def is_auto(candidates: Any) -> bool:
    """Tell whether candidates are the word for prompts that the run writes."""
    return isinstance(candidates, str) and candidates == "auto"


def _prompt_model(lm: Any) -> dspy.BaseLM | None:
    if lm is not None and not isinstance(lm, dspy.BaseLM):
        raise ConfigurationError(f"prompt_model={lm!r}: give a dspy.LM, or leave it out: the student's LM writes then.")
    return lm


def _preferences(given: Any, objectives: Sequence[str]) -> tuple[Preference, ...]:
    """Return the preferences to compile: at least one, with different names, none with an unknown objective."""
    if isinstance(given, (Preference, str, Mapping)) or not isinstance(given, (Iterable, type(None))):
        raise ConfigurationError(f"preferences must be a list of Preference, got {given!r}.")
    found = tuple(given or ())
    if not found:
        raise ConfigurationError("No preferences: give at least one, e.g. [Preference('quality', cost=0.0)].")
    for i, preference in enumerate(found):
        if not isinstance(preference, Preference):
            raise ConfigurationError(f"preferences[{i}] is {preference!r}; give Preference('name', cost=...).")
        if preference.name is None:
            raise ConfigurationError(f"preferences[{i}] has no name; calls choose compiled preferences by name.")
        preference.vector(objectives)
    names = [p.name for p in found]
    twice = sorted({str(n) for n in names if names.count(n) > 1})
    if twice:
        raise ConfigurationError(f"Preference names must differ; given more than once: {twice}.")
    return found


def _candidates(given: Any) -> Any:
    """Return candidates in whatever form as plain data; programs by their class and instructions."""
    if isinstance(given, dspy.Module):
        instructions = {name: p.signature.instructions for name, p in given.named_predictors()}
        return {"program": type(given).__name__, "instructions": instructions}
    if isinstance(given, Mapping):
        return {str(name): _candidates(value) for name, value in given.items()}
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [_candidates(value) for value in given]
    return given if isinstance(given, (str, int, float, type(None))) else type(given).__name__


def _decodings(decodings: Any) -> Any:
    if isinstance(decodings, Mapping):  # model string -> its decodings
        return {str(model): _decodings(own) for model, own in decodings.items()}
    return [d.as_kwargs() for d in decodings]


def _models(element: Any) -> Any:
    """Return an element of `lms` by its model strings: the LMs may hold keys."""
    return {str(k): lm.model for k, lm in element.items()} if isinstance(element, Mapping) else element.model
