"""What every oracle test shares: rows of events, their sums per cell, the values of groups.

The sums are made here from the scatters alone (``np.add.at``), as little of the service as possible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monitor.tasks.base import DELAY, EXPIRED, OUTCOMES, PREDICTIONS, Floats, Ints, Metric, Sums, Task

TOLERANCE = 1e-12
Oracle = Callable[["Rows"], "float | None"]
"""Value of a metric on the rows of one group, from a plain formula; None where it is undefined."""


@dataclass
class Rows:
    """Predictions of one group, one row each; ``matched`` says which of them have an outcome."""

    attributes: dict[str, list[str | None]]
    predictions: dict[str, Any]
    outcomes: dict[str, Any]
    matched: np.ndarray
    weights: Floats | None = None
    expired: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    delay: Floats = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        n = len(self.matched)
        if len(self.expired) != n:
            self.expired = ~self.matched & (np.arange(n) % 3 == 0)
        if len(self.delay) != n:
            self.delay = (np.arange(n) % 7) * 0.25

    def subset(self, mask: np.ndarray) -> Rows:
        """The rows of the mask."""
        return Rows(
            {name: take(values, mask) for name, values in self.attributes.items()},
            {name: take(values, mask) for name, values in self.predictions.items()},
            {name: take(values, mask) for name, values in self.outcomes.items()},
            self.matched[mask],
            None if self.weights is None else self.weights[mask],
            self.expired[mask],
            self.delay[mask],
        )

    @property
    def w(self) -> list[float]:
        """A weight for each prediction: 1 when there are none."""
        return [1.0] * len(self.matched) if self.weights is None else self.weights.tolist()

    def columns(self, *names: str) -> list[tuple[Any, ...]]:
        """For each matched row the named prediction or outcome columns, and the weight."""
        both = {**self.predictions, **self.outcomes}
        rows = zip(*(list(both[name]) for name in names), self.w, strict=True)
        return [row for row, matched in zip(rows, self.matched, strict=True) if matched]


def take(values: Any, mask: np.ndarray) -> Any:
    """Rows of an array or of a list."""
    if isinstance(values, np.ndarray):
        return values[mask]
    return [value for value, keep in zip(values, mask, strict=True) if keep]


def groups(rows: Rows) -> dict[tuple[tuple[str, str | None], ...], np.ndarray]:
    """Masks of everything, of each value of each attribute, and of each intersection of two."""
    n = len(rows.matched)
    found: dict[tuple[tuple[str, str | None], ...], np.ndarray] = {(): np.ones(n, bool)}
    (a, first), (b, second) = rows.attributes.items()
    for i in range(n):
        for key in (((a, first[i]),), ((b, second[i]),), ((a, first[i]), (b, second[i]))):
            found.setdefault(key, np.zeros(n, bool))[i] = True
    return found


def cell_table(task: Task, rows: Rows, cells: Ints, count: int) -> Ints:
    """Statistics of each cell, summed from the scatters of the task."""
    table = np.zeros((count, len(task.statistics)), np.int64)
    n = len(cells)
    if n == 0:
        return table
    records = (
        task.prediction_records(rows.predictions, rows.weights)
        if rows.predictions or rows.weights is not None
        else np.zeros(n, task.prediction_dtype)
    )
    matched = rows.matched
    pairs, met = records[matched], cells[matched]
    columns = {name: take(values, matched) for name, values in rows.outcomes.items()}
    outcomes = task.outcome_records(columns) if columns else np.zeros(len(met), task.outcome_dtype)
    if task.texts:
        hypotheses = take(rows.predictions["hypothesis"], matched)
        outcomes = task.compare_texts(outcomes, hypotheses, columns["reference"])
    np.add.at(table[:, PREDICTIONS], cells, 1)
    np.add.at(table[:, OUTCOMES], met, 1)
    np.add.at(table[:, EXPIRED], cells[rows.expired], 1)
    steps = np.rint(rows.delay[matched] / task.statistics[DELAY].scale).astype(np.int64)
    np.add.at(table[:, DELAY], met, steps)
    for block, where, scatters in (
        ("prediction", cells, task.prediction_sums(records)),
        ("outcome", met, task.outcome_sums(pairs, outcomes)),
    ):
        for scatter in scatters:
            touched = np.unique(np.broadcast_to(scatter.statistic, where.shape))
            assert {task.statistics[i].block for i in touched} <= {block}
            value = np.broadcast_to(scatter.value, where.shape)
            assert value.dtype == np.int64 or isinstance(scatter.value, int)
            assert value.size == 0 or int(np.abs(value).max()) <= 2**30
            np.add.at(table, (where, scatter.statistic), value)
    return table


def group_table(task: Task, rows: Rows) -> tuple[list[Rows], Ints]:
    """The rows of each group and their sums, as sums of cells; the last group is empty."""
    keys = list(zip(*rows.attributes.values(), strict=True))
    distinct = sorted(set(keys), key=repr)
    cells = np.array([distinct.index(key) for key in keys], np.int64)
    table = cell_table(task, rows, cells, len(distinct))
    parts, sums = [], []
    for mask in groups(rows).values():
        parts.append(rows.subset(mask))
        # every intersection is a cell, so the cells of a group are those of its rows
        sums.append(table[np.unique(cells[mask])].sum(axis=0))
    parts.append(rows.subset(np.zeros(len(cells), bool)))
    sums.append(np.zeros(len(task.statistics), np.int64))
    return parts, np.array(sums)


def values(task: Task, metric: Metric, table: Ints) -> Floats:
    """A metric's value for each row of the table; NaN where undefined."""
    if metric.formula is not None:
        return metric.formula(Sums(table, task.statistics))
    assert metric.numerator is not None
    assert metric.denominator is not None
    index = {s.name: i for i, s in enumerate(task.statistics)}

    def total(form: Mapping[str, int]) -> Floats:
        (scale,) = {task.statistics[index[name]].scale for name in form}
        integers = np.zeros(len(table), np.int64)
        for name, factor in form.items():
            integers += factor * table[:, index[name]]
        return integers * np.float64(scale)

    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = total(metric.numerator) / total(metric.denominator)
    return np.where(np.isfinite(ratio), ratio, np.nan)


