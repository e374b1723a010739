"""`IAPO`, the optimizer: a DSPy teleprompter that chooses prompt, decoding and N per preference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, overload

import dspy
from dspy.teleprompt import Teleprompter

from iapo_dspy.environments.recorded.recording import Recording
from iapo_dspy.errors import ConfigurationError, nearest
from iapo_dspy.optimizer.conclude import conclude
from iapo_dspy.optimizer.drawing import draw
from iapo_dspy.optimizer.live_recordings.recording_run import record_live
from iapo_dspy.optimizer.options import OLD_NAMES, Execution, Search, with_old_keywords
from iapo_dspy.optimizer.plan import make_plan
from iapo_dspy.optimizer.quoting.quote import Quote, make_quote
from iapo_dspy.optimizer.settings import Settings
from iapo_dspy.optimizer.watching.watch import RunWatch
from iapo_dspy.preferences import Preference
from iapo_dspy.program.compiled import CompiledProgram
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.sampling.spending.budget import Budget
from iapo_dspy.scoring.scores import Metric
from iapo_dspy.scoring.strategies import Strategy
from iapo_dspy.types import Decoding

DEFAULT_PREFERENCES = (
    Preference("quality", cost=0.0),
    Preference("balanced", cost=0.2),
    Preference("thrifty", cost=1.0),
)
_SETTINGS = frozenset(f.name for f in fields(Settings)) - {"callbacks"}  # DSPy has others of its own by that name
_OPTIONS: dict[str, type[Search | Execution]] = {"search": Search, "execution": Execution}
_COMPILE = ("trainset", "valset", "candidates", "inner")


class IAPO(Teleprompter):  # type: ignore[misc]  # dspy ships no types
    """Inference-aware prompt optimization: for each preference the best prompt and number of samples, in one budget.

    A fixed number of completions is spent on candidate prompts. The completions of one prompt serve every preference
    and every N. See `compile`.

    Args:
        metric: `metric(example, prediction, trace=None) -> bool | float | dspy.Prediction(score=...)` in [0, 1].
            Votes and "best_of_n" need it. It is tried on the labels of the first examples before anything is spent.
        strategy: How N completions become one answer. "majority", the default: the answer of most of them, in the
            student's only output field beside `reasoning`. "best_of_n": the one that the metric itself scores
            highest, as in `dspy.BestOfN`; the metric then must need no label. Or an object: `MajorityVote(field)`,
            `WeightedVote(field, weight=...)`, `BestOfN([...])`, `Mixed(vote, objectives=[...])`,
            `Mean(field, range=...)`, `Median`, or one of your own (docs/reference/strategies.md).
        preferences: The preferences that users of the compiled program can name. Default: quality, balanced and
            thrifty, at cost weights 0, 0.2 and 1.
        auto: How much to spend: "light" (1,500 completions, 2 generations of new prompts, N up to 8), "medium" (5,000,
            4, 16) or "heavy" (20,000, 8, 32). Default: "light", where there is no `budget`.
        budget: Or `Budget(completions=..., usd=...)` or a number of completions. Never exceeded. `Budget(usd=5)` alone
            draws as many completions as five dollars pay for. LM calls of a metric or an objective (judges) count in
            tokens, dollars and seconds, not in completions; LMs that a metric holds itself are wrapped by `metered`.
        candidates: The prompts to choose from; `compile` may be given others. Strings, dictionaries predictor ->
            instruction, whole programs with their demos, also of other classes than the student's, and what other
            optimizers returned (`candidates_of`; docs/reference/candidates.md). The student's own instruction takes
            part only if the student is one of them. Or a dictionary predictor -> list of instructions, all combinations
            of which are prompts; None in a list is the predictor's own instruction.
            Default: "auto": the student, and prompts that the run writes (`prompt_model`, `Search(proposers=...)`).
        prompt_model: The LM that writes prompts. Its calls take at most a quarter of the budget's tokens, dollars and
            seconds, and do not count as completions. With it, prompts are also written where `candidates` are given.
            Default: the LM of the student's first predictor.
        lms: LMs to choose from: every candidate is tried with every LM and every decoding. An element is a `dspy.LM`
            or a mapping from names of predictors to LMs. Default: the student's LMs, or the configured one.
        decoding: Decoding configurations; every candidate is tried with each of them. Default: the LM's own. With
            `lms`, also a mapping from model strings to configurations of that model alone.
        adapters: Adapters to choose from, such as `[dspy.ChatAdapter(), dspy.JSONAdapter()]`: every candidate is tried
            with each of them, and calls use the chosen one. Default: the configured one.
        rewriters: Rewriters of queries to choose from, such as `[Rewriter(lm), bpo(other)]`: every candidate is tried
            with the queries as they are and with those that each rewriter makes of them. A call pays for the rewrite
            once, whatever its N. Default: queries stay as they are.
        max_n: Largest number of completions per call, >= 1. Default: that of `auto`, or 16 with a `budget`.
        num_threads: LM requests in flight at most. Default: `dspy.settings.num_threads` where that was raised
            above DSPy's own default, else 64.
        seed: Root of every random choice of the optimizer, >= 0. It does not reach the LM. Give the LM an integer
            `seed`, and each request is sent with a seed that is derived from it.
        log_dir: Directory of the ledger. A killed run that is started again with the same arguments repeats no paid
            call and ends with the same policy; only pulls in flight when it was killed are drawn again. Runs with
            another budget, other candidates, preferences, examples, metric or algorithm go on from what is paid
            (docs/reference/file-formats.md).
        max_errors: Stop when more completions than this fail with an error (exceptions, not unparseable text).
            Default: stop only where not a single completion has worked.
        track_stats: Whether `program.detailed_results` is kept, also in the saved program.
        search: How the best arms are searched: the algorithm, the unit of costs, how calls stop early. See `Search`.
        execution: How the run and later calls are carried out: timeouts, batch jobs, the progress bar. See `Execution`.
        **old: Keywords of version 0.1 that belong to `search` or `execution` today; each works, with a
            `DeprecationWarning`.

    Raises:
        ConfigurationError: An argument that cannot be used; the message says which and why.
    """

    def __init__(
        self,
        *,
        metric: Metric | None = None,
        strategy: Strategy | str = "majority",
        preferences: Sequence[Preference] = DEFAULT_PREFERENCES,
        auto: Literal["light", "medium", "heavy"] | None = None,
        budget: Budget | int | None = None,
        candidates: Any = None,
        prompt_model: dspy.BaseLM | None = None,
        lms: Sequence[dspy.BaseLM | Mapping[str, dspy.BaseLM]] | None = None,
        decoding: Decoding | Sequence[Decoding] | Mapping[str, Decoding | Sequence[Decoding]] | None = None,
        adapters: Sequence[dspy.Adapter] | None = None,
        rewriters: Sequence[Rewriter] | None = None,
        max_n: int | None = None,
        num_threads: int | None = None,
        seed: int = 0,
        log_dir: str | Path | None = None,
        max_errors: int | None = None,
        track_stats: bool = True,
        search: Search = Search(),  # noqa: B008  # frozen
        execution: Execution = Execution(),  # noqa: B008  # frozen
        **old: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in {*_SETTINGS, "auto"}}
        super().__init__()
        search, execution = with_old_keywords(search, execution, old, known=given)
        self._given = {**given, "search": search, "execution": execution}
        self.settings = Settings.of(**self._given)

    def __getattr__(self, name: str) -> Any:
        """Return a setting, such as `optimizer.max_n`."""
        name = OLD_NAMES.get(name, name)
        if name in ("auto", *_OPTIONS):
            return self._given[name]
        if name in _SETTINGS:
            return getattr(self.settings, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a setting is read and checked as it is when the optimizer is built.

        A budget takes the place of `auto`, and `auto` that of a budget.
        """
        name, given = OLD_NAMES.get(name, name), self.__dict__.get("_given", {})
        for place, options in _OPTIONS.items():
            if name in _SETTINGS and name in {f.name for f in fields(options)}:
                name, value = place, replace(given[place], **{name: value})
        if name in given:
            other = {"auto": "budget", "budget": "auto"}.get(name)
            given = {**given, name: value} | ({other: None} if other is not None else {})
            super().__setattr__("settings", Settings.of(**given))
            name, value = "_given", given
        super().__setattr__(name, value)

    @overload
    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        candidates: Any = None,
        inner: None = None,
        **kwargs: Any,
    ) -> CompiledProgram: ...
    @overload
    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        candidates: Any = None,
        inner: str,
        **kwargs: Any,
    ) -> dspy.Module: ...
    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | None = None,
        valset: Sequence[dspy.Example] | None = None,
        candidates: Any = None,
        inner: str | None = None,
        **kwargs: Any,
    ) -> CompiledProgram | dspy.Module:
        """Find the best arm of every preference and return the program that knows them.

        Args:
            student: Any DSPy program with at least one predictor; a copy is compiled. A compiled program is compiled
                anew: its student, with its present arms as the first candidates.
            trainset: Examples with inputs (`.with_inputs(...)`) and, for majority vote, the labels of the metric.
            teacher: Not used; must be None.
            valset: Examples on which the chosen arms are measured, at the price of a fifth of the budget. They have
                no part in the choice, so that `detailed_results.policy[i].held_out` is free of the winner's curse.
                Examples with the inputs of a training example are left out, with a warning.
            candidates: Candidates of this call instead of the optimizer's own.
            inner: The path of the module to compile, such as "generate" or "steps[0]", if the student is a pipeline
                around it. Candidates are that module's, and its completions are drawn and chosen from. The metric
                sees the prediction that the pipeline makes of each of them.
            **kwargs: Not used; any keyword is refused.

        Returns:
            The compiled program; with `inner`, a copy of the pipeline with the compiled program in the module's place.

        Raises:
            ConfigurationError: Something cannot work; raised before the first LM call.
            MostlyUnreadable: Most completions of every prompt cannot be read; the message says what may help.
            TooManyErrors: More completions failed than `max_errors` allows, or none has worked at all.
            ProviderDown: A provider was down for too long before anything was known.
            BatchJobFailed: A batch job was refused or cancelled as a whole, or does not end.
            KeyboardInterrupt: Ctrl-C; all paid completions are in the ledger if there is a `log_dir`.
        """
        if teacher is not None:
            raise ConfigurationError("IAPO.compile uses no teacher: leave it out.")
        for name in kwargs:
            there = " Settings belong to IAPO(...)." if name in {*_SETTINGS, "auto"} else nearest(name, _COMPILE)
            raise ConfigurationError(f"IAPO.compile has no parameter {name!r}.{there}")
        try:
            plan = make_plan(self.settings, student, trainset, candidates, valset=valset, inner=inner)
            with RunWatch(self.settings) as watch:
                return conclude(draw(plan, watch), watch)
        except KeyboardInterrupt:
            pass
        raise KeyboardInterrupt  # anew, so that its traceback ends at the user's call

    def quote(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        valset: Sequence[dspy.Example] | None = None,
        candidates: Any = None,
        inner: str | None = None,
        output_tokens: float | Sequence[float] | None = None,
    ) -> Quote:
        """Say what `compile` would take at most and what it will probably take, without any LM call.

        Args:
            student: As for `compile`.
            trainset: As for `compile`.
            valset: As for `compile`.
            candidates: As for `compile`.
            inner: As for `compile`.
            output_tokens: Mean output tokens of a completion, all its LM calls together: one number or one for each
                prompt (candidate by candidate, each with every LM, each of these with every decoding, each of these
                with every adapter, each of these with the query as it is and with every rewriter). Without it,
                lengths are those of the ledger in `log_dir`, if any.

        A student with a `forward` of its own is run once for each prompt, with answers that are made up.

        Raises:
            ConfigurationError: Anything that `compile` would refuse.
        """
        plan = make_plan(self.settings, student, trainset, candidates, valset=valset, inner=inner)
        return make_quote(plan, output_tokens)

    def record(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        candidates: Any = None,
        samples: int = 16,
        about: Mapping[str, Any] = MappingProxyType({}),
        ray: bool = False,
    ) -> Recording:
        """Draw S completions of every prompt on every example, and return the recorded environment.

        `iapo_dspy.recordings.save` writes it; `iapo simulate` and `recording.exact` work on it without an LM. A
        recording that is started again with the same `log_dir` repeats no paid call, and goes on where a budget ended.

        Args:
            student: As for `compile`.
            trainset: As for `compile`.
            candidates: As for `compile`; where there are none, the student alone is recorded.
            samples: S >= 1. Values of N above S are not observed: they follow from the law of S completions.
            ray: Whether the prompts are shared out over a Ray cluster (extra `ray`): the one that `RAY_ADDRESS` names,
                or a local one. Its machines must share `log_dir`, and limits of dollars and tokens are shared out, too.
            about: Facts for the card of the recording, as JSON data: the data set, the licence, the model's revision.

        Returns:
            The recording, with its completions one by one and its card. Its contexts are the optimizer's preferences;
            the average call for one completion, over all prompts, costs 0.01.

        The budget is that of the optimizer, if it was given one; else all completions are drawn.

        Raises:
            ConfigurationError: Something cannot work; raised before the first LM call.
            BudgetTooSmall: The budget has ended, and completions are missing.
            Exception: As `compile` does.
        """
        budget = self._given["budget"]
        return record_live(
            self.settings, student, trainset, candidates, samples=samples, budget=budget, about=about, ray=ray
        )

    def get_params(self) -> dict[str, Any]:
        """Return the settings as plain JSON data, functions and programs by name. They hold no keys of providers."""
        return self.settings.to_dict()
