"""What a call of a compound arm takes by its worst path, by hand; arms of one prompt keep caps as they always did."""

import numpy as np
import pytest

from iapo_dspy.bandit.costs.charges import Charges
from iapo_dspy.bandit.costs.worst_path import keeps_caps, most_used
from iapo_dspy.preferences import Preference
from iapo_dspy.types import Arm, Contexts, Escalation, Share, Stop
from tests.unit.bandit.costs.test_charges import PROMPT, ROWS, SECONDS, TOKENS, USD, observe

CASCADE = Arm(0, 2, then=Escalation(below=0.6, arm=Arm(1, 3)))
MIXTURE = Arm(0, 2, beside=(Share(prompt=1, n=3),))


def found(*preferences: Preference, failed: tuple[int, ...] = ()) -> Charges:
    charges = Charges(Contexts.from_preferences(preferences or [Preference("x", max_tokens=1)], ["m"]), 2, 3)
    charges.update(observe(ROWS, failed=failed))
    return charges


def test_tokens_and_dollars_of_all_stages_add_up() -> None:
    # Two completions of prompt 0 (100 prompt tokens, 10 tokens each), then three of prompt 1 (300, 20 each).
    for arm in (CASCADE, MIXTURE):
        use = most_used(found(), arm)
        np.testing.assert_allclose(use[[TOKENS, PROMPT]], [2 * 10 + 3 * 20, 100 + 300])
        np.testing.assert_allclose(use[USD], 0.3 + 0.9)


def test_stages_take_their_seconds_in_turn_and_shares_together() -> None:
    assert most_used(found(), CASCADE)[SECONDS] == pytest.approx(1.0 + 2.0)
    assert most_used(found(), MIXTURE)[SECONDS] == pytest.approx(2.0)
    waves = Arm(0, 3, Stop(waves=(1, 2, 3)), then=Escalation(below=0.6, arm=MIXTURE))
    assert most_used(found(), waves)[SECONDS] == pytest.approx(3 * 1.0 + 2.0)
    # Each wave after the first sends the prompt once more: 100 prompt tokens for a tenth of a dollar.
    assert most_used(found(), waves)[PROMPT] == pytest.approx(3 * 100 + 400)
    assert most_used(found(), waves)[USD] == pytest.approx(0.4 + 2 * 0.1 + 1.2)


@pytest.mark.parametrize("arm", [CASCADE, MIXTURE])
def test_a_cap_holds_for_the_whole_call(arm: Arm) -> None:
    seconds = float(most_used(found(), arm)[SECONDS])
    charges = found(
        Preference("none"), Preference("tokens", max_tokens=80), Preference("less", max_tokens=79),
        Preference("usd", max_usd=1.21), Preference("cheap", max_usd=1.19),
        Preference("slow", max_latency_s=seconds + 0.01), Preference("fast", max_latency_s=seconds - 0.01),
    )  # fmt: skip
    assert [keeps_caps(charges, c, arm) for c in range(7)] == [True, True, False, True, False, True, False]


def test_a_stage_that_never_answered_keeps_no_cap() -> None:
    charges = found(Preference("capped", max_tokens=1000), Preference("free"), failed=(1,))
    assert [keeps_caps(charges, c, CASCADE) for c in (0, 1)] == [False, True]
    assert keeps_caps(charges, 0, Arm(0, 2))


def test_without_evidence_no_cap_is_kept() -> None:
    charges = Charges(Contexts.from_preferences([Preference("x", max_tokens=1000)], ["m"]), 2, 3)
    assert not keeps_caps(charges, 0, CASCADE)


def test_arms_of_one_prompt_keep_caps_as_the_choice_among_them_has_it() -> None:
    charges = found(Preference("tokens", max_tokens=45), Preference("fast", max_latency_s=2.5))
    most = charges.most_waves()
    for c, p, n in np.ndindex(2, 2, 3):
        stops = [None, *(Stop(waves=tuple(range(k, n + 2))) for k in range(1, n + 1))]
        for stop in stops:
            waves = 1 if stop is None else len(stop.waves)
            assert keeps_caps(charges, c, Arm(p, n + 1, stop)) == (most[c, p, n] >= waves)
