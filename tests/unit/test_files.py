"""JSON lines from files and standard input: which records they hold, where, and what is wrong with them."""

from __future__ import annotations

import gzip
import io
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from monitor.errors import MonitorError
from monitor.names import Reason
from monitor.records import RecordBatch
from monitor.sources.files import FileInput, Progress
from tests.unit.file_helpers import batches, decode, event, records

# JSON lines --------------------------------------------------------------------------------------

LAYOUTS = {
    "plain": (b"{1}\n{2}\n", [(1, b"{1}"), (2, b"{2}")]),
    "no newline at the end": (b"{1}\n{2}", [(1, b"{1}"), (2, b"{2}")]),
    "CRLF": (b"{1}\r\n{2}\r\n", [(1, b"{1}"), (2, b"{2}")]),
    "CRLF, cut off": (b"{1}\r\n{2}\r", [(1, b"{1}"), (2, b"{2}")]),
    "blank lines": (b"\n\n{1}\n \t\n\r\n{2}\n\n", [(3, b"{1}"), (6, b"{2}")]),
    "only blank lines": (b"\n\r\n  \n\n", []),
    "empty": (b"", []),
    "one record": (b"{1}", [(1, b"{1}")]),
    "other line ends": (b"\xe2\x80\xa8\x0b\x0c\x85\n{2}\n", [(1, b"\xe2\x80\xa8\x0b\x0c\x85"), (2, b"{2}")]),
}  # fmt: skip
each_layout = pytest.mark.parametrize(("content", "expected"), LAYOUTS.values(), ids=LAYOUTS)


@each_layout
@pytest.mark.parametrize("batch_records", [1, 2, 1000])
def test_lines_and_their_numbers(
    tmp_path: Path, content: bytes, expected: list[tuple[int, bytes]], batch_records: int
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(content)
    found = batches(path, batch_records=batch_records)
    assert records(found) == expected
    assert all(0 < len(b) <= batch_records and b.partition == str(path) for b in found)
    assert all(b.ascii <= all(p.isascii() for p in b.payloads) for b in found)


@each_layout
def test_gzip(tmp_path: Path, content: bytes, expected: list[tuple[int, bytes]]) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(content))
    assert records(batches(path)) == expected


class Trickle(io.RawIOBase):
    """A pipe that hands over a few bytes at a time."""

    def __init__(self, content: bytes, step: int) -> None:
        self._rest, self._step = content, step

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1, /) -> bytes:
        taken, self._rest = self._rest[: self._step], self._rest[self._step :]
        return taken


def read_stdin(monkeypatch: pytest.MonkeyPatch, buffer: object, **options: int) -> list[RecordBatch]:
    class Stdin:
        pass

    stdin = Stdin()
    vars(stdin)["buffer"] = buffer
    monkeypatch.setattr(sys, "stdin", stdin)
    return batches("-", **options)


@each_layout
@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, content: bytes, expected: list[tuple[int, bytes]], step: int
) -> None:
    found = read_stdin(monkeypatch, Trickle(content, step))
    assert records(found) == expected
    assert {b.partition for b in found} <= {"stdin"}
    assert records(read_stdin(monkeypatch, io.BytesIO(content))) == expected


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("step", [1, 7, 100, 1 << 20])
def test_a_line_that_is_too_long_costs_its_neighbours_nothing(
    monkeypatch: pytest.MonkeyPatch, end: bytes, step: int
) -> None:
    long = event(2, x="y" * 5000)
    content = event(1) + b"\n" + long + b"\n" + event(3) + b"\n" + long + end
    accepted, rejects = decode(read_stdin(monkeypatch, Trickle(content, step), limit=300), limit=300)
    assert accepted == 2
    assert [(r.position, r.reason) for r in rejects] == [(2, Reason.TOO_LARGE), (4, Reason.TOO_LARGE)]


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("size", [0, 1000])
@pytest.mark.parametrize(("extra", "accepted"), [(0, 1), (1, 0)])
def test_the_limit_counts_the_record_not_its_newline(
    tmp_path: Path, end: bytes, size: int, extra: int, accepted: int
) -> None:
    path = tmp_path / "events.jsonl"
    record = event(x="y" * size)
    path.write_bytes(record + end)
    limit = len(record) - extra
    found, rejects = decode(batches(path, limit=limit), limit=limit)
    assert found == accepted
    assert [r.reason for r in rejects] == [Reason.TOO_LARGE] * (1 - accepted)


