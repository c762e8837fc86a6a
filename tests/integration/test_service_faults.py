"""The running service when things go wrong: outages, topics that come late, the end in the middle of work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import urllib3
from confluent_kafka import Producer

from tests.integration.broker import KafkaServer
from tests.integration.receiver import Answer, WebhookReceiver
from tests.integration.servers import HOST, call, free_port, listens, wait_until
from tests.integration.service_helpers import (
    CONFIG,
    DAY_MS,
    SELECTION_RULE,
    TOKEN,
    RunMonitor,
    counted,
    counts_as_replayed,
    errors,
    history,
    kafka_config,
    lag,
    now_ms,
    outcome,
    prediction,
    produce,
    rejected,
    replayed,
    terminate_and_watch,
    webhook,
    with_rule,
)

OUTAGE_SECONDS = 60


# --- the broker ---------------------------------------------------------------------------------------------
class Buffering:
    """A producer of predictions and their outcomes that holds events back while the broker is away."""

    def __init__(self, kafka: KafkaServer, topic: str, partitions: int) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": kafka.bootstrap,
                "enable.idempotence": True,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )
        self._topic, self._partitions = topic, partitions
        self.sent: list[bytes] = []
        self.delivered = 0
        self._problems: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="producer")

    def _report(self, error: object, _message: object) -> None:
        if error is None:
            self.delivered += 1
        else:
            self._problems.append(str(error))

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.02):
            at = now_ms()
            for event in (prediction(number, at), outcome(number - 50, at)):
                if number < 50 and event.payload.find(b"outcome") >= 0:
                    continue
                partition = number % self._partitions
                self._producer.produce(
                    self._topic, event.payload, partition=partition, on_delivery=self._report
                )
                self.sent.append(event.payload)
            number += 1
            self._producer.poll(0)

    def __enter__(self) -> Buffering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(60) == 0
        assert self._problems == []
        assert self.delivered == len(self.sent)


def test_an_outage_loses_nothing_and_counts_nothing_twice(
    kafka: KafkaServer, run_monitor: RunMonitor, tmp_path: Path
) -> None:
    topic = kafka.new_topic(partitions=2)
    config = {**CONFIG, "time": {"bucket": "1s", "grace": "2s", "idle_after": "15s"}}
    with Buffering(kafka, topic, 2) as producer:
        monitor = run_monitor(kafka_config(config, kafka, topic))
        before = monitor.wait_until(lambda m: counted(m) > 200 and lag(m) == 0, 20, "events are counted")
        assert before.value("fairness_kafka_connected") == 1
        with kafka.outage():
            stopped = time.monotonic()
            reached = monitor.wait_until(lambda m: m.value("fairness_kafka_connected") == 0, 20)
            print(f"the outage was noticed after {time.monotonic() - stopped:.1f} s")
            while time.monotonic() - stopped < OUTAGE_SECONDS:
                samples = monitor.metrics()
                assert samples.value("fairness_kafka_connected") == 0
                assert samples.total("fairness_partition_idle") == 0, "nobody knows that nothing came"
                assert counted(samples) == counted(reached)
                age = now_ms() / 1000 - (samples.value("fairness_heartbeat_timestamp_seconds") or 0)
                assert age < 5, "the loop turns"
                assert monitor.call("GET", "/livez").status == 200
                time.sleep(0.5)
            print(f"{len(producer.sent) - producer.delivered} events are held back by the producer")
        started = time.monotonic()
        after = monitor.wait_until(lambda m: m.value("fairness_kafka_connected") == 1, 30)
        assert after.total("fairness_partition_idle") == 0
        monitor.wait_until(
            lambda m: counted(m) > counted(reached) + 2000, 30, "what was held back is counted"
        )
        print(f"all was back {time.monotonic() - started:.1f} s after the broker")
    document = replayed(config, tmp_path, events=producer.sent)
    assert document["events"]["rejected"] == 0
    done = counts_as_replayed(monitor, document, 40)
    assert rejected(done) == {}
    assert done.value("fairness_kafka_lost_records_total") == 0
    assert (done.value("fairness_kafka_errors_total") or 0) > 0
    assert monitor.terminate() == 0
    told = [line["message"] for line in monitor.logs() if line["message"].startswith("Kafka at ")]
    fine = [text for text in told if "fine again" in text]
    troubles = [text for text in told if text not in fine]
    assert 1 <= len(fine) <= 3, told  # the brokers, the leaders, the commits
    assert len(fine) <= len(troubles) <= 5, told
    assert len(set(told)) == len(told), "nothing is told twice"
    assert sum((kafka.committed(f"group-{topic}", topic, n) or 0) for n in range(2)) == len(producer.sent)


def test_started_while_the_broker_is_away(kafka: KafkaServer, run_monitor: RunMonitor) -> None:
    topic = kafka.new_topic(partitions=2)
    events = history(100, now_ms() - DAY_MS, now_ms() - DAY_MS + 60_000)
    produce(kafka, topic, events)
    with kafka.outage():
        monitor = run_monitor(kafka_config(CONFIG, kafka, topic))
        answer = wait_until(
            lambda: (
                (a := monitor.call("GET", "/readyz")).status == 503 and b"does not answer" in a.body and a
            ),
            20,
            "/readyz says why",
        )
        assert kafka.bootstrap in answer.json()["waiting_for"][0]
        assert monitor.call("GET", "/livez").status == 200
        assert monitor.metrics().value("fairness_kafka_connected") == 0
    monitor.wait_until(lambda m: counted(m) == len(events), 20, "all is counted")
    wait_until(lambda: monitor.call("GET", "/readyz").status == 200, 5, "it is ready")
    assert monitor.terminate() == 0


# --- topics and partitions that come late -------------------------------------------------------------------
def test_a_topic_and_partitions_that_come_later(
    kafka: KafkaServer, run_monitor: RunMonitor, tmp_path: Path
) -> None:
    topic = f"later-{kafka.new_topic()}"
    config = {**CONFIG, "time": {"bucket": "1m", "grace": "1h", "idle_after": "12s"}}
    monitor = run_monitor(kafka_config(config, kafka, topic))
    monitor.wait_until(lambda m: m.value("fairness_kafka_missing_topics") == 1, 20, "the topic is missing")
    answer = wait_until(
        lambda: (a := monitor.call("GET", "/readyz")).status == 503 and topic in a.text and a, 5, "/readyz"
    )
    assert answer.json() == {"status": "waiting", "waiting_for": [f"topic {topic} does not exist yet"]}
    assert monitor.call("GET", "/livez").status == 200
    first = now_ms() - DAY_MS
    events = history(500, first, first + 600_000)
    kafka.create_topic(topic, 2)
    produce(kafka, topic, events)
    done = monitor.wait_until(lambda m: counted(m) == len(events), 20, "all of the new topic is counted")
    assert done.value("fairness_kafka_missing_topics") == 0
    wait_until(lambda: monitor.call("GET", "/readyz").status == 200, 5, "it is ready")
    more = history(500, first + 7_200_000, first + 7_800_000, numbers_from=500)
    kafka.add_partitions(topic, 5)
    produce(kafka, topic, more)
    monitor.wait_until(lambda m: counted(m) == len(events) + len(more), 20, "new partitions are read")
    document = replayed(config, tmp_path, events=[*events, *more])
    done = counts_as_replayed(monitor, document, 40)
    assert len(done.find("fairness_kafka_position_offset")) == 5
    assert rejected(done) == {}
    assert monitor.terminate() == 0


# --- the end in the middle of work --------------------------------------------------------------------------
def test_a_second_process_goes_on_where_the_first_ended(
    kafka: KafkaServer, run_monitor: RunMonitor, tmp_path: Path
) -> None:
    """Every tenth record is a reject: their offsets say what each process has read, one by one."""
    topic, letters = kafka.new_topic(partitions=3), tmp_path / "letters.jsonl"
    config = with_rule(CONFIG, SELECTION_RULE)
    sent, stop = 0, threading.Event()
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0})

    def send() -> None:
        nonlocal sent
        while not stop.wait(0.01):
            for _ in range(30):
                payload = b"{broken" if sent % 10 == 0 else prediction(sent, now_ms()).payload
                producer.produce(topic, payload, key=str(sent))
                sent += 1
            producer.poll(0)

    thread = threading.Thread(target=send, name="producer")
    # A receiver that hangs keeps the web server open while the service ends.
    with WebhookReceiver(default=Answer(act="hang")) as hanging:
        parts = {"dead_letter": {"path": str(letters)}, "alerts": {"webhooks": webhook(hanging)}}
        text = kafka_config(config, kafka, topic, **parts)
        first = run_monitor(text)
        thread.start()
        try:
            hanging.wait_for(1, 30)
            first.wait_until(lambda m: counted(m) > 2000, 20)
            last = terminate_and_watch(first)
            second = run_monitor(
                kafka_config(config, kafka, topic, **{**parts, "alerts": {}}), folder=tmp_path / "2"
            )
            second.wait_until(lambda m: counted(m) > 2000, 20)
        finally:
            stop.set()
            thread.join()
            assert producer.flush(20) == 0
    done = second.wait_until(
        lambda m: lag(m) == 0 and counted(last) + counted(m) >= sent - sent // 10 - 1, 30
    )
    good, bad = sent - -(-sent // 10), -(-sent // 10)
    assert counted(last) > 2000 < counted(done)
    assert counted(last) + counted(done) == good
    assert rejected(last)["invalid_json"] + rejected(done)["invalid_json"] == bad
    assert second.terminate() == 0
    found = [json.loads(line) for line in letters.read_text().splitlines()]
    places = [(one["partition"], one["position"]) for one in found]
    assert len(set(places)) == len(places) == bad, "each record was read by one of them, once"
    ends = sum(kafka.committed(f"group-{topic}", topic, n) or 0 for n in range(3))
    assert ends == sent
    assert errors(second) == []


def test_every_post_that_was_answered_is_counted(run_monitor: RunMonitor) -> None:
    times = {"bucket": "1m", "grace": "10m", "idle_after": "10m"}
    config = with_rule({**CONFIG, "time": times}, SELECTION_RULE)
    config |= {"sources": [{"name": "posted", "http": {}}], "server": {"ingest_token": TOKEN}}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    # So many events, again and again, that some posts always wait for others.
    body = b"\n".join(prediction(i, now_ms()).payload for i in range(3000))
    accepted: list[int] = []
    refused: list[str] = []

    with WebhookReceiver(default=Answer(act="hang")) as hanging:
        monitor = run_monitor(json.dumps({**config, "alerts": {"webhooks": webhook(hanging)}}))
        url = f"{monitor.url}/v1/events"

        def post(lines: bytes) -> bool:
            try:
                answer = call("POST", url, lines, headers, seconds=40)
            except urllib3.exceptions.NewConnectionError:
                return False  # nobody listens any more
            except urllib3.exceptions.HTTPError as error:
                refused.append(repr(error))
                return False
            if answer.status != 200:
                refused.append(f"{answer.status} {answer.text}")
                return False
            accepted.append(answer.json()["accepted"])
            return True

        def keep_posting() -> None:
            while post(body):
                pass

        earlier = now_ms() - 30 * 60_000  # an alert fires as soon as time goes on from there
        assert post(b"\n".join(prediction(i, earlier).payload for i in range(100)))
        threads = [threading.Thread(target=keep_posting, name=f"poster {n}") for n in range(8)]
        for thread in threads:
            thread.start()
        hanging.wait_for(1, 30)
        wait_until(lambda: len(accepted) > 20, 20, "posts are answered")
        last = terminate_and_watch(monitor)
        for thread in threads:
            thread.join(45)
    assert sum(accepted) == counted(last) > 0
    assert rejected(last) == {}
    assert [text for text in refused if not text.startswith("503 ")] == [], "no request was cut off"
    print(f"{len(accepted)} posts were answered, {len(refused)} refused")


def test_dead_letters_that_cannot_leave_hold_up_the_commit(
    kafka: KafkaServer, run_monitor: RunMonitor, tmp_path: Path
) -> None:
    topic = kafka.new_topic()
    letters, group = f"letters-of-{topic}", f"group-{topic}"
    path = tmp_path / "dead.jsonl"
    monitor = run_monitor(
        kafka_config(CONFIG, kafka, topic, dead_letter={"topic": letters, "path": str(path)})
    )
    good = history(50, now_ms() - DAY_MS, now_ms() - DAY_MS + 60_000)
    kafka.produce(topic, [*good[:50], b"{broken", b"\xff", *good[50:]])
    monitor.wait_until(lambda m: lag(m) == 0 and counted(m) == len(good), 20)

    def said() -> list[str]:
        return [line["message"] for line in monitor.logs() if line["message"].startswith("dead letters wait")]

    (text,) = wait_until(said, 20, "the log says that letters wait")
    assert letters in text
    until = time.monotonic() + 6  # time for three commits
    while time.monotonic() < until:
        assert kafka.committed(group, topic) is None
        time.sleep(0.5)
    assert monitor.call("GET", "/readyz").status == 200
    kafka.create_topic(letters)
    end = len(good) + 2
    wait_until(lambda: kafka.committed(group, topic) == end, 30, "positions are committed")
    done = monitor.wait_until(
        lambda m: m.value("fairness_dead_letters_total", sink="kafka", result="written") == 2, 10
    )
    assert done.value("fairness_dead_letters_total", sink="kafka", result="failed") == 0
    assert len(said()) == 1
    assert monitor.terminate() == 0
    assert sorted(one.value() or b"" for one in kafka.read(letters, 3, seconds=3)) == [b"{broken", b"\xff"]
    assert len(path.read_text().splitlines()) == 2


# --- brokers that want to know who we are -------------------------------------------------------------------
def secure_config(kafka: KafkaServer, topic: str, password: str) -> str:
    assert kafka.certificates is not None
    config = json.loads(kafka_config(CONFIG, kafka, topic))
    config["kafka"] |= {
        "bootstrap_servers": kafka.bootstrap_sasl_ssl,
        "security": {
            "protocol": "SASL_SSL",
            "mechanism": "SCRAM-SHA-512",
            "username": kafka.username,
            "password": password,
            "ca_file": str(kafka.certificates.ca),
        },
    }
    return json.dumps(config)


def test_passwords_and_tls(secure_kafka: KafkaServer, run_monitor: RunMonitor, tmp_path: Path) -> None:
    topic, letters = secure_kafka.new_topic(partitions=2), secure_kafka.new_topic("letters")
    events = history(100, now_ms() - DAY_MS, now_ms() - DAY_MS + 60_000)
    produce(secure_kafka, topic, [*events, b"{broken"])
    secret = tmp_path / "password"
    secret.write_text(f"{secure_kafka.password}\n")
    config = json.loads(secure_config(secure_kafka, topic, "replaced by the environment"))
    config["dead_letter"] = {"topic": letters}
    environment = {"FAIRNESS_MONITOR__KAFKA__SECURITY__PASSWORD_FILE": str(secret)}
    monitor = run_monitor(json.dumps(config), environment=environment)
    document = replayed(CONFIG, tmp_path, events=events)
    document["events"] |= {"read": len(events) + 1, "rejected": 1}
    counts_as_replayed(monitor, document, 30)
    monitor.wait_until(
        lambda m: m.value("fairness_dead_letters_total", sink="kafka", result="written") == 1, 20
    )
    assert monitor.terminate() == 0
    assert errors(monitor) == []
    assert secure_kafka.password not in monitor.output_path.read_text()


def test_a_wrong_password_is_told_and_survived(secure_kafka: KafkaServer, run_monitor: RunMonitor) -> None:
    topic = secure_kafka.new_topic()
    monitor = run_monitor(secure_config(secure_kafka, topic, "Tr0ub4dor"))
    answer = wait_until(
        lambda: (a := monitor.call("GET", "/readyz")).status == 503 and b"kafka.security" in a.body and a,
        30,
        "/readyz names the setting",
    )
    print(answer.json()["waiting_for"])
    until = time.monotonic() + 5  # some more attempts
    while time.monotonic() < until:
        assert monitor.call("GET", "/livez").status == 200
        assert monitor.metrics().value("fairness_kafka_connected") == 0
        time.sleep(0.5)
    assert monitor.terminate() == 0
    output = monitor.output_path.read_text() + monitor.log_path.read_text()
    assert "Tr0ub4dor" not in output
    assert "Traceback" not in output
    told = [text for text in errors(monitor) if "check kafka.security" in text]
    assert len(told) == 1, told


# --- what cannot be run -------------------------------------------------------------------------------------
def cannot_run(config: Path | str, folder: Path, **environment: str) -> str:
    """What ``run`` says on standard error when it ends with exit code 2 at once."""
    path = config if isinstance(config, Path) else folder / "cannot.yaml"
    if isinstance(config, str):
        path.write_text(config)
    done = subprocess.run(
        [Path(sys.executable).with_name("fairness-monitor"), "run", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "FAIRNESS_MONITOR__SERVER__LISTEN": f"{HOST}:0", **environment},
    )
    assert done.returncode == 2, done
    assert "Traceback" not in done.stdout + done.stderr
    assert "Error" not in done.stdout
    return done.stderr.strip()


def test_what_cannot_be_run_is_said_in_a_sentence(tmp_path: Path) -> None:
    nothing = cannot_run(json.dumps(CONFIG), tmp_path)
    assert nothing.startswith("there is nothing to run on: give a source kafka: {topics: […]}, or http: {}")
    assert len(nothing.splitlines()) == 1
    posted: dict[str, Any] = {**CONFIG, "sources": [{"name": "posted", "http": {}}]}
    assert "server.ingest_token" in cannot_run(json.dumps(posted), tmp_path)
    posted["server"] = {"ingest_token": TOKEN}
    with WebhookReceiver() as other:  # somebody else listens there
        assert listens(other.port)
        address = f"{HOST}:{other.port}"
        taken = cannot_run(json.dumps(posted), tmp_path, FAIRNESS_MONITOR__SERVER__LISTEN=address)
    assert taken == f"cannot listen at {address}: Address already in use; change server.listen"
    missing = cannot_run(tmp_path / "missing.yaml", tmp_path)
    assert "missing.yaml" in missing
    assert len(missing.splitlines()) == 1
    assert "cannot.yaml" in cannot_run("models: {m: [", tmp_path)
    letters = cannot_run(json.dumps({**posted, "dead_letter": {"path": str(tmp_path)}}), tmp_path)
    assert letters.startswith("cannot write dead letters to")
    assert "dead_letter.path" in letters


def test_an_unreadable_certificate_is_told_at_the_start(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("this is no certificate\n")
    config = {
        **CONFIG,
        "kafka": {
            "bootstrap_servers": f"{HOST}:{free_port()}",
            "security": {"protocol": "SSL", "ca_file": str(broken)},
        },
        "sources": [{"name": "events", "kafka": {"topics": ["events"]}}],
    }
    said = cannot_run(json.dumps(config), tmp_path)
    assert said.startswith("kafka.security.ca_file")
    assert len(said.splitlines()) == 1
