"""Messages on their way to one receiver: in order, tried again, bounded. Pure rules and a thin thread."""

from __future__ import annotations

import heapq
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

LIMIT = 10_000
"""Messages that may wait for one receiver."""
MAX_AGE_SECONDS = 24 * 3600.0
"""How long a message is tried again."""
MAX_HOLD_SECONDS = 3600.0
"""The longest pause that a receiver can ask for."""
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 300.0
_CLOSE_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent, settled when it is made.

    ``id`` is the same whenever this message is sent, also after a restart. Messages with one ``key`` are
    delivered in order. ``rule`` names the alert rule in logs; ``at_ms`` is when it happened.
    """

    id: str
    key: str
    rule: str
    at_ms: int
    body: bytes


class Verdict(StrEnum):
    """What one attempt comes to."""

    DELIVERED = "delivered"
    RETRY = "retry"
    GIVE_UP = "give_up"
    DISABLE = "disable"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. ``reason`` is a clause for the log and never quotes the answer.

    ``hold_seconds`` is the pause the receiver asks for; it holds for all messages.
    """

    verdict: Verdict
    reason: str
    status: int | None = None
    hold_seconds: float | None = None


class Delivery(Protocol):
    """One way to send a message."""

    def deliver(self, message: Message) -> Outcome:
        """Make one attempt, in bounded time; report every failure as an outcome."""

    def abort(self) -> None:
        """Cut short an attempt that another thread is in."""


@dataclass(slots=True)
class Waiting:
    """A message with its history; times are seconds on the caller's clock."""

    message: Message
    since: float
    number: int
    attempts: int = 0


class Outbox:
    """Messages that wait for one receiver, and which of them is next. Pure: time and chance are passed in.

    A message that waits for another attempt holds back those with the same key, and no others. The pause
    before attempt n + 1 is drawn evenly from 0 to 2ⁿ⁻¹ seconds, at most 5 minutes. State: O(messages).
    """

    def __init__(self, limit: int = LIMIT, chance: Callable[[], float] = random.random) -> None:
        self._limit = limit
        self._chance = chance
        self._lanes: dict[str, deque[Waiting]] = {}
        self._due: list[tuple[float, int, str]] = []  # the first of every lane, but for the one taken
        self._size = self._numbers = 0
        self._held_until = 0.0

    def __len__(self) -> int:
        return self._size

    def put(self, message: Message, now: float) -> bool:
        """Take a message in; False when there is no room."""
        if self._size >= self._limit:
            return False
        self._numbers += 1
        self._size += 1
        lane = self._lanes.setdefault(message.key, deque())
        lane.append(Waiting(message, now, self._numbers))
        if len(lane) == 1:
            heapq.heappush(self._due, (now, self._numbers, message.key))
        return True

    def take(self, now: float) -> Waiting | None:
        """The message to try now, if there is one. Its lane rests until :meth:`settle`."""
        if self.due_in(now) != 0:
            return None
        return self._lanes[heapq.heappop(self._due)[2]][0]

    def due_in(self, now: float) -> float | None:
        """Seconds until a message is to be tried; None when nothing waits."""
        return max(0.0, self._held_until - now, self._due[0][0] - now) if self._due else None

    def settle(self, waiting: Waiting, outcome: Outcome, now: float) -> Verdict:
        """An attempt has ended. The verdict is RETRY no longer when the message has grown too old."""
        waiting.attempts += 1
        if outcome.hold_seconds is not None:
            self._held_until = now + min(outcome.hold_seconds, MAX_HOLD_SECONDS)
        key, verdict, due = waiting.message.key, outcome.verdict, now
        if verdict is Verdict.RETRY:
            due = max(now + self._pause(waiting.attempts), self._held_until)
            if due - waiting.since > MAX_AGE_SECONDS:
                verdict, due = Verdict.GIVE_UP, now
        lane = self._lanes[key]
        if verdict is not Verdict.RETRY:
            lane.popleft()
            self._size -= 1
        if lane:
            heapq.heappush(self._due, (due, lane[0].number, key))
        else:
            del self._lanes[key]
        return verdict

    def _pause(self, attempts: int) -> float:
        longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(attempts - 1, 30))
        return longest * self._chance()

    def hasten(self, now: float) -> None:
        """Make all messages due, in the order they came; a pause that the receiver asked for stays."""
        self._due = sorted((now, number, key) for _, number, key in self._due)

    def clear(self) -> list[Message]:
        """Take out everything."""
        left = sorted((w for lane in self._lanes.values() for w in lane), key=lambda w: w.number)
        self._lanes.clear()
        self._due.clear()
        self._size = 0
        return [w.message for w in left]


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """Counts since the start, and what is the case now. ``failed`` counts messages that were given up."""

    attempts: int = 0
    delivered: int = 0
    failed: int = 0
    queued: int = 0
    last_success_ms: int | None = None
    disabled: bool = False