def test_a_huge_line_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge(io.RawIOBase):
        left = 100

        def readable(self) -> bool:
            return True

        def read1(self, size: int = -1, /) -> bytes:
            self.left -= 1
            return b"x" * (1 << 20) if self.left > 0 else b"\n{}\n" if self.left == 0 else b""

    tracemalloc.start()
    try:
        found = read_stdin(monkeypatch, Huge(), limit=1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [p for p, _ in records(found)] == [1, 2]
    assert records(found)[1] == (2, b"{}")
    assert peak < 16 << 20


def test_raw_bytes_of_a_rejected_line_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(event(1) + b"\n{cut\xff\n" + event(2))
    accepted, rejects = decode(batches(path))
    assert accepted == 2
    assert [(r.position, r.payload) for r in rejects] == [(2, b"{cut\xff")]


@pytest.mark.parametrize("neighbour", [b"", b"{}\n", event() + b"\n"])
@pytest.mark.parametrize("spaces", [0, 1, 10, 15, 16, 40, 500])
def test_a_blank_line_is_no_record_beside_any_neighbour(
    tmp_path: Path, neighbour: bytes, spaces: int
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b" " * spaces + b"\r\n" + neighbour)
    accepted, rejects = decode(batches(path))
    assert accepted == (neighbour == event() + b"\n")
    assert [r.position for r in rejects] == ([2] if neighbour == b"{}\n" else [])


@seed(1)
@given(
    st.lists(st.sampled_from([b"", b" ", b"{1}", b"\xc3\xa9", b"\xff", b"\r", b"xx" * 9]), max_size=9),
    st.sampled_from([b"", b"\n"]),
    st.integers(1, 30),
    st.integers(1, 4),
)
def test_however_a_stream_is_cut(lines: list[bytes], end: bytes, step: int, batch_records: int) -> None:
    content = b"\n".join(lines) + end
    with pytest.MonkeyPatch.context() as patch:
        found = read_stdin(patch, Trickle(content, step), batch_records=batch_records)
    wanted = [(n, line.rstrip(b"\r")) for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    assert records(found) == wanted
    assert all(b.ascii <= all(p.isascii() for p in b.payloads) for b in found)


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(event() + b"\n" + b"x" * 3000 + b"\n\n" + event())
    progress = Progress()
    batches(path, progress=progress)
    assert progress.bytes == path.stat().st_size == FileInput(str(path), "events").size


@pytest.mark.parametrize("name", ["no.jsonl", "no.jsonl.gz", "no.csv", "no.parquet", ".", "no/no.jsonl"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(MonitorError, match="cannot ") as caught:
        batches(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("name", ["events.jsonl.gz", "events.csv.gz"])
@pytest.mark.parametrize("damage", ["cut off", "not gzip", "bad data", "bad block"])
def test_a_damaged_gzip_file(tmp_path: Path, name: str, damage: str) -> None:
    content = gzip.compress(b"id,time,decision\n" + bytes(range(256)) * 50)
    broken = bytearray(content)
    broken[20:60] = b"\xff" * 40
    block = content[:10] + b"\xff" + content[11:]
    path = tmp_path / name
    path.write_bytes(
        {"cut off": content[:-20], "not gzip": b"{}\n", "bad data": bytes(broken), "bad block": block}[damage]
    )
    with pytest.raises(MonitorError, match="cannot read"):
        batches(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"), ("a.json", "jsonl"), ("a", "jsonl"), ("-", "jsonl"), ("a.CSV", "csv"),
        ("a.csv.gz", "csv"), ("a.tsv", "csv"), ("a.parquet", "parquet"), ("a.pq", "parquet"),
        ("a.ndjson.gz", "jsonl"),
    ],
)  # fmt: skip
def test_formats_by_name(name: str, kind: str) -> None:
    assert FileInput(name, "events").resolved_format() == kind
    assert FileInput(name, "events", "csv").resolved_format() == "csv"
