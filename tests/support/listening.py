"""A DSPy callback that writes down every start and end."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback


@dataclass
class Heard:
    """One call: what it was of, in what, with what it began and how it ended."""

    kind: str
    instance: Any
    parent: str | None
    inputs: dict[str, Any]
    outputs: Any = None
    exception: BaseException | None = None
    ends: int = 0


@dataclass
class Listening(BaseCallback):
    """Calls by id."""

    calls: dict[str, Heard] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def _start(self, kind: str, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        with self.lock:
            assert call_id not in self.calls
            self.calls[call_id] = Heard(kind, instance, ACTIVE_CALL_ID.get(), inputs)

    def _end(self, call_id: str, outputs: Any, exception: BaseException | None) -> None:
        with self.lock:
            heard = self.calls[call_id]
            heard.outputs, heard.exception, heard.ends = outputs, exception, heard.ends + 1

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._start("module", call_id, instance, inputs)

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self._end(call_id, outputs, exception)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._start("lm", call_id, instance, inputs)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self._end(call_id, outputs, exception)

    def on_adapter_format_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._start("format", call_id, instance, inputs)

    def on_adapter_format_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self._end(call_id, outputs, exception)

    def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._start("parse", call_id, instance, inputs)

    def on_adapter_parse_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self._end(call_id, outputs, exception)

    @property
    def counts(self) -> Counter[str]:
        return Counter(h.kind for h in self.calls.values())
