"""Values that differ in their content have different digests, equal ones the same."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from iapo_dspy.sampling.ledger.digests import digest, labels_digest, query_id


class Private:
    def __init__(self, value: Any) -> None:
        self._value = value


class Slots:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Column:
    """Answers as a column of pandas does."""

    def __init__(self, value: Any) -> None:
        self._values = [value]
        self.index = Labels()

    @property
    def iloc(self) -> list[Any]:
        return self._values

    def tolist(self) -> list[Any]:
        return self._values


class Labels:
    def tolist(self) -> list[Any]:
        return [0]


class Table(Column):
    """Answers as a table of pandas does."""

    columns = ("a",)

    def to_dict(self, orient: str) -> dict[str, Any]:
        assert orient == "split"
        return {"index": [0], "columns": ["a"], "data": [self._values]}


@pytest.mark.parametrize(
    "make",
    [
        lambda value: dspy.Example(a=value),
        lambda value: [dspy.Prediction(answer=value)],
        Private,
        Slots,
        lambda value: Private(Slots(value)),
        Column,
        Table,
    ],
)
def test_the_digest_is_that_of_the_content(make: Any) -> None:
    assert digest(make(1)) == digest(make(1)) != digest(make(2))
    one, other = (dspy.Example(x=make(value), y=make(value)).with_inputs("x") for value in (1, 2))
    assert query_id(one) != query_id(other) and labels_digest(one) != labels_digest(other)
