"""Ledgers of version 1, which named completions by round, position and index, are rewritten by content, once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iapo_dspy.errors import LedgerError, LedgerMismatch, whole_file
from iapo_dspy.sampling.ledger.records import FORMAT, VERSION

_DECIDES = ("student", "prompts", "adapter", "examples", "lms", "pipeline", "inner", "around", "around_lms")
_Name = tuple[int, int, int]  # round, position, index


@dataclass(frozen=True, kw_only=True)
class Older:
    """A run of today as version 1 knew it.

    Attributes:
        facts: The facts that version 1 hashed.
        known_as: Their hash.
        fingerprint: The hash of today for the same run; None where a run of today asks for other pulls.
        prompts: Digests of the prompts in their order, with that of the student behind them where it is drawn.
        queries: Digests of the training queries and of those of the validation set.
        labels: Digests of their labels.
    """

    facts: Mapping[str, Any]
    known_as: str
    fingerprint: str | None
    prompts: Sequence[str]
    queries: Sequence[str]
    labels: Sequence[str]


def is_older(path: Path) -> bool:
    """Tell whether a file is a ledger of version 1."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        line = file.readline(1 << 27)
    try:
        header = json.loads(line)
    except ValueError:
        return False
    return isinstance(header, dict) and header.get("format") == FORMAT and header.get("version") == 1


def upgrade(path: Path, older: Callable[[], Older]) -> None:
    """Rewrite a ledger of version 1 by content, all or nothing; the old file stays beside it as `ledger.v1.jsonl`.

    Raises:
        LedgerMismatch: Its candidates, examples, LMs or adapter are not those of this run, so nobody knows which
            completion is of which prompt.
        LedgerError: It is damaged elsewhere than at its end.
    """
    if not is_older(path):
        return
    with whole_file(path) as part:
        rewrite(path, part, older())
        kept = path.with_name("ledger.v1.jsonl")
        with contextlib.suppress(FileExistsError):
            try:
                os.link(path, kept)
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                shutil.copy2(path, kept)


def rewrite(path: Path, to: Path, older: Older | None = None) -> None:
    """Write what a ledger of version 1 holds as one of today. Without `older`, prompts and queries have made-up names.

    Raises:
        LedgerMismatch, LedgerError: As for `upgrade`.
    """
    try:
        _rewrite(path, to, older)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # a line that no run has written
        raise LedgerError(
            f"{path} is damaged ({type(error).__name__}: {error}). Repair it, or move the file away, then run again."
        ) from error


def _rewrite(path: Path, to: Path, older: Older | None) -> None:
    groups = _groups(path)
    header = next(groups)[0]
    settings = header.get("settings")
    if not isinstance(header.get("fingerprint"), str) or not isinstance(settings, Mapping | None):
        raise LedgerError(f"{path} is damaged at line 1: its `fingerprint` must be text, its `settings` an object.")
    settings = dict(settings or {})
    writer = _Writer(path, settings, older)
    for lines in groups:
        writer.note(lines)
    writer.number()
    about = dict(settings.get("about") or {})
    about |= {"prompts": writer.prompts(int(about.get("n_prompts", 0))), "queries": writer.queries()}
    fingerprint = header["fingerprint"]
    if older is not None and older.fingerprint is not None and fingerprint == older.known_as:
        fingerprint = older.fingerprint
    run = {"kind": "run", "fingerprint": fingerprint, "settings": {**settings, "about": about}, "more": True}
    with to.open("wb") as file:
        file.write(_line({"kind": "header", "format": FORMAT, "version": VERSION}))
        file.write(_line(run) + _line({"kind": "spent"}))
        groups = _groups(path)
        next(groups)
        for lines in groups:
            written = [writer.of_today(line) for line in lines]
            file.writelines(_line({**line, "more": i < len(written) - 1}) for i, line in enumerate(written))
        file.flush()
        os.fsync(file.fileno())


