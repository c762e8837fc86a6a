"""The service as its users run it: a real broker, a real Prometheus, a receiver of webhooks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from standardwebhooks.webhooks import Webhook as Verifier

from tests.integration.broker import KafkaServer
from tests.integration.receiver import WebhookReceiver
from tests.integration.servers import PrometheusServer, wait_until
from tests.integration.service_helpers import SECRET, RunMonitor, kafka_config, produce, replayed
from tests.integration.test_published import COMPAS, NOW, predictions_and_outcomes

COMPAS_CONFIG: dict[str, Any] = {
    "models": {
        "compas": {
            "task": "binary",
            "groups": ["race", "sex", "age_cat", ["race", "sex"]],
            "windows": ["all"],
            "min_support": 1,
            "join": {"outcome_ttl": "1200d", "dedupe_window": "1d"},
            "rules": [
                {
                    "name": "fpr",
                    "metric": "false_positive_rate",
                    "groups": "race",
                    "comparison": "reference",
                    "reference": {"race": "Caucasian"},
                    "tolerance": 0.3,
                    "window": "30d",
                    "min_support": 30,
                }
            ],
        }
    },
    "sources": [
        {
            "fields": {
                "time": "compas_screening_date",
                "outcome_time": "outcome_date",
                "decision": {"path": "decile_score", "at_least": 5},
                "outcome": "two_year_recid",
                "attributes": {"race": "race", "sex": "sex", "age_cat": "age_cat"},
            }
        }
    ],
    "time": {"bucket": "1d", "grace": "7d", "idle_after": "2s"},
    "privacy": {"min_group_size": 1},
}


def compas_events() -> tuple[list[bytes], list[bytes]]:
    """Predictions and outcomes as JSON, each in order of time."""
    predictions, outcomes = predictions_and_outcomes()
    numbers = {"decile_score", "two_year_recid"}

    def lines(rows: Iterable[Any]) -> list[bytes]:
        ordered = sorted(rows, key=lambda row: row[0])
        return [
            json.dumps({k: int(v) if k in numbers else v for k, v in content.items()}).encode()
            for _, content in ordered
        ]

    return lines(predictions), lines(outcomes)


def test_compas_from_topics_to_prometheus_and_a_webhook(
    kafka: KafkaServer,
    prometheus_binary: str,
    receiver: WebhookReceiver,
    run_monitor: RunMonitor,
    tmp_path: Path,
) -> None:
    predictions, outcomes = compas_events()
    first, second = kafka.new_topic(3), kafka.new_topic(3)
    produce(kafka, first, predictions, **{"compression.type": "lz4"})
    produce(kafka, second, outcomes)
    webhook = {"url": receiver.url, "secrets": [SECRET], "allow_private": True}
    config = kafka_config(
        COMPAS_CONFIG,
        kafka,
        first,
        second,
        alerts={"max_age": "36500d", "webhooks": {"on-call": webhook}},
    )
    monitor = run_monitor(config)
    monitor.wait_until(
        lambda m: (
            m.value("fairness_group_predictions_total", grouping="everybody") == 7214
            and m.total("fairness_join_joined_total") == 7214
            and m.value("fairness_group_outcomes_total", grouping="everybody") == 7214
        ),
        60,
        "everybody is counted",
    )
    expected = replayed(COMPAS_CONFIG, tmp_path, NOW, predictions=predictions, outcomes=outcomes)
    with PrometheusServer(tmp_path / "prometheus", [monitor.address]) as prometheus:
        query = 'fairness_group_value{metric="false_positive_rate",grouping="race"}'
        wait_until(lambda: prometheus.query(query), 20, "Prometheus has scraped the monitor")
        for race, (tp, fp, tn, fn, *_) in COMPAS.items():
            group = f'{{metric="false_positive_rate",grouping="race",group="{race}"}}'
            ((_, value),) = prometheus.query(f'fairness_group_value{group[:-1]},window="all"}}')
            assert value == fp / (fp + tn)
            assert prometheus.query(f"fairness_group_numerator_total{group}")[0][1] == fp
            assert prometheus.query(f"fairness_group_denominator_total{group}")[0][1] == fp + tn
            group = group.replace("false_positive", "true_positive")
            assert prometheus.query(f"fairness_group_numerator_total{group}")[0][1] == tp
            assert prometheus.query(f"fairness_group_denominator_total{group}")[0][1] == tp + fn
        found = {
            (m["metric"], m["grouping"], m["group"]): value
            for m, value in prometheus.query('fairness_group_value{window="all"}')
        }
        wanted = {
            (
                r["metric"],
                ",".join(r["group"]) or "everybody",
                ",".join(r["group"].values()) or "everybody",
            ): r["value"]
            for r in expected["groups"]
            if r["value"] is not None and r["window"] == "all"
        }
        assert found == wanted
        gaps = prometheus.query('fairness_gap_value{window="all"}')
        assert len(gaps) == sum(g["value"] is not None and g["window"] == "all" for g in expected["gaps"])
        assert prometheus.targets_health() == {monitor.address: ("up", "")}
    alerts = [a for a in expected["alerts"] if a["resolved_at"]]
    assert len(alerts) >= 1
    wait_until(lambda: len(receiver.requests) >= 2 * len(alerts) or None, 20, "all messages have come")
    messages = [Verifier(SECRET).verify(r.body, r.headers) for r in receiver.requests]
    episodes: dict[str, list[Any]] = {}
    for message in messages:
        episodes.setdefault(message["data"]["key"], []).append(message)
    assert [[m["type"] for m in e] for e in episodes.values()] == [
        ["fairness.alert.firing", "fairness.alert.resolved"]
    ] * len(alerts)
    sent = [(e[0]["data"]["firing_since"], e[1]["data"]["resolved_at"]) for e in episodes.values()]
    assert sent == [(a["firing_since"], a["resolved_at"]) for a in alerts]
    ids = [r.headers["webhook-id"] for r in receiver.requests]
    assert len(set(ids)) == len(ids), "each message has an id of its own"
    assert monitor.terminate() == 0
    assert not [line for line in monitor.logs() if line["level"] in ("ERROR", "CRITICAL")]
