"""Gaps and alerts as JSON objects: in the output of replay, in messages."""

from __future__ import annotations

from typing import Any

from monitor.alerts import Alert
from monitor.gaps import Gap
from monitor.times import format_time


def gap_row(model: str, window: str, gap: Gap) -> dict[str, Any]:
    """A gap as a JSON object."""
    return {
        "model": model,
        "metric": gap.spec.name,
        "attributes": list(gap.spec.groups),
        "comparison": gap.spec.comparison,
        "kind": gap.spec.kind,
        "window": window,
        "value": gap.value,
        "groups": [None if g is None else dict(g) for g in gap.groups],
        "status": str(gap.status),
    }


def alert_row(alert: Alert) -> dict[str, Any]:
    """An alert as a JSON object."""
    rule = alert.rule

    def moment(ms: int | None) -> str | None:
        return None if ms is None else format_time(ms)

    return {
        "rule": rule.name,
        "model": rule.model,
        "metric": rule.gap.name,
        "attributes": list(rule.gap.groups),
        "comparison": rule.gap.comparison,
        "kind": rule.gap.kind,
        "window": rule.window,
        "groups": [None if g is None else dict(g) for g in alert.groups],
        "state": str(alert.state),
        "severity": rule.severity,
        "value": alert.value,
        "worst": alert.worst,
        "tolerance": rule.tolerance,
        "support": alert.support,
        "pending_since": moment(alert.pending_since),
        "firing_since": moment(alert.firing_since),
        "resolved_at": moment(alert.resolved_at),
        "fingerprint": alert.fingerprint,
        "summary": alert.summary,
    }
