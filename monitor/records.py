"""What sources hand over, and what is turned away: records, positions, rejects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from monitor.names import Reason


class Rejected(Exception):
    """Raised while an event is judged; becomes a :class:`Reject`."""

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason = reason
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Consecutive records of one partition, as raw bytes.

    ``partition`` names the partition among all that are read (``events.jsonl``, ``topic-0``);
    ``positions[i]`` is the line or offset of record i; ``arrival_ms`` when the records arrived;
    ``ascii`` says that every payload is known to be ASCII; ``lines`` that payloads are lines: they may
    end with a newline that is no part of the record, and blank ones are no records. ``unreadable``
    holds the rejection of records that the source itself could not read (a CSV row with too many cells).
    """

    partition: str
    payloads: Sequence[bytes]
    positions: Sequence[int]
    arrival_ms: int
    ascii: bool = False
    lines: bool = False
    unreadable: Mapping[int, Rejected] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.payloads)

    def record(self, i: int) -> bytes:
        """The raw bytes of record i."""
        return self.payloads[i].removesuffix(b"\n") if self.lines else self.payloads[i]

    def late(self, i: int) -> Reject:
        """The rejection of record i, which holds an event that came too late."""
        message = "the event came after its time bucket had closed; see time.grace"
        return Reject(self.partition, self.positions[i], Reason.LATE, message, self.record(i))


@dataclass(frozen=True, slots=True)
class Reject:
    """An event that was not accepted: where it was, why, and its raw bytes.

    ``element`` is its number within a record that holds several events, else None.
    """

    partition: str
    position: int
    reason: Reason
    message: str
    payload: bytes
    element: int | None = None

    def __str__(self) -> str:
        where = f"{self.partition}:{self.position}"
        inside = "" if self.element is None else f" (element {self.element})"
        return f"{where}{inside}: {self.reason}: {self.message}"


def once(rejects: Iterable[Reject]) -> Iterator[Reject]:
    """The rejects, with the raw bytes of each record only at its first: a record may hold many events."""
    seen = set()
    for reject in rejects:
        where = reject.partition, reject.position, reject.payload
        yield replace(reject, payload=b"") if where in seen else reject
        seen.add(where)
