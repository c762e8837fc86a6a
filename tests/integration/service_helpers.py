"""What tests of the running service share: events, configurations, what replay says of the same events."""

from __future__ import annotations

import copy
import json
import random
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3
from confluent_kafka import Producer

from monitor.config_file import parse_config
from monitor.replay import replay
from monitor.sinks.dead_letter import DeadLetters
from monitor.sources.files import FileInput
from tests.integration.broker import KafkaServer
from tests.integration.receiver import WebhookReceiver
from tests.integration.servers import MonitorProcess, Samples, wait_until

RunMonitor = Callable[..., MonitorProcess]
Group = tuple[str, str, str]
SECRET = "whsec_dGhpcyBpcyBhIHRlc3Qgc2VjcmV0IG9mIDMyIGI="
TOKEN = "a token of these tests"

CONFIG: dict[str, Any] = {
    "models": {
        "triage": {
            "task": "binary",
            "groups": ["sex", "ward", ["sex", "ward"]],
            "windows": ["all"],
            "min_support": 1,
        }
    },
    "sources": [{"name": "events"}],
    "time": {"bucket": "1s", "grace": "1s", "idle_after": "2s"},
    "privacy": {"min_group_size": 1},
}
SELECTION_RULE = {
    "name": "selection",
    "metric": "selection_rate",
    "groups": "sex",
    "tolerance": 0.2,
    "window": "5m",
    "min_support": 5,
}
DAY_MS = 86_400_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- events -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Event:
    """A prediction or an outcome, and when it happened."""

    time_ms: int
    payload: bytes


