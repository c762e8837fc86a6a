"""The demo: what its summary says, that it says the same each time, and that its files replay."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from monitor import demo
from monitor.config_file import load_config, parse_config
from monitor.errors import MonitorError
from monitor.replay import replay
from monitor.sinks.dead_letter import DeadLetters
from monitor.sources.files import FileInput

END_MS = 1_790_000_000_000  # 2026-09-21T14:13:20Z
OPENED = "2026-09-21T11:13:00Z"


def console(*, terminal: bool = False, width: int = 100, height: int = 30, **more: object) -> Console:
    settings = {"color_system": None, "legacy_windows": False, "_environ": {"TERM": "xterm"}, **more}
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, height=height, **settings)


def text(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def never(seconds: float) -> None:
    raise AssertionError("nothing waits where nobody watches")


def interrupted_after(waits: int) -> Callable[[float], None]:
    left = [waits]

    def sleep(seconds: float) -> None:
        assert seconds >= 0
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    return sleep


def fact(summary: str, label: str) -> str:
    """One row of the summary, its lines joined."""
    match = re.search(rf"^{label} +(.*(?:\n {{4,}}.*)*)", summary, re.MULTILINE)
    assert match is not None, f"the summary has no {label}"
    return " ".join(match[1].split())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("demo") / "new" / "files"
    screen = console()
    demo.run(console=screen, exit_at_end=True, out=out, now_ms=END_MS, sleep=never)
    return text(screen), out


def test_the_summary_names_the_gap_the_groups_and_the_times(plain: tuple[str, Path]) -> None:
    summary = plain[0].partition("What the monitor saw")[2]
    assert "word error rate" in fact(summary, "Gap")
    assert fact(summary, "Groups") == "accent = scottish to accent = southern english"
    assert fact(summary, "Window").startswith("30m, 11:")
    assert "tolerance 6.0 points" in fact(summary, "Value")
    assert fact(summary, "Opened").startswith(OPENED)
    fired = re.match(r"(2026-09-21T1\d:\d\d:00Z), (\d+)m later; reported by ", fact(summary, "Fired"))
    assert fired is not None
    assert fired[1] > OPENED
    assert 3 <= int(fired[2]) <= 45
    assert "ward-7" in fact(summary, "Where").partition("%")[0]
    for reason in ("invalid_json", "invalid_utf8", "late", "missing_field", "wrong_type"):
        assert re.search(rf"{reason} [1-9]", fact(summary, "Events"))
    assert "by chance" in fact(summary, "Note")
    for command in ("replay", "inspect", "check-config"):
        assert f"fairness-monitor {command}" in summary.partition("What to try next")[2]


def test_the_rule_is_silent_before_the_scanner_and_pending_before_it_fires(plain: tuple[str, Path]) -> None:
    before, _, after = plain[0].partition("11:13 UTC  gap")
    assert "no alert" in before
    assert not re.search("PENDING|FIRING", before)
    assert after.index("PENDING") < after.index("FIRING")
    assert "Chance" not in after


def test_nothing_is_called_fair(plain: tuple[str, Path]) -> None:
    assert not re.search(r"\b(un)?fair(ly|er|est)?\b", plain[0], re.IGNORECASE)


def test_the_same_seed_gives_the_same_output(plain: tuple[str, Path]) -> None:
    again = console()
    demo.run(console=again, now_ms=END_MS, sleep=never)
    folder = str(plain[1])
    told, repeated = plain[0].partition("What to try next"), text(again).partition("What to try next")
    assert repeated[0] == told[0]
    assert folder in told[2]


def test_another_seed_gives_other_events() -> None:
    first, second = console(), console()
    demo.run(console=first, seed=1, now_ms=END_MS)
    demo.run(console=second, seed=2, now_ms=END_MS)
    assert text(first) != text(second)
    assert "FIRING" in text(first)
    assert "FIRING" in text(second)


def test_its_files_replay_to_the_same_alert(plain: tuple[str, Path]) -> None:
    summary, out = plain
    letters = DeadLetters(None)
    result = replay(
        load_config(out / "demo.yaml"),
        [FileInput(str(out / "events.jsonl"), "events")],
        now_ms=lambda: END_MS,
        dead_letters=letters,
    )
    document = result.document()
    assert [a["state"] for a in document["alerts"]] == ["firing"]
    assert document["alerts"][0]["firing_since"] == fact(summary, "Fired").partition(",")[0]
    events = fact(summary, "Events")
    for name in ("read", "accepted", "joined", "rejected", "duplicates"):
        assert f"{name} {document['events'][name]:,}" in events
    for reason, count in document["rejects"].items():
        assert f"{reason} {count}" in events


def test_the_terminal_shows_the_alert_clearly_and_leaves_with_the_same_summary(
    plain: tuple[str, Path],
) -> None:
    screen = console(terminal=True)
    demo.run(console=screen, now_ms=END_MS, sleep=interrupted_after(400))
    shown, _, summary = text(screen).partition("What the monitor saw")
    assert shown.index("no alert") < shown.index(" PENDING ") < shown.index(" FIRING ")
    assert "scanner" not in shown  # it is named only afterwards
    assert "The six hours are over" in shown
    told = plain[0].partition("What the monitor saw")[2]
    assert summary.partition("What to try next")[0] == told.partition("What to try next")[0]


def test_the_terminal_leaves_by_itself_when_told() -> None:
    waits: list[float] = []
    screen = console(terminal=True)
    demo.run(console=screen, exit_at_end=True, speed=1e6, now_ms=END_MS, sleep=waits.append)
    assert len(waits) == 361
    assert "six hours are over" not in text(screen)
    assert fact(text(screen), "Opened").startswith(OPENED)


@pytest.mark.parametrize(("minutes", "what"), [(0, "before anything happened"), (185, "has not fired since")])
def test_an_early_interrupt_says_how_far_it_came(minutes: int, what: str) -> None:
    screen = console(terminal=True)
    demo.run(console=screen, now_ms=END_MS, sleep=interrupted_after(minutes))
    summary = text(screen).partition("What the monitor saw")[2]
    assert what in fact(summary, "Rule")
    assert "What to try next" in summary


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60)])
def test_every_line_fits_the_screen(width: int, height: int) -> None:
    screen = console(terminal=True, width=width, height=height)
    demo.run(console=screen, now_ms=END_MS, sleep=interrupted_after(300))
    frame = text(screen).rpartition("╭")[2].partition("╯")[0]
    assert frame.count("\n") < height
    assert "Ctrl-C" in frame
    assert " FIRING " in frame
    assert "…" not in frame
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", text(screen)).splitlines()
    assert max(map(len, lines)) <= width


def test_an_ascii_console_gets_ascii() -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii", write_through=True) as file:
        screen = Console(file=file, force_terminal=True, width=80, height=24, legacy_windows=False)
        demo.run(console=screen, exit_at_end=True, now_ms=END_MS, sleep=lambda seconds: None)
        assert b"FIRING" in raw.getvalue()


def test_the_configuration_is_valid() -> None:
    assert list(parse_config(demo.CONFIG).models) == ["transcription"]


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(speed: float) -> None:
    with pytest.raises(MonitorError, match="speed must be above 0"):
        demo.run(console=console(), speed=speed)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(MonitorError, match="seed"):
        demo.run(console=console(), seed=-1)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MonitorError, match="cannot write to"):
        demo.run(console=console(), out=tmp_path / "file")
