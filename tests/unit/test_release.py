"""What is withheld, and that it cannot be found by subtraction."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitor.names import Status
from monitor.release import group_row, shown, withheld
from tests.engine_helpers import START, Event, Run, config_of

SUPPORTS = st.integers(0, 40) | st.integers(0, 6)
KS = st.integers(1, 15)


Groups = dict[tuple[str, ...], int]


def all_hidden(tables: dict[tuple[str, ...], Groups], k: int) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    order = {grouping: sorted(groups) for grouping, groups in tables.items()}
    supports = {g: (order[g], np.array([tables[g][x] for x in order[g]], np.int64)) for g in tables}
    flags = withheld(supports, k)
    assert all(f.dtype == np.bool_ for f in flags.values())
    return {g: {x for x, out in zip(order[g], flags[g].tolist(), strict=True) if out} for g in tables}


def hidden(supports: Groups, k: int) -> set[tuple[str, ...]]:
    """What is withheld of one grouping that is shown with everybody."""
    names = tuple("ab"[: len(next(iter(supports)))]) if supports else ("a",)
    return all_hidden({names: supports, (): {(): sum(supports.values())}}, k)[names]


def recoverable(
    cells: dict[tuple[str, ...], int], sums: list[tuple[set[tuple[str, ...]], int]]
) -> dict[tuple[str, ...], int]:
    """Cells whose number follows from known sums over sets of them: linear algebra over rationals."""
    order = sorted(cells)
    if not order or not sums:
        return {}
    matrix = np.array([[1.0 if g in members else 0.0 for g in order] for members, _ in sums])
    rank = np.linalg.matrix_rank(matrix)
    found = {}
    for i, group in enumerate(order):
        unit = np.zeros(len(order))
        unit[i] = 1.0
        if np.linalg.matrix_rank(np.vstack([matrix, unit])) == rank:
            found[group] = cells[group]
    return found


@given(st.dictionaries(st.sampled_from("abcdefg"), SUPPORTS), KS)
def test_one_attribute(supports: dict[str, int], k: int) -> None:
    """Everybody is shown: they are the sum of the groups."""
    groups = {(g,): n for g, n in supports.items()}
    out = hidden(groups, k)
    assert {g for g, n in groups.items() if 0 < n < k} <= out
    if sum(groups.values()) >= k:
        rest = sum(groups[g] for g in out)
        assert not out or rest >= k, "the withheld groups together are too small"
        known = [({g}, n) for g, n in groups.items() if g not in out]
        known.append((set(groups), sum(groups.values())))
        people = {g: n for g, n in groups.items() if n}  # who is in no group is known to be nobody
        found = recoverable(people, [({g for g in m if g in people}, n) for m, n in known])
        assert not [g for g, n in found.items() if n < k]


def table(rows: int, columns: int, numbers: list[int]) -> dict[tuple[str, ...], int]:
    names = product("abcd"[:rows], "wxyz"[:columns])
    return {g: n for g, n in zip(names, numbers, strict=False) if n}


TABLES = st.builds(table, st.integers(1, 4), st.integers(1, 4), st.lists(SUPPORTS, min_size=16, max_size=16))


def margins(groups: dict[tuple[str, ...], int], attribute: int) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for group, n in groups.items():
        value = (group[attribute],)
        found[value] = found.get(value, 0) + n
    return found


@settings(max_examples=300)
@given(TABLES, KS)
def test_one_margin_of_an_intersection(groups: dict[tuple[str, ...], int], k: int) -> None:
    """A group of an attribute minus the shown groups inside it never leaves one that is too small."""
    for attribute, name in ((0, "a"), (1, "b")):
        parents = margins(groups, attribute)
        out = all_hidden({(name,): parents, ("a", "b"): groups}, k)
        assert {g for g, n in groups.items() if n < k} <= out["a", "b"]
        for parent in parents.keys() - out[name,]:
            left = {g for g in groups if (g[attribute],) == parent} & out["a", "b"]
            assert not left or sum(groups[g] for g in left) >= k
            assert len(left) != 1


@settings(max_examples=300)
@given(TABLES, KS)
@example({("a", "w"): 12, ("b", "x"): 3}, 10)
def test_everybody_minus_an_intersection(groups: dict[tuple[str, ...], int], k: int) -> None:
    """Everybody is always reported, also where the single attributes are not among the groups."""
    out = hidden(groups, k)
    total = sum(groups.values())
    if total < k or not out:
        return
    assert sum(groups[g] for g in out) >= k, "everybody minus the groups shown is too small"


@settings(max_examples=300)
@given(TABLES, KS)
@example({("a", "w"): 12, ("a", "x"): 6, ("b", "x"): 40}, 10)
def test_all_margins_of_an_intersection_at_once(groups: dict[tuple[str, ...], int], k: int) -> None:
    """Rows and columns of a table together, as one system of equations."""
    total = sum(groups.values())
    rows, columns = margins(groups, 0), margins(groups, 1)
    out = all_hidden({("a",): rows, ("b",): columns, ("a", "b"): groups, (): {(): total}}, k)
    known: list[tuple[set[tuple[str, ...]], int]] = [({g}, groups[g]) for g in groups.keys() - out["a", "b"]]
    for attribute, parents in enumerate((rows, columns)):
        for parent in parents.keys() - out["ab"[attribute],]:
            known.append(({g for g in groups if (g[attribute],) == parent}, parents[parent]))
    if not out[()]:
        known.append((set(groups), total))
    assert not [g for g, n in recoverable(groups, known).items() if n < k]


@settings(max_examples=20, deadline=None)
@given(TABLES, KS)
def test_large_tables_hide_whole_intersections(groups: Groups, k: int) -> None:
    names = {f"{a}{i}": n for (a, _), n in groups.items() for i in range(600)}
    tables = {("a",): {(a,): n for a, n in names.items()}}
    tables |= {("a", "b"): {(a, b): n // 2 for a, n in names.items() for b in "xy"}}
    tables |= {(): {(): sum(names.values())}}
    out = all_hidden(tables, k)
    if any(0 < n < k for n in tables["a", "b"].values()) and len(names) > 1000:
        assert out["a", "b"] == set(tables["a", "b"])
    assert {g for g, n in tables["a",].items() if 0 < n < k} <= out["a",]


@given(st.dictionaries(st.sampled_from("abcdefg"), SUPPORTS))
def test_one_hides_nothing(supports: dict[str, int]) -> None:
    assert hidden({(g,): n for g, n in supports.items()}, 1) == set()


def test_nobody_is_no_secret() -> None:
    assert hidden({("a",): 0, ("b",): 50, ("c",): 60}, 10) == set()
    assert hidden({("a",): 0, ("b",): 5, ("c",): 60, ("d",): 70}, 10) == {("b",), ("c",)}


def test_the_order_of_groups_does_not_matter() -> None:
    supports = {("a",): 4, ("b",): 90, ("c",): 50, ("d",): 3}
    for order in (sorted(supports), sorted(supports, reverse=True)):
        people = np.array([supports[g] for g in order])
        flags = withheld({("a",): (order, people), (): ([()], people.sum(keepdims=True))}, 10)["a",]
        assert {g for g, out in zip(order, flags, strict=True) if out} == {("a",), ("c",), ("d",)}


def test_a_withheld_row_keeps_only_its_status() -> None:
    row = group_row(
        "m",
        {"sex": "a"},
        "selection_rate",
        "1h",
        value=0.5,
        numerator=2,
        denominator=4,
        support=4,
        status=Status.SUPPRESSED,
    )
    assert {k: v for k, v in row.items() if isinstance(v, int | float)} == {}
    assert (row["group"], row["status"]) == ({"sex": "a"}, "suppressed")


@pytest.mark.parametrize(
    ("value", "status", "expected"),
    [
        (0.5, Status.OK, 0.5),
        (0.5, Status.INSUFFICIENT, 0.5),
        (0.5, Status.SUPPRESSED, None),
        (float("nan"), Status.UNDEFINED, None),
        (0.0, Status.OK, 0.0),
    ],
)
def test_shown(value: float, status: Status, expected: float | None) -> None:
    assert shown(value, status) == expected


def events(numbers: dict[tuple[str, str], int]) -> list[Event]:
    found = []
    for (a, b), n in sorted(numbers.items()):
        for i in range(n):
            event = {"time": START, "decision": i % 3 == 0, "outcome": i % 2, "attributes": {"a": a, "b": b}}
            found.append(event)
    return found


def report(numbers: dict[tuple[str, str], int], k: int) -> Run:
    gaps = [
        {"metric": metric, "comparison": comparison, "kind": kind}
        for metric in ("selection_rate", "true_positive_rate", "equalized_odds")
        for comparison in ("between", "overall", "rest")
        for kind in ("difference", "ratio")
    ]
    model = {
        "task": "binary",
        "groups": ["a", "b", ["a", "b"]],
        "windows": ["all"],
        "gaps": gaps,
        "min_support": 1,
    }
    run = Run(config_of(model, privacy={"min_group_size": k}))
    if numbers:
        run.feed(events(numbers))
    return run.finish()


NUMBERS = st.dictionaries(
    st.tuples(st.sampled_from("xyz"), st.sampled_from("pqr")), st.integers(1, 30), min_size=1
)


def people(numbers: dict[tuple[str, str], int], group: tuple[tuple[str, str], ...]) -> int:
    wanted = dict(group)
    return sum(n for (a, b), n in numbers.items() if wanted.get("a", a) == a and wanted.get("b", b) == b)


@settings(max_examples=40, deadline=None)
@given(NUMBERS, st.integers(2, 12))
def test_a_report_holds_nothing_of_withheld_groups(numbers: dict[tuple[str, str], int], k: int) -> None:
    run = report(numbers, k)
    rows = run.rows()
    for (group, metric), row in rows.items():
        values = [row[n] for n in ("value", "numerator", "denominator", "support")]
        if row["status"] == "suppressed":
            assert values == [None] * 4
        else:
            assert row["support"] == 0 or people(numbers, group) >= k, metric
    for gap in run.gaps():
        for side in gap.groups:
            if side is None:
                continue
            statuses = {rows[tuple(side.items()), m]["status"] for m in gap.spec.metrics}
            if statuses == {"suppressed"}:  # of several metrics the worst counts, maybe one that is shown
                assert gap.value is None
                assert gap.support == 0, "the number of people is a number of the group"


@settings(max_examples=25, deadline=None)
@given(NUMBERS)
def test_with_one_everything_is_shown(numbers: dict[tuple[str, str], int]) -> None:
    run = report(numbers, 1)
    assert all(row["status"] != "suppressed" for row in run.rows().values())
    shown_groups = {g for g, _ in run.rows() if len(g) == 2}
    assert shown_groups == {(("a", a), ("b", b)) for a, b in numbers}


def test_a_gap_to_the_rest_never_gives_away_a_small_rest() -> None:
    """The rest of a group is all others together; with the group's own value the gap tells theirs."""
    for numbers in combinations([3, 4, 25, 40], 2):
        run = report({("x", "p"): numbers[0], ("y", "p"): numbers[1]}, 10)
        values = [g.value for g in run.gaps() if g.spec.comparison == "rest" and g.spec.groups == ("a",)]
        assert any(v is not None for v in values) == (min(numbers) >= 10), numbers


def test_people_are_those_of_the_group_and_of_the_block() -> None:
    """A large group may show a rate of few; one whose outcomes are few shows no rate that needs them."""
    found: list[Any] = [
        {"time": START, "decision": i % 5 == 0, "attributes": {"a": a}}
        | ({"outcome": i >= 3} if i < n else {})
        for a, n in (("x", 60), ("y", 60), ("z", 4), ("w", 60))
        for i in range(60)
    ]
    run = Run(
        config_of(
            {"task": "binary", "groups": ["a"], "windows": ["all"], "min_support": 1},
            privacy={"min_group_size": 10},
        )
    )
    run.feed([{**e, "id": str(i)} for i, e in enumerate(found)])
    rows = run.finish().rows()
    rate = {a: rows[(("a", a),), "false_positive_rate"] for a in "xz"}
    assert (rate["x"]["status"], rate["x"]["support"]) == ("ok", 3)
    assert (rate["z"]["status"], rate["z"]["support"]) == ("suppressed", None)
    assert rows[(("a", "z"),), "selection_rate"]["status"] == "ok"
