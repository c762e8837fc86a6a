"""The Kafka source with a real broker: every record exactly once, whatever happens to the broker."""

from __future__ import annotations

import gc
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from monitor.connections import KafkaConfig, KafkaSecurity
from monitor.records import RecordBatch
from monitor.sources.kafka import KafkaSource, KafkaStatus, TopicStart, kafka_source

# kafka-python leaves the sockets of failed connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <(socket|ssl):ResourceWarning")


@pytest.fixture(autouse=True)
def no_sockets_left() -> Iterator[None]:
    """Collects those sockets while that is known; log records would keep them."""
    logger = logging.getLogger("kafka")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)
    gc.collect()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Reading:
    """A source, and all it has handed over so far."""

    def __init__(self, source: KafkaSource) -> None:
        self.source = source
        self.offsets: dict[str, list[int]] = defaultdict(list)
        self.payloads: dict[str, list[bytes]] = defaultdict(list)
        self.batches: list[RecordBatch] = []
        self.longest = 0.0

    @property
    def status(self) -> KafkaStatus:
        return self.source.status()

    def turn(self) -> None:
        began = time.monotonic()
        for batch in self.source.poll(0.1):
            self.offsets[batch.partition] += batch.positions
            self.payloads[batch.partition] += batch.payloads
            self.batches.append(batch)
            self.source.applied(batch)
        self.longest = max(self.longest, time.monotonic() - began)

    def until(self, done: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.status} {dict(self.offsets)}"
            self.turn()

    def all_read(self) -> bool:
        """Whether nothing is left, and the broker has said so."""
        partitions = self.status.partitions.values()
        return bool(partitions) and all(p.lag == 0 for p in partitions)


Read = Callable[..., Reading]


@pytest.fixture
def read(kafka: Any) -> Iterator[Read]:
    """Starts a source on a topic; all are closed at the end."""
    open_ones: list[KafkaSource] = []

    def start(*topics: str, start: Any = "earliest", group: str | None = None) -> Reading:
        config = KafkaConfig(bootstrap_servers=(kafka.bootstrap,), group=group)
        source = kafka_source(config, [TopicStart(t, f"from-{t}", start) for t in topics], now_ms)
        open_ones.append(source)
        source.start()
        return Reading(source)

    yield start
    for source in open_ones:
        source.close()


def values(first: int, last: int) -> list[bytes]:
    return [b'{"n":%d}' % n for n in range(first, last)]


@pytest.mark.parametrize("codec", ["none", "gzip", "lz4", "zstd", "snappy"])
def test_every_record_once_in_order(kafka: Any, read: Read, codec: str) -> None:
    topic = kafka.new_topic(codec, partitions=3)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "compression.type": codec, "linger.ms": 20})
    for n, value in enumerate(values(0, 25_000)):
        while True:
            try:
                producer.produce(topic, value, partition=n % 3, headers=[("trace", b"1")])
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(30) == 0
    reading = read(topic)
    reading.until(lambda: sum(map(len, reading.offsets.values())) == 25_000)
    for number in range(3):
        name = f"{topic}-{number}"
        assert reading.offsets[name] == list(range(len(reading.offsets[name])))
        assert reading.payloads[name] == values(0, 25_000)[number::3]
        assert reading.source.source_of(name) == f"from-{topic}"
    assert max(len(batch) for batch in reading.batches) > 1000
    reading.until(reading.all_read)
    assert reading.status.ready
    assert reading.status.last_error is None


def test_null_and_empty_and_very_large_values(kafka: Any, read: Read) -> None:
    topic = kafka.new_topic("large")
    large = b"x" * (10 * 1024 * 1024)
    kafka.produce(topic, [b"a", None, b"", large, b"b", large, b"c"])
    reading = read(topic)
    reading.until(lambda: len(reading.offsets[f"{topic}-0"]) == 7)
    assert reading.payloads[f"{topic}-0"] == [b"a", b"", b"", large, b"b", large, b"c"]


