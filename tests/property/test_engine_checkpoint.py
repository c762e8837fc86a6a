"""An engine that is stored change by change, killed and restored, beside one that nobody disturbs."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import cells
from monitor.cells import Cell, CellSums, CellTable, TableLog
from monitor.checkpoint import EngineChanges, EngineState, ModelChanges, ModelState
from monitor.config import Config
from monitor.records import RecordBatch
from monitor.wiring import build_decoders, build_engine
from tests.engine_helpers import HOUR, LONG_AFTER, MINUTE, START, Event, encode
from tests.property.test_join_checkpoint import Store as JoinStore

SEEDS = st.integers(0, 2**32)
NOTHING = EngineChanges(None, {})
WINDOWS = ["5m", "2h", "3h", "5h", "3d", "all"]
METRICS = [
    "outcome_coverage",
    "outcome_expired_share",
    "outcome_delay_seconds",
    "selection_rate",
    "true_positive_rate",
    "brier_score",
]
WORDS = ["", "a", "the cat", "the cat sat"]
MANY = 15
"""Events after which sums go on in Python's integers, in tests of those."""


def rule(window: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": f"{window}-{changes.get('comparison', 'rest')}",
        "metric": "selection_rate",
        "groups": "a",
        "comparison": "rest",
        "tolerance": 0.2,
        "window": window,
        "for": 2,
        **changes,
    }


RULES = [
    rule("5m"),
    rule("5m", name="rate", metric="true_positive_rate", **{"for": 1}),
    rule("3h", comparison="between", **{"for": 1}),
    rule("2h", comparison="reference", reference={"a": "a0"}, severity="warning"),
    rule("3d", comparison="overall", kind="ratio", tolerance=0.8),
    rule("all"),
]


def config(
    caps: Mapping[str, int] | None = None, max_cells: int = 10_000, least: int = 1, **changes: Any
) -> Config:
    """Two models: one with windows of every step and rules on all of them, one whose texts wait."""
    common = {
        "attributes": {a: {"max_values": n} for a, n in (caps or {}).items()},
        "max_cells": max_cells,
        "min_support": 1,
        "join": {"outcome_ttl": "20m", "outcome_wait": "10m", "dedupe_window": "1h"},
    }
    one = {
        "task": {"type": "binary", "score": {"range": (0, 1), "bins": 4}},
        "weights": {"bound": 4.0},
        "groups": ["a", "b", ["a", "b"]],
        "windows": WINDOWS,
        "metrics": METRICS,
        "gaps": [{"metric": "equalized_odds"}],
        "rules": RULES,
        **common,
        **changes,
    }
    two = {"task": "speech", "groups": ["a"], "windows": ["1h", "all"], **common}
    time = {"bucket": "1m", "grace": "5m"}
    return Config.model_validate(
        {"models": {"one": one, "two": two}, "time": time, "privacy": {"min_group_size": least}}
    )


@dataclass
class StoredModel:
    """One model on the disk, as plain as can be: by the text of :class:`~monitor.checkpoint.ModelChanges`."""

    cells: list[Cell] = field(default_factory=list)
    tables: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    kinds: dict[str, np.dtype[Any]] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    join: JoinStore = field(default_factory=JoinStore)

    def write(self, changes: ModelChanges) -> None:
        assert changes.first_cell == len(self.cells)
        self.cells += changes.cells
        for name in changes.dropped:
            del self.tables[name]
        for name, part in changes.tables.items():
            assert part.cells.size, "a table without rows is no change"
            assert (np.diff(part.cells) > 0).all()
            rows = zip(part.cells.tolist(), part.sums.tolist(), strict=True)
            self.tables.setdefault(name, {}).update(rows)
            self.kinds[name] = part.sums.dtype
        for name, document in changes.documents.items():
            self.documents[name] = json.dumps(document)
            assert json.loads(self.documents[name]) == document
        self.join.write(changes.join, json.loads(self.documents["join"]))

    def load(self) -> ModelState:
        tables = {}
        for name, rows in self.tables.items():
            numbers = np.array(sorted(rows), np.int64)
            sums = np.array([rows[n] for n in numbers.tolist()], self.kinds[name])
            sums.flags.writeable = False  # as those of a file would be
            tables[name] = CellSums(numbers, sums)
        documents = {name: json.loads(text) for name, text in self.documents.items()}
        return ModelState(list(self.cells), tables, documents, self.join.load()[0])


