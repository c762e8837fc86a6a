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
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from monitor.batch import Bools, EventBatch, Texts
from monitor.events import MAX_ATTRIBUTE_CHARACTERS, MAX_ID_CHARACTERS, validate_attributes
from monitor.judge import Acceptance, Judge, JudgeLimits, ModelReader, read_flag
from monitor.names import MODEL_VERSION
from monitor.paths import FieldPath, FieldsConfig, Step
from monitor.records import RecordBatch, Reject, Rejected
from monitor.tasks.base import Column, Field, Floats, Ints
from monitor.times import FIRST_PLAUSIBLE_MS, LAST_MS, parse_column, parse_time

_SHORT = 400
"""Bytes below which a record can neither be nested too deeply nor hold a number too long."""
_DEPTH = 190
_LONG_NUMBER = re.compile(rb"[0-9]{4000}")
_UNNAMEABLE = re.compile(r'[\x00-\x1f"\\]')
"""Names that msgspec does not take as those of a field."""
_CACHE = 1 << 16
"""Distinct attribute contents remembered per model."""

Values = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Decoded:
    """The outcome of a batch: ``read`` events, those accepted by model, and the rest."""

    read: int
    batches: Mapping[str, EventBatch]
    rejects: Sequence[Reject]


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
        self._plan = None if self.judge.explodes else _plan(fields, models)
        self._cells: dict[str, dict[object, int]] = {name: {} for name in models}

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

    def _parse(self, plan: _Plan, payloads: Sequence[bytes], suspects: Bools) -> list[Any]:
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

    def _by_model(self, columns: _Columns, suspects: Bools) -> list[tuple[ModelReader, Ints | None]]:
        """Which rows belong to which model; None for all rows. Rows of no model become suspects."""
        constant = columns.plan.fields.model.value
        if constant is not None:
            return [(self._models[constant], None)] if constant in self._models else self._nobody(suspects)
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

    def _nobody(self, suspects: Bools) -> list[tuple[ModelReader, Ints | None]]:
        suspects[:] = True
        return []

    def _batch(
        self, model: ModelReader, columns: _Columns, rows: Ints | None, suspects: Bools, arrival_ms: int
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
            column, present = _convert(field, columns, bad)
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

        has_id, keys = _keys(columns, bad)
        if model.known:
            bad |= ~has_id & ~(has_prediction & has_outcome)
        cells = self._cells_of(model, columns, has_prediction, bad)
        weights = self._weights(model, columns, has_prediction, bad) if model.weight_bound else None
        good = None
        if bad.any():
            suspects[rows[bad]] = True
            good = np.flatnonzero(~bad)
            if not good.size:
                return None
        sides = {"prediction": has_prediction, "outcome": has_outcome}
        ready = {f.name: _filled(f, fields[f.name][0], sides[f.block], good) for f in model.task.fields}
        kept = rows if good is None else rows[good]
        pick = slice(None) if good is None else good
        return EventBatch(
            record=kept,
            key=keys[pick],
            has_id=has_id[pick],
            cell=cells[pick],
            has_prediction=has_prediction[pick],
            has_outcome=has_outcome[pick],
            prediction_time=time[pick],
            outcome_time=outcome_time[pick],
            predictions=model.task.prediction_records(ready, None if weights is None else weights[pick]),
            outcomes=model.task.outcome_records(ready),
            texts=_texts(model, ready) if model.task.texts else None,
        )

    def _times(self, columns: _Columns, name: str, bad: Bools, read: Bools | None = None) -> Ints:
        """Milliseconds, -1 where absent; rows whose time is not surely in order become bad."""
        path: FieldPath = getattr(columns.plan.fields, name)
        unit = path.unit
        if path.value is not None:
            constant = parse_time(path.value)
            return np.full(len(bad), constant, np.int64)
        values = columns.values(name)
        times = _int64(values) if unit == "rfc3339" else None
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
        numbers, known = _floats(values, bad, mixed=name in columns.plan.mixed)
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

    def _weights(self, model: ModelReader, columns: _Columns, wanted: Bools, bad: Bools) -> Floats:
        bound = model.weight_bound or 1.0
        mixed = columns.plan.mixed
        weight, _ = _floats(columns.values("weight"), bad, mixed="weight" in mixed)
        fraction, _ = _floats(columns.values("sampling_fraction"), bad, mixed="sampling_fraction" in mixed)
        given, shared = ~np.isnan(weight), ~np.isnan(fraction)
        bad |= wanted & given & shared
        bad |= wanted & given & ~((weight > 0) & (weight <= bound))
        bad |= wanted & shared & ~((fraction >= 1 / bound) & (fraction <= 1))
        with np.errstate(all="ignore"):
            usable = np.where(given, weight, np.where(shared, 1 / fraction, 1.0))
        return np.where(wanted & ~bad, np.minimum(usable, bound), 1.0)

    def _cells_of(self, model: ModelReader, columns: _Columns, wanted: Bools, bad: Bools) -> Ints:
        """Cell numbers of the rows in ``wanted``, 0 elsewhere; rows whose attributes are odd become bad."""
        cache = self._cells[model.name]
        rows = None if wanted.all() else np.flatnonzero(wanted)
        keys = columns.attribute_keys(any(a.name == MODEL_VERSION for a in model.attributes), rows)
        known = list(map(cache.get, keys))
        found = _int64(known)
        if found is None:
            if len(cache) > _CACHE:
                cache.clear()
            at = range(len(keys)) if rows is None else rows.tolist()
            for i, (row, key) in enumerate(zip(at, keys, strict=True)):
                if known[i] is None and not bad[row]:
                    try:
                        if key not in cache:
                            cache[key] = model.cell(*columns.attributes(row))
                        known[i] = cache[key]
                    except Rejected:
                        bad[row] = True
            found = np.array([0 if cell is None else cell for cell in known], np.int64)
        if rows is None:
            return found
        cells = np.zeros(len(wanted), np.int64)
        cells[rows] = found
        return cells

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


# columns from structs ----------------------------------------------------------------------------


class _Plan:
    """A msgspec decoder for a field mapping, and where each field is in what it decodes."""

    def __init__(
        self,
        fields: FieldsConfig,
        struct: type[msgspec.Struct],
        places: Mapping[str, str],
        mixed: frozenset[str],
        attributes: Sequence[str] | None,
    ) -> None:
        self.fields = fields
        self.decode: Callable[[bytes], Any] = msgspec.json.Decoder(struct).decode
        self.nothing = struct()
        self.places = places
        self.mixed = mixed
        self.attribute_names = attributes

    def columns(self, events: list[Any]) -> _Columns:
        return _Columns(self, events)


class _Columns:
    """Columns of decoded events, taken out when asked for."""

    def __init__(self, plan: _Plan, events: list[Any]) -> None:
        self.plan = plan
        self._events = events
        self._taken: dict[str, list[Any]] = {}

    def take(self, rows: Ints) -> _Columns:
        events = self._events
        return _Columns(self.plan, [events[i] for i in rows.tolist()])

    def values(self, name: str) -> list[Any]:
        """The field ``name`` of every event; None where it is absent."""
        column = self._taken.get(name)
        if column is None:
            column = self._taken[name] = self._take(self.plan.places[name])
        return column

    def ids(self) -> list[Any]:
        """The id of every event; several parts are joined with ``/``, None where one is absent."""
        parts = [self.values(f"id.{i}") for i in range(len(self.plan.fields.id))]
        if len(parts) == 1:
            return parts[0]
        return [None if None in row else "/".join(map(str, row)) for row in zip(*parts, strict=True)]

    def _take(self, place: str) -> list[Any]:
        get = attrgetter(place)
        try:
            return list(map(get, self._events))
        except AttributeError:  # an object on the way is null or absent
            return [_deep(event, place) for event in self._events]

    def has_attributes(self) -> Bools:
        if self.plan.attribute_names is None:
            raw = self.values("attributes")
            return np.array([v is not None and bytes(v) != b"null" for v in raw], np.bool_)
        present = np.zeros(len(self._events), np.bool_)
        for name in self.plan.attribute_names:
            present |= np.array([v is not None for v in self.values(f"attributes.{name}")], np.bool_)
        return present

    def attribute_keys(self, version: bool, rows: Ints | None) -> Sequence[object]:
        """For each of these events (None: all) a key such that equal keys mean equal attributes."""
        chosen = None if rows is None else rows.tolist()

        def column(name: str) -> list[Any]:
            values = self.values(name)
            return values if chosen is None else [values[i] for i in chosen]

        if not self._events or chosen == []:
            return []
        versions = column("model_version") if version and "model_version" in self.plan.places else None
        if self.plan.attribute_names is None:
            raw = column("attributes")
            if None in raw:
                raw = [b"" if r is None else r for r in raw]
            keys: list[object] = [*b"\0".join(raw).split(b"\0")]  # one copy; JSON has no NUL byte
            return keys if versions is None else list(zip(keys, versions, strict=True))
        columns = [_typed(column(f"attributes.{name}")) for name in self.plan.attribute_names]
        if versions is not None:
            columns.append(versions)
        count = len(self._events) if chosen is None else len(chosen)
        return list(zip(*columns, strict=True)) if columns else [()] * count

    def attributes(self, row: int) -> tuple[Mapping[str, object], str | None]:
        """Attributes and model version of one event, judged; raises :class:`Rejected`."""
        constant = self.plan.fields.model_version.value
        version = constant if constant is not None else self.values("model_version")[row]
        if self.plan.attribute_names is None:
            raw = self.values("attributes")[row]
            found = {} if raw is None else validate_attributes(raw=bytes(raw))
        else:
            found = validate_attributes(
                values={n: self.values(f"attributes.{n}")[row] for n in self.plan.attribute_names}
            )
        return found, version


def _typed(column: list[Any]) -> list[Any]:
    """Values that are equal only when of one kind: True, 1 and 1.0 are equal in Python."""
    if set(map(type, column)) <= {str, type(None)}:
        return column
    return [
        (type(v), v) if isinstance(v, bool) or (isinstance(v, int | float) and abs(v) >= 2**63) else v
        for v in column
    ]


def _deep(event: object, place: str) -> object:
    for name in place.split("."):
        if event is None:
            return None
        event = getattr(event, name)
    return event


_KINDS: dict[str, Any] = {
    "flag": bool | int,
    "number": int | float,
    "count": int,
    "text": str,
    "scalar": str | bool | int | float,
    "id": Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_CHARACTERS)] | int,
    "version": Annotated[str, msgspec.Meta(max_length=MAX_ATTRIBUTE_CHARACTERS)],
    "time": str | int,
    "raw": msgspec.Raw,
}


