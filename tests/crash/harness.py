"""A service that dies at points of our choosing, and the world that outlives it.

The world holds a fixed log, what was committed to Kafka, a sender of posts, a receiver of webhooks, and a
folder with the state and the dead letters. At each step of the loop, and at each write to the disk, the
service *reaches* a point. Where it is to die, the folder is copied as it is then; the next life begins with
the copy, so nothing that happens to the dead one's objects afterwards can matter.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from monitor import service as service_module
from monitor.checkpoint import canonical_document
from monitor.config import Config
from monitor.records import RecordBatch
from monitor.service import Service
from monitor.sinks.outbox import Channel, Message, Outbox, Outcome, Verdict
from monitor.sources.http import Post, Receipt, Refused
from monitor.sources.kafka import KafkaStatus, PartitionStatus
from monitor.store import Store
from tests.engine_helpers import HOUR, MINUTE, START

SPAN = 3 * HOUR
GRACE = 10 * MINUTE
PREDICTIONS = ("predictions-0", "predictions-1", "predictions-2")
OUTCOMES = ("outcomes-0", "outcomes-1")
LONGEST = 600
"""Turns of a life, and lives, after which a run that does not end is taken for stuck."""

Cut = Callable[[int, int, int, str], bool]
"""Whether to die: life, points reached in it, points reached at all, name of the point."""


class Died(BaseException):
    """The process is no more."""


def never(life: int, here: int, total: int, name: str) -> bool:
    return False


def at_point(number: int) -> Cut:
    """Die once, at a point by its number."""
    return lambda life, here, total, name: life == 0 and here == number


def stairs(first: int = 1, step: int = 1) -> Cut:
    """Life i dies at its i-th point: each point of the first turns of a life, each at another place."""
    return lambda life, here, total, name: here == first + life * step


def around(point: str) -> Cut:
    """Die at a point of this name: at the first of a life, in another life at the second, and so on."""
    seen = {"life": -1, "times": 0}
    most = 31 if point in MANY_IN_A_TURN else 6

    def cut(life: int, here: int, total: int, name: str) -> bool:
        if life != seen["life"]:
            seen.update(life=life, times=0)
        seen["times"] += name == point
        return name == point and seen["times"] == 1 + life * 5 % most

    return cut


def by_chance(seed: int, share: float) -> Cut:
    chance = random.Random(seed)
    return lambda life, here, total, name: chance.random() < share


# --- what is sent -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Story:
    """A log by partition, and posts in the order they are sent, with their keys."""

    log: Mapping[str, Sequence[bytes]]
    posts: Sequence[tuple[str, bytes]]


def story(seed: int, cases: int, posts: int) -> Story:
    """Predictions and outcomes of two models over three hours; a gap of the first opens and closes twice."""
    chance = random.Random(seed)
    queues: dict[str, list[tuple[float, bytes]]] = {p: [] for p in (*PREDICTIONS, *OUTCOMES)}

    def put(partition: str, at: float, event: Mapping[str, Any]) -> None:
        arrives = at + chance.uniform(0, 0.8 * GRACE)
        queues[partition].append((arrives, json.dumps(event).encode()))

    for i in range(cases):
        at = int(START + i * SPAN / cases)
        prediction, outcome = _case(chance, f"id-{i}", at)
        for _ in range(chance.choice([1, 1, 1, 2])):
            put(chance.choice(PREDICTIONS), at, prediction)
        fate = chance.random()
        # Of a pair that is untimely the outcome may be given up at once or a while later, as partitions
        # interleave: none near the end, and none that repeats.
        untimely = [70] if fate >= 0.1 and at < START + HOUR else []
        known = at + chance.choice([-5, 1, 10, 35, *untimely]) * MINUTE
        if fate < 0.85 and known <= START + SPAN:
            put(chance.choice(OUTCOMES), known, {**outcome, "time": known})
        if fate < 0.1:
            put(chance.choice(OUTCOMES), known, {**outcome, "time": min(known, at), "outcome": True})
        if fate > 0.95:
            put(chance.choice([*PREDICTIONS, *OUTCOMES]), at, {"id": f"id-{i}", "time": "when?"})
        if fate > 0.9 and at > START + HOUR:  # too late for its own partition, whatever the others do
            partition = chance.choice(PREDICTIONS)
            late = {**prediction, "id": f"late-{i}", "time": at - HOUR}
            queues[partition].append((at + GRACE, json.dumps(late).encode()))
    log = {p: [payload for _, payload in sorted(q)] for p, q in queues.items()}
    return Story(log, [_post(chance, i, posts) for i in range(posts)])


def _case(chance: random.Random, name: str, at: int) -> tuple[dict[str, Any], dict[str, Any]]:
    sex, ward = chance.choice("fm"), chance.choice(["north", "south", None])
    if chance.random() < 0.2:
        words = ["", "a", "the cat", "the cat sat"]
        prediction = {"model": "speech", "hypothesis": chance.choice(words)}
        outcome = {"model": "speech", "reference": chance.choice(words)}
    else:
        unfair = any(first <= at - START < last for first, last in ((30 * MINUTE, HOUR), (2 * HOUR, 9e6)))
        share = (0.95 if sex == "f" else 0.05) if unfair else 0.5
        prediction = {"model": "binary", "decision": chance.random() < share}
        outcome = {"model": "binary", "outcome": chance.random() < 0.5}
    attributes = {"sex": sex, "ward": ward}
    return {"id": name, "time": at, "attributes": attributes, **prediction}, {"id": name, **outcome}


def _post(chance: random.Random, number: int, posts: int) -> tuple[str, bytes]:
    lines = [b"{" if chance.random() < 0.3 else b""]
    for i in range(4):
        at = int(START + (number + i / 4) * SPAN / posts)
        prediction, outcome = _case(chance, f"post-{number}-{i}", at)
        lines.append(json.dumps({**prediction, **outcome, "outcome_time": at + MINUTE}).encode())
    return f"key-{number}", b"\n".join(lines)


def config(root: Path, *, min_group_size: int = 1, posts: bool = True) -> Config:
    common = {
        "groups": ["sex", "ward", ["sex", "ward"]],
        "min_support": 3,
        "join": {"outcome_ttl": "1h", "outcome_wait": "15m", "dedupe_window": "30d"},
    }
    rules = [
        {"metric": metric, "groups": "sex", "tolerance": 0.4, "window": "15m", "for": n, "comparison": c}
        for metric, n, c in (
            ("selection_rate", 1, "between"),
            ("selection_rate", 2, "rest"),
            ("true_positive_rate", 1, "rest"),
        )
    ]
    windows = ["15m", "1h", "all"]
    sources: list[dict[str, Any]] = [{"name": "events", "kafka": {"topics": ["predictions", "outcomes"]}}]
    if posts:
        sources.append({"name": "posted", "http": {}})
    document = {
        "models": {
            "binary": {"task": "binary", "windows": windows, "rules": rules, **common},
            "speech": {"task": "speech", "windows": ["1h", "all"], **common},
        },
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},
        "sources": sources,
        "server": {"listen": "127.0.0.1:0", "ingest_token": "t"},
        "alerts": {"max_age": "3650d"},
        "dead_letter": {"path": str(root / "letters.jsonl")},
        "time": {"bucket": "5m", "grace": "10m", "idle_after": "1h"},
        "privacy": {"min_group_size": min_group_size},
        "state": {"directory": str(root / "state")},
    }
    return Config.model_validate(document)


# --- the world ----------------------------------------------------------------------------------------------
@dataclass
class World:
    """Everything that outlives the process, and the points at which it dies.

    With ``aligned`` each turn takes the same piece of every partition, whenever the process died before; else
    batches and the order of partitions differ from life to life. With ``power`` the machine dies with the
    process: what was not synced of generation files is lost or garbage. ``committed_wins`` is a broker that
    hands out from what was committed to it.
    """

    story: Story
    folder: Path
    cut: Cut = never
    seed: int = 0
    aligned: bool = False
    power: bool = False
    committed_wins: bool = False
    service: type[Service] = Service
    min_group_size: int = 1
    ms: int = START + 12 * HOUR
    committed: dict[str, int] = field(default_factory=dict)
    delivered: list[tuple[str, bytes]] = field(default_factory=list)
    answered: dict[str, Receipt] = field(default_factory=dict)
    letters: set[tuple[str, int, str]] = field(default_factory=set)
    points: list[str] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    trouble: Callable[[str], None] | None = None
    result: Any = None
    life: int = 0
    _here: int = 0
    _alive: bool = False
    _turning: bool = False
    _synced: dict[str, int] = field(default_factory=dict)
    _waiting: Any = None
    _log_size: int = 0

    @property
    def root(self) -> Path:
        return self.folder / f"life-{self.life}"

    def now(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000

    def chance(self, name: str) -> random.Random:
        """Chance of this life."""
        return random.Random(f"{self.seed} {self.life} {name}")

    def reach(self, name: str) -> None:
        """A point at which the process may die."""
        if not self._alive:
            return
        self._here += 1
        self.points.append(name)
        if self.trouble is not None and self._turning:
            self.trouble(name)
        if self.cut(self.life, self._here, len(self.points), name):
            self.die(name)

    def die(self, name: str) -> None:
        self._hear()  # an answer that was given may have reached the sender
        after = self.folder / f"life-{self.life + 1}"
        shutil.copytree(self.root, after)
        log = after / "state" / "state.db-wal"
        if name == "in COMMIT" and log.exists():  # in the middle of writing the log
            written = log.stat().st_size
            if written > self._log_size:
                os.truncate(log, self.chance("torn").randrange(self._log_size, written))
        if self.power:
            self._lose_power(after / "state")
        self._alive = False
        self.deaths.append(name)
        raise Died(name)

    def _lose_power(self, state: Path) -> None:
        chance = self.chance("power")
        for path in state.glob("*.rows"):
            size, safe = path.stat().st_size, self._synced.get(path.name, 0)
            if safe < size:
                os.truncate(path, chance.choice([safe, size]))
                with path.open("r+b") as file:
                    file.seek(safe)
                    file.write(bytes(path.stat().st_size - safe))

    def run(self) -> Result:
        """Live, die and live again, to the end of the log."""
        self.root.mkdir(parents=True)
        while True:
            body: list[Service] = []
            try:
                return self._live(body)
            except Died:
                pass
            finally:
                self._alive = False
                for service in body:
                    _bury(service)
            shutil.rmtree(self.root)
            self.life += 1
            assert self.life < LONGEST, "no life comes further than the one before"

    def _live(self, body: list[Service]) -> Result:
        self._here, self._alive, self._turning = 0, True, False
        self._waiting = None
        settings = config(self.root, min_group_size=self.min_group_size, posts=bool(self.story.posts))
        kind = mortal(self.service)
        service = kind.__new__(kind)
        service.world = self
        body.append(service)
        service.__init__(settings, now_ms=self.now, monotonic=self.monotonic)
        self._repeat_posts(service)
        chance = self.chance("turns")
        for _ in range(LONGEST):
            self._send(service)
            self.ms += 400
            self._turning = True
            service.turn()
            self._turning = False
            for _ in range(chance.randrange(4)):
                service._notifier.channels[0].step()
            if self._done(service):
                service._drain()
                return self._result(service)
        raise AssertionError(f"the log did not end within {LONGEST} turns")

    def _done(self, service: Service) -> bool:
        kafka: Any = service._kafka
        return (
            all(kafka.safe[p] == len(records) for p, records in self.story.log.items())
            and len(self.answered) == len(self.story.posts)
            and not service.engine.behind
            and not (service._answers or service._messages or service._unwritten)
            and service._notifier.channels[0].stats.queued == 0
        )

    # posts
    def _repeat_posts(self, service: Service) -> None:
        """A sender that is not sure sends what was answered again, with its key, and is told the same."""
        for key, body in self.story.posts[: len(self.answered)]:
            receipt = service._inbox.submit(Post("posted", body, self.ms), key)
            assert receipt.done(), f"{key} was answered before the restart, and nobody knows it"
            again, before = receipt.result(0), self.answered[key]
            assert (again.read, again.accepted) == (before.read, before.accepted)

    def _send(self, service: Service) -> None:
        """One post after the other, each when the one before was answered."""
        self._hear()
        if self._waiting is None and len(self.answered) < len(self.story.posts):
            key, body = self.story.posts[len(self.answered)]
            with suppress(Refused):
                self._waiting = service._inbox.submit(Post("posted", body, self.ms), key)

    def _hear(self) -> None:
        if self._waiting is not None and self._waiting.done():
            key, _ = self.story.posts[len(self.answered)]
            self.answered[key] = self._waiting.result(0)
            self._waiting = None

    # what came of it
    def _result(self, service: Service) -> Result:
        store = service._store
        assert store is not None
        loaded = store.load()
        assert loaded is not None
        assert not loaded.outbox, "all messages were delivered, and the store knows"
        assert store.verify() == []
        messages: dict[str, bytes] = {}
        for name, body in self.delivered:
            assert messages.setdefault(name, body) == body, "a repeated message says the same"
        reports, models = [], service.engine.models
        for model in models.values():
            for report in model.report():
                rows = sorted(map(repr, [*report.groups, *report.gaps]))
                table = sorted(model.cell_table(report.window).items())
                reports.append((report.model, report.window, report.start, report.end, rows, table))
        lines = (self.root / "letters.jsonl").read_bytes().splitlines()
        whole = [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]
        return Result(
            export=exported(store),
            offsets=dict(loaded.offsets),
            reports=reports,
            counts={name: repr(model.counts) for name, model in models.items()},
            counters={name: _counters(model) for name, model in models.items()},
            messages=messages,
            letters={(letter["partition"], letter["position"], letter["reason"]) for letter in whole},
            receipts={key: (r.read, r.accepted) for key, r in self.answered.items()},
        )

    # the disk
    def fsync(self, real: Callable[[int], None], descriptor: int) -> None:
        self.reach("before fsync")
        real(descriptor)
        if self._alive:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self._synced[path.name] = os.fstat(descriptor).st_size
        self.reach("after fsync")

    def pwrite(self, real: Callable[..., int], descriptor: int, data: Any, offset: int) -> int:
        whole = len(data) <= 64 or not self._alive
        written = real(descriptor, data if whole else data[: len(data) // 2], offset)
        self.reach("in pwrite")
        return written

    def commit(self, execute: Callable[[], Any]) -> Any:
        self.reach("before COMMIT")
        log = self.root / "state" / "state.db-wal"
        self._log_size = log.stat().st_size if log.exists() else 0
        done = execute()
        self.reach("in COMMIT")
        self.reach("after COMMIT")
        return done


@dataclass
class Result:
    """All that must not depend on when the process died."""

    export: list[str]
    offsets: dict[str, int]
    reports: list[Any]
    counts: dict[str, str]
    counters: dict[str, Any]
    messages: dict[str, bytes]
    letters: set[Any]
    receipts: dict[str, tuple[int, int]]

    def check(self, undisturbed: Result) -> None:
        """Fail unless this came to the same, with the first difference."""
        for name in ("receipts", "offsets", "counts", "messages", "letters", "reports", "counters"):
            mine, theirs = getattr(self, name), getattr(undisturbed, name)
            assert mine == theirs, f"{name} differ: {_first(mine, theirs)}"
        pairs = zip(self.export, undisturbed.export, strict=False)
        differ = next((f"{a}\n{b}" for a, b in pairs if a != b), "in length")
        assert self.export == undisturbed.export, f"exports differ: {differ}"


def _first(mine: Any, theirs: Any) -> str:
    if isinstance(mine, list):
        return next((f"{a} and {b}" for a, b in zip(mine, theirs, strict=False) if a != b), "in length")
    if isinstance(mine, dict):
        keys = [k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)]
        return "; ".join(f"{k}: {mine.get(k)} and {theirs.get(k)}" for k in keys[:2])
    return f"{sorted(mine - theirs)[:2]} and {sorted(theirs - mine)[:2]}"


def exported(store: Store) -> list[str]:
    """The lines of an export."""
    return store.export(canonical_document).decode().splitlines()


def _counters(model: Any) -> Any:
    return {
        grouping: (c.withheld, sorted((group, sums.tolist()) for group, sums in c.sums.items()))
        for grouping, c in model.counters.groupings.items()
    }


# --- doubles ------------------------------------------------------------------------------------------------
class Kafka:
    """Hands out a fixed log from the positions it is given, in batches of chance."""

    def __init__(self, world: World, stored: Mapping[str, int]) -> None:
        self._world = world
        first, second = (stored, world.committed) if not world.committed_wins else (world.committed, stored)
        self.next = {p: first.get(p, second.get(p, 0)) for p in world.story.log}
        self.safe: dict[str, int] = dict(self.next)
        self._chance = world.chance("kafka")
        self._dumb = self._chance.randrange(3) * (not world.aligned)
        self._paused: set[str] = set()

    def source_of(self, partition: str) -> str:
        return "events"

    def poll(self, seconds: float) -> Sequence[RecordBatch]:
        if self._dumb:  # it takes its time to connect
            self._dumb -= 1
            return []
        names = [p for p in self.next if p not in self._paused]
        if not self._world.aligned:
            self._chance.shuffle(names)
            names = names[: self._chance.randint(0, len(names))]
        return [batch for name in names for batch in self._batches(name)]

    def _batches(self, name: str) -> Iterable[RecordBatch]:
        log = self._world.story.log[name]
        sizes = [8] if self._world.aligned else self._chance.choice([[1], [5], [3, 9], [20], [40]])
        for size in sizes:
            first = self.next[name]
            positions = range(first, min(first + size, len(log)))
            if positions:
                self.next[name] = positions[-1] + 1
                payloads = [log[at] for at in positions]
                yield RecordBatch(name, payloads, positions, self._world.ms)

    def applied(self, batch: RecordBatch) -> None:
        self.safe[batch.partition] = batch.positions[-1] + 1

    def positions(self) -> dict[str, int]:
        return {} if self._dumb else dict(self.safe)

    def commit(self, wait_seconds: float = 0) -> None:
        self._world.committed.update(self.positions())

    def pause(self, names: Iterable[str]) -> None:
        if not self._world.aligned:
            self._paused |= set(names)

    def resume(self, names: Iterable[str]) -> None:
        self._paused -= set(names)

    def status(self) -> KafkaStatus:
        partitions = {
            name: PartitionStatus("events", *_split(name), at, len(self._world.story.log[name]), None,
                                  name in self._paused, None)
            for name, at in self.next.items()
        }  # fmt: skip
        known = not self._dumb
        return KafkaStatus(known, known, (), 0, "not yet", partitions if known else {}, 0)

    def close(self) -> None:
        """Nothing is open."""


def _split(name: str) -> tuple[str, int]:
    topic, _, number = name.rpartition("-")
    return topic, int(number)


class Receiver:
    """Takes messages, and answers 503 now and then; its answer may come too late for the dying."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance("receiver")

    def deliver(self, message: Message) -> Outcome:
        self._world.reach("before delivery")
        if self._chance.random() < 0.3:
            return Outcome(Verdict.RETRY, "it answered 503", 503)
        self._world.delivered.append((message.id, message.body))
        self._world.reach("after delivery")
        return Outcome(Verdict.DELIVERED, "delivered", 200)

    def abort(self) -> None:
        """Nothing to cut short."""


