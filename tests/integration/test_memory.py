"""Memory stays where it is once every table is full, whatever the input and its attributes.

Each run is a process of its own, fed with made-up events in memory, so that no file is in the way. Its
resident memory is read after every batch, and the largest reading up to ``last`` events is compared with
the largest up to ``first``: the table of recent pairs fills and empties in generations of 2**18, so single
readings go up and down. The engine keeps ids for ``dedupe_window`` (6,000 events here), predictions for
``outcome_ttl`` (12,000) and sums for the longest window (30,000); the cache of attributes is full at 65,536
distinct ones. The last to be full is the first generation of recent pairs: at 2**18 joined events, and in
split input, where four pairs come from ten events, at 655,360.

glibc raises the size from which memory goes back to the system as it sees large arrays come and go, which
makes readings jump by 15 %; it is fixed at its default, so that what is read is what is in use.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GROWTH = 1.05
BATCH = 10_000
STEP_MS = 10
"""Event time from one event to the next: 6,000 events a minute."""

SCRIPT = """
import sys
import psutil
from monitor.records import RecordBatch
from monitor.wiring import build_decoders, build_engine
from tests.engine_helpers import LONG_AFTER, START, config_of

shape, attributes, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
config = config_of(
    {
        "task": "binary",
        "groups": ["a", "b", ["a", "b"]],
        "attributes": {"a": {"max_values": 20}},
        "max_cells": 200,
        "metrics": ["selection_rate", "true_positive_rate"],
        "windows": ["5m", "all"],
        "join": {
            "outcome_ttl": "2m", "outcome_wait": "1m", "dedupe_window": "1m", "dedupe_max_ids": 20_000,
        },
        "rules": [{"metric": "selection_rate", "groups": "a", "tolerance": 0.3, "window": "5m"}],
    },
    time={"bucket": "1m", "grace": "10s"},
)
engine = build_engine(config)
decoder = build_decoders(config, engine)["events"]
engine.add_partition("p")


def payload(i):
    time = START + i * STEP
    a = f"v{i}" if attributes == "unbounded" else f"v{i * 7919 % 13}"
    if shape == "split" and i % 2:
        # every fifth prediction never gets its outcome
        known = i - 101 if i // 2 % 5 else -i
        return b'{"id":"%d","time":%d,"outcome":%d}' % (known, time, i // 2 % 3 == 0)
    outcome = b"" if shape == "split" else b',"outcome":%d' % (i % 3 == 0)
    return b'{"id":"%d","time":%d,"decision":%d,"attributes":{"a":"%s","b":%d}%s}' % (
        i, time, i % 2, a.encode(), i % 3, outcome,
    )


largest, sizes = 0, {}
for start in range(0, last, BATCH):
    records = [payload(i) for i in range(start, start + BATCH)]
    decoded = decoder.decode(RecordBatch("p", records, range(start, start + BATCH), LONG_AFTER, True))
    assert not decoded.rejects
    assert engine.step("p", decoded.batches).size == 0
    engine.advance()
    largest = max(largest, psutil.Process().memory_info().rss)
    sizes[start + BATCH] = largest
model = engine.models["m"]
assert model.counts.joined > last * 0.35, model.counts
assert len(model.cells) < 3000, len(model.cells)
print(sizes[first], sizes[last])
"""


def growth(shape: str, attributes: str, first: int, last: int) -> float:
    """Largest resident memory up to ``last`` events as a multiple of that up to ``first``."""
    script = SCRIPT.replace("STEP", str(STEP_MS)).replace("BATCH", str(BATCH))
    done = subprocess.run(
        [sys.executable, "-c", script, shape, attributes, str(first), str(last)],
        cwd=ROOT,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    return after / before


CASES = [(s, a) for s in ("joined", "split") for a in ("bounded", "unbounded")]


@pytest.mark.parametrize(("shape", "attributes"), CASES)
def test_memory_does_not_grow(shape: str, attributes: str) -> None:
    """The short form, from where every table has been full once."""
    assert growth(shape, attributes, 700_000, 1_500_000) <= GROWTH


@pytest.mark.full
@pytest.mark.parametrize(("shape", "attributes"), CASES)
def test_memory_after_five_million_events(shape: str, attributes: str) -> None:
    assert growth(shape, attributes, 1_000_000, 5_000_000) <= GROWTH
