"""Records stay in the file and are found by columns; a line that no run writes is refused by name before it is used."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.errors import LedgerError
from iapo_dspy.sampling.ledger import reading
from iapo_dspy.sampling.ledger.ledger import Ledger
from iapo_dspy.sampling.ledger.reading import contents_of, read_ledger
from iapo_dspy.sampling.ledger.records import (
    BatchRecord,
    CallRecord,
    CompletionRecord,
    Record,
    RunRecord,
    ScoreRecord,
    SpentRecord,
    encode_record,
)
from iapo_dspy.sampling.spending.budget import Spent
from iapo_dspy.sampling.spending.usage import Usage

NAMES = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2))


def completion(name: tuple[int, int, int] = (0, 0, 0), **changes: Any) -> CompletionRecord:
    base: dict[str, Any] = {"text": "t", "fields": {"answer": "a"}, "usage": Usage(usd=0.5)}
    return CompletionRecord(prompt=f"p{name[0]}", query=f"q{name[1]}", draw=name[2], first=0, **{**base, **changes})


def one_of_each_kind() -> list[Record]:
    return [
        completion(inner={"inputs": {"question": "q"}, "fields": None}, seed=3),
        CallRecord(query="q", call="c", repeat=0, output="o", text="o"),
        ScoreRecord(key="0/0/0", scorer="s", answer="a", scores=[1.0]),
        SpentRecord(spent=Spent(requests=2, usd=0.5), reserved=Spent(usd=1.0)),
        BatchRecord(tag="t", state="intended", lines=[{"id": "0"}]),
    ]


@given(drawn=st.lists(st.tuples(NAMES, st.integers(0, 9)), max_size=20))
def test_the_last_completion_of_a_name_is_found(
    drawn: list[tuple[tuple[int, int, int], int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with Ledger.open(folder, fingerprint="f") as ledger:
        for name, text in drawn:
            ledger.extend([completion(name, text=str(text)), ScoreRecord(key=completion(name).key, answer=str(text))])
    texts = {name: str(text) for name, text in drawn}
    with Ledger.open(folder, fingerprint="f") as ledger:
        for cell in [(p, x) for p in range(4) for x in range(4)]:
            mine = {name[2]: text for name, text in texts.items() if name[:2] == cell}
            named = (f"p{cell[0]}", f"q{cell[1]}")
            assert list(ledger.stored.get(named, ())) == sorted(mine)
            for asked in ((0, 1, 2), (1,), ()):
                found = {draw: r.text for draw, r in ledger.completions(named, asked).items()}
                assert found == {draw: text for draw, text in mine.items() if draw in asked}
        for name, answer in texts.items():
            found_score = ledger.score(completion(name).key, "")
            assert found_score is not None and found_score.answer == answer
    assert len(read_ledger(folder)[1]) == 2 + 2 * len(drawn)  # behind the run and what it has spent


def test_records_of_all_kinds_come_back_in_the_order_of_writing(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.extend(one_of_each_kind())
    _, records = read_ledger(tmp_path)
    begun = [RunRecord(fingerprint="f", settings={}), SpentRecord()]
    assert list(records) == begun + one_of_each_kind() and records[-1] == one_of_each_kind()[-1]
    assert list(records[3:5]) == one_of_each_kind()[1:3]
    assert list(reversed(records)) == one_of_each_kind()[::-1] + begun[::-1]


def test_opening_takes_tens_of_bytes_a_record_however_long_its_text_is(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        for i in range(300):
            ledger.append(completion((0, i, 0), text="t" * 20_000))
    tracemalloc.start()
    contents = contents_of(tmp_path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(contents.completions) == 300 and held < 100_000  # the file has 6 MB


WRONG: dict[tuple[str, ...], list[object]] = {
    ("completion.prompt", "completion.query", "run.fingerprint"): [3, None, []],
    ("completion.draw", "completion.first"): [
        "0",
        None,
        True,
        -1,
        10**30,
        [],
    ],
    ("completion.usd", "completion.latency_s", "completion.shared_tokens"): ["1", -1, 1e300],
    ("completion.text", "completion.failure", "completion.seed", "completion.error"): [[], {}, 1.5],
    ("completion.fields", "completion.inner"): ["text", [1], 3],
    ("completion.inner",): [{"inputs": []}, {"inputs": {}}, {"inputs": {}, "fields": 1}],
    ("score.key", "score.answer", "score.scores"): [3, {}],
    ("score.scores",): [["1"], [None]],
    ("spent.requests", "spent.usd", "spent.finished", "spent.reserved_usd"): ["1", -1, {}],
    ("call.repeat", "batch.lines", "batch.tag", "batch.version"): ["1.", None, {}],
}
FIELDS = [(name, value) for names, values in WRONG.items() for name in names for value in values]


@pytest.mark.parametrize(("field", "value"), [f for f in FIELDS if f != ("batch.tag", "1.")])
def test_a_field_of_a_wrong_type_is_named_with_its_line(tmp_path: Path, field: str, value: object) -> None:
    kind, name = field.split(".")
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.extend(one_of_each_kind())
    path = tmp_path / "ledger.jsonl"
    raw = path.read_text().splitlines()
    number = next(i for i, line in enumerate(raw) if f'"kind":"{kind}"' in line)
    raw[number] = json.dumps({**json.loads(raw[number]), name: value})
    path.write_text("\n".join(raw) + "\n")
    before = path.read_bytes()
    wanted = rf"ledger\.jsonl is damaged at line {number + 1} \(byte \d+\).*{kind}\.{name}.*Repair that line"
    with pytest.raises(LedgerError, match=wanted):
        read_ledger(tmp_path)
    with pytest.raises(LedgerError, match=wanted):
        Ledger.open(tmp_path, fingerprint="f")
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", [{}, {"kind": []}, {"kind": None, "more": True}])
def test_a_line_of_no_kind_is_refused(tmp_path: Path, line: dict[str, object]) -> None:
    Ledger.open(tmp_path, fingerprint="f").close()
    path = tmp_path / "ledger.jsonl"
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    with pytest.raises(LedgerError, match=r"line 4 .*kind: it must be text"):
        read_ledger(tmp_path)


@pytest.mark.parametrize("kind", ["completion", "score", "call", "batch"])
def test_a_missing_field_is_named(tmp_path: Path, kind: str) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.append(completion())
    path = tmp_path / "ledger.jsonl"
    path.write_text(path.read_text() + json.dumps({"kind": kind}) + "\n")
    with pytest.raises(LedgerError, match=rf"line 5 .*{kind}\.\w+: Field required"):
        read_ledger(tmp_path)


def test_nesting_without_end_and_lines_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.append(completion())
    path = tmp_path / "ledger.jsonl"
    sound = path.read_text()
    for depth in (400, 100_000):
        deep = json.dumps(encode_record(completion((1, 0, 0)))).replace(
            '"answer": "a"', f'"answer": {"[" * depth}{"]" * depth}'
        )
        path.write_text(sound + deep + "\n")
        with pytest.raises(LedgerError, match="line 5"):
            read_ledger(tmp_path)
    monkeypatch.setattr(reading, "_LONGEST", 4096)
    path.write_text(sound + '{"kind":"' + "x" * 10_000 + '"}\n')
    with pytest.raises(LedgerError, match="line 5"):
        read_ledger(tmp_path)


def test_text_that_the_fast_parser_refuses_is_read(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.append(completion(fields={"answer": "half"}))
    path = tmp_path / "ledger.jsonl"
    path.write_text(path.read_text().replace('"half"', '"\\ud83d"'))  # half a surrogate pair
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        assert ledger.completions(("p0", "q0"), [0])[0].fields == {"answer": "\ud83d"}


def test_lines_that_are_there_twice_count_once(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.extend(one_of_each_kind())
    path = tmp_path / "ledger.jsonl"
    lines = path.read_text().splitlines(True)
    path.write_text(lines[0] + "".join(line * 3 for line in lines[1:]) + lines[0])
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        assert ledger.stored == {("p0", "q0"): [0]}
        assert ledger.completions(("p0", "q0"), [0]) == {0: one_of_each_kind()[0]}
        assert ledger.spent == one_of_each_kind()[3] and len(ledger.batches) == 1


def test_a_foreign_file_is_never_cut(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for text in ("my notes", "my notes\n", "[1, 2]\n", '{"a": 1}\n', "\x00" * 50):
        path.write_text(text)
        with pytest.raises(LedgerError, match="not a ledger of this package"):
            Ledger.open(tmp_path, fingerprint="f")
        assert path.read_text() == text


@pytest.mark.parametrize("change", [{"settings": [1]}, {"fingerprint": 3}, {"settings": "x"}])
def test_a_damaged_run_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    Ledger.open(tmp_path, fingerprint="f", settings={"seed": 0}).close()
    path = tmp_path / "ledger.jsonl"
    header, run, spent = path.read_text().splitlines()
    path.write_text("\n".join([header, json.dumps({**json.loads(run), **change}), spent, ""]))
    with pytest.raises(LedgerError, match="line 2"):
        read_ledger(tmp_path)


def test_records_that_have_gone_are_named(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, fingerprint="f") as ledger:
        ledger.append(completion())
    _, records = read_ledger(tmp_path)
    (tmp_path / "ledger.jsonl").write_text("")
    with pytest.raises(LedgerError, match=r"ledger\.jsonl was changed while it was read"):
        list(records)
