"""The join of predictions and outcomes: by id, in any order, with any delay.

What is counted is a function of the set of events, not of their order: a pair matches by event time
alone, and of events that repeat an id the canonical one counts: the earliest, and among equal times
the smallest by content. An id names one prediction; one that is used again while the first is
still remembered counts as a duplicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.batch import Bools, EventBatch, Keys, Texts
from monitor.pending import GenerationalTable
from monitor.tasks.base import Ints, Records, Task

_WAITS_AS_PREDICTION, _WAITS_AS_OUTCOME = 0, 1


class PredictionChange(NamedTuple):
    """Predictions to add to the prediction block (``sign`` 1) or to take back (-1)."""

    sign: int
    time: Ints
    cell: Ints
    predictions: Records


class OutcomeChange(NamedTuple):
    """Matched pairs to add to the outcome block at ``time``, or to take back; delays in milliseconds."""

    sign: int
    time: Ints
    cell: Ints
    delay: Ints
    predictions: Records
    outcomes: Records


class Expiry(NamedTuple):
    """Predictions that waited in vain: the time their wait ended, and their cells."""

    time: Ints
    cell: Ints


@dataclass(slots=True)
class JoinCounts:
    """Totals since the start. ``joined`` counts pairs; an expired event counts as unmatched."""

    joined: int = 0
    duplicates: int = 0
    expired_predictions: int = 0
    expired_outcomes: int = 0


@dataclass(frozen=True, slots=True)
class JoinLimits:
    """Durations in milliseconds; see the configuration's ``join`` section."""

    outcome_ttl_ms: int
    outcome_wait_ms: int
    dedupe_window_ms: int
    dedupe_max_ids: int


