"""The tables of the database, how they came to be, and the seal that every row carries."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import xxhash

APPLICATION = 0x464D4F4E  # "FMON", in the header of the database
KEYS = {
    "meta": ("name",),
    "models": ("id", "name"),
    "cells": ("id",),
    "tables": ("id", "model", "name"),
    "sums": ("id",),
    "documents": ("owner", "name"),
    "texts": ("model", "kind", "key"),
    "generations": ("name",),
    "offsets": ("partition",),
    "outbox": ("channel", "id"),
    "receipts": ("source", "key"),
    "ledger": ("number",),
}
"""The tables, and the columns that say what a row is about. ``body`` is its content, sealed."""
_SEEDS = {table: xxhash.xxh3_64_intdigest(table.encode()) for table in KEYS}


def _version_1(database: sqlite3.Connection) -> None:
    for statement in (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, body BLOB NOT NULL)",
        "CREATE TABLE cells (id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
        "CREATE TABLE tables (id INTEGER PRIMARY KEY, model INTEGER NOT NULL, name TEXT NOT NULL,"
        " body BLOB NOT NULL, UNIQUE (model, name))",
        "CREATE TABLE sums (id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
        "CREATE TABLE documents (owner INTEGER, name TEXT, body BLOB NOT NULL, PRIMARY KEY (owner, name))",
        "CREATE TABLE texts (model INTEGER, kind TEXT, key INTEGER, body BLOB NOT NULL,"
        " PRIMARY KEY (model, kind, key)) WITHOUT ROWID",
        "CREATE TABLE generations (name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE offsets (partition TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, channel TEXT NOT NULL,"
        " id TEXT NOT NULL, body BLOB NOT NULL, UNIQUE (channel, id))",
        "CREATE TABLE receipts (number INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL,"
        " key TEXT NOT NULL, body BLOB NOT NULL, UNIQUE (source, key))",
        "CREATE TABLE ledger (number INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    ):
        database.execute(statement)


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_version_1,)
"""``MIGRATIONS[v]`` makes schema v + 1 of schema v; schema 0 is an empty database. Never change one."""


def _digest(table: str, key: tuple[str | int, ...], content: bytes) -> bytes:
    """Checksum of content at its place."""
    seed = _SEEDS[table]
    if len(key) == 1 and isinstance(key[0], int):
        seed ^= key[0] % 2**64
    else:
        seed = xxhash.xxh3_64_intdigest(repr(key).encode(), seed)
    return xxhash.xxh3_64_digest(content, seed)


def sealed(table: str, key: tuple[str | int, ...], content: bytes) -> bytes:
    """Content as a row at this place holds it."""
    return content + _digest(table, key, content)


def opened(table: str, key: tuple[Any, ...], body: Any) -> bytes | None:
    """The content that was sealed; None: it is not what it was, or not where it was."""
    if not isinstance(body, bytes) or body[-8:] != _digest(table, key, body[:-8]):
        return None
    return body[:-8]
