"""The prediction that a call of a compiled program returns, and its report."""

from __future__ import annotations

from typing import Any

import dspy
from pydantic import BaseModel, ConfigDict

from iapo_dspy.report.html import table_html
from iapo_dspy.report.tabular import Line, Table


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


class CallReport(BaseModel):
    """The report of one call of a compiled program: `iapo` of its prediction.

    Attributes:
        preference: Name of the preference, or None for an ad hoc one.
        cost_weight: Its cost weight.
        asked: The whole preference as JSON data (`Preference.from_dict` reads it).
        prompt: Index of the prompt.
        label: The prompt in words.
        model: Model string of the LM that was asked; one for each predictor where they differ.
        n: Completions drawn.
        planned: Completions that the arm draws at most: its N.
        waves: Waves in which they were drawn.
        stopped: Why fewer were drawn than planned: "settled" (the rest could not have changed the result), "confident"
            or "threshold" (the arm's stopping rule); None where all were drawn.
        votes: Answer -> votes, or the sum of their weights, most first (votes).
        utilities: Weighted objective per completion, None for a failed one (best-of-n).
        winner: Position of the returned completion among the n.
        failures: Position -> why this completion took no part.
        replaced: Output field -> the value that the winner was returned with instead of its own (means and medians).
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
    winner: int
    failures: dict[int, str]
    replaced: dict[str, Any] = {}
    prompt_tokens: float
    completion_tokens: float
    usd: float | None
    seconds: float
    cost: float | None
    cost_unit: str
    judge_tokens: int = 0
    judge_usd: float | None = 0.0

    def _repr_html_(self) -> str:
        """Return the report for a notebook, a line for each fact that there is."""
        facts = {name: value for name, value in self.model_dump().items() if value not in (None, {}, ())}
        lines = tuple(Line(cells=(name.replace("_", " "), str(value))) for name, value in facts.items())
        return table_html(Table(columns=("call", ""), rows=lines))
