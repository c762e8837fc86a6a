"""What is in an input, a first configuration for it, and how the sample fares under that one.

Everything proposed is a guess from names, types and values of the fields. Nothing is inferred about people.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import accumulate, combinations
from math import floor, log10
from pathlib import Path

import msgspec
import numpy as np
from pydantic_core import from_json
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor.clock import DAY, format_duration
from monitor.config import Config, LimitsConfig
from monitor.config_file import parse_config
from monitor.decode import Decoder
from monitor.judge import AttributeReader, ModelReader
from monitor.names import MODEL_VERSION, UNKNOWN
from monitor.paths import STAR, FieldsConfig, Step, format_path
from monitor.records import RecordBatch, Reject
from monitor.sources.files import FileInput, Progress, converters, read_batches
from monitor.times import LAST_MS, format_time, parse_time
from monitor.wiring import judge_limits

_MAX_PATHS, _MAX_DISTINCT, _MAX_GROUPS = 1_000, 50_000, 50
_SHOWN_FIELDS, _SHOWN_VALUES = 60, 8
_HUGE = 1e18
_KINDS = {bool: "boolean", int: "integer", float: "number", str: "text", list: "array", dict: "object"}
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,300})(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower())


_SENSITIVE = _words(
    "sex gender race ethnicity ethnic age accent dialect language lang l1 native nationality religion "
    "disability orientation marital region country site ward hospital school postcode noise device channel"
)
_DECISION = {
    *_words("decision decided prediction predicted predict pred ypred yhat hat approved selected flagged")
}
_OUTCOME = {
    *_words("outcome actual truth true ytrue target observed label y gt result recid reoffended default"),
    *_words("defaulted repaid readmitted readmission churned converted died fraud hired"),
}
_SCORE = {*_words("score probability prob proba confidence risk decile logit")}
_ESTIMATE = {*_DECISION, *_words("estimate estimated forecast expected quoted")}
_HYPOTHESIS = _words("hypothesis hyp asr recognized recognised prediction predicted pred output transcript")
_REFERENCE = _words(
    "reference ref truth gold actual human target label outcome sentence text transcript transcription"
)
_TIME = {*_words("time timestamp ts datetime date at epoch when created")}
_KNOWN = {*_words("outcome label truth actual result feedback resolved settled confirmed known")}
_HORIZON = {*_words("year month day week")}
_ID = {*_words("id uuid guid key")}
_PART = {*_ID, *_words("index idx seq sequence row position number no file utterance name")}
_YES = {*_words("1 yes y true t positive pos approved approve accepted accept granted selected high pass")}
_WORD_COUNTS = ("substitutions", "deletions", "insertions", "words")
_GRACES = [timedelta(minutes=5), timedelta(hours=1), *(n * DAY for n in (1, 7, 30, 90, 365, 3_650, 36_500))]


@dataclass(frozen=True, slots=True)
class FieldProfile:
    """What the sample holds at one path.

    ``present`` is the share of records (below ``[*]``: of elements) with a value that is not null; ``types``
    counts JSON types, for CSV those that the texts can be read as; ``examples`` are the most frequent
    values where there are few; ``low`` and ``high`` bound the numbers, ``times`` the times; ``role`` is the
    field of the event that the proposal reads from here, or empty.
    """

    path: str
    present: float
    types: Mapping[str, int]
    distinct: int
    examples: tuple[tuple[str, int], ...]
    low: float | None
    high: float | None
    times: tuple[str, str] | None
    role: str


@dataclass(frozen=True, slots=True)
class RejectReason:
    """A reason why events of the sample were rejected; ``example`` is the first, with its position."""

    reason: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in the first ``records`` records of an input.

    ``proposal`` is a configuration in YAML; ``read``, ``accepted`` and ``rejects`` count events under it, or
    under the configuration that was given (``judged_by``); ``unknown`` is the share of accepted predictions
    without a value, by model and attribute (None without predictions).
    """

    source: str
    records: int
    fields: tuple[FieldProfile, ...]
    proposal: str
    judged_by: str
    read: int
    accepted: int
    rejects: tuple[RejectReason, ...]
    unknown: Mapping[str, Mapping[str, float | None]]


