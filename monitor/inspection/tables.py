"""An inspection as tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor.inspection.proposal import counted
from monitor.inspection.report import FieldProfile, Inspection

_MAX_FIELDS = 60
_MAX_NAME = 36
_MIN_VALUES = 20
_GUTTER = 2
_PRESENT = "present"


def render(inspection: Inspection, console: Console) -> None:
    """Print what was found as tables; the proposal itself is left to the caller."""
    i = inspection
    console.print(Text(f"{_plain(i.source)}: {counted(i.records)}", "bold"))
    _fields(i.fields[:_MAX_FIELDS], console)
    if len(i.fields) > _MAX_FIELDS:
        console.print(f"and {len(i.fields) - _MAX_FIELDS:,} more fields", style="dim")
    share = _share(i.accepted / i.read) if i.read else "none"
    console.print()
    console.print(
        f"{i.accepted:,} of {i.read:,} events accepted ({share}) under {i.judged_by}", highlight=False
    )
    if i.rejects:
        rejects = _table("rejected because", "events", "the first")
        for r in i.rejects:
            rejects.add_row(r.reason, f"{r.count:,}", Text(_plain(r.example)))
        console.print(rejects)
    for model, shares in i.unknown.items():
        told = ", ".join(f"{_plain(a)} {'-' if s is None else _share(s)}" for a, s in shares.items())
        console.print(Text(f"unknown values in {model}: {told}"))
    console.print(
        "Fields are matched by names, types and values. Which attributes are sensitive is for you to decide.",
        style="dim",
    )


def _fields(fields: tuple[FieldProfile, ...], console: Console) -> None:
    headers = ("field", "read as", _PRESENT)
    names = min(max((cell_len(_plain(f.path)) for f in fields), default=0), _MAX_NAME)
    roles = max(len(text) for text in (headers[1], *(f.role for f in fields)))
    room = console.width - names - roles - len(_PRESENT) - len(headers) * _GUTTER
    table = _table(*headers, "values")
    for f in fields:
        values = Text(_values(f, max(room, _MIN_VALUES)))
        table.add_row(Text(_plain(f.path)), Text(f.role, "green"), _share(f.present), values)
    console.print(table)


def _table(*headers: str) -> Table:
    style = box.SIMPLE_HEAD  # its columns are one space apart already
    table = Table(
        box=style, pad_edge=False, header_style="bold", padding=(0, _GUTTER - 1, 0, 0), show_edge=False
    )
    for header in headers:
        numeric = header in (_PRESENT, "events")
        table.add_column(header, justify="right" if numeric else "left", overflow="fold")
    return table


def _values(f: FieldProfile, room: int) -> str:
    """What a field holds, in so many characters; examples are told whole or not at all."""
    if f.times:
        low, high = (t.removesuffix("T00:00:00Z") for t in f.times)
        return _cut(f"{f.distinct:,} times: {low} to {high}" if low != high else f"1 time: {low}", room)
    kinds = "/".join(f.types) + ("" if f.distinct == 1 else "s")
    what = f"{f.distinct:,} {kinds}" if f.distinct else kinds
    if f.low is not None and f.high is not None and not (f.examples and f.distinct <= 10):
        return _cut(f"{what}: {_rounded(f.low)} to {_rounded(f.high)}", room)
    told = ""
    for n, (value, count) in enumerate(f.examples, 1):
        longer = f"{told}, " if told else f"{what}: "
        longer += f"{_plain(value)} ({count:,})"
        if cell_len(longer) + (cell_len(", …") if n < f.distinct else 0) > room:
            return f"{told}, …" if told else _cut(longer, room)
        told = longer
    return f"{told}, …" if told and len(f.examples) < f.distinct else told or _cut(what, room)


def _cut(text: str, room: int) -> str:
    cut = Text(text)
    cut.truncate(room, overflow="ellipsis")
    return cut.plain


def _plain(text: str) -> str:
    """Replace characters that would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _rounded(number: float) -> str:
    if number == int(number):
        return f"{number:,.0f}"
    return f"{number:,.1f}" if abs(number) >= 1000 else f"{number:.4g}"


def _share(share: float) -> str:
    """Write a share in percent, and 100 only when it is all, and 0 only when it is nothing."""
    text = f"{100 * share:.1f}"
    return "100 %" if share == 1 else "0 %" if not share else f"{min(max(float(text), 0.1), 99.9)} %"
