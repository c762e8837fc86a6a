"""Kafka, server, webhooks and dead letters in the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.config import Config
from monitor.config_file import parse_config
from monitor.connections import webhook_key
from monitor.errors import ConfigError
from monitor.plan import describe, render

SECRET = "whsec_" + "QUFB" * 8
BASE = "models: {m: {task: binary, groups: [sex]}}\n"
WHOLE = (
    BASE
    + f"""
kafka:
  bootstrap_servers: [b1:9092, "[::1]:9093"]
  group: watch-m
  security: {{protocol: SASL_SSL, mechanism: SCRAM-SHA-512, username: u, password: pass-word}}
sources:
  - {{name: log, kafka: {{topics: [p, o], start: 2026-03-01T00:00:00Z}}}}
  - {{name: posted, http: {{}}}}
alerts: {{webhooks: {{on-call: {{url: "https://hooks.example/t-o-k-e-n", secrets: [{SECRET}]}}}}}}
server: {{listen: "0.0.0.0:80", ingest_token: in-token, metrics_token: "12345"}}
dead_letter: {{path: letters.jsonl, topic: letters}}
"""
)


def problems(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, environ or {}, origin="c")
    return [str(p) for p in caught.value.problems]


def test_everything_is_read() -> None:
    config = parse_config(WHOLE)
    assert config.kafka is not None
    assert config.kafka.bootstrap_servers == ("b1:9092", "[::1]:9093")
    assert config.sources[0].kafka is not None
    assert config.sources[0].kafka.start == 1_772_323_200_000
    assert config.server.address == ("0.0.0.0", 80)
    assert config.server.metrics_token is not None
    assert config.server.metrics_token.get_secret_value() == "12345"


def test_the_defaults_connect_to_nothing() -> None:
    config = parse_config(BASE)
    assert (config.kafka, config.sources[0].kafka, config.sources[0].http) == (None, None, None)
    assert config.server.address == ("127.0.0.1", 9464)


@pytest.mark.parametrize("secret", ["pass-word", "in-token", "12345", "t-o-k-e-n", SECRET])
def test_secrets_are_in_no_text_of_the_configuration(secret: str) -> None:
    config = parse_config(WHOLE)
    assert secret not in repr(config)
    assert secret not in render(describe(config))
    assert secret not in config.model_dump_json()


def test_secrets_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("123\n")
    environ = {"FAIRNESS_MONITOR__SERVER__INGEST_TOKEN_FILE": str(tmp_path / "token")}
    token = parse_config(BASE, environ).server.ingest_token
    assert token is not None
    assert token.get_secret_value() == "123"


def test_servers_may_be_one_text() -> None:
    config = parse_config(BASE + "kafka: {bootstrap_servers: 'a:1, b:2'}")
    assert config.kafka is not None
    assert config.kafka.bootstrap_servers == ("a:1", "b:2")


def test_the_plan_says_what_run_connects_to() -> None:
    text = " ".join(render(describe(parse_config(WHOLE))).split())
    assert "log: topics p, o of b1:9092, [::1]:9093 (SASL_SSL), from 2026-03-01T00:00:00Z" in text
    assert "posted: events posted to /v1/events?source=posted" in text
    assert "committed as group watch-m" in text
    assert "rejects file letters.jsonl and topic letters" in text
    assert "only replay has anything to read" in render(describe(parse_config(BASE)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kafka: {bootstrap_servers: [host]}", "'host' is not a host and a port"),
        ("kafka: {bootstrap_servers: ['h:99999']}", "'h:99999' is not a host and a port"),
        ("kafka: {bootstrap_servers: []}", "needs at least 1 item(s)"),
        (
            "kafka: {bootstrap_servers: 'h:1', security: {protocol: SASL_SSL, mechanism: PLAIN}}",
            "needs a username",
        ),
        ("kafka: {bootstrap_servers: 'h:1', security: {password: x}}", "of no use with protocol PLAINTEXT"),
        (
            "kafka: {bootstrap_servers: 'h:1', security: {protocol: SSL, ca_file: /no/such}}",
            "there is no file /no/such",
        ),
        ("sources: [{kafka: {topics: [t]}}]", "it is not said which cluster the topics are in"),
        ("sources: [{http: {}}]", "whoever posts events needs a token"),
        ("sources: [{kafka: {topics: [t, t]}}]\nkafka: {bootstrap_servers: 'h:1'}", "is read by source"),
        (
            "sources: [{kafka: {topics: [t], start: soon}}]\nkafka: {bootstrap_servers: 'h:1'}",
            "'soon' is no place to start",
        ),
        ("sources: [{kafka: {topics: ['a b']}}]\nkafka: {bootstrap_servers: 'h:1'}", "'a b' is not a name"),
        ("sources: [{kafka: {topics: [t]}, http: {}}]\nkafka: {bootstrap_servers: 'h:1'}", "not both"),
        ("dead_letter: {topic: t}", "it is not said which cluster the topic is in"),
        (
            "dead_letter: {topic: t}\nsources: [{kafka: {topics: [t]}}]\nkafka: {bootstrap_servers: 'h:1'}",
            "dead letters would be rejected again for ever",
        ),
        ("server: {listen: ':9464'}", "is not a host and a port"),
        ("server: {listen: 'h:1', key_file: pyproject.toml}", "TLS needs certificate_file and key_file"),
        ("server: {ingest_token: 12}", "must be text"),
        ("alerts: {webhooks: {w: {url: 'ftp://h', secrets: [x]}}}", "not the address of a webhook"),
        ("alerts: {webhooks: {w: {url: 'https://u:p@h', secrets: [x]}}}", "holds a user or a password"),
        ("alerts: {webhooks: {w: {url: 'https://h', secrets: [x]}}}", "does not start with whsec_"),
        ("alerts: {webhooks: {w: {url: 'https://h', secrets: []}}}", "needs at least 1 item(s)"),
        (
            f"alerts: {{webhooks: {{w: {{url: 'https://h', secrets: [{SECRET}], timeout: 2m}}}}}}",
            "from 100ms to 1m",
        ),
        ("models: {m: {task: binary, groups: [everybody]}}", "cannot be told from all groups together"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    whole = text if text.startswith("models") else BASE + text
    found = problems(whole)
    assert any(words in p for p in found), found
    assert all(". Fix: " in p and p.startswith("c:") for p in found)


def test_problems_come_all_at_once_and_none_twice() -> None:
    found = problems(
        BASE
        + "kafka: {bootstrap_servers: h}\nserver: {listen: x}\n"
        + "sources: [{kafka: {topics: [t]}}, {name: p, http: {}}]"
    )
    assert len(found) == 2, "what follows from a key that is wrong is not reported"


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_AAAA", "whsec_" + "A" * 200, "whsec_!!!!", "AAAA"])
def test_secrets_that_sign_nothing_are_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 random bytes"):
        webhook_key(secret)


def test_the_schema_of_the_configuration_can_be_made() -> None:
    assert Config.model_json_schema()["properties"]["kafka"]
