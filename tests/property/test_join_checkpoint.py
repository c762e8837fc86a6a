"""A join that is stored piece by piece, killed and restored, beside one that nobody disturbs."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.batch import EventBatch, Texts
from monitor.checkpoint import GenerationState, JoinChanges, JoinState
from monitor.generation import _CHUNK, _NOTED
from monitor.join import Join, JoinLimits
from monitor.pending import GenerationalTable, Keys, RowChanges, StoredRows
from monitor.tasks.base import Task
from monitor.tasks.binary import Binary, BinaryOptions
from monitor.tasks.speech import Speech, SpeechOptions

TASKS: dict[str, Task] = {"binary": Binary(BinaryOptions()), "speech": Speech(SpeechOptions())}
WORDS = ["", "a", "a cat", "the cat sat"]
MIX = np.uint64(0x9E3779B97F4A7C15)
SEEDS = st.integers(0, 2**32)


@dataclass
class Stored:
    """One generation on the disk, as plain as can be."""

    keys: list[int] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    alive: list[bool] = field(default_factory=list)


@dataclass
class Store:
    """What a store does with changes, by the text of :class:`~monitor.checkpoint.GenerationChanges`."""

    generations: dict[tuple[str, int], Stored] = field(default_factory=dict)
    texts: dict[str, dict[int, Any]] = field(default_factory=dict)
    dtypes: dict[str, np.dtype[np.void]] = field(default_factory=dict)
    document: str = ""
    latest: dict[str, int] = field(default_factory=dict)

    def write(self, changes: JoinChanges, document: Any) -> None:
        for change in changes.generations:
            place = (change.table, change.generation)
            if change.dead:
                assert not len(change.keys)
                assert not len(change.updated)
                assert not len(change.deleted)
                del self.generations[place]
                continue
            if place not in self.generations:
                assert change.generation > self.latest.get(change.table, -1), "a number was used twice"
                self.latest[change.table] = change.generation
            stored = self.generations.setdefault(place, Stored())
            assert change.first_row == len(stored.keys) == len(stored.records)
            self.dtypes[change.table] = change.records.dtype
            assert all(0 <= row < change.first_row for row in change.updated.tolist())
            assert len(change.updated) == len(change.updates)
            for row, update in zip(change.updated.tolist(), change.updates, strict=True):
                stored.records[row] = update.tobytes()
            stored.keys += change.keys.tolist()
            stored.records += [record.tobytes() for record in change.records]
            stored.alive += [True] * len(change.keys)
            for row in change.deleted.tolist():
                stored.alive[row] = False
        for part in changes.texts:
            kept = self.texts.setdefault(part.kind, {})
            for key, text in part.texts.items():
                if text is None:
                    kept.pop(key, None)
                else:
                    kept[key] = json.loads(json.dumps(text))
        self.document = json.dumps(document)
        assert json.loads(self.document) == document

    def load(self) -> tuple[JoinState, Any]:
        generations = [
            GenerationState(
                "pending" if table == "pending" else "recent",
                number,
                np.array(stored.keys, np.uint64),
                np.frombuffer(
                    b"".join(stored.records), self.dtypes[table]
                ),  # read-only, as a file's would be
                np.array(stored.alive, np.bool_),
            )
            for (table, number), stored in sorted(self.generations.items())
        ]
        return JoinState(generations, self.texts), json.loads(self.document)


def small(task: Task, limits: JoinLimits, rows: tuple[int, int]) -> Join:
    """A join whose generations hold a few rows, so that all that can happen to them does."""
    join = Join(task, limits)
    join.pending = GenerationalTable(join.pending.dtype, first_rows=rows[0], generation_rows=rows[1])
    join.pending.track("deadline")
    join.recent = GenerationalTable(join.recent.dtype, first_rows=rows[0], generation_rows=rows[1])
    return join


def random_batch(chosen: random.Random, task: Task, now: int, ids: int) -> EventBatch:
    """Predictions, outcomes and joined events around a time, of few enough ids that they repeat."""
    n = chosen.choice([1, 2, 5, 30])
    kinds = [chosen.choices(["prediction", "outcome", "joined"], [5, 5, 1])[0] for _ in range(n)]
    heard, said = [chosen.choice(WORDS) for _ in range(n)], [chosen.choice(WORDS) for _ in range(n)]
    if task.texts:
        predictions = task.prediction_records({"hypothesis": heard}, None)
        outcomes = task.outcome_records({"reference": said})
    else:
        predictions = np.zeros(n, task.prediction_dtype)
        outcomes = np.zeros(n, task.outcome_dtype)
        predictions["decision"] = [chosen.randrange(2) for _ in range(n)]
        outcomes["outcome"] = [chosen.randrange(2) for _ in range(n)]
    has_prediction = np.array([k != "outcome" for k in kinds], np.bool_)
    has_outcome = np.array([k != "prediction" for k in kinds], np.bool_)
    cell = np.array([chosen.randrange(3) for _ in range(n)], np.int64)
    key = np.array([chosen.randrange(ids) for _ in range(n)], np.uint64)
    return EventBatch(
        record=np.arange(n),
        key=key * MIX if chosen.random() < 0.5 else key << np.uint64(58),  # mixed, or colliding
        has_id=np.array([k != "joined" or chosen.random() < 0.7 for k in kinds], np.bool_),
        cell=cell,
        digest=(cell * 7 % 3).astype(np.uint64),
        has_prediction=has_prediction,
        has_outcome=has_outcome,
        prediction_time=np.array([now + chosen.randrange(-15, 15) for _ in range(n)], np.int64),
        outcome_time=np.array([now + chosen.randrange(-15, 25) for _ in range(n)], np.int64),
        predictions=predictions,
        outcomes=outcomes,
        texts=Texts([*heard], [*said]) if task.texts else None,
    )


def plain(value: Any) -> Any:
    """What a join returned, for comparison bit by bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tobytes()
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def contents(table: GenerationalTable) -> list[Any]:
    """Everything in a table that is not an index of it."""
    return [
        (g.number, g.capacity, g.count, g.live_count, *map(plain, (keys, records, live)))
        for g in table._generations
        for keys, records, live in [(g.keys[: g.count], g.records[: g.count], g.live[: g.count])]
    ]


