"""What a configuration will do and take, before it does: the answer of ``check-config``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import prod
from textwrap import fill

from monitor.clock import format_duration, format_window, slide_step
from monitor.config import AttributeConfig, Config, ModelConfig, RuleConfig, TimeConfig
from monitor.gap_names import GapSpec
from monitor.times import format_time

BYTES_PER_SUM = 8
"""Sums and cell numbers are 64-bit integers."""
SERIES_PER_VALUE = 3
"""A value of a metric is exported with its support and its status."""
SERIES_PER_GROUP = 3
"""Of a group, predictions, outcomes and those that waited in vain are counted."""
SERIES_PER_RULE = 5
"""A rule is exported with its tolerance, two counts of alerts and two of transitions."""

ASSUMPTIONS = (
    "Every cell that fits is counted as used in every time bucket and window; real traffic fills fewer.",
    "Values beyond an attribute's cap are one more value (other), absent ones another (unknown).",
    "Time buckets stay open for time.grace, and one partition may be ahead of another by time.max_future.",
    "A window keeps its running sums and the closed steps inside it; windows that slide by the time bucket "
    "share their steps.",
    "Predictions that wait for their outcome, remembered ids and candidates beyond max_cells come on top.",
    "Series: per group, metric and window three (value, support, status); per group three counters, and two "
    "for each metric that is a ratio of counts; per gap, pair of groups and window two (value, status), "
    "between groups three; per rule five, and one per pair of groups. The monitor's own health comes on top.",
)
"""What the figures rest on."""


@dataclass(frozen=True, slots=True)
class AttributePlan:
    """One attribute of the cells; ``values`` counts its bins or capped values, other and unknown included."""

    name: str
    values: int
    source: str


@dataclass(frozen=True, slots=True)
class GroupingPlan:
    """One grouping and the most groups it can have."""

    attributes: tuple[str, ...]
    groups: int


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What one model takes. ``cells_bound`` says what limits ``cells``; memory is in bytes."""

    name: str
    task: str
    attributes: tuple[AttributePlan, ...]
    groupings: tuple[GroupingPlan, ...]
    metrics: tuple[str, ...]
    windows: tuple[str, ...]
    gaps: int
    rules: tuple[str, ...]
    statistics: int
    cells: int
    cells_bound: str
    open_buckets: int
    closed_steps: int
    memory_bytes: int
    series: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the whole configuration takes; ``service`` says in words what ``run`` would connect to."""

    models: tuple[ModelPlan, ...]
    service: tuple[tuple[str, str], ...]
    time_bucket: str
    memory_bytes: int
    series: int
    assumptions: tuple[str, ...] = ASSUMPTIONS


def describe(config: Config) -> Plan:
    """Plan of a configuration: what is measured, and upper estimates of memory and series.

    The estimates are upper bounds under :data:`ASSUMPTIONS`.
    """
    models = tuple(_describe_model(name, model, config.time) for name, model in config.models.items())
    return Plan(
        models,
        tuple(_service_rows(config)),
        format_duration(config.time.bucket),
        sum(m.memory_bytes for m in models),
        sum(m.series for m in models),
    )


def _service_rows(config: Config) -> list[tuple[str, str]]:
    rows = []
    for source in config.sources:
        if source.kafka is not None and config.kafka is not None:
            start = source.kafka.start
            begin = format_time(start) if isinstance(start, int) else start
            where = f"{', '.join(config.kafka.bootstrap_servers)} ({config.kafka.security.protocol})"
            rows.append(
                ("source", f"{source.name}: topics {', '.join(source.kafka.topics)} of {where}, from {begin}")
            )
        if source.http is not None:
            rows.append(("source", f"{source.name}: events posted to /v1/events?source={source.name}"))
    if not rows:
        return [("source", "none: only replay has anything to read; give a source kafka: or http:")]
    if config.kafka is not None:
        group = config.kafka.group
        rows.append(("positions", f"committed as group {group}" if group else "not committed: group is null"))
    rows.append(("listens at", config.server.listen))
    rows += [("webhook", name) for name in config.alerts.webhooks] or [
        ("webhook", "none: alerts show in /metrics and the log only")
    ]
    letters = [f"file {config.dead_letter.path}"] if config.dead_letter.path else []
    letters += [f"topic {config.dead_letter.topic}"] if config.dead_letter.topic else []
    rows.append(
        ("rejects", " and ".join(letters) or "only counted: set dead_letter.path or dead_letter.topic")
    )
    return rows


def _describe_model(name: str, model: ModelConfig, time: TimeConfig) -> ModelPlan:
    attributes = tuple(_describe_attribute(a, model.attribute(a)) for a in model.attribute_names)
    values = {a.name: a.values for a in attributes}
    product = prod(values.values())
    cells = min(product, model.max_cells)
    groupings = tuple(GroupingPlan(g, min(prod(values[a] for a in g), cells)) for g in model.groupings)
    statistics = len(model.build_task().statistics)
    open_buckets = -(-(time.grace + time.max_future) // time.bucket) + 1
    closed_steps = _closed_steps(model, time.bucket)
    row = statistics * BYTES_PER_SUM
    tables = open_buckets + len(model.all_windows)
    return ModelPlan(
        name=name,
        task=model.task.type,
        attributes=attributes,
        groupings=groupings,
        metrics=model.metric_names,
        windows=tuple(format_window(w) for w in model.all_windows),
        gaps=len(model.gaps),
        rules=tuple(f"{rule.name}: {rule_sentence(rule, time.bucket)}" for rule in model.rules),
        statistics=statistics,
        cells=cells,
        cells_bound="max_cells" if product > model.max_cells else "the product of attribute values",
        open_buckets=open_buckets,
        closed_steps=closed_steps,
        memory_bytes=cells * (tables * row + closed_steps * (row + BYTES_PER_SUM)),
        series=_series(model, groupings),
    )


def _describe_attribute(name: str, attribute: AttributeConfig) -> AttributePlan:
    if attribute.bins is not None:
        edges = ", ".join(f"{edge:g}" for edge in attribute.bins)
        bins = len(attribute.bins) + 1
        return AttributePlan(name, bins + 1, f"{bins} bins with edges {edges}, and unknown")
    return AttributePlan(
        name, attribute.max_values + 2, f"at most {attribute.max_values} values, other and unknown"
    )


def _closed_steps(model: ModelConfig, bucket: timedelta) -> int:
    """Count the closed steps that windows hold at the same time, with the one that each is filling."""
    shared, own = 0, 0
    for window in model.all_windows:
        if isinstance(window, str):
            continue
        step = slide_step(window, bucket)
        if step == bucket:
            shared = max(shared, window // step)
        else:
            own += window // step + 1
    return shared + own


def _series(model: ModelConfig, groupings: Sequence[GroupingPlan]) -> int:
    groups = {g.attributes: g.groups for g in groupings}
    everybody = 1
    windows, shown = len(model.all_windows), len(model.metric_names)
    counters = SERIES_PER_GROUP + 2 * len(
        set(model.build_task().count_ratios).intersection(model.metric_names)
    )
    values = (sum(groups.values()) + everybody) * (counters + shown * windows * SERIES_PER_VALUE)
    withheld = len(groups) + everybody
    gaps = sum(
        _pairs(gap.spec, groups[gap.groups]) * (3 if gap.comparison == "between" else 2) for gap in model.gaps
    )
    rules = sum(_pairs(rule.spec, groups[rule.groups]) + SERIES_PER_RULE for rule in model.rules)
    return values + withheld + gaps * windows + rules + windows


def _pairs(spec: GapSpec, groups: int) -> int:
    return 1 if spec.comparison == "between" else groups


def rule_sentence(rule: RuleConfig, bucket: timedelta) -> str:
    """Say what a rule watches, in a sentence without a full stop."""
    groups = " and ".join(rule.groups)
    against = {
        "between": f"between groups of {groups}",
        "overall": f"of a group of {groups} to everybody",
        "rest": f"of a group of {groups} to the rest",
        "reference": f"of a group of {groups} to "
        + ", ".join(f"{a} = {v}" for a, v in (rule.reference or {}).items()),
    }[rule.comparison]
    what = rule.metric if rule.metric.endswith(rule.kind) else f"{rule.metric} {rule.kind}"
    over = "since the start" if rule.window == "all" else f"over {format_window(rule.window)}"
    step = bucket if isinstance(rule.window, str) else slide_step(rule.window, bucket)
    times = (
        f"{rule.for_buckets} times in a row, {format_duration(step)} apart"
        if rule.for_buckets > 1
        else "once"
    )
    return (
        f"{rule.severity} when the {what} {against} is {_breach(rule)} {over}, {times}, "
        f"with at least {rule.min_support} events per group"
    )


def _breach(rule: RuleConfig) -> str:
    tolerance = f"{rule.tolerance:g}"
    below, above = f"below -{tolerance}", f"above {tolerance}"
    if rule.kind == "ratio":
        below, above = f"below {tolerance}", f"above {1 / rule.tolerance:.4g}"
    if rule.comparison == "between":
        return below if rule.kind == "ratio" else above
    return {"below": below, "above": above, "both": f"{below} or {above}"}[rule.direction]


def render(plan: Plan) -> str:
    """Write the plan as plain text, at most 110 characters wide where names allow."""
    lines: list[str] = []
    for model in plan.models:
        lines += [f"model {model.name}", *_rows(_model_rows(model, plan.time_bucket)), ""]
    lines += [
        "run",
        *_rows(plan.service),
        "",
        "in all",
        *_rows(
            [("memory", f"at most {format_bytes(plan.memory_bytes)}"), ("series", f"at most {plan.series:,}")]
        ),
        "",
        "assumed",
    ]
    lines += [fill(a, 110, initial_indent="  - ", subsequent_indent="    ") for a in plan.assumptions]
    return "\n".join(lines) + "\n"


def _model_rows(model: ModelPlan, bucket: str) -> list[tuple[str, str]]:
    groupings = [f"{' and '.join(g.attributes)} (up to {g.groups:,} groups)" for g in model.groupings]
    return [
        ("task", model.task),
        *_titled("attributes", [f"{a.name}: {a.source}" for a in model.attributes]),
        *_titled("groups", groupings),
        ("metrics", ", ".join(model.metrics)),
        ("windows", ", ".join(model.windows)),
        ("gaps", f"{model.gaps}"),
        *_titled("rules", list(model.rules) or ["none"]),
        ("cells", f"at most {model.cells:,}, bounded by {model.cells_bound}"),
        ("statistics", f"{model.statistics} per cell"),
        (
            "kept",
            f"{model.open_buckets:,} open time buckets of {bucket}, {model.closed_steps:,} closed steps, "
            f"{len(model.windows)} running sums",
        ),
        ("memory", f"at most {format_bytes(model.memory_bytes)}"),
        ("series", f"at most {model.series:,}"),
    ]


def _titled(title: str, values: Sequence[str]) -> list[tuple[str, str]]:
    return [("" if i else title, value) for i, value in enumerate(values)]


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    wide = 14
    return [
        fill(text, 110, initial_indent=f"  {title:<{wide - 2}}", subsequent_indent=" " * wide)
        for title, text in rows
    ]


def format_bytes(count: int) -> str:
    """Bytes in the largest unit that leaves at least 1.

    >>> format_bytes(512), format_bytes(3 * 2**30 // 2)
    ('512 B', '1.5 GiB')
    """
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
