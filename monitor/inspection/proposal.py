"""The proposal: guesses written as a configuration in YAML, with a note where a choice is the user's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import accumulate
from pathlib import Path

from monitor.clock import DAY, format_duration
from monitor.inspection.columns import Column, Sample, milliseconds
from monitor.inspection.task import Guess, Use
from monitor.names import MODEL_VERSION
from monitor.paths import STAR, format_path
from monitor.sources.files import FileInput
from monitor.times import parse_time

_GRACES = [timedelta(minutes=5), timedelta(hours=1), *(n * DAY for n in (1, 7, 30, 90, 365, 3_650, 36_500))]
_BUCKETS = [(timedelta(minutes=1), ""), (timedelta(hours=1), "1d, 7d, all"), (DAY, "30d, all")]
"""Lengths of time buckets, each with the windows that suit it; the first has those of the defaults."""
_BROKERS = "kafka: {bootstrap_servers: localhost:9092}"
_TOPICS = "kafka: {topics: [events], start: earliest}"
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_RESERVED = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")


def propose(guess: Guess, source: FileInput, found: Sample) -> str:
    """Write the configuration that the guesses come to."""
    model, model_lines = _model(source, found)
    windows, time_lines = _time(guess)
    names = [_scalar(name) for name in guess.attributes]
    groups = [*names, *([f"[{names[0]}, {names[1]}]"] if len(names) > 1 else [])]
    no_groups = "" if names else "no attribute was found: name one"
    lines = [
        f"# Proposed by fairness-monitor inspect, from {counted(found.records)}. Guesses from names,",
        "# types and values: check every line. Which attributes are sensitive is for you to decide.",
        "models:",
        f"  {model}:",
        _noted(f"    task: {guess.task}", guess.task_note),
        _noted(f"    groups: [{', '.join(groups or ['group'])}]", no_groups),
    ]
    if guess.bins:
        bins = (
            f"{_scalar(n)}: {{bins: [{', '.join(f'{e:.15g}' for e in b)}]}}" for n, b in guess.bins.items()
        )
        lines.append(_noted(f"    attributes: {{{', '.join(bins)}}}", "near the quartiles"))
    lines += [f"    windows: [{windows}]"] if windows else []
    told_by_name = source.format in ("auto", replace(source, format="auto").resolved_format())
    lines += ["# To run on a topic, say where it is: take out the two # below.", f"# {_BROKERS}", "sources:"]
    lines += ["  - fields:"] if told_by_name else [f"  - format: {source.format}", "    fields:"]
    lines += [*_fields(guess, found), *model_lines, *_attributes(guess, names, found), f"    # {_TOPICS}"]
    lines += time_lines
    return "\n".join(lines) + "\n"


def counted(records: int) -> str:
    """Write a number of records."""
    return "1 record" if records == 1 else f"{records:,} records"


def _noted(line: str, note: str) -> str:
    return f"{line}  # {note}" if note else line


def _model(source: FileInput, found: Sample) -> tuple[str, list[str]]:
    """Name of the model, and lines for fields that would be read as model and version but are not."""
    stem = Path(source.path).name.removesuffix(".gz").rpartition(".")[0]
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:64]
    name = name if re.match(r"[A-Za-z]", name) else "model"
    given, version = found.columns.get(("model",)), found.columns.get((MODEL_VERSION,))
    lines: list[str] = []
    if given is not None:
        if len(given.distinct) == 1 and re.fullmatch(
            r"[A-Za-z][A-Za-z0-9._-]{0,63}", only := str(given.values[0])
        ):
            return only, lines
        lines.append(f"      model: {{value: {name}}}  # in place of the field model")
    if version is not None and not version.only("text"):
        lines.append("      model_version: {value: any}  # the field model_version holds no texts")
    return _scalar(name), lines


def _fields(guess: Guess, found: Sample) -> list[str]:
    """Lines for the id, the times, and the fields of the task."""
    lines: list[str] = []
    ids = [_path(c) for c in guess.ids]
    if ids:
        lines.append(f"      id: {ids[0] if len(ids) == 1 else '[' + ', '.join(ids) + ']'}")
    elif ("id",) in found.columns:
        lines.append("      id: no_id  # the field id does not tell events apart")
    if "time" not in guess.uses:
        lines.append('      time: {value: "2024-01-01T00:00:00Z"}  # no time was found: the same for all')
    for name, use in sorted(guess.uses.items(), key=lambda item: not item[0].endswith("time")):
        lines.append(_noted(f"      {name}: {_field(use)}", use.note))
    return lines


def _field(use: Use) -> str:
    path = _path(use.column)
    options = (f"{k}: {_scalar(v) if isinstance(v, str) else f'{v:.15g}'}" for k, v in use.options.items())
    return f"{{path: {path}, {', '.join(options)}}}" if use.options else path


def _attributes(guess: Guess, names: Sequence[str], found: Sample) -> list[str]:
    """Lines for the attributes: the object that holds nothing else, or one path for each."""
    parents = {c.steps[:-1] for c in guess.attributes.values()}
    prefix = next(iter(parents), ())
    below = [s for s in found.columns if s[: len(prefix)] == prefix]
    if (
        len(parents) == 1
        and prefix
        and STAR not in prefix
        and all(len(steps) == len(prefix) + 1 for steps in below)
    ):
        return [f"      attributes: {_scalar(format_path(prefix))}"]
    if not names:
        return []
    paths = [f"{n}: {_path(c)}" for n, c in zip(names, guess.attributes.values(), strict=True)]
    flow = f"      attributes: {{{', '.join(paths)}}}"
    return [flow] if len(flow) <= 90 else ["      attributes:", *(f"        {p}" for p in paths)]


def _time(guess: Guess) -> tuple[str, list[str]]:
    """Windows, and the lines of ``time:``, by how far apart the events are and how far out of order."""
    use = guess.uses.get("time")
    if use is None:
        return "all", []
    unit = use.column.time_unit or "rfc3339"
    times = [ms for v in use.column.values if (ms := milliseconds(v, unit)) is not None]
    each = timedelta(milliseconds=(max(times) - min(times)) / len(times))
    lag = timedelta(milliseconds=max(m - t for m, t in zip(accumulate(times, max), times, strict=True)))
    lines: list[str] = []
    bucket, windows = next((b for b in _BUCKETS if 10 * each <= b[0]), _BUCKETS[-1])
    if windows:
        about = f"{bucket / each:.0f}" if bucket > each else "less than one"
        lines.append(f"  bucket: {format_duration(bucket)}  # {about} of these events on average")
    if lag > _BUCKETS[0][0]:
        grace = next((g for g in _GRACES if g >= lag), _GRACES[-1])
        lines.append(f"  grace: {format_duration(grace)}  # the events are out of order by up to this")
    if unit == "rfc3339" and any(map(_lacks_offset, use.column.distinct)):
        lines.append("  assume_utc: true  # times have no offset")
    return windows, ["time:", *lines] if lines else []


def _lacks_offset(value: object) -> bool:
    if not isinstance(value, str) or milliseconds(value, "rfc3339") is None:
        return False
    try:
        parse_time(value)
    except ValueError:
        return True
    return False


def _path(column: Column) -> str:
    return _scalar(format_path(column.steps))


def _scalar(text: str) -> str:
    """Write a text as YAML, in quotes unless it surely needs none."""
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    escaped = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return '"' + "".join(escaped) + '"'
