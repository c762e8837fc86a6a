"""The pending table against a dict, with keys that collide and generations of a few rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from monitor.pending import GenerationalTable, Keys, Records

DTYPE = np.dtype([("time", "i8"), ("cell", "u4"), ("score", "f4")])
WIDE = np.dtype([("time", "i8"), ("cell", "u4"), ("partition", "u4"), ("score", "f8"), ("weight", "f8")])
TOP = 2**64 - 1
BIG_INT = 2**63 - 1

Row = tuple[int, int, float]

# Few enough keys that they come back; equal low bits, equal high bits, and the ends of the range.
KEYS = st.one_of(
    st.sampled_from([0, 1, 2, 3, TOP, TOP - 1, TOP - 31, 1 << 63, 1 << 32, (1 << 32) - 1]),
    st.integers(0, 40).map(lambda i: i << 58),
    st.integers(0, 40).map(lambda i: (i << 40) | 31),
    st.integers(0, 60),
)
TIMES = st.one_of(st.integers(-5, 30), st.sampled_from([-(2**63), 2**63 - 1]))
ROWS = st.tuples(TIMES, st.integers(0, 2**32 - 1), st.floats(0, 1, width=32))
BATCHES = st.dictionaries(KEYS, ROWS, max_size=30)


def as_keys(keys: list[int]) -> Keys:
    return np.array(keys, np.uint64)


def as_records(rows: list[Row]) -> Records:
    return np.array(rows, DTYPE)


def as_rows(records: Records) -> list[Row]:
    return [(int(r["time"]), int(r["cell"]), float(r["score"])) for r in records]


class TableAgainstDict(RuleBasedStateMachine):
    """Every method does to the table what the plain operation does to a dict."""

    @initialize(first_rows=st.sampled_from([1, 3, 4, 64]), generation_rows=st.sampled_from([64, 21, 16, 4]))
    def start(self, first_rows: int, generation_rows: int) -> None:
        self.table = GenerationalTable(
            DTYPE, generation_rows=generation_rows, first_rows=min(first_rows, generation_rows)
        )
        self.model: dict[int, Row] = {}

    def handles(self, keys: list[int]) -> NDArray[np.int64]:
        handles = self.table.find(as_keys(keys))
        assert (handles >= 0).tolist() == [k in self.model for k in keys]
        return handles

    @rule(batch=BATCHES)
    def insert_those_not_live(self, batch: dict[int, Row]) -> None:
        new = {k: row for k, row in batch.items() if k not in self.model}
        handles = self.table.insert(as_keys(list(new)), as_records(list(new.values())))
        self.model |= new
        assert handles.tolist() == self.handles(list(new)).tolist()
        assert as_rows(self.table.get(handles)) == list(new.values())

    @rule(keys=st.lists(KEYS, max_size=30))
    def find_and_get(self, keys: list[int]) -> None:
        handles = self.handles(keys)
        there = handles[handles >= 0]
        assert as_rows(self.table.get(there)) == [self.model[k] for k in keys if k in self.model]

    @rule(batch=BATCHES)
    def put(self, batch: dict[int, Row]) -> None:
        known = {k: row for k, row in batch.items() if k in self.model}
        self.table.put(self.handles(list(known)), as_records(list(known.values())))
        self.model |= known

    @rule(keys=st.lists(KEYS, max_size=30))
    def remove(self, keys: list[int]) -> None:
        handles = self.handles(keys)
        self.table.remove(handles[handles >= 0])
        for key in keys:
            self.model.pop(key, None)

    @rule(data=st.data())
    def remove_most(self, data: st.DataObject) -> None:
        kept = data.draw(st.integers(0, 2))
        self.remove(list(self.model)[kept:])

    @rule(batch=BATCHES)
    def come_and_go(self, batch: dict[int, Row]) -> None:
        for _ in range(3):
            self.insert_those_not_live(batch)
            self.remove(list(batch))

    @rule(before=TIMES)
    def expire_by_time(self, before: int) -> None:
        keys, records = self.table.expire("time", before)
        gone = sorted((row[0], k) for k, row in self.model.items() if row[0] < before)
        assert [(int(r["time"]), k) for k, r in zip(keys.tolist(), records, strict=True)] == gone
        assert as_rows(records) == [self.model.pop(k) for _, k in gone]

    @rule(before=st.floats(0, 1))
    def expire_by_score(self, before: float) -> None:
        keys, _ = self.table.expire("score", before)
        gone = sorted((row[2], k) for k, row in self.model.items() if row[2] < before)
        assert keys.tolist() == [k for _, k in gone]
        for _, key in gone:
            del self.model[key]

    @rule(below=st.sampled_from([0.1, 0.5, 1.0]))
    def compact(self, below: float) -> None:
        before = self.table.generations
        moved = self.table.compact(below=below)
        assert self.table.generations <= before
        assert moved or self.table.generations == before

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        assert len(self.table) == len(self.model)
        held = {
            k: row
            for keys, records in self.table.items()
            for k, row in zip(keys.tolist(), as_rows(records), strict=True)
        }
        assert held == self.model

    @invariant()
    def keeps_no_dead_generation(self) -> None:
        assert self.table.generations <= len(self.model) + 1


TestTableAgainstDict = TableAgainstDict.TestCase
TestTableAgainstDict.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True
)


def filled(entries: int, **sizes: int) -> tuple[GenerationalTable, Keys]:
    """A table of `WIDE` records whose time is the order of arrival, inserted in batches."""
    table = GenerationalTable(WIDE, **sizes)
    keys = np.random.default_rng(7).integers(0, 2**64, entries, dtype=np.uint64)
    for start in range(0, entries, 1000):
        batch = keys[start : start + 1000]
        records = np.zeros(len(batch), WIDE)
        records["time"] = np.arange(start, start + len(batch))
        table.insert(batch, records)
    return table, keys


@pytest.mark.parametrize("generation_rows", [1 << 14, 1 << 21])
def test_an_entry_takes_at_most_50_bytes(generation_rows: int) -> None:
    table, _ = filled(1000, generation_rows=generation_rows, first_rows=1 << 14)
    assert WIDE.itemsize == 32
    assert table.bytes_per_row <= 50


def test_sizes_quadruple_and_small_generations_are_taken_over() -> None:
    table, keys = filled(40_000, generation_rows=16_000, first_rows=1000)
    assert table.generations == 3
    assert table.get(table.find(keys))["time"].tolist() == list(range(40_000))


def test_one_call_fills_several_generations() -> None:
    table = GenerationalTable(WIDE, generation_rows=16, first_rows=4)
    keys = np.arange(100, dtype=np.uint64)
    handles = table.insert(keys, np.zeros(100, WIDE))
    assert table.generations == 7
    assert handles.tolist() == table.find(keys).tolist()


def test_expiry_agrees_with_a_scan_over_many_blocks() -> None:
    rng = np.random.default_rng(3)
    table, keys = filled(60_000, generation_rows=1 << 15, first_rows=1 << 13)
    assert table.expire("time", 0)[0].size == 0
    times = rng.integers(0, 50, len(keys)) + np.arange(len(keys)) // 100
    handles = table.find(keys)
    records = table.get(handles)
    records["time"] = times
    table.put(handles, records)
    live = np.ones(len(keys), np.bool_)
    for before in range(0, 700, 13):
        due = np.flatnonzero(live & (times < before))
        due = due[np.lexsort((keys[due], times[due]))]
        expired, rows = table.expire("time", before)
        assert expired.tolist() == keys[due].tolist()
        assert rows["time"].tolist() == times[due].tolist()
        live[due] = False
        gone = rng.choice(np.flatnonzero(live), 300, replace=False) if live.sum() > 300 else due[:0]
        table.remove(table.find(keys[gone]))
        live[gone] = False
    assert len(table) == 0
    assert table.generations == 1


def test_what_expires_does_not_depend_on_arrival() -> None:
    keys = np.arange(500, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    records = np.zeros(500, WIDE)
    records["time"] = np.arange(500) % 7
    results = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(500)
        table = GenerationalTable(WIDE, generation_rows=64, first_rows=4)
        table.insert(keys[order], records[order])
        expired, rows = table.expire("time", 5)
        results.append((expired.tolist(), rows.tolist()))
    assert results[0] == results[1] == results[2]


def test_a_record_without_a_time_never_expires() -> None:
    table = GenerationalTable([("time", "f8")])
    for time in (1.0, np.nan, np.inf):
        table.insert(as_keys([len(table)]), np.array([(time,)], table.dtype))
    assert table.expire("time", np.inf)[0].tolist() == [0]
    assert len(table) == 2


def test_memory_follows_the_live_rows() -> None:
    table, keys = filled(64_000, generation_rows=4000, first_rows=4000)
    assert table.generations == 16
    table.remove(table.find(keys[np.arange(len(keys)) % 20 != 0]))
    full = table.nbytes
    while table.compact():
        pass
    assert len(table) == 3200
    assert table.nbytes <= full / 8
    assert (table.find(keys) >= 0).tolist() == [i % 20 == 0 for i in range(len(keys))]


def test_a_key_that_comes_and_goes_does_not_grow_a_chain() -> None:
    table = GenerationalTable(WIDE, generation_rows=256, first_rows=256)
    key, record = as_keys([TOP]), np.zeros(1, WIDE)
    for _ in range(200):
        table.remove(table.insert(key, record))
    (generation,) = table._generations
    assert np.count_nonzero(generation._index) == 1
    assert table.find(key).tolist() == [-1]


def test_a_key_that_takes_its_slot_back_does_not_hide_the_one_behind_it() -> None:
    table = GenerationalTable(WIDE, generation_rows=64, first_rows=64)
    first, behind = as_keys([5]), as_keys([5 + (1 << 60)])
    handle = table.insert(first, np.zeros(1, WIDE))
    table.insert(behind, np.zeros(1, WIDE))
    table.remove(handle)
    table.insert(first, np.zeros(1, WIDE))
    assert table.find(np.concatenate((first, behind))).tolist() == [2, 1]


def test_blocks_with_nothing_to_expire_are_not_looked_at_again() -> None:
    table, _ = filled(20_000, generation_rows=1 << 15, first_rows=1 << 15)
    table.expire("time", 9000)
    (generation,) = table._generations
    bounds = generation._bounds["time"]
    assert generation.head == 9000
    assert bounds[:5].tolist() == [BIG_INT, BIG_INT, 9000, 12288, 16384]
    assert (bounds[5:] == BIG_INT).all()


def test_handles_of_several_generations_in_any_order() -> None:
    table, keys = filled(300, generation_rows=64, first_rows=64)
    order = np.random.default_rng(1).permutation(300)
    handles = table.find(keys[order])
    records = table.get(handles)
    assert records["time"].tolist() == order.tolist()
    records["cell"] = order * 2
    table.put(handles, records)
    assert table.get(table.find(keys))["cell"].tolist() == [2 * i for i in range(300)]
    table.remove(np.concatenate((handles[:100], handles[:50])))
    assert len(table) == 200


def test_nothing_in_nothing_out() -> None:
    table = GenerationalTable(WIDE)
    nothing, records = np.empty(0, np.uint64), np.empty(0, WIDE)
    assert table.find(nothing).size == 0
    assert table.insert(nothing, records).size == 0
    handles = np.empty(0, np.int64)
    table.put(handles, records)
    table.remove(handles)
    assert table.get(handles).dtype == WIDE
    keys, expired = table.expire("time", BIG_INT)
    assert (keys.size, expired.size, expired.dtype) == (0, 0, WIDE)
    assert not table.compact()
    assert list(table.items()) == []


def test_handles_of_no_row_are_refused_and_change_nothing() -> None:
    table, keys = filled(10)
    handles = table.find(keys)
    for bad in (np.array([-1]), np.append(handles, -1), np.append(handles, 5 << 32)):
        with pytest.raises(KeyError, match="handle of no row"):
            table.get(bad)
        with pytest.raises(KeyError, match="handle of no row"):
            table.remove(bad)
        with pytest.raises(KeyError, match="handle of no row"):
            table.put(bad, np.zeros(len(bad), WIDE))
    assert len(table) == 10


def test_arguments_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="structured dtype"):
        GenerationalTable(np.int64)
    with pytest.raises(ValueError, match="structured dtype"):
        GenerationalTable([("text", "O")])
    with pytest.raises(ValueError, match="first_rows"):
        GenerationalTable(WIDE, first_rows=8, generation_rows=4)
    table, keys = filled(10)
    with pytest.raises(ValueError, match="need 10 records"):
        table.insert(keys, np.zeros(9, WIDE))
    with pytest.raises(ValueError, match="need 10 records"):
        table.put(table.find(keys), np.zeros(10, DTYPE))
    for before in (1.5, float("inf"), float("nan")):
        with pytest.raises(TypeError, match="not an integer"):
            table.expire("time", before)
    dated = GenerationalTable([("time", "M8[s]")])
    with pytest.raises(TypeError, match="not a number"):
        dated.expire("time", 0)
