"""The authority on single records: JSON → fields by path → strict pydantic → accepted, or why not.

This is the slow and plain way. :mod:`monitor.decode` takes the fast way where it surely comes to
the same result, and asks here for everything else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeGuard

import xxhash
from pydantic_core import from_json

from monitor.events import Contract, Joined, Outcome, Predicted, validate
from monitor.names import MODEL_VERSION, OTHER, UNKNOWN, Reason
from monitor.paths import STAR, FieldPath, FieldsConfig, Step, format_path, parse_path
from monitor.records import Rejected
from monitor.tasks.base import Task

Unit = Literal["rfc3339", "unix_seconds", "unix_milliseconds"]


@dataclass(frozen=True, slots=True)
class AttributeReader:
    """How an attribute's value becomes the name of a group; ``bins`` are the edges of a numeric one."""

    name: str
    bins: tuple[float, ...] | None = None

    def read(self, value: object) -> str:
        """Name of the value; ``unknown`` when it is absent, null or empty.

        Raises :class:`Rejected` for anything that is not a scalar, or not a number where bins are set.
        """
        if value is None or value == "":
            return UNKNOWN
        if self.bins is not None:
            if not _is_number(value):
                raise Rejected(Reason.WRONG_TYPE, f"attributes.{self.name} should be a number: it has bins")
            return bin_name(self.bins, value)
        if isinstance(value, str):
            return f"={value}" if value == OTHER else value
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):
            return str(int(value)) if value.is_integer() else repr(value)
        if isinstance(value, int) and abs(value) < 2**63:
            return str(value)
        raise Rejected(Reason.WRONG_TYPE, f"attributes.{self.name} is neither a text nor a usual number")


def _is_number(value: object) -> TypeGuard[int | float]:
    """A finite number that is not a boolean; integers beyond 64 bits are none."""
    if isinstance(value, float):
        return isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def bin_name(edges: Sequence[float], value: float) -> str:
    """Name of the bin a number falls in; a bin holds its lower edge and not its upper one.

    >>> [bin_name((25, 45), x) for x in (24.9, 25, 45)]
    ['under 25', '25 to under 45', '45 and over']
    """
    i = bisect_right(edges, value)
    if i == 0:
        return f"under {edges[0]:g}"
    if i == len(edges):
        return f"{edges[-1]:g} and over"
    return f"{edges[i - 1]:g} to under {edges[i]:g}"


@dataclass(frozen=True, slots=True)
class ModelReader:
    """What decoding must know of a model; ``intern`` numbers the combinations of its attributes."""

    name: str
    task: Task
    attributes: tuple[AttributeReader, ...]
    weight_bound: float | None
    intern: Callable[[tuple[str, ...]], int]

    @property
    def predicted(self) -> tuple[str, ...]:
        """Names of the task's prediction fields."""
        return tuple(f.name for f in self.task.fields if f.block == "prediction")

    @property
    def known(self) -> tuple[str, ...]:
        """Names of the task's outcome fields."""
        return tuple(f.name for f in self.task.fields if f.block == "outcome")

    def cell(self, attributes: Mapping[str, object], version: str | None) -> tuple[int, int]:
        """Number of the cell with these attributes, and a hash of them; raises :class:`Rejected`."""
        values = tuple(
            a.read(version if a.name == MODEL_VERSION else attributes.get(a.name)) for a in self.attributes
        )
        digest = xxhash.xxh3_64_intdigest("\x1f".join(values).encode("utf-8", "surrogatepass"))
        return self.intern(values), digest


@dataclass(frozen=True, slots=True)
class Acceptance:
    """An accepted event. ``fields`` are the task's, as they were; times in milliseconds."""

    model: str
    id: str | None
    prediction_time: int | None
    outcome_time: int | None
    weight: float
    cell: int
    digest: int
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class JudgeLimits:
    """Limits on records and times; see the configuration's ``limits`` and ``time``."""

    max_message_bytes: int
    max_future_ms: int
    assume_utc: bool


