"""What flows from decoding to the engine: accepted events of one model, as columns."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from monitor.tasks.base import Ints, Records

Bools = NDArray[np.bool_]
Keys = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of n events, for tasks that compare texts."""

    predictions: list[str | None]
    outcomes: list[str | None]

    def take(self, rows: Ints) -> Texts:
        """The texts of some events."""
        chosen = rows.tolist()
        return Texts([self.predictions[i] for i in chosen], [self.outcomes[i] for i in chosen])


@dataclass(frozen=True, slots=True)
class EventBatch:
    """n accepted events of one model from one partition, in arrival order.

    An event has a prediction part, an outcome part, or both (a joined event); the values of an
    absent part are meaningless. Times are milliseconds since 1970-01-01 UTC.
    ``record`` is the number of the record (in its :class:`~monitor.records.RecordBatch`) that the
    event came from; ``key`` a 64-bit hash of its id where ``has_id``; ``digest`` a hash of its attributes
    as stated, which orders conflicting predictions whatever cell they count in.
    """

    record: Ints
    key: Keys
    has_id: Bools
    cell: Ints
    digest: Keys
    has_prediction: Bools
    has_outcome: Bools
    prediction_time: Ints
    outcome_time: Ints
    predictions: Records
    outcomes: Records
    texts: Texts | None = None

    def __len__(self) -> int:
        return len(self.record)

    @property
    def event_time(self) -> Ints:
        """The time that lateness and watermarks go by: the prediction's, where there is one."""
        return np.where(self.has_prediction, self.prediction_time, self.outcome_time)

    def take(self, rows: Ints) -> EventBatch:
        """Some of the events, in the order of ``rows``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        texts = values.pop("texts")
        return EventBatch(
            **{name: column[rows] for name, column in values.items()},
            texts=None if texts is None else texts.take(rows),
        )
