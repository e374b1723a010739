"""Adapters as part of the prompts, `IAPO(adapters=[...])`: their names, and how a loaded program finds them.

A saved program has an adapter's class and settings. DSPy's own adapters and `PlainTextAdapter` are made from these
again; those of other classes are given to the program, as LMs are.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.sampling.adapters.plain_text import PlainTextAdapter
from iapo_dspy.sampling.ledger.digests import digest
from iapo_dspy.sampling.lm.params import generation_params

_SHORT: Mapping[type[dspy.Adapter], str] = {
    dspy.ChatAdapter: "chat",
    dspy.JSONAdapter: "json",
    dspy.XMLAdapter: "xml",
    PlainTextAdapter: "plain text",
}
_KINDS = {kind.__name__: kind for kind in _SHORT}
_NOT_SAVED = ("callbacks", "native_response_types")  # JSON cannot hold them


@dataclass(frozen=True, kw_only=True)
class AdapterName:
    """How tables and saved programs name an adapter.

    Attributes:
        kind: Name of its class.
        settings: Its settings that are not the class's own; None where it cannot be made from them.
        nth: Of those that cannot be made, where a run had several of one class: which of them, from 1.
        words: It in words where the run has a choice between several, else "".
    """

    kind: str
    settings: Mapping[str, Any] | None = field(default_factory=dict)
    nth: int = 1
    words: str = ""

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in (self.settings or {}).items())
        return f"{self.kind}({settings})" if self.nth == 1 else f"{self.kind} ({self.nth})"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data that `from_json` reads back."""
        return {
            "class": self.kind,
            **({} if self.settings is None else {"settings": dict(self.settings)}),
            **({"nth": self.nth} if self.nth > 1 else {}),
            **({"words": self.words} if self.words else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AdapterName:
        """Read data that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: The data are damaged.
        """
        kind, settings, words = data["class"], data.get("settings"), data.get("words", "")
        if not isinstance(kind, str) or not isinstance(words, str) or not isinstance(settings, Mapping | None):
            raise TypeError(f"an adapter needs the name of a class, and its settings as an object; found {data!r}")
        return cls(kind=kind, settings=settings, nth=int(data.get("nth", 1)), words=words)


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """An adapter that candidates are tried with, and its name; neither of them for the configured one."""

    adapter: dspy.Adapter | None = None
    name: AdapterName | None = None


def read_adapters(adapters: Any) -> tuple[dspy.Adapter, ...]:
    """Read the user's adapters.

    Raises:
        ConfigurationError: It is not a list of adapters.
    """
    if adapters is None:
        return ()
    if isinstance(adapters, (str, Mapping, type, dspy.Adapter)) or not isinstance(adapters, Iterable):
        raise ConfigurationError(
            f"adapters={adapters!r}: give a list, such as adapters=[dspy.ChatAdapter(), dspy.JSONAdapter()]."
        )
    found = tuple(adapters)
    if not found:
        raise ConfigurationError("adapters=[]: give at least one dspy.Adapter, or leave it out for the configured one.")
    for i, adapter in enumerate(found):
        if isinstance(adapter, type) and issubclass(adapter, dspy.Adapter):
            raise ConfigurationError(f"adapters[{i}] is a class. Give an object of it: {adapter.__name__}().")
        if not isinstance(adapter, dspy.Adapter):
            raise ConfigurationError(f"adapters[{i}] is {adapter!r}; give a dspy.Adapter, such as dspy.JSONAdapter().")
    return found


def read_distinct_adapters(adapters: Any) -> tuple[dspy.Adapter, ...]:
    """Read adapters that are to be compared: as `read_adapters` does, but two that cannot be told apart are refused."""
    found = read_adapters(adapters)
    seen: dict[Any, int] = {}
    for i, adapter in enumerate(found):
        first = seen.setdefault(adapter_digest(adapter), i)
        if first != i:
            raise ConfigurationError(
                f"adapters[{i}] is the same as adapters[{first}], {type(adapter).__name__} with the same settings: "
                "leave one of them out, or the budget pays for it twice. Two of your own that differ need different "
                "public attributes or classes."
            )
    return found


def lms_inside(adapter: dspy.Adapter) -> list[dspy.BaseLM]:
    """Return the LMs that an adapter asks itself, such as the one that extracts fields for `dspy.TwoStepAdapter`."""
    return [value for value in vars(adapter).values() if isinstance(value, dspy.BaseLM)]


def adapter_digest(adapter: dspy.Adapter) -> str:
    """Return a digest of an adapter's class, its settings and the settings of its LMs."""
    return digest([digest(adapter), [[lm.model, generation_params(lm.kwargs)] for lm in lms_inside(adapter)]])


def adapted(adapters: Sequence[dspy.Adapter]) -> tuple[Adapted, ...]:
    """Return a run's adapters with their names: at least one, the configured one where none are given."""
    if not adapters:
        return (Adapted(),)
    settings = [_settings(adapter) for adapter in adapters]
    seen: Counter[str] = Counter()
    found = []
    for adapter, own in zip(adapters, settings, strict=True):
        kind = type(adapter).__name__
        alike = [s for other, s in zip(adapters, settings, strict=True) if type(other).__name__ == kind]
        seen[kind] += own is None
        nth = 1 if own is not None else seen[kind]
        words = _words(adapter, own, alike, nth) if len(adapters) > 1 else ""
        found.append(Adapted(adapter=adapter, name=AdapterName(kind=kind, settings=own, nth=nth, words=words)))
    return tuple(found)


def find_adapter(adapters: Sequence[dspy.Adapter], name: AdapterName) -> dspy.Adapter | None:
    """Return the adapter of this name among those that a user gave, else one made by its settings.

    None where it can be neither found nor made.
    """
    for given in adapted(adapters):
        known = given.name
        if known is not None and (known.kind, known.settings, known.nth) == (name.kind, name.settings, name.nth):
            return given.adapter
    if name.settings is None or name.kind not in _KINDS:
        return None
    try:
        made: dspy.Adapter = _KINDS[name.kind](**name.settings)
    except (ConfigurationError, TypeError, ValueError):  # of another version, or damaged
        return None
    return made


class UsesAdapter(BaseCallback):  # type: ignore[misc]  # dspy ships no types
    """The callback of a program whose calls use an adapter, whatever is configured.

    Args:
        adapter: The adapter.
    """

    def __init__(self, adapter: dspy.Adapter) -> None:
        self._adapter = adapter
        self._open: dict[str, Any] = {}  # id of a call -> its context

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Configure the adapter for one call."""
        self._open[call_id] = context = dspy.context(adapter=self._adapter)
        context.__enter__()

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Configure again what was there before."""
        self._open.pop(call_id).__exit__(None, None, None)


def using(program: dspy.Module, adapter: dspy.Adapter | None) -> dspy.Module:
    """Return a program whose calls use an adapter, with the same predictors; DSPy leaves this out of copies of it."""
    if adapter is None:
        return program
    twin: dspy.Module = copy.copy(program)
    twin.callbacks = [*program.callbacks, UsesAdapter(adapter)]
    return twin


def way(name: AdapterName) -> str:
    """Return the way to give a program an adapter that it lacks, in words."""
    order = "" if name.nth == 1 else ", all of this class in the order of IAPO(adapters=...)"
    return (
        "A saved program holds the settings of known adapters, and of others only the class. Give it: "
        f"CompiledProgram(student, adapters=[{name.kind}(...)]), or iapo_dspy.load(path, adapters=[...]){order}."
    )


def _settings(adapter: dspy.Adapter) -> dict[str, Any] | None:
    """Return the settings from which an equal adapter can be made, without its class's own; None where none can."""
    kind = _KINDS.get(type(adapter).__name__)
    if kind is None or type(adapter) is not kind:
        return None
    parameters = inspect.signature(kind).parameters.values()
    own = {p.name: p.default for p in parameters if p.name not in _NOT_SAVED}
    given = {n: getattr(adapter, n) for n, default in own.items() if getattr(adapter, n, default) != default}
    return given if _attributes(kind(**given)) == _attributes(adapter) else None


def _attributes(adapter: dspy.Adapter) -> dict[str, Any]:
    return {name: value for name, value in vars(adapter).items() if name != "callbacks"}


def _words(adapter: dspy.Adapter, own: Mapping[str, Any] | None, alike: Sequence[Any], nth: int) -> str:
    """Name an adapter by its class, and by what tells it from others of its class."""
    short = _SHORT.get(type(adapter), type(adapter).__name__)
    if own is None:
        return short if nth == 1 else f"{short} ({nth})"
    others = [s for s in alike if s is not None]
    differing = (f"{n}={v!r}" for n, v in own.items() if any(n not in s or s[n] != v for s in others))
    return " ".join([short, *differing])
