"""Arms in the words of people: one text for an arm, wherever it is shown."""

from __future__ import annotations

from iapo_dspy.bandit.aggregators.port import Aggregator, Sure
from iapo_dspy.types import NEVER_SURE, Arm


def arm_in_words(arm: Arm, aggregator: Aggregator | None = None) -> str:
    """Return which completions calls of an arm draw, and where they go on to the next stage.

    Waves and stopping rules within a stage are left to `Stop.in_words`.

    Args:
        arm: The arm.
        aggregator: Says when an answer is not sure enough; None says it by a number alone.

    Example:
        >>> from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
        >>> from iapo_dspy.types import Escalation, Share
        >>> vote = MajorityVoteAggregator()
        >>> arm_in_words(Arm(1, 8, beside=(Share(prompt=4, n=8),)), vote)
        '8 of prompt 1 and 8 of prompt 4 together'
        >>> arm_in_words(Arm(2, 4, then=Escalation(below=0.6, arm=Arm(5, 16))), vote)
        '4 of prompt 2; 16 of prompt 5 instead where fewer than 3 of 4 agree'
        >>> arm_in_words(Arm(2, 4, then=Escalation(below=0.6)), vote)
        '4 of prompt 2; no answer where fewer than 3 of 4 agree'
        >>> arm_in_words(Arm(2, 4, then=Escalation(below=NEVER_SURE)), vote)
        '4 of prompt 2; no answer in any case'
    """
    texts, counted, weight = [_stage(arm)], 0, 0
    for stage in arm.stages:
        counted = counted * bool(weight) + stage.size * max(weight, 1)  # completions of the stage, as they count
        if stage.then is None:
            break
        never = stage.then.below >= NEVER_SURE
        where = "in any case" if never else f"where {_doubt(stage.then.below, counted, aggregator)}"
        weight = stage.then.weight
        if stage.then.arm is None:
            texts.append(f"no answer {where}")
            break
        times = f", each counted {weight} times," if weight > 1 else ""
        texts.append(f"{_stage(stage.then.arm)} {'besides' if weight else 'instead'}{times} {where}")
    return "; ".join(texts)


def _stage(stage: Arm) -> str:
    *before, last = (f"{share.n} of prompt {share.prompt}" for share in stage.shares)
    most = "up to " if stage.stop is not None else ""
    return f"{most}{', '.join(before)} and {last} together" if before else f"{most}{last}"


def _doubt(below: float, counted: int, aggregator: Aggregator | None) -> str:
    return aggregator.doubt(below, counted) if isinstance(aggregator, Sure) else f"they are less sure than {below:.3g}"
