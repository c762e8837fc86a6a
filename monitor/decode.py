"""Bytes to columns: batches of records become :class:`~monitor.batch.EventBatch` and rejects.

The fast way decodes a batch with one msgspec decoder compiled from the field mapping and checks
whole columns. A record that is odd in any way goes to the :class:`~monitor.judge.Judge` alone, so one
malformed record costs its neighbours nothing, and the accepted set is the judge's. The fast way
may take a record only where the judge would come to the same event:

* both parse the same JSON, except where msgspec skips what it does not need: bytes that are not
  UTF-8, nesting too deep for the judge, numbers of thousands of digits; these are looked for;
* types are those of the contract, and ranges, lengths and times are checked on the columns;
* attributes are judged once for each distinct content; their bytes only key a bounded cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from monitor.batch import Bools, EventBatch, Keys, Texts
from monitor.columns import Columns, Plan, compile_plan
from monitor.convert import Values, convert, filled, floats, hash_ids, id_keys, int64
from monitor.judge import Acceptance, Judge, JudgeLimits, ModelReader
from monitor.names import MODEL_VERSION
from monitor.paths import FieldPath, FieldsConfig
from monitor.records import RecordBatch, Reject, Rejected
from monitor.tasks.base import Column, Floats, Ints
from monitor.times import FIRST_PLAUSIBLE_MS, LAST_MS, parse_column, parse_time

_SHORT = 400
"""Bytes below which a record can neither be nested too deeply nor hold a number too long."""
_DEPTH = 190
_LONG_NUMBER = re.compile(rb"[0-9]{4000}")
_CACHE = 1 << 16
"""Distinct attribute contents remembered per model."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The outcome of a batch: ``read`` events, those accepted by model, and the rest."""

    read: int
    batches: Mapping[str, EventBatch]
    rejects: Sequence[Reject]


class _Contents:
    """Attribute contents seen before, by their bytes: a bounded cache of cells and digests."""

    def __init__(self) -> None:
        self.number: dict[object, int] = {}
        self.cells: Ints = np.zeros(1024, np.int64)
        self.digests: Keys = np.zeros(1024, np.uint64)

    def make_room(self) -> None:
        """Forget everything when the cache is full."""
        if len(self.number) > _CACHE:
            self.number.clear()

    def add(self, key: object, cell: int, digest: int) -> None:
        """Remember one content."""
        number = self.number[key] = len(self.number)
        if number == len(self.cells):
            self.cells = np.concatenate([self.cells, np.zeros_like(self.cells)])
            self.digests = np.concatenate([self.digests, np.zeros_like(self.digests)])
        self.cells[number] = cell
        self.digests[number] = digest


