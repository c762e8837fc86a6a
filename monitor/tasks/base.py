"""What a task is: the fields of its events, its integer statistics, its table of metrics.

A task turns events into rows of integers. Every statistic is a sum over events, so any group,
window or comparison is a sum of rows; every metric is a function of those sums and of nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, log2
from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic import Field as Setting

GRID_BITS = 30
"""Bits of a quantised value: the largest magnitude of a declared range is at most 2**30 steps."""

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Records: TypeAlias = NDArray[np.void]
Column: TypeAlias = "NDArray[np.generic] | Sequence[str | None]"
Form: TypeAlias = Mapping[str, int]
"""An integer combination of statistics, by name: ``{"tp": 1, "fn": 1}`` is TP + FN."""

Block = Literal["prediction", "outcome"]
FieldKind = Literal["flag", "number", "count", "text"]
Orientation = Literal["lower is better", "higher is better", "neutral"]


@dataclass(frozen=True, slots=True)
class Grid:
    """Fixed-point grid of a real quantity bounded by ``bound`` in magnitude.

    ``step = 2**(ceil(log2(bound)) - 30)``; a value x is kept as ``round(x / step)``. Steps are powers
    of two, so a value that is a multiple of the step is kept exactly.
    """

    bound: float
    step: float = field(init=False)

    def __post_init__(self) -> None:
        if not 0 < self.bound < 2.0**500:
            raise ValueError(f"the bound of a grid must be positive and finite, not {self.bound}")
        object.__setattr__(self, "step", 2.0 ** (ceil(log2(self.bound)) - GRID_BITS))

    def quantise(self, values: Floats) -> Ints:
        """Integers nearest to ``values / step`` (ties to even); NaN is not allowed."""
        return np.rint(values / self.step).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Field:
    """A field that an event of this task carries besides id, time, model, attributes and weight.

    kind: ``flag`` is true/false or 1/0; ``number`` a finite number in [low, high]; ``count`` an integer
    in [low, high]; ``text`` a string of at most ``high`` characters.
    """

    name: str
    block: Block
    kind: FieldKind
    description: str
    required: bool = True
    low: float = 0
    high: float = 1


@dataclass(frozen=True, slots=True)
class Statistic:
    """One integer sum per cell and time bucket; ``scale`` is the value of one integer step (1 for counts).

    ``counts`` says that it counts events, words or their weights: it never decreases as events come.
    """

    name: str
    block: Block
    description: str
    scale: float = 1.0
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Scatter:
    """Additions to statistics: event i adds ``value[i]`` to statistic number ``statistic[i]`` of its cell.

    Both may be single integers that hold for every event.
    """

    statistic: Ints | int
    value: Ints | int = 1


class Sums:
    """Sums of many groups side by side: ``sums["tp"]`` is one float64 per group, in real units.

    The integer table stays exact; this view is for formulas that are not a ratio of two sums.
    """

    __slots__ = ("_index", "_scales", "_table")

    def __init__(self, table: Ints, statistics: Sequence[Statistic]) -> None:
        self._table = table
        self._index = {s.name: i for i, s in enumerate(statistics)}
        self._scales = {s.name: np.float64(s.scale) for s in statistics}

    def __getitem__(self, name: str) -> Floats:
        return self._table[:, self._index[name]].astype(np.float64) * self._scales[name]

    def histogram(self, prefix: str, bins: int) -> Floats:
        """Statistics ``prefix_0 … prefix_{bins-1}`` as an array of shape (groups, bins)."""
        first = self._index[f"{prefix}_0"]
        return self._table[:, first : first + bins].astype(np.float64) * self._scales[f"{prefix}_0"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of a metrics table.

    A *ratio* metric is numerator / denominator, both integer combinations of statistics. A *derived*
    metric has a ``formula`` over :class:`Sums` instead (NaN where undefined).
    ``support`` counts the events the value rests on; it is what minimum supports are compared with.
    """

    name: str
    definition: str
    orientation: Orientation
    undefined: str
    support: Form
    numerator: Form | None = None
    denominator: Form | None = None
    formula: Callable[[Sums], Floats] | None = None
    block: Block = "outcome"
    unit: str = "ratio"
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ratio = self.numerator is not None and self.denominator is not None
        if ratio == (self.formula is not None):
            raise ValueError(f"metric {self.name}: give numerator and denominator, or a formula")


PREDICTIONS, OUTCOMES, EXPIRED, DELAY = range(4)
"""Positions of the statistics every task has."""


