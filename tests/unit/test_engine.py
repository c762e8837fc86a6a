"""The engine: time buckets, watermarks, lateness, quiet stretches, several models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from monitor.cells import CellSums
from monitor.config import Config
from monitor.records import RecordBatch
from monitor.windows import Window
from monitor.wiring import build_decoders, build_engine
from tests.engine_helpers import HOUR, LONG_AFTER, MINUTE, START, Event, Run, config_of, encode

RULE = {
    "metric": "selection_rate",
    "groups": "sex",
    "comparison": "reference",
    "reference": {"sex": "a"},
    "tolerance": 0.2,
    "window": "5m",
}


def config(time: dict[str, Any] | None = None, **changes: Any) -> Config:
    model = {
        "task": "binary",
        "groups": ["sex"],
        "windows": ["5m", "3h", "all"],
        "min_support": 1,
        "join": {"outcome_ttl": "20m", "outcome_wait": "10m", "dedupe_window": "1h"},
        **changes,
    }
    return config_of(
        model, time={"bucket": "1m", "grace": "2m", **(time or {})}, privacy={"min_group_size": 1}
    )


def event(minutes: float, sex: str = "a", decision: int = 1, **more: Any) -> Event:
    time = START + int(minutes * MINUTE)
    return {
        "id": f"{sex}-{minutes}-{decision}",
        "time": time,
        "decision": decision,
        "attributes": {"sex": sex},
        **more,
    }


def selected(run: Run, window: str = "all") -> int:
    """Predictions in a window's cell table."""
    return sum(row[0] for row in run.model.cell_table(window).values())


def step(run: Run, events: list[Event], partition: str = "p") -> list[int]:
    """Records that are late."""
    decoder = build_decoders(run.config, run.engine)["events"]
    decoded = decoder.decode(RecordBatch(partition, encode(events), range(len(events)), LONG_AFTER))
    assert not decoded.rejects
    late: list[int] = run.engine.step(partition, decoded.batches).tolist()
    run.engine.advance()
    return late


def test_a_bucket_closes_when_the_watermark_has_passed_it() -> None:
    run = Run(config())
    run.feed([event(0), event(0.9)])
    run.feed([event(2.99)])
    assert selected(run) == 0
    run.feed([event(3)])
    assert run.engine.watermark("p") == START + MINUTE
    assert selected(run) == 2
    assert selected(run.finish()) == 4


def test_buckets_close_on_the_smallest_watermark() -> None:
    run = Run(config(), ["p", "q"])
    run.feed([event(0)], "p")
    run.feed([event(30)], "p")
    assert selected(run) == 0, "q has not been heard of"
    run.feed([event(1)], "q")
    assert selected(run) == 0
    run.feed([event(10)], "q")
    assert selected(run) == 2
    run.end("q")
    run.feed([event(31)], "p")
    assert selected(run) == 3


def test_late_is_judged_by_the_own_partition() -> None:
    run = Run(config(), ["p", "q"])
    assert step(run, [event(30)], "p") == []
    assert step(run, [event(0), event(5), event(2.5)], "q") == [2]
    assert step(run, [event(3)], "q") == []
    assert step(run, [event(27), event(28)], "p") == [0]


def test_late_within_a_batch_goes_by_what_came_before() -> None:
    run = Run(config())
    # the bucket of minute 1 ended at 2, the watermark is 4 - 2 = 2
    assert step(run, [event(1), event(4), event(1.5), event(2)]) == [2]


def test_a_partition_that_comes_back_is_late_for_what_has_closed() -> None:
    run = Run(config(), ["p", "q"])
    step(run, [event(0)], "q")
    run.engine.set_idle("q")
    step(run, [event(30)], "p")
    run.engine.set_idle("q", False)
    assert step(run, [event(27.5), event(28)], "q") == [0]


def test_late_events_count_nowhere() -> None:
    run = Run(config())
    step(run, [event(0), event(30)])
    before = run.model.cell_table("all")
    step(run, [event(1), event(1, decision=0)])
    assert run.model.cell_table("all") == before
    assert selected(run.finish()) == 2


