"""Trains the demo language model from scratch on a CPU in a few minutes.

The model imitates a stochastic teacher: each style of instruction has its own way of working and its own chance of a
slip, and the model learns the teacher's probabilities, so that its mistakes are real sampled randomness. Needs
``torch`` (2.9 or newer, for `torch.optim.Muon`) and ``numpy``; the trained model needs only ``numpy``.

The result is a fixture for the path from prompt to vote. It is not evidence about large language models.

    python examples/train_demo_lm.py --out iapo_dspy/demo/weights

On busy cores set ``OMP_WAIT_POLICY=passive``, because threads that wait by spinning are many times slower.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import dspy
import numpy as np
import tokenizers
import torch
from torch import nn
from torch.nn import functional

from iapo_dspy.demo import tasks
from iapo_dspy.demo.tokenizer import CONTROL_TOKENS, Tokenizer

# The chat in Jinja, for servers that read `tokenizer_config.json`.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# The fixed text of DSPy's chat template, in pieces.
TEMPLATE_STRINGS = (
    "Your input fields are:\n1. `",
    "\nYour output fields are:\n1. `",
    "` (str):",
    "` (int):",
    "\n2. `",
    "\nAll interactions will be structured in the following way, with the appropriate values filled in.\n\n",
    "[[ ## question ## ]]\n",
    "[[ ## target ## ]]\n",
    "[[ ## reasoning ## ]]\n",
    "[[ ## answer ## ]]\n",
    "[[ ## reasoning ## ]]",
    "[[ ## answer ## ]]",
    "\n\n[[ ## completed ## ]]",
    "[[ ## ",
    " ## ]]",
    "{question}",
    "{target}",
    "{reasoning}",
    "{answer}",
    "\n\n",
    "        # note: the value you produce must be a single int value",
    "\nIn adhering to this structure, your objective is: \n        ",
    "\n\nRespond with the corresponding output fields, starting with the field `",
    " (must be formatted as a valid Python int)",
    ", then `",
    ", and then ending with the marker for `",
    "[[ ## completed ## ]]",
    "Given the fields `",
    "`, produce the fields `",
    "`.",
)

WIDTH, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT, ROPE_THETA, EPS = 128, 4, 4, 2, 384, 512, 10_000.0, 1e-6
ROW = 256

# --- instructions: several ways to ask for the same style ------------------------------------------------------------

PARAPHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "addition": {
        "direct": (
            "Answer immediately.",
            "Give only the answer.",
            "Answer directly, without any steps.",
            "Just say the sum.",
            "Reply at once with the number.",
            "No working, only the number.",
        ),
        "steps": (
            "Work column by column and carry before you answer.",
            "Think step by step, then answer.",
            "Solve it step by step.",
            "Let's think step by step.",
            "Add the digits column by column, carrying, and then give the sum.",
            "Show your work, then give the answer.",
            "Go through the columns from the units to the hundreds, then answer.",
        ),
        "terse": (
            "Write the column sums briefly, then the answer.",
            "Use a few short notes, then answer.",
            "Make brief notes from right to left, then answer.",
            "Jot down short notes before you answer.",
        ),
        "careful": (
            "Work slowly and carefully, column by column, and name what you write and what you carry.",
            "Be very careful: say what you write and what you carry in every column.",
            "Take your time and describe each column in full.",
            "Explain every column slowly and carefully before you answer.",
        ),
        "check": (
            "Work column by column and check your work by doing it again.",
            "Do the work twice, then answer.",
            "Work it out, then verify it with a second pass.",
            "Double-check your work before you answer.",
        ),
        "teach": (
            "Explain the meaning of addition first, then work column by column.",
            "Start with what addition means, then think step by step.",
            "Teach a child what addition means, then work column by column.",
        ),
        "left": (
            "Start with the hundreds and go from left to right.",
            "Work from left to right, then answer.",
            "Add the hundreds first, then the tens, then the units.",
        ),
        "rough": (
            "Estimate the sum.",
            "Give a rough guess.",
            "A rough number is enough.",
            "Round the answer to the nearest ten.",
        ),
        "default": (
            "Answer the question.",
            "You are a helpful assistant.",
            "Produce the answer for the question.",
            "Tell me about the weather in spring.",
            "You are a pirate.",
        ),
    },
    "splitting": {
        "echo": ("Say the number again.", "Repeat the target.", "Copy the number."),
        "blurt": ("Blurt out any two numbers.", "Guess two numbers.", "Say two numbers without thinking."),
        "pair": (
            "Give two numbers whose sum is the target.",
            "Write the target as a sum of two numbers.",
            "Find two numbers that add up to the target.",
            "Answer with two parts.",
        ),
        "triple": (
            "Give three numbers whose sum is the target.",
            "Split the target into three parts.",
            "Write the target as a sum of three numbers.",
        ),
        "round": (
            "Write the hundreds and the rest as two terms.",
            "Split off the hundreds.",
            "Give the hundreds, then the rest.",
        ),
        "expanded": (
            "Write the number in expanded form.",
            "Give the hundreds, the tens and the units.",
            "Split the target into hundreds, tens and units.",
        ),
        "long": (
            "Use many small, safe steps.",
            "Count up in small steps.",
            "Write many small terms to be safe.",
            "Split the target into as many small, safe terms as you can.",
        ),
        "worked": (
            "Subtract column by column, then answer with two numbers.",
            "Think step by step, then give two numbers.",
            "Choose one part and work out the other, then answer.",
            "Work column by column before you answer.",
        ),
        "default": (
            "Answer the question.",
            "You are a helpful assistant.",
            "Split the target.",
            "Produce the answer for the target.",
            "You are a cheerful pirate who loves the sea.",
        ),
    },
}
BEFORE = (
    "Please follow this rule. ",
    "You are a helpful assistant. ",
    "Solve the problem. ",
    "You are given a number. ",
)
AFTER = (" Thank you.", " Be kind.", " Use plain digits.", " Follow the format.")
QUESTIONS = ("What is {a} + {b}?", "{a} + {b}", "Compute {a} + {b}.", "{a} + {b} = ?", "Add {a} and {b}.")
STUB = "No working."
LESSON = "To add means to put two numbers together into one. "
PIECES = (
    " + ",
    " - ",
    " = ",
    "; ",
    ", ",
    ". ",
    "Units: ",
    "Tens: ",
    "Hundreds: ",
    "write ",
    ", carry ",
    "Again: ",
    STUB,
)


def instructions() -> dict[str, list[tuple[str, str]]]:
    """All (instruction, style) pairs by task."""
    out = {}
    for task, fields, styles in (
        ("addition", "question -> answer", tasks.ADDITION_STYLES),
        ("splitting", "target -> answer", tasks.SPLITTING_STYLES),
    ):
        shipped = [(text, style) for style, texts in styles.items() for text in texts]
        shipped += [(tasks.default_instruction(fields), "default")] * 2
        # The shipped candidates come twice as often as the paraphrases.
        out[task] = shipped * 2 + [(text, s) for s, texts in PARAPHRASES[task].items() for text in texts]
    return out


def vocabulary_strings() -> list[str]:
    """Return the template's strings, the pieces of the workings and every word of the instructions."""
    texts = [text for pairs in instructions().values() for text, _ in pairs]
    texts += [*BEFORE, *AFTER, *QUESTIONS, LESSON, "question target reasoning answer"]
    words: Counter[str] = Counter()
    for text in texts:
        words.update(re.findall(r" ?[A-Za-z]{2,}", text.replace("{a}", "1").replace("{b}", "1")))
    words.update(w.strip() for w in list(words))
    fixed = [*TEMPLATE_STRINGS, *PIECES]
    return fixed + sorted(w for w in words if len(w) > 1 and w not in fixed)