@dataclass
class Store:
    """What a store does with changes; ``keeps_zeros`` says whether it keeps rows of zeros."""

    keeps_zeros: bool = True
    document: str = "null"
    models: dict[str, StoredModel] = field(default_factory=dict)

    def write(self, changes: EngineChanges) -> None:
        if changes.document is not None:
            self.document = json.dumps(changes.document)
        for name, changed in changes.models.items():
            self.models.setdefault(name, StoredModel()).write(changed)

    def load(self) -> EngineState:
        state = EngineState(
            json.loads(self.document), {name: model.load() for name, model in self.models.items()}
        )
        if self.keeps_zeros:
            return state
        models = {}
        for name, model in state.models.items():
            nonzero = {
                table: CellSums(part.cells[rows], part.sums[rows])
                for table, part in model.tables.items()
                for rows in [(part.sums != 0).any(axis=1)]
                if rows.any()
            }
            models[name] = replace(model, tables=nonzero)
        return replace(state, models=models)


class Life:
    """An engine with its decoder; whatever is done to it gives what can be seen of it."""

    def __init__(self, settled: Config, state: EngineState | None = None, *, counters: bool = True) -> None:
        self.config = settled
        self.engine = build_engine(settled, counters=counters)
        if state is not None:
            self.engine.restore(state)
        self._decoder = build_decoders(settled, self.engine)["events"]

    def feed(self, events: list[Event], partition: str = "p0") -> list[Any]:
        self.engine.add_partition(partition)
        positions = range(1, len(events) + 1)
        decoded = self._decoder.decode(RecordBatch(partition, encode(events), positions, LONG_AFTER))
        assert not decoded.rejects, decoded.rejects[0]
        return [*self.engine.step(partition, decoded.batches).tolist(), *self.engine.advance()]

    def idle(self, partition: str, idle: bool) -> list[Any]:
        self.engine.add_partition(partition)
        self.engine.set_idle(partition, idle)
        return [*self.engine.advance(3), self.engine.behind]

    def rest(self, now: int) -> list[Any]:
        return [*self.engine.rest(now, 5), self.engine.behind]

    def advance(self) -> list[Any]:
        return list(self.engine.advance())

    def finish(self) -> list[Any]:
        return list(self.engine.finish())

    def everything(self) -> dict[str, Any]:
        """All that can be seen, as far as it is right to compare it bit by bit."""
        seen: dict[str, Any] = {
            "until": self.engine.closed_until,
            "behind": self.engine.behind,
            "marks": {name: self.engine.watermark(name) for name in self.engine.partitions},
            "idle": self.engine.partitions,
        }
        for name, model in self.engine.models.items():
            seen[name] = {
                "cells": model.cells.cells,
                "admitted": model.cells.admitted,
                "tables": {label: model.cell_table(label) for label in model.windows},
                "report": [asdict(r) for r in model.report()],
                "alerts": model.alerts,
                "counts": model.counts,
                "waiting": (model.unmatched_predictions, model.unmatched_outcomes, model.pending),
                "next": (model.next_interesting, model.last_open()),
                "counters": {
                    grouping: (table.groups, table.sums.tolist(), counters.withheld)
                    for grouping, counters in (model.counters.groupings if model.counters else {}).items()
                    for table in [counters.table(len(model.spec.task.statistics))]
                },
            }
        return seen


