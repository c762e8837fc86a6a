"""Which alerts are sent, and when."""

from __future__ import annotations

import json
from dataclasses import replace

from monitor.alerts import Alert, AlertState, Rule, Transition
from monitor.gap_names import GapSpec
from monitor.notify import Notifier
from monitor.sinks.outbox import Message
from tests.engine_helpers import HOUR, MINUTE, START

RULE = Rule(
    name="r",
    model="m",
    gap=GapSpec("false_positive_rate", ("false_positive_rate",), ("sex",), "between", "difference"),
    tolerance=0.1,
    direction="both",
    window="1h",
    min_support=30,
    for_buckets=1,
    severity="warning",
)


class Recorder:
    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._messages: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        self._messages += self._notifier.take()
        return self._messages

    @property
    def types(self) -> list[str]:
        return [json.loads(m.body)["type"].removeprefix("fairness.alert.") for m in self.messages]


def alert(at: int) -> Alert:
    return Alert(RULE, ({"sex": "f"}, {"sex": "m"}), 0.2, 0.2, 100, at, AlertState.FIRING, firing_since=at)


def resolve(alert: Alert, at: int) -> Transition:
    alert.state, alert.resolved_at = AlertState.RESOLVED, at
    return Transition(at, replace(alert))


def notifier() -> tuple[Notifier, Recorder]:
    made = Notifier([], HOUR)
    return made, Recorder(made)


def test_firing_and_resolved_share_their_key() -> None:
    told, sent = notifier()
    one = alert(START)
    told.tell([Transition(START, one)], START + MINUTE)
    told.tell([resolve(one, START + HOUR)], START + HOUR)
    assert sent.types == ["firing", "resolved"]
    assert sent.messages[0].key == sent.messages[1].key
    assert sent.messages[0].id != sent.messages[1].id
    assert told.counts["m", "r", AlertState.FIRING] == 1


def test_pending_alerts_are_not_sent() -> None:
    told, sent = notifier()
    pending = Alert(RULE, (None, None), 0.2, 0.2, 100, START)
    told.tell([Transition(START, pending)], START)
    assert not sent.messages


def test_a_backfill_sends_nothing() -> None:
    told, sent = notifier()
    old = alert(START)
    told.tell([Transition(START, old)], START + 2 * HOUR)
    assert told.held == 1
    told.catch_up([old], START + MINUTE, START + 2 * HOUR)
    told.tell([resolve(old, START + HOUR)], START + 2 * HOUR)
    told.catch_up([old], START + 2 * HOUR, START + 2 * HOUR)
    assert not sent.messages
    assert told.held == 0
    assert told.counts["m", "r", AlertState.RESOLVED] == 1, "it is counted all the same"


def test_what_still_fires_when_the_monitor_has_caught_up_is_sent() -> None:
    told, sent = notifier()
    old = alert(START)
    told.tell([Transition(START, old)], START + 5 * HOUR)
    told.catch_up([old], START + 4 * HOUR + MINUTE, START + 5 * HOUR)
    assert sent.types == ["firing"]
    assert json.loads(sent.messages[0].body)["data"]["firing_since"] == "2023-11-05T16:00:00Z"
    told.catch_up([old], START + 5 * HOUR, START + 5 * HOUR)
    told.tell([resolve(old, START + 5 * HOUR)], START + 9 * HOUR)
    assert sent.types == ["firing", "resolved"], "a resolve follows its firing, however late"
