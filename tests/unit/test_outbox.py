"""Messages to one receiver: order per alert, pauses, limits, and a thread that nobody waits for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from monitor.sinks.outbox import (
    MAX_AGE_SECONDS,
    MAX_HOLD_SECONDS,
    Channel,
    ChannelStats,
    Message,
    Outbox,
    Outcome,
    Verdict,
)

DELIVERED = Outcome(Verdict.DELIVERED, "delivered with status 200", 200)
DOWN = Outcome(Verdict.RETRY, "the receiver cannot be reached")
REFUSED = Outcome(Verdict.GIVE_UP, "the receiver answers with status 400", 400)
GONE = Outcome(Verdict.DISABLE, "the receiver says that it is gone for good (status 410)", 410)


def message(key: str, state: str = "firing") -> Message:
    return Message(f"msg_{key}_{state}", key, "gap-of-race", 0, b"{}")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Receiver:
    """A delivery by script: what it answers to each message, all that came, and when."""

    def __init__(self, clock: Callable[[], float], answer: Callable[[Message], Outcome]) -> None:
        self.clock, self.answer = clock, answer
        self.got: list[tuple[float, str]] = []
        self.aborted = 0

    def deliver(self, message: Message) -> Outcome:
        self.got.append((self.clock(), message.id))
        return self.answer(message)

    def abort(self) -> None:
        self.aborted += 1


def always(outcome: Outcome) -> Callable[[Message], Outcome]:
    return lambda message: outcome


def stepped(
    answer: Callable[[Message], Outcome], limit: int = 100, chance: float = 1.0
) -> tuple[Channel, Receiver, Clock]:
    clock = Clock()
    receiver = Receiver(clock, answer)
    outbox = Outbox(limit, chance=lambda: chance)
    channel = Channel("on-call", receiver, now_ms=lambda: 5_000, monotonic=clock, outbox=outbox)
    return channel, receiver, clock


def run(channel: Channel, clock: Clock, until: float) -> None:
    """Turn the channel as its thread would, with a clock that jumps to what is next."""
    while (pause := channel.step()) is not None and clock.now + pause <= until:
        clock.now += pause


def test_delivered_in_the_order_of_arrival() -> None:
    channel, receiver, clock = stepped(always(DELIVERED))
    for key in "cab":
        assert channel.send(message(key))
    run(channel, clock, 0)
    assert [name for _, name in receiver.got] == ["msg_c_firing", "msg_a_firing", "msg_b_firing"]
    assert channel.stats == ChannelStats(attempts=3, delivered=3, last_success_ms=5_000)


def test_pauses_double_up_to_five_minutes() -> None:
    channel, receiver, clock = stepped(always(DOWN))
    channel.send(message("a"))
    run(channel, clock, 3600)
    times = [at for at, _ in receiver.got]
    pauses = [b - a for a, b in pairwise(times)]
    assert pauses[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert set(pauses[10:]) == {300}


def test_pauses_are_drawn_from_zero_up() -> None:
    channel, receiver, clock = stepped(always(DOWN), chance=0.25)
    channel.send(message("a"))
    run(channel, clock, 2)
    assert [at for at, _ in receiver.got] == [0, 0.25, 0.75, 1.75]


def test_given_up_after_a_day(caplog: pytest.LogCaptureFixture) -> None:
    channel, receiver, clock = stepped(always(DOWN))
    channel.send(message("a"))
    run(channel, clock, 10 * MAX_AGE_SECONDS)
    assert MAX_AGE_SECONDS - 300 <= receiver.got[-1][0] <= MAX_AGE_SECONDS
    assert (channel.stats.failed, channel.stats.queued, channel.stats.delivered) == (1, 0, 0)
    lost = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert lost == ["message not delivered: the receiver cannot be reached (for 24 hours)"]


def test_a_resolve_waits_for_its_firing_and_others_do_not() -> None:
    up = False
    channel, receiver, clock = stepped(lambda m: DELIVERED if up or m.key != "a" else DOWN)
    for waiting in (message("a"), message("a", "resolved"), message("b"), message("b", "resolved")):
        channel.send(waiting)
    run(channel, clock, 100)
    assert {name for _, name in receiver.got} == {"msg_a_firing", "msg_b_firing", "msg_b_resolved"}
    assert all(at == 0 for at, name in receiver.got if "b" in name)
    up = True
    run(channel, clock, 300)
    assert [name for _, name in receiver.got[-2:]] == ["msg_a_firing", "msg_a_resolved"]
    assert channel.stats.queued == 0


def test_a_refused_firing_does_not_hold_its_resolve_back() -> None:
    channel, receiver, clock = stepped(lambda m: REFUSED if "firing" in m.id else DELIVERED)
    channel.send(message("a"))
    channel.send(message("a", "resolved"))
    run(channel, clock, 0)
    assert (channel.stats.failed, channel.stats.delivered) == (1, 1)
    assert len(receiver.got) == 2


@pytest.mark.parametrize(("asked", "held"), [(120.0, 120.0), (1e9, MAX_HOLD_SECONDS), (0.0, 1.0)])
def test_a_pause_that_is_asked_for_holds_for_all(asked: float, held: float) -> None:
    answers = iter([Outcome(Verdict.RETRY, "fewer", 429, asked)])
    channel, receiver, clock = stepped(lambda m: next(answers, DELIVERED))
    channel.send(message("a"))
    channel.step()
    channel.send(message("b"))
    run(channel, clock, 1e6)
    at = {name: at for at, name in receiver.got}
    assert at["msg_a_firing"] == held
    assert at["msg_b_firing"] == (held if asked else 0)


def test_gone_for_good_turns_the_channel_off(caplog: pytest.LogCaptureFixture) -> None:
    channel, receiver, clock = stepped(always(GONE))
    for key in "abc":
        channel.send(message(key))
    run(channel, clock, 1e6)
    assert not channel.send(message("d"))
    assert len(receiver.got) == 1
    assert channel.stats == ChannelStats(attempts=1, failed=4, disabled=True)
    assert "channel on-call is off until the monitor restarts" in caplog.text


def test_a_full_queue_refuses_the_newest(caplog: pytest.LogCaptureFixture) -> None:
    channel, _, clock = stepped(always(DELIVERED), limit=2)
    assert [channel.send(message(key)) for key in "abc"] == [True, True, False]
    assert (channel.stats.queued, channel.stats.failed) == (2, 1)
    [record] = caplog.records
    assert record.getMessage() == "message not delivered: 2 messages wait already"
    assert {k: record.__dict__[k] for k in ("channel", "rule", "key", "webhook_id")} == {
        "channel": "on-call",
        "rule": "gap-of-race",
        "key": "c",
        "webhook_id": "msg_c_firing",
    }
    run(channel, clock, 0)
    assert channel.send(message("c"))


def test_trouble_is_told_once_per_change(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    answers = iter([DOWN] * 50 + [DELIVERED])
    channel, _, clock = stepped(lambda m: next(answers))
    channel.send(message("a"))
    run(channel, clock, 1e5)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "channel on-call does not deliver and tries again: the receiver cannot be reached"),
        ("INFO", "message delivered"),
        ("INFO", "channel on-call delivers again"),
    ]


def test_a_bug_in_a_delivery_is_one_more_failed_attempt(caplog: pytest.LogCaptureFixture) -> None:
    def broken(message: Message) -> Outcome:
        raise RuntimeError("race = Other")

    channel, _, clock = stepped(broken)
    channel.send(message("a"))
    run(channel, clock, 10)
    assert channel.stats.queued == 1
    assert "RuntimeError" in caplog.text
    assert "Other" not in caplog.text


@seed(1)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["put", "ok", "down", "bad", "wait"]))))
def test_nothing_is_lost_or_overtaken(moves: list[tuple[str, str]]) -> None:
    """Against a plain model: per key a queue, and what was settled leaves it from the front."""
    outbox, now, put, over = Outbox(limit=6, chance=lambda: 0.5), 0.0, list[Message](), list[Message]()
    for i, (key, move) in enumerate(moves):
        if move == "put":
            added = message(key, str(i))
            assert outbox.put(added, now) == (len(put) - len(over) < 6)
            if len(put) - len(over) < 6:
                put.append(added)
        elif move == "wait":
            now += outbox.due_in(now) or 0
        elif (waiting := outbox.take(now)) is not None:
            first = next(m for m in put if m.key == waiting.message.key and m not in over)
            assert waiting.message is first
            outcome = {"ok": DELIVERED, "down": DOWN, "bad": REFUSED}[move]
            if outbox.settle(waiting, outcome, now) is not Verdict.RETRY:
                over.append(waiting.message)
        assert len(outbox) == len(put) - len(over)
    outbox.hasten(now)
    assert [m.id for m in outbox.clear()] == [m.id for m in put if m not in over]
    assert outbox.due_in(now) is None


# ---- with its thread


class Gate:
    """A receiver that hangs until it is let go."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.outcome = DELIVERED

    def deliver(self, message: Message) -> Outcome:
        self.entered.set()
        assert self.open.wait(10)
        return self.outcome

    def abort(self) -> None:
        self.outcome = DOWN
        self.open.set()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def channel(gate: Gate) -> Iterator[Channel]:
    channel = Channel("on-call", gate, now_ms=lambda: 1)
    channel.start()
    yield channel
    channel.close()
    assert not any(t.name == "channel on-call" for t in threading.enumerate())


