"""Real servers on loopback for integration tests: Prometheus, Alertmanager, the monitor, and what all share.

Kafka is in ``broker.py``, a receiver of webhooks in ``receiver.py``.

Every server is a context manager, listens on a free port and keeps its files in a folder of the test. What
was started dies with the test process, even when that is killed. ``tests/integration/install`` fetches what
is needed.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import urllib3
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

HOST = "127.0.0.1"

T = TypeVar("T")


# --- what all servers share ---------------------------------------------------------------------------------
def free_port() -> int:
    """A port nobody listens on, below those that the kernel gives to outgoing connections.

    A client that keeps trying to reach a stopped server must not be given the server's port as its own.
    """
    for _ in range(200):
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port
    raise RuntimeError("found no free port between 20000 and 32000")


def wait_until(condition: Callable[[], T | None], seconds: float, what: str, every: float = 0.05) -> T:
    """Ask until the answer is true, and return it. AssertionError with the last answer when time is up."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s; last seen: {answer!r}")
        time.sleep(every)


@dataclass(frozen=True)
class Response:
    """An answer over HTTP, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


def call(
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    fields: Mapping[str, str] | None = None,
    ca_file: Path | None = None,
    seconds: float = 10.0,
) -> Response:
    """One HTTP request on a connection of its own, not repeated and not redirected."""
    with urllib3.PoolManager(ca_certs=str(ca_file) if ca_file else None) as pool:
        kwargs: dict[str, Any] = {"fields": dict(fields)} if fields else {"body": body}
        answer = pool.request(
            method, url, headers=dict(headers or {}), retries=False, redirect=False, timeout=seconds, **kwargs
        )
        return Response(answer.status, dict(answer.headers), answer.data)


class Server:
    """A process with a log file, stopped by SIGTERM or killed."""

    name = "server"
    stop_seconds = 20.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        raise NotImplementedError

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    def stop(self) -> int:
        """Ask it to end, kill it if it does not; the exit code."""
        assert self.process is not None, f"{self.name} was not started"
        if self.running:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            return self.kill()
        finally:
            atexit.unregister(self.kill)

    def kill(self) -> int:
        """End it at once, as when the power fails."""
        assert self.process is not None, f"{self.name} was not started"
        self.process.kill()
        atexit.unregister(self.kill)
        return self.process.wait()

    def pause(self) -> None:
        """Hold the process: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def log_tail(self, lines: int = 25) -> str:
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.stop()

    def _launch(
        self,
        command: Sequence[str | Path],
        ready: Callable[[], object] | None,
        seconds: float,
        *,
        environment: Mapping[str, str] | None = None,
        output: Path | None = None,
    ) -> None:
        """Start a process and wait until it is ready. Without `output`, everything goes to the log."""
        assert not self.running, f"{self.name} is already running"
        # atexit does not run in a test process that is killed; the kernel then ends what it has started.
        # The signal goes with the thread that started the process: start servers from the main thread.
        guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with self.log_path.open("ab") as log, (output or self.log_path).open("ab") as out:
            self.process = subprocess.Popen(
                [*guard, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env={**os.environ, **(environment or {})},
                cwd=self.folder,
            )
        atexit.register(self.kill)
        if ready is None:
            return

        def look() -> object:
            assert self.process is not None
            code = self.process.poll()
            assert code is None, f"{self.name} ended with code {code} while starting"
            return ready()

        try:
            wait_until(look, seconds, f"{self.name} starts")
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}\nthe end of its log:\n{self.log_tail()}") from None


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def answers(url: str, ca_file: Path | None = None, *, status: int | None = 200) -> bool:
    """Whether a URL answers with a status (None: with any)."""
    try:
        answer = call("GET", url, ca_file=ca_file, seconds=2)
    except urllib3.exceptions.HTTPError:
        return False
    return status is None or answer.status == status


