"""Gaps: how far a metric of one group is from another's.

A *difference* is group − comparator, 0 when equal; a *ratio* is group / comparator, 1 when equal.
Comparators: ``between`` takes the largest against the smallest of all groups (difference ≥ 0, ratio
smallest / largest ≤ 1); ``overall`` is everybody, the group included; ``rest`` everybody but the
group; ``reference`` a named group. Groups with a value ``unknown`` or ``other`` are left out, but
count in ``overall`` and ``rest``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from monitor.batch import Bools
from monitor.gap_names import GapSpec
from monitor.groups import GroupTable, MetricTable, MetricValues
from monitor.names import Status
from monitor.tasks.base import Floats, Ints


@dataclass(frozen=True, slots=True)
class Gap:
    """One gap at one moment.

    ``groups`` are the two sides as ``{attribute: value}``; the second is None where it is not a
    group (``overall``, ``rest``). For ``between`` the first has the larger value. ``support`` is the
    smaller of the two sides' supports. ``value`` is None unless the status is ``ok``.
    """

    spec: GapSpec
    value: float | None
    groups: tuple[Mapping[str, str] | None, Mapping[str, str] | None]
    support: int
    status: Status


def evaluate(
    spec: GapSpec,
    table: GroupTable,
    everybody: Ints,
    metrics: MetricTable,
    min_support: int | None = None,
    strata: GroupTable | None = None,
) -> list[Gap]:
    """The gaps that ``spec`` names, over the groups of ``table``.

    Parameters
    ----------
    table
        The groups of ``spec.groups``.
    everybody
        Sums over all cells, shape (statistics,).
    min_support
        Least number of events each side must rest on; by default that of ``metrics``.
    strata
        The groups of ``spec.groups + spec.strata``, for a gap with strata.

    Returns
    -------
    One gap for ``between``; one per comparable group otherwise (the reference itself left out). Of
    several metrics (equalized odds) the worst counts: the largest difference, the ratio furthest from 1;
    undefined when one of them is.
    """
    if strata is not None:
        return _conditional(spec, table, strata, metrics, min_support)
    per_metric = [_evaluate_metric(spec, m, table, everybody, metrics, min_support) for m in spec.metrics]
    if len(per_metric) == 1:
        return per_metric[0]
    return [_worst(gaps) for gaps in zip(*per_metric, strict=True)]


def _evaluate_metric(
    spec: GapSpec,
    metric: str,
    table: GroupTable,
    everybody: Ints,
    metrics: MetricTable,
    min_support: int | None,
) -> list[Gap]:
    values = metrics.of_groups(metric, table, min_support)
    comparable = table.comparable
    if spec.comparison == "between":
        return [_between(spec, table, values, comparable)]
    groups = np.flatnonzero(comparable).tolist()
    if spec.comparison == "reference":
        reference = spec.reference or {}
        position = _position(table, reference)
        return [
            _pair(spec, table.named(i), reference, values, i, values, position)
            for i in groups
            if i != position
        ]
    if spec.comparison == "overall":
        comparators = np.broadcast_to(everybody, table.sums.shape)
    else:
        comparators = everybody - table.sums
    against = metrics.of_sums(metric, np.ascontiguousarray(comparators), min_support)
    return [_pair(spec, table.named(i), None, values, i, against, i) for i in groups]


def _conditional(
    spec: GapSpec, table: GroupTable, fine: GroupTable, metrics: MetricTable, min_support: int | None
) -> list[Gap]:
    """Conditional demographic disparity of each group d.

    Σ over strata of n·(d's share of the rejected − d's share of the selected) / Σ n, n being the
    events of a stratum; a share of nobody is 0. Source: SageMaker Clarify, CDDPL.
    """
    width = len(spec.groups)
    groups = list(table.groups)
    parts = sorted({g[width:] for g in fine.groups})
    selected, total = np.zeros((len(groups), len(parts))), np.zeros((len(groups), len(parts)))
    values = metrics.of_sums(spec.metrics[0], fine.sums)
    if values.numerator is None or values.denominator is None:
        raise TypeError(f"{spec.metrics[0]} is not a share")
    for i, group in enumerate(fine.groups):
        at = groups.index(group[:width]), parts.index(group[width:])
        selected[at], total[at] = float(values.numerator[i]), float(values.denominator[i])
    status = metrics.of_groups(spec.metrics[0], table, min_support)
    rejected = total - selected
    with np.errstate(divide="ignore", invalid="ignore"):
        out = np.nan_to_num(rejected / rejected.sum(axis=0))
        taken = np.nan_to_num(selected / selected.sum(axis=0))
        disparity = ((out - taken) * total.sum(axis=0)).sum(axis=1) / total.sum()
    gaps = []
    for i in np.flatnonzero(table.comparable).tolist():
        hidden = status.status[i] is Status.SUPPRESSED
        value = float(disparity[i]) if status.status[i] is Status.OK else None
        support = 0 if hidden else int(status.support[i])
        gaps.append(Gap(spec, value, (table.named(i), None), support, status.status[i]))
    return gaps


def _between(spec: GapSpec, table: GroupTable, values: MetricValues, comparable: Bools) -> Gap:
    usable = np.flatnonzero(comparable & values.ok).tolist()
    if len(usable) < 2:
        found = [values.status[i] for i in np.flatnonzero(comparable).tolist()]
        return Gap(spec, None, (None, None), 0, _why_not(found))
    ascending = sorted(usable, key=lambda i: float(values.value[i]))
    low, high = ascending[0], ascending[-1]
    value, status = _compare(spec, values.value, high, low)
    support = int(min(values.support[high], values.support[low]))
    return Gap(spec, value, (table.named(high), table.named(low)), support, status)


def _compare(spec: GapSpec, values: Floats, high: int, low: int) -> tuple[float | None, Status]:
    top, bottom = float(values[high]), float(values[low])
    if spec.kind == "difference":
        return top - bottom, Status.OK
    if top <= 0 or bottom < 0:
        return None, Status.UNDEFINED
    return bottom / top, Status.OK


def _pair(
    spec: GapSpec,
    group: Mapping[str, str],
    comparator: Mapping[str, str] | None,
    values: MetricValues,
    i: int,
    against: MetricValues,
    j: int | None,
) -> Gap:
    """The gap of row i of ``values`` to row j of ``against``; None: the comparator has no events."""
    sides = (group, comparator)
    if j is None:
        return Gap(spec, None, sides, 0, Status.INSUFFICIENT)
    support = int(min(values.support[i], against.support[j]))
    statuses = [values.status[i], against.status[j]]
    if Status.SUPPRESSED in statuses:
        return Gap(spec, None, sides, 0, Status.SUPPRESSED)
    if any(s is not Status.OK for s in statuses):
        return Gap(spec, None, sides, support, _why_not(statuses))
    own, other = float(values.value[i]), float(against.value[j])
    if spec.kind == "difference":
        return Gap(spec, spec.sign * (own - other), sides, support, Status.OK)
    if other == 0:
        return Gap(spec, None, sides, support, Status.UNDEFINED)
    return Gap(spec, own / other, sides, support, Status.OK)


def _worst(gaps: Sequence[Gap]) -> Gap:
    missing = [g for g in gaps if g.value is None]
    if missing:
        return replace(missing[0], value=None)
    if gaps[0].spec.kind == "ratio":
        return min(gaps, key=lambda g: min(g.value or 0.0, 1 / g.value if g.value else 0.0))
    return max(gaps, key=lambda g: abs(g.value or 0.0))


def _position(table: GroupTable, reference: Mapping[str, str]) -> int | None:
    wanted = tuple(reference.get(a) for a in table.grouping)
    return next((i for i, group in enumerate(table.groups) if tuple(group) == wanted), None)


def _why_not(statuses: Sequence[Status]) -> Status:
    for status in (Status.SUPPRESSED, Status.NO_OUTCOME, Status.INSUFFICIENT, Status.UNDEFINED):
        if status in statuses:
            return status
    return Status.INSUFFICIENT
