"""From cells to groups: sums of cells, and the metrics of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from monitor.batch import Bools
from monitor.cells import Cell
from monitor.names import OTHER, UNKNOWN, Status
from monitor.release import withheld
from monitor.tasks.base import OUTCOMES, PREDICTIONS, Floats, Form, Ints, Metric, Statistic, Sums, Task

Grouping = tuple[str, ...]
"""The attributes that define groups: one, or several for an intersection; () is everybody."""


@dataclass(frozen=True, slots=True)
class GroupTable:
    """Sums of the groups of one grouping: ``sums[i]`` belongs to ``groups[i]``.

    ``groups[i]`` holds one value per attribute of the grouping. Groups are in sorted order.
    ``comparable[i]`` is false for groups with a value ``unknown`` or ``other``: they are shown, and
    left out of gaps.
    """

    grouping: Grouping
    groups: Sequence[Cell]
    sums: Ints

    @property
    def comparable(self) -> Bools:
        """Which groups enter gaps."""
        return np.array([not {UNKNOWN, OTHER}.intersection(g) for g in self.groups], np.bool_)

    def named(self, group: int) -> dict[str, str]:
        """A group as ``{attribute: value}``."""
        return dict(zip(self.grouping, self.groups[group], strict=True))


def merge_groups(sums: Ints, into: Sequence[int]) -> Ints:
    """Rows added up: row i of ``sums`` goes to row ``into[i]``."""
    merged = np.zeros((max(into, default=-1) + 1, sums.shape[1]), sums.dtype)
    np.add.at(merged, np.array(into, np.int64), sums)
    return merged


class GroupIndex:
    """Which group each cell belongs to, kept up to date as cells appear."""

    def __init__(self, attributes: Sequence[str], grouping: Grouping) -> None:
        self.grouping = grouping
        self._positions = [attributes.index(a) for a in grouping]
        self._number: dict[Cell, int] = {}
        self._groups: list[Cell] = []
        self._of_cell = np.zeros(0, np.int64)

    def table(self, cells: Sequence[Cell], totals: Ints) -> GroupTable:
        """Group sums of the first ``len(totals)`` cells; groups without any event are left out."""
        self._extend(cells)
        rows = min(len(totals), len(cells))
        sums = np.zeros((len(self._groups), totals.shape[1]), totals.dtype)
        np.add.at(sums, self._of_cell[:rows], totals[:rows])
        present = np.flatnonzero((sums != 0).any(axis=1)).tolist()
        present.sort(key=lambda i: self._groups[i])
        return GroupTable(self.grouping, [self._groups[i] for i in present], sums[present])

    def _extend(self, cells: Sequence[Cell]) -> None:
        have = len(self._of_cell)
        if have == len(cells):
            return
        fresh = np.empty(len(cells) - have, np.int64)
        for i, cell in enumerate(cells[have:]):
            group = tuple(cell[p] for p in self._positions)
            number = self._number.setdefault(group, len(self._groups))
            if number == len(self._groups):
                self._groups.append(group)
            fresh[i] = number
        self._of_cell = np.concatenate([self._of_cell, fresh])


@dataclass(frozen=True, slots=True)
class MetricValues:
    """One metric of n groups. ``value`` is NaN where the status has none to show.

    ``numerator`` and ``denominator`` are None for metrics that are not a ratio of two sums.
    ``support`` is the number of events each value rests on.
    """

    metric: Metric
    value: Floats
    numerator: NDArray[np.generic] | None
    denominator: NDArray[np.generic] | None
    support: Ints
    status: Sequence[Status]

    @property
    def ok(self) -> Bools:
        """Which values may be compared."""
        return np.array([s is Status.OK for s in self.status], np.bool_)


def combine(sums: Ints, form: Form, index: Mapping[str, int]) -> Ints:
    """The integer combination ``form`` of statistics, per group; exact."""
    total = np.zeros(len(sums), sums.dtype)
    for name, factor in form.items():
        total = total + factor * sums[:, index[name]]
    return total


class MetricTable:
    """Values of a task's metrics from group sums."""

    def __init__(self, task: Task, min_support: int, min_group_size: int) -> None:
        self._min_group_size = min_group_size
        self._statistics: Sequence[Statistic] = task.statistics
        self._index = {s.name: i for i, s in enumerate(task.statistics)}
        self.metrics = task.metrics
        self.min_support = min_support

    def of_groups(self, name: str, table: GroupTable, min_support: int | None = None) -> MetricValues:
        """The metric ``name`` of each group; groups that must be withheld have status ``suppressed``."""
        values = self.of_sums(name, table.sums, min_support)
        hidden = withheld(table.groups, values.support, self._min_group_size)
        if not hidden.any():
            return values
        status = [
            Status.SUPPRESSED if hide else s for s, hide in zip(values.status, hidden.tolist(), strict=True)
        ]
        return replace(values, value=np.where(hidden, np.nan, values.value), status=status)

    def of_sums(self, name: str, sums: Ints, min_support: int | None = None) -> MetricValues:
        """The metric ``name`` for every row of ``sums``, whatever the rows are sums of."""
        metric = self.metrics[name]
        least = self.min_support if min_support is None else min_support
        support = combine(sums, metric.support, self._index)
        numerator = denominator = None
        with np.errstate(divide="ignore", invalid="ignore"):
            if metric.formula is not None:
                value = np.asarray(metric.formula(Sums(sums, self._statistics)), np.float64)
            else:
                numerator = self._scaled(sums, metric.numerator or {})
                denominator = self._scaled(sums, metric.denominator or {})
                value = np.divide(numerator.astype(np.float64), denominator.astype(np.float64))
        value = np.where(np.isfinite(value), value, np.nan)
        waiting = (sums[:, PREDICTIONS] > 0) & (sums[:, OUTCOMES] == 0)
        status = [
            _status(v, n, least, waits and metric.block == "outcome")
            for v, n, waits in zip(value.tolist(), support.tolist(), waiting.tolist(), strict=True)
        ]
        return MetricValues(metric, value, numerator, denominator, support, status)

    def _scaled(self, sums: Ints, form: Form) -> NDArray[np.generic]:
        total = combine(sums, form, self._index)
        scale = self._statistics[self._index[next(iter(form))]].scale
        return total if scale == 1 else np.asarray(total * scale, np.float64)


def _status(value: float, support: int, least: int, waits: bool) -> Status:
    if value != value:
        return Status.NO_OUTCOME if waits else Status.UNDEFINED
    return Status.OK if support >= least else Status.INSUFFICIENT