# --- certificates -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Certificates:
    """An authority, a server's certificate for 127.0.0.1 and a client's, all PEM.

    `localhost` is not in the server's certificate, so that a test of host names has a wrong one to use.
    """

    ca: Path
    certificate: Path
    key: Path
    client_certificate: Path
    client_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make an authority and certificates it signs, valid for two days."""
    folder.mkdir(parents=True, exist_ok=True)
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def make(name: str, subject: str, extensions: Sequence[str], *issuer: str) -> tuple[Path, Path]:
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        out = ("-out", str(certificate), "-keyout", str(key))
        added = itertools.chain.from_iterable(("-addext", extension) for extension in extensions)
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-days",
                "2",
                "-subj",
                f"/CN={subject}",
                *new_key,
                *added,
                *issuer,
                *out,
            ],
            check=True,
            capture_output=True,
        )
        return certificate, key

    ca, ca_key = make("ca", "authority of a test", ["keyUsage=critical,keyCertSign,cRLSign"])
    leaf = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature"]
    signed = ("-CA", str(ca), "-CAkey", str(ca_key))
    server = make(
        "server", "server", [*leaf, f"subjectAltName=IP:{HOST}", "extendedKeyUsage=serverAuth"], *signed
    )
    client = make("client", "client", [*leaf, "extendedKeyUsage=clientAuth"], *signed)
    return Certificates(ca, *server, *client)


# --- Prometheus and Alertmanager ----------------------------------------------------------------------------
def prometheus_binary() -> str | None:
    return shutil.which("prometheus")


def alertmanager_binary() -> str | None:
    return shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")


@dataclass(eq=False)
class PrometheusServer(Server):
    """Prometheus that scrapes `targets` ("host:port") as job `monitor`.

    `scrape` are further keys of the scrape configuration: ``{"authorization": {"credentials": "…"}}``.
    """

    folder: Path
    targets: Sequence[str]
    rule_files: Sequence[Path] = ()
    scrape_interval: str = "1s"
    alertmanagers: Sequence[str] = ()
    scrape: Mapping[str, Any] = field(default_factory=dict)

    name = "prometheus"

    def __post_init__(self) -> None:
        super().__init__(self.folder)
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"

    def start(self) -> Self:
        job = {"job_name": "monitor", "static_configs": [{"targets": list(self.targets)}], **self.scrape}
        config: dict[str, Any] = {
            "global": {"scrape_interval": self.scrape_interval, "evaluation_interval": self.scrape_interval},
            "scrape_configs": [job],
            "rule_files": [str(path.resolve()) for path in self.rule_files],
        }
        if self.alertmanagers:
            static = [{"targets": list(self.alertmanagers)}]
            config["alerting"] = {"alertmanagers": [{"static_configs": static}]}
        path = self.folder / "prometheus.json"
        path.write_text(json.dumps(config, indent=2))  # YAML reads JSON
        binary = prometheus_binary()
        assert binary, "prometheus is missing: run tests/integration/install"
        self._launch(
            [
                binary,
                f"--config.file={path}",
                f"--storage.tsdb.path={self.folder / 'data'}",
                "--log.level=warn",
                f"--web.listen-address={HOST}:{self.port}",
            ],
            lambda: answers(f"{self.url}/-/ready"),
            30,
        )
        return self

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series now."""
        result = self._api("query", query=promql)
        if result["resultType"] == "scalar":
            return [({}, float(result["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in result["result"]]

    def query_range(
        self, promql: str, start: float, end: float, step: float = 1.0
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Labels, and (Unix time, value) pairs, of each series."""
        result = self._api("query_range", query=promql, start=str(start), end=str(end), step=str(step))
        return [
            (one["metric"], [(float(moment), float(value)) for moment, value in one["values"]])
            for one in result["result"]
        ]

    def targets_health(self) -> dict[str, tuple[str, str]]:
        """Health (up, down, unknown) and the last error by address."""
        active = self._api("targets", state="active")["activeTargets"]
        return {one["discoveredLabels"]["__address__"]: (one["health"], one["lastError"]) for one in active}

    def rules(self) -> list[dict[str, Any]]:
        """All rules with state, health and last error."""
        return [rule for group in self._api("rules")["groups"] for rule in group["rules"]]

    def alerts(self) -> list[dict[str, Any]]:
        """Pending and firing alerts: labels, annotations, state."""
        alerts: list[dict[str, Any]] = self._api("alerts")["alerts"]
        return alerts

    def _api(self, path: str, **fields: str) -> Any:
        answer = call("GET", f"{self.url}/api/v1/{path}", fields=fields)
        content = answer.json()
        assert content["status"] == "success", f"Prometheus: {content.get('error')}"
        return content["data"]


@dataclass(eq=False)
class AlertmanagerServer(Server):
    """Alertmanager that sends everything to one webhook at once, or goes by `config`."""

    folder: Path
    webhook_url: str | None = None
    config: Mapping[str, Any] | None = None

    name = "alertmanager"

    def __post_init__(self) -> None:
        super().__init__(self.folder)
        self.port = free_port()
        self.address = f"{HOST}:{self.port}"
        self.url = f"http://{self.address}"

    def start(self) -> Self:
        webhooks = [{"url": self.webhook_url, "send_resolved": True}] if self.webhook_url else []
        config = self.config or {
            "route": {
                "receiver": "tests",
                "group_by": ["..."],
                "group_wait": "1s",
                "group_interval": "1s",
                "repeat_interval": "1h",
            },
            "receivers": [{"name": "tests", "webhook_configs": webhooks}],
        }
        path = self.folder / "alertmanager.json"
        path.write_text(json.dumps(config, indent=2))
        binary = alertmanager_binary()
        assert binary, "Alertmanager is missing: run tests/integration/install"
        self._launch(
            [
                binary,
                f"--config.file={path}",
                f"--storage.path={self.folder / 'data'}",
                "--log.level=warn",
                f"--web.listen-address={self.address}",
                "--cluster.listen-address=",
            ],
            lambda: answers(f"{self.url}/-/ready"),
            30,
        )
        return self

    def post(self, alerts: Sequence[Mapping[str, Any]]) -> None:
        body = json.dumps(list(alerts)).encode()
        answer = call("POST", f"{self.url}/api/v2/alerts", body, {"Content-Type": "application/json"})
        assert answer.status == 200, answer.text

    def alerts(self) -> list[dict[str, Any]]:
        alerts: list[dict[str, Any]] = call("GET", f"{self.url}/api/v2/alerts").json()
        return alerts


# --- the monitor --------------------------------------------------------------------------------------------
class Samples:
    """What one look at /metrics has seen."""

    def __init__(self, text: str) -> None:
        self.all: list[Sample] = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def find(self, name: str, **labels: str) -> list[Sample]:
        """The samples of a series that carry these labels, and maybe others."""
        return [one for one in self.all if one.name == name and labels.items() <= one.labels.items()]

    def value(self, name: str, **labels: str) -> float | None:
        """The value of the one sample that carries these labels; None when there is none."""
        found = self.find(name, **labels)
        assert len(found) < 2, f"{name} with {labels} is not one sample: {found}"
        return float(found[0].value) if found else None

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples that carry these labels; 0 when there is none."""
        return float(sum(one.value for one in self.find(name, **labels)))


class MonitorProcess(Server):
    """``fairness-monitor run CONFIG`` as users start it, listening on a free port.

    `config` is a path or the text of one. JSON log lines go to `output_path`, standard error to `log_path`.
    """

    name = "monitor"
    stop_seconds = 30.0

    def __init__(
        self,
        folder: Path,
        config: Path | str,
        *,
        environment: Mapping[str, str] | None = None,
        metrics_token: str | None = None,
        ca_file: Path | None = None,
    ) -> None:
        super().__init__(folder)
        if isinstance(config, Path):
            self.config_path = config.resolve()
        else:
            self.config_path = folder / "monitor.yaml"
            self.config_path.write_text(config)
        self.output_path = folder / "monitor.jsonl"
        self.port = free_port()
        self.address = f"{HOST}:{self.port}"
        self.url = f"{'https' if ca_file else 'http'}://{self.address}"
        self.ca_file = ca_file
        self._headers = {"Authorization": f"Bearer {metrics_token}"} if metrics_token else {}
        self._environment = {"FAIRNESS_MONITOR__SERVER__LISTEN": self.address, **(environment or {})}

    def start(self, *, wait: bool = True) -> Self:
        """Start it and, unless told not to, wait until its web server answers."""
        self._launch(
            [Path(sys.executable).with_name("fairness-monitor"), "run", self.config_path],
            (lambda: answers(f"{self.url}/livez", self.ca_file, status=None)) if wait else None,
            30,
            environment=self._environment,
            output=self.output_path,
        )
        return self

    def terminate(self) -> int:
        """Send SIGTERM and wait; the exit code. It is an error if it has to be killed."""
        code = self.stop()
        assert code != -signal.SIGKILL, f"the monitor did not end after SIGTERM:\n{self.log_tail()}"
        return code

    def wait(self, seconds: float = 30.0) -> int:
        """Wait until it ends by itself; the exit code."""
        assert self.process is not None, "the monitor was not started"
        code = self.process.wait(seconds)
        atexit.unregister(self.kill)
        return code

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        return call(method, f"{self.url}{path}", body, headers, ca_file=self.ca_file)

    def metrics(self) -> Samples:
        answer = self.call("GET", "/metrics", headers=self._headers)
        assert answer.status == 200, f"/metrics answered {answer.status}: {answer.text[:200]}"
        return Samples(answer.text)

    def wait_until(
        self, predicate: Callable[[Samples], object], seconds: float, what: str = "the metrics show it"
    ) -> Samples:
        """Look at /metrics until it shows what is waited for; that look."""

        def look() -> Samples | None:
            assert self.running, f"the monitor has ended while a test waited:\n{self._tails()}"
            samples = self.metrics()
            return samples if predicate(samples) else None

        try:
            return wait_until(look, seconds, what, every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._tails()}") from None

    def logs(self) -> list[dict[str, Any]]:
        """The lines of its log so far. Every line is a JSON object."""
        if not self.output_path.exists():
            return []
        text = self.output_path.read_text()
        complete = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in complete.splitlines()]

    def _tails(self) -> str:
        output = self.output_path.read_text().splitlines()[-25:] if self.output_path.exists() else []
        return "\n".join(["the end of its log:", *output, "standard error:", self.log_tail()])
