"""Replay: everything in some files through the engine, once, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.alerts import Alert, AlertState, Transition
from monitor.config import Config
from monitor.engine import Engine
from monitor.records import RecordBatch
from monitor.rows import alert_row, gap_row
from monitor.sinks.dead_letter import DeadLetters
from monitor.sources.files import FileInput, Progress, read_batches
from monitor.tasks.base import Field
from monitor.times import format_time
from monitor.wiring import build_decoders, build_engine, source_named


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay comes to; ``document`` is the whole of it as JSON."""

    engine: Engine
    events: Mapping[str, int]
    rejects: Mapping[str, int]
    alerts: Sequence[Alert]

    def document(self) -> dict[str, Any]:
        """The content of ``replay --format json``."""
        reports = [r for model in self.engine.models.values() for r in model.report()]
        return {
            "events": dict(self.events),
            "rejects": dict(self.rejects),
            "windows": [
                {
                    "model": r.model,
                    "window": r.window,
                    "start": None if r.start is None else format_time(r.start),
                    "end": None if r.end is None else format_time(r.end),
                }
                for r in reports
            ],
            "groups": [row for r in reports for row in r.groups],
            "gaps": [gap_row(r.model, r.window, gap) for r in reports for gap in r.gaps],
            "alerts": [alert_row(a) for a in self.alerts],
        }


def replay(
    config: Config,
    inputs: Sequence[FileInput],
    *,
    now_ms: Callable[[], int],
    dead_letters: DeadLetters,
    progress: Progress | None = None,
    on_transitions: Callable[[Sequence[Transition]], None] = lambda transitions: None,
    on_batch: Callable[[], None] = lambda: None,
) -> Replayed:
    """Read the inputs side by side, the one that is furthest behind in event time first.

    Each input is a partition with its own watermark. When all have ended, every time bucket that holds
    events closes; predictions whose ``outcome_ttl`` ends after that count as unmatched, not as expired.
    """
    engine = build_engine(config)
    decoders = build_decoders(config, engine)
    task_fields: dict[str, Field] = {f.name: f for m in engine.models.values() for f in m.spec.task.fields}
    binned = {a for m in config.models.values() for a, c in m.attributes.items() if c.bins is not None}
    readers: dict[str, tuple[Iterator[RecordBatch], str]] = {}
    for source in inputs:
        partition = source.partition
        if partition in readers:
            partition = f"{partition} ({len(readers) + 1})"
        engine.add_partition(partition)
        batches = read_batches(
            source,
            source_named(config, source.source).fields,
            task_fields,
            binned=binned,
            max_record_bytes=config.limits.max_message_bytes,
            now_ms=now_ms,
            progress=progress,
        )
        readers[partition] = (batches, source.source)
    read = rejected = 0
    alerts: dict[str, Alert] = {}

    def tell(transitions: Sequence[Transition]) -> None:
        for transition in transitions:
            if transition.state is not AlertState.PENDING:
                alerts[transition.alert.episode] = transition.alert
        if transitions:
            on_transitions(transitions)

    while readers:
        partition = min(readers, key=lambda name: _mark(engine, name))
        batches, source_name = readers[partition]
        records = next(batches, None)
        if records is None:
            del readers[partition]
            engine.set_idle(partition)
            tell(engine.advance())
            continue
        decoded = decoders[source_name].decode(records)
        late = [records.late(i) for i in engine.step(partition, decoded.batches).tolist()]
        read += decoded.read
        rejected += len(decoded.rejects) + len(late)
        dead_letters.write(decoded.rejects)
        dead_letters.write(late)
        tell(engine.advance())
        on_batch()
    tell(engine.finish())
    dead_letters.flush()
    models = engine.models.values()
    for alert in (a for m in models for a in m.alerts):
        alerts[alert.episode] = alert
    events = {
        "read": read,
        "accepted": read - rejected,
        "rejected": rejected,
        "joined": sum(m.counts.joined for m in models),
        "unmatched_predictions": sum(m.unmatched_predictions for m in models),
        "unmatched_outcomes": sum(m.unmatched_outcomes for m in models),
        "duplicates": sum(m.counts.duplicates for m in models),
    }
    rejects = {str(reason): n for reason, n in sorted(dead_letters.counts.items())}
    ordered = sorted(alerts.values(), key=lambda a: (a.pending_since, a.fingerprint))
    return Replayed(engine, events, rejects, ordered)


def _mark(engine: Engine, partition: str) -> int:
    mark = engine.watermark(partition)
    return -1 if mark is None else mark
