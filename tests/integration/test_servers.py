"""The servers of the other tests do what those rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import urllib3
from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient

from tests.integration.broker import KafkaServer
from tests.integration.receiver import Answer, WebhookReceiver
from tests.integration.servers import (
    AlertmanagerServer,
    Certificates,
    MonitorProcess,
    PrometheusServer,
    Samples,
    call,
    free_port,
    wait_until,
)


# --- Kafka --------------------------------------------------------------------------------------------------
def test_what_is_produced_is_read_back(kafka: KafkaServer) -> None:
    topic = kafka.new_topic(partitions=2)
    kafka.produce(topic, [b"one", b"two"], partition=1, key=b"k", timestamp_ms=1_772_323_200_000)
    kafka.produce(topic, [None], headers=[("trace", b"t-1")])

    records = kafka.read(topic, 2, partition=1)
    assert [(one.offset(), one.value()) for one in records] == [(0, b"one"), (1, b"two")]
    assert records[0].key() == b"k"
    assert records[0].timestamp() == (1, 1_772_323_200_000)
    [tombstone] = kafka.read(topic, 1)
    assert tombstone.value() is None
    assert tombstone.headers() == [("trace", b"t-1")]
    assert kafka.committed("nobody", topic) is None


def test_a_broker_that_restarts_keeps_port_and_data(kafka: KafkaServer) -> None:
    topic = kafka.new_topic()
    kafka.produce(topic, [b"before"])
    bootstrap = kafka.bootstrap
    with kafka.outage():
        assert not kafka.running
    assert kafka.bootstrap == bootstrap
    kafka.produce(topic, [b"after"])
    assert [one.value() for one in kafka.read(topic, 2)] == [b"before", b"after"]


def test_a_broker_that_was_killed_comes_back_with_its_data(kafka: KafkaServer) -> None:
    topic = kafka.new_topic()
    kafka.produce(topic, [b"before"])
    kafka.kill()
    kafka.start()
    assert [one.value() for one in kafka.read(topic, 1)] == [b"before"]


def test_ten_mebibytes_pass(kafka: KafkaServer) -> None:
    topic = kafka.new_topic()
    kafka.produce(topic, [b"x" * (10 << 20)])
    [record] = kafka.read(topic, 1)
    assert len(record.value() or b"") == 10 << 20


def test_partitions_are_added_and_records_deleted(kafka: KafkaServer) -> None:
    topic = kafka.new_topic()
    kafka.produce(topic, [b"0", b"1", b"2"])
    kafka.delete_before(topic, 0, 2)
    assert [one.offset() for one in kafka.read(topic, 1)] == [2]
    kafka.add_partitions(topic, 3)
    kafka.produce(topic, [b"new"], partition=2)
    assert [one.value() for one in kafka.read(topic, 1, partition=2)] == [b"new"]


def test_a_paused_broker_goes_on(kafka: KafkaServer) -> None:
    topic = kafka.new_topic()
    kafka.pause()
    try:
        assert kafka.running
    finally:
        kafka.resume()
    kafka.produce(topic, [b"x"])
    assert len(kafka.read(topic, 1)) == 1


@pytest.mark.parametrize(
    ("listener", "settings"),
    [
        ("bootstrap_sasl", {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}),
        ("bootstrap_sasl", {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-256"}),
        ("bootstrap_sasl_ssl", {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512"}),
        ("bootstrap_ssl", {"security.protocol": "SSL"}),
    ],
)
def test_listeners_with_passwords_and_tls(
    secure_kafka: KafkaServer, listener: str, settings: dict[str, str]
) -> None:
    assert secure_kafka.certificates is not None
    options: dict[str, Any] = {
        "bootstrap.servers": getattr(secure_kafka, listener),
        "log_level": 0,
        **settings,
    }
    if "SASL" in settings["security.protocol"]:
        options |= {"sasl.username": secure_kafka.username, "sasl.password": secure_kafka.password}
    if "SSL" in settings["security.protocol"]:
        options |= {"ssl.ca.location": str(secure_kafka.certificates.ca)}
    assert AdminClient(options).list_topics(timeout=20).brokers


def test_a_wrong_password_is_refused(secure_kafka: KafkaServer) -> None:
    problems: list[KafkaError] = []
    options: dict[str, Any] = {
        "bootstrap.servers": secure_kafka.bootstrap_sasl,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": secure_kafka.username,
        "sasl.password": "wrong",
        "error_cb": problems.append,
        "log_level": 0,
    }
    admin = AdminClient(options)
    wait_until(
        lambda: admin.poll(0.1) >= 0 and any(one.code() == KafkaError._AUTHENTICATION for one in problems),
        20,
        "the password is refused",
    )


# --- Prometheus and Alertmanager ----------------------------------------------------------------------------
def test_prometheus_scrapes_evaluates_and_notifies(
    tmp_path: Path, prometheus_binary: str, alertmanager_binary: str
) -> None:
    page = Answer(headers={"Content-Type": "text/plain; version=0.0.4"}, body=b'gap{model="m"} 0.25\n')
    rules = tmp_path / "rules.yml"
    rules.write_text("groups: [{name: g, rules: [{alert: Gap, expr: gap > 0.1, labels: {severity: page}}]}]")
    with (
        WebhookReceiver() as hook,
        WebhookReceiver(default=page) as target,
        AlertmanagerServer(tmp_path / "alertmanager", hook.url) as alertmanager,
        PrometheusServer(
            tmp_path / "prometheus",
            [f"127.0.0.1:{target.port}"],
            rule_files=[rules],
            alertmanagers=[alertmanager.address],
            scrape={"authorization": {"credentials": "token of a test"}},
        ) as prometheus,
    ):
        [(labels, value)] = wait_until(lambda: prometheus.query("gap"), 15, "the series is there")
        assert (labels["model"], labels["job"], value) == ("m", "monitor", 0.25)
        assert target.requests[0].headers["authorization"] == "Bearer token of a test"
        assert prometheus.targets_health() == {f"127.0.0.1:{target.port}": ("up", "")}
        now = time.time()
        [(_, points)] = prometheus.query_range("gap", now - 5, now + 1)
        assert {one for _, one in points} == {0.25}
        assert prometheus.query("scalar(sum(gap))") == [({}, 0.25)]

        [alert] = wait_until(prometheus.alerts, 15, "the alert fires")
        assert (alert["labels"]["alertname"], alert["state"]) == ("Gap", "firing")
        assert [(rule["name"], rule["health"]) for rule in prometheus.rules()] == [("Gap", "ok")]
        [request, *_] = hook.wait_for(1)
        assert request.json()["alerts"][0]["labels"]["severity"] == "page"
        assert alertmanager.alerts()[0]["labels"]["alertname"] == "Gap"


def test_alerts_can_be_posted(tmp_path: Path, alertmanager_binary: str) -> None:
    with WebhookReceiver() as hook, AlertmanagerServer(tmp_path, hook.url) as alertmanager:
        alertmanager.post([{"labels": {"alertname": "Posted"}}])
        assert hook.wait_for(1)[0].json()["status"] == "firing"


# --- webhooks -----------------------------------------------------------------------------------------------
def test_a_receiver_records_and_follows_its_script(receiver: WebhookReceiver) -> None:
    receiver.script(Answer(503, {"Retry-After": "7"}, b"later"))
    receiver.script(Answer(act="cut", body=b"half"), Answer(act="drop"))
    before = time.time()
    answer = call("POST", f"{receiver.url}hook?x=1", b'{"a": 1}', {"X-Name": "value"})
    assert (answer.status, answer.headers["Retry-After"], answer.text) == (503, "7", "later")
    for _ in range(2):
        with pytest.raises(urllib3.exceptions.ProtocolError):
            call("POST", receiver.url, b"")
    assert call("POST", receiver.url, b"").status == 200
    first, *_ = receiver.wait_for(4)
    assert (first.method, first.path, first.headers["x-name"]) == ("POST", "/hook?x=1", "value")
    assert first.json() == {"a": 1}
    assert before <= first.time <= time.time()


def test_a_receiver_that_hangs_can_be_closed() -> None:
    with WebhookReceiver([Answer(act="hang")]) as receiver, urllib3.PoolManager() as pool:
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            pool.request("POST", receiver.url, body=b"", timeout=0.2, retries=False)
        assert pool.request("POST", receiver.url, body=b"", timeout=5, retries=False).status == 200
        # The second connection is kept alive here, and the first still hangs: closing ends both.


def test_a_receiver_with_tls(certificates: Certificates) -> None:
    with WebhookReceiver(certificates=certificates) as receiver:
        assert call("POST", receiver.url, b"x", ca_file=certificates.ca).status == 200
        with pytest.raises(urllib3.exceptions.SSLError):
            call("POST", receiver.url, b"x")
        wrong_name = receiver.url.replace("127.0.0.1", "localhost")
        with pytest.raises(urllib3.exceptions.SSLError):
            call("POST", wrong_name, b"x", ca_file=certificates.ca)


# --- the monitor and processes in general -------------------------------------------------------------------
def test_samples_are_found_by_their_labels() -> None:
    samples = Samples('a{x="1",y="1"} 2\na{x="1",y="2"} 3\nb_total 4\n')
    assert samples.value("a", y="2") == 3
    assert samples.total("a", x="1") == 5
    assert samples.value("b_total") == 4
    assert samples.value("c") is None
    with pytest.raises(AssertionError, match="not one sample"):
        samples.value("a", x="1")


def test_a_monitor_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ended with code"):
        MonitorProcess(tmp_path, "models: {}\n").start()


MONITOR = """#!{python}
import http.server, json, os, signal, sys

