"""The Kafka source with a hostile double of the client: no broker, no waiting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from pydantic import SecretStr

from monitor.connections import KafkaConfig, KafkaSecurity
from monitor.errors import MonitorError
from monitor.kafka_client import (
    LogCut,
    Metadata,
    NoAnswer,
    NoPosition,
    PositionGone,
    Stalled,
    TopicMetadata,
    TopicPartition,
    TopicsDenied,
    connection_options,
)
from monitor.records import RecordBatch
from monitor.sources.kafka import KafkaSource, TopicStart

WALL_MS = 1_800_000_000_000


class Clock:
    """Monotonic seconds; the wall clock goes with it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.jump_ms = 0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def now_ms(self) -> int:
        return WALL_MS + int(self.seconds * 1000) + self.jump_ms


class Row(NamedTuple):
    offset: int
    value: bytes | None
    timestamp: int = WALL_MS


@dataclass
class Log:
    """One partition: records, and offsets that markers take behind them."""

    rows: list[Row] = field(default_factory=list)
    begin: int = 0
    end: int = 0
    leader: int | None = 1

    def add(self, count: int = 1, *, timestamp: int = WALL_MS) -> None:
        for _ in range(count):
            self.rows.append(Row(self.end, b"{%d}" % self.end, timestamp))
            self.end += 1

    def trim(self, begin: int) -> None:
        self.begin = begin
        self.rows = [row for row in self.rows if row.offset >= begin]


