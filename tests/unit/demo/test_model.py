from __future__ import annotations

import json
import math
from concurrent.futures import Future

import numpy as np
import pytest

from iapo_dspy.demo.engine import Engine, draw
from iapo_dspy.demo.generation import ContextLengthError, Generation, GenerationRequest, InvalidRequestError
from iapo_dspy.demo.model import WEIGHTS, TinyLM, read_safetensors
from tests.support.demo_chat import render_chat
from tests.support.demo_model import generate

LM = TinyLM.load()


def prompt_for(instruction: str, value: str = "What is 123 + 456?", *, reasoning: bool = False) -> tuple[int, ...]:
    messages = render_chat(instruction=instruction, field="question", value=value, reasoning=reasoning)
    return tuple(LM.tokenizer.encode_chat(messages))


STEPS = prompt_for("Work column by column, carrying, before you answer.")
DIRECT = prompt_for("Answer at once.")


def small_model(seed: int = 0) -> tuple[TinyLM, dict[str, object], dict[str, np.ndarray]]:
    """A random Qwen2 with odd sizes and large weights, so that every part matters."""
    tokenizer = LM.tokenizer
    config: dict[str, object] = {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "vocab_size": len(tokenizer),
        "hidden_size": 12,
        "intermediate_size": 10,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 24,
        "rms_norm_eps": 1e-6,
        "rope_theta": 100.0,
    }
    rng = np.random.default_rng(seed)

    def some(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * 0.6).astype(np.float32)

    tensors = {"model.embed_tokens.weight": some(len(tokenizer), 12), "model.norm.weight": some(12)}
    for i in range(2):
        at = f"model.layers.{i}."
        tensors |= {f"{at}{name}.weight": some(12) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, size in (("q", 12), ("k", 6), ("v", 6)):
            tensors[f"{at}self_attn.{name}_proj.weight"] = some(size, 12)
            tensors[f"{at}self_attn.{name}_proj.bias"] = some(size)
        tensors[f"{at}self_attn.o_proj.weight"] = some(12, 12)
        tensors |= {f"{at}mlp.{name}_proj.weight": some(10, 12) for name in ("gate", "up")}
        tensors[f"{at}mlp.down_proj.weight"] = some(12, 10)
    return TinyLM(config, tensors, tokenizer), config, tensors


def naive_logits(tokens: list[int], config: dict[str, object], tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Qwen2 written out with plain loops, without a cache, a batch or folded weights."""
    width, heads, kv_heads = (
        int(str(config[k])) for k in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    size = width // heads
    eps, theta = float(str(config["rms_norm_eps"])), float(str(config["rope_theta"]))
    t = {name: array.astype(np.float64) for name, array in tensors.items()}

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / math.sqrt(float(x @ x) / width + eps) * weight

    def turn(x: np.ndarray, position: int) -> np.ndarray:
        out = np.empty(size)
        for j in range(size // 2):
            angle = position * theta ** (-2 * j / size)
            a, b = x[j], x[j + size // 2]
            out[j] = a * math.cos(angle) - b * math.sin(angle)
            out[j + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    xs = [t["model.embed_tokens.weight"][i] for i in tokens]
    for i in range(int(str(config["num_hidden_layers"]))):
        at = f"model.layers.{i}."
        ys = [norm(x, t[at + "input_layernorm.weight"]) for x in xs]
        q, k, v = (
            [t[f"{at}self_attn.{n}_proj.weight"] @ y + t[f"{at}self_attn.{n}_proj.bias"] for y in ys] for n in "qkv"
        )
        for position in range(len(xs)):
            mixed = []
            for head in range(heads):
                kv = head // (heads // kv_heads)
                query = turn(q[position][head * size : (head + 1) * size], position)
                scores = [
                    float(query @ turn(k[p][kv * size : (kv + 1) * size], p)) / math.sqrt(size)
                    for p in range(position + 1)
                ]
                weights = np.exp(np.array(scores) - max(scores))
                weights /= weights.sum()
                mixed.append(sum(w * v[p][kv * size : (kv + 1) * size] for p, w in enumerate(weights)))
            xs[position] = xs[position] + t[at + "self_attn.o_proj.weight"] @ np.concatenate(mixed)
        for position, x in enumerate(xs):
            y = norm(x, t[at + "post_attention_layernorm.weight"])
            gate = t[at + "mlp.gate_proj.weight"] @ y
            xs[position] = x + t[at + "mlp.down_proj.weight"] @ (
                gate / (1 + np.exp(-gate)) * (t[at + "mlp.up_proj.weight"] @ y)
            )
    return t["model.embed_tokens.weight"] @ norm(xs[-1], t["model.norm.weight"])


def test_prefill_equals_the_naive_model_for_prompts_of_different_lengths() -> None:
    model, config, tensors = small_model()
    prompts = [[7, 60, 9], [5], [8, 8, 101, 77, 30, 11, 250]]
    for prompt, prefix in zip(prompts, model.prefill(prompts), strict=True):
        np.testing.assert_allclose(prefix.logits, naive_logits(prompt, config, tensors), rtol=1e-4, atol=1e-4)


def test_greedy_decoding_with_the_cache_follows_the_naive_model() -> None:
    model, config, tensors = small_model()
    requests = [
        GenerationRequest(prompt=p, temperature=0.0, max_tokens=9, seed=0) for p in ((7, 60, 9), (5,), (9,) * 11)
    ]
    for request, result in zip(requests, generate(model, requests), strict=True):
        tokens = list(request.prompt)
        for token in result.choices[0].tokens:
            logits = naive_logits(tokens, config, tensors)
            assert token == logits.argmax()
            tokens.append(token)


def test_the_shipped_weights_equal_the_naive_model() -> None:
    config = json.loads((WEIGHTS / "config.json").read_text())
    tensors = read_safetensors(WEIGHTS / "model.safetensors")
    expected = naive_logits(list(DIRECT), config, tensors)
    np.testing.assert_allclose(LM.prefill([DIRECT, STEPS])[0].logits, expected, rtol=1e-3, atol=1e-3)


def test_the_model_is_small_and_its_files_fit_the_wheel() -> None:
    tensors = read_safetensors(WEIGHTS / "model.safetensors")
    assert 500_000 < sum(tensor.size for tensor in tensors.values()) < 1_200_000
    assert sum(f.stat().st_size for f in WEIGHTS.iterdir()) < 4_000_000


def test_a_request_gets_the_same_text_alone_and_in_any_batch() -> None:
    rng = np.random.default_rng(0)
    requests = [
        GenerationRequest(
            prompt=prompt_for(text, f"What is {a} + {b}?"),
            n=int(rng.integers(1, 6)),
            seed=seed,
            temperature=float(rng.choice([0.0, 0.7, 1.0])),
            top_p=float(rng.choice([0.9, 1.0])),
        )
        for seed, text in enumerate(("Answer at once.", "Work column by column, carrying, before you answer.") * 8)
        for a, b in [(int(rng.integers(100, 500)), int(rng.integers(100, 500)))]
    ]
    together = generate(LM, requests)
    assert generate(LM, requests[::-1])[::-1] == together
    for request, expected in zip(requests[:6], together[:6], strict=True):
        assert generate(LM, [request]) == [expected]


def test_more_completions_begin_with_the_fewer() -> None:
    few, many = generate(LM, [GenerationRequest(prompt=STEPS, n=n, seed=3) for n in (3, 20)])
    assert many.choices[:3] == few.choices
    assert len({c.text for c in many.choices}) > 1


def test_another_seed_gives_another_text() -> None:
    one, two = generate(LM, [GenerationRequest(prompt=STEPS, n=8, seed=s) for s in (1, 2)])
    assert one.choices != two.choices


def test_more_requests_than_slots_are_all_served() -> None:
    engine = Engine(LM, slots=16)
    done: list[Generation] = []
    requests = [GenerationRequest(prompt=p, n=n, seed=n) for n, p in ((40, DIRECT), (1, STEPS), (17, STEPS))]
    for request in requests:
        future: Future[Generation] = Future()
        future.add_done_callback(lambda f: done.append(f.result()))
        engine.submit(request, future)
    most = 0
    while engine.step():
        most = max(most, engine.active)
    assert most <= 16
    assert sorted(done, key=lambda g: -len(g.choices)) == [generate(LM, requests)[i] for i in (0, 2, 1)]


def test_cancelled_requests_free_their_slots_and_leave_the_others_alone() -> None:
    engine = Engine(LM, slots=16)
    # In the batch and in part waiting: 14 of 40 completions have a slot; the last request waits as a whole.
    requests = [GenerationRequest(prompt=STEPS, n=n, seed=n) for n in (2, 40, 3)]
    kept, cancelled, waiting = futures = [Future[Generation]() for _ in requests]
    for request, future in zip(requests, futures, strict=True):
        engine.submit(request, future)
    for _ in range(3):
        engine.step()
    assert (engine.active, engine.waiting) == (16, 26 + 3)
    assert cancelled.cancel()
    engine.step()
    assert (engine.active, engine.waiting) == (2 + 3, 0)
    while engine.step():
        pass
    assert [kept.result(timeout=0), waiting.result(timeout=0)] == generate(LM, [requests[0], requests[2]])
    assert not kept.cancel()


def test_a_batch_ends_when_all_its_requests_are_cancelled() -> None:
    engine = Engine(LM, slots=16)
    futures = [Future[Generation]() for _ in range(2)]
    for future in futures:
        engine.submit(GenerationRequest(prompt=STEPS, n=20, seed=1), future)
    assert engine.step()
    assert all(future.cancel() for future in futures)
    assert not engine.step()
    assert (engine.active, engine.waiting) == (0, 0)


def test_temperature_zero_takes_the_most_likely_token_and_repeats_itself() -> None:
    result = generate(LM, [GenerationRequest(prompt=STEPS, n=4, temperature=0.0, seed=9)])[0]
    assert len(set(result.choices)) == 1
    first = result.choices[0].tokens[0]
    assert first == LM.prefill([STEPS])[0].logits.argmax()


def test_first_tokens_are_drawn_with_the_softmax_probabilities() -> None:
    model, _, _ = small_model(seed=4)
    n = 1000
    logits = model.prefill([[7, 60, 9]])[0].logits.astype(np.float64) / 1.5
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    requests = [GenerationRequest(prompt=(7, 60, 9), n=n, temperature=1.5, max_tokens=1, seed=s) for s in range(8)]
    drawn = [c.tokens[0] for g in generate(model, requests) for c in g.choices]
    counts = np.bincount(drawn, minlength=len(expected))
    large = expected * len(drawn) >= 5
    observed = np.append(counts[large], counts[~large].sum())
    wanted = np.append(expected[large], expected[~large].sum()) * len(drawn)
    chi2 = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    assert freedom > 20
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


def test_top_k_and_top_p_leave_out_the_tail() -> None:
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], dtype=np.float32)).repeat(1000, axis=0)
    uniforms = (np.arange(1000) + 0.5) / 1000

    def shares(top_p: float, top_k: int) -> list[float]:
        tokens = draw(
            logits,
            uniforms,
            temperature=np.ones(1000),
            top_p=np.full(1000, top_p),
            top_k=np.full(1000, top_k, dtype=np.int64),
        )
        return [round(float(x), 2) for x in np.bincount(tokens, minlength=4) / 1000]

    assert shares(1.0, 0) == [0.4, 0.3, 0.2, 0.1]
    assert shares(1.0, 2) == [0.57, 0.43, 0.0, 0.0]
    assert shares(0.65, 0) == [0.57, 0.43, 0.0, 0.0]
    assert shares(0.39, 0) == [1.0, 0.0, 0.0, 0.0]
    assert shares(0.5, 1) == [1.0, 0.0, 0.0, 0.0]


def test_max_tokens_ends_with_length_and_usage_counts_every_token() -> None:
    result = generate(LM, [GenerationRequest(prompt=STEPS, n=3, max_tokens=5, seed=0)])[0]
    assert [c.finish_reason for c in result.choices] == ["length"] * 3
    assert (result.prompt_tokens, result.completion_tokens) == (len(STEPS), 15)


def test_the_end_token_is_counted_and_not_shown() -> None:
    choice = generate(LM, [GenerationRequest(prompt=DIRECT, temperature=0.0, seed=0)])[0].choices[0]
    assert choice.finish_reason == "stop"
    assert choice.tokens[-1] == LM.tokenizer.end_id
    assert choice.text == LM.tokenizer.decode(choice.tokens[:-1])
    assert choice.text.startswith("[[ ## answer ## ]]\n") and choice.text.endswith("[[ ## completed ## ]]")


def test_a_stop_text_ends_the_completion_and_is_left_out() -> None:
    full = generate(LM, [GenerationRequest(prompt=STEPS, temperature=0.0, seed=0)])[0].choices[0]
    cut = generate(LM, [GenerationRequest(prompt=STEPS, temperature=0.0, seed=0, stop=("zzz", "; "))])[0].choices[0]
    assert cut.text == full.text.split("; ")[0]
    assert cut.finish_reason == "stop"
    assert len(cut.tokens) < len(full.tokens)


def test_a_prompt_that_fills_the_context_is_refused_and_one_token_less_is_not() -> None:
    with pytest.raises(ContextLengthError, match="maximum context length is 512"):
        generate(LM, [GenerationRequest(prompt=(70,) * 512, seed=0)])
    result = generate(LM, [GenerationRequest(prompt=(70,) * 511, n=2, max_tokens=50, seed=0)])[0]
    assert result.completion_tokens == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"n": 0},
        {"n": 5000},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_k": -1},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"prompt": ()},
    ],
)
def test_values_out_of_range_are_named(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(bad))):
        GenerationRequest(**{"prompt": (70,), "seed": 0, **bad})  # type: ignore[arg-type]


@pytest.mark.slow
def test_arbitrary_prompts_never_crash() -> None:
    texts = ["", "ß" * 30, "Ignore everything. 🙂", "[[ ## answer ## ]]\n" * 5]
    prompts = [tuple(LM.tokenizer.encode_chat([{"role": "user", "content": t}])) for t in texts]
    results = generate(LM, [GenerationRequest(prompt=p, n=2, max_tokens=20, seed=1) for p in prompts])
    assert all(len(r.choices) == 2 for r in results)
