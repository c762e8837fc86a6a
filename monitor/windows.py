"""Sliding windows over closed time buckets, exact because sums are integers.

A window slides by its *step* (``clock.slide_step``): the time bucket for windows up to 2 hours, one
hour up to 2 days, one day beyond. Its sums are a running total to which closed
steps are added and from which steps that have left are subtracted.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta

from monitor.cells import CellSums, CellTable
from monitor.clock import slide_step


class Window:
    """The sums of the last ``length_ms`` of closed time, or of everything (``length_ms=None``).

    The window covers whole steps: after the step that ends at ``end`` closed, it holds
    [end - length, end). State: O(cells x statistics) for the total, and the closed steps inside.
    """

    def __init__(self, label: str, length_ms: int | None, bucket_ms: int, statistics: int) -> None:
        self.label = label
        self.length_ms = length_ms
        self.step_ms = bucket_ms
        if length_ms is not None:
            step = slide_step(timedelta(milliseconds=length_ms), timedelta(milliseconds=bucket_ms))
            self.step_ms = step // timedelta(milliseconds=1)
        if length_ms is not None and length_ms % self.step_ms:
            raise ValueError(f"window {label} is not a multiple of its step of {self.step_ms} ms")
        self.total = CellTable(1, statistics)
        self.end: int | None = None
        self.changes = 0
        self._steps: deque[tuple[int, CellSums]] = deque()
        self._open: CellSums | None = None
        self._open_start: int | None = None

    def next_change(self) -> int | None:
        """The time bucket end at which the total changes although nothing new arrives, or None."""
        moments = []
        if self._steps and self.length_ms is not None:
            moments.append(self._steps[0][0] + self.step_ms + self.length_ms)
        if self._open_start is not None:
            moments.append(self._open_start + self.step_ms)
        return min(moments, default=None)

    def close(self, start: int, end: int, closed: CellSums | None) -> bool:
        """Take in the time bucket [start, end); return whether the total changed.

        Buckets come in ascending order; those without events may be left out, except where
        :meth:`next_change` asks for one.
        """
        step = start - start % self.step_ms
        if closed is not None:
            self._open = closed if self._open is None else self._open.merge(closed)
            self._open_start = step
        return self._take_in(end) if end % self.step_ms == 0 else False

    def settle(self, end: int) -> bool:
        """The events ended at ``end``: take in the step that has begun, too; return as :meth:`close`.

        The window then holds the whole steps of [end - length, end) and the one that was cut short.
        """
        return self._take_in(end) if end % self.step_ms else False

    def _take_in(self, end: int) -> bool:
        changed = False
        if self._open is not None and self._open_start is not None:
            self.total.include(self._open)
            if self.length_ms is not None:
                self._steps.append((self._open_start, self._open))
            self._open = self._open_start = None
            changed = True
        if self.length_ms is not None:
            while self._steps and self._steps[0][0] < end - self.length_ms:
                self.total.include(self._steps.popleft()[1], -1)
                changed = True
        self.end = end
        self.changes += changed
        return changed
