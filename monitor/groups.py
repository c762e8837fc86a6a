"""From cells to groups: sums of cells, and the metrics of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from monitor.batch import Bools
from monitor.cells import Cell, add_rows
from monitor.names import OTHER, UNKNOWN, Status
from monitor.release import withheld
from monitor.tasks.base import (
    EXPIRED,
    OUTCOMES,
    PREDICTIONS,
    Block,
    Floats,
    Form,
    Ints,
    Metric,
    Statistic,
    Sums,
    Task,
)

Grouping = tuple[str, ...]
"""The attributes that define groups: one, or several for an intersection; () is everybody."""


@dataclass(frozen=True, slots=True)
class GroupTable:
    """Sums of the groups of one grouping: ``sums[i]`` belongs to ``groups[i]``.

    ``groups[i]`` holds one value per attribute of the grouping. Groups are in sorted order.
    ``comparable[i]`` is false for groups with a value ``unknown`` or ``other``: they are shown, and
    left out of gaps. ``withheld`` says for each block of statistics which groups are too small to show
    (see :func:`monitor.release.withheld`); none where it is left out.
    """

    grouping: Grouping
    groups: Sequence[Cell]
    sums: Ints
    withheld: Mapping[Block, Bools] = field(default_factory=dict)

    @property
    def comparable(self) -> Bools:
        """Which groups enter gaps."""
        return np.array([not {UNKNOWN, OTHER}.intersection(g) for g in self.groups], np.bool_)

    def named(self, group: int) -> dict[str, str]:
        """A group as ``{attribute: value}``."""
        return dict(zip(self.grouping, self.groups[group], strict=True))


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
        add_rows(sums, self._of_cell[:rows], totals[:rows])
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


def gated(tables: Sequence[GroupTable], min_group_size: int) -> list[GroupTable]:
    """All group tables that are shown side by side, with what they must withhold.

    For the prediction block a group's people are its predictions. For the outcome block they are
    those whose outcome arrived or expired, and a group too small for the one is for the other.
    """
    if min_group_size <= 1:
        return list(tables)
    predictions = {t.grouping: (t.groups, t.sums[:, PREDICTIONS]) for t in tables}
    settled = {t.grouping: (t.groups, t.sums[:, OUTCOMES] + t.sums[:, EXPIRED]) for t in tables}
    few, unsettled = withheld(predictions, min_group_size), withheld(settled, min_group_size)
    return [
        replace(
            t,
            withheld={
                "prediction": few[t.grouping],
                "outcome": few[t.grouping] | unsettled[t.grouping],
            },
        )
        for t in tables
    ]


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

    def __init__(self, task: Task, min_support: int) -> None:
        self._statistics: Sequence[Statistic] = task.statistics
        self._index = {s.name: i for i, s in enumerate(task.statistics)}
        self.metrics = task.metrics
        self.min_support = min_support

    def of_groups(self, name: str, table: GroupTable, min_support: int | None = None) -> MetricValues:
        """The metric ``name`` of each group; groups that are withheld have status ``suppressed``."""
        values = self.of_sums(name, table.sums, min_support)
        hidden = table.withheld.get(values.metric.block)
        if hidden is None or not hidden.any():
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
