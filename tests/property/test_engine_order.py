"""How events arrive changes no bit: batches, partitions, order within grace, JSON to cell table."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.config import Config
from tests.engine_helpers import MINUTE, START, Event, Run, config_of

GRACE = 5
"""Minutes."""
SPAN = 60
SEEDS = st.integers(0, 2**32)
RATES = ("selection_rate", "true_positive_rate")


def config(**caps: Any) -> Config:
    """Windows of every step, rules on all of them; ttl and wait are short, to be passed within a test."""
    attributes = {a: {"max_values": caps[a]} for a in ("a", "b") if a in caps}
    rules = [
        {"metric": metric, "groups": "a", "comparison": "rest", "tolerance": 0.1, "window": w, "for": n}
        for metric in RATES
        for w, n in (("5m", 2), ("3h", 1), ("all", 3))
    ]
    model = {
        "task": {"type": "binary", "score": {"range": (0, 1), "bins": 4}},
        "weights": {"bound": 4.0},
        "groups": ["a", "b", ["a", "b"]],
        "attributes": attributes,
        "max_cells": caps.get("max_cells", 10_000),
        "metrics": [
            "outcome_coverage",
            "outcome_expired_share",
            "outcome_delay_seconds",
            "brier_score",
            *RATES,
        ],
        "gaps": [
            {"metric": "equalized_odds"},
            {"metric": "selection_rate", "groups": "a", "comparison": "rest"},
        ],
        "windows": ["5m", "3h", "all"],
        "min_support": 1,
        "join": {"outcome_ttl": "20m", "outcome_wait": "10m", "dedupe_window": "1h"},
        "rules": rules,
    }
    return config_of(model, time={"bucket": "1m", "grace": f"{GRACE}m"}, privacy={"min_group_size": 2})


def minute(moment: float) -> int:
    return START + int(moment * MINUTE)


class Story:
    """Events of some ids: predictions and outcomes apart or together, in every order, with repeats.

    ``conflicts`` says how repeats of an id may differ: in nothing, in content, or also in attributes.
    """

    def __init__(self, seed: int, *, a: int = 4, b: int = 3, conflicts: str = "attributes") -> None:
        self.random = random.Random(seed)
        self.a, self.b, self.conflicts = a, b, conflicts
        self.events: list[Event] = []
        for i in range(self.random.randrange(5, 40)):
            self._case(f"id-{i}")

    def _prediction(self, time: float) -> Event:
        chosen = self.random
        weight: dict[str, Any] = chosen.choice(
            [{}, {"weight": chosen.choice([0.5, 1.3])}, {"sampling_fraction": 0.3}]
        )
        return {
            "time": minute(time),
            "decision": chosen.random() < 0.5,
            "score": chosen.choice([0.1, 0.5, 1 / 3]),
            **weight,
        }

    def _attributes(self) -> dict[str, Any]:
        chosen = self.random
        # values of unequal weight, so that a cap has something to choose
        a = min(chosen.randrange(self.a), chosen.randrange(self.a))
        return {"a": f"a{a}", "b": chosen.choice([None, *range(self.b - 1)])}

    def _case(self, identity: str) -> None:
        chosen = self.random
        at = float(chosen.randrange(SPAN)) + chosen.choice([0, 0, 0.25])
        attributes = self._attributes()
        mode = chosen.choice(["apart", "apart", "apart", "together", "mixed", "no outcome", "no prediction"])
        spread = chosen.choice([0, 0, 2]) if self.conflicts != "none" else 0
        repeats = chosen.choice([1, 1, 2, 3])
        # a single pair often spans more than it may; with repeats every combination is within it
        bounds = (-15, 30) if mode == "apart" and repeats == 1 else (-8, 18)
        delay = chosen.uniform(*bounds)
        if mode in ("together", "mixed"):
            delay = abs(delay)
        exact = self.conflicts == "none" or chosen.random() < 0.5
        prediction, outcome = self._prediction(at), chosen.random() < 0.5
        for _ in range(repeats):
            if not exact:
                prediction = self._prediction(at + chosen.uniform(0, spread))
                outcome = chosen.random() < 0.5
                if self.conflicts == "attributes":
                    attributes = self._attributes()
            known = minute(at + delay + (0 if exact else chosen.uniform(0, spread)))
            p = {"id": identity, "attributes": attributes, **prediction}
            o = {"id": identity, "outcome": outcome}
            if mode in ("together", "mixed"):
                together = {**p, **o, "outcome_time": max(known, p["time"])}
                self.events.append(together)
            if mode in ("apart", "mixed", "no outcome"):
                self.events.append(dict(p))
            if mode in ("apart", "mixed", "no prediction"):
                self.events.append({**o, "time": known})

    def arrivals(self, *, partitions: int) -> list[tuple[str, list[Event]]]:
        """Batches in an order that respects grace; a partition's events are a sequence of its own."""
        chosen = self.random
        queues: dict[str, list[list[Event]]] = {}
        names = [f"p{i}" for i in range(partitions)]
        home = [chosen.choice(names) for _ in self.events]
        size = chosen.choice([1, 3, 1000])
        for name in names:
            own = [e for e, p in zip(self.events, home, strict=True) if p == name]
            own.sort(key=lambda e: e["time"] + chosen.uniform(0, GRACE * MINUTE))
            batches: list[list[Event]] = []
            while own:
                cut = chosen.randrange(1, size + 1)
                batches.append(own[:cut])
                own = own[cut:]
            queues[name] = batches
        order = []
        while any(queues.values()):
            name = chosen.choice([n for n in names if queues[n]])
            order.append((name, queues[name].pop(0)))
        return order


