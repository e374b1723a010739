"""The records of a ledger, one a line."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Annotated, Any, get_type_hints

import pydantic
from pydantic_core import SchemaValidator, ValidationError, core_schema

from iapo_dspy.sampling.ledger.field_values import jsonable
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.usage import Usage

FORMAT = "iapo_dspy.ledger"
VERSION = 2

Cell = tuple[str, str]
"""(prompt, query), each by a digest of its content."""

PullKey = tuple[str, str, int]
"""(prompt, query, number of the first draw): names completions that were asked for together."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run begins, or goes on after another one has written: the records behind this one are its own.

    Attributes:
        fingerprint: Hash that tells runs apart (`ledger.fingerprint_of`).
        settings: The facts that the run depends on, without secrets, and under "about" those that readers of the ledger
            need beside them; None where the run goes on.
    """

    fingerprint: str
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class CompletionRecord:
    """One completion of a cell, known by what it is: other runs find it, too.

    Attributes:
        prompt: Digest of the prompt: the program's state, the decoding, the LMs' settings and the adapter.
        query: Digest of the query's inputs.
        draw: Number of the draw in its cell, 0-based.
        first: Number of the first draw that was asked for together with this one: they share what is paid once.
        text: The raw completion.
        fields: The prediction's fields as JSON data (`encode_prediction`); None for a failure.
        failure: The error in one line; None for a success.
        error: Whether a failure is due to transport, provider or program rather than to the text.
        usage: Its share of the pull's usage; in the line, each of its fields is a key.
        seed: The seed that was sent.
        finish: Why the text ended, as the provider says; None where it is not known, as in older ledgers.
        logprob: Mean logprob of the tokens of the text, <= 0, in nats; None where the LM gives none, as in older
            ledgers.
        inner: The "inputs" of a pipeline's inner module and the "fields" that it returned (None for a failure), as JSON
            data; None for other programs.
        typed: Whether the values in `fields` and `inner` say what types they have (`typed_values`); earlier versions
            wrote plain JSON.
    """

    prompt: str
    query: str
    draw: int
    first: int
    text: str | None = None
    fields: Mapping[str, Any] | None = None
    failure: str | None = None
    error: bool = False
    usage: Usage = field(default_factory=Usage)
    seed: int | None = None
    finish: str | None = None
    logprob: float | None = None
    inner: Mapping[str, Any] | None = None
    typed: bool = False

    @property
    def pull(self) -> PullKey:
        """The completions that it was asked for with."""
        return (self.prompt, self.query, self.first)

    @property
    def key(self) -> str:
        """Its name in the keys of scores and verdicts."""
        return f"{self.prompt}/{self.query}/{self.draw}"


@dataclass(frozen=True, kw_only=True)
class CallRecord:
    """An answer that all rollouts of a query share, because a pipeline asks for it before it calls its inner module.

    Attributes:
        query: Digest of the query's inputs.
        call: Hash of the request.
        repeat: How many equal requests the same rollout made before.
        output: The answer as DSPy adapters expect it.
        text: The answer as text.
        usage: The request's usage; its shared parts are not stored.
        seed: The seed that was sent.
    """

    query: str
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
        key: Names the completion (`CompletionRecord.key`).
        answer: Key of the answer that it votes for; None where there is no vote.
        scores: One per objective; None for a failure.
        failure: Why there is no score.
        error: Whether the metric raised an exception.
        scorer: Hash of the code that scored and of the labels that it saw; other code and other labels score anew.
        calibrates: Whether it belongs to the first batch of a run, whose scores set the scales of the objectives.
        feedback: What the metric said of it beside the score, for proposers.
        compared: Verdicts of judges that compare it with opponents, by the name of the objective.
    """

    key: str
    scorer: str = ""
    answer: str | None = None
    scores: Sequence[float] | None = None
    failure: str | None = None
    error: bool = False
    calibrates: bool = False
    feedback: str | None = None
    compared: dict[str, list[Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class VerdictRecord:
    """The answer to one LM call of a metric or an objective, or one embedding.

    Attributes:
        key: Names the call: a hash of the request, and of one that draws anew each time, the completion and the number
            of equal calls before.
        outputs: The choices as DSPy adapters expect them; of an embedding, its numbers in single precision as base64.
    """

    key: str
    outputs: Sequence[Any] = ()


@dataclass(frozen=True, kw_only=True)
class ProposalRecord:
    """A prompt that a proposer wrote.

    Attributes:
        key: Digest of `program` and `state`: equal prompts have equal ones.
        program: Name of the program's class.
        state: Predictor -> its instructions, demos and config, as saved programs have them.
        by: The proposer.
        parents: The prompts that it was made from, by their keys.
        generation: Number of its generation in the run that wrote it, 0-based.
        preference: Name of the preference that it was written for; None for all of them.
        read: The questions that its writer could read, by their names.
    """

    key: str
    program: str
    state: Mapping[str, Mapping[str, Any]]
    by: str = ""
    parents: Sequence[str] = ()
    generation: int = 0
    preference: str | None = None
    read: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class GenerationRecord:
    """The prompts that a run got when it wished for more; the run started again asks nobody, but takes these.

    Attributes:
        generation: Its number in the run, 0-based.
        proposals: What was written, by the keys of the records (`ProposalRecord`); none where the writing failed.
        parents: The prompts that each of these was made from, by their numbers in the run.
    """

    generation: int
    proposals: Sequence[str] = ()
    parents: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, kw_only=True)
class RewriteRecord:
    """The text that a rewriter made of a query; completions of prompts with this rewriter are drawn on it.

    Attributes:
        key: Names it: the digest of the rewriter, and that of the query's inputs.
        text: The rewritten field; None where the query stays as it is.
        texts: All rewrites that were chosen from, where there were several.
        rewards: The reward of each of them.
        failure: Why it stays as it is; None where it was rewritten.
        usage: The rewriting's usage; its shared parts are not stored, because all of it is shared.
    """

    key: str
    text: str | None = None
    texts: Sequence[str] = ()
    rewards: Sequence[float] = ()
    failure: str | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, kw_only=True)
