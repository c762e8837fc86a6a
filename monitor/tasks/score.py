"""Any bounded number that judges an event: toxicity, translation quality, latency, waiting time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field as Setting
from pydantic import model_validator

from monitor.tasks.base import (
    COMMON_METRICS,
    Block,
    Column,
    Field,
    Finite,
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


class TailOptions(TaskOptions):
    """The values that count as the tail: ``above`` a threshold or ``below`` one."""

    above: Finite | None = Setting(default=None, description="values greater than this are in the tail")
    below: Finite | None = Setting(default=None, description="values less than this are in the tail")

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("the tail is either above a value or below a value: give one of the two")
        return self


class ScoreOptions(TaskOptions):
    """Options of task ``score``."""

    type: Literal["score"] = Setting(default="score", description="one bounded number per event")
    range: Range = Setting(description="[low, high] of the value; events outside are rejected")
    tail: TailOptions | None = Setting(
        default=None, description="{above: x} or {below: x}: adds tail_share, the share of values there"
    )
    when: Literal["prediction", "outcome"] = Setting(
        default="prediction", description="whether the value comes with the prediction or with the outcome"
    )

    @model_validator(mode="after")
    def _tail_in_range(self) -> Self:
        low, high = self.range
        for threshold in (self.tail.above, self.tail.below) if self.tail else ():
            if threshold is not None and not low <= threshold <= high:
                raise ValueError(f"the tail starts at {threshold:g}, outside the range [{low:g}, {high:g}]")
        return self


class Score(Task):
    """One number per event, of a declared range, and how it is distributed over groups.

    Field: ``value``, kept on a grid of 2**-30 of the largest magnitude of its range. It belongs to the
    prediction (then groups differ as soon as they are served) or to the outcome, as ``when`` says.

    Parameters
    ----------
    options : ScoreOptions
    weight_bound : float, optional
        Events carry weights in (0, weight_bound]: means and shares are then weighted.
    outcome_ttl_seconds : float
        Longest delay of an outcome.

    Notes
    -----
    Memory per cell: 7 integers, one more with a tail; weights add 1, and one more with a tail.
    For standard_deviation values are summed around the middle of the range, so that it loses no digits
    when the range is far from 0.

    Examples
    --------
    >>> import numpy as np
    >>> task = Score(ScoreOptions(range=(0, 1), tail={"above": 0.8}))
    >>> predictions = task.prediction_records({"value": np.array([0.25, 0.8, 1.0])}, None)
    >>> tail = task.prediction_sums(predictions)[-1]
    >>> task.statistics[tail.statistic].name, tail.value.tolist()
    ('tail', [0, 0, 1])
    """

    name = "score"

    def __init__(
        self,
        options: ScoreOptions,
        *,
        weight_bound: float | None = None,
        outcome_ttl_seconds: float = 2592000.0,
    ) -> None:
        self.options = options
        low, high = options.range
        self._grid = Grid(max(abs(low), abs(high)))
        self._middle = (low + high) / 2
        self._weighting = Weighting(weight_bound)
        self._count = "predictions" if options.when == "prediction" else "outcomes"
        self.fields = (Field("value", options.when, "number", "the value to compare", True, low, high),)
        self.statistics = (
            *common_statistics(outcome_ttl_seconds),
            *_statistics(options, self._weighting, self._count),
        )
        self.metrics = metrics_table(
            self.statistics,
            (*COMMON_METRICS, *_metrics(options, self._weighting, self._count)),
        )
        self._at = {s.name: i for i, s in enumerate(self.statistics)}
        of_prediction = options.when == "prediction"
        self.prediction_dtype = self._weighting.dtype(*([("value", "<i4")] if of_prediction else []))
        self.outcome_dtype = np.dtype([] if of_prediction else [("value", "<i4")])

    def prediction_records(self, columns: Mapping[str, Column], weights: Floats | None) -> Records:
        """Records of the value, if it comes with the prediction, and weight.

        Raises ValueError when the value comes with the outcome and there are no weights either: such
        records are ``numpy.zeros(n, task.prediction_dtype)``.
        """
        records = self._weighting.records(self.prediction_dtype, columns, weights)
        if self.options.when == "prediction":
            records["value"] = self._grid.quantise(np.asarray(columns["value"], np.float64))
        return records

    def outcome_records(self, columns: Mapping[str, Column]) -> Records:
        """Records of the value, if it comes with the outcome.

        Raises ValueError when it comes with the prediction: such records are
        ``numpy.zeros(n, task.outcome_dtype)``.
        """
        records = blank_records(self.outcome_dtype, columns)
        if self.options.when == "outcome":
            records["value"] = self._grid.quantise(np.asarray(columns["value"], np.float64))
        return records

    def prediction_sums(self, predictions: Records) -> Sequence[Scatter]:
        """Sums of values and squares and the size of the tail, if the value is the prediction's."""
        return self._sums(predictions, predictions) if self.options.when == "prediction" else ()

    def outcome_sums(self, predictions: Records, outcomes: Records) -> Sequence[Scatter]:
        """Sums of values and squares and the size of the tail, if the value is the outcome's."""
        return self._sums(outcomes, predictions) if self.options.when == "outcome" else ()

    def _sums(self, records: Records, predictions: Records) -> list[Scatter]:
        value = records["value"] * np.float64(self._grid.step)
        deviation = value - self._middle
        sums = [
            self._add("value_sum", value, predictions),
            self._add("value_deviation_sum", deviation, predictions),
            self._add("value_square_sum", deviation * deviation, predictions),
        ]
        weighted = self._weighting.bound is not None
        if weighted:
            sums.append(self._add(f"{self._count}_weight", 1.0, predictions))
        if self.options.tail is not None:
            tail = self._in_tail(records, self.options.tail)
            sums.append(Scatter(self._at["tail"], tail.astype(np.int64)))
            if weighted:
                sums.append(self._add("tail_weight", tail.astype(np.float64), predictions))
        return sums

    def _in_tail(self, records: Records, tail: TailOptions) -> np.ndarray[tuple[int, ...], np.dtype[np.bool]]:
        """Compared on the grid, so that a value equal to the threshold is never in the tail."""
        value = records["value"]
        if tail.above is not None:
            return value > self._grid.quantise(np.asarray(tail.above))
        return value < self._grid.quantise(np.asarray(tail.below))

    def _add(self, name: str, values: Floats | float, predictions: Records) -> Scatter:
        position = self._at[name]
        return Scatter(position, self._weighting.amounts(self.statistics[position], values, predictions))


