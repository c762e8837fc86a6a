"""Rejected events to a Kafka topic: raw bytes as they came, and in the headers where and why.

| header | content |
|---|---|
| `reason`, `message` | reason code and sentence |
| `source-topic`, `source-partition`, `source-offset` | where the record was, if it came from a topic |
| `source`, `source-position` | where it was otherwise |
| `element` | which event of a record with several |
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from monitor.kafka_client import Producer
from monitor.records import Reject, once

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Dead letters that may wait for the broker."""
_OVERHEAD_BYTES = 512
_ROOM_SECONDS = 1.0
_PAUSE_SECONDS = 1.0
_REMIND_SECONDS = 60.0
_BATCH = 500
_PARTITION = re.compile(r"([A-Za-z0-9._-]+)-([0-9]+)")

log = logging.getLogger(__name__)


def letter_options(max_message_bytes: int, compression: str | None = None) -> dict[str, object]:
    """Options of the producer: waits out every outage, refuses nothing that a source may hand over.

    Not idempotent: that needs a permission of its own and can fail for good, and a letter that comes twice
    is known by its source and position.
    """
    return {
        "acks": "all",
        "enable_idempotence": False,
        "delivery_timeout_ms": 2**31 - 1,
        "max_block_ms": 5000,
        "bootstrap_timeout_ms": 5000,
        "max_request_size": max_message_bytes + 1024 * 1024,
        "batch_size": 256 * 1024,
        "linger_ms": 10,
        "compression_type": compression,
    }


def headers(reject: Reject) -> list[tuple[str, bytes]]:
    """Where an event was and why it was rejected, as headers of its letter."""
    found = _PARTITION.fullmatch(reject.partition)
    if found is not None:
        where = {"source-topic": found[1], "source-partition": found[2], "source-offset": reject.position}
    else:
        where = {"source": reject.partition, "source-position": reject.position}
    content = {"reason": str(reject.reason), "message": reject.message, **where}
    if reject.element is not None:
        content["element"] = reject.element
    return [(name, str(value).encode("utf-8", "backslashreplace")) for name, value in content.items()]


