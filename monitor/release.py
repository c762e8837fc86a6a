"""The one gate through which group numbers leave: groups too small to show are withheld.

A number about fewer than ``min_group_size`` people is withheld, and so is any number from which it
could be found by subtraction: the groups of an attribute add up to their parent, so when the withheld
groups of one parent together hold fewer than ``min_group_size`` people, or only one group is
withheld, the next smallest goes with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.names import Status
from monitor.tasks.base import Ints


def withheld(groups: Sequence[tuple[str, ...]], support: Ints, min_group_size: int) -> NDArray[np.bool_]:
    """Which groups of one grouping may not be shown.

    Parameters
    ----------
    groups
        One value per attribute of the grouping for each of n groups.
    support
        People (events) behind each group's number, shape (n,).
    min_group_size
        Numbers about fewer people than this are not shown; 1 shows everything. A group with nobody
        in it has no number to protect.

    Examples
    --------
    >>> withheld([("a",), ("b",), ("c",)], np.array([4, 90, 50]), 10)
    array([ True, False,  True])
    """
    hidden = (support > 0) & (support < min_group_size)
    if not hidden.any():
        return np.asarray(hidden, np.bool_)
    families = _families(groups)
    changed = True
    while changed:
        changed = False
        for family in families:
            out = family[hidden[family]]
            if not out.size or (out.size > 1 and int(support[out].sum()) >= min_group_size):
                continue
            shown = family[~hidden[family] & (support[family] > 0)]
            if shown.size:
                hidden[shown[np.argmin(support[shown])]] = True
                changed = True
    return np.asarray(hidden, np.bool_)


def _families(groups: Sequence[tuple[str, ...]]) -> list[Ints]:
    """Groups that add up to one parent: everybody, or alike in all attributes but one."""
    found: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for i, group in enumerate(groups):
        for attribute in range(len(group)):
            parent = (*group[:attribute], *group[attribute + 1 :])
            found.setdefault((attribute, parent), []).append(i)
    everybody = np.arange(len(groups))
    return [everybody, *(np.array(members, np.int64) for members in found.values())]


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