def everything(join: Join) -> dict[str, Any]:
    keys = [np.array([k * int(MIX) % 2**64, k << 58], np.uint64) for k in range(40)]
    known = np.concatenate(keys)
    return {
        "pending": contents(join.pending),
        "recent": contents(join.recent),
        "found": plain([join.pending.find(known), join.recent.find(known)]),
        "counts": asdict(join.counts),
        "unmatched": (join.unmatched_predictions, join.unmatched_outcomes),
        "next_expiry": join.next_expiry(),
        "texts": (join._waiting_texts, join._pair_texts),
    }


def act(join: Join, argument: EventBatch | int) -> Any:
    """Take in a batch, of its own for each join because texts are filled in; or close until a time."""
    if isinstance(argument, int):
        return plain(join.expire(argument))
    return plain(join.step(argument.take(np.arange(len(argument)))))


@pytest.mark.parametrize("name", list(TASKS))
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, rows=st.sampled_from([(1, 4), (2, 16), (8, 8), (16, 64)]))
def test_a_join_that_is_killed_and_restored_goes_on_as_one_that_is_not(
    name: str, seed: int, rows: tuple[int, int]
) -> None:
    chosen, task = random.Random(seed), TASKS[name]
    ids = chosen.choice([3, 10, 40])
    limits = JoinLimits(20, 10, chosen.choice([5, 30]), chosen.choice([4, 1000]))
    undisturbed, watched, store = small(task, limits, rows), small(task, limits, rows), Store()
    since: list[tuple[EventBatch | int, Any]] = []
    now = 50

    def do(argument: EventBatch | int) -> None:
        expected = act(undisturbed, argument)
        assert act(watched, argument) == expected
        since.append((argument, expected))

    store.write(*watched.changes())
    for _ in range(chosen.randrange(40)):
        do(random_batch(chosen, task, now, ids))
        if chosen.random() < 0.4:
            now += chosen.choice([1, 3, 10, 40])
            do(now - 15)
        if chosen.random() < 0.3:
            store.write(*watched.changes())
            since.clear()
            restored = small(task, limits, rows)
            restored.restore(*store.load())
            assert everything(restored) == everything(undisturbed)
        if chosen.random() < 0.2:  # killed: the store's state, and from there once more
            watched = small(task, limits, rows)
            watched.restore(*store.load())
            for argument, expected in since:
                assert act(watched, argument) == expected
    assert everything(watched) == everything(undisturbed)


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, rows=st.sampled_from([(1, 4), (2, 16), (8, 8), (16, 64)]))
def test_every_method_of_a_table_is_followed(seed: int, rows: tuple[int, int]) -> None:
    """With keys that collide, and every method at any time: the plain store holds what the table holds."""
    chosen = random.Random(seed)
    dtype = np.dtype([("time", "i8"), ("cell", "i4")])

    def fresh() -> GenerationalTable:
        table = GenerationalTable(dtype, first_rows=rows[0], generation_rows=rows[1])
        table.track("time")
        return table

    def records(n: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        return np.array([(chosen.randrange(50), chosen.randrange(9)) for _ in range(n)], dtype)

    table, store = fresh(), {}
    for _ in range(chosen.randrange(60)):
        keys = np.array(chosen.sample(range(30), chosen.randrange(12)), np.uint64) << np.uint64(59)
        keys = np.unique(keys)
        found = table.find(keys)
        there = found[found >= 0]
        match chosen.randrange(8):
            case 0 | 1:
                table.insert(keys[found < 0], records(int((found < 0).sum())))
            case 2:
                table.insert(keys, records(len(keys)))  # a live key once more hides its first row
            case 3:
                table.put(there, records(len(there)))
            case 4:
                table.remove(there)
            case 5:
                table.expire("time", chosen.randrange(30))
            case 6:
                table.compact(below=chosen.choice([0.1, 1.0]))
            case 7:
                table.drop_before("time", chosen.randrange(60))
        if chosen.random() < 0.4:
            for change in table.changes():
                apply(store, change)
            again = fresh()
            again.restore(table.layout, {n: StoredRows(*part) for n, part in store.items()})
            assert contents(again) == contents(table)
            every = np.arange(32, dtype=np.uint64) << np.uint64(59)
            assert again.find(every).tolist() == table.find(every).tolist()
            assert again.lower_bound("time") == table.lower_bound("time")
            assert again.changes() == []
            assert table.changes() == []
            if chosen.random() < 0.5:
                table = again


def apply(store: dict[int, list[Any]], change: RowChanges) -> None:
    if change.dead:
        del store[change.generation]
        return
    empty = [change.keys[:0], change.records[:0], np.empty(0, np.bool_)]
    keys, records, live = store.get(change.generation, empty)
    assert change.first_row == len(keys)
    records = records.copy()
    records[change.updated] = change.updates
    live = np.concatenate((live, np.ones(len(change.keys), np.bool_)))
    live[change.deleted] = False
    store[change.generation] = [
        np.concatenate((keys, change.keys)),
        np.concatenate((records, change.records)),
        live,
    ]


RECORD = np.dtype([("time", "i8"), ("cell", "u4")])


def filled(rows: int, **sizes: int) -> tuple[GenerationalTable, Keys]:
    keys = np.random.default_rng(5).integers(0, 2**64, rows, dtype=np.uint64)
    table = GenerationalTable(RECORD, **sizes)
    table.insert(keys, np.zeros(rows, RECORD))
    return table, keys


def test_keys_that_come_back_in_one_generation_are_found_where_they_were() -> None:
    """Over several chunks of the index: the last row of a key is the one that counts."""
    rows = 3 * _CHUNK
    table = GenerationalTable(RECORD, first_rows=rows, generation_rows=rows)
    keys = np.arange(1000, dtype=np.uint64) * MIX
    for turn in range(rows // 1000):
        records = np.zeros(1000, RECORD)
        records["time"] = turn
        handles = table.insert(keys, records)
        table.remove(handles[turn % 7 :: 2] if turn == rows // 1000 - 1 else handles)
    (all_rows,) = table.changes()
    live = np.ones(len(all_rows.keys), np.bool_)
    live[all_rows.deleted] = False
    again = GenerationalTable(RECORD, first_rows=rows, generation_rows=rows)
    again.restore(table.layout, {0: StoredRows(all_rows.keys, all_rows.records, live)})
    assert again.find(keys).tolist() == table.find(keys).tolist()
    assert 0 < len(again) == len(table) < 1000


def test_what_is_noted_follows_what_changed_and_not_how_often() -> None:
    table, keys = filled(50_000, first_rows=1 << 16, generation_rows=1 << 16)
    table.changes()
    (generation,) = table._generations
    handles = table.find(keys[:1000])
    records = table.get(handles)
    for _ in range(_NOTED // 1000 + 10):
        table.put(handles, records)
    assert sum(map(len, generation._updated._parts)) < 20_000
    table.remove(handles)
    (change,) = table.changes()
    assert change.updated.tolist() == change.deleted.tolist() == np.sort(handles).tolist()
    assert not change.keys.size


def test_a_table_that_nobody_asked_notes_nothing() -> None:
    table, keys = filled(10_000, first_rows=1 << 12, generation_rows=1 << 12)
    table.put(table.find(keys), np.zeros(10_000, RECORD))
    table.remove(table.find(keys[:9000]))
    assert not table._gone
    assert not any(g._deleted._parts or g._updated._parts for g in table._generations)


def test_a_generation_that_came_and_went_between_two_calls_is_not_mentioned() -> None:
    table, keys = filled(4, first_rows=4, generation_rows=4)
    table.changes()
    table.remove(table.insert(keys[:3] + np.uint64(1), np.zeros(3, RECORD)))
    table.insert(keys[:2] + np.uint64(2), np.zeros(2, RECORD))
    table.remove(table.find(keys))
    changes = {(c.generation, c.dead): c for c in table.changes()}
    assert list(changes) == [(0, True), (2, False)]
    assert table.changes() == []


def test_what_was_given_stays_as_it_was() -> None:
    table, keys = filled(10)
    (change,) = table.changes()
    table.put(table.find(keys), np.ones(10, RECORD))
    assert not change.records["time"].any()


@pytest.mark.parametrize(
    ("layout", "rows", "dtype", "message"),
    [
        ([[0, 16, 3]], 2, RECORD, "generation 0 has 2 keys, 2 records and 2 marks for 3 rows of 16"),
        ([[0, 16, 0], [1, 16, 2]], 2, RECORD, r"stored are generations \[0\], but \[0, 1\] belong"),
        ([[1, 16, 2]], 2, RECORD, r"stored are generations \[0\], but \[1\] belong"),
        ([], 0, RECORD, r"stored are generations \[0\], but \[\] belong"),
        ([[0, 1, 2]], 2, RECORD, "2 rows of 1: the state is damaged"),
        ([[0, 16, 2]], 2, np.dtype([("time", "i8")]), "the task or its options have changed"),
    ],
)
def test_rows_that_do_not_belong_are_refused(
    layout: list[list[int]], rows: int, dtype: np.dtype[np.void], message: str
) -> None:
    table = GenerationalTable(RECORD)
    part = StoredRows(np.zeros(rows, np.uint64), np.zeros(rows, dtype), np.ones(rows, np.bool_))
    with pytest.raises(ValueError, match=message):
        table.restore(layout, {0: part})
    assert table.layout == [[0, 1 << 14, 0]]


def test_what_is_dropped_follows_from_the_rows_and_not_from_when_somebody_looked() -> None:
    table, keys = filled(5, first_rows=4, generation_rows=4)
    records = np.zeros(5, RECORD)
    for latest in (90, 10):
        records["time"] = latest
        table.put(table.find(keys), records)
        assert not table.drop_before("time", 5).size
    again = GenerationalTable(RECORD, first_rows=4, generation_rows=4)
    parts = {
        c.generation: StoredRows(c.keys, c.records, np.ones(len(c.keys), np.bool_)) for c in table.changes()
    }
    again.restore(table.layout, parts)
    assert (
        table.drop_before("time", 50).tolist() == again.drop_before("time", 50).tolist() == keys[:4].tolist()
    )


def test_a_killed_row_does_not_bound_the_next_expiry() -> None:
    """Else the time of an evaluation would depend on rows that a restart forgets."""
    times = np.arange(20_000) % 1000
    records = np.zeros(20_000, RECORD)
    records["time"] = times
    keys = np.arange(20_000, dtype=np.uint64) * MIX
    table = GenerationalTable(RECORD, first_rows=1 << 12, generation_rows=1 << 13)
    table.insert(keys, records)
    for least in (1, 7, 500, 999):
        table.remove(table.find(keys[times < least])[table.find(keys[times < least]) >= 0])
        assert table.lower_bound("time") == least
    last = table.find(keys[times == 999])
    later = table.get(last)
    later["time"] = 2000
    table.put(last, later)
    assert table.lower_bound("time") == 2000
    table.remove(last)
    assert table.lower_bound("time") is None
