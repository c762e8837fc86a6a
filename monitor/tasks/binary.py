"""Binary decisions: the confusion table of each group, and score quality when scores are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field as Setting

from monitor.tasks.base import (
    COMMON_METRICS,
    Column,
    Field,
    Floats,
    Form,
    Grid,
    Ints,
    Metric,
    Orientation,
    Range,
    Records,
    Scatter,
    Statistic,
    Sums,
    Task,
    TaskOptions,
    Weighting,
    blank_records,
    common_statistics,
    divide,
    metrics_table,
)

NO_SCORE = np.iinfo(np.int32).min
"""Content of ``score`` in the record of a prediction that came without a score."""

HIGHER: Orientation = "higher is better"
LOWER: Orientation = "lower is better"
NEUTRAL: Orientation = "neutral"

_ALL = "tp fp tn fn"
_RATES: tuple[tuple[str, str, str, Orientation, tuple[str, ...]], ...] = (
    ("true_positive_rate", "tp", "tp fn", HIGHER, ("tpr", "recall", "sensitivity")),
    ("false_positive_rate", "fp", "fp tn", LOWER, ("fpr",)),
    ("true_negative_rate", "tn", "fp tn", HIGHER, ("tnr", "specificity")),
    ("false_negative_rate", "fn", "tp fn", LOWER, ("fnr",)),
    ("precision", "tp", "tp fp", HIGHER, ("ppv", "positive_predictive_value")),
    ("negative_predictive_value", "tn", "tn fn", HIGHER, ("npv",)),
    ("false_discovery_rate", "fp", "tp fp", LOWER, ("fdr",)),
    ("false_omission_rate", "fn", "tn fn", LOWER, ("for",)),
    ("accuracy", "tp tn", _ALL, HIGHER, ()),
    ("error_rate", "fp fn", _ALL, LOWER, ()),
    ("f1", "tp tp", "tp tp fp fn", HIGHER, ("f1_score",)),
    ("base_rate", "tp fn", _ALL, NEUTRAL, ("prevalence",)),
    ("treatment_equality", "fn", "fp", NEUTRAL, ()),
    ("conditional_acceptance", "tp fn", "tp fp", NEUTRAL, ()),
    ("conditional_rejection", "fp tn", "tn fn", NEUTRAL, ()),
)
"""Ratios of counts: name, counts of the numerator, counts of the denominator, orientation, aliases."""

_UNDEFINED = {
    "tp fn": "no outcome is 1",
    "fp tn": "no outcome is 0",
    "tp fp": "no decision is 1",
    "tn fn": "no decision is 0",
    "tp tp fp fn": "no decision and no outcome is 1",
    "fp": "no false positive",
    _ALL: "no outcome",
}
"""When a ratio with this denominator is undefined."""


class BinaryScoreOptions(TaskOptions):
    """The score that decisions are made from, as an estimate of P(outcome = 1)."""

    range: Range = Setting(
        description="[low, high] of the score; mapped linearly to [0, 1] where a probability is needed"
    )
    bins: int = Setting(
        default=20, ge=2, le=1000, description="score bins of equal width, for calibration_error and roc_auc"
    )


class BinaryOptions(TaskOptions):
    """Options of task ``binary``."""

    type: Literal["binary"] = Setting(default="binary", description="yes/no decisions with yes/no outcomes")
    score: BinaryScoreOptions | None = Setting(
        default=None, description="declare it when events carry a score; adds score_mean, brier_score, …"
    )


class Binary(Task):
    """Yes/no decisions, of which it turns out later whether yes was right.

    Fields: ``decision`` (0/1, prediction), ``score`` (prediction, optional, when options declare it)
    and ``outcome`` (0/1). Counts are TP, FP, TN, FN: decision 1 or 0 (positive, negative), outcome the
    same (true) or not (false). Scores s of range [low, high] are read as the probability
    p = (s - low) / (high - low) of outcome 1. Bin k of K holds low + k*w <= s < low + (k+1)*w with
    w = (high - low) / K (edges rounded to the grid of scores); the last bin holds ``high`` as well.

    Parameters
    ----------
    options : BinaryOptions
    weight_bound : float, optional
        Events carry weights in (0, weight_bound]: metrics are then ratios of sums of weights.
    outcome_ttl_seconds : float
        Longest delay of an outcome.

    Notes
    -----
    Memory per cell: 9 integers; with scores 16 + 3 * bins. Weights add 6, and 1 more with scores.

    Examples
    --------
    >>> import numpy as np
    >>> task = Binary(BinaryOptions())
    >>> predictions = task.prediction_records({"decision": np.array([1, 1, 0], np.int8)}, None)
    >>> outcomes = task.outcome_records({"outcome": np.array([1, 0, 0], np.int8)})
    >>> [task.statistics[i].name for i in task.outcome_sums(predictions, outcomes)[0].statistic]
    ['tp', 'fp', 'tn']
    """

    name = "binary"

    def __init__(
        self,
        options: BinaryOptions,
        *,
        weight_bound: float | None = None,
        outcome_ttl_seconds: float = 2592000.0,
    ) -> None:
        self.options = options
        self._weighting = Weighting(weight_bound)
        self.fields = _fields(options.score)
        self.statistics = (
            *common_statistics(outcome_ttl_seconds),
            *_statistics(options.score, self._weighting),
        )
        self.metrics = metrics_table(
            self.statistics,
            (*COMMON_METRICS, *_decision_metrics(self._weighting), *_score_metrics(options, self._weighting)),
        )
        self._at = {s.name: i for i, s in enumerate(self.statistics)}
        self.outcome_dtype = np.dtype([("outcome", "i1")])
        if options.score is None:
            self.prediction_dtype = self._weighting.dtype(("decision", "i1"))
        else:
            self.prediction_dtype = self._weighting.dtype(("decision", "i1"), ("score", "<i4"))
            low, high = options.score.range
            edges = np.linspace(low, high, options.score.bins + 1)[1:-1]
            self._score_grid = _score_grid(options.score)
            self._inner_edges = self._score_grid.quantise(edges).astype(np.int32)

    def prediction_records(self, columns: Mapping[str, Column], weights: Floats | None) -> Records:
        """Records of decision, score and weight; see :meth:`Task.prediction_records`."""
        records = self._weighting.records(self.prediction_dtype, columns, weights)
        records["decision"] = columns["decision"]
        if self.options.score is not None:
            score = np.asarray(columns["score"], np.float64)
            absent = np.isnan(score)
            records["score"] = self._score_grid.quantise(np.where(absent, 0.0, score))
            records["score"][absent] = NO_SCORE
        return records

    def outcome_records(self, columns: Mapping[str, Column]) -> Records:
        """Records of the outcome; see :meth:`Task.outcome_records`."""
        records = blank_records(self.outcome_dtype, columns)
        records["outcome"] = columns["outcome"]
        return records

    def prediction_sums(self, predictions: Records) -> Sequence[Scatter]:
        """Selected predictions, and the sum of scores."""
        decision = predictions["decision"].astype(np.int64)
        sums = [Scatter(self._at["selected"], decision)]
        if self._weighting.bound is not None:
            sums.append(self._add("predictions_weight", 1.0, predictions))
            sums.append(self._add("selected_weight", decision.astype(np.float64), predictions))
        if self.options.score is not None:
            present = predictions["score"] != NO_SCORE
            sums.append(Scatter(self._at["scored"], present.astype(np.int64)))
            if self._weighting.bound is not None:
                sums.append(self._add("scored_weight", present.astype(np.float64), predictions))
            sums.append(self._add("score_sum", self._scores(predictions, present), predictions))
        return sums

    def outcome_sums(self, predictions: Records, outcomes: Records) -> Sequence[Scatter]:
        """The confusion table in one scatter; with scores the bins and the sums over them."""
        outcome = outcomes["outcome"].astype(np.int64)
        kind = 2 * outcome + predictions["decision"]
        sums = [Scatter(self._at["tn"] + kind)]
        if self._weighting.bound is not None:
            sums.append(self._add("tn_weight", 1.0, predictions, kind))
        if self.options.score is None:
            return sums
        low, high = self.options.score.range
        present = predictions["score"] != NO_SCORE
        count = present.astype(np.float64)
        score = self._scores(predictions, present)
        residual = np.where(present, (score - low) / (high - low) - outcome, 0.0)
        score_bin = np.searchsorted(self._inner_edges, predictions["score"], side="right")
        sums.append(Scatter(self._at["scored_negatives"] + outcome, present.astype(np.int64)))
        sums.append(self._add("squared_error_sum", residual * residual, predictions))
        sums.append(self._add("negative_score_sum", score, predictions, outcome))
        sums.append(
            self._add("negatives_0", count, predictions, self.options.score.bins * outcome + score_bin)
        )
        sums.append(self._add("bin_score_0", score, predictions, score_bin))
        return sums

    def _scores(
        self, predictions: Records, present: np.ndarray[tuple[int, ...], np.dtype[np.bool]]
    ) -> Floats:
        """Scores in their own range; 0 where there is none."""
        return np.where(present, predictions["score"] * np.float64(self._score_grid.step), 0.0)

    def _add(
        self, name: str, values: Floats | float, predictions: Records, offset: Ints | int = 0
    ) -> Scatter:
        """Add values (times weight) to the statistic ``offset`` places after this one."""
        first = self._at[name]
        return Scatter(first + offset, self._weighting.amounts(self.statistics[first], values, predictions))


def _fields(score: BinaryScoreOptions | None) -> tuple[Field, ...]:
    decision = Field("decision", "prediction", "flag", "the decision: 1 is yes, selected, positive")
    outcome = Field("outcome", "outcome", "flag", "what turned out to be true: 1 if yes was right")
    if score is None:
        return (decision, outcome)
    low, high = score.range
    number = Field(
        "score", "prediction", "number", "score behind the decision; high is positive", False, low, high
    )
    return (decision, number, outcome)


def _score_grid(score: BinaryScoreOptions) -> Grid:
    return Grid(max(abs(end) for end in score.range))


def _statistics(score: BinaryScoreOptions | None, weighting: Weighting) -> list[Statistic]:
    selected = [Statistic("selected", "prediction", "predictions with decision 1")]
    table = [
        Statistic("tn", "outcome", "true negatives: decision 0, outcome 0"),
        Statistic("fp", "outcome", "false positives: decision 1, outcome 0"),
        Statistic("fn", "outcome", "false negatives: decision 0, outcome 1"),
        Statistic("tp", "outcome", "true positives: decision 1, outcome 1"),
    ]
    statistics = [*selected, *weighting.twins(selected), *table, *weighting.twins(table)]
    if weighting.bound is not None:
        statistics.append(
            weighting.total("predictions_weight", "prediction", "sum of weights: predictions", 1, counts=True)
        )
    if score is None:
        return statistics
    bound = max(abs(end) for end in score.range)
    scored = [Statistic("scored", "prediction", "predictions with a score")]
    classes = [("negative", "outcome 0"), ("positive", "outcome 1")]
    statistics += [*scored, *weighting.twins(scored)]
    statistics.append(weighting.total("score_sum", "prediction", "sum of scores", bound))
    statistics += [
        Statistic(f"scored_{name}s", "outcome", f"scored predictions, {what}") for name, what in classes
    ]
    statistics.append(weighting.total("squared_error_sum", "outcome", "sum of (p - outcome)**2", 1))
    statistics += [
        weighting.total(f"{name}_score_sum", "outcome", f"sum of scores, {what}", bound)
        for name, what in classes
    ]
    statistics += [
        weighting.total(f"{name}s_{k}", "outcome", f"score bin {k}, {what}", 1)
        if weighting.bound is not None
        else Statistic(f"{name}s_{k}", "outcome", f"predictions in score bin {k}, {what}")
        for name, what in classes
        for k in range(score.bins)
    ]
    statistics += [
        weighting.total(f"bin_score_{k}", "outcome", f"sum of scores in bin {k}", bound)
        for k in range(score.bins)
    ]
    return statistics


def _in_words(counts: str) -> str:
    """Counts as they stand in a definition: ``tp fn`` is (TP + FN)."""
    terms = [name.upper() if n == 1 else f"{n}*{name.upper()}" for name, n in Counter(counts.split()).items()]
    return terms[0] if len(terms) == 1 else f"({' + '.join(terms)})"


def _decision_metrics(weighting: Weighting) -> list[Metric]:
    tp, fp, tn, fn = (weighting.name(count) for count in ("tp", "fp", "tn", "fn"))
    everything: Form = dict.fromkeys(_ALL.split(), 1)

    def balanced_accuracy(sums: Sums) -> Floats:
        return (divide(sums[tp], sums[tp] + sums[fn]) + divide(sums[tn], sums[tn] + sums[fp])) / 2

    def generalized_entropy(sums: Sums) -> Floats:
        n = sums[tp] + sums[fp] + sums[tn] + sums[fn]
        benefit = sums[tp] + sums[tn] + 2 * sums[fp]
        squares = sums[tp] + sums[tn] + 4 * sums[fp]
        return (divide(n * squares, benefit * benefit) - 1) / 2

    selection_rate = Metric(
        name="selection_rate",
        definition="selected / predictions",
        orientation=NEUTRAL,
        undefined="no prediction",
        numerator=weighting.form({"selected": 1}),
        denominator=weighting.form({"predictions": 1}),
        support={"predictions": 1},
        block="prediction",
        aliases=("positive_prediction_rate",),
    )
    rates = [
        Metric(
            name=name,
            definition=f"{_in_words(numerator)} / {_in_words(denominator)}",
            orientation=orientation,
            undefined=_UNDEFINED[denominator],
            numerator=weighting.form(Counter(numerator.split())),
            denominator=weighting.form(Counter(denominator.split())),
            support=dict.fromkeys(f"{denominator} {numerator}".split(), 1),
            aliases=aliases,
        )
        for name, numerator, denominator, orientation, aliases in _RATES
    ]
    return [
        selection_rate,
        *rates,
        Metric(
            name="balanced_accuracy",
            definition="(TP / (TP + FN) + TN / (TN + FP)) / 2",
            orientation=HIGHER,
            undefined="no outcome is 1, or none is 0",
            formula=balanced_accuracy,
            support=everything,
        ),
        Metric(
            name="generalized_entropy",
            definition=(
                "(mean(b**2) / mean(b)**2 - 1) / 2 of benefits b = 1 + decision - outcome, which is "
                "(n * (TP + TN + 4*FP) / (TP + TN + 2*FP)**2 - 1) / 2; 0 means equal benefits (alpha = 2)"
            ),
            orientation=LOWER,
            undefined="no outcome, or all benefits are 0 (nothing but false negatives)",
            formula=generalized_entropy,
            support=everything,
            aliases=("generalized_entropy_index",),
        ),
    ]


def _calibration_error(sums: Sums, bins: int, low: float, high: float) -> Floats:
    """Sum over bins of abs(sum of p - observed positives), over the scored outcomes."""
    negatives, positives = sums.histogram("negatives", bins), sums.histogram("positives", bins)
    expected = (sums.histogram("bin_score", bins) - low * (negatives + positives)) / (high - low)
    return divide(np.abs(expected - positives).sum(axis=1), (negatives + positives).sum(axis=1))


def _roc_auc(sums: Sums, bins: int) -> Floats:
    """Pairs of a positive and a negative in the right order of bins; pairs in one bin count half."""
    negatives, positives = sums.histogram("negatives", bins), sums.histogram("positives", bins)
    below = np.cumsum(negatives, axis=1) - negatives
    ordered = (positives * (below + negatives / 2)).sum(axis=1)
    return divide(ordered, positives.sum(axis=1) * negatives.sum(axis=1))


def _score_metrics(options: BinaryOptions, weighting: Weighting) -> list[Metric]:
    if options.score is None:
        return []
    low, high = options.score.range
    bins = options.score.bins
    positives: Form = {f"positives_{k}": 1 for k in range(bins)}
    negatives: Form = {f"negatives_{k}": 1 for k in range(bins)}
    both: Form = {"scored_positives": 1, "scored_negatives": 1}
    return [
        Metric(
            name="score_mean",
            definition="sum of scores / predictions with a score",
            orientation=NEUTRAL,
            undefined="no prediction with a score",
            numerator={"score_sum": 1},
            denominator=weighting.form({"scored": 1}),
            support={"scored": 1},
            block="prediction",
            unit="score",
            aliases=("mean_score",),
        ),
        Metric(
            name="positive_class_score_mean",
            definition="mean score of predictions whose outcome is 1",
            orientation=HIGHER,
            undefined="no scored prediction has outcome 1",
            numerator={"positive_score_sum": 1},
            denominator=positives,
            support={"scored_positives": 1},
            unit="score",
            aliases=("balance_for_positive_class",),
        ),
        Metric(
            name="negative_class_score_mean",
            definition="mean score of predictions whose outcome is 0",
            orientation=LOWER,
            undefined="no scored prediction has outcome 0",
            numerator={"negative_score_sum": 1},
            denominator=negatives,
            support={"scored_negatives": 1},
            unit="score",
            aliases=("balance_for_negative_class",),
        ),
        Metric(
            name="brier_score",
            definition="mean of (p - outcome)**2; 0 is perfect",
            orientation=LOWER,
            undefined="no scored prediction has an outcome",
            numerator={"squared_error_sum": 1},
            denominator={**positives, **negatives},
            support=both,
            aliases=("brier",),
        ),
        Metric(
            name="calibration_error",
            definition=(
                "sum over score bins of (share of the bin) * abs(mean p - observed rate of outcome 1); "
                "0 is calibrated"
            ),
            orientation=LOWER,
            undefined="no scored prediction has an outcome",
            formula=partial(_calibration_error, bins=bins, low=low, high=high),
            support=both,
            aliases=("expected_calibration_error", "ece"),
        ),
        Metric(
            name="roc_auc",
            definition=(
                "P(score bin of an outcome 1 > score bin of an outcome 0), pairs in one bin count half; "
                "1 is perfect order, 0.5 none"
            ),
            orientation=HIGHER,
            undefined="no scored prediction has outcome 1, or none has outcome 0",
            formula=partial(_roc_auc, bins=bins),
            support=both,
            aliases=("auc",),
        ),
    ]
