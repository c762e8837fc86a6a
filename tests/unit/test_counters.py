"""Counters per group: they add up, never decrease, and give nobody away."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from monitor.cells import Cell, CellSums
from monitor.counters import RELEASE_AFTER_MS, ReleasedCounters
from monitor.tasks import build
from monitor.tasks.base import OUTCOMES, PREDICTIONS
from monitor.tasks.binary import BinaryOptions
from tests.engine_helpers import MINUTE

TASK = build(BinaryOptions())
CELLS: list[Cell] = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
GROUPINGS = [("g",), ("h",), ("g", "h")]


def block(counts: dict[int, int]) -> CellSums:
    """A closed time bucket with so many predictions and outcomes per cell."""
    cells = np.array(sorted(c for c, n in counts.items() if n), np.int64)
    sums = np.zeros((len(cells), len(TASK.statistics)), np.int64)
    sums[:, PREDICTIONS] = sums[:, OUTCOMES] = [counts[c] for c in cells.tolist()]
    return CellSums(cells, sums)


def people(counters: ReleasedCounters, *grouping: str) -> dict[Cell, int]:
    table = counters.groupings[grouping].table(len(TASK.statistics))
    return dict(zip(table.groups, table.sums[:, PREDICTIONS].tolist(), strict=True))


def test_a_group_size_of_one_releases_every_close() -> None:
    counters = ReleasedCounters(TASK, ["g", "h"], GROUPINGS, 1)
    counters.include(0, block({0: 1}))
    counters.release(CELLS, MINUTE)
    counters.include(MINUTE, block({3: 2}))
    counters.release(CELLS, 2 * MINUTE)
    assert people(counters, "g") == {("a",): 1, ("b",): 2}
    assert people(counters) == {(): 3}


def test_a_block_waits_until_nobody_is_alone() -> None:
    counters = ReleasedCounters(TASK, ["g", "h"], [("g",)], 10)
    counters.include(0, block({0: 50, 2: 3}))
    counters.release(CELLS, MINUTE)
    assert people(counters) == {}, "three people of b would be seen"
    counters.include(MINUTE, block({2: 7}))
    counters.release(CELLS, 2 * MINUTE)
    assert people(counters, "g") == {("a",): 50, ("b",): 10}


def test_what_waits_too_long_is_withheld_and_counted() -> None:
    counters = ReleasedCounters(TASK, ["g", "h"], [("g",)], 10)
    counters.include(0, block({0: 50, 2: 3}))
    counters.release(CELLS, RELEASE_AFTER_MS)
    assert people(counters) == {(): 53}
    assert people(counters, "g") == {}, "of two groups one is the rest of the other"
    assert counters.groupings["g",].withheld == 106, "53 predictions and 53 outcomes"
    counters.include(RELEASE_AFTER_MS, block({0: 20, 2: 20}))
    counters.release(CELLS, RELEASE_AFTER_MS + MINUTE)
    assert people(counters, "g") == {("a",): 20, ("b",): 20}, "what was withheld stays so"


@given(
    st.lists(st.dictionaries(st.integers(0, 3), st.integers(0, 25), max_size=4), max_size=12),
    st.integers(1, 12),
    st.integers(1, 40),
)
def test_counters_never_decrease_and_every_advance_is_large_enough(
    buckets: list[dict[int, int]], least: int, minutes: int
) -> None:
    counters = ReleasedCounters(TASK, ["g", "h"], GROUPINGS, least)
    fed = 0
    before: dict[Any, dict[Cell, int]] = {}
    for i, counts in enumerate(buckets):
        counters.include(i * minutes * MINUTE, block(counts))
        fed += sum(counts.values())
        counters.release(CELLS, (i + 1) * minutes * MINUTE)
        for grouping in [(), *GROUPINGS]:
            now = people(counters, *grouping)
            for group, n in now.items():
                advance = n - before.get(grouping, {}).get(group, 0)
                assert advance == 0 or advance >= least
            before[grouping] = now
    counters.release(CELLS, 10**12)
    for grouping in [(), *GROUPINGS]:
        own = counters.groupings[grouping]
        assert 2 * sum(people(counters, *grouping).values()) + own.withheld == 2 * fed
