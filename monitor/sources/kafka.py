"""Kafka topics as a source: static assignment, positions of our own, outages waited out.

The loop calls ``poll`` for records, ``applied`` for each batch it took in, and ``commit`` now and then.
Nothing here raises for trouble with brokers: it is told once in the log, counted, and shown by ``status``.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from monitor.connections import KafkaConfig
from monitor.kafka_client import (
    Consumer,
    LogCut,
    Metadata,
    NoAnswer,
    NoPosition,
    PositionGone,
    Record,
    Stalled,
    TopicPartition,
    TopicsDenied,
    connection_options,
    make_consumer,
)
from monitor.records import RecordBatch

_log = logging.getLogger(__name__)

_ASK_SECONDS = 3.0
"""How often the ends of partitions are asked for; the answer proves that the broker is there."""
_STALE_SECONDS = 10.0
"""How long an answer counts."""
_ANSWER_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0
"""Silence after which the connection is made anew: brokers may have other addresses now."""
_BACKOFF_SECONDS = (1.0, 10.0)
_DENIED_SECONDS = 30.0
_SPAN_MS, _PIECE = 60_000, 256

_OPTIONS: Mapping[str, object] = {
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "isolation_level": "read_committed",
    "metadata_max_age_ms": 5000,  # so soon are new topics and partitions seen
    "request_timeout_ms": 15000,
    # At low rates the broker waits a quarter of a second for more, so that records come in batches.
    "fetch_min_bytes": 1 << 16,
    "fetch_max_wait_ms": 250,
    # Larger records pass all the same: a broker always sends at least one batch.
    "fetch_max_bytes": 32 << 20,
    "max_partition_fetch_bytes": 1 << 20,
}

_ADVICE = {
    "SaslAuthenticationFailedError": "it refuses the user or the password; check kafka.security",
    "UnsupportedSaslMechanismError": "it does not offer this mechanism; check kafka.security.mechanism",
    "GroupAuthorizationFailedError": "it does not let us use the group; allow Read on it, or see kafka.group",
    "ClusterAuthorizationFailedError": "it does not let us in; check the rights of the user",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted here; check kafka.security.ca_file",
    "CorruptRecordError": "a record fails its checksum; it is asked for again",
    "UnsupportedCodecError": "records are compressed in a way that this installation cannot read",
}


@dataclass(frozen=True, slots=True)
class TopicStart:
    """A topic, the source it belongs to, and where to begin without a committed position."""

    topic: str
    source: str
    start: Literal["earliest", "latest"] | int


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """Where reading stands in one partition.

    ``position`` is the next offset to read, ``end`` the end of what can be read as last heard, ``lag`` the
    offsets between. ``quiet_since_ms`` is the wall time since when the broker has confirmed again and again
    that there is nothing more to read; None while there is, or while nobody confirms it.
    """

    source: str
    topic: str
    partition: int
    position: int | None
    end: int | None
    lag: int | None
    paused: bool
    quiet_since_ms: int | None


@dataclass(frozen=True, slots=True)
class KafkaStatus:
    """How the source is doing. ``ready`` stays once every partition there was had a position."""

    connected: bool
    ready: bool
    missing_topics: Sequence[str]
    errors: int
    last_error: str | None
    partitions: Mapping[str, PartitionStatus]
    lost_records: int


@dataclass(slots=True)
class _Partition:
    at: TopicPartition
    source: str
    start: Literal["earliest", "latest"] | int
    ask_group: bool
    """Its position is the one that the group has committed, if there is one."""
    next: int | None = None
    delivered: int | None = None
    applied: int | None = None
    committed: int | None = None
    end: int | None = None
    there: bool = True
    seek: bool = False
    paused: bool = False
    heard: bool = False
    """Records came since the end was last asked for."""
    aside_until: float = float("-inf")
    quiet_from: float | None = None
    confirmed: float = float("-inf")
    lost_from: int | None = None

    @property
    def name(self) -> str:
        return f"{self.at.topic}-{self.at.partition}"

    @property
    def safe(self) -> int | None:
        """The position to commit; behind markers and gaps when everything handed over was applied."""
        return self.next if self.applied == self.delivered else self.applied

    def quiet_at(self, now: float) -> float | None:
        """Since when it is quiet; None when nobody has confirmed it of late."""
        return self.quiet_from if now - self.confirmed <= _STALE_SECONDS else None

    def confirm_quiet(self, now: float) -> None:
        quiet = self.quiet_at(now)
        self.quiet_from, self.confirmed = now if quiet is None else quiet, now

    def start_over(self, start: Literal["earliest"], lost_from: int | None) -> None:
        self.start, self.lost_from, self.ask_group = start, lost_from, False
        self.next = self.delivered = self.applied = self.committed = self.end = self.quiet_from = None


def kafka_source(
    config: KafkaConfig,
    topics: Sequence[TopicStart],
    now_ms: Callable[[], int],
    stored: Mapping[str, int] | None = None,
) -> KafkaSource:
    """The source for topics of a cluster, from positions ``stored``.

    Raises MonitorError when certificate files cannot be used.
    """
    connection_options(config)

    def make() -> Consumer:  # reads the files again: certificates are renewed while the service runs
        names = [t.topic for t in topics]
        return make_consumer(names, **_OPTIONS, **connection_options(config), group_id=config.group)

    servers = config.bootstrap_servers
    return KafkaSource(topics, make, config.group, now_ms, servers, stored=stored)


class KafkaSource:
    """Reads all partitions of some topics.

    Parameters
    ----------
    topics
        Each topic once.
    make_consumer
        Makes a consumer that is not connected yet; called again after each failure.
    group
        Name that positions are committed under; None commits nothing.
    now_ms
        Wall clock in milliseconds.
    servers
        What the cluster is called in messages.
    monotonic, sleep
        Clock and pause, in seconds.
    max_records
        Records of one poll at most.
    stored
        Positions by partition name that win over committed ones. Other partitions of their topics came
        since and are read from their beginning.
    """

    def __init__(
        self,
        topics: Sequence[TopicStart],
        make_consumer: Callable[[], Consumer],
        group: str | None,
        now_ms: Callable[[], int],
        servers: Sequence[str] = (),
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        max_records: int = 10_000,
        stored: Mapping[str, int] | None = None,
    ) -> None:
        self._topics = {t.topic: t for t in topics}
        self._make_consumer = make_consumer
        self._group = group
        self._now_ms = now_ms
        self._cluster = f"Kafka at {', '.join(servers)}" if servers else "Kafka"
        self._monotonic = monotonic
        self._sleep = sleep
        self._max_records = max_records
        self._stored = dict(stored or {})
        self._consumer: Consumer | None = None
        self._open = False
        self._retry_at = float("-inf")
        self._backoff = _BACKOFF_SECONDS[0]
        self._began = self._answered = monotonic()
        self._metadata: Metadata | None = None
        self._first: dict[str, frozenset[int]] = {}
        self._ids: dict[str, object] = {}
        self._partitions: dict[str, _Partition] = {}
        self._assigned: tuple[TopicPartition, ...] = ()
        self._ask_at: dict[int, float] = {}
        self._silent: set[int] = set()
        self._troubles: dict[str, tuple[str, str]] = {}
        self._errors = 0
        self._lost = 0
        self._ready = False

    def source_of(self, partition: str) -> str:
        """Name of the source that a partition belongs to."""
        return self._partitions[partition].source

    def start(self) -> None:
        """Begin to connect, without waiting."""
        self._connected(0.0)

    def poll(self, seconds: float) -> Sequence[RecordBatch]:
        """Batches of records, one or more per partition; none after about ``seconds`` (up to 1 s more)."""
        deadline = self._monotonic() + seconds
        try:
            if not self._connected(seconds) or self._consumer is None:
                return ()
            if not self._consumer.busy():
                self._learn(self._consumer.metadata())
                self._arrange(self._consumer)
                self._ask_ends(self._consumer)
            left = max(deadline - self._monotonic(), 0.02)
            return self._batches(self._consumer.poll(left, self._max_records))
        except NoPosition as error:
            for partition in self._known(error.partitions):
                partition.ask_group = False
        except PositionGone as error:
            for partition in self._known(error.positions):
                partition.start_over("earliest", error.positions[partition.at])
        except LogCut as error:
            self._cut(error.cuts)
        except TopicsDenied as error:
            self._denied(error.topics)
        except Exception as error:
            self._drop(error)
        return ()

    def applied(self, batch: RecordBatch) -> None:
        """The batch was taken in; the next commit may include it."""
        partition = self._partitions.get(batch.partition)
        if partition is None or not len(batch) or partition.delivered is None:
            return
        after = batch.positions[-1] + 1
        if after <= partition.delivered:  # else it is from a topic that was deleted since
            partition.applied = max(after, partition.applied or 0)

    def positions(self) -> dict[str, int]:
        """The next offset of each partition behind everything that was applied."""
        return {p.name: safe for p in self._partitions.values() if (safe := p.safe) is not None}

    def commit(self, wait_seconds: float = 0) -> None:
        """Commit what was applied; 0 seconds do not wait. The next call makes up for a failure."""
        if self._group is None or self._consumer is None or not self._open:
            return
        offsets = {
            p.at: safe
            for p in self._partitions.values()
            if p.there and (safe := p.safe) is not None and safe != p.committed
        }
        if not offsets or (self._consumer.busy() and not wait_seconds):
            return
        try:
            if wait_seconds:
                self._consumer.commit(offsets, wait_seconds)
                self._committed(offsets, None)
            else:
                self._consumer.commit_async(offsets, lambda error: self._committed(offsets, error))
        except Exception as error:
            self._committed(offsets, error)

    def pause(self, names: Iterable[str]) -> None:
        """Hand over nothing of these partitions from the next poll on, and lose nothing of them.

        They are left out of the assignment and read again from where they were. kafka-python 3.0 has a pause
        of its own, which never gives back what was parked once another partition has been read.
        """
        for name in names:
            self._partitions[name].paused = True

    def resume(self, names: Iterable[str]) -> None:
        """Undo pause."""
        for name in names:
            self._partitions[name].paused = False

    def status(self) -> KafkaStatus:
        """How things stand, without asking anybody."""
        now, now_ms = self._monotonic(), self._now_ms()
        partitions = {}
        for name, p in self._partitions.items():
            lag = None if p.next is None or p.end is None else max(0, p.end - p.next)
            quiet = p.quiet_at(now)  # measured by a clock that nobody sets, told in wall time
            since_ms = None if quiet is None else now_ms - int((now - quiet) * 1000)
            partitions[name] = PartitionStatus(
                p.source, p.at.topic, p.at.partition, p.next, p.end, lag, p.paused, since_ms
            )
        seen = self._metadata
        missing = [] if seen is None else [t for t in self._topics if t not in {*seen.topics, *seen.denied}]
        sentences = [sentence for _, sentence in self._troubles.values()]
        return KafkaStatus(
            connected=self._open and not self._silent and "leaders" not in self._troubles,
            ready=self._ready,
            missing_topics=missing,
            errors=self._errors,
            last_error=sentences[-1] if sentences else None,
            partitions=partitions,
            lost_records=self._lost,
        )

    def close(self) -> None:
        """Give up the connection, within some seconds. Commits nothing."""
        if self._consumer is not None:
            self._consumer.close(2.0)
            self._consumer, self._open = None, False

    # --- connection ---------------------------------------------------------------------------------
    def _connected(self, seconds: float) -> bool:
        if self._open:
            return True
        if self._consumer is None:
            wait = self._retry_at - self._monotonic()
            if wait > 0:
                self._sleep(min(wait, seconds))
                if wait > seconds:
                    return False
                seconds -= wait
            try:
                self._consumer = self._make_consumer()
            except Exception as error:
                self._drop(error)
                return False
        try:
            if not self._consumer.connect(seconds):
                if self._monotonic() - self._began > _ASK_SECONDS and (why := self._consumer.complaint()):
                    self._lost_connection(NoAnswer(why), count=False)
                return False
        except Exception as error:
            self._drop(error)
            return False
        self._open = True
        self._answered = self._monotonic()
        self._assigned = ()
        self._ask_at.clear()
        self._silent.clear()
        return True

    def _drop(self, error: Exception) -> None:
        """Whatever is wrong with this consumer, another one can begin where we are."""
        self._lost_connection(error)
        for partition in self._partitions.values():
            partition.quiet_from = None
        consumer, self._consumer, self._open = self._consumer, None, False
        self._retry_at = self._monotonic() + self._backoff
        self._backoff = min(self._backoff * 2, _BACKOFF_SECONDS[1])
        if consumer is not None:
            consumer.close(1.0)

    def _lost_connection(self, error: Exception, *, count: bool = True) -> None:
        kind = type(error).__name__
        known = next((name for name in _ADVICE if name in f"{kind}: {error}"), None)
        if known:
            sentence = f"{self._cluster}: {_ADVICE[known]} ({error})"
        elif isinstance(error, NoAnswer | Stalled):
            sentence = f"{self._cluster} does not answer ({error})"
        else:
            sentence = f"{self._cluster}: reading failed ({kind}: {error})"
        self._trouble("connection", known or kind, sentence, count=count)

    # --- partitions ---------------------------------------------------------------------------------
    def _learn(self, metadata: Metadata) -> None:
        """Topics and partitions that have come or gone."""
        if metadata is self._metadata:
            return
        self._metadata = metadata
        now = self._monotonic()
        for topic, wanted in self._topics.items():
            mine = [p for p in self._partitions.values() if p.at.topic == topic]
            found = metadata.topics.get(topic)
            if topic in metadata.denied:
                self._denied([topic])
                continue
            if found is None:
                sentence = f"{self._cluster} has no topic {topic}; waiting for it, or check sources"
                self._trouble(f"topic {topic}", "missing", sentence, count=False)
                self._first.setdefault(topic, frozenset())
            else:
                if not any(p.aside_until > now for p in mine):
                    self._fine(f"topic {topic}")
                # What is there at first has a past that `start` is about. What comes later is new as a whole.
                ours = {int(n.rpartition("-")[2]) for n in self._stored if n.rpartition("-")[0] == topic}
                first = self._first.setdefault(topic, frozenset(ours or found.leaders))
                again = found.id is not None and self._ids.get(topic) not in (None, found.id)
                self._ids[topic] = found.id
                for number in found.leaders:
                    new = number not in first
                    at = TopicPartition(topic, number)
                    start, ask = ("earliest", not ours) if new else (wanted.start, True)
                    partition = _Partition(at, wanted.source, start, ask and self._group is not None)
                    known = self._partitions.setdefault(partition.name, partition)
                    if known is partition:
                        if (offset := self._stored.get(partition.name)) is not None:
                            partition.next, partition.seek, partition.ask_group = offset, True, False
                        if new:
                            _log.info("Kafka partition %s is new; reading it from its beginning", known.name)
                    elif again:
                        text = "Kafka topic %s was made anew; reading partition %d from its beginning"
                        _log.warning(text, topic, number)
                        known.start_over("earliest", None)
                    if not known.there:
                        known.there, known.quiet_from = True, None
            for partition in mine:  # a partition that is not there has nothing more to say
                if found is None or partition.at.partition not in found.leaders:
                    partition.there = False
                    partition.confirm_quiet(now)

    def _arrange(self, consumer: Consumer) -> None:
        """Make the consumer read what can be read, from where we are."""
        now = self._monotonic()
        wanted = [p for p in self._partitions.values() if p.there and p.aside_until <= now]
        placeless = [p for p in wanted if p.next is None and not p.ask_group]
        if placeless:
            self._find_starts(consumer, placeless)
            wanted = [p for p in wanted if p.next is not None or p.ask_group]
        wanted = [p for p in wanted if not p.paused]
        before = set(self._assigned)
        assigned = tuple(p.at for p in wanted)
        if assigned != self._assigned:
            consumer.assign(assigned)
            self._assigned = assigned
        for p in wanted:
            if p.next is not None and (p.seek or p.at not in before):
                consumer.seek(p.at, p.next)
                p.seek = False
        if not self._ready and self._metadata is not None and not self._metadata.denied:
            self._ready = all(p.next is not None for p in self._partitions.values() if p.there)

    def _find_starts(self, consumer: Consumer, placeless: Sequence[_Partition]) -> None:
        """Give partitions their first positions; those without an answer are tried again in a second."""
        began = self._monotonic()
        for p in placeless:
            p.aside_until = began + _ANSWER_SECONDS
        for leader, group in self._by_leader(placeless).items():
            if leader is None or self._monotonic() - began >= _ANSWER_SECONDS:
                continue
            try:
                offsets = self._starts(consumer, group)
            except (TopicsDenied, Stalled):
                raise
            except Exception as error:
                sentence = f"{self._cluster} does not say where {_some(group)} begin ({error})"
                self._trouble("positions", type(error).__name__, sentence)
                continue
            self._fine("positions")
            for p in group:
                if (offset := offsets.get(p.at)) is not None:
                    p.next, p.seek, p.aside_until = offset, True, began
                    self._count_lost(p, offset)

    def _starts(self, consumer: Consumer, group: Sequence[_Partition]) -> dict[TopicPartition, int]:
        offsets: dict[TopicPartition, int] = {}
        times = {p.at: p.start for p in group if isinstance(p.start, int)}
        last = [p.at for p in group if p.start == "latest"]
        if times:
            found = consumer.offsets_for_times(times, _ANSWER_SECONDS)
            offsets |= {at: offset for at, offset in found.items() if offset is not None}
            last += [at for at in times if at not in offsets]
        if last:
            offsets |= consumer.end_offsets(last, _ANSWER_SECONDS)
        if first := [p.at for p in group if p.start == "earliest"]:
            offsets |= consumer.beginning_offsets(first, _ANSWER_SECONDS)
        return offsets

    def _count_lost(self, p: _Partition, offset: int) -> None:
        lost_from, p.lost_from = p.lost_from, None
        if lost_from is None:
            return
        self._errors += 1
        if offset > lost_from:
            self._lost += offset - lost_from
            text = "Kafka partition %s: %d records were deleted before they were read; going on at offset %d"
            _log.error(text, p.name, offset - lost_from, offset)
        else:
            text = "Kafka partition %s ends before offset %d, where we were; reading it again from offset %d"
            _log.error(text, p.name, lost_from, offset)

    def _cut(self, cuts: Mapping[TopicPartition, int | None]) -> None:
        for p in self._known(cuts):
            cut = cuts[p.at]
            self._errors += 1
            text = "Kafka partition %s: a broker lost records that were read; going on at offset %s"
            _log.error(text, p.name, p.next if cut is None else cut)
            if cut is not None:
                p.next, p.seek, p.delivered, p.applied = cut, True, None, None

    def _denied(self, topics: Iterable[str]) -> None:
        until = self._monotonic() + _DENIED_SECONDS
        for topic in topics:
            sentence = f"{self._cluster} does not let us read topic {topic}; allow Read and Describe on it"
            self._trouble(f"topic {topic}", "denied", sentence)
            for p in self._partitions.values():
                if p.at.topic == topic:
                    p.aside_until, p.quiet_from = until, None

    def _by_leader(self, partitions: Iterable[_Partition]) -> dict[int | None, list[_Partition]]:
        groups: dict[int | None, list[_Partition]] = defaultdict(list)
        topics = {} if self._metadata is None else self._metadata.topics
        for p in partitions:
            topic = topics.get(p.at.topic)
            groups[None if topic is None else topic.leaders.get(p.at.partition)].append(p)
        return groups

    def _known(self, partitions: Iterable[TopicPartition]) -> list[_Partition]:
        names = (f"{topic}-{number}" for topic, number in partitions)
        return [p for name in names if (p := self._partitions.get(name)) is not None]

    # --- ends ---------------------------------------------------------------------------------------
    def _ask_ends(self, consumer: Consumer) -> None:
        """Ask one broker for the ends of its partitions, when it is time to."""
        now = self._monotonic()
        assigned = set(self._assigned)
        here = [p for p in self._partitions.values() if p.at in assigned or (p.paused and p.there)]
        groups = self._by_leader(p for p in here if p.aside_until <= now)
        leaderless = groups.pop(None, None)
        if leaderless:
            sentence = f"{self._cluster} has no leader for {_some(leaderless)}; are all brokers up?"
            self._trouble("leaders", "leaders", sentence, count=False)
            for p in leaderless:
                p.quiet_from = None
            if not groups and now - self._answered > _PATIENCE_SECONDS:
                raise NoAnswer("no partition has a leader")
        else:
            self._fine("leaders")
        self._silent &= {leader for leader in groups if leader is not None}
        if not groups and not leaderless:
            self._fine("connection")
        due = [(self._ask_at.get(leader, now), leader) for leader in groups if leader is not None]
        if not due or min(due)[0] > now:
            return
        leader = min(due)[1]
        group = groups[leader]
        try:
            ends = consumer.end_offsets([p.at for p in group], _ANSWER_SECONDS)
            # Behind the last record there may be markers of transactions. Where records come, it can wait.
            unsure = [p for p in group if p.at in assigned and not p.heard]
            unsure = [p for p in unsure if p.next is None or p.next < ends.get(p.at, 0)]
            positions = consumer.positions([p.at for p in unsure]) if unsure else {}
        except NoAnswer as error:
            self._unanswered(leader, group, error)
            return
        now = self._monotonic()
        self._ask_at[leader] = now + _ASK_SECONDS
        self._answered, self._backoff = now, _BACKOFF_SECONDS[0]
        self._silent.discard(leader)
        if not self._silent:
            self._fine("connection")
        for p in group:
            p.end = ends.get(p.at)
            if p.at in positions:
                p.next = max(positions[p.at], p.next or 0)
            p.heard = False
            if p.end is None or p.next is None or p.next < p.end:
                p.quiet_from = None
            else:
                p.confirm_quiet(now)

    def _unanswered(self, leader: int, group: Sequence[_Partition], error: NoAnswer) -> None:
        now = self._monotonic()
        self._ask_at[leader] = now + _ANSWER_SECONDS
        alive = any(p.heard for p in group)  # the answer may wait behind many records on a slow line
        for p in group:
            p.heard, p.quiet_from = False, None
        if alive:
            return
        self._silent.add(leader)
        self._lost_connection(error)
        if now - self._answered > _PATIENCE_SECONDS:
            raise error

    # --- records ------------------------------------------------------------------------------------
    def _batches(self, found: Mapping[TopicPartition, Sequence[Record]]) -> list[RecordBatch]:
        now_ms = self._now_ms()
        batches = []
        for at, records in found.items():
            p = self._partitions.get(f"{at.topic}-{at.partition}")
            if p is None or not records:
                continue
            p.next = p.delivered = records[-1].offset + 1
            p.heard, p.quiet_from = True, None
            for piece, arrival_ms in _pieces(records, now_ms):
                batches.append(
                    RecordBatch(
                        partition=p.name,
                        payloads=[record.value or b"" for record in piece],
                        positions=[record.offset for record in piece],
                        arrival_ms=arrival_ms,
                    )
                )
        return batches

    def _committed(self, offsets: Mapping[TopicPartition, int], error: Exception | None) -> None:
        if error is not None:
            name = type(error).__name__
            advice = _ADVICE.get(name, "tried again with the next commit")
            sentence = f"{self._cluster}: positions were not committed ({error}); {advice}"
            # An outage has many names, one after the other; it is told once.
            self._trouble("commit", name if name in _ADVICE else "later", sentence)
            return
        self._fine("commit")
        for p in self._known(offsets):
            p.committed = offsets[p.at]

    # --- what is told -------------------------------------------------------------------------------
    def _trouble(self, subject: str, kind: str, sentence: str, *, count: bool = True) -> None:
        """Told once, until the subject is fine again or something else is wrong with it."""
        before = self._troubles.pop(subject, None)
        self._troubles[subject] = (kind, sentence)
        new = before is None or before[0] != kind
        self._errors += count or new
        if new:
            _log.error("%s", sentence)

    def _fine(self, subject: str) -> None:
        if self._troubles.pop(subject, None) is not None:
            _log.info("%s: fine again: %s", self._cluster, subject)


def _pieces(records: Sequence[Record], now_ms: int) -> Iterator[tuple[Sequence[Record], int]]:
    """Records with the time they arrived at, for judging event times that lie in the future.

    A record arrived when its own timestamp says, so that a backlog is judged as if it were read live. A batch
    has one such time: the latest of its records, for an earlier one would reject good events; never later
    than now, for a producer's clock may be wrong. So that it is near enough for all of them, batches are cut
    where timestamps span more than a minute, down to some hundred records.
    """
    times = [now_ms if r.timestamp < 0 else min(r.timestamp, now_ms) for r in records]
    if len(records) <= _PIECE or max(times) - min(times) <= _SPAN_MS:
        yield records, max(times)
        return
    first, low, high = 0, times[0], times[0]
    for i, at in enumerate(times):
        low, high = min(low, at), max(high, at)
        if high - low > _SPAN_MS and i - first >= _PIECE:
            yield records[first:i], max(times[first:i])
            first, low, high = i, at, at
    yield records[first:], max(times[first:])


def _some(partitions: Sequence[_Partition]) -> str:
    names = [p.name for p in partitions]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