class PlannedRecord:
    """The completions that a run planned for, because its budget says nothing about them.

    Attributes:
        completions: Completions of the algorithm and of the validation set.
        tokens: The budget's limit of tokens.
        usd: The budget's limit of dollars.
    """

    completions: int
    tokens: int | None = None
    usd: float | None = None


@dataclass(frozen=True, kw_only=True)
class SpentRecord:
    """The spending of a run so far, of this process and earlier ones together.

    The first one of a run says what other runs had paid before for the completions of this file. So the difference
    between a run's last one and its first one is what the run has paid itself.

    Attributes:
        spent: The spending, without completions: each of them has a record.
        finished: Whether the run came to its end.
        reserved: Upper bounds of the requests in flight, where the budget needs them; the tokens stand under
            `completion_tokens`. The requests of a killed process may be billed at a price that the run cannot
            learn; a resumed run counts their bounds as spent.
    """

    spent: Spent = field(default_factory=Spent)
    finished: bool = False
    reserved: Spent = field(default_factory=Spent)


@dataclass(frozen=True, kw_only=True)
class BatchRecord:
    """A provider's batch job came into a new state; of the records with one tag, the last one holds.

    Attributes:
        tag: Our own, unique name of the job; the provider has it as the job's metadata and as the name of its file.
        state: "intended": it is about to be submitted, so the provider may or may not have it. "submitted": it has.
            "closed": its completions are in the ledger, or it will never bring any.
        job: The provider's id of the job; None before it is known.
        lines: The requests of the job (`BatchLine`); only in the first record of a tag.
        reserved_tokens: Upper bound of its tokens, where the budget needs one; only in the first record.
        reserved_usd: Upper bound of its dollars; only in the first record.
        status: The last status that the provider gave, once it is closed.
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
    version: int = 2


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """The unit in which `Preference.cost` weighs costs; later runs with the same `Cost` keep it.

    Attributes:
        cost: Raw cost of the student's average call for a single completion, in the unit of the run's `Cost`, > 0.
        queries: How many training questions it was measured on.
    """

    cost: float
    queries: int


Record = (
    RunRecord
    | CompletionRecord
    | CallRecord
    | ScoreRecord
    | VerdictRecord
    | SpentRecord
    | BatchRecord
    | UnitRecord
    | PlannedRecord
    | ProposalRecord
    | GenerationRecord
    | RewriteRecord
)
KINDS: dict[str, type] = {
    "run": RunRecord,
    "completion": CompletionRecord,
    "call": CallRecord,
    "score": ScoreRecord,
    "verdict": VerdictRecord,
    "spent": SpentRecord,
    "batch": BatchRecord,
    "unit": UnitRecord,
    "planned": PlannedRecord,
    "proposal": ProposalRecord,
    "generation": GenerationRecord,
    "rewrite": RewriteRecord,
}
"""The kinds of records by their names in lines."""
_NAMES: dict[type, str] = {cls: kind for kind, cls in KINDS.items()}
_ONCE = ("shared_tokens", "shared_completion_tokens", "shared_usd")
# The fields of a usage, in the order in which they stand in a line.
_USAGE: dict[type, tuple[str, ...]] = {
    CompletionRecord: ("prompt_tokens", "completion_tokens", "usd", *_ONCE, "latency_s"),
    CallRecord: ("prompt_tokens", "completion_tokens", "usd", "latency_s"),
    RewriteRecord: ("prompt_tokens", "completion_tokens", "usd", "latency_s"),
}

_Count = Annotated[int, pydantic.Field(ge=0, lt=2**31)]
_Amount = Annotated[float, pydantic.Field(ge=0, le=1e15, allow_inf_nan=False)]
_Logprob = Annotated[float, pydantic.Field(ge=-1e15, le=0, allow_inf_nan=False)]


def _line_of(cls: type) -> core_schema.CoreSchema:
    """Return what the fields of a kind's lines may hold."""
    hints = get_type_hints(cls)
    known: dict[str, tuple[Any, bool]] = {"kind": (str, True), "more": (bool, False)}  # whether it must be there
    for f in fields(cls):
        if hints[f.name] in (Usage, Spent):
            names = _USAGE[cls] if hints[f.name] is Usage else [g.name for g in fields(Spent)]
            known |= {name: (float | None if name == "usd" else float, False) for name in names}
        else:
            hint = _Logprob | None if f.name == "logprob" else hints[f.name]
            known[f.name] = hint, f.default is MISSING and f.default_factory is MISSING
    if cls is SpentRecord:
        known |= {"reserved_tokens": (float, False), "reserved_usd": (float, False)}
    bounded = {int: _Count, float: _Amount, float | None: _Amount | None}
    parts = {
        name: core_schema.typed_dict_field(pydantic.TypeAdapter(bounded.get(hint, hint)).core_schema, required=required)
        for name, (hint, required) in known.items()
    }
    if "inner" in parts:
        inner: dict[str, Any] = {"inputs": dict[str, Any], "fields": dict[str, Any] | None}
        asked = {n: core_schema.typed_dict_field(pydantic.TypeAdapter(h).core_schema) for n, h in inner.items()}
        parts["inner"] = core_schema.typed_dict_field(
            core_schema.nullable_schema(core_schema.typed_dict_schema(asked)), required=False
        )
    return core_schema.typed_dict_schema(parts, config=core_schema.CoreConfig(strict=True, allow_inf_nan=False))


