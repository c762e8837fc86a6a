"""The join of predictions and outcomes: by id, in any order, with any delay.

What is counted is a function of the set of events, not of their order: a pair matches by event time
alone, and of events that repeat an id the canonical one counts: the earliest, and among equal times
the smallest by content. A second prediction under an id whose first still waits is a duplicate however
much later it is: an id names one prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.batch import Bools, EventBatch, Keys, Texts
from monitor.checkpoint import GenerationChanges, JoinChanges, JoinState, JoinTable, TextChanges
from monitor.pending import GenerationalTable, StoredRows
from monitor.tasks.base import Ints, Records, Task

_WAITS_AS_PREDICTION, _WAITS_AS_OUTCOME, _PAIR = 0, 1, 2
_TEXT_KINDS = ("prediction", "outcome", "pair")
_MOST_REPEATS = 16
_Column = NDArray[np.int64] | NDArray[np.uint64]


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
    """Totals since the start.

    ``joined`` counts pairs; ``duplicates`` the events beyond those needed to state each id's
    prediction and outcome once; expired and untimely events count as unmatched.
    """

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
    digest: NDArray[np.uint64]
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
    * Where a canonical duplicate makes a pair untimely, the pair is taken apart again.
    * Of an id that comes more than 16 times in one batch the rest are duplicates unseen.

    One thing does depend on arrival: of *conflicting* outcomes or predictions of an id, where some
    could pair and others lie more than ``outcome_wait`` apart, which ones do. Only one waits at a time.

    State: O(pending + recent pairs). :meth:`changes` gives what a checkpoint needs to follow it, in time and
    memory of what changed; a join that was restored goes on exactly as the other one would have.
    """

    def __init__(self, task: Task, limits: JoinLimits, *, waits_for_outcome: bool = True) -> None:
        self._task = task
        self._limits = limits
        self._waits = waits_for_outcome
        self.counts = JoinCounts()
        content = [("digest", "u8"), ("p", task.prediction_dtype), ("o", task.outcome_dtype)]
        waiting = [("deadline", "i8"), ("cell", "i4"), ("kind", "i1"), *content]
        times = [("basis", "i8"), ("prediction_time", "i8"), ("outcome_time", "i8")]
        pair = [*times, ("cell", "i4"), ("joined", "?"), *content]
        self.pending = GenerationalTable(np.dtype(waiting))
        self.pending.track("deadline")
        self.recent = GenerationalTable(np.dtype(pair), generation_rows=1 << 16)
        self._waiting_texts: tuple[dict[int, str], dict[int, str]] = ({}, {})
        self._pair_texts: dict[int, tuple[str, str]] = {}
        self._touched: tuple[set[int], set[int], set[int]] | None = None
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

    def step(self, batch: EventBatch) -> list[PredictionChange | OutcomeChange]:
        """Take in events; return what to add to and take back from the two blocks."""
        self._changes = []
        joined = batch.has_prediction & batch.has_outcome
        rows = _Rows(
            batch.key,
            batch.cell,
            batch.digest,
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
        for at in self._rounds(rows.key):
            if at is None:
                self._merge(rows, texts)
            else:
                self._merge(rows.take(at), None if texts is None else texts.take(at))
        return self._changes

    def _rounds(self, keys: Keys) -> list[Ints | None]:
        """Rows in groups without a repeated id, in the order of arrival; None for all rows at once."""
        in_order = np.sort(keys)
        if not (in_order[1:] == in_order[:-1]).any():
            return [None] if len(keys) else []
        order = np.argsort(keys, kind="stable")
        ascending = keys[order]
        starts = np.concatenate(([True], ascending[1:] != ascending[:-1]))
        place = np.arange(len(keys))
        occurrence = np.empty(len(keys), np.int64)
        occurrence[order] = place - np.maximum.accumulate(np.where(starts, place, 0))
        self.counts.duplicates += int((occurrence >= _MOST_REPEATS).sum())
        last = min(int(occurrence.max()), _MOST_REPEATS - 1)
        return [np.flatnonzero(occurrence == k) for k in range(last + 1)]

    def expire(self, until: int) -> Expiry:
        """Forget what can match no more once all events before ``until`` have been seen."""
        keys, gone = self.pending.expire("deadline", until)
        self.pending.compact()
        predictions = gone["kind"] == _WAITS_AS_PREDICTION
        self.counts.expired_predictions += int(predictions.sum())
        self.counts.expired_outcomes += int((~predictions).sum())
        if self._task.texts:
            self._drop_waiting_texts(keys[predictions].tolist(), _WAITS_AS_PREDICTION)
            self._drop_waiting_texts(keys[~predictions].tolist(), _WAITS_AS_OUTCOME)
        limit = until - self._limits.dedupe_window_ms
        self._forget_texts(self.recent.drop_before("basis", limit))
        while (
            self.recent.generations > 1
            and len(self.recent) - self.recent.oldest_rows >= self._limits.dedupe_max_ids
        ):
            self._forget_texts(self.recent.drop_oldest())
        return Expiry(gone["deadline"][predictions], gone["cell"][predictions].astype(np.int64))

    def next_expiry(self) -> int | None:
        """The first time after which :meth:`expire` has something to do; None: nothing waits.

        It is exact: a bound that depended on who waited before would not survive a restart.
        """
        bound = self.pending.lower_bound("deadline")
        return None if bound is None else int(bound)

    def changes(self) -> tuple[JoinChanges, Mapping[str, Any]]:
        """What changed since the last call or since :meth:`restore`, and all small parts as a document.

        The first call of a join that was not restored gives everything; from then on changes are noted.
        """
        generations = [
            GenerationChanges(name, *rows) for name, table in self._tables() for rows in table.changes()
        ]
        texts = []
        stores: tuple[Mapping[int, str | tuple[str, str]], ...] = (*self._waiting_texts, self._pair_texts)
        for kind, store in enumerate(stores):
            keys: Iterable[int] = store if self._touched is None else self._touched[kind]
            if keys:
                texts.append(TextChanges(_TEXT_KINDS[kind], {key: store.get(key) for key in keys}))
        self._touched = (set(), set(), set())
        layouts = {name: table.layout for name, table in self._tables()}
        return JoinChanges(generations, texts), {"counts": asdict(self.counts), "layouts": layouts}

    def restore(self, state: JoinState, document: Mapping[str, Any]) -> None:
        """Make this fresh join what the other one was when it gave this document.

        Raises
        ------
        ValueError
            State and document do not belong together, or the task's records have other fields now.
        """
        for name, table in self._tables():
            stored = {
                g.generation: StoredRows(g.keys, g.records, g.alive)
                for g in state.generations
                if g.table == name
            }
            table.restore(document["layouts"][name], stored)
        self.counts = JoinCounts(**document["counts"])
        for kind, waiting in enumerate(self._waiting_texts):
            waiting.update((key, str(text)) for key, text in state.texts.get(_TEXT_KINDS[kind], {}).items())
        for key, texts in state.texts.get(_TEXT_KINDS[_PAIR], {}).items():
            self._pair_texts[key] = (texts[0] or "", texts[1] or "")
        self._touched = (set(), set(), set())

    def _tables(self) -> tuple[tuple[JoinTable, GenerationalTable], ...]:
        return (("pending", self.pending), ("recent", self.recent))

    def _merge(self, rows: _Rows, texts: Texts | None) -> None:
        """Take in events with distinct ids."""
        known = self.recent.find(rows.key)
        rows.has_prediction, rows.has_outcome = rows.has_prediction.copy(), rows.has_outcome.copy()
        if (known >= 0).any():
            self._against_recent(rows, texts, known)
            left = np.flatnonzero(rows.has_prediction | rows.has_outcome)
            rows, texts = rows.take(left), None if texts is None else texts.take(left)
        found = self.pending.find(rows.key)
        if (found >= 0).any():
            rows = rows.take(np.arange(len(rows)))
            self._against_pending(rows, texts, found)
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

    def _against_pending(self, rows: _Rows, texts: Texts | None, found: Ints) -> None:
        """Complete each row by what waits under its id; duplicates resolve to the canonical one."""
        hit = np.flatnonzero(found >= 0)
        waiting = self.pending.get(found[hit])
        is_prediction = waiting["kind"] == _WAITS_AS_PREDICTION
        fresh = rows.has_prediction.copy()

        at, old = hit[is_prediction], waiting[is_prediction]
        old_time = old["deadline"] - self._limits.outcome_ttl_ms
        both = rows.has_prediction[at]
        self.counts.duplicates += int(both.sum())
        wins = both & _smaller(
            [rows.prediction_time[at], rows.digest[at], *_fields(rows.predictions[at])],
            [old_time, old["digest"], *_fields(old["p"])],
        )
        if wins.any():
            cell = old["cell"][wins].astype(np.int64)
            self._changes.append(PredictionChange(-1, old_time[wins], cell, old["p"][wins]))
        keep, kept = at[~wins], old[~wins]
        fresh[keep] = False
        rows.cell[keep] = kept["cell"]
        rows.digest[keep] = kept["digest"]
        rows.prediction_time[keep] = old_time[~wins]
        rows.predictions[keep] = kept["p"]
        rows.has_prediction[at] = True

        at, old = hit[~is_prediction], waiting[~is_prediction]
        old_time = old["deadline"] - self._limits.outcome_wait_ms
        both = rows.has_outcome[at]
        self.counts.duplicates += int(both.sum())
        later = ~both | _smaller(
            [old_time, *_fields(old["o"])], [rows.outcome_time[at], *_fields(rows.outcomes[at])]
        )
        rows.outcome_time[at[later]] = old_time[later]
        rows.outcomes[at[later]] = old["o"][later]
        rows.has_outcome[at] = True
        if texts is not None:
            self._recall(rows.key, texts, keep, _WAITS_AS_PREDICTION)
            self._recall(rows.key, texts, at[later], _WAITS_AS_OUTCOME)
            for kind in (_WAITS_AS_PREDICTION, _WAITS_AS_OUTCOME):
                self._drop_waiting_texts(rows.key[hit].tolist(), kind)
        self._add_predictions(rows, fresh)

    def _against_recent(self, rows: _Rows, texts: Texts | None, known: Ints) -> None:
        """Set aside parts that repeat a matched pair, and correct the pair where they are canonical."""
        hit = np.flatnonzero(known >= 0)
        pairs = self.recent.get(known[hit])
        window = self._limits.dedupe_window_ms
        same_p = rows.has_prediction[hit] & (
            np.abs(rows.prediction_time[hit] - pairs["prediction_time"]) <= window
        )
        same_o = rows.has_outcome[hit] & (np.abs(rows.outcome_time[hit] - pairs["outcome_time"]) <= window)
        joined = rows.joined[hit]
        same_o = np.where(joined, same_p, same_o)  # a joined event repeats a pair whole or not at all
        untimely = (
            same_o
            & ~joined
            & ~pairs["joined"]
            & ~self._timely(rows.outcome_time[hit] - pairs["prediction_time"])
        )
        self.counts.expired_outcomes += int(untimely.sum())
        repeats = np.where(joined, same_p & same_o, same_p.astype(np.int64) + (same_o & ~untimely))
        first_joined = joined & same_p & same_o & ~pairs["joined"]
        self.counts.duplicates += int(repeats.sum()) + int(first_joined.sum())
        p_wins = same_p & _smaller(
            [rows.prediction_time[hit], rows.digest[hit], *_fields(rows.predictions[hit])],
            [pairs["prediction_time"], pairs["digest"], *_fields(pairs["p"])],
        )
        o_wins = np.zeros(len(hit), np.bool_)
        if self._waits:
            o_wins = (same_o & ~untimely) & _smaller(
                [rows.outcome_time[hit], *_fields(rows.outcomes[hit])],
                [pairs["outcome_time"], *_fields(pairs["o"])],
            )
        changed = p_wins | o_wins | first_joined
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
        new["digest"][p] = rows.digest[source[p]]
        new["p"][p] = rows.predictions[source[p]]
        new["outcome_time"][o] = rows.outcome_time[source[o]]
        new["o"][o] = rows.outcomes[source[o]]
        new["joined"] |= rows.joined[source]
        new["basis"] = np.maximum(new["prediction_time"], new["outcome_time"])
        if texts is not None:
            both = []
            self._touch(_PAIR, rows.key[source].tolist())
            for i, from_p, from_o in zip(source.tolist(), p.tolist(), o.tolist(), strict=True):
                hypothesis, reference = self._pair_texts.get(int(rows.key[i]), ("", ""))
                hypothesis = (texts.predictions[i] or "") if from_p else hypothesis
                reference = (texts.outcomes[i] or "") if from_o else reference
                self._pair_texts[int(rows.key[i])] = (hypothesis, reference)
                both.append((hypothesis, reference))
            new["o"] = self._task.compare_texts(new["o"], [h for h, _ in both], [r for _, r in both])
        if p.any():
            for sign, pair in ((-1, old[p]), (1, new[p])):
                cell = pair["cell"].astype(np.int64)
                self._changes.append(PredictionChange(sign, pair["prediction_time"], cell, pair["p"]))
        self.recent.put(handles[changed], new)
        if not self._waits:
            return
        apart = ~new["joined"] & ~self._timely(new["outcome_time"] - new["prediction_time"])
        counted = p | o  # one that is only joined now counts as before, maybe in a closed time bucket
        self._changes.append(_outcome_change(-1, old[counted]))
        self._changes.append(_outcome_change(1, new[counted & ~apart]))
        if apart.any():
            self._take_apart(rows.key[source[apart]], handles[changed][apart], new[apart])

    def _take_apart(self, keys: Keys, handles: Ints, pairs: Records) -> None:
        """A prediction turned out to be too early for its outcome: it waits again."""
        self.counts.joined -= len(pairs)
        self.counts.expired_outcomes += len(pairs)
        self.recent.remove(handles)
        records = np.zeros(len(pairs), self.pending.dtype)
        records["deadline"] = pairs["prediction_time"] + self._limits.outcome_ttl_ms
        records["kind"] = _WAITS_AS_PREDICTION
        for name in ("cell", "digest", "p"):
            records[name] = pairs[name]
        self.pending.insert(keys, records)
        if self._task.texts:
            for key in keys.tolist():
                hypothesis, _ = self._pair_texts.pop(key, ("", ""))
                self._waiting_texts[_WAITS_AS_PREDICTION][key] = hypothesis
            self._touch(_WAITS_AS_PREDICTION, keys.tolist())  # that the pairs' texts changed is noted already

    def _timely(self, delay: Ints) -> Bools:
        return (delay <= self._limits.outcome_ttl_ms) & (delay >= -self._limits.outcome_wait_ms)

    def _drop_untimely(self, rows: _Rows) -> None:
        untimely = (
            rows.has_prediction
            & rows.has_outcome
            & ~rows.joined
            & ~self._timely(rows.outcome_time - rows.prediction_time)
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
        pairs["joined"] = rows.joined
        pairs["digest"] = rows.digest
        pairs["p"] = rows.predictions
        pairs["o"] = rows.outcomes
        if self._waits:
            self.counts.joined += len(rows)
            self._changes.append(_outcome_change(1, pairs))
        if remember:
            self.recent.insert(rows.key, pairs)
            if texts is not None:
                for key, p, o in zip(rows.key.tolist(), texts.predictions, texts.outcomes, strict=True):
                    self._pair_texts[key] = (p or "", o or "")
                self._touch(_PAIR, rows.key.tolist())

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
            records["digest"] = rows.digest[at]
            records["p"] = rows.predictions[at]
            records["o"] = rows.outcomes[at]
            self.pending.insert(rows.key[at], records)
            if texts is not None:
                self._keep(rows.key, texts, at, kind)

    # texts ---------------------------------------------------------------------------------------

    def _keep(self, keys: Keys, texts: Texts, at: Ints, kind: int) -> None:
        source = texts.outcomes if kind == _WAITS_AS_OUTCOME else texts.predictions
        for i in at.tolist():
            self._waiting_texts[kind][int(keys[i])] = source[i] or ""
        self._touch(kind, keys[at].tolist())

    def _recall(self, keys: Keys, texts: Texts, at: Ints, kind: int) -> None:
        target = texts.outcomes if kind == _WAITS_AS_OUTCOME else texts.predictions
        for i in at.tolist():
            target[i] = self._waiting_texts[kind].get(int(keys[i]))

    def _forget_texts(self, keys: Keys) -> None:
        if self._task.texts:
            gone = keys[self.recent.find(keys) < 0].tolist()
            for key in gone:
                self._pair_texts.pop(key, None)
            self._touch(_PAIR, gone)

    def _drop_waiting_texts(self, keys: list[int], kind: int) -> None:
        waiting = self._waiting_texts[kind]
        self._touch(kind, [key for key in keys if waiting.pop(key, None) is not None])

    def _touch(self, kind: int, keys: list[int]) -> None:
        """Note whose texts of a kind changed, once somebody has asked for changes."""
        if self._touched is not None:
            self._touched[kind].update(keys)


def _outcome_change(sign: int, pairs: Records) -> OutcomeChange:
    return OutcomeChange(
        sign,
        pairs["basis"],
        pairs["cell"].astype(np.int64),
        np.maximum(pairs["outcome_time"] - pairs["prediction_time"], 0),
        pairs["p"],
        pairs["o"],
    )


def _fields(records: Records) -> list[_Column]:
    """Contents of records as columns, in the order in which they decide between conflicts."""
    return [records[name] for name in records.dtype.names or ()]


def _smaller(left: list[_Column], right: list[_Column]) -> Bools:
    """Row by row: is left smaller than right in lexicographic order, the first column first?"""
    smaller = np.zeros(len(left[0]), np.bool_)
    equal = np.ones(len(left[0]), np.bool_)
    for a, b in zip(left, right, strict=True):
        smaller |= equal & (a < b)
        equal &= a == b
    return smaller