def test_an_event_before_the_first_is_not_lost_while_it_is_within_grace() -> None:
    run = Run(config())
    run.feed([event(2)])
    run.feed([event(0.5)])
    assert selected(run.finish()) == 2


def test_windows_slide_over_quiet_stretches() -> None:
    run = Run(config())
    run.feed([event(0)])
    run.feed([event(7.5)])  # closes up to minute 5
    assert selected(run, "5m") == 1
    run.feed([event(8.5)])  # up to 6
    assert selected(run, "5m") == 0
    run.feed([event(63)])
    assert (selected(run, "5m"), selected(run, "3h"), selected(run, "all")) == (0, 3, 3)
    run.feed([event(5 * 60)])
    assert (selected(run, "3h"), selected(run, "all")) == (1, 4)


def test_the_end_of_a_window_is_the_last_time_that_closed() -> None:
    run = Run(config())
    run.feed([event(0)])
    run.feed([event(100)])
    (short, _, whole) = run.model.report()
    assert whole.end == START + 98 * MINUTE
    assert (short.start, short.end) == (START + 93 * MINUTE, START + 98 * MINUTE)


def test_the_end_does_not_depend_on_how_many_partitions_the_events_came_in() -> None:
    """An outcome without a prediction is an event of its time like others."""
    outcome = {"id": "nobody", "time": START + 40 * MINUTE, "outcome": 1}
    one, two = Run(config()), Run(config(), ["p", "q"])
    one.feed([event(0), event(15), outcome])
    two.feed([outcome], "q")
    two.end("q")
    two.feed([event(0), event(15)], "p")
    assert one.finish().everything() == two.finish().everything()


def test_expired_predictions_count_when_their_wait_ends() -> None:
    run = Run(config())
    run.feed([event(0.5)])
    run.feed([event(22.9)])
    assert [row[2] for row in run.model.cell_table("all").values()] == [0]
    run.feed([event(23)])  # closes the minute that holds 20.5
    assert [row[2] for row in run.model.cell_table("all").values()] == [1]
    assert run.model.counts.expired_predictions == 1


def test_a_pair_counts_when_both_are_known() -> None:
    run = Run(config())
    run.feed([event(0), {"id": "a-0-1", "time": START + 3 * MINUTE, "outcome": 1}])
    run.feed([event(5)])
    assert [row[:2] for row in run.model.cell_table("all").values()] == [(1, 0)]
    run.feed([event(6)])
    assert [row[:2] for row in run.model.cell_table("all").values()] == [(1, 1)]


