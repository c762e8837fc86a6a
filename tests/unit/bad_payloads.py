"""Bad payloads, why each is rejected, and what the message must name. A contract: reasons are stable."""

from __future__ import annotations

import json
from typing import NamedTuple

from monitor.names import Reason

CONFIG = """
models:
  loans:
    task: {type: binary, score: {range: [0, 1]}}
    groups: [sex, age]
    attributes: {age: {bins: [25, 45]}}
    weights: {bound: 10}
  calls:
    task: speech
    groups: [accent]
  counted:
    task: {type: speech, input: counts}
    groups: [accent]
limits: {max_message_bytes: 200000}
"""
ARRIVAL_MS = 1_714_600_000_000
"""2024-05-01T21:46:40Z"""


class Bad(NamedTuple):
    """One bad payload; ``names`` is what its message must hold."""

    title: str
    payload: bytes
    reason: Reason
    names: str


LOAN: dict[str, object] = {
    "model": "loans",
    "id": "7",
    "time": "2024-05-01T12:00:00Z",
    "decision": 1,
    "score": 0.75,
    "outcome": 0,
    "weight": 2,
    "attributes": {"sex": "female", "age": 31},
}
CALL: dict[str, object] = {
    "model": "calls",
    "id": 7,
    "time": "2024-05-01T12:00:00Z",
    "hypothesis": "a cat",
    "reference": "a hat",
}
COUNTS: dict[str, object] = {
    "model": "counted",
    "time": "2024-05-01T12:00:00Z",
    "attributes": {},
    "words": 9,
    "substitutions": 1,
    "deletions": 0,
    "insertions": 0,
}


def loan(**changes: object) -> bytes:
    return json.dumps({**LOAN, **changes}).encode()


def call(**changes: object) -> bytes:
    return json.dumps({**CALL, **changes}).encode()


def counts(**changes: object) -> bytes:
    return json.dumps({**COUNTS, **changes}).encode()


def without(*names: str) -> bytes:
    return json.dumps({k: v for k, v in LOAN.items() if k not in names}).encode()


def raw(field: str, token: bytes) -> bytes:
    """A loan with this JSON text in place of a field's value."""
    return loan(**{field: "@@"}).replace(b'"@@"', token)


GOOD = loan()

