"""What passes between the engine and the store: what changed since the last commit, and what was stored.

Sums, numbers of cells and rows of pending predictions are arrays; small things are JSON documents, written
whole when they change. Nothing here knows files.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from monitor.batch import Keys
from monitor.cells import Cell, CellSums
from monitor.tasks.base import Ints, Records

Document = Mapping[str, Any] | Sequence[Any] | str | int | float | bool | None
"""JSON: what ``json.dumps`` takes and gives back equal."""
JoinTable = Literal["pending", "recent"]


@dataclass(frozen=True, slots=True)
class GenerationChanges:
    """What changed in one generation of a pending table.

    ``keys`` and ``records`` are rows appended from row ``first_row`` on. ``updated`` are rows below that
    which have new ``updates``; ``deleted`` rows that are gone (they may have been appended by these very
    changes). ``dead``: the whole generation is gone; nothing else is given then.
    """

    table: JoinTable
    generation: int
    first_row: int
    keys: Keys
    records: Records
    updated: Ints
    updates: Records
    deleted: Ints
    dead: bool = False


@dataclass(frozen=True, slots=True)
class TextChanges:
    """Texts that wait, by kind and key: what is new or replaced (None: gone)."""

    kind: str
    texts: Mapping[int, Sequence[str | None] | str | None]


@dataclass(frozen=True, slots=True)
class JoinChanges:
    """What changed in the join of one model."""

    generations: Sequence[GenerationChanges] = ()
    texts: Sequence[TextChanges] = ()


@dataclass(frozen=True, slots=True)
class ModelChanges:
    """What changed in one model.

    ``cells`` are new entries of the dictionary, numbered from ``first_cell``. ``tables`` hold the rows of
    named tables of sums that have new values (a row may be all zeros); ``dropped`` names tables that are gone
    (before ``tables`` are written). ``documents`` are small parts, whole.
    """

    first_cell: int
    cells: Sequence[Cell]
    tables: Mapping[str, CellSums]
    dropped: Sequence[str]
    documents: Mapping[str, Document]
    join: JoinChanges = field(default_factory=JoinChanges)


@dataclass(frozen=True, slots=True)
class EngineChanges:
    """What changed in the engine: ``document`` is its own small part, whole (None: unchanged)."""

    document: Document
    models: Mapping[str, ModelChanges]


@dataclass(frozen=True, slots=True)
class GenerationState:
    """A generation as stored: all its rows in order, and which are still there."""

    table: JoinTable
    generation: int
    keys: Keys
    records: Records
    alive: np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class JoinState:
    """The join of one model as stored; generations ascend."""

    generations: Sequence[GenerationState] = ()
    texts: Mapping[str, Mapping[int, Sequence[str | None] | str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model as stored."""

    cells: Sequence[Cell]
    tables: Mapping[str, CellSums]
    documents: Mapping[str, Any]
    join: JoinState = field(default_factory=JoinState)


@dataclass(frozen=True, slots=True)
class EngineState:
    """Everything that was stored of an engine."""

    document: Any
    models: Mapping[str, ModelState]


def canonical_document(name: str, document: Any, cells: Sequence[Cell]) -> Any:
    """A document of a model so that it follows from the events alone: nothing is named by number or order."""
    if name == "dictionary":
        bits = np.frombuffer(b64decode(document["cells"]), np.uint8)
        flags = np.unpackbits(bits)[: len(cells)].tolist()
        admitted = sorted(list(cell) for cell, flag in zip(cells, flags, strict=False) if flag)
        return {**document, "cells": admitted}
    if name == "rules":
        return {rule: sorted(watches, key=lambda w: str(w["key"])) for rule, watches in document.items()}
    if name == "counters":
        counters = [
            {**c, "groups": None, "sums": sorted(zip(c["groups"], c["sums"], strict=True))}
            for c in document["counters"]
        ]
        return {**document, "counters": counters}
    if name == "join":
        return {"counts": document["counts"]}  # how generations lie follows from the batches
    return document
