"""Dead letters to a topic: raw bytes, where and why in the headers, and a broker that is often away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from monitor.names import Reason
from monitor.records import Reject
from monitor.sinks.kafka import TopicLetters, headers, letter_options


class BrokerDown(Exception):
    retriable = True


class TooLarge(Exception):
    retriable = False


class Delivery:
    """The fate of one letter, in the hands of the test."""

    def __init__(self, error: Exception | None = None, *, settled: bool = True) -> None:
        self.settled, self.error = settled, error
        self.callbacks: list[Callable[[], object]] = []
        self.errbacks: list[Callable[[Exception], object]] = []
        self.asked = threading.Event()  # the writer wants to be told

    def add_callback(self, function: Callable[..., object], *arguments: object) -> object:
        self.callbacks.append(lambda: function(*arguments, "metadata"))
        if self.settled and self.error is None:
            self.callbacks[-1]()
        return self

    def add_errback(self, function: Callable[..., object], *arguments: object) -> object:
        self.errbacks.append(lambda error: function(*arguments, error))
        self.asked.set()
        if self.settled and self.error is not None:
            self.errbacks[-1](self.error)
        return self

    def get(self, timeout: float | None = None) -> object:
        raise NotImplementedError


class FakeProducer:
    """Takes letters; ``fates`` says how the next ones end (default: delivered)."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes | None, bytes | None, list[tuple[str, bytes]] | None]] = []
        self.fates: list[Exception | Delivery] = []
        self.closed = False

    def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> Delivery:
        self.sent.append((topic, value, key, headers))
        fate = self.fates.pop(0) if self.fates else Delivery()
        if isinstance(fate, Exception):
            raise fate
        return fate

    def flush(self, timeout: float | None = None) -> None:
        raise NotImplementedError

    def close(self, timeout: float | None = None) -> None:
        self.closed = True
        raise BrokerDown("not everything was sent")


@pytest.fixture
def producer() -> FakeProducer:
    return FakeProducer()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.sinks.kafka._PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("monitor.sinks.kafka._ROOM_SECONDS", 0.05)


@pytest.fixture
def letters(producer: FakeProducer) -> Iterator[TopicLetters]:
    letters = TopicLetters("rejected", lambda: producer, monotonic=lambda: 0.0)
    yield letters
    letters.close(0)
    assert not any(t.name == "dead letters" for t in threading.enumerate())


def reject(
    payload: bytes = b'{"a": 1}', partition: str = "pre-dictions-3", element: int | None = None
) -> Reject:
    return Reject(partition, 17, Reason.MISSING_FIELD, "id is missing", payload, element)


def test_headers_say_where_and_why() -> None:
    why = [("reason", b"missing_field"), ("message", b"id is missing")]
    assert headers(reject(element=2)) == [
        *why,
        ("source-topic", b"pre-dictions"),
        ("source-partition", b"3"),
        ("source-offset", b"17"),
        ("element", b"2"),
    ]
    for partition in ("http/posted-1", "http"):
        where = [("source", partition.encode()), ("source-position", b"17")]
        assert headers(reject(partition=partition)) == [*why, *where]
    odd = Reject("http", 0, Reason.MISSING_FIELD, "é \ud800", b"")
    assert dict(headers(odd))["message"] == "é \\ud800".encode()


@pytest.mark.parametrize("payload", [b"", b"\xff\x00{", b'{"a": 1}\n'])
def test_the_raw_bytes_unchanged_and_no_key(
    letters: TopicLetters, producer: FakeProducer, payload: bytes
) -> None:
    letters.write([reject(payload)])
    assert letters.flush(10)
    assert producer.sent == [("rejected", payload, None, headers(reject(payload)))]
    assert (letters.written, letters.failed, letters.waiting) == (1, 0, 0)


def test_nothing_to_write_needs_no_broker() -> None:
    letters = TopicLetters("rejected", lambda: pytest.fail("connected"))
    assert letters.flush(0)
    letters.close()


def test_an_outage_at_the_start_is_waited_out(
    producer: FakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = iter([BrokerDown("nobody there")] * 3)

    def connect() -> FakeProducer:
        for error in attempts:
            raise error
        return producer

    caplog.set_level(logging.INFO)
    letters = TopicLetters("rejected", connect)
    letters.write([reject(), reject()])
    assert letters.flush(10)
    letters.close()
    assert letters.written == 2
    assert producer.closed
    waits = "dead letters wait: BrokerDown: nobody there; check that topic rejected exists and can be reached"
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", waits),
        ("INFO", "dead letters are written again"),
    ]


def test_what_can_be_tried_again_is(letters: TopicLetters, producer: FakeProducer) -> None:
    # An error of the call (no metadata), and one of the delivery (a batch that was dropped).
    producer.fates = [BrokerDown("no metadata"), BrokerDown("no metadata"), Delivery(BrokerDown("dropped"))]
    letters.write([reject(b"a"), reject(b"b")])
    assert letters.flush(10)
    assert (letters.written, letters.failed) == (2, 0)
    assert {value for _, value, _, _ in producer.sent} == {b"a", b"b"}


@pytest.mark.parametrize("fate", [TooLarge("1048588 bytes"), Delivery(TooLarge("1048588 bytes"))])
def test_what_the_broker_never_takes_is_counted(
    letters: TopicLetters,
    producer: FakeProducer,
    fate: Exception | Delivery,
    caplog: pytest.LogCaptureFixture,
) -> None:
    producer.fates = [fate, TooLarge("1048588 bytes")]
    letters.write([reject(b"secret")] * 3)
    assert letters.flush(10)
    assert (letters.written, letters.failed, letters.waiting) == (1, 2, 0)
    [record] = caplog.records  # once a minute
    assert record.getMessage() == "dead letters are lost: TooLarge: 1048588 bytes"


def test_room_is_bounded_and_writing_never_waits_long(
    producer: FakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    held = [Delivery(settled=False) for _ in range(3)]
    producer.fates = list(held)
    letters = TopicLetters("rejected", lambda: producer, max_waiting_bytes=4000)
    letters.write([reject(b"x" * 10_000)])  # larger than the room: alone it may
    assert letters.full
    letters.write([reject(), reject()])
    assert (letters.failed, letters.waiting) == (2, 1)
    assert "dead letters are lost: there is no room for more" in caplog.text
    assert not letters.flush(0)
    assert held[0].asked.wait(10)
    held[0].callbacks[0]()
    assert letters.flush(0)
    assert not letters.full
    letters.write([reject()])
    letters.close(0)
    assert letters.written == 1


def test_closing_counts_what_is_left_once(producer: FakeProducer) -> None:
    held = Delivery(settled=False)
    producer.fates = [held]
    letters = TopicLetters("rejected", lambda: producer)
    letters.write([reject()])
    assert held.asked.wait(10)
    letters.close(0.01)
    letters.close(0)
    for callback in held.callbacks:
        callback()
    for errback in held.errbacks:
        errback(BrokerDown("aborted"))
    letters.write([reject()])
    assert (letters.written, letters.failed, letters.waiting) == (0, 2, 0)


@pytest.mark.filterwarnings("ignore:.* is deprecated. Use files:DeprecationWarning")  # by kafka
def test_options_of_the_producer_are_known_to_the_library() -> None:
    from kafka import KafkaProducer

    options = letter_options(10 * 1024 * 1024, "lz4")
    assert set(options) <= set(KafkaProducer.DEFAULT_CONFIG)
    assert options["max_request_size"] == 11 * 1024 * 1024
