"""Dashboard and rules against a real life: two models, a broker, a Prometheus, and much that goes wrong.

One monitor lives through a script of about two minutes, told by `Life.actions`. Then every query that we ship
is asked over that life. A query must give numbers, and they must move: see `moves`.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from monitor import exposition
from tests.dashboard_queries import RULES, load_dashboard, load_rules, panels, queries, substitute
from tests.integration.broker import KafkaServer, kafka_missing
from tests.integration.receiver import Answer, WebhookReceiver
from tests.integration.servers import MonitorProcess, PrometheusServer, Samples, wait_until
from tests.integration.service_helpers import TOKEN, lag, now_ms, replayed, rfc3339, webhook

DASHBOARD = load_dashboard()
VALUES = {"__rate_interval": "5s"}  # what Grafana takes for a scrape every second
QUERIES = list(dict.fromkeys(queries(DASHBOARD, VALUES)))

# What is set once and stays: a query of nothing else shall not move.
CONSTANT = {"fairness_rule_tolerance", "fairness_build_info"}
STEADY = {
    "variable model": "the models are those of the configuration",
    "variable instance": "one monitor",
    "variable job": "one job",
}

MODELS: dict[str, Any] = {
    "triage": {
        "task": "binary",
        "groups": ["sex", "ward", ["sex", "ward"]],
        "windows": ["10s", "1m", "all"],
        "metrics": ["selection_rate", "true_positive_rate", "accuracy", "outcome_coverage"],
        "min_support": 10,
        "max_cells": 11,
        "join": {"outcome_ttl": "15s", "outcome_wait": "3s", "dedupe_window": "30s"},
        "gaps": [
            {"metric": "selection_rate"},
            {"metric": "selection_rate", "groups": "sex", "kind": "ratio"},
            {"metric": "accuracy", "comparison": "reference", "reference": {"ward": "north"}},
            {
                "metric": "accuracy",
                "comparison": "reference",
                "reference": {"ward": "north"},
                "kind": "ratio",
            },
            {"metric": "true_positive_rate", "groups": "ward", "comparison": "rest"},
            {"metric": "outcome_coverage", "groups": "ward", "comparison": "overall"},
            {"metric": "CDDPL", "groups": "sex", "strata": "ward"},
        ],
        "rules": [
            {
                "name": "selection",
                "metric": "selection_rate",
                "groups": "sex",
                "tolerance": 0.4,
                "window": "10s",
                "severity": "critical",
            },
            {
                "name": "selection, long",
                "metric": "selection_rate",
                "groups": "sex",
                "tolerance": 0.4,
                "window": "all",
            },
            {
                "name": "four fifths",
                "metric": "selection_rate",
                "groups": "sex",
                "kind": "ratio",
                "tolerance": 0.5,
                "window": "10s",
                "for": 8,
            },
            {
                "name": "wards",
                "metric": "accuracy",
                "groups": "ward",
                "comparison": "reference",
                "reference": {"ward": "north"},
                "tolerance": 0.3,
                "window": "10s",
                "severity": "info",
            },
            {
                "name": "wards, ratio",
                "metric": "accuracy",
                "groups": "ward",
                "comparison": "reference",
                "reference": {"ward": "north"},
                "kind": "ratio",
                "tolerance": 0.6,
                "window": "10s",
            },
        ],
    },
    "dictation": {
        "task": "speech",
        "groups": ["accent"],
        "windows": ["10s", "all"],
        "metrics": ["word_error_rate", "outcome_coverage"],
        "min_support": 5,
        "rules": [{"metric": "word_error_rate", "groups": "accent", "tolerance": 0.1, "window": "10s"}],
    },
}
CONFIG: dict[str, Any] = {
    "models": MODELS,
    "sources": [{"name": "events"}],
    "time": {"bucket": "1s", "grace": "2s", "idle_after": "5s"},
    "limits": {"max_message_bytes": 20_000},
    "privacy": {"min_group_size": 10},
}
LONG_AGO_MS = 7_200_000
SECONDS, PER_SECOND = 64, 48
GAP, QUIET = range(10, 22), range(28, 36)
"""Seconds in which groups are treated unequally, and in which one partition gets nothing."""
SMALL = "attic"
"""A ward with three people, fewer than privacy.min_group_size."""


def as_json(**content: Any) -> bytes:
    return json.dumps(content).encode()


def history(start_ms: int) -> list[bytes]:
    """Joined events of 20 seconds, with a large gap, and the only ones of a ward with three people."""
    events = []
    for i in range(600):
        sex = ("female", "male")[i % 2]
        ward = SMALL if i in (40, 41, 42) else ("north", "south", "west")[i % 3]
        events.append(
            as_json(
                id=f"h-{i}",
                time=rfc3339(start_ms + i * 20_000 // 600),
                model="triage",
                attributes={"sex": sex, "ward": ward},
                decision=sex == "male",
                outcome=i % 5 > 1,
            )
        )
    return events


def bad_events(start_ms: int) -> dict[str, bytes]:
    """Events that are rejected, by reason."""
    good = {"id": "b", "model": "triage", "attributes": {"sex": "male"}, "decision": True}

    def at(seconds: float, **changes: Any) -> bytes:
        return as_json(**{**good, "time": rfc3339(int(start_ms + seconds * 1000)), **changes})

    return {
        "empty": b"",
        "too_large": b"x" * 25_000,
        "invalid_utf8": b'{"id": "\xff"}',
        "invalid_json": b'{"id": ',
        "nan": b'{"id": NaN}',
        "too_deep": b'{"id": "b", "x": ' + b"[" * 600 + b"]" * 600 + b"}",
        "not_an_object": b"[]",
        "missing_field": as_json(**good),
        "wrong_type": at(20, decision="yes"),
        "too_long": at(20, id="long" * 1000),
        "invalid_time": as_json(**good, time="yesterday"),
        "time_in_future": at(36_000),
        "unknown_model": at(20, model="nobody"),
        "late": at(-600),
    }


@dataclass(frozen=True)
class Planned:
    """A record and when it is sent."""

    send_ms: int
    topic: str
    partition: int
    payload: bytes


def plan(start_ms: int) -> list[Planned]:
    """Everything that goes to the topics of predictions and outcomes, in the order it is sent."""
    records: list[Planned] = []
    end_ms = start_ms + SECONDS * 1000
    for n in range(SECONDS * PER_SECOND):
        at, second, chance = start_ms + n * 1000 // PER_SECOND, n // PER_SECOND, random.Random(n)
        partition = n % 3
        if partition == 2 and second in QUIET:
            continue
        sex, ward = ("female", "male")[n // 3 % 2], chance.choice(["north", "south", "west", None])
        unequal = second in GAP
        decision = chance.random() < ((0.9 if sex == "male" else 0.1) if unequal else 0.5)
        right = chance.random() < (0.2 if unequal and ward == "south" else 0.9)
        name, known = f"p-{n}", at + (-400 if n % 40 == 1 else 3000)

        def send(topic: str, at_ms: int, partition: int = partition, **content: Any) -> None:
            payload = as_json(model="triage", time=rfc3339(at_ms), **content)
            records.append(Planned(max(start_ms, at_ms), topic, partition, payload))

        attributes = {"sex": sex, "ward": ward}
        for _ in range(2 if n % 25 == 0 else 1):
            send("predictions", at, id=name, attributes=attributes, decision=decision)
        if known < end_ms and not (ward == "west" and n % 4 == 0):
            send("outcomes", known, id=name, outcome=decision is right)
        if n % 50 == 7:
            send("outcomes", at, id=f"orphan-{n}", outcome=True)
    for i, payload in enumerate(bad_events(start_ms).values()):
        records.append(Planned(start_ms + 5000 + 700 * i, "predictions", 1, payload))
    # For a moment more than 5 % is bad.
    records += [Planned(start_ms + 1000, "predictions", 0, b"{")] * 90
    return sorted(records, key=lambda record: record.send_ms)


Moments = list[tuple[float, float]]
Answers = list[tuple[dict[str, str], Moments]]


@dataclass
class Life:
    """One monitor with everything around it, and what was seen of it."""

    folder: Path
    kafka: KafkaServer
    receiver: WebhookReceiver
    monitor: MonitorProcess
    prometheus: PrometheusServer
    born: float = 0.0
    flow: float = 0.0
    end: float = 0.0
    sent: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    offsets: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    texts: list[str] = field(default_factory=list)
    document: dict[str, Any] = field(default_factory=dict)

    # --- what the script does ---
    def actions(self) -> list[tuple[float, Callable[[], None]]]:
        """What happens beside the flow of events, by the second."""
        posts: list[tuple[float, Callable[[], None]]] = [(s, self.post) for s in (6, 10, 14, 18, 22, 26, 30)]
        return sorted(
            [
                *posts,
                (7, self.post_badly),
                (13, self.heal_receiver),
                (14, lambda: self.receiver.script(Answer(400))),
                (15, lambda: self.kafka.create_topic("dictations") and None),
                (37, self.lose_records),
                (42, self.break_kafka),
                (60, self.post),
            ],
            key=lambda action: action[0],
        )

    def live(self) -> None:
        """Run the script."""
        self.born = time.time()
        for topic, partitions in (("predictions", 3), ("outcomes", 3)):
            self.kafka.create_topic(topic, partitions)
        self.kafka.create_topic("letters", config={"max.message.bytes": "3000"})
        self.prometheus.start()
        self.monitor.start()
        wait_until(
            lambda: self.prometheus.query("up == 1"), 10, "Prometheus has seen it before it does anything"
        )
        long_ago = now_ms() - LONG_AGO_MS
        self.send_post(history(long_ago))
        # All else is quiet: the history closes, and its alerts are too old to be sent.
        self.monitor.wait_until(lambda m: m.value("fairness_notifications_held"), 30, "an alert is held")
        # Now the topics are hours ahead of the posts, and wait for them.
        self.send_post(
            [
                as_json(
                    id="h",
                    time=rfc3339(long_ago + 25_000),
                    model="triage",
                    attributes={"sex": "male", "ward": "north"},
                    decision=True,
                )
            ]
        )
        start_ms = now_ms()
        self.flow = start_ms / 1000
        records, due = plan(start_ms), self.actions()
        producer = Producer(
            {
                "bootstrap.servers": self.kafka.bootstrap,
                "log_level": 0,
                "linger.ms": 1,
                "reconnect.backoff.max.ms": 500,
            }
        )
        dictations, looked = itertools.count(), 0.0
        while records or due:
            while due and time.time() >= self.flow + due[0][0]:
                due.pop(0)[1]()
            now = now_ms()
            while records and records[0].send_ms <= now:
                self.produce(producer, records.pop(0))
            if self.sees_dictations(now - start_ms):
                for _ in range(2):
                    self.produce(producer, self.dictation(next(dictations), now))
            assert producer.flush(30) == 0
            if time.time() > looked + 2:
                looked = time.time()
                self.look()
            time.sleep(0.2)
        self.settle()

    def settle(self) -> None:
        """Wait until everything is counted, closed and scraped."""
        self.document = replayed(CONFIG, self.folder, **self.sent)
        ends = {(w["model"], w["window"]): w["end"] for w in self.document["windows"]}

        def closed(m: Samples) -> bool:
            found = m.find("fairness_window_end_timestamp_seconds")
            shown = {(s.labels["model"], s.labels["window"]): rfc3339(int(s.value * 1000)) for s in found}
            return lag(m) == 0 and same_times(shown, ends)

        done = self.monitor.wait_until(closed, 30, "all time buckets have closed")
        self.look()
        mark = done.value("fairness_evaluation_timestamp_seconds")
        assert mark is not None
        wait_until(
            lambda: self.prometheus.query(f"fairness_evaluation_timestamp_seconds >= {mark}"),
            10,
            "Prometheus has the last numbers",
        )
        time.sleep(2)  # the rules are evaluated once more
        self.end = time.time()

    def produce(self, producer: Producer, record: Planned) -> None:
        producer.produce(record.topic, record.payload, partition=record.partition)
        producer.poll(0)
        self.offsets[record.topic, record.partition] += 1
        self.sent[f"{record.topic}-{record.partition}"].append(record.payload)

    def look(self) -> str:
        """Keep what /metrics shows now."""
        self.texts.append(self.monitor.call("GET", "/metrics").text)
        return self.texts[-1]

    def sees_dictations(self, elapsed_ms: int) -> bool:
        """Has the monitor found the topic that was missing, and is it time for its events?"""
        return 15_000 < elapsed_ms < 36_000 and "fairness_kafka_missing_topics 0.0" in self.texts[-1]

    def dictation(self, n: int, at_ms: int) -> Planned:
        accent = ("scottish", "welsh")[n % 2]
        heard = "one two four" if accent == "welsh" and n % 10 == 1 else "one two three"
        content = {"id": f"d-{n}", "time": rfc3339(at_ms), "model": "dictation"}
        payload = as_json(
            **content, attributes={"accent": accent}, hypothesis=heard, reference="one two three"
        )
        return Planned(at_ms, "dictations", 0, payload)

    def send_post(self, events: list[bytes]) -> None:
        self.sent["posted"] += events
        answer = self.monitor.call("POST", "/v1/events", b"\n".join(events), bearer(TOKEN))
        assert answer.status == 200, answer.text

    def post(self) -> None:
        now, n = now_ms(), len(self.sent["posted"])
        attributes = {"sex": "male", "ward": "north"}
        content = {"model": "triage", "time": rfc3339(now), "attributes": attributes, "decision": True}
        self.send_post([as_json(id=f"w-{n + i}", **content) for i in range(12)])

    def post_badly(self) -> None:
        assert self.monitor.call("POST", "/v1/events", b"{}", bearer("another token")).status == 401
        assert self.monitor.call("POST", "/v1/events", b"", bearer(TOKEN)).status == 400
        self.send_post([b"{}"])

    def heal_receiver(self) -> None:
        self.receiver.default = Answer(200)

    def lose_records(self) -> None:
        """While the monitor is held, records come and are deleted."""
        self.monitor.pause()
        time.sleep(0.5)  # what the broker was asked for before is answered
        lost = [b"lost"] * 40
        self.kafka.produce("predictions", lost)
        self.offsets["predictions", 0] += len(lost)
        self.kafka.delete_before("predictions", 0, self.offsets["predictions", 0])
        wait_until(lambda: self.prometheus.query("up == 0"), 10, "Prometheus sees that it does not answer")
        self.monitor.resume()
        wait_until(lambda: self.prometheus.query("up == 1"), 10, "Prometheus sees that it answers")

    def break_kafka(self) -> None:
        with self.kafka.outage():
            self.monitor.wait_until(
                lambda m: m.value("fairness_model_stale", model="triage"), 20, "the silence is seen"
            )
            time.sleep(1.5)  # and scraped

    # --- what is asked afterwards ---
    def over(self, promql: str) -> Answers:
        """A query over the whole life, a look every second."""
        return self.prometheus.query_range(promql, self.born, self.end)

    @cached_property
    def alert_states(self) -> set[tuple[str, str]]:
        return {(labels["alertname"], labels["alertstate"]) for labels, _ in self.over("ALERTS")}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def same_times(shown: Mapping[Any, str], wanted: Mapping[Any, str | None]) -> bool:
    def moment(text: str) -> str:
        return text[:19]

    return {k: moment(v) for k, v in shown.items()} == {k: moment(v) for k, v in wanted.items() if v}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, prometheus_binary: str) -> Iterator[Life]:
    if reason := kafka_missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("life")
    with ExitStack() as stack:
        kafka = stack.enter_context(KafkaServer(folder / "kafka"))
        receiver = stack.enter_context(WebhookReceiver(default=Answer(503)))
        config = {
            **CONFIG,
            "kafka": {"bootstrap_servers": kafka.bootstrap, "group": "life"},
            "sources": [
                {"name": "events", "kafka": {"topics": ["predictions", "outcomes", "dictations"]}},
                {"name": "posted", "http": {}},
            ],
            "server": {"ingest_token": TOKEN},
            "health": {"stale_after": "8s"},
            "alerts": {"webhooks": webhook(receiver)},
            "dead_letter": {"path": "letters.jsonl", "topic": "letters"},
        }
        monitor = MonitorProcess(folder / "monitor", json.dumps(config))
        prometheus = PrometheusServer(
            folder / "prometheus",
            [monitor.address],
            rule_files=[RULES],
            scrape={"job_name": "fairness-monitor"},
        )
        stack.push(lambda *_: prometheus.process and prometheus.stop())
        stack.push(lambda *_: monitor.process and monitor.stop())
        one = Life(folder, kafka, receiver, monitor, prometheus)
        one.live()
        yield one


def moves(answers: Answers) -> bool:
    """Does a query show that something happens?

    It does when one of its series takes two values, or when series come or go among those of the other
    moments: that is how series that are always 1 tell of change. Moments without any answer do not count (all
    series go when a scrape fails), nor do two series with different values.
    """
    if any(len({value for _, value in moments}) > 1 for _, moments in answers):
        return True
    there: dict[float, set[int]] = defaultdict(set)
    for i, (_, moments) in enumerate(answers):
        for at, _ in moments:
            there[at].add(i)
    return len({frozenset(some) for some in there.values()}) > 1


def asks_for_constants(query: str) -> bool:
    named = set(re.findall(r"\bfairness_\w+", query))
    return bool(named) and named <= CONSTANT


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[f"{i} {t}" for i, (t, _) in enumerate(QUERIES)])
def test_queries_of_the_dashboard_show_numbers_that_move(life: Life, title: str, query: str) -> None:
    everything = life.over(query)
    values = [value for _, moments in everything for _, value in moments]
    assert values, "no data"
    assert all(math.isfinite(value) for value in values)
    since = [(labels, [m for m in moments if m[0] > life.flow]) for labels, moments in everything]
    if title in STEADY or asks_for_constants(query):
        assert not moves(since), "it moves: take it out of what stays"
    else:
        assert moves(since)


@pytest.mark.parametrize("panel", list(panels(DASHBOARD)), ids=lambda panel: panel["title"])
def test_lines_of_a_panel_have_names_of_their_own(life: Life, panel: Mapping[str, Any]) -> None:
    if panel["type"] != "timeseries":
        return
    names = [
        re.sub(r"\{\{(\w+)\}\}", lambda m, labels=labels: labels.get(m[1], ""), target["legendFormat"])
        for target in panel["targets"]
        for labels, _ in life.over(substitute(target["expr"], VALUES))
    ]
    assert sorted(names) == sorted(set(names))


def test_numbers_of_groups_are_those_of_replay(life: Life) -> None:
    def joined(group: Mapping[str, str] | None) -> str:
        return ",".join((group or {}).values()) or "everybody"

    shown = {
        (m["model"], m["window"], m["metric"], m["grouping"], m["group"]): value
        for m, value in life.prometheus.query("fairness_group_value")
    }
    expected = {
        (
            row["model"],
            row["window"],
            row["metric"],
            ",".join(row["group"]) or "everybody",
            joined(row["group"]),
        ): row["value"]
        for row in life.document["groups"]
        if row["value"] is not None
    }
    assert len(expected) > 50
    assert shown == expected
    gaps = {
        tuple(m[k] for k in ("model", "window", "metric", "comparison", "kind", "grouping"))
        + ((m["group"],) if m["comparison"] != "between" else ()): value
        for m, value in life.prometheus.query("fairness_gap_value")
    }
    wanted = {
        (
            row["model"],
            row["window"],
            row["metric"],
            row["comparison"],
            row["kind"],
            ",".join(row["attributes"]),
        )
        + ((joined(row["groups"][0]),) if row["comparison"] != "between" else ()): row["value"]
        for row in life.document["gaps"]
        if row["value"] is not None
    }
    assert len(wanted) > 15
    assert gaps == wanted


def test_events_are_counted_as_in_replay(life: Life) -> None:
    """Group numbers rest on everything that was sent: nothing was late that is not late in a replay."""
    samples, events = Samples(life.texts[-1]), life.document["events"]
    empty = 1  # a record without bytes; in a file that is no record
    assert samples.total("fairness_stage_in_total", stage="decode") == events["read"] + empty
    assert samples.total("fairness_join_joined_total") == events["joined"]
    assert samples.total("fairness_join_duplicates_total") == events["duplicates"]
    found = samples.find("fairness_events_rejected_total")
    reasons: dict[str, int] = defaultdict(int)
    for one in found:
        reasons[one.labels["reason"]] += int(one.value)
    assert {reason: n for reason, n in reasons.items() if n} == {**life.document["rejects"], "empty": empty}
    assert reasons.keys() >= bad_events(0).keys() == {*life.document["rejects"], "empty"}
    assert samples.value("fairness_kafka_lost_records_total") == 40


def test_counters_start_at_zero(life: Life) -> None:
    """Else Prometheus does not see the first increase.

    Groups are not known before they are there; the missing topic is an error at once.
    """
    counters = {name for name in exposition.SERIES if name.endswith("_total") and "_group_" not in name}
    counters -= {"fairness_kafka_errors_total"}
    first = {
        (name, *sorted(labels.items())): moments[0][1]
        for name in counters
        for labels, moments in life.over(name)
    }
    assert {series: value for series, value in first.items() if value} == {}


def test_rules_are_evaluated_without_errors(life: Life) -> None:
    rules = life.prometheus.rules()
    assert len(rules) == len(load_rules())
    assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules} == {
        (rule["name"], "ok", "") for rule in rules
    }


@pytest.mark.parametrize("name", [rule["record"] for rule in load_rules() if "record" in rule])
def test_recording_rules_give_numbers(life: Life, name: str) -> None:
    values = [value for _, moments in life.over(name) for _, value in moments]
    assert values
    assert all(math.isfinite(value) for value in values)


@pytest.mark.parametrize(
    "name",
    [
        "FairnessWatchdog",
        "FairnessRecordsLost",
        "FairnessDeadLettersFailing",
        "FairnessNotificationsFailing",
        "FairnessGapBreached",
    ],
)
def test_alerts_that_do_not_wait_fire(life: Life, name: str) -> None:
    assert (name, "firing") in life.alert_states


@pytest.mark.parametrize(
    "name",
    [
        "FairnessMonitorDown",
        "FairnessModelSilent",
        "FairnessTopicMissing",
        "FairnessKafkaDisconnected",
        "FairnessRejectsHigh",
        "FairnessCellsNearLimit",
        "FairnessRuleWithoutValue",
    ],
)
def test_alerts_that_wait_are_pending(life: Life, name: str) -> None:
    assert (name, "pending") in life.alert_states


def test_promtool_has_no_complaint_about_the_metrics(life: Life) -> None:
    promtool = shutil.which("promtool") or pytest.skip("promtool is missing: run tests/integration/install")
    for text in life.texts[:: max(1, len(life.texts) // 4)]:
        done = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_series_of_the_table_is_shown_and_no_other(life: Life) -> None:
    looks = [Samples(text) for text in life.texts]
    shown = {one.name for look in looks for one in look.all if not one.name.startswith("process_")}
    assert shown == set(exposition.SERIES)
    for look in looks:
        for one in look.all:
            if one.name in exposition.SERIES:
                assert set(one.labels) == set(exposition.SERIES[one.name]), one.name


def test_a_small_group_shows_nothing_but_its_status(life: Life) -> None:
    told = re.compile(rf"(.*,)?{SMALL}(,.*)?")
    statuses = {"fairness_group_status", "fairness_gap_status"}
    for text in life.texts:
        for one in Samples(text).all:
            if any(told.fullmatch(value) for value in one.labels.values()):
                assert one.name in statuses, one
    found = [
        labels
        for label in ("group", "comparator")
        for labels, _ in life.over(f'{{__name__=~"fairness_.+",{label}=~"{told.pattern}"}}')
    ]
    assert {labels["__name__"] for labels in found} == statuses
    assert {labels["status"] for labels in found} <= {"suppressed", "stale"}
