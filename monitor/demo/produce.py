"""The demo for the whole system: the hospital's events into Kafka as they happen, for as long as you like.

A scanner disturbs a ward for some minutes, is switched off, and comes back: the gap between accents opens
and closes in turns, so that dashboards move and alerts fire and resolve.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from math import isfinite
from typing import NamedTuple, cast

from monitor.demo.hospital import MINUTE_MS, WARD, Hospital
from monitor.errors import MonitorError
from monitor.kafka_client import Producer, make_producer
from monitor.times import format_time

PREDICTIONS, OUTCOMES = "predictions", "outcomes"
"""Topics: transcripts, and their corrected texts."""
QUIET_MS = DISTURBED_MS = 5 * MINUTE_MS
"""How long the scanner is off, then on; the show begins with quiet."""
RATE = 10.0
MAX_RATE = 1000.0
"""Utterances a second."""

_TURN_SECONDS = 1.0
_CATCH_UP_MS = 5000
_DELAY = 0.1
_SEND_SECONDS = 30.0
_ID = re.compile(rb'\{"id":"([^"]+)"')


class Message(NamedTuple):
    """A record for Kafka. Both halves of a pair have the same key, hence the same partition number."""

    topic: str
    key: bytes | None
    value: bytes


class Feed:
    """The hospital's events up to now, turn by turn. The clock is passed in.

    Outcomes follow after some 20 seconds in place of minutes; the windows of a demo are short. Ids begin
    with the start, so that a second run within the monitor's memory of ids does not look like a repetition.

    Parameters
    ----------
    rate
        utterances a second, about; each gives a prediction and mostly an outcome
    seed
        other patients, same story
    start_ms
        when the show begins
    """

    def __init__(self, rate: float, seed: int, start_ms: int) -> None:
        self.start = self._until = start_ms
        self._rate = rate
        self._hospital = Hospital(seed, start_ms, delay=_DELAY, prefix=f"{start_ms:x}-")

    def disturbed(self, at_ms: int) -> bool:
        """Is the scanner on at a time?"""
        return (at_ms - self.start) % (QUIET_MS + DISTURBED_MS) >= QUIET_MS

    def take(self, now_ms: int) -> list[Message]:
        """Return what arrived since the last call.

        After a long pause, as of a laptop that slept, the events of the last 5 seconds only: older ones
        would come too late to count.
        """
        begin = max(self._until, now_ms - _CATCH_UP_MS)
        if now_ms <= begin:
            return []
        self._until = now_ms
        expected = self._rate * (now_ms - begin) / 1000
        events = self._hospital.between(begin, now_ms, expected, scanner=self.disturbed(begin))
        return [_message(event) for event in events]


def _message(event: bytes) -> Message:
    found = _ID.match(event)
    topic = OUTCOMES if b'"reference":' in event else PREDICTIONS
    return Message(topic, found[1] if found else None, event)


def produce(
    bootstrap: str,
    *,
    rate: float = RATE,
    seconds: float | None = None,
    seed: int = 7,
    tell: Callable[[str], None] = print,
    connect: Callable[[str], Producer] | None = None,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Send the hospital's events to the topics ``predictions`` and ``outcomes``, with event times of now.

    Parameters
    ----------
    bootstrap
        a broker as ``HOST:PORT``, several with commas
    rate
        utterances a second, above 0 and up to 1,000
    seconds
        when to stop; None: at Ctrl-C (SIGINT)
    seed
        other patients, same story
    tell
        takes a line when something changes
    connect, now_ms, sleep
        how to reach Kafka, the clock, and how to wait

    Returns
    -------
    int
        messages that the broker has acknowledged

    Raises
    ------
    MonitorError
        When an argument cannot be used, or Kafka does not take events for 30 seconds.
    """
    if not 0 < rate <= MAX_RATE:
        raise MonitorError(f"the rate must be above 0 and at most {MAX_RATE:g} a second, not {rate:g}")
    if seconds is not None and not (isfinite(seconds) and seconds > 0):
        raise MonitorError(f"the seconds must be above 0, not {seconds:g}; leave them out to go on for ever")
    if seed < 0:
        raise MonitorError(f"the seed must be at least 0, not {seed}")
    feed = Feed(rate, seed, now_ms())
    producer = _reach(bootstrap, connect or _connect)
    tell(f"sending about {rate:g} utterances a second to {bootstrap}, topics {PREDICTIONS} and {OUTCOMES}")
    sent = 0
    on = False
    try:
        for now in _turns(feed.start, seconds, now_ms, sleep):
            if feed.disturbed(now) is not on:
                on = not on
                tell(f"{format_time(now)} {_turn(on)}")
            sent += _deliver(producer, feed.take(now), bootstrap)
    except KeyboardInterrupt:
        pass
    finally:
        producer.close(timeout=5)
    tell(f"sent {sent:,} events")
    return sent


def _turn(on: bool) -> str:
    if on:
        return f"a noisy scanner is on in {WARD}: Scottish and Nigerian accents are misheard more often"
    return f"the scanner in {WARD} is off"


def _turns(
    start_ms: int, seconds: float | None, now_ms: Callable[[], int], sleep: Callable[[float], None]
) -> Iterator[int]:
    """Yield the time, about once a second."""
    while (now := now_ms()) - start_ms < (float("inf") if seconds is None else 1000 * seconds):
        yield now
        sleep(_TURN_SECONDS)


def _deliver(producer: Producer, messages: list[Message], bootstrap: str) -> int:
    """Send messages and wait until all are acknowledged: what is said to be sent, is."""
    try:
        promises = [producer.send(m.topic, value=m.value, key=m.key) for m in messages]
        for promise in promises:
            promise.get(timeout=_SEND_SECONDS)
    except _failures() as error:
        raise MonitorError(
            f"Kafka at {bootstrap} does not take the demo's events ({_said(error)}): is the broker up, and "
            f"are there topics {PREDICTIONS} and {OUTCOMES}, or may they be created?"
        ) from error
    return len(messages)


def _reach(bootstrap: str, connect: Callable[[str], Producer]) -> Producer:
    try:
        return connect(bootstrap)
    except _failures() as error:
        message = f"cannot reach Kafka at {bootstrap} ({_said(error)}): name a broker as HOST:PORT"
        raise MonitorError(message) from error


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _failures() -> tuple[type[Exception], ...]:
    """What Kafka's client raises; ValueError is for an address that is none."""
    return (cast("type[Exception]", import_module("kafka.errors").KafkaError), OSError, ValueError)


def _connect(bootstrap: str) -> Producer:
    return make_producer(
        bootstrap_servers=bootstrap.split(","),
        client_id="fairness-monitor-demo",
        acks="all",
        linger_ms=50,
        max_block_ms=int(1000 * _SEND_SECONDS),
        bootstrap_timeout_ms=int(1000 * _SEND_SECONDS),
        reconnect_backoff_max_ms=2000,
        allow_auto_create_topics=True,
    )
