"""The join against its documented semantics, written with dictionaries, one event at a time."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.batch import EventBatch
from monitor.join import Join, JoinLimits, OutcomeChange
from monitor.tasks.binary import Binary, BinaryOptions

TASK = Binary(BinaryOptions())
DIGESTS = np.array([30, 10, 20], np.uint64)
"""An order of the three cells that is not the order of their numbers."""
HORIZON = 100
MIX = np.uint64(0x9E3779B97F4A7C15)
"""Keys are hashes: numbers times an odd constant are mixed well enough."""

Prediction = tuple[int, int, int]
"""Time, cell, decision."""
Outcome = tuple[int, int]
"""Time, outcome."""
SEEDS = st.integers(0, 2**32)


@dataclass(frozen=True)
class Event:
    id: int | None
    prediction: Prediction | None = None
    outcome: Outcome | None = None

    @property
    def time(self) -> int:
        """Event time, by which lateness goes."""
        part = self.prediction or self.outcome
        assert part is not None
        return part[0]


def rank(prediction: Prediction) -> tuple[int, int, int]:
    """Conflicts: the smallest time, then the content."""
    time, cell, decision = prediction
    return time, int(DIGESTS[cell]), decision


@dataclass
class Model:
    """What the docstrings of the join say."""

    ttl: int
    wait: int
    joined: int = 0
    duplicates: int = 0
    expired_predictions: int = 0
    expired_outcomes: int = 0
    waiting_predictions: dict[int, Prediction] = field(default_factory=dict)
    waiting_outcomes: dict[int, Outcome] = field(default_factory=dict)
    pairs: dict[int, tuple[Prediction, Outcome]] = field(default_factory=dict)
    anonymous: list[tuple[Prediction, Outcome]] = field(default_factory=list)
    past_predictions: list[Prediction] = field(default_factory=list)
    """Predictions whose wait has ended; they stay in the prediction block."""

    def take(self, event: Event) -> None:
        p, o = event.prediction, event.outcome
        if event.id is None:
            assert p is not None
            assert o is not None
            self.joined += 1
            self.anonymous.append((p, o))
        elif event.id in self.pairs:
            self.duplicates += 1
            old_p, old_o = self.pairs[event.id]
            self.pairs[event.id] = (
                old_p if p is None else min(old_p, p, key=rank),
                old_o if o is None else min(old_o, o),
            )
        elif p is not None and o is not None:
            self.joined += 1
            self.pairs[event.id] = (p, o)
        elif p is not None:
            if event.id in self.waiting_predictions:
                self.duplicates += 1
                p = min(p, self.waiting_predictions[event.id], key=rank)
            self.waiting_predictions[event.id] = p
            self._match(event.id)
        elif o is not None:
            if event.id in self.waiting_outcomes:
                self.duplicates += 1
                o = min(o, self.waiting_outcomes[event.id])
            self.waiting_outcomes[event.id] = o
            self._match(event.id)

    def _match(self, identity: int) -> None:
        if identity not in self.waiting_predictions or identity not in self.waiting_outcomes:
            return
        prediction, outcome = self.waiting_predictions[identity], self.waiting_outcomes.pop(identity)
        if -self.wait <= outcome[0] - prediction[0] <= self.ttl:
            del self.waiting_predictions[identity]
            self.joined += 1
            self.pairs[identity] = (prediction, outcome)
        else:
            self.expired_outcomes += 1

    def close(self, until: int) -> list[tuple[int, int]]:
        """All events before ``until`` have been seen; deadlines and cells of what expires."""
        gone = {i: p for i, p in self.waiting_predictions.items() if p[0] + self.ttl < until}
        for identity, prediction in gone.items():
            del self.waiting_predictions[identity]
            self.past_predictions.append(prediction)
        self.expired_predictions += len(gone)
        forgotten = [i for i, o in self.waiting_outcomes.items() if o[0] + self.wait < until]
        for identity in forgotten:
            del self.waiting_outcomes[identity]
        self.expired_outcomes += len(forgotten)
        return sorted((p[0] + self.ttl, p[1]) for p in gone.values())

    def prediction_block(self) -> Counter[Prediction]:
        paired = [p for p, _ in [*self.pairs.values(), *self.anonymous]]
        return Counter([*paired, *self.waiting_predictions.values(), *self.past_predictions])

    def outcome_block(self) -> Counter[tuple[int, ...]]:
        """Time it counts at, cell, delay, decision, outcome."""
        return Counter(
            (max(p[0], o[0]), p[1], max(o[0] - p[0], 0), p[2], o[1])
            for p, o in [*self.pairs.values(), *self.anonymous]
        )


def batch(events: list[Event]) -> EventBatch:
    p = [e.prediction or (-1, 0, 0) for e in events]
    o = [e.outcome or (-1, 0) for e in events]
    predictions = np.zeros(len(events), TASK.prediction_dtype)
    predictions["decision"] = [x[2] for x in p]
    outcomes = np.zeros(len(events), TASK.outcome_dtype)
    outcomes["outcome"] = [x[1] for x in o]
    return EventBatch(
        record=np.arange(len(events)),
        key=np.array([0 if e.id is None else e.id + 1 for e in events], np.uint64),
        has_id=np.array([e.id is not None for e in events], np.bool_),
        cell=np.array([x[1] for x in p], np.int64),
        digest=DIGESTS[[x[1] for x in p]],
        has_prediction=np.array([e.prediction is not None for e in events], np.bool_),
        has_outcome=np.array([e.outcome is not None for e in events], np.bool_),
        prediction_time=np.array([x[0] for x in p], np.int64),
        outcome_time=np.array([x[0] for x in o], np.int64),
        predictions=predictions,
        outcomes=outcomes,
    )


class Sums:
    """A join, and the sums of what it reported."""

    def __init__(self, ttl: int, wait: int, window: int = HORIZON) -> None:
        self.join = Join(TASK, JoinLimits(ttl, wait, window, 1_000_000))
        self.predictions: Counter[tuple[int, ...]] = Counter()
        self.outcomes: Counter[tuple[int, ...]] = Counter()

    def take(self, events: list[Event]) -> None:
        for change in self.join.step(batch(events)):
            columns: list[Any] = [change.time, change.cell]
            target = self.predictions
            if isinstance(change, OutcomeChange):
                columns += [change.delay, change.predictions["decision"], change.outcomes["outcome"]]
                target = self.outcomes
            else:
                columns.append(change.predictions["decision"])
            for row in zip(*(c.tolist() for c in columns), strict=True):
                target[row] += change.sign

    def blocks(self) -> tuple[dict[Any, int], dict[Any, int]]:
        predictions = {k: n for k, n in self.predictions.items() if n}
        return predictions, {k: n for k, n in self.outcomes.items() if n}


def compare(model: Model, sums: Sums) -> None:
    counts = sums.join.counts
    assert counts.joined == model.joined
    assert counts.duplicates == model.duplicates
    assert counts.expired_predictions == model.expired_predictions
    assert counts.expired_outcomes == model.expired_outcomes
    assert sums.join.unmatched_predictions == len(model.waiting_predictions) + model.expired_predictions
    assert sums.join.unmatched_outcomes == len(model.waiting_outcomes) + model.expired_outcomes
    assert sums.blocks() == (dict(model.prediction_block()), dict(model.outcome_block()))


def play(chosen: random.Random, arriving: list[Event], model: Model, sums: Sums) -> None:
    """Events in batches of any size, between them time buckets that close; late events left out."""
    closed = 0
    while arriving:
        cut = chosen.choice([1, 2, 5, 30])
        events, arriving = arriving[:cut], arriving[cut:]
        events = [e for e in events if e.time >= closed]
        for event in events:
            model.take(event)
        if events:
            sums.take(events)
        if chosen.random() < 0.4 and arriving:
            until = max(closed, min(e.time for e in arriving) + chosen.choice([-3, 0, 0, 2]))
            while closed < until:
                closed += 1
                expiry = sums.join.expire(closed)
                found = sorted(zip(expiry.time.tolist(), expiry.cell.tolist(), strict=True))
                assert found == model.close(closed)
        compare(model, sums)


def lifelike(chosen: random.Random, ids: int, *, conflicts: bool) -> list[Event]:
    """Events of some ids in the order of their times, displaced a little.

    With ``conflicts`` the repeats of an id differ in time, and every combination may pair; without,
    times are equal and delays often beyond what may pair.
    """
    events: list[Event] = []
    for identity in range(ids):
        p = chosen.randrange(HORIZON // 2)
        o = p + (chosen.randrange(-4, 15) if conflicts else chosen.randrange(-20, 35))
        timely = conflicts or -10 <= o - p <= 20
        together = chosen.random() < 0.2
        for _ in range(chosen.choice([1, 1, 2, 4]) if timely else 1):
            shift = [chosen.randrange(5) if conflicts else 0 for _ in range(2)]
            prediction = (p + shift[0], chosen.randrange(3), chosen.randrange(2))
            outcome = (max(o, 0) + shift[1], chosen.randrange(2))
            if together:
                outcome = (max(outcome[0], prediction[0]), outcome[1])
                events.append(Event(identity, prediction, outcome))
            else:
                if chosen.random() < 0.85:
                    events.append(Event(identity, prediction))
                if chosen.random() < 0.85:
                    events.append(Event(identity, None, outcome))
        if chosen.random() < 0.1:
            events.append(Event(None, (p, chosen.randrange(3), 1), (p + 3, 0)))
    events.sort(key=lambda e: e.time + chosen.random() * 8)
    return events


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS, ids=st.integers(1, 12))
def test_equal_times(seed: int, ids: int) -> None:
    """Conflicting contents, delays up to and beyond what a pair may span, expiry."""
    chosen = random.Random(seed)
    play(chosen, lifelike(chosen, ids, conflicts=False), Model(20, 10), Sums(20, 10))


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS, ids=st.integers(1, 12))
def test_conflicting_times(seed: int, ids: int) -> None:
    chosen = random.Random(seed)
    play(chosen, lifelike(chosen, ids, conflicts=True), Model(30, 20), Sums(30, 20))


def test_bounds_of_a_pair_are_inside() -> None:
    for delay, pairs in ((-10, 1), (-11, 0), (20, 1), (21, 0)):
        for first in (0, 1):
            events = [Event(1, (50, 0, 1)), Event(1, None, (50 + delay, 1))]
            sums = Sums(20, 10)
            sums.take([events[first]])
            sums.take([events[1 - first]])
            assert sums.join.counts.joined == pairs, delay
            assert sums.join.unmatched_predictions == sums.join.unmatched_outcomes == 1 - pairs


def test_a_prediction_expires_after_its_deadline() -> None:
    sums = Sums(20, 10)
    sums.take([Event(1, (50, 2, 1)), Event(2, None, (55, 1))])
    assert sums.join.next_expiry() == 65  # the outcome's
    assert sums.join.expire(65).cell.size == 0
    assert sums.join.counts.expired_outcomes == 0
    sums.join.expire(66)
    assert sums.join.counts.expired_outcomes == 1
    assert sums.join.expire(70).cell.size == 0
    expiry = sums.join.expire(71)
    assert (expiry.time.tolist(), expiry.cell.tolist()) == ([70], [2])
    assert sums.join.next_expiry() is None


def test_an_id_is_new_again_after_the_dedupe_window() -> None:
    sums = Sums(20, 10, window=30)
    for at in (0, 30, 61):
        sums.take([Event(1, (at, 0, 1), (at + 1, 1))])
    assert sums.join.counts.joined == 2
    assert sums.join.counts.duplicates == 1


def test_a_duplicate_prediction_and_a_duplicate_outcome_of_a_pair_are_two() -> None:
    """In one batch as in two."""
    pair = [Event(1, (50, 0, 1)), Event(1, None, (52, 1))]
    apart, together = Sums(20, 10), Sums(20, 10)
    for sums in (apart, together):
        sums.take(pair)
    apart.take(pair[:1])
    apart.take(pair[1:])
    together.take(pair)
    assert apart.join.counts.duplicates == together.join.counts.duplicates == 2


def test_an_untimely_outcome_that_is_repeated_is_counted_the_same_in_one_batch_and_in_two() -> None:
    events = [Event(1, (50, 0, 1)), Event(1, None, (80, 1)), Event(1, None, (80, 1))]
    apart, together = Sums(20, 10), Sums(20, 10)
    for event in events:
        apart.take([event])
    together.take(events)
    assert apart.join.counts == together.join.counts


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_outcome_never_counts_before_what_has_closed(order: tuple[int, int]) -> None:
    """A joined event is judged by its prediction time; its outcome time may lie long before."""
    sums = Sums(100, 10)
    first = [Event(1, (10, 0, 1), (20, 1)), Event(2, (10, 0, 1))]
    sums.take([first[i] for i in order])
    sums.join.expire(40)
    before = dict(sums.outcomes)
    sums.take([Event(1, (50, 0, 1), (15, 0)), Event(2, (50, 0, 1), (0, 0))])
    changed = [row for row in {*before, *sums.outcomes} if before.get(row, 0) != sums.outcomes[row]]
    assert all(row[0] >= 40 for row in changed), "a sum of a closed time bucket changed"


def test_the_newest_pairs_are_remembered_up_to_the_limit() -> None:
    """``dedupe_max_ids`` is a least number: that many of the newest ids are always known."""
    limit, pairs = 250_000, (1 << 18) + 10
    join = Join(TASK, JoinLimits(20, 10, 10**9, limit))
    for start in range(0, pairs, 50_000):
        n = min(50_000, pairs - start)
        part = batch([Event(0, (50, 0, 1), (51, 1))] * n)
        part.key[:] = np.arange(start, start + n, dtype=np.uint64) * MIX
        join.step(part)
    join.expire(60)
    repeated = batch([Event(0, (50, 0, 1), (51, 1))])
    repeated.key[:] = np.array([pairs - limit + 100], np.uint64) * MIX
    join.step(repeated)
    assert join.counts.duplicates == 1
