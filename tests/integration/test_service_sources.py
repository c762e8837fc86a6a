"""What comes into the running service: every kind of producer, idle partitions, backfills, posted events."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from standardwebhooks.webhooks import Webhook as Verifier

from tests.integration.broker import KafkaServer
from tests.integration.receiver import WebhookReceiver
from tests.integration.servers import MonitorProcess, Response
from tests.integration.service_helpers import (
    CONFIG,
    DAY_MS,
    SECRET,
    SELECTION_RULE,
    TOKEN,
    RunMonitor,
    counted,
    counts_as_replayed,
    errors,
    history,
    kafka_config,
    lag,
    now_ms,
    outcome,
    prediction,
    produce,
    rejected,
    replayed,
    webhook,
    with_rule,
)

LIVE = {"bucket": "1s", "grace": "1s", "idle_after": "3s"}
MAX_MESSAGE_BYTES = 10 * 1024 * 1024


# --- partitions that are idle -------------------------------------------------------------------------------
def test_an_idle_partition_does_not_hold_back_the_others(kafka: KafkaServer, run_monitor: RunMonitor) -> None:
    topic = kafka.new_topic(partitions=3)
    sent = 0

    def send(*partitions: int) -> None:
        nonlocal sent
        for partition in partitions:
            kafka.produce(topic, [prediction(sent, now_ms()).payload], partition=partition)
            sent += 1

    monitor = run_monitor(kafka_config(CONFIG, kafka, topic, time=LIVE))
    monitor.wait_until(lambda m: m.total("fairness_kafka_connected") == 1, 20)
    began = time.time()

    def idle(samples: Any) -> list[float | None]:
        return [samples.value("fairness_partition_idle", partition=f"{topic}-{n}") for n in range(3)]

    def closed(samples: Any) -> float:
        return samples.value("fairness_closed_until_timestamp_seconds") or 0.0

    def others_go_on(samples: Any) -> bool:
        send(0, 1)
        return idle(samples) == [0, 0, 1] and closed(samples) > began

    one = monitor.wait_until(others_go_on, 20, "time closes without the partition that never had events")
    first = closed(one)
    assert first - began < 15
    # It has events after all: they count, and time waits for it again.
    send(0, 1, 2)
    monitor.wait_until(lambda m: idle(m)[2] == 0 and m.total("fairness_predictions_total") == sent, 10)

    def all_three(samples: Any) -> bool:
        send(0, 1, 2)
        return closed(samples) > first + 2

    monitor.wait_until(all_three, 15, "time closes with all three")
    # It stops early: after a while the others go on without it.
    stopped = time.time()

    def two_again(samples: Any) -> bool:
        send(0, 1)
        return idle(samples) == [0, 0, 1] and closed(samples) > stopped + 2

    monitor.wait_until(two_again, 20, "time closes without the partition that stopped")
    done = monitor.wait_until(lambda m: m.total("fairness_predictions_total") == sent, 10, "all are counted")
    assert rejected(done) == {}


# --- history ------------------------------------------------------------------------------------------------
def gap_in_the_middle(first_ms: int) -> list[bytes]:
    """A quarter of an hour in which men are selected more often, then a quarter in which nobody is."""
    events = []
    for i in range(1800):
        at = first_ms + i * 1000
        wide = i < 900
        events.append(
            prediction(i, at, decision=wide and i % 2 == 0, attributes={"sex": "female" if i % 2 else "male"})
        )
    return [event.payload for event in events]


def test_a_backfill_pages_nobody(
    kafka: KafkaServer, run_monitor: RunMonitor, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    topic = kafka.new_topic(partitions=2)
    config = with_rule({**CONFIG, "time": {**CONFIG["time"], "bucket": "1m"}}, SELECTION_RULE)
    events = gap_in_the_middle(now_ms() - 1000 * DAY_MS)
    produce(kafka, topic, events)
    document = replayed(config, tmp_path, events=events)
    assert [alert["state"] for alert in document["alerts"]] == ["resolved"]
    monitor = run_monitor(kafka_config(config, kafka, topic, alerts={"webhooks": webhook(receiver)}))
    done = counts_as_replayed(monitor, document, 40)
    done = monitor.wait_until(
        lambda m: m.value("fairness_rule_transitions_total", state="resolved") == 1, 20, "it has resolved"
    )
    assert done.value("fairness_rule_transitions_total", state="firing") == 1
    assert done.total("fairness_rule_alerts") == 0
    assert done.find("fairness_alert_firing") == []
    assert monitor.terminate() == 0
    assert done.value("fairness_notification_attempts_total", channel="on-call") == 0
    assert receiver.requests == []


def test_an_alert_that_still_fires_after_a_backfill_is_sent_once(
    kafka: KafkaServer, run_monitor: RunMonitor, receiver: WebhookReceiver
) -> None:
    topic = kafka.new_topic(partitions=2)
    times = {"bucket": "1m", "grace": "1m", "idle_after": "30s"}
    config = with_rule({**CONFIG, "time": times}, SELECTION_RULE)
    first, last = now_ms() - 3 * 3_600_000, now_ms() - 5 * 60_000
    sexes = ("male", "female")
    past = [
        prediction(i, first + i * 2000, decision=i % 2 == 0, attributes={"sex": sexes[i % 2]}).payload
        for i in range((last - first) // 2000)
    ]
    monitor = run_monitor(kafka_config(config, kafka, topic, alerts={"webhooks": webhook(receiver)}))
    # Only half of history at first: the alert fires, hours ago, and is held.
    half = len(past) // 2
    produce(kafka, topic, past[:half])
    monitor.wait_until(
        lambda m: m.value("fairness_notifications_held") == 1 == m.total("fairness_alert_firing"),
        30,
        "an alert fires and is held",
    )
    assert receiver.requests == []
    produce(kafka, topic, past[half:])
    receiver.wait_for(1, 30)
    number = len(past)
    for _ in range(30):  # live events, with the same gap
        at = now_ms()
        for i in range(number, number + 2):
            event = prediction(i, at, decision=i % 2 == 0, attributes={"sex": sexes[i % 2]})
            kafka.produce(topic, [event.payload], partition=i % 2)
        number += 2
    done = monitor.wait_until(lambda m: counted(m) == number, 10, "all is counted")
    assert done.value("fairness_notifications_held") == 0
    assert done.value("fairness_rule_transitions_total", state="firing") == 1
    assert done.total("fairness_alert_firing") == 1
    assert rejected(done) == {}
    assert monitor.terminate() == 0
    (request,) = receiver.requests
    message = Verifier(SECRET).verify(request.body, dict(request.headers))
    assert message["type"] == "fairness.alert.firing"
    assert message["data"]["state"] == "firing"


# --- producers ----------------------------------------------------------------------------------------------
def test_every_kind_of_producer(kafka: KafkaServer, run_monitor: RunMonitor, tmp_path: Path) -> None:
    topic, letters = kafka.new_topic(partitions=2), tmp_path / "letters.jsonl"
    first = now_ms() - DAY_MS
    accepted: list[bytes] = []
    number = 0

    def some(count: int) -> list[bytes]:
        nonlocal number
        events = history(count, first, first + 600_000, numbers_from=number)
        number += count
        return events

    times = {"bucket": "1m", "grace": "1h", "idle_after": "8s"}  # all orders of producers are fine
    config = {**CONFIG, "time": times}
    monitor = run_monitor(kafka_config(config, kafka, topic, dead_letter={"path": str(letters)}))
    for codec in ("none", "gzip", "lz4", "zstd", "snappy"):
        events = some(500)
        produce(kafka, topic, events, **{"compression.type": codec, "linger.ms": 50})
        accepted += events
    events = some(20)
    kafka.produce(topic, events, headers=[("trace", b"1"), ("trace", b"2"), ("empty", b"")])
    accepted += events
    kafka.produce(topic, [None, b""], partition=1)

    def padded(size: int) -> bytes:
        bare = len(prediction(number, first, padding="").payload)
        return prediction(number, first, padding="x" * (size - bare)).payload

    large = padded(MAX_MESSAGE_BYTES)
    assert len(large) == MAX_MESSAGE_BYTES
    number += 1
    kafka.produce(topic, [large, padded(MAX_MESSAGE_BYTES + 1)])
    number += 1
    accepted.append(large)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": topic, "log_level": 0})
    producer.init_transactions(20)
    for commit in (True, False, True, False):
        producer.begin_transaction()
        events = some(50)
        for i, event in enumerate(events):
            producer.produce(topic, event, partition=i % 2)
        producer.flush(20)
        if commit:
            producer.commit_transaction(20)
            accepted += events
        else:
            producer.abort_transaction(20)
    done = monitor.wait_until(lambda m: counted(m) == len(accepted) and lag(m) == 0, 30, "all is counted")
    assert rejected(done) == {"empty": 2, "too_large": 1}
    found = [json.loads(line) for line in letters.read_text().splitlines()]
    assert sorted((one["reason"], one["partition"]) for one in found) == [
        ("empty", f"{topic}-1"),
        ("empty", f"{topic}-1"),
        ("too_large", f"{topic}-0"),
    ]
    document = replayed(config, tmp_path, accepted=accepted)
    assert document["events"]["rejected"] == 0
    document["events"] |= {"read": len(accepted) + 3, "rejected": 3}
    counts_as_replayed(monitor, document, 30)
    assert monitor.terminate() == 0
    assert errors(monitor) == []


# --- dead letters -------------------------------------------------------------------------------------------
BAD = {
    b"": "empty",
    b"\xff\xfe not UTF-8 \x00": "invalid_utf8",
    b'{"id": "x", "time":': "invalid_json",
    b"[1, 2]": "not_an_object",
    b'{"id": "x", "time": "2026-03-01T00:00:00Z", "decision": "Mallory"}': "wrong_type",
    b'{"id": "x", "decision": true}': "missing_field",
}


def test_dead_letters_go_to_a_file_and_a_topic(
    kafka: KafkaServer, run_monitor: RunMonitor, tmp_path: Path
) -> None:
    topic, letters, path = kafka.new_topic(partitions=2), kafka.new_topic("letters"), tmp_path / "dead.jsonl"
    good = history(100, now_ms() - DAY_MS, now_ms() - DAY_MS + 60_000)
    monitor = run_monitor(
        kafka_config(CONFIG, kafka, topic, dead_letter={"path": str(path), "topic": letters})
    )
    kafka.produce(topic, [*good, *BAD])
    kafka.produce(topic, list(BAD), partition=1, headers=[("own", b"not passed on")])
    count = 2 * len(BAD)
    done = monitor.wait_until(
        lambda m: m.value("fairness_dead_letters_total", sink="kafka", result="written") == count, 30
    )
    assert done.value("fairness_dead_letters_total", sink="file", result="written") == count
    assert done.total("fairness_dead_letters_total", result="failed") == 0
    assert rejected(done) == dict.fromkeys(BAD.values(), 2)
    assert counted(done) == len(good)
    assert monitor.terminate() == 0
    records = kafka.read(letters, count + 1, seconds=3)
    found = {}
    for record in records:
        headers = {name: value.decode() for name, value in record.headers() or []}
        assert headers["message"]
        where = headers["source-topic"], int(headers["source-partition"]), int(headers["source-offset"])
        found[where] = (record.value() or b"", headers["reason"])
    assert len(records) == len(found) == count, "every reject once"
    expected = {(topic, 0, len(good) + i): item for i, item in enumerate(BAD.items())}
    expected |= {(topic, 1, i): item for i, item in enumerate(BAD.items())}
    assert found == expected
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(one["partition"], one["position"]): one["reason"] for one in lines} == {
        (f"{name}-{partition}", offset): reason for (name, partition, offset), (_, reason) in found.items()
    }
    assert len(lines) == count
    said = monitor.output_path.read_text()
    assert "Mallory" not in said, "the log says nothing that was in an event"
    assert errors(monitor) == []


# --- events that are posted ---------------------------------------------------------------------------------
def post(monitor: MonitorProcess, lines: list[bytes], *, token: str = TOKEN, **headers: str) -> Response:
    named = {"Authorization": f"Bearer {token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    return monitor.call("POST", "/v1/events", b"\n".join(lines) + b"\n", named)


POSTED = {**CONFIG, "sources": [{"name": "posted", "http": {}}], "server": {"ingest_token": TOKEN}}


def test_posted_events(run_monitor: RunMonitor, tmp_path: Path) -> None:
    letters = tmp_path / "dead.jsonl"
    config = {**POSTED, "dead_letter": {"path": str(letters)}}
    monitor = run_monitor(json.dumps(config))
    assert monitor.call("GET", "/readyz").status == 200
    first = now_ms() - 60_000
    good = history(50, first, first + 10_000)
    answer = post(monitor, [*good[:40], b"{broken", b"", *good[40:60], b'{"id": 1}'], Idempotency_Key="one")
    assert answer.status == 200
    receipt = answer.json()
    assert (receipt["read"], receipt["accepted"], receipt["rejected"]) == (62, 60, 2)
    assert [(one["line"], one["reason"]) for one in receipt["rejects"]] == [
        (41, "invalid_json"),
        (63, "missing_field"),
    ]
    # The same key again: the answer of the first, and nothing counted twice.
    again = post(monitor, [*good[:40], b"{broken", b"", *good[40:60], b'{"id": 1}'], Idempotency_Key="one")
    assert (again.status, again.json()) == (200, receipt)
    assert post(monitor, good[60:], Idempotency_Key="one").status == 422
    for token in ("wrong", ""):
        refused = post(monitor, good[60:], token=token)
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "server.ingest_token" in refused.text
    assert post(monitor, [b" "]).status == 400
    assert post(monitor, good[60:], Idempotency_Key="two").json()["accepted"] == 40
    document = replayed({**CONFIG, "sources": [{"name": "events"}]}, tmp_path, good=good)
    document["events"] |= {"read": 102, "rejected": 2}
    done = counts_as_replayed(monitor, document, 20)
    assert rejected(done) == {"invalid_json": 1, "missing_field": 1}
    codes = {s.labels["code"]: s.value for s in done.find("fairness_ingest_requests_total") if s.value}
    assert codes == {"200": 3, "422": 1, "401": 2, "400": 1}
    assert monitor.terminate() == 0
    lines = [json.loads(line) for line in letters.read_text().splitlines()]
    assert [(one["position"], one["payload"]) for one in lines] == [(41, "{broken"), (63, '{"id": 1}')]


def test_posted_predictions_meet_outcomes_of_a_topic(
    kafka: KafkaServer, run_monitor: RunMonitor, tmp_path: Path
) -> None:
    topic, first = kafka.new_topic(partitions=2), now_ms() - DAY_MS
    predictions = [prediction(i, first + i * 100).payload for i in range(1000)]
    outcomes = [outcome(i, first + i * 100 + 2000).payload for i in range(1000)]
    sources = [{"name": "truth"}, {"name": "posted", "http": {}}]
    times = {"bucket": "1s", "grace": "1h", "idle_after": "5s"}
    config = {**CONFIG, "sources": sources, "server": {"ingest_token": TOKEN}, "time": times}
    monitor = run_monitor(kafka_config(config, kafka, topic))
    for i in range(0, 1000, 100):  # both at the same time
        assert post(monitor, predictions[i : i + 100]).json()["accepted"] == 100
        produce(kafka, topic, outcomes[i : i + 100])
    document = replayed({**CONFIG, "time": times}, tmp_path, predictions=predictions, outcomes=outcomes)
    assert document["events"]["joined"] == 1000
    done = counts_as_replayed(monitor, document, 30)
    assert rejected(done) == {}
    marks = done.find("fairness_partition_watermark_timestamp_seconds")
    assert {one.labels["source"] for one in marks} == {"truth", "posted"}
    assert monitor.terminate() == 0


# --- how soon an event is seen ------------------------------------------------------------------------------
class Steady:
    """A producer of so many events a second, which notes when each was sent."""

    def __init__(self, kafka: KafkaServer, topic: str, rate: int, first: int) -> None:
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap, "linger.ms": 5, "log_level": 0})
        self._topic, self._rate, self._first = topic, rate, first
        self.sent: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="producer")

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stop.wait(0.01):
            while len(self.sent) < (time.monotonic() - began) * self._rate:
                number = self._first + len(self.sent)
                self._producer.produce(self._topic, prediction(number, now_ms()).payload, key=str(number))
                self.sent.append(time.monotonic())
            self._producer.poll(0)

    def __enter__(self) -> Steady:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(20) == 0


def test_events_are_seen_within_two_seconds(kafka: KafkaServer, run_monitor: RunMonitor) -> None:
    topic = kafka.new_topic(partitions=3)
    monitor = run_monitor(kafka_config(CONFIG, kafka, topic, time={**LIVE, "grace": "10s"}))
    monitor.wait_until(lambda m: len(m.find("fairness_kafka_position_offset")) == 3, 20)
    before = 0
    rounds: list[float] = []
    for _ in range(3):  # another program on the machine may spoil a round
        delays: list[float] = []
        with Steady(kafka, topic, 1000, before) as producer:
            until = time.monotonic() + 15
            while time.monotonic() < until:
                samples = monitor.metrics()
                seen = int(samples.value("fairness_stage_out_total", stage="decode") or 0) - before
                at = time.monotonic()
                # The first event that is not seen yet was sent so long ago.
                delays.append(at - producer.sent[seen] if seen < len(producer.sent) else 0.0)
                time.sleep(0.1)
        before += len(producer.sent)
        monitor.wait_until(lambda m, n=before: counted(m) == n and lag(m) == 0, 20, "all are counted")
        rounds.append(max(delays))
        assert len(producer.sent) >= 14_000
        print(f"{len(producer.sent)} events; longest until seen {max(delays):.2f} s of {len(delays)} looks")
        if rounds[-1] <= 2:
            break
    assert min(rounds) <= 2, rounds
    assert rejected(monitor.metrics()) == {}
