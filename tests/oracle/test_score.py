"""Task score against fairlearn, numpy and plain formulas."""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any, Literal

import fairlearn.metrics as fairlearn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.tasks.score import Score, ScoreOptions, TailOptions
from tests.oracle.helpers import COMMON, Oracle, Rows, check, group_table, over, values

LOW, HIGH, THRESHOLD = -4.0, 8.0, 2.5
WEIGHT_BOUND = 4.0
When = Literal["prediction", "outcome"]


def options(when: When, side: str) -> ScoreOptions:
    return ScoreOptions(range=(LOW, HIGH), tail=TailOptions(**{side: THRESHOLD}), when=when)


def weighed(rows: Rows) -> list[tuple[float, float]]:
    """Value and weight of every row that has a value."""
    if "value" in rows.outcomes:
        return rows.columns("value")
    return list(zip(rows.predictions["value"].tolist(), rows.w, strict=True))


def mean_value(rows: Rows) -> float | None:
    pairs = weighed(rows)
    return over(sum(v * w for v, w in pairs), sum(w for _, w in pairs))


def standard_deviation(rows: Rows) -> float | None:
    mean, pairs = mean_value(rows), weighed(rows)
    if mean is None:
        return None
    return sqrt(sum(w * (v - mean) ** 2 for v, w in pairs) / sum(w for _, w in pairs))


def tail_share(rows: Rows, side: str) -> float | None:
    pairs = weighed(rows)
    inside = [w for v, w in pairs if (v > THRESHOLD if side == "above" else v < THRESHOLD)]
    return over(sum(inside), sum(w for _, w in pairs))


def oracles(side: str) -> dict[str, Oracle]:
    return {
        **COMMON,
        "mean_value": mean_value,
        "standard_deviation": standard_deviation,
        "tail_share": partial(tail_share, side=side),
    }


def make(events: list[tuple[Any, ...]], when: When, weighted: bool) -> Rows:
    """Rows from tuples (a, b, value steps, weight steps, matched)."""
    a, b, value, weight, matched = zip(*events, strict=True)
    step = 2.0**-6 if weighted else 2.0**-10
    span = int((HIGH - LOW) / step) + 1
    column = {"value": LOW + np.array([v % span for v in value]) * step}
    return Rows(
        {"a": list(a), "b": list(b)},
        column if when == "prediction" else {},
        column if when == "outcome" else {},
        np.array(matched, bool),
        np.array(weight) / 1024 if weighted else None,
    )


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["x", "y", None]),
        st.sampled_from(["u", "v", None]),
        st.one_of(st.integers(0, 12288), st.just(416), st.just(6656)),
        st.integers(1, 4096),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


def seeded(seed: int, n: int, when: When, weighted: bool) -> Rows:
    rng = np.random.default_rng(seed)
    events = zip(
        rng.choice(["x", "y", None], n),
        rng.choice(["u", "v", None], n),
        rng.integers(0, 12289, n),
        rng.integers(1, 4097, n),
        rng.random(n) < 0.8,
        strict=True,
    )
    return make(list(events), when, weighted)


@pytest.mark.parametrize("when", ["prediction", "outcome"])
def test_every_metric_has_an_oracle(when: When) -> None:
    assert set(Score(options(when, "above")).metrics) == set(oracles("above"))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("when", ["prediction", "outcome"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(events=EVENTS)
def test_random_tables(events: list[tuple[Any, ...]], when: When, side: str, weighted: bool) -> None:
    task = Score(options(when, side), weight_bound=WEIGHT_BOUND if weighted else None)
    # the deviation of nearly equal values loses digits in any order of sums: see the tests below
    check(task, make(events, when, weighted), oracles(side), skip=["standard_deviation"])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("when", ["prediction", "outcome"])
def test_large_tables(when: When, weighted: bool) -> None:
    task = Score(options(when, "below"), weight_bound=WEIGHT_BOUND if weighted else None)
    check(task, seeded(1, 2000, when, weighted), oracles("below"))


@pytest.mark.parametrize("weighted", [False, True])
def test_libraries(weighted: bool) -> None:
    rows = seeded(2, 2000, "prediction", weighted)
    task = Score(options("prediction", "above"), weight_bound=WEIGHT_BOUND if weighted else None)
    parts, table = group_table(task, rows)
    found = {name: values(task, task.metrics[name], table) for name in task.metrics}
    for i, part in enumerate(parts[:-1]):
        value, weight = part.predictions["value"], np.array(part.w)
        mean = fairlearn.mean_prediction(value, value, sample_weight=weight)
        assert abs(found["mean_value"][i] - mean) <= 1e-12
        variance = np.cov(value, aweights=weight, ddof=0) if len(value) > 1 else 0.0
        assert abs(found["standard_deviation"][i] - np.sqrt(variance)) <= 1e-12


@pytest.mark.parametrize("low", [0.0, 1000.0])
def test_standard_deviation_of_equal_values_is_zero_to_the_grid(low: float) -> None:
    task = Score(ScoreOptions(range=(low, low + 1)), weight_bound=3.0)
    rng = np.random.default_rng(3)
    rows = Rows(
        {"a": ["x"] * 999, "b": ["u"] * 999},
        {"value": np.full(999, low + 0.3)},
        {},
        np.ones(999, bool),
        rng.uniform(0.1, 3.0, 999),
    )
    _, table = group_table(task, rows)
    assert (values(task, task.metrics["standard_deviation"], table)[:-1] < 2.0**-14).all()


def test_a_value_equal_to_the_threshold_is_not_in_the_tail() -> None:
    for side, expected in (("above", [0, 0, 1]), ("below", [1, 0, 0])):
        task = Score(ScoreOptions(range=(0, 1), tail=TailOptions(**{side: 0.3})))
        records = task.prediction_records({"value": np.array([0.2, 0.1 + 0.2, 0.4])}, None)
        assert np.asarray(task.prediction_sums(records)[-1].value).tolist() == expected
