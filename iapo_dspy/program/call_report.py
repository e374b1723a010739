"""The prediction that a call of a compiled program returns, and its report."""

from __future__ import annotations

from typing import Any, Literal

import dspy
from pydantic import BaseModel, ConfigDict

from iapo_dspy.report.html import table_html
from iapo_dspy.report.tabular import Line, Table
from iapo_dspy.types import NEVER_SURE


class CompiledPrediction(dspy.Prediction):  # type: ignore[misc]  # dspy ships no types
    """The winner's fields, all successful completions in `completions`, and the call's report in `iapo`.

    The report is not a field: code that goes through the fields of a prediction (`dspy.majority`, metrics, `toDict`, a
    web service) sees the student's fields only.
    """

    def __init__(self, base: Any = None, **kwargs: Any) -> None:
        super().__init__(base, **kwargs)
        self._iapo: CallReport | None = getattr(base, "_iapo", None)

    @property
    def iapo(self) -> CallReport:
        """The report of the call.

        Raises:
            AttributeError: This was not returned by a call, but made of fields.
        """
        if self._iapo is None:
            raise AttributeError("iapo")
        return self._iapo


class Abstention(CompiledPrediction):
    """The prediction of a call that was not sure enough to answer: all output fields are None.

    `iapo.withheld` has the answer that it would have given, and `iapo` says how sure that was. It is a result and not
    an error, so a batch goes on.
    """


class PromptReport(BaseModel):
    """The part of one prompt in a stage of a call.

    Attributes:
        prompt: Index of the prompt.
        label: The prompt in words.
        model: Model string of the LM that was asked; one for each predictor where they differ.
        n: Completions drawn.
    """

    model_config = ConfigDict(frozen=True)

    prompt: int
    label: str
    model: str | tuple[str, ...]
    n: int


class StageReport(BaseModel):
    """The report of one stage of a call. A call of one prompt has one stage.

    Attributes:
        prompts: What it drew of which prompt; several in a mixture.
        n: Completions drawn.
        planned: Completions that it draws at most.
        waves: Waves in which they were drawn, one after another.
        weight: How often each of its completions counts.
        counted: Completions that count, as often as they count; with those of earlier stages where these still count.
        stopped: Why fewer were drawn than planned: as in `CallReport`, or "sure" (the rest could not have made it less
            sure than `below`), or "unsure" (nor as sure). None where all were drawn.
        ending: "answered", "went on" (to the next stage), or "abstained".
        sureness: How sure the answer was, see `CallReport`.
        below: Below this, the call went on or abstained; None where the stage answered in any case.
        votes: Answer -> votes, as often as they count, most first.
        utilities: Weighted objective of each completion of the call so far; None where it did not count, or failed.
    """

    model_config = ConfigDict(frozen=True)

    prompts: tuple[PromptReport, ...]
    n: int
    planned: int
    waves: int
    weight: int
    counted: int
    stopped: str | None
    ending: Literal["answered", "went on", "abstained"]
    sureness: float | None
    below: float | None
    votes: dict[str, int | float] | None
    utilities: tuple[float | None, ...] | None


