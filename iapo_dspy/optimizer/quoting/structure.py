"""The LM calls that one completion of a student makes, found without asking an LM."""

from __future__ import annotations

import asyncio
import copy
import enum
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dspy
import pydantic

from iapo_dspy.errors import one_line
from iapo_dspy.optimizer.pipelines import Pipeline, watched
from iapo_dspy.optimizer.plan import Plan
from iapo_dspy.prompts.prompt import Prompt
from iapo_dspy.sampling.concurrency.loop import run_on_loop, within
from iapo_dspy.sampling.concurrency.threads import in_thread
from iapo_dspy.sampling.lm.params import max_output_tokens, request_params
from iapo_dspy.sampling.lm.proxy import StandInLM
from iapo_dspy.sampling.rollouts.pipeline import WATCH, Watch
from iapo_dspy.sampling.rollouts.prepare import adapter_or_configured, prepare
from iapo_dspy.sampling.spending.pricing import count_tokens, likely_prompt_bound

_Note = Callable[[Any, Sequence[Mapping[str, Any]], Mapping[str, Any]], None]
_MOST_CALLS = 64  # of one completion; a program that waits for an answer it likes would go on for ever
_LONGEST = 20.0  # seconds that a program may take


@dataclass(frozen=True, kw_only=True)
class LMCall:
    """One LM call of a completion.

    Attributes:
        lm: The LM.
        messages: The prompt. In the later calls of a program, the answers to the earlier ones are made up.
        params: Settings of the request.
    """

    lm: dspy.BaseLM
    messages: Sequence[Mapping[str, Any]]
    params: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        """Tokens of the prompt, counted by the model's tokenizer as far as LiteLLM has it."""
        return count_tokens(self.lm.model, self.messages)

    @property
    def most_tokens(self) -> int:
        """Tokens of the prompt at most."""
        return likely_prompt_bound(self.lm.model, self.messages, self.params)

    @property
    def limit(self) -> int | None:
        """Tokens of the answer at most; None where nothing limits them."""
        return max_output_tokens(self.params)


class DryRunFailed(Exception):
    """A program cannot be run without its LMs' real answers; the message says why."""


def is_direct(plan: Plan) -> bool:
    """Whether every completion of a prompt is one completion of one predictor."""
    return plan.pipeline is None and all(prompt.student.is_direct for prompt in plan.prompts.shown)


def calls_of(plan: Plan, prompt: Prompt, example: dspy.Example) -> list[LMCall]:
    """Return the LM calls of one completion, in order.

    A predictor's are known. Any other program is run once, with answers that are made up. Its calls are all that it can
    make, unless it asks more often for other answers.

    Raises:
        DryRunFailed: The program raised an error, asked too often, or took too long.
    """
    if is_direct(plan):
        (predictor,), (lm,) = prompt.student.predictors.values(), prompt.student.lms.values()
        adapter, inputs = adapter_or_configured(prompt.adapter), dict(example.inputs().items())
        messages = adapter.format(predictor.signature, predictor.demos, inputs)
        return [LMCall(lm=lm, messages=messages, params=request_params(lm, predictor.config, prompt.decoding))]
    return _dry_run(prompt, plan.pipeline, dict(example.inputs().items()))


def _dry_run(prompt: Prompt, pipeline: Pipeline | None, inputs: Mapping[str, Any]) -> list[LMCall]:
    calls: list[LMCall] = []

    def note(lm: Any, messages: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> None:
        if len(calls) >= _MOST_CALLS:
            raise DryRunFailed(f"it asks more than {_MOST_CALLS} times")
        asked = getattr(lm, "_lm", lm)
        params = request_params(asked, {k: v for k, v in config.items() if k != "messages"}, prompt.decoding)
        calls.append(LMCall(lm=asked, messages=messages, params=params))

    program = prompt.program if pipeline is None else pipeline.with_inner(watched(prompt.program))
    own = _dry(adapter_or_configured(prompt.adapter), note)
    program = prepare(program, lambda lm: _DryLM(lm, note)).program
    configured = dspy.settings.lm
    settings: dict[str, Any] = {
        "lm": _DryLM(configured, note) if isinstance(configured, dspy.BaseLM) else configured,
        "adapter": own if pipeline is None else _dry(adapter_or_configured(None), note),
        WATCH: None if pipeline is None else Watch(own),
        "callbacks": [],
        "trace": [],
        "usage_tracker": None,
        "track_usage": False,
        "disable_history": True,
        "send_stream": None,
    }

    def run() -> None:
        with dspy.context(**settings):
            if hasattr(type(program), "forward"):
                program(**inputs)
            else:
                asyncio.run(program.acall(**inputs))

    async def timed() -> None:
        await within(_awaited(in_thread(run)), _LONGEST)

    try:
        run_on_loop(timed())
    except DryRunFailed:
        raise
    except Exception as error:  # noqa: BLE001 - the user's code, which gets answers that no LM would give
        raise DryRunFailed(one_line(error)) from None
    if not calls:
        raise DryRunFailed("it asks no LM where answers are made up")
    return calls


async def _awaited(future: asyncio.Future[None]) -> None:
    await future


class _DryLM(StandInLM):
    """Notes every call, and answers with a word."""

    def __init__(self, lm: dspy.BaseLM, note: _Note) -> None:
        super().__init__(lm)
        self._note = note

    def __deepcopy__(self, memo: dict[int, Any]) -> _DryLM:
        """Return itself: nothing of it changes."""
        return self

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> list[str]:
        """Return one made-up answer."""
        self._note(self, messages or [{"role": "user", "content": str(prompt)}], kwargs)
        return ["text"]

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> list[str]:
        """Return one made-up answer."""
        return self(prompt, messages=messages, **kwargs)


def _dry(adapter: Any, note: _Note) -> Any:
    """Return a copy of an adapter that writes prompts as it does, notes them, and makes up the answers."""

    def call(self: Any, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        rendered = self._call_preprocess(lm, lm_kwargs, signature, inputs)
        note(lm, self.format(rendered, demos, inputs), lm_kwargs)
        return [{name: _made_up(field.annotation) for name, field in signature.output_fields.items()}]

    async def acall(self: Any, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        return call(self, *args, **kwargs)

    twin = copy.copy(adapter)
    twin.__class__ = type("DryAdapter", (type(adapter),), {"__call__": call, "acall": acall})
    return twin


def _made_up(annotation: Any) -> Any:
    """Return a value of a field's type, as far as that is a common one; a text for the others."""
    origin, options = typing.get_origin(annotation), [a for a in typing.get_args(annotation) if a is not type(None)]
    if origin is Literal:
        return options[-1]  # the last one often says that a program may end, as ReAct's "finish" does
    if origin in (typing.Union, types.UnionType) and options:
        return _made_up(options[0])
    for kind in (bool, int, float, list, dict, set, tuple):
        if kind in (annotation, origin):
            return kind()
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return list(annotation)[-1]
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation.model_construct(**{n: _made_up(f.annotation) for n, f in annotation.model_fields.items()})
    return "text"
