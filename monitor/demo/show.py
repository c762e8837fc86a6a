"""The demo from its first event to its summary."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from math import isfinite
from pathlib import Path
from shlex import quote
from shutil import which

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from monitor.alerts import AlertState, name_group
from monitor.clock import format_duration
from monitor.demo.hospital import ACCENTS, MINUTE_MS, MINUTES, WARD, Hospital
from monitor.demo.screen import STYLES, Plain, chart, clock, marks, points, sides, view
from monitor.demo.watch import CONFIG, Moment, Monitor
from monitor.errors import MonitorError
from monitor.times import format_time

SHOW_SECONDS = 34.0
"""Wall time of the whole show in a terminal at speed 1."""
_REPORT_MINUTES = 30
_WINDOW_MS = 30 * MINUTE_MS
"""The rule's window."""
_IDLE_SECONDS = 0.25


def run(
    *,
    console: Console,
    exit_at_end: bool = False,
    seed: int = 7,
    speed: float = 1.0,
    out: Path | None = None,
    now_ms: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Play the demo on a console and print its summary.

    In a terminal six simulated hours are played in about 34 seconds, and the screen stays until
    Ctrl-C. Elsewhere they run as fast as they can, with a line for every half hour, and it ends.

    Parameters
    ----------
    console
        Where to show it.
    exit_at_end
        Do not stay when the simulated hours are over.
    seed
        Of the traffic, at least 0: the same seed gives the same events, values and delays.
    speed
        Times the usual pace, above 0; 2 takes half as long. Without a terminal it means nothing.
    out
        Directory for the configuration (``demo.yaml``) and the raw events (``events.jsonl``), which
        ``replay`` takes. They are overwritten.
    now_ms
        When the simulated hours end, to the minute; by default five minutes ago.
    sleep
        Waits for some seconds.

    Raises
    ------
    MonitorError
        When an argument cannot be used, or ``out`` cannot be written.
    """
    if not (isfinite(speed) and speed > 0):
        raise MonitorError(f"the speed must be above 0, not {speed:g}; 2 is twice as fast as 1")
    if seed < 0:
        raise MonitorError(f"the seed must be at least 0, not {seed}")
    end = time.time_ns() // 1_000_000 - 5 * MINUTE_MS if now_ms is None else now_ms
    start = end // MINUTE_MS * MINUTE_MS - MINUTES * MINUTE_MS
    if out is not None:
        _prepare(out)
    monitor = Monitor(start, out)
    steps = _play(monitor, Hospital(seed, start))
    fit = Plain if console.options.ascii_only else _as_it_is
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            _show(monitor, steps, console, fit, SHOW_SECONDS / MINUTES / speed, exit_at_end, sleep)
        else:
            _tell(monitor, steps, console, fit)
    except KeyboardInterrupt:
        pass
    console.print(fit(summary(monitor, min(console.width, 110), out)), highlight=False)


def _as_it_is(renderable: RenderableType) -> RenderableType:
    return renderable


def _prepare(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "demo.yaml").write_text(CONFIG, encoding="utf-8")
        (out / "events.jsonl").write_bytes(b"")
    except OSError as error:
        raise MonitorError(f"cannot write to {out}: {error.strerror or error}; name a directory") from error


def _play(monitor: Monitor, hospital: Hospital) -> Iterator[list[Moment]]:
    """Minute by minute what the rule did."""
    for minute in range(MINUTES):
        yield monitor.take(hospital.minute(minute), monitor.start + (minute + 1) * MINUTE_MS)
    yield monitor.finish()


def _show(
    monitor: Monitor,
    steps: Iterator[list[Moment]],
    console: Console,
    fit: Callable[[RenderableType], RenderableType],
    pace: float,
    exit_at_end: bool,
    sleep: Callable[[float], None],
) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        due = time.monotonic()
        for _ in steps:
            live.update(fit(view(monitor, console, over=False)), refresh=True)
            due += pace
            sleep(max(0.0, due - time.monotonic()))
        while not exit_at_end:
            live.update(fit(view(monitor, console, over=True)), refresh=True)
            sleep(_IDLE_SECONDS)


def _tell(
    monitor: Monitor,
    steps: Iterator[list[Moment]],
    console: Console,
    fit: Callable[[RenderableType], RenderableType],
) -> None:
    console.print("a hospital's transcription service, six simulated hours", highlight=False)
    for moments in steps:
        for moment in moments:
            told = f"{clock(moment.clock)} UTC  {moment.state.upper():8}  {sides(moment.groups)}"
            line = Text(f"{told}, gap {points(moment.value)}", STYLES[moment.state])
            console.print(fit(line), highlight=False, soft_wrap=True)
        elapsed = (monitor.clock - monitor.start) // MINUTE_MS
        if elapsed % _REPORT_MINUTES == 0 and elapsed < MINUTES:
            state = monitor.alert.state if monitor.alert else "no alert"
            counts = ", ".join(f"{name} {n:,}" for name, n in monitor.counts.items())
            told = f"{clock(monitor.clock)} UTC  gap {points(monitor.seen.gap.value)}, {state}; {counts}"
            console.print(fit(Text(told)), highlight=False, soft_wrap=True)


# the summary ---------------------------------------------------------------------------------------


def summary(monitor: Monitor, width: int, out: Path | None) -> RenderableType:
    """What happened: the gap, its groups, its window and values, when it opened, when the rule fired."""
    fired = next((m for m in monitor.moments if m.state is AlertState.FIRING and m.at > monitor.opened), None)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, fact in _facts(monitor, fired):
        facts.add_row(label, fact)
    parts: list[RenderableType] = [Text(), Text("What the monitor saw", "bold underline"), facts, Text()]
    if monitor.clock > monitor.opened:
        parts += [Text("The gap over time, in points, and its tolerance", "bold"), *chart(monitor, width, 5)]
        scanner = (monitor.opened, f"new scanner {clock(monitor.opened)}")
        alert = None if fired is None else (fired.at, f"the rule fired {clock(fired.at)}")
        parts += [marks(monitor, width, scanner, alert), Text()]
    return Group(*parts, Text("What to try next", "bold underline"), *_commands(width, out))


def _program() -> str:
    """How the reader can run the command: by its name, or by its path where it is not on the PATH."""
    name = "fairness-monitor"
    ran = Path(sys.argv[0])
    return name if ran.name != name or which(name) else os.path.relpath(ran)


def _commands(width: int, out: Path | None) -> Iterator[Text]:
    steps = [(f"{_program()} {command}", what) for command, what in _next_steps(out)]
    longest = max(len(command) for command, _ in steps)
    beside = longest + 2 + max(len(what) for _, what in steps) <= width
    for command, what in steps:
        space = " " * (longest + 2 - len(command)) if beside else "\n    "
        yield Text.assemble((command, "cyan"), (f"{space}{what}", "dim"), overflow="fold")


def _facts(monitor: Monitor, fired: Moment | None) -> Iterator[tuple[str, str]]:
    rule = monitor.rule
    tolerance = f"tolerance {points(rule.tolerance)}"
    before = [m for m in monitor.moments if m.state is AlertState.FIRING and m.at <= monitor.opened]
    metric = f"{rule.gap.name.replace('_', ' ')}, {rule.gap.kind} between accents"
    if fired is None:
        yield "Gap", f"{metric}: {points(monitor.seen.gap.value)} at the end, {tolerance}"
        stopped = f"The show ended at {clock(monitor.clock)} UTC of its simulated time"
        if monitor.clock <= monitor.opened:
            yield "Rule", f"{stopped}, before anything happened."
        else:
            yield "Opened", _opened(monitor)
            yield "Rule", f"{stopped}; the rule has not fired since the scanner came."
    else:
        yield "Gap", metric
        yield "Groups", " to ".join(name_group(g) for g in fired.groups)
        yield (
            "Window",
            f"{rule.window}, {clock(fired.at - _WINDOW_MS)} to {clock(fired.at)} UTC when the rule fired",
        )
        values = [v for at, v in monitor.history.items() if v is not None and at >= monitor.opened]
        worst = f"{points(max(values))} at its worst, {points(monitor.seen.gap.value)} at the end"
        yield "Value", f"{points(fired.value)} ({fired.value:.4f}) when the rule fired, {tolerance}; {worst}"
        earlier = [v for at, v in monitor.history.items() if v is not None and at <= monitor.opened]
        yield "Before", f"at most {points(max(earlier))} in the hours before the scanner"
        yield "Opened", _opened(monitor)
        delay = format_duration(timedelta(milliseconds=fired.at - monitor.opened))
        grace = format_duration(timedelta(milliseconds=monitor.engine.time.grace_ms))
        yield (
            "Fired",
            f"{format_time(fired.at)}, {delay} later; reported by {clock(fired.clock)}, for a time bucket "
            f"waits {grace} for late events",
        )
        yield "Where", _where(monitor, fired)
    if before:
        yield "Chance", f"the rule also fired at {', '.join(clock(m.at) for m in before)} UTC, with no cause"
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(monitor.letters.counts.items()))
    counts = ", ".join(f"{name} {n:,}" for name, n in monitor.counts.items())
    yield "Events", f"{counts} ({reasons})" if reasons else counts
    yield (
        "Note",
        "A threshold can also fire by chance; this traffic is dense enough to make that rare. Rules with a "
        "stated false-alarm budget are to come.",
    )


def _opened(monitor: Monitor) -> str:
    return f"{format_time(monitor.opened)}: a new, noisy scanner in {WARD} (put there by the demo)"


def _where(monitor: Monitor, fired: Moment) -> str:
    """The error rate of the worse-off accent by ward, as of the end."""
    accent = next(iter((fired.groups[0] or {}).values()), next(iter(ACCENTS)))
    found = {
        group[1]: row
        for group, row in monitor.seen.rows.items()
        if len(group) == 2 and group[0] == accent and row["value"] is not None
    }
    order = sorted(found, key=lambda ward: -found[ward]["value"])
    told = [f"{ward} {100 * found[ward]['value']:.1f} % (n {found[ward]['support']:,})" for ward in order]
    return f"{accent}, by ward, at the end: {', '.join(told)}"


def _next_steps(out: Path | None) -> Iterator[tuple[str, str]]:
    folder = "demo" if out is None else quote(str(out))
    if out is None:
        yield "demo --exit --out demo", "keep events and configuration"
    yield f"replay {folder}/demo.yaml {folder}/events.jsonl", "the same alert from files"
    yield "demo --config", "a first configuration"
    yield "inspect EVENTS > monitor.yaml", "propose one for your file"
    yield "check-config monitor.yaml", "is it right, what does it run"
    yield "replay monitor.yaml EVENTS", "your groups, gaps, alerts"