def inspect_input(
    source: FileInput,
    *,
    sample: int,
    config: Config | None = None,
    now_ms: Callable[[], int],
    progress: Progress | None = None,
) -> Inspection:
    """Look at the first ``sample`` records, propose a configuration, and decode the sample with it.

    Parameters
    ----------
    source
        The input. With ``config``, ``source.source`` names the source whose mapping is tried; where there is
        none of that name, the first one.
    sample
        Number of records to look at, at least 1. They are kept in memory.
    config
        Configuration to try in place of the proposal.

    Raises
    ------
    MonitorError
        When the input cannot be opened or is not of its format.
    """
    largest = (config.limits if config else LimitsConfig()).max_message_bytes
    batches = _sample(source, sample, largest, now_ms, progress)
    is_csv = source.resolved_format() == "csv"
    found = _Sample()
    for batch in batches:
        for i, payload in enumerate(batch.payloads):
            found.add(None if i in batch.unreadable else payload, is_csv)
    guess = _guess(found)
    proposal = _write(guess, source, found)
    tried = parse_config(proposal) if config is None else config
    read, rejects, unknown = _decode(tried, source, batches, is_csv)
    roles: dict[tuple[Step, ...], str] = {}
    for role, use in guess.uses.items():
        roles[use.column.steps] = ", ".join(filter(None, (roles.get(use.column.steps), role)))
    roles |= {c.steps: "id" for c in guess.ids} | {c.steps: "attribute" for c in guess.attributes.values()}
    by_reason: dict[str, list[Reject]] = {}
    for reject in rejects:
        by_reason.setdefault(reject.reason, []).append(reject)
    ordered = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    return Inspection(
        source=source.partition,
        records=sum(map(len, batches)),
        fields=tuple(_profile(c, found, roles.get(c.steps, "")) for c in found.columns.values()),
        proposal=proposal,
        judged_by="the proposal" if config is None else "the configuration",
        read=read,
        accepted=read - len(rejects),
        rejects=tuple(RejectReason(r, len(e), _example(e[0])) for r, e in ordered),
        unknown=unknown,
    )


def _sample(
    source: FileInput, sample: int, largest: int, now_ms: Callable[[], int], progress: Progress | None
) -> list[RecordBatch]:
    kept: list[RecordBatch] = []
    left = sample
    for batch in read_batches(
        source, FieldsConfig(), {}, max_record_bytes=largest, now_ms=now_ms, progress=progress,
        batch_records=min(sample, 1_000),
    ):  # fmt: skip
        kept.append(
            replace(batch, payloads=batch.payloads[:left], positions=batch.positions[:left],
                    unreadable={i: r for i, r in batch.unreadable.items() if i < left})
        )  # fmt: skip
        left -= len(kept[-1])
        if not left:
            break
    return kept


def _decode(
    config: Config, source: FileInput, batches: Iterable[RecordBatch], is_csv: bool
) -> tuple[int, list[Reject], dict[str, dict[str, float | None]]]:
    """Events read, those rejected, and the share of ``unknown`` by model and attribute."""
    chosen = next((s for s in config.sources if s.name == source.source), config.sources[0])
    cells: dict[str, dict[tuple[str, ...], int]] = {name: {} for name in config.models}
    readers = {
        name: ModelReader(
            name=name,
            task=model.build_task(),
            attributes=tuple(AttributeReader(a, model.attribute(a).bins) for a in model.attribute_names),
            weight_bound=model.weights.bound if model.weights else None,
            intern=_numbering(cells[name]),
        )
        for name, model in config.models.items()
    }
    columns = converters(chosen.fields, {f.name: f for r in readers.values() for f in r.task.fields})
    decoder = Decoder(chosen.fields, readers, judge_limits(config))
    read, rejects = 0, list[Reject]()
    counts: dict[str, Counter[int]] = {name: Counter() for name in readers}
    for batch in batches:
        decoded = decoder.decode(_converted(batch, columns) if is_csv else batch)
        read += decoded.read
        rejects += decoded.rejects
        for name, events in decoded.batches.items():
            counts[name].update(events.cell[events.has_prediction].tolist())
    unknown: dict[str, dict[str, float | None]] = {}
    for name, reader in readers.items():
        total = counts[name].total()
        unknown[name] = {
            a.name: sum(counts[name][n] for v, n in cells[name].items() if v[i] == UNKNOWN) / total
            if total
            else None
            for i, a in enumerate(reader.attributes)
        }
    return read, rejects, unknown