def _plan(fields: FieldsConfig, models: Mapping[str, ModelReader]) -> _Plan | None:
    """The decoder for a mapping of plain names, or None where only the judge can read it."""
    if len(fields.model_version.value or "") > MAX_ATTRIBUTE_CHARACTERS:
        return None
    wanted: list[tuple[str, tuple[Step, ...], str]] = []

    def want(name: str, path: FieldPath, kind: str) -> None:
        wanted.append((name, path.steps, kind))

    for i, part in enumerate(fields.id):
        want(f"id.{i}", FieldPath(path=part), "id")
    for name in ("time", "outcome_time"):
        path: FieldPath = getattr(fields, name)
        if path.value is None:
            want(name, path, "time" if path.unit == "rfc3339" else "number")
    if fields.model.value is None:
        want("model", fields.model, "model")
    if fields.model_version.value is None:
        want("model_version", fields.model_version, "version")
    if any(m.weight_bound for m in models.values()):
        want("weight", FieldPath(path=fields.weight), "number")
        want("sampling_fraction", FieldPath(path=fields.sampling_fraction), "number")
    for name, own in dict.fromkeys((f.name, f.kind) for m in models.values() for f in m.task.fields):
        path = fields.task_field(name)
        conditions = {"at_least": "number", "equals": "scalar", "one_of": "scalar"}
        kinds = [kind for option, kind in conditions.items() if getattr(path, option) is not None]
        want(name, path, kinds[0] if kinds else own)
    attributes: list[str] | None = None
    if isinstance(fields.attributes, str):
        want("attributes", FieldPath(path=fields.attributes), "raw")
    else:
        used = {a.name for m in models.values() for a in m.attributes}
        attributes = [name for name in fields.attributes if name in used]
        for name in attributes:
            want(f"attributes.{name}", FieldPath(path=fields.attributes[name]), "scalar")
    return _compile(fields, wanted, attributes, {**_KINDS, "model": Literal[tuple(models)]})