def test_arrival_is_the_time_of_the_record(kafka: Any, read: Read) -> None:
    topic = kafka.new_topic("times")
    kafka.produce(topic, [b"old"], timestamp_ms=1_700_000_000_000)
    reading = read(topic)
    reading.until(lambda: reading.batches)
    assert reading.batches[0].arrival_ms == 1_700_000_000_000


def test_aborted_transactions_are_invisible_and_leave_no_lag(kafka: Any, read: Read) -> None:
    topic = kafka.new_topic("transactions")
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": topic, "log_level": 0})
    producer.init_transactions(20)
    for n, commit in enumerate([True, False, True, False]):
        producer.begin_transaction()
        producer.produce(topic, b"%d" % n, partition=0)
        producer.flush(10)
        if commit:
            producer.commit_transaction(20)
        else:
            producer.abort_transaction(20)
    reading = read(topic, group=topic)
    name = f"{topic}-0"
    reading.until(lambda: len(reading.offsets[name]) == 2 and reading.all_read())
    assert reading.payloads[name] == [b"0", b"2"]
    assert reading.status.partitions[name].position == 8  # four records, four markers
    reading.source.commit(5)
    assert kafka_committed(kafka, topic, name) == 8


def kafka_committed(kafka: Any, group: str, partition: str) -> int:
    topic, _, number = partition.rpartition("-")
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group})
    try:
        return int(consumer.committed([TopicPartition(topic, int(number))], 10)[0].offset)
    finally:
        consumer.close()


def test_a_committed_position_wins_and_nothing_comes_twice(kafka: Any, read: Read) -> None:
    topic = kafka.new_topic("committed", partitions=2)
    name = f"{topic}-0"
    kafka.produce(topic, values(0, 100))
    first = read(topic, group=topic)
    first.until(lambda: len(first.offsets[name]) == 100)
    first.source.commit()  # in the background
    first.until(lambda: kafka_committed(kafka, topic, name) == 100)
    first.source.close()
    kafka.produce(topic, values(100, 150))
    second = read(topic, group=topic, start="latest")
    second.until(lambda: len(second.offsets[name]) == 50)
    assert second.offsets[name] == list(range(100, 150))
    # The empty partition was committed too: what comes while nobody reads is not passed over.
    second.source.commit(5)
    second.source.close()
    kafka.produce(topic, values(0, 1), partition=1)
    third = read(topic, group=topic, start="latest")
    third.until(lambda: third.offsets[f"{topic}-1"])
    assert not third.offsets[name]


def test_start_at_the_end_and_at_a_time(kafka: Any, read: Read) -> None:
    topic = kafka.new_topic("start")
    name = f"{topic}-0"
    for n in range(5):
        kafka.produce(topic, [b"%d" % n], timestamp_ms=1_700_000_000_000 + n * 1000)
    late = read(topic, start="latest")
    late.until(lambda: late.status.ready)
    middle = read(topic, start=1_700_000_002_500)
    middle.until(lambda: middle.offsets[name] == [3, 4])
    after = read(topic, start=1_800_000_000_000)
    after.until(lambda: after.status.ready)
    kafka.produce(topic, [b"5"])
    for reading, expected in ((late, [5]), (middle, [3, 4, 5]), (after, [5])):
        reading.until(lambda reading=reading, expected=expected: reading.offsets[name] == expected)


def test_topics_and_partitions_that_come_later(kafka: Any, read: Read) -> None:
    there = kafka.new_topic("there")
    later = f"{there}-later"
    reading = read(there, later, start="latest")
    reading.until(lambda: reading.status.ready)
    assert reading.status.missing_topics == [later]
    assert reading.status.connected
    kafka.produce(there, values(0, 10))
    reading.until(lambda: len(reading.offsets[f"{there}-0"]) == 10)
    time.sleep(0.3)  # had we asked for the topic, a broker that creates topics would have made it by now
    assert later not in kafka.admin().list_topics(timeout=10).topics
    kafka.create_topic(later, 2)
    kafka.produce(later, values(0, 10), partition=1)
    kafka.add_partitions(there, 2)
    kafka.produce(there, values(0, 10), partition=1)
    reading.until(lambda: len(reading.offsets[f"{later}-1"]) == 10, 10)
    reading.until(lambda: len(reading.offsets[f"{there}-1"]) == 10, 10)
    assert all(offsets == list(range(10)) for name, offsets in reading.offsets.items() if offsets)
    assert reading.status.missing_topics == []


