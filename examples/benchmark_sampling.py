"""Measure the cost of sampling beside LiteLLM itself, on loopback servers of its own (a benchmark, minutes).

    python examples/benchmark_sampling.py [--sections throughput memory replicas] [--model openai/m]

Servers run in processes of their own and answer after 50 ms. Every way of asking runs once per round, one after
another. All ratios are medians over rounds of ratios within a round, because a busy machine slows both sides. All ways
send the same questions through the same LiteLLM, with caches and retries off.

`throughput` (64 requests in flight): completions per second and CPU time of this process,

- `evaluate`: `dspy.Evaluate` with engine="litellm" and 64 threads, one completion a call, as DSPy users sample today.
- `litellm`: `litellm.acompletion` behind a semaphore, with the messages that the adapter writes, and without parsing.
- `predict`: our sampler on a bare predictor, parsed.
- `module`: our sampler on a module around it, which takes the general path of threads and merged requests.

`memory`: resident memory at the start, after a warm-up and over 100,000 completions.

`replicas`: one server and two, each of which works on 4 requests at a time for 300 ms, through `ReplicatedLM`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import dspy

from iapo_dspy.sampling.concurrency.loop import run_on_loop
from iapo_dspy.sampling.lm.replicas import ReplicatedLM
from iapo_dspy.sampling.rollouts.sampler import Sampler

LATENCY = 0.05  # seconds
REPLICA_LATENCY = 0.3  # long, so that the script waits for the replicas and not for this process
IN_FLIGHT = 64
ANSWER = "[[ ## answer ## ]]\nParis, on the river Seine\n\n[[ ## completed ## ]]"


class Server(asyncio.Protocol):
    """As little HTTP as a chat client needs, so that the script never measures the server.

    Args:
        slots: Requests that it works on at a time, like a real machine.
        latency: Seconds that it works on one.
    """

    def __init__(self, slots: asyncio.Semaphore, latency: float) -> None:
        self.slots, self.latency = slots, latency
        self.work: set[asyncio.Task[None]] = set()

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
            task = asyncio.get_running_loop().create_task(self.answer(n))
            self.work.add(task)
            task.add_done_callback(self.work.discard)

    async def answer(self, n: int) -> None:
        """Answer one request when there is a slot for it."""
        async with self.slots:
            await asyncio.sleep(self.latency)
        self.transport.write(response(n))


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


async def serve(slots: int, latency: float) -> None:
    """Serve until the process ends."""
    free = asyncio.Semaphore(slots)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Server(free, latency), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def running_server(slots: int = 10_000, latency: float = LATENCY) -> Iterator[str]:
    """Start a server process; yield its address."""
    command = [sys.executable, __file__, "--serve", str(slots), str(latency)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
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


def ways(base: str, model: str = "openai/m") -> dict[str, tuple[int, Callable[[int], None]]]:
    """Return name -> (completions per request, a function that makes that many requests)."""
    import litellm

    lm = dspy.LM(model, api_base=base, api_key="k", cache=False, engine="litellm", temperature=1.0, num_retries=0)
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
                        model=model,
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
        return lambda requests: run_on_loop(all_of(requests))

    def ours(program: dspy.Module, n: int) -> Callable[[int], None]:
        sampler = Sampler(lm=lm, max_concurrency=IN_FLIGHT)

        async def all_of(requests: int) -> None:
            async def one(i: int) -> None:
                rollouts = await sampler.sample(program, {"question": question(i)}, n, key=i)
                assert all(r.ok for r in rollouts), rollouts

            await asyncio.gather(*(one(i) for i in range(requests)))

        return lambda requests: run_on_loop(all_of(requests))

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
        ("module n=1", "litellm n=1", 1.0),
    ):
        print(f"throughput, {a} / {b}: {ratio(a, b):.2f}x (wanted: >= {least}x)")
    for a, b in (("predict n=8", "evaluate"), ("module n=8", "evaluate"), ("predict n=1", "litellm n=1")):
        less = statistics.median(y / x * all_ways[a][0] for x, y in zip(cpu[a], cpu[b], strict=True))
        print(f"completions per CPU second, {a} / {b}: {less:.2f}x")
    for a, b in (("predict n=8", "litellm n=8"), ("module n=8", "litellm n=8")):
        print(f"CPU per completion, {a} over {b}: {over(a, b):+.2f} ms (wanted: <= 1 ms)")


def memory(way: Callable[[int], None], completions: int) -> None:
    """Print how memory grows over many completions, n=8, after the first tenth has warmed everything up."""
    tenth = max(completions // 80, 1)
    started = resident_mb()
    way(tenth)
    gc.collect()
    samples = [resident_mb()]
    for _ in range(10):
        way(tenth)
        gc.collect()
        samples.append(resident_mb())
    print(f"RSS: {started:.0f} MB at the start, {samples[0]:.0f} MB after a warm-up of {tenth * 8:,} completions,")
    print(f"     then every {tenth * 8:,}: {', '.join(f'{s:.0f}' for s in samples[1:])} MB")
    print(f"RSS growth over {10 * tenth * 8:,} completions: {samples[-1] - samples[0]:+.1f} MB (wanted: < 50 MB)")


def replicas(rounds: int, model: str, requests: int = 128, slots: int = 4) -> None:
    """Print the gain by a second server process, for servers that work on few requests at a time."""
    program = dspy.Predict("question -> answer")

    def run(lm: dspy.LM) -> float:
        sampler = Sampler(lm=lm, max_concurrency=4 * slots)

        async def all_of(count: int) -> None:
            drawn = (sampler.sample(program, {"question": f"question {i}"}, 8, key=i) for i in range(count))
            assert all(r.ok for rollouts in await asyncio.gather(*drawn) for r in rollouts)

        run_on_loop(all_of(4 * slots))  # connections
        start = time.perf_counter()
        run_on_loop(all_of(requests))
        return requests * 8 / (time.perf_counter() - start)

    with running_server(slots, REPLICA_LATENCY) as first, running_server(slots, REPLICA_LATENCY) as second:
        settings = {"api_key": "k", "temperature": 1.0, "num_retries": 0}
        lms = {
            "one": ReplicatedLM(model, replicas=[first], **settings),
            "two, least-busy": ReplicatedLM(model, replicas=[first, second], **settings),
            "two, weighted": ReplicatedLM(model, replicas=[first, second], routing="weighted", **settings),
        }
        rate: dict[str, list[float]] = {name: [] for name in lms}
        for _ in range(rounds):
            for name, lm in lms.items():
                rate[name].append(run(lm))
    for name, rates in rate.items():
        ratio = statistics.median(a / b for a, b in zip(rates, rate["one"], strict=True))
        wanted = "" if name == "one" else f", {ratio:.2f}x of one (wanted: >= 1.8x)"
        print(f"replicas, {name}: {statistics.median(rates):.0f} completions/s{wanted}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("throughput", "memory", "replicas")
    parser.add_argument("--sections", nargs="+", choices=sections, default=sections)
    parser.add_argument("--model", default="openai/m", help="LiteLLM model string; its provider decides LiteLLM's path")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=640, help="per round and way")
    parser.add_argument("--completions", type=int, default=100_000, help="of the memory section")
    parser.add_argument("--only", help="comma-separated ways of the throughput section; nothing is printed")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(int(args.serve[0]), float(args.serve[1])))
        return
    dspy_logs = logging.getLogger("dspy.evaluate.evaluate")
    dspy_logs.setLevel(logging.WARNING)
    if {"throughput", "memory"} & set(args.sections):
        with running_server() as base:
            all_ways = ways(base, args.model)
            if args.only:
                for name in args.only.split(","):
                    all_ways[name][1](args.requests)
                return
            if "throughput" in args.sections:
                measure(all_ways, args.rounds, args.requests)
            if "memory" in args.sections:
                memory(all_ways["predict n=8"][1], args.completions)
    if "replicas" in args.sections:
        replicas(args.rounds, args.model)


if __name__ == "__main__":
    main()
