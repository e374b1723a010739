"""Which of a ledger's completions serve a run, and why others do not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iapo_dspy.errors import LedgerMismatch
from iapo_dspy.sampling.ledger.reading import LedgerContents
from iapo_dspy.sampling.ledger.records import Cell
from iapo_dspy.sampling.ledger.upgrade import shown

logger = logging.getLogger(__name__)

_DECISIVE = (
    "student",
    "signature",
    "models",
    "adapter",
    "around",
    "types",
    "attributes",
    "adapter_lms",
)  # with another one of these no completion is the same


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How many of the stored completions serve a run.

    Attributes:
        restored: Completions of the run's prompts on its queries.
        of_other_prompts: Completions of prompts that the run does not have.
        other_prompts: How many such prompts there are.
        of_other_queries: Completions of the run's prompts on queries that it does not have.
    """

    restored: int = 0
    of_other_prompts: int = 0
    other_prompts: int = 0
    of_other_queries: int = 0

    @classmethod
    def of(cls, stored: Mapping[Cell, Sequence[int]], about: Mapping[str, Any]) -> Serving:
        """Count.

        Args:
            stored: Draws by cell.
            about: The run's prompts and queries, as its record has them; without prompts, all count as the run's.
        """
        prompts, queries = about.get("prompts"), about.get("queries")
        counts, other = [0, 0, 0], set()
        mine, asked = (None if ids is None else set(ids) for ids in (prompts, queries))
        for (prompt, query), draws in stored.items():
            if mine is not None and prompt not in mine:
                other.add(prompt)
                counts[1] += len(draws)
            else:
                counts[2 if asked is not None and query not in asked else 0] += len(draws)
        return cls(restored=counts[0], of_other_prompts=counts[1], other_prompts=len(other), of_other_queries=counts[2])

    @property
    def rest(self) -> str:
        """Why the others do not serve; "" where all do."""
        parts = []
        if self.of_other_prompts:
            candidates = f"{self.other_prompts} prompt{'s' if self.other_prompts > 1 else ''}"
            parts.append(f"{self.of_other_prompts:,} completions are of {candidates} that this run does not have")
        if self.of_other_queries:
            parts.append(f"{self.of_other_queries:,} are on examples that it does not have")
        return "; ".join(parts)


def check_serves(contents: LedgerContents, settings: Mapping[str, Any]) -> None:
    """Refuse a ledger in which nothing serves a run because another student, model or adapter made all of it.

    Where only the candidates or the examples are all new, a warning says so.

    Args:
        contents: The ledger.
        settings: Those of a run that is not in it.

    Raises:
        LedgerMismatch: It cannot serve; the message says what differs.
    """
    about = settings.get("about") or {}
    if "queries" not in about or not len(contents.rows):
        return
    serving, old = Serving.of(contents.usable(), about), contents.about
    changed = {
        name: (old.get(name), about.get(name)) for name in _DECISIVE if name in old and old[name] != about.get(name)
    }
    models = changed.get("models")
    if models is not None and set(models[0] or ()) & set(models[1] or ()):
        del changed["models"]  # completions of those that stay may serve
    if serving.restored and about.get("prompts") is not None:
        return
    if changed and serving != Serving():
        differing = "; ".join(f"{name} (was {shown(was)}, is {shown(now)})" for name, (was, now) in changed.items())
        raise LedgerMismatch(
            f"{contents.path}: none of its completions can serve this run. Different: {differing}. Choose another "
            "log_dir, or undo the change to go on from them."
        )
    if serving.rest:
        logger.warning("%s: nothing in it serves this run, which starts from zero: %s.", contents.path, serving.rest)


def warn_of_servers(contents: LedgerContents, settings: Mapping[str, Any]) -> None:
    """Warn where stored completions of a run's prompts come from LMs at other addresses.

    One model may be served anywhere, so an address does not tell completions apart; but one name may stand for two
    models.
    """
    mine: Mapping[str, Sequence[str]] = (settings.get("about") or {}).get("servers") or {}
    moved = {
        (", ".join(was), ", ".join(mine[prompt])): None
        for run in contents.runs.values()
        for prompt, was in (((run.settings or {}).get("about") or {}).get("servers") or {}).items()
        if prompt in mine and list(was) != list(mine[prompt])
    }
    for was, now in moved:
        logger.warning(
            "%s: completions of this run's prompts were drawn at %s, and this run asks %s. They count as the same "
            "model's. If it is another model, choose another log_dir.",
            contents.path,
            was or "the provider's own address",
            now or "the provider's own address",
        )