def _numbering(known: dict[tuple[str, ...], int]) -> Callable[[tuple[str, ...]], int]:
    return lambda values: known.setdefault(values, len(known))


def _converted(batch: RecordBatch, columns: Mapping[str, Callable[[str], object]]) -> RecordBatch:
    """CSV rows, sampled as texts, with the types that the mapping asks for."""
    payloads = list(batch.payloads)
    for i, payload in enumerate(payloads):
        if i not in batch.unreadable:
            row = msgspec.json.decode(payload)
            typed = {n: columns[n](v) if n in columns and isinstance(v, str) else v for n, v in row.items()}
            payloads[i] = msgspec.json.encode(typed)
    return replace(batch, payloads=payloads)


def _example(reject: Reject) -> str:
    element = "" if reject.element is None else f", element {reject.element}"
    return f"at {reject.position}{element}: {reject.message}"


# columns -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Column:
    """The values at one path, in order, nulls left out, with the number of the record of each."""

    steps: tuple[Step, ...]
    at: list[int] = field(default_factory=list)
    values: list[object] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    distinct: Counter[object] = field(default_factory=Counter)

    def add(self, record: int, value: object) -> None:
        self.at.append(record)
        self.values.append(value)
        huge = isinstance(value, int | float) and abs(value) > _HUGE
        self.kinds["huge number" if huge else _KINDS[type(value)]] += 1
        if isinstance(value, str | int | float):
            key = str(value).lower() if isinstance(value, bool) else value
            if key in self.distinct or len(self.distinct) < _MAX_DISTINCT:
                self.distinct[key] += 1

    @property
    def words(self) -> list[str]:
        """Words of the names on the path, in lower case and the singular."""
        words = [w for s in self.steps if isinstance(s, str) for w in _words(s)]
        return [
            w[:-1] if len(w) > 3 and w.endswith("s") and w[-2:] not in ("is", "ss", "us") else w
            for w in words
        ]

    @property
    def name(self) -> str:
        return str(next((s for s in reversed(self.steps) if isinstance(s, str)), ""))

    def only(self, *kinds: str) -> bool:
        return _nearly_all(sum(self.kinds[k] for k in kinds), self.kinds.total())

    @property
    def numbers(self) -> list[float]:
        return [
            v
            for v in self.values
            if isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= _HUGE
        ]

    @property
    def unique(self) -> bool:
        return len(self.distinct) == len(self.values)


def _nearly_all(count: int, total: int) -> bool:
    return total > 0 and count >= 0.98 * total


class _Sample:
    """The sampled records taken apart into columns; ``lengths`` of arrays by record."""

    def __init__(self) -> None:
        self.columns: dict[tuple[Step, ...], _Column] = {}
        self.lengths: dict[tuple[Step, ...], dict[int, int]] = {}
        self.records = 0

    def add(self, payload: bytes | None, is_csv: bool) -> None:
        """Take in one record; what is not a JSON object is left to the decoder to explain."""
        try:
            record = from_json(payload, allow_inf_nan=False) if payload else None
        except ValueError:
            return
        if isinstance(record, dict):
            self.records += 1
            self._walk({k: _cell(v) for k, v in record.items()} if is_csv else record, ())

    def _walk(self, value: object, steps: tuple[Step, ...]) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                self._walk(inner, (*steps, name))
        elif isinstance(value, list) and STAR not in steps:
            self.lengths.setdefault(steps, {})[self.records] = len(value)
            for inner in value:
                self._walk(inner, (*steps, STAR))
        elif value is not None and (steps in self.columns or len(self.columns) < _MAX_PATHS):
            self.columns.setdefault(steps, _Column(steps)).add(self.records, value)

    def present(self, column: _Column) -> float:
        """Share of the records, or of the elements of the array, with a value."""
        total = self.records
        if STAR in column.steps:
            total = sum(self.lengths[column.steps[: column.steps.index(STAR)]].values())
        return len(column.values) / total if total else 0.0


