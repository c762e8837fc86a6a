"""One generation of the pending table: rows in arrival order, and an index of them by key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
"""xxh3 hashes of ids: all 64 bits are taken to be mixed."""
Handles = NDArray[np.int64]
"""``generation number << 32 | row``, or -1 for a key that is not in the table."""
Records = NDArray[np.void]
"""Rows of the table's structured dtype."""
Rows = NDArray[np.int64]
Words = NDArray[np.uint32]

_BLOCK_SHIFT = 12
_BLOCK = 1 << _BLOCK_SHIFT
"""Rows that share one lower bound per field that `expire` was asked for."""
_CHUNK = 1 << 14
"""Rows indexed at a time: the temporary arrays of one chunk stay in the processor's cache."""
_WINDOW = np.arange(8)
"""Slots looked at together: fewer rounds of numpy calls for the few keys with long chains."""
_NOTED = 1 << 18
"""Rows noted as changed before repeats among them are looked for."""
MAX_ROWS = 1 << 30
_DISPLACED = np.uint32(1 << 31)
_LOW = np.uint32((1 << 31) - 1)
HANDLE_SHIFT = 32


def high_bits(keys: Keys) -> Words:
    """The bits of each key that tags are cut from: those the slot does not use."""
    return (keys >> np.uint64(32)).astype(np.uint32) & _LOW


def _block_starts(first_row: int, rows: int) -> Rows:
    """Offsets in `first_row ... first_row + rows` at which a block begins, the first one being 0."""
    blocks = np.arange(first_row >> _BLOCK_SHIFT, ((first_row + rows - 1) >> _BLOCK_SHIFT) + 1)
    starts: Rows = np.maximum((blocks << _BLOCK_SHIFT) - first_row, 0)
    return starts


def _runs(blocks: Rows) -> Iterator[tuple[int, int]]:
    """Consecutive numbers of an ascending array as pairs (first, last + 1)."""
    if blocks.size:
        for run in np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1):
            yield int(run[0]), int(run[-1]) + 1


def without_repeats(rows: Rows) -> Rows:
    """Rows in ascending order, each once."""
    ascending = np.sort(rows)
    repeated = ascending[1:] == ascending[:-1]
    return ascending[np.concatenate(([True], ~repeated))] if repeated.any() else ascending


def occurred_before(keys: Keys) -> NDArray[np.bool_]:
    """Whether each key is also that of an earlier one."""
    again = np.zeros(len(keys), np.bool_)
    ascending = np.sort(keys)
    if (ascending[1:] == ascending[:-1]).any():
        order = np.argsort(keys, kind="stable")
        ascending = keys.take(order)
        again[order[1:][ascending[1:] == ascending[:-1]]] = True
    return again


class RowChanges(NamedTuple):
    """What changed in one generation since it was last asked.

    ``keys`` and ``records`` are the rows from ``first_row`` on; ``updated`` are rows below it that have
    new records, the ``updates``; ``deleted`` are rows that died. With ``dead`` all are gone, and nothing
    else is given.
    """

    generation: int
    first_row: int
    keys: Keys
    records: Records
    updated: Rows
    updates: Records
    deleted: Rows
    dead: bool = False


class StoredRows(NamedTuple):
    """All rows of a generation, dead ones too, and which are live."""

    keys: Keys
    records: Records
    live: NDArray[np.bool_]


