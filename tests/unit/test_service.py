"""The loop, turned by hand with a clock that stands still, fed by posts and by a double of Kafka."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitor import service as service_module
from monitor.config_file import parse_config
from monitor.errors import MonitorError
from monitor.records import RecordBatch
from monitor.service import Service
from monitor.sources.http import Post, Receipt, Refused
from monitor.sources.kafka import KafkaStatus, PartitionStatus
from monitor.store import StoreError
from tests.engine_helpers import HOUR, MINUTE, START, encode

MODEL: dict[str, Any] = {
    "task": "binary",
    "groups": ["sex"],
    "metrics": ["selection_rate"],
    "windows": ["all"],
    "min_support": 1,
    "gaps": [],
}


class Clock:
    def __init__(self, ms: int) -> None:
        self.ms = ms

    def now(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000


class FakeKafka:
    """Hands over what it is given; the status is what a test says."""

    def __init__(self, *partitions: str) -> None:
        self.waiting: list[RecordBatch] = []
        self.quiet: dict[str, int | None] = dict.fromkeys(partitions)
        self.ready = True
        self.paused: set[str] = set()
        self.log: list[str] = []

    def source_of(self, partition: str) -> str:
        return "events"

    def poll(self, seconds: float) -> Sequence[RecordBatch]:
        taken = [b for b in self.waiting if b.partition not in self.paused]
        self.waiting = [b for b in self.waiting if b.partition in self.paused]
        return taken

    def applied(self, batch: RecordBatch) -> None:
        self.log.append(f"applied {batch.partition}")

    def positions(self) -> dict[str, int]:
        return {}

    def commit(self, wait_seconds: float = 0) -> None:
        self.log.append("commit" if not wait_seconds else "commit and wait")

    def pause(self, names: Iterable[str]) -> None:
        self.paused |= set(names)

    def resume(self, names: Iterable[str]) -> None:
        self.paused -= set(names)

    def status(self) -> KafkaStatus:
        partitions = {
            name: PartitionStatus("events", name, 0, 0, 0, 0, name in self.paused, quiet)
            for name, quiet in self.quiet.items()
        }
        return KafkaStatus(True, self.ready, (), 0, "no broker answers", partitions, 0)

    def close(self) -> None:
        self.log.append("close")


class Bench:
    """A service with a clock of its own."""

    def __init__(self, kafka: FakeKafka | None, patch: pytest.MonkeyPatch, **parts: Any) -> None:
        self.clock = Clock(START + HOUR)
        self.kafka = kafka
        config: dict[str, Any] = {
            "models": {"m": MODEL},
            "server": {"listen": "127.0.0.1:0", "ingest_token": "t"},
            "privacy": {"min_group_size": 1},
            **parts,
        }
        if kafka is not None:
            config.setdefault("sources", [{"kafka": {"topics": ["x"]}}])
            config["kafka"] = {"bootstrap_servers": "127.0.0.1:1"}
            patch.setattr(service_module, "_kafka_source", lambda config, now_ms, stored: kafka)
        else:
            config.setdefault("sources", [{"http": {}}])
        self.service = Service(
            parse_config(json.dumps(config)), now_ms=self.clock.now, monotonic=self.clock.monotonic
        )

    def give(self, partition: str, *events: dict[str, Any]) -> None:
        assert self.kafka is not None
        positions = range(len(events))
        self.kafka.waiting.append(RecordBatch(partition, encode(events), positions, self.clock.ms))

    def post(self, *lines: bytes) -> Post:
        post = Post("events", b"\n".join(lines), self.clock.ms)
        self.service._inbox.submit(post)
        return post

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.ms += int(seconds * 1000)
        self.service.turn()

    def value(self, name: str, **labels: str) -> float | None:
        text = (self.service.board.groups + self.service.board.health).decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return None


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Bench] = []

    def make(kafka: FakeKafka | None = None, **parts: Any) -> Bench:
        made.append(Bench(kafka, monkeypatch, **parts))
        return made[-1]

    yield make
    for bench in made:
        bench.service._close()


def event(i: int, at: int, **more: Any) -> dict[str, Any]:
    return {"id": f"{at}-{i}", "time": at, "attributes": {"sex": "f"}, "decision": True, **more}


def test_posts_are_answered_with_what_came_of_them(benches: Any) -> None:
    bench = benches()
    post = bench.post(json.dumps(event(1, START + HOUR)).encode(), b"{")
    bench.turn()
    receipt: Receipt = post.receipt.result(0)
    assert (receipt.read, receipt.accepted) == (2, 1)
    assert [str(r.reason) for r in receipt.rejects] == ["invalid_json"]
    bench.turn(1)
    assert bench.value("fairness_events_rejected_total", source="events", reason="invalid_json") == 1
    assert bench.value("fairness_stage_out_total", stage="decode") == 1


def test_all_quiet_closes_what_has_come(benches: Any) -> None:
    bench = benches()
    bench.post(json.dumps(event(1, START + HOUR)).encode())
    bench.turn()
    bench.turn(45)
    assert bench.value("fairness_partition_idle") == 1
    assert bench.value("fairness_group_value", group="f") is None, "its time bucket has not ended"
    bench.turn(120)
    assert bench.value("fairness_closed_until_timestamp_seconds") == (START + HOUR + MINUTE) / 1000
    assert bench.value("fairness_group_value", group="f") == 1


def test_an_idle_partition_does_not_hold_back_the_others(benches: Any) -> None:
    bench = benches(FakeKafka("x-0", "x-1"))
    bench.give("x-0", event(1, START), event(2, START + 10 * MINUTE))
    bench.turn()
    assert bench.service.engine.closed_until is None, "x-1 may still have older events"
    bench.kafka.quiet["x-1"] = bench.clock.ms
    bench.turn(20)
    assert bench.service.engine.closed_until is None
    bench.turn(20)
    assert bench.service.engine.closed_until == START + 9 * MINUTE
    bench.kafka.quiet["x-1"] = None
    bench.give("x-1", event(3, START + 9 * MINUTE))
    bench.give("x-0", event(4, START + 20 * MINUTE))
    bench.turn()
    bench.turn(1)
    assert bench.value("fairness_partition_idle", partition="x-1") == 0
    assert bench.service.engine.closed_until == START + 9 * MINUTE, "it counts again"
    assert bench.value("fairness_events_rejected_total", reason="late") == 0


def test_nothing_closes_before_all_partitions_are_known(benches: Any) -> None:
    bench = benches(FakeKafka())
    bench.kafka.ready = False
    bench.turn(1000)
    assert bench.service.board.waiting_for == ("no broker answers",)
    assert bench.service.engine.closed_until is None


def test_a_partition_far_ahead_is_paused_until_the_others_have_come(benches: Any) -> None:
    bench = benches(FakeKafka("x-0", "x-1"))
    bench.clock.ms = START + 10 * HOUR
    bench.give("x-0", event(1, START), event(2, START + 5 * HOUR))
    bench.give("x-1", event(3, START))
    bench.turn()
    assert bench.kafka.paused == {"x-0"}
    bench.give("x-1", event(4, START + 5 * HOUR))
    bench.turn()
    bench.turn()
    assert bench.kafka.paused == set()


def test_offsets_are_committed_after_the_batch_and_its_dead_letters(benches: Any, tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    bench = benches(FakeKafka("x-0"), dead_letter={"path": str(path)})
    bench.give("x-0", event(1, START), {"id": "bad"})
    bench.turn(10)
    assert bench.kafka.log == ["applied x-0", "commit"]
    assert json.loads(path.read_text())["reason"] == "missing_field"
    bench.turn(0.5)
    assert bench.kafka.log == ["applied x-0", "commit"], "not at every turn"


def test_draining_answers_and_commits(benches: Any) -> None:
    bench = benches(FakeKafka("x-0"), sources=[{"kafka": {"topics": ["x"]}}, {"name": "events2", "http": {}}])
    post = Post("events2", json.dumps(event(1, START + HOUR)).encode(), bench.clock.ms)
    bench.service._inbox.submit(post)
    bench.service._drain()
    assert post.receipt.result(0).accepted == 1
    assert bench.kafka.log == ["commit and wait"]


def test_silence_makes_a_model_stale(benches: Any) -> None:
    bench = benches()
    bench.post(json.dumps(event(1, START + HOUR)).encode())
    bench.turn()
    bench.turn(600)
    assert bench.value("fairness_model_stale", model="m") == 0
    assert bench.value("fairness_group_status", group="f", status="ok") == 1
    bench.turn(3600)
    assert bench.value("fairness_model_stale", model="m") == 1
    assert bench.value("fairness_group_status", group="f", status="stale") == 1


def test_a_disk_that_is_full_does_not_stop_the_loop(benches: Any) -> None:
    bench = benches(dead_letter={"path": "/dev/full"})
    for _ in range(2):
        bench.post(*[b"{" * 200] * 200)
        bench.turn(5)
    bench.turn(1)
    assert bench.value("fairness_dead_letters_total", sink="file", result="failed") == 400
    assert bench.value("fairness_events_rejected_total", reason="invalid_json") == 400


def test_nothing_to_run_on_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MonitorError, match="nothing to run on"):
        Bench(None, monkeypatch, sources=[{"paths": ["a.jsonl"]}])


def test_old_events_are_closed_in_pieces_and_the_loop_goes_on_turning(benches: Any) -> None:
    bench = benches()
    events = [event(i, START - (1000 - i) * MINUTE) for i in range(1000)]
    post = bench.post(*encode(events))
    bench.turn()
    assert post.receipt.done(), "the sender does not wait for what is closed"
    first = bench.service.engine.closed_until
    assert first < START - 600 * MINUTE, "not all of it in one turn"
    assert bench.service.engine.behind
    late = bench.post(json.dumps(event(1, START)).encode())
    for _ in range(3):
        bench.turn()
    assert not bench.service.engine.behind
    assert bench.service.engine.closed_until == START - 2 * MINUTE
    bench.turn()
    assert late.receipt.result(0).accepted == 1


def test_outcomes_that_lie_ahead_do_not_make_what_follows_late(benches: Any) -> None:
    bench = benches()
    ahead = event(1, START + HOUR, outcome=True, outcome_time=START + HOUR + MINUTE)
    bench.post(json.dumps(event(0, START)).encode(), json.dumps(ahead).encode())
    bench.turn()
    bench.clock.ms += 40 * 24 * HOUR
    bench.turn()
    assert bench.service.engine.closed_until == START + HOUR + MINUTE
    following = bench.post(json.dumps(event(2, START + HOUR + 2 * MINUTE)).encode())
    bench.turn()
    assert following.receipt.result(0).accepted == 1


def test_a_clock_that_is_set_back_leaves_idle_partitions_idle(benches: Any) -> None:
    bench = benches()
    bench.service._now_ms = lambda: bench.clock.ms - HOUR
    bench.turn(31)
    assert bench.service._idle == {"http/events": True}


def test_the_age_of_alerts_is_counted_from_the_closing_of_their_bucket(benches: Any) -> None:
    rule = {"metric": "selection_rate", "groups": "sex", "tolerance": 0.1, "window": "1h", "min_support": 1}
    bench = benches(models={"m": {**MODEL, "rules": [rule]}}, time={"grace": "2h"}, alerts={"max_age": "1h"})
    now = bench.clock.ms
    lines = [event(i, now - 3 * HOUR + i * MINUTE) for i in range(180)]
    lines += [{**e, "id": f"m-{e['id']}", "attributes": {"sex": "m"}, "decision": False} for e in lines]
    bench.post(*encode(sorted(lines, key=lambda e: e["time"])))
    for _ in range(3):
        bench.turn(1)
    assert bench.value("fairness_rule_transitions_total", state="firing") == 1
    assert bench.value("fairness_notifications_held") == 0


def test_posts_are_refused_while_they_are_far_ahead_of_topics(benches: Any) -> None:
    sources = [{"kafka": {"topics": ["x"]}}, {"name": "posted", "http": {}}]
    bench = benches(FakeKafka("x-0"), sources=sources)
    for at in (START - 2 * HOUR, START + HOUR):
        bench.service._inbox.submit(Post("posted", json.dumps(event(1, at)).encode(), bench.clock.ms))
    bench.turn()
    with pytest.raises(Refused, match="far ahead of other sources") as refused:
        bench.service._inbox.submit(Post("posted", b"{}", bench.clock.ms))
    assert refused.value.code == 503
    bench.give("x-0", event(2, START + HOUR))
    for _ in range(3):
        bench.turn()
    bench.service._inbox.submit(Post("posted", b"{}", bench.clock.ms))


def test_when_the_http_server_ends_so_does_the_service(benches: Any) -> None:
    bench = benches()
    bench.service.web._server.should_exit = True
    stop = Event()
    with pytest.raises(MonitorError, match="HTTP server ended"):
        bench.service.run(stop)


def test_a_state_that_cannot_be_written_holds_everything_back_and_loses_nothing(
    benches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = benches(state={"directory": str(tmp_path / "state")})
    store = bench.service._store

    def fail(*_: Any, **__: Any) -> None:
        raise StoreError("cannot write the state: the disk is full")

    post = bench.post(json.dumps(event(1, START + HOUR)).encode())
    with monkeypatch.context() as patch:
        patch.setattr(store, "commit", fail)
        patch.setattr(service_module.time, "sleep", lambda seconds: None)
        bench.turn()
        bench.turn(1)
        assert not post.receipt.done(), "nobody is told before it is written"
        assert bench.service.board.waiting_for == ("cannot write the state: the disk is full",)
        with pytest.raises(Refused, match="state cannot be written"):
            bench.post(json.dumps(event(2, START + HOUR)).encode())
    bench.turn(1)
    bench.turn(1)
    assert post.receipt.result(0).accepted == 1
    assert bench.service.board.waiting_for == ()


def test_a_restart_goes_on_where_it_was(benches: Any, tmp_path: Path) -> None:
    parts = {"state": {"directory": str(tmp_path / "state")}}
    first = benches(**parts)
    body = json.dumps(event(1, START + HOUR)).encode()
    kept = Post("events", body, first.clock.ms)
    first.service._inbox.submit(kept, "key-1")
    first.turn()
    first.service._drain()
    first.service._close()
    second = benches(**parts)
    again = second.service._inbox.submit(Post("events", body, second.clock.ms), "key-1")
    assert again.result(0) == kept.receipt.result(0), "the same key counts once, over a restart as well"
    second.clock.ms += 10 * MINUTE
    second.turn()
    second.turn(40)
    assert second.value("fairness_group_value", group="f") == 1
    assert second.value("fairness_group_predictions_total", group="f") == 1


def test_a_state_of_another_model_is_refused(benches: Any, tmp_path: Path) -> None:
    parts = {"state": {"directory": str(tmp_path / "state")}}
    first = benches(**parts)
    first.post(json.dumps(event(1, START + HOUR)).encode())
    first.turn()
    first.service._drain()
    first.service._close()
    with pytest.raises(MonitorError, match=r"time\.bucket changed since its state was stored"):
        benches(**parts, time={"bucket": "1h"})