def test_rules_are_looked_at_as_each_bucket_closes() -> None:
    run = Run(config(rules=[{**RULE, "for": 3}]))
    events = [event(m + d / 10, s, int(s == "a" or m >= 30)) for m in range(60) for s in "ab" for d in (1, 2)]
    for e in events:
        e["id"] += str(events.index(e))
        run.feed([e])
    run.finish()
    states = [((at - START) // MINUTE, state) for at, _, state in run.transitions]
    # at 34 the window holds 29..33: one bucket of five with a gap of 1 makes 0.2, no more than tolerated
    assert states == [(1, "pending"), (3, "firing"), (34, "resolved")]


def test_rules_over_quiet_stretches_count_every_bucket() -> None:
    run = Run(config(rules=[{**RULE, "for": 4, "window": "all"}]))
    run.feed([event(0, "a", 1), event(0, "b", 0)])
    run.feed([event(30, "a", 1)])
    assert [((at - START) // MINUTE, state) for at, _, state in run.transitions] == [
        (1, "pending"),
        (4, "firing"),
    ]


def test_a_pending_alert_ends_when_its_window_runs_empty() -> None:
    run = Run(config(rules=[{**RULE, "for": 20}]))
    run.feed([event(0, "a", 1), event(0, "b", 0)])
    run.feed([event(60, "a", 1)])
    assert [state for _, _, state in run.transitions] == ["pending"]
    assert run.model.alerts == []


def test_a_firing_alert_stays_when_its_window_runs_empty() -> None:
    run = Run(config(rules=[RULE]))
    run.feed([event(0, "a", 1), event(0, "b", 0)])
    run.feed([event(60, "a", 1)])
    (alert,) = run.model.alerts
    assert (str(alert.state), alert.value) == ("firing", -1.0)


def test_models_share_time_and_nothing_else() -> None:
    plain = config().model_dump(exclude_unset=True)
    two = Config.model_validate({**plain, "models": {"m": plain["models"]["m"], "n": plain["models"]["m"]}})
    engine = build_engine(two)
    engine.add_partition("p")
    decoder = build_decoders(two, engine)["events"]

    def feed(*events: Event) -> list[int]:
        decoded = decoder.decode(RecordBatch("p", encode(events), range(len(events)), LONG_AFTER))
        assert not decoded.rejects
        late: list[int] = engine.step("p", decoded.batches).tolist()
        engine.advance()
        return late

    assert feed({**event(0), "model": "m"}, {**event(0), "model": "n"}, {**event(10), "model": "n"}) == []
    # minute 10 of n made minute 0 late, for m too; and one record in the middle is late only there
    assert feed({**event(1), "model": "m"}, {**event(11), "model": "m"}, {**event(9), "model": "n"}) == [0]
    engine.finish()
    for name, expected in (("m", 2), ("n", 3)):
        assert sum(row[0] for row in engine.models[name].cell_table("all").values()) == expected
        assert engine.models[name].unmatched_predictions == expected


def test_a_closed_bucket_stays_closed() -> None:
    """A joined event may know its outcome long before its prediction; nothing that closed may change."""
    run = Run(config())
    pair = event(0, outcome=1, outcome_time=START + 2 * MINUTE)
    run.feed([{**pair, "id": "x"}])
    run.feed([event(10)])
    before = run.model.cell_table("all")
    run.feed([{**event(8.5, outcome=0), "id": "x", "outcome_time": START + MINUTE}])
    run.feed([event(11)])
    after = run.model.cell_table("all")
    blocks = [s.block for s in run.model.spec.task.statistics]
    for cell, row in before.items():
        for block, old, new in zip(blocks, row, after[cell], strict=True):
            assert block == "prediction" or old == new


def test_a_window_holds_whole_steps() -> None:
    """A 3h window slides by the hour: the hour that has begun is not in it until the events end."""
    run = Run(config())
    run.feed([event(m) for m in range(90)])
    assert selected(run, "all") == 87
    assert selected(run, "3h") == 60
    run.finish()
    assert selected(run, "all") == 90
    assert selected(run, "3h") == 90
    assert {r.window: r.end for r in run.model.report()}["3h"] == START + 90 * MINUTE


def test_nothing_at_all() -> None:
    run = Run(config())
    run.finish()
    assert run.model.cell_table("all") == {}
    assert [(r.end, list(r.groups)) for r in run.model.report()] == [(None, [])] * 3


def test_steps_without_events_change_nothing() -> None:
    run = Run(config())
    assert run.engine.step("p", {}).dtype == np.int64
    assert run.engine.advance() == []


@pytest.mark.parametrize("hours", [1, 24, 24 * 365])
def test_long_silences_cost_no_more_than_short_ones(hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine visits the buckets in which something changes, and no others."""
    visited: list[int] = []
    close = Window.close

    def counting(window: Window, start: int, end: int, closed: CellSums | None) -> bool:
        visited.append(start)
        return close(window, start, end, closed)

    monkeypatch.setattr(Window, "close", counting)
    run = Run(config(rules=[RULE]))
    run.feed([event(0)])
    run.feed([{**event(0), "id": "later", "time": START + hours * HOUR}])
    run.finish()
    assert len(visited) <= 3 * 10


def test_a_closed_time_bucket_is_not_opened_again() -> None:
    run = Run(config(time={"grace": "1m"}))
    pair = {"id": "x", "decision": 1, "attributes": {"sex": "a"}}
    run.feed([{**pair, "time": START + 50 * MINUTE}])
    run.feed([{"id": "x", "time": START + 51 * MINUTE, "outcome": 1}])
    run.feed([event(70), event(72.5)])
    run.feed([{**pair, "time": START + 73 * MINUTE, "outcome": 1, "outcome_time": START + 74 * MINUTE}])
    for minutes in (80, 121.5, 241.5):
        run.feed([event(minutes)])
    assert selected(run, "3h") == 4
