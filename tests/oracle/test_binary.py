"""Task binary against fairlearn, scikit-learn and plain formulas."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fairlearn.metrics as fairlearn
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sklearn
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.tasks.binary import Binary, BinaryOptions, BinaryScoreOptions
from tests.oracle.helpers import COMMON, Oracle, Rows, cell_table, check, group_table, groups, over, values

COMPAS = Path(__file__).parents[3] / "shared" / "data" / "compas_two_years.csv"
LOW, HIGH, BINS = -1.0, 3.0, 8
WEIGHT_BOUND = 4.0
PLAIN_OPTIONS = BinaryOptions()
SCORE_OPTIONS = BinaryOptions(score=BinaryScoreOptions(range=(LOW, HIGH), bins=BINS))


def confusion(rows: Rows) -> tuple[float, float, float, float]:
    """TP, FP, TN, FN as sums of weights."""
    sums = {(d, y): 0.0 for d in (0, 1) for y in (0, 1)}
    for decision, outcome, weight in rows.columns("decision", "outcome"):
        sums[decision, outcome] += weight
    return sums[1, 1], sums[1, 0], sums[0, 0], sums[0, 1]


def of_counts(formula: Callable[[float, float, float, float], float | None]) -> Oracle:
    """An oracle from a formula over TP, FP, TN, FN."""
    return lambda rows: formula(*confusion(rows))


def selection_rate(rows: Rows) -> float | None:
    chosen = sum(w for d, w in zip(rows.predictions["decision"], rows.w, strict=True) if d)
    return over(chosen, sum(rows.w))


def balanced_accuracy(tp: float, fp: float, tn: float, fn: float) -> float | None:
    return None if tp + fn == 0 or fp + tn == 0 else 0.5 * (tp / (tp + fn) + tn / (tn + fp))


def generalized_entropy(rows: Rows) -> float | None:
    """From the benefits one by one, as in Speicher et al. 2018."""
    benefits = [(1 + d - y, w) for d, y, w in rows.columns("decision", "outcome")]
    total = sum(w for _, w in benefits)
    mean = 0 if total == 0 else sum(b * w for b, w in benefits) / total
    if mean == 0:
        return None
    return sum(w * ((b / mean) ** 2 - 1) for b, w in benefits) / (total * 2 * (2 - 1))


def scored(rows: Rows) -> list[tuple[float, int, float]]:
    """Score, outcome and weight of matched predictions with a score."""
    return [row for row in rows.columns("score", "outcome") if not np.isnan(row[0])]


def probability(score: float) -> float:
    return (score - LOW) / (HIGH - LOW)


def bin_of(score: float) -> int:
    return min(int(probability(score) * BINS), BINS - 1)


def score_mean(rows: Rows) -> float | None:
    pairs = [(s, w) for s, w in zip(rows.predictions["score"], rows.w, strict=True) if not np.isnan(s)]
    return over(sum(s * w for s, w in pairs), sum(w for _, w in pairs))


def class_mean(rows: Rows, which: int) -> float | None:
    pairs = [(s, w) for s, y, w in scored(rows) if y == which]
    return over(sum(s * w for s, w in pairs), sum(w for _, w in pairs))


def brier_score(rows: Rows) -> float | None:
    triples = scored(rows)
    return over(sum(w * (probability(s) - y) ** 2 for s, y, w in triples), sum(w for _, _, w in triples))


def calibration_error(rows: Rows) -> float | None:
    triples = scored(rows)
    total = sum(w for _, _, w in triples)
    if total == 0:
        return None
    error = 0.0
    for k in range(BINS):
        inside = [(probability(s), y, w) for s, y, w in triples if bin_of(s) == k]
        weight = sum(w for _, _, w in inside)
        if weight:
            mean = sum(p * w for p, _, w in inside) / weight
            rate = sum(y * w for _, y, w in inside) / weight
            error += weight / total * abs(mean - rate)
    return error


def roc_auc(rows: Rows) -> float | None:
    """Every pair of a positive and a negative, one by one."""
    triples = [(bin_of(s), y, w) for s, y, w in scored(rows)]
    ones, zeros = [t for t in triples if t[1]], [t for t in triples if not t[1]]
    right = sum(w * v * (1.0 if k > j else 0.5 if k == j else 0.0) for k, _, w in ones for j, _, v in zeros)
    return over(right, sum(w for *_, w in ones) * sum(w for *_, w in zeros))


ORACLES: dict[str, Oracle] = {
    **COMMON,
    "selection_rate": selection_rate,
    "true_positive_rate": of_counts(lambda tp, fp, tn, fn: over(tp, tp + fn)),
    "false_positive_rate": of_counts(lambda tp, fp, tn, fn: over(fp, fp + tn)),
    "true_negative_rate": of_counts(lambda tp, fp, tn, fn: over(tn, fp + tn)),
    "false_negative_rate": of_counts(lambda tp, fp, tn, fn: over(fn, tp + fn)),
    "precision": of_counts(lambda tp, fp, tn, fn: over(tp, tp + fp)),
    "negative_predictive_value": of_counts(lambda tp, fp, tn, fn: over(tn, tn + fn)),
    "false_discovery_rate": of_counts(lambda tp, fp, tn, fn: over(fp, tp + fp)),
    "false_omission_rate": of_counts(lambda tp, fp, tn, fn: over(fn, tn + fn)),
    "accuracy": of_counts(lambda tp, fp, tn, fn: over(tp + tn, tp + fp + tn + fn)),
    "error_rate": of_counts(lambda tp, fp, tn, fn: over(fp + fn, tp + fp + tn + fn)),
    "balanced_accuracy": of_counts(balanced_accuracy),
    "f1": of_counts(lambda tp, fp, tn, fn: over(2 * tp, 2 * tp + fp + fn)),
    "base_rate": of_counts(lambda tp, fp, tn, fn: over(tp + fn, tp + fp + tn + fn)),
    "treatment_equality": of_counts(lambda tp, fp, tn, fn: over(fn, fp)),
    "generalized_entropy": generalized_entropy,
    "conditional_acceptance": of_counts(lambda tp, fp, tn, fn: over(tp + fn, tp + fp)),
    "conditional_rejection": of_counts(lambda tp, fp, tn, fn: over(tn + fp, tn + fn)),
    "score_mean": score_mean,
    "positive_class_score_mean": lambda rows: class_mean(rows, 1),
    "negative_class_score_mean": lambda rows: class_mean(rows, 0),
    "brier_score": brier_score,
    "calibration_error": calibration_error,
    "roc_auc": roc_auc,
}

FAIRLEARN: dict[str, Any] = {
    "selection_rate": fairlearn.selection_rate,
    "true_positive_rate": fairlearn.true_positive_rate,
    "false_positive_rate": fairlearn.false_positive_rate,
    "true_negative_rate": fairlearn.true_negative_rate,
    "false_negative_rate": fairlearn.false_negative_rate,
    "accuracy": sklearn.accuracy_score,
    "precision": sklearn.precision_score,
    "f1": sklearn.f1_score,
    "balanced_accuracy": sklearn.balanced_accuracy_score,
}


def make(events: list[tuple[Any, ...]], weighted: bool, score_bits: int) -> Rows:
    """Rows from tuples (a, b, decision, outcome, score steps or None, weight steps, matched)."""
    a, b, decision, outcome, score, weight, matched = zip(*events, strict=True)
    width = int((HIGH - LOW) * 2**score_bits)
    scores = [np.nan if s is None else LOW + (s % (width + 1)) / 2**score_bits for s in score]
    return Rows(
        {"a": list(a), "b": list(b)},
        {"decision": np.array(decision, np.int8), "score": np.array(scores)},
        {"outcome": np.array(outcome, np.int8)},
        np.array(matched, bool),
        np.array(weight) / 1024 if weighted else None,
    )


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["x", "y", None]),
        st.sampled_from(["u", "v", None]),
        st.integers(0, 1),
        st.integers(0, 1),
        st.one_of(st.none(), st.integers(0, 2**14), st.integers(0, 8).map(lambda k: k * 32)),
        st.integers(1, 4096),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


def seeded(seed: int, n: int, weighted: bool, matched: bool = False) -> Rows:
    """Many rows, reproducible; all groups have every kind of event."""
    rng = np.random.default_rng(seed)
    events = zip(
        rng.choice(["x", "y", None], n, p=[0.5, 0.4, 0.1]),
        rng.choice(["u", "v", None], n, p=[0.6, 0.3, 0.1]),
        rng.integers(0, 2, n),
        rng.integers(0, 2, n),
        [
            None if missing else int(s)
            for s, missing in zip(rng.integers(0, 257, n), rng.random(n) < 0.1, strict=True)
        ],
        rng.integers(1, 4097, n),
        (rng.random(n) < 0.8) | matched,
        strict=True,
    )
    return make(list(events), weighted, 6)


def test_every_metric_has_an_oracle() -> None:
    assert set(Binary(SCORE_OPTIONS).metrics) == set(ORACLES)


@pytest.mark.parametrize("weighted", [False, True])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(events=EVENTS)
def test_random_tables(events: list[tuple[Any, ...]], weighted: bool) -> None:
    bound = WEIGHT_BOUND if weighted else None
    rows = make(events, weighted, 6 if weighted else 10)
    check(Binary(SCORE_OPTIONS, weight_bound=bound), rows, ORACLES)
    check(Binary(PLAIN_OPTIONS, weight_bound=bound), rows, ORACLES)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_large_tables(seed: int, weighted: bool) -> None:
    bound = WEIGHT_BOUND if weighted else None
    check(Binary(SCORE_OPTIONS, weight_bound=bound), seeded(seed, 1500, weighted), ORACLES)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", sorted(FAIRLEARN))
def test_fairlearn_metric_frame(name: str, weighted: bool) -> None:
    rows = seeded(3, 3000, weighted, matched=True)
    task = Binary(PLAIN_OPTIONS, weight_bound=WEIGHT_BOUND if weighted else None)
    sensitive = pd.DataFrame(
        {key: [v if v is not None else "unknown" for v in column] for key, column in rows.attributes.items()}
    )
    for columns in (["a"], ["b"], ["a", "b"]):
        frame = fairlearn.MetricFrame(
            metrics=FAIRLEARN[name],
            y_true=rows.outcomes["outcome"],
            y_pred=rows.predictions["decision"],
            sensitive_features=sensitive[columns],
            sample_params={"sample_weight": np.array(rows.w)},
        )
        _, table = group_table(task, rows)
        found = values(task, task.metrics[name], table)
        position = {tuple(masked.tolist()): i for i, masked in enumerate(groups(rows).values())}
        for group, expected in frame.by_group.items():
            wanted = group if isinstance(group, tuple) else (group,)
            mask = np.all([sensitive[c] == v for c, v in zip(columns, wanted, strict=True)], axis=0)
            assert abs(found[position[tuple(mask.tolist())]] - expected) <= 1e-12
        assert len(frame.by_group) == 3 ** len(columns)
        assert abs(found[0] - frame.overall) <= 1e-12


@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn_on_scores(weighted: bool) -> None:
    rows = seeded(4, 2000, weighted, matched=True)
    rows = rows.subset(~np.isnan(rows.predictions["score"]))
    task = Binary(SCORE_OPTIONS, weight_bound=WEIGHT_BOUND if weighted else None)
    parts, table = group_table(task, rows)
    found = {name: values(task, task.metrics[name], table) for name in ("roc_auc", "brier_score")}
    for i, part in enumerate(parts[:-1]):
        outcome, p = part.outcomes["outcome"], probability(part.predictions["score"])
        binned = np.minimum(np.floor(p * BINS), BINS - 1)
        auc = sklearn.roc_auc_score(outcome, binned, sample_weight=part.w)
        assert abs(found["roc_auc"][i] - auc) <= 1e-12
        brier = sklearn.brier_score_loss(outcome, p, sample_weight=part.w)
        assert abs(found["brier_score"][i] - brier) <= 1e-12


def test_decimal_scores_fall_in_the_bin_that_starts_with_them() -> None:
    options = BinaryOptions(score=BinaryScoreOptions(range=(0, 1), bins=20))
    task = Binary(options)
    scores = np.array([k / 100 for k in range(101)])
    predictions = task.prediction_records({"decision": np.zeros(101, np.int8), "score": scores}, None)
    outcomes = task.outcome_records({"outcome": np.zeros(101, np.int8)})
    scatter = task.outcome_sums(predictions, outcomes)[-1]
    first = [s.name for s in task.statistics].index("bin_score_0")
    assert (np.asarray(scatter.statistic) - first).tolist() == [min(k // 5, 19) for k in range(101)]


def test_published_counts_of_compas() -> None:
    if not COMPAS.exists():
        pytest.skip("the shared COMPAS table is not beside this checkout")
    with COMPAS.open(newline="", encoding="utf-8") as file:
        lines = [r for r in csv.DictReader(file) if r["race"] in ("African-American", "Caucasian")]
    rows = Rows(
        {"race": [r["race"] for r in lines], "sex": [r["sex"] for r in lines]},
        {"decision": np.array([int(r["decile_score"]) >= 5 for r in lines], np.int8)},
        {"outcome": np.array([int(r["two_year_recid"]) for r in lines], np.int8)},
        np.ones(len(lines), bool),
    )
    task = Binary(PLAIN_OPTIONS)
    cells = np.array([r["race"] == "Caucasian" for r in lines], np.int64)
    table = cell_table(task, rows, cells, 2)
    at = [[s.name for s in task.statistics].index(name) for name in ("tp", "fp", "tn", "fn")]
    assert table[:, at].tolist() == [[1369, 805, 990, 532], [505, 349, 1139, 461]]
    for name, expected in (("false_positive_rate", [0.4485, 0.2345]), ("fnr", [0.2799, 0.4772])):
        metric = next(m for m in task.metrics.values() if name in (m.name, *m.aliases))
        assert values(task, metric, table).round(4).tolist() == expected
