"""Check whether caps are kept: compile on a server of random lengths and latencies, and count (two minutes).

    python examples/caps.py [--calls 200]

It needs neither a key nor a network: the server runs in this process, on loopback.

The server answers additions in the manner that the instruction asks for. A better manner is longer and slower. Lengths
and latencies are log-normal and differ per manner, and latencies grow with n as n ** 0.3. A token is a word; the
server cuts answers off at `max_tokens`. The program is compiled once, under the same number of requests at a time as
the calls on held-out queries. The last preferences of the table were not compiled: the stored evidence solves them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import random
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dspy

from iapo_dspy import IAPO, CallReport, CompiledProgram, Cost, Execution, MajorityVote, Preference, Search
from iapo_dspy.errors import AllCompletionsFailed

AT_A_TIME = 16
# Instruction -> percentage of the questions that it always gets wrong, share of right answers to the others,
# median words of working, their log sd, median seconds, their log sd.
MANNERS = {
    "Answer at once.": (40, 0.8, 4, 0.2, 0.10, 0.3),
    "Think briefly.": (20, 0.8, 25, 0.3, 0.25, 0.35),
    "Think carefully.": (3, 0.8, 80, 0.4, 0.60, 0.4),
}
PREFERENCES = [
    Preference("quality"),
    Preference("snappy", max_latency_s=1.0),
    Preference("short", max_tokens=200),
    Preference("free tier", max_usd=0.0008),
    Preference("all of it", cost=0.1, max_tokens=600, max_latency_s=2.0, max_usd=0.004),
]
UNSEEN = [
    Preference("0.6 s", max_latency_s=0.6),
    Preference("1.5 s", max_latency_s=1.5),
    Preference("3 s", max_latency_s=3.0),
    Preference("60 tokens", max_tokens=60),
    Preference("400 tokens", max_tokens=400),
]


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server that waits and writes at random."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rng, self.lock = random.Random(seed), threading.Lock()
        self.requests = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """Return the response to a request, and the seconds that it takes."""
        system, user = body["messages"][0]["content"], body["messages"][-1]["content"]
        hard, right, words, words_sd, seconds, seconds_sd = next(v for k, v in MANNERS.items() if k in system)
        a, b = (int(x) for x in re.findall(r"(\d+) \+ (\d+)", user)[-1])
        n, most = body.get("n") or 1, body.get("max_tokens") or 10**6
        choices, total = [], 0
        with self.lock:
            self.requests += 1
            latency = seconds * n**0.3 * math.exp(self.rng.gauss(0, seconds_sd))
            for i in range(n):
                stuck = (7919 * a + 104_729 * b) % 100 < hard
                answer = a + b + (10 if stuck else self.rng.randint(1, 9) * (self.rng.random() > right))
                working = ["so"] * max(round(words * math.exp(self.rng.gauss(0, words_sd))), 1)
                text = [
                    *working,
                    "\n\n[[",
                    "##",
                    "answer",
                    "##",
                    "]]\n",
                    str(answer),
                    "\n[[",
                    "##",
                    "completed",
                    "##",
                    "]]",
                ]
                total += min(len(text), most)
                reason = "stop" if len(text) <= most else "length"
                message = {"role": "assistant", "content": " ".join(text[:most])}
                choices.append({"index": i, "message": message, "finish_reason": reason})
        asked = sum(len(m["content"].split()) for m in body["messages"])
        usage = {"prompt_tokens": asked, "completion_tokens": total, "total_tokens": asked + total}
        head = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        return {**head, "choices": choices, "usage": usage}, latency


class Handler(BaseHTTPRequestHandler):
    """Speaks as much HTTP as the client needs."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        """Answer after the latency; the work itself is part of it."""
        start = time.perf_counter()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        response, latency = self.server.answer(body)
        content = json.dumps(response).encode()
        time.sleep(max(latency - (time.perf_counter() - start), 0.0))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""


def questions(count: int, seed: int) -> list[dspy.Example]:
    """Return labelled additions."""
    rng = random.Random(seed)
    pairs = [(rng.randint(100, 999), rng.randint(100, 999)) for _ in range(count)]
    return [dspy.Example(question=f"{a} + {b}", answer=str(a + b)).with_inputs("question") for a, b in pairs]


def exact(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    """Whether the answer is the right number."""
    return bool(prediction.answer.strip() == example.answer)


async def ask(
    program: CompiledProgram, preference: Preference, examples: list[dspy.Example]
) -> list[tuple[CallReport | None, float, bool]]:
    """Call the program on every query; report, output tokens, and whether the answer is right."""
    gate = asyncio.Semaphore(AT_A_TIME)

    async def one(example: dspy.Example) -> tuple[CallReport | None, float, bool]:
        async with gate:
            try:
                prediction = await program.acall(**example.inputs(), preference=preference)
            except AllCompletionsFailed as error:  # every completion was cut off
                return None, error.completion_tokens, False
        return prediction.iapo, prediction.iapo.completion_tokens, exact(example, prediction)

    return list(await asyncio.gather(*(one(e) for e in examples)))


def row(program: CompiledProgram, preference: Preference, examples: list[dspy.Example]) -> bool:
    """Print a line of the table; return whether no call took more tokens than it may."""
    arm = program.solve(preference)
    calls = asyncio.run(ask(program, preference, examples))
    reports = [r for r, _, _ in calls if r is not None]
    taken = {
        "tokens": [tokens for _, tokens, _ in calls],
        "seconds": [r.seconds for r in reports],
        "usd": [r.usd or 0.0 for r in reports],
    }
    kept = []
    for unit, cap in preference.caps.items():
        share = sum(v <= cap for v in taken[unit]) / len(taken[unit])
        kept.append(f"{unit} <= {cap:g}: {share:6.1%}, worst {max(taken[unit]):.3g}")
    chosen = f"{list(MANNERS)[arm.prompt]:<17} N={arm.n:<2}"
    accuracy = sum(right for _, _, right in calls) / len(calls)
    lost = sum(len(r.failures) if r is not None else arm.n for r, _, _ in calls) / (arm.n * len(calls))
    print(f"{preference.name!s:<11} {chosen} accuracy {accuracy:.2f}  cut off {lost:5.1%}  {'; '.join(kept)}")
    return all(tokens <= preference.caps.get("tokens", math.inf) for tokens in taken["tokens"])


def main() -> None:
    """Compile, call and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200, help="held-out queries per preference")
    args = parser.parse_args()
    logging.getLogger("iapo_dspy").setLevel(logging.ERROR)
    server = Server(seed=0)
    base = f"http://127.0.0.1:{server.server_address[1]}/v1"
    dspy.configure(lm=dspy.LM("openai/loopback", engine="litellm", api_base=base, api_key="none", cache=False))
    optimizer = IAPO(
        metric=exact,
        strategy=MajorityVote("answer"),
        preferences=PREFERENCES,
        max_n=16,
        budget=1_500,
        candidates=list(MANNERS),
        num_threads=AT_A_TIME,
        search=Search(cost_unit=Cost(completion_tokens=1, usd_per_million=(0.5, 5.0))),
        execution=Execution(progress=False),
    )
    warm = dspy.Signature("question -> answer", next(iter(MANNERS)))
    dspy.Predict(warm)(question="1 + 1")  # imports at the first request of a process are not a server's latency
    start = time.perf_counter()
    program = optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(150, seed=1))
    spent = program.detailed_results.spent
    print(f"compiled: {spent.completions:,} completions, {time.perf_counter() - start:.0f} s\n")
    requests, fine = server.requests, True
    for preference in PREFERENCES + UNSEEN:
        program.solve(preference)
    assert server.requests == requests  # solving does not ask an LM
    for preference in PREFERENCES + UNSEEN:
        fine &= row(program, preference, questions(args.calls, seed=2))
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    if not fine:
        raise SystemExit("A call took more tokens than its cap.")


if __name__ == "__main__":
    main()