def _compile(
    fields: FieldsConfig,
    wanted: Sequence[tuple[str, tuple[Step, ...], str]],
    attributes: list[str] | None,
    types: Mapping[str, Any],
) -> _Plan | None:
    tree: dict[str, Any] = {}
    kinds: dict[tuple[Step, ...], list[str]] = {}
    for _, steps, kind in wanted:
        kinds.setdefault(steps, []).append(kind)
    for steps, uses in kinds.items():
        if not all(isinstance(s, str) and not _UNNAMEABLE.search(s) for s in steps):
            return None
        if len(set(uses)) > 1 and not _mixable(uses):
            return None
        node = tree
        for step in steps[:-1]:
            node = node.setdefault(str(step), {})
            if not isinstance(node, dict):
                return None
        if steps[-1] in node:
            return None
        node[str(steps[-1])] = types[uses[0] if len(set(uses)) == 1 else "scalar"]
    names: dict[tuple[Step, ...], str] = {}
    struct = _struct(tree, (), names)
    places = {name: names[steps] for name, steps, _ in wanted}
    mixed = {name for name, steps, kind in wanted if kind == "scalar" or len(set(kinds[steps])) > 1}
    return _Plan(fields, struct, places, frozenset(mixed), attributes)


def _mixable(uses: Sequence[str]) -> bool:
    """May these fields share a path in the fast way? Their columns check their own types then."""
    return set(uses) <= {"number", "scalar", "flag"}


