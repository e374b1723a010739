"""The saved form of `CompileResult`.

What the policy says already (preferences, arms, labels, the unit of costs, the spending) is read from there, and the
rest is saved beside it. Its size depends on preferences, prompts and scales, and not on how many completions were
drawn.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import dspy
import numpy as np
from pydantic import TypeAdapter

from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.bandit.inference import Deceptive
from iapo_dspy.bandit.outcome import Round
from iapo_dspy.errors import ConfigurationError, StateError, storing
from iapo_dspy.program.evidence.columns import numbers, packed, plain, unpacked, written
from iapo_dspy.program.policy import CompiledPolicy, checked, part
from iapo_dspy.program.results.calls import label_of, model_of
from iapo_dspy.program.results.compile_result import CompileResult, of_calls
from iapo_dspy.program.results.rows import PreferenceResult
from iapo_dspy.prompts.proposers.written import WrittenPrompt
from iapo_dspy.prompts.rewriters.rewrite_counts import RewriteCount
from iapo_dspy.sampling.ledger.reading import contents_of
from iapo_dspy.sampling.ledger.records import CompletionRecord
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.scoring.comparisons import PositionBias
from iapo_dspy.scoring.failures import FailureReport, UnreadableText, worst_examples
from iapo_dspy.scoring.strategies import Strategy
from iapo_dspy.scoring.strategies.saved import for_solving
from iapo_dspy.types import FloatArray

PROGRAM = "program.json"
"""The compiled program's name in the `log_dir` of its run."""

_ARRAYS = ("q", "reward")
_OWN = tuple(
    f.name for f in fields(PreferenceResult) if f.name not in ("preference", "arm", "words", "label", "model")
)  # what a row has beside the policy


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """The part of saved results that is not packed, but for what rows have from the policy."""

    policy: tuple[dict[str, Any], ...]
    models: tuple[str | tuple[str, ...], ...]
    deceptive: tuple[Deceptive, ...] | None
    failures: FailureReport | None
    complete: bool | None
    outage: str | None
    estimates: str
    written: Mapping[int, WrittenPrompt] = field(default_factory=dict)
    student: int | None = None
    bias: Mapping[str, PositionBias] = field(default_factory=dict)
    rewrites: Mapping[str, RewriteCount] = field(default_factory=dict)


_SAVED, _ROW = TypeAdapter(_Saved), TypeAdapter(PreferenceResult)


def result_to_dict(result: CompileResult) -> dict[str, Any]:
    """Return what the policy does not say as plain JSON data which `read_result` reads."""
    arrays: dict[str, Any] = {name: _layers(getattr(result, name)) for name in _ARRAYS}
    arrays["standard_error"] = None if result.standard_error is None else _layers(result.standard_error)
    arrays |= {"costs": written(result.costs), "count": written(result.count), "tokens": written(result.tokens[:, 0])}
    if result.rounds is not None:
        arrays["rounds"] = [
            {"active": np.packbits(r.active).tobytes().hex(), "pulls": r.pulls, "completions": r.completions}
            for r in result.rounds
        ]
    saved: dict[str, Any] = plain(
        _Saved(
            policy=tuple({name: getattr(row, name) for name in _OWN} for row in result.policy),
            models=result.models,
            deceptive=result.deceptive,
            failures=None if result.failures is None else result.failures.without_examples(),
            complete=result.complete,
            outage=result.outage,
            estimates=packed(arrays),
            written=result.written,
            student=result.student,
            bias=result.bias,
            rewrites=result.rewrites,
        )
    )
    return saved


def read_result(
    data: Mapping[str, Any],
    policy: CompiledPolicy,
    strategy: Strategy,
    programs: Callable[[], tuple[dspy.Module, ...]],
) -> CompileResult:
    """Read what `result_to_dict` made.

    Args:
        data: The data, perhaps from a file that somebody else wrote.
        policy: The policy that they were saved with.
        strategy: Its strategy.
        programs: Makes one program per prompt.

    Raises:
        StateError: They are damaged, or do not fit the policy.
    """
    n_prompts, max_n = len(policy.prompts), policy.max_n
    shape = len(policy.preferences), n_prompts, max_n
    with part("results"):
        saved = checked(_SAVED, data)
        if (len(saved.policy), len(saved.models)) != shape[:2]:
            raise ValueError(f"they are of {len(saved.policy)} preferences and {len(saved.models)} prompts")
        labels, aggregator = tuple(p.label for p in policy.prompts), strategy.aggregator()
        given = zip(saved.policy, policy.preferences, policy.arms, strict=True)
        rows = [
            {
                **row,
                "preference": p,
                "arm": arm,
                "words": arm_in_words(arm, aggregator),
                "label": label_of(arm, labels),
                "model": model_of(arm, saved.models),
            }
            for row, p, arm in given
        ]

        found = CompileResult(
            policy=tuple(checked(_ROW, row) for row in rows),
            labels=labels,
            models=saved.models,
            deceptive=saved.deceptive,
            cost=policy.cost,
            cost_scale=policy.cost_scale,
            spent=Spent.from_dict(policy.spent),
            failures=saved.failures,
            complete=saved.complete,
            outage=saved.outage,
            written=saved.written,
            student=saved.student,
            bias=saved.bias,
            rewrites=saved.rewrites,
            compiled=policy,
            strategy=strategy,
            programs=programs,
            **_read_arrays(unpacked(saved.estimates), shape),
        )
        asked = [(d.context, d.prompt, d.beaten_by) for d in found.deceptive or ()]
        if any(not (0 <= c < shape[0] and 0 <= p < n_prompts and 0 <= q < n_prompts) for c, p, q in asked):
            raise ValueError("deceptive prompts are of preferences or prompts that the policy does not have")
        others = [b.estimate.arm for row in found.policy for b in row.baselines]
        others += [arm for row in found.policy for c in row.considered for arm in (c.arm, c.beside)]
        shares = [share for arm in others for stage in arm.stages for share in stage.shares]
        numbers_of = [*(s.prompt for s in shares), *([] if found.student is None else [found.student])]
        if any(not 0 <= p < n_prompts for p in numbers_of) or any(s.n > max_n for s in shares):
            raise ValueError("baselines are not among the arms of the policy")
        gains = [row.gain for row in found.policy if row.gain is not None]
        named = {*found.written, *(p for w in found.written.values() for p in w.parents), *(g.given for g in gains)}
        if not named <= set(range(n_prompts)) or not {g.prompt for g in gains} <= found.written.keys():
            raise ValueError("written prompts are not among those of the policy")
        return found


