"""Serve a GGUF file on this machine by llama.cpp's own HTTP server, in one process that ends with this one."""

from __future__ import annotations

import json
import multiprocessing.spawn
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Final

import dspy

from iapo_dspy.demo.local.needs import check_installed
from iapo_dspy.errors import LocalModelError

_PROCESS: Final = Path(__file__).with_name("llama_process.py")
_NO_SUCH_INSTRUCTION: Final = (-getattr(signal, "SIGILL", 4), 0xC000001D)  # exit codes on POSIX, and on Windows


class LlamaServer:
    """llama.cpp's server on loopback, from the start of the `with` block to its end.

    Where this process is killed, the server ends too. Ctrl-C reaches this process alone.

    Args:
        model: A GGUF file.
        alias: The name by which requests ask for it.
        port: The port; 0 takes a free one.
        slots: Completions that it works on at a time, >= 1; the `n` of a request is at most this.
        context: Tokens of prompt and completion that a slot has room for, >= 1.
        threads: Threads that compute, >= 1. More than one wait for each other where other work uses the cores, and a
            small model becomes many times slower then.
        cache_mib: Memory for prompts that were read before, in MiB; 0 keeps those of the slots only.
        chat_template: A Jinja template that renders the chat, for a model that has none; None takes the model's.
        patience: Seconds that it may take to come up, > 0.

    Raises:
        LocalModelError: xllamacpp is missing, or the server did not come up; the message says why and names its log.
    """

    def __init__(
        self,
        model: Path,
        *,
        alias: str = "smollm2",
        port: int = 0,
        slots: int = 16,
        context: int = 768,
        threads: int = 1,
        cache_mib: int = 1_024,
        chat_template: str | None = None,
        patience: float = 120.0,
    ) -> None:
        self.alias = alias
        self.api_base = ""
        self._patience = patience
        self._settings: dict[str, Any] = {
            "model": str(model),
            "alias": alias,
            "port": port,
            "slots": slots,
            "context": context,
            "threads": threads,
            "cache_mib": cache_mib,
            "chat_template": chat_template,
        }

    def __enter__(self) -> LlamaServer:
        """Start it, and wait until it answers."""
        check_installed("xllamacpp")
        if not Path(self._settings["model"]).is_file():
            raise LocalModelError(f"There is no model file {self._settings['model']}: give the path of a GGUF file.")
        handle, log = tempfile.mkstemp(prefix=f"iapo-{self.alias}-", suffix=".log")
        self.log = Path(log)
        executable = os.fsdecode(multiprocessing.spawn.get_executable() or sys.executable)
        with os.fdopen(handle, "wb") as file:
            self._process = subprocess.Popen(
                [executable, "-I", str(_PROCESS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,  # Ctrl-C in the terminal does not reach it
            )
        try:
            self.api_base = f"{self._address()}/v1"
        except BaseException as error:
            self._end(keep_log=isinstance(error, LocalModelError))
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self._end(keep_log=self._process.poll() is not None)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def lm(self, **settings: Any) -> dspy.LM:
        """Return its LM, which samples at temperature 1 from the 40 likeliest tokens.

        Sorting all 49,152 tokens of SmolLM2's vocabulary costs more than the model itself.

        Args:
            **settings: More arguments of `dspy.LM`; they replace those that are set here.
        """
        return dspy.LM(f"openai/{self.alias}", **{**self.lm_settings(), **settings})

    def lm_settings(self) -> dict[str, Any]:
        """Return the arguments of its `dspy.LM`, beside the model's name."""
        return {
            "api_base": self.api_base,
            "api_key": "none",
            "engine": "litellm",
            "temperature": 1.0,
            "cache": False,
            "extra_body": {"top_k": 40, "min_p": 0.0},
        }

    def check(self) -> None:
        """Raise where the server has ended by itself.

        Raises:
            LocalModelError: The message names its log.
        """
        if self._process.poll() is not None:
            raise LocalModelError(f"The server of {self.alias} has ended while it worked: {self._why()}")

    def _address(self) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        late = threading.Timer(self._patience, self._process.kill)
        late.start()
        try:
            path = [entry or os.getcwd() for entry in sys.path]
            stdin.write(json.dumps({**self._settings, "path": path}) + "\n")
            stdin.flush()
            address = stdout.readline().strip()
        except BrokenPipeError:  # it has ended already
            address = ""
        finally:
            in_time = late.is_alive()
            late.cancel()
        if not address:
            self._process.wait()
            why = self._why() if in_time else f"it took more than {self._patience:g} s. Its log is {self.log}."
            raise LocalModelError(f"The server of {self.alias} did not start: {why}")
        return address

    def _why(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        log = f"Its log is {self.log}."
        if self._process.returncode in _NO_SUCH_INSTRUCTION:
            return (
                "this processor lacks instructions that the wheel of xllamacpp uses (AVX2 on x86-64). Use a machine "
                f"that has them, or give another server's LM by --model and --api-base. {log}"
            )
        if any("couldn't bind" in line for line in lines):
            return f"port {self._settings['port']} is taken. Choose another one, or 0 for any that is free."
        errors = [line.split(" E ", 1)[1].strip() for line in lines if " E " in line] or lines
        return f"exit code {self._process.returncode}; {errors[0] if errors else 'it wrote nothing'}. {log}"

    def _end(self, *, keep_log: bool) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # settings that it never read
        if not keep_log:
            self.log.unlink(missing_ok=True)