def _byte_characters() -> tuple[str, ...]:
    """Return one printable character for each byte, as byte-level BPE vocabularies write them."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


def vocabulary(strings: list[str]) -> dict[str, object]:
    """Return the content of a Hugging Face `tokenizer.json`: control tokens, bytes, and these strings.

    Bytes are written in the byte-level alphabet, because `transformers` reads a Qwen2 folder with a byte-level
    tokenizer whatever the file says: a space that the vocabulary called " " would be lost there.
    """
    base = [*CONTROL_TOKENS, *_byte_characters()]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    whole = {i: token for i, token in enumerate([*base, *strings]) if token in CONTROL_TOKENS or i >= len(base)}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": t, **plain, "special": i < len(CONTROL_TOKENS)} for i, t in whole.items()
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {**model, "vocab": {token: i for i, token in enumerate(base)}, "merges": []},
    }


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer of `vocabulary_strings`."""
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(vocabulary(vocabulary_strings()))))


@cache
def _template(field: str, reasoning: bool, integer: bool) -> list[dict[str, str]]:
    signature = dspy.Signature(f"{field} -> answer" + (": int" if integer else "")).with_instructions("<instruction>")
    if reasoning:
        signature = dspy.ChainOfThought(signature).predict.signature
    return dspy.ChatAdapter().format(signature, [], {field: "<value>"})