def test_an_outage_is_waited_out(kafka: Any, read: Read, caplog: pytest.LogCaptureFixture) -> None:
    topic = kafka.new_topic("outage", partitions=2)
    name = f"{topic}-0"
    kafka.produce(topic, values(0, 1000))
    reading = read(topic, group=topic)
    reading.until(lambda: len(reading.offsets[name]) == 1000 and reading.all_read())
    reading.until(lambda: reading.status.partitions[f"{topic}-1"].quiet_since_ms is not None)
    with kafka.outage():
        reading.until(lambda: not reading.status.connected)
        reading.source.commit()
        for _ in range(5):
            reading.turn()
        assert reading.status.partitions[f"{topic}-1"].quiet_since_ms is None
        assert "does not answer" in str(reading.status.last_error)
    restarted = now_ms()
    kafka.produce(topic, values(1000, 2000))
    began = time.monotonic()
    reading.until(lambda: len(reading.offsets[name]) == 2000)
    assert time.monotonic() - began < 8
    assert reading.offsets[name] == list(range(2000))
    reading.until(lambda: reading.status.partitions[f"{topic}-1"].quiet_since_ms is not None)
    assert reading.status.partitions[f"{topic}-1"].quiet_since_ms >= restarted - 1000
    reading.source.commit(5)
    reading.until(lambda: reading.status.last_error is None)
    assert reading.longest < 2.5
    told = [r.getMessage() for r in caplog.records if r.name.startswith("monitor") and r.levelname == "ERROR"]
    assert len([text for text in told if "does not answer" in text]) == 1, told


def test_started_before_the_broker(kafka: Any, read: Read) -> None:
    topic = kafka.new_topic("early")
    kafka.produce(topic, values(0, 10))
    with kafka.outage():
        reading = read(topic)
        for _ in range(8):
            reading.turn()
        assert not reading.status.connected
        assert not reading.status.ready
    reading.until(lambda: len(reading.offsets[f"{topic}-0"]) == 10)
    assert reading.longest < 2


def test_records_deleted_before_they_were_read_are_counted(kafka: Any, read: Read) -> None:
    topic = kafka.new_topic("deleted")
    name = f"{topic}-0"
    kafka.produce(topic, values(0, 10))
    first = read(topic, group=topic)
    first.until(lambda: len(first.offsets[name]) == 10)
    first.source.commit(5)
    first.source.close()
    kafka.produce(topic, values(10, 30))
    kafka.delete_before(topic, 0, 25)
    second = read(topic, group=topic)
    second.until(lambda: len(second.offsets[name]) == 5)
    assert second.offsets[name] == list(range(25, 30))
    assert second.status.lost_records == 15


def test_a_topic_made_anew_is_read_from_its_beginning(kafka: Any, read: Read) -> None:
    topic = kafka.new_topic("anew", partitions=2)
    name = f"{topic}-0"
    kafka.produce(topic, values(0, 10))
    reading = read(topic, group=topic)
    reading.until(lambda: len(reading.offsets[name]) == 10)
    kafka.delete_topic(topic)
    reading.until(lambda: reading.status.missing_topics == [topic])
    assert reading.status.partitions[name].quiet_since_ms is not None
    kafka.create_topic(topic)
    kafka.produce(topic, values(100, 120))
    reading.until(lambda: len(reading.offsets[name]) == 30)
    assert reading.offsets[name] == [*range(10), *range(20)]
    assert reading.payloads[name][10:] == values(100, 120)
    reading.source.commit(5)
    assert kafka_committed(kafka, topic, name) == 20