def arrive(story: Story, settled: Config) -> dict[str, Any]:
    partitions = story.random.choice([1, 1, 2, 3])
    run = Run(settled, [f"p{i}" for i in range(partitions)])
    arrivals = story.arrivals(partitions=partitions)
    for i, (name, events) in enumerate(arrivals):
        run.feed(events, name)
        if all(n != name for n, _ in arrivals[i + 1 :]):
            run.end(name)
    return run.finish().everything()


def reference(story: Story, settled: Config) -> dict[str, Any]:
    """The events one by one, sorted by time, in one partition."""
    run = Run(settled)
    for event in sorted(story.events, key=lambda e: int(e["time"])):
        run.feed([event])
    return run.finish().everything()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_arrival_changes_no_bit(seed: int) -> None:
    story, settled = Story(seed), config()
    expected = reference(story, settled)
    for _ in range(3):
        assert arrive(story, settled) == expected


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, cap=st.integers(2, 3), conflicts=st.sampled_from(["none", "content"]))
def test_arrival_changes_no_bit_of_folded_values(seed: int, cap: int, conflicts: str) -> None:
    story, settled = Story(seed, a=8, b=3, conflicts=conflicts), config(a=cap)
    expected = reference(story, settled)
    assert len({cell[0] for cell in expected["cells"]["all"]} - {"other"}) <= cap
    for _ in range(3):
        assert arrive(story, settled) == expected


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, conflicts=st.sampled_from(["none", "content"]))
def test_arrival_changes_no_bit_of_folded_cells(seed: int, conflicts: str) -> None:
    story, settled = Story(seed, a=4, b=4, conflicts=conflicts), config(max_cells=4)
    expected = reference(story, settled)
    assert len(expected["cells"]["all"]) <= 5  # four and everything else
    for _ in range(3):
        assert arrive(story, settled) == expected


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_arrival_changes_no_bit_of_conflicts_in_folded_attributes(seed: int) -> None:
    """Which of two conflicting predictions of one time counts may not depend on what is folded when."""
    story, settled = Story(seed, a=8, b=3), config(a=2)
    expected = reference(story, settled)
    for _ in range(3):
        assert arrive(story, settled) == expected


def prediction(at: float, **more: Any) -> Event:
    return {"id": "x", "time": minute(at), "decision": 1, "attributes": {"a": "a0", "b": 1}, **more}


def outcome(at: float, value: int = 1) -> Event:
    return {"id": "x", "time": minute(at), "outcome": value}


def same_in_every_split(events: list[Event], settled: Config | None = None) -> None:
    """One batch, and one batch per event, come to the same."""
    together, apart = Run(settled or config()), Run(settled or config())
    together.feed(events)
    for event in events:
        apart.feed([event])
    assert together.finish().everything() == apart.finish().everything()
    assert together.model.counts == apart.model.counts


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([prediction(0), prediction(0), outcome(1), outcome(1)], id="repeats"),
        pytest.param([outcome(0), prediction(1), outcome(0), prediction(1)], id="outcome first"),
        pytest.param([prediction(0), outcome(1), prediction(0), outcome(1)], id="a pair twice"),
        pytest.param([prediction(0), outcome(25), outcome(25)], id="an untimely outcome twice"),
        pytest.param([prediction(0), outcome(1), prediction(70), outcome(71)], id="an id used again"),
        pytest.param(
            [
                prediction(0, outcome=1, outcome_time=minute(1)),
                prediction(0, outcome=0, outcome_time=minute(90)),
            ],
            id="joined twice, outcomes further apart than dedupe_window",
        ),
    ],
)
def test_batch_boundaries_change_no_count(events: list[Event]) -> None:
    same_in_every_split(events)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(
            [prediction(0), prediction(4), outcome(21)],
            [prediction(4), outcome(21), prediction(0)],
            id="the outcome is too late for the earlier prediction",
        ),
    ],
)
def test_conflicts_at_the_edge_of_what_a_pair_may_span(first: list[Event], second: list[Event]) -> None:
    """Of conflicting events one decides alone, whichever came first; all of these are within grace."""
    settled = config_of(
        config().models["m"].model_dump(exclude_unset=True), time={"bucket": "1m", "grace": "30m"}
    )
    runs = [Run(settled), Run(settled)]
    for run, events in zip(runs, (first, second), strict=True):
        for event in events:
            run.feed([event])
        run.finish()
    assert runs[0].everything() == runs[1].everything()