def test_sending_never_waits_for_the_receiver(channel: Channel, gate: Gate) -> None:
    channel.send(message("a"))
    assert gate.entered.wait(10)
    assert channel.send(message("b"))  # while the receiver hangs
    assert channel.stats.queued == 2
    assert not channel.flush(0.01)
    gate.open.set()
    assert channel.flush(10)
    assert channel.stats == ChannelStats(attempts=2, delivered=2, last_success_ms=1)


def test_flush_tries_at_once_what_waits_for_another_attempt(channel: Channel, gate: Gate) -> None:
    gate.outcome = Outcome(Verdict.RETRY, "down")
    gate.open.set()
    channel.send(message("a"))
    channel.flush(0.2)
    gate.outcome = DELIVERED
    assert channel.flush(10)


def test_closing_cuts_short_and_names_what_is_lost(
    channel: Channel, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    for key in "ab":
        channel.send(message(key))
    assert gate.entered.wait(10)
    channel.close()
    channel.close()
    lost = [r.__dict__["key"] for r in caplog.records if r.levelno == logging.ERROR]
    assert lost == ["a", "b"]
    assert not channel.send(message("c"))
    assert (channel.stats.failed, channel.stats.queued) == (3, 0)


def test_a_dead_channel_delays_no_other(channel: Channel, gate: Gate) -> None:
    channel.send(message("a"))
    assert gate.entered.wait(10)
    other = Channel("chat", Receiver(lambda: 0.0, always(DELIVERED)), now_ms=lambda: 1)
    other.start()
    try:
        other.send(message("a"))
        assert other.flush(10)
    finally:
        other.close()
    assert channel.stats.delivered == 0
