"""What tests of the engine share: configurations as dicts, events as JSON lines, one way to run them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monitor.config import Config
from monitor.engine import Engine, ModelEngine, WindowReport
from monitor.records import RecordBatch
from monitor.wiring import build_decoders, build_engine

HOUR = 3_600_000
MINUTE = 60_000
START = 472_000 * HOUR
"""A full hour in 2023, in milliseconds; not a full day."""
LONG_AFTER = START + 10 * 365 * 24 * HOUR

Event = dict[str, Any]


def config_of(model: Mapping[str, Any], **parts: Any) -> Config:
    """A configuration with one model ``m``."""
    return Config.model_validate({"models": {"m": dict(model)}, **parts})


def encode(events: Iterable[Event]) -> list[bytes]:
    return [json.dumps(e).encode() for e in events]


@dataclass
class Run:
    """An engine that is fed batches of JSON; every event must be accepted and none may be late."""

    config: Config
    partitions: Sequence[str] = ("p",)
    engine: Engine = field(init=False)
    transitions: list[tuple[int, str, str]] = field(init=False, default_factory=list)
    _reports: dict[str, WindowReport] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.engine = build_engine(self.config)
        self._decoder = build_decoders(self.config, self.engine)["events"]
        for partition in self.partitions:
            self.engine.add_partition(partition)

    @property
    def model(self) -> ModelEngine:
        return self.engine.models["m"]

    def feed(self, events: Sequence[Event], partition: str = "p") -> None:
        payloads = encode(events)
        positions = range(1, len(payloads) + 1)
        decoded = self._decoder.decode(RecordBatch(partition, payloads, positions, LONG_AFTER))
        assert not decoded.rejects, decoded.rejects[0]
        assert self.engine.step(partition, decoded.batches).size == 0, "no event is late in these tests"
        self._note(self.engine.advance())

    def end(self, partition: str) -> None:
        """The partition has no more events."""
        self.engine.set_idle(partition)
        self._note(self.engine.advance())

    def finish(self) -> Run:
        for partition in self.partitions:
            self.end(partition)
        self._note(self.engine.finish())
        self._reports = {r.window: r for r in self.model.report()}
        return self

    def _note(self, transitions: Iterable[Any]) -> None:
        self.transitions += [(t.at, t.alert.fingerprint, str(t.state)) for t in transitions]

    def rows(self, window: str = "all") -> dict[tuple[tuple[tuple[str, str], ...], str], dict[str, Any]]:
        """Report rows of a window by group and metric, as of :meth:`finish`."""
        return {(tuple(r["group"].items()), r["metric"]): r for r in self._reports[window].groups}

    def gaps(self, window: str = "all") -> list[Any]:
        return list(self._reports[window].gaps)

    def everything(self) -> dict[str, Any]:
        """All that must not depend on how the events arrived."""
        return {
            "cells": {label: self.model.cell_table(label) for label in self.model.windows},
            "report": [(r.window, r.start, r.end, list(r.groups), list(r.gaps)) for r in self.model.report()],
            "transitions": sorted(self.transitions),
        }
