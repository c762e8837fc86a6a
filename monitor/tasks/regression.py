"""Predicted numbers: errors against the number that turned out, and the predicted value itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    Metric,
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


class RegressionOptions(TaskOptions):
    """Options of task ``regression``."""

    type: Literal["regression"] = Setting(default="regression", description="predicted numbers")
    range: Range = Setting(description="[low, high] of predictions and outcomes; events outside are rejected")
    tolerance: float | None = Setting(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="a prediction within this distance of the outcome is right (within_tolerance_rate)",
    )


class Regression(Task):
    """Numbers predicted, and the numbers that turned out.

    Fields: ``prediction`` and ``outcome``, numbers in the declared range, kept on a grid of 2**-30 of
    its largest magnitude. The error is e = prediction - outcome: positive when too high.

    Parameters
    ----------
    options : RegressionOptions
    weight_bound : float, optional
        Events carry weights in (0, weight_bound]: every mean below is then a weighted mean.
    outcome_ttl_seconds : float
        Longest delay of an outcome.

    Notes
    -----
    Memory per cell: 11 integers, one more with a tolerance; weights add 2, and one more with a tolerance.
    For r_squared outcomes are summed around the middle of the range, so that it loses no digits when
    the range is far from 0.

    Examples
    --------
    >>> import numpy as np
    >>> task = Regression(RegressionOptions(range=(0, 8)))
    >>> predictions = task.prediction_records({"prediction": np.array([3.0, 1.0])}, None)
    >>> outcomes = task.outcome_records({"outcome": np.array([2.0, 1.5])})
    >>> [float(s.value.sum() * task.statistics[s.statistic].scale)
    ...  for s in task.outcome_sums(predictions, outcomes)]
    [0.5, 1.5, 1.25, 3.5, -4.5, 10.25]
    """

    name = "regression"

    def __init__(
        self,
        options: RegressionOptions,
        *,
        weight_bound: float | None = None,
        outcome_ttl_seconds: float = 2592000.0,
    ) -> None:
        self.options = options
        low, high = options.range
        self._grid = Grid(max(abs(low), abs(high)))
        self._middle = (low + high) / 2
        self._weighting = Weighting(weight_bound)
        self.fields = (
            Field("prediction", "prediction", "number", "the predicted number", True, low, high),
            Field("outcome", "outcome", "number", "the number that turned out", True, low, high),
        )
        self.statistics = (
            *common_statistics(outcome_ttl_seconds),
            *_statistics(options, self._weighting),
        )
        self.metrics = metrics_table(self.statistics, (*COMMON_METRICS, *_metrics(options, self._weighting)))
        self._at = {s.name: i for i, s in enumerate(self.statistics)}
        self.prediction_dtype = self._weighting.dtype(("prediction", "<i4"))
        self.outcome_dtype = np.dtype([("outcome", "<i4")])

    def prediction_records(self, columns: Mapping[str, Column], weights: Floats | None) -> Records:
        """Records of the predicted number and weight; see :meth:`Task.prediction_records`."""
        records = self._weighting.records(self.prediction_dtype, columns, weights)
        records["prediction"] = self._grid.quantise(np.asarray(columns["prediction"], np.float64))
        return records

    def outcome_records(self, columns: Mapping[str, Column]) -> Records:
        """Records of the number that turned out; see :meth:`Task.outcome_records`."""
        records = blank_records(self.outcome_dtype, columns)
        records["outcome"] = self._grid.quantise(np.asarray(columns["outcome"], np.float64))
        return records

    def prediction_sums(self, predictions: Records) -> Sequence[Scatter]:
        """The sum of predicted numbers."""
        sums = [self._add("prediction_sum", self._numbers(predictions["prediction"]), predictions)]
        if self._weighting.bound is not None:
            sums.append(self._add("predictions_weight", 1.0, predictions))
        return sums

    def outcome_sums(self, predictions: Records, outcomes: Records) -> Sequence[Scatter]:
        """Sums of errors, their magnitudes and squares, and of outcomes and their squares."""
        outcome = self._numbers(outcomes["outcome"])
        error = self._numbers(predictions["prediction"]) - outcome
        magnitude = np.abs(error)
        deviation = outcome - self._middle
        sums = [
            self._add("error_sum", error, predictions),
            self._add("absolute_error_sum", magnitude, predictions),
            self._add("squared_error_sum", error * error, predictions),
            self._add("outcome_sum", outcome, predictions),
            self._add("outcome_deviation_sum", deviation, predictions),
            self._add("outcome_square_sum", deviation * deviation, predictions),
        ]
        if self._weighting.bound is not None:
            sums.append(self._add("outcomes_weight", 1.0, predictions))
        if self.options.tolerance is not None:
            within = magnitude <= self.options.tolerance + self._grid.step
            sums.append(Scatter(self._at["within_tolerance"], within.astype(np.int64)))
            if self._weighting.bound is not None:
                sums.append(self._add("within_tolerance_weight", within.astype(np.float64), predictions))
        return sums

    def _numbers(self, column: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> Floats:
        return column * np.float64(self._grid.step)

    def _add(self, name: str, values: Floats | float, predictions: Records) -> Scatter:
        position = self._at[name]
        return Scatter(position, self._weighting.amounts(self.statistics[position], values, predictions))


def _statistics(options: RegressionOptions, weighting: Weighting) -> list[Statistic]:
    low, high = options.range
    largest, width = max(abs(low), abs(high)), high - low
    total = weighting.total
    statistics = [
        total("prediction_sum", "prediction", "sum of predictions", largest),
        total("error_sum", "outcome", "sum of errors e = prediction - outcome", width),
        total("absolute_error_sum", "outcome", "sum of abs(e)", width),
        total("squared_error_sum", "outcome", "sum of e**2", width**2),
        total("outcome_sum", "outcome", "sum of outcomes", largest),
        total("outcome_deviation_sum", "outcome", "sum of outcome - middle of the range", width / 2),
        total("outcome_square_sum", "outcome", "sum of (outcome - middle of the range)**2", width**2 / 4),
    ]
    if weighting.bound is not None:
        statistics.append(
            total("predictions_weight", "prediction", "sum of weights: predictions", 1, counts=True)
        )
        statistics.append(total("outcomes_weight", "outcome", "sum of weights: outcomes", 1))
    if options.tolerance is not None:
        within = [Statistic("within_tolerance", "outcome", "outcomes with abs(e) <= tolerance")]
        statistics += [*within, *weighting.twins(within)]
    return statistics


def _metrics(options: RegressionOptions, weighting: Weighting) -> list[Metric]:
    outcomes = weighting.form({"outcomes": 1})
    weight = weighting.name("outcomes")
    support: Form = {"outcomes": 1}
    no_outcome = "no outcome"
    resolution = weighting.total("", "outcome", "", (options.range[1] - options.range[0]) ** 2 / 4).scale

    def root_mean_squared_error(sums: Sums) -> Floats:
        return np.sqrt(divide(sums["squared_error_sum"], sums[weight]))

    def r_squared(sums: Sums) -> Floats:
        n = sums[weight]
        deviation = sums["outcome_deviation_sum"]
        spread = sums["outcome_square_sum"] - divide(deviation * deviation, n)
        # each event is rounded by at most resolution / 2 here, and by 2 * resolution through the mean
        distinct = np.where(spread > 3 * resolution * sums["outcomes"], spread, 0.0)
        return 1 - divide(sums["squared_error_sum"], distinct)

    metrics = [
        Metric(
            name="mean_prediction",
            definition="sum of predictions / predictions",
            orientation="neutral",
            undefined="no prediction",
            numerator={"prediction_sum": 1},
            denominator=weighting.form({"predictions": 1}),
            support={"predictions": 1},
            block="prediction",
            unit="value",
            aliases=("mean_value",),
        ),
        Metric(
            name="mean_outcome",
            definition="sum of outcomes / outcomes",
            orientation="neutral",
            undefined=no_outcome,
            numerator={"outcome_sum": 1},
            denominator=outcomes,
            support=support,
            unit="value",
        ),
        Metric(
            name="mean_error",
            definition="mean of prediction - outcome; 0 means neither too high nor too low on average",
            orientation="neutral",
            undefined=no_outcome,
            numerator={"error_sum": 1},
            denominator=outcomes,
            support=support,
            unit="value",
            aliases=("bias",),
        ),
        Metric(
            name="mean_absolute_error",
            definition="mean of abs(prediction - outcome); 0 is perfect",
            orientation="lower is better",
            undefined=no_outcome,
            numerator={"absolute_error_sum": 1},
            denominator=outcomes,
            support=support,
            unit="value",
            aliases=("mae",),
        ),
        Metric(
            name="mean_squared_error",
            definition="mean of (prediction - outcome)**2; 0 is perfect",
            orientation="lower is better",
            undefined=no_outcome,
            numerator={"squared_error_sum": 1},
            denominator=outcomes,
            support=support,
            unit="value squared",
            aliases=("mse",),
        ),
        Metric(
            name="root_mean_squared_error",
            definition="sqrt(mean of (prediction - outcome)**2); 0 is perfect",
            orientation="lower is better",
            undefined=no_outcome,
            formula=root_mean_squared_error,
            support=support,
            unit="value",
            aliases=("rmse",),
        ),
        Metric(
            name="r_squared",
            definition="1 - sum of (prediction - outcome)**2 / sum of (outcome - mean outcome)**2",
            orientation="higher is better",
            undefined="no outcome, or all outcomes equal to within the grid of their squares",
            formula=r_squared,
            support=support,
            aliases=("r2", "coefficient_of_determination"),
        ),
    ]
    if options.tolerance is not None:
        metrics.append(
            Metric(
                name="within_tolerance_rate",
                definition=f"share of outcomes with abs(prediction - outcome) <= {options.tolerance}",
                orientation="higher is better",
                undefined=no_outcome,
                numerator=weighting.form({"within_tolerance": 1}),
                denominator=outcomes,
                support=support,
            )
        )
    return metrics