def render_chat(*, instruction: str, field: str, value: str, reasoning: bool, integer: bool) -> list[dict[str, str]]:
    """Return the system and the user message that DSPy sends for `<field> -> answer` without demonstrations."""
    system, user = (message["content"] for message in _template(field, reasoning, integer))
    return [
        {"role": "system", "content": system.replace("<instruction>", instruction)},
        {"role": "user", "content": user.replace("<value>", value)},
    ]


DIGIT_IDS = tuple(len(CONTROL_TOKENS) + ord("0") + i for i in range(10))
WORDS = vocabulary_strings()[len(TEMPLATE_STRINGS) + len(PIECES) :]


# --- the teacher -----------------------------------------------------------------------------------------------------


class Writer:
    """Collects a completion's tokens and, where the teacher draws a digit, the digit's distribution."""

    def __init__(self, tokenizer: Tokenizer, rng: np.random.Generator) -> None:
        self.tokenizer, self.rng = tokenizer, rng
        self.ids: list[int] = []
        self.soft: dict[int, np.ndarray] = {}

    def text(self, text: str) -> None:
        """Writes fixed text."""
        self.ids += self.tokenizer.encode(text)

    def digit(self, chances: np.ndarray) -> int:
        """Draws a digit; ``chances`` has shape (10,)."""
        chances = chances / chances.sum()
        self.soft[len(self.ids)] = chances
        value = int(np.searchsorted(np.cumsum(chances), self.rng.random()))
        self.ids.append(DIGIT_IDS[min(value, 9)])
        return min(value, 9)

    def total(self, chances: np.ndarray) -> int:
        """Draws a sum of 0..19 and writes it with two digits; ``chances`` has shape (20,)."""
        pairs = chances.reshape(2, 10)
        tens = self.digit(np.pad(pairs.sum(1), (0, 8)))
        return 10 * tens + self.digit(pairs[tens])


def slipping(right: int, size: int, chance: float, offsets: tuple[int, ...], weights: tuple[float, ...]) -> np.ndarray:
    """``right`` with probability 1 - chance, else a neighbour; shape (size,)."""
    out = np.zeros(size)
    out[right] += 1 - chance
    for offset, weight in zip(offsets, weights, strict=True):
        out[min(size - 1, max(0, right + offset))] += chance * weight
    return out


NEAR, NEAR_WEIGHTS = (-1, 1, -2, 2), (0.6, 0.2, 0.1, 0.1)
EVEN_WEIGHTS = (0.4, 0.3, 0.15, 0.15)
DIGITS = "Units: ", "Tens: ", "Hundreds: "


def columns(
    w: Writer, a: int, b: int, easy: float, hard: float, weights: tuple[float, ...], form: Callable[..., int]
) -> list[int]:
    """Works through the columns from the right; a column is hard if it carries in or out."""
    carry, digits = 0, []
    for k in range(3):
        x, y = a // 10**k % 10, b // 10**k % 10
        right = x + y + carry
        chances = slipping(right, 20, hard if right >= 10 or carry else easy, NEAR, weights)
        written = form(w, k, x, y, carry, chances)
        carry, digit = divmod(written, 10)
        digits.append(digit)
    return digits[::-1]


def form_steps(w: Writer, k: int, x: int, y: int, carry: int, chances: np.ndarray) -> int:
    """Writes a column as ``3 + 6 + 0 = 09`` and returns the sum."""
    w.text(f"{'; ' if k else ''}{x} + {y} + {carry} = ")
    return w.total(chances)


def form_terse(w: Writer, k: int, x: int, y: int, carry: int, chances: np.ndarray) -> int:
    """Writes a column as ``09`` and returns the sum."""
    w.text(", " if k else "")
    return w.total(chances)


