"""Columns of decoded values to arrays; rows that are not surely in order are marked bad.

Only the judge rejects. Here it is enough to take nothing that the judge would refuse.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from monitor.batch import Bools, Keys
from monitor.columns import Columns
from monitor.events import MAX_ID_CHARACTERS
from monitor.judge import read_flag
from monitor.tasks.base import Column, Field, Floats, Ints

Values = Sequence[Any]


def convert(field: Field, columns: Columns, bad: Bools) -> tuple[Column, Bools]:
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
        numbers, present = floats(values, bad, mixed=mixed)
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
        numbers, present = floats(values, bad, mixed=mixed)
        bad |= present & ~((numbers >= field.low) & (numbers <= field.high))
        return numbers, present
    present = np.array([v is not None for v in values], np.bool_)
    if field.kind == "count":
        counts = int64([-1 if v is None else v for v in values])
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


def floats(values: Values, bad: Bools, *, mixed: bool) -> tuple[Floats, Bools]:
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


def int64(values: Values) -> Ints | None:
    """int64 of a column of integers only; None for any other, or one beyond 64 bits."""
    try:
        return np.frombuffer(array("q", values), np.int64)
    except (TypeError, OverflowError):
        return None


def id_keys(columns: Columns, bad: Bools) -> tuple[Bools, Keys]:
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


def hash_ids(ids: Sequence[str]) -> Keys:
    """The 64-bit xxh3 hash of each id: stable across processes and machines."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, map(str.encode, ids)), np.uint64, len(ids))


def filled(field: Field, column: Column, part: Bools, good: Ints | None) -> Column:
    """A column ready for the task: only good rows; required values in place where the part is absent."""
    if not isinstance(column, np.ndarray):
        return column if good is None else [column[i] for i in good.tolist()]
    if field.required and not part.all():
        column = np.where(part, column, np.array(field.low).astype(column.dtype))
    return column if good is None else column[good]
