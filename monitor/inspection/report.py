"""What is in an input: a sample is read, taken apart, guessed at and tried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from monitor.config import Config, LimitsConfig
from monitor.config_file import parse_config
from monitor.inspection.columns import Column, Sample, milliseconds
from monitor.inspection.guess import MAX_GROUPS, guess
from monitor.inspection.proposal import propose
from monitor.inspection.task import Guess
from monitor.inspection.trial import RejectReason, try_out
from monitor.paths import FieldsConfig, Step, format_path
from monitor.records import RecordBatch
from monitor.sources.files import FileInput, Progress, read_batches
from monitor.times import format_time

_EXAMPLES = 8
_BATCH_RECORDS = 1_000


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
    now_ms
        Reads the clock, in milliseconds since 1970-01-01 UTC, at which records arrive.
    progress
        Told how many bytes were consumed.

    Returns
    -------
    Inspection
        What was found. An input without records has no fields, and a proposal all the same.

    Raises
    ------
    MonitorError
        When the input cannot be opened or is not of its format.
    """
    largest = (config.limits if config else LimitsConfig()).max_message_bytes
    batches = _first(source, sample, largest, now_ms, progress)
    is_csv = source.resolved_format() == "csv"
    found = Sample()
    for batch in batches:
        for i, payload in enumerate(batch.payloads):
            found.add(None if i in batch.unreadable else payload, is_csv)
    guessed = guess(found)
    proposal = propose(guessed, source, found)
    tried = parse_config(proposal) if config is None else config
    trial = try_out(tried, source.source, batches, is_csv=is_csv)
    roles = _roles(guessed)
    return Inspection(
        source=source.partition,
        records=sum(map(len, batches)),
        fields=tuple(_profile(c, found, roles.get(c.steps, "")) for c in found.columns.values()),
        proposal=proposal,
        judged_by="the proposal" if config is None else "the configuration",
        read=trial.read,
        accepted=trial.accepted,
        rejects=trial.rejects,
        unknown=trial.unknown,
    )


def _first(
    source: FileInput, sample: int, largest: int, now_ms: Callable[[], int], progress: Progress | None
) -> list[RecordBatch]:
    """Read the first records; those of CSV as texts, for nothing is known of them yet."""
    kept: list[RecordBatch] = []
    left = sample
    batches = read_batches(
        source,
        FieldsConfig(),
        {},
        max_record_bytes=largest,
        now_ms=now_ms,
        progress=progress,
        batch_records=min(sample, _BATCH_RECORDS),
    )
    for batch in batches:
        kept.append(
            replace(
                batch,
                payloads=batch.payloads[:left],
                positions=batch.positions[:left],
                unreadable={i: reject for i, reject in batch.unreadable.items() if i < left},
            )
        )
        left -= len(kept[-1])
        if not left:
            break
    return kept


def _roles(guessed: Guess) -> dict[tuple[Step, ...], str]:
    """Fields of the event by the path that they are read from."""
    roles: dict[tuple[Step, ...], str] = {}
    for role, use in guessed.uses.items():
        steps = use.column.steps
        roles[steps] = f"{roles[steps]}, {role}" if steps in roles else role
    ids = {c.steps: "id" for c in guessed.ids}
    return roles | ids | {c.steps: "attribute" for c in guessed.attributes.values()}


def _profile(column: Column, found: Sample, role: str) -> FieldProfile:
    unit, numbers = column.time_unit, column.numbers
    times = [ms for v in column.distinct if unit and (ms := milliseconds(v, unit)) is not None]
    few = len(column.distinct) <= MAX_GROUPS and not times
    return FieldProfile(
        path=format_path(column.steps),
        present=found.present(column),
        types=dict(column.kinds.most_common()),
        distinct=len(column.distinct),
        examples=tuple((str(v), n) for v, n in column.distinct.most_common(_EXAMPLES)) if few else (),
        low=min(numbers, default=None),
        high=max(numbers, default=None),
        times=(format_time(min(times)), format_time(max(times))) if times else None,
        role=role,
    )
