"""The reader of published pickles: it reads what it knows, and runs nothing."""

import codecs
import io
import os
import pickle
import sys
import types
from typing import Any

import numpy as np
import pytest

from iapo_dspy.environments.recorded.published_pickles import _array, _Unpickler, read_published
from iapo_dspy.environments.recorded.recording import BestOfRecording, VotingRecording
from iapo_dspy.errors import ConfigurationError
from tests.support.recordings import best_of, voting


class Published:
    """Makes classes with the published names in a module of our own, as the authors' code would."""

    def __init__(self, monkeypatch, module="envs_of_the_authors"):
        home = types.ModuleType(module)
        for name in ("CategoricalMVEnv", "CategoricalBoNEnv", "CostContext", "Context", "SomethingElse"):
            setattr(home, name, type(name, (), {"__module__": module}))
        monkeypatch.setitem(sys.modules, module, home)
        self.home = home

    def make(self, name, **state):
        made = getattr(self.home, name)()
        made.__dict__.update(state)
        return made


def dump(tmp_path, value, protocol=4):
    path = tmp_path / "published.pkl"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_published_voting_environments_are_read(tmp_path, monkeypatch, protocol):
    published, whole = Published(monkeypatch), voting()
    environment = published.make(
        "CategoricalMVEnv",
        cat_probs=whole.probs[:, :7],
        cat_probs_te=whole.probs[:, 7:],
        answers=whole.answers[:7],
        answers_te=whole.answers[7:],
        cost_per_prompt=whole.cost,
        cost_coeffs={"low": 0.0, "mid": np.float64(0.2), "high": 1.0},
        N_max=32,
        rng=np.random.default_rng(0),
        _contexts=[published.make("CostContext", level="low", weights=(1.0, -0.2))],
    )
    found = read_published(dump(tmp_path, environment, protocol))
    assert isinstance(found, VotingRecording)
    np.testing.assert_allclose(found.probs, whole.probs)
    np.testing.assert_array_equal(found.answers, whole.answers)
    assert found.cost_weights.tolist() == [0.0, 0.2, 1.0]


def test_published_best_of_environments_are_read(tmp_path, monkeypatch):
    published, whole = Published(monkeypatch), best_of()
    environment = published.make(
        "CategoricalBoNEnv",
        outcome_vectors_train=whole.outcomes[:, :6],
        outcome_vectors_test=whole.outcomes[:, 6:],
        outcome_probs_train=whole.probs[:, :6],
        outcome_probs_test=whole.probs[:, 6:],
        cost_per_prompt=whole.cost,
        _contexts=[published.make("Context", weights=(a, b, -c)) for a, b, c in whole.weights.tolist()],
        rng=np.random.default_rng(0),
    )
    found = read_published(dump(tmp_path, environment))
    assert isinstance(found, BestOfRecording)
    np.testing.assert_allclose(found.exact(3).q(), whole.exact(3).q())


class Attack:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Attack(os.system, "touch {path}"),
        Attack(eval, "open({path!r}, 'w')"),
        Attack(exec, "open({path!r}, 'w')"),
        Attack(open, "{path}", "w"),
        Attack(getattr, "a", "upper"),
        Attack(codecs.encode, "text", "rot13"),
        Attack(np.load, "{path}"),
        Attack(np.save, "{path}", 1),
        Attack(np.fromfile, "{path}"),
        Attack(__import__, "os"),
        np.array([Attack(os.system, "touch {path}")], dtype=object),
        {"cat_probs": Attack(os.mkdir, "{path}")},
        io.BytesIO(b""),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickles_are_refused_and_nothing_runs(tmp_path, value, protocol):
    target = tmp_path / "owned"

    def aim(v):
        if isinstance(v, Attack):
            function, arguments = v.call
            return Attack(function, *(a.format(path=str(target)) if isinstance(a, str) else a for a in arguments))
        return v

    value = {k: aim(v) for k, v in value.items()} if isinstance(value, dict) else aim(value)
    if isinstance(value, np.ndarray):
        value = np.array([aim(v) for v in value], dtype=object)
    if protocol == 0 and isinstance(value, io.BytesIO):
        pytest.skip("cannot be pickled so")
    codecs.lookup("raw-unicode-escape")  # pickle itself reads the text of protocol 0 with it
    modules = set(sys.modules)
    with pytest.raises(ConfigurationError, match="Refused"):
        read_published(dump(tmp_path, value, protocol))
    assert not target.exists()
    assert set(sys.modules) == modules