class CallReport(BaseModel):
    """The report of one call of a compiled program: `iapo` of its prediction.

    Attributes:
        preference: Name of the preference, or None for an ad hoc one.
        cost_weight: Its cost weight.
        asked: The whole preference as JSON data (`Preference.from_dict` reads it).
        prompt: Index of the prompt; of several, the one of the returned completion.
        label: The prompt in words.
        model: Model string of the LM that was asked; one for each predictor where they differ.
        n: Completions drawn, in all stages together.
        planned: Completions that the arm draws at most: its N.
        waves: Waves in which they were drawn, one after another.
        stopped: Why fewer were drawn than planned: "settled" (the rest could not have changed the result), "confident"
            or "threshold" (the arm's stopping rule), "sure" (a stage was sure enough for an answer), "unsure" (the rest
            of a stage could not have made it sure); None where all were drawn.
        votes: Answer -> votes, or the sum of their weights, most first (votes); of the stage that answered.
        utilities: Weighted objective per completion, None for a failed one, and for one that did not count (best-of-n).
        winner: Position of the returned completion among the n; None where the call abstained without any.
        failures: Position -> why this completion took no part.
        replaced: Output field -> the value that the winner was returned with instead of its own (means and medians).
        stages: The stages that were drawn, first to last.
        stage: The stage that answered or abstained, 0-based: the last one of `stages`.
        sureness: How sure the answer was. Votes: the share of the completions that gave it, failed ones counted; with
            weights, its share of the weights times the share of completions with a vote. Best-of-N: its weighted
            objective. None where the strategy does not tell.
        confidence: Calibrated probability that the answer is right; None where that is not known.
        abstained: Whether the call was not sure enough to answer; its prediction is an `Abstention`.
        withheld: Output field -> its value in the answer that the call would have given; None where it answered, and
            empty where all completions failed.
        prompt_tokens: Input tokens of the call.
        completion_tokens: Output tokens of the call.
        usd: Price, None where it is not known.
        seconds: From sending the call to its last completion, the scoring between waves included.
        cost: The cost of the call, in the unit that the program was compiled with (`cost_unit`); None where the unit
            counts dollars and the price is not known. Judges are not in it, nor were they in the costs by which the
            arm was chosen.
        cost_unit: That unit in words: "output tokens" by default.
        judge_tokens: Input and output tokens of LMs and embedding models that objectives asked to select; not part of
            `prompt_tokens` and `completion_tokens`.
        judge_usd: Their price, not part of `usd`; None where one of them has no known price.
        rewritten: Rewriter -> the text that it made of its input field; all completions are drawn on that.
        not_rewritten: Rewriter -> why the query stayed as it was.
        rewriter_tokens: Input and output tokens of rewriters, a part of `prompt_tokens` and `completion_tokens`.
        rewriter_usd: Their price, a part of `usd`; None where it is not known.
    """

    model_config = ConfigDict(frozen=True)

    preference: str | None
    cost_weight: float
    asked: dict[str, Any]
    prompt: int
    label: str
    model: str | tuple[str, ...]
    n: int
    planned: int
    waves: int
    stopped: str | None
    votes: dict[str, int | float] | None
    utilities: tuple[float | None, ...] | None
    winner: int | None
    failures: dict[int, str]
    replaced: dict[str, Any] = {}
    stages: tuple[StageReport, ...] = ()
    stage: int = 0
    sureness: float | None = None
    confidence: float | None = None
    abstained: bool = False
    withheld: dict[str, Any] | None = None
    prompt_tokens: float
    completion_tokens: float
    usd: float | None
    seconds: float
    cost: float | None
    cost_unit: str
    judge_tokens: int = 0
    judge_usd: float | None = 0.0
    rewritten: dict[str, str] = {}
    not_rewritten: dict[str, str] = {}
    rewriter_tokens: int = 0
    rewriter_usd: float | None = 0.0

    @property
    def way(self) -> str:
        """Which way the call went through the stages of its arm, and why; "" where it had no other."""
        if all(stage.below is None and len(stage.prompts) == 1 for stage in self.stages):
            return ""
        *before, last = self.stages
        doubts = "; ".join(f"{_named(stage)} {_sure(stage)}" for stage in before)
        if last.below is None:
            earlier = last.counted - last.n * last.weight
            beside = f" with the {earlier} completions before" if earlier else ""
            decided = f"{_named(last)} decided{beside}" + (" together" if len(last.prompts) > 1 else "")
            return f"{doubts}, so {decided}" if doubts else decided
        found = f"{_named(last)} {_sure(last)}, so the call {'abstained' if self.abstained else 'answered'}"
        return f"{doubts}; {found}" if doubts else found

    def _repr_html_(self) -> str:
        """Return the report for a notebook, a line for each fact that there is."""
        facts = {name: value for name, value in self.model_dump().items() if value not in (None, {}, ())}
        lines = tuple(Line(cells=(name.replace("_", " "), str(value))) for name, value in facts.items())
        return table_html(Table(columns=("call", ""), rows=lines))


def _named(stage: StageReport) -> str:
    numbers = [str(drawn.prompt) for drawn in stage.prompts]
    if len(numbers) == 1:
        return f"prompt {numbers[0]}"
    return f"prompts {', '.join(numbers[:-1])} and {numbers[-1]}"


def _sure(stage: StageReport) -> str:
    """Say how sure a stage was, and how sure it had to be."""
    after = f"after {stage.n} of {stage.planned}" if stage.n < stage.planned else f"after {stage.n}"
    after += " completion" if stage.planned == 1 else " completions"
    if stage.sureness is None or stage.below is None:
        return f"had no answer {after}"
    # Of votes, sureness is a share.
    never = stage.below >= NEVER_SURE
    sure, below = (f"{v:.3g}" if stage.votes is None else f"{v:.0%}" for v in (stage.sureness, stage.below))
    had = f"scored {sure}" if stage.votes is None else f"was {sure} sure"
    if never:
        return f"{had} {after}, and no call is sure enough"
    return f"{had} {after}, {'at least' if stage.ending == 'answered' else 'below'} {below}"
