"""Records from files and standard input: JSON lines, CSV, Parquet."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import sys
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import IO, Literal, cast

import msgspec
from typing_extensions import Buffer

from monitor.errors import MonitorError
from monitor.names import Reason
from monitor.paths import FieldPath, FieldsConfig, parse_path
from monitor.records import RecordBatch, Rejected
from monitor.tasks.base import Field

Format = Literal["auto", "jsonl", "csv", "parquet"]

BATCH_RECORDS = 10_000
_BLOCK = 1 << 18
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class FileInput:
    """A file to read, or standard input (``-``), and the source whose mapping it is read with."""

    path: str
    source: str
    format: Format = "auto"

    @property
    def partition(self) -> str:
        """Name of the input in positions: the path, or ``stdin``."""
        return "stdin" if self.path == "-" else self.path

    @property
    def size(self) -> int:
        """Bytes to read as far as they are known: 0 for standard input."""
        return 0 if self.path == "-" else Path(self.path).stat().st_size

    def resolved_format(self) -> Literal["jsonl", "csv", "parquet"]:
        """The format, told by the file's name where it is ``auto``."""
        if self.format != "auto":
            return self.format
        name = self.path.removesuffix(".gz").lower()
        if name.endswith((".csv", ".tsv")):
            return "csv"
        return "parquet" if name.endswith((".parquet", ".pq")) else "jsonl"


class Progress:
    """Bytes consumed so far, for a progress bar."""

    def __init__(self) -> None:
        self.bytes = 0


def read_batches(
    source: FileInput,
    fields: FieldsConfig,
    task_fields: Mapping[str, Field],
    *,
    binned: Collection[str] = (),
    max_record_bytes: int,
    now_ms: Callable[[], int],
    progress: Progress | None = None,
    batch_records: int = BATCH_RECORDS,
) -> Iterator[RecordBatch]:
    """Batches of the records of one input, in order; positions are line or row numbers from 1.

    CSV has no types: columns whose fields are numbers or flags, and attributes with bins (``binned``),
    are read as such where they can be, and an empty cell is an absent field.

    Raises :class:`~monitor.errors.MonitorError` when the input cannot be opened or is not of its format.
    """
    progress = progress or Progress()
    kind = source.resolved_format()
    try:
        if kind == "parquet":
            rows = _parquet_rows(source, progress, batch_records)
        elif kind == "csv":
            columns = converters(fields, task_fields, binned)
            used = _used_columns(fields, task_fields)
            rows = _csv_rows(source, columns, used, max_record_bytes, progress)
        else:
            with _open(source) as stream:
                yield from _json_lines(
                    stream, source.partition, max_record_bytes, now_ms, progress, batch_records
                )
            return
        yield from _batched(rows, source.partition, now_ms, batch_records)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise MonitorError(f"cannot read {source.partition}: {why}") from error


def _open(source: FileInput) -> IO[bytes]:
    if source.path == "-":
        return sys.stdin.buffer
    if source.path.endswith(".gz"):
        return cast(IO[bytes], gzip.open(source.path, "rb"))
    return open(source.path, "rb")


class _BoundedLines(io.RawIOBase):
    """A byte stream whose lines are cut off after ``limit + 1`` bytes, so that none fills the memory."""

    def __init__(self, stream: IO[bytes], limit: int, progress: Progress) -> None:
        self._read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
        self._limit = limit
        self._progress = progress
        self._length = 0
        self._cutting = False
        self._ascii = True
        self._last_ascii = True
        self._at_start = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        into = memoryview(buffer).cast("B")
        while True:
            block = self._read(len(into))
            if not block:
                return 0
            self._progress.bytes += len(block)
            block = self._bounded(block)
            if block:
                self._last_ascii = block.isascii()
                self._ascii &= self._last_ascii
                into[: len(block)] = block
                return len(block)

    def _bounded(self, block: bytes) -> bytes:
        if self._at_start:
            self._at_start = False
            block = block.removeprefix(codecs.BOM_UTF8)
        if self._cutting:
            end = block.find(b"\n")
            if end < 0:
                return b""
            block, self._cutting, self._length = block[end:], False, 0
        newline = block.rfind(b"\n")
        self._length = len(block) - newline - 1 if newline >= 0 else self._length + len(block)
        excess = self._length - self._limit - 1
        if excess > 0:
            self._cutting = True
            return block[: max(len(block) - excess, 0)]
        return block

    def take_ascii(self) -> bool:
        """Was everything ASCII that was read since the last call, or could still be buffered then?"""
        taken, self._ascii = self._ascii, self._last_ascii
        return taken