def rfc3339(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def prediction(number: int, at_ms: int, *, decision: bool | None = None, **fields: Any) -> Event:
    """A prediction; its groups and, unless given, its decision follow from its number."""
    chance = random.Random(number)
    sex, ward = chance.choice(["female", "male"]), chance.choice(["north", "south", "west"])
    drawn = chance.random() < (0.7 if sex == "male" else 0.3)
    content = {
        "id": f"p-{number}",
        "time": rfc3339(at_ms),
        "attributes": {"sex": sex, "ward": ward},
        "decision": drawn if decision is None else decision,
        **fields,
    }
    return Event(at_ms, json.dumps(content).encode())


def outcome(number: int, at_ms: int) -> Event:
    """The outcome of the prediction of this number."""
    known = random.Random(-1 - number).random() < 0.5
    content = {"id": f"p-{number}", "time": rfc3339(at_ms), "outcome": known}
    return Event(at_ms, json.dumps(content).encode())


def history(count: int, first_ms: int, last_ms: int, *, numbers_from: int = 0) -> list[bytes]:
    """`count` predictions and their outcomes, spread evenly, in order of event time."""
    step = (last_ms - first_ms) / (count + 5)
    events = []
    for i in range(count):
        events.append(prediction(numbers_from + i, int(first_ms + i * step)))
        events.append(outcome(numbers_from + i, int(first_ms + (i + 5) * step)))
    return [event.payload for event in sorted(events, key=lambda event: event.time_ms)]


def produce(kafka: KafkaServer, topic: str, payloads: Iterable[bytes | None], **options: Any) -> None:
    """Send payloads, keyed by their number, so that all partitions get some."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0, **options})
    for i, payload in enumerate(payloads):
        producer.produce(topic, payload, key=str(i))
        if i % 1000 == 0:
            producer.poll(0)
    assert producer.flush(30) == 0


# --- configurations -----------------------------------------------------------------------------------------
def with_rule(base: dict[str, Any], rule: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose model has this rule."""
    config = copy.deepcopy(base)
    for model in config["models"].values():
        model["rules"] = [rule]
    return config


def webhook(receiver: WebhookReceiver) -> dict[str, Any]:
    return {"on-call": {"url": receiver.url, "secrets": [SECRET], "allow_private": True}}


def kafka_config(base: dict[str, Any], kafka: KafkaServer, *topics: str, **parts: Any) -> str:
    """A configuration that reads topics; YAML reads JSON."""
    config = copy.deepcopy({**base, **parts})
    config["kafka"] = {"bootstrap_servers": kafka.bootstrap, "group": f"group-{topics[0]}"}
    config.setdefault("sources", [{}])[0]["kafka"] = {"topics": list(topics)}
    return json.dumps(config)


# --- what is shown, and what should be ----------------------------------------------------------------------
def replayed(
    config: dict[str, Any], folder: Path, now: int | None = None, **files: list[bytes]
) -> dict[str, Any]:
    """What replay says of the same events, each file a partition of its own."""
    inputs = []
    for name, lines in files.items():
        path = folder / f"{name}.jsonl"
        path.write_bytes(b"\n".join(lines) + b"\n")
        inputs.append(FileInput(str(path), "events"))
    result = replay(
        parse_config(json.dumps(config)),
        inputs,
        now_ms=lambda: now_ms() if now is None else now,
        dead_letters=DeadLetters(None),
    )
    return result.document()


def shown_groups(samples: Samples, window: str = "all") -> dict[Group, tuple[float | None, float]]:
    """Value and support of every group and metric."""

    def key(labels: dict[str, str]) -> Group:
        return labels["metric"], labels["grouping"], labels["group"]

    values = {key(one.labels): one.value for one in samples.find("fairness_group_value", window=window)}
    support = samples.find("fairness_group_support", window=window)
    return {key(one.labels): (values.get(key(one.labels)), one.value) for one in support}


def expected_groups(document: dict[str, Any], window: str = "all") -> dict[Group, tuple[float | None, float]]:
    """The same of replay."""
    return {
        (
            row["metric"],
            ",".join(row["group"]) or "everybody",
            ",".join(row["group"].values()) or "everybody",
        ): (row["value"], row["support"])
        for row in document["groups"]
        if row["window"] == window and row["support"] is not None
    }


def counted(samples: Samples) -> int:
    """Predictions and outcomes that were taken in."""
    return int(samples.total("fairness_predictions_total") + samples.total("fairness_outcomes_total"))


def lag(samples: Samples) -> float | None:
    """Records left to read, as the broker has said; None while it has not."""
    found = samples.find("fairness_kafka_lag_records")
    partitions = samples.find("fairness_kafka_position_offset")
    return sum(one.value for one in found) if found and len(found) == len(partitions) else None


def counts_as_replayed(monitor: MonitorProcess, document: dict[str, Any], seconds: float) -> Samples:
    """Wait until every time bucket has closed; events, joins and groups must be those of replay."""
    expected = expected_groups(document)
    samples = monitor.wait_until(
        lambda m: shown_groups(m) == expected and lag(m) in (0, None), seconds, "groups are those of replay"
    )
    events = document["events"]
    assert samples.total("fairness_join_joined_total") == events["joined"]
    assert samples.total("fairness_join_duplicates_total") == events["duplicates"]
    assert samples.total("fairness_stage_in_total", stage="decode") == events["read"]
    assert samples.total("fairness_events_rejected_total") == events["rejected"]
    return samples


def rejected(samples: Samples) -> dict[str, int]:
    """Rejected events by reason, without those that nothing was rejected for."""
    found = samples.find("fairness_events_rejected_total")
    return {one.labels["reason"]: int(one.value) for one in found if one.value}


def terminate_and_watch(monitor: MonitorProcess) -> Samples:
    """SIGTERM, and the last look at /metrics that the service allows before it ends.

    When a channel cannot deliver, the service shows its final numbers while it tries, for ten seconds.
    """
    assert monitor.process is not None
    monitor.process.send_signal(signal.SIGTERM)
    last: list[Samples] = []

    def gone() -> bool:
        with suppress(urllib3.exceptions.HTTPError):
            last.append(monitor.metrics())
            return False
        return True

    wait_until(gone, 25, "the web server closes")
    assert monitor.wait() == 0
    return last[-1]


def errors(monitor: MonitorProcess) -> list[str]:
    """What was logged as an error."""
    return [line["message"] for line in monitor.logs() if line["level"] in ("ERROR", "CRITICAL")]