class Story:
    """What happens to an engine: batches over three partitions, pauses, lateness, quiet days."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._ids = 0
        self._biased = self.random.random() < 0.7
        self.values = self.random.choice([3, 8])

    def acts(self) -> list[tuple[str, tuple[Any, ...]]]:
        chosen = self.random
        acts: list[tuple[str, tuple[Any, ...]]] = []
        now = START + 20 * HOUR
        for _ in range(chosen.randrange(5, 40)):
            now += int(chosen.choice([0, 0.2, 1, 1, 3, 20, 61, 200]) * MINUTE)
            if chosen.random() < 0.03:
                now += chosen.choice([1, 5]) * 24 * HOUR
            if chosen.random() < 0.1:
                self._biased = not self._biased
            partition = f"p{min(chosen.randrange(6), 2)}"
            what = chosen.random()
            if what < 0.08:
                acts.append(("idle", (partition, chosen.random() < 0.7)))
            elif what < 0.12:
                acts += [("idle", (f"p{i}", True)) for i in range(3)]
                acts.append(("rest", (now + chosen.randrange(20) * MINUTE,)))
            elif what < 0.16:
                acts.append(("advance", ()))
            else:
                acts.append(("feed", (self._batch(now), partition)))
        return acts

    def _batch(self, now: int) -> list[Event]:
        return [e for _ in range(self.random.choice([1, 2, 5, 12])) for e in self._case(now)]

    def _case(self, now: int) -> list[Event]:
        chosen = self.random
        self._ids += chosen.random() < 0.8
        time = now + int(chosen.choice([0, 0, -1, -3, -4.5, -12, 1]) * MINUTE)
        a = min(chosen.randrange(self.values), chosen.randrange(self.values))
        attributes = {"a": f"a{a}", "b": chosen.choice([None, 0, 1])}
        p: Event = {"id": f"id-{self._ids}", "time": time, "attributes": attributes}
        o: Event = {"id": p["id"], "outcome_time": max(time, now + chosen.choice([0, 1, 4, 90]) * MINUTE)}
        if chosen.random() < 0.25:
            p, o = {**p, "model": "two"}, {**o, "model": "two"}
            p["hypothesis"], o["reference"] = chosen.choice(WORDS), chosen.choice(WORDS)
        else:
            p, o = {**p, "model": "one"}, {**o, "model": "one"}
            p["decision"] = a == 0 if self._biased else chosen.random() < 0.5
            o["outcome"] = chosen.random() < 0.7
            p |= chosen.choice([{}, {"weight": 1.3}, {"score": 1 / 3}])
        mode = chosen.choice(["together", "apart", "apart", "prediction", "outcome"])
        if mode == "together":
            return [{**p, **o}]
        known = o.pop("outcome_time") if chosen.random() < 0.5 else time
        o.pop("outcome_time", None)
        o["time"] = min(known, now)
        return {"apart": [p, o], "prediction": [p], "outcome": [o]}[mode]


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    caps=st.sampled_from([{}, {"a": 2}, {"a": 1, "b": 1}]),
    max_cells=st.sampled_from([10_000, 3]),
    least=st.sampled_from([1, 3]),
    often=st.sampled_from([0.1, 0.5, 1.0]),
    keeps_zeros=st.booleans(),
    many=st.booleans(),
)
def test_an_engine_that_is_killed_and_restored_goes_on_as_one_that_is_not(
    seed: int,
    caps: dict[str, int],
    max_cells: int,
    least: int,
    often: float,
    keeps_zeros: bool,
    many: bool,
) -> None:
    settled, story = config(caps, max_cells, least), Story(seed)
    chosen = random.Random(seed + 1)
    store = Store(keeps_zeros)
    with pytest.MonkeyPatch.context() as patch:
        if many:
            patch.setattr(cells, "MAX_EVENTS", MANY)
        undisturbed, life = Life(settled), Life(settled)
        life.engine.track()
        for name, arguments in story.acts():
            expected, found = (getattr(run, name)(*arguments) for run in (undisturbed, life))
            assert found == expected
            if chosen.random() < often:
                store.write(life.engine.changes())
                assert life.engine.changes() == NOTHING
                if chosen.random() < 0.5:
                    life = Life(settled, store.load())
                    assert life.engine.changes() == NOTHING, "what was stored is no change"
                    if chosen.random() < 0.3:
                        assert life.everything() == undisturbed.everything()
        assert life.finish() == undisturbed.finish()
        assert life.everything() == undisturbed.everything()
        store.write(life.engine.changes())
        assert Life(settled, store.load()).everything() == undisturbed.everything()


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_changes_add_up_to_what_there_is(seed: int) -> None:
    """Stored piece by piece or all at once, it is the same; and nothing that is gone stays behind."""
    settled, story = config(), Story(seed)
    pieces, whole = Life(settled), Life(settled)
    store, once = Store(), Store()
    for name, arguments in story.acts():
        for run in (pieces, whole):
            getattr(run, name)(*arguments)
        store.write(pieces.engine.changes())
    once.write(whole.engine.changes())
    for name, model in once.models.items():
        stored = store.models[name]
        assert (stored.cells, stored.documents.keys()) == (model.cells, model.documents.keys())
        for document in model.documents.keys() - {"join"}:  # the first call of a join has its own layout
            assert stored.documents[document] == model.documents[document]
        nonzero = [
            {t: {c: row for c, row in rows.items() if any(row)} for t, rows in m.tables.items()}
            for m in (stored, model)
        ]
        assert {t: r for t, r in nonzero[0].items() if r} == {t: r for t, r in nonzero[1].items() if r}
        bare = set(json.loads(stored.documents["windows"])["bare"])
        assert {t for t, rows in nonzero[0].items() if not rows} <= bare


def event(minutes: float, a: str = "x", decision: int = 1, **more: Any) -> Event:
    time = START + int(minutes * MINUTE)
    event = {"id": f"{a}-{minutes}-{decision}", "model": "one", "time": time, "decision": decision}
    return {**event, "attributes": {"a": a}, **more}


def stored(life: Life) -> EngineState:
    store = Store()
    store.write(life.engine.changes())
    return store.load()


def lived(settled: Config, hours: float = 4) -> Life:
    """X is selected, y is not, every ten minutes."""
    life = Life(settled)
    for i in range(int(hours * 6)):
        life.feed([event(10 * i, "x", 1), event(10 * i, "y", 0)])
    return life


def test_only_rows_that_changed_are_handed_out() -> None:
    life = Life(config())
    life.feed([event(0, "x"), event(0, "y"), event(1, "z")])
    life.engine.changes()
    life.feed([event(1, "y")])
    tables = life.engine.changes().models["one"].tables
    assert {name: part.cells.tolist() for name, part in tables.items()} == {
        f"open:{START // MINUTE + 1}": [2]
    }
    assert tables[f"open:{START // MINUTE + 1}"].sums[0, 0] == 1


def test_nothing_is_noted_before_tracking_begins() -> None:
    life = lived(config())
    model = life.engine.models["one"]
    assert model._log is None
    assert all(table._touched is None for table in model._open.values())
    assert stored(life).models["one"].tables.keys() >= {"all"}


def test_a_closed_step_is_written_once() -> None:
    life = lived(config())
    life.engine.changes()
    life.feed([event(250)])
    names = set(life.engine.changes().models["one"].tables)
    assert [n for n in names if n.startswith("step:3600000")] == [f"step:3600000:{START + 3 * HOUR}"]
    life.feed([event(251)])
    assert not [n for n in life.engine.changes().models["one"].tables if n.startswith("step:3600000")]


def test_windows_with_the_same_step_are_stored_once_and_dropped_when_none_needs_them() -> None:
    life, store = lived(config(), hours=8), Store()
    store.write(life.engine.changes())
    hours = [int(n.split(":")[2]) for n in store.models["one"].tables if n.startswith("step:3600000:")]
    assert sorted(hours) == [START + i * HOUR for i in range(2, 7)], "five hours, for the windows of 3 and 5"
    shorter = Life(config(windows=["3h", "all"], rules=[]), store.load())
    store.write(shorter.engine.changes())
    names = store.models["one"].tables.keys()
    kept = [int(n.split(":")[2]) for n in names if n.startswith("step:3600000:")]
    assert sorted(kept) == [START + i * HOUR for i in range(4, 7)]
    assert not any(n.startswith(("step:60000:", "step:86400000:", "filling:86400000:")) for n in names)


def test_a_new_window_begins_with_the_steps_that_are_kept() -> None:
    life = lived(config(windows=["3h", "all"], rules=[]), hours=8)
    settled = config(windows=["2h", "3h", "6h", "3d", "all"], rules=[])
    grown = Life(settled, stored(life)).engine.models["one"]
    assert grown.cell_table("6h") == grown.cell_table("3h") == life.engine.models["one"].cell_table("3h")
    assert grown.windows["6h"].end == grown.windows["3h"].end
    assert grown.cell_table("2h") == grown.cell_table("3d") == {}
    assert grown.cell_table("all") == life.engine.models["one"].cell_table("all")


def test_an_edited_rule_starts_anew_and_others_keep_their_alerts() -> None:
    life = lived(config())
    before = {a.rule.name: a.episode for a in life.engine.models["one"].alerts}
    assert {"all-rest", "3h-between"} <= before.keys()
    rules = [{**r, "tolerance": 0.3} if r["name"] == "all-rest" else r for r in RULES]
    life = Life(config(rules=rules), stored(life))
    after = {a.rule.name: a.episode for a in life.engine.models["one"].alerts}
    assert after == {name: episode for name, episode in before.items() if name != "all-rest"}
    documents = life.engine.changes().models["one"].documents
    assert list(documents) == ["rules"], "alerts of a rule that is gone are not kept"


def test_new_groupings_count_from_0_and_counters_may_be_turned_off() -> None:
    state = stored(lived(config()))
    one = Life(config(groups=["a", ["b", "a"]]), state).engine.models["one"]
    assert one.counters is not None
    assert {len(c.sums) for g, c in one.counters.groupings.items() if g in ((), ("a",))} == {1, 2}
    assert one.counters.groupings["b", "a"].sums == {}
    without = Life(config(), state, counters=False)
    assert without.engine.models["one"].counters is None
    assert (
        "counters"
        not in without.engine.changes().models.get("one", ModelChanges(0, (), {}, (), {})).documents
    )


def test_counters_beyond_64_bits_come_back() -> None:
    life = lived(config())
    counters = life.engine.models["one"].counters
    assert counters is not None
    everybody = counters.groupings[()]
    everybody.sums[()] = everybody.sums[()].astype(np.object_) * 2**70
    again = Life(config(), stored(life)).engine.models["one"].counters
    assert again is not None
    assert again.groupings[()].sums[()].tolist() == everybody.sums[()].tolist()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"task": {"type": "binary", "score": {"range": (0, 1), "bins": 5}}},
            "the task or one of its options",
        ),
        ({"weights": {"bound": 40.0}}, "the task or one of its options"),
        ({"groups": ["a"], "gaps": []}, "the list of attributes"),
        ({"join": {"outcome_ttl": "21m", "outcome_wait": "10m"}}, "join.outcome_ttl or join.outcome_wait"),
    ],
)
def test_sums_that_mean_something_else_are_refused(change: dict[str, Any], why: str) -> None:
    state = stored(lived(config()))
    with pytest.raises(ValueError, match=f"model one: {why} changed since its state was stored") as error:
        Life(config(**change), state)
    assert "start with an empty state directory" in str(error.value)


def test_another_time_bucket_is_refused() -> None:
    state = stored(lived(config()))
    document = config().model_dump(exclude_unset=True)
    document["time"]["bucket"] = "30s"
    with pytest.raises(ValueError, match=r"time\.bucket changed"):
        Life(Config.model_validate(document), state)


def test_a_model_that_is_new_starts_empty() -> None:
    state = stored(lived(config()))
    state = replace(state, models={"one": state.models["one"]})
    life = Life(config(), state)
    assert life.engine.models["two"].cell_table("all") == {}
    assert set(life.engine.changes().models) == {"two"}


def test_a_restored_engine_that_was_never_fed_is_a_fresh_one() -> None:
    life = Life(config(), EngineState(None, {}))
    assert life.everything() == Life(config()).everything()


def test_candidates_that_found_no_room_still_count() -> None:
    """Values that no cell has take a candidate's place; forgetting them would make room for others."""
    found = cells.CellDictionary([cells.AttributeCap("a", 3)], max_cells=1)
    for i in range(30):
        found.intern((f"v{i}",))
    again = cells.CellDictionary([cells.AttributeCap("a", 3)], max_cells=1)
    again.restore(found.cells, json.loads(json.dumps(found.snapshot())))
    assert again._values == found._values
    assert again.snapshot() == found.snapshot()


