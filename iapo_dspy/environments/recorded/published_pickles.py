"""Reader for the pickled environments that the authors of the paper publish.

A pickle can run any code when it is loaded, and numpy's own unpickling can be made to crash. So no name of a pickle
leads to foreign code here: arrays and environments become inert stubs that only keep their arguments and their state,
numpy's random state is dropped, no module is imported, and any other name is refused. Once all is read, the stubs of
arrays are checked, and arrays are made of their bytes.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from iapo_dspy.environments.recorded.recording import BestOfRecording, Recording, VotingRecording
from iapo_dspy.errors import ConfigurationError, one_line

_LARGEST = 2 << 30  # bytes
_MOST_CONTEXTS = 10_000
_MOST_WEIGHTS = 1_000
_KINDS = frozenset({"b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"})


class _Stub:
    """Keeps the arguments and the state it is given, and does nothing with them."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(_Stub):
    pass


class _Array(_Stub):
    pass


class _Buffer(_Stub):
    pass


class _Scalar(_Stub):
    pass


class _Record(_Stub):
    """Stands in for an object of a known class: its attributes, none of its code."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict or any(type(key) is not str or key.startswith("__") for key in state):
            raise pickle.UnpicklingError("the state of an environment is not a dictionary of plain attributes")
        self.state = state


class _Voting(_Record):
    pass


class _BestOf(_Record):
    pass


class _Context(_Record):
    pass


def _ndarray(*_: Any) -> Any:
    """Stand in for a class that pickled arrays name and never make."""
    raise pickle.UnpicklingError("it makes an ndarray other than numpy's pickles do")


def _latin1(text: Any, encoding: Any) -> Any:
    """Return bytes as protocols before 3 hold them."""
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError("it encodes something other than the bytes of an array")
    return text.encode("latin1")


_CLASSES: dict[str, type[_Record]] = {
    "CategoricalMVEnv": _Voting,
    "CategoricalBoNEnv": _BestOf,
    "CostContext": _Context,
    "Context": _Context,
}
_NUMPY = {"ndarray": _ndarray, "dtype": _Dtype}
_NUMPY_CORE: dict[str, type[_Stub]] = {"_reconstruct": _Array, "_frombuffer": _Buffer, "scalar": _Scalar}
_CORE = {f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")}


# The pure Python unpickler: its memo is a dictionary, so that an index in the file allocates nothing.
# typeshed leaves out methods that subclasses may use, hence `_Base` is `Any` to the type checker.
_Base: Any = pickle._Unpickler


class _Unpickler(_Base):  # type: ignore[misc]
    dispatch: ClassVar[dict[int, Any]] = dict(_Base.dispatch)

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")  # latin1: how numpy arrays of old pickles are read

    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if module in _CORE and name in _NUMPY_CORE:
            return _NUMPY_CORE[name]
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if module.startswith("numpy.random."):
            return _Stub
        if name in _CLASSES and not module.startswith(("numpy", "builtins")):
            return _CLASSES[name]
        raise pickle.UnpicklingError(
            f"it names {module[:80]}.{name[:80]}, which is neither an array nor a known environment"
        )

    def _build(self) -> None:
        if not isinstance(self.stack[-2], _Stub):
            raise pickle.UnpicklingError(f"it sets the state of a {type(self.stack[-2]).__name__}")
        _Base.load_build(self)

    def _setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        _Base.load_setitem(self)

    def _setitems(self) -> None:
        _check_keys(self.stack[::2])
        _Base.load_setitems(self)

    def _dict(self) -> None:
        _check_keys(self.stack[::2])
        _Base.load_dict(self)

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it uses sets, extensions or buffers, which no published environment needs")

    def _bytearray(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        content = self.read(size) if size <= _LARGEST else b""  # unlike the original, allocates no more than is there
        if len(content) != size:
            raise pickle.UnpicklingError("it ends inside an array")
        self.append(content)

    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.SETITEM[0]] = _setitem
    dispatch[pickle.SETITEMS[0]] = _setitems
    dispatch[pickle.DICT[0]] = _dict
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray
    for _code in (
        *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.ADDITEMS, pickle.FROZENSET),
        *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.PERSID, pickle.BINPERSID),
    ):
        dispatch[_code[0]] = _refuse


def _check_keys(keys: list[Any]) -> None:
    for key in keys:  # hashing nested tuples that share their parts can take forever
        if type(key) not in (str, int, float, bool, bytes, type(None)):
            raise pickle.UnpicklingError(f"a dictionary has a {type(key).__name__} as a key")


def read_published(path: str | Path) -> Recording:
    """Read one of the authors' pickled environments; its training and test queries are put together.

    Args:
        path: The pickle.

    Returns:
        A `VotingRecording` (`CategoricalMVEnv`) or a `BestOfRecording` (`CategoricalBoNEnv`).

    Raises:
        ConfigurationError: The file is not a pickle, has a name that is not allowed, or lacks an array.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(f"There is no pickle at {path}.")
    try:
        if path.stat().st_size > _LARGEST:
            raise pickle.UnpicklingError(f"it is larger than {_LARGEST} bytes")
        found = _Unpickler(path.read_bytes()).load()
    except Exception as error:  # a broken pickle can raise anything
        raise ConfigurationError(f"Refused to read {path.name}: {one_line(error)}.") from error
    try:
        return _recording(found)
    except (AttributeError, TypeError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise ConfigurationError(f"{path.name} is not a published environment: {one_line(error)}") from error


def _recording(found: Any) -> Recording:
    if not isinstance(found, _Voting | _BestOf) or type(found.state) is not dict:
        raise TypeError(f"it holds a {type(found).__name__}, which is not an environment with attributes")
    data = found.state
    if isinstance(found, _Voting):
        coefficients = data["cost_coeffs"]
        return VotingRecording(
            probs=np.concatenate([_array(data["cat_probs"]), _array(data["cat_probs_te"])], axis=1),
            answers=np.concatenate([_array(data["answers"]), _array(data["answers_te"])]),
            cost=_array(data["cost_per_prompt"]),
            cost_weights=np.array([_number(coefficients[level]) for level in ("low", "mid", "high")]),
        )
    contexts = data["_contexts"]
    if type(contexts) not in (list, tuple) or len(contexts) > _MOST_CONTEXTS:
        raise TypeError(f"_contexts is not a list of at most {_MOST_CONTEXTS} contexts")
    weights = np.array([_weights(context) for context in contexts])
    weights[:, -1] = np.abs(weights[:, -1])  # there the cost's weight is <= 0 and added, here >= 0 and subtracted
    return BestOfRecording(
        outcomes=np.concatenate([_array(data["outcome_vectors_train"]), _array(data["outcome_vectors_test"])], axis=1),
        probs=np.concatenate([_array(data["outcome_probs_train"]), _array(data["outcome_probs_test"])], axis=1),
        cost=_array(data["cost_per_prompt"]),
        weights=weights,
    )


def _weights(context: Any) -> list[float]:
    if not isinstance(context, _Context) or type(context.state) is not dict:
        raise TypeError("_contexts holds something other than contexts")
    weights = context.state["weights"]
    if isinstance(weights, (_Array, _Buffer)):
        weights = _array(weights).reshape(-1).tolist()
    if type(weights) not in (list, tuple) or len(weights) > _MOST_WEIGHTS:
        raise TypeError(f"the weights of a context are not a list of at most {_MOST_WEIGHTS} numbers")
    return [_number(weight) for weight in weights]


def _number(value: Any) -> float:
    if isinstance(value, _Scalar):
        dtype, content = value.arguments
        return float(_made((), dtype, content, fortran=False))
    if type(value) not in (int, float, bool):
        raise TypeError(f"it has a {type(value).__name__} where a number belongs")
    return float(value)


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, _Array):
        _version, shape, dtype, fortran, content = value.state
        return _made(shape, dtype, content, fortran=fortran is True or fortran == 1)
    if isinstance(value, _Buffer):
        content, dtype, shape, order = value.arguments[:4]
        return _made(shape, dtype, content, fortran=order == "F")
    if type(value) in (list, tuple):
        return np.array([_number(v) for v in value])
    raise TypeError(f"it has a {type(value).__name__} where an array belongs")


