"""Durations, as people write them: ``90s``, ``1h30m``, ``30d``."""

from __future__ import annotations

import re
from datetime import timedelta
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from monitor.errors import wrong
from monitor.names import ALL

_UNITS = {
    "w": timedelta(weeks=1),
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
    "us": timedelta(microseconds=1),
}
_ORDER = list(_UNITS)
_PART = re.compile(r"([0-9]+)(ms|us|w|d|h|m|s)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_EXAMPLE = 'write a duration like "90s" or "1h30m"'
_HOUR = _UNITS["h"]
DAY = _UNITS["d"]


def parse_duration(text: str) -> timedelta:
    """Duration written as whole numbers with units, the largest unit first.

    Parameters
    ----------
    text
        Such as ``"500ms"``, ``"90s"``, ``"1h30m"`` or ``"30d"``; units are w, d, h, m, s, ms and us.

    Raises
    ------
    ValueError
        When the text is anything else; the message says what to write.

    Examples
    --------
    >>> parse_duration("1h30m")
    datetime.timedelta(seconds=5400)
    """
    stripped = text.strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", stripped):
        raise ValueError(
            f'{stripped} has no unit; write "{stripped}s" for seconds or "{stripped}m" for minutes'
        )
    if not _WHOLE.fullmatch(stripped):
        raise ValueError(f'{text!r} is not a duration; write whole numbers with units, like "90s" or "1h30m"')
    parts = _PART.findall(stripped)
    if any(_ORDER.index(a) >= _ORDER.index(b) for (_, a), (_, b) in pairwise(parts)):
        raise ValueError(f'{text!r} is not a duration; write each unit once, the largest first, like "1h30m"')
    try:
        return sum((int(number) * _UNITS[unit] for number, unit in parts), timedelta())
    except OverflowError:
        raise ValueError(f"{text!r} is too long; write a shorter duration") from None


def format_duration(duration: timedelta) -> str:
    """Shortest text that :func:`parse_duration` reads back; days are the largest unit.

    Raises ValueError for a negative duration.

    >>> format_duration(timedelta(seconds=5400)), format_duration(timedelta(0))
    ('1h30m', '0s')
    """
    if duration < timedelta(0):
        raise ValueError(f"a duration cannot be negative: {duration}")
    text = ""
    for unit in _ORDER[1:]:
        count, duration = divmod(duration, _UNITS[unit])
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def slide_step(window: timedelta, bucket: timedelta) -> timedelta:
    """How far a window slides at a time, which is also what its length must be a multiple of.

    Windows up to 2 hours slide by the time bucket, up to 2 days by an hour, longer ones by a day;
    never by less than the time bucket.
    """
    if window <= 2 * _HOUR:
        return bucket
    return max(bucket, _HOUR if window <= 2 * DAY else DAY)


def why_unfit(window: timedelta | Literal["all"], bucket: timedelta) -> tuple[str, str] | None:
    """Say what is wrong with a window over these time buckets and what to do, or None."""
    if isinstance(window, str):
        return None
    step = slide_step(window, bucket)
    length, by = format_duration(window), format_duration(step)
    if window % step:
        below = window // step * step
        near = " or ".join(format_duration(w) for w in (below, below + step) if w)
        return f"a window of {length} is not a multiple of {by}, by which it slides", f"write {near}"
    if step % bucket:
        cut = format_duration(bucket)
        message = f"a window of {length} slides by {by}, which is no whole number of time buckets of {cut}"
        return message, f"use a time.bucket that divides {by}"
    return None


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        if value < timedelta(0):
            raise wrong("a duration cannot be negative", _EXAMPLE)
        return value
    if value is None or isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong("this is not a duration", _EXAMPLE)
    try:
        return parse_duration(str(value))
    except ValueError as error:
        message, _, fix = str(error).partition("; ")
        raise wrong(message, fix) from None


def _window(value: Any) -> timedelta | Literal["all"]:
    if value == ALL:
        return "all"
    window = _duration(value)
    if not window:
        raise wrong("a window cannot be empty", 'write a duration like "1h", or "all"')
    return window


def format_window(window: timedelta | Literal["all"]) -> str:
    """``"all"`` or the text of the duration."""
    return window if isinstance(window, str) else format_duration(window)


Duration = Annotated[
    timedelta,
    PlainValidator(_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_WHOLE.pattern}$", "examples": ["90s", "1h30m"]}),
]
"""Pydantic type of a duration. A bare number is an error: its unit would be a guess."""

Window = Annotated[
    timedelta | Literal["all"],
    PlainValidator(_window),
    PlainSerializer(format_window, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^(all|{_WHOLE.pattern})$", "examples": ["1h", "all"]}),
]
"""Pydantic type of a window: a duration, or ``all`` for everything since the start."""
