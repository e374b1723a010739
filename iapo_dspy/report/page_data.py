"""The data of a report: plain, frozen, and saved as JSON beside the ledger of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from iapo_dspy.errors import StateError, storing, whole_file
from iapo_dspy.report.tabular import Table

FILE = "report.json"
"""Its name in the `log_dir` of a run."""

_FORMAT, _VERSION = "iapo_dspy.report", 1

AxisName = Literal["cost", "tokens", "usd", "seconds"]
Row = tuple[float | None, ...]
"""Values at N = 1 .. max_n; None without evidence."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A resource that a call takes, as an axis of the frontier.

    Attributes:
        name: Which resource.
        title: Its title, with the unit.
        values: Expected use of a call that draws all N completions at once [P, N].
    """

    name: AxisName
    title: str
    values: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class PagePrompt:
    """A prompt.

    Attributes:
        label: The prompt in words.
        model: Model string of its LM; one for each predictor where they differ.
        decoding: Its decoding in words; "" where it is the LM's own.
        instructions: Predictor -> its instructions.
        origin: In words, where a prompt that the run wrote comes from; "" for one that was given.
        failed: Share of its completions that failed; None where it was not drawn, or that is not known.
    """

    label: str
    model: str
    decoding: str
    instructions: Mapping[str, str]
    origin: str = ""
    failed: float | None = None


@dataclass(frozen=True, kw_only=True)
class PageArm:
    """An arm that some preference gets, with the estimates that it is chosen by.

    Attributes:
        prompt: Index of its prompt.
        n: Completions at most.
        stop: Its waves and its stopping rule in words; "" where all completions are drawn at once.
        reward: Estimated task reward.
        standard_error: Of the reward; None where it is not known.
        completions: Expected completions of a call.
        use: Expected use of a call, by the name of the resource; that of "cost" is in the run's unit.
    """

    prompt: int
    n: int
    stop: str
    reward: float
    standard_error: float | None
    completions: float
    use: Mapping[AxisName, float]


@dataclass(frozen=True, kw_only=True)
class View:
    """Estimates under one choice of the objectives' weights, and the arm of every weight of the cost.

    The utility of an arm is `reward - weight * cost_scale * cost`, a line in the weight. Which arm is best is not the
    highest of these lines alone: estimates that cannot be told apart give way to the cheaper arm, which depends on
    the error of each difference, and stopping rules are tuned for the prompts that are near the top at that weight. So
    the answer of the solver at each weight is kept, and the page finds the arm and its utility by it.

    Attributes:
        name: The weights in words.
        reward: Estimated task reward of calls that draw all N at once [P, N].
        standard_error: Its standard error [P, N]; None for algorithms without standard errors.
        weights: Cost weights of the slider, ascending, the first one 0 [W].
        arms: The arms that these weights get.
        chosen: Which of `arms` each weight gets [W].
    """

    name: str
    reward: tuple[Row, ...]
    standard_error: tuple[Row, ...] | None
    weights: tuple[float, ...]
    arms: tuple[PageArm, ...]
    chosen: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PageRound:
    """One round of the run.

    Attributes:
        prompts: Prompts that were alive when it began.
        pulls: Pulls made.
        completions: Completions drawn.
    """

    prompts: int
    pulls: int
    completions: int


@dataclass(frozen=True, kw_only=True)
class PageFailures:
    """The failed completions of a run.

    Attributes:
        completions: All completions.
        total: Failed ones.
        causes: The most frequent causes with their numbers, each an example of its text.
    """

    completions: int
    total: int
    causes: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class PageData:
    """All that a report shows.

    Attributes:
        title: Its heading.
        policy: The arm of each preference.
        prompts: The prompts [P].
        student: Predictor -> instructions of the student as it was.
        cost_unit: The unit of costs.
        cost_scale: Utility of one unit of cost at cost weight 1.
        axes: The resources that are known, the cost first.
        views: One for each choice of the objectives' weights that was compiled.
        deceptive: Deceptive prompts, a sentence each.
        rounds: The rounds; None where they are not known.
        spent: What the run took: words -> words.
        failures: Failed completions; None where they are not known.
        larger: What a larger budget would bring to each preference.
        remarks: Further sentences: an early end, an outage, too little evidence.
    """

    title: str
    policy: Table
    prompts: tuple[PagePrompt, ...]
    student: Mapping[str, str]
    cost_unit: str
    cost_scale: float
    axes: tuple[Axis, ...]
    views: tuple[View, ...]
    deceptive: tuple[str, ...]
    rounds: tuple[PageRound, ...] | None
    spent: Mapping[str, str]
    failures: PageFailures | None
    larger: Table
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        plain: dict[str, Any] = to_jsonable_python(self, inf_nan_mode="null")
        return plain


_DATA = TypeAdapter(PageData)


def save_page_data(data: PageData, folder: Path) -> None:
    """Write the data of a report into the folder of its run.

    Raises:
        StorageError: The file cannot be written.
    """
    path = folder / FILE
    text = json.dumps({"format": _FORMAT, "version": _VERSION, **data.to_dict()}, ensure_ascii=False, allow_nan=False)
    with storing(path), whole_file(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def load_page_data(folder: Path) -> PageData:
    """Read what `save_page_data` wrote.

    Raises:
        StateError: There is no report yet, or the file is not one that this version can read.
        StorageError: The file cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        raise StateError(
            f"{folder} has no {FILE}: {_why(folder)} A compile with log_dir={str(folder)!r} writes it when it ends. "
            "Run it again with the same arguments: it takes its completions from the ledger and pays for none twice."
        )
    with storing(path, "read"):
        text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or found.pop("format", None) != _FORMAT:
            raise ValueError("it is not the data of a report")
        if (version := found.pop("version", None)) != _VERSION:
            raise ValueError(f"it has version {version!r}, and this iapo_dspy reads version {_VERSION}")
        return _DATA.validate_python(found)
    except ValueError as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise StateError(
            f"{path} cannot be used: {reason}. Compile again with this log_dir to write it anew."
        ) from error


def _why(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder."
    if not any(folder.glob("*.jsonl")):
        return "it is not the log_dir of a run."
    return "its run has not ended, kept no results (track_stats=False), or is of a version that wrote none."
