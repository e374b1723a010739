"""Shows a run to people: one line for each round, in the log and above the bar."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm.asyncio import tqdm_asyncio
from tqdm.auto import tqdm

from iapo_dspy.environments.live.progress import Progress
from iapo_dspy.events import (
    Event,
    LeadingArm,
    PolicyChosen,
    PromptsProposed,
    RoundEnded,
    RunEnded,
    RunStarted,
)
from iapo_dspy.scoring.failures import REMARKABLE

logger = logging.getLogger(__name__)

_MOST = 4  # preferences that a line has room for
_WIDTH = 100  # characters of a text in a line


class Console:
    """Logs the lines of a run at INFO, and shows them with a bar.

    Lines are written above the bar unless a handler of the log shows them in the same place. Without a terminal (a
    file, a pipe) there are lines and not a bar. Work that was restored is not told as if it were new.

    Args:
        shown: Whether lines and bar are shown; the log has the lines in any case.
    """

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        notebook = tqdm is not tqdm_asyncio
        self._file: TextIO = sys.stdout if notebook else sys.stderr
        self._barred = shown and (notebook or self._file.isatty())
        self._bar: Any = None  # from the first completion on: what is said before would stand beside it

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Progress):
            self._advance(event)
        for line in lines_of(event):
            self.say(line)

    def say(self, line: str) -> None:
        """Log a line at INFO, and show it once."""
        if not self._shown:
            logger.info("%s", line)
        elif _logged_on_screen():
            with self._above_bar():
                logger.info("%s", line)
        else:
            logger.info("%s", line)
            tqdm.write(line, file=self._file)

    def close(self) -> None:
        """Close the bar; it stays as it is."""
        if self._bar is not None:
            self._bar.close()
        self._barred, self._bar = False, None

    @contextmanager
    def _above_bar(self) -> Iterator[None]:
        if self._bar is None:
            yield
            return
        with tqdm.external_write_mode(file=self._file):
            yield

    def _advance(self, progress: Progress) -> None:
        if not self._barred:
            return
        if self._bar is None:
            self._bar = tqdm(desc="IAPO", unit="completion", dynamic_ncols=True)
        bar = self._bar
        bar.total = progress.budget
        bar.initial = progress.restored  # so that the pace is that of new completions
        bar.update(progress.spent.completions - bar.n)
        shown: dict[str, Any] = {}
        if progress.spent.usd:
            shown["usd"] = f"{progress.spent.usd:.2f}"
        if progress.waiting:
            shown["batch"] = progress.waiting
        if shown:
            bar.set_postfix(shown, refresh=bool(progress.waiting))


def _logged_on_screen() -> bool:
    """Return whether a handler of the log writes INFO lines of the run to stdout or stderr."""
    if not logger.isEnabledFor(logging.INFO):
        return False
    at: logging.Logger | None = logger
    while at is not None:
        for handler in at.handlers:
            stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)
            if handler.level <= logging.INFO and stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
                return True
        at = at.parent if at.propagate else None
    return False


def lines_of(event: Event) -> list[str]:
    """Return an event in words: without a line where a bar shows it, or where the work was restored."""
    if isinstance(event, RunStarted):
        most = [f"{event.completions:,} completions"] if event.completions is not None else []
        most += [f"${event.usd:,.2f}"] if event.usd is not None else []
        limit = f"; at most {' and '.join(most)}" if most else ""
        size = f"{_count(event.prompts, 'prompt')}, {_count(event.examples, 'example')}"
        return [f"{size}, {_count(len(event.preferences), 'preference')}{limit}"]
    if isinstance(event, RoundEnded) and event.restored < max(event.completions, 1):
        return [_round(event)]
    if isinstance(event, PromptsProposed) and not event.restored:
        return _proposed(event)
    if isinstance(event, PolicyChosen):
        return [
            f'chosen for {_arm(arm)}{"" if measured else ", not measured"}: "{shortened(arm.label)}"'
            for arm, measured in zip(event.arms, event.measured, strict=True)
        ]
    if isinstance(event, RunEnded) and event.status == "finished":
        usd = f", ${event.spent.usd:,.4g}" if event.spent.usd else ""
        return [f"finished after {_clock(event.seconds)}: {event.spent.completions:,} completions{usd}"]
    return []


def _round(event: RoundEnded) -> str:
    about = f" of about {event.rounds}" if event.rounds is not None else ""
    parts = [f"round {event.round}{about}: {_count(event.prompts, 'prompt')}"]
    if event.leaders:
        more = f", and {len(event.leaders) - _MOST} preferences more" if len(event.leaders) > _MOST else ""
        parts.append(f"best utility: {', '.join(map(_arm, event.leaders[:_MOST]))}{more}")
    left = f", {event.completions_left:,} left" if event.completions_left is not None else ""
    parts.append(f"{event.spent.completions:,} completions{left}")
    if event.spent.usd or event.usd_left is not None:
        left = f", ${event.usd_left:,.2f} left" if event.usd_left is not None else ""
        parts.append(f"${event.spent.usd:,.2f}{left}")
    if event.unreadable > REMARKABLE:
        parts.append(f"{event.unreadable:.0%} could not be read")
    if event.seconds_left is not None:
        parts.append(f"at most {_clock(event.seconds_left)} left")
    return " | ".join(parts)


def _proposed(event: PromptsProposed) -> list[str]:
    best = sorted({prompt for wins in event.front.values() for prompt, questions in wins.items() if questions > 0})
    front = f"; best on some question so far: {', '.join(map(str, best))}" if best else ""
    lines = [f"generation {event.generation}: {_count(len(event.prompts), 'new prompt')}{front}"]
    for new in event.prompts:
        parents = f" from {', '.join(map(str, new.parents))}" if new.parents else ""
        text = " / ".join(new.texts.values())
        lines.append(f'  prompt {new.prompt} by {new.by}{parents}: "{shortened(text)}"')
    return lines


def _arm(arm: LeadingArm) -> str:
    error = f" +- {arm.standard_error:.3f}" if not math.isnan(arm.standard_error) else ""
    value = f"{arm.utility:.3f}{error}" if not math.isnan(arm.utility) else "unknown"
    words = arm.words or f"prompt {arm.prompt}, N={arm.n}"
    return f"{arm.preference} {value} ({words})"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shortened(text: str, most: int = _WIDTH) -> str:
    """Return a text as one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