def result_of_run(log_dir: str | os.PathLike[str]) -> CompileResult:
    """Return the results of a run that has ended, from the program that it left in its `log_dir`.

    They report and solve preferences. They have not the user's functions and LMs, so `candidate_programs` raises.
    Examples of completions that could not be read are from the ledger in that folder.

    Raises:
        StateError: The folder has no results yet, or they cannot be read without code of the user's.
        StorageError: The file cannot be read.
    """
    folder = Path(log_dir)
    path = folder / PROGRAM
    if not path.is_file():
        raise StateError(
            f"{folder} has no {PROGRAM}: {_why_not(folder)} A compile with log_dir={str(folder)!r} writes it when it "
            "ends. Run it again with the same arguments: it takes its completions from the ledger and pays for none "
            "twice."
        )
    with storing(path, "read"):
        text = path.read_text(encoding="utf-8")
    with part(f"{path}"):
        state = json.loads(text)["policy"]
        policy = CompiledPolicy.from_dict(state)
        strategy = for_solving(policy.strategy)
        results = state.get("results")
    if strategy is None:
        raise StateError(
            f"{path} was compiled with a strategy of your own, {policy.strategy.get('kind')!r}, which plain JSON "
            "cannot hold. Load the program with it, CompiledProgram(student, strategy=...), and use detailed_results."
        )
    if results is None:
        raise StateError(f"{path} was compiled with track_stats=False, so it has no results. Compile again with them.")
    found = read_result(results, policy, strategy, _without_programs)
    return replace(found, failures=_with_examples(found, folder))


def _with_examples(found: CompileResult, folder: Path) -> FailureReport | None:
    """Return failures with texts of the ledger; prompts that the run wrote are not named there."""
    failures = found.failures
    if failures is None or not failures.unread or not (folder / "ledger.jsonl").is_file():
        return failures
    contents = contents_of(folder)
    ids, labels = contents.about.get("prompts") or (), contents.about.get("labels") or ()
    known = {name: found.labels.index(label) for name, label in zip(ids, labels, strict=False) if label in found.labels}
    texts: list[UnreadableText | None] = [None] * len(found.labels)
    missing = {p for p in known.values() if failures.unreadable_of(p)}
    for record in contents.all(CompletionRecord):
        prompt = known.get(record.prompt, -1)
        if prompt in missing and record.fields is None and record.failure is not None and not record.error:
            texts[prompt] = UnreadableText.of(prompt, record.text, record.failure)
            missing.remove(prompt)
        if not missing:
            break
    return replace(failures, examples=worst_examples(failures.unreadable, texts))


def _without_programs() -> tuple[dspy.Module, ...]:
    raise ConfigurationError(
        "These results were read from a log_dir, without the student. Load the program to have its candidates: "
        "program.load(...), then program.detailed_results."
    )


def _why_not(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder."
    if not any(folder.glob("*.jsonl")):
        return "it is not the log_dir of a run."
    return "its run has not ended, or was made by an earlier version."


def _layers(values: FloatArray) -> dict[str, Any]:
    """Write an array [C, P, N]; contexts that are alike, as those that differ in cost only, are written once."""
    texts = [written(layer) for layer in values]
    distinct = list(dict.fromkeys(texts))
    return {"layers": distinct, "contexts": [distinct.index(text) for text in texts]}


def _read_layers(data: Mapping[str, Any], shape: tuple[int, ...]) -> FloatArray:
    layers = np.stack([numbers(layer, np.float64, shape[1:]) for layer in data["layers"]])
    values = layers[np.array(data["contexts"], dtype=np.int64)]
    if values.shape != shape or np.isinf(values).any():
        raise ValueError(f"estimates have the shape {values.shape}, which must be {shape}, or are not finite")
    return np.asarray(values)


def _read_arrays(data: Mapping[str, Any], shape: tuple[int, int, int]) -> dict[str, Any]:
    error, rounds = data["standard_error"], data.get("rounds")
    return {
        **{name: _read_layers(data[name], shape) for name in _ARRAYS},
        "standard_error": None if error is None else _read_layers(error, shape),
        "costs": numbers(data["costs"], np.float64, shape[1:]),
        "count": numbers(data["count"], np.int64, shape[1:]),
        "tokens": of_calls(numbers(data["tokens"], np.float64, shape[1:2]), shape[2]),
        "rounds": None if rounds is None else tuple(_read_round(r, shape) for r in rounds),
    }


def _read_round(data: Mapping[str, Any], shape: tuple[int, int, int]) -> Round:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(data["active"]), dtype=np.uint8))
    active = bits[: math.prod(shape)].reshape(shape).astype(bool)
    return Round(active=active, pulls=int(data["pulls"]), completions=int(data["completions"]))
