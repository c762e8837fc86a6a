"""Servers as fixtures. A missing one is a skip that says what to install, and in CI an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration import servers
from tests.integration.broker import KafkaServer, kafka_missing
from tests.integration.receiver import WebhookReceiver


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker of the session, without passwords. Tests take topics of their own: ``kafka.new_topic()``.

    A test that stops it starts it again: ``with kafka.outage(): …``.
    """
    if reason := kafka_missing():
        pytest.skip(reason)
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker of the session with listeners for passwords and TLS."""
    if reason := kafka_missing():
        pytest.skip(reason)
    with KafkaServer(tmp_path_factory.mktemp("secure_kafka"), secure=True) as server:
        yield server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> servers.Certificates:
    return servers.make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def prometheus_binary() -> str:
    binary = servers.prometheus_binary()
    return binary or pytest.skip("Prometheus is missing: run tests/integration/install")


@pytest.fixture(scope="session")
def alertmanager_binary() -> str:
    return servers.alertmanager_binary() or pytest.skip(
        "Alertmanager is missing: run tests/integration/install"
    )


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as one:
        yield one


@pytest.fixture
def run_monitor(tmp_path: Path) -> Iterator[Callable[..., servers.MonitorProcess]]:
    """Starts ``fairness-monitor run`` with a configuration; what still runs after the test is stopped.

    Takes the configuration (a path or a text) and the options of `MonitorProcess`; `wait=False` does not wait
    until the web server answers.
    """
    with ExitStack() as stack:

        def run(config: Path | str, *, wait: bool = True, **options: Any) -> servers.MonitorProcess:
            folder = options.pop("folder", tmp_path / "monitor")
            monitor = servers.MonitorProcess(folder, config, **options)
            monitor.start(wait=wait)
            stack.push(monitor)
            return monitor

        yield run
