"""Best-of-N selects when there are no labels: find objectives that read one, before anything is spent."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import dspy

from iapo_dspy.errors import LabelRequired


class InputsOnly(dspy.Example):  # type: ignore[misc]  # dspy ships no types
    """An example that shows its inputs only: reading a label raises `LabelRequired`.

    Attributes:
        label_read: The label that was asked for, if any: an objective may catch the error.
    """

    label_read: str | None = None

    def __init__(self, example: dspy.Example, *, objective: str) -> None:
        inputs = dict(example.inputs().items())
        super().__init__(base=inputs)
        self._input_keys = set(inputs)
        self._iapo_labels = frozenset(example.labels().keys())
        self._iapo_objective = objective

    def _refuse(self, name: Any) -> None:
        if name in self.__dict__.get("_iapo_labels", ()):
            self.label_read = str(name)
            raise LabelRequired(label_message(self._iapo_objective, [name]))

    def __getattr__(self, name: str) -> Any:
        self._refuse(name)
        return super().__getattr__(name)

    def __getitem__(self, name: str) -> Any:
        self._refuse(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an input, as `dspy.Example.get` does."""
        self._refuse(name)
        return super().get(name, default)

    def copy(self, **kwargs: Any) -> dspy.Example:
        """Return an ordinary example of the inputs; `dspy.Example` makes all its copies by this method."""
        return dspy.Example(**{**self._store, **kwargs}).with_inputs(*self._input_keys)

    def inputs(self) -> dspy.Example:
        """Return an ordinary example of the inputs."""
        return self.copy()

    def labels(self) -> dspy.Example:
        """Refuse: there are none when the program is deployed.

        Raises:
            LabelRequired: Always.
        """
        self.label_read = "labels()"
        raise LabelRequired(label_message(self._iapo_objective, ["labels()"]))


def label_message(objective: str, names: Iterable[str]) -> str:
    """Say that an objective reads these labels, why it must not, and how to mend it."""
    shown = ", ".join(f"`{n}`" for n in sorted(names))
    return (
        f"Objective {objective!r} reads {shown} of the example, which is not an input: when the program is deployed "
        "there are no labels to select with. Score the inputs and the prediction (a checker, a judge, a length), or "
        "use MajorityVote, which needs labels only while compiling. If it is an input of the student, say so: "
        "Objective(..., inputs=['name'])."
    )


def field_reads(function: Callable[..., Any], position: int) -> frozenset[str]:
    """Return the field names that a Python function reads from one positional parameter.

    `p.name`, `p["name"]` and `p.get("name")` count. The function is read, not called; functions that are
    not written in Python have no names to find.
    """
    target = inspect.unwrap(function)
    if not inspect.isroutine(target) and not inspect.isclass(target):
        target = type(target).__call__
        position += 1
    if inspect.ismethod(target):
        target, position = target.__func__, position + 1
    code = getattr(target, "__code__", None)
    if code is None or position >= code.co_argcount:
        return frozenset()
    parameter = code.co_varnames[position]
    steps = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "NOP", "PUSH_NULL", "RESUME")]
    found = set()
    for here, step in enumerate(steps):
        loaded = step.argval[-1] if isinstance(step.argval, tuple) and step.argval else step.argval
        if not step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) or loaded != parameter:
            continue
        after = steps[here + 1 : here + 4]
        if not after:
            continue
        if after[0].opname in ("LOAD_ATTR", "LOAD_METHOD"):
            name = after[0].argval
            constant = [i.argval for i in after[1:2] if i.opname.startswith("LOAD_CONST")]
            if name == "get" and constant:
                found.add(constant[0])
            elif not name.startswith("_") and name not in _EXAMPLE_METHODS:
                found.add(name)
        elif after[0].opname.startswith("LOAD_CONST") and len(after) > 1:
            subscript = after[1].opname == "BINARY_SUBSCR" or (
                after[1].opname == "BINARY_OP" and after[1].argrepr.startswith("[")
            )
            if subscript and isinstance(after[0].argval, str):
                found.add(after[0].argval)
    return frozenset(found)


_EXAMPLE_METHODS = frozenset(n for n in dir(dspy.Prediction) if not n.startswith("_")) | {"inputs", "labels"}


def check_reads_no_label(
    name: str, score: Callable[..., Any], inputs: Iterable[str] | None = None, *, declared: Iterable[str] = ()
) -> None:
    """Raise if an objective reads a label.

    Args:
        name: The objective's name.
        score: Its function `(example, prediction) -> score`.
        inputs: The student's input fields; None while they are not known. Then a field that is read from both the
            example and the prediction is taken for a label, because no DSPy signature has a field on both sides.
        declared: Fields that the user says are inputs.

    Raises:
        LabelRequired: The objective reads a label.
    """
    read = field_reads(score, 0)
    said = frozenset(getattr(score, "labels_read", ())) - set(declared)  # as metrics that need labels say themselves
    wrong = (read & field_reads(score, 1)) - set(declared) if inputs is None else read - set(inputs)
    wrong |= said - set(inputs or ())
    if wrong:
        raise LabelRequired(label_message(name, wrong))
