"""Sliding windows over closed time buckets, exact because sums are integers.

A window slides by its *step* (``clock.slide_step``): the time bucket for windows up to 2 hours, one
hour up to 2 days, one day beyond. Its sums are a running total to which closed
steps are added and from which steps that have left are subtracted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta

from monitor.cells import CellSums, CellTable, TableLog
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
        self._log: TableLog | None = None

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
            if self._log is not None:
                self._log.put(self._filling(step), self._open)
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
            if self._log is not None:
                self._log.drop(self._filling(self._open_start))
            if self.length_ms is not None:
                self._append(self._open_start, self._open)
            self._open = self._open_start = None
            changed = True
        if self.length_ms is not None:
            while self._steps and self._steps[0][0] < end - self.length_ms:
                start, step = self._steps.popleft()
                self.total.include(step, -1)
                if self._log is not None:
                    self._log.drop(self._closed(start))
                changed = True
        self.end = end
        self.changes += changed
        return changed

    def tables(self) -> Iterator[tuple[str, CellSums]]:
        """Closed steps and the step being filled, by name."""
        for start, step in self._steps:
            yield self._closed(start), step
        if self._open is not None and self._open_start is not None:
            yield self._filling(self._open_start), self._open

    def track(self, log: TableLog) -> None:
        """Tell ``log`` of :meth:`tables`, now and as they change.

        Windows with the same step have these in common, so that the longest of them is enough. The total of
        a window without end has no steps; it is tracked itself.
        """
        self._log = log
        if self.length_ms is None:
            self.total.track()
        for name, table in self.tables():
            log.put(name, table)

    def restore(
        self,
        end: int | None,
        steps: Iterable[tuple[int, CellSums]],
        filling: tuple[int, CellSums] | None,
        total: CellSums | None,
    ) -> None:
        """Make this fresh window hold what it held at ``end``, or would have if it had been there.

        ``steps`` ascend and, like ``filling``, are those that the longest window with this step told of;
        ``total`` is that of the window without end.
        """
        self.end = end
        if filling is not None:
            self._open_start, self._open = filling
        if self.length_ms is None:
            if total is not None:
                self.total.include(total)
            return
        for start, step in steps:
            if end is not None and start >= end - self.length_ms:
                self.total.include(step)
                self._steps.append((start, step))

    def _append(self, start: int, step: CellSums) -> None:
        self._steps.append((start, step))
        if self._log is not None:
            self._log.put(self._closed(start), step)

    def _filling(self, start: int) -> str:
        return f"filling:{self.step_ms}:{start}"

    def _closed(self, start: int) -> str:
        return f"step:{self.step_ms}:{start}"
