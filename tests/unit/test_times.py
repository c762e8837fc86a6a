"""Times: which texts are times, which moment they are, and that a column reads like its rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from monitor.times import FIRST_PLAUSIBLE_MS, LAST_MS, format_time, parse_column, parse_time

NOON = 1_714_564_800_000
MOMENTS = [
    ("2024-05-01T12:00:00Z", NOON),
    ("2024-05-01t12:00:00z", NOON),
    ("2024-05-01 12:00:00Z", NOON),
    ("2024-05-01T12:00Z", NOON),
    ("2024-05-01T12:00:00.5Z", NOON + 500),
    ("2024-05-01T12:00:00.1239Z", NOON + 123),
    ("2024-05-01T12:00:00.000999999Z", NOON),
    ("2024-05-01T14:00:00+02:00", NOON),
    ("2024-05-01T06:30:00-05:30", NOON),
    ("2024-05-01T12:00:00-00:00", NOON),
    ("2024-05-02T11:59:00+23:59", NOON),
    ("2024-05-01", NOON - 43_200_000),
    ("2024-02-29", 1_709_164_800_000),
    ("2000-02-29T00:00:00Z", 951_782_400_000),
    ("1970-01-01", 0),
    ("1970-01-01T01:00:00+01:00", 0),
    ("1969-12-31T23:00:00-01:00", 0),
    ("9999-12-31T23:59:59.999Z", LAST_MS),
]
NO_TIMES = {
    "not an RFC 3339 time": [
        "", " ", "Z", "now", "2024", "2024-05", "20240501", "2024-5-1", "2024-05-01T", "2024-05-01T12Z",
        "2024-05-01T12:00:00.Z", "2024-05-01T12:00:00.1234567890Z", "2024-05-01T12:00:00 Z", " 2024-05-01",
        "2024-05-01\n", "2024-05-01Z", "+2024-05-01", "-2024-05-01", "12024-05-01", "2024-05-01T12:00:00+2",
        "2024-05-01T12:00:00+0200", "2024-05-01T12:00:00,5Z", "２０２４-05-01", "1714564800000", "2024/05/01",
        "Wed, 01 May 2024 12:00:00 GMT", "2024-05-01T12:00:00Z\x00", "2024-W18-3", "\ud800",
    ],
    "has no offset": ["2024-05-01T12:00:00", "2024-05-01 12:00", "2024-05-01T12:00:00.123"],
    "is not a time": [
        "2023-02-29", "1900-02-29", "2024-02-30", "2024-04-31", "2024-13-01", "2024-00-01", "2024-05-00",
        "2024-05-32", "2024-05-01T24:00:00Z", "2024-05-01T12:60:00Z", "2016-12-31T23:59:60Z", "0000-01-01",
    ],
    "impossible offset": ["2024-05-01T12:00:00+24:00", "2024-05-01T12:00:00-02:60"],
    "before 1970": ["1969-12-31", "1969-12-31T23:59:59.999Z", "1970-01-01T00:00:00+00:01", "0001-01-01"],
}  # fmt: skip
LAYOUTS = ["%sZ", "%s+00:00", "%s.123Z", "%s.000+00:00", "%s.123456Z", "%s.999999+00:00"]


@pytest.mark.parametrize(("text", "ms"), MOMENTS)
def test_moments(text: str, ms: int) -> None:
    assert parse_time(text) == ms
    column = parse_column([text] * 3)
    assert column is None or column.tolist() == [ms] * 3


@pytest.mark.parametrize(("why", "text"), [(why, text) for why, texts in NO_TIMES.items() for text in texts])
def test_no_times(why: str, text: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_time(text)
    assert parse_column([text]) is None
    assert parse_column([text] * 5) is None


@pytest.mark.parametrize("text", NO_TIMES["has no offset"])
def test_assumed_utc(text: str) -> None:
    assert parse_time(text, assume_utc=True) == parse_time(text + "Z")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_of_the_usual_layouts(layout: str) -> None:
    texts = [layout % t for t in ("1970-01-01T00:00:00", "2024-02-29T23:59:59", "9999-12-31T23:59:59")]
    column = parse_column(texts)
    assert column is not None
    assert column.dtype == np.int64
    assert column.tolist() == [parse_time(t) for t in texts]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "day", ["2023-02-29", "2100-02-29", "2024-06-31", "2024-00-10", "2024-13-10", "2024-01-00"]
)
def test_one_impossible_day_spoils_the_column(layout: str, day: str) -> None:
    assert parse_column([layout % "2024-01-01T00:00:00", layout % f"{day}T00:00:00"]) is None


@seed(1)
@given(
    st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30)),
    st.sampled_from(LAYOUTS),
    st.integers(0, 28),
    st.characters(),
)
def test_a_column_reads_like_its_rows(when: datetime, layout: str, at: int, char: str) -> None:
    text = layout % when.strftime("%Y-%m-%dT%H:%M:%S").zfill(19)
    changed = text[:at] + char + text[at + 1 :]
    for texts in ([text], [text, text], [text, changed], [changed, text], [changed]):
        column = parse_column(texts)
        if column is not None:
            assert column.tolist() == [parse_time(t) for t in texts]
    assert parse_column([text]) is not None


@seed(2)
@given(
    st.datetimes(datetime(1970, 1, 3), datetime(9999, 12, 29)),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
def test_against_the_standard_library(when: datetime, offset: int) -> None:
    zoned = when.replace(tzinfo=timezone(timedelta(minutes=offset)))
    elapsed = zoned - datetime(1970, 1, 1, tzinfo=UTC)
    assert parse_time(zoned.isoformat()) == elapsed // timedelta(milliseconds=1)


@seed(3)
@given(st.integers(0, LAST_MS))
def test_what_is_written_is_read(ms: int) -> None:
    assert parse_time(format_time(ms)) == ms


def test_seconds_are_never_taken_for_milliseconds() -> None:
    assert FIRST_PLAUSIBLE_MS > 4_102_444_800, "the year 2100 in seconds"
