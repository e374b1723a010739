"""The process that serves, with a stand-in for xllamacpp in it: its answers, its failures, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iapo_dspy.demo.local.llama_server import LlamaServer
from iapo_dspy.errors import LocalModelError

STAND_IN = """
import json, os, signal, sys, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer


class CommonParams:
    def __init__(self):
        self.model, self.cpuparams, self.cpuparams_batch = (type("Part", (), {})() for _ in range(3))


class Server:
    def __init__(self, params):
        (alias,) = params.model_alias
        print("printed where nobody should take it for the address")
        if alias == "old-cpu":
            os.kill(os.getpid(), signal.SIGILL)
        if alias == "taken":
            print("0.006 E srv start: couldn't bind HTTP server socket", file=sys.stderr, flush=True)
            raise RuntimeError("Failed to init server")
        if alias == "broken":
            print("0.005 I srv some line", file=sys.stderr)
            print("0.006 E srv load_model: failed to load model", file=sys.stderr, flush=True)
            raise RuntimeError("Failed to init server")
        if alias == "slow":
            time.sleep(600)
        seen = {name: value for name, value in vars(params).items() if isinstance(value, (int, str, list))}
        seen |= {"path": params.model.path, "threads": [params.cpuparams.n_threads, params.cpuparams_batch.n_threads]}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path == "/die":
                    os._exit(3)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(seen).encode())

            def log_message(self, *arguments):
                pass

        server = HTTPServer(("127.0.0.1", params.port), Handler)
        self.listening_address = "http://127.0.0.1:%d" % server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
"""
HOLDER = """
import sys, time
from pathlib import Path
from iapo_dspy.demo.local.llama_server import LlamaServer

