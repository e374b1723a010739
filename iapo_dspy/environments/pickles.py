"""Reader for the pickled environments that the authors of the paper publish.

A pickle can run any code when it is loaded. This reader lets one build numpy arrays and name the published environment
classes, and nothing else: the classes become inert records of their attributes, numpy's random state is skipped without
being rebuilt, no module is imported, and any other name is refused before anything is made of it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from iapo_dspy.environments.recorded import BestOfRecording, Recording, VotingRecording
from iapo_dspy.errors import ConfigurationError

__all__ = ["read_published"]


class _Record:
    """Stands in for an object of a known class: its attributes, none of its code."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"{type(self).__name__}: unexpected state {type(state).__name__}")
        self.__dict__.update(state)


class _Voting(_Record):
    pass


class _BestOf(_Record):
    pass


class _Context(_Record):
    pass


class _Skipped:
    """Swallows what numpy's random generators were made of."""

    def __new__(cls, *_: Any) -> _Skipped:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        del state


_CLASSES: dict[str, type[_Record]] = {
    "CategoricalMVEnv": _Voting,
    "CategoricalBoNEnv": _BestOf,
    "CostContext": _Context,
    "Context": _Context,
}
# The functions that pickled arrays name, taken from arrays rather than from numpy's private modules.
_ARRAYS: dict[str, Any] = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.empty(0).__reduce__()[0],
    "_frombuffer": np.arange(1).__reduce_ex__(5)[0],
    "scalar": np.float64(0).__reduce__()[0],
}
_ARRAY_MODULES = {
    "numpy",
    "numpy.core.multiarray",
    "numpy.core.numeric",
    "numpy._core.multiarray",
    "numpy._core.numeric",
}


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _ARRAY_MODULES and name in _ARRAYS:
            return _ARRAYS[name]
        if (module, name) == ("_codecs", "encode"):  # how protocols before 3 hold the bytes of arrays
            return _latin1
        if module.startswith("numpy.random."):
            return _Skipped
        if name in _CLASSES and not module.startswith(("numpy", "builtins")):
            return _CLASSES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither an array nor a known environment")


def read_published(path: str | Path) -> Recording:
    """Read one of the authors' pickled environments; its training and test queries are put together.

    Args:
        path: The pickle.

    Returns:
        A `VotingRecording` (`CategoricalMVEnv`) or a `BestOfRecording` (`CategoricalBoNEnv`).

    Raises:
        ConfigurationError: The file is no pickle, names anything that is not allowed, or lacks an array.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            found = _load(file)
    except FileNotFoundError as error:
        raise ConfigurationError(f"There is no pickle at {path}.") from error
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
        raise ConfigurationError(f"Refused to read {path.name}: {error}.") from error
    try:
        return _recording(found)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path.name} is no published environment: {error}") from error


def _load(file: BinaryIO) -> Any:
    return _Unpickler(file, encoding="latin1").load()  # latin1: how numpy arrays of old pickles are read


def _recording(found: Any) -> Recording:
    if isinstance(found, _Voting):
        data: Any = found
        coefficients = data.cost_coeffs
        return VotingRecording(
            probs=np.concatenate([data.cat_probs, data.cat_probs_te], axis=1),
            answers=np.concatenate([data.answers, data.answers_te]),
            cost=data.cost_per_prompt,
            cost_weights=np.array([float(coefficients[level]) for level in ("low", "mid", "high")]),
        )
    if isinstance(found, _BestOf):
        data = found
        weights = np.array([[float(w) for w in context.weights] for context in data._contexts])
        weights[:, -1] = np.abs(weights[:, -1])  # there the cost's weight is <= 0 and added, here >= 0 and subtracted
        return BestOfRecording(
            outcomes=np.concatenate([data.outcome_vectors_train, data.outcome_vectors_test], axis=1),
            probs=np.concatenate([data.outcome_probs_train, data.outcome_probs_test], axis=1),
            cost=data.cost_per_prompt,
            weights=weights,
        )
    raise TypeError(f"it holds a {type(found).__name__}")
