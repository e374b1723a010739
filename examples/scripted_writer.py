"""A scripted prompt-writing LM: a server on loopback that answers each request with the next instruction of a pool.

    with ScriptedWriter(addition_task(), seed=0) as writer:
        dspy.GEPA(..., reflection_lm=writer.lm())

It is no language model. It does not read what it is asked, beyond the names of the fields that it shall fill in: the
field of an instruction gets the next text of the pool, every other field a fixed remark. The pool is the demo task's
shipped instructions and more bad ones, in a shuffled order, over and over. So all optimizers are sent
instructions of the same law. Numbers that it takes part in are about the search among instructions, and say nothing of
how well anybody writes them.

The path to it is that of any other LM: LiteLLM and HTTP. It counts what it is asked and what it answers; a word is a
token.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dspy
import numpy as np

from iapo_dspy.demo.tasks import DemoTask, default_instruction

MODEL = "scripted-writer"
REMARK = "X. There is nothing to remark."  # "X" where a proposer asks which of two outputs, X and Y, is better
BAD: Mapping[str, tuple[str, ...]] = {
    "addition": (
        "Estimate.",
        "Estimate the sum.",
        "Give a rough guess.",
        "Give a rough number.",
        "Give a rough answer.",
        "A rough guess is enough.",
        "A rough number is enough.",
        "Round the sum.",
        "Round the sum to the nearest hundred.",
        "Round the answer to the nearest ten.",
        "Round it to the nearest ten, then answer.",
        "Estimate the answer to the nearest ten.",
        "Give the sum to the nearest ten.",
        "Add from left to right.",
        "Work from left to right.",
        "Work from left to right, then answer.",
        "Add the hundreds first, then the tens, then the units.",
        "Start with the hundreds and go from left to right.",
        "Go from left to right, starting with the hundreds.",
        "Subtract the numbers.",
        "Subtract the second number from the first.",
        "Take the second number from the first, then answer.",
        "Say the first number.",
        "Copy the first number.",
    ),
    "splitting": (
        "Say the number again.",
        "Say the number twice.",
        "Repeat the target.",
        "Copy the number.",
        "Guess.",
        "Blurt out any two numbers.",
        "Say two numbers without thinking.",
        "Use many small, safe steps.",
        "Count up in small steps.",
        "Count in steps of ten.",
        "Write many small terms to be safe.",
        "Split the target into as many small, safe terms as you can.",
        "Split the target into three parts.",
        "Write the target as a sum of three numbers.",
        "Give three numbers whose sum is the target.",
    ),
}
"""Instructions of each task whose utility, mean over the demo's preferences at the best N, is below the student's."""


def pool_of(task: DemoTask, *, bad_only: bool = False) -> tuple[str, ...]:
    """Return the instructions that a writer for this task knows; DSPy's own is none of them."""
    own = default_instruction(task.signature)
    shipped = () if bad_only else tuple(text for text in task.instructions if text != own)
    return (*shipped, *BAD[task.name])


def wanted_fields(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Return how a request wants its answer, "chat", "json" or "text", and which output fields it names."""
    asked = str(messages[-1]["content"]).rpartition("Respond with ")[2]
    if asked.startswith("a JSON object"):
        return "json", re.findall(r"`(\w+)`", asked)
    fields = [name for name in re.findall(r"`\[\[ ## (\w+) ## \]\]`", asked) if name != "completed"]
    return ("chat", fields) if fields else ("text", [])


class ScriptedWriter:
    """The server, as a context manager.

    Args:
        task: The demo task to write for, or the instructions themselves.
        seed: Of the order of the pool.
        bad_only: Whether all instructions are bad; of a demo task.
    """

    def __init__(self, task: DemoTask | Sequence[str], *, seed: int = 0, bad_only: bool = False) -> None:
        self._pool = pool_of(task, bad_only=bad_only) if isinstance(task, DemoTask) else tuple(task)
        self._rng = np.random.default_rng([seed, 11])
        self._next: list[str] = []
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.requests = 0
        self.completions = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    @property
    def api_base(self) -> str:
        """The base URL."""
        assert self._server is not None, "use it in a with statement"
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def lm(self) -> dspy.LM:
        """Return the LM that asks this server."""
        at = {"api_base": self.api_base, "api_key": "none"}
        return dspy.LM(f"openai/{MODEL}", engine="litellm", **at, temperature=1.0, max_tokens=1000, cache=False)

    def __enter__(self) -> ScriptedWriter:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                data = json.dumps(owner.answered(body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def answered(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a request for chat completions, and count it."""
        with self._lock:
            texts = [self._text(body["messages"]) for _ in range(int(body.get("n") or 1))]
            read = sum(len(str(message["content"]).split()) for message in body["messages"])
            written = sum(len(text.split()) for text in texts)
            self.requests += 1
            self.completions += len(texts)
            self.prompt_tokens += read
            self.completion_tokens += written
        choices = [
            {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for i, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        about = {"id": f"chatcmpl-{self.requests}", "object": "chat.completion", "created": int(time.time())}
        return {**about, "model": MODEL, "choices": choices, "usage": usage}

    def _text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        form, fields = wanted_fields(messages)
        if form == "text":
            return f"```\n{self._instruction()}\n```"
        filled = {name: self._instruction() if "instruction" in name else REMARK for name in fields}
        if form == "json":
            return json.dumps(filled)
        parts = [f"[[ ## {name} ## ]]\n{value}" for name, value in filled.items()]
        return "\n\n".join([*parts, "[[ ## completed ## ]]"])

    def _instruction(self) -> str:
        """Return the next instruction; each comes once before any comes again."""
        if not self._next:
            self._next = [self._pool[i] for i in self._rng.permutation(len(self._pool))]
        return self._next.pop()
