"""The store: SQLite for all that is small, generation files beside it, one transaction per commit."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from monitor.cells import Cell, CellSums
from monitor.checkpoint import (
    Document,
    EngineChanges,
    EngineState,
    GenerationChanges,
    GenerationState,
    JoinState,
    ModelChanges,
    ModelState,
)
from monitor.store.contents import (
    Canonical,
    Loaded,
    Receipt,
    StoredGeneration,
    StoredMessage,
    as_generation,
    as_message,
    as_sums,
    canonical_lines,
    of_message,
    rows_of_sums,
    to_json,
)
from monitor.store.directory import (
    DATABASE,
    LAST,
    StoreError,
    damaged,
    explained,
    locked,
    note,
    noted,
    sync_directory,
)
from monitor.store.generations import SUFFIX, Appender, appending, layout_of, read, tidy, unwritten
from monitor.store.schema import APPLICATION, KEYS, MIGRATIONS, opened, sealed

_WAL_PAGES = 4000
_WAL_BYTES = 64 << 20
_BIT = 32
"""Rows of a numbered thing (cells of a model, sums of a table) are numbered ``thing << 32 | row``."""
_ENGINE, _SERVICE = 0, -1
"""Owners of documents that are no model."""


class Store:
    """The state of one monitor in a directory. What is on disk is always what one whole commit left.

    Commits
        SQLite in WAL mode with ``synchronous=FULL``: a commit that returned survives a power cut. Less
        would not do, because Kafka's offsets, answers to posts and the end of files of dead generations come
        after it and assume it. Generation files are appended and synced first; how much of them is valid is
        part of the transaction.
    Cost
        A commit writes the rows that changed, whatever the size of the state.
    Damage
        Every row of the database carries an xxh3 of its content and place, and every segment of a generation
        file, too; all are verified when they are loaded, and how SQLite's pages hang together when it is
        opened, so no row is lost unseen. ``last-commit`` holds the number of the last commit,
        so a write-ahead log that lost its end does not pass for an older state.
    One process
        A lock on the directory is held until :meth:`close`.

    Use :meth:`open`. All errors are :class:`StoreError`. After a failed :meth:`commit` what is stored is as
    before, and the same commit may be tried again.
    """

    def __init__(
        self,
        directory: Path,
        database: sqlite3.Connection,
        lock: int,
        now_ms: Callable[[], int],
        keep_receipts: int,
    ) -> None:
        self._directory = directory
        self._database = database
        self._lock: int | None = lock
        self._now_ms = now_ms
        self._keep_receipts = keep_receipts
        self._last: int | None = None

    # opening and closing -------------------------------------------------------------------------

    @classmethod
    def open(cls, directory: Path, *, now_ms: Callable[[], int], keep_receipts: int = 10_000) -> Store:
        """Open the state in a directory, which is created (mode 0700) when it is not there.

        Parameters
        ----------
        directory
            Of this monitor alone.
        now_ms
            The clock, in milliseconds; for what :meth:`info` tells.
        keep_receipts
            Receipts that are kept; older ones are forgotten.

        Raises
        ------
        StoreError
            The directory cannot be used, another process uses it, or what is in it is damaged or of a
            newer version.
        """
        with explained("open the state in", directory):
            if not directory.exists():
                directory.mkdir(mode=0o700, parents=True)
                sync_directory(directory.parent)
            lock = locked(directory)
        store = None
        try:
            with explained("open the state in", directory):
                os.close(os.open(directory / DATABASE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                database = sqlite3.connect(
                    directory / DATABASE, isolation_level=None, check_same_thread=False
                )
                store = cls(directory, database, lock, now_ms, keep_receipts)
                store._begin()
            return store
        except BaseException:
            if store is None:
                os.close(lock)
            else:
                store.close()
            raise

    def _begin(self) -> None:
        execute = self._database.execute
        execute("PRAGMA locking_mode=EXCLUSIVE")  # no shared-memory file; works on network drives, too
        version = self._version()
        if version:  # half a second for 250 MB, and to load them takes much longer
            found = execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise damaged(self._directory / DATABASE, found.splitlines()[-1])
        if execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
            raise StoreError(
                f"cannot open the state in {self._directory}: its drive does not support write-ahead logs"
            )
        execute("PRAGMA synchronous=FULL")
        execute("PRAGMA trusted_schema=OFF")
        execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")
        execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
        for old in range(version, len(MIGRATIONS)):
            with self._transaction():
                MIGRATIONS[old](self._database)
                execute(f"PRAGMA application_id={APPLICATION}")
                execute(f"PRAGMA user_version={old + 1}")
        commits = self._last_commit()["number"]
        self._last = os.open(self._directory / LAST, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if commits < (made := noted(os.pread(self._last, 64, 0))):
            raise damaged(
                self._directory / DATABASE, f"it holds commit {commits}, and commit {made} had been made"
            )
        tidy(self._directory, {name: stored.extent for name, stored in self._generations().items()})
        self._note(commits)
        sync_directory(self._directory)

    def _version(self) -> int:
        """The schema of the database; 0: it is empty."""
        execute, path = self._database.execute, self._directory / DATABASE
        application = execute("PRAGMA application_id").fetchone()[0]
        version: int = execute("PRAGMA user_version").fetchone()[0]
        if (
            not application
            and not version
            and not execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        ):
            return 0
        if application != APPLICATION or version < 1:
            raise StoreError(f"{path} is not a state of the fairness monitor; give it a directory of its own")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{path} was written by a newer version of the monitor (schema {version}, and this one knows "
                f"{len(MIGRATIONS)}); run that version, or give this one a directory of its own"
            )
        return version

    def close(self) -> None:
        """Close the files and let go of the directory."""
        with suppress(sqlite3.Error):  # what was committed is safe in the write-ahead log as well
            self._database.close()
        for descriptor in (self._last, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._last = self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # writing -------------------------------------------------------------------------------------

    def commit(
        self,
        changes: EngineChanges,
        *,
        offsets: Mapping[str, int],
        documents: Mapping[str, Document] | None = None,
        messages: Iterable[StoredMessage] = (),
        delivered: Iterable[tuple[str, str]] = (),
        receipts: Iterable[Receipt] = (),
        ledger: Iterable[Document] = (),
    ) -> None:
        """Store everything given as one transaction; when this returns, it survives a power cut.

        Parameters
        ----------
        changes
            What changed in the engine since the last commit.
        offsets
            The next offset of partitions, by name; those not given stay.
        documents
            Small parts of the service, whole; those not given stay.
        messages
            New ones of the outbox.
        delivered
            Channel and id of messages that leave the outbox (those given by this very call, too).
        receipts
            New answers to posts; for a source and key there is one.
        ledger
            What is kept for good, in order.

        Raises
        ------
        StoreError
            Nothing was stored. The same call may be made again.
        """
        with (
            explained("write the state to", self._directory),
            appending(self._directory) as appender,
            self._transaction(),
        ):
            dead: list[str] = []
            if changes.document is not None:
                self._put("documents", [((_ENGINE, ""), to_json(changes.document))])
            for name, model in changes.models.items():
                dead += self._write_model(name, model, appender)
            self._put("offsets", (((partition,), to_json(n)) for partition, n in offsets.items()))
            self._put("documents", (((_SERVICE, n), to_json(d)) for n, d in (documents or {}).items()))
            self._put("outbox", (((m.channel, m.id), of_message(m)) for m in messages))
            self._database.executemany("DELETE FROM outbox WHERE channel = ? AND id = ?", delivered)
            self._put("receipts", (((r.source, r.key), to_json([r.digest, r.receipt])) for r in receipts))
            self._database.execute(
                "DELETE FROM receipts WHERE number <= (SELECT max(number) FROM receipts) - ?",
                (self._keep_receipts,),
            )
            first = self._largest("ledger", "number") + 1
            self._put("ledger", (((n,), to_json(d)) for n, d in enumerate(ledger, first)))
            commit = self._last_commit()
            commit["number"] += 1
            commit["at_ms"] = self._now_ms()
            self._put("meta", [(("commit",), to_json(commit))])
            appender.sync()
        for name in dead:
            with suppress(OSError):  # what is left is deleted when the store is opened
                (self._directory / name).unlink()
        self._note(commit["number"])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
            raise

    def _put(self, table: str, rows: Iterable[tuple[tuple[str | int, ...], bytes]]) -> None:
        keys = KEYS[table]
        marks = ", ".join("?" for _ in (*keys, "body"))
        self._database.executemany(
            f"INSERT OR REPLACE INTO {table} ({', '.join(keys)}, body) VALUES ({marks})",
            ((*key, sealed(table, key, content)) for key, content in rows),
        )

    def _largest(self, table: str, column: str, low: int = 1, high: int = 2**63 - 1) -> int:
        """The largest number in a range; the one before the range when it is empty."""
        found = self._database.execute(
            f"SELECT max({column}) FROM {table} WHERE {column} BETWEEN ? AND ?", (low, high)
        ).fetchone()[0]
        return low - 1 if found is None else int(found)

    def _write_model(self, name: str, changes: ModelChanges, appender: Appender) -> list[str]:
        """Write what changed in a model; return the files that are not needed any more."""
        found = self._database.execute("SELECT id FROM models WHERE name = ?", (name,)).fetchone()
        model: int = found[0] if found else self._largest("models", "id") + 1
        if not found:
            self._put("models", [((model, name), b"")])
        cells = self._largest("cells", "id", *_span(model)) + 1 - (model << _BIT)
        if changes.first_cell != cells:
            raise StoreError(
                f"model {name} has {cells} cells, and changes go on at cell {changes.first_cell}"
            )
        self._put("cells", (((n,), to_json(c)) for n, c in enumerate(changes.cells, (model << _BIT) + cells)))
        for table in changes.dropped:
            self._drop(model, table)
        for table, sums in changes.tables.items():
            self._write_sums(model, table, sums)
        self._put("documents", (((model, n), to_json(d)) for n, d in changes.documents.items()))
        for texts in changes.join.texts:
            there = {k: t for k, t in texts.texts.items() if t is not None}
            gone = ((model, texts.kind, _signed(k)) for k in texts.texts if k not in there)
            self._database.executemany("DELETE FROM texts WHERE model = ? AND kind = ? AND key = ?", gone)
            self._put("texts", (((model, texts.kind, _signed(k)), to_json(t)) for k, t in there.items()))
        return [
            dead for g in changes.join.generations if (dead := self._write_generation(model, g, appender))
        ]

    def _write_generation(self, model: int, changes: GenerationChanges, appender: Appender) -> str | None:
        name = f"{changes.table}-{model}-{changes.generation}{SUFFIX}"
        known = self._generations(name).get(name)
        if changes.dead:
            self._database.execute("DELETE FROM generations WHERE name = ?", (name,))
            return name if known else None
        if known is None or len(changes.keys) or len(changes.updated) or len(changes.deleted):
            extent = known.extent if known else unwritten(name, layout_of(changes.records.dtype))
            extent = appender.append(name, extent, changes)
            row = {"model": model, "table": changes.table, "generation": changes.generation, **asdict(extent)}
            self._put("generations", [((name,), to_json(row))])
        return None

    def _write_sums(self, model: int, name: str, rows: CellSums) -> None:
        width, wide = rows.sums.shape[1], rows.sums.dtype == np.object_
        table, known_width, known_wide = self._table(model, name)
        if table is None or (wide and not known_wide):
            table = table or self._largest("tables", "id") + 1
            self._put("tables", [((table, model, name), to_json([width, wide]))])
        elif width != known_width:
            raise StoreError(f"table {name} has rows of {known_width} sums, and some of {width} came")
        numbers = ((table << _BIT) + rows.cells).tolist()
        self._put("sums", (((n,), row) for n, row in zip(numbers, rows_of_sums(rows.sums), strict=True)))

    def _drop(self, model: int, name: str) -> None:
        table, _, _ = self._table(model, name)
        if table is not None:
            self._database.execute("DELETE FROM sums WHERE id BETWEEN ? AND ?", _span(table))
            self._database.execute("DELETE FROM tables WHERE id = ?", (table,))

    def _table(self, model: int, name: str) -> tuple[int | None, int, bool]:
        """Number, width, and whether there are sums beyond int64; None when there is no such table."""
        for key, content in self._read("tables", "WHERE model = ? AND name = ?", (model, name)):
            width, wide = json.loads(content)
            return key[0], width, wide
        return None, 0, False

    def _note(self, commits: int) -> None:
        """Note the number of commits beside the database; not synced, hence never ahead of it."""
        if self._last is not None:
            with suppress(OSError):
                os.pwrite(self._last, note(commits), 0)

    # reading -------------------------------------------------------------------------------------

    def load(self) -> Loaded | None:
        """Everything as of the last commit; None when there was none. Every byte read is verified."""
        with explained("read the state in", self._directory):
            return self._load() if self._last_commit()["number"] else None

    def _load(self) -> Loaded:
        names = {key[0]: key[1] for key, _ in self._read("models", "ORDER BY id")}
        cells: dict[int, list[Cell]] = {m: [] for m in names}
        for (number,), content in self._read("cells", "ORDER BY id"):
            known = cells.get(number >> _BIT)
            if known is None or number & 0xFFFFFFFF != len(known):
                raise self._damaged(f"cell {number} is out of place")
            known.append(tuple(json.loads(content)))
        documents: dict[int, dict[str, Any]] = {}
        for (owner, name), content in self._read("documents", "ORDER BY owner, name"):
            documents.setdefault(owner, {})[name] = json.loads(content)
        tables = self._load_tables()
        joins = self._load_joins()
        models = {
            name: ModelState(cells[m], tables.get(m, {}), documents.get(m, {}), joins.get(m, JoinState()))
            for m, name in names.items()
        }
        if not {*tables, *joins, *documents} <= {*names, _ENGINE, _SERVICE}:
            raise self._damaged("it holds parts of a model that is missing")
        return Loaded(
            EngineState(documents.get(_ENGINE, {}).get(""), models),
            {key[0]: json.loads(content) for key, content in self._read("offsets", "ORDER BY partition")},
            documents.get(_SERVICE, {}),
            [as_message(key[0], key[1], content) for key, content in self._read("outbox", "ORDER BY number")],
            [
                Receipt(*key, *json.loads(content))
                for key, content in self._read("receipts", "ORDER BY number")
            ],
        )

    def _load_tables(self) -> dict[int, dict[str, CellSums]]:
        """Tables of sums by model and name."""
        tables = {key[0]: (key, *json.loads(content)) for key, content in self._read("tables", "ORDER BY id")}
        cells: dict[int, list[int]] = {t: [] for t in tables}
        rows: dict[int, list[bytes]] = {t: [] for t in tables}
        for (number,), content in self._read("sums", "ORDER BY id"):
            table = number >> _BIT
            if table not in tables:
                raise self._damaged(f"sums {number} are of no table")
            cells[table].append(number & 0xFFFFFFFF)
            rows[table].append(content)
        out: dict[int, dict[str, CellSums]] = {}
        for table, ((_, model, name), width, wide) in tables.items():
            sums = as_sums(rows[table], width, wide)
            out.setdefault(model, {})[name] = CellSums(np.array(cells[table], np.int64), sums)
        return out

    def _load_joins(self) -> dict[int, JoinState]:
        generations: dict[int, list[GenerationState]] = {}
        for name, stored in self._generations().items():
            state = GenerationState(
                stored.table, stored.generation, *read(self._directory, name, stored.extent)
            )
            generations.setdefault(stored.model, []).append(state)
        texts: dict[int, dict[str, dict[int, Any]]] = {}
        for (model, kind, key), content in self._read("texts", ""):
            texts.setdefault(model, {}).setdefault(kind, {})[key % 2**64] = json.loads(content)
        return {
            m: JoinState(
                sorted(generations.get(m, ()), key=lambda g: (g.table, g.generation)), texts.get(m, {})
            )
            for m in {*generations, *texts}
        }

    def ledger(self, newest: int) -> list[Any]:
        """The newest entries of the ledger, the oldest of them first."""
        with explained("read the state in", self._directory):
            read = self._read("ledger", "ORDER BY number DESC LIMIT ?", (newest,))
            return [json.loads(content) for _, content in read][::-1]

    def _read(
        self, table: str, clause: str, values: tuple[str | int, ...] = ()
    ) -> Iterator[tuple[tuple[Any, ...], bytes]]:
        """Rows of a table as key and content, verified."""
        keys = KEYS[table]
        for *key, body in self._database.execute(
            f"SELECT {', '.join(keys)}, body FROM {table} {clause}", values
        ):
            if (content := opened(table, tuple(key), body)) is None:
                raise self._damaged(f"the checksum of row {key} of {table} is wrong")
            yield tuple(key), content

    def _generations(self, name: str | None = None) -> dict[str, StoredGeneration]:
        """What the manifest says of all generation files, or of one."""
        clause, values = ("ORDER BY name", ()) if name is None else ("WHERE name = ?", (name,))
        return {key[0]: as_generation(content) for key, content in self._read("generations", clause, values)}

    def _last_commit(self) -> dict[str, int]:
        for _, content in self._read("meta", "WHERE name = ?", ("commit",)):
            found: dict[str, int] = json.loads(content)
            return found
        return {"number": 0, "at_ms": 0, "created_ms": self._now_ms()}

    def _damaged(self, what: str) -> StoreError:
        return damaged(self._directory / DATABASE, what)

    # looking -------------------------------------------------------------------------------------

    def export(self, canonical: Canonical | None = None) -> bytes:
        """What the engine has come to, as lines of JSON that follow from the events alone.

        Cells stand with their values, rows are sorted by their keys, and rows of zeros are left out; so
        numbers of cells, generations, batches and commits leave no trace. The outbox, receipts and documents
        of the service are left out: they tell of the wall clock.

        Parameters
        ----------
        canonical
            Makes the documents of models independent of the numbers of cells, where they have any.
        """
        loaded = self.load()
        if loaded is None:
            return b""
        lines = [["engine", loaded.engine.document]]
        lines += (["offset", *item] for item in sorted(loaded.offsets.items()))
        with explained("read the state in", self._directory):
            lines += (
                ["ledger", json.loads(content)] for _, content in self._read("ledger", "ORDER BY number")
            )
        for name, model in sorted(loaded.engine.models.items()):
            lines += (["model", name, *line] for line in canonical_lines(model, canonical))
        return b"".join(
            json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n" for line in lines
        )

    def info(self) -> dict[str, Any]:
        """Sizes, counts, schema and last commit, for people."""
        with explained("read the state in", self._directory):
            commit, generations = self._last_commit(), self._generations()
            files = {p.name: p.stat().st_size for p in self._directory.iterdir() if p.is_file()}
            count = {
                table: self._database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in KEYS
            }
            return {
                "directory": str(self._directory),
                "schema": self._database.execute("PRAGMA user_version").fetchone()[0],
                "created_ms": commit["created_ms"],
                "commits": commit["number"],
                "last_commit_ms": commit["at_ms"],
                "database_bytes": sum(size for name, size in files.items() if name.startswith(DATABASE)),
                "generation_bytes": sum(g.extent.length for g in generations.values()),
                "generations": len(generations),
                "generation_rows": sum(g.extent.rows for g in generations.values()),
                **{t: count[t] for t in KEYS if t not in ("meta", "generations")},
            }

    def verify(self) -> list[str]:
        """Look through everything; return what is wrong, as sentences."""
        problems = []
        path = self._directory / DATABASE
        try:
            with explained("read the state in", self._directory):
                found = [row[0] for row in self._database.execute("PRAGMA integrity_check(20)")]
                problems += [
                    f"{path}: {line}" for text in found for line in text.splitlines() if line != "ok"
                ]
                for table, keys in KEYS.items():
                    for *key, body in self._database.execute(f"SELECT {', '.join(keys)}, body FROM {table}"):
                        if opened(table, tuple(key), body) is None:
                            problems.append(f"{path}: the checksum of row {key} of {table} is wrong")
        except StoreError as error:
            return [*problems, str(error)]
        if problems:
            return problems
        for name, stored in self._generations().items():
            try:
                read(self._directory, name, stored.extent)
            except StoreError as error:
                problems.append(str(error))
        if not problems:
            try:
                self.load()
            except StoreError as error:
                problems.append(str(error))
        return problems


def _span(thing: int) -> tuple[int, int]:
    """The first and last number of the rows of a numbered thing."""
    return thing << _BIT, (thing << _BIT) + 0xFFFFFFFF


def _signed(key: int) -> int:
    """A 64-bit key as SQLite's integer."""
    return key - 2**64 if key >= 2**63 else key