def _made(shape: Any, dtype: Any, content: Any, *, fortran: bool) -> NDArray[Any]:
    kind = _kind(dtype)
    if type(shape) is not tuple or len(shape) > 8 or any(type(axis) is not int or axis < 0 for axis in shape):
        raise TypeError("the shape of an array is not a tuple of whole numbers >= 0")
    if type(content) not in (bytes, bytearray) or math.prod(shape) * kind.itemsize != len(content):
        raise TypeError(f"the content of an array is not that of {kind.str} with its shape")
    made: NDArray[Any] = np.frombuffer(content, dtype=kind).reshape(shape, order="F" if fortran else "C")
    return np.array(made, order="K")  # a copy, which can be written to


def _kind(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype) or not dtype.arguments or type(dtype.arguments[0]) is not str:
        raise TypeError("an array has no plain dtype")
    name, state = dtype.arguments[0], dtype.state
    if name not in _KINDS:
        raise TypeError(f"an array is of dtype {name[:20]!r}; known are {', '.join(sorted(_KINDS))}")
    if state is None:
        return np.dtype(name)
    # (version, byte order, subarray, names, fields, size, alignment, flags): only simple types have these.
    if type(state) is not tuple or len(state) != 8 or type(state[1]) is not str or state[1] not in ("<", ">", "=", "|"):
        raise TypeError("the dtype of an array has an unknown state")
    if any(part is not None for part in state[2:5]) or any(type(p) is not int for p in state[5:]) or state[7] != 0:
        raise TypeError("the dtype of an array has fields or flags")
    return np.dtype(state[1] + name)