@functools.cache
def lines() -> SchemaValidator:
    """Return the validator of the lines of all known kinds."""
    return SchemaValidator(
        core_schema.tagged_union_schema({kind: _line_of(cls) for kind, cls in KINDS.items()}, "kind")
    )


def check_line(line: Mapping[str, Any]) -> None:
    """Check a line, unless it is of a kind that later versions may add.

    Raises:
        ValueError: A field is missing or holds something that no run writes; the message names it.
    """
    kind = line.get("kind")
    if not isinstance(kind, str):
        raise ValueError(f"kind: it must be text, got {str(kind)[:40]}")
    if kind not in KINDS:
        return
    try:
        lines().validate_python(line)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, found['loc']))}: {found['msg']}") from None


def encode_record(record: Record) -> dict[str, Any]:
    """Return a record as one line's JSON data. Usage and spending are flat in it."""
    if isinstance(record, SpentRecord):
        spent = {name: value for name, value in asdict(record.spent).items() if name != "completions"}
        parts = {name: spent.pop(name) for name in list(spent) if name.startswith(("judge_", "writer_", "rewriter_"))}
        reserved = {"reserved_tokens": record.reserved.tokens, "reserved_usd": record.reserved.usd}
        return {"kind": "spent", **spent, "finished": record.finished, **reserved, **parts}
    line: dict[str, Any] = {"kind": _NAMES[type(record)]}
    for f in fields(record):
        value = getattr(record, f.name)
        if isinstance(value, Usage):
            line |= {name: getattr(value, name) for name in _USAGE[type(record)]}
        elif value is not None or f.name not in ("compared", "feedback", "finish", "logprob"):  # which many lack
            line[f.name] = jsonable(value)
    return line


def decode_record(line: Mapping[str, Any]) -> Record | None:
    """Return the record of a line; None for a kind that later versions may add. Unknown fields are left out."""
    cls = KINDS.get(str(line.get("kind")))
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
