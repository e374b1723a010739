"""The events of a run, which its callbacks are called with: frozen, plain data.

    def follow(event):
        if isinstance(event, RoundEnded):
            print(event.round, event.leaders)

    IAPO(..., execution=Execution(callbacks=[follow]))

In order: `RunStarted`; for each round `Progress` after every pull and `RoundEnded`; `PromptsProposed` for each
generation of written prompts; `PolicyChosen`; and `RunEnded`, which comes whatever ends the run. A callback may raise
KeyboardInterrupt: that ends the run as Ctrl-C does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from iapo_dspy.environments.live.progress import Progress
from iapo_dspy.sampling.spending.budget import Spent

__all__ = [
    "Event",
    "LeadingArm",
    "PolicyChosen",
    "Progress",
    "PromptsProposed",
    "ProposedPrompt",
    "RoundEnded",
    "RunEnded",
    "RunStarted",
]


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """A run begins: everything was checked, and nothing new has been drawn.

    Attributes:
        preferences: Names of the preferences.
        prompts: Prompts at hand, those that earlier runs wrote included.
        examples: Training examples.
        max_n: Largest number of completions per call.
        completions: Completions at most; None without a limit.
        usd: Dollars at most; None without a limit.
        restored: Completions of this run that `log_dir` has already, at most.
        log_dir: Where completions are kept; None where nothing keeps them.
        settings: The optimizer's settings as plain data (`IAPO.get_params()`).
    """

    preferences: tuple[str, ...]
    prompts: int
    examples: int
    max_n: int
    completions: int | None
    usd: float | None
    restored: int
    log_dir: str | None
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class LeadingArm:
    """The arm that a preference would choose now.

    Attributes:
        preference: Name of the preference.
        prompt: Number of the prompt, 0-based; of several, that of the first one.
        label: The prompt in a few words.
        n: Completions per call; of several prompts, those of the first one.
        utility: Estimated utility; NaN where there is no evidence.
        standard_error: Its standard error; NaN from algorithms that have none.
        words: A cascade or a mixture in words; "" for an arm of one prompt.
    """

    preference: str
    prompt: int
    label: str
    n: int
    utility: float
    standard_error: float
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class RoundEnded:
    """A round of the algorithm is over, and its estimates are known.

    Attributes:
        round: Number of the round, from 1.
        rounds: About how many rounds there will be; None where the algorithm does not say.
        prompts: Prompts that were still alive, so that the round drew them.
        leaders: The leading arm of each preference by the algorithm's own estimates. Empty where an algorithm does not
            tell them, and with so many preferences that a run looks at some of them only.
        completions: Completions of the round.
        restored: How many of them were in `log_dir` already.
        spent: Everything that the run has taken so far, in earlier processes too.
        completions_left: Completions that the budget still pays for; None without a limit.
        usd_left: Dollars likewise.
        seconds: Seconds since the run began, in this process.
        seconds_left: Seconds until the budget ends at the pace so far; None before anything new was drawn, and without
            a limit. A run may end earlier.
        unreadable: Share of all completions so far that could not be read.
    """

    round: int
    rounds: int | None
    prompts: int
    leaders: tuple[LeadingArm, ...]
    completions: int
    restored: int
    spent: Spent
    completions_left: int | None
    usd_left: float | None
    seconds: float
    seconds_left: float | None
    unreadable: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ProposedPrompt:
    """A prompt that the run wrote.

    Attributes:
        prompt: Its number, 0-based.
        texts: Predictor -> instruction.
        by: The proposer that wrote it.
        parents: Numbers of the prompts that it was made from.
        preference: The preference that it was written for; None for all.
    """

    prompt: int
    texts: Mapping[str, str]
    by: str
    parents: tuple[int, ...]
    preference: str | None


@dataclass(frozen=True, kw_only=True)
class PromptsProposed:
    """A generation of new prompts was written.

    Attributes:
        generation: Its number, from 1.
        prompts: The new prompts; empty where no proposal could be used.
        front: Preference -> number of a prompt -> on how many of the questions so far it is the best one; ties are
            shared. Parents are drawn by it. Empty before the first draw.
        gain: Utility that a new prompt was expected to bring, mean over preferences; infinite before the first draw.
        restored: Whether `log_dir` had this generation already.
    """

    generation: int
    prompts: tuple[ProposedPrompt, ...]
    front: Mapping[str, Mapping[int, float]]
    gain: float
    restored: bool


@dataclass(frozen=True, kw_only=True)
class PolicyChosen:
    """The arms are chosen and, where the budget allows, measured by completions that had no part in the choice.

    Attributes:
        arms: The arm of each preference. The utility is the measured one where there is one.
        measured: Whether it was measured, one by one.
    """

    arms: tuple[LeadingArm, ...]
    measured: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class RunEnded:
    """A run is over, whether it finished or not.

    Attributes:
        status: "finished"; "stopped" by Ctrl-C; or "failed" by an error.
        error: The error in one line; None where there was none.
        spent: Everything that the run has taken, in earlier processes too.
        seconds: Seconds since the run began, in this process.
        metrics: The results as numbers by name, such as "quality/utility" and "spent/usd". Where the run did
            not finish, only the spending.
        summary: The results as a table in text; empty where the run did not finish.
    """

    status: Literal["finished", "stopped", "failed"]
    error: str | None
    spent: Spent
    seconds: float
    metrics: Mapping[str, float]
    summary: str


Event = RunStarted | Progress | RoundEnded | PromptsProposed | PolicyChosen | RunEnded
"""The argument of a callback. `Progress` comes after every pull, the others when their names say."""
