"""CSV and Parquet: what their cells become, where their rows are, and what is wrong with them."""

from __future__ import annotations

import gzip
import io
import sys
import tracemalloc
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from monitor.errors import MonitorError
from monitor.names import Reason
from monitor.replay import replay
from monitor.sinks.dead_letter import DeadLetters
from monitor.sources.files import FileInput, read_batches
from tests.unit.file_helpers import (
    CONFIG,
    FIELDS,
    NOW_MS,
    TASK_FIELDS,
    TIME,
    batches,
    contents,
    decode,
    event,
    records,
)

# CSV ---------------------------------------------------------------------------------------------


def write_csv(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_csv_cells_become_fields(tmp_path: Path, start: bytes, newline: bytes) -> None:
    rows = [b"id,time,decision,score,outcome,sex", b'"a",2024-05-01,1,0.5,True,f', b"b,2024-05-01,false,,0,"]
    path = write_csv(tmp_path / "a.csv", start + newline.join(rows))
    assert contents(path) == [
        {"id": "a", "time": "2024-05-01", "decision": 1, "score": 0.5, "outcome": True, "sex": "f"},
        {"id": "b", "time": "2024-05-01", "decision": False, "outcome": 0},
    ]
    assert decode(batches(path)) == (2, [])


CELLS = [
    ("decision", "1", 1), ("decision", " 1 ", 1), ("decision", "TRUE", True), ("decision", "False", False),
    ("decision", "1.0", 1.0), ("decision", "yes", "yes"), ("decision", "01", "01"), ("decision", "+1", "+1"),
    ("score", "1e-3", 0.001), ("score", "-0", 0), ("score", "0.5", 0.5), ("score", ".5", ".5"),
    ("score", "1.", "1."),
    ("score", "NaN", "NaN"), ("score", "nan", "nan"), ("score", "inf", "inf"), ("score", "1,5", "1,5"),
    ("score", "0x1", "0x1"), ("score", "1_0", "1_0"), ("score", "１", "１"), ("score", "true", "true"),
    ("score", "9" * 30, int("9" * 30)), ("score", "9" * 5000, "9" * 5000), ("score", "N/A", "N/A"),
    ("id", "007", "007"), ("id", "1e5", "1e5"), ("id", " a ", " a "), ("sex", "1", "1"),
    ("sex", "true", "true"),
    ("sex", 'say "hi"', 'say "hi"'), ("sex", "two\nlines", "two\nlines"), ("sex", "é", "é"),
    ("sex", "null", "null"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "cell", "value"), CELLS)
def test_csv_numbers_and_flags(tmp_path: Path, name: str, cell: str, value: object) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    (found,) = contents(write_csv(tmp_path / "a.csv", f"{name},x\n{quoted},5\n"))
    assert found == {name: value, "x": "5"}
    assert type(found[name]) is type(value)


@pytest.mark.parametrize("cell", ["1e999", "-1e999", "NaN", "inf", "2"])
def test_a_csv_number_that_is_none_is_not_silently_absent(tmp_path: Path, cell: str) -> None:
    path = write_csv(tmp_path / "a.csv", f"id,time,decision,score\na,{TIME},1,{cell}\nb,{TIME},1,0.5\n")
    accepted, rejects = decode(batches(path))
    assert accepted == 1
    assert [r.position for r in rejects] == [2]
    assert "score" in rejects[0].message


def test_csv_columns_of_numeric_attributes_are_numbers(tmp_path: Path) -> None:
    """An attribute with bins is a number; a CSV must be able to carry one."""
    path = write_csv(
        tmp_path / "a.csv", f"id,time,decision,sex,age\na,{TIME},1,f,31\nb,{TIME},0,f,31.5\nc,{TIME},0,f,\n"
    )
    found = replay(
        CONFIG, [FileInput(str(path), "events")], now_ms=lambda: NOW_MS, dead_letters=DeadLetters(None)
    )
    assert found.rejects == {}
    assert found.events["accepted"] == 3


def test_csv_positions_are_lines(tmp_path: Path) -> None:
    text = f'id,time,decision,sex\na,{TIME},1,f\n\nb,{TIME},9,"two\nlines"\nc,{TIME},9,f\n'
    accepted, rejects = decode(batches(write_csv(tmp_path / "a.csv", text)))
    assert accepted == 1
    assert [r.position for r in rejects] == [4, 6], "a row is where it starts"


def test_bad_csv_rows_cost_their_neighbours_nothing(tmp_path: Path) -> None:
    good = f"a,{TIME},1,f\n".encode()
    bad = [
        b"a,b\n",
        good[:-1] + b",more\n",
        b"a," + TIME.encode() + b",1,\xff\n",
        b"x" * 150_000 + b"\n",
        b'{"id": 1}\n',
    ]
    content = b"id,time,decision,sex\n" + b"".join(good + row for row in bad) + good
    accepted, rejects = decode(batches(write_csv(tmp_path / "a.csv", content), limit=1_000_000))
    assert accepted == len(bad) + 1
    assert [(r.position, r.reason) for r in rejects] == [
        (3, Reason.INVALID_JSON), (5, Reason.INVALID_JSON), (7, Reason.INVALID_UTF8),
        (9, Reason.INVALID_JSON), (11, Reason.INVALID_JSON),
    ]  # fmt: skip
    assert [r.payload for r in rejects] == [row[:-1] for row in bad]
    assert "2 cells" in rejects[0].message
    assert "4" in rejects[0].message


def test_a_csv_row_that_looks_like_an_event_is_none(tmp_path: Path) -> None:
    """A row with too many cells stays unreadable, even where its text is a good event."""
    row = event(7, x="y" * 500)
    content = b"id,time,decision\n" + row + b', "z": 1\n' + row[:-1] + b', "z": 1, "w": 2}\n'
    accepted, rejects = decode(batches(write_csv(tmp_path / "a.csv", content)))
    assert accepted == 0
    assert [r.position for r in rejects] == [2, 3]


def test_a_stray_quote_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    rows = [f"a,{TIME},1,f", f'b,{TIME},1,"f', *[f'{i},{TIME},1,"f"' for i in range(100)]]
    for end in ("", "\n"):
        path = write_csv(tmp_path / "a.csv", "\n".join(["id,time,decision,sex", *rows]) + end)
        for limit in (1000, 1_000_000):
            accepted, rejects = decode(batches(path, limit=limit))
            assert accepted == 101
            assert [r.position for r in rejects] == [3]


def test_a_huge_csv_row_does_not_fill_the_memory(tmp_path: Path) -> None:
    good = f"a,{TIME},1,f\n".encode()
    content = b"id,time,decision,sex\n" + good + b"x" * (20 << 20) + b"\n" + good
    path = write_csv(tmp_path / "a.csv", content)
    tracemalloc.start()
    try:
        found = batches(path, limit=1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    accepted, rejects = decode(found)
    assert accepted == 2
    assert [r.position for r in rejects] == [3]
    assert peak < 10 << 20


@pytest.mark.parametrize("content", [b"", b"\n", b"id,time\n", b"\xef\xbb\xbf", b"\xef\xbb\xbfid\n\n\n"])
def test_csv_without_rows(tmp_path: Path, content: bytes) -> None:
    assert batches(write_csv(tmp_path / "a.csv", content)) == []


def test_a_csv_header_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MonitorError, match="header"):
        batches(write_csv(tmp_path / "a.csv", b'"' + b"x" * (1 << 20) + b'"\n1\n'))


def test_tabs_and_compression(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(b"id\tdecision\na,b\t1\n"))
    assert contents(path) == [{"id": "a,b", "decision": 1}]


def test_csv_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(b"id,decision\na,1\n")

    monkeypatch.setattr(sys, "stdin", Stdin())
    source = FileInput("-", "events", "csv")
    found = list(read_batches(source, FIELDS, TASK_FIELDS, max_record_bytes=100, now_ms=lambda: NOW_MS))
    assert records(found) == [(2, b'{"id":"a","decision":1}')]


# Parquet -----------------------------------------------------------------------------------------


def test_parquet(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    path = tmp_path / "a.parquet"
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
    polars.DataFrame(
        {
            "id": ["a", "b", "c"],
            "time": [noon, noon, noon],
            "decision": [True, False, None],
            "score": [0.5, float("nan"), None],
            "outcome": [1, 0, 1],
            "sex": ["f", None, "é"],
            "day": [date(2024, 5, 1)] * 3,
            "who": [{"ward": 1, "tags": ["x"]}, None, {"ward": None, "tags": []}],
        }
    ).write_parquet(path)
    found = contents(path)
    assert found[0] == {
        "id": "a", "time": TIME, "decision": True, "score": 0.5, "outcome": 1, "sex": "f",
        "day": "2024-05-01",
        "who": {"ward": 1, "tags": ["x"]},
    }  # fmt: skip
    assert found[1]["score"] is None
    assert decode(batches(path)) == (3, [])
    found_twos = batches(path, batch_records=2)
    assert [p for b in found_twos for p in b.positions] == [1, 2, 3]
    assert all(len(b) <= 2 for b in found_twos)


def test_parquet_numbers_of_every_kind_are_numbers(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    path = tmp_path / "a.parquet"
    for kind in (polars.Int8, polars.UInt64, polars.Float32, polars.Float64, polars.Decimal(10, 2)):
        polars.DataFrame({"score": polars.Series([1, 0]).cast(kind)}).write_parquet(path)
        assert contents(path) == [{"score": 1}, {"score": 0}], kind


def test_parquet_times_without_a_zone_need_assume_utc(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    path = tmp_path / "a.parquet"
    frame = {"id": ["a"], "time": [datetime(2024, 5, 1, 12)], "decision": [1]}
    polars.DataFrame(frame).write_parquet(path)
    accepted, rejects = decode(batches(path))
    assert accepted == 0
    assert [(r.position, r.reason) for r in rejects] == [(1, Reason.INVALID_TIME)]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{}\n" * 50, b"PAR1" + b"\x00" * 40 + b"PAR1"])
def test_files_that_are_no_parquet(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("polars")
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(MonitorError, match="cannot be read as Parquet"):
        batches(path)


def test_parquet_without_rows(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    path = tmp_path / "a.parquet"
    polars.DataFrame({"id": []}).write_parquet(path)
    assert batches(path) == []
