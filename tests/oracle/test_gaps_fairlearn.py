"""From JSON to the report's groups and gaps, against fairlearn, scikit-learn and the formulas of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fairlearn.metrics as fairlearn
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sklearn
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine_helpers import START, Run, config_of

TOLERANCE = 1e-12
GROUPINGS: tuple[tuple[str, ...], ...] = (("sex",), ("race",), ("sex", "race"))
METRICS = (
    "selection_rate",
    "true_positive_rate",
    "false_positive_rate",
    "accuracy",
    "precision",
    "base_rate",
)
NAMED = (
    "demographic_parity_difference",
    "demographic_parity_ratio",
    "equal_opportunity_difference",
    "equal_opportunity_ratio",
    "equalized_odds_difference",
    "equalized_odds_ratio",
    "predictive_parity_difference",
)
REFERENCE = {"sex": "a", "race": "p"}
CLARIFY = ("DPPL", "DI", "DCAcc", "DCR", "RD", "DAR", "SD", "DRR", "AD", "TE", "SPD", "DIR")

Table = pd.DataFrame
Key = tuple[Any, ...]


@st.composite
def tables(draw: st.DrawFn, *, missing: bool = True) -> Table:
    """Decisions, outcomes, attributes (some missing) and weights that are exact on the grid."""
    n = draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    rate = draw(st.sampled_from([0.1, 0.5, 0.9]))
    unknown = [None] if missing else []
    sexes, races = ["a", "b", "c", *unknown], ["p", "q", *unknown]
    return pd.DataFrame(
        {
            "sex": pd.Series([sexes[i] for i in random.integers(0, len(sexes), n)], dtype=object),
            "race": pd.Series([races[i] for i in random.integers(0, len(races), n)], dtype=object),
            "decision": (random.random(n) < rate).astype(int),
            "outcome": (random.random(n) < 0.5).astype(int),
            "weight": random.integers(1, 4 * 64, n) / 64,
        }
    )


def run(table: Table, *, weighted: bool) -> Run:
    gaps: list[dict[str, Any]] = [
        {"metric": m, "comparison": c, "kind": k}
        for m in METRICS
        for c in ("between", "overall", "rest")
        for k in ("difference", "ratio")
    ]
    gaps += [{"metric": name} for name in NAMED]
    for name in (*CLARIFY, *METRICS):
        comparison = {"comparison": "reference"} if name in METRICS else {}
        gaps += [{"metric": name, "reference": {a: REFERENCE[a] for a in g}, **comparison} for g in GROUPINGS]
    gaps += [{"metric": name, "comparison": "rest"} for name in ("DPPL", "SPD", "RD")]
    model = {
        "task": "binary",
        "groups": [list(g) for g in GROUPINGS],
        "windows": ["all"],
        "min_support": 1,
        "metrics": [*METRICS, "true_negative_rate"],
        "gaps": gaps,
        **({"weights": {"bound": 4.0}} if weighted else {}),
    }
    found = Run(config_of(model, privacy={"min_group_size": 1}))
    events = []
    for i, row in enumerate(table.itertuples()):
        event: dict[str, Any] = {
            "time": START + i,
            "decision": int(row.decision),
            "outcome": int(row.outcome),
            "attributes": {"sex": row.sex, "race": row.race},
        }
        if weighted:
            event["weight"] = row.weight
        if row.race is None and i % 2:
            del event["attributes"]["race"]
        events.append(event)
    found.feed(events)
    return found.finish()


def over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def counts(y: Any, d: Any, w: Any) -> tuple[float, float, float, float]:
    """TP, FP, TN, FN from scikit-learn."""
    tn, fp, fn, tp = sklearn.confusion_matrix(y, d, labels=[0, 1], sample_weight=w).ravel()
    return float(tp), float(fp), float(tn), float(fn)


def rate(formula: Callable[[float, float, float, float], float]) -> Callable[..., float]:
    def metric(y_true: Any, y_pred: Any, sample_weight: Any) -> float:
        return formula(*counts(y_true, y_pred, sample_weight))

    return metric


ORACLES: dict[str, Callable[..., float]] = {
    "selection_rate": lambda y_true, y_pred, sample_weight: fairlearn.selection_rate(
        y_true, y_pred, sample_weight=sample_weight
    ),
    "true_positive_rate": rate(lambda tp, fp, tn, fn: over(tp, tp + fn)),
    "false_positive_rate": rate(lambda tp, fp, tn, fn: over(fp, fp + tn)),
    "accuracy": lambda y_true, y_pred, sample_weight: sklearn.accuracy_score(
        y_true, y_pred, sample_weight=sample_weight
    ),
    "precision": rate(lambda tp, fp, tn, fn: over(tp, tp + fp)),
    "base_rate": rate(lambda tp, fp, tn, fn: over(tp + fn, tp + fp + tn + fn)),
}


def frame(table: Table, grouping: tuple[str, ...], metric: str) -> fairlearn.MetricFrame:
    """MetricFrame over all rows; a missing attribute is the value ``unknown``."""
    return fairlearn.MetricFrame(
        metrics=ORACLES[metric],
        y_true=table["outcome"],
        y_pred=table["decision"],
        sensitive_features=table[list(grouping)].fillna("unknown"),
        sample_params={"sample_weight": table["weight"]},
    )


def by_group(found: fairlearn.MetricFrame) -> dict[Key, float]:
    """Values of the groups that have any event, undefined ones as NaN."""
    sizes = found.by_group
    return {key if isinstance(key, tuple) else (key,): float(v) for key, v in sizes.items()}


def known(values: dict[Key, float]) -> dict[Key, float]:
    return {k: v for k, v in values.items() if "unknown" not in k and not np.isnan(v)}


def near(found: float | None, expected: float) -> None:
    if np.isnan(expected) or np.isinf(expected):
        assert found is None
    else:
        assert found is not None
        assert abs(found - expected) <= TOLERANCE * max(1.0, abs(expected))


def gaps_of(found: Run, name: str, grouping: tuple[str, ...], comparison: str, kind: str) -> list[Any]:
    return [
        g
        for g in found.gaps()
        if (g.spec.name, tuple(g.spec.groups), g.spec.comparison, g.spec.kind)
        == (name, grouping, comparison, kind)
    ]


@settings(max_examples=12, deadline=None)
@given(tables(), st.booleans())
def test_groups(table: Table, weighted: bool) -> None:
    """Every group of every grouping, ``unknown`` among them; numerators and denominators as counts."""
    if not weighted:
        table["weight"] = 1.0
    found = run(table, weighted=weighted)
    rows = found.rows()
    for grouping in GROUPINGS:
        for metric in METRICS:
            oracle = frame(table, grouping, metric)
            there = {g for g, m in rows if m == metric and tuple(a for a, _ in g) == grouping}
            filled = table[list(grouping)].fillna("unknown")
            sizes = filled.value_counts().to_dict()
            assert {tuple(v for _, v in g): 1 for g in there} == dict.fromkeys(sizes, 1)
            for group in there:
                key = tuple(v for _, v in group)
                expected = by_group(oracle)[key]
                row = rows[group, metric]
                near(row["value"], expected)
                assert (row["status"] == "ok") == (not np.isnan(expected))
            near(rows[(), metric]["value"], float(oracle.overall))
    if not weighted:
        tp, fp, tn, fn = counts(table["outcome"], table["decision"], None)
        everybody = {m: rows[(), m] for m in ("true_positive_rate", "false_positive_rate")}
        assert [everybody["true_positive_rate"][n] for n in ("numerator", "denominator")] == [tp, tp + fn]
        assert [everybody["false_positive_rate"][n] for n in ("numerator", "denominator")] == [fp, fp + tn]


@settings(max_examples=12, deadline=None)
@given(tables(), st.booleans())
def test_gaps_leave_unknown_out(table: Table, weighted: bool) -> None:
    """Unknown groups are in overall and in the rest, but never a side of a gap."""
    if not weighted:
        table["weight"] = 1.0
    found = run(table, weighted=weighted)
    for grouping in GROUPINGS:
        sizes = sizes_of(table, grouping)
        for metric in METRICS:
            oracle = frame(table, grouping, metric)
            every, overall = by_group(oracle), float(oracle.overall)
            values = known(every)
            for kind in ("difference", "ratio"):

                def gap(own: float, other: float, kind: str = kind) -> float:
                    return own - other if kind == "difference" else over(own, other)

                (between,) = gaps_of(found, metric, grouping, "between", kind)
                if len(values) < 2:
                    assert between.value is None
                else:
                    low, high = min(values.values()), max(values.values())
                    near(between.value, high - low if kind == "difference" else over(low, high))
                    sides = [tuple(g.values()) for g in between.groups]
                    assert [values[s] for s in sides] == pytest.approx([high, low], abs=TOLERANCE)
                listed = {
                    tuple(g.groups[0].values()): g for g in gaps_of(found, metric, grouping, "overall", kind)
                }
                assert set(listed) == {k for k in every if "unknown" not in k and k in sizes}
                for key, one in listed.items():
                    near(one.value, gap(every[key], overall))
                for one in gaps_of(found, metric, grouping, "rest", kind):
                    key = tuple(one.groups[0].values())
                    rest = table[~inside(table, grouping, key)]
                    other = (
                        float("nan")
                        if rest.empty
                        else float(ORACLES[metric](rest["outcome"], rest["decision"], rest["weight"]))
                    )
                    near(one.value, gap(every[key], other))
                reference = tuple(REFERENCE[a] for a in grouping)
                for one in gaps_of(found, metric, grouping, "reference", kind):
                    key = tuple(one.groups[0].values())
                    near(one.value, gap(every[key], every.get(reference, float("nan"))))


def sizes_of(table: Table, grouping: tuple[str, ...]) -> set[Key]:
    return set(table[list(grouping)].fillna("unknown").value_counts().index)


def inside(table: Table, grouping: tuple[str, ...], key: Key) -> Any:
    mask = np.ones(len(table), bool)
    for attribute, value in zip(grouping, key, strict=True):
        mask &= (table[attribute] == value).to_numpy()
    return mask


@settings(max_examples=20, deadline=None)
@given(tables(missing=False), st.booleans())
def test_fairlearn_by_name(table: Table, weighted: bool) -> None:
    """Fairlearn's own functions, where they are defined (they take an undefined rate for 0)."""
    if not weighted:
        table["weight"] = 1.0
    found = run(table, weighted=weighted)
    for grouping in GROUPINGS:
        arguments: dict[str, Any] = {
            "y_true": table["outcome"],
            "y_pred": table["decision"],
            "sensitive_features": table[list(grouping)],
            "sample_weight": table["weight"],
        }
        frames = {m: frame(table, grouping, m) for m in METRICS}
        defined = {
            m: all(not np.isnan(by_group(f)[k]) for k in sizes_of(table, grouping)) for m, f in frames.items()
        }
        if len(sizes_of(table, grouping)) < 2:
            continue

        def named(name: str, kind: str, grouping: tuple[str, ...] = grouping) -> float | None:
            (gap,) = gaps_of(found, name, grouping, "between", kind)
            value: float | None = gap.value
            return value

        parity = named("demographic_parity_difference", "difference")
        near(parity, fairlearn.demographic_parity_difference(**arguments))
        near(named("demographic_parity_ratio", "ratio"), fairlearn.demographic_parity_ratio(**arguments))
        for metric, oracle in frames.items():
            (difference,) = gaps_of(found, metric, grouping, "between", "difference")
            to_overall = [g.value for g in gaps_of(found, metric, grouping, "overall", "difference")]
            if defined[metric]:
                near(difference.value, oracle.difference(method="between_groups"))
                near(max(map(abs, to_overall)), oracle.difference(method="to_overall"))
                (ratio,) = gaps_of(found, metric, grouping, "between", "ratio")
                near(ratio.value, oracle.ratio(method="between_groups"))
        if defined["true_positive_rate"]:
            expected = fairlearn.equal_opportunity_difference(**arguments)
            near(named("equal_opportunity_difference", "difference"), expected)
            ratio_of_rates = fairlearn.equal_opportunity_ratio(**arguments)
            near(named("equal_opportunity_ratio", "ratio"), ratio_of_rates)
            if defined["false_positive_rate"]:
                odds = fairlearn.equalized_odds_difference(**arguments, agg="worst_case")
                near(named("equalized_odds_difference", "difference"), odds)
                both = [named_ratio(frames[m]) for m in ("true_positive_rate", "false_positive_rate")]
                value = named("equalized_odds_ratio", "ratio")
                if any(np.isnan(both)):
                    assert value is None
                else:
                    near(value, fairlearn.equalized_odds_ratio(**arguments, agg="worst_case"))


