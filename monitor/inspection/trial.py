"""The sample decoded with a configuration: how many of its events are accepted, and why others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec

from monitor.config import Config
from monitor.decode import Decoder
from monitor.judge import ModelReader
from monitor.names import UNKNOWN
from monitor.records import RecordBatch, Reject
from monitor.sources.files import Converter, converters
from monitor.wiring import build_engine, judge_limits, model_reader

_Cells = dict[tuple[str, ...], int]
"""Combinations of attribute values, numbered in the order of their arrival; nothing is folded."""


@dataclass(frozen=True, slots=True)
class RejectReason:
    """A reason why events of the sample were rejected; ``example`` is the first, with its position."""

    reason: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Trial:
    """Events of the sample that were read and accepted; ``rejects`` with the most frequent reason first.

    ``unknown`` is the share of accepted predictions without a value, by model and attribute (None without
    predictions).
    """

    read: int
    accepted: int
    rejects: tuple[RejectReason, ...]
    unknown: Mapping[str, Mapping[str, float | None]]


def try_out(config: Config, source: str, batches: Iterable[RecordBatch], *, is_csv: bool) -> Trial:
    """Decode the sample with the mapping of a source; without one of that name, of the first."""
    fields = next((s for s in config.sources if s.name == source), config.sources[0]).fields
    cells: dict[str, _Cells] = {name: {} for name in config.models}
    readers = _readers(config, cells)
    columns: Mapping[str, Converter] = {}
    if is_csv:
        task_fields = {f.name: f for reader in readers.values() for f in reader.task.fields}
        binned = {a.name for reader in readers.values() for a in reader.attributes if a.bins is not None}
        columns = converters(fields, task_fields, binned)
    decoder = Decoder(fields, readers, judge_limits(config))
    read, rejects = 0, list[Reject]()
    predictions: dict[str, Counter[int]] = {name: Counter() for name in readers}
    for batch in batches:
        decoded = decoder.decode(_typed(batch, columns) if is_csv else batch)
        read += decoded.read
        rejects += decoded.rejects
        for name, events in decoded.batches.items():
            predictions[name].update(events.cell[events.has_prediction].tolist())
    unknown = {
        name: {
            attribute.name: _share_unknown(predictions[name], cells[name], i)
            for i, attribute in enumerate(reader.attributes)
        }
        for name, reader in readers.items()
    }
    return Trial(read, read - len(rejects), _by_reason(rejects), unknown)


def _readers(config: Config, cells: Mapping[str, _Cells]) -> dict[str, ModelReader]:
    """Readers as the service has them, with cells of the inspection's own, which have no caps."""
    models = build_engine(config).models
    return {
        name: replace(model_reader(name, model, models[name]), intern=_numbering(cells[name]))
        for name, model in config.models.items()
    }


def _numbering(known: _Cells) -> Callable[[tuple[str, ...]], int]:
    return lambda values: known.setdefault(values, len(known))


def _typed(batch: RecordBatch, columns: Mapping[str, Converter]) -> RecordBatch:
    """CSV rows, sampled as texts, with the types that the mapping asks for."""
    payloads = list(batch.payloads)
    for i, payload in enumerate(payloads):
        if i not in batch.unreadable:
            row = msgspec.json.decode(payload)
            typed = {n: columns[n](v) if n in columns and isinstance(v, str) else v for n, v in row.items()}
            payloads[i] = msgspec.json.encode(typed)
    return replace(batch, payloads=payloads)


def _share_unknown(predictions: Counter[int], cells: _Cells, attribute: int) -> float | None:
    total = predictions.total()
    without = sum(predictions[n] for values, n in cells.items() if values[attribute] == UNKNOWN)
    return without / total if total else None


def _by_reason(rejects: Iterable[Reject]) -> tuple[RejectReason, ...]:
    by_reason: dict[str, list[Reject]] = {}
    for reject in rejects:
        by_reason.setdefault(reject.reason, []).append(reject)
    ordered = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    return tuple(RejectReason(reason, len(each), _example(each[0])) for reason, each in ordered)


def _example(reject: Reject) -> str:
    element = "" if reject.element is None else f", element {reject.element}"
    return f"at {reject.position}{element}: {reject.message}"