def test_a_paused_partition_keeps_what_was_fetched(kafka: Any, read: Read) -> None:
    topic = kafka.new_topic("paused", partitions=2)
    for number in range(2):
        kafka.produce(topic, values(0, 30_000), partition=number)
    reading = read(topic)
    reading.until(lambda: reading.offsets)
    (name,) = list(reading.offsets)[:1]
    other = f"{topic}-{1 - int(name[-1])}"
    reading.source.pause([name])
    reading.turn()
    count = len(reading.offsets[name])
    reading.until(lambda: len(reading.offsets[other]) == 30_000)
    assert len(reading.offsets[name]) == count < 30_000
    assert reading.status.partitions[name].paused
    reading.source.resume([name])
    reading.until(lambda: len(reading.offsets[name]) == 30_000)
    assert reading.offsets[name] == list(range(30_000))


def test_hundreds_of_partitions(kafka: Any, read: Read) -> None:
    topic = kafka.new_topic("wide", partitions=300)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for n in range(3000):
        producer.produce(topic, b"%d" % n, partition=n % 300)
    assert producer.flush(30) == 0
    reading = read(topic, group=topic)
    reading.until(lambda: sum(map(len, reading.offsets.values())) == 3000, 30)
    reading.until(reading.all_read)
    assert all(offsets == list(range(10)) for offsets in reading.offsets.values())
    assert len(reading.status.partitions) == 300
    reading.source.commit(5)


def secured(server: Any, protocol: Any, **security: Any) -> KafkaConfig:
    port = {"SASL_PLAINTEXT": "sasl", "SSL": "ssl", "SASL_SSL": "sasl_ssl"}[protocol]
    if protocol.startswith("SASL"):
        security = {"username": server.username, "password": server.password, **security}
    if protocol.endswith("SSL"):
        security = {"ca_file": str(server.certificates.ca), **security}
    return KafkaConfig(
        bootstrap_servers=(getattr(server, f"bootstrap_{port}"),),
        group=None,
        security=KafkaSecurity(protocol=protocol, **security),
    )


@pytest.mark.parametrize(
    ("protocol", "mechanism"),
    [
        ("SSL", None),
        ("SASL_PLAINTEXT", "PLAIN"),
        ("SASL_PLAINTEXT", "SCRAM-SHA-256"),
        ("SASL_SSL", "SCRAM-SHA-512"),
    ],
)
def test_secured_listeners(secure_kafka: Any, protocol: Any, mechanism: Any) -> None:
    topic = secure_kafka.new_topic("secured")
    secure_kafka.produce(topic, values(0, 10))
    config = secured(secure_kafka, protocol, **({"mechanism": mechanism} if mechanism else {}))
    source = kafka_source(config, [TopicStart(topic, "s", "earliest")], now_ms)
    reading = Reading(source)
    try:
        reading.until(lambda: reading.offsets[f"{topic}-0"] == list(range(10)))
    finally:
        source.close()


@pytest.mark.parametrize(
    ("protocol", "security", "said"),
    [
        (
            "SASL_PLAINTEXT",
            {"mechanism": "PLAIN", "password": "not this"},
            "refuses the user or the password",
        ),
        ("SASL_PLAINTEXT", {"mechanism": "SCRAM-SHA-256", "username": "nobody"}, "refuses the user"),
        ("SSL", {"ca_file": None}, "CERTIFICATE_VERIFY_FAILED"),
    ],
)
def test_what_is_wrong_is_said(secure_kafka: Any, protocol: Any, security: Any, said: str) -> None:
    config = secured(secure_kafka, protocol, **security)
    source = kafka_source(config, [TopicStart("a", "s", "latest")], now_ms)
    reading = Reading(source)
    try:
        reading.until(lambda: said in str(reading.status.last_error))
        assert "not this" not in str(reading.status.last_error)
    finally:
        source.close()