def named_ratio(found: fairlearn.MetricFrame) -> float:
    values = known(by_group(found)).values()
    return over(min(values), max(values))


# Amazon SageMaker Clarify writes a for the reference group (advantaged) and d for the other one;
# n̂ counts decisions, n counts outcomes. TrustyAI writes unprivileged for d, privileged for a.
FORMULAS: dict[str, Callable[[dict[str, float], dict[str, float]], float]] = {
    "DPPL": lambda a, d: over(a["n̂1"], a["n"]) - over(d["n̂1"], d["n"]),
    "DI": lambda a, d: over(over(d["n̂1"], d["n"]), over(a["n̂1"], a["n"])),
    "DCAcc": lambda a, d: over(a["n1"], a["n̂1"]) - over(d["n1"], d["n̂1"]),
    "DCR": lambda a, d: over(d["n0"], d["n̂0"]) - over(a["n0"], a["n̂0"]),
    "RD": lambda a, d: over(a["tp"], a["n1"]) - over(d["tp"], d["n1"]),
    "DAR": lambda a, d: over(a["tp"], a["n̂1"]) - over(d["tp"], d["n̂1"]),
    "SD": lambda a, d: over(d["tn"], d["n0"]) - over(a["tn"], a["n0"]),
    "DRR": lambda a, d: over(d["tn"], d["n̂0"]) - over(a["tn"], a["n̂0"]),
    "AD": lambda a, d: over(a["tp"] + a["tn"], a["n"]) - over(d["tp"] + d["tn"], d["n"]),
    "TE": lambda a, d: over(d["fn"], d["fp"]) - over(a["fn"], a["fp"]),
    "SPD": lambda a, d: over(d["n̂1"], d["n"]) - over(a["n̂1"], a["n"]),
    "DIR": lambda a, d: over(over(d["n̂1"], d["n"]), over(a["n̂1"], a["n"])),
}