class Judge:
    """Judges records one by one."""

    def __init__(self, fields: FieldsConfig, models: Mapping[str, ModelReader], limits: JudgeLimits) -> None:
        self.limits = limits
        self._fields = fields
        self._models = models
        self._contracts = {name: Contract.of(m.task.fields, m.weight_bound) for name, m in models.items()}
        task_fields = sorted({f.name for m in models.values() for f in m.task.fields})
        self._task_fields = {name: fields.task_field(name) for name in task_fields}
        self._ids = [parse_path(p) for p in fields.id]
        self._weights = {
            "weight": parse_path(fields.weight),
            "sampling_fraction": parse_path(fields.sampling_fraction),
        }
        attributes = fields.attributes
        self._attributes: tuple[Step, ...] | dict[str, tuple[Step, ...]] = (
            parse_path(attributes)
            if isinstance(attributes, str)
            else {
                name: parse_path(p)
                for name, p in attributes.items()
                if any(a.name == name for m in models.values() for a in m.attributes)
            }
        )
        self.explodes = any(STAR in steps for steps in self._all_steps())

    def _all_steps(self) -> list[tuple[Step, ...]]:
        f = self._fields
        paths = [f.time, f.outcome_time, f.model, f.model_version, *self._task_fields.values()]
        attributes = self._attributes
        return [
            *(p.steps for p in paths),
            *self._ids,
            *self._weights.values(),
            *([attributes] if isinstance(attributes, tuple) else attributes.values()),
        ]

    def judge(self, payload: bytes, arrival_ms: int) -> list[Acceptance | Rejected]:
        """The events of one record, each accepted or rejected, in order.

        A record that cannot be taken apart gives one rejection; an empty array of events gives none.
        """
        try:
            record = self._parse(payload)
            if not self.explodes:
                return [self._event(record, None, arrival_ms)]
            count = self._elements(record)
        except Rejected as reject:
            return [reject]
        found: list[Acceptance | Rejected] = []
        for i in range(count):
            try:
                found.append(self._event(record, i, arrival_ms))
            except Rejected as reject:
                found.append(reject)
        return found

    def _parse(self, payload: bytes) -> dict[str, object]:
        if len(payload) > self.limits.max_message_bytes:
            limit = self.limits.max_message_bytes
            raise Rejected(Reason.TOO_LARGE, f"{len(payload)} bytes; limits.max_message_bytes is {limit}")
        if not payload.strip(b" \t\r\n"):
            raise Rejected(Reason.EMPTY, "the record is empty")
        try:
            record = from_json(payload, allow_inf_nan=False)
        except ValueError as error:
            raise _why_not_json(payload, str(error)) from None
        if not isinstance(record, dict):
            kind = {list: "an array", str: "a text", bool: "a boolean"}.get(type(record), "a number")
            kind = "null" if record is None else kind
            raise Rejected(Reason.NOT_AN_OBJECT, f"the record is {kind}, not a JSON object")
        return record

    def _elements(self, record: dict[str, object]) -> int:
        lengths: dict[tuple[Step, ...], int] = {}
        for steps in self._all_steps():
            if STAR in steps:
                before = steps[: steps.index(STAR)]
                array = _walk(record, before)
                if isinstance(array, list):
                    lengths[before] = len(array)
                elif array is not None:
                    raise Rejected(Reason.WRONG_TYPE, f"{_text(before)} should be an array of events")
        if not lengths:
            raise Rejected(Reason.MISSING_FIELD, "the array of events is missing")
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{_text(path)} has {n}" for path, n in lengths.items())
            raise Rejected(Reason.EXPLODE_MISMATCH, f"arrays of events differ in length: {told}")
        return next(iter(lengths.values()))

    def _event(self, record: dict[str, object], element: int | None, arrival_ms: int) -> Acceptance:
        def find(steps: tuple[Step, ...]) -> object:
            return _walk(record, steps, element)

        f = self._fields
        name = f.model.value if f.model.value is not None else find(f.model.steps)
        model = self._model(name)
        contract = self._contracts[model.name]
        values: dict[str, object] = {"id": self._id([find(steps) for steps in self._ids])}
        for field in model.task.fields:
            path = self._task_fields[field.name]
            values[field.name] = read_flag(field.name, path, find(path.steps))
        predicted = any(values[n] is not None for n in model.predicted)
        attributes = self._find_attributes(find)
        if not model.predicted:
            predicted = attributes is not None
        known = any(values[n] is not None for n in model.known)
        if not predicted and not known:
            either = " or ".join([*model.predicted, *model.known])
            raise Rejected(Reason.MISSING_FIELD, f"the event has no {either}")
        values["time"] = (
            f.time.value if f.time.value is not None else read_time("time", f.time.unit, find(f.time.steps))
        )
        if known:
            values["outcome_time"] = read_time(
                "outcome_time", f.outcome_time.unit, find(f.outcome_time.steps)
            )
        if predicted:
            values["attributes"] = attributes
            version = f.model_version.value
            values["model_version"] = version if version is not None else find(f.model_version.steps)
            if model.weight_bound:
                values |= {n: find(steps) for n, steps in self._weights.items()}
        given = {n: v for n, v in values.items() if v is not None}
        kind = contract.prediction if not known else contract.joined if predicted else contract.outcome
        if kind is None:
            raise Rejected(Reason.MISSING_FIELD, "this task has no outcomes")
        event = validate(kind, given, assume_utc=self.limits.assume_utc)
        return self._accept(model, event, arrival_ms)

    def _accept(self, model: ModelReader, event: object, arrival_ms: int) -> Acceptance:
        cell, digest, weight = 0, 0, 1.0
        prediction_time = outcome_time = None
        if isinstance(event, Predicted):
            prediction_time = int(event.time)
            cell, digest = model.cell(event.attributes, event.model_version)
            if model.weight_bound:
                if event.weight is not None and event.sampling_fraction is not None:
                    raise Rejected(Reason.WRONG_TYPE, "give weight or sampling_fraction, not both")
                fraction = event.sampling_fraction
                weight = event.weight if event.weight is not None else 1 / fraction if fraction else 1.0
                weight = min(weight, model.weight_bound)
        if isinstance(event, Joined):
            outcome_time = int(event.time if event.outcome_time is None else event.outcome_time)
        elif isinstance(event, Outcome):
            outcome_time = int(event.outcome_time if event.outcome_time is not None else event.time or 0)
        for time in (prediction_time, outcome_time):
            if time is not None and time > arrival_ms + self.limits.max_future_ms:
                ahead = (time - arrival_ms) / 1000
                raise Rejected(
                    Reason.TIME_IN_FUTURE, f"the event time is {ahead:.0f} s after the record arrived"
                )
        fields = {f.name: getattr(event, f.name, None) for f in model.task.fields}
        identity = getattr(event, "id", None)
        return Acceptance(
            model.name,
            None if identity is None else str(identity),
            prediction_time,
            outcome_time,
            weight,
            cell,
            digest,
            fields,
        )

    def _model(self, name: object) -> ModelReader:
        if name is None:
            if len(self._models) == 1:
                return next(iter(self._models.values()))
            raise Rejected(Reason.MISSING_FIELD, "model is missing; the configuration has several")
        if not isinstance(name, str):
            raise Rejected(Reason.WRONG_TYPE, "model should be a text")
        if name not in self._models:
            raise Rejected(Reason.UNKNOWN_MODEL, f"the configuration has no model {name[:64]!r}")
        return self._models[name]

    def _id(self, parts: list[object]) -> object:
        if len(parts) == 1:
            return parts[0]
        if any(p is None for p in parts):
            return None
        if any(isinstance(p, bool) or not isinstance(p, str | int) for p in parts):
            raise Rejected(Reason.WRONG_TYPE, "every part of id should be a text or an integer")
        return "/".join(str(p) for p in parts)

    def _find_attributes(self, find: Callable[[tuple[Step, ...]], object]) -> object:
        if isinstance(self._attributes, tuple):
            return find(self._attributes)
        found = {name: find(steps) for name, steps in self._attributes.items()}
        return found if any(v is not None for v in found.values()) else None


