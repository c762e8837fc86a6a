"""Threshold rules: inactive → pending → firing → resolved, one alert per rule and pair of groups.

A rule is looked at when a step of its window closes (a time bucket, for windows up to 2 hours). A gap
beyond the tolerance makes it pending; beyond it at ``for`` closings in a row, firing; back within,
resolved. A gap that cannot be told (too few events, no outcome) ends a pending alert and leaves a
firing one as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

import xxhash

from monitor.gap_names import GapSpec
from monitor.gaps import Gap
from monitor.names import clean
from monitor.times import format_time

Direction = Literal["above", "below", "both"]
Severity = Literal["critical", "warning", "info"]


class AlertState(StrEnum):
    """Where an alert is in its life."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Rule:
    """A threshold on a gap, everything settled."""

    name: str
    model: str
    gap: GapSpec
    tolerance: float
    direction: Direction
    window: str
    min_support: int
    for_buckets: int
    severity: Severity

    @property
    def definition(self) -> str:
        """All that makes this rule, as text: another text is another rule."""
        return json.dumps(asdict(self), sort_keys=True, default=dict)

    def breached_by(self, value: float) -> bool:
        """Is a gap of this size beyond the tolerance?

        Differences breach above ``tolerance`` or below ``-tolerance``; ratios below ``tolerance`` or
        above ``1 / tolerance``; ``direction`` names the sides that count.
        """
        if self.gap.kind == "difference":
            above, below = value > self.tolerance, value < -self.tolerance
        else:
            above, below = value * self.tolerance > 1, value < self.tolerance
        return (above and self.direction != "below") or (below and self.direction != "above")


@dataclass(slots=True)
class Alert:
    """One alert, from pending to resolved. Times are the ends of time buckets, in ms since 1970 UTC.

    ``value`` is the gap when last looked at while beyond the tolerance, ``worst`` the one furthest
    from equality. ``groups`` are the two sides (see :class:`~monitor.gaps.Gap`).
    """

    rule: Rule
    groups: tuple[Mapping[str, str] | None, Mapping[str, str] | None]
    value: float
    worst: float
    support: int
    pending_since: int
    state: AlertState = AlertState.PENDING
    firing_since: int | None = None
    resolved_at: int | None = None

    @property
    def fingerprint(self) -> str:
        """Stable identity of the rule and the pair of groups; the same after a restart."""
        return fingerprint(self.rule, self.groups)

    @property
    def episode(self) -> str:
        """Names this alert among all that its rule and groups ever have; the same after a restart."""
        return f"{self.fingerprint}-{self.pending_since}"

    @property
    def summary(self) -> str:
        """The alert in a sentence."""
        rule = self.rule
        subject = f"{rule.model}: {name_gap(rule, self.groups)}"
        if self.state is AlertState.RESOLVED:
            within = f"is back within its tolerance of {rule.tolerance:g} over {rule.window}"
            return f"{subject} {within}; it was {self.worst:.4g} at its worst"
        return f"{subject} is {self.value:.4g} (tolerance {rule.tolerance:g}) over {rule.window}"


def fingerprint(rule: Rule, groups: tuple[Mapping[str, str] | None, Mapping[str, str] | None]) -> str:
    """16 hex digits naming a rule and a pair of groups. A ``between`` rule has one pair: its extremes."""
    sides = () if rule.gap.comparison == "between" else groups
    parts = [rule.model, rule.name, *(repr(sorted((side or {}).items())) for side in sides)]
    return xxhash.xxh3_64_hexdigest("\x1f".join(parts).encode("utf-8", "surrogatepass"))


def name_group(group: Mapping[str, str] | None) -> str:
    """A group in words: ``race = Other, sex = Male``."""
    return ", ".join(f"{clean(a)} = {clean(v)}" for a, v in group.items()) if group else "everybody"


def name_gap(rule: Rule, groups: tuple[Mapping[str, str] | None, Mapping[str, str] | None]) -> str:
    """A gap in words: which one, and between whom."""
    metric = rule.gap.name.replace("_", " ")
    named = {"overall": "everybody", "rest": "the rest"}
    comparator = named.get(rule.gap.comparison) or name_group(groups[1])
    kind = "" if metric.endswith(rule.gap.kind) else f" {rule.gap.kind}"
    return f"{metric}{kind} of {name_group(groups[0])} to {comparator}"


@dataclass(frozen=True, slots=True)
class Transition:
    """An alert changed its state when the time bucket that ends at ``at`` closed; ``alert`` is as of then."""

    at: int
    alert: Alert

    @property
    def state(self) -> AlertState:
        """The state that the alert came to."""
        return self.alert.state

    def __str__(self) -> str:
        return f"{format_time(self.at)} {self.state}: {self.alert.summary}"