def facet(rows: Table) -> dict[str, float]:
    tp, fp, tn, fn = counts(rows["outcome"], rows["decision"], rows["weight"])
    return {
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "n": tp + fp + tn + fn,
        "n1": tp + fn,
        "n0": fp + tn,
        "n̂1": tp + fp,
        "n̂0": tn + fn,
    }


@settings(max_examples=20, deadline=None)
@given(tables(), st.booleans())
def test_clarify_and_trustyai(table: Table, weighted: bool) -> None:
    if not weighted:
        table["weight"] = 1.0
    found = run(table, weighted=weighted)
    for grouping in GROUPINGS:
        reference = tuple(REFERENCE[a] for a in grouping)
        a = table[inside(table, grouping, reference)]
        for name in CLARIFY:
            gaps = [
                g for k in ("difference", "ratio") for g in gaps_of(found, name, grouping, "reference", k)
            ]
            expected_keys = {k for k in sizes_of(table, grouping) if "unknown" not in k and k != reference}
            assert {tuple(g.groups[0].values()) for g in gaps} == expected_keys
            for gap in gaps:
                d = table[inside(table, grouping, tuple(gap.groups[0].values()))]
                near(gap.value, float("nan") if a.empty else FORMULAS[name](facet(a), facet(d)))
        for name in ("DPPL", "SPD", "RD"):
            for gap in gaps_of(found, name, grouping, "rest", "difference"):
                own = inside(table, grouping, tuple(gap.groups[0].values()))
                rest = table[~own]
                expected = float("nan") if rest.empty else FORMULAS[name](facet(rest), facet(table[own]))
                near(gap.value, expected)


