"""A Kafka broker on loopback for integration tests."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

from tests.integration.servers import HOST, Server, free_port, listens, make_certificates, wait_until

KAFKA_JARS = Path(__file__).resolve().parents[2] / ".servers" / "kafka"


@cache
def kafka_missing() -> str | None:
    """Why no broker can be started here, or None."""
    if not shutil.which("java"):
        return "Kafka needs Java 17 or newer: run tests/integration/install"
    if not (KAFKA_JARS / "pom.xml").exists():
        return "the jars of Kafka are missing: run tests/integration/install"
    return None


@dataclass(eq=False)
class KafkaServer(Server):
    """One Kafka broker that is its own controller (KRaft).

    `bootstrap` needs no password. With `secure`, there are listeners for each protocol. They take `username`
    and `password` by PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512; those with TLS show one of `certificates`.
    """

    folder: Path
    secure: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)

    name = "kafka"
    username = "monitor"
    password = "password of a test"

    def __post_init__(self) -> None:
        super().__init__(self.folder)
        self.port = free_port()
        self.controller_port = free_port()
        self.sasl_port = free_port()
        self.ssl_port = free_port()
        self.sasl_ssl_port = free_port()
        self.certificates = make_certificates(self.folder / "certificates") if self.secure else None
        self._numbers = itertools.count(1)

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def bootstrap_sasl(self) -> str:
        return f"{HOST}:{self.sasl_port}"

    @property
    def bootstrap_ssl(self) -> str:
        return f"{HOST}:{self.ssl_port}"

    @property
    def bootstrap_sasl_ssl(self) -> str:
        return f"{HOST}:{self.sasl_ssl_port}"

    def start(self) -> Self:
        """Start it, on the same port and data as before, and wait until it answers."""
        properties = self.folder / "server.properties"
        data = self.folder / "data"
        java = ["java", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
        java += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{KAFKA_JARS}/*"]
        if not data.exists():
            lines = [f"{key}={value}\n" for key, value in self._properties(data).items()]
            properties.write_text("".join(lines))
            scram: list[str] = []
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512") if self.secure else ():
                scram += ["--add-scram", f'{mechanism}=[name="{self.username}",password="{self.password}"]']
            tool = [*java, "kafka.tools.StorageTool", "format", "--config", str(properties)]
            tool += ["--cluster-id", "ZmFpcm5lc3MtbW9uaXRvcg"]
            done = subprocess.run([*tool, *scram], capture_output=True, text=True)
            assert done.returncode == 0, f"Kafka's storage was not formatted:\n{done.stdout}{done.stderr}"
        self._launch([*java, "kafka.Kafka", properties], self._answers, 60)
        return self

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Stop the broker, and start it again afterwards."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def create_topic(self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
        """Create a topic and wait until every partition has a leader; its name."""
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=dict(config or {}))
        admin = self.admin()  # held until the answer is there
        admin.create_topics([topic])[name].result(20)
        wait_until(lambda: self._led(name) == partitions, 20, f"topic {name} has {partitions} partitions")
        return name

    def new_topic(
        self, prefix: str = "events", partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> str:
        """Create a topic with a name that no other test uses; its name."""
        return self.create_topic(f"{prefix}-{os.getpid()}-{next(self._numbers)}", partitions, config)

    def add_partitions(self, name: str, total: int) -> None:
        admin = self.admin()
        admin.create_partitions([NewPartitions(name, total)])[name].result(20)
        wait_until(lambda: self._led(name) == total, 20, f"topic {name} has {total} partitions")

    def delete_topic(self, name: str) -> None:
        admin = self.admin()
        admin.delete_topics([name])[name].result(20)

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete the records before an offset, as retention does."""
        where = TopicPartition(topic, partition, offset)
        admin = self.admin()
        admin.delete_records([where])[where].result(20)

    def produce(
        self,
        topic: str,
        values: Iterable[bytes | None],
        *,
        partition: int = 0,
        key: bytes | None = None,
        timestamp_ms: int = 0,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Write records in order and wait until the broker has them; a timestamp of 0 is now."""
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "log_level": 0,
                "linger.ms": 1,
                "message.max.bytes": 13 << 20,
            }
        )
        problems: list[str] = []

        def report(error: object, _message: Message) -> None:
            if error is not None:
                problems.append(str(error))

        for value in values:
            options: dict[str, Any] = {"headers": list(headers)} if headers else {}
            while True:
                try:
                    producer.produce(
                        topic,
                        value,
                        key=key,
                        partition=partition,
                        timestamp=timestamp_ms,
                        on_delivery=report,
                        **options,
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        left = producer.flush(30)
        assert not problems, problems[:3]
        assert left == 0, f"{left} records did not reach the broker within 30 s"

    def read(self, topic: str, count: int, *, partition: int = 0, seconds: float = 20.0) -> list[Message]:
        """The first `count` records of a partition; fewer when time is up."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "tests",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "log_level": 0,
            }
        )
        records: list[Message] = []
        deadline = time.monotonic() + seconds
        try:
            consumer.assign([TopicPartition(topic, partition, 0)])
            while len(records) < count and time.monotonic() < deadline:
                record = consumer.poll(0.2)
                if record is not None and record.error() is None:
                    records.append(record)
        finally:
            consumer.close()
        return records

    def committed(self, group: str, topic: str, partition: int = 0) -> int | None:
        """The next offset that a group has committed, or None."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group, "log_level": 0})
        try:
            offset = consumer.committed([TopicPartition(topic, partition)], timeout=20)[0].offset
        finally:
            consumer.close()
        return offset if offset >= 0 else None

    def _led(self, name: str) -> int:
        """How many partitions of a topic have a leader."""
        topics = self.admin().list_topics(name, timeout=10).topics
        return sum(one.leader >= 0 for one in topics[name].partitions.values())

    def _answers(self) -> bool:
        # The client would wait between two tries; the port is asked first.
        return listens(self.port) and bool(self.admin().list_topics(timeout=20).brokers)

    def _properties(self, data: Path) -> dict[str, str]:
        listeners = {"PLAINTEXT": self.port, "CONTROLLER": self.controller_port}
        if self.secure:
            listeners |= {
                "SASL_PLAINTEXT": self.sasl_port,
                "SSL": self.ssl_port,
                "SASL_SSL": self.sasl_ssl_port,
            }
        protocols = {name: "PLAINTEXT" if name == "CONTROLLER" else name for name in listeners}
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in listeners.items()),
            "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in protocols.items()),
            "log.dirs": str(data),
            # One broker, and topics that are named before they are used.
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # A broker that was killed is taken back when its old session has ended.
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "1000",
            # Records of 10 MiB pass, with room for headers.
            "message.max.bytes": str(13 << 20),
            "replica.fetch.max.bytes": str(13 << 20),
            # Event times of tests lie anywhere: nothing is deleted as old, or refused as of the future.
            "log.retention.ms": "-1",
            "log.message.timestamp.after.max.ms": str(2**63 - 1),
            "num.network.threads": "2",
            "num.io.threads": "2",
            "background.threads": "2",
        }
        if self.certificates is not None:
            login = f'username="{self.username}" password="{self.password}"'
            package = "org.apache.kafka.common.security"
            keystore = self.folder / "certificates" / "keystore.pem"
            keystore.write_text(self.certificates.key.read_text() + self.certificates.certificate.read_text())
            for listener in ("sasl_plaintext", "sasl_ssl"):
                prefix = f"listener.name.{listener}"
                plain = f'{package}.plain.PlainLoginModule required user_{self.username}="{self.password}";'
                scram = f"{package}.scram.ScramLoginModule required {login};"
                properties[f"{prefix}.plain.sasl.jaas.config"] = plain
                properties[f"{prefix}.scram-sha-256.sasl.jaas.config"] = scram
                properties[f"{prefix}.scram-sha-512.sasl.jaas.config"] = scram
            properties |= {
                "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(keystore),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(self.certificates.ca),
                "ssl.client.auth": "requested",
            }
        return properties | dict(self.settings)
