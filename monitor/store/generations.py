"""Files of pending rows: one per generation, only appended to, valid as far as the manifest says.

A file is a sequence of segments, one per commit that changed the generation::

    magic, appended, updated, deleted (u32 each) | first row (u64) | checksum (u64)
    keys of the appended rows (u64) | their records | rows that were updated (u32) | their new records
    | rows that were deleted (u32)

Each checksum is an xxh3 of the segment, seeded with the one before; the first is seeded with the name of the
file and the layout of its records. The manifest holds the last. So a segment that is damaged, missing,
moved, or of another file does not go unseen.
"""

from __future__ import annotations

import ast
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import xxhash
from numpy.lib import format as npy
from numpy.typing import NDArray

from monitor.batch import Bools, Keys
from monitor.checkpoint import GenerationChanges
from monitor.store.directory import StoreError, damaged, sync_directory
from monitor.tasks.base import Records

SUFFIX = ".rows"
_HEADER = struct.Struct("<4sIIIQQ")
_SUM = struct.Struct("<Q")
_MAGIC = b"FMR1"
_Rows = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Extent:
    """What is valid of a file: its bytes, the rows they append, their last checksum.

    ``layout`` describes the records (see :func:`layout_of`).
    """

    length: int
    rows: int
    checksum: int
    layout: str


def layout_of(dtype: np.dtype[np.void]) -> str:
    """Fields of records as text, that :func:`dtype_of` reads.

    >>> layout_of(np.dtype([("time", "<i8"), ("p", [("score", "<f8")])]))
    "[('time', '<i8'), ('p', [('score', '<f8')])]"
    """
    return repr(npy.dtype_to_descr(dtype))


def dtype_of(layout: str) -> np.dtype[np.void]:
    """The dtype that :func:`layout_of` described."""
    return np.dtype((np.void, npy.descr_to_dtype(ast.literal_eval(layout))))


def unwritten(name: str, layout: str) -> Extent:
    """The extent of a file that does not exist yet."""
    return Extent(0, 0, xxhash.xxh3_64_intdigest(f"{name}\n{layout}".encode()), layout)