def _cell(text: object) -> object:
    """Read a CSV cell as what it can be: a boolean, a number, else a text."""
    if not isinstance(text, str):
        return text
    bare = text.strip().lower()
    if bare in ("true", "false"):
        return bare == "true"
    match = _NUMBER.fullmatch(bare)
    return text if match is None else float(bare) if match[2] or match[3] else int(bare)


# guesses -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Use:
    """A column as a field of the event: the options of its path, and a note for the reader."""

    column: _Column
    options: str = ""
    note: str = ""


@dataclass(slots=True)
class _Guess:
    """What the proposal says. ``certainty`` ranks ways of taking records apart."""

    certainty: int = 0
    task: str = "binary"
    task_note: str = "no field of a task was recognised: name its fields below"
    uses: dict[str, _Use] = field(default_factory=dict)
    ids: list[_Column] = field(default_factory=list)
    attributes: dict[str, _Column] = field(default_factory=dict)
    bins: dict[str, list[float]] = field(default_factory=dict)

    @property
    def used(self) -> list[_Column]:
        return [*(u.column for u in self.uses.values()), *self.ids]


def _guess(found: _Sample) -> _Guess:
    plain = [c for c in found.columns.values() if STAR not in c.steps]
    options = [plain]
    for lengths in found.lengths.values():
        if len(lengths) >= 0.9 * found.records and any(lengths.values()):
            beside = {p for p, other in found.lengths.items() if other == lengths}
            inside = [c for c in found.columns.values() if _array(c) in beside]
            options.append([*inside, *plain])
    guesses = [_guess_task(columns, found) for columns in options]
    best = max(range(len(guesses)), key=lambda i: guesses[i].certainty)
    guess, columns = guesses[best], options[best]
    _guess_times(guess, columns, found)
    _guess_ids(guess, columns, found, exploded=best > 0)
    _guess_attributes(guess, columns)
    return guess


def _array(column: _Column) -> tuple[Step, ...] | None:
    return column.steps[: column.steps.index(STAR)] if STAR in column.steps else None


def _flag(column: _Column) -> str | None:
    """Options that read the column as a flag, or None when it is none."""
    if _nearly_all(sum(column.distinct[v] for v in ("true", "false", 0, 1)), len(column.values)):
        if column.only("boolean", "integer"):
            return ""
        return "at_least: 1" if column.only("integer", "number") else None
    yes = [v for v in column.distinct if isinstance(v, str) and v.strip().lower() in _YES]
    return f"equals: {_scalar(yes[0])}" if len(column.distinct) == 2 and len(yes) == 1 else None


