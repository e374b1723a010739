"""Files of recordings keep everything, and unusable ones are refused."""

import errno
import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from iapo_dspy.environments.recorded.files import load, save
from iapo_dspy.environments.recorded.recording import BestOfRecording
from iapo_dspy.errors import ConfigurationError, StorageError
from tests.support.recordings import best_of, everywhere, voting

RNG = np.random.default_rng(0)
PARTS = np.array([[0, 1], [0, 2], [3, 1]])  # of three prompts
pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
@pytest.mark.parametrize(
    "recording", [voting(), voting(0.7, credit=RNG.random((10, 4))), best_of(0.9, parts=PARTS), voting(parts=PARTS)]
)
def test_files_keep_everything(tmp_path, suffix, recording):
    path = tmp_path / f"recording.{suffix}"
    save(recording, path)
    found = load(path)
    assert type(found) is type(recording)
    np.testing.assert_array_equal(found.probs, recording.probs)
    np.testing.assert_array_equal(found.exact(4).q(), recording.exact(4).q())
    np.testing.assert_array_equal(found.parts, recording.parts)  # None stays None
    pulls = everywhere(recording, 2)
    np.testing.assert_array_equal(found.environment(3).pull(pulls).score, recording.environment(3).pull(pulls).score)


def test_bare_arrays_in_float32_are_a_recording(tmp_path):
    recording = voting()
    path = tmp_path / "bare.npz"
    np.savez(
        path,
        probs=recording.probs.astype(np.float32),
        answers=recording.answers.astype(np.int8),
        cost=recording.cost,
        cost_weights=recording.cost_weights,
    )
    np.testing.assert_allclose(load(path).probs, recording.probs, atol=1e-6)
    np.testing.assert_allclose(load(path).probs.sum(axis=2), 1.0, atol=1e-12)


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no recording at"):
        load(tmp_path / "missing.npz")
    with pytest.raises(ConfigurationError, match="Cannot write"):
        save(voting(), tmp_path / "x.csv")
    for name in ("text.npz", "text.parquet"):
        (tmp_path / name).write_text("no archive")
        with pytest.raises(ConfigurationError, match="is not a recording"):
            load(tmp_path / name)
    np.savez(tmp_path / "later.npz", kind="vote", version=3)
    with pytest.raises(ConfigurationError, match="version 3"):
        load(tmp_path / "later.npz")
    np.savez(tmp_path / "half.npz", probs=np.ones((1, 1, 1)))
    with pytest.raises(ConfigurationError, match="lacks the arrays"):
        load(tmp_path / "half.npz")
    np.savez(tmp_path / "objects.npz", probs=np.array([{}], dtype=object))
    with pytest.raises(ConfigurationError, match="is not a recording"):
        load(tmp_path / "objects.npz")


def test_parquet_rows_are_placed_by_their_cells(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path, recording = tmp_path / "r.parquet", best_of()
    save(recording, path)
    table = parquet.read_table(path)
    parquet.write_table(table.take(np.random.default_rng(0).permutation(30)), path)
    np.testing.assert_array_equal(load(path).probs, recording.probs)
    loaded = load(path)
    assert isinstance(loaded, BestOfRecording)
    np.testing.assert_array_equal(loaded.outcomes, recording.outcomes)
    wrong = table.set_column(0, "prompt", [np.full(30, 7)])
    for bad in (table.slice(1), table.take([0, *range(29)]), table.drop(["query"]), table.drop(["probs"]), wrong):
        parquet.write_table(bad, path)
        with pytest.raises(ConfigurationError, match=r"r\.parquet"):
            load(path)
    for about in (b"hello", b"{}", b"[]"):
        parquet.write_table(table.replace_schema_metadata({b"iapo_dspy.recording": about}), path)
        with pytest.raises(ConfigurationError, match=r"r\.parquet"):
            load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"probs": np.full((3, 10, 4), 0.1 + 3j)},
        {"probs": np.full((3, 10, 4), "a")},
        {"answers": np.full(10, 0.9)},
        {"answers": np.full(10, np.nan)},
        {"cost": np.array(0.1)},
        {"cost_weights": np.array(0.1)},
        {"version": np.array([1, 1])},
        {"kind": np.array("other")},
        {"credits": np.ones((10, 4))},
    ],
)
def test_bad_arrays_in_files_are_refused(tmp_path, changes):
    good = {name: getattr(voting(), name) for name in ("probs", "answers", "cost", "cost_weights")}
    np.savez(tmp_path / "bad.npz", **(good | changes))
    with pytest.raises(ConfigurationError, match=r"bad\.npz"):
        load(tmp_path / "bad.npz")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "bad.npz"
    save(voting(), path)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:60] + bytes(140) + whole[200:]):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"bad\.npz"):
            load(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ConfigurationError, match=r"bad\.npz"):
        load(path)
    with pytest.raises(ConfigurationError):
        load(tmp_path)


def bomb(path, **arrays):
    """Write a small file whose arrays are large."""
    if path.suffix == ".npz":
        np.savez_compressed(path, kind=np.array("vote"), **arrays)
        return
    zeros = pa.array(np.zeros(arrays["probs"].size))
    n = len(zeros)
    parquet.write_table(pa.table({"prompt": np.zeros(n, int), "query": np.zeros(n, int), "probs": zeros}), path)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_small_file_that_unpacks_to_a_huge_one_is_refused_before_it_is_unpacked(tmp_path, suffix):
    path = tmp_path / f"bomb.{suffix}"
    bomb(path, probs=np.zeros((100, 100, 500)))
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(ConfigurationError, match=r"bomb\.\w+ would take [\d,]+ bytes.*load\(path, largest=\d+\)"):
        load(path, largest=30_000_000)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000  # its arrays take 40 MB
    tracemalloc.stop()
    with pytest.raises(ConfigurationError, match=r"lacks the arrays|its schema lacks"):
        load(path)


def test_headers_of_arrays_that_lie_are_refused(tmp_path):
    path = tmp_path / "lie.npz"
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("probs.npy", buffer.getvalue())
    with pytest.raises(ConfigurationError, match=r"lie\.npz is not a recording.*probs\.npy has \d+ bytes"):
        load(path)


def test_texts_in_parquet_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "text.parquet"
    parquet.write_table(pa.table({"prompt": ["x" * 1000] * 1000}), path)
    with pytest.raises(ConfigurationError, match=r"columns \['prompt'\] are not numbers"):
        load(path)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"recording.{suffix}"
    save(voting(), path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    monkeypatch.setattr(parquet, "write_table", full)
    with pytest.raises(StorageError, match=r"recording\.\w+ cannot be written: No space left on device.*Make room"):
        save(voting(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    with pytest.raises(StorageError, match="Make its directory first"):
        save(voting(), tmp_path / "none" / path.name)