def _struct(
    tree: Mapping[str, Any], prefix: tuple[Step, ...], names: dict[tuple[Step, ...], str], place: str = ""
) -> type[msgspec.Struct]:
    fields: list[tuple[str, Any, Any]] = []
    rename: dict[str, str] = {}
    for i, (key, kind) in enumerate(tree.items()):
        name = f"f{i}"
        at = f"{place}.{name}" if place else name
        rename[name] = key
        names[(*prefix, key)] = at
        inner = _struct(kind, (*prefix, key), names, at) if isinstance(kind, dict) else kind
        fields.append((name, inner | None if inner is not msgspec.Raw else inner, None))
    return msgspec.defstruct("Record", fields, rename=rename, gc=False)


# columns to arrays -------------------------------------------------------------------------------


def _convert(field: Field, columns: _Columns, bad: Bools) -> tuple[Column, Bools]:
    """A task field as the column its task expects, and where it is present; odd rows become bad."""
    values = columns.values(field.name)
    path = columns.plan.fields.task_field(field.name)
    plain = path.at_least is None and path.equals is None and path.one_of is None
    if plain and field.kind == "flag":
        flags = _quick_flags(values)
        if flags is not None and (flags >= 0).all():
            return flags, np.ones(len(values), np.bool_)
    if values.count(None) == len(values):
        return _absent(field, len(values)), np.zeros(len(values), np.bool_)
    mixed = field.name in columns.plan.mixed
    if path.at_least is not None:
        numbers, present = _floats(values, bad, mixed=mixed)
        bad |= np.abs(numbers) > 2.0**53  # beyond it an integer may round to the bound
        return np.where(present, numbers >= path.at_least, -1).astype(np.int8), present
    if not plain:
        read = [-1 if v is None else int(bool(read_flag(field.name, path, v))) for v in values]
        chosen = np.array(read, np.int8)
        return chosen, chosen >= 0
    if field.kind == "flag":
        if not mixed:
            flags = _quick_flags(map(_FLAG_CODES.get, values))
            if flags is not None:
                return flags, flags >= 0
        return _flags(values, bad)
    if field.kind == "number":
        numbers, present = _floats(values, bad, mixed=mixed)
        bad |= present & ~((numbers >= field.low) & (numbers <= field.high))
        return numbers, present
    present = np.array([v is not None for v in values], np.bool_)
    if field.kind == "count":
        counts = _int64([-1 if v is None else v for v in values])
        if counts is None:
            bad[:] = True
            return _absent(field, len(values)), np.zeros(len(values), np.bool_)
        bad |= present & ~((counts >= field.low) & (counts <= field.high))
        return counts, present
    bad |= np.array([v is not None and len(v) > field.high for v in values], np.bool_)
    return values, present


def _absent(field: Field, count: int) -> Column:
    if field.kind == "flag":
        return np.full(count, -1, np.int8)
    if field.kind == "number":
        return np.full(count, np.nan)
    return np.full(count, -1, np.int64) if field.kind == "count" else [None] * count