def _guess_task(columns: Sequence[_Column], found: _Sample) -> _Guess:
    def best(
        kind: Callable[[_Column], bool], hints: Iterable[str], *without: _Column | None
    ) -> _Column | None:
        """Find the column of this kind with the first of the hints; ties: a horizon, a short name."""
        ranks = {word: i if isinstance(hints, Sequence) else 0 for i, word in enumerate(hints)}
        fits = [c for c in columns if c not in without and kind(c) and ranks.keys() & set(c.words)]
        return min(
            fits,
            key=lambda c: (min(ranks.get(w, 99) for w in c.words), not _HORIZON & set(c.words), len(c.words)),
            default=None,
        )

    def is_flag(c: _Column) -> bool:
        return _flag(c) is not None

    def is_prose(c: _Column) -> bool:
        return c.only("text") and 2 * sum(" " in str(v).strip() for v in c.values) >= len(c.values)

    def is_number(c: _Column) -> bool:
        return c.only("integer", "number") and not is_flag(c) and not _is_time(c)

    def use(column: _Column, note: str) -> _Use:
        return _Use(column, _flag(column) or "", note)

    counts = {c.name: c for c in columns if c.name in _WORD_COUNTS and c.only("integer")}
    if len(counts) == len(_WORD_COUNTS):
        uses = {name: _Use(c) for name, c in counts.items()}
        return _Guess(5, "{type: speech, input: counts}", "", uses)
    hypothesis = best(is_prose, _HYPOTHESIS)
    reference = best(is_prose, _REFERENCE, hypothesis)
    if hypothesis and reference:
        uses = {"hypothesis": _Use(hypothesis), "reference": _Use(reference)}
        return _Guess(5, "speech", "", uses)
    decision = best(is_flag, _DECISION)
    outcome = best(lambda c: is_flag(c) and not _DECISION & set(c.words), _OUTCOME)
    score = best(is_number, _SCORE) or best(is_number, _DECISION)
    estimate = best(is_number, _ESTIMATE)
    actual = best(is_number, _OUTCOME, estimate)
    if estimate and actual and not (decision or outcome):
        low, high = _span([*estimate.numbers, *actual.numbers])
        note = "the range is a guess: events outside are rejected"
        uses = {"prediction": _Use(estimate), "outcome": _Use(actual)}
        return _Guess(4, f"{{type: regression, range: [{low:.15g}, {high:.15g}]}}", note, uses)
    if decision or (outcome and score):
        guess = _Guess(3 + (decision is not None) + (outcome is not None), "binary", "")
        if decision:
            guess.uses["decision"] = use(decision, "1 is yes, selected, positive")
        elif score:
            low, high = (
                _span(score.numbers) if max(score.numbers) <= 1 else (min(score.numbers), max(score.numbers))
            )
            middle = (low + high) // 2 if score.only("integer") else (low + high) / 2
            note = f"the middle of {low:.15g} to {high:.15g}: set your threshold"
            guess.uses["decision"] = _Use(score, f"at_least: {middle:.15g}", note)
        if score and min(score.numbers) >= 0 and max(score.numbers) <= 1:
            guess.task = "{type: binary, score: {range: [0, 1]}}"
            guess.uses["score"] = _Use(score)
        if outcome:
            guess.uses["outcome"] = use(outcome, "1 if yes was right")
        return guess
    if outcome:
        return _Guess(
            2, "binary", "no decision was recognised", {"outcome": use(outcome, "1 if yes was right")}
        )
    numbers = [c for c in columns if is_number(c) and not {*_ID, *_SENSITIVE} & set(c.words)]
    value = score or estimate or (numbers[0] if len(numbers) == 1 else None)
    if value is None:
        return _Guess()
    low, high = _span(value.numbers)
    note = "the range is a guess: events outside are rejected"
    return _Guess(1, f"{{type: score, range: [{low:.15g}, {high:.15g}]}}", note, {"value": _Use(value)})


def _span(numbers: Sequence[float]) -> tuple[float, float]:
    """Find a round range that holds the numbers; beyond 100 with room for twice as much."""
    low, high = min(numbers), max(numbers)
    size = max(-low, high)
    end: float = next((n for n in (1, 10, 100) if size <= n), 0)
    if not end:
        unit = 10.0 ** floor(log10(2 * size))
        end = next(n * unit for n in (1, 2, 5, 10) if n * unit >= 2 * size)
    return (0 if low >= 0 else -end), end


def _is_time(column: _Column) -> str | None:
    """Find the unit of a column of times, or None when it holds none."""
    words = set(column.words)
    if words & {"birth", "born", "dob"}:
        return None
    if column.only("text"):
        good = sum(n for v, n in column.distinct.items() if _milliseconds(v, "rfc3339") is not None)
        return "rfc3339" if _nearly_all(good, len(column.values)) else None
    if column.only("integer", "number") and words & (_TIME | _KNOWN):
        for unit, scale in (("unix_seconds", 1), ("unix_milliseconds", 1000)):
            good = sum(946_684_800 * scale <= v < 4_102_444_800 * scale for v in column.numbers)
            if _nearly_all(good, len(column.values)):
                return unit if scale == 1 or column.only("integer") else None
    return None


def _milliseconds(value: object, unit: str) -> int | None:
    if unit != "rfc3339":
        known = isinstance(value, int | float) and 0 <= value <= LAST_MS
        ms = float(str(value)) * (1000 if unit == "unix_seconds" else 1) if known else -1.0
        return int(ms) if 0 <= ms <= LAST_MS else None
    try:
        return parse_time(value, assume_utc=True) if isinstance(value, str) else None
    except ValueError:
        return None


