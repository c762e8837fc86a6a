"""What Prometheus scrapes: names, labels, values, and what is left out."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from monitor.alerts import AlertState
from monitor.exposition import (
    GROUP_SERIES,
    HEALTH_SERIES,
    SERIES,
    Samples,
    group_samples,
    label,
    label_group,
    text,
)
from monitor.wiring import build_decoders, build_engine
from tests.engine_helpers import START, Run, config_of

Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(run: Run, *, stale: bool = False, counts: Counter[Any] | None = None) -> Found:
    samples = group_samples(run.engine, {"m": stale}, counts or Counter(), 7.0)
    found: Found = {}
    for family in text_string_to_metric_families(text(samples).decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, "no series comes twice"
            assert set(sample.labels) == set(SERIES[sample.name])
            found[key] = sample.value
    return found


def of(found: Found, name: str, **labels: str) -> float | None:
    """The value of the one series with these labels, or None."""
    hits = [v for (n, own), v in found.items() if n == name and labels.items() <= dict(own).items()]
    assert len(hits) <= 1, hits
    return hits[0] if hits else None


def events(group: str, n: int, positives: int, start: int = START) -> list[dict[str, Any]]:
    """Joined events of negatives, of which some were decided positive."""
    return [
        {
            "id": f"{group}-{start}-{i}",
            "time": start + i,
            "attributes": {"sex": group},
            "decision": i < positives,
            "outcome": False,
        }
        for i in range(n)
    ]


MODEL: dict[str, Any] = {
    "task": "binary",
    "groups": ["sex"],
    "metrics": ["false_positive_rate", "outcome_delay_seconds"],
    "windows": ["all"],
    "gaps": [
        {"metric": "false_positive_rate"},
        {"metric": "false_positive_rate", "kind": "ratio"},
        {"metric": "false_positive_rate", "comparison": "reference", "reference": {"sex": "m"}},
    ],
    "rules": [
        {"name": "r", "metric": "false_positive_rate", "groups": "sex", "tolerance": 0.1, "window": "1h"}
    ],
}


def run_with(*parts: list[dict[str, Any]], least: int = 1, **model: Any) -> Run:
    run = Run(config_of({**MODEL, **model}, privacy={"min_group_size": least}))
    assert run.model.counters is None, "replay needs no counters"
    run.engine = build_engine(run.config, counters=True)
    run._decoder = build_decoders(run.config, run.engine)["events"]
    run.engine.add_partition("p")
    for part in parts:
        run.feed(part)
    return run.finish()


def test_values_gaps_and_counters_are_exact() -> None:
    found = scraped(run_with(events("f", 40, 10), events("m", 80, 40)))
    fpr = {"metric": "false_positive_rate", "window": "all"}
    assert of(found, "fairness_group_value", **fpr, group="f") == 0.25
    assert of(found, "fairness_group_support", **fpr, group="m") == 80
    assert of(found, "fairness_group_value", **fpr, grouping="everybody", group="everybody") == 50 / 120
    assert of(found, "fairness_gap_value", window="all", kind="difference", comparison="between") == 0.25
    assert (
        of(found, "fairness_gap_value", window="all", kind="ratio", group="smallest", comparator="largest")
        == 0.5
    )
    assert (
        of(found, "fairness_gap_value", window="all", comparison="reference", group="f", comparator="m")
        == -0.25
    )
    assert (
        of(found, "fairness_gap_extremes_info", window="all", kind="difference", group="m", comparator="f")
        == 1
    )
    counter = {"metric": "false_positive_rate", "grouping": "sex"}
    assert of(found, "fairness_group_numerator_total", **counter, group="f") == 10
    assert of(found, "fairness_group_denominator_total", **counter, group="f") == 40
    assert of(found, "fairness_group_predictions_total", grouping="everybody", group="everybody") == 120
    assert of(found, "fairness_window_end_timestamp_seconds", window="all") == START / 1000 + 60


def test_what_is_no_ratio_of_counts_has_no_counter() -> None:
    found = scraped(run_with(events("f", 40, 10)))
    assert of(found, "fairness_group_status", window="all", metric="outcome_delay_seconds", group="f") == 1
    assert {dict(own)["metric"] for (n, own) in found if n == "fairness_group_numerator_total"} == {
        "false_positive_rate"
    }


def test_groups_that_are_too_small_have_a_status_only() -> None:
    found = scraped(run_with(events("f", 40, 10), events("m", 3, 1), events("n", 50, 1), least=10))
    for small in ("m", "f"):
        labels = {"metric": "false_positive_rate", "window": "all", "group": small}
        assert of(found, "fairness_group_value", **labels) is None
        assert of(found, "fairness_group_support", **labels) is None
        assert of(found, "fairness_group_status", **labels, status="suppressed") == 1
    assert of(found, "fairness_group_value", metric="false_positive_rate", window="all", group="n") == 0.02


def test_stale_models_say_so_in_every_status() -> None:
    found = scraped(run_with(events("f", 40, 10), events("m", 80, 40)), stale=True)
    statuses = {dict(own)["status"] for (n, own) in found if n.endswith("_status")}
    assert statuses == {"stale"}
    assert of(found, "fairness_group_value", metric="false_positive_rate", window="all", group="f") == 0.25


def test_rules_start_at_zero_and_alerts_are_counted() -> None:
    quiet = scraped(run_with(events("f", 40, 10), events("m", 80, 20)))
    assert of(quiet, "fairness_rule_tolerance", rule="r") == 0.1
    assert of(quiet, "fairness_rule_alerts", rule="r", state="firing") == 0
    assert of(quiet, "fairness_rule_transitions_total", rule="r", state="resolved") == 0
    assert of(quiet, "fairness_alert_firing") is None
    counts = Counter({("m", "r", AlertState.FIRING): 3})
    loud = scraped(run_with(events("f", 40, 10), events("m", 80, 40)), counts=counts)
    assert of(loud, "fairness_alert_firing", rule="r", group="m", comparator="f", severity="warning") == 1
    assert of(loud, "fairness_rule_alerts", rule="r", state="firing") == 1
    assert of(loud, "fairness_rule_transitions_total", rule="r", state="firing") == 3


def test_strange_values_are_labels_that_can_be_told_apart() -> None:
    values = ["a,b", "a\nb", "a\\nb", 'q"q', "é", "a\x00", "largest"]
    parts = [events(v, 40, 10 + i, START + i * 1000) for i, v in enumerate(values)]
    found = scraped(run_with(*parts))
    labels = {dict(own)["group"] for (n, own) in found if n == "fairness_group_value"}
    assert len(labels - {"everybody"}) == len(values)


@given(st.lists(st.lists(st.text(max_size=6), min_size=2, max_size=2), min_size=2, max_size=2))
def test_labels_of_two_groups_differ(pair: list[list[str]]) -> None:
    one, other = pair
    assert (label_group(one) == label_group(other)) == (one == other)
    assert (label(one[0]) == label(other[0])) == (one[0] == other[0])
    label_group(one).encode()


def test_the_table_of_series_is_consistent() -> None:
    series = [*GROUP_SERIES, *HEALTH_SERIES]
    assert len({s.name for s in series}) == len(series)
    assert all(s.name.startswith("fairness_") for s in series)
    assert all((s.kind == "counter") == s.name.endswith("_total") for s in series)
    assert all(s.meaning.endswith(".") for s in series)
    assert all(len(set(s.labels)) == len(s.labels) for s in series)


def test_the_text_is_golden() -> None:
    samples = Samples(HEALTH_SERIES)
    samples.set("cells", 3, "triage")
    samples.set("ingest_requests_total", 2, "200")
    assert text(samples) == (
        b"# HELP fairness_cells Combinations of attribute values told apart.\n"
        b"# TYPE fairness_cells gauge\n"
        b'fairness_cells{model="triage"} 3.0\n'
        b"# HELP fairness_ingest_requests_total Requests to /v1/events by status code.\n"
        b"# TYPE fairness_ingest_requests_total counter\n"
        b'fairness_ingest_requests_total{code="200"} 2.0\n'
    )