class _Connection(sqlite3.Connection):
    world: World

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        real = partial(super().execute, sql, *values)
        if sql == "COMMIT":
            return self.world.commit(real)
        if sql.startswith("BEGIN"):
            self.world.reach("before BEGIN")
        return real()


_STEPS = (
    "_take",
    "_apply_all",
    "_apply",
    "_close_buckets",
    "_write",
    "_gather",
    "_commit_positions",
    "_deliver",
)
POINTS = (
    *(f"{when} {name}" for name in _STEPS for when in ("before", "after")),
    "before BEGIN",
    "in pwrite",
    "before fsync",
    "after fsync",
    "before COMMIT",
    "in COMMIT",
    "after COMMIT",
    "before delivery",
    "after delivery",
)
"""All kinds of points."""
MANY_IN_A_TURN = ("in pwrite", "before fsync", "after fsync")


def mortal(kind: type[Service]) -> Any:
    """The service with a point before and after each step, each batch and each answer."""

    class Mortal(kind):
        world: World

        def _show(self, *, force: bool = False) -> None:
            """Nobody looks."""

    def pointed(name: str) -> Callable[..., Any]:
        def step(self: Any, *arguments: Any, **options: Any) -> Any:
            self.world.reach(f"before {name}")
            done = getattr(super(Mortal, self), name)(*arguments, **options)
            self.world.reach(f"after {name}")
            return done

        return step

    for name in _STEPS:
        setattr(Mortal, name, pointed(name))
    return Mortal


