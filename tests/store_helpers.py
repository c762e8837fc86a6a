"""A plain model of the store, commits made by chance, and what both have in common to compare."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monitor.cells import CellSums
from monitor.checkpoint import EngineChanges, GenerationChanges, JoinChanges, ModelChanges, TextChanges
from monitor.store import Loaded, Receipt, Store, StoredMessage

PENDING = np.dtype(
    (np.void, np.dtype([("deadline", "i8"), ("cell", "i4"), ("p", [("score", "f4")]), ("o", [])]))
)
RECENT = np.dtype((np.void, np.dtype([("basis", "i8"), ("cell", "i4"), ("joined", "?")])))
DTYPES = {"pending": PENDING, "recent": RECENT}
TEXTS = ["", "a", "\0", "a\0b", "Zürich", "数", "\U0001f600", "'; DROP TABLE cells; --", "other", "x" * 300]
TOP = 2**64 - 1
NO_ROWS = np.empty(0, np.int64)


def open_store(directory: Path, **options: Any) -> Store:
    return Store.open(directory, now_ms=lambda: 1_700_000_000_000, **options)


@dataclass
class Commit:
    """The arguments of one commit."""

    changes: EngineChanges
    rest: dict[str, Any]

    def to(self, store: Store) -> None:
        store.commit(self.changes, **self.rest)


@dataclass
class PlainModel:
    cells: list[tuple[str, ...]] = field(default_factory=list)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)
    generations: dict[tuple[str, int], list[list[Any]]] = field(default_factory=dict)
    texts: dict[str, dict[int, Any]] = field(default_factory=dict)


@dataclass
class Plain:
    """What a store is to hold, as lists and dictionaries."""

    document: Any = None
    models: dict[str, PlainModel] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)
    outbox: dict[tuple[str, str], StoredMessage] = field(default_factory=dict)
    receipts: dict[tuple[str, str], Receipt] = field(default_factory=dict)
    ledger: list[Any] = field(default_factory=list)

    def after(self, commit: Commit) -> Plain:
        new = deepcopy(self)
        new._fold(commit)
        return new

    def _fold(self, commit: Commit) -> None:
        changes, rest = commit.changes, commit.rest
        if changes.document is not None:
            self.document = changes.document
        for name, model in changes.models.items():
            self._fold_model(self.models.setdefault(name, PlainModel()), model)
        self.offsets.update(rest["offsets"])
        self.documents.update(rest.get("documents", {}))
        for m in rest.get("messages", ()):
            self.outbox[m.channel, m.id] = m
        for key in rest.get("delivered", ()):
            self.outbox.pop(key, None)
        for r in rest.get("receipts", ()):
            self.receipts.pop((r.source, r.key), None)
            self.receipts[r.source, r.key] = r
        self.ledger += rest.get("ledger", ())

    def _fold_model(self, plain: PlainModel, changes: ModelChanges) -> None:
        assert changes.first_cell == len(plain.cells)
        plain.cells += changes.cells
        for name in changes.dropped:
            plain.tables.pop(name, None)
        for name, sums in changes.tables.items():
            wide = sums.sums.dtype == object
            table = plain.tables.setdefault(name, {"width": sums.sums.shape[1], "wide": wide, "rows": {}})
            table["wide"] |= wide
            table["rows"].update(zip(sums.cells.tolist(), sums.sums.tolist(), strict=True))
        plain.documents.update(changes.documents)
        for g in changes.join.generations:
            if g.dead:
                plain.generations.pop((g.table, g.generation), None)
                continue
            rows = plain.generations.setdefault((g.table, g.generation), [])
            assert g.first_row == len(rows)
            rows += ([k, r, True] for k, r in zip(g.keys.tolist(), g.records.tolist(), strict=True))
            for at, record in zip(g.updated.tolist(), g.updates.tolist(), strict=True):
                rows[at][1] = record
            for at in g.deleted.tolist():
                rows[at][2] = False
        for texts in changes.join.texts:
            kind = plain.texts.setdefault(texts.kind, {})
            for key, text in texts.texts.items():
                if text is None:
                    kind.pop(key, None)
                else:
                    kind[key] = text

    def content(self) -> Any:
        """Everything, in the form of :func:`content_of`."""
        return {
            "document": self.document,
            "models": {
                name: {
                    "cells": m.cells,
                    "tables": {
                        n: {**t, "rows": dict(sorted(t["rows"].items()))} for n, t in m.tables.items()
                    },
                    "documents": m.documents,
                    "generations": dict(sorted(m.generations.items())),
                    "texts": {kind: texts for kind, texts in m.texts.items() if texts},
                }
                for name, m in self.models.items()
            },
            "offsets": self.offsets,
            "documents": self.documents,
            "outbox": list(self.outbox.values()),
            "receipts": list(self.receipts.values()),
            "ledger": self.ledger,
        }


def content_of(store: Store) -> Any:
    """What a store holds, as lists and dictionaries; None: nothing."""
    loaded = store.load()
    if loaded is None:
        return None
    return {**_content(loaded), "ledger": store.ledger(1_000_000)}


def _content(loaded: Loaded) -> dict[str, Any]:
    models = {}
    for name, m in loaded.engine.models.items():
        order = [(g.table, g.generation) for g in m.join.generations]
        assert order == sorted(order)
        for g in m.join.generations:
            assert g.records.dtype == DTYPES[g.table]
            assert len(g.keys) == len(g.records) == len(g.alive)
        models[name] = {
            "cells": list(m.cells),
            "tables": {
                n: {
                    "width": t.sums.shape[1],
                    "wide": t.sums.dtype == object,
                    "rows": dict(zip(t.cells.tolist(), t.sums.tolist(), strict=True)),
                }
                for n, t in m.tables.items()
            },
            "documents": dict(m.documents),
            "generations": {
                (g.table, g.generation): [
                    list(row)
                    for row in zip(g.keys.tolist(), g.records.tolist(), g.alive.tolist(), strict=True)
                ]
                for g in m.join.generations
            },
            "texts": m.join.texts,
        }
    return {
        "document": loaded.engine.document,
        "models": models,
        "offsets": dict(loaded.offsets),
        "documents": dict(loaded.documents),
        "outbox": list(loaded.outbox),
        "receipts": list(loaded.receipts),
    }


def random_commit(chance: random.Random, plain: Plain) -> Commit:
    """Some commit that may follow on a state."""
    names = ["toxicity", "speech", "ä\0"]
    models = {n: _model(chance, plain.models.get(n, PlainModel())) for n in names if chance.random() < 0.5}
    rest: dict[str, Any] = {"offsets": {f"t-{chance.randint(0, 3)}": chance.randint(0, 2**62)}}
    messages = [
        StoredMessage(
            "on-call", f"msg_{chance.randint(0, 6)}", "k\0", "gap", chance.randint(0, 9), bytes([0, 255])
        )
        for _ in range(chance.randint(0, 2))
    ]
    if messages and len({m.id for m in messages} | {i for _, i in plain.outbox}) == len(messages) + len(
        plain.outbox
    ):
        rest["messages"] = messages
    if chance.random() < 0.3:
        rest["delivered"] = [("on-call", f"msg_{chance.randint(0, 6)}")]
    if chance.random() < 0.3:
        receipt = {"accepted": chance.randint(0, 9)}
        rest["receipts"] = [Receipt("posted", chance.choice(TEXTS), chance.choice([0, TOP]), receipt)]
    if chance.random() < 0.3:
        rest["documents"] = {chance.choice(["notifier", ""]): _document(chance)}
    if chance.random() < 0.3:
        rest["ledger"] = [_document(chance) for _ in range(chance.randint(0, 3))]
    document = _document(chance) if chance.random() < 0.5 else None
    return Commit(EngineChanges(document, models), rest)


def _document(chance: random.Random) -> Any:
    return chance.choice(
        [
            {},
            [],
            {"a": [1, None, 0.1, -0.0, 2**70, True]},
            {"\0": chance.choice(TEXTS)},
            "x",
            5,
            {"b": {"c": [[]]}},
        ]
    )


def _model(chance: random.Random, plain: PlainModel) -> ModelChanges:
    first = len(plain.cells)
    cells = [
        (chance.choice(TEXTS), chance.choice(TEXTS), str(first + i)) for i in range(chance.randint(0, 3))
    ]
    known = first + len(cells)
    dropped = [n for n in ("all", "open:1", "step:60000:0") if chance.random() < 0.1]
    tables = {}
    for name in ("all", "open:1", "step:60000:0"):
        if chance.random() < 0.4:
            at = sorted(chance.sample(range(known), chance.randint(0, min(known, 4))))
            wide = chance.random() < 0.2
            top = 2**90 if wide else 2**63 - 1
            rows = [
                [chance.choice([0, 1, -1, top, -top, chance.randint(0, 99)]) for _ in range(3)] for _ in at
            ]
            sums: Any = np.array(rows, object if wide else np.int64).reshape(len(at), 3)
            tables[name] = CellSums(np.array(at, np.int64), sums)
    documents = {"rules": _document(chance)} if chance.random() < 0.3 else {}
    texts = {
        chance.choice([0, 1, 2**63, TOP]): chance.choice([None, "", "said\0", ["a", None]])
        for _ in range(chance.randint(0, 2))
    }
    join = JoinChanges(_generations(chance, plain, known), [TextChanges("waiting", texts)] if texts else [])
    return ModelChanges(first, cells, tables, dropped, documents, join)


def _generations(chance: random.Random, plain: PlainModel, cells: int) -> list[GenerationChanges]:
    changes = []
    for table, dtype in DTYPES.items():
        for number in range(3):
            rows = plain.generations.get((table, number), [])
            fate = chance.random()
            if fate < 0.4:
                continue
            if fate < 0.5:
                none = np.empty(0, dtype)
                changes.append(
                    GenerationChanges(
                        table, number, 0, np.empty(0, np.uint64), none, NO_ROWS, none, NO_ROWS, dead=True
                    )
                )
                continue
            first, new = len(rows), chance.randint(0, 4)
            keys = np.array([chance.choice([0, TOP, chance.randint(0, TOP)]) for _ in range(new)], np.uint64)
            updated = sorted(chance.sample(range(first), chance.randint(0, min(first, 2))))
            deleted = sorted(chance.sample(range(first + new), chance.randint(0, min(first + new, 3))))
            changes.append(
                GenerationChanges(
                    table,
                    number,
                    first,
                    keys,
                    _records(chance, dtype, new, cells),
                    np.array(updated, np.int64),
                    _records(chance, dtype, len(updated), cells),
                    np.array(deleted, np.int64),
                )
            )
    return changes


def _records(chance: random.Random, dtype: np.dtype[np.void], rows: int, cells: int) -> Any:
    records = np.zeros(rows, dtype)
    if rows:
        records["cell"] = [chance.randrange(cells) if cells else 0 for _ in range(rows)]
        records[(dtype.names or ())[0]] = [chance.randint(-(2**63), 2**63 - 1) for _ in range(rows)]
    return records


def story(seed: int, commits: int) -> tuple[list[Commit], list[Plain]]:
    """Commits, and the states before, between and after them."""
    chance = random.Random(seed)
    made: list[Commit] = []
    states = [Plain()]
    for _ in range(commits):
        made.append(random_commit(chance, states[-1]))
        states.append(states[-1].after(made[-1]))
    return made, states
