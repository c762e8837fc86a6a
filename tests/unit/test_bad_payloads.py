"""Every bad payload is rejected for its reason, in a sentence; its neighbours are counted."""

from __future__ import annotations

import json

import pytest

from monitor.config_file import parse_config
from monitor.decode import Decoded, Decoder
from monitor.names import REASON_MEANING, Reason
from monitor.records import RecordBatch, Rejected
from monitor.wiring import build_decoders, build_engine
from tests.unit.bad_payloads import ARRIVAL_MS, BAD, CALL, CONFIG, COUNTS, GOOD, Bad, loan

MODELS = parse_config(CONFIG)


def decoder() -> Decoder:
    return build_decoders(MODELS, build_engine(MODELS))["events"]


def decode(*payloads: bytes) -> Decoded:
    return decoder().decode(RecordBatch("p", payloads, range(1, len(payloads) + 1), ARRIVAL_MS))


def counted(decoded: Decoded) -> int:
    return sum(len(batch) for batch in decoded.batches.values())


@pytest.mark.parametrize("bad", BAD, ids=[bad.title for bad in BAD])
def test_rejected_for_its_reason_between_good_neighbours(bad: Bad) -> None:
    decoded = decode(GOOD, bad.payload, GOOD)
    assert [(r.position, r.reason) for r in decoded.rejects] == [(2, bad.reason)]
    reject = decoded.rejects[0]
    assert reject.payload == bad.payload
    assert bad.names in reject.message
    assert counted(decoded) == 2
    assert decoded.batches["loans"].record.tolist() == [0, 2]
    assert decoded.read == 3


@pytest.mark.parametrize("bad", BAD, ids=[bad.title for bad in BAD])
def test_a_batch_of_nothing_else(bad: Bad) -> None:
    decoded = decode(*[bad.payload] * 3)
    assert [r.reason for r in decoded.rejects] == [bad.reason] * 3
    assert counted(decoded) == 0


@pytest.mark.parametrize("bad", BAD, ids=[bad.title for bad in BAD])
def test_the_judge_says_the_same(bad: Bad) -> None:
    alone = decoder().judge.judge(bad.payload, ARRIVAL_MS)
    assert [str(r) for r in alone] == [r.message for r in decode(bad.payload).rejects]


@pytest.mark.parametrize("bad", BAD, ids=[bad.title for bad in BAD])
def test_messages_are_short_sentences(bad: Bad) -> None:
    message = decode(bad.payload).rejects[0].message
    assert len(message) < 200
    assert "\n" not in message
    assert not message.endswith(".")
    assert "input should" not in message.lower()
    assert "pydantic" not in message


def test_all_at_once() -> None:
    payloads = [p for bad in BAD for p in (GOOD, bad.payload)] + [GOOD]
    decoded = decode(*payloads)
    assert counted(decoded) == len(BAD) + 1
    assert [(r.position, r.reason) for r in decoded.rejects] == [
        (2 * i + 2, bad.reason) for i, bad in enumerate(BAD)
    ]
    assert counted(decoded) + len(decoded.rejects) == decoded.read == len(payloads)


def test_titles_are_unique_and_every_reason_is_explained() -> None:
    assert len({bad.title for bad in BAD}) == len(BAD) >= 30
    assert set(REASON_MEANING) == set(Reason)


def test_the_table_covers_every_reason_of_a_single_record() -> None:
    elsewhere = {Reason.EXPLODE_MISMATCH, Reason.LATE}
    assert {bad.reason for bad in BAD} == set(Reason) - elsewhere


@pytest.mark.parametrize("event", [CALL, COUNTS, {**CALL, "reference": None}, {**COUNTS, "words": 0}])
def test_what_the_table_starts_from_is_accepted(event: dict[str, object]) -> None:
    decoded = decode(json.dumps(event).encode(), GOOD)
    assert list(decoded.rejects) == []
    assert counted(decoded) == 2


@pytest.mark.parametrize(
    "payload",
    [
        loan(x={"weights": [1, 2]}, y=None),
        loan(id="x" * 512, attributes={"sex": "é" * 256, "unread": True}),
        loan(time="2024-05-01T21:56:40Z"),
        loan(weight=None, sampling_fraction=0.1),
        loan(decision=True, outcome=False, score=1, weight=10),
        loan(attributes=None, model_version=None, outcome_time=None),
        GOOD + b" \r",
        b'{"model":"loans","id":-7,"outcome_time":"2024-05-01","outcome":true,"weight":"heavy","attributes":5}',
    ],
    ids=range(8),
)
def test_the_edge_of_what_is_accepted(payload: bytes) -> None:
    assert list(decode(payload, GOOD).rejects) == []


def test_which_attribute_is_wrong_when_several_are() -> None:
    message = decode(loan(attributes={"sex": [1], "site": "x" * 300})).rejects[0]
    named = {Reason.WRONG_TYPE: "attributes.sex", Reason.TOO_LONG: "attributes.site"}
    assert named[message.reason] in message.message


def test_long_names_do_not_make_long_messages() -> None:
    assert len(decode(loan(attributes={"x" * 100_000: []})).rejects[0].message) < 500
    assert len(decode(loan(model="x" * 100_000)).rejects[0].message) < 500


def test_unreadable_records_are_never_decoded() -> None:
    """What a source could not read is rejected for the source's reason, whatever its bytes are."""
    long = loan(x="y" * 500)
    why = Rejected(Reason.INVALID_JSON, "the row has 3 cells, the header has 2")
    records = RecordBatch("p", [GOOD, long], [1, 2], ARRIVAL_MS, unreadable={0: why, 1: why})
    decoded = decoder().decode(records)
    assert [(r.position, r.message) for r in decoded.rejects] == [(1, str(why)), (2, str(why))]
    assert decoded.read == 2
    assert counted(decoded) == 0


def test_an_empty_batch() -> None:
    decoded = decode()
    assert (decoded.read, counted(decoded), list(decoded.rejects)) == (0, 0, [])
