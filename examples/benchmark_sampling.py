"""Measure what sampling costs beside LiteLLM itself, on a loopback server of its own (a benchmark, minutes).

    python examples/benchmark_sampling.py [--rounds 5] [--requests 640] [--memory 100000]

The server runs in a process of its own and answers after 50 ms; 64 requests are in flight. Every way of asking is run
once per round, one after another, and all ratios are medians over rounds of ratios within a round: a busy machine slows
both sides. All ways send the same questions through the same LiteLLM, with caches and retries off:

- `evaluate`: `dspy.Evaluate` with engine="litellm" and 64 threads, one completion a call, as DSPy users sample today.
- `litellm`: `litellm.acompletion` behind a semaphore, with the very messages that the adapter writes, nothing parsed.
- `predict`: our sampler on a bare predictor, parsed.
- `module`: our sampler on a module around it, which takes the general path of threads and merged requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import dspy

from iapo_dspy.sampling import Sampler

LATENCY = 0.05
IN_FLIGHT = 64
ANSWER = "[[ ## answer ## ]]\nParis, on the river Seine\n\n[[ ## completed ## ]]"


class Server(asyncio.Protocol):
    """As little HTTP as a chat client needs, so that the server is never what is measured."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start with an empty buffer."""
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer each whole request after the latency."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            if len(self.buffer) < end + 4 + size:
                return
            n = json.loads(self.buffer[end + 4 : end + 4 + size]).get("n") or 1
            self.buffer = self.buffer[end + 4 + size :]
            asyncio.get_running_loop().call_later(LATENCY, self.transport.write, response(n))


def response(n: int) -> bytes:
    """Write n choices."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"} for i in range(n)
    ]
    usage = {"prompt_tokens": 100, "completion_tokens": 12 * n, "total_tokens": 100 + 12 * n}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def serve() -> None:
    """Serve until the process ends."""
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Start the server process; yield its address."""
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


class Around(dspy.Module):
    """A module that the fast path does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.solve = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """Ask once."""
        return self.solve(question=question)


def ways(base: str) -> dict[str, tuple[int, Callable[[int], None]]]:
    """Return name -> (completions per request, a function that makes that many requests)."""
    import litellm

    lm = dspy.LM("openai/m", api_base=base, api_key="k", cache=False, engine="litellm", temperature=1.0, num_retries=0)
    dspy.configure(lm=lm, disable_history=True)
    predict, around = dspy.Predict("question -> answer"), Around()
    adapter = dspy.ChatAdapter()

    def question(i: int) -> str:
        return f"Which city lies on river number {i}?"

    def evaluate(requests: int) -> None:
        devset = [dspy.Example(question=question(i), answer="").with_inputs("question") for i in range(requests)]
        run = dspy.Evaluate(devset=devset, metric=lambda e, p: True, num_threads=IN_FLIGHT, display_progress=False)
        run(predict)

    def raw(n: int) -> Callable[[int], None]:
        async def all_of(requests: int) -> None:
            slots = asyncio.Semaphore(IN_FLIGHT)

            async def one(i: int) -> None:
                messages = adapter.format(predict.signature, [], {"question": question(i)})
                extra = {"n": n} if n > 1 else {}
                async with slots:
                    reply = await litellm.acompletion(
                        model="openai/m",
                        messages=messages,
                        api_base=base,
                        api_key="k",
                        temperature=1.0,
                        num_retries=0,
                        max_retries=0,
                        **extra,
                    )
                assert len(reply.choices) == n

            await asyncio.gather(*(one(i) for i in range(requests)))

        # On the loop that ours run on: LiteLLM keeps a client and a logging worker per loop, and all are to share them.
        sampler = Sampler(lm=lm)
        return lambda requests: sampler.run(all_of(requests))

    def ours(program: dspy.Module, n: int) -> Callable[[int], None]:
        sampler = Sampler(lm=lm, max_concurrency=IN_FLIGHT)

        async def all_of(requests: int) -> None:
            async def one(i: int) -> None:
                rollouts = await sampler.sample(program, {"question": question(i)}, n, key=i)
                assert all(r.ok for r in rollouts), rollouts

            await asyncio.gather(*(one(i) for i in range(requests)))

        return lambda requests: sampler.run(all_of(requests))

    return {
        "evaluate": (1, evaluate),
        "litellm n=1": (1, raw(1)),
        "predict n=1": (1, ours(predict, 1)),
        "module n=1": (1, ours(around, 1)),
        "litellm n=8": (8, raw(8)),
        "predict n=8": (8, ours(predict, 8)),
        "module n=8": (8, ours(around, 8)),
    }


def resident_mb() -> float:
    """Return the resident memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def measure(all_ways: dict[str, tuple[int, Callable[[int], None]]], rounds: int, requests: int) -> None:
    """Run all ways in turn and print medians."""
    rate: dict[str, list[float]] = {name: [] for name in all_ways}
    cpu: dict[str, list[float]] = {name: [] for name in all_ways}
    for name, (_, way) in all_ways.items():
        way(IN_FLIGHT)  # imports, connections, caches
        print(f"warmed up: {name}", file=sys.stderr)
    for _ in range(rounds):
        for name, (n, way) in all_ways.items():
            gc.collect()
            start, used = time.perf_counter(), time.process_time()
            way(requests)
            rate[name].append(requests * n / (time.perf_counter() - start))
            cpu[name].append((time.process_time() - used) / requests * 1000)
    print(f"{'way':<14}{'completions/s':>15}{'CPU ms/request':>16}{'CPU ms/completion':>19}")
    for name, (n, _) in all_ways.items():
        ms = statistics.median(cpu[name])
        print(f"{name:<14}{statistics.median(rate[name]):>15.0f}{ms:>16.2f}{ms / n:>19.2f}")

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(rate[a], rate[b], strict=True))

    def over(a: str, b: str) -> float:
        return statistics.median((x - y) / all_ways[a][0] for x, y in zip(cpu[a], cpu[b], strict=True))

    for a, b, least in (
        ("predict n=8", "evaluate", 4.0),
        ("module n=8", "evaluate", 4.0),
        ("predict n=1", "litellm n=1", 1.0),
        ("module n=1", "litellm n=1", None),
    ):
        print(f"throughput, {a} / {b}: {ratio(a, b):.2f}x" + (f" (wanted: >= {least}x)" if least else ""))
    for a, b in (("predict n=8", "litellm n=8"), ("module n=8", "litellm n=8")):
        print(f"CPU per completion, {a} over {b}: {over(a, b):+.2f} ms (wanted: <= 1 ms)")


def memory(way: Callable[[int], None], completions: int) -> None:
    """Print how memory grows over many completions, after the first tenth has warmed everything up."""
    tenth = max(completions // 80, 1)
    way(tenth)
    gc.collect()
    start = resident_mb()
    for _ in range(10):
        way(tenth)
    gc.collect()
    print(f"RSS over {10 * tenth * 8:,} completions: {start:.0f} MB -> {resident_mb():.0f} MB (wanted: < +50 MB)")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=640)
    parser.add_argument("--memory", type=int, default=100_000, help="completions of the memory test; 0 skips it")
    parser.add_argument("--only", help="comma-separated ways; no ratios")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve())
        return
    with running_server() as base:
        all_ways = ways(base)
        if args.only:
            for name in args.only.split(","):
                all_ways[name][1](args.requests)
            return
        measure(all_ways, args.rounds, args.requests)
        if args.memory:
            memory(all_ways["predict n=8"][1], args.memory)


if __name__ == "__main__":
    main()