class Decoder:
    """Decodes records of one source.

    Parameters
    ----------
    fields
        Where each field is found in a record.
    models
        The models whose events may be in the records, by name.
    limits
        Limits on records and times.

    State: the cache of attribute contents, bounded.
    """

    def __init__(self, fields: FieldsConfig, models: Mapping[str, ModelReader], limits: JudgeLimits) -> None:
        self.judge = Judge(fields, models, limits)
        self._models = models
        self._limits = limits
        self._plan = None if self.judge.explodes else compile_plan(fields, models)
        self._contents = {name: _Contents() for name in models}

    def decode(self, records: RecordBatch) -> Decoded:
        """Events of a batch; ``accepted + rejected == read``, whatever the records hold."""
        if self._plan is None:
            return self._judge_all(records)
        suspects = self._suspicious_bytes(records)
        events = self._parse(self._plan, records.payloads, suspects)
        columns = self._plan.columns(events)
        batches: dict[str, EventBatch] = {}
        for model, rows in self._by_model(columns, suspects):
            batch = self._batch(model, columns, rows, suspects, records.arrival_ms)
            if batch is not None:
                batches[model.name] = batch
        if not suspects.any():
            return Decoded(len(records), batches, ())
        return self._with_judged(records, batches, suspects)

    # the fast way --------------------------------------------------------------------------------

    def _suspicious_bytes(self, records: RecordBatch) -> Bools:
        payloads = records.payloads
        suspects = np.zeros(len(payloads), np.bool_)
        suspects[list(records.unreadable)] = True
        limit = self._limits.max_message_bytes
        if max(map(len, payloads), default=0) > min(_SHORT, limit):
            for i, payload in enumerate(payloads):
                if len(payload) > limit:
                    suspects[i] = True
                elif len(payload) > _SHORT:
                    suspects[i] |= payload.count(b"[") + payload.count(b"{") > _DEPTH or (
                        len(payload) > 4000 and _LONG_NUMBER.search(payload) is not None
                    )
        if not records.ascii and not b"".join(payloads).isascii():
            for i, payload in enumerate(payloads):
                if not payload.isascii():
                    try:
                        payload.decode()
                    except UnicodeDecodeError:
                        suspects[i] = True
        return suspects

    def _parse(self, plan: Plan, payloads: Sequence[bytes], suspects: Bools) -> list[Any]:
        if not suspects.any():
            try:
                return list(map(plan.decode, payloads))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # found one by one below
        events = []
        for i, payload in enumerate(payloads):
            event = plan.nothing
            if not suspects[i]:
                try:
                    event = plan.decode(payload)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    suspects[i] = True
            events.append(event)
        return events

    def _by_model(self, columns: Columns, suspects: Bools) -> list[tuple[ModelReader, Ints | None]]:
        """Which rows belong to which model; None for all rows. Rows of no model become suspects."""
        constant = columns.plan.fields.model.value
        if constant is not None:
            if constant in self._models:
                return [(self._models[constant], None)]
            suspects[:] = True
            return []
        if len(self._models) == 1:  # the decoder lets no other name pass
            return [(next(iter(self._models.values())), None)]
        names = columns.values("model")
        order = list(self._models)
        number: dict[object, int] = {name: i for i, name in enumerate(order)}
        numbers = np.array([number.get(name, -1) for name in names], np.int64)
        suspects |= numbers < 0
        return [
            (self._models[order[i]], np.flatnonzero(numbers == i)) for i in np.unique(numbers[numbers >= 0])
        ]

    def _batch(
        self, model: ModelReader, columns: Columns, rows: Ints | None, suspects: Bools, arrival_ms: int
    ) -> EventBatch | None:
        """Columns of one model's rows; rows that are not surely in order become suspects."""
        if rows is None:
            rows = np.arange(len(suspects))
        elif len(rows) < len(suspects):
            columns = columns.take(rows)
        bad = suspects[rows]
        shape = len(rows)
        has_prediction, has_outcome = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        fields: dict[str, tuple[Column, Bools]] = {}
        for field in model.task.fields:
            column, present = convert(field, columns, bad)
            fields[field.name] = (column, present)
            if field.block == "prediction":
                has_prediction |= present
            else:
                has_outcome |= present
        if not model.predicted:
            has_prediction = columns.has_attributes()
        for field in model.task.fields:
            if field.required:
                part = has_prediction if field.block == "prediction" else has_outcome
                bad |= part & ~fields[field.name][1]
        bad |= ~(has_prediction | has_outcome)

        limit = arrival_ms + self._limits.max_future_ms
        time = self._times(columns, "time", bad)
        bad |= (has_prediction & (time < 0)) | (time > limit)
        if model.known:
            known = self._times(columns, "outcome_time", bad, read=has_outcome)
            outcome_time = np.where(known < 0, time, known)
            bad |= has_outcome & ((outcome_time < 0) | (outcome_time > limit))
        else:
            outcome_time = time

        has_id, keys = id_keys(columns, bad)
        if model.known:
            bad |= ~has_id & ~(has_prediction & has_outcome)
        cells, digests = self._cells_of(model, columns, has_prediction, bad)
        weights = self._weights(model, columns, has_prediction, bad) if model.weight_bound else None
        good = None
        if bad.any():
            suspects[rows[bad]] = True
            good = np.flatnonzero(~bad)
            if not good.size:
                return None
        sides = {"prediction": has_prediction, "outcome": has_outcome}
        ready = {f.name: filled(f, fields[f.name][0], sides[f.block], good) for f in model.task.fields}
        kept = rows if good is None else rows[good]
        pick = slice(None) if good is None else good
        return EventBatch(
            record=kept,
            key=keys[pick],
            has_id=has_id[pick],
            cell=cells[pick],
            digest=digests[pick],
            has_prediction=has_prediction[pick],
            has_outcome=has_outcome[pick],
            prediction_time=time[pick],
            outcome_time=outcome_time[pick],
            predictions=model.task.prediction_records(ready, None if weights is None else weights[pick]),
            outcomes=model.task.outcome_records(ready),
            texts=_texts(model, ready) if model.task.texts else None,
        )

    def _times(self, columns: Columns, name: str, bad: Bools, read: Bools | None = None) -> Ints:
        """Milliseconds, -1 where absent; rows whose time is not surely in order become bad."""
        path: FieldPath = getattr(columns.plan.fields, name)
        unit = path.unit
        if path.value is not None:
            constant = parse_time(path.value)
            return np.full(len(bad), constant, np.int64)
        values = columns.values(name)
        times = int64(values) if unit == "rfc3339" else None
        if times is not None:
            bad |= (times < FIRST_PLAUSIBLE_MS) | (times > LAST_MS)
            return times
        absent = values.count(None)
        if absent == len(values):
            return np.full(len(values), -1, np.int64)
        if unit == "rfc3339":
            if not absent and set(map(type, values)) == {str}:
                parsed = parse_column(values)
                if parsed is not None:
                    return parsed
            return self._times_one_by_one(values, bad, read)
        numbers, known = floats(values, bad, mixed=name in columns.plan.mixed)
        if unit == "unix_seconds":
            numbers = np.rint(np.where(np.abs(numbers) < 1e15, numbers, -1) * 1000)
        elif float in set(map(type, values)):
            bad |= np.array([isinstance(v, float) for v in values], np.bool_)
        right = known & (numbers >= FIRST_PLAUSIBLE_MS) & (numbers <= LAST_MS)
        bad |= known & ~right
        return np.where(right, numbers, -1).astype(np.int64)

    def _times_one_by_one(self, values: Values, bad: Bools, read: Bools | None) -> Ints:
        times = np.full(len(values), -1, np.int64)
        assume_utc = self._limits.assume_utc
        for i, value in enumerate(values):
            if value is None or bad[i] or (read is not None and not read[i]):
                continue
            if isinstance(value, str):
                try:
                    times[i] = parse_time(value, assume_utc=assume_utc)
                except ValueError:
                    bad[i] = True
            elif FIRST_PLAUSIBLE_MS <= value <= LAST_MS:
                times[i] = value
            else:
                bad[i] = True
        return times

    def _weights(self, model: ModelReader, columns: Columns, wanted: Bools, bad: Bools) -> Floats:
        bound = model.weight_bound or 1.0
        mixed = columns.plan.mixed
        weight, _ = floats(columns.values("weight"), bad, mixed="weight" in mixed)
        fraction, _ = floats(columns.values("sampling_fraction"), bad, mixed="sampling_fraction" in mixed)
        given, shared = ~np.isnan(weight), ~np.isnan(fraction)
        bad |= wanted & given & shared
        bad |= wanted & given & ~((weight > 0) & (weight <= bound))
        bad |= wanted & shared & ~((fraction >= 1 / bound) & (fraction <= 1))
        with np.errstate(all="ignore"):
            usable = np.where(given, weight, np.where(shared, 1 / fraction, 1.0))
        return np.where(wanted & ~bad, np.minimum(usable, bound), 1.0)

    def _cells_of(self, model: ModelReader, columns: Columns, wanted: Bools, bad: Bools) -> tuple[Ints, Keys]:
        """Cell numbers and digests of the rows in ``wanted``, else 0; odd attributes make a row bad."""
        contents = self._contents[model.name]
        rows = None if wanted.all() else np.flatnonzero(wanted)
        keys = columns.attribute_keys(any(a.name == MODEL_VERSION for a in model.attributes), rows)
        found = int64(list(map(contents.number.get, keys)))
        if found is None:
            contents.make_room()
            at = range(len(keys)) if rows is None else rows.tolist()
            for row, key in zip(at, keys, strict=True):
                if key not in contents.number and not bad[row]:
                    try:
                        contents.add(key, *model.cell(*columns.attributes(row)))
                    except Rejected:
                        bad[row] = True
            found = np.array([contents.number.get(key, 0) for key in keys], np.int64)
        if rows is None:
            return contents.cells[found], contents.digests[found]
        cells, digests = np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.uint64)
        cells[rows] = contents.cells[found]
        digests[rows] = contents.digests[found]
        return cells, digests

    # the slow way --------------------------------------------------------------------------------

    def _judge_all(self, records: RecordBatch) -> Decoded:
        return self._with_judged(records, {}, np.ones(len(records), np.bool_))

    def _with_judged(self, records: RecordBatch, batches: dict[str, EventBatch], suspects: Bools) -> Decoded:
        accepted: dict[str, list[tuple[int, Acceptance]]] = {}
        rejects: list[Reject] = []
        read = len(records)
        for i in np.flatnonzero(suspects).tolist():
            if records.lines and records.payloads[i].isspace():
                read -= 1
                continue
            unreadable = records.unreadable.get(i)
            found: list[Acceptance | Rejected] = (
                [unreadable] if unreadable else self.judge.judge(records.record(i), records.arrival_ms)
            )
            read += len(found) - 1
            for element, event in enumerate(found):
                if isinstance(event, Acceptance):
                    accepted.setdefault(event.model, []).append((i, event))
                else:
                    inside = element if self.judge.explodes and len(found) > 1 else None
                    rejects.append(
                        Reject(
                            records.partition,
                            records.positions[i],
                            event.reason,
                            str(event),
                            records.record(i),
                            inside,
                        )
                    )
        for name, events in accepted.items():
            judged = _assemble(self._models[name], events)
            batches[name] = _merge(batches[name], judged) if name in batches else judged
        return Decoded(read, batches, rejects)


