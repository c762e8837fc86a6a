"""Event times: RFC 3339 texts to milliseconds since 1970-01-01 UTC, one by one or a column at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_TEXT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?([Zz]|[+-]\d\d:\d\d)?)?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""
FIRST_PLAUSIBLE_MS = 100_000_000_000
"""March 1973. A smaller integer is far more likely to be in seconds than in milliseconds."""


def parse_time(text: str, *, assume_utc: bool = False) -> int:
    """Milliseconds since 1970-01-01 UTC of an RFC 3339 date-time or a full date (its midnight UTC).

    Fractions beyond a millisecond are cut off. A date-time needs an offset (``Z``, ``+02:00``)
    unless ``assume_utc``.

    Raises
    ------
    ValueError
        When the text is not such a time, or before 1970; the message says what is wrong.

    Examples
    --------
    >>> parse_time("1970-01-01T01:00:00.5+01:00")
    500
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError("is not an RFC 3339 time such as 2024-05-01T12:00:00Z")
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    if hour is not None and offset is None and not assume_utc:
        raise ValueError("has no offset; write Z or +hh:mm, or set time.assume_utc: true")
    try:
        moment = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
    except ValueError as error:
        raise ValueError(f"is not a time: {error}") from None
    elapsed = moment.replace(tzinfo=UTC) - _EPOCH
    ms = (elapsed.days * 86_400 + elapsed.seconds) * 1000 + int((fraction or "0")[:3].ljust(3, "0"))
    if offset and offset not in "Zz":
        hours, minutes = int(offset[1:3]), int(offset[4:6])
        if hours > 23 or minutes > 59:
            raise ValueError(f"has an impossible offset {offset}")
        ms -= (1 if offset[0] == "+" else -1) * (hours * 60 + minutes) * 60_000
    if ms < 0:
        raise ValueError("lies before 1970")
    return ms


def format_time(ms: int) -> str:
    """RFC 3339 in UTC, with milliseconds only where there are some.

    >>> format_time(1_700_000_000_000)
    '2023-11-14T22:13:20Z'
    """
    seconds, rest = divmod(ms, 1000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:03d}Z" if rest else f"{text}Z"


def parse_column(texts: Sequence[str]) -> Ints | None:
    """A column of times in one of the usual layouts, all in the same one; None where they are not.

    Layouts: ``YYYY-MM-DDTHH:MM:SS`` with 0, 3 or 6 decimals and ``Z`` or ``+00:00``. Every column
    this accepts, :func:`parse_time` accepts with the same result; for the rest it is the judge.
    """
    joined = "".join(texts)
    width, odd = divmod(len(joined), len(texts))
    if odd or not width or not joined.isascii() or set(map(len, texts)) != {width}:
        return None
    chars = np.frombuffer(joined.encode(), np.uint8).reshape(len(texts), width)
    suffix = b"Z" if chars[0, -1] == ord("Z") else b"+00:00"
    decimals = width - len(suffix) - 20
    if decimals not in (-1, 3, 6):
        return None
    layout = b"dddd-dd-ddTdd:dd:dd" + (b"." + b"d" * decimals if decimals > 0 else b"") + suffix
    pattern = np.frombuffer(layout, np.uint8)
    is_digit = pattern == ord("d")
    if not (chars[:, ~is_digit] == pattern[~is_digit]).all():
        return None
    digits = chars[:, is_digit].astype(np.int64) - ord("0")
    if ((digits < 0) | (digits > 9)).any():
        return None
    year = digits[:, :4] @ np.array([1000, 100, 10, 1])
    month, day, hour, minute, second = (digits[:, i] * 10 + digits[:, i + 1] for i in range(4, 14, 2))
    if not ((year >= 1970) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 28)).all() and not _real(
        year, month, day
    ):
        return None
    if (hour > 23).any() or (minute > 59).any() or (second > 59).any():
        return None
    months = (year - 1970) * 12 + month - 1
    days = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) + day - 1
    ms = ((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000
    if decimals > 0:
        ms += digits[:, 14:17] @ np.array([100, 10, 1])
    return np.asarray(ms, np.int64)


def _real(year: Ints, month: Ints, day: Ints) -> bool:
    """Do all these days exist, from 1970 on?"""
    if (year < 1970).any() or (month < 1).any() or (month > 12).any() or (day < 1).any():
        return False
    start = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = (start + 1).astype("datetime64[D]") - start.astype("datetime64[D]")
    return bool((day <= days.astype(np.int64)).all())
