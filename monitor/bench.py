"""``fairness-monitor bench``: throughput of a replay beside bare loops over the same file, in one run.

Times of one machine say little; the ratios between loops that ran side by side hold.
"""

from __future__ import annotations

import gc
import json
import platform
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
from pydantic import TypeAdapter
from rich import box
from rich.console import Console
from rich.table import Table
from typing_extensions import TypedDict

from monitor.config_file import parse_config
from monitor.replay import replay
from monitor.sinks.dead_letter import DeadLetters
from monitor.sources.files import FileInput

_ATTRIBUTES = {
    "accent": [f"accent-{i}" for i in range(10)],
    "site": [f"ward-{i}" for i in range(12)],
    "noise": ["quiet", "low", "medium", "high", "very high"],
    "sex": ["female", "male"],
    "device": ["headset", "room"],
}
_PAIRS = (("accent", "sex"), ("accent", "noise"), ("site", "noise"), ("site", "sex"), ("noise", "device"))
_GROUPINGS: tuple[tuple[str, ...], ...] = (*((a,) for a in _ATTRIBUTES), *_PAIRS)
_CONFIG = """
models:
  bench:
    task: binary
    groups: [accent, site, noise, sex, device,
             [accent, sex], [accent, noise], [site, noise], [site, sex], [noise, device]]
    windows: [1h, all]
    rules:
      - {metric: false_positive_rate, groups: accent, tolerance: 0.05, window: 1h}
      - {metric: true_positive_rate, groups: [accent, sex], tolerance: 0.2, window: 1h}
time: {grace: 1m}
"""


JOINED, SPLIT = "joined events", "split events"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One loop over the events of one file: the best of its rounds."""

    name: str
    events: int
    cpu_us_per_event: float
    events_per_second: float


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All loops of one run.

    ``ratios`` say, for joined and for split events, how many times the CPU time of a replay each loop
    over the same file takes: above 1 the replay is quicker.
    """

    machine: str
    events: int
    bytes_per_event: float
    measurements: Sequence[Measurement]
    ratios: dict[str, dict[str, float]]

    def document(self) -> dict[str, Any]:
        """The run as JSON."""
        return asdict(self)


def write_events(joined: Path, split: Path, events: int, seed: int = 0) -> None:
    """The same events twice: joined ones, and predictions with outcomes that come a little later."""
    rng = random.Random(seed)
    names = list(_ATTRIBUTES)
    waiting: list[tuple[int, str]] = []
    with joined.open("w") as one, split.open("w") as two:
        for i in range(events):
            at = 1_700_000_000_000 + i
            attributes = {n: rng.choice(_ATTRIBUTES[n]) for n in names}
            base = {"id": f"p-{i:08d}", "time": at, "attributes": attributes, "decision": rng.random() < 0.4}
            outcome = rng.random() < 0.5
            one.write(json.dumps({**base, "outcome": outcome}, separators=(",", ":")) + "\n")
            two.write(json.dumps(base, separators=(",", ":")) + "\n")
            later = at + 20_000
            known = {"id": base["id"], "time": later, "outcome": outcome}
            waiting.append((later, json.dumps(known, separators=(",", ":"))))
            if i >= 20_000:
                two.write(waiting[i - 20_000][1] + "\n")
                waiting[i - 20_000] = (0, "")
        two.writelines(text + "\n" for _, text in waiting if text)