def read_flag(name: str, path: FieldPath, value: object) -> object:
    """A field's content after the conditions ``at_least``, ``equals`` and ``one_of``; None is absent."""
    if value is None:
        return None
    if path.at_least is not None:
        if not _is_number(value):
            raise Rejected(Reason.WRONG_TYPE, f"{name} should be a number: it is compared with at_least")
        return value >= path.at_least
    wanted = path.one_of if path.one_of is not None else (path.equals,) if path.equals is not None else None
    if wanted is None:
        return value
    if not isinstance(value, str | bool | int | float):
        raise Rejected(Reason.WRONG_TYPE, f"{name} should be a text, a number or a boolean")
    return any(_same(value, w) for w in wanted)


def _same(value: str | bool | int | float, wanted: str | bool | int | float) -> bool:
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def read_time(name: str, unit: Unit, value: object) -> object:
    """A time in the unit of its mapping, as RFC 3339 text or integer milliseconds; None is absent."""
    if value is None or unit == "rfc3339":
        return value
    if not _is_number(value):
        raise Rejected(Reason.WRONG_TYPE, f"{name} should be a number: its unit is {unit}")
    if abs(value) > 1e15:
        raise Rejected(Reason.INVALID_TIME, f"{name} lies far outside any calendar")
    if unit == "unix_seconds":
        return round(value * 1000)
    if isinstance(value, float):
        raise Rejected(Reason.WRONG_TYPE, f"{name} should be an integer: its unit is {unit}")
    return value


def _walk(record: object, steps: Sequence[Step], element: int | None = None) -> object:
    """The value at a path, or None where there is nothing; ``[*]`` stands for ``element``."""
    value = record
    for step in steps:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            index = step if isinstance(step, int) else element
            if not isinstance(value, list) or index is None or index >= len(value):
                return None
            value = value[index]
        if value is None:
            return None
    return value


def _text(steps: Sequence[Step]) -> str:
    return format_path(tuple(steps)) or "the record"


def _why_not_json(payload: bytes, error: str) -> Rejected:
    try:
        payload.decode()
    except UnicodeDecodeError as broken:
        return Rejected(Reason.INVALID_UTF8, f"byte {broken.start} is not UTF-8")
    if "recursion" in error:
        return Rejected(Reason.TOO_DEEP, "the record is nested too deeply")
    try:
        from_json(payload, allow_inf_nan=True)
    except ValueError:
        return Rejected(Reason.INVALID_JSON, f"the record is not one JSON value: {error}")
    return Rejected(Reason.NAN, "NaN and Infinity are not JSON; send null or leave the field out")
