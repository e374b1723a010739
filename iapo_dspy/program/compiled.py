"""The compiled program: an ordinary DSPy module that knows its prompt and its N for each preference."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from pydantic import BaseModel, ConfigDict

from iapo_dspy.errors import AllCompletionsFailed, ConfigurationError, StateError
from iapo_dspy.program.policy import CompiledPolicy
from iapo_dspy.program.table import PolicyTable
from iapo_dspy.sampling.pricing import Prices
from iapo_dspy.sampling.rollouts import Rollout, Sampler
from iapo_dspy.scoring.strategies import Selection, Strategy
from iapo_dspy.types import Arm, Preference

__all__ = ["CallReport", "CompiledProgram"]


class CallReport(BaseModel):
    """What one call of a compiled program did; the `iapo` field of its prediction.

    Attributes:
        preference: Name of the preference, or None for an ad hoc one.
        cost_weight: Its cost weight.
        prompt: Index of the prompt.
        label: The prompt in words.
        n: Completions drawn.
        votes: Answer -> votes, most first (majority vote).
        utilities: Weighted objective per completion, None for a failed one (best-of-n).
        winner: Position of the returned completion among the n.
        failures: Position -> why this completion took no part.
        prompt_tokens: Input tokens of the call.
        completion_tokens: Output tokens of the call.
        usd: Price, None where it is not known.
        seconds: From sending the call to its last completion.
        cost: What the call cost, in the unit that the program was compiled with (`cost_unit`); None where that counts
            dollars and the price is not known.
        cost_unit: That unit in words: "output tokens" by default.
    """

    model_config = ConfigDict(frozen=True)

    preference: str | None
    cost_weight: float
    prompt: int
    label: str
    n: int
    votes: dict[str, int] | None
    utilities: tuple[float | None, ...] | None
    winner: int
    failures: dict[int, str]
    prompt_tokens: float
    completion_tokens: float
    usd: float | None
    seconds: float
    cost: float | None
    cost_unit: str


class CompiledProgram(dspy.Module):  # type: ignore[misc]  # dspy ships no types
    """A program with one arm (prompt and N) for each preference.

    `IAPO.compile` returns it. To load a saved one, make it from a fresh student and call `load`:

        program = CompiledProgram(dspy.ChainOfThought("question -> answer"))
        program.load("math.json")

    A call draws the arm's N completions at once, aggregates them and returns the winner as a `dspy.Prediction` with the
    student's fields, all successful completions in `completions` (winner first), and a `CallReport` in `iapo`.

    Args:
        student: The program that was compiled, or a fresh one of its class; it is copied.
        strategy: Needed for loading where the strategy has functions of yours (objectives, `normalize`).
        policy: What was learnt; None before one is loaded.
        preference_field: The keyword by which a call chooses its preference; None if the student has an input field
            of that name, then `with_preference` is the only way. A loaded program has its own.
        programs: The program of every prompt, as it was measured; None makes them from the student and the policy.
    """

    def __init__(
        self,
        student: dspy.Module,
        strategy: Strategy | None = None,
        policy: CompiledPolicy | None = None,
        *,
        preference_field: str | None = "preference",
        programs: Sequence[dspy.Module] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(student, dspy.Module):
            raise ConfigurationError(f"CompiledProgram needs the student, a dspy.Module; got {student!r}.")
        self.policy = PolicyTable(student, strategy, policy, programs, preference_field)
        self.arms = self.policy.arms
        self.detailed_results: Any = None

    # -- what DSPy asks of a module

    def named_parameters(self) -> list[tuple[str, Any]]:
        """Return the policy and the predictors of the compiled arms."""
        found: list[tuple[str, Any]] = [("policy", self.policy)]
        for i, arm in enumerate(self.arms):
            for name, predictor in arm.named_parameters():
                found.append((f"arms[{i}]" if name == "self" else f"arms[{i}].{name}", predictor))
        return found

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the policy; it holds the arms."""
        return {"policy": self.policy.dump_state(json_mode=json_mode)}

    def load_state(self, state: Mapping[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Read what `dump_state` wrote; no LM is ever part of it.

        Raises:
            StateError: It is no compiled program, or does not fit the student or the strategy.
        """
        if "policy" not in state:
            raise StateError(f"This is no saved CompiledProgram: it has {sorted(state)}, and no 'policy'.")
        self.policy.load_state(state["policy"])

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledProgram:
        """Copy the arms; the results of the run are shared."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for name, value in self.__getstate__().items():
            shared = name in ("detailed_results", "arms", "policy")
            twin.__dict__[name] = value if shared else copy.deepcopy(value, memo)
        twin.policy = copy.deepcopy(self.policy, memo)
        twin.arms = twin.policy.arms
        twin.history, twin.callbacks = [], list(self.callbacks)
        return twin

    # -- preferences

    @property
    def preferences(self) -> tuple[Preference, ...]:
        """The compiled preferences."""
        return self.policy.ready.preferences

    def with_preference(self, preference: str | Preference) -> CompiledProgram:
        """Return this program with another default preference; the arms are shared.

        Raises:
            UnknownPreference: No preference of that name was compiled.
            ConfigurationError: It is neither a name nor a Preference, or it weighs unknown objectives.
        """
        self._resolve(preference)
        twin = copy.copy(self)
        twin.history, twin.callbacks = [], list(self.callbacks)
        twin.policy = self.policy.with_default(preference)
        twin.arms = twin.policy.arms
        return twin

    def solve(self, preference: str | Preference | None = None) -> Arm:
        """Return the arm that a call with this preference draws; unseen ones are solved without LM calls."""
        return self.policy.arm_of(self._resolve(preference))

    def _resolve(self, preference: Any) -> Preference:
        data = self.policy.ready
        if preference is None:
            preference = self.policy.default if self.policy.default is not None else data.default
        if isinstance(preference, str):
            return data.named(preference)
        if isinstance(preference, Preference):
            assert self.policy.strategy is not None  # set together with the data
            preference.vector(self.policy.strategy.objectives)
            return preference
        raise ConfigurationError(
            f"preference={preference!r}: give the name of a compiled preference "
            f"({[p.name for p in data.preferences]}) or a Preference(cost=...)."
        )

    # -- calls

    def forward(self, *args: Any, **kwargs: Any) -> dspy.Prediction:
        """Draw, aggregate and return; see the class.

        Raises:
            UnknownPreference: No preference of that name was compiled.
            AllCompletionsFailed: No completion could be used; the message has the causes.
        """
        preference, arm, inputs = self._prepare(args, kwargs)
        program = self.policy.program_of(arm.prompt)
        decoding = self.policy.ready.prompts[arm.prompt].decoding
        rollouts = self._sampler().sample_sync(program, inputs, arm.n, key="call", decoding=decoding, record=True)
        return self._conclude(preference, arm, inputs, rollouts)

    async def aforward(self, *args: Any, **kwargs: Any) -> dspy.Prediction:
        """Do what `forward` does without blocking the event loop."""
        # Solving, scoring and whatever else may take its time runs in a thread: the event loop stays free.
        preference, arm, inputs = await asyncio.to_thread(self._prepare, args, kwargs)
        program = self.policy.program_of(arm.prompt)
        decoding = self.policy.ready.prompts[arm.prompt].decoding
        rollouts = await self._sampler().sample(program, inputs, arm.n, key="call", decoding=decoding, record=True)
        return await asyncio.to_thread(self._conclude, preference, arm, inputs, rollouts)

    def _sampler(self) -> Sampler:
        return _sampler(self.policy.ready.cost.prices)

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Preference, Arm, dict[str, Any]]:
        keyword = self.policy.preference_field
        asked = kwargs.pop(keyword, None) if keyword else None
        preference = self._resolve(asked)
        if args:
            kwargs = {**_names(self.policy.student, args), **kwargs}
        return preference, self.policy.arm_of(preference), kwargs

    def _conclude(
        self, preference: Preference, arm: Arm, inputs: Mapping[str, Any], rollouts: Sequence[Rollout]
    ) -> dspy.Prediction:
        strategy = self.policy.strategy
        assert strategy is not None  # `_prepare` has resolved the preference
        drawn = [(i, r.prediction) for i, r in enumerate(rollouts) if r.prediction is not None]
        failures = {i: r.failure or "failed" for i, r in enumerate(rollouts) if r.prediction is None}
        selection = strategy.select(inputs, [p for _, p in drawn], preference.vector(strategy.objectives))
        if selection is not None:
            failures.update({drawn[i][0]: why for i, why in selection.failures.items()})
        if selection is None:
            failures.update({i: "no usable answer" for i, _ in drawn})
            causes = tuple(f"completion {i}: {why}" for i, why in sorted(failures.items()))
            shown = "; ".join(causes[:3]) + ("; ..." if len(causes) > 3 else "")
            raise AllCompletionsFailed(
                f"All {arm.n} completions of this call failed: {shown}",
                causes=causes,
                prompt_tokens=sum(r.prompt_tokens for r in rollouts),
                completion_tokens=sum(r.completion_tokens for r in rollouts),
            )
        winner = drawn[selection.index][0]
        prediction = _merge([p for _, p in drawn], selection.index)
        prices = [r.usd for r in rollouts]
        usd = None if any(p is None for p in prices) else sum(p for p in prices if p is not None)
        cost = self.policy.ready.cost
        once, each = cost.split(rollouts)
        prediction.iapo = CallReport(
            preference=preference.name,
            cost_weight=preference.cost,
            prompt=arm.prompt,
            label=self.policy.label_of(arm.prompt),
            n=arm.n,
            votes=dict(selection.votes) if selection.votes is not None else None,
            utilities=_spread(selection, drawn, arm.n),
            winner=winner,
            failures=dict(sorted(failures.items())),
            prompt_tokens=sum(r.prompt_tokens for r in rollouts),
            completion_tokens=sum(r.completion_tokens for r in rollouts),
            usd=usd,
            seconds=max(r.latency_s for r in rollouts),
            cost=None if cost.usd and usd is None else once + sum(each),
            cost_unit=cost.unit,
        )
        trace = dspy.settings.trace
        if trace is not None:
            trace.extend(rollouts[winner].trace)
        return prediction


@functools.cache
def _sampler(prices: Prices | None) -> Sampler:
    """One sampler for all deployed calls of the process, so that together they respect one bound of concurrency.

    Programs with other prices of the user have a sampler of their own.
    """
    return Sampler(prices=prices)


def _spread(
    selection: Selection, drawn: Sequence[tuple[int, dspy.Prediction]], n: int
) -> tuple[float | None, ...] | None:
    if selection.utilities is None:
        return None
    by_position = {i: u for (i, _), u in zip(drawn, selection.utilities, strict=True)}
    return tuple(by_position.get(i) for i in range(n))


def _merge(predictions: Sequence[dspy.Prediction], winner: int) -> dspy.Prediction:
    """Return the winner's fields; where all have the same fields, with all of them as its completions."""
    best = predictions[winner]
    others = [p for i, p in enumerate(predictions) if i != winner]
    rows = [dict(p.items()) for p in (best, *others)]
    if rows[0] and all(row.keys() == rows[0].keys() for row in rows):
        return dspy.Prediction.from_completions(rows)
    return dspy.Prediction(**rows[0])


def _names(student: dspy.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """Name positional arguments as the student's `forward` does."""
    signature = inspect.signature(type(student).forward)
    parameters = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    if len(args) > len(parameters):
        raise ConfigurationError(
            f"{len(args)} positional arguments given, but {type(student).__name__}.forward names {parameters}. Pass "
            "inputs by name, e.g. program(question=...)."
        )
    return dict(zip(parameters, args, strict=False))
