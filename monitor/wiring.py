"""From the configuration to the parts that run: engine, decoders."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from monitor.alerts import Rule
from monitor.cells import AttributeCap
from monitor.clock import format_window
from monitor.config import Config, ModelConfig, SourceConfig
from monitor.decode import Decoder
from monitor.engine import Engine, ModelEngine, ModelSpec, TimeSpec
from monitor.join import JoinLimits
from monitor.judge import AttributeReader, JudgeLimits, ModelReader


def milliseconds(duration: timedelta) -> int:
    """Whole milliseconds of a duration."""
    return duration // timedelta(milliseconds=1)


def model_spec(name: str, model: ModelConfig, min_group_size: int, *, counters: bool = False) -> ModelSpec:
    """What the engine needs to know of a model."""
    return ModelSpec(
        name=name,
        task=model.build_task(),
        attributes=[
            AttributeCap(a, len(c.bins) + 2 if c.bins is not None else c.max_values)
            for a in model.attribute_names
            for c in (model.attribute(a),)
        ],
        max_cells=model.max_cells,
        groupings=model.groupings,
        metrics=model.metric_names,
        gaps=[g.spec for g in model.gaps],
        windows=[
            (format_window(w), milliseconds(w) if isinstance(w, timedelta) else None)
            for w in model.all_windows
        ],
        rules=[
            Rule(
                name=r.name,
                model=name,
                gap=r.spec,
                tolerance=r.tolerance,
                direction=r.direction,
                window=format_window(r.window),
                min_support=r.min_support,
                for_buckets=r.for_buckets,
                severity=r.severity,
            )
            for r in model.rules
        ],
        min_support=model.min_support,
        min_group_size=min_group_size,
        join=JoinLimits(
            outcome_ttl_ms=milliseconds(model.join.outcome_ttl),
            outcome_wait_ms=milliseconds(model.join.outcome_wait),
            dedupe_window_ms=milliseconds(model.join.dedupe_window),
            dedupe_max_ids=model.join.dedupe_max_ids,
        ),
        counters=counters,
    )


def build_engine(config: Config, *, counters: bool = False) -> Engine:
    """A fresh engine for all models of a configuration, with counters per group if wanted."""
    least = config.privacy.min_group_size
    specs = [model_spec(name, model, least, counters=counters) for name, model in config.models.items()]
    time = TimeSpec(milliseconds(config.time.bucket), milliseconds(config.time.grace))
    return Engine.of(specs, time)


def model_reader(name: str, model: ModelConfig, engine: ModelEngine) -> ModelReader:
    """What decoding needs to know of a model."""
    return ModelReader(
        name=name,
        task=engine.spec.task,
        attributes=tuple(AttributeReader(a, model.attribute(a).bins) for a in model.attribute_names),
        weight_bound=model.weights.bound if model.weights else None,
        intern=engine.cells.intern,
    )


def judge_limits(config: Config) -> JudgeLimits:
    """Limits on records and times."""
    return JudgeLimits(
        max_message_bytes=config.limits.max_message_bytes,
        max_future_ms=milliseconds(config.time.max_future),
        assume_utc=config.time.assume_utc,
    )


def build_decoders(config: Config, engine: Engine) -> Mapping[str, Decoder]:
    """A decoder for each source, by its name."""
    readers = {n: model_reader(n, m, engine.models[n]) for n, m in config.models.items()}
    return {s.name: Decoder(s.fields, readers, judge_limits(config)) for s in config.sources}


def source_named(config: Config, name: str) -> SourceConfig:
    """The source with this name; raises KeyError."""
    return {s.name: s for s in config.sources}[name]