@dataclass(slots=True)
class _Watch:
    alert: Alert | None = None
    beyond: int = 0


@dataclass(slots=True)
class RuleMonitor:
    """The alerts of one rule; ``step_ms`` is the time between closings.

    State: O(group pairs now or ever beyond the tolerance).
    """

    rule: Rule
    step_ms: int
    _watches: dict[str, _Watch] = field(default_factory=dict)

    @property
    def active(self) -> list[Alert]:
        """Alerts that are pending or firing."""
        return [w.alert for w in self._watches.values() if w.alert is not None]

    def observe(self, end: int, gaps: Sequence[Gap], *, again: bool = False) -> list[Transition]:
        """A step that ends at ``end`` closed, and the rule's gaps are ``gaps``.

        ``again`` says that this closing is none of its own: the events ended within a step.
        """
        transitions: list[Transition] = []
        seen = set()
        for gap in gaps:
            key = fingerprint(self.rule, gap.groups)
            seen.add(key)
            if gap.value is None:
                self._cannot_tell(key)
            elif self.rule.breached_by(gap.value):
                transitions += self._beyond(key, end, gap, gap.value, again)
            else:
                transitions += self._within(key, end)
        for key in self._watches.keys() - seen:
            self._cannot_tell(key)
        return transitions

    def repeat(self, first_end: int, closings: int) -> list[Transition]:
        """``closings`` more closings, the first at ``first_end``, and nothing has changed."""
        transitions = []
        for watch in self._watches.values():
            missing = self.rule.for_buckets - watch.beyond
            if watch.alert is not None and watch.alert.state is AlertState.PENDING and missing <= closings:
                transitions.append(_fire(watch.alert, first_end + (missing - 1) * self.step_ms))
            watch.beyond += closings
        transitions.sort(key=lambda t: (t.at, t.alert.fingerprint))
        return transitions

    def snapshot(self) -> list[dict[str, Any]]:
        """What is beyond the tolerance, and the alerts, as JSON."""
        return [
            {
                "key": key,
                "beyond": watch.beyond,
                "alert": None if watch.alert is None else _document(watch.alert),
            }
            for key, watch in self._watches.items()
        ]

    def restore(self, snapshot: Sequence[Mapping[str, Any]]) -> None:
        """Take over what another monitor of the same rule gave as its snapshot."""
        for watch in snapshot:
            stored = watch["alert"]
            alert = None if stored is None else _alert(self.rule, stored)
            self._watches[watch["key"]] = _Watch(alert, watch["beyond"])

    def _beyond(self, key: str, end: int, gap: Gap, value: float, again: bool) -> list[Transition]:
        watch = self._watches.setdefault(key, _Watch())
        transitions = []
        if watch.alert is None:
            watch.alert = Alert(self.rule, gap.groups, value, value, gap.support, end)
            transitions.append(_note(watch.alert, end))
        alert = watch.alert
        alert.groups, alert.value, alert.support = gap.groups, value, gap.support
        equality = 0.0 if self.rule.gap.kind == "difference" else 1.0
        if abs(value - equality) > abs(alert.worst - equality):
            alert.worst = value
        watch.beyond += 0 if again and watch.beyond else 1
        if alert.state is AlertState.PENDING and watch.beyond >= self.rule.for_buckets:
            transitions.append(_fire(alert, end))
        return transitions

    def _within(self, key: str, end: int) -> list[Transition]:
        watch = self._watches.pop(key, None)
        if watch is None or watch.alert is None or watch.alert.state is not AlertState.FIRING:
            return []
        watch.alert.state = AlertState.RESOLVED
        watch.alert.resolved_at = end
        return [_note(watch.alert, end)]

    def _cannot_tell(self, key: str) -> None:
        watch = self._watches.get(key)
        if watch is not None and watch.alert is not None and watch.alert.state is AlertState.PENDING:
            del self._watches[key]


def _fire(alert: Alert, at: int) -> Transition:
    alert.state = AlertState.FIRING
    alert.firing_since = at
    return _note(alert, at)


def _note(alert: Alert, at: int) -> Transition:
    return Transition(at, replace(alert))


def _document(alert: Alert) -> dict[str, Any]:
    """An alert as JSON, without its rule."""
    return {
        "groups": [None if side is None else dict(side) for side in alert.groups],
        "value": float(alert.value),
        "worst": float(alert.worst),
        "support": int(alert.support),
        "pending_since": alert.pending_since,
        "state": str(alert.state),
        "firing_since": alert.firing_since,
        "resolved_at": alert.resolved_at,
    }


def _alert(rule: Rule, document: Mapping[str, Any]) -> Alert:
    left, right = document["groups"]
    fields = {**document, "groups": (left, right), "state": AlertState(document["state"])}
    return Alert(rule, **fields)
