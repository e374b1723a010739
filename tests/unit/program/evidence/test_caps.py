"""Limits of calls by their worst path, by hand."""

import pytest

from iapo_dspy.errors import CapsTooTight
from iapo_dspy.preferences import Preference
from iapo_dspy.program.evidence.caps import PromptUse, check_caps, most_of_prompts, tokens_of_each
from iapo_dspy.sampling.spending.pricing import Price
from iapo_dspy.types import Arm, Escalation, Share, Stop
from tests.unit.bandit.costs.test_charges import ROWS, charges

CHEAP, DEAR = (
    Price(prompt=0.001 * k, completion=0.01 * k, prompt_bound=0.001 * k, completion_bound=0.01 * k) for k in (1, 2)
)
# A call of the cascade takes 40 + 60 output tokens at most: 4 completions of 10, then 3 of 20.
CASCADE = Arm(0, 4, Stop(waves=(2, 4)), then=Escalation(below=0.6, arm=Arm(1, 3)))
USES = {
    0: PromptUse(completions=4, prompt_tokens=200.0, tokens_each=10.0, usd_once=0.2),
    1: PromptUse(completions=3, prompt_tokens=300.0, tokens_each=20.0, usd_once=0.3),
}


def test_the_most_of_each_prompt_is_that_of_all_stages_and_waves() -> None:
    known = charges([Preference("x", max_tokens=1)], ROWS, max_n=4)
    assert most_of_prompts(CASCADE, known) == USES
    twice = Arm(0, 1, beside=(Share(prompt=1, n=2),), then=Escalation(below=0.6, arm=Arm(0, 2)))
    assert most_of_prompts(twice, known) == {
        0: PromptUse(completions=3, prompt_tokens=200.0, tokens_each=10.0, usd_once=0.2),
        1: PromptUse(completions=2, prompt_tokens=300.0, tokens_each=20.0, usd_once=0.3),
    }


@pytest.mark.parametrize("most", [7, 50, 99, 100, 1000])
def test_tokens_are_shared_out_as_prompts_take_them(most: int) -> None:
    each = tokens_of_each(Preference("x", max_tokens=most), USES, {0: CHEAP, 1: DEAR})
    assert each == {0: max(most * 10 // 100, 1), 1: max(most * 20 // 100, 1)}


def test_dollars_are_shared_out_at_the_price_of_each_prompt() -> None:
    # 200 * 0.001 + 300 * 0.002 = 0.8 dollars of prompts; all completions together 40 * 0.01 + 60 * 0.02 = 1.6.
    preference = Preference("x", max_usd=0.8 + 1.6 / 2)
    assert tokens_of_each(preference, USES, {0: CHEAP, 1: DEAR}) == {0: 5, 1: 10}
    assert tokens_of_each(preference, USES, {0: CHEAP, 1: None}) == {}
    both = Preference("x", max_usd=0.8 + 1.6 / 2, max_tokens=20)
    assert tokens_of_each(both, USES, {0: CHEAP, 1: DEAR}) == {0: 2, 1: 4}


def test_completions_of_one_prompt_take_the_same() -> None:
    uses = {1: PromptUse(completions=3, prompt_tokens=100.0, tokens_each=7.0)}
    assert tokens_of_each(Preference("x", max_tokens=9), uses, {1: None}) == {1: 3}
    assert tokens_of_each(Preference("x", max_usd=0.1 + 0.3), uses, {1: CHEAP}) == {1: 10}
    assert tokens_of_each(Preference("x", max_latency_s=3), uses, {1: CHEAP}) == {}


def test_an_arm_that_breaks_a_cap_on_its_worst_path_is_refused() -> None:
    enough, short = Preference("enough", max_tokens=100), Preference("short", max_tokens=99)
    check_caps(enough, CASCADE, charges([enough], ROWS, max_n=4), "label")
    with pytest.raises(CapsTooTight, match=r"up to 4 of prompt 0; 3 of prompt 1 instead.*up to 100 output tokens") as e:
        check_caps(short, CASCADE, charges([short], ROWS, max_n=4), "label")
    assert e.value.needs == {"max_tokens": pytest.approx(100.0)}
