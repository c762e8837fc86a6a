"""The long-running service: events in, numbers and alerts out, until it is told to stop.

One thread turns the loop below; the HTTP server and every channel have a thread of their own and never
make the loop wait. A turn takes what has come, and then

1. applies it: decode and judge, join and count; what is not accepted goes to the dead letters;
2. closes time buckets that no partition holds back any more, takes gaps, evaluates rules;
3. writes what changed, the next positions and the messages of alerts to the store, in one transaction;
4. commits the positions to Kafka, for others to look at: after a restart those of the store count;
5. hands messages to the channels and answers posted events.

Steps 3 to 5 come about once a second, and at once when somebody waits for an answer. Whatever step the
process dies at, the store holds the state and the positions of one moment, and reading goes on from there.
Without ``state.directory`` step 3 writes nothing. At the end of a turn it shows what Prometheus scrapes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector

from monitor.alerts import AlertState, Transition
from monitor.checkpoint import Document, EngineChanges
from monitor.clock import format_duration
from monitor.config import Config
from monitor.engine import Engine
from monitor.errors import MonitorError
from monitor.exposition import Samples, group_samples, text
from monitor.health import Tally, health_samples
from monitor.kafka_client import connection_options, make_producer
from monitor.letters import Letters
from monitor.names import Reason
from monitor.notify import Notifier
from monitor.records import RecordBatch, Reject
from monitor.rows import alert_row
from monitor.sinks.kafka import TopicLetters, letter_options
from monitor.sinks.outbox import Channel, Message
from monitor.sinks.webhook import Webhook, WebhookTarget
from monitor.sources.http import Inbox, Post, Receipt, shown
from monitor.sources.kafka import KafkaSource, KafkaStatus, TopicStart, kafka_source
from monitor.store import Loaded, Store, StoredMessage, StoreError
from monitor.store import Receipt as StoredReceipt
from monitor.web import Board, WebServer, make_app
from monitor.wiring import build_decoders, build_engine, milliseconds

logger = logging.getLogger(__name__)

_HEALTH_SECONDS = 0.5
_EVALUATE_SECONDS = 1.0
_EVALUATE_SHARE = 0.1
"""Most of the time that taking group numbers for /metrics may use."""
_WRITE_SECONDS = 1.0
_POLL_SECONDS = 0.25
_POLL_BESIDE_POSTS_SECONDS = 0.05
_LETTERS_SECONDS = 0.5
_COMMIT_WAIT_SECONDS = 5.0
_CLOSINGS = 300
"""Time buckets closed in one turn: so the loop turns, and SIGTERM is heard, while old events are read."""
_DRAIN_SECONDS = 12.0
_AHEAD_MS = 3_600_000
"""Event time by which a partition may be ahead of what is closed before it has to wait."""


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class _Ready:
    """What goes out once ``write`` is written: messages, receipts, and positions if it is time."""

    messages: list[Message]
    answers: list[tuple[Post, Receipt]]
    ledger: list[Document]
    positions: bool
    write: dict[str, Any] = field(default_factory=dict)


class Service:
    """Everything that runs, and the loop that turns it; see the module's text for the steps of a turn.

    Parameters
    ----------
    config
        The configuration. Raises MonitorError when it names nothing that events could come from.
    now_ms, monotonic
        Clocks: ms since 1970, and seconds that never jump.
    """

    def __init__(
        self,
        config: Config,
        *,
        now_ms: Callable[[], int] = now_ms,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._now_ms = now_ms
        self._monotonic = monotonic
        self.engine = build_engine(config, counters=True)
        self._store = _store(config, now_ms)
        with ExitStack() as stack:
            if self._store is not None:
                stack.callback(self._store.close)  # when what follows fails
            loaded = self._store.load() if self._store is not None else None
            if self._store is not None:
                _restore(self.engine, loaded)
            self._decoders = build_decoders(config, self.engine)
            self._kafka = _kafka_source(config, now_ms, loaded.offsets if loaded else {})
            posted = {s.name: s.http.max_body_bytes for s in config.sources if s.http is not None}
            if self._kafka is None and not posted:
                raise MonitorError(
                    "there is nothing to run on: give a source kafka: {topics: […]}, or http: {} "
                    "(files are read by fairness-monitor replay)"
                )
            self._inbox = Inbox()
            self._posted = posted
            self._last_post = {_posted(name): monotonic() for name in posted}  # no clock that may be set back
            self._partitions: dict[str, str] = {}
            for name in posted:
                self._add_partition(_posted(name), name)
            self._tally = Tally(now_ms())
            self._letters = Letters(config.dead_letter.path, _topic_letters(config))
            # no alert is known before its time bucket has closed
            age = config.alerts.max_age + config.time.grace + config.time.bucket + config.time.idle_after
            self._notifier = Notifier(_channels(config, now_ms), milliseconds(age))
            self._process = ProcessCollector(registry=CollectorRegistry())
            self._idle = dict(self.engine.partitions)
            self._stale: dict[str, bool] = {}
            self._lowest: int | None = None
            self._answers: list[tuple[Post, Receipt]] = []
            self._messages: list[Message] = []
            self._orphans: list[tuple[str, str]] = []
            self._ledger: list[Document] = []
            self._unwritten: _Ready | None = None
            self._last_written: object = None
            self._unwritable: str | None = None
            self._shown: object = None
            self._evaluate_at = self._health_at = self._write_at = 0.0
            if loaded is not None:
                self._go_on(loaded)
            self.board = Board()
            server = config.server
            app = make_app(
                self.board,
                monotonic=monotonic,
                now_ms=now_ms,
                metrics_token=server.metrics_token.get_secret_value() if server.metrics_token else None,
                inbox=self._inbox,
                ingest_token=server.ingest_token.get_secret_value() if server.ingest_token else None,
                max_body_bytes=posted,
            )
            self.web = WebServer(app, server)
            stack.pop_all()

    def run(self, stop: Event) -> None:
        """Turn the loop until ``stop`` is set, then drain: count what was taken, commit, send alerts."""
        for channel in self._notifier.channels:
            channel.start()
        self._show(force=True)
        self.web.start()
        logger.info("listening", extra={"listen": self._config.server.address[0], "port": self.web.port})
        try:
            while not stop.is_set():
                self.turn()
                if self.web.ended:
                    raise MonitorError("the HTTP server ended; see the log")
            logger.info("draining")
            self._drain()
        except MonitorError as error:
            logger.critical("%s", error)
            raise
        except Exception as error:
            logger.critical("the service failed; please report this", exc_info=True)
            raise MonitorError(
                f"the service failed ({type(error).__name__}); its log has the details"
            ) from error
        finally:
            self._close()
        logger.info("stopped")

    def turn(self) -> None:
        """One turn of the loop."""
        records, posts = self._take()
        self._apply_all(records, posts)  # 1
        self._close_buckets()  # 2
        ready = self._write()  # 3
        if ready is not None:
            self._commit_positions(ready)  # 4
            self._deliver(ready)  # 5
        self._show()

    def _apply_all(self, records: Sequence[RecordBatch], posts: Sequence[Post]) -> None:
        """Step 1: decode, judge, join and count; what is not accepted goes to the dead letters."""
        if self._kafka is not None:
            for batch in records:
                self._apply(batch, self._kafka.source_of(batch.partition))
                self._kafka.applied(batch)
        for post in posts:
            self._apply_post(post)

    def _close_buckets(self) -> None:
        """Step 2: decide which partitions hold back the others, close time buckets, evaluate rules."""
        self._settle_idle()
        transitions = []
        if self._complete():
            transitions = self.engine.advance(_CLOSINGS) + self.engine.rest(self._now_ms(), _CLOSINGS)
        self._notifier.tell(transitions, self._now_ms())
        active = (a for model in self.engine.models.values() for a in model.alerts)
        self._notifier.catch_up(active, self.engine.closed_until, self._now_ms())
        self._messages += self._notifier.take()
        self._ledger += [_entry(t) for t in transitions if t.state is not AlertState.PENDING]

    def _write(self, wait_seconds: float = 0.0) -> _Ready | None:
        """Step 3: write what changed since the last time; what may go out now that it is written.

        Dead letters leave first, since their events will not be read again. What could not be written is
        kept as it is and tried again, and nothing is taken in meanwhile.
        """
        now = self._monotonic()
        due = now >= self._write_at or wait_seconds > 0
        if not (due or self._answers or self._messages):
            return None
        if self._unwritten is None:
            left = not due and self._store is None  # nothing is written, and positions wait for their turn
            left = left or self._letters.flush(max(wait_seconds, _LETTERS_SECONDS))
            if not left and self._store is not None:
                return None
            self._unwritten = self._gather(positions=due and left)
        if due:
            self._write_at = now + _WRITE_SECONDS
        if self._store is not None and not self._written(self._store, self._unwritten):
            return None
        ready, self._unwritten = self._unwritten, None
        return ready

    def _go_on(self, loaded: Loaded) -> None:
        """Go on from what was stored, beside the engine and the positions."""
        self._notifier.restore(loaded.documents["notifier"])
        for partition, source in loaded.documents["partitions"].items():
            self._partitions.setdefault(partition, source)
        for kept in loaded.receipts:
            self._inbox.remember(kept.source, kept.key, kept.digest, _as_receipt(kept.receipt))
        channels = {channel.name: channel for channel in self._notifier.channels}
        for m in loaded.outbox:
            if m.channel in channels:
                channels[m.channel].send(Message(m.id, m.key, m.rule, m.at_ms, m.body))
            else:
                self._orphans.append((m.channel, m.id))
                what = "a message for channel %s is given up: the configuration has no such channel any more"
                logger.error(what, m.channel, extra={"webhook_id": m.id})

    def _gather(self, *, positions: bool) -> _Ready:
        """What goes out next, with what is written before."""
        ready = _Ready(self._messages, self._answers, self._ledger, positions)
        self._messages, self._answers, self._ledger = [], [], []
        if self._store is not None:
            ready.write = self._changes(ready)
        return ready

    def _changes(self, ready: _Ready) -> dict[str, Any]:
        """What the store is to write; empty when nothing has changed."""
        channels = self._notifier.channels
        orphans, self._orphans = self._orphans, []
        write: dict[str, Any] = {
            "changes": self.engine.changes(),
            "offsets": self._kafka.positions() if self._kafka is not None else {},
            "documents": {"notifier": self._notifier.snapshot(), "partitions": dict(self._partitions)},
        }
        lists: dict[str, list[Any]] = {
            "messages": [
                StoredMessage(channel.name, m.id, m.key, m.rule, m.at_ms, m.body)
                for m in ready.messages
                for channel in channels
            ],
            "delivered": [*orphans, *((c.name, done) for c in channels for done in c.finished())],
            "receipts": [
                StoredReceipt(post.source, post.key, post.digest, _receipt_document(receipt))
                for post, receipt in ready.answers
                if post.key is not None
            ],
            "ledger": ready.ledger,
        }
        same = (write["offsets"], write["documents"]) == self._last_written
        self._last_written = write["offsets"], write["documents"]
        changes: EngineChanges = write["changes"]
        if same and changes.document is None and not changes.models and not any(lists.values()):
            return {}
        return {**write, **lists}

    def _written(self, store: Store, ready: _Ready) -> bool:
        trouble = None
        try:
            if ready.write:
                store.commit(**ready.write)
        except StoreError as error:
            trouble = str(error)
        if trouble != self._unwritable:  # once per change, not per attempt
            if trouble is not None:
                logger.error("%s; nothing is read until it can be written", trouble)
            else:
                logger.info("state is written again")
        self._unwritable = trouble
        return trouble is None

    def _commit_positions(self, ready: _Ready, wait_seconds: float = 0.0) -> None:
        """Step 4: positions to Kafka."""
        if self._kafka is not None and ready.positions:
            self._kafka.commit(wait_seconds)

    def _deliver(self, ready: _Ready) -> None:
        """Step 5: messages to the channels, receipts to those who posted."""
        for message in ready.messages:
            for channel in self._notifier.channels:
                channel.send(message)
        for post, receipt in ready.answers:
            self._inbox.answer(post, receipt)

    def _take(self) -> tuple[Sequence[RecordBatch], list[Post]]:
        """What has come. While time buckets wait to be closed, posts do; and nothing waits for them."""
        if self._unwritten is not None:
            time.sleep(_POLL_SECONDS)
            return (), []
        behind = self.engine.behind
        if self._kafka is None:
            return (), [] if behind else self._inbox.take(_POLL_SECONDS)
        wait = 0.0 if behind else _POLL_BESIDE_POSTS_SECONDS if self._posted else _POLL_SECONDS
        records = self._kafka.poll(wait)
        return records, self._inbox.take(0) if self._posted and not behind else []

    def _apply(self, records: RecordBatch, source: str) -> Receipt:
        """Decode, judge, join and count a batch; what is not accepted goes to the dead letters."""
        now = self._now_ms()
        self._add_partition(records.partition, source)
        decoded = self._decoders[source].decode(records)
        self._tally.read(len(records), decoded.batches, now)
        late = self.engine.step(records.partition, decoded.batches).tolist()
        mark = self.engine.watermark(records.partition)
        if mark is not None and (self._lowest is None or mark < self._lowest):
            self._lowest = mark
        rejects = [*decoded.rejects, *(records.late(i) for i in late)]
        self._tally.join.count(decoded.read - len(rejects), 0, now)
        self._tally.reject(source, rejects)
        self._letters.write(rejects)
        return Receipt(decoded.read, decoded.read - len(rejects), rejects)

    def _apply_post(self, post: Post) -> None:
        partition = _posted(post.source)
        self._last_post[partition] = self._monotonic()
        self._answers.append((post, self._apply(post.records(partition), post.source)))

    def _add_partition(self, partition: str, source: str) -> None:
        if partition not in self._partitions:
            self._partitions[partition] = source
            self.engine.add_partition(partition)

    def _settle_idle(self) -> None:
        """Tell the engine which partitions have had no news for ``time.idle_after``."""
        now, at_s = self._now_ms(), self._monotonic()
        quiet: dict[str, int | None] = {
            name: now - int((at_s - last) * 1000) for name, last in self._last_post.items()
        }
        if self._kafka is not None:
            status = self._kafka.status()
            for name, at in status.partitions.items():
                self._add_partition(name, at.source)
                quiet[name] = at.quiet_since_ms
            self._hold_back(self._kafka, status)
        self._refuse_posts()
        patience = milliseconds(self._config.time.idle_after)
        gone = 0 if self._complete() else None  # a partition that is gone has no news; at first nobody knows
        for partition in self._partitions:
            since = quiet.get(partition, gone)
            idle = since is not None and now - since >= patience
            if idle is not self._idle.get(partition, False):
                self._idle[partition] = idle
                self.engine.set_idle(partition, idle)

    def _ahead(self, partition: str, limit_ms: int) -> bool:
        """Is the partition further ahead of what is closed than this, in event time?"""
        mark = self.engine.watermark(partition)
        base = self._lowest if self.engine.closed_until is None else self.engine.closed_until
        return mark is not None and base is not None and mark - base > limit_ms

    def _hold_back(self, kafka: KafkaSource, status: KafkaStatus) -> None:
        """Pause partitions far ahead in event time, to keep few time buckets open; all while letters wait."""
        paused = {name for name, at in status.partitions.items() if at.paused}
        ahead = {  # pausing costs a fetch, so one that waits goes on later than it was stopped
            name
            for name in status.partitions
            if self._ahead(name, _AHEAD_MS // 2 if name in paused else _AHEAD_MS)
        }
        if self._letters.full:
            ahead = set(status.partitions)
        if ahead - paused:
            kafka.pause(ahead - paused)
        if paused - ahead:
            kafka.resume(paused - ahead)

    def _refuse_posts(self) -> None:
        """Have senders of posts wait for the same reasons."""
        why = None
        if self._letters.full:
            why = "rejected events cannot be written, see the monitor's log; send these again later"
        elif self._unwritable is not None:
            why = "the state cannot be written, see the monitor's log; send these again later"
        elif not self.engine.behind and any(self._ahead(name, _AHEAD_MS) for name in self._last_post):
            why = "posted events are far ahead of other sources, see /readyz; send these again later"
        self._inbox.pause(why)

    def _complete(self) -> bool:
        """Are all partitions known that time buckets must wait for?"""
        return self._kafka is None or self._kafka.status().ready

    def _show(self, *, force: bool = False) -> None:
        """Renew what /metrics, /livez and /readyz show, when it is time to."""
        now, wall = self._monotonic(), self._now_ms()
        board = self.board
        board.heartbeat = now
        if force or now >= self._health_at:
            self._show_health()
        shown = (self.engine.closed_until, *self._stale.values(), self._notifier.counts.total())
        if force or (shown != self._shown and now >= self._evaluate_at):
            self._shown = shown
            board.groups = text(group_samples(self.engine, self._stale, self._notifier.counts, wall / 1000))
            took = self._monotonic() - now
            self._evaluate_at = now + max(_EVALUATE_SECONDS, took / _EVALUATE_SHARE)

    def _show_health(self) -> None:
        wall = self._now_ms()
        self._health_at = self._monotonic() + _HEALTH_SECONDS
        self._note_stale(wall)
        self._note_readiness()
        self.board.health = text(self._health(wall), self._process)

    def _health(self, wall: int) -> Samples:
        return health_samples(
            self.engine,
            self._tally,
            now_ms=wall,
            sources=[s.name for s in self._config.sources if s.kafka is not None or s.http is not None],
            partitions=self._partitions,
            idle=self._idle,
            stale=self._stale,
            kafka=self._kafka.status() if self._kafka is not None else None,
            notifier=self._notifier,
            letters=self._letters.counts(),
            ingest_codes=dict(self.board.ingest_codes),
        )

    def _note_stale(self, wall: int) -> None:
        patience = milliseconds(self._config.health.stale_after)
        for name in self.engine.models:
            stale = wall - self._tally.last_event(name) >= patience
            if stale is not self._stale.get(name, False):
                if stale:
                    silence = format_duration(self._config.health.stale_after)
                    logger.warning("model %s had no event for %s", name, silence, extra={"model": name})
                else:
                    logger.info("model %s has events again", name, extra={"model": name})
            self._stale[name] = stale

    def _note_readiness(self) -> None:
        waiting = self._waiting_for()
        # What is in brackets is of the moment: the pause before the next attempt.
        if _gist(waiting) != _gist(self.board.waiting_for):
            if waiting:
                logger.info("waiting: %s", "; ".join(waiting))
            else:
                logger.info("ready", extra={"partitions": len(self._partitions)})
        self.board.waiting_for = waiting

    def _waiting_for(self) -> tuple[str, ...]:
        if self._unwritable is not None:
            return (self._unwritable,)
        if self._kafka is None:
            return ()
        status = self._kafka.status()
        if status.ready and status.partitions:
            return ()
        if status.ready:
            return tuple(f"topic {topic} does not exist yet" for topic in status.missing_topics)
        return (status.last_error or "the brokers have not answered yet",)

    def _drain(self) -> None:
        """Finish what was taken in: nothing that was answered or committed is lost."""
        self._inbox.close()
        deadline = self._monotonic() + _DRAIN_SECONDS
        if self._unwritten is None:
            while posts := self._inbox.take(0):
                self._apply_all((), posts)
            self._close_buckets()
        ready = self._write(_COMMIT_WAIT_SECONDS)
        if ready is not None:
            self._commit_positions(ready, _COMMIT_WAIT_SECONDS)
            self._deliver(ready)
        self._show_health()
        for channel in self._notifier.channels:
            channel.flush(max(0.0, deadline - self._monotonic()))
        if self._store is not None:
            self._write(1.0)  # which messages were delivered meanwhile

    def _close(self) -> None:
        self.web.close()
        for channel in self._notifier.channels:
            channel.close()
        if self._kafka is not None:
            self._kafka.close()
        self._letters.close()
        if self._store is not None:
            self._store.close()


def _store(config: Config, now_ms: Callable[[], int]) -> Store | None:
    directory = config.state.directory
    return None if directory is None else Store.open(Path(directory), now_ms=now_ms)


def _restore(engine: Engine, loaded: Loaded | None) -> None:
    engine.track()
    if loaded is not None:
        try:
            engine.restore(loaded.engine)
        except ValueError as error:
            raise MonitorError(str(error)) from None
        logger.info("state is restored", extra={"closed_until": engine.closed_until})


def _entry(transition: Transition) -> Document:
    """A line of the ledger."""
    return {"at": transition.at, **alert_row(transition.alert)}


def _receipt_document(receipt: Receipt) -> Document:
    kept = shown(receipt)
    rejects = [[r.partition, r.position, str(r.reason), r.message, r.element] for r in kept.rejects]
    return {"read": kept.read, "accepted": kept.accepted, "rejects": rejects}


def _as_receipt(document: Any) -> Receipt:
    rejects = [Reject(p, at, Reason(why), text, b"", e) for p, at, why, text, e in document["rejects"]]
    return Receipt(document["read"], document["accepted"], rejects)


def _gist(sentences: Sequence[str]) -> list[str]:
    return [sentence.partition(" (")[0] for sentence in sentences]


def _posted(source: str) -> str:
    """Name of the partition of posted events: no topic and no other source can have it."""
    return f"http/{source}"


def _kafka_source(config: Config, now_ms: Callable[[], int], stored: Mapping[str, int]) -> KafkaSource | None:
    topics = [
        TopicStart(topic, source.name, source.kafka.start)
        for source in config.sources
        if source.kafka is not None
        for topic in source.kafka.topics
    ]
    if not topics or config.kafka is None:
        return None
    return kafka_source(config.kafka, topics, now_ms, stored)


def _topic_letters(config: Config) -> TopicLetters | None:
    if config.dead_letter.topic is None or config.kafka is None:
        return None
    options = {**connection_options(config.kafka), **letter_options(config.limits.max_message_bytes)}
    return TopicLetters(config.dead_letter.topic, lambda: make_producer(**options))


def _channels(config: Config, now_ms: Callable[[], int]) -> list[Channel]:
    channels = []
    for name, webhook in config.alerts.webhooks.items():
        target = WebhookTarget(
            name,
            webhook.url.get_secret_value(),
            tuple(s.get_secret_value() for s in webhook.secrets),
            webhook.timeout.total_seconds(),
            webhook.allow_private,
        )
        channels.append(Channel(name, Webhook(target, now_ms=now_ms), now_ms=now_ms))
    return channels
