"""Sliding windows against sums taken anew, for every step and over gaps of any length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.cells import CellSums
from monitor.windows import Window

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
START = 19_675 * DAY + 5 * HOUR
"""A full hour, not a full day."""

# label, length, time bucket, step
LENGTHS = [
    pytest.param(5 * MINUTE, MINUTE, MINUTE, id="5m"),
    pytest.param(2 * HOUR, MINUTE, MINUTE, id="2h"),
    pytest.param(3 * HOUR, 15 * MINUTE, HOUR, id="3h"),
    pytest.param(2 * DAY, HOUR, HOUR, id="2d of hours"),
    pytest.param(7 * DAY, HOUR, DAY, id="7d"),
    pytest.param(3 * DAY, DAY, DAY, id="3d of days"),
    pytest.param(None, MINUTE, MINUTE, id="all"),
]
GAPS = st.lists(st.tuples(st.sampled_from([1, 1, 1, 2, 5, 30, 121, 1000]), st.integers(0, 3)), max_size=25)


def closed(cell: int, value: int) -> CellSums:
    return CellSums(np.array([cell], np.int64), np.array([[value, 0, 7 * value]], np.int64))


def total(window: Window) -> dict[int, int]:
    return {c: int(row[2]) for c, row in enumerate(window.total.sums) if row.any()}


def expected(history: dict[int, tuple[int, int]], end: int, length: int | None, step: int) -> dict[int, int]:
    """Sums of the buckets in [end - length, end), both cut to full steps."""
    end -= end % step
    begin = 0 if length is None else end - length
    found: dict[int, int] = {}
    for start, (cell, value) in history.items():
        if begin <= start < end:
            found[cell] = found.get(cell, 0) + 7 * value
    return {c: v for c, v in found.items() if v}


@pytest.mark.parametrize(("length", "bucket", "step"), LENGTHS)
@settings(max_examples=40, deadline=None)
@given(gaps=GAPS)
def test_every_bucket(length: int | None, bucket: int, step: int, gaps: list[tuple[int, int]]) -> None:
    """Closed one by one, with and without events."""
    window = Window("w", length, bucket, 3)
    assert window.step_ms == step
    history: dict[int, tuple[int, int]] = {}
    start = START - START % bucket
    for i, (gap, cell) in enumerate(gaps):
        for quiet in range(min(gap, 200)):
            before = total(window)
            part = None
            if quiet == min(gap, 200) - 1:
                history[start] = (cell, i + 1)
                part = closed(cell, i + 1)
            foreseen = window.next_change()
            changed = window.close(start, start + bucket, part)
            start += bucket
            now = total(window)
            assert now == expected(history, start, length, step)
            assert changed or now == before
            if part is None and now != before:
                assert foreseen == start, "the change was not foreseen"
            if not start % step:
                assert window.end == start


@pytest.mark.parametrize(("length", "bucket", "step"), LENGTHS)
@settings(max_examples=60, deadline=None)
@given(gaps=GAPS, tail=st.integers(0, 3000))
def test_quiet_buckets_are_skipped(
    length: int | None, bucket: int, step: int, gaps: list[tuple[int, int]], tail: int
) -> None:
    """As the engine does it: only buckets with events and those that next_change asks for."""
    window = Window("w", length, bucket, 3)
    history: dict[int, tuple[int, int]] = {}
    start = START - START % bucket

    def skip_to(until: int) -> None:
        while (change := window.next_change()) is not None and change <= until:
            window.close(change - bucket, change, None)
            assert window.next_change() != change, "asked for once"

    for i, (gap, cell) in enumerate(gaps):
        start += gap * bucket
        skip_to(start)
        assert total(window) == expected(history, start, length, step)
        history[start] = (cell, i + 1)
        window.close(start, start + bucket, closed(cell, i + 1))
        start += bucket
        assert total(window) == expected(history, start, length, step)
    start += tail * bucket
    skip_to(start)
    assert total(window) == expected(history, start, length, step)


def test_a_window_that_is_over_is_empty_and_asks_for_nothing() -> None:
    window = Window("w", 5 * MINUTE, MINUTE, 3)
    assert window.next_change() is None
    window.close(START, START + MINUTE, closed(1, 4))
    assert window.next_change() == START + 6 * MINUTE
    window.close(START + 5 * MINUTE, START + 6 * MINUTE, None)
    assert total(window) == {}
    assert window.total.events == 0
    assert window.next_change() is None


def test_a_length_that_is_no_multiple_of_its_step() -> None:
    with pytest.raises(ValueError, match="not a multiple of its step of 3600000 ms"):
        Window("w", 150 * MINUTE, MINUTE, 3)
