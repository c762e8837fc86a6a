"""The pending table of the join: id hashes to fixed-size records, in arrival order.

A dict of tuples costs about 270 bytes per entry and one Python operation per key. This table costs
17 bytes beside the record and answers a batch of keys with a handful of numpy passes.

Rows are appended to *generations*. A full generation is sealed: from then on its rows can only die,
and its memory is returned as a whole when the last one has. Once generations are full-size nothing is
moved to make room, so no insert stalls for a rehash of the whole table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import DTypeLike

from monitor.generation import (
    HANDLE_SHIFT,
    MAX_ROWS,
    Generation,
    Handles,
    Keys,
    Records,
    RowChanges,
    Rows,
    StoredRows,
    high_bits,
    occurred_before,
    without_repeats,
)

_SMALL = 1 << 18
"""Rows of a generation that are moved, at most half of them, in a few milliseconds."""
_ROW_OF_HANDLE = (1 << HANDLE_SHIFT) - 1

__all__ = ["GenerationalTable", "Handles", "Keys", "Records", "RowChanges", "StoredRows"]


class GenerationalTable:
    """Insert-mostly hash table from unsigned 64-bit id hashes to fixed-size records.

    Made for batches: every method takes arrays. Handles returned by `find` and `insert` are valid
    until the next `insert`, `expire` or `compact`; `get`, `put` and `remove` do not disturb the
    handles of other rows.

    Parameters
    ----------
    dtype : structured dtype without objects
        One record.
    generation_rows : int, at most 2**30
        Rows of a full-size generation. Memory is returned one generation at a time, and a look-up
        visits every generation, so the number of generations (entries ÷ this) is what a miss costs.
    first_rows : int
        Rows of the first generation; each later one is four times larger than the one before, up to
        `generation_rows`. When a generation is less than a quarter of the next, its live rows move
        into the next, so small generations do not linger.

    Notes
    -----
    State: O(rows not yet dropped), at most ``generation_rows + live / 0.1`` after enough `compact`. A
    checkpoint of it is `layout` and what `changes` gave so far; `restore` takes both back.

    Keys are not re-mixed. Whoever can choose ids whose hashes share their low bits can make probing
    slow; seed the hash when ids come from outsiders.

    Examples
    --------
    >>> table = GenerationalTable([("time", "i8"), ("cell", "u4")])
    >>> keys = np.array([11, 12, 13], np.uint64)
    >>> records = np.array([(100, 0), (200, 1), (300, 0)], table.dtype)
    >>> _ = table.insert(keys, records)
    >>> handles = table.find(np.array([12, 99], np.uint64))
    >>> handles >= 0
    array([ True, False])
    >>> table.get(handles[:1])["cell"].tolist()
    [1]
    >>> table.remove(handles[:1])
    >>> expired, records = table.expire("time", 300)
    >>> expired.tolist(), len(table)
    ([11], 1)
    """

    def __init__(
        self, dtype: DTypeLike, *, generation_rows: int = 1 << 21, first_rows: int = 1 << 14
    ) -> None:
        record = np.dtype(dtype)
        if record.names is None or record.hasobject:
            raise ValueError(f"records need a structured dtype without objects, not {record}")
        if not 1 <= first_rows <= generation_rows <= MAX_ROWS:
            raise ValueError(
                f"need 1 <= first_rows <= generation_rows <= {MAX_ROWS}, "
                f"not first_rows={first_rows}, generation_rows={generation_rows}"
            )
        self.dtype: np.dtype[np.void] = np.dtype((np.void, record))
        self.generation_rows = generation_rows
        self._generations = [Generation(0, self.dtype, first_rows)]
        self._gone: list[int] = []

    def __len__(self) -> int:
        """Live rows."""
        return sum(g.live_count for g in self._generations)

    @property
    def generations(self) -> int:
        """Generations in memory."""
        return len(self._generations)

    @property
    def oldest_rows(self) -> int:
        """Live rows of the oldest generation."""
        return self._generations[0].live_count

    @property
    def nbytes(self) -> int:
        """Bytes allocated; pages never touched are counted, though not resident."""
        return sum(g.nbytes for g in self._generations)

    @property
    def bytes_per_row(self) -> float:
        """Bytes allocated per row of capacity: record + 17 when `generation_rows` is a power of two."""
        return self.nbytes / sum(g.capacity for g in self._generations)

    def find(self, keys: Keys) -> Handles:
        """Look keys up.

        Parameters
        ----------
        keys : uint64, shape (n,), repeats allowed

        Returns
        -------
        int64, shape (n,)
            Handle of the live row of each key (of the newest, should there be two), -1 where there
            is none.

        Notes
        -----
        Expected O(n × generations); keys found early are not looked for in older generations.
        """
        handles = np.full(len(keys), -1, np.int64)
        high = high_bits(keys)
        left: Rows | None = None
        for generation in reversed(self._generations):
            if not len(keys):
                break
            if not generation.live_count:
                continue
            at, rows = generation.find(keys, high)
            if not at.size:
                continue
            handles[at if left is None else left.take(at)] = rows + generation.handle_base
            on = np.ones(len(keys), np.bool_)
            on[at] = False
            further = np.flatnonzero(on)
            left = further if left is None else left.take(further)
            keys, high = keys.take(further), high.take(further)
        return handles

    def get(self, handles: Handles) -> Records:
        """Copy of the records at `handles` (valid ones, repeats allowed), shape (n,). O(n).

        Raises
        ------
        KeyError
            A handle is -1 or its generation is gone.
        """
        parts = self._by_generation(handles)
        if len(parts) == 1:
            generation, _, rows = parts[0]
            return generation.copy_records(rows)
        out = np.empty(len(handles), self.dtype)
        raw = self._raw(out)
        for generation, at, rows in parts:
            raw[at] = self._raw(generation.copy_records(rows))
        return out

    def put(self, handles: Handles, records: Records) -> None:
        """Overwrite the records at `handles` (valid ones, distinct). O(n).

        Raises
        ------
        KeyError
            A handle is -1 or its generation is gone; nothing was written.
        """
        raw = self._checked(records, len(handles))
        parts = self._by_generation(handles)
        for generation, at, rows in parts:
            generation.write_records(rows, raw if len(parts) == 1 else raw.take(at))

    def insert(self, keys: Keys, records: Records) -> Handles:
        """Append one row per key.

        Parameters
        ----------
        keys : uint64, shape (n,)
            Distinct, and none of them live in the table. Not checked: a second row of a live key
            hides the first from `find` until the second is dead, or for good.
        records : shape (n,), of the table's dtype

        Returns
        -------
        int64, shape (n,)
            Handle of each new row. Handles from before this call are no longer valid.

        Notes
        -----
        Expected O(n), plus one move of at most `generation_rows` / 4 live rows while the table is
        growing to its first full-size generation.
        """
        raw = self._checked(records, len(keys))
        handles = np.empty(len(keys), np.int64)
        done = 0
        while done < len(keys):
            newest = self._generations[-1]
            wanted = len(keys) - done
            if not newest.room or (wanted > newest.room and self._is_left(newest, wanted)):
                self._grow(wanted)
                continue
            end = done + min(newest.room, wanted)
            base = newest.append(keys[done:end], raw[done:end]) + newest.handle_base
            handles[done:end] = np.arange(base, base + end - done)
            done = end
        return handles

    def remove(self, handles: Handles) -> None:
        """Kill the rows at `handles` (repeats and dead rows are ignored). O(n log n).

        A generation without live rows is dropped, unless it is the newest.

        Raises
        ------
        KeyError
            A handle is -1 or its generation is gone; nothing was removed.
        """
        for generation, _, rows in self._by_generation(without_repeats(handles)):
            generation.kill(rows)
        self._drop_dead()

    def expire(self, field: str, before: float) -> tuple[Keys, Records]:
        """Remove the live rows with ``record[field] < before`` and return them.

        Parameters
        ----------
        field : name of an integer or float field
        before : number, an integer if the field is one

        Returns
        -------
        keys : uint64, shape (n,)
        records : shape (n,)
            Sorted by (record[field], key), whatever the order of arrival; empty when none expire.
            A record whose field is NaN never expires.

        Raises
        ------
        TypeError
            `field` is not a number, or `before` is a fraction and `field` an integer.

        Notes
        -----
        O(n log n), plus the blocks of 4096 rows that hold a row to expire, plus one comparison per
        block. The first call for a field scans the table once (so make it while the table is empty),
        and every field ever used slows `insert` and `put` a little.
        """
        kind = self.dtype[field].kind
        if kind not in "iuf":
            raise TypeError(f"cannot expire by {field!r}: it is not a number")
        if kind != "f" and not float(before).is_integer():
            raise TypeError(f"cannot expire by {field!r}: {before} is not an integer, the field is")
        # A plain float would be rounded to the field's precision before it is compared.
        limit = np.float64(before) if kind == "f" else int(before)
        keys, raws = [np.empty(0, np.uint64)], [self._raw(np.empty(0, self.dtype))]
        for generation in self._generations:
            rows = generation.expire(field, limit)
            if rows.size:
                keys.append(generation.keys.take(rows))
                raws.append(self._raw(generation.copy_records(rows)))
        self._drop_dead()
        all_keys, records = np.concatenate(keys), np.concatenate(raws).view(self.dtype)
        order = np.lexsort((all_keys, records[field]))
        return all_keys.take(order), records.take(order)

    def track(self, field: str) -> None:
        """Keep lower bounds of a field from now on, so that no later call has to scan the table."""
        for generation in self._generations:
            generation.track(field)

    def lower_bound(self, field: str) -> int | float | None:
        """The least `field` of the live rows; None for an empty table. O(rows / 4096), amortised."""
        if not len(self):
            return None
        self.track(field)
        lowest: int | float = min(g.bound(field) for g in self._generations)
        return lowest

    def drop_before(self, field: str, before: int) -> Keys:
        """Drop the sealed generations, oldest first, in which every row has ``record[field] < before``.

        Returns the keys of their live rows. Cheaper than :meth:`expire` where it does no harm that
        some rows stay longer: O(1) per call, and one scan of each generation after it was sealed.
        """
        dropped = [np.empty(0, np.uint64)]
        while self.generations > 1 and self._generations[0].top(field) < before:
            dropped.append(self.drop_oldest())
        return np.concatenate(dropped)

    def drop_oldest(self) -> Keys:
        """Drop the oldest generation, which must not be the newest; return the keys of its live rows."""
        if self.generations == 1:
            raise ValueError("the newest generation cannot be dropped")
        generation = self._generations[0]
        self._discard(generation)
        return generation.keys.take(generation.live_rows())

    def compact(self, *, below: float = 0.1) -> bool:
        """Move what is left of one sparse sealed generation into the newest, and drop it.

        Call it now and then, until it returns False, so that memory follows the number of live rows.

        Parameters
        ----------
        below : float in (0, 1]
            The generation moved is the sparsest, if its live share is under this.

        Returns
        -------
        bool
            Whether a generation was moved. Handles are then no longer valid.

        Notes
        -----
        Expected O(generation_rows × `below`) inserts, and one scan of the generation's live flags.
        """
        sealed = self._generations[:-1]
        if not sealed:
            return False
        sparsest = min(sealed, key=lambda g: g.live_count / g.count)
        if sparsest.live_count >= below * sparsest.count:
            return False
        self._move(sparsest)
        return True

    def items(self) -> Iterator[tuple[Keys, Records]]:
        """Copies of the live keys and records, one pair per generation, in order of arrival.

        Do not change the table while iterating. O(rows in memory).
        """
        for generation in self._generations:
            rows = generation.live_rows()
            if rows.size:
                yield generation.keys.take(rows), generation.copy_records(rows)

    @property
    def layout(self) -> list[list[int]]:
        """Number, capacity and rows (dead ones too) of each generation, the oldest first."""
        return [[g.number, g.capacity, g.count] for g in self._generations]

    def changes(self) -> list[RowChanges]:
        """What changed since the last call, or since the table was restored; at first, everything.

        Generations that were never given are not among the dead. From the first call on the table notes
        which of its rows change.

        Notes
        -----
        O(what changed + generations), and so is the memory of what was noted.
        """
        none, no_keys, no_records = np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, self.dtype)
        gone, self._gone = self._gone, []
        dead = [RowChanges(n, 0, no_keys, no_records, none, no_records, none, dead=True) for n in gone]
        return dead + [c for g in self._generations if (c := g.changes()) is not None]

    def restore(self, layout: Sequence[Sequence[int]], stored: Mapping[int, StoredRows]) -> None:
        """Make this fresh table what the table was that had this layout and these rows, by generation.

        Every row gets its old place. Generations without rows may be missing. O(rows in `stored`).

        Raises
        ------
        ValueError
            The rows do not belong to the layout, or have other fields; the table is then as it was.
        """
        known = [number for number, _, rows in layout if rows or number in stored]
        if known != sorted(stored) or not layout:
            raise ValueError(
                f"stored are generations {sorted(stored)}, but {known} belong to the checkpoint: "
                "the state is damaged"
            )
        generations = []
        for number, capacity, rows in layout:
            part = stored.get(number)
            if part is None:
                part = StoredRows(np.empty(0, np.uint64), np.empty(0, self.dtype), np.empty(0, np.bool_))
            lengths = {rows, len(part.keys), len(part.records), len(part.live)}
            if len(lengths) > 1 or rows > capacity:
                raise ValueError(
                    f"generation {number} has {len(part.keys)} keys, {len(part.records)} records and "
                    f"{len(part.live)} marks for {rows} rows of {capacity}: the state is damaged"
                )
            if part.records.dtype != self.dtype:
                raise ValueError(
                    f"stored records are {part.records.dtype}, this task has {self.dtype}: the task or its "
                    "options have changed"
                )
            generations.append(Generation.restored(number, self.dtype, capacity, part))
        fields = self._generations[-1].tracked
        self._generations = generations
        for field in fields:
            self.track(field)

    def _raw(self, records: Records) -> Records:
        return records.view(f"V{self.dtype.itemsize}")

    def _checked(self, records: Records, rows: int) -> Records:
        """The records without their fields, which numpy copies eight times faster."""
        if records.dtype != self.dtype or records.shape != (rows,):
            raise ValueError(
                f"need {rows} records of {self.dtype}, not {records.dtype} of shape {records.shape}"
            )
        return self._raw(np.ascontiguousarray(records))

    def _by_generation(self, handles: Handles) -> list[tuple[Generation, Rows, Rows]]:
        """Generation, positions in `handles` and rows, for each generation that occurs."""
        if not len(handles):
            return []
        numbers = handles >> HANDLE_SHIFT
        rows = handles & _ROW_OF_HANDLE
        oldest, newest = int(numbers.min()), int(numbers.max())
        present = [g for g in self._generations if oldest <= g.number <= newest]
        if oldest == newest and present:
            return [(present[0], np.arange(len(handles)), rows)]
        parts = []
        covered = 0
        for generation in present:
            at = np.flatnonzero(numbers == generation.number)
            if at.size:
                parts.append((generation, at, rows.take(at)))
                covered += len(at)
        if covered < len(handles):
            raise KeyError("handle of no row: -1, or of a generation that is gone")
        return parts

    def _next_rows(self, generation: Generation, wanted: int) -> int:
        """Capacity of the generation to follow `generation`: larger only when live rows need it.

        `wanted` rows are about to be inserted; together with the live ones they are the same number
        throughout a call of `insert`, so rows that a call appended are never moved by the same call.
        """
        if 2 * (len(self) + wanted) < generation.count:
            return generation.capacity
        return min(4 * generation.capacity, self.generation_rows)

    def _outgrows(self, generation: Generation, wanted: int) -> bool:
        """Whether the next generation is so much larger that it takes over the rows of this one."""
        return self._next_rows(generation, wanted) >= 4 * generation.capacity

    def _is_left(self, generation: Generation, wanted: int) -> bool:
        """Whether the next generation takes over the live rows of this one, which is then dropped.

        So it does when it is much larger, and when this one is small and mostly dead rows. The answer
        does not change while a call of `insert` appends to the generation.
        """
        mostly_dead = generation.capacity <= _SMALL and 2 * generation.live_count < generation.count
        return mostly_dead or self._outgrows(generation, wanted)

    def _grow(self, wanted: int) -> None:
        last = self._generations[-1]
        newest = Generation(last.number + 1, self.dtype, self._next_rows(last, wanted))
        for field in last.tracked:
            newest.track(field)
        self._generations.append(newest)
        if self._is_left(last, wanted):
            self._move(last)
        else:
            self._drop_dead()

    def _move(self, generation: Generation) -> None:
        """Insert the live rows of a sealed generation anew, and drop it."""
        rows = generation.live_rows()
        self._discard(generation)
        while rows.size:
            # Where a key has two live rows, the later one hides the other wherever they go.
            keys = generation.keys.take(rows)
            again = occurred_before(keys)
            self.insert(keys[~again], generation.copy_records(rows[~again]))
            rows = rows[again]

    def _drop_dead(self) -> None:
        newest = self._generations[-1]
        for generation in [g for g in self._generations if not g.live_count and g is not newest]:
            self._discard(generation)

    def _discard(self, generation: Generation) -> None:
        self._generations.remove(generation)
        if generation.stored:
            self._gone.append(generation.number)
