"""What Prometheus scrapes: every series with its labels, and the text of them.

The table below is the one place that names series and labels. The text is made once per evaluation
(group numbers) and once per half a second at most (health) and kept as bytes: a scrape costs nothing.

A value that is not there is left out, and its status series says why; zero and NaN never stand in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from monitor.alerts import Alert, AlertState, Rule
from monitor.counters import ReleasedCounters
from monitor.engine import Engine, ModelEngine, WindowReport
from monitor.gaps import Gap
from monitor.groups import combine
from monitor.names import EVERYBODY, Status, clean
from monitor.tasks.base import EXPIRED, OUTCOMES, PREDICTIONS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_GROUP = ("model", "window", "metric", "grouping", "group")
_GAP = ("model", "window", "metric", "comparison", "kind", "strata", "grouping", "group", "comparator")
_RULE = ("model", "rule", "severity")
_COUNTER = ("model", "metric", "grouping", "group")
_PEOPLE = ("model", "grouping", "group")
_KAFKA = ("source", "topic", "partition")


@dataclass(frozen=True, slots=True)
class Series:
    """One name with its labels; counters end in ``_total``."""

    name: str
    kind: Literal["gauge", "counter"]
    meaning: str
    labels: tuple[str, ...] = ()


def _gauge(name: str, meaning: str, labels: tuple[str, ...] = ()) -> Series:
    return Series(f"fairness_{name}", "gauge", meaning, labels)


def _counter(name: str, meaning: str, labels: tuple[str, ...] = ()) -> Series:
    return Series(f"fairness_{name}_total", "counter", meaning, labels)


GROUP_SERIES = (
    _gauge("group_value", "A metric of a group over a window.", _GROUP),
    _gauge("group_support", "Events that the value rests on.", _GROUP),
    _gauge("group_status", "1 for the status that the value has now.", (*_GROUP, "status")),
    _gauge("gap_value", "Difference (group - comparator) or ratio (group / comparator) of a metric.", _GAP),
    _gauge("gap_status", "1 for the status that the gap has now.", (*_GAP, "status")),
    _gauge(
        "gap_extremes_info",
        "1: a between gap lies between these groups now, the one with the larger value first.",
        ("model", "window", "metric", "kind", "grouping", "group", "comparator"),
    ),
    _gauge(
        "rule_tolerance",
        "Size of the gap beyond which the rule is breached.",
        (*_RULE, "metric", "comparison", "kind", "strata", "grouping", "window"),
    ),
    _gauge("rule_alerts", "Alerts of the rule by state.", (*_RULE, "state")),
    _counter(
        "rule_transitions", "Alerts of the rule that began to fire or were resolved.", (*_RULE, "state")
    ),
    _gauge(
        "alert_firing",
        "1: this alert is firing.",
        (*_RULE, "metric", "window", "grouping", "group", "comparator"),
    ),
    _counter("group_numerator", "Numerator of a ratio of counts, released in blocks.", _COUNTER),
    _counter("group_denominator", "Denominator of a ratio of counts, released in blocks.", _COUNTER),
    _counter("group_predictions", "Predictions of a group, released in blocks.", _PEOPLE),
    _counter("group_outcomes", "Predictions of a group whose outcome arrived, released in blocks.", _PEOPLE),
    _counter("group_expired", "Predictions of a group that waited in vain, released in blocks.", _PEOPLE),
    _counter(
        "group_withheld_events",
        "Predictions and outcomes that entered no counter of this grouping: too few in their block.",
        ("model", "grouping"),
    ),
    _gauge("window_end_timestamp_seconds", "Event time at which the window ends.", ("model", "window")),
    _gauge("evaluation_timestamp_seconds", "When group numbers were last taken."),
)
"""What is known of groups, taken when time buckets close."""

HEALTH_SERIES = (
    _gauge("build_info", "1, with the version.", ("version", "python")),
    _gauge("heartbeat_timestamp_seconds", "When the loop last turned."),
    _gauge("closed_until_timestamp_seconds", "Event time up to which time buckets are closed."),
    _gauge(
        "partition_watermark_timestamp_seconds",
        "Latest event time of the partition minus time.grace.",
        ("source", "partition"),
    ),
    _gauge("partition_idle", "1: closing does not wait for the partition.", ("source", "partition")),
    _gauge("kafka_connected", "1: the brokers answer."),
    _counter("kafka_errors", "Failed attempts to talk to the brokers."),
    _counter("kafka_lost_records", "Records that were gone before they were read."),
    _gauge("kafka_missing_topics", "Topics that do not exist (yet)."),
    _gauge("kafka_position_offset", "Offset of the next record to read.", _KAFKA),
    _gauge("kafka_end_offset", "Offset behind the last record that can be read.", _KAFKA),
    _gauge("kafka_lag_records", "Records between the position and the end.", _KAFKA),
    _gauge("kafka_paused", "1: too far ahead of the others in event time, waits.", _KAFKA),
    _counter("stage_in", "Items that went into a stage.", ("stage",)),
    _counter("stage_out", "Items that came out of a stage.", ("stage",)),
    _gauge("stage_in_progress", "Items inside a stage.", ("stage",)),
    _gauge("stage_last_processed_timestamp_seconds", "When a stage last had work.", ("stage",)),
    _counter("predictions", "Decoded events with a prediction, late ones included.", ("model",)),
    _counter("outcomes", "Decoded events with an outcome, late ones included.", ("model",)),
    _gauge("last_prediction_timestamp_seconds", "When a prediction last came in.", ("model",)),
    _gauge("last_outcome_timestamp_seconds", "When an outcome last came in.", ("model",)),
    _gauge("model_stale", "1: no event for health.stale_after.", ("model",)),
    _counter("events_rejected", "Events that were not accepted, late ones included.", ("source", "reason")),
    _counter("dead_letters", "Rejected events by where they went.", ("sink", "result")),
    _counter("join_joined", "Pairs of prediction and outcome.", ("model",)),
    _counter("join_duplicates", "Events that repeated an id.", ("model",)),
    _counter("join_expired", "Events that waited in vain for their other half.", ("model", "kind")),
    _gauge("join_pending", "Events that wait for their other half.", ("model",)),
    _gauge("cells", "Combinations of attribute values told apart.", ("model",)),
    _gauge("cells_limit", "Most combinations told apart: max_cells.", ("model",)),
    _counter("notifications", "Messages that left the queue.", ("channel", "result")),
    _counter("notification_attempts", "Attempts to deliver a message.", ("channel",)),
    _gauge("notifications_queued", "Messages that wait for delivery.", ("channel",)),
    _gauge("notification_last_success_timestamp_seconds", "When a message was last delivered.", ("channel",)),
    _gauge(
        "notifications_held", "Firing alerts that were not sent: they lie further back than alerts.max_age."
    ),
    _counter("ingest_requests", "Requests to /v1/events by status code.", ("code",)),
)
"""How the monitor itself does."""

SERIES: Mapping[str, tuple[str, ...]] = {s.name: s.labels for s in (*GROUP_SERIES, *HEALTH_SERIES)}
"""Labels of every series, by name."""

Labels = tuple[str, ...]


class Samples:
    """Values of some series, by name and labels; a value given twice counts once."""

    def __init__(self, series: Iterable[Series]) -> None:
        self._values: dict[Series, dict[Labels, float]] = {s: {} for s in series}
        self._named = {s.name.removeprefix("fairness_"): s for s in self._values}

    def set(self, name: str, value: float, *labels: str) -> None:
        """Give a series (named without ``fairness_``) a value; labels in the order of the table."""
        series = self._named[name]
        if len(labels) != len(series.labels):
            raise ValueError(f"{name} has labels {series.labels}, not {labels}")
        self._values[series][labels] = value

    def families(self) -> Iterator[Metric]:
        """Families of prometheus_client; series without a value are left out."""
        for series, values in self._values.items():
            if values:
                new = GaugeMetricFamily if series.kind == "gauge" else CounterMetricFamily
                family = new(series.name, series.meaning, labels=series.labels)
                for labels, value in values.items():
                    family.add_metric(labels, value)
                yield family


class _Once(Collector):
    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        return self._samples.families()


def text(samples: Samples, *others: Collector) -> bytes:
    """Samples (and what other collectors have) in the text format of Prometheus, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(samples))
    for other in others:
        registry.register(other)
    return generate_latest(registry)


