"""What the store holds besides the engine, and how everything is written as bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitor.cells import Cell, CellSums
from monitor.checkpoint import Document, EngineState, JoinTable, ModelState
from monitor.store.generations import Extent
from monitor.tasks.base import Ints

Canonical = Callable[[str, Any, Sequence[Cell]], Any]
"""Makes a document of a model, given its name and the cells, independent of their numbers."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message that waits to be delivered."""

    channel: str
    id: str
    key: str
    rule: str
    at_ms: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """What came of a posted request, by its idempotency key; ``digest`` is of the request."""

    source: str
    key: str
    digest: int
    receipt: Document


@dataclass(frozen=True, slots=True)
class StoredGeneration:
    """A row of the manifest of generation files."""

    model: int
    table: JoinTable
    generation: int
    extent: Extent


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that was stored, as of one commit; messages and receipts in the order they were stored."""

    engine: EngineState
    offsets: Mapping[str, int]
    documents: Mapping[str, Any]
    outbox: Sequence[StoredMessage]
    receipts: Sequence[Receipt]


def to_json(document: Document) -> bytes:
    """A document as JSON; other mappings and sequences count as objects and lists."""
    return json.dumps(document, default=_plain, separators=(",", ":")).encode()


def _plain(value: object) -> object:
    """What ``json`` does not know by itself of what is a document."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def rows_of_sums(sums: Ints) -> Iterator[bytes]:
    """Each row of sums as bytes: ``i`` and int64 numbers, or ``o`` and JSON where they may be larger."""
    if sums.dtype == np.object_:
        for row in sums.tolist():
            yield b"o" + to_json([int(n) for n in row])
        return
    data, size = sums.astype("<i8").tobytes(), 8 * sums.shape[1]
    for start in range(0, len(data), size):
        yield b"i" + data[start : start + size]


def as_sums(rows: Sequence[bytes], width: int, wide: bool) -> Ints:
    """The rows as a table; as Python's integers where some table of this name had them."""
    if not wide:
        return np.frombuffer(b"".join(r[1:] for r in rows), "<i8").reshape(len(rows), width).astype(np.int64)
    python: np.dtype[Any] = np.dtype(object)
    sums: Ints = np.empty((len(rows), width), python)
    for i, row in enumerate(rows):
        sums[i] = json.loads(row[1:]) if row[:1] == b"o" else np.frombuffer(row[1:], "<i8").tolist()
    return sums


def of_message(message: StoredMessage) -> bytes:
    """All of a message but what its row is named by."""
    return to_json([message.key, message.rule, message.at_ms, base64.b64encode(message.body).decode()])


def as_message(channel: str, name: str, content: bytes) -> StoredMessage:
    """The message that :func:`of_message` wrote under this channel and id."""
    key, rule, at_ms, body = json.loads(content)
    return StoredMessage(channel, name, key, rule, at_ms, base64.b64decode(body))


def as_generation(content: bytes) -> StoredGeneration:
    """A row of the manifest."""
    row = json.loads(content)
    extent = Extent(row["length"], row["rows"], row["checksum"], row["layout"])
    return StoredGeneration(row["model"], row["table"], row["generation"], extent)


def canonical_lines(model: ModelState, canonical: Canonical | None) -> Iterator[list[Any]]:
    """A model as the lines of an export."""
    cells = model.cells
    yield from (["cell", cell] for cell in sorted(cells))
    for name, document in sorted(model.documents.items()):
        yield ["document", name, canonical(name, document, cells) if canonical else document]
    tables: dict[str, CellSums] = {}
    for name, table in sorted(model.tables.items()):
        name = name.replace("ahead:", "open:")  # which of them it is follows from the batches
        tables[name] = tables[name].merge(table) if name in tables else table
    for name, table in sorted(tables.items()):
        rows = zip(table.cells.tolist(), table.sums.tolist(), strict=True)
        yield from (["sums", name, *row] for row in sorted((cells[c], row) for c, row in rows if any(row)))
    for which in ("pending", "recent"):
        parts = [g for g in model.join.generations if g.table == which]
        rows_of = (
            (key, json.dumps(_named(record, g.records.dtype.names or (), cells)))
            for g in parts
            for key, record in zip(g.keys[g.alive].tolist(), g.records[g.alive].tolist(), strict=True)
        )
        yield from ([which, key, json.loads(record)] for key, record in sorted(rows_of))
    for kind, texts in sorted(model.join.texts.items()):
        yield from (["text", kind, *item] for item in sorted(texts.items()))


def _named(record: tuple[Any, ...], fields: Sequence[str], cells: Sequence[Cell]) -> list[Any]:
    """A record as values, with the cell it is of in place of the number."""
    return [cells[v] if f == "cell" else v for f, v in zip(fields, record, strict=True)]
