"""Measure the order of requests: does a server save work where those of one prompt come one after another?

It makes the same pulls in three orders: in turns over the prompts; prompt after prompt, as a round of `IAPO` sends
them; and so with the first pull of each prompt ahead of its others. The orders alternate, so that a server that becomes
slower or faster shows in all of them, and none finds prompts of another. Each prompt has an instruction and
demonstrations of its own, of some hundred tokens.

    python examples/benchmark_prefixes.py --api-base http://127.0.0.1:8080/v1 --model smollm2 --n 16 --threads 1

Needs: a server, such as llama.cpp's (docs/how-to/real-servers.md). It prints completions a second of each order, and
how much of the prompts the server took from its cache where it says so (usage.prompt_tokens_details.cached_tokens).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import litellm

QUALITIES = ("friendly", "slow", "bright", "noisy", "fresh", "stale", "calm", "rude", "clean", "dull")
THINGS = ("the waiter", "the engine", "the room", "the soup", "the garden", "the lift", "the song", "the train")
ORDERS = ("in turns", "prompt after prompt", "first one ahead")
GOOD = {"friendly", "bright", "fresh", "calm", "clean"}


@dataclass(frozen=True, kw_only=True)
class Took:
    """Time and tokens of the pulls of one order."""

    seconds: float
    completions: int
    prompt_tokens: int
    cached_tokens: int | None


def sentence(number: int) -> str:
    """Return one of 640 short reviews."""
    quality, thing = QUALITIES[number % 10], THINGS[number // 10 % 8]
    return f"On day {number // 80 + 1} {thing} was {quality}, and we said so."


def prompt(number: int, demonstrations: int) -> list[dict[str, str]]:
    """Return the messages of a prompt without its question."""
    messages = [
        {
            "role": "system",
            "content": f"You are reader {number}. Say whether a review is positive or negative. One word.",
        }
    ]
    for i in range(demonstrations):
        shown = (number * 131 + i * 37) % 640
        label = "positive" if QUALITIES[shown % 10] in GOOD else "negative"
        messages += [{"role": "user", "content": sentence(shown)}, {"role": "assistant", "content": label}]
    return messages


async def pull(given: argparse.Namespace, messages: Sequence[dict[str, str]], gate: asyncio.Semaphore) -> object:
    """Ask for n completions."""
    async with gate:
        reply = await litellm.acompletion(
            model=f"openai/{given.model}",
            messages=list(messages),
            n=given.n,
            max_tokens=given.tokens,
            temperature=1.0,
            api_base=given.api_base,
            api_key=given.api_key,
            extra_body={"top_k": 40, "min_p": 0.0},
        )
        return reply.usage


async def measure(given: argparse.Namespace, order: Sequence[tuple[int, int]], *, led: bool) -> Took:
    """Make pulls (prompt, question) in this order, so many at a time; `led`: the first of each prompt goes ahead."""
    gate, start = asyncio.Semaphore(given.threads), time.perf_counter()
    ahead: dict[int, asyncio.Task[object]] = {}

    async def after(first: asyncio.Task[object] | None, messages: Sequence[dict[str, str]]) -> object:
        if first is not None:
            await asyncio.wait([first])
        return await pull(given, messages, gate)

    tasks = []
    for p, q in order:
        messages = [*prompt(p, given.demonstrations), {"role": "user", "content": sentence(q)}]
        tasks.append(asyncio.ensure_future(after(ahead.get(p), messages)))
        if led:
            ahead.setdefault(p, tasks[-1])
    usages = await asyncio.gather(*tasks)
    cached = [getattr(getattr(u, "prompt_tokens_details", None), "cached_tokens", None) for u in usages]
    return Took(
        seconds=time.perf_counter() - start,
        completions=given.n * len(order),
        prompt_tokens=sum(getattr(u, "prompt_tokens", 0) for u in usages),
        cached_tokens=None if None in cached else sum(c or 0 for c in cached),
    )


async def compare(given: argparse.Namespace) -> dict[str, list[Took]]:
    """Measure the orders in turn."""
    found: dict[str, list[Took]] = {name: [] for name in ORDERS}
    questions = itertools.count()
    for repetition in range(given.repetitions):
        names = list(found) if repetition % 2 == 0 else list(found)[::-1]
        for name in names:
            # Prompts that no run before has left in the cache: each order begins with an empty one.
            first = next(questions) * given.prompts
            rounds = [[(first + p, first + q) for p in range(given.prompts)] for q in range(given.queries)]
            turns = [pulled for each in rounds for pulled in each]
            order = turns if name == "in turns" else sorted(turns, key=lambda pulled: pulled[0])
            found[name].append(await measure(given, order, led=name == ORDERS[2]))
    return found


def main() -> None:
    """Print the orders and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--api-base", required=True, help="the server's address, with /v1")
    parser.add_argument("--model", required=True, help="the name that the server has for the model")
    parser.add_argument("--api-key", default="none", help="the server's key")
    parser.add_argument("--prompts", type=int, default=24, help="prompts; more than the server has slots")
    parser.add_argument("--queries", type=int, default=4, help="pulls of each prompt")
    parser.add_argument("--demonstrations", type=int, default=12, help="demonstrations of each prompt")
    parser.add_argument("--n", type=int, default=2, help="completions of a pull")
    parser.add_argument("--tokens", type=int, default=2, help="output tokens of a completion at most")
    parser.add_argument("--threads", type=int, default=8, help="requests at a time, as num_threads of IAPO")
    parser.add_argument("--repetitions", type=int, default=2, help="how often each order is measured")
    given = parser.parse_args()
    paces = {}
    for name, runs in asyncio.run(compare(given)).items():
        seconds, completions = sum(r.seconds for r in runs), sum(r.completions for r in runs)
        paces[name] = completions / seconds
        read = sum(r.prompt_tokens for r in runs)
        cached = [r.cached_tokens for r in runs]
        share = "not told" if None in cached else f"{sum(c or 0 for c in cached) / max(read, 1):.0%}"
        each = ", ".join(f"{r.completions / r.seconds:.1f}" for r in runs)
        print(f"{name:>20}: {paces[name]:6.1f} completions/s ({each}), {read:,} prompt tokens, from the cache: {share}")
    ratios = ", ".join(f"{name} {paces[name] / paces[ORDERS[0]]:.2f}" for name in ORDERS[1:])
    print(f"as many times as {ORDERS[0]}: {ratios}")


if __name__ == "__main__":
    main()