@dataclass(slots=True)
class _Rows:
    """Events with distinct ids, as mutable columns."""

    key: Keys
    cell: Ints
    has_prediction: Bools
    has_outcome: Bools
    joined: Bools
    prediction_time: Ints
    outcome_time: Ints
    predictions: Records
    outcomes: Records

    def __len__(self) -> int:
        return len(self.key)

    def take(self, rows: Ints | Bools) -> _Rows:
        return _Rows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class Join:
    """Pending predictions, early outcomes, and the pairs of the last ``dedupe_window``.

    * A prediction waits for its outcome until ``outcome_ttl`` after its event time; then it expires.
    * An outcome waits until ``outcome_wait`` after its event time for a prediction that comes later.
    * A pair matches when ``-outcome_wait <= outcome time - prediction time <= outcome_ttl``; a joined
      event is a pair by itself.
    * A pair counts at the later of its two times, so its bucket is open whichever part came last.
    * Duplicates of a matched pair are recognised within ``dedupe_window`` of its times, for the
      newest ``dedupe_max_ids`` pairs at least.

    State: O(pending + recent pairs).
    """

    def __init__(self, task: Task, limits: JoinLimits, *, waits_for_outcome: bool = True) -> None:
        self._task = task
        self._limits = limits
        self._waits = waits_for_outcome
        self.counts = JoinCounts()
        waiting = [
            ("deadline", "i8"),
            ("cell", "i4"),
            ("kind", "i1"),
            ("p", task.prediction_dtype),
            ("o", task.outcome_dtype),
        ]
        pair = [
            ("basis", "i8"),
            ("prediction_time", "i8"),
            ("outcome_time", "i8"),
            ("cell", "i4"),
            ("p", task.prediction_dtype),
            ("o", task.outcome_dtype),
        ]
        self.pending = GenerationalTable(np.dtype(waiting))
        self.pending.track("deadline")
        self.recent = GenerationalTable(np.dtype(pair), generation_rows=1 << 18)
        self._texts: dict[tuple[int, int], str] = {}
        self._changes: list[PredictionChange | OutcomeChange] = []

    @property
    def unmatched_predictions(self) -> int:
        """Predictions that wait or expired; counted when asked, O(pending)."""
        waiting = sum(int((r["kind"] == _WAITS_AS_PREDICTION).sum()) for _, r in self.pending.items())
        return waiting + self.counts.expired_predictions

    @property
    def unmatched_outcomes(self) -> int:
        """Outcomes that wait, expired, or came outside the time a pair may span; O(pending)."""
        waiting = sum(int((r["kind"] == _WAITS_AS_OUTCOME).sum()) for _, r in self.pending.items())
        return waiting + self.counts.expired_outcomes

    def step(self, batch: EventBatch, digests: NDArray[np.uint64]) -> list[PredictionChange | OutcomeChange]:
        """Take in events; return what to add to and take back from the two blocks.

        ``digests[cell]`` orders cells independently of arrival (see ``CellDictionary.digests``).
        """
        self._changes = []
        joined = batch.has_prediction & batch.has_outcome
        rows = _Rows(
            batch.key,
            batch.cell,
            batch.has_prediction,
            batch.has_outcome,
            joined,
            batch.prediction_time,
            np.where(joined, np.maximum(batch.prediction_time, batch.outcome_time), batch.outcome_time),
            batch.predictions,
            batch.outcomes,
        )
        texts = batch.texts
        if not batch.has_id.all():
            anonymous = np.flatnonzero(~batch.has_id)
            alone = rows.take(anonymous)
            self._add_predictions(alone)
            self._complete(alone, None if texts is None else texts.take(anonymous), remember=False)
            named = np.flatnonzero(batch.has_id)
            rows, texts = rows.take(named), None if texts is None else texts.take(named)
        if len(rows):
            rows, texts = self._one_row_per_id(rows, texts, digests)
            self._merge(rows, texts, digests)
        return self._changes

    def expire(self, until: int) -> Expiry:
        """Forget what can match no more once all events before ``until`` have been seen."""
        keys, gone = self.pending.expire("deadline", until)
        self.pending.compact()
        predictions = gone["kind"] == _WAITS_AS_PREDICTION
        self.counts.expired_predictions += int(predictions.sum())
        self.counts.expired_outcomes += int((~predictions).sum())
        if self._task.texts:
            for key, kind in zip(keys.tolist(), gone["kind"].tolist(), strict=True):
                self._texts.pop((key, kind), None)
        limit = until - self._limits.dedupe_window_ms
        self._forget_texts(self.recent.drop_before("basis", limit))
        while (
            self.recent.generations > 1
            and len(self.recent) - self.recent.oldest_rows >= self._limits.dedupe_max_ids
        ):
            self._forget_texts(self.recent.drop_oldest())
        return Expiry(gone["deadline"][predictions], gone["cell"][predictions].astype(np.int64))

    def next_expiry(self) -> int | None:
        """A lower bound of the times at which :meth:`expire` has something to do; None: nothing waits."""
        bound = self.pending.lower_bound("deadline")
        return None if bound is None else int(bound)

    # one row per id ------------------------------------------------------------------------------

    def _one_row_per_id(
        self, rows: _Rows, texts: Texts | None, digests: NDArray[np.uint64]
    ) -> tuple[_Rows, Texts | None]:
        in_order = np.sort(rows.key)
        if not (in_order[1:] == in_order[:-1]).any():
            return rows, texts
        order = np.argsort(rows.key, kind="stable")
        ascending = rows.key[order]
        starts = np.concatenate(([True], ascending[1:] != ascending[:-1]))
        group = np.empty(len(rows), np.int64)
        group[order] = np.cumsum(starts) - 1
        first = order[np.flatnonzero(starts)]
        merged = rows.take(first)
        with_prediction = np.flatnonzero(rows.has_prediction)
        with_outcome = np.flatnonzero(rows.has_outcome)
        p = _first_per_group(group, with_prediction, _prediction_order(rows, digests))
        o = _first_per_group(group, with_outcome, _outcome_order(rows))
        merged.has_prediction[:] = False
        merged.has_outcome[:] = False
        merged.has_prediction[group[p]] = True
        merged.has_outcome[group[o]] = True
        merged.joined[:] = np.bincount(group[rows.joined], minlength=len(merged)) > 0
        needed = np.where(merged.joined, 1, merged.has_prediction.astype(np.int64) + merged.has_outcome)
        self.counts.duplicates += len(rows) - int(needed.sum())
        merged.cell[group[p]] = rows.cell[p]
        merged.prediction_time[group[p]] = rows.prediction_time[p]
        merged.predictions[group[p]] = rows.predictions[p]
        merged.outcome_time[group[o]] = rows.outcome_time[o]
        merged.outcomes[group[o]] = rows.outcomes[o]
        if texts is None:
            return merged, None
        predicted: list[str | None] = [None] * len(merged)
        actual: list[str | None] = [None] * len(merged)
        for i in p.tolist():
            predicted[group[i]] = texts.predictions[i]
        for i in o.tolist():
            actual[group[i]] = texts.outcomes[i]
        return merged, Texts(predicted, actual)

    # against what is remembered ------------------------------------------------------------------

    def _merge(self, rows: _Rows, texts: Texts | None, digests: NDArray[np.uint64]) -> None:
        known = self.recent.find(rows.key)
        rows.has_prediction, rows.has_outcome = rows.has_prediction.copy(), rows.has_outcome.copy()
        if (known >= 0).any():
            self._against_recent(rows, texts, known, digests)
            left = np.flatnonzero(rows.has_prediction | rows.has_outcome)
            rows, texts = rows.take(left), None if texts is None else texts.take(left)
        found = self.pending.find(rows.key)
        if (found >= 0).any():
            rows = rows.take(np.arange(len(rows)))
            self._against_pending(rows, texts, found, digests)
        else:
            self._add_predictions(rows)
        if not self._waits:
            complete = rows.has_prediction
        else:
            self._drop_untimely(rows)
            complete = rows.has_prediction & rows.has_outcome
        self.pending.remove(found[found >= 0])
        if complete.all():
            self._complete(rows, texts, remember=True)
            return
        done = np.flatnonzero(complete)
        if done.size:
            self._complete(rows.take(done), None if texts is None else texts.take(done), remember=True)
        self._wait(rows, texts, ~complete)

    def _against_pending(
        self, rows: _Rows, texts: Texts | None, found: Ints, digests: NDArray[np.uint64]
    ) -> None:
        """Complete each row by what waits under its id; duplicates resolve to the canonical one."""
        hit = np.flatnonzero(found >= 0)
        waiting = self.pending.get(found[hit])
        is_prediction = waiting["kind"] == _WAITS_AS_PREDICTION
        fresh = rows.has_prediction.copy()

        at, old = hit[is_prediction], waiting[is_prediction]
        old_time = old["deadline"] - self._limits.outcome_ttl_ms
        old_cell = old["cell"].astype(np.int64)
        both = rows.has_prediction[at]
        self.counts.duplicates += int(both.sum())
        wins = np.zeros(len(at), np.bool_)
        if both.any():
            wins[both] = _smaller(
                _order_of_predictions(rows.prediction_time[at], rows.cell[at], rows.predictions[at], digests),
                _order_of_predictions(old_time, old_cell, old["p"], digests),
            )[both]
            if wins.any():
                self._changes.append(PredictionChange(-1, old_time[wins], old_cell[wins], old["p"][wins]))
        keep = at[~wins]
        fresh[keep] = False
        rows.cell[keep] = old_cell[~wins]
        rows.prediction_time[keep] = old_time[~wins]
        rows.predictions[keep] = old["p"][~wins]
        rows.has_prediction[at] = True

        at, old = hit[~is_prediction], waiting[~is_prediction]
        old_time = old["deadline"] - self._limits.outcome_wait_ms
        both = rows.has_outcome[at]
        self.counts.duplicates += int(both.sum())
        later = ~both
        if both.any():
            later |= _smaller(
                _order_of_outcomes(old_time, old["o"]),
                _order_of_outcomes(rows.outcome_time[at], rows.outcomes[at]),
            )
        rows.outcome_time[at[later]] = old_time[later]
        rows.outcomes[at[later]] = old["o"][later]
        rows.has_outcome[at] = True
        if texts is not None:
            self._recall(rows.key, texts, keep, _WAITS_AS_PREDICTION)
            self._recall(rows.key, texts, at[later], _WAITS_AS_OUTCOME)
        self._add_predictions(rows, fresh)

    def _against_recent(
        self, rows: _Rows, texts: Texts | None, known: Ints, digests: NDArray[np.uint64]
    ) -> None:
        """Set aside parts that repeat a matched pair, and correct the pair where they are canonical."""
        hit = np.flatnonzero(known >= 0)
        pairs = self.recent.get(known[hit])
        window = self._limits.dedupe_window_ms
        same_p = rows.has_prediction[hit] & (
            np.abs(rows.prediction_time[hit] - pairs["prediction_time"]) <= window
        )
        same_o = rows.has_outcome[hit] & (np.abs(rows.outcome_time[hit] - pairs["outcome_time"]) <= window)
        repeats = np.where(rows.joined[hit], same_p & same_o, same_p.astype(np.int64) + same_o)
        self.counts.duplicates += int(repeats.sum())
        old_cell = pairs["cell"].astype(np.int64)
        p_wins = same_p & _smaller(
            _order_of_predictions(rows.prediction_time[hit], rows.cell[hit], rows.predictions[hit], digests),
            _order_of_predictions(pairs["prediction_time"], old_cell, pairs["p"], digests),
        )
        o_wins = same_o & _smaller(
            _order_of_outcomes(rows.outcome_time[hit], rows.outcomes[hit]),
            _order_of_outcomes(pairs["outcome_time"], pairs["o"]),
        )
        if self._waits is False:
            o_wins[:] = False
        changed = p_wins | o_wins
        if changed.any():
            self._correct(rows, texts, hit, known[hit], pairs, p_wins, o_wins, changed)
        rows.has_prediction[hit[same_p]] = False
        rows.has_outcome[hit[same_o]] = False

    def _correct(
        self,
        rows: _Rows,
        texts: Texts | None,
        hit: Ints,
        handles: Ints,
        pairs: Records,
        p_wins: Bools,
        o_wins: Bools,
        changed: Bools,
    ) -> None:
        old = pairs[changed]
        new = old.copy()
        p, o = p_wins[changed], o_wins[changed]
        source = hit[changed]
        new["prediction_time"][p] = rows.prediction_time[source[p]]
        new["cell"][p] = rows.cell[source[p]]
        new["p"][p] = rows.predictions[source[p]]
        new["outcome_time"][o] = rows.outcome_time[source[o]]
        new["o"][o] = rows.outcomes[source[o]]
        if texts is not None:
            self._keep(rows.key, texts, source[p], _WAITS_AS_PREDICTION)
            self._keep(rows.key, texts, source[o], _WAITS_AS_OUTCOME)
            keys = rows.key[source].tolist()
            new["o"] = self._task.compare_texts(
                new["o"],
                [self._texts[k, _WAITS_AS_PREDICTION] for k in keys],
                [self._texts[k, _WAITS_AS_OUTCOME] for k in keys],
            )
        new["basis"] = np.maximum(new["prediction_time"], new["outcome_time"])
        for sign, pair, where in ((-1, old[p], p), (1, new[p], p)):
            if where.any():
                cell = pair["cell"].astype(np.int64)
                self._changes.append(PredictionChange(sign, pair["prediction_time"], cell, pair["p"]))
        if self._waits:
            self._changes.append(_outcome_change(-1, old))
            self._changes.append(_outcome_change(1, new))
        self.recent.put(handles[changed], new)

    def _drop_untimely(self, rows: _Rows) -> None:
        delay = rows.outcome_time - rows.prediction_time
        untimely = (
            rows.has_prediction
            & rows.has_outcome
            & ~rows.joined
            & ((delay > self._limits.outcome_ttl_ms) | (delay < -self._limits.outcome_wait_ms))
        )
        if untimely.any():
            rows.has_outcome[untimely] = False
            self.counts.expired_outcomes += int(untimely.sum())

    # outputs -------------------------------------------------------------------------------------

    def _add_predictions(self, rows: _Rows, fresh: Bools | None = None) -> None:
        chosen = rows.has_prediction if fresh is None else fresh
        if chosen.all():
            self._changes.append(PredictionChange(1, rows.prediction_time, rows.cell, rows.predictions))
        elif chosen.any():
            self._changes.append(
                PredictionChange(1, rows.prediction_time[chosen], rows.cell[chosen], rows.predictions[chosen])
            )

    def _complete(self, rows: _Rows, texts: Texts | None, *, remember: bool) -> None:
        if not self._waits:
            rows.outcome_time = rows.prediction_time
        elif texts is not None:
            rows.outcomes = self._task.compare_texts(
                rows.outcomes,
                [t or "" for t in texts.predictions],
                [t or "" for t in texts.outcomes],
            )
        pairs = np.empty(len(rows), self.recent.dtype)
        pairs["basis"] = np.maximum(rows.prediction_time, rows.outcome_time)
        pairs["prediction_time"] = rows.prediction_time
        pairs["outcome_time"] = rows.outcome_time
        pairs["cell"] = rows.cell
        pairs["p"] = rows.predictions
        pairs["o"] = rows.outcomes
        if self._waits:
            self.counts.joined += len(rows)
            self._changes.append(_outcome_change(1, pairs))
        if remember:
            self.recent.insert(rows.key, pairs)
            if texts is not None:
                every = np.arange(len(rows))
                self._keep(rows.key, texts, every, _WAITS_AS_PREDICTION)
                self._keep(rows.key, texts, every, _WAITS_AS_OUTCOME)

    def _wait(self, rows: _Rows, texts: Texts | None, waits: Bools) -> None:
        """Remember incomplete rows until their other part comes or their wait ends."""
        for kind, wanted, time, patience in (
            (_WAITS_AS_PREDICTION, rows.has_prediction, rows.prediction_time, self._limits.outcome_ttl_ms),
            (_WAITS_AS_OUTCOME, rows.has_outcome, rows.outcome_time, self._limits.outcome_wait_ms),
        ):
            at = np.flatnonzero(waits & wanted)
            if not at.size:
                continue
            records = np.zeros(len(at), self.pending.dtype)
            records["deadline"] = time[at] + patience
            records["cell"] = rows.cell[at]
            records["kind"] = kind
            records["p"] = rows.predictions[at]
            records["o"] = rows.outcomes[at]
            self.pending.insert(rows.key[at], records)
            if texts is not None:
                self._keep(rows.key, texts, at, kind)

    # texts ---------------------------------------------------------------------------------------

    def _keep(self, keys: Keys, texts: Texts, at: Ints, kind: int) -> None:
        source: Sequence[str | None] = texts.outcomes if kind == _WAITS_AS_OUTCOME else texts.predictions
        for i in at.tolist():
            self._texts[int(keys[i]), kind] = source[i] or ""

    def _recall(self, keys: Keys, texts: Texts, at: Ints, kind: int) -> None:
        target = texts.outcomes if kind == _WAITS_AS_OUTCOME else texts.predictions
        if not isinstance(target, list):
            raise TypeError("texts of a batch must be lists")
        for i in at.tolist():
            target[i] = self._texts.get((int(keys[i]), kind))

    def _forget_texts(self, keys: Keys) -> None:
        if self._task.texts:
            for key in keys.tolist():
                self._texts.pop((key, _WAITS_AS_PREDICTION), None)
                self._texts.pop((key, _WAITS_AS_OUTCOME), None)


