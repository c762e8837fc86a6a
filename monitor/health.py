"""How the monitor itself does, as series: counted by the loop, put together when they are shown."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from monitor import __version__
from monitor.batch import EventBatch
from monitor.engine import Engine
from monitor.exposition import HEALTH_SERIES, Samples
from monitor.names import Reason
from monitor.notify import Notifier
from monitor.records import Reject
from monitor.sinks.outbox import ChannelStats
from monitor.sources.kafka import KafkaStatus


@dataclass(slots=True)
class Stage:
    """What went through one stage of the way of an event; ``last_ms`` is when, on the wall clock."""

    taken: int = 0
    given: int = 0
    last_ms: int | None = None

    def count(self, taken: int, given: int, now_ms: int) -> None:
        """Note work that was done."""
        self.taken += taken
        self.given += given
        self.last_ms = now_ms


@dataclass(slots=True)
class Tally:
    """What the loop counts as it goes. Times are ms since 1970, on the wall clock."""

    started_ms: int
    decode: Stage = field(default_factory=Stage)
    join: Stage = field(default_factory=Stage)
    rejects: Counter[tuple[str, Reason]] = field(default_factory=Counter)
    predictions: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    last_prediction: dict[str, int] = field(default_factory=dict)
    last_outcome: dict[str, int] = field(default_factory=dict)

    def read(self, read: int, batches: Mapping[str, EventBatch], now_ms: int) -> None:
        """Records were decoded."""
        self.decode.count(read, sum(len(b) for b in batches.values()), now_ms)
        for model, batch in batches.items():
            predictions, outcomes = int(batch.has_prediction.sum()), int(batch.has_outcome.sum())
            if predictions:
                self.predictions[model] += predictions
                self.last_prediction[model] = now_ms
            if outcomes:
                self.outcomes[model] += outcomes
                self.last_outcome[model] = now_ms

    def reject(self, source: str, rejects: Iterable[Reject]) -> None:
        """Events of a source were not accepted."""
        for reject in rejects:
            self.rejects[source, reject.reason] += 1

    def last_event(self, model: str) -> int:
        """When an event of the model last came in, or when the service started."""
        return max(self.started_ms, self.last_prediction.get(model, 0), self.last_outcome.get(model, 0))


def health_samples(
    engine: Engine,
    tally: Tally,
    *,
    now_ms: int,
    sources: Iterable[str],
    partitions: Mapping[str, str],
    idle: Mapping[str, bool],
    stale: Mapping[str, bool],
    kafka: KafkaStatus | None,
    notifier: Notifier,
    letters: Mapping[tuple[str, str], int],
    ingest_codes: Mapping[int, int],
) -> Samples:
    """Everything the monitor says of itself.

    Parameters
    ----------
    sources, partitions
        Names of all sources; the source of each partition.
    idle, stale
        Partitions that closing does not wait for; models without events for long.
    letters
        Rejected events by sink and result.
    ingest_codes
        Requests to /v1/events by status.
    """
    samples = Samples(HEALTH_SERIES)
    samples.set("build_info", 1, __version__, platform.python_version())
    samples.set("heartbeat_timestamp_seconds", now_ms / 1000)
    if engine.closed_until is not None:
        samples.set("closed_until_timestamp_seconds", engine.closed_until / 1000)
    for partition, source in partitions.items():
        mark = engine.watermark(partition)
        if mark is not None:
            samples.set("partition_watermark_timestamp_seconds", mark / 1000, source, partition)
        samples.set("partition_idle", idle.get(partition, False), source, partition)
    if kafka is not None:
        _kafka(samples, kafka)
    _models(samples, engine, tally, stale)
    for source in sources:
        for reason in Reason:
            samples.set("events_rejected_total", tally.rejects[source, reason], source, str(reason))
    for (sink, result), n in letters.items():
        samples.set("dead_letters_total", n, sink, result)
    for code, n in sorted(ingest_codes.items()):
        samples.set("ingest_requests_total", n, str(code))
    stats = {channel.name: channel.stats for channel in notifier.channels}
    _channels(samples, stats)
    samples.set("notifications_held", notifier.held)
    joined = sum(m.counts.joined for m in engine.models.values())
    notify = Stage(
        sum(s.delivered + s.failed + s.queued for s in stats.values()),
        sum(s.delivered for s in stats.values()),
        max((s.last_success_ms for s in stats.values() if s.last_success_ms is not None), default=None),
    )
    _stage(samples, "decode", tally.decode, 0)
    _stage(
        samples,
        "join",
        Stage(tally.join.taken, joined, tally.join.last_ms),
        sum(m.pending for m in engine.models.values()),
    )
    _stage(samples, "notify", notify, sum(s.queued for s in stats.values()))
    return samples


def _stage(samples: Samples, name: str, stage: Stage, inside: int) -> None:
    samples.set("stage_in_total", stage.taken, name)
    samples.set("stage_out_total", stage.given, name)
    samples.set("stage_in_progress", inside, name)
    if stage.last_ms is not None:
        samples.set("stage_last_processed_timestamp_seconds", stage.last_ms / 1000, name)


def _kafka(samples: Samples, status: KafkaStatus) -> None:
    samples.set("kafka_connected", status.connected)
    samples.set("kafka_errors_total", status.errors)
    samples.set("kafka_lost_records_total", status.lost_records)
    samples.set("kafka_missing_topics", len(status.missing_topics))
    for at in status.partitions.values():
        labels = (at.source, at.topic, str(at.partition))
        if at.position is not None:
            samples.set("kafka_position_offset", at.position, *labels)
        if at.end is not None:
            samples.set("kafka_end_offset", at.end, *labels)
        if at.lag is not None:
            samples.set("kafka_lag_records", at.lag, *labels)
        samples.set("kafka_paused", at.paused, *labels)


def _models(samples: Samples, engine: Engine, tally: Tally, stale: Mapping[str, bool]) -> None:
    for name, model in engine.models.items():
        samples.set("predictions_total", tally.predictions[name], name)
        samples.set("outcomes_total", tally.outcomes[name], name)
        if name in tally.last_prediction:
            at = tally.last_prediction[name] / 1000
            samples.set("last_prediction_timestamp_seconds", at, name)
        if name in tally.last_outcome:
            samples.set("last_outcome_timestamp_seconds", tally.last_outcome[name] / 1000, name)
        samples.set("model_stale", stale.get(name, False), name)
        counts = model.counts
        samples.set("join_joined_total", counts.joined, name)
        samples.set("join_duplicates_total", counts.duplicates, name)
        samples.set("join_expired_total", counts.expired_predictions, name, "prediction")
        samples.set("join_expired_total", counts.expired_outcomes, name, "outcome")
        samples.set("join_pending", model.pending, name)
        samples.set("cells", model.cells.admitted, name)
        samples.set("cells_limit", model.spec.max_cells, name)


def _channels(samples: Samples, stats: Mapping[str, ChannelStats]) -> None:
    for name, channel in stats.items():
        samples.set("notifications_total", channel.delivered, name, "delivered")
        samples.set("notifications_total", channel.failed, name, "failed")
        samples.set("notification_attempts_total", channel.attempts, name)
        samples.set("notifications_queued", channel.queued, name)
        if channel.last_success_ms is not None:
            at = channel.last_success_ms / 1000
            samples.set("notification_last_success_timestamp_seconds", at, name)
