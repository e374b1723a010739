"""The data of a report: plain and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_jsonable_python

from iapo_dspy.report.tabular import Table

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
        adapter: Its adapter in words; "" where it is the configured one.
        instructions: Predictor -> its instructions.
        origin: In words, where a prompt that the run wrote comes from; "" for one that was given.
        failed: Share of its completions that failed; None where it was not drawn, or that is not known.
        unreadable: Share of them whose text could not be read; None likewise.
    """

    label: str
    model: str
    decoding: str
    adapter: str
    instructions: Mapping[str, str]
    origin: str = ""
    failed: float | None = None
    unreadable: float | None = None


@dataclass(frozen=True, kw_only=True)
class PageArm:
    """An arm that some preference gets, with the estimates that it is chosen by.

    Attributes:
        prompt: Index of its prompt; of several, that of the first one.
        n: Completions of it at most.
        stop: Its waves and its stopping rule in words; "" where all completions are drawn at once.
        words: A cascade or a mixture in words; "" for an arm of one prompt.
        prompts: All of its prompts.
        reward: Estimated task reward.
        standard_error: Of the reward; None where it is not known.
        completions: Expected completions of a call.
        use: Expected use of a call, by the name of the resource; that of "cost" is in the run's unit.
        abstains: Expected share of calls that end without an answer.
    """

    prompt: int
    n: int
    stop: str
    words: str
    prompts: tuple[int, ...]
    reward: float
    standard_error: float | None
    completions: float
    use: Mapping[AxisName, float]
    abstains: float = 0.0


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
class PageReliability:
    """How well the confidence of a preference's calls agrees with what they were.

    Attributes:
        name: Name of the preference.
        confidence: Mean confidence of each bin of calls.
        right: Share of them whose answer was right.
        count: How many they are.
        error: The expected calibration error in words.
    """

    name: str
    confidence: tuple[float, ...]
    right: tuple[float, ...]
    count: tuple[int, ...]
    error: str


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
        examples: Some that could not be read: the prompt, the text and the cause of each.
    """

    completions: int
    total: int
    causes: tuple[tuple[str, int], ...]
    examples: tuple[tuple[str, str, str], ...] = ()


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
        reliability: Of the preferences of which it is known.
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
    reliability: tuple[PageReliability, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        plain: dict[str, Any] = to_jsonable_python(self, inf_nan_mode="null")
        return plain
