"""Accounts of completions for a writer: what N of them did on a question, and what the preference wants."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iapo_dspy.prompts.proposers.asking import cut, shown
from iapo_dspy.prompts.proposers.port import Aim, KnownPrompt, ProposalEvidence, Try

_RIGHT = 0.5  # a score from which on an answer counts as right
_THRIFTY = 0.5  # a cost weight from which on length matters: 16 of the student's completions cost 0.08 of utility
_NAMED = 4  # wrong answers that an account names


@dataclass(frozen=True, kw_only=True)
class Count:
    """The votes of a question's completions.

    Attributes:
        right: Right answer -> votes, the most frequent first.
        wrong: Wrong answer -> votes, likewise.
        failures: Why completions failed -> how many did.
    """

    right: dict[str, int]
    wrong: dict[str, int]
    failures: dict[str, int]

    @property
    def kind(self) -> str:
        """What became of the question: "won", "outvoted" (or tied), "never" drawn, or "failed" altogether."""
        if not self.right:
            return "never" if self.wrong else "failed"
        return "won" if max(self.right.values()) > max(self.wrong.values(), default=0) else "outvoted"


def is_right(attempt: Try) -> bool:
    """Tell whether a completion is right."""
    return attempt.failure is None and attempt.score is not None and attempt.score >= _RIGHT


def count(tries: Sequence[Try]) -> Count:
    """Count the votes of a question's completions; answers of one class are called what the first of them says."""
    names: dict[int, str] = {}
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for t in tries:
        if t.failure is not None or t.answer is None:
            failures[t.failure or "it gave no answer"] += 1
        else:
            name = names.setdefault(t.label, t.answer) if t.label >= 0 else t.answer
            (right if is_right(t) else wrong)[name] += 1
    return Count(
        right=dict(right.most_common()), wrong=dict(wrong.most_common()), failures=dict(failures.most_common())
    )


def kind_of(tries: Sequence[Try], aggregate: str) -> str:
    """Return what became of a question: see `Count.kind`; without votes "high", "low" or "failed", by the score."""
    if aggregate == "vote":
        return count(tries).kind
    scores = _scores(tries)
    if not scores:
        return "failed"
    return "high" if (max(scores) if aggregate == "best" else float(np.mean(scores))) >= _RIGHT else "low"


def value_of(tries: Sequence[Try], aggregate: str, n: int) -> float:
    """Return what n completions of a question are worth, by those that were drawn first: in [0, 1].

    With n = 1, or without an aggregate, their mean score; of a vote 1 where the right answer wins; the best score else.
    """
    scores = [t.score or 0.0 for t in tries]
    if n == 1 or aggregate == "mean":
        return float(np.mean(scores))
    if aggregate == "vote":
        return float(count(tries[:n]).kind == "won")
    return max(scores[:n])


def sampled(evidence: ProposalEvidence, prompt: KnownPrompt, rng: np.random.Generator, n: int) -> list[int]:
    """Return at most n of the questions that a prompt has answered, those that tell the most first, of each kind."""
    kinds: dict[str, list[int]] = {name: [] for name in ("outvoted", "low", "never", "won", "high", "failed")}
    known = [x for x in sorted(prompt.tries) if prompt.tries[x]]
    for x in rng.permutation(known).tolist() if known else []:
        kinds[kind_of(prompt.tries[x], evidence.aggregate)].append(x)
    in_turns = itertools.chain(*itertools.zip_longest(*kinds.values()))
    return [x for x in in_turns if x is not None][:n]


def account(evidence: ProposalEvidence, prompt: KnownPrompt, questions: Sequence[int]) -> str:
    """Return what a prompt's completions did on questions, as text."""
    return "\n\n".join(
        f"Question {i}\n{_question(evidence, x)}\n{_told(prompt.tries[x], evidence.aggregate)}"
        for i, x in enumerate(questions, start=1)
    )


def inputs_of(evidence: ProposalEvidence, question: int) -> str:
    """Return a question's inputs as text."""
    return shown(evidence.examples[question].inputs().toDict(), 600)


def _question(evidence: ProposalEvidence, x: int) -> str:
    labels = {f"expected {k}": v for k, v in evidence.examples[x].labels().toDict().items() if v is not None}
    return "\n".join(part for part in (inputs_of(evidence, x), shown(labels)) if part)


def _told(tries: Sequence[Try], aggregate: str) -> str:
    said = _votes(tries) if aggregate == "vote" else _marks(tries, aggregate)
    failures = [f"{_times(k)} a completion failed: {why}." for why, k in count(tries).failures.items()]
    return "\n".join([said, *failures[:2], *_samples(tries)])