class Handler(http.server.BaseHTTPRequestHandler):
    seen = 0

    def do_GET(self):
        Handler.seen += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"seen {{Handler.seen}}\\n".encode())

    def log_message(self, *_):
        pass

host, port = os.environ["FAIRNESS_MONITOR__SERVER__LISTEN"].split(":")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(json.dumps({{"arguments": sys.argv[1:], "key": os.environ["KEY"]}}), flush=True)
print("half a li", end="", flush=True)
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


def test_a_monitor_is_started_watched_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "fairness-monitor"
    command.write_text(MONITOR.format(python=sys.executable))
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    monitor = MonitorProcess(tmp_path, "models: {}\n", environment={"KEY": "value"}).start()
    assert (tmp_path / "monitor.yaml").read_text() == "models: {}\n"
    assert monitor.logs() == [{"arguments": ["run", str(tmp_path / "monitor.yaml")], "key": "value"}]
    assert monitor.wait_until(lambda samples: samples.total("seen") > 3, 5).total("seen") == 4
    with pytest.raises(AssertionError, match="a million times: not within"):
        monitor.wait_until(lambda samples: samples.total("seen") > 1e6, 0.1, "a million times")
    assert monitor.terminate() == 0
    assert not monitor.running


SCRIPT = r"""
import pathlib, sys, time
from tests.integration.servers import Server

class Sleeper(Server):
    name = "sleeper"

    def start(self):
        self._launch(["sleep", "60"], self.sleeps, 5)
        return self

    def sleeps(self):
        return pathlib.Path(f"/proc/{{self.pid}}/comm").read_text() == "sleep\n"

print(Sleeper(pathlib.Path(sys.argv[1])).start().pid, flush=True)
{rest}
"""


@pytest.mark.parametrize(
    ("rest", "sent"), [("", None), ("raise SystemExit(1)", None), ("time.sleep(60)", signal.SIGKILL)]
)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children of a killed process")
def test_what_was_started_dies_with_the_process(tmp_path: Path, rest: str, sent: int | None) -> None:
    script = textwrap.dedent(SCRIPT).format(rest=rest)
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if sent is not None:
            parent.send_signal(sent)
        parent.wait(10)

    def is_gone() -> bool:
        # A zombie that nobody has collected yet is gone, too.
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    try:
        wait_until(is_gone, 5, "the child ends")
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        raise


def test_free_ports_are_not_given_to_clients() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert free_port() < lowest