def _statistics(options: ScoreOptions, weighting: Weighting, count: str) -> list[Statistic]:
    low, high = options.range
    block: Block = options.when
    square = "sum of (value - middle of the range)**2"
    statistics = [
        weighting.total("value_sum", block, "sum of values", max(abs(low), abs(high))),
        weighting.total("value_deviation_sum", block, "sum of value - middle of the range", (high - low) / 2),
        weighting.total("value_square_sum", block, square, (high - low) ** 2 / 4),
    ]
    if weighting.bound is not None:
        statistics.append(
            weighting.total(f"{count}_weight", block, f"sum of weights: {count}", 1, counts=True)
        )
    if options.tail is not None:
        tail = [Statistic("tail", block, "values in the tail")]
        statistics += [*tail, *weighting.twins(tail)]
    return statistics


def _metrics(options: ScoreOptions, weighting: Weighting, count: str) -> list[Metric]:
    support: Form = {count: 1}
    weight = weighting.name(count)
    undefined = f"no {options.when}"

    def standard_deviation(sums: Sums) -> Floats:
        mean = divide(sums["value_deviation_sum"], sums[weight])
        variance = divide(sums["value_square_sum"], sums[weight]) - mean * mean
        return np.sqrt(np.maximum(variance, 0.0))

    metrics = [
        Metric(
            name="mean_value",
            definition=f"sum of values / {count}",
            orientation="neutral",
            undefined=undefined,
            numerator={"value_sum": 1},
            denominator={weight: 1},
            support=support,
            block=options.when,
            unit="value",
            aliases=("mean_score",),
        ),
        Metric(
            name="standard_deviation",
            definition="sqrt(mean of (value - mean value)**2)",
            orientation="neutral",
            undefined=undefined,
            formula=standard_deviation,
            support=support,
            block=options.when,
            unit="value",
        ),
    ]
    if options.tail is not None:
        side, threshold = (
            ("<", options.tail.below) if options.tail.above is None else (">", options.tail.above)
        )
        metrics.append(
            Metric(
                name="tail_share",
                definition=f"share of values {side} {threshold}",
                orientation="neutral",
                undefined=undefined,
                numerator=weighting.form({"tail": 1}),
                denominator={weight: 1},
                support=support,
                block=options.when,
            )
        )
    return metrics