def test_known_names_in_other_modules_are_refused(tmp_path, monkeypatch):
    # A class of a known name whose module would do harm when imported: nothing is imported.
    payload = b"\x80\x04\x8c\x10a_missing_module\x8c\x10CategoricalMVEnv\x93)\x81."
    path = tmp_path / "named.pkl"
    path.write_bytes(payload)
    with pytest.raises(ConfigurationError, match="not a published environment"):
        read_published(path)
    assert "a_missing_module" not in sys.modules


def test_other_pickles_are_refused(tmp_path, monkeypatch):
    published = Published(monkeypatch)
    for value in (published.make("SomethingElse"), published.make("CategoricalMVEnv", cat_probs=np.ones(3)), [1, 2]):
        with pytest.raises(ConfigurationError):
            read_published(dump(tmp_path, value))
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps([1, 2])[:-1])
    with pytest.raises(ConfigurationError, match="Refused"):
        read_published(tmp_path / "cut.pkl")
    with pytest.raises(ConfigurationError, match="no pickle"):
        read_published(tmp_path / "missing.pkl")


def evil_dtype(inner, offset):
    return Attack(np.dtype, "V8"), (3, "|", None, ("a",), {"a": (np.dtype(inner), offset)}, 8, 1, 0)


class Built(Attack):
    """An attack whose result is given a state."""

    def __init__(self, function, *arguments, state):
        self.call = (function, arguments, state)  # type: ignore[assignment]


def nested():
    value: list[Any] = [0.5] * 10
    for _ in range(8):
        value = [value] * 10
    return value


FROMBUFFER = np.arange(1).__reduce_ex__(5)[0]
V8 = {
    name: Built(np.dtype, "V8", False, True, state=evil_dtype(*inner)[1])
    for name, inner in {"object": ("O", 0), "offset": ("f8", 1 << 30)}.items()
}


@pytest.mark.parametrize(
    "probs",
    [
        Attack(FROMBUFFER, b"A" * 96, V8["object"], (2, 3, 2), "C"),
        Attack(FROMBUFFER, b"A" * 96, V8["offset"], (2, 3, 2), "C"),
        Attack(np.float64(0).__reduce__()[0], V8["object"], b"A" * 8),
        Attack(FROMBUFFER, b"A" * 8, np.dtype("f8"), (1 << 45, 3, 2), "C"),
        Attack(FROMBUFFER, b"A" * 8, np.dtype("f8"), (-1, -1, -1), "C"),
        Attack(np.ndarray, (1 << 45,), "f8"),
        np.array([[["a"]]]),
        np.ones((2, 3, 2)) * 1j,
        nested(),
    ],
)
def test_arrays_that_are_none_never_reach_numpy(tmp_path, monkeypatch, probs):
    whole = voting()
    environment = Published(monkeypatch).make(
        "CategoricalMVEnv",
        cat_probs=probs,
        cat_probs_te=probs,
        answers=whole.answers,
        answers_te=whole.answers,
        cost_per_prompt=whole.cost,
        cost_coeffs={"low": 0.0, "mid": 0.5, "high": 1.0},
    )
    with pytest.raises(ConfigurationError):
        read_published(dump(tmp_path, environment))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"abc.",
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"abc.",
        b"\x80\x04\x8e" + ((1 << 63) + 5).to_bytes(8, "little") + b"abc.",
        b"\x80\x04Nr" + (0x0FFFFFFF).to_bytes(4, "little") + b".",
        b"\x80\x04\x8c\x07_codecs\x8c\x06encode\x93N}\x8c\x0c__defaults__\x8c\x06latin1\x85s\x86b.",
        b"\x80\x04\x8c\x01e\x8c\x07Context\x93)\x81}\x8c\x13__array_interface__Nsb.",
        b"\x80\x04" + b"(" * 5 + b"]" * 300_000 + b"a" * 299_999 + b".",
        b"I" + b"9" * 5_000 + b"\n.",
        b"\x80\x04}))\x85Ns.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_broken_pickles_raise_our_error(tmp_path, content):
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(ConfigurationError):
        read_published(tmp_path / "bad.pkl")
    with pytest.raises(ConfigurationError):
        read_published(tmp_path)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["f8", ">f8", "f4", ">f4", "i1", "?", "u2", ">i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_round_trip(protocol, kind, order):
    array = np.array(np.arange(24).reshape(2, 3, 4), dtype=kind, order=order)
    found = _array(_Unpickler(pickle.dumps(array, protocol=protocol)).load())
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
