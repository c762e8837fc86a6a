"""The configuration as one frozen tree. :mod:`monitor.config_file` reads it from YAML.

Validation goes as far as it can: what is wrong in one part does not hide what is wrong in another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from monitor import tasks
from monitor.clock import DAY, Duration, Window, format_duration, format_window, why_unfit
from monitor.connections import (
    AlertsConfig,
    DeadLetterConfig,
    HealthConfig,
    IngestConfig,
    KafkaConfig,
    Name,
    ServerConfig,
    StateConfig,
    TopicsConfig,
)
from monitor.errors import Findings, did_you_mean, wrong
from monitor.gap_names import (
    Choices,
    Comparison,
    Direction,
    GapSpec,
    Kind,
    check_threshold,
    find_metric,
    gap_spec,
    gap_title,
    settle,
    unique_names,
)
from monitor.names import EVERYBODY
from monitor.paths import FieldsConfig, Frozen, FrozenMap, Items, text_like
from monitor.tasks.base import Task


def _as_grouping(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _check_grouping(value: tuple[str, ...]) -> tuple[str, ...]:
    if not 1 <= len(value) <= 4:
        raise wrong(f"groups are made by 1 to 4 attributes, not {len(value)}", "name 1 to 4 attributes")
    if EVERYBODY in value:
        raise wrong(
            f"the attribute {EVERYBODY!r} cannot be told from all groups together", "name it otherwise"
        )
    twice = [a for a, n in Counter(value).items() if n > 1]
    if twice:
        raise wrong(f"the intersection names {twice[0]!r} twice", "name each attribute once")
    return value


Attribute = Annotated[str, *text_like(r"\S(.{0,62}\S)?", "1 to 64 characters without spaces around them")]
Grouping = Annotated[tuple[Attribute, ...], BeforeValidator(_as_grouping), AfterValidator(_check_grouping)]
Strata = Annotated[tuple[Attribute, ...], BeforeValidator(_as_grouping), Field(max_length=3)]
Severity = Literal["critical", "warning", "info"]
MAX_OUTCOME_TTL = 34 * 365 * DAY
"""Delays are kept in steps of 2**-30 of this bound's next power of two: one second at most."""


