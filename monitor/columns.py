"""A field mapping as one msgspec decoder, and the fields of what it decodes as columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from monitor.batch import Bools
from monitor.events import MAX_ATTRIBUTE_CHARACTERS, MAX_ID_CHARACTERS, validate_attributes
from monitor.judge import ModelReader
from monitor.paths import FieldPath, FieldsConfig, Step
from monitor.tasks.base import Ints

_UNNAMEABLE = re.compile(r'[\x00-\x1f"\\]')
"""Names that msgspec does not take as those of a field."""


class Plan:
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

    def columns(self, events: list[Any]) -> Columns:
        """Columns of decoded events."""
        return Columns(self, events)


class Columns:
    """Columns of decoded events, taken out when asked for."""

    def __init__(self, plan: Plan, events: list[Any]) -> None:
        self.plan = plan
        self._events = events
        self._taken: dict[str, list[Any]] = {}

    def take(self, rows: Ints) -> Columns:
        """The columns of some events."""
        events = self._events
        return Columns(self.plan, [events[i] for i in rows.tolist()])

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
        try:
            return _getter(place)(self._events)
        except AttributeError:  # an object on the way is null or absent
            return [_deep(event, place) for event in self._events]

    def has_attributes(self) -> Bools:
        """Which events carry attributes."""
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


@cache
def _getter(place: str) -> Callable[[list[Any]], list[Any]]:
    """A function that takes one field out of every event.

    The interpreter specialises a written-out attribute, which ``attrgetter`` is not: it is twice as
    quick. ``place`` is made of numbered names (``f3.f0``), never of anything a user wrote.
    """
    if re.fullmatch(r"f[0-9]+(\.f[0-9]+)*", place) is None:
        raise ValueError(f"{place} is not a place in a record")
    get: Callable[[list[Any]], list[Any]] = eval(f"lambda events: [e.{place} for e in events]")
    return get


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


def compile_plan(fields: FieldsConfig, models: Mapping[str, ModelReader]) -> Plan | None:
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
) -> Plan | None:
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
    return Plan(fields, struct, places, frozenset(mixed), attributes)


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