sys.path.insert(0, sys.argv[1])
with LlamaServer(Path(sys.argv[2])) as server:
    print(server.pid, server.api_base, server.log, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "xllamacpp.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a model.gguf"
    path.write_bytes(b"GGUF")
    return path


def asked(server: LlamaServer, path: str = "/") -> dict[str, Any]:
    with urllib.request.urlopen(server.api_base.removesuffix("/v1") + path, timeout=10) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"  # ended, and nobody has asked how


def test_the_server_gets_its_settings_and_ends_with_the_block(model: Path) -> None:
    server = LlamaServer(model, alias="mine", slots=3, context=100, threads=2, chat_template="{{ x }}", cache_mib=7)
    with server:
        assert asked(server) == {
            "path": str(model),
            "hostnames": ["127.0.0.1"],
            "port": 0,
            "n_parallel": 3,
            "n_ctx": 300,
            "kv_unified": False,
            "cache_ram_mib": 7,
            "use_jinja": True,
            "ui": False,
            "cors_origins": "127.0.0.1",
            "chat_template": "{{ x }}",
            "threads": [2, 2],
        }
        lm = server.lm(max_tokens=5)
        assert lm.model == "openai/mine" and lm.kwargs["api_base"] == server.api_base
        assert lm.kwargs["extra_body"] == {"top_k": 40, "min_p": 0.0} and lm.kwargs["max_tokens"] == 5
        server.check()
    assert gone(server.pid) and not server.log.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_it_ends_with_a_block_that_is_broken_off(error: type[BaseException], model: Path) -> None:
    server = LlamaServer(model)
    with pytest.raises(error), server:
        raise error
    assert gone(server.pid)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_process_that_started_it(sent: signal.Signals, model: Path, package: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(package), str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert holder.stdout is not None
    pid, api_base, log = holder.stdout.readline().split()
    try:
        assert not gone(int(pid)) and api_base.startswith("http://127.0.0.1:")
        holder.send_signal(sent)
        holder.wait(120)
        assert within(60, lambda: gone(int(pid)))
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        Path(log).unlink(missing_ok=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_ctrl_c_in_the_terminal_does_not_reach_it(model: Path) -> None:
    with LlamaServer(model) as server:
        assert os.getpgid(server.pid) != os.getpgid(0)
        os.kill(server.pid, signal.SIGINT)
        assert asked(server)["path"] == str(model)


@pytest.mark.parametrize(
    ("alias", "says"),
    [
        ("old-cpu", r"this processor lacks instructions .*AVX2"),
        ("taken", r"port 8123 is taken\. Choose another one"),
        ("broken", r"exit code 1; srv load_model: failed to load model\. Its log is "),
    ],
)
def test_a_server_that_does_not_start_says_why(alias: str, says: str, model: Path) -> None:
    server = LlamaServer(model, alias=alias, port=8123)
    with pytest.raises(LocalModelError, match=rf"The server of {alias} did not start: {says}") as refused, server:
        pass
    assert "\n" not in str(refused.value) and server.log.exists()
    server.log.unlink()


def test_a_server_that_takes_too_long_is_ended(model: Path) -> None:
    server = LlamaServer(model, alias="slow", patience=1.0)
    with pytest.raises(LocalModelError, match=r"it took more than 1 s\. Its log is"), server:
        pass
    assert gone(server.pid)
    server.log.unlink()


def test_a_server_that_dies_at_work_is_noticed_and_its_log_kept(model: Path) -> None:
    server = LlamaServer(model)
    with server:
        with pytest.raises(OSError):
            asked(server, "/die")
        assert within(60, lambda: server._process.poll() is not None)
        with pytest.raises(LocalModelError, match=r"smollm2 has ended while it worked: exit code 3; .*Its log is"):
            server.check()
    assert server.log.exists()
    server.log.unlink()


def test_a_missing_file_and_a_missing_package_are_named(
    tmp_path: Path, package: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LocalModelError, match=r"There is no model file .*nowhere\.gguf"):
        LlamaServer(tmp_path / "nowhere.gguf").__enter__()
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(LocalModelError, match=r'needs xllamacpp: python -m pip install "iapo_dspy\[local\]"'):
        LlamaServer(model).__enter__()


SERVE = Path(__file__).parents[4] / "examples" / "local_model" / "serve.py"


def serve(package: Path, *arguments: str) -> subprocess.Popen[str]:
    path = [str(package), *(p for p in sys.path if p)]
    return subprocess.Popen(
        [sys.executable, str(SERVE), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_the_example_serves_until_ctrl_c(model: Path, package: Path) -> None:
    with serve(package, str(model), "--alias", "mine") as running:
        assert running.stdout is not None
        lines = [running.stdout.readline() for _ in range(5)]
        running.send_signal(signal.SIGINT)
        rest, errors = running.communicate(timeout=120)
    assert lines[0].startswith("mine is served at http://127.0.0.1:") and rest == "\nstopped\n"
    assert (running.returncode, errors) == (0, "")
    told: dict[str, Any] = {}
    exec("".join(line.strip() + "\n" for line in lines[2:4]), told)  # what it says is what one pastes
    assert told["lm"].model == "openai/mine" and told["lm"].kwargs["extra_body"]["top_k"] == 40


def test_the_example_says_in_one_line_why_it_cannot_serve(model: Path, package: Path) -> None:
    with serve(package, str(model), "--alias", "taken", "--port", "8123") as running:
        shown, errors = running.communicate(timeout=120)
    assert (running.returncode, shown) == (2, "")
    assert errors.startswith("Error: The server of taken did not start: port 8123 is taken. Choose another one")
    assert errors.count("\n") == 1


def test_the_template_for_base_models_renders_turns_as_plain_text() -> None:
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Template(SERVE.with_name("plain_turns.jinja").read_text(encoding="utf-8"))
    turns = [("system", "Add."), ("user", "1 + 1"), ("assistant", "2"), ("user", "2 + 3")]
    messages = [{"role": role, "content": content} for role, content in turns]
    rendered = template.render(messages=messages, add_generation_prompt=True)
    assert rendered == "Add.\n\nInput: 1 + 1\nOutput: 2\n\nInput: 2 + 3\nOutput:"