def test_an_admitted_cell_is_counted_in_itself() -> None:
    """A cell that was folded in one time bucket, and admitted in a later one for what is folded into it."""
    found = cells.CellDictionary([cells.AttributeCap("a", 2), cells.AttributeCap("b", 1)], max_cells=100)

    def close(counts: dict[Cell, int]) -> None:
        numbers = [found.intern(values) for values in counts]
        found.admit(np.array(numbers), np.array(list(counts.values())))

    found.intern(("rare", "junk"))
    close({("big", "x"): 10_000})
    close({("rare", "other"): 1, ("rarer", "x"): 1, ("big", "x"): 10_000})
    rare = found.intern(("rare", "other"))
    assert found.cells[found.folded_to[rare]] == ("other", "other")
    close({("rare", "junk"): 5})
    assert found.folded_to[found.intern(("rare", "junk"))] == rare
    assert found.folded_to[rare] == rare


def test_a_table_may_go_and_come_again_between_two_calls() -> None:
    log, table = TableLog(), CellTable(2, 2)
    part = CellSums(np.array([1]), np.array([[1, 2]]))
    log.put("t", part)
    assert log.take()[0]["t"] is part
    log.put("t", part.merge(CellSums(np.array([4]), np.array([[0, 0]]))))
    log.put("t", part.merge(CellSums(np.array([0, 3]), np.array([[5, 6], [7, 8]]))))
    rows = log.take()[0]["t"]
    assert (rows.cells.tolist(), rows.sums.tolist()) == ([0, 3], [[5, 6], [7, 8]])
    log.put("t", part.merge(CellSums(np.array([0, 1, 3]), np.array([[5, 6], [0, 1], [7, 8]]))))
    assert log.take()[0]["t"].cells.tolist() == [1]
    log.drop("t")
    log.put("t", part)
    tables, dropped = log.take()
    assert (list(tables), dropped) == (["t"], ["t"])
    log.drop("t")
    log.put("u", part)
    log.drop("u")
    assert log.take() == ({}, ["t"]), "u came and went"
    table.track()
    table.include(part)
    log.note("v", table)
    assert log.take()[0]["v"].sums.tolist() == [[1, 2]]
    table.include(part, -1)
    log.note("v", table)
    assert log.take()[0]["v"].sums.tolist() == [[0, 0]]
    assert log.bare == {"v"}


def test_sums_of_pythons_integers_come_back_into_any_table() -> None:
    """A part may hold larger sums than the number of its events says."""
    table = CellTable(2, 3)
    table.include(CellSums(np.array([1]), np.array([[1, 1, 2**70]], np.object_)))
    table.include(CellSums(np.array([0, 1]), np.array([[1, 0, 5], [0, 0, 1]])))
    assert table.sums[:2].tolist() == [[1, 0, 5], [1, 1, 2**70 + 1]]
