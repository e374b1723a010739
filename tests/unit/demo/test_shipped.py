"""The second demo model: the shipped weights rounded to three bits."""

from __future__ import annotations

import re
from collections import Counter

import litellm
import numpy as np
import pytest

from iapo_dspy.demo import provider, tasks
from iapo_dspy.demo.batching import shared_batcher
from iapo_dspy.demo.generation import GenerationRequest
from iapo_dspy.demo.model import WEIGHTS, TinyLM, read_safetensors
from iapo_dspy.demo.server import DemoServer
from iapo_dspy.demo.shipped import BITS, GROUP, MODEL_NAME, SMALL_MODEL_NAME, load_shipped, quantized
from tests.support.demo_chat import render_chat
from tests.support.demo_model import generate

STEPS = "Work column by column, carrying, before you answer."


def test_weights_are_rounded_to_the_nearest_step_of_their_group() -> None:
    row = np.zeros(2 * GROUP, dtype=np.float32)
    row[:5] = [3.0, -1.4, 1.6, 0.4, -3.0]  # three bits: multiples of 3 / 3 from -3 to 3
    row[GROUP : GROUP + 3] = [0.3, 0.14, -0.16]  # a group of its own: multiples of 0.1
    found = quantized({"w": row[None]}, 3)["w"][0]
    np.testing.assert_allclose(found[:5], [3, -1, 2, 0, -3], rtol=1e-6)
    np.testing.assert_allclose(found[GROUP : GROUP + 3], [0.3, 0.1, -0.2], rtol=1e-6)
    assert not found[5:GROUP].any() and not found[GROUP + 3 :].any()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_matrix_has_few_levels_and_the_rest_is_as_it_was(bits: int) -> None:
    before = read_safetensors(WEIGHTS / "model.safetensors")
    after = quantized(before, bits)
    assert after.keys() == before.keys()
    for name, weights in before.items():
        if weights.ndim != 2 or "embed" in name:
            assert after[name] is weights
            continue
        groups, rounded = (np.asarray(w, dtype=np.float32).reshape(-1, GROUP) for w in (weights, after[name]))
        step = np.abs(groups).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
        assert max(len(np.unique(r)) for r in rounded) <= 2**bits - 1
        assert (np.abs(groups - rounded) <= step * 0.5001).all()


def test_what_does_not_ship_is_refused() -> None:
    with pytest.raises(ValueError, match="tiny-adder-q3"):
        load_shipped("tiny-adder-q1")
    for bits in (1, 9):
        with pytest.raises(ValueError, match="between 2 and 8"):
            quantized({}, bits)
    assert shared_batcher() is shared_batcher(MODEL_NAME) is not shared_batcher(SMALL_MODEL_NAME)


def shares(model: TinyLM, questions: int = 45, n: int = 16) -> tuple[float, float]:
    """Accuracy of one completion, and of a vote of n."""
    rng = np.random.default_rng(7)
    pairs = [tasks.draw_pair(rng, heldout=True) for _ in range(questions)]
    requests = []
    for i, (a, b) in enumerate(pairs):
        chat = render_chat(instruction=STEPS, field="question", value=f"What is {a} + {b}?", reasoning=False)
        prompt = tuple(model.tokenizer.encode_chat(chat))
        requests.append(
            GenerationRequest(prompt=prompt, n=n, temperature=1.0, top_p=1.0, top_k=0, max_tokens=90, stop=(), seed=i)
        )
    single, voted = [], []
    for (a, b), reply in zip(pairs, generate(model, requests), strict=True):
        found = [re.search(r"\[\[ ## answer ## \]\]\n(.*)", choice.text) for choice in reply.choices]
        answers = [m.group(1) for m in found if m]
        single.append(answers.count(str(a + b)) / n)
        most = max(Counter(answers).values())
        winners = [answer for answer, votes in Counter(answers).items() if votes == most]
        voted.append(winners.count(str(a + b)) / len(winners))
    return float(np.mean(single)), float(np.mean(voted))


@pytest.mark.slow
def test_the_small_model_is_worse_when_asked_once_and_better_than_that_when_it_votes() -> None:
    large_once, large_vote = shares(load_shipped(MODEL_NAME))
    small_once, small_vote = shares(load_shipped(SMALL_MODEL_NAME))
    assert small_once < large_once - 0.05
    assert small_vote > large_once + 0.1  # N=16 of the small one against N=1 of the large one
    assert large_vote > small_vote + 0.05


def test_both_are_served_under_their_names() -> None:
    provider.register()
    messages = render_chat(instruction=STEPS, field="question", value="What is 123 + 456?", reasoning=False)
    replies = {
        model: litellm.completion(model=model, messages=messages, temperature=1.0, seed=3, n=8)
        for model in (tasks.MODEL, tasks.SMALL_MODEL)
    }
    texts = {m: [c.message.content for c in r.choices] for m, r in replies.items()}
    assert [r.model for r in replies.values()] == [tasks.MODEL, tasks.SMALL_MODEL] == [f"iapo_demo/{m}" for m in BITS]
    assert texts[tasks.MODEL] != texts[tasks.SMALL_MODEL]
    assert litellm.completion_cost(replies[tasks.SMALL_MODEL], model=tasks.SMALL_MODEL) == 0.0
    with DemoServer() as server:
        served = litellm.completion(
            model=f"openai/{SMALL_MODEL_NAME}", api_base=server.api_base, api_key="any", messages=messages,
            temperature=1.0, seed=3, n=8,
        )  # fmt: skip
    assert [c.message.content for c in served.choices] == texts[tasks.SMALL_MODEL]
    assert served.model == SMALL_MODEL_NAME


def test_made_up_prices_are_ten_to_one() -> None:
    assert tasks.USD_PER_MILLION.keys() == {tasks.MODEL, tasks.SMALL_MODEL}
    for dear, cheap in zip(tasks.USD_PER_MILLION[tasks.MODEL], tasks.USD_PER_MILLION[tasks.SMALL_MODEL], strict=True):
        assert dear == pytest.approx(10 * cheap)
