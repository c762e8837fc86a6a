"""The real process over a real broker, killed at random moments, comes to the same as if it had not been."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from monitor.store import Store
from tests.crash.harness import exported
from tests.integration.broker import KafkaServer
from tests.integration.receiver import Answer, Request, WebhookReceiver
from tests.integration.servers import MonitorProcess
from tests.integration.service_helpers import SECRET, lag, now_ms

PARTITIONS = 3
WAITING = 120_000
"""Predictions whose outcomes do not come."""
SPACING_MS = 10
STEP_MS = 100
UNFAIR_MS = 20 * 60_000
"""The gap opens and closes after so much event time."""

RULE = {"name": "gap", "metric": "selection_rate", "groups": "sex", "tolerance": 0.4, "window": "10m"}
MODEL = {
    "task": "binary",
    "groups": ["sex", "ward", ["sex", "ward"]],
    "windows": ["10m", "1h", "all"],
    "rules": [RULE, {**RULE, "name": "rates", "metric": "true_positive_rate"}],
    "join": {"outcome_ttl": "7d", "outcome_wait": "1h", "dedupe_window": "30d"},
}


class Sender:
    """Sends events for as long as the monitor is killed; what is in the topics then is the log."""

    def __init__(self, kafka: KafkaServer, predictions: str, outcomes: str, seed: int, each: int) -> None:
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0, "linger.ms": 5})
        self._predictions, self._outcomes = predictions, outcomes
        self._chance = random.Random(seed)
        self._each = each
        self._number = 0
        self._at = now_ms() - 5 * 86_400_000
        self._start = self._at
        self._due: deque[tuple[int, str]] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sender")
        self.sent = 0

    def fill(self) -> None:
        """Predictions that go on waiting."""
        for _ in range(WAITING):
            self._prediction(0.5)
            self._at += SPACING_MS
        self._producer.flush(60)

    def _put(self, topic: str, event: dict[str, Any] | bytes, partition: int) -> None:
        payload = event if isinstance(event, bytes) else json.dumps(event).encode()
        while True:
            try:
                self._producer.produce(topic, payload, partition=partition)
                break
            except BufferError:
                self._producer.poll(0.1)
        self.sent += 1

    def _prediction(self, share: float) -> str:
        chance = self._chance
        name = f"p-{self._number}"
        self._number += 1
        sex = chance.choice("fm")
        event = {
            "id": name,
            "time": self._at,
            "attributes": {"sex": sex, "ward": chance.choice(["north", "south", None])},
            "decision": chance.random() < (share if sex == "f" else 1 - share),
        }
        where = chance.randrange(PARTITIONS)
        for partition in {where, chance.randrange(PARTITIONS)} if chance.random() < 0.02 else {where}:
            self._put(self._predictions, event, partition)
        return name

    def _run(self) -> None:
        chance = self._chance
        while not self._stop.wait(0.02):
            for _ in range(self._each):
                unfair = (self._at - self._start) // UNFAIR_MS % 2
                self._due.append(
                    (self._at + chance.randrange(60_000), self._prediction(0.9 if unfair else 0.5))
                )
                while self._due and self._due[0][0] <= self._at:
                    _, name = self._due.popleft()
                    event = {"id": name, "time": self._at, "outcome": chance.random() < 0.5}
                    self._put(self._outcomes, event, 0)
                if chance.random() < 0.001:
                    self._put(self._outcomes, b"{", 0)
                self._at += STEP_MS
            self._producer.poll(0)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(60) == 0


class Flaky(WebhookReceiver):
    """Answers 503 now and then; ``taken`` are the bodies it took, by id."""

    def __init__(self, share: float) -> None:
        self._chance = random.Random(5)
        self._share = share
        self.taken: dict[str, set[bytes]] = {}
        self.times = 0
        super().__init__()

    def take(self, request: Request) -> Answer:
        super().take(request)
        with self._lock:
            if self._chance.random() < self._share:
                return Answer(503)
            self.times += 1
            self.taken.setdefault(request.headers["webhook-id"], set()).add(request.body)
            return Answer()


def config(kafka: KafkaServer, name: str, topics: list[str], receiver: WebhookReceiver, folder: Path) -> str:
    webhook = {"url": receiver.url, "secrets": [SECRET], "allow_private": True}
    return json.dumps(
        {
            "models": {"m": MODEL},
            "kafka": {"bootstrap_servers": kafka.bootstrap, "group": f"{name}-{topics[0]}"},
            "sources": [{"name": "events", "kafka": {"topics": topics, "start": "earliest"}}],
            "alerts": {"max_age": "3650d", "webhooks": {"on-call": webhook}},
            "dead_letter": {"path": str(folder / "letters.jsonl")},
            "time": {"bucket": "1m", "grace": "2m", "idle_after": "1h"},
            "privacy": {"min_group_size": 1},
            "state": {"directory": str(folder / "state")},
        }
    )


def finish(monitor: MonitorProcess) -> None:
    """Wait until everything is read and every message has arrived, then end."""
    seen: list[Any] = []

    def settled(samples: Any) -> bool:
        done = lag(samples) == 0 and samples.value("fairness_notifications_queued", channel="on-call") == 0
        seen.append((done, samples.value("fairness_closed_until_timestamp_seconds")))
        last = seen[-15:]
        return len(last) == 15 and all(one == (True, seen[-1][1]) for one in last)

    samples = monitor.wait_until(settled, 90, "everything is read and told")
    assert (samples.value("fairness_join_pending", model="m") or 0) > WAITING * 0.9
    assert samples.total("fairness_alert_firing") >= 0
    assert monitor.terminate() == 0


def outcome_of(folder: Path) -> tuple[str, list[str], set[tuple[str, int]]]:
    """The digest of the state, its lines, and the dead letters."""
    with Store.open(folder / "state", now_ms=now_ms) as store:
        assert store.verify() == []
        loaded = store.load()
        assert loaded is not None
        assert not loaded.outbox
        export = exported(store)
    written = [json.loads(line) for line in (folder / "letters.jsonl").read_bytes().splitlines()]
    letters = {(line["partition"], line["position"]) for line in written}
    return hashlib.sha256("\n".join(export).encode()).hexdigest(), export, letters


@pytest.mark.parametrize(
    ("kills", "each"),
    [pytest.param(8, 40, id="short"), pytest.param(200, 8, id="long", marks=pytest.mark.full)],
)
def test_killed_at_random_moments(kafka: KafkaServer, tmp_path: Path, kills: int, each: int) -> None:
    topics = [kafka.new_topic("predictions", PARTITIONS), kafka.new_topic("outcomes", 1)]
    chance = random.Random(kills)
    sender = Sender(kafka, topics[0], topics[1], kills, each)
    sender.fill()
    folder = tmp_path / "killed"
    folder.mkdir()
    began = time.monotonic()
    with Flaky(0.4) as receiver:
        with sender:
            monitor = MonitorProcess(folder, config(kafka, "killed", topics, receiver, folder))
            for _ in range(kills):
                monitor.start(wait=chance.random() < 0.8)
                time.sleep(chance.uniform(0, 3))  # the moment itself is what is tested
                monitor.kill()
        monitor.start()
        with monitor:
            finish(monitor)
    took = time.monotonic() - began
    restored = [line for line in monitor.logs() if line["message"] == "state is restored"]
    assert len(restored) > kills / 2

    calm = tmp_path / "calm"
    calm.mkdir()
    with (
        Flaky(0) as undisturbed,
        MonitorProcess(calm, config(kafka, "calm", topics, undisturbed, calm)) as other,
    ):
        finish(other)
    digest, lines, letters = outcome_of(folder)
    expected, expected_lines, expected_letters = outcome_of(calm)
    differ = [pair for pair in zip(lines, expected_lines, strict=False) if pair[0] != pair[1]]
    assert digest == expected, f"{len(lines)} and {len(expected_lines)} lines; first: {differ[:1]}"
    assert letters == expected_letters
    assert letters
    assert receiver.taken == undisturbed.taken, "every message, and with the same words"
    assert len(receiver.taken) >= 4
    assert undisturbed.times == len(undisturbed.taken)
    repeated = receiver.times - len(receiver.taken)
    print(
        f"{kills} kills in {took:.0f} s, {len(restored)} restored; {sender.sent} events, "
        f"{len(receiver.taken)} messages, {repeated} of them again; {len(lines)} lines, {digest[:16]}"
    )