class Appender:
    """Appends to several files; :meth:`sync` makes all of it durable.

    Nothing counts until the manifest says so, hence an attempt that failed is simply made again: it
    writes over what the first one left.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._written: list[int] = []
        self._new = False

    def append(self, name: str, extent: Extent, changes: GenerationChanges) -> Extent:
        """Write a segment behind the valid part of a file; return what is valid with it."""
        header, payload = _segment(name, extent, changes)
        checksum = xxhash.xxh3_64_intdigest(header + payload, extent.checksum)
        segment = header + _SUM.pack(checksum) + payload
        path = self._directory / name
        self._new |= not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._written.append(descriptor)
        size = os.fstat(descriptor).st_size
        if size < extent.length:
            raise damaged(path, f"it has {size} bytes and should have {extent.length}")
        if size > extent.length:
            os.ftruncate(descriptor, extent.length)
        view, done = memoryview(segment), 0
        while done < len(segment):
            done += os.pwrite(descriptor, view[done:], extent.length + done)
        rows = extent.rows + len(changes.keys)
        return Extent(extent.length + len(segment), rows, checksum, extent.layout)

    def sync(self) -> None:
        """Wait until everything is on disk."""
        for descriptor in self._written:
            os.fsync(descriptor)
        if self._new:
            sync_directory(self._directory)

    def close(self) -> None:
        """Close the files."""
        while self._written:
            os.close(self._written.pop())


@contextmanager
def appending(directory: Path) -> Iterator[Appender]:
    """An appender whose files are closed at the end."""
    appender = Appender(directory)
    try:
        yield appender
    finally:
        appender.close()


def _segment(name: str, extent: Extent, changes: GenerationChanges) -> tuple[bytes, bytes]:
    """The header without its checksum, and the payload."""
    keys, records, updates = changes.keys, changes.records, changes.updates
    end = changes.first_row + len(keys)
    if changes.first_row != extent.rows:
        raise StoreError(f"{name} has {extent.rows} rows, and changes go on at row {changes.first_row}")
    for rows_of in (records, updates):
        if len(rows_of) and (layout := layout_of(rows_of.dtype)) != extent.layout:
            raise StoreError(
                f"{name} holds records of {extent.layout}, and some of {layout} came; "
                "a model with other fields needs a state directory of its own"
            )
    if len(records) != len(keys) or len(updates) != len(changes.updated):
        raise StoreError(f"{name}: the numbers of rows and of their contents differ")
    for rows, below in ((changes.updated, changes.first_row), (changes.deleted, end)):
        if len(rows) and not 0 <= rows.min() <= rows.max() < below:
            raise StoreError(f"{name}: changes of rows that do not exist")
    header = _HEADER.pack(
        _MAGIC, len(keys), len(changes.updated), len(changes.deleted), changes.first_row, 0
    )[: -_SUM.size]
    payload = b"".join(
        (
            keys.astype(np.uint64).tobytes(),
            records.tobytes(),
            changes.updated.astype(np.uint32).tobytes(),
            updates.tobytes(),
            changes.deleted.astype(np.uint32).tobytes(),
        )
    )
    return header, payload


def read(directory: Path, name: str, extent: Extent) -> tuple[Keys, Records, Bools]:
    """Keys, records and "still there" of all rows of a file; every byte is verified.

    Raises
    ------
    StoreError
        The file is not what was written.
    """
    path = directory / name
    try:
        dtype = dtype_of(extent.layout)
    except (ValueError, SyntaxError, TypeError) as error:
        raise damaged(path, "the layout of its records is unreadable") from error
    keys = np.empty(extent.rows, np.uint64)
    records = np.empty(extent.rows, dtype)
    alive = np.zeros(extent.rows, np.bool_)
    checksum = unwritten(name, extent.layout).checksum
    rows = at = 0
    try:
        with path.open("rb") as file:
            while at < extent.length:
                header = file.read(_HEADER.size)
                if len(header) < _HEADER.size:
                    raise damaged(path, f"it ends at byte {at + len(header)} of {extent.length}")
                magic, appended, updated, deleted, first, expected = _HEADER.unpack(header)
                size = appended * (8 + dtype.itemsize) + updated * (4 + dtype.itemsize) + deleted * 4
                at += _HEADER.size + size
                if magic != _MAGIC or first != rows or rows + appended > extent.rows or at > extent.length:
                    raise damaged(path, f"the segment that ends at byte {at} is not one")
                rows += appended
                hashing = xxhash.xxh3_64(header[: -_SUM.size], checksum)
                _fill(file, keys[first:rows].view(np.uint8), hashing, path)
                _fill(file, records[first:rows].view(np.uint8), hashing, path)
                changed, updates = np.empty(updated, np.uint32), np.empty(updated, dtype)
                gone = np.empty(deleted, np.uint32)
                for part in (changed, updates, gone):
                    _fill(file, part.view(np.uint8), hashing, path)
                checksum = hashing.intdigest()
                if checksum != expected:
                    raise damaged(path, f"the checksum of the segment that ends at byte {at} is wrong")
                alive[first:rows] = True
                records[changed] = updates
                alive[gone] = False
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror}") from error
    if at != extent.length or rows != extent.rows or checksum != extent.checksum:
        raise damaged(path, "it is not the file that the database speaks of")
    return keys, records, alive


def _fill(file: BufferedReader, into: NDArray[np.uint8], hashing: xxhash.xxh3_64, path: Path) -> None:
    if into.size:
        if file.readinto(into.data) != into.size:
            raise damaged(path, f"it ends at byte {file.tell()}")
        hashing.update(into.data)


def tidy(directory: Path, extents: Mapping[str, Extent]) -> None:
    """Cut off and delete what no commit speaks of, after seeing that nothing is missing."""
    for name, extent in extents.items():
        path = directory / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise damaged(path, "the file is missing") from None
        if size < extent.length:
            raise damaged(path, f"it has {size} bytes and should have {extent.length}")
    for path in directory.glob(f"*{SUFFIX}"):
        if path.name not in extents:
            path.unlink()
        elif path.stat().st_size > extents[path.name].length:
            os.truncate(path, extents[path.name].length)