def _guess_times(guess: _Guess, columns: Sequence[_Column], found: _Sample) -> None:
    units = {c.steps: unit for c in columns if c not in guess.used and (unit := _is_time(c))}

    def rank(column: _Column) -> tuple[bool, bool, int]:
        words = column.words
        hint = 0 if words[-1:] in (["time"], ["timestamp"], ["ts"]) else 1 if set(words) & _TIME else 2
        return bool(_KNOWN & set(words)), found.present(column) < 0.99, hint

    times = sorted((c for c in columns if c.steps in units), key=rank)
    for column in times:
        role = "outcome_time" if _KNOWN & set(column.words) else "time"
        unit = units[column.steps]
        if role not in guess.uses and (role == "outcome_time" or found.present(column) > 0.3):
            guess.uses[role] = _Use(column, "" if unit == "rfc3339" else f"unit: {unit}")


def _guess_ids(guess: _Guess, columns: Sequence[_Column], found: _Sample, *, exploded: bool) -> None:
    whole = [
        c
        for c in columns
        if set(c.words) & _PART
        and c.only("text", "integer")
        and c not in guess.used
        and found.present(c) >= 0.99
    ]
    predicted, known = (
        [found.present(u.column) for name, u in guess.uses.items() if name in names]
        for names in (("decision", "hypothesis", "prediction"), ("outcome", "reference"))
    )
    apart = predicted and known and predicted[0] + known[0] <= 1.1
    least = 0.4 if apart else 0.9

    def rank(column: _Column) -> tuple[bool, bool, int]:
        return not column.unique, column.name.lower() not in _ID, len(column.words)

    own = [c for c in whole if (STAR in c.steps or not exploded) and set(c.words) & _ID]
    fits = sorted((c for c in own if len(c.distinct) >= least * len(c.values)), key=rank)
    if fits:
        guess.ids = [fits[0]]
        return
    for first, second in combinations(whole[:12], 2):
        a, b = sorted((first, second), key=lambda c: STAR in c.steps)
        inner = dict(zip(a.at, a.values, strict=True)) if STAR not in a.steps else {}
        pairs = {(inner.get(n), v) for n, v in zip(b.at, b.values, strict=True)}
        if inner and (STAR in b.steps or not exploded) and len(pairs) == len(b.values):
            guess.ids = [a, b]
            return


def _guess_attributes(guess: _Guess, columns: Sequence[_Column]) -> None:
    def rank(column: _Column) -> int:
        words = _words(column.name)
        return min((_SENSITIVE.index(w) for w in words if w in _SENSITIVE), default=len(_SENSITIVE))

    taken: set[str] = set()
    for column in sorted(columns, key=lambda c: (rank(c), c.only("integer", "number"))):
        words, known = set(_words(column.name)), rank(column) < len(_SENSITIVE)
        name = column.name if column.name not in guess.attributes else ".".join(map(str, column.steps))
        produced = words & (_DECISION | _OUTCOME | _SCORE | _ID)
        if column in guess.used or produced or _is_time(column) or column.name in ("model", MODEL_VERSION):
            continue
        if not re.fullmatch(r"\S(.{0,62}\S)?", name) or not column.only(
            "text", "boolean", "integer", "number"
        ):
            continue
        few = 2 <= len(column.distinct) <= (_MAX_GROUPS if column.only("text", "boolean") else 10)
        if (
            few
            and not column.only("number")
            and (len(column.values) < 40 or 2 * len(column.distinct) < len(column.values))
        ):
            guess.attributes[name] = column
        elif (
            known
            and column.only("integer", "number")
            and not words & taken
            and (edges := _edges(column.numbers))
        ):
            guess.attributes[name], guess.bins[name] = column, edges
        taken |= words & set(_SENSITIVE) if name in guess.attributes else set()
        if len(guess.attributes) == 6:
            return


def _edges(numbers: Sequence[float]) -> list[float]:
    """Quartiles, rounded to half the power of ten of the distance between them."""
    low, *_, high = quartiles = np.quantile(numbers, (0.25, 0.5, 0.75)).tolist()
    if high - low <= 1e-9 * max(-low, high):
        return []
    step = 10.0 ** floor(log10(high - low)) / 2
    return sorted({round(q / step) * step for q in quartiles})