class _Writer:
    """Names what version 1 named by positions."""

    def __init__(self, path: Path, settings: Mapping[str, Any], older: Older | None) -> None:
        self._path = path
        self._older = older
        self._cells: dict[tuple[int, int], set[_Name]] = {}
        self._draws: dict[_Name, tuple[int, int, int, int]] = {}  # prompt, query, draw, first
        if older is None:
            return
        facts, mine = older.facts, {name: settings[name] for name in _DECIDES if name in settings}
        wanted = {name: facts[name] for name in _DECIDES if name in facts}
        if mine != wanted:
            raise LedgerMismatch(
                f"{path} was written by an older version, which kept completions by the positions of candidates and "
                f"examples, so only a run with the same ones can use it. Different: "
                f"{'; '.join(differences(mine, wanted))}. Choose another log_dir, or undo the changes to go on."
            )
        self._same_held_out = settings.get("held_out") == facts.get("held_out")
        self._n_train = int((settings.get("about") or {}).get("n_queries", len(older.queries)))

    def note(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take in the names of a group's completions."""
        for line in lines:
            if line.get("kind") == "completion":
                self._name(line, (line["round"], line["position"], line["index"]))
            for asked in line.get("lines", ()) if line.get("kind") == "batch" else ():
                for index in asked["indices"]:
                    self._name(asked, (*asked["pull"], index))

    def _name(self, line: Mapping[str, Any], name: _Name) -> None:
        numbers = [*name, line["prompt"], line["query"]]
        if not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
            raise ValueError(f"{numbers} are not whole numbers >= 0")
        self._cells.setdefault((line["prompt"], line["query"]), set()).add(name)

    def number(self) -> None:
        """Number the draws of each cell in the order in which they were asked for."""
        for (prompt, query), names in self._cells.items():
            first: dict[tuple[int, int], int] = {}
            for draw, name in enumerate(sorted(names)):
                first.setdefault(name[:2], draw)
                self._draws[name] = prompt, query, draw, first[name[:2]]

    def prompts(self, count: int) -> list[str]:
        """Return the names of the first prompts."""
        return [self._prompt(i) for i in range(count)]

    def queries(self) -> list[str]:
        """Return the names of all queries that were asked."""
        if self._older is not None:
            return list(self._older.queries)
        return [self._query(i) for i in range(1 + max((x for _, x in self._cells), default=-1))]

    def _prompt(self, index: int) -> str:
        known = self._older.prompts if self._older is not None else ()
        return known[index] if index < len(known) else f"prompt-{index}"

    def _query(self, index: int) -> str:
        older = self._older
        known = older is not None and (index < self._n_train or self._same_held_out) and index < len(older.queries)
        return older.queries[index] if older is not None and known else f"query-{index}"

    def of_today(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Return a line as it is written today."""
        kind = line.get("kind")
        if kind == "completion":
            named = self._named((line["round"], line["position"], line["index"]))
            return {k: v for k, v in line.items() if k not in ("round", "position", "index")} | named
        if kind == "call":
            return {**line, "query": self._query(line["query"])}
        if kind == "batch":
            return {**line, "version": 2, "lines": [self._batch_line(asked) for asked in line.get("lines", ())]}
        if kind == "score" and (name := _name_of(line["key"])) in self._draws:
            found, scorer = self._named(name), str(line.get("scorer", ""))
            if self._older is not None and (query := self._draws[name][1]) < len(self._older.labels):
                scorer += f"/{self._older.labels[query]}"
            return {**line, "key": _key(found), "scorer": scorer, "calibrates": name[0] == 0}
        if kind == "verdict" and line["key"].count("/") == 4:
            call, _, rest = line["key"].partition("/")
            name, asked = _name_of(rest.rpartition("/")[0]), rest.rpartition("/")[2]
            if name in self._draws:
                return {**line, "key": f"{call}/{_key(self._named(name))}/{asked}"}
        return dict(line)

    def _batch_line(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        names = [self._named((*asked["pull"], index)) for index in asked["indices"]]
        kept = {k: v for k, v in asked.items() if k not in ("pull", "indices", "prompt", "query")}
        cell = {name: names[0][name] for name in ("prompt", "query", "first")}
        sent = "-".join(map(str, (*asked["pull"], asked["indices"][0])))
        return {**kept, **cell, "draws": [n["draw"] for n in names], "id": sent}

    def _named(self, name: _Name) -> dict[str, Any]:
        prompt, query, draw, first = self._draws[name]
        return {"prompt": self._prompt(prompt), "query": self._query(query), "draw": draw, "first": first}


def _key(named: Mapping[str, Any]) -> str:
    return f"{named['prompt']}/{named['query']}/{named['draw']}"


def _name_of(key: str) -> _Name:
    """Return round, position and index; no completion's where the key has another form."""
    parts = key.split("/")
    if len(parts) != 3 or not all(p.isdecimal() for p in parts):
        return (-1, -1, -1)
    return int(parts[0]), int(parts[1]), int(parts[2])


def _groups(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the lines of a file, those together that belong together; the half group at the end is left out."""
    group: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = json.loads(raw)
                if not isinstance(line, dict) or not raw.endswith(b"\n"):
                    raise ValueError("it is not an object")
            except (ValueError, RecursionError) as error:
                if file.read(1):
                    raise LedgerError(
                        f"{path} is damaged at line {number}, not only at its end: {error}. Repair that line, or move "
                        "the file away, then run again."
                    ) from error
                return
            group.append(line)
            if not line.get("more"):
                yield group
                group = []


def _line(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return in words what differs between two settings, part by part."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}):
            label = f"{name}.{key}" if name else str(key)
            if key not in old or key not in new:
                found.append(f"{label} ({'new' if key in new else 'gone'})")
            else:
                found += differences(old[key], new[key], label)
        return found
    return [] if old == new else [f"{name} (was {shown(old)}, is {shown(new)})"]


def shown(value: Any) -> str:
    """Return settings in a few words."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
