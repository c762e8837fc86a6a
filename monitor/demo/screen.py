"""The demo's screen: bars, the gap over time, the alert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.text import Text

from monitor.alerts import AlertState
from monitor.demo.hospital import ACCENTS, MINUTE_MS, MINUTES
from monitor.demo.watch import Monitor
from monitor.names import UNKNOWN
from monitor.times import format_time

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_AXIS = 4
"""Columns left of the chart."""
_LEVELS = " ▁▂▃▄▅▆▇█"
_ASCII = str.maketrans(
    {
        **dict.fromkeys("▏▎▍▌", " "), **dict.fromkeys("▋▊▉█▃▄▅▆▇", "#"), **dict.fromkeys("▁▂", "_"),
        "−": "-", "·": "-", "×": "x", "●": "!", "○": " ", "◐": "?", "▲": "^", "→": "->", "…": "...",
    }
)  # fmt: skip
STYLES = {AlertState.PENDING: "bold yellow", AlertState.FIRING: "bold red", AlertState.RESOLVED: "green"}


class Plain:
    """A renderable in ASCII, for terminals and files that cannot hold more."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._inner, options):
            yield segment._replace(text=segment.text.translate(_ASCII))


def clock(ms: int) -> str:
    """Hours and minutes in UTC."""
    return format_time(ms)[11:16]


def points(value: float | None) -> str:
    """A difference of rates in percentage points."""
    return "not known yet" if value is None else f"{100 * value:.1f} points"


def sides(groups: Sequence[Mapping[str, str] | None]) -> str:
    """The two groups of a gap."""
    return " to ".join(next(iter(g.values())) for g in groups if g)


def _bars(monitor: Monitor, width: int) -> Iterator[Text]:
    seen = monitor.seen
    rows = [(name, seen.rows.get((name,))) for name in (*ACCENTS, UNKNOWN)]
    values = [row["value"] or 0.0 for _, row in rows if row]
    top = max(0.20, *values) if values else 0.20
    room = max(width - 52, 8)
    extremes = [next(iter(g.values())) for g in seen.gap.groups if g]
    for name, row in rows:
        line = Text(f"{name:17}", no_wrap=True)
        if row is None or row["value"] is None:
            yield line.append("no corrected text yet", "dim")
            continue
        eighths = round(row["value"] / top * room * 8)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        tag = dict(zip(extremes, ("largest", "smallest"), strict=False)).get(name, "")
        style = {"largest": "bold magenta", "smallest": "bold cyan"}.get(tag, "blue")
        line.append(f"{bar:{room}}", "dim" if name == UNKNOWN else style)
        line.append(f" {100 * row['value']:5.1f} %", "bold" if tag else "")
        line.append(f" {row['support']:>5,} utterances  ", "dim")
        line.append("left out" if name == UNKNOWN else tag, "dim" if name == UNKNOWN else style)
        yield line