def _outcome_change(sign: int, pairs: Records) -> OutcomeChange:
    return OutcomeChange(
        sign,
        pairs["basis"],
        pairs["cell"].astype(np.int64),
        np.maximum(pairs["outcome_time"] - pairs["prediction_time"], 0),
        pairs["p"],
        pairs["o"],
    )


_Order = list[NDArray[np.int64]]
"""Columns to compare events by, most significant first."""


def _order_of_predictions(time: Ints, cell: Ints, records: Records, digests: NDArray[np.uint64]) -> _Order:
    return [time, digests[cell], *(records[name] for name in records.dtype.names or ())]


def _order_of_outcomes(time: Ints, records: Records) -> _Order:
    return [time, *(records[name] for name in records.dtype.names or ())]


def _prediction_order(rows: _Rows, digests: NDArray[np.uint64]) -> _Order:
    return _order_of_predictions(rows.prediction_time, rows.cell, rows.predictions, digests)


def _outcome_order(rows: _Rows) -> _Order:
    return _order_of_outcomes(rows.outcome_time, rows.outcomes)


def _smaller(left: _Order, right: _Order) -> Bools:
    """Row by row: is left smaller than right in lexicographic order?"""
    smaller = np.zeros(len(left[0]), np.bool_)
    equal = np.ones(len(left[0]), np.bool_)
    for a, b in zip(left, right, strict=True):
        smaller |= equal & (a < b)
        equal &= a == b
    return smaller


def _first_per_group(group: Ints, rows: Ints, order: _Order) -> Ints:
    """Of each group the row that comes first in ``order``, looking at ``rows`` only."""
    if np.bincount(group[rows]).max(initial=0) <= 1:
        return rows
    keys = [column[rows] for column in reversed(order)]
    ranked = rows[np.lexsort([*keys, group[rows]])]
    starts = np.concatenate(([True], group[ranked][1:] != group[ranked][:-1]))
    return ranked[starts]