class Cluster:
    """What a broker knows, and how it misbehaves."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.logs: dict[TopicPartition, Log] = {}
        self.ids: dict[str, int] = {}
        self.denied: set[str] = set()
        self.unreadable: set[str] = set()
        self.committed: dict[TopicPartition, int] = {}
        self.down = False
        self.silent: set[int] = set()
        self.fails: list[Exception] = []
        self.commit_error: Exception | None = None
        self.consumers: list[FakeConsumer] = []
        self.metadata = Metadata({})

    def topic(self, name: str, *counts: int) -> None:
        self.ids[name] = self.ids.get(name, 0) + 1
        for at in [at for at in self.logs if at.topic == name]:
            del self.logs[at]
        for number, count in enumerate(counts):
            self.logs[TopicPartition(name, number)] = Log()
            self.logs[TopicPartition(name, number)].add(count)
        self.refresh()

    def refresh(self) -> None:
        topics: dict[str, dict[int, int | None]] = {}
        for at, log in self.logs.items():
            if at.topic not in self.denied:
                topics.setdefault(at.topic, {})[at.partition] = log.leader
        self.metadata = Metadata(
            {name: TopicMetadata(self.ids[name], leaders) for name, leaders in topics.items()},
            frozenset(self.denied),
        )

    def connect(self, with_group: bool) -> FakeConsumer:
        self.consumers.append(FakeConsumer(self, with_group))
        return self.consumers[-1]

    def check(self, partitions: Sequence[TopicPartition]) -> None:
        for at in partitions:
            if self.down or at not in self.logs or self.logs[at].leader in {None, *self.silent}:
                self.clock.seconds += 1
                raise NoAnswer("time is up")
            if at.topic in self.unreadable:
                raise TopicsDenied([at.topic])


class FakeConsumer:
    """Keeps the rules of kafka-python, and complains about callers that break them."""

    def __init__(self, cluster: Cluster, with_group: bool) -> None:
        self.cluster = cluster
        self.with_group = with_group
        self.opened = self.closed = False
        self.at: dict[TopicPartition, int | None] = {}
        self.answers: list[Callable[[], None]] = []
        self.stuck = False
        self.calls: list[str] = []

    def connect(self, seconds: float) -> bool:
        assert not self.closed
        if self.cluster.fails:
            raise self.cluster.fails.pop(0)
        if self.cluster.down:
            self.cluster.clock.seconds += seconds
            return False
        self.opened = True
        return True

    def metadata(self) -> Metadata:
        assert self.opened
        return self.cluster.metadata

    def complaint(self) -> str | None:
        return "connection refused"

    def busy(self) -> bool:
        return self.stuck

    def _free(self, name: str) -> None:
        assert self.opened
        assert not self.closed
        assert not self.stuck, f"{name} would have to wait for poll"
        self.calls.append(name)

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self._free("assign")
        self.at = {at: self.at.get(at) for at in partitions}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._free("seek")
        assert partition in self.at, "not assigned"
        self.at[partition] = offset

    def positions(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        self._free("positions")
        assert set(partitions) <= set(self.at), "not assigned"
        return {at: place for at in partitions if (place := self.at[at]) is not None}

    def poll(self, seconds: float, max_records: int) -> Mapping[TopicPartition, Sequence[Row]]:
        assert self.opened
        assert not self.closed
        if self.stuck:
            self.cluster.clock.seconds += seconds
            return {}
        self._free("poll")
        while self.answers:
            self.answers.pop(0)()
        if self.cluster.fails:
            raise self.cluster.fails.pop(0)
        if self.cluster.down:
            self.cluster.clock.seconds += seconds
            return {}
        missing = [at for at, place in self.at.items() if place is None]
        for at in missing if self.with_group else ():
            self.at[at] = self.cluster.committed.get(at)
        if missing := [at for at, place in self.at.items() if place is None]:
            raise NoPosition(missing)
        found: dict[TopicPartition, Sequence[Row]] = {}
        for at, place in self.at.items():
            assert place is not None
            log = self.cluster.logs.get(at)
            if log is None or log.leader in {None, *self.cluster.silent}:
                continue
            if at.topic in self.cluster.unreadable:
                raise TopicsDenied([at.topic])
            if not log.begin <= place <= log.end:
                raise PositionGone({at: place})
            rows = [row for row in log.rows if row.offset >= place][:max_records]
            max_records -= len(rows)
            if rows:
                found[at] = rows
                self.at[at] = rows[-1].offset + 1
            if max_records and not [r for r in log.rows if r.offset >= (self.at[at] or 0)]:
                self.at[at] = log.end  # beyond markers
            if not max_records:
                break
        if not found:
            self.cluster.clock.seconds += seconds
        return found

    def beginning_offsets(self, partitions: Sequence[TopicPartition], seconds: float) -> dict[Any, int]:
        self._free("beginning_offsets")
        self.cluster.check(partitions)
        return {at: self.cluster.logs[at].begin for at in partitions}

    def end_offsets(self, partitions: Sequence[TopicPartition], seconds: float) -> dict[Any, int]:
        self._free("end_offsets")
        self.cluster.check(partitions)
        return {at: self.cluster.logs[at].end for at in partitions}

    def offsets_for_times(self, times: Mapping[TopicPartition, int], seconds: float) -> dict[Any, int | None]:
        self._free("offsets_for_times")
        self.cluster.check(list(times))
        rows = {
            at: [r.offset for r in self.cluster.logs[at].rows if r.timestamp >= times[at]] for at in times
        }
        return {at: found[0] if found else None for at, found in rows.items()}

    def commit_async(
        self, offsets: Mapping[TopicPartition, int], done: Callable[[Exception | None], None]
    ) -> None:
        self._free("commit_async")
        if self.cluster.commit_error is None:
            self.cluster.committed.update(offsets)
        error = self.cluster.commit_error
        self.answers.append(lambda: done(error))

    def commit(self, offsets: Mapping[TopicPartition, int], seconds: float) -> None:
        self._free("commit")
        if self.cluster.commit_error is not None:
            raise self.cluster.commit_error
        self.cluster.committed.update(offsets)

    def close(self, seconds: float) -> None:
        assert not self.closed
        self.closed = True


class World:
    """A source, its cluster and clock, and what has been read."""

    def __init__(self, **topics: Any) -> None:
        self.clock = Clock()
        self.cluster = Cluster(self.clock)
        self.read: dict[str, list[int]] = {}
        self.batches: list[RecordBatch] = []

    def open(
        self, *topics: str, start: Any = "earliest", group: str | None = "g", **more: Any
    ) -> KafkaSource:
        self.source = KafkaSource(
            [TopicStart(t, f"from-{t}", start) for t in topics],
            lambda: self.cluster.connect(group is not None),
            group,
            self.clock.now_ms,
            ["kafka:9092"],
            self.clock.monotonic,
            self.clock.sleep,
            **more,
        )
        self.source.start()
        return self.source

    def turn(self, times: int = 1, *, apply: bool = True) -> None:
        for _ in range(times):
            before = self.clock.seconds
            for batch in self.source.poll(0.2):
                self.read.setdefault(batch.partition, []).extend(batch.positions)
                self.batches.append(batch)
                if apply:
                    self.source.applied(batch)
            assert self.clock.seconds - before <= 1.5, "the loop was held up"

    def log(self, name: str) -> Log:
        topic, _, number = name.rpartition("-")
        return self.cluster.logs[TopicPartition(topic, int(number))]

    def at(self, name: str) -> Any:
        return self.source.status().partitions[name]


@pytest.fixture
def world() -> World:
    return World()


def test_everything_is_read_once_and_the_lag_reaches_zero(world: World) -> None:
    world.cluster.topic("a", 5, 0, 3)
    source = world.open("a")
    world.turn(20)
    assert world.read == {"a-0": [0, 1, 2, 3, 4], "a-2": [0, 1, 2]}
    status = source.status()
    assert status.connected
    assert status.ready
    assert status.errors == 0
    assert status.last_error is None
    assert [(p.position, p.end, p.lag) for p in status.partitions.values()] == [
        (5, 5, 0),
        (0, 0, 0),
        (3, 3, 0),
    ]
    assert source.source_of("a-2") == "from-a"
    assert world.batches[0].payloads[0] == b"{0}"


def test_null_values_become_empty_payloads(world: World) -> None:
    world.cluster.topic("a", 0)
    world.log("a-0").rows = [Row(0, None), Row(1, b"")]
    world.log("a-0").end = 2
    world.open("a")
    world.turn(5)
    assert world.batches[0].payloads == [b"", b""]


@pytest.mark.parametrize(("start", "first"), [("earliest", 2), ("latest", 10), (WALL_MS + 5, 8)])
def test_start_without_a_committed_position(world: World, start: Any, first: int) -> None:
    world.cluster.topic("a", 8)
    world.log("a-0").trim(2)
    world.log("a-0").add(2, timestamp=WALL_MS + 5)
    world.open("a", start=start, group=None)
    world.turn(5)
    world.log("a-0").add()
    world.turn(5)
    assert world.read == {"a-0": list(range(first, 11))}


def test_a_time_after_the_last_record_is_the_end(world: World) -> None:
    world.cluster.topic("a", 8)
    world.open("a", start=WALL_MS + 1)
    world.turn(5)
    assert world.read == {}
    assert world.at("a-0").position == 8


def test_a_committed_position_wins(world: World) -> None:
    world.cluster.topic("a", 8, 8)
    world.cluster.committed[TopicPartition("a", 0)] = 6
    world.open("a", start="latest")
    world.turn(5)
    assert world.read == {"a-0": [6, 7]}
    assert world.at("a-1").position == 8


def test_what_comes_while_nobody_reads_is_not_passed_over(world: World) -> None:
    world.cluster.topic("a", 8)
    source = world.open("a", start="latest")
    world.turn(5)
    source.commit()
    assert world.cluster.committed == {TopicPartition("a", 0): 8}


def test_without_group_nothing_is_committed(world: World) -> None:
    world.cluster.topic("a", 8)
    source = world.open("a", group=None)
    world.turn(5)
    source.commit()
    source.commit(5)
    assert world.cluster.committed == {}


def test_a_missing_topic_does_not_hold_up_the_others_and_is_read_whole_later(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.cluster.topic("a", 2)
    source = world.open("a", "b", start="latest")
    for _ in range(5):
        world.turn(5)
        world.cluster.refresh()
    assert source.status().missing_topics == ["b"]
    assert source.status().ready
    assert source.status().errors == 1
    assert "has no topic b" in str(source.status().last_error)
    assert caplog.text.count("has no topic b") == 1
    world.cluster.topic("b", 4)
    world.turn(5)
    assert world.read == {"b-0": [0, 1, 2, 3]}
    assert source.status().missing_topics == []
    assert source.status().last_error is None


def test_partitions_added_later_are_read_from_their_beginning(world: World) -> None:
    world.cluster.topic("a", 2)
    world.open("a", start="latest")
    world.turn(5)
    world.cluster.logs[TopicPartition("a", 1)] = Log()
    world.log("a-1").add(3)
    world.cluster.refresh()
    world.turn(5)
    assert world.read == {"a-1": [0, 1, 2]}


def test_what_exists_when_the_broker_is_first_reached_is_not_new(world: World) -> None:
    world.cluster.down = True
    source = world.open("a", start="latest")
    world.turn(30)
    assert not source.status().ready
    world.cluster.topic("a", 5)
    world.cluster.down = False
    world.turn(10)
    assert world.read == {}
    assert source.status().ready


def test_an_outage_is_told_once_and_stops_the_clock_of_quiet(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.cluster.topic("a", 5)
    source = world.open("a")
    world.turn(30)
    quiet = world.at("a-0").quiet_since_ms
    assert quiet is not None
    assert quiet < world.clock.now_ms() - 2000
    world.cluster.down = True
    world.turn(15)
    assert not source.status().connected
    assert source.status().ready
    assert source.status().errors > 2
    assert world.at("a-0").quiet_since_ms is None
    world.turn(200)  # so long that the connection is made anew
    assert len(world.cluster.consumers) > 1
    assert all(consumer.closed for consumer in world.cluster.consumers[:-1])
    world.cluster.down = False
    back = world.clock.now_ms()
    world.log("a-0").add(5)
    world.turn(60)
    assert world.read == {"a-0": list(range(10))}
    assert source.status().connected
    assert world.at("a-0").quiet_since_ms >= back
    assert caplog.text.count("does not answer") == 1
    assert caplog.text.count("fine again") == 1


def test_quiet_is_not_measured_by_the_wall_clock(world: World) -> None:
    world.cluster.topic("a", 5)
    world.open("a")
    world.turn(20)
    world.clock.jump_ms = 3_600_000
    assert world.clock.now_ms() - world.at("a-0").quiet_since_ms < 10_000


def test_records_end_quiet_and_a_backlog_is_not_quiet(world: World) -> None:
    world.cluster.topic("a", 0)
    world.open("a", max_records=2)
    world.turn(30)
    assert world.at("a-0").quiet_since_ms is not None
    world.log("a-0").add(100)
    world.turn(20)
    assert world.at("a-0").quiet_since_ms is None
    caught_up = world.clock.now_ms()
    world.turn(60)
    assert world.at("a-0").quiet_since_ms >= caught_up


def test_nobody_is_quiet_while_the_client_hangs(world: World) -> None:
    world.cluster.topic("a", 5)
    world.open("a")
    world.turn(20)
    world.cluster.consumers[-1].stuck = True
    world.turn(60)
    assert world.at("a-0").quiet_since_ms is None
    world.source.commit()
    world.cluster.consumers[-1].stuck = False
    world.log("a-0").add(2)
    world.turn(10)
    assert world.read["a-0"] == list(range(7))


def test_one_broker_of_two_is_silent(world: World) -> None:
    world.cluster.topic("a", 1, 1)
    world.log("a-1").leader = 2
    world.cluster.refresh()
    source = world.open("a")
    world.turn(30)
    world.cluster.silent = {2}
    world.turn(30)
    assert not source.status().connected
    assert world.at("a-0").quiet_since_ms is not None
    assert world.at("a-1").quiet_since_ms is None
    world.log("a-0").add(3)
    world.turn(10)
    assert world.read["a-0"] == [0, 1, 2, 3]
    assert len(world.cluster.consumers) == 1  # the other one is heard
    world.cluster.silent = set()
    world.turn(30)
    assert source.status().connected


def test_a_partition_without_leader_waits_and_the_others_run(world: World) -> None:
    world.cluster.topic("a", 2, 2)
    world.log("a-1").leader = None
    world.cluster.refresh()
    source = world.open("a", group=None)
    world.turn(20)
    assert world.read == {"a-0": [0, 1]}
    assert not source.status().ready
    world.log("a-1").leader = 1
    world.cluster.refresh()
    world.turn(20)
    assert world.read == {"a-0": [0, 1], "a-1": [0, 1]}
    assert source.status().ready


def test_a_slow_answer_behind_many_records_is_no_outage(world: World) -> None:
    world.cluster.topic("a", 10_000)
    source = world.open("a", max_records=5)
    world.turn(5)
    consumer = world.cluster.consumers[0]

    def late(partitions: Any, seconds: float) -> dict[Any, int]:
        world.clock.seconds += 1
        raise NoAnswer("time is up")

    world.clock.seconds += 4
    consumer.end_offsets = late
    world.turn(2)
    assert source.status().errors == 0
    assert source.status().connected


def test_records_deleted_by_retention_are_counted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.cluster.topic("a", 50)
    world.cluster.committed[TopicPartition("a", 0)] = 10
    world.log("a-0").trim(40)
    source = world.open("a", start="latest")
    world.turn(10)
    assert world.read == {"a-0": list(range(40, 50))}
    assert source.status().lost_records == 30
    assert "30 records were deleted before they were read" in caplog.text
    source.commit()
    assert world.cluster.committed[TopicPartition("a", 0)] == 50


def test_a_log_that_ends_before_the_position_is_read_again(world: World) -> None:
    world.cluster.topic("a", 5)
    world.cluster.committed[TopicPartition("a", 0)] = 10
    source = world.open("a")
    world.turn(10)
    assert world.read == {"a-0": [0, 1, 2, 3, 4]}
    assert source.status().lost_records == 0
    assert source.status().errors == 1


def test_a_topic_made_anew_is_read_from_its_beginning_and_committed_so(world: World) -> None:
    world.cluster.topic("a", 50, 50)
    source = world.open("a", start="latest")
    world.turn(5)
    world.log("a-0").add(5)
    old = source.poll(0.2)
    assert [b.positions[-1] for b in old] == [54]
    world.cluster.topic("a", 60)
    world.turn(5)
    source.applied(RecordBatch("a-0", [b""], [999], 0))  # of the old one
    assert world.read == {"a-0": list(range(60))}
    source.commit()
    assert world.cluster.committed == {TopicPartition("a", 0): 60}
    for _ in range(20):
        world.turn(5)
        world.cluster.refresh()
    assert world.at("a-1").quiet_since_ms is not None  # it is gone, and holds nobody up


def test_a_deleted_topic_becomes_quiet_and_an_outage_does_not(world: World) -> None:
    world.cluster.topic("a", 5)
    source = world.open("a")
    world.turn(5)
    del world.cluster.logs[TopicPartition("a", 0)]
    for _ in range(10):
        world.cluster.refresh()
        world.turn(10)
    assert source.status().missing_topics == ["a"]
    assert world.at("a-0").quiet_since_ms is not None
    world.turn(60)  # metadata is not refreshed any more
    assert world.at("a-0").quiet_since_ms is None


def test_a_topic_that_vanishes_for_a_moment_goes_on_where_it_was(world: World) -> None:
    world.cluster.topic("a", 5)
    world.open("a")
    world.turn(5)
    log = world.cluster.logs.pop(TopicPartition("a", 0))
    world.cluster.refresh()
    world.turn(3)
    world.cluster.logs[TopicPartition("a", 0)] = log
    log.add(2)
    world.cluster.refresh()
    world.turn(10)
    assert world.read == {"a-0": list(range(7))}


def test_a_log_cut_by_a_broker(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.cluster.topic("a", 10)
    source = world.open("a")
    world.turn(5)
    world.log("a-0").rows = world.log("a-0").rows[:7]
    world.log("a-0").end = 7
    world.log("a-0").add(5)
    world.cluster.fails = [LogCut({TopicPartition("a", 0): 7})]
    world.turn(5)
    assert world.read == {"a-0": [*range(10), *range(7, 12)]}
    world.cluster.fails = [LogCut({TopicPartition("a", 0): None})]
    world.turn(5)
    assert caplog.text.count("lost records that were read") == 2
    assert source.status().errors == 2


def test_a_topic_we_may_not_read_is_set_aside(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.cluster.topic("a", 3)
    world.cluster.topic("b", 3)
    world.cluster.unreadable = {"b"}
    source = world.open("a", "b")
    world.turn(300)
    world.log("a-0").add()
    world.turn(10)
    assert world.read == {"a-0": [0, 1, 2, 3]}
    assert len(world.cluster.consumers) == 1
    assert caplog.text.count("does not let us read topic b") == 1
    assert not source.status().ready
    world.cluster.unreadable = set()
    world.turn(200)
    world.cluster.refresh()
    world.turn(10)
    assert world.read["b-0"] == [0, 1, 2]
    assert source.status().last_error is None


def test_a_topic_that_may_not_be_described_obeys_start_when_it_may(world: World) -> None:
    world.cluster.denied = {"a"}
    world.cluster.topic("a", 3)
    source = world.open("a", start="latest")
    world.turn(10)
    assert source.status().missing_topics == []
    assert "does not let us read topic a" in str(source.status().last_error)
    world.cluster.denied = set()
    world.cluster.refresh()
    world.turn(200)
    assert world.read == {}
    assert source.status().ready


class SaslAuthenticationFailedError(Exception):
    """Like kafka-python's."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            SaslAuthenticationFailedError("no"),
            "kafka:9092: it refuses the user or the password; check kafka.security",
        ),
        (Stalled("hangs"), "does not answer"),
        (RuntimeError("IO loop crashed"), "reading failed (RuntimeError: IO loop crashed)"),
    ],
)
def test_whatever_fails_is_told_once_and_tried_again_with_a_new_consumer(
    world: World, caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    world.cluster.topic("a", 5)
    source = world.open("a", start="latest")
    world.turn(5)
    world.log("a-0").add(3)
    world.cluster.fails = [error] * 6
    world.turn(100)
    assert said in str(source.status().last_error)
    world.turn(300)
    assert world.read == {"a-0": [5, 6, 7]}
    assert len(world.cluster.consumers) == 7
    assert caplog.text.count(said) == 1
    assert source.status().errors == 6
    assert source.status().last_error is None
    assert all(consumer.closed for consumer in world.cluster.consumers[:-1])


def test_a_consumer_that_cannot_even_be_made(world: World) -> None:
    def make() -> Any:
        raise MonitorError("kafka.security.ca_file is gone")

    world.open("a")
    world.source.close()
    world.source = KafkaSource(
        [TopicStart("a", "s", "earliest")], make, None, world.clock.now_ms, (), world.clock.monotonic,
        world.clock.sleep,
    )  # fmt: skip
    world.turn(50)
    assert "kafka.security.ca_file is gone" in str(world.source.status().last_error)
    assert world.source.status().errors < 8


def test_records_lost_in_a_failed_call_are_read_again(world: World) -> None:
    world.cluster.topic("a", 5)
    world.open("a")
    world.turn(5)
    world.log("a-0").add(5)
    consumer = world.cluster.consumers[0]
    consumer.at[TopicPartition("a", 0)] = 8  # taken in by the client, and never handed over
    world.cluster.fails = [RuntimeError("after reading")]
    world.turn(50)
    assert world.read == {"a-0": list(range(10))}


def test_only_what_was_applied_is_committed(world: World) -> None:
    world.cluster.topic("a", 5)
    source = world.open("a")
    world.turn(2)
    source.commit()
    assert world.cluster.committed == {TopicPartition("a", 0): 5}
    world.log("a-0").add(5)
    world.turn(5, apply=False)
    source.commit()
    assert world.cluster.committed == {TopicPartition("a", 0): 5}
    source.applied(world.batches[-1])
    source.commit()
    assert world.cluster.committed == {TopicPartition("a", 0): 10}


def test_markers_behind_the_last_record_are_committed_too(world: World) -> None:
    world.cluster.topic("a", 5)
    world.log("a-0").end = 7
    source = world.open("a")
    world.turn(40)
    assert world.at("a-0").lag == 0
    assert world.at("a-0").quiet_since_ms is not None
    source.commit()
    assert world.cluster.committed == {TopicPartition("a", 0): 7}


def test_failed_commits_are_made_up_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.cluster.topic("a", 5)
    source = world.open("a")
    world.turn(5)
    world.cluster.commit_error = RuntimeError("coordinator is loading")
    for _ in range(3):
        source.commit()
        world.turn()
    source.commit(1)
    assert "positions were not committed (coordinator is loading)" in str(source.status().last_error)
    assert caplog.text.count("positions were not committed") == 1
    assert source.status().errors == 4
    world.cluster.commit_error = None
    source.commit(1)
    assert world.cluster.committed == {TopicPartition("a", 0): 5}
    assert source.status().last_error is None
    calls = len(world.cluster.consumers[0].calls)
    source.commit()
    assert len(world.cluster.consumers[0].calls) == calls  # nothing new


def test_paused_partitions_hand_over_nothing_and_lose_nothing(world: World) -> None:
    world.cluster.topic("a", 10, 10)
    source = world.open("a", max_records=4)
    world.turn(2)
    source.pause(["a-0", "a-1"])
    before = {name: list(offsets) for name, offsets in world.read.items()}
    world.turn(30)
    assert world.read == before
    assert world.at("a-1").paused
    assert world.at("a-1").lag == 10
    assert world.at("a-1").quiet_since_ms is None
    source.resume(["a-1"])
    world.turn(10)
    assert world.read["a-1"] == list(range(10))
    assert world.read["a-0"] == before["a-0"]
    world.cluster.fails = [RuntimeError("new consumer")]
    world.turn(20)
    assert world.read["a-0"] == before["a-0"]
    source.resume(["a-0"])
    world.turn(10)
    assert world.read["a-0"] == list(range(10))


def test_a_batch_arrived_when_its_last_record_did_and_never_later_than_now(world: World) -> None:
    world.cluster.topic("a", 0)
    log = world.log("a-0")
    for at in (WALL_MS - 9000, WALL_MS - 5000, WALL_MS - 7000):
        log.add(timestamp=at)
    world.open("a")
    world.turn(2)
    log.add(timestamp=WALL_MS + 10**9)
    world.turn(1)
    log.add(timestamp=-1)
    world.turn(1)
    first, second, third = (batch.arrival_ms for batch in world.batches)
    assert first == WALL_MS - 5000
    assert WALL_MS <= second <= world.clock.now_ms()
    assert second <= third <= world.clock.now_ms()


def test_batches_are_cut_where_they_span_long(world: World) -> None:
    world.cluster.topic("a", 0)
    for n in range(4000):
        world.log("a-0").add(timestamp=WALL_MS - 10**8 + n * 100)
    world.open("a")
    world.turn(3)
    assert world.read == {"a-0": list(range(4000))}
    assert 5 <= len(world.batches) <= 8
    assert all(batch.arrival_ms == WALL_MS - 10**8 + batch.positions[-1] * 100 for batch in world.batches)


def test_connection_options() -> None:
    security = KafkaSecurity(
        protocol="SASL_PLAINTEXT", mechanism="SCRAM-SHA-256", username="u", password=SecretStr("p")
    )
    options = connection_options(KafkaConfig(bootstrap_servers=("a:1", "b:2"), security=security))
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert options["security_protocol"] == "SASL_PLAINTEXT"
    assert options["sasl_mechanism"] == "SCRAM-SHA-256"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("u", "p")
    assert "ssl_context" not in options
    plain = connection_options(KafkaConfig(bootstrap_servers=("a:1",)))
    assert not [key for key in plain if key.startswith(("ssl", "sasl"))]
    tls = KafkaSecurity(protocol="SSL", check_hostname=False)
    context: Any = connection_options(KafkaConfig(bootstrap_servers=("a:1",), security=tls))["ssl_context"]
    assert not context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"


def test_certificate_files_that_cannot_be_used(tmp_path: Any) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    security = KafkaSecurity(protocol="SSL", ca_file=str(path))
    with pytest.raises(MonitorError, match=r"kafka.security.ca_file .* holds no certificates"):
        connection_options(KafkaConfig(bootstrap_servers=("a:1",), security=security))
    security = KafkaSecurity(protocol="SSL", certificate_file=str(path), key_file=str(path))
    with pytest.raises(MonitorError, match=r"check that they belong together"):
        connection_options(KafkaConfig(bootstrap_servers=("a:1",), security=security))
