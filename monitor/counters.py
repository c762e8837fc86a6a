"""Counters per group, as they may leave: they advance in blocks that give nobody away.

A counter that moved with every event would show each person to whoever reads it often enough. So
closed time buckets are gathered in a block, and a block is released as a whole once every group that
it holds somebody of holds at least ``min_group_size`` of them. What waits longer than an hour of event
time is released without the groups that are too small and those one could find by subtraction; their
events are counted as withheld and enter no counter. Blocks hold different events, so nothing is
learnt by putting several together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monitor.batch import Bools
from monitor.cells import Cell, CellSums, CellTable, TableLog
from monitor.groups import GroupIndex, Grouping, GroupTable, gated
from monitor.tasks.base import EXPIRED, OUTCOMES, PREDICTIONS, Block, Ints, Task

RELEASE_AFTER_MS = 3_600_000
"""Event time after which a block is released without the groups that are too small."""
BLOCK = "block"
"""Name of the block among stored tables."""


@dataclass(slots=True)
class GroupCounters:
    """Released sums of one grouping since the start, by group; they never decrease.

    ``withheld`` counts the predictions and outcomes of groups that were too small in their block.
    """

    grouping: Grouping
    sums: dict[Cell, Ints] = field(default_factory=dict)
    withheld: int = 0

    def table(self, statistics: int) -> GroupTable:
        """The counters as a table of groups, in sorted order."""
        groups = sorted(self.sums)
        rows = np.array([self.sums[g] for g in groups]) if groups else np.zeros((0, statistics), np.int64)
        return GroupTable(self.grouping, groups, rows)


class ReleasedCounters:
    """Counters of all groupings of a model.

    Parameters
    ----------
    task
        Says which statistics belong to which block.
    attributes
        Attributes of the cells, in order.
    groupings
        What is counted; ``()`` is everybody.
    min_group_size
        Fewest people of a group in a released block; 1 releases at every close.

    State: O(cells x statistics) for the block, O(groups x statistics) for the counters.
    """

    def __init__(
        self, task: Task, attributes: Sequence[str], groupings: Sequence[Grouping], min_group_size: int
    ) -> None:
        self.groupings = {g: GroupCounters(g) for g in dict.fromkeys([(), *groupings])}
        self._indexes = {g: GroupIndex(attributes, g) for g in self.groupings}
        self._min_group_size = min_group_size
        self._of_predictions = np.array([s.block == "prediction" for s in task.statistics], np.bool_)
        self._block = CellTable(1, len(task.statistics))
        self._since: int | None = None
        self._releases = 0
        self._log: TableLog | None = None

    def include(self, start: int, closed: CellSums) -> None:
        """Take in the sums of a time bucket that began at ``start`` and closed."""
        if closed.cells.size:
            self._block.include(closed)
            self._since = start if self._since is None else self._since

    def release(self, cells: Sequence[Cell], now: int) -> None:
        """Release the block, if it may be by ``now`` (event time, ms); ``cells`` are all cells known."""
        if self._since is None:
            return
        tables = [index.table(cells, self._block.sums) for index in self._indexes.values()]
        tables = gated(tables, self._min_group_size)
        hides = any(mask.any() for t in tables for mask in t.withheld.values())
        if hides and now - self._since < RELEASE_AFTER_MS:
            return
        for table in tables:
            self._count(self.groupings[table.grouping], table)
        self._block = CellTable(1, self._block.sums.shape[1])
        self._since = None
        self._releases += 1
        if self._log is not None:
            self._log.drop(BLOCK)
            self._block.track()

    def track(self, log: TableLog) -> None:
        """Tell ``log`` of the block, now and (with :meth:`note`) as it changes."""
        self._log = log
        self._block.track()

    def note(self, log: TableLog) -> None:
        """Have the log take what changed in the block."""
        log.note(BLOCK, self._block)

    @property
    def version(self) -> tuple[int, int | None]:
        """Changes whenever :meth:`snapshot` does."""
        return self._releases, self._since

    def snapshot(self) -> dict[str, Any]:
        """The counters and the age of the block as JSON; the block itself is a table of sums."""
        counters = [
            {
                "grouping": list(c.grouping),
                "withheld": c.withheld,
                "groups": [list(group) for group in c.sums],
                "sums": [row.tolist() for row in c.sums.values()],
            }
            for c in self.groupings.values()
        ]
        return {"since": self._since, "counters": counters}

    def restore(self, snapshot: Mapping[str, Any], block: CellSums | None) -> None:
        """Make these fresh counters what the others were; groupings that are new start at 0."""
        self._since = snapshot["since"]
        if block is not None:
            self._block.include(block)
        for stored in snapshot["counters"]:
            counters = self.groupings.get(tuple(stored["grouping"]))
            if counters is not None:
                counters.withheld = stored["withheld"]
                groups = (tuple(group) for group in stored["groups"])
                counters.sums = {g: _row(row) for g, row in zip(groups, stored["sums"], strict=True)}

    def _count(self, counters: GroupCounters, table: GroupTable) -> None:
        hidden = self._hidden(table.withheld, len(table.groups))
        people = table.sums[:, PREDICTIONS] + table.sums[:, OUTCOMES] + table.sums[:, EXPIRED]
        released = np.where(hidden, 0, table.sums)
        left = released[:, PREDICTIONS] + released[:, OUTCOMES] + released[:, EXPIRED]
        counters.withheld += int((people - left).sum())
        for group, row in zip(table.groups, released, strict=True):
            before = counters.sums.get(group)
            if before is None and not row.any():
                continue
            counters.sums[group] = row if before is None else before + row

    def _hidden(self, withheld: Mapping[Block, Bools], groups: int) -> Bools:
        """Which sums of which groups stay, shape (groups, statistics)."""
        none = np.zeros(groups, np.bool_)
        predictions, outcomes = withheld.get("prediction", none), withheld.get("outcome", none)
        hidden: Bools = np.where(self._of_predictions, predictions[:, None], outcomes[:, None])
        return hidden


def _row(sums: Sequence[int]) -> Ints:
    """Sums as an array; of Python's integers where they might outgrow 64 bits."""
    large = any(abs(value) >= 2**62 for value in sums)
    return np.array(sums, np.object_ if large else np.int64)
