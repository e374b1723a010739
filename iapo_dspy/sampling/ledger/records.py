"""What the ledger keeps: one record a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from iapo_dspy.sampling.ledger.field_values import jsonable

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
        prompt_tokens: Its share.
        completion_tokens: Its share.
        usd: Its share; None where the price is unknown.
        shared_tokens: What of its prompt tokens the pull paid once for all of its completions.
        shared_completion_tokens: What of its completion tokens a call pays once for all of its completions.
        shared_usd: What of its dollars the pull paid once.
        latency_s: Seconds.
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
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    usd: float | None = None
    shared_tokens: float = 0.0
    shared_completion_tokens: float = 0.0
    shared_usd: float = 0.0
    latency_s: float = 0.0
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
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
        usd: Dollars; None where the price is unknown.
        latency_s: Seconds.
        seed: The seed that was sent.
    """

    query: int
    call: str
    repeat: int
    output: Any = None
    text: str | None = None
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    usd: float | None = None
    latency_s: float = 0.0
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
        requests: HTTP attempts.
        prompt_tokens: Tokens read, those of failed attempts included.
        completion_tokens: Tokens written.
        usd: Dollars, as far as prices are known.
        seconds: Wall-clock time.
        finished: Whether the run came to its end.
        reserved_tokens: Upper bound of the tokens of requests in flight, where the budget needs one.
        reserved_usd: Upper bound of their dollars. What a killed process had in flight may be billed, and nobody will
            ever learn how much: a resumed run counts it as spent.
        judge_requests: How many of the requests were judges'.
        judge_prompt_tokens: Tokens that they read.
        judge_completion_tokens: Tokens that they wrote.
        judge_usd: Their dollars.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    finished: bool = False
    reserved_tokens: int = 0
    reserved_usd: float = 0.0
    judge_requests: int = 0
    judge_prompt_tokens: int = 0
    judge_completion_tokens: int = 0
    judge_usd: float = 0.0


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


def encode_record(record: Record) -> dict[str, Any]:
    """Return a record as one line's JSON data."""
    shallow = {f.name: getattr(record, f.name) for f in fields(record)}
    return {"kind": _KINDS[type(record)], **jsonable(shallow)}


def decode_record(line: Mapping[str, Any]) -> Record | None:
    """Return the record of a line; None for a kind that later versions may add. Unknown fields are left out."""
    cls = _TYPES.get(str(line.get("kind")))
    if cls is None:
        return None
    names = {f.name for f in fields(cls)}
    record: Record = cls(**{k: v for k, v in line.items() if k in names})
    return record
