"""The fast way of decoding accepts what the judge accepts, with the same content, whatever the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from monitor.batch import EventBatch
from monitor.decode import Decoded, Decoder, hash_ids
from monitor.engine import Engine
from monitor.judge import Acceptance
from monitor.records import RecordBatch, Reject
from monitor.tasks.base import Column, Task
from monitor.wiring import build_decoders, build_engine
from tests.property.hostile_json import ARRIVAL_MS, CASES, Case, batches

Row = tuple[object, ...]
EXAMPLES = 30

hostile = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    database=None,
)
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def start(case: Case) -> tuple[Engine, Decoder]:
    engine = build_engine(case.config)
    return engine, build_decoders(case.config, engine)["events"]


def batch_of(payloads: Sequence[bytes], first: int = 0) -> RecordBatch:
    return RecordBatch("p", payloads, range(first, first + len(payloads)), ARRIVAL_MS)


# what was accepted, as rows that can be compared -------------------------------------------------


def judged_rows(engine: Engine, position: int, event: Acceptance) -> tuple[str, Row]:
    """An acceptance as the judge tells it, quantised by the task."""
    model = engine.models[event.model]
    task, cells = model.spec.task, model.cells.cells
    columns = one_row(task, event)
    weighted = "weight" in (task.prediction_dtype.names or ())
    weights = np.array([event.weight]) if weighted else None
    prediction = outcome = None
    if event.prediction_time is not None:
        made = task.prediction_records(columns, weights)
        prediction = (
            event.prediction_time,
            cells[event.cell],
            made.tobytes(),
            event.fields.get("hypothesis"),
        )
    if event.outcome_time is not None:
        known = task.outcome_records(columns)
        outcome = (event.outcome_time, known.tobytes(), event.fields.get("reference"))
    key = None if event.id is None else int(hash_ids([event.id])[0])
    return event.model, (position, key, prediction, outcome)


def one_row(task: Task, event: Acceptance) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for field in task.fields:
        value = event.fields[field.name]
        time = event.prediction_time if field.block == "prediction" else event.outcome_time
        if value is None and field.required and time is None:
            value = "" if field.kind == "text" else field.low  # any value: this part is not compared
        if field.kind == "text":
            columns[field.name] = [None if value is None else str(value)]
        elif field.kind == "number":
            columns[field.name] = np.array([np.nan if value is None else value], np.float64)
        else:
            columns[field.name] = np.array([-1 if value is None else value], np.int64)
    return columns


def decoded_rows(engine: Engine, name: str, batch: EventBatch, first: int) -> Iterator[tuple[str, Row]]:
    """The events of a decoded batch in the same form."""
    cells = engine.models[name].cells.cells
    for i in range(len(batch)):
        texts = (None, None) if batch.texts is None else (batch.texts.predictions[i], batch.texts.outcomes[i])
        prediction = outcome = None
        if batch.has_prediction[i]:
            time, cell = int(batch.prediction_time[i]), cells[int(batch.cell[i])]
            prediction = (time, cell, batch.predictions[i : i + 1].tobytes(), texts[0])
        if batch.has_outcome[i]:
            outcome = (int(batch.outcome_time[i]), batch.outcomes[i : i + 1].tobytes(), texts[1])
        key = int(batch.key[i]) if batch.has_id[i] else None
        yield name, (first + int(batch.record[i]), key, prediction, outcome)


def read(
    engine: Engine, decoder: Decoder, payloads: Sequence[bytes], first: int = 0
) -> tuple[list[tuple[str, Row]], list[Reject]]:
    """Accepted rows (model by model) and rejects of one batch; checks that nothing is lost."""
    decoded: Decoded = decoder.decode(batch_of(payloads, first))
    accepted = [r for n, b in decoded.batches.items() for r in decoded_rows(engine, n, b, first)]
    assert len(accepted) + len(decoded.rejects) == decoded.read
    for batch in decoded.batches.values():
        assert (np.diff(batch.record) >= 0).all()
        assert (batch.has_prediction | batch.has_outcome).all()
        lengths = {len(column) for column in (batch.key, batch.cell, batch.predictions, batch.outcomes)}
        assert lengths == {len(batch)}
    return in_order(accepted), list(decoded.rejects)


def in_order(rows: list[tuple[str, Row]]) -> list[tuple[str, Row]]:
    return sorted(rows, key=lambda row: (str(row[0]), int(str(row[1][0]))))


def judge_alone(
    engine: Engine, decoder: Decoder, payloads: Sequence[bytes]
) -> tuple[list[tuple[str, Row]], list[Reject]]:
    """The same from the judge, record by record."""
    accepted: list[tuple[str, Row]] = []
    rejects: list[Reject] = []
    for i, payload in enumerate(payloads):
        found = decoder.judge.judge(payload, ARRIVAL_MS)
        for number, event in enumerate(found):
            if isinstance(event, Acceptance):
                accepted.append(judged_rows(engine, i, event))
            else:
                inside = number if len(found) > 1 else None
                rejects.append(Reject("p", i, event.reason, str(event), payload, inside))
    return in_order(accepted), rejects


# properties --------------------------------------------------------------------------------------


@each_case
@seed(20240501)
@hostile
@given(data=st.data())
def test_batches_agree_with_the_judge(case: Case, data: st.DataObject) -> None:
    payloads = data.draw(batches(case))
    engine, decoder = start(case)
    wanted = judge_alone(engine, decoder, payloads)
    assert read(engine, decoder, payloads) == wanted
    cuts = sorted({0, *data.draw(st.lists(st.integers(0, len(payloads)), max_size=2)), len(payloads)})
    parts = [read(engine, decoder, payloads[a:b], a) for a, b in pairwise(cuts)]
    assert in_order([row for accepted, _ in parts for row in accepted]) == wanted[0]
    assert [reject for _, rejects in parts for reject in rejects] == wanted[1]


@each_case
@seed(7)
@settings(hostile, max_examples=EXAMPLES // 5)
@given(data=st.data())
def test_neighbours_are_unaffected(case: Case, data: st.DataObject) -> None:
    """The same good records around something else give the same events."""
    payloads = data.draw(batches(case))
    others = data.draw(batches(case))
    engine, decoder = start(case)
    accepted, _ = read(engine, decoder, payloads)
    mixed = [p for pair in zip(payloads, others * len(payloads), strict=False) for p in pair]
    around, _ = read(engine, decoder, mixed)
    kept = [(m, (row[0] // 2, *row[1:])) for m, row in around if isinstance(row[0], int) and row[0] % 2 == 0]
    assert kept == accepted


GOOD = {
    "id": "a", "time": "2024-05-01T12:00:00Z", "decision": 1, "outcome": 0, "attributes": {"sex": "f"},
}  # fmt: skip


@pytest.mark.parametrize("case", [CASES["binary"], CASES["binary with a score"], CASES["weights"]])
def test_a_plain_event_is_accepted(case: Case) -> None:
    engine, decoder = start(case)
    accepted, rejects = read(engine, decoder, [json.dumps(GOOD).encode()] * 3)
    assert len(accepted) == 3
    assert rejects == []