def run(events: int, rounds: int, tell: Callable[[str], None]) -> Benchmark:
    """Time every loop ``rounds`` times, taking turns, and keep each one's best.

    Each runs in a process of its own: what one leaves in memory would slow the next one down.
    """
    with tempfile.TemporaryDirectory() as folder:
        joined, split = Path(folder, "joined.jsonl"), Path(folder, "split.jsonl")
        tell(f"writing {events:,} events")
        write_events(joined, split, events)
        loops: dict[str, tuple[Path, Callable[[Path], int]]] = {
            f"{JOINED}: replay": (joined, _replay),
            f"{JOINED}: bare msgspec": (joined, _msgspec),
            f"{JOINED}: bare pydantic": (joined, _pydantic),
            f"{JOINED}: bare json.loads": (joined, _json),
            f"{JOINED}: json.loads and a river ConfusionMatrix per group": (joined, _river),
            f"{SPLIT}: replay": (split, _replay),
            f"{SPLIT}: bare msgspec": (split, _msgspec),
            f"{SPLIT}: bare json.loads": (split, _json),
        }
        best: dict[str, Measurement] = {}
        for turn in range(rounds):
            for name, (path, loop) in loops.items():
                tell(f"round {turn + 1} of {rounds}: {name}")
                count, cpu = _alone(loop, path)
                if name not in best or cpu / count * 1e6 < best[name].cpu_us_per_event:
                    best[name] = Measurement(name, count, cpu / count * 1e6, count / cpu)
        size = joined.stat().st_size / events
    ratios: dict[str, dict[str, float]] = {JOINED: {}, SPLIT: {}}
    for name, measurement in best.items():
        events_are, loop_name = name.split(": ", 1)
        if loop_name != "replay":
            own = best[f"{events_are}: replay"].cpu_us_per_event
            ratios[events_are][loop_name] = measurement.cpu_us_per_event / own
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    return Benchmark(machine, events, size, list(best.values()), ratios)


def render(result: Benchmark, console: Console) -> None:
    """Print the measurements, and how many times quicker each replay is than each loop."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("loop over the same file")
    table.add_column("CPU µs per event", justify="right")
    table.add_column("events per second", justify="right")
    table.add_column("replay is × quicker", justify="right")
    for m in result.measurements:
        events_are, name = m.name.split(": ", 1)
        ratio = result.ratios[events_are].get(name)
        told = "" if ratio is None else f"{ratio:.2f}"
        table.add_row(m.name, f"{m.cpu_us_per_event:.2f}", f"{m.events_per_second:,.0f}", told)
    console.print(table)
    console.print(
        f"{result.events:,} joined events of {result.bytes_per_event:.0f} bytes, one core, {result.machine}",
        style="dim",
        highlight=False,
    )


def _alone(loop: Callable[[Path], int], path: Path) -> tuple[int, float]:
    """Run a loop in a fresh process; return its events and the CPU seconds it took."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        return process.submit(_timed, loop, path).result()


def _timed(loop: Callable[[Path], int], path: Path) -> tuple[int, float]:
    start = time.process_time()
    count = loop(path)
    return count, time.process_time() - start


def _replay(path: Path) -> int:
    gc.set_threshold(100_000)  # as the command does
    with DeadLetters(None) as letters:
        result = replay(
            parse_config(_CONFIG),
            [FileInput(str(path), "events")],
            now_ms=lambda: 2_000_000_000_000,
            dead_letters=letters,
        )
    if result.events["rejected"] or result.events["unmatched_predictions"]:
        raise RuntimeError(f"the benchmark's own events were not all taken: {dict(result.events)}")
    return result.events["read"]


def _json(path: Path) -> int:
    count = 0
    with path.open("rb") as lines:
        for line in lines:
            json.loads(line)
            count += 1
    return count


class _Event(msgspec.Struct, gc=False):
    id: str
    time: int
    attributes: dict[str, str] | None = None
    decision: bool | None = None
    outcome: bool | None = None


def _msgspec(path: Path) -> int:
    decode = msgspec.json.Decoder(_Event).decode
    count = 0
    with path.open("rb") as lines:
        for line in lines:
            decode(line)
            count += 1
    return count


class _Typed(TypedDict):
    id: str
    time: int
    attributes: dict[str, str]
    decision: bool
    outcome: bool


def _pydantic(path: Path) -> int:
    validate = TypeAdapter(_Typed).validate_json
    count = 0
    with path.open("rb") as lines:
        for line in lines:
            validate(line)
            count += 1
    return count


def _river(path: Path) -> int:
    from river import metrics

    new_table: Callable[[], Any] = metrics.ConfusionMatrix
    tables: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = {}
    count = 0
    with path.open("rb") as lines:
        for line in lines:
            event = json.loads(line)
            attributes = event["attributes"]
            for grouping in _GROUPINGS:
                key = (grouping, tuple(attributes[a] for a in grouping))
                table = tables.get(key)
                if table is None:
                    table = tables[key] = new_table()
                table.update(event["outcome"], event["decision"])
            count += 1
    return count