def _as_task(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


def _task(data: Mapping[str, Any]) -> Task | None:
    """Build the task of a model whose fields so far are ``data``; None when they do not make one."""
    if not {"task", "weights", "join"} <= data.keys():
        return None
    try:
        return _build(data["task"], data["weights"], data["join"])
    except ValueError:
        return None


def _build(options: tasks.TaskConfig, weights: WeightsConfig | None, join: JoinConfig) -> Task:
    bound = weights.bound if weights else None
    return tasks.build(options, weight_bound=bound, outcome_ttl_seconds=join.outcome_ttl.total_seconds())


def _choices(data: Mapping[str, Any]) -> Choices:
    task = _task(data)
    groups = data.get("groups")
    attributes = dict.fromkeys([*(a for g in groups or () for a in g), *data.get("attributes", ())])
    metrics = {n: m.aliases for n, m in task.metrics.items()} if task else None
    return Choices(metrics, groups, tuple(attributes))


def _default_gaps(data: dict[str, Any]) -> tuple[GapConfig, ...]:
    task = _task(data)
    metrics = data.get("metrics") or (task.metrics if task else ())
    return tuple(
        GapConfig(metric=metric, groups=groups, kind=kind)
        for metric in metrics
        for groups in data.get("groups", ())
        for kind in get_args(Kind)
    )


def _settled(spec: GapSpec) -> dict[str, Any]:
    return {"metric": spec.name, "groups": spec.groups, "comparison": spec.comparison, "kind": spec.kind}


class TimeConfig(Frozen):
    """Event time: how it is cut into time buckets and how long they stay open."""

    bucket: Duration = Field(
        default=timedelta(minutes=1),
        description="length of a time bucket; from 1s, and a day is a whole number of them",
    )
    grace: Duration = Field(
        default=timedelta(minutes=1),
        description="how far events may lag behind the newest before they are late",
    )
    max_future: Duration = Field(
        default=timedelta(minutes=10),
        description="events further ahead of their arrival than this are rejected",
    )
    idle_after: Duration = Field(
        default=timedelta(seconds=30),
        description="a partition without news for this long does not hold back the others",
    )
    assume_utc: bool = Field(
        default=False, description="read times without an offset as UTC, not reject them"
    )

    @field_validator("bucket")
    @classmethod
    def _check_bucket(cls, bucket: timedelta) -> timedelta:
        if bucket < timedelta(seconds=1):
            raise wrong(f"a time bucket of {format_duration(bucket)} is too short", "write 1s or more")
        if DAY % bucket:
            raise wrong(
                f"a day is not a whole number of {format_duration(bucket)}", "write 1m, 5m, 15m or 1h"
            )
        return bucket


class LimitsConfig(Frozen):
    """Sizes beyond which events are rejected."""

    max_message_bytes: int = Field(default=10 * 1024 * 1024, ge=1, description="bytes of one record")


class PrivacyConfig(Frozen):
    """What is withheld to protect people."""

    min_group_size: int = Field(
        default=10, ge=1, description="numbers of groups with fewer events are not shown"
    )


class AttributeConfig(Frozen):
    """How the values of one attribute are told apart."""

    bins: Items[float] | None = Field(
        default=None, description="edges of a numeric attribute, ascending; n edges make n + 1 bins"
    )
    max_values: int = Field(
        default=50, ge=1, le=10_000, description="values told apart; the rest is 'other'; unused with bins"
    )

    @field_validator("bins")
    @classmethod
    def _check_bins(cls, bins: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if bins is not None and not bins:
            raise wrong("bins has no edges", "list at least one edge, or take bins out")
        for low, high in pairwise(bins or ()):
            if low >= high:
                raise wrong(
                    f"bins must ascend, and {high:g} comes after {low:g}", "list the edges in ascending order"
                )
        return bins


class WeightsConfig(Frozen):
    """Events that stand for several: they carry ``weight``, or ``sampling_fraction`` = 1 / weight."""

    bound: float = Field(gt=0, le=2.0**30, description="largest weight; beyond it events are rejected")


class JoinConfig(Frozen):
    """How outcomes find their predictions."""

    outcome_ttl: Duration = Field(
        default=timedelta(days=30),
        description="how long a prediction waits for its outcome, at most 34 years",
    )
    outcome_wait: Duration = Field(
        default=timedelta(hours=1), description="how long an outcome waits for a prediction that comes later"
    )
    dedupe_window: Duration = Field(
        default=timedelta(hours=1),
        description="how long an id is remembered, so that a repeated event counts once",
    )
    dedupe_max_ids: int = Field(default=200_000, ge=1, description="ids remembered at the same time")

    @field_validator("outcome_ttl")
    @classmethod
    def _check_outcome_ttl(cls, ttl: timedelta) -> timedelta:
        if not timedelta(0) < ttl <= MAX_OUTCOME_TTL:
            raise wrong(
                f"outcome_ttl cannot be {format_duration(ttl)}", "write more than 0s and at most 34 years"
            )
        return ttl


class GapConfig(Frozen):
    """A gap to report: a metric or a named gap, between the groups of some attributes."""

    metric: str = Field(description="metric or its alias, or a named gap like equalized_odds")
    groups: Grouping = Field(default=(), description="attribute or attributes; every grouping without it")
    comparison: Comparison = Field(default="between", description="what a group is compared with")
    kind: Kind = Field(
        default="difference", description="group minus the other, or group divided by the other"
    )
    reference: FrozenMap[str, str] | None = Field(
        default=None,
        description="the reference group, one value per attribute; only with comparison: reference",
    )
    strata: Strata = Field(default=(), description="attributes that CDDPL is averaged over")

    @property
    def spec(self) -> GapSpec:
        """The gap with what its name stands for, once it is part of a ModelConfig."""
        return gap_spec(self.metric, self.groups, self.comparison, self.kind, self.reference, self.strata)


class RuleConfig(GapConfig):
    """A gap that must stay within a tolerance."""

    groups: Grouping = Field(description="attribute or attributes; one of the model's groups")
    name: str = Field(
        default="", max_length=128, description="name of the alert; made from the rest without it"
    )
    tolerance: float = Field(
        ge=0,
        description="difference: breached beyond it; ratio (up to 1): below it or above its inverse",
    )
    direction: Direction = Field(default="both", description="which side of the tolerance counts")
    window: Window = Field(default=timedelta(hours=1), description="events the gap is taken over, or all")
    min_support: int = Field(
        default=30, ge=1, description="events a group needs to count; the model's without it"
    )
    for_buckets: int = Field(
        default=1,
        ge=1,
        alias="for",
        description="closed steps of the window in a row with a breach before the alert fires",
    )
    severity: Severity = Field(default="warning", description="critical wakes somebody up")


class ModelConfig(Frozen):
    """One model: its task, its groups, what is measured and what is too much."""

    task: Annotated[tasks.TaskConfig, BeforeValidator(_as_task)] = Field(
        description="kind of model; a bare name stands for the task with its defaults"
    )
    weights: WeightsConfig | None = Field(
        default=None, description="events carry weights; else each counts once"
    )
    join: JoinConfig = Field(default=JoinConfig(), description="how outcomes find their predictions")
    groups: Items[Grouping] = Field(min_length=1, description="attributes and intersections of 2 to 4")
    attributes: FrozenMap[Attribute, AttributeConfig] = Field(
        default={}, validate_default=True, description="bins and caps; further attributes of the cells"
    )
    max_cells: int = Field(default=10_000, ge=1, description="combinations of attribute values told apart")
    metrics: Items[str] | None = Field(
        default=None,
        min_length=1,
        description="metrics or aliases to report; all metrics of the task without it",
    )
    windows: Items[Window] = Field(
        default=(timedelta(hours=1), timedelta(days=1), "all"),
        min_length=1,
        description="spans that values are taken over",
    )
    min_support: int = Field(default=30, ge=1, description="values on fewer events are left out of gaps")
    gaps: Items[GapConfig] = Field(
        default_factory=_default_gaps,
        description="gaps to report; without it difference and ratio between groups, of every metric",
    )
    rules: Items[RuleConfig] = Field(default=(), description="gaps that raise alerts")

    @field_validator("groups", "windows")
    @classmethod
    def _check_repeats(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        findings, seen = Findings(), list[Any]()
        for i, value in enumerate(values):
            what = frozenset(value) if isinstance(value, tuple) else value
            if what in seen:
                findings.add((i,), "this is listed twice", "take one of them out")
            seen.append(what)
        findings.raise_if_any("list")
        return values

    @field_validator("metrics")
    @classmethod
    def _settle_metrics(cls, names: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        choices = _choices(info.data)
        if names is None or choices.metrics is None:
            return names
        findings, found = Findings(), list[str]()
        for i, name in enumerate(names):
            metric = find_metric(name, choices.metrics)
            if metric is None:
                message = f"{name!r} is not a metric of this task"
                every = [*choices.metrics, *(a for aliases in choices.metrics.values() for a in aliases)]
                findings.add((i,), message, did_you_mean(name, every))
            elif metric in found:
                findings.add((i,), f"{metric} is listed twice", "take one of them out")
            else:
                found.append(metric)
        findings.raise_if_any("metrics")
        return tuple(found)

    @field_validator("gaps")
    @classmethod
    def _settle_gaps(cls, gaps: tuple[GapConfig, ...], info: ValidationInfo) -> tuple[GapConfig, ...]:
        findings, choices = Findings(), _choices(info.data)
        settled = []
        for i, gap in enumerate(gaps):
            groupings: tuple[tuple[str, ...], ...] = (gap.groups,)
            if not gap.groups:
                groupings = choices.groupings or ()
                if gap.reference is not None:
                    groupings = tuple(g for g in groupings if set(g) == set(gap.reference)) or (
                        tuple(gap.reference),
                    )
            for groups in groupings:
                spec = settle(replace(gap.spec, groups=groups), choices, findings, i, gap.model_fields_set)
                settled.append(gap.model_copy(update=_settled(spec)))
        findings.raise_if_any("gaps")
        return tuple(settled)

    @field_validator("rules")
    @classmethod
    def _settle_rules(cls, rules: tuple[RuleConfig, ...], info: ValidationInfo) -> tuple[RuleConfig, ...]:
        findings, choices = Findings(), _choices(info.data)
        least = info.data.get("min_support", 30)
        settled: list[RuleConfig] = []
        for i, rule in enumerate(rules):
            given = rule.model_fields_set
            spec = settle(rule.spec, choices, findings, i, given)
            check_threshold(spec, rule.tolerance, rule.direction, findings, i)
            support = rule.min_support if "min_support" in given else least
            settled.append(rule.model_copy(update={**_settled(spec), "min_support": support}))
        made = [gap_title(r.spec, format_window(r.window), r.severity) for r in settled]
        names = unique_names([r.name for r in rules], made, findings)
        findings.raise_if_any("rules")
        return tuple(r.model_copy(update={"name": n}) for r, n in zip(settled, names, strict=True))

    @model_validator(mode="after")
    def _check_task(self) -> ModelConfig:
        try:
            self.build_task()
        except ValueError as error:
            findings = Findings()
            findings.add(("task",), str(error), "change the options of the task")
            findings.raise_if_any("task")
        return self

    def build_task(self) -> Task:
        """Build the task with its statistics and metrics."""
        return _build(self.task, self.weights, self.join)

    @cached_property
    def metric_names(self) -> tuple[str, ...]:
        """Canonical names of the metrics to report."""
        return self.metrics if self.metrics is not None else tuple(self.build_task().metrics)

    @property
    def groupings(self) -> tuple[tuple[str, ...], ...]:
        """Attributes of each grouping, as in ``groups``."""
        return self.groups

    @cached_property
    def attribute_names(self) -> tuple[str, ...]:
        """Attributes of the cells: those of ``groups`` in order of first mention, then ``attributes``."""
        return tuple(dict.fromkeys([*(a for g in self.groups for a in g), *self.attributes]))

    def attribute(self, name: str) -> AttributeConfig:
        """Bins and cap of an attribute."""
        return self.attributes.get(name) or AttributeConfig()

    @cached_property
    def all_windows(self) -> tuple[timedelta | Literal["all"], ...]:
        """``windows``, then those that only rules use."""
        return tuple(dict.fromkeys([*self.windows, *(r.window for r in self.rules)]))


class SourceConfig(Frozen):
    """Where events come from and how they are read."""

    name: Name = Field(default="events", description="name of the source, in counters and dead letters")
    kafka: TopicsConfig | None = Field(default=None, description="topics that run reads")
    http: IngestConfig | None = Field(default=None, description="events posted to /v1/events while run runs")
    format: Literal["auto", "jsonl", "csv", "parquet"] = Field(default="auto", description="by file name")
    paths: Items[str] = Field(default=(), description="files that replay reads when the command names none")
    fields: FieldsConfig = Field(default=FieldsConfig(), description="where each field is found in a record")


class Config(Frozen):
    """The whole configuration."""

    models: FrozenMap[Name, ModelConfig] = Field(min_length=1, description="models to watch, by name")
    kafka: KafkaConfig | None = Field(default=None, description="the cluster that topics are in")
    sources: Items[SourceConfig] = Field(
        default=(SourceConfig(),), min_length=1, description="where events come from"
    )
    time: TimeConfig = Field(default=TimeConfig(), description="event time")
    limits: LimitsConfig = Field(default=LimitsConfig(), description="sizes beyond which events are rejected")
    privacy: PrivacyConfig = Field(default=PrivacyConfig(), description="what is withheld")
    dead_letter: DeadLetterConfig = Field(default=DeadLetterConfig(), description="where rejected events go")
    state: StateConfig = Field(default=StateConfig(), description="what survives a restart")
    server: ServerConfig = Field(default=ServerConfig(), description="metrics, health and ingest over HTTP")
    alerts: AlertsConfig = Field(default=AlertsConfig(), description="whom alerts are sent to")
    health: HealthConfig = Field(default=HealthConfig(), description="when numbers are stale")

    @field_validator("sources")
    @classmethod
    def _check_sources(
        cls, sources: tuple[SourceConfig, ...], info: ValidationInfo
    ) -> tuple[SourceConfig, ...]:
        findings, read = Findings(), dict[str, str]()
        for i, source in enumerate(sources):
            if source.name in [earlier.name for earlier in sources[:i]]:
                message = f"two sources are called {source.name!r}"
                findings.add((i, "name"), message, "give each a name of its own")
            if source.kafka is not None and source.http is not None:
                message = "a source reads topics or is posted to, not both"
                findings.add((i, "http"), message, "make it a source of its own")
            for j, topic in enumerate(source.kafka.topics if source.kafka is not None else ()):
                if topic in read:
                    message = f"topic {topic} is read by source {read[topic]!r} already"
                    findings.add((i, "kafka", "topics", j), message, "read each topic once")
                read[topic] = source.name
            if "models" in info.data:
                fields = {f.name: f.kind for m in info.data["models"].values() for f in m.build_task().fields}
                source.fields.check(fields, (i, "fields"), findings)
        findings.raise_if_any("sources")
        return sources

    @model_validator(mode="after")
    def _check_connections(self) -> Config:
        findings = Findings()
        topics = [t for s in self.sources if s.kafka is not None for t in s.kafka.topics]
        letters = self.dead_letter.topic
        fix = "add kafka: {bootstrap_servers: HOST:PORT}"
        for i, source in enumerate(self.sources):
            if source.kafka is not None and self.kafka is None:
                findings.add(
                    ("sources", i, "kafka"), "it is not said which cluster the topics are in", fix, "kafka"
                )
            if source.http is not None and self.server.ingest_token is None:
                message = "whoever posts events needs a token, and there is none"
                findings.add(("sources", i, "http"), message, "set server.ingest_token", "server")
        if letters is not None and self.kafka is None:
            message = "it is not said which cluster the topic is in"
            findings.add(("dead_letter", "topic"), message, fix, "kafka")
        if letters in topics:
            message = f"topic {letters} is read as a source: dead letters would be rejected again for ever"
            findings.add(("dead_letter", "topic"), message, "name a topic of its own")
        findings.raise_if_any("Config")
        return self

    @model_validator(mode="after")
    def _check_windows(self) -> Config:
        findings = Findings()
        for name, model in self.models.items():
            spans: list[tuple[tuple[str | int, ...], timedelta | Literal["all"]]] = [
                (("windows", i), window) for i, window in enumerate(model.windows)
            ]
            spans += [(("rules", i, "window"), rule.window) for i, rule in enumerate(model.rules)]
            for where, window in spans:
                if unfit := why_unfit(window, self.time.bucket):
                    findings.add(("models", name, *where), *unfit, "time.bucket")
        findings.raise_if_any("Config")
        return self
