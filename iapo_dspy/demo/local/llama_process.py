"""The process that serves: run by its path, it reads its settings and serves until its standard input is closed.

It ends with the process that started it, however that one ends, because the operating system closes the pipe then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def started(settings: dict[str, Any]) -> Any:
    """Return llama.cpp's own HTTP server, running.

    Args:
        settings: `model` (path), `alias`, `port` (0: any free one), `slots`, `context` (tokens a slot), `threads`, and
            `chat_template` or None for the model's own.

    Raises:
        RuntimeError: It cannot start; llama.cpp has written why on the standard error.
    """
    import xllamacpp

    given = xllamacpp.CommonParams()
    given.model.path = settings["model"]
    given.model_alias = {settings["alias"]}
    given.hostnames = ["127.0.0.1"]
    given.port = settings["port"]
    given.n_parallel = settings["slots"]
    given.n_ctx = settings["slots"] * settings["context"]
    given.kv_unified = False
    given.cpuparams.n_threads = settings["threads"]
    given.cpuparams_batch.n_threads = settings["threads"]
    given.cache_ram_mib = settings["cache_mib"]  # prompts that take turns are not read again
    given.use_jinja = True
    given.ui = False
    given.cors_origins = given.hostnames[0]  # pages in a browser get no answer
    if settings["chat_template"]:
        given.chat_template = settings["chat_template"]
    return xllamacpp.Server(given)


def main() -> None:
    """Serve, and end when the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to the log
    settings = json.loads(sys.stdin.readline())
    sys.path[:] = settings["path"]
    server = started(settings)
    reply.write(f"{server.listening_address}\n")
    reply.flush()
    sys.stdin.read()
    os._exit(0)  # the server's threads are not waited for


if __name__ == "__main__":
    main()
