"""The pure core: batches of events in, closed time buckets and alerts out.

No Kafka, HTTP, clock or environment here: the same inputs in the same order always give the same
state. Whatever the wall clock decides (a partition is idle) comes in as a call.

Time: each partition has its own watermark, its latest event time minus ``grace``. An event is late
when its time bucket ended before the watermark of its own partition, or was closed already. Time
buckets close on the smallest watermark of the partitions that are not idle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monitor.alerts import Alert, Rule, RuleMonitor, Transition
from monitor.batch import Bools, EventBatch
from monitor.cells import AttributeCap, Cell, CellDictionary, CellSums, CellTable, TableLog
from monitor.checkpoint import Document, EngineChanges, EngineState, ModelChanges, ModelState
from monitor.counters import BLOCK, ReleasedCounters
from monitor.gap_names import GapSpec
from monitor.gaps import Gap, evaluate
from monitor.groups import GroupIndex, Grouping, GroupTable, MetricTable, MetricValues, gated
from monitor.join import Join, JoinCounts, JoinLimits, OutcomeChange
from monitor.release import group_row
from monitor.tasks.base import DELAY, EXPIRED, OUTCOMES, PREDICTIONS, Ints, Scatter, Task
from monitor.windows import Window

_AHEAD = 64
"""Time buckets beyond the next to close that are held sparsely: outcomes of joined events lie there."""
_TOTAL = "all"
"""Name of the total of the window without end among stored tables."""
_NEVER = object()
_MEANINGS = {
    "attributes": "the list of attributes",
    "bucket_ms": "time.bucket",
    "join_ms": "join.outcome_ttl or join.outcome_wait",
    "statistics": "the task or one of its options",
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything the engine needs to know of one model; ``counters`` asks for counters per group."""

    name: str
    task: Task
    attributes: Sequence[AttributeCap]
    max_cells: int
    groupings: Sequence[Grouping]
    metrics: Sequence[str]
    gaps: Sequence[GapSpec]
    windows: Sequence[tuple[str, int | None]]
    rules: Sequence[Rule]
    min_support: int
    min_group_size: int
    join: JoinLimits
    counters: bool = False


@dataclass(frozen=True, slots=True)
class TimeSpec:
    """Width of time buckets and how long they wait for late events, in milliseconds."""

    bucket_ms: int
    grace_ms: int


@dataclass(frozen=True, slots=True)
class WindowReport:
    """What one window of one model holds: [start, end), start None for ``all``.

    Numbers of groups that must be withheld are gone already.
    """

    model: str
    window: str
    start: int | None
    end: int | None
    groups: Sequence[dict[str, Any]]
    gaps: Sequence[Gap]