def _texts(model: ModelReader, ready: Mapping[str, Column]) -> Texts:
    sides: dict[str, list[str | None]] = {}
    for field in model.task.fields:
        if field.kind == "text":
            sides[field.block] = [None if v is None else str(v) for v in ready[field.name]]
    return Texts(sides["prediction"], sides["outcome"])


def _assemble(model: ModelReader, events: Sequence[tuple[int, Acceptance]]) -> EventBatch:
    has_prediction = np.array([e.prediction_time is not None for _, e in events], np.bool_)
    has_outcome = np.array([e.outcome_time is not None for _, e in events], np.bool_)
    part = {"prediction": has_prediction, "outcome": has_outcome}
    ready: dict[str, Column] = {}
    for field in model.task.fields:
        values = [e.fields[field.name] for _, e in events]
        column: Column
        if field.kind == "text":
            column = [None if v is None else str(v) for v in values]
        elif field.kind == "number":
            column = np.array(values, np.float64)
        else:
            kind = np.int8 if field.kind == "flag" else np.int64
            column = np.array([-1 if v is None else v for v in values]).astype(kind)
        ready[field.name] = filled(field, column, part[field.block], None)
    weights = np.array([e.weight for _, e in events]) if model.weight_bound else None
    return EventBatch(
        record=np.array([i for i, _ in events], np.int64),
        key=hash_ids([e.id or "" for _, e in events]),
        has_id=np.array([e.id is not None for _, e in events], np.bool_),
        cell=np.array([e.cell for _, e in events], np.int64),
        digest=np.array([e.digest for _, e in events], np.uint64),
        has_prediction=has_prediction,
        has_outcome=has_outcome,
        prediction_time=np.array([-1 if e.prediction_time is None else e.prediction_time for _, e in events]),
        outcome_time=np.array([-1 if e.outcome_time is None else e.outcome_time for _, e in events]),
        predictions=model.task.prediction_records(ready, weights),
        outcomes=model.task.outcome_records(ready),
        texts=_texts(model, ready) if model.task.texts else None,
    )


def _merge(left: EventBatch, right: EventBatch) -> EventBatch:
    """Both batches' events in the order of their records."""
    texts = None
    if left.texts is not None and right.texts is not None:
        texts = Texts(
            [*left.texts.predictions, *right.texts.predictions],
            [*left.texts.outcomes, *right.texts.outcomes],
        )
    columns = {
        name: np.concatenate([getattr(left, name), getattr(right, name)])
        for name in EventBatch.__dataclass_fields__
        if name != "texts"
    }
    both = EventBatch(**columns, texts=texts)
    return both.take(np.argsort(both.record, kind="stable"))