class Channel:
    """Sends messages to one receiver from a thread of its own, so that nobody waits for it.

    What waits is in memory: a restart loses it, and the log names every message that is lost.

    Parameters
    ----------
    name
        Of the channel, in logs.
    delivery
        Makes the attempts.
    now_ms
        Wall clock, ms since 1970.
    monotonic
        Clock in seconds that never goes back.
    """

    def __init__(
        self,
        name: str,
        delivery: Delivery,
        *,
        now_ms: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        outbox: Outbox | None = None,
    ) -> None:
        self.name = name
        self._delivery = delivery
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._outbox = Outbox() if outbox is None else outbox
        self._changed = threading.Condition()
        self._closing = self._closed = self._disabled = False
        self._attempts = self._delivered = self._failed = 0
        self._last_success_ms: int | None = None
        self._trouble: str | None = None
        self._finished: list[str] = []
        self._thread = threading.Thread(target=self._run, name=f"channel {name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def stats(self) -> ChannelStats:
        """Where the channel stands; any thread may ask."""
        with self._changed:
            return ChannelStats(
                self._attempts,
                self._delivered,
                self._failed,
                len(self._outbox),
                self._last_success_ms,
                self._disabled,
            )

    def finished(self) -> list[str]:
        """Ids of the messages that were delivered or given up since the last call."""
        with self._changed:
            done, self._finished = self._finished, []
        return done

    def send(self, message: Message) -> bool:
        """Queue a message and return at once; False when it cannot be taken, which is counted and logged."""
        with self._changed:
            if self._disabled:
                why = "the receiver has closed this channel (status 410); restart to try it again"
            elif self._closing:
                why = "the monitor is shutting down"
            elif not self._outbox.put(message, self._monotonic()):
                why = f"{len(self._outbox)} messages wait already"
            else:
                self._changed.notify_all()
                return True
            self._lose(message, why)
            return False

    def step(self) -> float | None:
        """Make one attempt if a message is due; seconds until the next is, None when nothing waits."""
        with self._changed:
            waiting = self._outbox.take(self._monotonic())
        if waiting is not None:
            try:
                outcome = self._delivery.deliver(waiting.message)
            except Exception as error:  # a bug must not end the thread; its text may hold anything
                outcome = Outcome(Verdict.RETRY, f"the attempt failed unexpectedly: {type(error).__name__}")
            with self._changed:
                self._settle(waiting, outcome)
                self._changed.notify_all()
        with self._changed:
            return self._outbox.due_in(self._monotonic())

    def _settle(self, waiting: Waiting, outcome: Outcome) -> None:
        if self._closed:
            return  # the message is counted and logged as lost already
        self._attempts += 1
        message, status = waiting.message, outcome.status
        verdict = self._outbox.settle(waiting, outcome, self._monotonic())
        if verdict is Verdict.DELIVERED:
            self._finished.append(message.id)
            self._delivered += 1
            self._last_success_ms = self._now_ms()
            log.info("message delivered", extra=self._fields(message, status))
            if self._trouble is not None:
                log.info("channel %s delivers again", self.name, extra={"channel": self.name})
                self._trouble = None
        elif verdict is Verdict.RETRY:
            if outcome.reason != self._trouble:  # once per change, not per attempt
                text = f"channel {self.name} does not deliver and tries again: {outcome.reason}"
                log.warning("%s", text, extra=self._fields(message, status))
                self._trouble = outcome.reason
        else:
            old = f" (for {MAX_AGE_SECONDS / 3600:g} hours)" if outcome.verdict is Verdict.RETRY else ""
            self._lose(message, outcome.reason + old, status)
        if verdict is Verdict.DISABLE:
            self._disabled = True
            log.error("channel %s is off until the monitor restarts", self.name, extra={"channel": self.name})
            for left in self._outbox.clear():
                self._lose(left, outcome.reason, status)

    def _lose(self, message: Message, why: str, status: int | None = None) -> None:
        if not self._closing:  # what is left at the end is sent after the next start, if it was stored
            self._finished.append(message.id)
        self._failed += 1
        log.error("message not delivered: %s", why, extra=self._fields(message, status))

    def _fields(self, message: Message, status: int | None) -> dict[str, object]:
        fields: dict[str, object] = {
            "channel": self.name,
            "rule": message.rule,
            "key": message.key,
            "webhook_id": message.id,
        }
        return fields if status is None else {**fields, "status": status}

    def _run(self) -> None:
        while True:
            self.step()
            with self._changed:
                if self._closing:
                    return
                due = self._outbox.due_in(self._monotonic())
                if due != 0:
                    self._changed.wait(due)

    def flush(self, seconds: float) -> bool:
        """Try everything once more at once, and wait until nothing waits, at most so long; did it work?"""
        with self._changed:
            self._outbox.hasten(self._monotonic())
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not len(self._outbox), seconds)

    def close(self) -> None:
        """Stop, within about a second. What still waits is counted as failed and named in the log."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._delivery.abort()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)
        with self._changed:
            self._closed = True
            for message in self._outbox.clear():
                self._lose(message, "the monitor was shut down first")
            self._changed.notify_all()
