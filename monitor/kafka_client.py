"""The typed boundary to kafka-python: what is used of it, and how it connects.

kafka-python has no type information, and its constructors and some of its calls wait for brokers without a
limit. Here a consumer gets a thread of its own, so that no call holds up the caller for longer than it says.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from monitor.connections import KafkaConfig
from monitor.errors import MonitorError

T = TypeVar("T")

_CONNECT_SECONDS = 15.0
_MARGIN_SECONDS = 0.5
_RETRY_MS = 250


class TopicPartition(NamedTuple):
    """One partition; equal to kafka-python's tuple of the same name."""

    topic: str
    partition: int


class Record(Protocol):
    """A record as it comes from the broker."""

    @property
    def offset(self) -> int:
        """Its place in the partition."""

    @property
    def timestamp(self) -> int:
        """Milliseconds since 1970, by the producer or the broker as the topic is set up; -1 without."""

    @property
    def value(self) -> bytes | None:
        """Its payload."""


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """A topic as the cluster describes it: its identity, and who leads each partition (None: nobody)."""

    id: object = None
    leaders: Mapping[int, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metadata:
    """The latest answer to the question for our topics; those that do not exist are not in ``topics``."""

    topics: Mapping[str, TopicMetadata]
    denied: Collection[str] = ()


class NoPosition(Exception):
    """Nothing is committed for these partitions."""

    def __init__(self, partitions: Iterable[TopicPartition]) -> None:
        self.partitions = tuple(partitions)
        super().__init__(", ".join(f"{p.topic}-{p.partition}" for p in self.partitions))


class PositionGone(Exception):
    """Nothing can be read at these positions: they are beyond an end of the log."""

    def __init__(self, positions: Mapping[TopicPartition, int]) -> None:
        self.positions = dict(positions)
        super().__init__(", ".join(f"{p.topic}-{p.partition} at {at}" for p, at in self.positions.items()))


class LogCut(Exception):
    """Records that were read are gone, and others take their places from here on (None: not known)."""

    def __init__(self, cuts: Mapping[TopicPartition, int | None]) -> None:
        self.cuts = dict(cuts)
        super().__init__(", ".join(f"{p.topic}-{p.partition} at {at}" for p, at in self.cuts.items()))


class NoAnswer(Exception):
    """No broker answered in time, or not for all that was asked."""


class TopicsDenied(Exception):
    """The broker does not let us read these topics."""

    def __init__(self, topics: Iterable[str]) -> None:
        self.topics = tuple(sorted(topics))
        super().__init__(", ".join(self.topics))


class Stalled(Exception):
    """A call took longer than it may. It may still come to an end in the background."""


class Consumer(Protocol):
    """Reads partitions that the caller names. For one thread; every call ends about when it says."""

    def connect(self, seconds: float) -> bool:
        """Wait for the connection and the first metadata; raises what went wrong. To be called first."""

    def metadata(self) -> Metadata:
        """What is known of the topics. Refreshed by itself every few seconds."""

    def complaint(self) -> str | None:
        """Why connecting does not work so far, as the library says it."""

    def busy(self) -> bool:
        """Whether a poll that was given up goes on in the background; then only poll makes sense."""

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        """Read these partitions from now on. Those that were read before keep their positions."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on at this offset."""

    def positions(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The next offsets to read, beyond markers and gaps, as far as they are known."""

    def poll(self, seconds: float, max_records: int) -> Mapping[TopicPartition, Sequence[Record]]:
        """Records, as soon as there are some.

        Raises NoPosition, PositionGone, LogCut or TopicsDenied, and whatever kafka-python raises.
        """

    def beginning_offsets(
        self, partitions: Sequence[TopicPartition], seconds: float
    ) -> Mapping[TopicPartition, int]:
        """First offsets that can be read."""

    def end_offsets(
        self, partitions: Sequence[TopicPartition], seconds: float
    ) -> Mapping[TopicPartition, int]:
        """Ends of what can be read, open transactions left out."""

    def offsets_for_times(
        self, times: Mapping[TopicPartition, int], seconds: float
    ) -> Mapping[TopicPartition, int | None]:
        """First offsets at or after a time in milliseconds; None where there is none."""

    def commit_async(
        self, offsets: Mapping[TopicPartition, int], done: Callable[[Exception | None], None]
    ) -> None:
        """Commit in the background; ``done`` is called during a later poll."""

    def commit(self, offsets: Mapping[TopicPartition, int], seconds: float) -> None:
        """Commit now."""

    def close(self, seconds: float) -> None:
        """Give up the connection. Commits nothing."""


class Delivery(Protocol):
    """The fate of a record that was sent."""

    def add_callback(self, function: Callable[..., object], *arguments: object) -> object:
        """Call ``function(*arguments, metadata)`` from a thread of the producer when the broker has it."""

    def add_errback(self, function: Callable[..., object], *arguments: object) -> object:
        """Call ``function(*arguments, exception)`` from a thread of the producer when it failed for good."""

    def get(self, timeout: float | None = None) -> object:
        """Wait for the broker's answer; raises when there is none, or a bad one."""


class Producer(Protocol):
    """What is used of ``kafka.KafkaProducer``."""

    def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> Delivery:
        """Queue a record; waits up to ``max_block_ms`` for metadata and room."""

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything queued was answered; raises when time is up."""

    def close(self, timeout: float | None = None) -> None:
        """Send what is queued while time lasts, then let go."""


def connection_options(config: KafkaConfig) -> dict[str, object]:
    """Options of kafka-python for reaching the cluster: servers, TLS, SASL.

    Raises
    ------
    MonitorError
        When a certificate or a key cannot be used.
    """
    security = config.security
    options: dict[str, object] = {
        "bootstrap_servers": list(config.bootstrap_servers),
        "client_id": config.client_id,
        "security_protocol": security.protocol,
        "metrics_enabled": False,
        "reconnect_backoff_max_ms": 2000,
        "retry_backoff_ms": _RETRY_MS,
    }
    if security.protocol.endswith("SSL"):
        options["ssl_context"] = _tls(config)
    if security.protocol.startswith("SASL_"):
        options["sasl_mechanism"] = security.mechanism
        options["sasl_plain_username"] = security.username
        options["sasl_plain_password"] = security.password.get_secret_value() if security.password else None
    return options


def _tls(config: KafkaConfig) -> ssl.SSLContext:
    """Made here so that files which cannot be used are told by name, and not as a failed connection."""
    security = config.security
    try:
        context = ssl.create_default_context(cafile=security.ca_file)
    except (OSError, ValueError) as error:
        raise MonitorError(
            f"kafka.security.ca_file {security.ca_file} holds no certificates that can be used ({error}); "
            "name a PEM file with the certificates of your authority"
        ) from None
    context.check_hostname = security.check_hostname
    if security.certificate_file is not None:
        password = security.key_password.get_secret_value() if security.key_password else ""
        try:  # an empty password makes OpenSSL fail where it would ask the terminal
            context.load_cert_chain(security.certificate_file, security.key_file, password)
        except (OSError, ValueError) as error:
            raise MonitorError(
                f"kafka.security.certificate_file {security.certificate_file} and key_file "
                f"{security.key_file} cannot be used ({error}); check that they belong together, "
                "and key_password"
            ) from None
    return context


def make_consumer(topics: Sequence[str], **options: object) -> Consumer:
    """A consumer for these topics that connects in the background; options are those of KafkaConsumer."""
    return _Consumer(topics, options)


def make_producer(**options: object) -> Producer:
    """A KafkaProducer, connected; raises after ``bootstrap_timeout_ms`` when no broker answers.

    Topics are not created unless the option ``allow_auto_create_topics`` says so.
    """
    _listen()
    options.setdefault("metrics_enabled", False)
    options.setdefault("allow_auto_create_topics", False)
    create = options["allow_auto_create_topics"]
    kafka = import_module("kafka")
    client = _Client(kafka.KafkaProducer.DEFAULT_CONFIG["kafka_client"], create_topics=bool(create))
    try:
        return cast(Producer, kafka.KafkaProducer(kafka_client=client, **options))
    except BaseException:
        client.close()
        raise


class _Client:
    """Makes the network client of a consumer or producer, and keeps it so that it can be closed.

    A constructor of kafka-python that fails leaves its thread and sockets behind.
    """

    def __init__(self, make: Callable[..., Any], *, create_topics: bool) -> None:
        self._make = make
        self._create_topics = create_topics
        self.made: Any = None

    def __call__(self, **options: object) -> Any:
        self.made = self._make(**options)
        # kafka-python 3.0 does not hand these two on; without them every question for a topic creates it.
        self.made.cluster.config["allow_auto_create_topics"] = self._create_topics
        self.made.cluster.config["retry_backoff_ms"] = options.get("retry_backoff_ms", _RETRY_MS)
        return self.made

    def close(self) -> None:
        if self.made is not None:
            with suppress(Exception):
                self.made.close()


class _LastComplaint(logging.Filter):
    """Remembers why connecting fails: kafka-python tells that to its log only, with every attempt."""

    def __init__(self) -> None:
        super().__init__()
        self.text: str | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage().partition(" (backoff")[0]
        refused = self.text is not None and "AuthenticationFailed" in self.text
        # Who refuses us hangs up, and often before his answer is read: then it says only that.
        vague = "disconnected" in text or text.startswith("Bootstrap failed")
        if "failed" in text and not (refused and vague):  # and not that it waits
            self.text = text
        return False


_complaint = _LastComplaint()


def _listen() -> None:
    for name in ("kafka.net.manager", "kafka.net.inet"):
        logger = logging.getLogger(name)
        logger.addFilter(_complaint)
        logger.setLevel(logging.WARNING)


class _Consumer:
    """KafkaConsumer in a thread of its own; see :class:`Consumer`."""

    def __init__(self, topics: Sequence[str], options: Mapping[str, object]) -> None:
        _listen()
        self._topics = tuple(topics)
        self._options = {"metrics_enabled": False, **options}
        self._kafka: Any = import_module("kafka")
        self._errors: Any = import_module("kafka.errors")
        make = self._kafka.KafkaConsumer.DEFAULT_CONFIG["kafka_client"]
        self._client = _Client(make, create_topics=False)
        self._consumer: Any = None
        self._metadata = Metadata({})
        self._told = Event()
        self._closing = False
        self._opened: Future[None] | None = None
        self._polling: Future[Mapping[TopicPartition, Sequence[Record]]] | None = None
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._answers: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = Thread(target=self._work, name="kafka-consumer", daemon=True)
        self._thread.start()

    def connect(self, seconds: float) -> bool:
        if self._opened is None:
            self._opened = self._submit(self._open)
        try:
            self._opened.result(seconds)
        except TimeoutError:
            return False
        return True

    def metadata(self) -> Metadata:
        return self._metadata

    def complaint(self) -> str | None:
        return _complaint.text

    def busy(self) -> bool:
        return self._polling is not None

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self._call(lambda: self._consumer.assign(self._theirs(partitions)))

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._call(lambda: self._consumer.seek(*self._theirs([partition]), offset))

    def positions(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        def ask() -> dict[TopicPartition, int]:
            found = {}
            for ours, theirs in zip(partitions, self._theirs(partitions), strict=True):
                with suppress(self._errors.NoOffsetForPartitionError):
                    position = self._consumer.position(theirs, timeout_ms=0)
                    if position is not None:
                        found[ours] = int(position)
            return found

        return self._call(ask)

    def poll(self, seconds: float, max_records: int) -> Mapping[TopicPartition, Sequence[Record]]:
        def ask() -> Mapping[TopicPartition, Sequence[Record]]:
            found = self._consumer.poll(timeout_ms=int(seconds * 1000), max_records=max_records)
            return {TopicPartition(*partition): records for partition, records in found.items()}

        while not self._answers.empty():
            self._answers.get()()
        if self._polling is None:
            self._polling = self._submit(ask)
        try:
            found = self._polling.result(seconds + _MARGIN_SECONDS)
        except TimeoutError:
            return {}  # it goes on, and what it finds is handed over by the next poll
        finally:
            if self._polling.done():
                self._polling = None
        return found

    def beginning_offsets(
        self, partitions: Sequence[TopicPartition], seconds: float
    ) -> Mapping[TopicPartition, int]:
        return self._offsets("beginning_offsets", self._theirs(partitions), seconds)

    def end_offsets(
        self, partitions: Sequence[TopicPartition], seconds: float
    ) -> Mapping[TopicPartition, int]:
        return self._offsets("end_offsets", self._theirs(partitions), seconds)

    def _offsets(self, method: str, partitions: list[Any], seconds: float) -> dict[TopicPartition, int]:
        def ask() -> dict[TopicPartition, int]:
            found = getattr(self._consumer, method)(partitions, timeout_ms=int(seconds * 1000))
            return {TopicPartition(*partition): int(offset) for partition, offset in found.items()}

        return self._call(ask, seconds)

    def offsets_for_times(
        self, times: Mapping[TopicPartition, int], seconds: float
    ) -> Mapping[TopicPartition, int | None]:
        def ask() -> dict[TopicPartition, int | None]:
            theirs = dict(zip(self._theirs(times), times.values(), strict=True))
            found = self._consumer.offsets_for_times(theirs, timeout_ms=int(seconds * 1000))
            return {TopicPartition(*p): None if at is None else int(at.offset) for p, at in found.items()}

        return self._call(ask, seconds)

    def commit_async(
        self, offsets: Mapping[TopicPartition, int], done: Callable[[Exception | None], None]
    ) -> None:
        def answered(_offsets: object, answer: object) -> None:
            error = answer if isinstance(answer, Exception) else None
            self._answers.put(lambda: done(error))

        self._call(lambda: self._consumer.commit_async(self._commit(offsets), callback=answered) and None)

    def commit(self, offsets: Mapping[TopicPartition, int], seconds: float) -> None:
        self._call(
            lambda: self._consumer.commit(self._commit(offsets), timeout_ms=int(seconds * 1000)), seconds
        )

    def close(self, seconds: float) -> None:
        if self._closing:
            return
        self._closing = True
        self._told.set()
        self._submit(self._shut)
        self._jobs.put(None)
        if self._consumer is not None and self._polling is None:
            self._thread.join(seconds / 2)
        if self._thread.is_alive():  # taking its connections away ends whatever it waits for
            closer = Thread(target=self._client.close, name="kafka-close", daemon=True)
            closer.start()
            closer.join(seconds / 2)
            self._thread.join(seconds / 2)

    def _commit(self, offsets: Mapping[TopicPartition, int]) -> dict[Any, Any]:
        place = import_module("kafka.structs").OffsetAndMetadata
        return {self._kafka.TopicPartition(*p): place(offset, "", -1) for p, offset in offsets.items()}

    def _theirs(self, partitions: Iterable[TopicPartition]) -> list[Any]:
        return [self._kafka.TopicPartition(*p) for p in partitions]

    def _open(self) -> None:
        try:
            self._consumer = self._kafka.KafkaConsumer(
                kafka_client=self._client, bootstrap_timeout_ms=int(_CONNECT_SECONDS * 1000), **self._options
            )
            _complaint.text = None
            cluster = self._client.made.cluster
            cluster.add_listener(self._learn)
            cluster.set_topics(self._topics)
            if self._closing or not self._told.wait(_CONNECT_SECONDS) or self._closing:
                raise self._errors.KafkaTimeoutError("no broker said where the topics are")
        except BaseException:
            self._client.close()
            raise

    def _learn(self, cluster: Any) -> None:
        topics: dict[str, TopicMetadata] = {}
        for topic in self._topics:
            numbers = cluster.partitions_for_topic(topic)
            if numbers:
                leaders = {}
                for number in sorted(numbers):
                    leader = cluster.leader_for_partition(self._kafka.TopicPartition(topic, number))
                    leaders[number] = None if leader is None or leader == -1 else leader
                topics[topic] = TopicMetadata(cluster.topic_id(topic), leaders)
        self._metadata = Metadata(topics, frozenset(cluster.unauthorized_topics))
        self._told.set()

    def _shut(self) -> None:
        if self._consumer is not None:
            with suppress(Exception):
                self._consumer.close(autocommit=False, timeout_ms=500)
        self._client.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _submit(self, do: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(do())
            except BaseException as error:
                future.set_exception(self._translated(error))

        self._jobs.put(job)
        return future

    def _call(self, do: Callable[[], T], seconds: float = 1.0) -> T:
        future = self._submit(do)
        try:
            return future.result(seconds + _MARGIN_SECONDS)
        except TimeoutError:
            raise Stalled("the client library did not come back in time") from None

    def _translated(self, error: BaseException) -> BaseException:
        errors = self._errors
        subject = error.args[0] if error.args else None
        if isinstance(error, errors.NoOffsetForPartitionError):
            return NoPosition(TopicPartition(*p) for p in subject or ())
        if isinstance(error, errors.OffsetOutOfRangeError) and isinstance(subject, dict):
            return PositionGone({TopicPartition(*p): int(at) for p, at in subject.items()})
        if isinstance(error, errors.LogTruncationError):
            cuts = error.divergent_offsets.items()
            return LogCut({TopicPartition(*p): None if at is None else int(at.offset) for p, at in cuts})
        if isinstance(error, errors.TopicAuthorizationFailedError) and isinstance(subject, set | frozenset):
            return TopicsDenied(subject)
        if isinstance(error, errors.KafkaTimeoutError | KeyError):  # KeyError: offsets, without one of them
            return NoAnswer(_complaint.text or str(error))
        return error
