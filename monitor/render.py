"""A replay's document as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor.names import STATUS_MEANING, Status, clean

_HEADLINE = {
    "binary": ("selection_rate", "true_positive_rate", "false_positive_rate", "precision", "accuracy"),
    "regression": ("mean_error", "mean_absolute_error", "root_mean_squared_error", "mean_prediction"),
    "speech": ("word_error_rate", "substitution_rate", "deletion_rate", "insertion_rate"),
    "score": ("mean_value", "standard_deviation", "tail_share"),
}
_MOST = 5
_Row = Mapping[str, Any]


def headline(task: str, metrics: Sequence[str], ruled: Sequence[str], most: int) -> list[str]:
    """The metrics that fit a table: those with alerts first, then the task's usual ones."""
    chosen = [m for m in dict.fromkeys([*ruled, *_HEADLINE.get(task, ())]) if m in metrics]
    return (chosen or list(metrics))[:most]


def render(document: Mapping[str, Any], tasks: Mapping[str, str], console: Console) -> None:
    """Print a replay: events, and for each model and window its groups, gaps and alerts.

    ``tasks`` names the task of each model. Values that are not ``ok`` show their status instead.
    """
    _events(document["events"], document["rejects"], console)
    used: set[str] = set()
    for span in document["windows"]:
        model, window = span["model"], span["window"]
        groups = [g for g in document["groups"] if (g["model"], g["window"]) == (model, window)]
        gaps = [g for g in document["gaps"] if (g["model"], g["window"]) == (model, window)]
        console.print()
        console.rule(Text(f"{model}  ·  window {_span(span)}", "bold"), align="left", style="dim")
        if not groups:
            console.print("no closed time bucket holds events", style="dim")
            continue
        metrics = list(dict.fromkeys(g["metric"] for g in groups))
        ruled = [a["metric"] for a in document["alerts"] if a["model"] == model]
        shown = headline(tasks[model], metrics, ruled, max(1, min(_MOST, (console.width - 36) // 11)))
        used |= _groups(groups, shown, console)
        _gaps([g for g in gaps if g["metric"] in shown or g["metric"] not in metrics], console)
        if len(metrics) > len(shown):
            left = len(metrics) - len(shown)
            console.print(f"{left} more metrics and their gaps: --format json", style="dim")
    _alerts(document["alerts"], console)
    notes = [f"{s}: {STATUS_MEANING[s]}" for s in Status if s in used and s is not Status.OK]
    if notes:
        console.print()
        console.print("\n".join(notes), style="dim", markup=False, highlight=False)


def _span(span: _Row) -> str:
    if span["end"] is None:
        return f"{span['window']}, nothing closed yet"
    start = "" if span["start"] is None else f"{span['start']} "
    return f"{span['window']} ({start}to {span['end']})"


def _events(events: _Row, rejects: _Row, console: Console) -> None:
    told = "  ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in events.items())
    console.print(told, highlight=False)
    if rejects:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in rejects.items())
        console.print(f"rejected because: {reasons}", style="yellow", highlight=False)


def _groups(rows: Sequence[_Row], metrics: Sequence[str], console: Console) -> set[str]:
    by_group: dict[tuple[tuple[str, str], ...], dict[str, _Row]] = {}
    for row in rows:
        by_group.setdefault(tuple(row["group"].items()), {})[row["metric"]] = row
    used: set[str] = set()
    tables: dict[tuple[str, ...], Table] = {}
    for group, values in by_group.items():
        attributes = tuple(a for a, _ in group)
        if attributes not in tables:
            tables[attributes] = _group_table(attributes, metrics)
        cells = [Text(clean(v)) for _, v in group] or [Text("everybody")]
        supports = [row["support"] for row in values.values() if row["support"] is not None]
        cells.append(Text(f"{max(supports):,}" if supports else "", "dim"))
        for metric in metrics:
            used.add(values[metric]["status"])
            cells.append(_value(values[metric]))
        tables[attributes].add_row(*cells)
    for table in tables.values():
        console.print(table)
    return used


def _group_table(attributes: Sequence[str], metrics: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1))
    for name in attributes or ("",):
        table.add_column(Text(clean(name)))
    table.add_column("events", justify="right", no_wrap=True, min_width=6)
    for metric in metrics:
        table.add_column(
            metric.replace("_", "\n"), justify="right", no_wrap=True, min_width=9, vertical="bottom"
        )
    return table


def _value(row: _Row) -> Text:
    if row["value"] is None:
        return Text(row["status"], "dim")
    return Text(_number(row["value"]), "" if row["status"] == Status.OK else "dim")


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"


def _gaps(gaps: Sequence[_Row], console: Console) -> None:
    if not gaps:
        return
    table = Table(title="gaps", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", min_width=12)
    table.add_column("groups of")
    table.add_column("difference", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("between", min_width=16)
    merged: dict[tuple[str, ...], dict[str, _Row]] = {}
    for gap in gaps:
        sides = () if gap["comparison"] == "between" else tuple(map(_group, gap["groups"]))
        key = (gap["metric"], " × ".join(gap["attributes"]), gap["comparison"], *sides)
        merged.setdefault(key, {})[gap["kind"]] = gap
    for (metric, attributes, comparison, *_), kinds in merged.items():
        gap = kinds.get("difference") or kinds["ratio"]
        named = [s for s in map(_group, gap["groups"]) if s]
        to = {"overall": " to everybody", "rest": " to the rest"}.get(comparison, "")
        table.add_row(
            metric.replace("_", " "),
            Text(clean(attributes)),
            *(_value(kinds[k]) if k in kinds else Text("") for k in ("difference", "ratio")),
            Text(" ↔ ".join(named) + to),
        )
    console.print(table)


def _group(group: _Row | None) -> str:
    return "" if group is None else " × ".join(clean(str(v)) for v in group.values())


def _alerts(alerts: Sequence[_Row], console: Console) -> None:
    console.print()
    if not alerts:
        console.print("alerts: none", style="dim")
        return
    console.print(Text("alerts", "bold"))
    styles = {"firing": "bold red", "pending": "yellow", "resolved": "green"}
    for alert in alerts:
        times = [f"pending since {alert['pending_since']}"]
        if alert["firing_since"]:
            times.append(f"firing since {alert['firing_since']}")
        if alert["resolved_at"]:
            times.append(f"resolved {alert['resolved_at']}")
        console.print(
            Text.assemble((f"{alert['state']:9}", styles[alert["state"]]), f"{alert['summary']}"),
            highlight=False,
        )
        console.print(Text(f"         {alert['rule']}, {alert['severity']}, {', '.join(times)}", "dim"))
