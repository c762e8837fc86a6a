"""Reading files in tests: a configuration, records with their positions, what decoding makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monitor.config_file import parse_config
from monitor.decode import Decoder
from monitor.records import RecordBatch, Reject
from monitor.sources.files import BATCH_RECORDS, FileInput, Progress, read_batches
from monitor.wiring import build_decoders, build_engine

NOW_MS = 1_714_600_000_000
TIME = "2024-05-01T12:00:00Z"
CONFIG = parse_config(
    """
models:
  m:
    task: {type: binary, score: {range: [0, 1]}}
    groups: [sex, age]
    attributes: {age: {bins: [25, 45]}}
sources:
- fields:
    attributes: {sex: sex, age: age}
"""
)
FIELDS = CONFIG.sources[0].fields
TASK_FIELDS = {f.name: f for f in CONFIG.models["m"].build_task().fields}


def batches(
    path: Path | str,
    *,
    limit: int = 1000,
    batch_records: int = BATCH_RECORDS,
    progress: Progress | None = None,
) -> list[RecordBatch]:
    return list(
        read_batches(
            FileInput(str(path), "events"),
            FIELDS,
            TASK_FIELDS,
            max_record_bytes=limit,
            now_ms=lambda: NOW_MS,
            progress=progress,
            batch_records=batch_records,
        )
    )


def records(found: Iterable[RecordBatch]) -> list[tuple[int, bytes]]:
    """Position and content of each record; a line may end with CR, and a blank one is no record."""
    every = [(p, b.record(i), b.lines) for b in found for i, p in enumerate(b.positions)]
    return [(p, content.rstrip(b"\r")) for p, content, lines in every if content.strip() or not lines]


def contents(path: Path) -> list[Any]:
    return [json.loads(payload) for _, payload in records(batches(path, limit=1_000_000))]


def decode(found: Iterable[RecordBatch], limit: int = 10_000_000) -> tuple[int, list[Reject]]:
    """How many events are accepted, and the rejects."""
    config = CONFIG.model_copy(
        update={"limits": CONFIG.limits.model_copy(update={"max_message_bytes": limit})}
    )
    decoder: Decoder = build_decoders(config, build_engine(config))["events"]
    accepted, rejects = 0, list[Reject]()
    for batch in found:
        decoded = decoder.decode(batch)
        new = sum(len(b) for b in decoded.batches.values())
        assert new + len(decoded.rejects) == decoded.read
        accepted += new
        rejects += decoded.rejects
    return accepted, rejects


def event(i: int = 0, **changes: object) -> bytes:
    return json.dumps({"id": str(i), "time": TIME, "decision": 1, **changes}).encode()
