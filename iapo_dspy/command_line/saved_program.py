"""Reads the file of a saved program without the student and without its code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.errors import StateError, storing
from iapo_dspy.program.evidence.saved_arms import saved_arm
from iapo_dspy.program.policy import FORMAT, CompiledPolicy
from iapo_dspy.report.tabular import Line, Table, as_text
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.scoring.strategies.saved import for_solving

_COLUMNS = {"utility": ".3f", "reward": ".3f", "tokens": ",.0f", "cost": ".3g"}  # of the results, as they are shown


@dataclass(frozen=True, kw_only=True)
class SavedProgram:
    """One compiled program of a file.

    Attributes:
        where: The path of its module in a pipeline; "" for the program itself.
        policy: Its policy.
        rows: The estimates of each preference by name; empty for a program that was saved without its results.
    """

    where: str
    policy: CompiledPolicy
    rows: tuple[Mapping[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data: preferences with their arms, and the prompts that they draw."""
        policy = self.policy
        rows = self.rows or ({},) * len(policy.arms)
        return {
            "strategy": dict(policy.strategy),
            "max_n": policy.max_n,
            "default": policy.default,
            "preferences": [
                {
                    **preference.to_dict(),
                    "prompt": arm.prompt,
                    "n": arm.n,
                    "stop": None if arm.stop is None else asdict(arm.stop),
                    **{name: part for name, part in saved_arm(arm).items() if name in ("beside", "then")},
                    "estimates": {name: row[name] for name in _COLUMNS if name in row},
                }
                for preference, arm, row in zip(policy.preferences, policy.arms, rows, strict=True)
            ],
            "prompts": {
                prompt: {
                    "label": policy.prompts[prompt].label,
                    "instructions": self._instructions(prompt),
                    "decoding": policy.prompts[prompt].decoding.as_kwargs(),
                    "adapter": str(policy.prompts[prompt].adapter) if policy.prompts[prompt].adapter else None,
                    "rewriter": str(policy.prompts[prompt].rewriter) if policy.prompts[prompt].rewriter else None,
                    "lms": {name: str(lm) for name, lm in policy.prompts[prompt].lms.items()},
                }
                for prompt in self._drawn
            },
            "spent": dict(policy.spent),
        }

    def __str__(self) -> str:
        """Return the policy as a table, and the whole instructions of the prompts in it."""
        policy, spent = self.policy, Spent.from_dict(self.policy.spent)
        strategy = for_solving(policy.strategy)
        aggregator = None if strategy is None else strategy.aggregator()
        usd = f", {spent.usd:,.4g} dollars" if spent.usd else ""  # an unknown price is not 0 dollars
        columns = [name for name in _COLUMNS if self.rows]
        rows = [
            Line(
                cells=(
                    str(p.name),
                    *(format(self.rows[i][name], _COLUMNS[name]) for name in columns),
                    str(policy.arms[i].most),
                    ", ".join(map(str, policy.arms[i].prompts)),
                    policy.prompts[policy.arms[i].prompt].label,
                )
            )
            for i, p in enumerate(policy.preferences)
        ]
        table = Table(
            columns=("preference", *columns, "N", "prompt", "instruction"),
            rows=tuple(rows),
            numbers=frozenset({*columns, "N", "prompt"}),
            title=f"{self.where or 'program'}: {len(policy.prompts)} prompts, N up to {policy.max_n}, "
            f"strategy {policy.strategy.get('kind')}, default preference {policy.default!r}",
            notes=(
                *(
                    f"{p.name}: {arm_in_words(a, aggregator)}"
                    for p, a in zip(policy.preferences, policy.arms, strict=True)
                    if a.compound
                ),
                f"spent: {spent.completions:,} completions, {spent.tokens:,} tokens{usd}",
            ),
        )
        return "\n\n".join([as_text(table), *map(self._prompt, self._drawn)])

    @property
    def _drawn(self) -> list[int]:
        return sorted({prompt for arm in self.policy.arms for prompt in arm.prompts})

    def _instructions(self, prompt: int) -> dict[str, str]:
        states = self.policy.prompts[prompt].state
        return {name: state.get("signature", {}).get("instructions", "") for name, state in states.items()}

    def _prompt(self, prompt: int) -> str:
        saved = self.policy.prompts[prompt]
        about = [f"{name}={value:g}" for name, value in saved.decoding.as_kwargs().items() if value is not None]
        about += [f"adapter: {saved.adapter}"] if saved.adapter is not None else []
        about += [f"{name}: {lm}" for name, lm in saved.lms.items()]
        about += [f"{name}: {len(state['demos'])} demos" for name, state in saved.state.items() if state.get("demos")]
        lines = [f"prompt {prompt}" + (f" ({', '.join(about)})" if about else "")]
        for name, text in self._instructions(prompt).items():
            lines += [f"  {name}:", *(f"    {line}" for line in text.splitlines())]
        return "\n".join(lines)


def saved_programs(path: Path) -> tuple[SavedProgram, ...]:
    """Read every compiled program that a file holds: one, or several where a pipeline was saved.

    Raises:
        StateError: The file is not JSON, or has not a single compiled program.
        StorageError: It cannot be read.
    """
    with storing(path, "read"):
        text = path.read_bytes()
    try:
        data = json.loads(text)
    except ValueError as error:
        raise StateError(f"{path} is not JSON, so it is not a program that `save` wrote: {error}.") from error
    found = tuple(
        SavedProgram(
            where=where.removesuffix("policy").rstrip("."),
            policy=CompiledPolicy.from_dict(state),
            rows=tuple((state.get("results") or {}).get("policy", ())),
        )
        for where, state in _policies(data)
    )
    if not found:
        raise StateError(f"{path} has not a compiled program in it: give a file that CompiledProgram.save wrote.")
    return found


def _policies(data: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, value in data.items() if isinstance(data, Mapping) else ():
        if isinstance(value, Mapping) and value.get("format") == FORMAT and not value.get("empty"):
            yield name, value
