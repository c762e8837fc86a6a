"""The cell table: one row of integer sums per combination of attribute values and time bucket.

Everything the monitor reports is a sum of these rows. Adding is associative, so batch boundaries,
partitions and the order of merging change no bit.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.names import OTHER
from monitor.tasks.base import Ints, Scatter

Cell = tuple[str, ...]

MAX_EVENTS = 2**33 - 1
"""Events an int64 sum may hold: 2**33 events of at most 2**30 steps each stay below 2**63.

A table that gets more goes on with Python's integers, which have no limit: slower, still exact.
"""

_CANDIDATES = 8
"""Values (cells) that may ever wait for admission, as a multiple of the cap."""


@dataclass(frozen=True, slots=True)
class AttributeCap:
    """An attribute of the cells and how many of its values are told apart; the rest is ``other``."""

    name: str
    max_values: int


class CellDictionary:
    """Attribute combinations of one model, numbered in the order of their first event.

    New values and combinations count from their first event, and are *admitted* when the time
    bucket that holds them closes; admission is for good. Below the cap every one is admitted. Beyond
    it, the values that ``river.sketch.HeavyHitters`` nominates from the bucket's counts (fed in
    sorted order) take the places left, and the others count as ``other`` in that bucket. What is
    admitted depends on the contents of the buckets, not on the order of arrival. At most ``8 × cap``
    values may ever be candidates; later new ones are folded as they arrive, so memory is bounded. Values
    of events that turn out to be late use up candidates, too.

    Combinations have a cap of their own, ``max_cells``: the most frequent of a bucket are admitted
    first, the others are folded attribute by attribute, the last declared attribute first.

    State: O(cap of every attribute + max_cells).
    """

    def __init__(self, attributes: Sequence[AttributeCap], max_cells: int) -> None:
        self.attributes = tuple(attributes)
        self.max_cells = max_cells
        self.cells: list[Cell] = []
        self.admitted = 0
        self._number: dict[Cell, int] = {}
        self._is_admitted = np.zeros(64, np.bool_)
        self._values: list[dict[str, bool]] = [{OTHER: True} for _ in attributes]
        self._admitted_values = [0] * len(self.attributes)
        self._placeless: list[set[str]] = [set() for _ in attributes]
        self._folded_to = np.zeros(64, np.int64)
        everything_else = self._append(tuple(OTHER for _ in attributes))
        self._is_admitted[everything_else] = True

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def folded_to(self) -> Ints:
        """For each cell the admitted cell that its events are counted in after its bucket closed."""
        return self._folded_to[: len(self.cells)]

    def intern(self, values: Cell) -> int:
        """Number of the cell with these values; a new one where there is room, else a folded one."""
        number = self._number.get(values)
        if number is not None:
            return number
        folded = tuple(self._value(i, v) for i, v in enumerate(values))
        number = self._number.get(folded)
        if number is not None:
            return number
        if len(self.cells) < (_CANDIDATES + 1) * self.max_cells:
            return self._append(folded)
        for placeless, value in zip(self._placeless, folded, strict=True):
            placeless.add(value)
        return self._fold(folded, known_only=True)

    def admit(self, cells: Ints, events: Ints) -> None:
        """Decide on the cells of a closing time bucket; ``events[i]`` is the events of ``cells[i]``.

        Afterwards :attr:`folded_to` says where each of these cells' sums belong.
        """
        waiting = ~self._is_admitted[cells]
        if not waiting.any():
            return
        numbers = cells[waiting]
        fresh = dict(zip(numbers.tolist(), events[waiting].tolist(), strict=True))
        everything = [self._admit_values(i, cells, events, fresh) for i in range(len(self.attributes))]
        if all(everything) and self.admitted + len(fresh) <= self.max_cells:
            self._is_admitted[numbers] = True
            self._folded_to[numbers] = numbers
            self.admitted += len(fresh)
            return
        wanted: dict[Cell, int] = {}
        for cell, count in fresh.items():
            values = self._after_folding(cell)
            wanted[values] = wanted.get(values, 0) + count
        for values in sorted(wanted, key=lambda v: (-wanted[v], v)):
            if self.admitted >= self.max_cells:
                break
            number = self._number.get(values)
            if number is None:
                number = self._append(values)
            if not self._is_admitted[number]:
                self._is_admitted[number] = True
                self._folded_to[number] = number
                self.admitted += 1
        for cell in fresh:
            self._folded_to[cell] = self._fold(self._after_folding(cell), known_only=False)

    @property
    def version(self) -> tuple[int, ...]:
        """Changes whenever :meth:`snapshot` does."""
        return (self.admitted, *self._admitted_values, *(len(p) for p in self._placeless))

    def snapshot(self) -> dict[str, Any]:
        """What is admitted, as JSON; with :attr:`cells` it is all there is to restore.

        An admitted cell is counted in itself, and where the others are is decided anew at each close. A value
        is a candidate when a cell has it, except for those that came when there was no room for cells.
        """
        flags = np.packbits(self._is_admitted).tobytes().rstrip(b"\0")  # one text, however many wait
        return {
            "cells": b64encode(flags).decode(),
            "values": [sorted(v for v, admitted in known.items() if admitted) for known in self._values],
            "placeless": [sorted(values) for values in self._placeless],
        }

    def restore(self, cells: Iterable[Cell], snapshot: Mapping[str, Any]) -> None:
        """Make this fresh dictionary what the other was; ``cells`` may have more than it had then."""
        for cell in cells:
            if cell not in self._number:
                self._append(cell)
            for known, value in zip(self._values, cell, strict=True):
                known.setdefault(value, False)
        flags = np.unpackbits(np.frombuffer(b64decode(snapshot["cells"]), np.uint8))
        self._is_admitted[np.flatnonzero(flags)] = True
        self.admitted = int(flags.sum()) - 1  # that everything else has its cell is no admission
        for i, known in enumerate(self._values):
            self._placeless[i] = set(snapshot["placeless"][i])
            known.update((v, False) for v in self._placeless[i] if v not in known)
            known.update((v, True) for v in snapshot["values"][i])
            self._admitted_values[i] = sum(known.values()) - 1

    def _value(self, attribute: int, value: str) -> str:
        known = self._values[attribute]
        state = known.get(value)
        if state is None:
            cap = self._cap(attribute)
            if self._admitted_values[attribute] >= cap or len(known) > _CANDIDATES * cap:
                return OTHER
            known[value] = False
            return value
        return value if state or self._admitted_values[attribute] < self._cap(attribute) else OTHER

    def _cap(self, attribute: int) -> int:
        return self.attributes[attribute].max_values

    def _append(self, values: Cell) -> int:
        number = len(self.cells)
        if number == len(self._folded_to):
            self._folded_to = np.concatenate([self._folded_to, np.zeros(number, np.int64)])
            self._is_admitted = np.concatenate([self._is_admitted, np.zeros(number, np.bool_)])
        self.cells.append(values)
        self._number[values] = number
        self._folded_to[number] = number
        return number

    def _admit_values(self, attribute: int, cells: Ints, events: Ints, fresh: Iterable[int]) -> bool:
        """Admit values of an attribute; return whether there was room for every one."""
        known = self._values[attribute]
        candidates = sorted({v for c in fresh if not known.get(v := self.cells[c][attribute])})
        room = self._cap(attribute) - self._admitted_values[attribute]
        fits = len(candidates) <= room
        if not fits:
            per_value: dict[str, int] = {}
            for cell, count in zip(cells.tolist(), events.tolist(), strict=True):
                value = self.cells[cell][attribute]
                per_value[value] = per_value.get(value, 0) + count
            candidates = _heaviest(per_value, set(candidates), room, self._cap(attribute))
        for value in candidates:
            known[value] = True
        self._admitted_values[attribute] += len(candidates)
        return fits

    def _after_folding(self, cell: int) -> Cell:
        return tuple(v if self._values[i].get(v) else OTHER for i, v in enumerate(self.cells[cell]))

    def _fold(self, values: Cell, *, known_only: bool) -> int:
        """The cell for ``values`` among those that exist, folding the last attribute first."""
        for kept in range(len(values), -1, -1):
            folded = values[:kept] + (OTHER,) * (len(values) - kept)
            number = self._number.get(folded)
            if number is not None and (known_only or self._is_admitted[number]):
                return number
        return 0


def _heaviest(per_value: Mapping[str, int], candidates: set[str], room: int, cap: int) -> list[str]:
    """The candidates that river's HeavyHitters nominates, most frequent first, at most ``room``."""
    if room <= 0:
        return []
    from river.sketch import HeavyHitters  # only a full dictionary needs it

    share = 1 / (10 * cap)
    sketch = HeavyHitters(support=share, epsilon=2 * share, fading_factor=1.0)
    total = sum(per_value.values())
    thin = max(1, total // 10_000)
    for value in sorted(per_value):
        for _ in range(-(-per_value[value] // thin)):
            sketch.update(value)
    nominated = [v for v, _ in sketch.most_common(len(per_value)) if v in candidates]
    heavy = [v for v in nominated if per_value[v] >= share * total]
    return sorted(heavy, key=lambda v: (-per_value[v], v))[:room]


def add_rows(sums: Ints, into: Ints, rows: Ints) -> None:
    """Add row i of ``rows`` to row ``into[i]`` of ``sums``, repeats included; exact.

    One flat index is several times quicker than ``np.add.at`` over rows.
    """
    width = sums.shape[1]
    np.add.at(sums.reshape(-1), (into[:, None] * width + np.arange(width)).reshape(-1), rows.reshape(-1))


@dataclass(frozen=True, slots=True)
class CellSums:
    """Sums of some cells: ``sums[i]`` belongs to cell ``cells[i]``; cells ascend, none twice."""

    cells: NDArray[np.int64]
    sums: Ints

    def merge(self, other: CellSums) -> CellSums:
        """Cell-wise sum of two tables over the same dictionary; associative and commutative."""
        cells = np.union1d(self.cells, other.cells)
        sums = np.zeros((len(cells), self.sums.shape[1]), np.result_type(self.sums, other.sums))
        sums[np.searchsorted(cells, self.cells)] += self.sums
        sums[np.searchsorted(cells, other.cells)] += other.sums
        return CellSums(cells, sums)

    def since(self, before: CellSums | None) -> CellSums:
        """The rows that ``before`` did not have, or had with other sums; it had none that are gone."""
        if before is None or not before.cells.size:
            return self
        at = np.minimum(np.searchsorted(before.cells, self.cells), len(before.cells) - 1)
        same = (before.cells[at] == self.cells) & (before.sums[at] == self.sums).all(axis=1)
        return CellSums(self.cells[~same], self.sums[~same])


class CellTable:
    """Dense integer sums, one row per cell: an open time bucket, or the running total of a window."""

    __slots__ = ("_touched", "events", "sums")

    def __init__(self, cells: int, statistics: int) -> None:
        self.sums: Ints = np.zeros((max(cells, 1), statistics), np.int64)
        self.events = 0
        self._touched: NDArray[np.bool_] | None = None

    def add(self, cells: Ints, scatters: Iterable[Scatter], sign: int = 1) -> None:
        """Add (or with ``sign=-1`` take back) what events contribute to their cells."""
        if cells.size == 0:
            return
        self._count(cells.size)
        self.reserve(int(cells.max()) + 1)
        if self._touched is not None:
            self._touched[cells] = True
        flat, width = self.sums.reshape(-1), self.sums.shape[1]
        rows = cells * width
        for scatter in scatters:
            value = scatter.value if sign == 1 else -scatter.value
            np.add.at(flat, rows + scatter.statistic, value)

    def reserve(self, cells: int) -> None:
        """Make room for cells 0 … cells-1."""
        have = len(self.sums)
        if cells > have:
            grown = np.zeros((max(cells, have + have // 2), self.sums.shape[1]), self.sums.dtype)
            grown[:have] = self.sums
            self.sums = grown
            if self._touched is not None:
                self._touched = np.concatenate([self._touched, np.zeros(len(grown) - have, np.bool_)])

    def include(self, part: CellSums, sign: int = 1) -> None:
        """Add (``sign=1``) or subtract (``sign=-1``) the sums of a closed bucket."""
        if part.cells.size:
            self._count(sign * int(part.sums[:, :2].sum()))
            if part.sums.dtype == np.object_:
                self._widen()
            self.reserve(int(part.cells[-1]) + 1)
            if self._touched is not None:
                self._touched[part.cells] = True
            if sign == 1:
                self.sums[part.cells] += part.sums
            else:
                self.sums[part.cells] -= part.sums

    def closed(self, folded_to: Ints) -> CellSums:
        """The non-zero rows, each counted in the cell it is folded to."""
        touched = np.flatnonzero(self.sums.any(axis=1))
        rows = self.sums[touched]
        target = folded_to[touched]
        if np.array_equal(target, touched):
            return CellSums(touched, rows)
        cells, inverse = np.unique(target, return_inverse=True)
        sums = np.zeros((len(cells), rows.shape[1]), rows.dtype)
        add_rows(sums, inverse, rows)
        return CellSums(cells, sums)

    def track(self) -> None:
        """From now on note which rows change; at first, all that are not zero have."""
        self._touched = (self.sums != 0).any(axis=1)

    def changed(self) -> CellSums:
        """The rows that were added to since the last call, as they are now; :meth:`track` comes first."""
        if self._touched is None or not self._touched.any():
            return CellSums(np.empty(0, np.int64), self.sums[:0])
        cells = np.flatnonzero(self._touched)
        self._touched[cells] = False
        return CellSums(cells, self.sums[cells])

    def _count(self, events: int) -> None:
        self.events += events
        if self.events > MAX_EVENTS:
            self._widen()

    def _widen(self) -> None:
        if self.sums.dtype != np.object_:
            self.sums = self.sums.astype(np.object_)


class TableLog:
    """Which named tables of sums have changed since their changes were last taken.

    Parameters
    ----------
    stored
        Names of the tables that whoever takes the changes has already.
    known
        Those of them that :meth:`put` will be called with, as they are there.
    bare
        Names of tables that exist, with nothing but zeros.

    State: O(tables), and what has changed.
    """

    def __init__(
        self,
        stored: Iterable[str] = (),
        known: Mapping[str, CellSums] | None = None,
        bare: Iterable[str] = (),
    ) -> None:
        self._stored = set(stored)
        self._known = dict(known or {})
        self._put: dict[str, CellSums] = {}
        self._rows: dict[str, CellSums] = {}
        self._dropped: dict[str, None] = {}
        self.bare = set(bare)

    def put(self, name: str, table: CellSums) -> None:
        """The table is this now; its sums are never written to again."""
        if self._known.get(name) is not table:
            self._put[name] = table

    def note(self, name: str, table: CellTable) -> None:
        """Take the rows of a tracked table that changed."""
        rows = table.changed()
        if rows.cells.size:
            self._rows[name] = rows
            self._mark(name, bare=not rows.sums.any() and not table.sums.any())

    def drop(self, name: str) -> None:
        """The table is no more; one of the same name may come."""
        self._put.pop(name, None)
        self._known.pop(name, None)
        self.bare.discard(name)
        if name in self._stored:
            self._stored.discard(name)
            self._dropped[name] = None

    def take(self) -> tuple[dict[str, CellSums], list[str]]:
        """Rows with new values by table, and the tables that are gone: those first, then the rows."""
        tables, dropped = self._rows, list(self._dropped)
        for name, table in self._put.items():
            rows = table.since(self._known.get(name))
            self._known[name] = table
            self._mark(name, bare=not table.sums.any())
            if rows.cells.size:
                tables[name] = rows
        self._stored.update(tables)
        self._rows, self._put, self._dropped = {}, {}, {}
        return tables, dropped

    def _mark(self, name: str, *, bare: bool) -> None:
        if bare:
            self.bare.add(name)
        else:
            self.bare.discard(name)