def support(task: Task, metric: Metric, table: Ints) -> Ints:
    """A metric's support for each row of the table."""
    index = {s.name: i for i, s in enumerate(task.statistics)}
    assert {task.statistics[index[name]].scale for name in metric.support} == {1.0}
    return np.array([sum(f * row[index[name]] for name, f in metric.support.items()) for row in table])


def check(task: Task, rows: Rows, oracles: Mapping[str, Oracle], skip: Sequence[str] = ()) -> None:
    """Every metric of the task, on every group of the rows, equals its oracle."""
    assert set(task.metrics) <= set(oracles), "every metric needs an oracle"
    parts, table = group_table(task, rows)
    for name, metric in task.metrics.items():
        if name in skip:
            continue
        found, on = values(task, metric, table), support(task, metric, table)
        for part, value, events in zip(parts, found, on, strict=True):
            expected = oracles[name](part)
            if expected is None:
                assert np.isnan(value), (name, value)
            else:
                assert abs(value - expected) <= TOLERANCE * max(1.0, abs(expected)), (name, value, expected)
                assert events > 0, name
        assert np.isnan(found[-1]), f"{name} of an empty group"
        assert on[-1] == 0, f"{name} of an empty group"


def over(numerator: float, denominator: float) -> float | None:
    """A ratio, or None when the denominator is 0."""
    return None if denominator == 0 else numerator / denominator


COMMON: dict[str, Oracle] = {
    "outcome_coverage": lambda r: over(sum(r.matched), len(r.matched)),
    "outcome_expired_share": lambda r: over(sum(r.expired), sum(r.expired) + sum(r.matched)),
    "outcome_delay_seconds": lambda r: over(sum(r.delay[r.matched]), sum(r.matched)),
}
"""Oracles of the metrics that every task has."""