class ModelEngine:
    """Cells, join, windows and rules of one model."""

    def __init__(self, spec: ModelSpec, time: TimeSpec) -> None:
        self.spec = spec
        self._bucket_ms = time.bucket_ms
        self.cells = CellDictionary(spec.attributes, spec.max_cells)
        waits = any(f.block == "outcome" for f in spec.task.fields)
        self._join = Join(spec.task, spec.join, waits_for_outcome=waits)
        self._delay_step = spec.task.statistics[DELAY].scale * 1000
        width = len(spec.task.statistics)
        self.windows = {label: Window(label, length, time.bucket_ms, width) for label, length in spec.windows}
        self._open: dict[int, CellTable] = {}
        self._ahead: dict[int, CellSums] = {}
        self._next: int | None = None
        self._metrics = MetricTable(spec.task, spec.min_support)
        self._indexes: dict[Grouping, GroupIndex] = {}
        self._shown: dict[str, tuple[int, dict[Grouping, GroupTable]]] = {}
        self.counters: ReleasedCounters | None = None
        if spec.counters:
            names = [a.name for a in spec.attributes]
            self.counters = ReleasedCounters(spec.task, names, spec.groupings, spec.min_group_size)
        self._rules: dict[str, list[RuleMonitor]] = {label: [] for label in self.windows}
        for rule in spec.rules:
            self._rules[rule.window].append(RuleMonitor(rule, self.windows[rule.window].step_ms))
        self._closings = 0
        self._log: TableLog | None = None
        self._stored_cells = 0
        self._stored: dict[str, Any] = {}
        self._versions: dict[str, object] = {}

    @property
    def counts(self) -> JoinCounts:
        """Totals of the join."""
        return self._join.counts

    @property
    def unmatched_predictions(self) -> int:
        """Predictions without an outcome so far, expired ones included."""
        return self._join.unmatched_predictions

    @property
    def unmatched_outcomes(self) -> int:
        """Outcomes without a prediction so far, expired ones included."""
        return self._join.unmatched_outcomes

    @property
    def pending(self) -> int:
        """Events that wait for their other half now."""
        return len(self._join.pending)

    @property
    def alerts(self) -> list[Alert]:
        """Alerts that are pending or firing now."""
        return [a for rules in self._rules.values() for r in rules for a in r.active]

    def step(self, batch: EventBatch) -> None:
        """Take in events that are not late."""
        if self._next is None and len(batch):
            self._next = int(batch.event_time.min()) // self._bucket_ms
        for change in self._join.step(batch):
            if isinstance(change, OutcomeChange):
                delay = np.rint(change.delay / self._delay_step).astype(np.int64)
                scatters = [
                    Scatter(OUTCOMES),
                    Scatter(DELAY, delay),
                    *self.spec.task.outcome_sums(change.predictions, change.outcomes),
                ]
            else:
                scatters = [
                    Scatter(PREDICTIONS),
                    *self.spec.task.prediction_sums(change.predictions),
                ]
            self._scatter(change.time // self._bucket_ms, change.cell, scatters, change.sign)

    def _scatter(self, buckets: Ints, cells: Ints, scatters: Sequence[Scatter], sign: int) -> None:
        if not len(buckets):
            return
        first, last = int(buckets.min()), int(buckets.max())
        if first == last:
            self._add(first, cells, scatters, sign)
            return
        order = np.argsort(buckets, kind="stable")
        ascending = buckets[order]
        starts = np.flatnonzero(np.concatenate(([True], ascending[1:] != ascending[:-1])))
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
            rows = order[start:end]
            part = [Scatter(_pick(s.statistic, rows), _pick(s.value, rows)) for s in scatters]
            self._add(int(ascending[start]), cells[rows], part, sign)

    def _add(self, bucket: int, cells: Ints, scatters: Sequence[Scatter], sign: int) -> None:
        if bucket in self._open or self._next is None or bucket - self._next <= _AHEAD:
            self._table(bucket).add(cells, scatters, sign)
            return
        own, rows = np.unique(cells, return_inverse=True)
        table = CellTable(len(own), len(self.spec.task.statistics))
        table.add(rows, scatters, sign)
        part = CellSums(own, table.sums)
        before = self._ahead.get(bucket)
        self._ahead[bucket] = part if before is None else before.merge(part)
        if self._log is not None:
            self._log.put(f"ahead:{bucket}", self._ahead[bucket])

    def _table(self, bucket: int) -> CellTable:
        table = self._open.get(bucket)
        if table is None:
            table = self._open[bucket] = CellTable(len(self.cells), len(self.spec.task.statistics))
            if self._log is not None:
                table.track()
            self._next = bucket if self._next is None else min(self._next, bucket)
        return table

    def last_open(self) -> int | None:
        """End of the latest time bucket that holds events, or None."""
        holding = [bucket for bucket, table in self._open.items() if table.sums.any()]
        holding += [bucket for bucket, part in self._ahead.items() if part.sums.any()]
        return (max(holding) + 1) * self._bucket_ms if holding else None

    def close(self, until: int) -> list[Transition]:
        """Close the time buckets that end at or before ``until``, in order; evaluate the rules."""
        transitions: list[Transition] = []
        self._closings += 1
        last = until // self._bucket_ms
        while self._next is not None and self._next < last:
            bucket = min(self.next_interesting, last)
            if bucket > self._next:
                transitions += self._repeat(self._next * self._bucket_ms, bucket * self._bucket_ms)
            if bucket < last:
                transitions += self._close_one(bucket)
                bucket += 1
            self._next = bucket
        if self._next is not None:
            for window in self.windows.values():
                window.end = until - until % window.step_ms
        if self.counters is not None:
            self.counters.release(self.cells.cells, until)
        return transitions

    def settle(self, until: int) -> list[Transition]:
        """The sources ended at ``until``: windows take in the step that has begun."""
        transitions: list[Transition] = []
        self._closings += 1
        for label, window in self.windows.items():
            if self._next is not None and window.settle(until):
                for rule in self._rules[label]:
                    gaps = self._gaps(window, rule.rule.gap, rule.rule.min_support)
                    transitions += rule.observe(until, gaps, again=True)
        return transitions

    @property
    def next_interesting(self) -> int:
        """The first time bucket from ``_next`` on whose closing changes anything."""
        candidates = [min(self._open, default=None), min(self._ahead, default=None)]
        expiry = self._join.next_expiry()
        if expiry is not None:
            candidates.append(expiry // self._bucket_ms)
        for window in self.windows.values():
            end = window.next_change()
            if end is not None:
                candidates.append(end // self._bucket_ms - 1)
        known = [c for c in candidates if c is not None]
        return max(min(known), self._next or 0) if known else 2**62

    def _close_one(self, bucket: int) -> list[Transition]:
        start, end = bucket * self._bucket_ms, (bucket + 1) * self._bucket_ms
        expired = self._join.expire(end)
        if expired.cell.size:
            self._scatter(np.full(len(expired.cell), bucket), expired.cell, [Scatter(EXPIRED)], 1)
        ahead = self._ahead.pop(bucket, None)
        if ahead is not None:
            self._table(bucket).include(ahead)
        closed = self._closed(self._open.pop(bucket, None))
        if self._log is not None:
            self._log.drop(f"open:{bucket}")
            self._log.drop(f"ahead:{bucket}")
        if self.counters is not None and closed is not None:
            self.counters.include(start, closed)
        transitions: list[Transition] = []
        for label, window in self.windows.items():
            if window.close(start, end, closed):
                for rule in self._rules[label]:
                    transitions += rule.observe(end, self._gaps(window, rule.rule.gap, rule.rule.min_support))
            elif end % window.step_ms == 0:
                for rule in self._rules[label]:
                    transitions += rule.repeat(end, 1)
        return transitions

    def _repeat(self, after: int, until: int) -> list[Transition]:
        """Steps that end in (after, until] closed, and nothing changed."""
        transitions: list[Transition] = []
        for label, window in self.windows.items():
            steps = until // window.step_ms - after // window.step_ms
            first = (after // window.step_ms + 1) * window.step_ms
            for rule in self._rules[label] if steps else ():
                transitions += rule.repeat(first, steps)
        return transitions

    def _closed(self, table: CellTable | None) -> CellSums | None:
        if table is None:
            return None
        block = table.sums[:, PREDICTIONS] + table.sums[:, OUTCOMES] + table.sums[:, EXPIRED]
        touched = np.flatnonzero(block)
        self.cells.admit(touched, block[touched])
        return table.closed(self.cells.folded_to)

    def track(self) -> None:
        """From now on note what changes, for :meth:`changes`; at first, everything has."""
        if self._log is None:
            self._track(TableLog())

    def _track(self, log: TableLog) -> TableLog:
        self._log = log
        for bucket, table in self._open.items():
            table.track()
            if not table.sums.any():
                log.bare.add(f"open:{bucket}")
        for bucket, part in self._ahead.items():
            log.put(f"ahead:{bucket}", part)
        for window in self._longest():
            window.track(log)
        if self.counters is not None:
            self.counters.track(log)
        return log

    def _note(self, log: TableLog) -> None:
        """Have the log take what changed in tables that are written to in place."""
        for bucket, table in self._open.items():
            log.note(f"open:{bucket}", table)
        for window in self.windows.values():
            if window.length_ms is None:
                log.note(_TOTAL, window.total)
        if self.counters is not None:
            self.counters.note(log)

    def _longest(self) -> list[Window]:
        """For each step the longest window, which keeps all closed steps; and the one without end."""
        longest: dict[tuple[bool, int], Window] = {}
        for window in self.windows.values():
            key = window.length_ms is None, window.step_ms
            if key not in longest or (window.length_ms or 0) > (longest[key].length_ms or 0):
                longest[key] = window
        return list(longest.values())

    def changes(self) -> ModelChanges | None:
        """What changed since the last call, or since :meth:`restore`; None: nothing."""
        log = self._log or self._track(TableLog())
        self._note(log)
        tables, dropped = log.take()
        first, self._stored_cells = self._stored_cells, len(self.cells)
        cells = self.cells.cells[first:]
        join, join_document = self._join.changes()
        documents = {}
        for name, version, build in self._documents(log.bare, join_document):
            if self._versions.get(name, _NEVER) == version:
                continue
            self._versions[name] = version
            document = build()
            if name not in self._stored or document != self._stored[name]:
                documents[name] = self._stored[name] = document
        if not (cells or tables or dropped or documents or join.generations or join.texts):
            return None
        return ModelChanges(first, cells, tables, dropped, documents, join)

    def _documents(
        self, bare: set[str], join: Document
    ) -> Iterator[tuple[str, object, Callable[[], Document]]]:
        """Each small part with a version that changes when it does, and how to write it down."""
        yield "signature", None, self._signature
        yield "dictionary", self.cells.version, self.cells.snapshot
        ends = {str(w.step_ms): w.end for w in self.windows.values()}
        windows: dict[str, Any] = {"next": self._next, "ends": ends, "bare": sorted(bare)}
        yield "windows", windows, lambda: windows
        yield "rules", self._closings, self._rules_document
        yield "join", join, lambda: join
        if self.counters is not None:
            yield "counters", self.counters.version, self.counters.snapshot

    def _signature(self) -> dict[str, Any]:
        """What stored sums mean; they are of no use to a model with another signature."""
        join = self.spec.join
        return {
            "attributes": [a.name for a in self.spec.attributes],
            "bucket_ms": self._bucket_ms,
            "join_ms": [join.outcome_ttl_ms, join.outcome_wait_ms],
            "statistics": [[s.name, s.scale] for s in self.spec.task.statistics],
        }

    def _rules_document(self) -> dict[str, Any]:
        rules = [monitor for monitors in self._rules.values() for monitor in monitors]
        return {r.rule.definition: watches for r in rules if (watches := r.snapshot())}

    def check(self, state: ModelState) -> None:
        """Raise ValueError unless the state is of a model with the same sums."""
        stored = state.documents["signature"]
        for part, value in self._signature().items():
            if stored.get(part) != value:
                raise ValueError(
                    f"model {self.spec.name}: {_MEANINGS[part]} changed since its state was stored, and the "
                    "stored sums cannot be counted on; undo the change, rename the model, or start with an "
                    "empty state directory"
                )

    def restore(self, state: ModelState) -> None:
        """Make this fresh model go on exactly as the one whose changes were stored.

        What is new in the configuration starts empty, and what is gone is dropped. One thing more: a new
        window begins with the closed steps that are kept for a window with the same step.
        """
        self.check(state)
        documents = state.documents
        times = documents["windows"]
        nothing = CellSums(np.empty(0, np.int64), np.empty((0, len(self.spec.task.statistics)), np.int64))
        tables: dict[str, CellSums] = {**dict.fromkeys(times["bare"], nothing), **state.tables}
        self.cells.restore(state.cells, documents["dictionary"])
        self._stored_cells = len(self.cells)
        self._next = times["next"]
        steps: dict[int, list[tuple[int, CellSums]]] = {}
        filling: dict[int, tuple[int, CellSums]] = {}
        for name, part in tables.items():
            kind, *numbers = name.split(":")
            if kind == "open":
                self._open[int(numbers[0])] = table = CellTable(1, part.sums.shape[1])
                table.include(part)
            elif kind == "ahead":
                self._ahead[int(numbers[0])] = part
            elif kind == "step":
                steps.setdefault(int(numbers[0]), []).append((int(numbers[1]), part))
            elif kind == "filling":
                filling[int(numbers[0])] = int(numbers[1]), part
        for window in self.windows.values():
            step = window.step_ms
            closed = sorted(steps.get(step, ()), key=lambda at: at[0])
            window.restore(times["ends"].get(str(step)), closed, filling.get(step), tables.get(_TOTAL))
        for rules in self._rules.values():
            for rule in rules:
                rule.restore(documents["rules"].get(rule.rule.definition, ()))
        if self.counters is not None and "counters" in documents:
            self.counters.restore(documents["counters"], tables.get("block"))
        self._join.restore(state.join, documents["join"])
        self._stored = dict(documents)
        sparse = {n: part for n, part in tables.items() if n.startswith(("ahead:", "step:", "filling:"))}
        log = TableLog(state.tables, sparse, times["bare"])
        self._track(log)
        self._note(log)
        log.take()  # what was stored is no change
        for name in tables.keys() - self._names():
            log.drop(name)

    def _names(self) -> set[str]:
        """Names of all tables of sums that there are."""
        names = {f"open:{bucket}" for bucket in self._open} | {f"ahead:{bucket}" for bucket in self._ahead}
        for window in self._longest():
            names.update(name for name, _ in window.tables())
            names.update([_TOTAL] if window.length_ms is None else [])
        return names | ({BLOCK} if self.counters is not None else set())

    def _group_table(self, window: Window, grouping: Grouping) -> GroupTable:
        index = self._indexes.setdefault(
            grouping, GroupIndex([a.name for a in self.spec.attributes], grouping)
        )
        return index.table(self.cells.cells, window.total.sums)

    def _tables(self, window: Window) -> Mapping[Grouping, GroupTable]:
        """All group tables of a window as they may be shown; kept until its sums change."""
        known = self._shown.get(window.label)
        if known is None or known[0] != window.changes:
            groupings = dict.fromkeys([(), *self.spec.groupings])
            tables = gated([self._group_table(window, g) for g in groupings], self.spec.min_group_size)
            known = self._shown[window.label] = (window.changes, {t.grouping: t for t in tables})
        return known[1]

    def _gaps(self, window: Window, spec: GapSpec, min_support: int | None = None) -> list[Gap]:
        table = self._tables(window)[tuple(spec.groups)]
        strata = self._group_table(window, (*spec.groups, *spec.strata)) if spec.strata else None
        everybody = window.total.sums.sum(axis=0)
        return evaluate(spec, table, everybody, self._metrics, min_support, strata)

    def report(self) -> list[WindowReport]:
        """Group values and gaps of every window, as of the last closed time bucket."""
        reports = []
        for label, window in self.windows.items():
            rows = []
            for table in self._tables(window).values():
                for metric in self.spec.metrics:
                    rows += _rows(self.spec.name, label, table, self._metrics.of_groups(metric, table))
            gaps = [gap for spec in self.spec.gaps for gap in self._gaps(window, spec)]
            length = window.length_ms
            begin = None if length is None or window.end is None else window.end - length
            reports.append(WindowReport(self.spec.name, label, begin, window.end, rows, gaps))
        return reports

    def cell_table(self, window: str) -> dict[Cell, tuple[int, ...]]:
        """The non-zero rows of a window by their values: independent of the order of arrival."""
        sums = self.windows[window].total.sums
        touched = np.flatnonzero((sums != 0).any(axis=1)).tolist()
        return {self.cells.cells[c]: tuple(sums[c].tolist()) for c in touched}


def _rows(model: str, window: str, table: GroupTable, values: MetricValues) -> list[dict[str, Any]]:
    numerators = [None] * len(table.groups) if values.numerator is None else values.numerator.tolist()
    denominators = [None] * len(table.groups) if values.denominator is None else values.denominator.tolist()
    return [
        group_row(
            model,
            table.named(i),
            values.metric.name,
            window,
            value=float(values.value[i]),
            numerator=numerators[i],
            denominator=denominators[i],
            support=int(values.support[i]),
            status=values.status[i],
        )
        for i in range(len(table.groups))
    ]


def _pick(values: Ints | int, rows: Ints) -> Ints | int:
    return values if isinstance(values, int) else values[rows]


@dataclass(slots=True)
class _Partition:
    latest: int | None = None
    idle: bool = False


@dataclass(slots=True)
class Engine:
    """Several models over shared partitions; see the module's text for how time passes."""

    time: TimeSpec
    models: dict[str, ModelEngine]
    closed_until: int | None = None
    behind: bool = False
    """The last call left time buckets open that may be closed."""
    _partitions: dict[str, _Partition] = field(default_factory=dict)
    _stored: Any = None

    @classmethod
    def of(cls, specs: Sequence[ModelSpec], time: TimeSpec) -> Engine:
        """A fresh engine for these models."""
        return cls(time, {s.name: ModelEngine(s, time) for s in specs})

    def track(self) -> None:
        """From now on note what changes, for :meth:`changes`; without it nothing is noted or paid for."""
        for model in self.models.values():
            model.track()

    def changes(self) -> EngineChanges:
        """What changed since the last call or since :meth:`restore`; the first call gives everything.

        To be called between inputs. Changes that were taken are gone from here; whoever cannot store them
        has to keep them, or to end.
        """
        document: dict[str, Any] = {
            "closed_until": self.closed_until,
            "behind": self.behind,
            "partitions": {name: [p.latest, p.idle] for name, p in self._partitions.items()},
        }
        changed = document != self._stored
        self._stored = document
        models = {name: c for name, m in self.models.items() if (c := m.changes()) is not None}
        return EngineChanges(document if changed else None, models)

    def restore(self, state: EngineState) -> None:
        """Make this fresh engine go on exactly as the one whose changes were stored; track from here on.

        Models, windows, rules and groupings that are new start empty; a rule of which anything was edited is
        new. A new window begins with the closed steps kept for other windows with the same step. What the
        configuration has no more is dropped, except for models: theirs stays with the store.

        Raises
        ------
        ValueError
            Stored sums of a model mean something else now: its task, attributes, time bucket or the
            times of its join changed; the engine is then as it was. Or the state is damaged.
        """
        for name, model in self.models.items():
            if name in state.models:
                model.check(state.models[name])
        if state.document is not None:
            self._stored = state.document
            self.closed_until = state.document["closed_until"]
            self.behind = state.document["behind"]
            for name, (latest, idle) in state.document["partitions"].items():
                self._partitions[name] = _Partition(latest, idle)
        for name, model in self.models.items():
            if name in state.models:
                model.restore(state.models[name])
        self.track()

    @property
    def partitions(self) -> dict[str, bool]:
        """The partitions that time buckets wait for, or (True) that are idle."""
        return {name: p.idle for name, p in self._partitions.items()}

    def add_partition(self, partition: str) -> None:
        """From now on no time bucket closes before this partition has passed it."""
        self._partitions.setdefault(partition, _Partition())

    def set_idle(self, partition: str, idle: bool = True) -> None:
        """Leave a partition out of (or take it back into) what time buckets wait for.

        A partition that ended is idle for good. The decision is the caller's, and an input like any
        other: replaying it at the same place gives the same result.
        """
        self._partitions[partition].idle = idle

    def watermark(self, partition: str) -> int | None:
        """Latest event time of the partition minus grace; None before its first event."""
        latest = self._partitions[partition].latest
        return None if latest is None else latest - self.time.grace_ms

    def step(self, partition: str, batches: Mapping[str, EventBatch]) -> Ints:
        """Take in the events of one partition, by model; return the records of late events."""
        parts = [(name, batch) for name, batch in batches.items() if len(batch)]
        if not parts:
            return np.empty(0, np.int64)
        if len(parts) == 1:
            name, batch = parts[0]
            late = self._late(partition, batch.event_time)
            if not late.any():
                self.models[name].step(batch)
                return np.empty(0, np.int64)
            self.models[name].step(batch.take(np.flatnonzero(~late)))
            return batch.record[late]
        times = np.concatenate([batch.event_time for _, batch in parts])
        records = np.concatenate([batch.record for _, batch in parts])
        order = np.argsort(records, kind="stable")
        late = np.empty(len(times), np.bool_)
        late[order] = self._late(partition, times[order])
        start = 0
        for name, batch in parts:
            own = late[start : start + len(batch)]
            start += len(batch)
            self.models[name].step(batch.take(np.flatnonzero(~own)))
        return records[late]

    def _late(self, partition: str, times: Ints) -> Bools:
        """Which events are late, in order of arrival; moves the partition's watermark."""
        state = self._partitions[partition]
        latest = np.maximum.accumulate(times)
        before = np.empty_like(latest)
        before[1:] = latest[:-1]
        before[0] = times[0] if state.latest is None else state.latest
        if state.latest is not None:
            before = np.maximum(before, state.latest)
        bucket_end = times - times % self.time.bucket_ms + self.time.bucket_ms
        late = bucket_end <= before - self.time.grace_ms
        if self.closed_until is not None:
            late |= bucket_end <= self.closed_until
        state.latest = max(int(latest[-1]), int(before[-1]))
        return late

    def advance(self, most: int | None = None) -> list[Transition]:
        """Close every time bucket that all partitions that are not idle have passed.

        ``most`` bounds how many are closed, without those that change nothing; go on while :attr:`behind`.
        """
        self.behind = False
        marks = [self.watermark(name) for name, p in self._partitions.items() if not p.idle]
        passed = [m for m in marks if m is not None]
        if not passed or len(passed) < len(marks):
            return []
        return self._close(min(passed), most)

    def rest(self, now: int, most: int | None = None) -> list[Transition]:
        """All partitions are idle at ``now``: close what holds events and ended ``grace`` ago.

        Nothing else would close the last time buckets until events come again. Outcomes of joined events may
        lie ahead of the events; to close up to them would make the events that are still to come late.
        """
        if not all(p.idle for p in self._partitions.values()):
            return []
        end = max(self._ends(), default=None)
        return [] if end is None else self._close(min(end, now - self.time.grace_ms), most)

    def finish(self) -> list[Transition]:
        """The sources ended: close every time bucket that holds events, and the steps of windows."""
        until = self._end()
        if until is None:
            return []
        return self._close(until) + [t for m in self.models.values() for t in m.settle(until)]

    def _end(self) -> int | None:
        """End of the last time bucket that holds events, or None."""
        ahead = [end for m in self.models.values() if (end := m.last_open()) is not None]
        return max([*self._ends(), *ahead], default=None)

    def _ends(self) -> list[int]:
        """Ends of the time buckets that hold the latest event of each partition."""
        bucket = self.time.bucket_ms
        latest = [p.latest for p in self._partitions.values() if p.latest is not None]
        return [time - time % bucket + bucket for time in latest]

    def _close(self, until: int, most: int | None = None) -> list[Transition]:
        bucket = self.time.bucket_ms
        until -= until % bucket
        self.behind = False
        if self.closed_until is not None and until <= self.closed_until:
            return []
        if most is not None:
            first = min((m.next_interesting for m in self.models.values()), default=0)
            reach = (max(first, (self.closed_until or 0) // bucket) + most) * bucket
            until, self.behind = min(until, reach), until > reach
        self.closed_until = until
        transitions = [t for model in self.models.values() for t in model.close(until)]
        transitions.sort(key=lambda t: t.at)
        return transitions