class _RowLog:
    """Rows that changed since they were last taken. State: O(distinct rows)."""

    __slots__ = ("_limit", "_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[Rows] = []
        self._size = 0
        self._limit = _NOTED

    def add(self, rows: Rows) -> None:
        """Note rows, repeats allowed. The array is kept, so nobody may change it."""
        self._parts.append(rows)
        self._size += len(rows)
        if self._size > self._limit:
            distinct = self.take()
            self._parts, self._size = [distinct], len(distinct)
            self._limit = max(_NOTED, 2 * len(distinct))

    def take(self) -> Rows:
        """Rows noted since the last call, ascending, each once."""
        parts, self._parts, self._size, self._limit = self._parts, [], 0, _NOTED
        return without_repeats(np.concatenate(parts)) if parts else np.empty(0, np.int64)


class Generation:
    """Rows appended in arrival order, and an index of them by key.

    The index is open addressing with linear probing over at least twice as many slots as rows. A
    slot is 0 while empty (untouched pages stay unallocated), else
    ``displaced bit | tag | row + 1``: the tag, cut from the upper half of the key, spares most
    look-ups of a stranger's key, and the displaced bit says that some key whose first slot is this
    one lives further along, so that a miss ends at its first slot when the bit is not set.

    Every key has at most one slot: inserting a key whose row is dead takes over its slot, so a key
    that comes and goes a million times does not grow a chain. Slots are never emptied.

    What changes is noted from the first :meth:`changes` on, and not before: who never asks pays nothing.

    Memory: ``capacity * (8 + 1 + record) + 4 * slots`` bytes, slots being the power of two in
    ``[2 * capacity, 4 * capacity)``.
    """

    __slots__ = (
        "_bounds",
        "_deleted",
        "_exact",
        "_index",
        "_mask",
        "_raw",
        "_row_mask",
        "_tag_mask",
        "_tops",
        "_updated",
        "capacity",
        "count",
        "head",
        "keys",
        "live",
        "live_count",
        "number",
        "records",
        "stored",
    )

    def __init__(self, number: int, dtype: np.dtype[np.void], capacity: int) -> None:
        slots = 1 << (2 * capacity - 1).bit_length()
        self.number = number
        self.capacity = capacity
        self.count = 0
        self.live_count = 0
        self.head = 0
        self.keys: Keys = np.empty(capacity, np.uint64)
        self.records: Records = np.empty(capacity, dtype)
        self.live: NDArray[np.bool_] = np.zeros(capacity, np.bool_)
        # The same memory without fields: numpy copies structured rows field by field, eight times slower.
        self._raw: Records = self.records.view(f"V{dtype.itemsize}")
        self._index: Words = np.zeros(slots, np.uint32)
        self._mask = np.uint64(slots - 1)
        row_bits = capacity.bit_length()
        self._row_mask = np.uint32((1 << row_bits) - 1)
        self._tag_mask = np.uint32(int(_LOW) & ~int(self._row_mask))
        self._bounds: dict[str, NDArray[Any]] = {}
        self._exact: set[str] = set()
        self._tops: dict[str, int | float] = {}
        self.stored = 0
        self._deleted = _RowLog()
        self._updated = _RowLog()

    @classmethod
    def restored(cls, number: int, dtype: np.dtype[np.void], capacity: int, stored: StoredRows) -> Generation:
        """The generation whose changes led to these rows. O(rows)."""
        generation, count = cls(number, dtype, capacity), len(stored.keys)
        generation.keys[:count] = stored.keys
        generation._raw[:count] = np.ascontiguousarray(stored.records).view(generation._raw.dtype)
        generation.live[:count] = stored.live
        generation.count = generation.stored = count
        generation.live_count = int(np.count_nonzero(generation.live))
        for start in range(0, count, _CHUNK):
            generation._index_again(start, min(start + _CHUNK, count))
        generation._advance_head()
        return generation

    def changes(self) -> RowChanges | None:
        """What changed since the last call or since it was restored; None: nothing. O(what changed)."""
        first, end = self.stored, self.count
        if first:
            updated, deleted = self._updated.take(), self._deleted.take()
            updated = updated[updated < first]
        else:
            updated, deleted = np.empty(0, np.int64), np.flatnonzero(~self.live[:end])
        self.stored = end
        if first == end and not updated.size and not deleted.size:
            return None
        keys = self.keys[first:end].copy()
        records = self._raw[first:end].copy().view(self.records.dtype)
        return RowChanges(self.number, first, keys, records, updated, self.copy_records(updated), deleted)

    @property
    def room(self) -> int:
        """Rows that can still be appended."""
        return self.capacity - self.count

    @property
    def nbytes(self) -> int:
        """Bytes allocated, resident or not."""
        arrays = (self.keys, self.records, self.live, self._index, *self._bounds.values())
        return sum(a.nbytes for a in arrays)

    @property
    def handle_base(self) -> int:
        """Handle of row 0."""
        return self.number << HANDLE_SHIFT

    def live_rows(self) -> Rows:
        """Live rows in order of arrival. O(rows after the head)."""
        return self.head + np.flatnonzero(self.live[self.head : self.count])

    def copy_records(self, rows: Rows) -> Records:
        """Copy of the records at `rows`."""
        # mode="clip" skips the check of every row; rows come from this table.
        return self._raw.take(rows, mode="clip").view(self.records.dtype)

    def write_records(self, rows: Rows, raw: Records) -> None:
        """Overwrite the records at `rows` (`raw` without fields) and lower the bounds to match."""
        self._raw[rows] = raw
        self._tops.clear()
        self._exact.clear()
        if self.stored:
            self._updated.add(rows)
        for field, bounds in self._bounds.items():
            values = self.records[field].take(rows)
            np.fmin.at(bounds, rows >> _BLOCK_SHIFT, values)

    def append(self, keys: Keys, raw: Records) -> int:
        """Append rows (at most `room`) and return the row number of the first. Amortised O(n)."""
        first, end = self.count, self.count + len(keys)
        self.keys[first:end] = keys
        self._raw[first:end] = raw
        self.live[first:end] = True
        for start in range(first, end, _CHUNK):
            stop = min(start + _CHUNK, end)
            self._add_to_index(self.keys[start:stop], np.arange(start + 1, stop + 1, dtype=np.uint32))
        self.count = end
        self.live_count += end - first
        for field, bounds in self._bounds.items():
            lows = np.fmin.reduceat(self.records[field][first:end], _block_starts(first, end - first))
            block = first >> _BLOCK_SHIFT
            span = bounds[block : block + len(lows)]
            np.fmin(span, lows, out=span)
        return first

    def find(self, keys: Keys, high: Words) -> tuple[Rows, Rows]:
        """Positions in `keys` that have a live row here, and these rows. Expected O(keys)."""
        index = self._index
        home = (keys & self._mask).view(np.int64)
        entries = index.take(home, mode="clip")
        at = np.flatnonzero(((entries ^ high) & _LOW) <= self._row_mask)
        rows = np.empty(0, np.int64)
        if at.size:
            rows = self._row_of(entries.take(at))
            same = self.keys.take(rows, mode="clip") == keys.take(at)
            same &= rows >= 0  # an empty slot looks like tag 0
            if not same.all():
                at, rows = at[same], rows[same]
            entries[at] = 0
        further = np.flatnonzero(entries.view(np.int32) < 0)
        if further.size:
            k, h = keys.take(further), high.take(further)
            _, found = self._seek(k, h, self._next(home.take(further)))
            there = np.flatnonzero(found)
            if there.size:
                at = np.concatenate((at, further.take(there)))
                rows = np.concatenate((rows, self._row_of(found.take(there))))
        if at.size:
            alive = self.live.take(rows, mode="clip")
            if not alive.all():
                at, rows = at[alive], rows[alive]
        return at, rows

    def kill(self, rows: Rows) -> None:
        """Mark rows dead. `rows` are distinct; those already dead are left as they are."""
        self.live_count -= int(np.count_nonzero(self.live.take(rows)))
        self._bury(rows)

    def _bury(self, rows: Rows) -> None:
        self.live[rows] = False
        self._exact.clear()
        if self.stored and rows.size:
            self._deleted.add(rows)

    @property
    def tracked(self) -> tuple[str, ...]:
        """Fields with lower bounds."""
        return tuple(self._bounds)

    def track(self, field: str) -> None:
        """Keep lower bounds of a field from now on. O(rows) the first time."""
        if field not in self._bounds:
            blocks = -(-self.capacity // _BLOCK)
            self._bounds[field] = np.full(blocks, self._ceiling(field))
            if self.count:
                self._tighten(field, 0, ((self.count - 1) >> _BLOCK_SHIFT) + 1)

    def expire(self, field: str, before: float) -> Rows:
        """Kill and return the live rows with `field` < `before`.

        O(blocks) when there are none, else O(rows of the blocks that have one).
        """
        self.track(field)
        expired: list[Rows] = []
        for first, last in _runs(np.flatnonzero(self._bounds[field] < before)):
            low, high = max(first << _BLOCK_SHIFT, self.head), min(last << _BLOCK_SHIFT, self.count)
            gone = (self.records[field][low:high] < before) & self.live[low:high]
            rows = low + np.flatnonzero(gone)
            self._bury(rows)
            self.live_count -= len(rows)
            self._tighten(field, first, last)
            expired.append(rows)
        self._advance_head()
        return np.concatenate(expired) if expired else np.empty(0, np.int64)

    def bound(self, field: str) -> int | float:
        """The least value of a tracked field among the live rows. O(blocks), and a block or few more."""
        bounds = self._bounds[field]
        block = int(bounds.argmin())
        while field not in self._exact:
            loose = bounds[block]
            if loose == self._ceiling(field):
                break
            self._tighten(field, block, block + 1)
            if bounds[block] == loose:
                self._exact.add(field)
            block = int(bounds.argmin())
        lowest: int | float = bounds[block].item()
        return lowest

    def top(self, field: str) -> int | float:
        """Largest value of a field over all rows, dead ones too; the generation must be sealed.

        A function of the rows alone, so that a restored generation says the same.
        """
        known = self._tops.get(field)
        if known is None:
            known = self._tops[field] = self.records[field][: self.count].max().item()
        return known

    def _advance_head(self) -> None:
        if self.live_count == 0:
            self.head = self.count
        elif not self.live[self.head]:
            self.head += int(self.live[self.head : self.count].argmax())

    def _ceiling(self, field: str) -> NDArray[Any]:
        """The bound of a block that has no live row."""
        dtype = self.records.dtype[field]
        return np.array(np.inf if dtype.kind == "f" else np.iinfo(dtype).max, dtype)

    def _tighten(self, field: str, first: int, last: int) -> None:
        """Make the bounds of blocks `first ... last - 1` exact."""
        low, high = first << _BLOCK_SHIFT, min(last << _BLOCK_SHIFT, self.count)
        values = np.where(self.live[low:high], self.records[field][low:high], self._ceiling(field))
        lows = np.fmin.reduceat(values, _block_starts(low, high - low))
        self._bounds[field][first:last] = np.fmin(lows, self._ceiling(field))

    def _row_of(self, entries: Words) -> Rows:
        """Row numbers of index entries; -1 for an empty slot."""
        return (entries & self._row_mask).astype(np.int64) - 1

    def _next(self, slots: Rows) -> Rows:
        return (slots + 1) & np.int64(self._mask)

    def _index_again(self, first: int, end: int) -> None:
        """Index rows `first ... end - 1` of any keys: the last row of a key has its slot, live or not."""
        keys, numbers = self.keys[first:end], np.arange(first + 1, end + 1, dtype=np.uint32)
        last = ~occurred_before(keys[::-1])[::-1]
        self._add_to_index(keys[last], numbers[last])

    def _add_to_index(self, keys: Keys, numbers: Words) -> None:
        """Index rows by their keys, which are distinct; `numbers` are the rows, counted from 1."""
        index = self._index
        high = high_bits(keys)
        new = high & self._tag_mask
        new |= numbers
        home = (keys & self._mask).view(np.int64)
        entries = index.take(home, mode="clip")
        free = entries == 0
        same = np.flatnonzero((((entries ^ high) & _LOW) <= self._row_mask) & ~free)
        if same.size:
            same = same[self.keys.take(self._row_of(entries.take(same))) == keys.take(same)]
            # The slot of an earlier, dead row of the same key: taken over.
            index[home.take(same)] = new.take(same) | (entries.take(same) & _DISPLACED)
        to = np.flatnonzero(free)
        # Rows that want the same slot: the last written has it, the others are displaced.
        index[home.take(to)] = new.take(to)
        left = np.flatnonzero((index.take(home, mode="clip") & _LOW) != new)
        slots = home.take(left)
        index[slots] |= _DISPLACED
        slots = self._next(slots)
        while left.size:
            entry = new.take(left)
            slots, old = self._seek(keys.take(left), high.take(left), slots)
            index[slots] = entry | (old & _DISPLACED)
            lost = np.flatnonzero((index.take(slots) & _LOW) != entry)
            left, slots = left.take(lost), slots.take(lost)

    def _seek(self, keys: Keys, high: Words, slots: Rows) -> tuple[Rows, Words]:
        """From each slot on, the first that is empty or holds the key, and its entry."""
        found_slots, found_entries = slots, np.empty(len(slots), np.uint32)
        left: Rows | None = None
        while True:
            # To the first slot worth a look among the next few, or else to the last of these.
            window = self._index.take((slots[:, None] + _WINDOW) & np.int64(self._mask), mode="clip")
            look = ((window ^ high[:, None]) & _LOW) <= self._row_mask
            look |= window == 0
            look[:, -1] = True
            slots = (slots + look.argmax(axis=1)) & np.int64(self._mask)
            entries = self._index.take(slots, mode="clip")
            going = entries != 0
            at = np.flatnonzero(((entries ^ high) & _LOW) <= self._row_mask)
            if at.size:
                rows = self._row_of(entries.take(at))
                going[at] &= self.keys.take(rows, mode="clip") != keys.take(at)
            if left is None:
                found_slots, found_entries = slots, entries
            else:
                found_slots[left] = slots
                found_entries[left] = entries
            on = np.flatnonzero(going)
            if not on.size:
                return found_slots, found_entries
            left = on if left is None else left.take(on)
            keys, high, slots = keys.take(on), high.take(on), self._next(slots.take(on))
