"""Dead letters: nothing of a rejected event is lost, and nobody else may read it."""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from monitor.errors import MonitorError
from monitor.names import Reason
from monitor.records import Reject
from monitor.sinks.dead_letter import DeadLetters, letter


def reject(payload: bytes, message: str = "id is missing", element: int | None = None) -> Reject:
    return Reject("events.jsonl", 7, Reason.MISSING_FIELD, message, payload, element)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def raw_bytes(line: dict[str, object]) -> bytes:
    if "payload" in line:
        assert "payload_base64" not in line
        return str(line["payload"]).encode()
    return base64.b64decode(str(line["payload_base64"]), validate=True)


def test_a_line_says_where_why_and_what(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    with DeadLetters(str(path)) as letters:
        letters.write([reject(b'{"a": 1}', element=3), reject(b"\xff{")])
    assert path.read_bytes().endswith(b"\n")
    where = {"partition": "events.jsonl", "position": 7}
    why = {"reason": "missing_field", "message": "id is missing"}
    assert lines(path) == [
        {**where, "element": 3, **why, "payload": '{"a": 1}'},
        {**where, "element": None, **why, "payload_base64": "/3s="},
    ]


@seed(1)
@given(st.binary(max_size=50), st.text(max_size=20))
def test_raw_bytes_are_exact(payload: bytes, text: str) -> None:
    for content in (payload, text.encode("utf-8", "surrogatepass"), b"\n\r\x00" + payload):
        line = json.loads(json.dumps(letter(reject(content))))
        assert raw_bytes(line) == content
        assert ("payload" in line) == is_utf8(content)


def is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("payload", [b"", b"\n", b'"\xe2\x80\xa8"', b"\x00", b"\xed\xa0\x80", b"x" * 300_000])
def test_every_reject_is_one_line(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "dead.jsonl"
    with DeadLetters(str(path)) as letters:
        letters.write([reject(payload), reject(b"next")])
    first, second = path.read_bytes().split(b"\n")[:2]
    assert raw_bytes(json.loads(first)) == payload
    assert raw_bytes(json.loads(second)) == b"next"


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    mask = os.umask(0)
    try:
        DeadLetters(str(path)).close()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    path.touch(0o644)
    path.chmod(0o644)
    DeadLetters(str(path)).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_letters_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    for payload in (b"first", b"second"):
        with DeadLetters(str(path)) as letters:
            letters.write([reject(payload)])
    assert [line["payload"] for line in lines(path)] == ["first", "second"]


def test_flush_hands_over_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    letters = DeadLetters(str(path))
    letters.write([reject(b"a")])
    letters.flush()
    assert len(lines(path)) == 1
    letters.close()
    letters.close()
    letters.flush()


def test_counts_with_and_without_a_file(tmp_path: Path) -> None:
    late = Reject("p", 1, Reason.LATE, "late", b"")
    for path in (None, str(tmp_path / "dead.jsonl")):
        with DeadLetters(path) as letters:
            letters.write(iter([reject(b""), late, reject(b"")]))
            letters.write([])
            assert letters.counts == {Reason.MISSING_FIELD: 2, Reason.LATE: 1}


@pytest.mark.parametrize("where", ["missing/dead.jsonl", ".", "file/dead.jsonl"])
def test_a_path_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MonitorError, match=r"cannot write dead letters to .*dead_letter\.path") as caught:
        DeadLetters(str(tmp_path / where))
    assert "Errno" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_disk_is_told_in_a_sentence() -> None:
    full = os.strerror(errno.ENOSPC)
    with pytest.raises(MonitorError, match=full), DeadLetters("/dev/full") as letters:
        letters.write([reject(b"x" * 100)])


def test_the_bytes_of_a_record_with_many_events_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    rejects = [
        Reject("p", 1, Reason.MISSING_FIELD, "no id", b"[{}, {}]", 0),
        Reject("p", 1, Reason.MISSING_FIELD, "no id", b"[{}, {}]", 1),
        Reject("p", 2, Reason.MISSING_FIELD, "no id", b"[{}]", 0),
    ]
    with DeadLetters(str(path)) as letters:
        letters.write(rejects)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["payload"] for line in lines] == ["[{}, {}]", "", "[{}]"]
    assert letters.counts == {Reason.MISSING_FIELD: 3}