def _votes(tries: Sequence[Try]) -> str:
    found = count(tries)
    drawn = f"{len(tries)} completions were drawn." if len(tries) > 1 else "1 completion was drawn."
    wrong = _listed(found.wrong)
    if found.kind == "failed":
        return f"{drawn} None of them gave an answer."
    if found.kind == "never":
        return f"{drawn} The right answer never came. Wrong answers: {wrong}."
    right, votes = next(iter(found.right.items()))
    if found.kind == "won":
        length = np.mean([t.tokens for t in tries])
        others = f" Wrong answers: {wrong}." if found.wrong else " There were not any wrong answers."
        won = f'The right answer won: "{cut(right, 80)}" came {_often(votes)}.'
        return f"{drawn} {won}{others} Mean length: {length:.0f} tokens."
    rival, lead = next(iter(found.wrong.items()))
    end = "tied with" if lead == votes else "was outvoted by"
    rest = {name: k for name, k in found.wrong.items() if name != rival}
    others = f" Other wrong answers: {_listed(rest)}." if rest else ""
    return (
        f'{drawn} The right answer "{cut(right, 80)}" came {_often(votes)} and {end} "{cut(rival, 80)}", which came '
        f"{_often(lead)}.{others}"
    )


def _marks(tries: Sequence[Try], aggregate: str) -> str:
    scores = _scores(tries)
    if not scores:
        return f"{len(tries)} completions were drawn. None of them has a score."
    different = len({tuple(t.output.items()) for t in tries if t.score is not None})
    varied = f" {different} of them are different." if aggregate == "best" else ""
    length = np.mean([t.tokens for t in tries])
    return (
        f"{len(tries)} completions were drawn.{varied} Scores from 0 to 1: best {max(scores):.2f}, mean "
        f"{np.mean(scores):.2f}, worst {min(scores):.2f}. Mean length: {length:.0f} tokens."
    )


def _samples(tries: Sequence[Try]) -> list[str]:
    """Return what the most frequent wrong completion and a right one say, or the worst and the best, with feedback."""
    scored = [t for t in tries if t.failure is None and t.score is not None]
    bad = [t for t in scored if not is_right(t)]
    frequent = Counter(t.label for t in bad)
    shown_tries = [
        *sorted(bad, key=lambda t: (-frequent[t.label], t.score))[:1],
        *sorted((t for t in scored if is_right(t)), key=lambda t: (-(t.score or 0.0), t.tokens))[:1],
    ]
    lines = []
    for t in shown_tries:
        lines.append(f"A {'right' if is_right(t) else 'wrong'} completion said:\n{shown(t.output)}")
        lines += [f"The metric said of it: {cut(t.feedback, 400)}"] if t.feedback else []
    if not shown_tries:
        lines = [f"The metric said of one: {cut(t.feedback, 400)}" for t in tries if t.feedback][:1]
    return lines


def _scores(tries: Sequence[Try]) -> list[float]:
    return [t.score for t in tries if t.score is not None]


def _listed(answers: dict[str, int]) -> str:
    named = [f'"{cut(name, 80)}" {_often(k)}' for name, k in list(answers.items())[:_NAMED]]
    rest = sum(list(answers.values())[_NAMED:])
    return ", ".join([*named, *([f"others {_often(rest)}"] if rest else [])])


def _often(k: int) -> str:
    return "once" if k == 1 else f"{k} times"


def _times(k: int) -> str:
    return _often(k).capitalize()


def is_thrifty(aim: Aim) -> bool:
    """Tell whether a preference pays for length."""
    return aim.n == 1 or aim.cost >= _THRIFTY


def goal(evidence: ProposalEvidence, aim: Aim) -> str:
    """Return in words which instruction is wanted: one that wins after aggregation, under this preference."""
    n, kind = aim.n, evidence.aggregate
    if n == 1:
        return (
            "For each question one completion is drawn, and its length is paid for. Wanted is a short instruction that "
            "leads to short completions, as short as they can be without more mistakes than now."
        )
    if kind == "best":
        used = f"For each question {n} completions are drawn, and only the best of them is used."
        wanted = (
            "Wanted is an instruction under which the completions vary: they take different ways and differ in what "
            "they say, so that one of them is very good. The mean does not matter."
        )
    elif kind == "vote":
        used = f"For each question {n} completions are drawn, and the answer that comes most often is returned."
        wanted = (
            "Wanted is an instruction under which the right answer is the most frequent one. It need not always come, "
            "but it must come more often than any one wrong answer. Mistakes should be scattered: a mistake that many "
            "completions share wins the vote, and different mistakes do little harm."
        )
    else:
        used = f"For each question {n} completions are drawn, and their mean counts."
        wanted = "Wanted is an instruction under which each completion is as good as it can be, without a common lean."
    if is_thrifty(aim):
        kept = "keeps the best one good" if kind == "best" else "keeps the result"
        wanted += (
            f" Every token is paid for: the instruction and its completions should be shorter than now, if that {kept}."
        )
    return f"{used} {wanted}"
