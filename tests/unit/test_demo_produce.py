"""The demo's producer: which events it makes of which time, where it sends them, and what they set off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka.errors import KafkaConnectionError, KafkaTimeoutError

from monitor.alerts import AlertState
from monitor.config_file import load_config
from monitor.demo.produce import DISTURBED_MS, OUTCOMES, PREDICTIONS, QUIET_MS, Feed, Message, produce
from monitor.errors import MonitorError
from monitor.records import RecordBatch
from monitor.times import parse_time
from monitor.wiring import build_decoders, build_engine

START_MS = 1_790_000_003_000
COMPOSE = Path(__file__).parents[2] / "deploy/compose/monitor.yaml"


def turns(feed: Feed, seconds: int) -> Iterator[tuple[int, list[Message]]]:
    for second in range(1, seconds + 1):
        now = feed.start + 1000 * second
        yield now, feed.take(now)


def decoded(messages: list[Message]) -> list[dict[str, Any]]:
    """Events that are JSON and have all they need; the hospital sends broken ones too."""
    events = []
    for message in messages:
        try:
            events.append(msgspec.json.decode(message.value))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return [event for event in events if "time" in event]


def test_the_rate_is_steady_and_times_are_of_now() -> None:
    feed = Feed(10, 7, START_MS)
    seen = Counter[str]()
    for now, messages in turns(feed, 300):
        for message in messages:
            seen[message.topic] += 1
        ages = [now - parse_time(event["time"]) for event in decoded(messages)]
        late = [age for age in ages if not 0 <= age <= 16_000]
        assert all(age > 60_000 for age in late), "only the late ones of the story are older"
    assert seen[PREDICTIONS] == pytest.approx(3000, rel=0.05)
    assert seen[OUTCOMES] == pytest.approx(2700, rel=0.10)


def test_pairs_have_one_key_and_topics_their_kind() -> None:
    keys: dict[bytes, set[str]] = {}
    for _, messages in turns(Feed(10, 7, START_MS), 120):
        for message in messages:
            assert message.key is not None
            keys.setdefault(message.key, set()).add(message.topic)
        for topic, field in ((PREDICTIONS, "hypothesis"), (OUTCOMES, "reference")):
            assert all(field in event for event in decoded([m for m in messages if m.topic == topic]))
    assert sum(topics == {PREDICTIONS, OUTCOMES} for topics in keys.values()) > 500


def test_the_same_seed_and_clock_give_the_same_bytes() -> None:
    first, second, third = (
        [m for _, messages in turns(Feed(10, seed, START_MS), 60) for m in messages] for seed in (7, 7, 8)
    )
    assert first == second
    assert first != third


def test_a_second_run_has_other_ids() -> None:
    ids = [
        {event["id"] for _, messages in turns(Feed(10, 7, start), 60) for event in decoded(messages)}
        for start in (START_MS, START_MS + 1000)
    ]
    assert not ids[0] & ids[1]


def test_the_scanner_comes_and_goes() -> None:
    feed = Feed(10, 7, START_MS)
    cycle = QUIET_MS + DISTURBED_MS
    on = [feed.disturbed(START_MS + at) for at in (0, QUIET_MS - 1, QUIET_MS, cycle - 1, cycle)]
    assert on == [False, False, True, True, False]


def test_after_a_long_pause_only_the_last_seconds_are_made() -> None:
    feed = Feed(10, 7, START_MS)
    now = START_MS + 8 * 3_600_000
    assert len(feed.take(now)) < 100
    assert feed.take(now) == []
    assert feed.take(now - 1000) == [], "the clock went back"


@pytest.mark.parametrize("seed", [1, 7])
def test_the_composed_monitor_fires_and_resolves_in_every_cycle(seed: int) -> None:
    config = load_config(COMPOSE, {})
    engine = build_engine(config)
    decoders = build_decoders(config, engine)
    (decoder,) = decoders.values()
    for topic in (PREDICTIONS, OUTCOMES):
        engine.add_partition(topic)
    feed = Feed(10, seed, START_MS)
    states = []
    for now, messages in turns(feed, 2 * (QUIET_MS + DISTURBED_MS) // 1000 + 300):
        for topic in (PREDICTIONS, OUTCOMES):
            values = [m.value for m in messages if m.topic == topic]
            batch = RecordBatch(topic, values, range(len(values)), now)
            engine.step(topic, decoder.decode(batch).batches)
        minute = (now - START_MS) / 60_000
        states += [(t.state, minute) for t in engine.advance() if t.state is not AlertState.PENDING]
    assert [state for state, _ in states] == [AlertState.FIRING, AlertState.RESOLVED] * 2
    assert [minute for _, minute in states] == pytest.approx([9, 13.9, 19, 23.9], abs=1.2)


# the producer and its broker -----------------------------------------------------------------------


class Broker:
    """Takes messages until it fails; its clock moves when somebody waits."""

    def __init__(self, fails_after: int | None = None, interrupted_after: int | None = None) -> None:
        self.sent: list[Message] = []
        self.closed = False
        self.now = START_MS
        self.waits = 0
        self._fails_after = fails_after
        self._interrupted_after = interrupted_after

    def send(self, topic: str, value: bytes, key: bytes) -> Broker:
        self.sent.append(Message(topic, key, value))
        return self

    def get(self, timeout: float) -> object:
        assert timeout > 0
        if self._fails_after is not None and len(self.sent) > self._fails_after:
            raise KafkaTimeoutError("no answer")
        return None

    def close(self, timeout: float) -> None:
        self.closed = True

    def sleep(self, seconds: float) -> None:
        self.now += int(1000 * seconds)
        self.waits += 1
        if self.waits == self._interrupted_after:
            raise KeyboardInterrupt

    def run(self, **options: Any) -> tuple[int, list[str]]:
        told: list[str] = []
        sent = produce(
            "broker:9092",
            tell=told.append,
            connect=lambda _: self,
            now_ms=lambda: self.now,
            sleep=self.sleep,
            **options,
        )
        return sent, told


def test_it_sends_for_as_long_as_it_is_told_and_tells_what_happens() -> None:
    broker = Broker()
    sent, told = broker.run(rate=5, seconds=660)
    assert sent == len(broker.sent) == pytest.approx(5 * 660 * 1.95, rel=0.1)
    assert broker.closed
    assert [line.partition(" ")[2] for line in told[1:-1]] == [
        "a noisy scanner is on in ward-7: Scottish and Nigerian accents are misheard more often",
        "the scanner in ward-7 is off",
    ]
    assert told[0] == "sending about 5 utterances a second to broker:9092, topics predictions and outcomes"
    assert told[-1] == f"sent {sent:,} events"


def test_without_seconds_it_goes_on_until_it_is_interrupted() -> None:
    broker = Broker(interrupted_after=90)
    sent, told = broker.run()
    assert (sent, broker.closed) == (len(broker.sent), True)
    assert told[-1].startswith("sent ")


def test_a_broker_that_does_not_answer_ends_it_with_a_sentence() -> None:
    broker = Broker(fails_after=50)
    with pytest.raises(MonitorError, match=r"Kafka at broker:9092 does not take .* topics predictions"):
        broker.run()
    assert broker.closed


def test_a_broker_that_is_not_there_is_named() -> None:
    def nowhere(bootstrap: str) -> Broker:
        raise KafkaConnectionError

    with pytest.raises(MonitorError, match=r"cannot reach Kafka at nowhere:1 .*: name a broker as HOST:PORT"):
        produce("nowhere:1", connect=nowhere, now_ms=lambda: START_MS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "the rate must be above 0"),
        ({"rate": float("nan")}, "the rate must be above 0"),
        ({"rate": 5000.0}, "at most 1000 a second"),
        ({"seconds": 0.0}, "the seconds must be above 0"),
        ({"seconds": float("inf")}, "leave them out"),
        ({"seed": -1}, "the seed must be at least 0"),
    ],
)
def test_arguments_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MonitorError, match=message):
        Broker().run(**options)