class TopicLetters:
    """Writes rejects to a topic from a thread of its own; trouble is counted and logged, never raised.

    An outage, or a topic that does not exist yet, is waited out. What waits is bounded: a write without
    room waits up to a second and then gives up, so pause the sources while :attr:`full`. What the broker
    will never take (a letter that is too large for it, a topic we may not write to) is given up as well.

    Parameters
    ----------
    topic
        Name of the topic.
    make_producer
        Connects, or raises; called again until it succeeds.
    max_waiting_bytes
        Bound of what waits, in memory.
    monotonic
        Clock in seconds, for how often is told what fails.
    """

    def __init__(
        self,
        topic: str,
        make_producer: Callable[[], Producer],
        *,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.topic = topic
        self._make_producer = make_producer
        self._limit = max_waiting_bytes
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._queue: deque[Reject] = deque()
        self._waiting = self._waiting_bytes = 0  # in the queue and on their way
        self._written = self._failed = 0
        self._closing = self._closed = False
        self._trouble: str | None = None
        self._lost: tuple[str, float] | None = None
        self._producer: Producer | None = None
        self._thread: threading.Thread | None = None

    @property
    def written(self) -> int:
        """Letters that the broker has."""
        with self._changed:
            return self._written

    @property
    def failed(self) -> int:
        """Letters that were given up."""
        with self._changed:
            return self._failed

    @property
    def waiting(self) -> int:
        """Letters that neither the broker has nor were given up."""
        with self._changed:
            return self._waiting

    @property
    def full(self) -> bool:
        """Whether half of the room is taken, which is the time to read no more."""
        with self._changed:
            return self._waiting_bytes > self._limit // 2

    def write(self, rejects: Iterable[Reject]) -> None:
        """Take in rejects."""
        with self._changed:
            if self._thread is None:  # connect when there is something to write
                self._thread = threading.Thread(target=self._run, name="dead letters", daemon=True)
                self._thread.start()
            deadline = time.monotonic() + _ROOM_SECONDS
            for reject in once(rejects):
                size = _size(reject)
                while not (room := self._has_room(size)) and (left := deadline - time.monotonic()) > 0:
                    self._changed.notify_all()
                    self._changed.wait(left)
                if self._closed or not room:
                    self._lose(1, "the sink is closed" if self._closed else "there is no room for more")
                    continue
                self._queue.append(reject)
                self._waiting += 1
                self._waiting_bytes += size
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        """Is there room for so many bytes? A single letter always has it."""
        return self._closed or not self._waiting or self._waiting_bytes + size <= self._limit

    def flush(self, seconds: float) -> bool:
        """Wait, at most so long, until nothing waits any more; did it come to that?"""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    def close(self, seconds: float = 5.0) -> None:
        """Write what still waits, at most so long; what is left then is counted as failed."""
        self.flush(seconds)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_PAUSE_SECONDS)
        if self._producer is not None:
            with suppress(Exception):  # it raises when it has not sent everything
                self._producer.close(1.0)
        with self._changed:
            self._closed = True
            if self._waiting:
                self._lose(self._waiting, "the monitor was shut down first")
            self._waiting = self._waiting_bytes = 0
            self._queue.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while (letters := self._next()) and (producer := self._connected()) is not None:
            for i, reject in enumerate(letters):
                try:
                    delivery = producer.send(self.topic, value=reject.payload, headers=headers(reject))
                except Exception as error:
                    if _retriable(error):  # it has waited for the broker already
                        self._put_back(letters[i:], error)
                        break
                    self._undelivered(reject, error)
                else:
                    # Called from the producer's thread, or at once when it is settled already.
                    delivery.add_callback(self._delivered, reject)
                    delivery.add_errback(self._undelivered, reject)

    def _next(self) -> list[Reject]:
        """The next letters to send; none when it is time to stop."""
        with self._changed:
            if self._trouble is not None:
                self._changed.wait_for(lambda: self._closing, _PAUSE_SECONDS)
            self._changed.wait_for(lambda: self._queue or self._closing)
            if self._closing:
                return []
            # One by one while there is trouble: each may wait for the broker again.
            count = 1 if self._trouble is not None else min(len(self._queue), _BATCH)
            return [self._queue.popleft() for _ in range(count)]

    def _connected(self) -> Producer | None:
        while self._producer is None:
            try:
                self._producer = self._make_producer()
            except Exception as error:
                with self._changed:
                    if self._closing:
                        return None
                    self._complain(error)
                    self._changed.wait_for(lambda: self._closing, _PAUSE_SECONDS)
        return self._producer

    def _delivered(self, reject: Reject, _metadata: object) -> None:
        with self._changed:
            if self._settle(reject):
                self._written += 1
                if self._trouble is not None:
                    log.info("dead letters are written again", extra={"topic": self.topic})
                self._trouble = None

    def _undelivered(self, reject: Reject, error: Exception) -> None:
        if _retriable(error):
            self._put_back([reject], error)
            return
        with self._changed:
            if self._settle(reject):
                self._lose(1, _text(error))

    def _put_back(self, rejects: Sequence[Reject], error: Exception) -> None:
        with self._changed:
            if not self._closed:
                self._complain(error)
                self._queue.extendleft(reversed(rejects))
                self._changed.notify_all()

    def _settle(self, reject: Reject) -> bool:
        if self._closed:
            return False  # it was counted as lost
        self._waiting -= 1
        self._waiting_bytes -= _size(reject)
        self._changed.notify_all()
        return True

    def _complain(self, error: Exception) -> None:
        """Say once per change why letters wait."""
        text = _text(error)
        if text != self._trouble:
            message = f"dead letters wait: {text}; check that topic {self.topic} exists and can be reached"
            log.warning("%s", message, extra={"topic": self.topic})
        self._trouble = text

    def _lose(self, count: int, why: str) -> None:
        """Count letters that are given up, and say so once a minute."""
        self._failed += count
        now = self._monotonic()
        if self._lost is None or self._lost[0] != why or now - self._lost[1] >= _REMIND_SECONDS:
            message = f"dead letters are lost: {why}"
            log.error("%s", message, extra={"topic": self.topic, "failed": self._failed})
            self._lost = (why, now)


def _size(reject: Reject) -> int:
    return len(reject.payload) + len(reject.message) + _OVERHEAD_BYTES


def _retriable(error: Exception) -> bool:
    return bool(getattr(error, "retriable", False))  # kafka-python's errors say so themselves


def _text(error: Exception) -> str:
    name, text = type(error).__name__, str(error)
    return (text if text.startswith(name) else f"{name}: {text}")[:300]