def _floats(values: Values, bad: Bools, *, mixed: bool) -> tuple[Floats, Bools]:
    """float64 with NaN for None; rows that hold anything but a number become bad.

    ``mixed`` says that the decoder lets more than numbers pass.
    """
    if mixed and not set(map(type, values)) <= {int, float, type(None)}:
        odd = [isinstance(v, bool | str) for v in values]
        bad |= np.array(odd, np.bool_)
        values = [None if wrong else v for v, wrong in zip(values, odd, strict=True)]
    try:
        numbers = np.array(values, np.float64)
    except OverflowError:  # an integer beyond the range of floats
        huge = [isinstance(v, int) and abs(v) > 2**1000 for v in values]
        bad |= np.array(huge, np.bool_)
        numbers = np.array([None if h else v for v, h in zip(values, huge, strict=True)], np.float64)
    return numbers, ~np.isnan(numbers)


_FLAG_CODES = {None: 255, 0: 0, 1: 1}


def _quick_flags(values: Iterable[Any]) -> NDArray[np.int8] | None:
    """int8 of true, false, 1, 0, and 255 for -1; None when there is anything else."""
    try:
        flags = np.frombuffer(bytes(values), np.int8)
    except (TypeError, ValueError):  # an absent value, a text, a number that is no flag
        return None
    return flags if not (flags > 1).any() and not (flags < -1).any() else None


def _flags(values: Values, bad: Bools) -> tuple[Column, Bools]:
    """int8 with -1 for None; rows that hold anything but true, false, 1 and 0 become bad."""
    right = [v is None or (isinstance(v, bool | int) and 0 <= v <= 1) for v in values]
    bad |= ~np.array(right, np.bool_)
    read = [-1 if v is None or not good else int(v) for v, good in zip(values, right, strict=True)]
    flags = np.array(read, np.int8)
    return flags, flags >= 0


def _int64(values: Values) -> Ints | None:
    """int64 of a column of integers only; None for any other, or one beyond 64 bits."""
    try:
        return np.frombuffer(array("q", values), np.int64)
    except (TypeError, OverflowError):
        return None


def _keys(columns: _Columns, bad: Bools) -> tuple[Bools, Any]:
    """Which events have an id, and its hash; rows whose id is not surely in order become bad."""
    ids = columns.ids()
    if len(columns.plan.fields.id) == 1:  # the decoder checked the length of texts
        try:
            return np.ones(len(ids), np.bool_), hash_ids(ids)
        except TypeError:  # an absent id or an integer
            pass
    has_id = np.array([i is not None for i in ids], np.bool_)
    bad |= np.array(
        [
            (isinstance(i, str) and not 0 < len(i) <= MAX_ID_CHARACTERS)
            or (isinstance(i, int) and not -(2**63) <= i < 2**63)
            for i in ids
        ],
        np.bool_,
    )
    usable = ["" if i is None or wrong else str(i) for i, wrong in zip(ids, bad.tolist(), strict=True)]
    return has_id, hash_ids(usable)


def hash_ids(ids: Sequence[str]) -> Any:
    """The 64-bit xxh3 hash of each id: stable across processes and machines."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, map(str.encode, ids)), np.uint64, len(ids))


def _filled(field: Field, column: Column, part: Bools, good: Ints | None) -> Column:
    """A column ready for the task: only good rows; required values in place where the part is absent."""
    if not isinstance(column, np.ndarray):
        return column if good is None else [column[i] for i in good.tolist()]
    if field.required and not part.all():
        column = np.where(part, column, np.array(field.low).astype(column.dtype))
    return column if good is None else column[good]


def _texts(model: ModelReader, ready: Mapping[str, Column]) -> Texts:
    sides: dict[str, list[str | None]] = {}
    for field in model.task.fields:
        if field.kind == "text":
            sides[field.block] = [None if v is None else str(v) for v in ready[field.name]]
    return Texts(sides["prediction"], sides["outcome"])


# judged events to the same columns ---------------------------------------------------------------


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
        ready[field.name] = _filled(field, column, part[field.block], None)
    weights = np.array([e.weight for _, e in events]) if model.weight_bound else None
    return EventBatch(
        record=np.array([i for i, _ in events], np.int64),
        key=hash_ids([e.id or "" for _, e in events]),
        has_id=np.array([e.id is not None for _, e in events], np.bool_),
        cell=np.array([e.cell for _, e in events], np.int64),
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