def _json_lines(
    stream: IO[bytes],
    partition: str,
    max_record_bytes: int,
    now_ms: Callable[[], int],
    progress: Progress,
    batch_records: int,
) -> Iterator[RecordBatch]:
    bounded = _BoundedLines(stream, max_record_bytes, progress)
    lines = io.BufferedReader(bounded, _BLOCK)
    line = 1
    while payloads := list(islice(lines, batch_records)):
        positions = range(line, line + len(payloads))
        line += len(payloads)
        yield RecordBatch(partition, payloads, positions, now_ms(), ascii=bounded.take_ascii(), lines=True)


_Row = tuple[int, bytes, Rejected | None]


def _batched(
    rows: Iterator[_Row], partition: str, now_ms: Callable[[], int], batch_records: int
) -> Iterator[RecordBatch]:
    batch: list[_Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == batch_records:
            yield _record_batch(batch, partition, now_ms())
            batch = []
    if batch:
        yield _record_batch(batch, partition, now_ms())


def _record_batch(rows: list[_Row], partition: str, now_ms: int) -> RecordBatch:
    return RecordBatch(
        partition,
        [payload for _, payload, _ in rows],
        [position for position, _, _ in rows],
        now_ms,
        unreadable={i: reject for i, (_, _, reject) in enumerate(rows) if reject is not None},
    )


# CSV ---------------------------------------------------------------------------------------------

Converter = Callable[[str], object]


def converters(
    fields: FieldsConfig, task_fields: Mapping[str, Field], binned: Collection[str] = ()
) -> dict[str, Converter]:
    """How the columns of a CSV are read; columns that are not named are texts.

    ``binned`` are the attributes with bins, which are numbers.
    """
    found: dict[str, Converter] = {}

    def read_as(path: FieldPath | str, converter: Converter) -> None:
        steps = (FieldPath(path=path) if isinstance(path, str) else path).steps
        if len(steps) == 1 and isinstance(steps[0], str):
            found[steps[0]] = converter

    for time in (fields.time, fields.outcome_time):
        if time.unit != "rfc3339":
            read_as(time, _number)
    read_as(fields.weight, _number)
    read_as(fields.sampling_fraction, _number)
    if not isinstance(fields.attributes, str):
        for name in binned:
            if name in fields.attributes:
                read_as(fields.attributes[name], _number)
    for name, field in task_fields.items():
        path = fields.task_field(name)
        wanted = path.one_of or ((path.equals,) if path.equals is not None else ())
        if path.at_least is not None or field.kind in ("number", "count"):
            read_as(path, _number)
        elif wanted:
            if not any(isinstance(w, str) for w in wanted):
                read_as(path, _flag)
        elif field.kind == "flag":
            read_as(path, _flag)
    return found


def _used_columns(fields: FieldsConfig, task_fields: Mapping[str, Field]) -> set[str]:
    """Names at the top level of a record that a mapping reads."""
    found = [fields.time, fields.outcome_time, fields.model, fields.model_version]
    found += [fields.task_field(name) for name in task_fields]
    paths = [*fields.id, fields.weight, fields.sampling_fraction, *(f.path for f in found if f.path)]
    attributes = fields.attributes
    paths += [attributes] if isinstance(attributes, str) else attributes.values()
    return {str(parse_path(path)[0]) for path in paths}


def _number(text: str) -> object:
    """A JSON number as a number; anything else stays a text, and is judged as one."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or len(text) > 400:
        return text
    if not match[2] and not match[3]:
        return int(text)
    number = float(text)
    return number if isfinite(number) else text


def _flag(text: str) -> object:
    lower = text.strip().lower()
    return lower == "true" if lower in ("true", "false") else _number(text)


class _RowTooLong(Exception):
    """A CSV row goes on beyond the limit, most likely because a quote is not closed."""


class _RowLines:
    """The lines that a CSV reader takes, row by row; a row that is broken gives back all but its first."""

    def __init__(self, stream: Iterable[str], limit: int) -> None:
        self._stream = iter(stream)
        self._limit = limit + 2  # a newline is no part of it
        self._again: deque[str] = deque()
        self._row: list[str] = []
        self._size = 0
        self._number = 0

    def __iter__(self) -> _RowLines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._stream)
        self._number += 1
        self._row.append(line)
        self._size += len(line)
        if self._size > self._limit:
            raise _RowTooLong
        return line

    def start_row(self) -> int:
        """Number of the line that the next row starts on."""
        self._row.clear()
        self._size = 0
        return self._number + 1

    def give_back(self) -> str:
        """The first line of the row; the others will be taken again."""
        first, *rest = self._row
        self._number -= len(rest)
        self._again.extendleft(reversed(rest))
        return first.rstrip("\r\n")


def _csv_rows(
    source: FileInput, columns: Mapping[str, Converter], used: Collection[str], limit: int, progress: Progress
) -> Iterator[_Row]:
    encode = msgspec.json.Encoder().encode
    delimiter = "\t" if source.path.removesuffix(".gz").lower().endswith(".tsv") else ","
    with (
        _open(source) as opened,
        io.TextIOWrapper(
            io.BufferedReader(_BoundedLines(opened, limit, progress), _BLOCK),
            encoding="utf-8-sig",
            errors="surrogateescape",
            newline="",
        ) as stream,
    ):
        csv.field_size_limit(max(limit, 1 << 17))
        lines = _RowLines(stream, limit)
        lines.start_row()
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(reader)
        except StopIteration:
            return
        except (csv.Error, _RowTooLong) as error:
            why = str(error) or "it is too long"
            raise MonitorError(f"the header of {source.partition} cannot be read: {why}") from error
        for name in sorted(used):
            if header.count(name) > 1:
                raise MonitorError(
                    f"the header of {source.partition} has {name!r} more than once, and the mapping uses it: "
                    "rename all but one of these columns"
                )
        convert = [columns.get(name) for name in header]
        while True:
            line = lines.start_row()
            try:
                cells = next(reader, None)
            except (csv.Error, _RowTooLong) as error:
                first = lines.give_back().encode("utf-8", "surrogateescape")
                if len(first) > limit:
                    message = f"the row is longer than limits.max_message_bytes, {limit}"
                    yield line, first, Rejected(Reason.TOO_LARGE, message)
                else:
                    why = str(error) or "a quote is not closed"
                    yield line, first, Rejected(Reason.INVALID_JSON, f"the CSV row is broken: {why}")
                reader = csv.reader(lines, delimiter=delimiter, strict=True)
                continue
            if cells is None:
                return
            if not cells:
                continue
            raw = delimiter.join(cells).encode("utf-8", "surrogateescape")
            reject = None
            payload = raw
            if len(cells) != len(header):
                reject = Rejected(
                    Reason.INVALID_JSON, f"the row has {len(cells)} cells, the header has {len(header)}"
                )
            else:
                record = {
                    name: text if how is None else how(text)
                    for name, how, text in zip(header, convert, cells, strict=True)
                    if text != ""
                }
                try:
                    payload = encode(record)
                except UnicodeEncodeError:
                    reject = Rejected(Reason.INVALID_UTF8, "the row is not UTF-8")
            yield line, payload, reject


# Parquet -----------------------------------------------------------------------------------------


def _parquet_rows(source: FileInput, progress: Progress, batch_records: int) -> Iterator[_Row]:
    try:
        import polars
    except ImportError:
        raise MonitorError(
            f"reading {source.partition} needs polars: pip install 'fairness-monitor[parquet]'"
        ) from None

    encode = msgspec.json.Encoder(decimal_format="number").encode
    try:
        content = io.BytesIO(sys.stdin.buffer.read()) if source.path == "-" else None
        table = polars.scan_parquet(source.path if content is None else content)
        position = 0
        for batch in table.collect_batches(chunk_size=batch_records, maintain_order=True):
            for record in batch.iter_rows(named=True):
                position += 1
                yield position, encode(record), None
            progress.bytes = source.size // 2
    except polars.exceptions.PolarsError as error:
        raise MonitorError(f"{source.partition} cannot be read as Parquet: {error}") from error
