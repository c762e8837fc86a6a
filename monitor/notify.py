"""Alerts on their way to people: what is sent, what is too old to be sent, what is logged.

An alert that began to fire further back than ``alerts.max_age`` is held: a backfill pages nobody. It is
sent after all when the service has caught up and it still fires. A resolve follows its firing only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from monitor.alerts import Alert, AlertState, Transition
from monitor.rows import alert_row
from monitor.sinks.outbox import Channel, Message
from monitor.sinks.webhook import alert_message
from monitor.times import format_time

logger = logging.getLogger(__name__)


class Notifier:
    """Makes messages of the transitions of alerts.

    State: the alerts that are firing, and the number of transitions of each rule.
    """

    def __init__(self, channels: Sequence[Channel], max_age_ms: int) -> None:
        self.channels = channels
        self._outgoing: list[Message] = []
        self.counts: Counter[tuple[str, str, AlertState]] = Counter()
        self._max_age_ms = max_age_ms
        self._held: set[str] = set()
        self._sent: set[str] = set()

    @property
    def held(self) -> int:
        """Alerts that are firing and were not sent."""
        return len(self._held)

    def take(self) -> list[Message]:
        """Messages for all channels since the last call."""
        taken, self._outgoing = self._outgoing, []
        return taken

    def snapshot(self) -> dict[str, list[str]]:
        """What is to be remembered over a restart."""
        return {"held": sorted(self._held), "sent": sorted(self._sent)}

    def restore(self, snapshot: Mapping[str, Sequence[str]]) -> None:
        """Go on from a :meth:`snapshot`."""
        self._held, self._sent = set(snapshot["held"]), set(snapshot["sent"])

    def tell(self, transitions: Sequence[Transition], now_ms: int) -> None:
        """Alerts changed their state."""
        for transition in transitions:
            rule, episode = transition.alert.rule, transition.alert.episode
            self.counts[rule.model, rule.name, transition.state] += 1
            old = transition.at < now_ms - self._max_age_ms
            if transition.state is not AlertState.PENDING:
                _log(transition, held=old and transition.state is AlertState.FIRING)
            if transition.state is AlertState.FIRING:
                if old:
                    self._held.add(episode)
                else:
                    self._send(transition)
            elif transition.state is AlertState.RESOLVED:
                self._held.discard(episode)
                if episode in self._sent:
                    self._sent.discard(episode)
                    self._send(transition)

    def catch_up(self, active: Iterable[Alert], closed_until: int | None, now_ms: int) -> None:
        """Send held alerts, as they are among ``active`` now, once the monitor has come near the clock."""
        if self._held and closed_until is not None and closed_until >= now_ms - self._max_age_ms:
            for alert in active:
                if alert.episode in self._held:
                    self._send(Transition(closed_until, alert))
            self._held.clear()

    def _send(self, transition: Transition) -> None:
        if transition.state is AlertState.FIRING:
            self._sent.add(transition.alert.episode)
        self._outgoing.append(alert_message(transition, alert_row))


def _log(transition: Transition, *, held: bool) -> None:
    alert = transition.alert
    logger.warning(
        "alert %s%s",
        transition.state,
        ", and held: it lies further back than alerts.max_age" if held else "",
        extra={
            "model": alert.rule.model,
            "rule": alert.rule.name,
            "severity": alert.rule.severity,
            "fingerprint": alert.fingerprint,
            "event_time": format_time(transition.at),
            "value": alert.value,
            "tolerance": alert.rule.tolerance,
        },
    )
