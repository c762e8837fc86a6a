"""Words that are part of the contract with users: group names, statuses, reasons of rejects."""

from __future__ import annotations

from enum import StrEnum

UNKNOWN = "unknown"
"""The value of an attribute that an event does not state. Nothing is inferred in its place."""

OTHER = "other"
"""The value that stands for all values beyond an attribute's cap."""

MODEL_VERSION = "model_version"
"""Attribute filled from the event's field of that name when the configuration asks for it."""

EVERYBODY = "everybody"
"""The grouping that tells nobody apart, and its one group, in labels."""

ALL = "all"
"""The window that holds everything since the start."""


class Status(StrEnum):
    """Why a value is there, or is not. Zero never stands in for a missing value."""

    OK = "ok"
    INSUFFICIENT = "insufficient"
    NO_OUTCOME = "no_outcome"
    UNDEFINED = "undefined"
    SUPPRESSED = "suppressed"
    STALE = "stale"


STATUS_MEANING = {
    Status.OK: "the value rests on at least min_support events",
    Status.INSUFFICIENT: "fewer events than min_support; shown, but left out of gaps",
    Status.NO_OUTCOME: "predictions were made, but none of their outcomes arrived",
    Status.UNDEFINED: "the denominator is zero",
    Status.SUPPRESSED: "withheld: the group, or a group one could find by subtraction, is too small",
    Status.STALE: "the model had no event for health.stale_after; the value is an old one (run only)",
}


class Reason(StrEnum):
    """Why an event was rejected. Codes are stable; they label counters and dead letters."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    INVALID_UTF8 = "invalid_utf8"
    INVALID_JSON = "invalid_json"
    NAN = "nan"
    TOO_DEEP = "too_deep"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    OUT_OF_RANGE = "out_of_range"
    TOO_LONG = "too_long"
    INVALID_TIME = "invalid_time"
    TIME_IN_FUTURE = "time_in_future"
    UNKNOWN_MODEL = "unknown_model"
    EXPLODE_MISMATCH = "explode_mismatch"
    LATE = "late"


REASON_MEANING = {
    Reason.EMPTY: "the record has no bytes",
    Reason.TOO_LARGE: "the record is larger than limits.max_message_bytes",
    Reason.INVALID_UTF8: "the record is not UTF-8",
    Reason.INVALID_JSON: "the record is not one JSON value (cut off, two values, a syntax error)",
    Reason.NAN: "NaN and Infinity are not JSON numbers; send null or leave the field out",
    Reason.TOO_DEEP: "the record is nested too deeply",
    Reason.NOT_AN_OBJECT: "the record is JSON, but not an object",
    Reason.MISSING_FIELD: "a field that is needed is absent or null",
    Reason.WRONG_TYPE: "a field has another type than its contract says; nothing is converted",
    Reason.OUT_OF_RANGE: "a number is outside its declared range",
    Reason.TOO_LONG: "a text is longer than its limit",
    Reason.INVALID_TIME: "a time cannot be read, has no offset, or lies before 1970",
    Reason.TIME_IN_FUTURE: "the event time lies further after its arrival than time.max_future",
    Reason.UNKNOWN_MODEL: "the model is not in the configuration",
    Reason.EXPLODE_MISMATCH: "arrays that are read side by side differ in length",
    Reason.LATE: "the event came after its time bucket had closed; time.grace sets how long that takes",
}


def clean(text: str) -> str:
    r"""Make a text that came with an event fit for a line on a terminal: control characters as ``\x1b``.

    >>> clean("a\nb")
    'a\\nb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