# the proposal --------------------------------------------------------------------------------------


def _scalar(text: str) -> str:
    """Write a text as YAML, in quotes unless it surely needs none."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", text) and text.lower() not in (
        "true", "false", "null", "yes", "no", "on", "off", "y", "n"
    ):  # fmt: skip
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    escaped = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return '"' + "".join(escaped) + '"'


def _path(column: _Column) -> str:
    return _scalar(format_path(column.steps))


def _write(guess: _Guess, source: FileInput, found: _Sample) -> str:
    model, model_field = _model_name(source, found)
    names = [_scalar(name) for name in guess.attributes]
    groups = [*names, *([f"[{names[0]}, {names[1]}]"] if len(names) > 1 else [])]
    windows, time = _time_settings(guess)
    lines = [
        f"# Proposed by fairness-monitor inspect, from {_counted(found.records)}. Guesses from names,",
        "# types and values: check every line. Which attributes are sensitive is for you to decide.",
        "models:",
        f"  {model}:",
        _noted(f"    task: {guess.task}", guess.task_note),
        _noted(
            f"    groups: [{', '.join(groups or ['group'])}]",
            "" if names else "no attribute was found: name one",
        ),
    ]
    if guess.bins:
        bins = (
            f"{_scalar(n)}: {{bins: [{', '.join(f'{e:.15g}' for e in b)}]}}" for n, b in guess.bins.items()
        )
        lines.append(_noted(f"    attributes: {{{', '.join(bins)}}}", "near the quartiles"))
    lines += [f"    windows: [{windows}]"] if windows else []
    lines += ["sources:", "  - fields:"]
    if source.format not in ("auto", replace(source, format="auto").resolved_format()):
        lines[-1:] = [f"  - format: {source.format}", "    fields:"]
    ids = [_path(c) for c in guess.ids]
    if ids:
        lines.append(f"      id: {ids[0] if len(ids) == 1 else '[' + ', '.join(ids) + ']'}")
    elif ("id",) in found.columns:
        lines.append("      id: no_id  # the field id does not tell events apart")
    if "time" not in guess.uses:
        lines.append('      time: {value: "2024-01-01T00:00:00Z"}  # no time was found: the same for all')
    for name, use in sorted(guess.uses.items(), key=lambda item: not item[0].endswith("time")):
        path = f"{{path: {_path(use.column)}, {use.options}}}" if use.options else _path(use.column)
        lines.append(_noted(f"      {name}: {path}", use.note))
    lines += model_field
    parents = {c.steps[:-1] for c in guess.attributes.values()}
    prefix = next(iter(parents), ())
    if len(parents) == 1 and prefix and STAR not in prefix and all(
        len(s) == len(prefix) + 1 for s in found.columns if s[: len(prefix)] == prefix
    ):  # fmt: skip
        lines.append(f"      attributes: {_scalar(format_path(prefix))}")
    elif names:
        paths = [f"{n}: {_path(c)}" for n, c in zip(names, guess.attributes.values(), strict=True)]
        flow = f"      attributes: {{{', '.join(paths)}}}"
        lines += [flow] if len(flow) <= 90 else ["      attributes:", *(f"        {p}" for p in paths)]
    return "\n".join([*lines, *time]) + "\n"


def _counted(records: int) -> str:
    return "1 record" if records == 1 else f"{records:,} records"


def _noted(line: str, note: str) -> str:
    return f"{line}  # {note}" if note else line


def _model_name(source: FileInput, found: _Sample) -> tuple[str, list[str]]:
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


def _time_settings(guess: _Guess) -> tuple[str, list[str]]:
    """Windows, and the lines of ``time:``, by how far apart the events are and how far out of order."""
    use = guess.uses.get("time")
    if use is None:
        return "all", []
    unit = _is_time(use.column) or "rfc3339"
    times = [ms for v in use.column.values if (ms := _milliseconds(v, unit)) is not None]
    each = timedelta(milliseconds=(max(times) - min(times)) / len(times))
    lag = timedelta(milliseconds=max(m - t for m, t in zip(accumulate(times, max), times, strict=True)))
    lines: list[str] = []
    choices = [(timedelta(minutes=1), ""), (timedelta(hours=1), "1d, 7d, all"), (DAY, "30d, all")]
    bucket, windows = next((c for c in choices if 10 * each <= c[0]), choices[-1])
    if windows:
        about = f"{bucket / each:.0f}" if bucket > each else "less than one"
        lines.append(f"  bucket: {format_duration(bucket)}  # {about} of these events on average")
    if lag > timedelta(minutes=1):
        grace = next((g for g in _GRACES if g >= lag), _GRACES[-1])
        lines.append(f"  grace: {format_duration(grace)}  # the events are out of order by up to this")
    if unit == "rfc3339" and any(map(_lacks_offset, use.column.distinct)):
        lines.append("  assume_utc: true  # times have no offset")
    return windows, ["time:", *lines] if lines else []


def _lacks_offset(value: object) -> bool:
    try:
        return isinstance(value, str) and parse_time(value) < 0
    except ValueError:
        return _milliseconds(value, "rfc3339") is not None


# for people ----------------------------------------------------------------------------------------


def _profile(column: _Column, found: _Sample, role: str) -> FieldProfile:
    unit, numbers = _is_time(column), column.numbers
    times = [ms for v in column.distinct if unit and (ms := _milliseconds(v, unit)) is not None]
    few = len(column.distinct) <= _MAX_GROUPS and not times
    return FieldProfile(
        path=format_path(column.steps),
        present=found.present(column),
        types=dict(column.kinds.most_common()),
        distinct=len(column.distinct),
        examples=tuple((str(v), n) for v, n in column.distinct.most_common(_SHOWN_VALUES)) if few else (),
        low=min(numbers, default=None),
        high=max(numbers, default=None),
        times=(format_time(min(times)), format_time(max(times))) if times else None,
        role=role,
    )


def render(inspection: Inspection, console: Console) -> None:
    """Print what was found as tables; the proposal itself is left to the caller."""
    i = inspection
    console.print(Text(f"{_plain(i.source)}: {_counted(i.records)}", "bold"))
    shown = [(_plain(f.path), f.role, _share(f.present), _values(f)) for f in i.fields[:_SHOWN_FIELDS]]
    names = min(max((len(name) for name, *_ in shown), default=0), 36)
    room = console.width - names - max((len(role) for _, role, *_ in shown), default=0) - 16
    table = _table("field", "read as", "present", "values")
    for name, role, present, values in shown:
        cell = Text(values)
        cell.truncate(max(room, 20), overflow="ellipsis")
        table.add_row(Text(name), Text(role, "green"), present, cell)
    console.print(table)
    if len(i.fields) > _SHOWN_FIELDS:
        console.print(f"and {len(i.fields) - _SHOWN_FIELDS:,} more fields", style="dim")
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


def _plain(text: str) -> str:
    """Replace characters that would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1), show_edge=False)
    for header in headers:
        table.add_column(
            header, justify="right" if header in ("present", "events") else "left", overflow="fold"
        )
    return table


def _values(f: FieldProfile) -> str:
    if f.times:
        low, high = (t.removesuffix("T00:00:00Z") for t in f.times)
        return f"{f.distinct:,} times: {low} to {high}" if low != high else f"1 time: {low}"
    kinds = "/".join(f.types) + ("" if f.distinct == 1 else "s")
    what = f"{f.distinct:,} {kinds}" if f.distinct else kinds
    if f.low is not None and f.high is not None and not (f.examples and f.distinct <= 10):
        return f"{what}: {_rounded(f.low)} to {_rounded(f.high)}"
    return f"{what}: {_plain(', '.join(f'{v} ({n:,})' for v, n in f.examples))}" if f.examples else what


def _rounded(number: float) -> str:
    if number == int(number):
        return f"{number:,.0f}"
    return f"{number:,.1f}" if abs(number) >= 1000 else f"{number:.4g}"


def _share(share: float) -> str:
    """Write a share in percent, and 100 only when it is all, and 0 only when it is nothing."""
    text = f"{100 * share:.1f}"
    return "100 %" if share == 1 else "0 %" if not share else f"{min(max(float(text), 0.1), 99.9)} %"
