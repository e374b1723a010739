"""What the ledger keeps: one record a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from iapo_dspy.sampling.ledger.field_values import jsonable
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.usage import Usage

__all__ = [
    "BatchRecord",
    "CallRecord",
    "CompletionRecord",
    "PullKey",
    "Record",
    "ScoreRecord",
    "SpentRecord",
    "decode_record",
    "encode_record",
]

PullKey = tuple[int, int]
"""(round, position in the round's batch): what a resumed run asks for again."""


@dataclass(frozen=True, kw_only=True)
class CompletionRecord:
    """One completion of one pull.

    Attributes:
        round: Number of the batch of pulls, 0-based.
        position: The pull's position in its batch.
        index: The completion's position in its pull.
        prompt: Index of the prompt.
        query: Index of the query.
        text: The raw completion.
        fields: The prediction's fields as JSON data (`encode_prediction`); None for a failure.
        failure: What went wrong, one line; None for a success.
        error: Whether a failure was one of transport, provider or program rather than of the text.
        usage: Its share of what the pull took; each of its fields is a key of the line.
        seed: The seed that was sent.
        inner: What the inner module of a pipeline was asked ("inputs") and said ("fields", None for a failure), as JSON
            data; None for other programs.
    """

    round: int
    position: int
    index: int
    prompt: int
    query: int
    text: str | None = None
    fields: Mapping[str, Any] | None = None
    failure: str | None = None
    error: bool = False
    usage: Usage = field(default_factory=Usage)
    seed: int | None = None
    inner: Mapping[str, Any] | None = None

    @property
    def pull(self) -> PullKey:
        """The pull it belongs to."""
        return (self.round, self.position)


@dataclass(frozen=True, kw_only=True)
class CallRecord:
    """An answer that all rollouts of a query share: what a pipeline asks before it calls its inner module.

    Attributes:
        query: Index of the query.
        call: Hash of the request.
        repeat: How many equal requests the same rollout made before.
        output: The answer as DSPy adapters expect it.
        text: The answer as text.
        usage: What the request took; its shared parts are not stored.
        seed: The seed that was sent.
    """

    query: int
    call: str
    repeat: int
    output: Any = None
    text: str | None = None
    usage: Usage = field(default_factory=Usage)
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """How one completion was scored.

    Attributes:
        key: Names the completion; the caller's choice, such as round, position and index.
        answer: Key of the answer that it votes for; None where there is no vote.
        scores: One per objective; None for a failure.
        failure: Why there is no score.
        error: Whether an exception of the metric was the cause.
        scorer: Hash of the code that scored; a score of other code is not used again.
    """

    key: str
    scorer: str = ""
    answer: str | None = None
    scores: Sequence[float] | None = None
    failure: str | None = None
    error: bool = False


@dataclass(frozen=True, kw_only=True)
class SpentRecord:
    """What the run has taken so far, this process and earlier ones together.

    Attributes:
        spent: What was spent. Completions are not counted here: each has a record.
        finished: Whether the run came to its end.
        reserved: Upper bounds of the requests in flight, where the budget needs them; the tokens stand under
            `completion_tokens`. The requests of a killed process may be billed, and nobody will ever learn how much: a
            resumed run counts their bounds as spent.
    """

    spent: Spent = field(default_factory=Spent)
    finished: bool = False
    reserved: Spent = field(default_factory=Spent)


@dataclass(frozen=True, kw_only=True)
class BatchRecord:
    """A provider's batch job came into a new state; of the records with one tag, the last one holds.

    Attributes:
        tag: The job's name, ours, unique; the provider has it as the job's metadata and as the name of its file.
        state: "intended": it is about to be submitted, so the provider may or may not have it. "submitted": it has.
            "closed": what it brought is in the ledger, or there will never be anything.
        job: The provider's id of the job; None before it is known.
        lines: What the job asks for (`BatchLine.encode`); only in the first record of a tag.
        reserved_tokens: Upper bound of its tokens, where the budget needs one; only in the first record.
        reserved_usd: Upper bound of its dollars; only in the first record.
        status: The provider's last word, once it is closed.
        at: When the record was written, seconds since 1970.
        version: Of this kind of record.
    """

    tag: str
    state: str
    job: str | None = None
    lines: Sequence[Mapping[str, Any]] = ()
    reserved_tokens: int = 0
    reserved_usd: float = 0.0
    status: str | None = None
    at: float = 0.0
    version: int = 1


Record = CompletionRecord | CallRecord | ScoreRecord | SpentRecord | BatchRecord
_KINDS: dict[type, str] = {
    CompletionRecord: "completion",
    CallRecord: "call",
    ScoreRecord: "score",
    SpentRecord: "spent",
    BatchRecord: "batch",
}
_TYPES: dict[str, type] = {kind: cls for cls, kind in _KINDS.items()}
_ONCE = ("shared_tokens", "shared_completion_tokens", "shared_usd")
# The fields of a usage, in the order in which they stand in a line.
_USAGE: dict[type, tuple[str, ...]] = {
    CompletionRecord: ("prompt_tokens", "completion_tokens", "usd", *_ONCE, "latency_s"),
    CallRecord: ("prompt_tokens", "completion_tokens", "usd", "latency_s"),
}


def encode_record(record: Record) -> dict[str, Any]:
    """Return a record as one line's JSON data: flat, except for what a program returned."""
    if isinstance(record, SpentRecord):
        return {"kind": "spent", **_encode_spent(record)}
    line: dict[str, Any] = {"kind": _KINDS[type(record)]}
    for f in fields(record):
        value = getattr(record, f.name)
        if isinstance(value, Usage):
            line |= {name: getattr(value, name) for name in _USAGE[type(record)]}
        else:
            line[f.name] = jsonable(value)
    return line


def decode_record(line: Mapping[str, Any]) -> Record | None:
    """Return the record of a line; None for a kind that later versions may add. Unknown fields are left out."""
    cls = _TYPES.get(str(line.get("kind")))
    if cls is None:
        return None
    if cls is SpentRecord:
        reserved = Spent(completion_tokens=line.get("reserved_tokens", 0), usd=line.get("reserved_usd", 0.0))
        return SpentRecord(spent=Spent.from_dict(line), finished=line.get("finished", False), reserved=reserved)
    values = {f.name: line[f.name] for f in fields(cls) if f.name in line}
    if cls in _USAGE:
        values["usage"] = Usage(**{name: line[name] for name in _USAGE[cls] if name in line})
    record: Record = cls(**values)
    return record


def _encode_spent(record: SpentRecord) -> dict[str, Any]:
    spent = asdict(record.spent)
    del spent["completions"]
    tasks = {name: value for name, value in spent.items() if not name.startswith("judge_")}
    reserved = {"reserved_tokens": record.reserved.tokens, "reserved_usd": record.reserved.usd}
    return {**tasks, "finished": record.finished, **reserved, **spent}