def test_signs_by_hand() -> None:
    """Group b is selected half as often as the reference a, and more often wrongly."""
    rows = [("a", d, y) for d, y in [(1, 1)] * 3 + [(1, 0)] + [(0, 0)] * 3 + [(0, 1)]]
    rows += [("b", d, y) for d, y in [(1, 1)] + [(1, 0)] + [(0, 0)] * 2 + [(0, 1)] * 4]
    table = pd.DataFrame(rows, columns=["sex", "decision", "outcome"]).assign(race="p", weight=1.0)
    gaps = {
        g.spec.name: g.value
        for g in run(table, weighted=False).gaps()
        if g.spec.comparison == "reference" and g.spec.groups == ("sex",) and g.spec.name in CLARIFY
    }
    assert gaps == pytest.approx(
        {
            "DPPL": 0.25,
            "DI": 0.5,
            "DCAcc": 4 / 4 - 5 / 2,
            "DCR": 3 / 6 - 4 / 4,
            "RD": 3 / 4 - 1 / 5,
            "DAR": 3 / 4 - 1 / 2,
            "SD": 2 / 3 - 3 / 4,
            "DRR": 2 / 6 - 3 / 4,
            "AD": 6 / 8 - 3 / 8,
            "TE": 4 / 1 - 1 / 1,
            "SPD": -0.25,
            "DIR": 0.5,
        }
    )
