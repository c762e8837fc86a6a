"""The one gate through which group numbers leave: groups too small to show are withheld.

Numbers of a group with fewer than ``min_group_size`` people are withheld, and so are those of other
groups from which they could be found by subtraction: the groups of a grouping add up to the groups of
every coarser one and to everybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.names import Status
from monitor.tasks.base import Ints

Grouping = tuple[str, ...]
Group = tuple[str, ...]
_MOST_SUMS = 300
Supports = Mapping[Grouping, tuple[Sequence[Group], Ints]]
"""For each grouping its groups, one value per attribute, and the people in each, shape (n,)."""


def withheld(tables: Supports, min_group_size: int) -> dict[Grouping, NDArray[np.bool_]]:
    """Which groups of each grouping may not be shown, given all groupings that are.

    Every group of a coarser grouping is the sum of groups of each finer one. As long as such a sum
    is shown, the groups withheld inside it must be at least two and together at least
    ``min_group_size`` people; else the smallest group beside them goes too, and when there is none the
    sum itself. What is left is checked as one system of equations: while it determines a group
    that is too small, more goes. Where there are more than 300 sums that check would take too long:
    then an intersection with a group that is too small is withheld whole.

    Parameters
    ----------
    tables
        All groupings whose numbers are shown; ``()`` is everybody. A group with nobody in it has no
        number to protect.
    min_group_size
        Groups of fewer people are withheld; 1 shows everything.

    Examples
    --------
    >>> a, everybody = [("a",), ("b",), ("c",)], [()]
    >>> tables = {("x",): (a, np.array([4, 90, 50])), (): (everybody, np.array([144]))}
    >>> withheld(tables, 10)[("x",)]
    array([ True, False,  True])
    """
    people = np.concatenate([np.zeros(0, np.int64), *(np.asarray(s, np.int64) for _, s in tables.values())])
    hidden = (people > 0) & (people < min_group_size)
    small = np.flatnonzero(hidden)
    if small.size:
        sums = _sums(tables, people)
        if len(sums) > _MOST_SUMS:
            _hide_intersections(tables, hidden)
        while True:
            _cover(sums, people, hidden, min_group_size)
            determined = _determined(sums, hidden) if len(sums) <= _MOST_SUMS else set()
            found = [g for g in small.tolist() if g in determined]
            if not _hide_beside(found, sums, people, hidden):
                break
    masks, start = {}, 0
    for grouping, (groups, _) in tables.items():
        masks[grouping] = np.asarray(hidden[start : start + len(groups)], np.bool_)
        start += len(groups)
    return masks


def _sums(tables: Supports, people: Ints) -> list[tuple[int, Ints]]:
    """Groups and those they are the sum of, as numbers over all tables; nobody is left out."""
    first, start = {}, 0
    for grouping, (groups, _) in tables.items():
        first[grouping] = start
        start += len(groups)
    sums = []
    for coarse, (parents, _) in tables.items():
        for fine, (children, _) in tables.items():
            if not set(coarse) < set(fine):
                continue
            positions = [fine.index(a) for a in coarse]
            inside: dict[Group, list[int]] = {}
            for i, child in enumerate(children):
                if people[first[fine] + i] > 0:
                    inside.setdefault(tuple(child[p] for p in positions), []).append(first[fine] + i)
            for i, parent in enumerate(parents):
                if parent in inside:
                    sums.append((first[coarse] + i, np.array(inside[parent], np.int64)))
    return sums


def _hide_intersections(tables: Supports, hidden: NDArray[np.bool_]) -> None:
    start = 0
    for grouping, (groups, _) in tables.items():
        end = start + len(groups)
        if len(grouping) > 1 and hidden[start:end].any():
            hidden[start:end] = True
        start = end


def _cover(
    sums: Sequence[tuple[int, Ints]], people: Ints, hidden: NDArray[np.bool_], min_group_size: int
) -> None:
    """Hide more until no single sum gives a group away."""
    changed = True
    while changed:
        changed = False
        for parent, children in sums:
            out = children[hidden[children]]
            left = children[~hidden[children]]
            if hidden[parent]:
                exposed = out.size == 0
            else:
                exposed = out.size > 0 and (out.size == 1 or int(people[out].sum()) < min_group_size)
            if exposed:
                hidden[left[np.argmin(people[left])] if left.size else parent] = True
                changed = True


def _determined(sums: Sequence[tuple[int, Ints]], hidden: NDArray[np.bool_]) -> set[int]:
    """Hidden groups whose number follows from all sums together."""
    unknown = np.flatnonzero(hidden)
    column = {g: i for i, g in enumerate(unknown.tolist())}
    rows = []
    for parent, children in sums:
        row = np.zeros(len(unknown))
        for group in children[hidden[children]].tolist():
            row[column[group]] = 1.0
        if hidden[parent]:
            row[column[parent]] = -1.0
        if row.any():
            rows.append(row)
    if not rows:
        return set()
    system = np.array(rows)
    squares, turns = np.linalg.eigh(system @ system.T)  # of sums x sums: groups are far more
    real = squares > 1e-9
    basis = (turns[:, real] / np.sqrt(squares[real])).T @ system
    return set(unknown[(basis**2).sum(axis=0) > 1 - 1e-9].tolist())


def _hide_beside(
    found: Sequence[int], sums: Sequence[tuple[int, Ints]], people: Ints, hidden: NDArray[np.bool_]
) -> bool:
    """Hide the smallest group shown in a sum with each of ``found``, once per sum; False: none is left."""
    treated: set[int] = set()
    for group in found:
        own = [i for i, (_, children) in enumerate(sums) if group in children]
        if treated.isdisjoint(own):
            treated.update(own)
            beside = [g for i in own for g in (sums[i][0], *sums[i][1].tolist()) if not hidden[g]]
            if beside:
                hidden[min(beside, key=lambda g: (int(people[g]), g))] = True
            else:
                treated.difference_update(own)
    if found and not treated:
        anywhere = [g for parent, children in sums for g in (parent, *children.tolist()) if not hidden[g]]
        if anywhere:
            hidden[min(anywhere, key=lambda g: (int(people[g]), g))] = True
            return True
    return bool(treated)


def shown(value: float, status: Status) -> float | None:
    """A value as it may leave: None when it is withheld or there is none."""
    return None if status is Status.SUPPRESSED or value != value else value


def group_row(
    model: str,
    group: Mapping[str, str],
    metric: str,
    window: str,
    *,
    value: float,
    numerator: float | None,
    denominator: float | None,
    support: int,
    status: Status,
) -> dict[str, Any]:
    """One group's metric as it may leave the monitor; withheld groups keep only their status."""
    hidden = status is Status.SUPPRESSED
    return {
        "model": model,
        "group": dict(group),
        "metric": metric,
        "window": window,
        "value": shown(value, status),
        "numerator": None if hidden else numerator,
        "denominator": None if hidden else denominator,
        "support": None if hidden else support,
        "status": str(status),
    }