def common_statistics(outcome_ttl_seconds: float) -> tuple[Statistic, ...]:
    """The statistics every task has, first in its list; the engine adds to them, not the task."""
    return (
        Statistic("predictions", "prediction", "predictions made"),
        Statistic("outcomes", "outcome", "predictions whose outcome arrived"),
        Statistic("expired", "outcome", "predictions whose outcome did not arrive within outcome_ttl"),
        Statistic(
            "delay",
            "outcome",
            "sum of outcome time minus prediction time, in seconds",
            Grid(outcome_ttl_seconds).step,
            counts=False,
        ),
    )


COMMON_METRICS = (
    Metric(
        name="outcome_coverage",
        definition="outcomes that arrived / predictions made, both within the window",
        orientation="higher is better",
        undefined="no prediction in the window",
        numerator={"outcomes": 1},
        denominator={"predictions": 1},
        support={"predictions": 1},
        block="prediction",
    ),
    Metric(
        name="outcome_expired_share",
        definition="expired / (expired + arrived): predictions that never got their outcome",
        orientation="lower is better",
        undefined="no outcome arrived and none expired",
        numerator={"expired": 1},
        denominator={"expired": 1, "outcomes": 1},
        support={"expired": 1, "outcomes": 1},
    ),
    Metric(
        name="outcome_delay_seconds",
        definition="mean of outcome time minus prediction time",
        orientation="lower is better",
        undefined="no outcome",
        numerator={"delay": 1},
        denominator={"outcomes": 1},
        support={"outcomes": 1},
        unit="seconds",
    ),
)


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """``numerator / denominator`` for each group; NaN (undefined) where the denominator is 0."""
    result = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


def metrics_table(statistics: Sequence[Statistic], metrics: Iterable[Metric]) -> dict[str, Metric]:
    """Metrics by name, after a check of what a table promises.

    Raises ValueError when a statistic, metric or alias is defined twice, a form names an unknown
    statistic, or the statistics of one form differ in scale (their integers could not be added).
    """
    scales = {s.name: s.scale for s in statistics}
    if len(scales) < len(statistics):
        raise ValueError("two statistics have the same name")
    table: dict[str, Metric] = {}
    taken: set[str] = set()
    for metric in metrics:
        for name in (metric.name, *metric.aliases):
            if name in taken:
                raise ValueError(f"two metrics are called {name}")
            taken.add(name)
        for form in (metric.support, metric.numerator, metric.denominator):
            unknown = [name for name in form or () if name not in scales]
            if unknown:
                raise ValueError(f"metric {metric.name} uses unknown statistics: {', '.join(unknown)}")
            if len({scales[name] for name in form or ()}) > 1:
                raise ValueError(f"metric {metric.name} adds statistics of different scales")
        table[metric.name] = metric
    return table


class Weighting:
    """How the events of a task count: once each (``bound`` None), or by a weight in (0, bound].

    With weights every count keeps its plain sum (that is support) and gets a twin ``<count>_weight``;
    the sum of a real quantity x becomes the sum of weight * x under the same name. Metrics are written
    once, over counts, and :meth:`form` turns them to the twins.

    Parameters
    ----------
    bound : float or None
        Largest weight of an event; None when events carry no weights.
    """

    __slots__ = ("_grid", "bound")

    def __init__(self, bound: float | None) -> None:
        self.bound = bound
        self._grid = None if bound is None else Grid(bound)

    def dtype(self, *fields: tuple[str, str]) -> np.dtype[np.void]:
        """Dtype of prediction records: the task's fields, and ``weight`` when events are weighted."""
        weight = [] if self._grid is None else [("weight", "<i4")]
        return np.dtype([*fields, *weight])

    def records(
        self, dtype: np.dtype[np.void], columns: Mapping[str, Column], weights: Floats | None
    ) -> Records:
        """Zeroed prediction records, as many as the columns (or weights) have rows, weights filled in."""
        records = blank_records(dtype, columns if weights is None else {"weight": weights})
        if (weights is None) != (self._grid is None):
            raise ValueError("weights must be given exactly when the task has a weight_bound")
        if self._grid is not None and weights is not None:
            records["weight"] = self._grid.quantise(weights)
        return records

    def name(self, count: str) -> str:
        """The statistic that a metric sums for this count: its twin, or the count itself."""
        return count if self._grid is None else f"{count}_weight"

    def form(self, counts: Form) -> Form:
        """A form over counts, turned to their twins when events are weighted."""
        return {self.name(count): factor for count, factor in counts.items()}

    def twins(self, counts: Sequence[Statistic], cap: float = 1) -> tuple[Statistic, ...]:
        """The twins of counts of which one event adds at most ``cap``, in the same order."""
        if self._grid is None:
            return ()
        return tuple(
            self.total(
                f"{count.name}_weight", count.block, f"sum of weights: {count.description}", cap, counts=True
            )
            for count in counts
        )

    def total(
        self, name: str, block: Block, description: str, bound: float, *, counts: bool = False
    ) -> Statistic:
        """The statistic that sums a real quantity of magnitude at most ``bound``, weighted or not."""
        return Statistic(name, block, description, Grid(bound * (self.bound or 1)).step, counts)

    def amounts(self, statistic: Statistic, values: Floats | float, predictions: Records) -> Ints:
        """What events add to a :meth:`total` or to a twin, quantised once: weight * value."""
        each = np.full(len(predictions), values) if np.isscalar(values) else np.asarray(values, np.float64)
        if self._grid is not None:
            each = each * (predictions["weight"] * np.float64(self._grid.step))
        return np.rint(each / np.float64(statistic.scale)).astype(np.int64)


