"""The sampled records taken apart into columns, and what a column holds."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from pydantic_core import from_json

from monitor.inspection.words import BIRTH, KNOWN, TIME, singular, split_words
from monitor.judge import Unit, read_time
from monitor.paths import STAR, Step
from monitor.records import Rejected
from monitor.times import LAST_MS, parse_time

_MAX_PATHS, _MAX_DISTINCT = 1_000, 50_000
_HUGE = 1e18
_KINDS = {bool: "boolean", int: "integer", float: "number", str: "text", list: "array", dict: "object"}
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,300})(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_YEARS_2000_TO_2100 = (946_684_800, 4_102_444_800)


def nearly_all(count: int, total: int) -> bool:
    """Are these all but a few odd ones?"""
    return total > 0 and count >= 0.98 * total


@dataclass(slots=True)
class Column:
    """The values at one path, in order, nulls left out, with the number of the record of each.

    ``kinds`` counts their JSON types; ``distinct`` counts equal scalars, up to a limit on how many differ.
    """

    steps: tuple[Step, ...]
    at: list[int] = field(default_factory=list)
    values: list[object] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    distinct: Counter[object] = field(default_factory=Counter)

    def add(self, record: int, value: object) -> None:
        """Take in the value of one record."""
        self.at.append(record)
        self.values.append(value)
        huge = isinstance(value, int | float) and abs(value) > _HUGE
        self.kinds["huge number" if huge else _KINDS[type(value)]] += 1
        if isinstance(value, str | int | float):
            key = str(value).lower() if isinstance(value, bool) else value
            if key in self.distinct or len(self.distinct) < _MAX_DISTINCT:
                self.distinct[key] += 1

    @property
    def words(self) -> list[str]:
        """Words of the names on the path, in lower case and the singular."""
        return [singular(w) for s in self.steps if isinstance(s, str) for w in split_words(s)]

    @property
    def name(self) -> str:
        """The last name on the path."""
        return str(next((s for s in reversed(self.steps) if isinstance(s, str)), ""))

    @property
    def array(self) -> tuple[Step, ...] | None:
        """Path of the array whose elements hold the values, or None when no array does."""
        return self.steps[: self.steps.index(STAR)] if STAR in self.steps else None

    @property
    def numbers(self) -> list[float]:
        """The values that are numbers of a usual size."""
        return [
            v
            for v in self.values
            if isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= _HUGE
        ]

    @property
    def unique(self) -> bool:
        """Is no value there twice?"""
        return len(self.distinct) == len(self.values)

    @property
    def time_unit(self) -> Unit | None:
        """Unit of the times that the column holds, or None when it holds none."""
        words = set(self.words)
        if words & BIRTH:
            return None
        if self.only("text"):
            good = sum(n for v, n in self.distinct.items() if milliseconds(v, "rfc3339") is not None)
            return "rfc3339" if nearly_all(good, len(self.values)) else None
        if words & (TIME | KNOWN):
            low, high = _YEARS_2000_TO_2100
            numbers = self.numbers
            if self.only("integer", "number") and nearly_all(
                sum(low <= v < high for v in numbers), len(self.values)
            ):
                return "unix_seconds"
            if self.only("integer") and nearly_all(
                sum(1000 * low <= v < 1000 * high for v in numbers), len(self.values)
            ):
                return "unix_milliseconds"
        return None

    def only(self, *kinds: str) -> bool:
        """Are nearly all values of these types?"""
        return nearly_all(sum(self.kinds[k] for k in kinds), self.kinds.total())


def milliseconds(value: object, unit: Unit) -> int | None:
    """Milliseconds of a time, as the decoder reads it; None for what is no time in this unit."""
    if unit == "rfc3339" and not isinstance(value, str):
        return None
    try:
        read = read_time("time", unit, value)
        ms = parse_time(read, assume_utc=True) if isinstance(read, str) else read
    except (Rejected, ValueError):
        return None
    return ms if isinstance(ms, int) and 0 <= ms <= LAST_MS else None


class Sample:
    """The sampled records taken apart into columns; ``lengths`` of arrays by record."""

    def __init__(self) -> None:
        self.columns: dict[tuple[Step, ...], Column] = {}
        self.lengths: dict[tuple[Step, ...], dict[int, int]] = {}
        self.records = 0

    def add(self, payload: bytes | None, is_csv: bool) -> None:
        """Take in one record; what is not a JSON object is left to the decoder to explain."""
        try:
            record = from_json(payload, allow_inf_nan=False) if payload else None
        except ValueError:
            return
        if isinstance(record, dict):
            self.records += 1
            self._walk({k: _cell(v) for k, v in record.items()} if is_csv else record, ())

    def _walk(self, value: object, steps: tuple[Step, ...]) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                self._walk(inner, (*steps, name))
        elif isinstance(value, list) and STAR not in steps:
            self.lengths.setdefault(steps, {})[self.records] = len(value)
            for inner in value:
                self._walk(inner, (*steps, STAR))
        elif value is not None and (steps in self.columns or len(self.columns) < _MAX_PATHS):
            self.columns.setdefault(steps, Column(steps)).add(self.records, value)

    def present(self, column: Column) -> float:
        """Share of the records, or of the elements of the array, with a value."""
        array = column.array
        total = self.records if array is None else sum(self.lengths[array].values())
        return len(column.values) / total if total else 0.0


def _cell(text: object) -> object:
    """Read a CSV cell as what it can be: a boolean, a number, else a text."""
    if not isinstance(text, str):
        return text
    bare = text.strip().lower()
    if bare in ("true", "false"):
        return bare == "true"
    match = _NUMBER.fullmatch(bare)
    return text if match is None else float(bare) if match[2] or match[3] else int(bare)