def _bury(service: Service) -> None:
    """Close what a dead service held; its folder is not looked at again."""
    if hasattr(service, "web"):
        service._close()
        return
    for name in ("_letters", "_store"):  # it died while it was made
        if (part := getattr(service, name, None)) is not None:
            part.close()


def install(patch: pytest.MonkeyPatch, world: World) -> World:
    """Put the doubles of a world in the place of Kafka, channels and the disk."""

    def source(config: Config, now_ms: Any, stored: Mapping[str, int]) -> Kafka:
        return Kafka(world, stored)

    def channels(config: Config, now_ms: Any) -> list[Channel]:
        outbox = Outbox(chance=lambda: 0.5)
        receiver = Receiver(world)
        return [Channel("on-call", receiver, now_ms=now_ms, monotonic=world.monotonic, outbox=outbox)]

    connection = type("Connection", (_Connection,), {"world": world})
    patch.setattr(service_module, "_kafka_source", source)
    patch.setattr(service_module, "_channels", channels)
    patch.setattr(service_module, "_POLL_SECONDS", 0.0)
    patch.setattr(sqlite3, "connect", partial(_REAL_CONNECT, factory=connection))
    patch.setattr(os, "fsync", partial(world.fsync, _REAL_FSYNC))
    patch.setattr(os, "pwrite", partial(world.pwrite, _REAL_PWRITE))
    return world


_REAL_CONNECT, _REAL_FSYNC, _REAL_PWRITE = sqlite3.connect, os.fsync, os.pwrite
