"""Field mapping: where each field is found, and what that means for fast and slow decoding alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from textwrap import indent
from typing import Any

import pytest

from monitor.batch import EventBatch
from monitor.config_file import parse_config
from monitor.decode import Decoded
from monitor.engine import Engine
from monitor.names import Reason
from monitor.paths import parse_path
from monitor.records import RecordBatch, Rejected
from monitor.wiring import build_decoders, build_engine

ARRIVAL_MS = 1_714_600_000_000
NOON = 1_714_564_800_000
TIME = "2024-05-01T12:00:00Z"
BINARY = "m: {task: binary, groups: [sex]}"
GOOD: dict[str, Any] = {"id": "a", "time": TIME, "decision": 1, "attributes": {"sex": "f"}}


class Read:
    """Records decoded with a mapping."""

    def __init__(self, models: str, fields: str, *records: Mapping[str, Any] | bytes) -> None:
        text = f"models:\n{indent(models, '  ')}\n"
        if fields:
            text += f"sources:\n- fields:\n{indent(fields, '    ')}\n"
        config = parse_config(text)
        self.engine: Engine = build_engine(config)
        payloads = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        batch = RecordBatch("p", payloads, range(1, len(payloads) + 1), ARRIVAL_MS)
        decoder = build_decoders(config, self.engine)["events"]
        judged = [decoder.judge.judge(p, ARRIVAL_MS) for p in payloads]
        self.decoded: Decoded = decoder.decode(batch)
        accepted = sum(len(b) for b in self.decoded.batches.values())
        assert accepted + len(self.decoded.rejects) == self.decoded.read == sum(map(len, judged))
        refused = [(i, str(e)) for i, found in enumerate(judged, 1) for e in found if isinstance(e, Rejected)]
        assert [(r.position, r.message) for r in self.decoded.rejects] == refused

    @property
    def batch(self) -> EventBatch:
        assert [str(r) for r in self.decoded.rejects] == []
        (batch,) = self.decoded.batches.values()
        return batch

    @property
    def cells(self) -> list[tuple[str, ...]]:
        ((name, batch),) = self.decoded.batches.items()
        return [self.engine.models[name].cells.cells[c] for c in batch.cell.tolist()]

    @property
    def reasons(self) -> list[tuple[int, Reason]]:
        return [(r.position, r.reason) for r in self.decoded.rejects]


def column(batch: EventBatch, name: str) -> list[Any]:
    found: list[Any] = (batch.predictions if name == "decision" else batch.outcomes)[name].tolist()
    return found


def test_native_events_need_no_mapping() -> None:
    read = Read(BINARY, "", GOOD, {**GOOD, "time": NOON, "attributes": {"sex": "m", "x": 1}})
    assert column(read.batch, "decision") == [1, 1]
    assert read.batch.prediction_time.tolist() == [NOON, NOON]
    assert read.cells == [("f",), ("m",)]


@pytest.mark.parametrize(
    "path",
    [
        "a.b",
        'a["b"]',
        '["a"].b',
        '["a b"]["c.d"]',
        '["ключ"]',
        "a[0]",
        '["a\\"b"]',
        '["a\\\\b"]',
        '[""]',
        '["x\ty"]',
    ],
)
def test_paths_of_every_kind(path: str) -> None:
    record: Any = 1
    for step in reversed(parse_path(path)):
        record = [record] if isinstance(step, int) else {step: record}
    read = Read(BINARY, f"decision: {{path: {json.dumps(path)}}}", {**GOOD, **record}, GOOD | {"outcome": 0})
    assert column(
        Read(BINARY, f"decision: {{path: {json.dumps(path)}}}", {**GOOD, **record}).batch, "decision"
    ) == [1]
    assert read.decoded.read == 2


CONDITIONS = [
    ("at_least: 5", [5, 5.0, 6, 1e18], [4, 4.999, -5, 0]),
    ("at_least: 9007199254740996", [9007199254740996, 2**60], [9007199254740995, 2**53]),
    ("equals: yes", ["yes"], ["no", "", "Yes", True, 1]),
    ("equals: 1", [1, 1.0], [True, "1", 0, 2**70, 1.5]),
    ("equals: true", [True], [1, 1.0, "true", False]),
    ('one_of: ["b", 2, false]', ["b", 2, 2.0, False], ["a", 0, True, "2"]),
]


@pytest.mark.parametrize(("condition", "yes", "no"), CONDITIONS, ids=[c for c, _, _ in CONDITIONS])
def test_conditions(condition: str, yes: list[Any], no: list[Any]) -> None:
    fields = f"decision: {{path: x.y, {condition}}}"
    records = [{**GOOD, "x": {"y": value}} for value in [*yes, *no]]
    expected = [1] * len(yes) + [0] * len(no)
    assert column(Read(BINARY, fields, *records).batch, "decision") == expected
    assert [column(Read(BINARY, fields, r).batch, "decision") for r in records] == [[e] for e in expected]


@pytest.mark.parametrize("value", ["5", True, [], 2**63, 10**400])
def test_at_least_compares_numbers_only(value: object) -> None:
    read = Read(BINARY, "decision: {path: x, at_least: 5}", {**GOOD, "x": value}, {**GOOD, "x": 5})
    assert read.reasons == [(1, Reason.WRONG_TYPE)]


def test_attributes_of_one_path_each() -> None:
    fields = "attributes: {sex: who.sex, ward: ward, unused: z}"
    models = "m: {task: binary, groups: [sex, ward], attributes: {ward: {bins: [10]}}}"
    base = {k: v for k, v in GOOD.items() if k != "attributes"}
    records = [
        {**base, "who": {"sex": "f"}, "ward": 9, "z": {"not": "read"}},
        {**base, "who": None, "ward": 10},
        {**base, "who": "f", "ward": None},
        base,
    ]
    read = Read(models, fields, *records)
    assert len(read.batch) == 4
    assert read.cells == [
        ("f", "under 10"),
        ("unknown", "10 and over"),
        ("unknown", "unknown"),
        ("unknown",) * 2,
    ]


def test_equal_numbers_of_other_kinds_are_other_attributes() -> None:
    """What is remembered of an attribute must not let pass what the judge refuses."""
    base = {k: v for k, v in GOOD.items() if k != "attributes"}
    values: list[Any] = [1e20, 10**20, 1, True, 1.0, "1", 0, False, -0.0, ""]
    read = Read(
        "m: {task: binary, groups: [sex]}", "attributes: {sex: s}", *[{**base, "s": v} for v in values]
    )
    assert read.reasons == [(2, Reason.WRONG_TYPE)]
    names = [str(10**20), "1", "true", "1", "1", "0", "false", "0", "unknown"]
    assert read.cells == [(n,) for n in names]


def test_reserved_group_names_are_told_apart() -> None:
    read = Read(BINARY, "", *[{**GOOD, "attributes": {"sex": v}} for v in ("other", "unknown", None, "")])
    assert read.cells == [("=other",), ("unknown",), ("unknown",), ("unknown",)]


def test_composite_ids() -> None:
    fields = "id: [session, turn]"
    parts: list[tuple[Any, Any]] = [("a", 1), ("a", "1"), ("a", "2"), ("", "x")]
    read = Read(BINARY, fields, *[{**GOOD, "session": s, "turn": t} for s, t in parts])
    keys = read.batch.key.tolist()
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    wrong: list[tuple[Any, Any]] = [("a", None), ("a", 1.5), ("a", True), ("a", ["b"]), ("a" * 512, "b")]
    reasons = Read(BINARY, fields, *[{**GOOD, "session": s, "turn": t} for s, t in wrong]).reasons
    kinds = [Reason.MISSING_FIELD, *[Reason.WRONG_TYPE] * 3, Reason.TOO_LONG]
    assert reasons == list(enumerate(kinds, 1))


def test_unix_seconds_and_milliseconds() -> None:
    seconds = "time: {path: ts, unit: unix_seconds}"
    read = Read(
        BINARY, seconds, *[{**GOOD, "ts": t} for t in (1_714_564_800, 1_714_564_800.5, 1_714_564_800.0004)]
    )
    assert read.batch.prediction_time.tolist() == [NOON, NOON + 500, NOON]
    wrong = ["1714564800", True, 1_714_564_800_000, -1, 1e16, 1e306, 10**400, TIME]
    reasons = dict(Read(BINARY, seconds, *[{**GOOD, "ts": t} for t in wrong]).reasons)
    assert len(reasons) == len(wrong)
    milliseconds = "time: {path: ts, unit: unix_milliseconds}"
    assert Read(BINARY, milliseconds, {**GOOD, "ts": NOON}).batch.prediction_time.tolist() == [NOON]
    assert Read(BINARY, milliseconds, {**GOOD, "ts": NOON + 0.5}).reasons == [(1, Reason.WRONG_TYPE)]


@pytest.mark.parametrize("value", ["1714564800", True, "x", 10**400])
def test_a_path_may_be_a_time_and_an_attribute(value: object) -> None:
    fields = "time: {path: ts, unit: unix_seconds}\nattributes: {sex: ts}"
    read = Read(BINARY, fields, {**GOOD, "ts": 1_714_564_800}, {**GOOD, "ts": value})
    assert [position for position, _ in read.reasons] == [2]


@pytest.mark.parametrize("value", ["2", True, "x", 10**400])
def test_a_path_may_be_a_weight_and_an_attribute(value: object) -> None:
    models = "m: {task: binary, groups: [sex], weights: {bound: 10}}"
    read = Read(models, "attributes: {sex: weight}", {**GOOD, "weight": 2}, {**GOOD, "weight": value})
    assert [position for position, _ in read.reasons] == [2]


TWO = "b: {task: binary, groups: [sex]}\nr: {task: {type: regression, range: [0, 9]}, groups: [sex]}"


@pytest.mark.parametrize("models", [TWO, "\n".join(reversed(TWO.split("\n")))])
def test_two_models_may_share_the_name_of_a_field(models: str) -> None:
    binary = {"model": "b", "id": "a", "time": TIME}
    regression = {"model": "r", "id": "a", "time": TIME}
    flags: list[Any] = [True, 0, 1.0, "1", 7]
    numbers: list[Any] = [7.5, 1, True, "1", 99]
    records = [{**binary, "outcome": v} for v in flags] + [{**regression, "outcome": v} for v in numbers]
    read = Read(models, "", *records)
    rejected = [(3, Reason.WRONG_TYPE), (4, Reason.WRONG_TYPE), (5, Reason.OUT_OF_RANGE)]
    assert read.reasons == [*rejected, *((n + 5, r) for n, r in rejected)]


def test_a_model_for_all_events() -> None:
    read = Read(TWO, "model: {value: b}", {**GOOD, "model": "r"}, {**GOOD, "model": 5})
    assert [list(read.decoded.batches), len(read.batch)] == [["b"], 2]


def test_model_version_as_an_attribute() -> None:
    models = "m: {task: binary, groups: [model_version]}"
    versions = ["v1", "v2", None, ""]
    for fields, records in (
        ("", [{**GOOD, "model_version": v} for v in versions]),
        ("model_version: meta.version", [{**GOOD, "meta": {"version": v}} for v in versions]),
        (
            "model_version: meta.version\nattributes: {sex: sex}",
            [{**GOOD, "meta": {"version": v}} for v in versions],
        ),
    ):
        read = Read(models, fields, *records)
        assert read.cells == [("v1",), ("v2",), ("unknown",), ("unknown",)]
    assert Read(models, "model_version: {value: v9}", GOOD).cells == [("v9",)]


def test_a_constant_version_is_as_long_as_any_other() -> None:
    assert Read(BINARY, f"model_version: {{value: {'v' * 256}}}", GOOD).reasons == []
    assert Read(BINARY, f"model_version: {{value: {'v' * 257}}}", GOOD).reasons == [(1, Reason.TOO_LONG)]


def test_a_constant_time() -> None:
    fields = f"time: {{value: {TIME}}}"
    base = {k: v for k, v in GOOD.items() if k != "time"}
    read = Read(
        BINARY, fields, base, {**base, "time": "ignored"}, {**base, "outcome": 1, "outcome_time": NOON + 5}
    )
    assert read.batch.prediction_time.tolist() == [NOON] * 3
    assert read.batch.outcome_time.tolist()[2] == NOON + 5


@pytest.mark.parametrize(
    "fields", ["id: payload.id\nattributes: payload", "id: a\ntime: a.b", "id: id\nattributes: {sex: id}"]
)
def test_a_path_inside_another_is_read_the_slow_way(fields: str) -> None:
    record = {**GOOD, "payload": {"id": "a", "sex": "f"}, "a": {"b": TIME}}
    read = Read(BINARY, fields, record, record)
    assert read.decoded.read == 2


# several events in a record ----------------------------------------------------------------------

ROWS = "id: rows[*].id\ndecision: rows[*].decision\nattributes: rows[*].who"


def test_one_event_for_each_element() -> None:
    rows: list[Any] = [{"id": i, "decision": i % 2, "who": {"sex": "f"}} for i in range(3)]
    read = Read(
        BINARY,
        ROWS,
        {"time": TIME, "rows": rows},
        {"time": TIME, "rows": []},
        {"time": TIME, "rows": rows[:1]},
    )
    assert read.batch.record.tolist() == [0, 0, 0, 2]
    assert column(read.batch, "decision") == [0, 1, 0, 0]
    assert read.decoded.read == 4


def test_one_bad_element_costs_the_others_nothing() -> None:
    rows: list[Any] = [
        {"id": "a", "decision": 1},
        None,
        5,
        {"id": "b", "decision": 2},
        {"id": "c", "decision": 0},
    ]
    read = Read(BINARY, ROWS, {"time": TIME, "rows": rows})
    assert [(r.element, r.reason) for r in read.decoded.rejects] == [
        (1, Reason.MISSING_FIELD), (2, Reason.MISSING_FIELD), (3, Reason.OUT_OF_RANGE),
    ]  # fmt: skip
    assert read.decoded.read == 5


@pytest.mark.parametrize(
    ("fields", "record", "reason"),
    [
        (ROWS, {"time": TIME}, Reason.MISSING_FIELD),
        (ROWS, {"time": TIME, "rows": None}, Reason.MISSING_FIELD),
        (ROWS, {"time": TIME, "rows": {"0": {}}}, Reason.WRONG_TYPE),
        ("id: ids[*]\ndecision: ds[*]", {"time": TIME, "ids": ["a"], "ds": [1, 0]}, Reason.EXPLODE_MISMATCH),
    ],
)
def test_arrays_that_make_no_events(fields: str, record: dict[str, Any], reason: Reason) -> None:
    read = Read(BINARY, fields, record)
    assert read.reasons == [(1, reason)]
    assert read.decoded.read == 1


def test_arrays_side_by_side() -> None:
    fields = "id: ids[*]\ndecision: ds[*]\nattributes:\n  sex: sexes[*]"
    read = Read(BINARY, fields, {"time": TIME, "ids": ["a", "b"], "ds": [1, 0], "sexes": ["f", "m"]})
    assert read.cells == [("f",), ("m",)]
    assert column(read.batch, "decision") == [1, 0]
