"""A compiled program as a LangChain `Runnable` (extra `langchain`)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import dspy
from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.runnables.utils import ConfigurableFieldSpec
from pydantic import BaseModel, ConfigDict, create_model

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.preferences import Preference
from iapo_dspy.prompts.student import Student

Output = Literal["fields", "prediction"]


class ProgramRunnable(Runnable[Any, Any]):  # type: ignore[misc]  # its types are not followed
    """A compiled program that LangChain can invoke, batch, stream, trace and put between `|`.

    The input is a dictionary of the program's input fields, a `dspy.Example`, or for a program with one input field its
    bare value: a string, a prompt or a message of LangChain's, from which the text is taken.

    The preference of a call is, from strong to weak: the input's own key (`preference`), `.bind(preference=...)`,
    `config={"configurable": {"preference": ...}}`, this object's, and the program's.

    A stream has one chunk: the winner is not known before all completions are there.

    Args:
        program: A `CompiledProgram`.
        preference: The preference of calls that name none; None leaves it to the program.
        output: "fields" returns a dictionary of the output fields; "prediction" the `dspy.Prediction`, with the report.

    Raises:
        ConfigurationError: The preference or the kind of output does not exist.
    """

    def __init__(
        self, program: dspy.Module, preference: str | Preference | None = None, *, output: Output = "fields"
    ) -> None:
        if output not in ("fields", "prediction"):
            raise ConfigurationError(f"as_runnable(output={output!r}): give 'fields' or 'prediction'.")
        self.program = program if preference is None else program.with_preference(preference)
        self.output = output
        self.name = type(program.policy.student).__name__
        self._student = Student(program.policy.student)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Run the program.

        Raises:
            ConfigurationError: The input does not fit the program, or the preference is unknown.
            AllCompletionsFailed: No completion could be used.
        """
        return self._call_with_config(self._run, input, config, run_type="chain", **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Run the program without blocking the event loop; see `invoke`."""
        return await self._acall_with_config(self._arun, input, config, run_type="chain", **kwargs)

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """The keys that `config={"configurable": {...}}` may hold."""
        return [
            ConfigurableFieldSpec(
                id="preference",
                annotation=Any,
                name="Preference",
                description="Name of a compiled preference, or a Preference.",
                default=None,
            )
        ]

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """Return a model of the input fields, with their types as the signature has them."""
        fields: dict[str, Any] = _inputs(self._student)
        return create_model(self.get_name("Input"), __config__=_LENIENT, **fields)

    def get_output_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """Return a model of the output fields; a module that builds its own prediction may leave some out."""
        exact = self._student.input_fields is not None
        fields: dict[str, Any] = {
            name: (annotation, ...) if exact else (annotation | None if isinstance(annotation, type) else Any, None)
            for name, annotation in self._student.output_fields.items()
        }
        return create_model(self.get_name("Output"), __config__=_LENIENT, **fields)

    def _run(self, input: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        program, inputs = self._resolve(input, config, kwargs)
        return self._result(program(**inputs))

    async def _arun(self, input: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        program, inputs = self._resolve(input, config, kwargs)
        return self._result(await program.acall(**inputs))

    def _result(self, prediction: dspy.Prediction) -> Any:
        return prediction if self.output == "prediction" else dict(prediction.items())

    def _resolve(
        self, input: Any, config: RunnableConfig, kwargs: dict[str, Any]
    ) -> tuple[dspy.Module, dict[str, Any]]:
        bound = kwargs.pop("preference", None)
        if kwargs:
            raise ConfigurationError(f"The Runnable of a compiled program takes preference=..., not {sorted(kwargs)}.")
        inputs = self._inputs(input)
        asked = bound if bound is not None else ensure_config(config).get("configurable", {}).get("preference")
        keyword = self.program.policy.preference_field
        if asked is None or keyword in inputs:
            return self.program, inputs
        if keyword is None:
            return self.program.with_preference(asked), inputs
        return self.program, {**inputs, keyword: asked}

    def _inputs(self, input: Any) -> dict[str, Any]:
        if isinstance(input, dspy.Example):
            return dict(input.inputs().items())
        if isinstance(input, Mapping):
            return {str(key): value for key, value in input.items()}
        names = list(_inputs(self._student))
        if len(names) != 1:
            raise ConfigurationError(
                f"The program has the input fields {names}; give a dictionary of them, not {type(input).__name__}."
            )
        if isinstance(input, PromptValue):
            messages = input.to_messages()
            input = messages[0] if len(messages) == 1 else input.to_string()  # with roles, where there are several
        if isinstance(input, BaseMessage):
            input = str(input.text)
        return {names[0]: input}


_LENIENT = ConfigDict(arbitrary_types_allowed=True, extra="allow")


def _inputs(student: Student) -> dict[str, tuple[Any, Any]]:
    """Return input field -> (annotation, default, `...` where it must be given)."""
    known = student.input_fields
    if known is not None:
        (predictor,) = student.predictors.values()
        fields = predictor.signature.input_fields
        return {name: (fields[name].annotation, ... if fields[name].is_required() else fields[name]) for name in known}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(type(student.module).forward).parameters.values())[1:]
    return {p.name: (Any, ... if p.default is p.empty else p.default) for p in parameters if p.kind in named}
