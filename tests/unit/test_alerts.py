"""The life of an alert: inactive, pending, firing, resolved."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.alerts import AlertState, Rule, RuleMonitor, fingerprint
from monitor.gap_names import GapSpec
from monitor.gaps import Gap
from monitor.names import Status

BUCKET = 60_000
PENDING, FIRING, RESOLVED = AlertState.PENDING, AlertState.FIRING, AlertState.RESOLVED


def rule(**changes: Any) -> Rule:
    gap = {"comparison": "reference", "kind": "difference", "reference": {"sex": "a"}}
    gap |= {k: changes.pop(k) for k in ("comparison", "kind", "reference") if k in changes}
    settled = {
        "name": "r",
        "model": "m",
        "gap": GapSpec("false_positive_rate", ("false_positive_rate",), ("sex",), **gap),
        "tolerance": 0.1,
        "direction": "both",
        "window": "1h",
        "min_support": 1,
        "for_buckets": 3,
        "severity": "warning",
        **changes,
    }
    return Rule(**settled)


def gap_of(settled: Rule, value: float | None, group: str = "b", support: int = 50) -> Gap:
    sides = ({"sex": group}, {"sex": "a"})
    status = Status.OK if value is not None else Status.INSUFFICIENT
    return Gap(settled.gap, value, sides, support, status)


class Player:
    """Feeds a monitor one value per closed bucket, and keeps what it says."""

    def __init__(self, settled: Rule) -> None:
        self.rule = settled
        self.monitor = RuleMonitor(settled, BUCKET)
        self.end = 0
        self.said: list[tuple[int, str, AlertState]] = []

    def see(self, *values: float | None, group: str = "b") -> Player:
        for value in values:
            self.look([gap_of(self.rule, value, group)])
        return self

    def look(self, gaps: Sequence[Gap]) -> None:
        self.end += BUCKET
        self._note(self.monitor.observe(self.end, gaps))

    def quiet(self, buckets: int) -> Player:
        self._note(self.monitor.repeat(self.end + BUCKET, buckets))
        self.end += buckets * BUCKET
        return self

    def _note(self, transitions: Sequence[Any]) -> None:
        self.said += [(t.at // BUCKET, t.alert.fingerprint, t.state) for t in transitions]

    @property
    def states(self) -> list[tuple[int, AlertState]]:
        return [(at, state) for at, _, state in self.said]


def test_pending_then_firing_then_resolved() -> None:
    player = Player(rule()).see(0.05, 0.2, 0.3, 0.15, 0.25, 0.1)
    assert player.states == [(2, PENDING), (4, FIRING), (6, RESOLVED)]
    assert player.monitor.active == []


def test_for_one_bucket_fires_at_once() -> None:
    assert Player(rule(for_buckets=1)).see(0.2, 0.2).states == [(1, PENDING), (1, FIRING)]


def test_back_within_tolerance_ends_a_pending_alert_without_a_word() -> None:
    player = Player(rule()).see(0.2, 0.2, 0.05, 0.2, 0.2)
    assert player.states == [(1, PENDING), (4, PENDING)]
    assert player.see(0.2).states[-1] == (6, FIRING)


def test_what_cannot_be_told_ends_a_pending_alert() -> None:
    assert Player(rule()).see(0.2, 0.2, None, 0.2, 0.2).states == [(1, PENDING), (4, PENDING)]


def test_what_cannot_be_told_leaves_a_firing_alert() -> None:
    player = Player(rule(for_buckets=1)).see(0.2, None, None, 0.2)
    assert player.states == [(1, PENDING), (1, FIRING)]
    assert player.see(0.0).states[-1] == (5, RESOLVED)


def test_a_pair_that_is_not_there_cannot_be_told() -> None:
    pending, firing = Player(rule()).see(0.2), Player(rule(for_buckets=1)).see(0.2)
    for player in (pending, firing):
        player.look([])
    assert pending.monitor.active == []
    assert [a.state for a in firing.monitor.active] == [FIRING]


def test_an_alert_knows_since_when_and_how_bad() -> None:
    player = Player(rule(for_buckets=2)).see(0.2, -0.5, 0.3)
    (alert,) = player.monitor.active
    assert (alert.pending_since, alert.firing_since, alert.resolved_at) == (BUCKET, 2 * BUCKET, None)
    assert (alert.value, alert.worst, alert.support) == (0.3, -0.5, 50)
    assert "false positive rate difference of sex = b to sex = a is 0.3 (tolerance 0.1)" in alert.summary
    player.see(0.0)
    assert (alert.state, alert.resolved_at, alert.value) == (RESOLVED, 4 * BUCKET, 0.3)
    assert "sex = a is back within its tolerance of 0.1" in alert.summary
    assert alert.summary.endswith("it was -0.5 at its worst")


def test_the_worst_ratio_is_the_one_furthest_from_equality() -> None:
    settled = rule(kind="ratio", tolerance=0.8, for_buckets=1)
    (alert,) = Player(settled).see(0.7, 0.5, 0.6).monitor.active
    assert (alert.value, alert.worst) == (0.6, 0.5)


def test_one_alert_for_each_pair() -> None:
    player = Player(rule(for_buckets=2))
    for b, c in ((0.2, 0.0), (0.2, 0.3), (0.05, 0.3)):
        player.look([gap_of(player.rule, b, "b"), gap_of(player.rule, c, "c")])
    by_group = {a.groups[0]["sex"]: a.fingerprint for a in player.monitor.active if a.groups[0]}
    assert set(by_group) == {"c"}
    c = by_group["c"]
    assert [(at, s) for at, f, s in player.said if f == c] == [(2, PENDING), (3, FIRING)]
    assert [(at, s) for at, f, s in player.said if f != c] == [(1, PENDING), (2, FIRING), (3, RESOLVED)]


def test_a_between_rule_has_one_alert_whichever_groups_are_the_extremes() -> None:
    player = Player(rule(comparison="between", reference=None, for_buckets=2))
    player.see(0.2, group="b").see(0.3, group="c").see(None, group="d")
    (alert,) = player.monitor.active
    assert alert.state is FIRING
    assert alert.groups[0] == {"sex": "c"}


def test_a_new_breach_is_a_new_alert_with_the_same_fingerprint() -> None:
    player = Player(rule(for_buckets=1)).see(0.2)
    (first,) = player.monitor.active
    player.see(0.0, 0.2)
    (second,) = player.monitor.active
    assert second is not first
    assert second.fingerprint == first.fingerprint
    assert (first.state, second.pending_since) == (RESOLVED, 3 * BUCKET)


def test_fingerprints() -> None:
    """Written down: they must be the same after a restart and in the next version."""
    settled, sides = rule(), ({"sex": "b", "race": "x"}, {"sex": "a"})
    known = fingerprint(settled, sides)
    assert known == "690358fa24b270e3"
    assert fingerprint(settled, ({"race": "x", "sex": "b"}, {"sex": "a"})) == known
    assert fingerprint(replace(settled, tolerance=0.5, for_buckets=9, severity="critical"), sides) == known
    others = [
        fingerprint(replace(settled, name="r2"), sides),
        fingerprint(replace(settled, model="m2"), sides),
        fingerprint(settled, sides[::-1]),
        fingerprint(settled, (sides[0], None)),
        fingerprint(settled, ({"sex": "b"}, {"sex": "a"})),
    ]
    assert len({known, *others}) == 6


@pytest.mark.parametrize(
    ("kind", "tolerance", "direction", "breaches", "keeps"),
    [
        ("difference", 0.1, "both", [0.11, -0.11], [0.1, -0.1, 0.0]),
        ("difference", 0.1, "above", [0.11], [0.1, -0.9]),
        ("difference", 0.1, "below", [-0.11], [-0.1, 0.9]),
        ("difference", 0.0, "both", [1e-9, -1e-9], [0.0]),
        ("ratio", 0.8, "both", [0.79, 1.26, 0.0], [0.8, 1.25, 1.0]),
        ("ratio", 0.8, "above", [1.26], [0.1, 1.25]),
        ("ratio", 0.8, "below", [0.79], [0.8, 9.0]),
        ("ratio", 1.0, "both", [0.999, 1.001], [1.0]),
    ],
)
def test_breaches(kind: str, tolerance: float, direction: str, breaches: Any, keeps: Any) -> None:
    settled = rule(kind=kind, tolerance=tolerance, direction=direction)
    assert [v for v in (*breaches, *keeps) if settled.breached_by(v)] == breaches


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    for_buckets=st.integers(1, 9),
    steps=st.lists(
        st.tuples(st.sampled_from([None, 0.0, 0.2, 0.2, 0.3, -0.3]), st.integers(0, 12)), max_size=12
    ),
)
def test_quiet_buckets_equal_looking_at_each(
    seed: int, for_buckets: int, steps: list[tuple[float | None, int]]
) -> None:
    """``repeat`` over a stretch in which nothing changes says what ``observe`` would have said."""
    chosen = random.Random(seed)
    settled = rule(for_buckets=for_buckets)
    quick, slow = Player(settled), Player(settled)
    for value, quiet in steps:
        other = chosen.choice([None, 0.0, 0.5])
        gaps = [gap_of(settled, value, "b"), gap_of(settled, other, "c")]
        if chosen.random() < 0.2:
            gaps = gaps[:1]
        quick.look(gaps)
        slow.look(gaps)
        left = quiet
        while left:
            part = chosen.randrange(1, left + 1)
            quick.quiet(part)
            left -= part
        for _ in range(quiet):
            slow.look(gaps)
        assert sorted(quick.said) == sorted(slow.said)
        assert quick.end == slow.end
        assert sorted(map(str, map(vars_of, quick.monitor.active))) == sorted(
            map(str, map(vars_of, slow.monitor.active))
        )


def vars_of(alert: Any) -> dict[str, Any]:
    return {name: getattr(alert, name) for name in alert.__dataclass_fields__}
