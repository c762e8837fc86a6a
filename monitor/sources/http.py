"""Events that are posted: what waits between the HTTP server and the loop.

The server's thread hands in requests and waits for receipts; the loop takes them, applies them and
says what came of each. Both sides are bounded: what does not fit is refused, and the sender tries again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from threading import Condition

import xxhash

from monitor.records import RecordBatch, Reject

MAX_WAITING_BYTES = 64 * 1024 * 1024
MAX_LINES = 100_000
"""Lines of one request: broken ones take longer than their bytes say."""
_MAX_LINES_AT_ONCE = 200_000
MAX_KEYS = 100_000
"""Idempotency keys remembered; the oldest are forgotten first."""
SHOWN_REJECTS = 100
"""Rejects that a receipt lists."""
_MAX_KEPT_REJECTS = 200_000


class Refused(Exception):
    """A request that is not taken in; ``code`` is its HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What came of a request: events read, accepted, and rejected with their reasons."""

    read: int
    accepted: int
    rejects: Sequence[Reject]


def shown(receipt: Receipt) -> Receipt:
    """What of a receipt is told and kept: its first rejects, without the bytes."""
    return replace(receipt, rejects=[replace(r, payload=b"") for r in receipt.rejects[:SHOWN_REJECTS]])


@dataclass(slots=True, eq=False)
class Post:
    """One request: its records, and the receipt its sender waits for."""

    source: str
    body: bytes
    arrival_ms: int
    key: str | None = None
    digest: int = 0
    lines: int = 1
    receipt: Future[Receipt] = field(default_factory=Future)

    def records(self, partition: str) -> RecordBatch:
        """The lines of the body; positions are line numbers from 1. Blank lines are no records."""
        lines = self.body.split(b"\n")
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
        return RecordBatch(
            partition,
            [line for _, line in numbered],
            [n for n, _ in numbered],
            self.arrival_ms,
            ascii=self.body.isascii(),
        )


class Inbox:
    """Requests between the server and the loop.

    State: at most ``max_waiting_bytes`` of bodies, ``max_keys`` idempotency keys with their receipts.
    """

    def __init__(self, max_waiting_bytes: int = MAX_WAITING_BYTES, max_keys: int = MAX_KEYS) -> None:
        self._changed = Condition()
        self._waiting: deque[Post] = deque()
        self._bytes = 0
        self._max_bytes = max_waiting_bytes
        self._max_keys = max_keys
        self._keys: OrderedDict[tuple[str, str], tuple[int, Future[Receipt] | Receipt]] = OrderedDict()
        self._kept = 0
        self._closed = False
        self._paused: str | None = None

    def submit(self, post: Post, key: str | None = None) -> Future[Receipt]:
        """Hand in a request; the same ``key`` again gives the receipt of the first, and counts once.

        Raises
        ------
        Refused
            422 when the key came with another body before, 503 when the inbox is full or closed.
        """
        if (lines := post.body.count(b"\n")) > MAX_LINES:
            raise Refused(413, f"the request has more than {MAX_LINES} lines; send the events in several")
        post.key, post.lines = key, lines + 1
        digest = post.digest = xxhash.xxh3_64_intdigest(post.body)
        with self._changed:
            known = self._keys.get((post.source, key)) if key is not None else None
            if known is not None:
                if known[0] != digest:
                    message = "this Idempotency-Key came with other events before; use a key per request"
                    raise Refused(422, message)
                receipt = known[1]
                if isinstance(receipt, Receipt):
                    post.receipt.set_result(receipt)
                    return post.receipt
                return receipt
            if self._closed:
                raise Refused(503, "the monitor is shutting down; send the events again soon")
            if self._paused is not None:
                raise Refused(503, self._paused)
            if self._waiting and self._bytes + len(post.body) > self._max_bytes:
                raise Refused(503, "too many events wait to be counted; send these again in a second")
            post.receipt.set_running_or_notify_cancel()  # a client that leaves cannot cancel it
            self._waiting.append(post)
            self._bytes += len(post.body)
            if key is not None:
                self._keys[post.source, key] = digest, post.receipt
                self._forget()
            self._changed.notify()
        return post.receipt

    def pause(self, why: str | None) -> None:
        """Refuse what comes until the next call with None."""
        with self._changed:
            self._paused = why

    def take(self, seconds: float) -> list[Post]:
        """All requests that wait; when there are none, wait for one up to ``seconds``."""
        with self._changed:
            if not self._waiting and seconds > 0:
                self._changed.wait(seconds)
            posts: list[Post] = []
            lines = 0
            while self._waiting and (not posts or lines + self._waiting[0].lines <= _MAX_LINES_AT_ONCE):
                posts.append(self._waiting.popleft())
                lines += posts[-1].lines
                self._bytes -= len(posts[-1].body)
        return posts

    def answer(self, post: Post, receipt: Receipt) -> None:
        """Say what came of a request. What the answer shows is kept for its key."""
        receipt = shown(receipt)
        with self._changed:
            known = self._keys.get((post.source, post.key)) if post.key is not None else None
            if post.key is not None and known is not None and known[1] is post.receipt:
                self._keys[post.source, post.key] = known[0], receipt
                self._kept += len(receipt.rejects)
                self._forget()
        post.receipt.set_result(receipt)

    def remember(self, source: str, key: str, digest: int, receipt: Receipt) -> None:
        """A request that was answered before a restart."""
        with self._changed:
            self._keys[source, key] = digest, receipt
            self._kept += len(receipt.rejects)
            self._forget()

    def _forget(self) -> None:
        while len(self._keys) > self._max_keys or self._kept > _MAX_KEPT_REJECTS:
            _, (_, receipt) = self._keys.popitem(last=False)
            self._kept -= len(receipt.rejects) if isinstance(receipt, Receipt) else 0

    def close(self) -> None:
        """Refuse what comes from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify()
