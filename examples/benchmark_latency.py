"""Measure the time and the tokens of N samples: compiled programs beside one plain call and `dspy.BestOfN`.

    python examples/benchmark_latency.py [--rounds 20] [--n 16]

A server on loopback, in a process of its own, answers every request after 50 ms, for any number of completions.
The prompt is long and the answers are short, as in most applications. DSPy's cache is off:

- `plain`: one call of `dspy.Predict`.
- `vote`: a compiled program that votes over N with `Stop(waves=exact_waves(N))`: half of the completions, and the rest
  only where they could change the result. In `vote, agreed` all completions agree: one wave. `vote, torn`
  always needs both waves, and pays the prompt twice. `vote, at once` is the arm without waves.
- `best`: a compiled program that takes the best of N by an objective.
- `dspy.BestOfN`: DSPy's own, N attempts one after another, with the same objective and without a threshold to stop at.

Rounds take turns, so that a busy machine slows all ways alike. Ratios compare the times within a round. The script
prints their mean, their median and their 95th percentile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dspy

from iapo_dspy import IAPO, BestOfN, CompiledProgram, Execution, MajorityVote, Objective, Preference
from iapo_dspy.bandit.stopping.rules import exact_waves
from iapo_dspy.types import Arm, Stop

LATENCY = 0.05  # seconds
MANUAL = "Read the whole manual before you answer. " * 60


class Handler(BaseHTTPRequestHandler):
    """Answers n completions after the latency; every second one differs where the question says so."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: with two, Nagle's algorithm would add 40 ms to every request
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Answer one request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(LATENCY)
        n = body.get("n") or 1
        torn = "torn" in body["messages"][-1]["content"]
        texts = [f"[[ ## answer ## ]]\n{'no' if torn and i % 2 else 'yes'}\n\n[[ ## completed ## ]]" for i in range(n)]
        prompt = sum(len(m["content"].split()) for m in body["messages"])
        completion = sum(len(t.split()) for t in texts)
        choices = [
            {"index": i, "message": {"role": "assistant", "content": t}, "finish_reason": "stop"}
            for i, t in enumerate(texts)
        ]
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""


def serve() -> None:
    """Serve until the parent closes our input."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


def right(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """Score an answer without its label."""
    return 0.9 if prediction.answer == "yes" else 0.1


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    """Compare with the label."""
    return bool(example.answer == prediction.answer)


def compiled(strategy: MajorityVote | BestOfN, arm: Arm) -> CompiledProgram:
    """Compile on three examples, and deploy the arm to measure."""
    optimizer = IAPO(
        metric=metric if isinstance(strategy, MajorityVote) else None,
        strategy=strategy,
        preferences=[Preference("quality")],
        max_n=arm.n,
        budget=8,
        candidates=[MANUAL],
        execution=Execution(progress=False),
    )
    train = [dspy.Example(question=f"Is {i} a number?", answer="yes").with_inputs("question") for i in range(3)]
    student = dspy.Predict("question -> answer")
    program = optimizer.compile(student, trainset=train)
    policy = dataclasses.replace(program.policy.ready, arms=(arm,))
    return CompiledProgram(student, strategy, policy, programs=program.detailed_results.candidate_programs)


def measure(rounds: int, n: int) -> None:
    """Take turns and print."""
    waves = exact_waves(n)
    vote = compiled(MajorityVote("answer"), Arm(0, n, Stop(waves=waves)))
    once = compiled(MajorityVote("answer"), Arm(0, n))
    best = compiled(BestOfN([Objective("right", right)]), Arm(0, n))
    plain = dspy.Predict(dspy.Signature("question -> answer", MANUAL))
    theirs = dspy.BestOfN(plain, N=n, reward_fn=lambda args, pred: right(args, pred), threshold=2.0)
    ways: dict[str, Callable[[], dspy.Prediction]] = {
        "plain": lambda: plain(question="Is it all agreed?"),
        "vote, agreed": lambda: vote(question="Is it all agreed?"),
        "vote, torn": lambda: vote(question="Is it torn?"),
        "vote, at once": lambda: once(question="Is it torn?"),
        "best": lambda: best(question="Is it torn?"),
        "dspy.BestOfN": lambda: theirs(question="Is it torn?"),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, float] = {}
    work: dict[str, float] = dict.fromkeys(ways, 0.0)
    for way in ways.values():  # connections and imports
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            with dspy.track_usage() as tracker:
                start, cpu = time.perf_counter(), time.process_time()
                way()
                work[name] += time.process_time() - cpu
                times[name].append(time.perf_counter() - start)
            used = tracker.get_total_tokens().values()
            tokens[name] = sum(u["prompt_tokens"] + u["completion_tokens"] for u in used)
    print(f"N={n}, {LATENCY * 1000:.0f} ms a request, {rounds} rounds; waves of the vote end at {waves}")
    print(f"{'':<14}{'ms':>7}{'p95':>7}{'x plain':>9}{'median':>8}{'p95':>6}{'CPU ms':>8}{'tokens':>8}{'saved':>8}")
    for name, took in times.items():
        ratios = [a / b for a, b in zip(took, times["plain"], strict=True)]
        print(
            f"{name:<14}{statistics.fmean(took) * 1000:>7.1f}{p95(took) * 1000:>7.1f}"
            f"{statistics.fmean(ratios):>9.2f}{statistics.median(ratios):>8.2f}{p95(ratios):>6.2f}"
            f"{work[name] / rounds * 1000:>8.1f}{tokens[name]:>8.0f}{tokens['dspy.BestOfN'] / tokens[name]:>7.1f}x"
        )
    print("(saved: times fewer tokens than dspy.BestOfN)")


def p95(values: list[float]) -> float:
    """Return the 95th percentile."""
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


def main() -> None:
    """Start the server and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve()
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            lm = dspy.LM(
                "openai/m", api_base=f"http://127.0.0.1:{port}/v1", api_key="none", cache=False, temperature=1.0
            )
            with dspy.context(lm=lm):
                measure(args.rounds, args.n)
        finally:
            server.terminate()
    return None


if __name__ == "__main__":
    main()
