"""Inner modules of pipelines whose inputs are rewritten while a run draws, as the compiled module will do itself."""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy

from iapo_dspy.errors import BudgetExceeded
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.prompts.rewriters.rewriting import Rewrites
from iapo_dspy.sampling.concurrency.loop import await_on_loop, run_on_loop
from iapo_dspy.sampling.ledger.digests import digest
from iapo_dspy.sampling.rollouts.sampling_lm import current_seat


def with_rewritten_inputs(
    program: dspy.Module, names: Sequence[str], rewriter: Rewriter, rewrites: Rewrites
) -> dspy.Module:
    """Return a program that rewrites its inputs before it works on them; its predictors are shared.

    The module's callbacks and the pipeline around it see the inputs as they were.

    Args:
        program: The inner module.
        names: Its inputs, in the order of positional arguments.
        rewriter: Knows its field.
        rewrites: The rewrites of the run.
    """
    kind: Any = type(program)
    outside = contextvars.copy_context()  # of the run: inside of a rollout, the configured LM is a stand-in

    def given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = given(args, kwargs)
        found = outside.copy().run(lambda: run_on_loop(rewrites.of(rewriter, digest(inputs), inputs)))
        return kind.forward(self, **_inputs(found))

    async def aforward(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = given(args, kwargs)
        found = await await_on_loop(rewrites.of(rewriter, digest(inputs), inputs))
        return await kind.aforward(self, **_inputs(found))

    methods: dict[str, Callable[..., Any]] = {"forward": forward, "aforward": aforward}
    namespace: dict[str, Any] = {name: method for name, method in methods.items() if hasattr(kind, name)}
    namespace |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    # A predictor that was copied for a run says how it is copied, which would leave this class out.
    namespace["__reduce_ex__"] = lambda self, protocol: (_copied, (made, self.__getstate__()))
    made: Any = type(kind)(kind.__name__, (kind,), namespace)
    twin: dspy.Module = _copied(made, copy.copy(program).__getstate__())
    twin.callbacks = list(program.callbacks)
    return twin


def _copied(kind: Any, state: Mapping[str, Any]) -> Any:
    twin = kind.__new__(kind)
    twin.__setstate__(dict(state)) if hasattr(twin, "__setstate__") else vars(twin).update(state)
    return twin


def _inputs(found: Any) -> Mapping[str, Any]:
    """Return what the module works on; where the budget does not pay for the rewrite, the rollout is not drawn."""
    if found is not None:
        inputs: Mapping[str, Any] = found.inputs
        return inputs
    error = BudgetExceeded("A rewrite does not fit into the budget, or its provider is down.")
    seat = current_seat()
    if seat is not None:
        seat.undrawn = True
    raise error
