"""The monitor at work in the demo: the decoder and engine of every command, and a record of what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from monitor.alerts import Alert, AlertState, Transition
from monitor.config_file import parse_config
from monitor.demo.hospital import MINUTE_MS, OPENED
from monitor.engine import ModelEngine
from monitor.errors import MonitorError
from monitor.gaps import Gap
from monitor.names import REASON_MEANING, Reason
from monitor.records import RecordBatch, Reject
from monitor.sinks.dead_letter import DeadLetters
from monitor.wiring import build_decoders, build_engine

CONFIG = """\
# A hospital's transcription service: how many words are misheard, and for which accent?
models:
  transcription:
    task: speech                     # hypothesis and reference texts
    groups: [accent, ward, noise_db, [accent, ward]]
    attributes:
      noise_db: {bins: [55, 70]}     # numbers are told apart by bins
    metrics: [word_error_rate]
    windows: [30m]
    min_support: 150                 # accents with fewer utterances are left out of gaps
    join: {outcome_ttl: 1h}          # how long a transcript waits for its corrected text
    rules:
      - name: accent-gap
        metric: word_error_rate
        groups: accent
        tolerance: 0.06
        window: 30m
        for: 3                       # time buckets in a row
        severity: critical
time: {bucket: 1m, grace: 2m}
"""
"""The demo's configuration; also a first one to start from."""


class Moment(NamedTuple):
    """A rule changed its state: event time, the simulated clock, and what the alert said then."""

    at: int
    clock: int
    state: AlertState
    groups: tuple[Mapping[str, str] | None, Mapping[str, str] | None]
    value: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What the monitor knows at a moment: groups by attributes and the accent gap, of the rule's window."""

    rows: Mapping[tuple[str, ...], Mapping[str, Any]]
    gap: Gap


class Monitor:
    """The demo's configuration at work: a decoder, an engine, and a record of what came of it."""

    def __init__(self, start_ms: int, out: Path | None) -> None:
        config = parse_config(CONFIG, origin="the demo's configuration")
        self.start = self.clock = start_ms
        self.engine = build_engine(config)
        self.engine.add_partition("demo")
        self.decoder = build_decoders(config, self.engine)["events"]
        self.letters = DeadLetters(None)
        self.model: ModelEngine = next(iter(self.engine.models.values()))
        self.rule = self.model.spec.rules[0]
        self.read = 0
        self.history: dict[int, float | None] = {}
        self.moments: list[Moment] = []
        self.seen = self._look()
        self._out = out

    def take(self, payloads: Sequence[bytes], clock_ms: int) -> list[Moment]:
        """Decode and count what arrived until the clock's time; return what the rule did."""
        self.clock = clock_ms
        positions = range(self.read + 1, self.read + 1 + len(payloads))
        self.read += len(payloads)
        if self._out is not None:
            self._keep(self._out / "events.jsonl", payloads)
        decoded = self.decoder.decode(RecordBatch("demo", payloads, positions, clock_ms))
        self.letters.write(decoded.rejects)
        for i in self.engine.step("demo", decoded.batches).tolist():
            late = Reject("demo", positions[i], Reason.LATE, REASON_MEANING[Reason.LATE], payloads[i])
            self.letters.write([late])
        return self._note(self.engine.advance())

    def _keep(self, path: Path, payloads: Sequence[bytes]) -> None:
        try:
            with path.open("ab") as file:
                file.write(b"".join(p + b"\n" for p in payloads))
        except OSError as error:
            raise MonitorError(f"cannot write {path}: {error.strerror or error}") from error

    def finish(self) -> list[Moment]:
        """Close the time buckets that are left, as at the end of a file."""
        return self._note(self.engine.finish())

    def _note(self, transitions: Sequence[Transition]) -> list[Moment]:
        moments = [Moment(t.at, self.clock, t.state, t.alert.groups, t.alert.value) for t in transitions]
        self.moments += moments
        self.seen = self._look()
        if self.engine.closed_until is not None:
            self.history[self.engine.closed_until] = self.seen.gap.value
        return moments

    def _look(self) -> Seen:
        report = next(r for r in self.model.report() if r.window == self.rule.window)
        gap = next(g for g in report.gaps if g.spec == self.rule.gap)
        return Seen({tuple(row["group"].values()): row for row in report.groups}, gap)

    @property
    def alert(self) -> Alert | None:
        """The alert that is pending or firing."""
        return next(iter(self.model.alerts), None)

    @property
    def opened(self) -> int:
        """When the scanner is switched on."""
        return self.start + OPENED * MINUTE_MS

    @property
    def counts(self) -> dict[str, int]:
        """Totals of events so far."""
        rejected = sum(self.letters.counts.values())
        joined, duplicates = self.model.counts.joined, self.model.counts.duplicates
        waiting = self.model.unmatched_predictions
        return {
            "read": self.read, "accepted": self.read - rejected, "joined": joined,
            "without a text": waiting, "duplicates": duplicates, "rejected": rejected,
        }  # fmt: skip