def chart(monitor: Monitor, width: int, height: int) -> Iterator[Text]:
    """The gap over time as columns, and its tolerance as a line two fifths or a third of the way up."""
    columns = _columns(width)
    tallest: dict[int, float] = {}
    for end, value in monitor.history.items():
        column = _column(monitor, end, columns)
        tallest[column] = max(tallest.get(column, 0.0), value or 0.0)
    tolerance, base = monitor.rule.tolerance, max(height * 2 // 5, 1)
    for row in range(height - 1, -1, -1):
        label = f"{100 * tolerance:.0f} " if row == base else "0 " if row == 0 else ""
        line = Text(f"{label:>{_AXIS}}", "dim", no_wrap=True)
        for column in range(columns):
            value = tallest.get(column, 0.0)
            level = round((value / tolerance * base - row) * 8)
            if level > 0 or row != base:
                style = "not dim bold red" if value > tolerance else "not dim cyan"
                line.append(_LEVELS[min(max(level, 0), 8)], style)
            else:
                line.append("▁", "not dim yellow")
        yield line


def hours(monitor: Monitor, width: int) -> Text:
    """The time axis of the chart."""
    line = ""
    for at in range(monitor.start, monitor.start + MINUTES * MINUTE_MS, 60 * MINUTE_MS):
        line = f"{line:{_AXIS + _column(monitor, at, _columns(width))}}{clock(at)}"
    return Text(line, "dim", no_wrap=True)


def marks(monitor: Monitor, width: int, first: tuple[int, str], second: tuple[int, str] | None) -> Text:
    """A line below the chart with arrows at two moments, and a text on the outer side of each."""
    columns = _columns(width)
    line = f"{first[1]} ▲".rjust(_AXIS + _column(monitor, first[0], columns) + 1)
    if second is not None:
        line = f"{line:{_AXIS + _column(monitor, second[0], columns)}}▲ {second[1]}"
    return Text(line, no_wrap=True)


def _columns(width: int) -> int:
    return max(width - _AXIS - 1, 10)


def _column(monitor: Monitor, at: int, columns: int) -> int:
    return min((at - monitor.start) * columns // (MINUTES * MINUTE_MS), columns - 1)


def _state(monitor: Monitor) -> Text:
    alert = monitor.alert
    if alert is None:
        past = " (it fired before and resolved)" if monitor.moments else ""
        return Text(f"○ no alert: the gap is within the tolerance{past}", "green")
    if alert.state is AlertState.PENDING:
        beyond = ((monitor.engine.closed_until or alert.pending_since) - alert.pending_since) // MINUTE_MS + 1
        told = f"beyond the tolerance in {beyond} of {alert.rule.for_buckets} time buckets"
        return Text.assemble(
            (" ◐ PENDING ", "reverse bold yellow"), f" since {clock(alert.pending_since)}: {told}"
        )
    return Text.assemble(
        (" ● FIRING ", "reverse bold red"),
        (f" since {clock(alert.firing_since or 0)}, pending from {clock(alert.pending_since)}", "bold"),
        f": {sides(alert.groups)}",
    )


def _counts(monitor: Monitor) -> Text:
    told = " · ".join(f"{name} {count:,}" for name, count in monitor.counts.items())
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(monitor.letters.counts.items()))
    return Text(f"{told}: {reasons}" if reasons else told, "dim")


def view(monitor: Monitor, console: Console, *, over: bool) -> RenderableType:
    """The whole screen."""
    size = console.size
    width = min(size.width, 110)
    inner = width - 4
    height = 5 if size.height >= 28 else 3
    done = (monitor.clock - monitor.start) / (MINUTES * MINUTE_MS)
    alert = monitor.alert
    tolerance = points(monitor.rule.tolerance)
    gap = Text.assemble("Gap ", (points(monitor.seen.gap.value), "bold"))
    gap.append(f", {sides(monitor.seen.gap.groups) or 'largest to smallest'}, tolerance {tolerance}", "dim")
    lines: list[Text] = [
        Text.assemble(
            (f"{format_time(monitor.clock)[:16].replace('T', ' ')} UTC", "bold"),
            (f"  simulated · {100 * done:.0f} % of {MINUTES // 60} hours", "dim"),
        ),
        _state(monitor),
        Text(),
        Text("Word error rate by accent, last 30 minutes", "bold"),
        *_bars(monitor, inner),
        Text(),
        gap,
        *chart(monitor, inner, height),
        hours(monitor, inner),
        Text(),
        _counts(monitor),
    ]
    if size.height >= 28:
        lines.append(Text())
    told = (
        "The six hours are over. Ctrl-C leaves, with a summary." if over else "Ctrl-C stops, with a summary."
    )
    lines.append(Text(told, "bold" if over else "dim"))
    border = "blue" if alert is None else STYLES[alert.state]
    title = "fairness-monitor demo: a hospital's transcription service"
    return Panel(Group(*lines), title=title, border_style=border, width=width, padding=(0, 1))
