"""The dictionary of cells with its caps, and tables of sums."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import cells as module
from monitor.cells import AttributeCap, Cell, CellDictionary, CellSums, CellTable
from monitor.names import OTHER
from monitor.tasks.base import Ints, Scatter


def dictionary(cap: int = 3, max_cells: int = 100) -> CellDictionary:
    return CellDictionary([AttributeCap("a", cap), AttributeCap("b", cap)], max_cells)


def close(found: CellDictionary, counts: dict[Cell, int]) -> dict[Cell, int]:
    """A time bucket with these events per combination; the events per cell after it closed."""
    numbers = {found.intern(values): n for values, n in counts.items()}
    merged: dict[int, int] = {}
    for values, n in counts.items():
        number = found.intern(values)
        merged[number] = merged.get(number, 0) + n
    assert set(merged) == set(numbers)
    cells = np.array(sorted(merged), np.int64)
    found.admit(cells, np.array([merged[c] for c in cells.tolist()]))
    table = CellTable(len(found), 1)
    for number, n in merged.items():
        table.add(np.full(n, number), [Scatter(0)])
    closed = table.closed(found.folded_to)
    return {found.cells[c]: int(s[0]) for c, s in zip(closed.cells, closed.sums, strict=True)}


def test_below_the_cap_every_value_counts_for_itself() -> None:
    counts = {("x", "1"): 5, ("y", "1"): 1, ("z", "2"): 3}
    assert close(dictionary(), counts) == counts


def test_the_most_frequent_values_take_the_places_left() -> None:
    found = dictionary(cap=2)
    closed = close(found, {(v, "1"): n for v, n in [("x", 50), ("y", 30), ("z", 40), ("w", 2)]})
    assert closed == {("x", "1"): 50, ("z", "1"): 40, (OTHER, "1"): 32}
    # admission is for good, and the places are taken
    assert close(found, {("y", "1"): 99, ("x", "1"): 1}) == {(OTHER, "1"): 99, ("x", "1"): 1}


def test_ties_go_by_name() -> None:
    closed = close(dictionary(cap=2), {(v, "1"): 10 for v in ("zz", "b", "c", "a")})
    assert set(closed) == {("a", "1"), ("b", "1"), (OTHER, "1")}


def test_other_takes_no_place() -> None:
    found = dictionary(cap=1)
    assert close(found, {(OTHER, "1"): 9, ("x", "1"): 1}) == {(OTHER, "1"): 9, ("x", "1"): 1}


def test_combinations_beyond_their_cap_fold_the_last_attribute_first() -> None:
    found = dictionary(cap=5, max_cells=2)
    closed = close(found, {("x", "1"): 50, ("y", "1"): 40, ("x", "2"): 9})
    assert closed == {("x", "1"): 50, ("y", "1"): 40, (OTHER, OTHER): 9}
    # a coarser cell that was admitted is used before everything else
    found = dictionary(cap=5, max_cells=2)
    assert close(found, {("x", OTHER): 5, ("x", "1"): 4}) == {("x", OTHER): 5, ("x", "1"): 4}
    assert close(found, {("x", "2"): 3, ("y", "2"): 2}) == {("x", OTHER): 3, (OTHER, OTHER): 2}


def test_a_combination_that_was_folded_keeps_its_place_open_for_nobody() -> None:
    found = dictionary(cap=5, max_cells=2)
    for _ in range(3):
        close(found, {(v, w): 1 for v in "vwxyz" for w in "123"})
        assert found.admitted == 2


def test_unbounded_values_use_bounded_memory() -> None:
    found = dictionary(cap=3, max_cells=10)
    sizes = []
    for bucket in range(50):
        counts = {(f"{bucket}-{i}", f"{i}"): 1 for i in range(40)}
        closed = close(found, counts)
        assert sum(closed.values()) == 40
        sizes.append(len(found))
    assert sizes[-1] <= 9 * 10 + 10
    assert sizes[-1] == sizes[5]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), cap=st.integers(1, 3), max_cells=st.sampled_from([2, 4, 100]))
def test_what_is_admitted_depends_on_the_buckets_and_not_on_arrival(
    seed: int, cap: int, max_cells: int
) -> None:
    chosen = random.Random(seed)
    values = [(f"v{i}", f"w{j}") for i in range(min(8 * cap, 4)) for j in range(2)]
    buckets = [
        {v: chosen.choice([1, 2, 30]) for v in chosen.sample(values, chosen.randrange(1, len(values)))}
        for _ in range(4)
    ]
    results = []
    for _ in range(3):
        found, closed = dictionary(cap, max_cells), []
        early = chosen.sample(values, chosen.randrange(len(values)))
        for values_seen_early in early:
            found.intern(values_seen_early)  # from a later bucket, or a duplicate that counts nowhere
        for bucket in buckets:
            order = list(bucket)
            chosen.shuffle(order)
            closed.append(close(found, {v: bucket[v] for v in order}))
        results.append(closed)
    assert results[0] == results[1] == results[2]
    assert all(sum(c.values()) == sum(b.values()) for c, b in zip(results[0], buckets, strict=True))
    assert len({cell for c in results[0] for cell in c}) <= max_cells + 1


def sums(rows: dict[int, list[int]], width: int = 3) -> CellSums:
    cells = sorted(rows)
    return CellSums(
        np.array(cells, np.int64), np.array([rows[c] for c in cells], np.int64).reshape(len(cells), width)
    )


ROWS = st.dictionaries(
    st.integers(0, 9), st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3), max_size=6
)


@given(ROWS, ROWS, ROWS)
def test_merging_is_associative_and_commutative(
    a: dict[int, list[int]], b: dict[int, list[int]], c: dict[int, list[int]]
) -> None:
    def content(s: CellSums) -> dict[int, list[int]]:
        return dict(zip(s.cells.tolist(), s.sums.tolist(), strict=True))

    one = sums(a).merge(sums(b)).merge(sums(c))
    two = sums(a).merge(sums(c).merge(sums(b)))
    assert content(one) == content(two)
    assert content(one) == {
        k: [sum(x.get(k, [0] * 3)[i] for x in (a, b, c)) for i in range(3)] for k in {*a, *b, *c}
    }


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2), st.integers(-5, 5)), max_size=40))
def test_adding_and_taking_back(events: list[tuple[int, int, int]]) -> None:
    table, kept = CellTable(1, 3), CellTable(1, 3)
    cells = np.array([e[0] for e in events], np.int64)
    scatter = Scatter(np.array([e[1] for e in events], np.int64), np.array([e[2] for e in events]))
    kept.add(cells, [scatter, Scatter(0)])
    table.add(cells, [scatter, Scatter(0)])
    table.add(cells, [scatter, Scatter(0)])
    table.add(cells, [scatter, Scatter(0)], sign=-1)
    expected: dict[int, list[int]] = {}
    for cell, statistic, value in events:
        row = expected.setdefault(cell, [0, 0, 0])
        row[0] += 1
        row[statistic] += value
    rows = {c: r for c, r in enumerate(table.sums.tolist()) if any(r)}
    assert rows == {c: r for c, r in expected.items() if any(r)}
    assert not kept.sums[len(table.sums) :].any()


def test_a_closed_bucket_can_be_included_and_subtracted() -> None:
    total = CellTable(1, 3)
    before = sums({0: [1, 0, 2], 7: [5, 5, 5]})
    total.include(before)
    total.include(sums({7: [1, 1, 1], 40: [3, 0, 0]}))
    total.include(before, -1)
    assert {c: r for c, r in enumerate(total.sums.tolist()) if any(r)} == {7: [1, 1, 1], 40: [3, 0, 0]}
    assert total.events == 5


def test_sums_beyond_int64_go_on_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 10)
    table = CellTable(2, 3)
    large = 2**59
    for _ in range(40):
        table.add(np.array([0, 1]), [Scatter(2, np.array([large, -large])), Scatter(0)])
    assert table.sums[:, 2].tolist() == [40 * large, -40 * large]
    closed = table.closed(np.arange(2))
    window = CellTable(1, 3)
    window.include(closed)
    window.include(sums({0: [1, 0, large]}))
    assert window.sums[0, 2] == 41 * large
    window.include(closed, -1)
    assert window.sums[0].tolist() == [1, 0, large]


def test_rows_fold_into_the_cell_they_are_counted_in() -> None:
    table = CellTable(4, 2)
    table.add(np.array([0, 1, 2, 3, 3]), [Scatter(0), Scatter(1, 10)])
    folded: Ints = np.array([0, 0, 2, 0])
    closed = table.closed(folded)
    assert closed.cells.tolist() == [0, 2]
    assert closed.sums.tolist() == [[4, 40], [1, 10]]