def label(value: str) -> str:
    r"""An attribute's value as a label: control characters as ``\x1b``, backslashes doubled.

    Two different values never become one label.

    >>> label("a\nb"), label("ward 7")
    ('a\\nb', 'ward 7')
    """
    return clean(value.replace("\\", "\\\\"))


def label_grouping(attributes: Sequence[str]) -> str:
    """The attributes of a grouping as a label: ``race``, ``race,sex``, or ``everybody``."""
    return _joined(attributes) or EVERYBODY


def label_group(values: Sequence[str]) -> str:
    r"""The values of a group as a label; commas inside the values of an intersection as ``\,``.

    >>> label_group(["African-American", "Male"]), label_group([])
    ('African-American,Male', 'everybody')
    """
    return _joined(values) or EVERYBODY


def _joined(parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return label(parts[0])
    return ",".join(label(p).replace(",", "\\,") for p in parts)


def group_samples(
    engine: Engine, stale: Mapping[str, bool], counts: Mapping[tuple[str, str, AlertState], int], now: float
) -> Samples:
    """Everything known of groups, as of the last closed time bucket.

    Parameters
    ----------
    stale
        Whether a model had no event for long, by name: then the status of its values is ``stale``.
    counts
        How often an alert of a rule began to fire or was resolved, by model, rule and state.
    now
        Seconds since 1970.
    """
    samples = Samples(GROUP_SERIES)
    for name, model in engine.models.items():
        override = str(Status.STALE) if stale.get(name) else None
        for report in model.report():
            _report(samples, report, override)
        _rules(samples, name, model, counts)
        if model.counters is not None:
            _counters(samples, name, model, model.counters)
    samples.set("evaluation_timestamp_seconds", now)
    return samples


def _report(samples: Samples, report: WindowReport, override: str | None) -> None:
    if report.end is not None:
        samples.set("window_end_timestamp_seconds", report.end / 1000, report.model, report.window)
    for row in report.groups:
        group = row["group"]
        names = label_grouping(list(group)), label_group(list(group.values()))
        labels = (report.model, report.window, row["metric"], *names)
        if row["value"] is not None:
            samples.set("group_value", row["value"], *labels)
        if row["support"] is not None:
            samples.set("group_support", row["support"], *labels)
        samples.set("group_status", 1, *labels, override or row["status"])
    for gap in report.gaps:
        _gap(samples, report, gap, override)


def _gap(samples: Samples, report: WindowReport, gap: Gap, override: str | None) -> None:
    spec = gap.spec
    labels = (
        report.model,
        report.window,
        spec.name,
        spec.comparison,
        spec.kind,
        ",".join(spec.strata),
        label_grouping(spec.groups),
        *_sides(gap),
    )
    if gap.value is not None:
        samples.set("gap_value", gap.value, *labels)
        if spec.comparison == "between":
            larger, smaller = (label_group(list((g or {}).values())) for g in gap.groups)
            info = (report.model, report.window, spec.name, spec.kind, label_grouping(spec.groups))
            samples.set("gap_extremes_info", 1, *info, larger, smaller)
    samples.set("gap_status", 1, *labels, override or str(gap.status))


def _sides(gap: Gap) -> tuple[str, str]:
    """The two sides of a gap as labels that stay the same while it moves."""
    if gap.spec.comparison == "between":
        sides = ("largest", "smallest")
        return sides if gap.spec.kind == "difference" else (sides[1], sides[0])
    group, comparator = gap.groups
    other = {"overall": EVERYBODY, "rest": "rest"}.get(gap.spec.comparison)
    return label_group(list((group or {}).values())), other or label_group(list((comparator or {}).values()))


def _rules(
    samples: Samples, name: str, model: ModelEngine, counts: Mapping[tuple[str, str, AlertState], int]
) -> None:
    for rule in model.spec.rules:
        own = (name, rule.name, rule.severity)
        gap = rule.gap
        grouping = label_grouping(gap.groups)
        samples.set(
            "rule_tolerance",
            rule.tolerance,
            *own,
            gap.name,
            gap.comparison,
            gap.kind,
            ",".join(gap.strata),
            grouping,
            rule.window,
        )
        alerts = [a for a in model.alerts if a.rule is rule]
        for state in (AlertState.PENDING, AlertState.FIRING):
            samples.set("rule_alerts", sum(a.state is state for a in alerts), *own, str(state))
        for alert in alerts:
            if alert.state is AlertState.FIRING:
                labels = (gap.name, rule.window, grouping, *alert_sides(rule, alert))
                samples.set("alert_firing", 1, *own, *labels)
        for state in (AlertState.FIRING, AlertState.RESOLVED):
            samples.set("rule_transitions_total", counts.get((name, rule.name, state), 0), *own, str(state))


def alert_sides(rule: Rule, alert: Alert) -> tuple[str, str]:
    """The groups of an alert as labels, the one with the larger value first for ``between``."""
    group, comparator = alert.groups
    other = {"overall": EVERYBODY, "rest": "rest"}.get(rule.gap.comparison)
    return label_group(list((group or {}).values())), other or label_group(list((comparator or {}).values()))


def _counters(samples: Samples, name: str, model: ModelEngine, released: ReleasedCounters) -> None:
    statistics = model.spec.task.statistics
    index = {s.name: i for i, s in enumerate(statistics)}
    metrics = model.spec.task.metrics
    ratios = [metrics[name] for name in model.spec.task.count_ratios if name in model.spec.metrics]
    for grouping, counters in released.groupings.items():
        label_of = label_grouping(grouping)
        samples.set("group_withheld_events_total", counters.withheld, name, label_of)
        table = counters.table(len(statistics))
        groups = [label_group(g) for g in table.groups]
        for row, group in zip(table.sums, groups, strict=True):
            samples.set("group_predictions_total", int(row[PREDICTIONS]), name, label_of, group)
            samples.set("group_outcomes_total", int(row[OUTCOMES]), name, label_of, group)
            samples.set("group_expired_total", int(row[EXPIRED]), name, label_of, group)
        for metric in ratios:
            for side, form in (("numerator", metric.numerator), ("denominator", metric.denominator)):
                scale = statistics[index[next(iter(form or {}))]].scale
                for value, group in zip(combine(table.sums, form or {}, index), groups, strict=True):
                    exact = int(value) if scale == 1 else int(value) * scale
                    samples.set(f"group_{side}_total", exact, name, metric.name, label_of, group)
