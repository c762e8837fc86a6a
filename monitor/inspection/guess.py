"""A guess at how records become events: the arrays to take apart, times, ids, attributes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from math import floor, log10

import numpy as np

from monitor.inspection.columns import Column, Sample
from monitor.inspection.task import Guess, Use, guess_task
from monitor.inspection.words import (
    DECISION,
    ID,
    KNOWN,
    OUTCOME,
    PART_OF_ID,
    SCORE,
    SENSITIVE,
    TIME,
    split_words,
)
from monitor.names import MODEL_VERSION

MAX_GROUPS = 50
"""A column of texts with more values than this is no attribute."""
_MAX_INTEGERS = 10
_MAX_ATTRIBUTES = 6
_MAX_PARTS = 12
_NAME = re.compile(r"\S(.{0,62}\S)?")


def guess(found: Sample) -> Guess:
    """Guess everything that the proposal says from a sample."""
    plain = [c for c in found.columns.values() if c.array is None]
    options = [plain]
    for lengths in found.lengths.values():
        if len(lengths) >= 0.9 * found.records and any(lengths.values()):
            beside = {p for p, other in found.lengths.items() if other == lengths}
            inside = [c for c in found.columns.values() if c.array in beside]
            options.append([*inside, *plain])
    guesses = [guess_task(columns) for columns in options]
    best = max(range(len(guesses)), key=lambda i: guesses[i].certainty)
    chosen, columns = guesses[best], options[best]
    _guess_times(chosen, columns, found)
    _guess_ids(chosen, columns, found, exploded=best > 0)
    _guess_attributes(chosen, columns)
    return chosen


def _guess_times(chosen: Guess, columns: Sequence[Column], found: Sample) -> None:
    def rank(column: Column) -> tuple[bool, bool, int]:
        words = column.words
        hint = 0 if words[-1:] in (["time"], ["timestamp"], ["ts"]) else 1 if set(words) & TIME else 2
        return bool(KNOWN & set(words)), found.present(column) < 0.99, hint

    units = {c.steps: unit for c in columns if c not in chosen.used and (unit := c.time_unit)}
    for column in sorted((c for c in columns if c.steps in units), key=rank):
        role = "outcome_time" if KNOWN & set(column.words) else "time"
        unit = units[column.steps]
        if role not in chosen.uses and (role == "outcome_time" or found.present(column) > 0.3):
            chosen.uses[role] = Use(column, {} if unit == "rfc3339" else {"unit": unit})


def _guess_ids(chosen: Guess, columns: Sequence[Column], found: Sample, *, exploded: bool) -> None:
    """Choose one column that tells events apart, else two that do so together, else none."""

    def rank(column: Column) -> tuple[bool, bool, int]:
        return not column.unique, column.name.lower() not in ID, len(column.words)

    whole = [
        c
        for c in columns
        if set(c.words) & PART_OF_ID
        and c.only("text", "integer")
        and c not in chosen.used
        and found.present(c) >= 0.99
    ]
    least = 0.9 * _predicted(chosen, found)
    own = [c for c in whole if (c.array is not None or not exploded) and set(c.words) & ID]
    fits = sorted((c for c in own if len(c.distinct) >= least * len(c.values)), key=rank)
    if fits:
        chosen.ids = [fits[0]]
        return
    for pair in combinations(whole[:_MAX_PARTS], 2):
        first, second = sorted(pair, key=lambda c: c.array is not None)
        outer = dict(zip(first.at, first.values, strict=True)) if first.array is None else {}
        ids = {(outer.get(n), v) for n, v in zip(second.at, second.values, strict=True)}
        if outer and (second.array is not None or not exploded) and len(ids) == len(second.values):
            chosen.ids = [first, second]
            return


def _predicted(chosen: Guess, found: Sample) -> float:
    """Share of records that hold a prediction; 1 where outcomes or predictions were not found."""

    def present(*names: str) -> float | None:
        return next((found.present(u.column) for name, u in chosen.uses.items() if name in names), None)

    predicted, known = present("decision", "hypothesis", "prediction"), present("outcome", "reference")
    return 1.0 if predicted is None or known is None else predicted


def _guess_attributes(chosen: Guess, columns: Sequence[Column]) -> None:
    """Choose columns with few values, and known ones with many numbers, the most usual names first."""

    def rank(column: Column) -> int:
        words = split_words(column.name)
        return min((SENSITIVE.index(w) for w in words if w in SENSITIVE), default=len(SENSITIVE))

    taken: set[str] = set()
    for column in sorted(columns, key=lambda c: (rank(c), c.only("integer", "number"))):
        words = set(split_words(column.name))
        name = column.name if column.name not in chosen.attributes else ".".join(map(str, column.steps))
        if column in chosen.used or words & (DECISION | OUTCOME | SCORE | ID) or column.time_unit:
            continue
        if column.name in ("model", MODEL_VERSION) or not _NAME.fullmatch(name):
            continue
        if _has_few_values(column):
            chosen.attributes[name] = column
        elif rank(column) < len(SENSITIVE) and not words & taken and (edges := _edges(column)):
            chosen.attributes[name], chosen.bins[name] = column, edges
        taken |= words & set(SENSITIVE) if name in chosen.attributes else set()
        if len(chosen.attributes) == _MAX_ATTRIBUTES:
            return


def _has_few_values(column: Column) -> bool:
    """Are there few enough texts, flags or integers to compare groups by, and do they come again?"""
    most = MAX_GROUPS if column.only("text", "boolean") else _MAX_INTEGERS
    scalars = column.only("text", "boolean", "integer", "number") and not column.only("number")
    again = len(column.values) < 40 or 2 * len(column.distinct) < len(column.values)
    return scalars and again and 2 <= len(column.distinct) <= most


def _edges(column: Column) -> list[float]:
    """Quartiles of numbers, rounded to half the power of ten of the distance between them; else none."""
    if not column.only("integer", "number"):
        return []
    low, *_, high = quartiles = np.quantile(column.numbers, (0.25, 0.5, 0.75)).tolist()
    if high - low <= 1e-9 * max(-low, high):
        return []
    step = 10.0 ** floor(log10(high - low)) / 2
    return sorted({round(q / step) * step for q in quartiles})