def blank_records(dtype: np.dtype[np.void], columns: Mapping[str, Column]) -> Records:
    """Zeroed records of a dtype, as many as the columns have rows."""
    for column in columns.values():
        return np.zeros(len(column), dtype)
    raise ValueError("no column says how many records to make; use np.zeros(n, dtype)")


def _check_range(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError(f"the range must be [low, high] with low < high, not {list(ends)}")
    return ends


Finite = Annotated[float, Setting(allow_inf_nan=False)]
Range = Annotated[tuple[Finite, Finite], Setting(strict=False), AfterValidator(_check_range)]
"""A declared range ``[low, high]``; values outside are rejected."""


class TaskOptions(BaseModel):
    """Base of each task's options, as written under ``task:`` in the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Task(ABC):
    """The statistics and metrics of one kind of model.

    A task is pure and holds no state. Built as ``Task(options, weight_bound=None,
    outcome_ttl_seconds=...)``. Records are structured arrays: what must be remembered of a prediction
    while it waits (``prediction_dtype``), and of its outcome (``outcome_dtype``).
    ``weight_bound`` > 0 means events carry weights in (0, weight_bound]; the prediction record then
    has an ``i4`` field ``weight`` on ``Grid(weight_bound)``.
    """

    name: ClassVar[str]
    fields: tuple[Field, ...]
    statistics: tuple[Statistic, ...]
    metrics: Mapping[str, Metric]
    prediction_dtype: np.dtype[np.void]
    outcome_dtype: np.dtype[np.void]

    @abstractmethod
    def prediction_records(self, columns: Mapping[str, Column], weights: Floats | None) -> Records:
        """Records of n predictions from validated columns.

        Columns hold: flag → int8 (-1 missing), number → float64 (NaN missing), count → int64
        (-1 missing), text → list of str or None.
        """

    @abstractmethod
    def outcome_records(self, columns: Mapping[str, Column]) -> Records:
        """Records of n outcomes from validated columns (see :meth:`prediction_records`)."""

    @abstractmethod
    def prediction_sums(self, predictions: Records) -> Sequence[Scatter]:
        """What n predictions add to the prediction block (``predictions`` is added by the engine)."""

    @abstractmethod
    def outcome_sums(self, predictions: Records, outcomes: Records) -> Sequence[Scatter]:
        """What n matched pairs add to the outcome block.

        ``outcomes`` and ``delay`` are added by the engine.
        """

    @property
    def count_ratios(self) -> tuple[str, ...]:
        """Metrics that are a ratio of two sums of counts: both sides can be shown as counters."""
        counting = {s.name for s in self.statistics if s.counts}

        def counts(form: Form | None) -> bool:
            return form is not None and all(n in counting and factor > 0 for n, factor in form.items())

        return tuple(n for n, m in self.metrics.items() if counts(m.numerator) and counts(m.denominator))

    @property
    def texts(self) -> bool:
        """Whether predictions or outcomes carry texts that must be compared when they meet."""
        return any(f.kind == "text" for f in self.fields)

    def compare_texts(
        self, outcomes: Records, hypotheses: Sequence[str], references: Sequence[str]
    ) -> Records:
        """Outcome records completed by comparing texts; only tasks with text fields have this."""
        raise TypeError(f"task {self.name} has no texts to compare")