BAD = [
    # no JSON object
    Bad("no bytes", b"", Reason.EMPTY, "empty"),
    Bad("white space", b" \t ", Reason.EMPTY, "empty"),
    Bad("carriage return", b"\r", Reason.EMPTY, "empty"),
    Bad("cut off", GOOD[:-9], Reason.INVALID_JSON, "not one JSON value"),
    Bad("cut off in a text", GOOD[:30], Reason.INVALID_JSON, "not one JSON value"),
    Bad("two objects", GOOD + GOOD, Reason.INVALID_JSON, "not one JSON value"),
    Bad("trailing comma", GOOD[:-1] + b",}", Reason.INVALID_JSON, "not one JSON value"),
    Bad("something behind it", GOOD + b"\x00", Reason.INVALID_JSON, "not one JSON value"),
    Bad("byte order mark", b"\xef\xbb\xbf" + GOOD, Reason.INVALID_JSON, "not one JSON value"),
    Bad("lone surrogate", raw("id", b'"\\ud800"'), Reason.INVALID_JSON, "not one JSON value"),
    Bad("control character", raw("id", b'"a\x01"'), Reason.INVALID_JSON, "not one JSON value"),
    Bad("leading zero", raw("decision", b"01"), Reason.INVALID_JSON, "not one JSON value"),
    Bad("number of 5000 digits", raw("score", b"1" * 5000), Reason.INVALID_JSON, "not one JSON value"),
    Bad("5000 digits in a field nobody reads", raw("x", b"1" * 5000), Reason.INVALID_JSON, "not one JSON"),
    Bad("not UTF-8", raw("id", b'"\xff"'), Reason.INVALID_UTF8, "byte"),
    Bad("not UTF-8 in a field nobody reads", raw("x", b'"\xc3("'), Reason.INVALID_UTF8, "byte"),
    Bad("UTF-16", GOOD.decode().encode("utf-16"), Reason.INVALID_UTF8, "byte 0"),
    Bad("encoded surrogate", raw("x", b'"\xed\xa0\x80"'), Reason.INVALID_UTF8, "byte"),
    Bad("NaN", raw("score", b"NaN"), Reason.NAN, "NaN"),
    Bad("Infinity in a field nobody reads", raw("x", b"-Infinity"), Reason.NAN, "Infinity"),
    Bad("300 levels deep", raw("x", b"[" * 300 + b"]" * 300), Reason.TOO_DEEP, "nested too deeply"),
    Bad("300 objects deep", raw("id", b'{"a":' * 300 + b"1" + b"}" * 300), Reason.TOO_DEEP, "deep"),
    Bad("huge", raw("x", b'"' + b"x" * 200_000 + b'"'), Reason.TOO_LARGE, "limits.max_message_bytes"),
    Bad("null", b"null", Reason.NOT_AN_OBJECT, "null"),
    Bad("array", b"[" + GOOD + b"]", Reason.NOT_AN_OBJECT, "array"),
    Bad("text", b'"' + b"decision" + b'"', Reason.NOT_AN_OBJECT, "text"),
    Bad("number", b"1", Reason.NOT_AN_OBJECT, "number"),
    Bad("true", b"true", Reason.NOT_AN_OBJECT, "boolean"),
    # model
    Bad("no model", without("model"), Reason.MISSING_FIELD, "model"),
    Bad("unknown model", loan(model="loan"), Reason.UNKNOWN_MODEL, "'loan'"),
    Bad("model is a number", loan(model=1), Reason.WRONG_TYPE, "model"),
    # id
    Bad("no id", loan(id=None, outcome=None), Reason.MISSING_FIELD, "id"),
    Bad("empty id", loan(id=""), Reason.MISSING_FIELD, "id"),
    Bad("id is an object", loan(id={"a": 1}), Reason.WRONG_TYPE, "id"),
    Bad("id is true", loan(id=True), Reason.WRONG_TYPE, "id"),
    Bad("id is a fraction", loan(id=7.0), Reason.WRONG_TYPE, "id"),
    Bad("id too long", loan(id="x" * 513), Reason.TOO_LONG, "id"),
    Bad("id beyond 64 bits", loan(id=2**63), Reason.OUT_OF_RANGE, "id"),
    # time
    Bad("no time", without("time"), Reason.MISSING_FIELD, "time"),
    Bad("empty time", loan(time=""), Reason.INVALID_TIME, "time"),
    Bad("negative time", loan(time=-1), Reason.INVALID_TIME, "time lies before 1970"),
    Bad("time before 1970", loan(time="1969-12-31T23:59:59Z"), Reason.INVALID_TIME, "time lies before 1970"),
    Bad("seconds for milliseconds", loan(time=1_714_564_800), Reason.INVALID_TIME, "unix_seconds"),
    Bad("fraction for milliseconds", loan(time=1_714_564_800_000.5), Reason.WRONG_TYPE, "time"),
    Bad("time is true", loan(time=True), Reason.WRONG_TYPE, "time"),
    Bad("time without offset", loan(time="2024-05-01T12:00:00"), Reason.INVALID_TIME, "no offset"),
    Bad("30 February", loan(time="2024-02-30T12:00:00Z"), Reason.INVALID_TIME, "time"),
    Bad("29 February 2023", loan(time="2023-02-29"), Reason.INVALID_TIME, "time"),
    Bad("hour 24", loan(time="2024-05-01T24:00:00Z"), Reason.INVALID_TIME, "time"),
    Bad("no time at all", loan(time="yesterday"), Reason.INVALID_TIME, "time is not an RFC 3339 time"),
    Bad("far future", loan(time="2999-01-01T00:00:00Z"), Reason.TIME_IN_FUTURE, "event time"),
    Bad("far future outcome", loan(outcome_time=32_503_680_000_000), Reason.TIME_IN_FUTURE, "event time"),
    Bad("after the year 9999", loan(time=10**18), Reason.INVALID_TIME, "time lies after the year 9999"),
    Bad("outcome time is no time", loan(outcome_time="soon"), Reason.INVALID_TIME, "outcome_time"),
    Bad("outcome without time", b'{"model":"loans","id":"7","outcome":1}', Reason.MISSING_FIELD, "time"),
    # what was predicted and what turned out
    Bad("no decision nor outcome", without("decision", "score", "outcome"), Reason.MISSING_FIELD, "decision"),
    Bad("score without decision", without("decision"), Reason.MISSING_FIELD, "decision"),
    Bad("decision is 2", loan(decision=2), Reason.OUT_OF_RANGE, "decision"),
    Bad("decision is 1.0", loan(decision=1.0), Reason.WRONG_TYPE, "decision"),
    Bad("decision is a text", loan(decision="1"), Reason.WRONG_TYPE, "decision"),
    Bad("outcome is an array", loan(outcome=[1]), Reason.WRONG_TYPE, "outcome"),
    Bad("outcome is -1", loan(outcome=-1), Reason.OUT_OF_RANGE, "outcome"),
    Bad("score above its range", loan(score=1.001), Reason.OUT_OF_RANGE, "score"),
    Bad("score below its range", loan(score=-1e-300), Reason.OUT_OF_RANGE, "score"),
    Bad("score of 1e999", raw("score", b"1e999"), Reason.OUT_OF_RANGE, "score"),
    Bad("score is true", loan(score=True), Reason.WRONG_TYPE, "score"),
    Bad("score is a text", loan(score="0.5"), Reason.WRONG_TYPE, "score"),
    Bad("weight of zero", loan(weight=0), Reason.OUT_OF_RANGE, "weight"),
    Bad("weight above its bound", loan(weight=10.5), Reason.OUT_OF_RANGE, "weight"),
    Bad("weight of 400 digits", raw("weight", b"9" * 400), Reason.OUT_OF_RANGE, "weight"),
    Bad("weight is a text", loan(weight="2"), Reason.WRONG_TYPE, "weight"),
    Bad("share too small", loan(weight=None, sampling_fraction=1e-310), Reason.OUT_OF_RANGE, "sampling_"),
    Bad("weight and share", loan(sampling_fraction=0.5), Reason.WRONG_TYPE, "weight or sampling_fraction"),
    Bad("text too long", call(hypothesis="x" * 100_001), Reason.TOO_LONG, "hypothesis"),
    Bad("text is a number", call(reference=5), Reason.WRONG_TYPE, "reference"),
    Bad("another model's field", call(hypothesis=None, reference=None, decision=1), Reason.MISSING_FIELD, ""),
    Bad("count is a fraction", counts(words=1.5), Reason.WRONG_TYPE, "words"),
    Bad("count is true", counts(words=True), Reason.WRONG_TYPE, "words"),
    Bad("negative count", counts(deletions=-1), Reason.OUT_OF_RANGE, "deletions"),
    Bad("count beyond 64 bits", counts(words=2**64), Reason.OUT_OF_RANGE, "words"),
    Bad("one count missing", counts(insertions=None), Reason.MISSING_FIELD, "insertions"),
    # attributes
    Bad("attributes are a text", loan(attributes="female"), Reason.WRONG_TYPE, "attributes"),
    Bad("attributes are an array", loan(attributes=["female"]), Reason.WRONG_TYPE, "attributes"),
    Bad("attribute is an object", loan(attributes={"sex": {}}), Reason.WRONG_TYPE, "attributes.sex"),
    Bad("attribute is an array", loan(attributes={"x": []}), Reason.WRONG_TYPE, "attributes.x"),
    Bad("attribute too long", loan(attributes={"sex": "x" * 257}), Reason.TOO_LONG, "attributes.sex"),
    Bad("attribute of 1e999", raw("attributes", b'{"sex":1e999}'), Reason.OUT_OF_RANGE, "attributes.sex"),
    Bad("attribute beyond 64 bits", loan(attributes={"sex": 10**20}), Reason.WRONG_TYPE, "attributes.sex"),
    Bad("text for a numeric attribute", loan(attributes={"age": "31"}), Reason.WRONG_TYPE, "attributes.age"),
    Bad("second attribute", loan(attributes={"sex": "f", "age": []}), Reason.WRONG_TYPE, "attributes.age"),
    Bad("version is a number", loan(model_version=2), Reason.WRONG_TYPE, "model_version"),
    Bad("version too long", loan(model_version="v" * 257), Reason.TOO_LONG, "model_version"),
]  # fmt: skip