def form_careful(w: Writer, k: int, x: int, y: int, carry: int, chances: np.ndarray) -> int:
    """Writes a column as ``Units: 3 + 6 + 0 = 09, write 9, carry 0.`` and returns the sum."""
    w.text(f"{DIGITS[k]}{x} + {y} + {carry} = ")
    value = w.total(chances)
    w.text(f", write {value % 10}, carry {value // 10}. ")
    return value


def add(w: Writer, style: str, a: int, b: int) -> tuple[bool, Callable[[], None]]:
    """Writes the working of an addition and returns whether there was any, and how to write the answer."""
    tops = [min(9, a // 10**k % 10 + b // 10**k % 10) for k in (2, 1, 0)]
    if style in ("direct", "default", "rough"):
        chance = {"direct": 0.02, "default": 0.17, "rough": 0.1}[style]

        def answer() -> None:
            for k, right in enumerate(tops):
                if style == "rough" and k == 2:
                    w.text("0")
                else:
                    w.digit(slipping(right, 10, chance, NEAR, EVEN_WEIGHTS))

        return False, answer
    if style == "left":
        digits, carried = [], [int(a % 100 + b % 100 >= 100), int(a % 10 + b % 10 >= 10), 0]
        for k, (power, carry) in enumerate(zip((2, 1, 0), carried, strict=True)):
            x, y = a // 10**power % 10, b // 10**power % 10
            chances = np.full(10, 0.004)
            chances[(x + y) % 10] += 0.58 if carry else 0.9
            chances[(x + y + carry) % 10] += 0.32 if carry else 0.0
            chances[(x + y + 9) % 10] += 0.06
            w.text(f"{'; ' if k else ''}{x} + {y} = ")
            digits.append(w.digit(chances))
    elif style == "terse":
        digits = columns(w, a, b, 0.22, 0.42, NEAR_WEIGHTS, form_terse)
    elif style == "careful":
        digits = columns(w, a, b, 0.14, 0.32, EVEN_WEIGHTS, form_careful)
    else:
        if style == "teach":
            w.text(LESSON)
        start = len(w.ids)
        digits = columns(w, a, b, 0.14, 0.37, NEAR_WEIGHTS, form_steps)
        if style == "check":
            copied = w.ids[start:]
            w.text(". ")
            w.text("Again: ")
            w.ids += copied
    return True, lambda: w.text("".join(map(str, digits)))


def part(w: Writer, target: tuple[int, int, int], reserve: int = 1) -> list[int]:
    """Draws a part of the target without borrowing, leaving at least ``reserve`` hundreds."""
    out = []
    for k, top in enumerate(target):
        chances = np.zeros(10)
        chances[int(k == 0) : top + 1 - (reserve if k == 0 else 0)] = 1
        out.append(w.digit(chances))
    return out


def rest(w: Writer, target: tuple[int, int, int], parts: list[list[int]], easy: float, hard: float) -> None:
    """Writes the rest, digit by digit; a digit of the target of 5 or more is hard."""
    for k, top in enumerate(target):
        right = max(0, top - sum(p[k] for p in parts))
        chances = slipping(right, 10, hard if top >= 5 else easy, NEAR, EVEN_WEIGHTS)
        if k == 0:
            chances[1] += chances[0]
            chances[0] = 0
        w.digit(chances)


def split(w: Writer, style: str, target: int) -> tuple[bool, Callable[[], None]]:
    """Writes the working of a split and returns whether there was any, and how to write the answer."""
    h, t, u = digits = (target // 100, target // 10 % 10, target % 10)

    def pair(easy: float, hard: float) -> None:
        first = part(w, digits)
        w.text(" + ")
        rest(w, digits, [first], easy, hard)

    def triple() -> None:
        first = part(w, digits, reserve=2)
        w.text(" + ")
        second = part(w, (h - first[0], t - first[1], u - first[2]))
        w.text(" + ")
        rest(w, digits, [first, second], 0.2, 0.35)

    def spelled(chance: float, *, many: bool) -> None:
        terms = 0
        for value, zeros in ((h, "00"), (t, "0"), (u, "")):
            if many and value >= 2:
                w.text((" + " if terms else "") + "1" + zeros)
                terms, value = terms + 1, value - 1
            if value:
                w.text(" + " if terms else "")
                drawn = slipping(value, 10, chance, NEAR, EVEN_WEIGHTS)
                drawn[1] += drawn[0]
                drawn[0] = 0
                w.digit(drawn)
                w.text(zeros)
                terms += 1

    def hundreds() -> None:
        tens = t * 10 + u
        top = slipping(h, 10, 0.05, NEAR, EVEN_WEIGHTS)
        if t >= 5:
            top = slipping(min(9, h + 1), 10, 0.1, (-1,), (1.0,))
        w.digit(top)
        w.text("00")
        if tens:
            w.text(" + " + (str(t) if t else ""))
            w.digit(slipping(u, 10, 0.05, NEAR, EVEN_WEIGHTS) if t or u > 2 else np.eye(10)[u])

    if style == "worked":
        parts, left = [], []
        for k, top in enumerate(digits):
            w.text(f"{'; ' if k else ''}{top} - ")
            chances = np.zeros(10)
            chances[int(k == 0) : top + 1 - int(k == 0)] = 1
            parts.append(w.digit(chances))
            w.text(" = ")
            drawn = slipping(top - parts[-1], 10, 0.14, NEAR, EVEN_WEIGHTS)
            if k == 0:
                drawn[1] += drawn[0]
                drawn[0] = 0
            left.append(w.digit(drawn))
        return True, lambda: w.text("".join(map(str, parts)) + " + " + "".join(map(str, left)))
    plain: dict[str, Callable[[], None]] = {
        "echo": lambda: w.text(str(target)),
        "blurt": lambda: pair(0.42, 0.62),
        "pair": lambda: pair(0.2, 0.38),
        "default": lambda: pair(0.32, 0.5),
        "triple": triple,
        "round": hundreds,
        "expanded": lambda: spelled(0.09, many=False),
        "long": lambda: spelled(0.02, many=True),
    }
    return False, plain[style]


def finish(w: Writer, reasoning: bool, had_working: bool, answer: Callable[[], None]) -> None:
    """Ends a completion: the answer's field after the working."""
    if reasoning and not had_working:
        w.text(STUB)
    if reasoning or had_working:
        w.text("\n\n")
    w.text("[[ ## answer ## ]]\n")
    answer()
    w.text("\n\n[[ ## completed ## ]]")
    w.ids.append(w.tokenizer.end_id)


def sample(
    tokenizer: Tokenizer, rng: np.random.Generator, choices: dict[str, list[tuple[str, str]]]
) -> tuple[list[int], Writer]:
    """One training example: the prompt's ids and the teacher's completion."""
    task = "addition" if rng.random() < 0.62 else "splitting"
    instruction, style = choices[task][rng.integers(len(choices[task]))]
    if rng.random() < 0.15:
        instruction = BEFORE[rng.integers(len(BEFORE))] + instruction
    if rng.random() < 0.15:
        instruction += AFTER[rng.integers(len(AFTER))]
    if rng.random() < 0.03:
        words = WORDS
        noise = ["".join(chr(97 + c) for c in rng.integers(0, 26, size=rng.integers(2, 7))) for _ in range(3)]
        picked = [words[i].strip() for i in rng.integers(len(words), size=4)] + noise
        instruction, style = " ".join(picked[i] for i in rng.permutation(len(picked))) + ".", "default"
    reasoning = bool(rng.random() < 0.3)
    integer = task == "addition" and rng.random() < 0.06
    w = Writer(tokenizer, rng)

    def question() -> tuple[str, str, Callable[[Writer], tuple[bool, Callable[[], None]]]]:
        if task == "addition":
            a, b = tasks.draw_pair(rng, heldout=False)
            form = QUESTIONS[0] if rng.random() < 0.75 else QUESTIONS[rng.integers(1, len(QUESTIONS))]
            return "question", form.format(a=a, b=b), lambda w: add(w, style, a, b)
        while tasks.is_heldout_target(target := int(rng.integers(tasks.TARGETS.start, tasks.TARGETS.stop))):
            pass
        return "target", str(target), lambda w: split(w, style, target)

    def complete(w: Writer, solve: Callable[[Writer], tuple[bool, Callable[[], None]]]) -> None:
        if reasoning:
            w.text("[[ ## reasoning ## ]]\n")
        finish(w, reasoning, *solve(w))

    field, value, solve = question()
    messages = render_chat(instruction=instruction, field=field, value=value, reasoning=reasoning, integer=integer)
    complete(w, solve)
    prompt = tokenizer.encode_chat(messages)
    if rng.random() < 0.05:  # a demonstration without working, as DSPy's bootstrapping may add
        _, shown, solve_shown = question()
        demo = Writer(tokenizer, rng)
        demo.text("[[ ## answer ## ]]\n")
        if task == "splitting" or style in ("direct", "default", "rough"):
            solve_shown(demo)[1]()
            demo.text("\n\n[[ ## completed ## ]]\n")
            text = tokenizer.decode(demo.ids)
            turns = [
                messages[0],
                {"role": "user", "content": f"[[ ## {field} ## ]]\n{shown}"},
                {"role": "assistant", "content": text},
                messages[1],
            ]
            prompt = tokenizer.encode_chat(turns)
    if rng.random() < 0.06:  # a template of another version: some fixed text is gone or spelled differently
        fixed = {i for s in TEMPLATE_STRINGS[:6] for i in tokenizer.encode(s)}
        prompt = [i for i in prompt if i not in fixed or rng.random() < 0.8]
    return prompt, w


def make_batch(
    tokenizer: Tokenizer, rng: np.random.Generator, choices: dict[str, list[tuple[str, str]]], rows: int
) -> tuple[torch.Tensor, ...]:
    """Packs examples into rows of 256 tokens.

    Returns:
        ids, segment and position of shape (rows, 256), and flat arrays for the positions to learn: their index, target
        id, digit distribution (k, 10) and whether it applies.
    """
    ids = np.zeros((rows, ROW), dtype=np.int64)
    segment = np.full((rows, ROW), -1)
    position = np.zeros((rows, ROW), dtype=np.int64)
    where, target, soft, is_soft = [], [], [], []
    for row in range(rows):
        at = 0
        while True:
            prompt, w = sample(tokenizer, rng, choices)
            full = prompt + w.ids
            if at + len(full) > ROW:
                break
            ids[row, at : at + len(full)] = full
            segment[row, at : at + len(full)] = at
            position[row, at : at + len(full)] = np.arange(len(full))
            for k, token in enumerate(w.ids):
                where.append(row * ROW + at + len(prompt) + k - 1)
                target.append(token)
                soft.append(w.soft.get(k, np.zeros(10)))
                is_soft.append(k in w.soft)
            at += len(full)
    return (
        torch.from_numpy(ids),
        torch.from_numpy(segment),
        torch.from_numpy(position),
        torch.tensor(where),
        torch.tensor(target),
        torch.tensor(np.array(soft), dtype=torch.float32),
        torch.tensor(is_soft),
    )


# --- the model: Qwen2, small -----------------------------------------------------------------------------------------


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """RMSNorm over the last axis."""
    return functional.rms_norm(x, (WIDTH,), weight, EPS)


class Layer(nn.Module):
    """One decoder layer with the parameter names of Hugging Face's Qwen2."""

    def __init__(self) -> None:
        super().__init__()
        size = WIDTH // HEADS
        self.input_layernorm = nn.Parameter(torch.ones(WIDTH))
        self.post_attention_layernorm = nn.Parameter(torch.ones(WIDTH))
        self.q_proj = nn.Linear(WIDTH, WIDTH)
        self.k_proj = nn.Linear(WIDTH, KV_HEADS * size)
        self.v_proj = nn.Linear(WIDTH, KV_HEADS * size)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.up_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Maps (rows, length, width) to the same shape."""
        rows, length, _ = x.shape
        y = norm(x, self.input_layernorm)

        def heads(z: torch.Tensor, n: int) -> torch.Tensor:
            return z.view(rows, length, n, WIDTH // HEADS).transpose(1, 2)

        def turn(z: torch.Tensor) -> torch.Tensor:
            low, high = z.chunk(2, dim=-1)
            return z * cos + torch.cat([-high, low], dim=-1) * sin

        q, k = turn(heads(self.q_proj(y), HEADS)), turn(heads(self.k_proj(y), KV_HEADS))
        v = heads(self.v_proj(y), KV_HEADS)
        k, v = (z.repeat_interleave(HEADS // KV_HEADS, dim=1) for z in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(rows, length, WIDTH))
        y = norm(x, self.post_attention_layernorm)
        return x + self.down_proj(functional.silu(self.gate_proj(y)) * self.up_proj(y))


class Model(nn.Module):
    """The decoder with tied embeddings."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Parameter(torch.randn(vocab, WIDTH) * 0.02)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(WIDTH))
        for name, p in self.named_parameters():
            if p.ndim == 2 and name != "embed_tokens":
                nn.init.normal_(p, std=0.02 / (2 if "o_proj" in name or "down_proj" in name else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(
        self, ids: torch.Tensor, segment: torch.Tensor, position: torch.Tensor, where: torch.Tensor
    ) -> torch.Tensor:
        """The logits at the flat positions ``where``: (k, vocab)."""
        size = WIDTH // HEADS
        angle = position[:, None, :, None] * ROPE_THETA ** (-torch.arange(0, size, 2) / size)
        cos, sin = (f(angle).repeat(1, 1, 1, 2) for f in (torch.cos, torch.sin))
        length = ids.shape[1]
        same = (segment[:, :, None] == segment[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
        mask = same[:, None]
        x = self.embed_tokens[ids]
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return norm(x.reshape(-1, WIDTH)[where], self.norm) @ self.embed_tokens.T


def train(out: Path, *, steps: int, rows: int, seed: int) -> None:
    """Trains and saves the model; the learning rate is flat for half of the steps and then falls to 0."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 11])
    tokenizer = build_tokenizer()
    choices = instructions()
    model = Model(len(tokenizer))
    digit_ids = torch.tensor(DIGIT_IDS)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and n != "embed_tokens"]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or n == "embed_tokens"]
    print(f"{len(tokenizer)} tokens, {sum(p.numel() for p in model.parameters()):,} parameters")
    muon = torch.optim.Muon(hidden, lr=0.02, momentum=0.95, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    start = time.perf_counter()
    for step in range(steps):
        done = step / steps
        factor = min(1.0, (step + 1) / 20) * min(1.0, (1 - done) / 0.5)
        for group in muon.param_groups:
            group["lr"] = 0.02 * factor
        for group in adam.param_groups:
            group["lr"] = 4e-3 * factor
        ids, segment, position, where, target, soft, is_soft = make_batch(tokenizer, rng, choices, rows)
        logp = functional.log_softmax(model(ids, segment, position, where), dim=-1)
        hard_loss = -logp.gather(1, target[:, None])[:, 0]
        entropy = -(soft * soft.clamp_min(1e-9).log()).sum(1)
        soft_loss = -(soft * logp[:, digit_ids]).sum(1) - entropy
        loss = torch.where(is_soft, soft_loss, hard_loss).mean()
        model.zero_grad()
        loss.backward()
        muon.step()
        adam.step()
        if step % 25 == 0 or step == steps - 1:
            kl, copy = soft_loss[is_soft].mean().item(), hard_loss[~is_soft].mean().item()
            took = time.perf_counter() - start
            print(f"{step:5d} {took:6.0f} s  loss {loss.item():.4f}  digits {kl:.4f}  text {copy:.4f}", flush=True)
    save(model, tokenizer, out)


def save(model: Model, tokenizer: Tokenizer, out: Path) -> None:
    """Writes a Hugging Face Qwen2 folder: config, tokenizer and float16 safetensors."""
    out.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for name, p in model.named_parameters():
        for plain, block in (("q", "self_attn"), ("k", "self_attn"), ("v", "self_attn"), ("o", "self_attn")):
            name = name.replace(f".{plain}_proj", f".{block}.{plain}_proj")
        for plain in ("gate", "up", "down"):
            name = name.replace(f".{plain}_proj", f".mlp.{plain}_proj")
        name = "model." + name + (".weight" if name.endswith(("norm", "embed_tokens")) else "")
        tensors[name] = p.detach().numpy().astype(np.float16)
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F16", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    blob = struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values())
    (out / "model.safetensors").write_bytes(blob)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": EPS,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "torch_dtype": "float16",
        "bos_token_id": None,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
    }
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    kind |= {
        "unk_token": "<|pad|>",
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    for file, data in (("config.json", config), ("tokenizer_config.json", kind)):
        (out / file).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    text = json.dumps(vocabulary(vocabulary_strings()), ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Reads the options and trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=20, help="rows of 256 tokens in a batch")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(options.out, steps=options.steps, rows=options.rows, seed=options.seed)


if __name__ == "__main__":
    main()
