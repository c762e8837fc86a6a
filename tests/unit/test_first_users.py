"""What the first users of a version stumbled over, so that nobody does again."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.alerts import name_group
from monitor.errors import MonitorError
from monitor.inspection import inspect_input
from monitor.names import clean
from monitor.paths import FieldsConfig
from monitor.sources.files import FileInput, read_batches
from monitor.tasks.base import Field
from tests.engine_helpers import HOUR, LONG_AFTER, MINUTE, START, Event, Run, config_of

MODEL = {"task": "binary", "groups": ["sex"], "windows": ["all"], "min_support": 1}
PUBLIC = {"min_group_size": 1}


def pair(minute: float, sex: str, decision: int, outcome: int, delay: float = 0) -> Event:
    time = START + int(minute * MINUTE)
    known = time + int(delay * MINUTE)
    event = {"time": time, "outcome_time": known, "attributes": {"sex": sex}}
    return {**event, "decision": decision, "outcome": outcome}


def test_outcomes_far_ahead_take_little_memory_and_count_the_same() -> None:
    """A pair counts at its outcome's time; a joined event may state one that is a month away."""
    join = {"outcome_ttl": "60d"}
    near, far = (Run(config_of({**MODEL, "join": join}, privacy=PUBLIC)) for _ in range(2))
    for i in range(300):
        near.feed([pair(i, "fm"[i % 2], i % 3 == 0, i % 5 == 0)])
        far.feed([pair(i, "fm"[i % 2], i % 3 == 0, i % 5 == 0, delay=100 * i)])
    held = len(far.model._open)
    near.finish()
    far.finish()
    assert held < 80, "time buckets that are far ahead are not held as tables of all cells"
    for (group, metric), row in near.rows().items():
        if metric != "outcome_delay_seconds":
            assert far.rows()[group, metric] == row


def test_the_ratio_furthest_from_one_is_the_worst() -> None:
    rule = {"metric": "equalized_odds_ratio", "groups": "sex", "comparison": "reference"}
    rule |= {"reference": {"sex": "m"}, "tolerance": 0.8, "window": "all"}
    run = Run(config_of({**MODEL, "rules": [rule]}, privacy=PUBLIC))
    events = []
    for sex, false_positives in (("m", 10), ("f", 50)):
        events += [pair(0, sex, 1, 1) for _ in range(90)] + [pair(0, sex, 0, 1) for _ in range(10)]
        events += [pair(0, sex, 1, 0) for _ in range(false_positives)]
        events += [pair(0, sex, 0, 0) for _ in range(100 - false_positives)]
    run.feed(events)
    run.finish()
    assert [state for _, _, state in run.transitions] == ["pending", "firing"], "5 is beyond 1 / 0.8"


def test_a_long_window_counts_its_own_steps() -> None:
    """24 hours slide by the hour: three times in a row are three hours, not three minutes."""
    rule = {"metric": "selection_rate", "groups": "sex", "tolerance": 0.5, "window": "24h", "for": 3}
    run = Run(config_of({**MODEL, "rules": [rule]}, privacy=PUBLIC))
    run.feed([pair(m, sex, sex == "f", 0) for m in range(5) for sex in "fm"])
    for hour in range(1, 7):
        run.feed([pair(hour * 60 + 5, sex, sex == "f", 0) for sex in "fm"])
    fired = {state: at for at, _, state in run.transitions}
    assert fired["pending"] == START + HOUR
    assert fired["firing"] == START + 3 * HOUR


def test_a_joined_event_repeats_a_pair_whole_or_not_at_all() -> None:
    first, second = pair(98, "f", 1, 1, delay=25), pair(61, "f", 0, 1)
    runs = []
    for order in ([first, second], [second, first]):
        run = Run(config_of(MODEL, privacy=PUBLIC, time={"grace": "60m"}))
        for event in order:
            run.feed([{**event, "id": "i"}])
        run.finish()
        runs.append(run.everything())
    assert runs[0] == runs[1]


def test_a_file_of_all_three_kinds_of_events_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = []
    for i in range(60):
        base = f'"id": "p{i}", "time": "2026-03-01T09:30:{i:02}Z"'
        attributes = '"attributes": {"accent": "scottish"}'
        if i % 2:
            lines.append(f'{{{base}, {attributes}, "decision": true, "outcome": false}}')
        else:
            lines.append(f'{{{base}, {attributes}, "decision": false}}')
            lines.append(f'{{{base}, "outcome": true}}')
    path.write_text("\n".join(lines))
    found = inspect_input(FileInput(str(path), "events"), sample=1000, now_ms=lambda: LONG_AFTER)
    assert (found.read, found.accepted) == (90, 90)


@pytest.mark.parametrize("value", ["\x1b[31mred", "a\nb", "\u202eabc"])
def test_values_of_events_cannot_steer_a_terminal(value: str) -> None:
    assert clean(value).isprintable()
    assert name_group({"sex": value}).isprintable()


@pytest.mark.parametrize(("twice", "ends"), [("decision", True), ("note", False)])
def test_a_column_that_comes_twice(twice: str, ends: bool, tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(f"id,time,decision,{twice},note\n1,2024-01-01,1,0,x\n")
    fields = {"binary": Field("decision", "prediction", "flag", "")}
    batches = read_batches(
        FileInput(str(path), "events"),
        FieldsConfig(),
        {f.name: f for f in fields.values()},
        max_record_bytes=1000,
        now_ms=lambda: LONG_AFTER,
    )
    if ends:
        with pytest.raises(MonitorError, match="'decision' more than once"):
            list(batches)
    else:
        assert len(list(batches)) == 1
