"""The parts of the configuration that connect the service to the world: Kafka, HTTP, webhooks."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    WithJsonSchema,
    model_validator,
)

from monitor.clock import Duration
from monitor.errors import Findings, wrong
from monitor.paths import Frozen, FrozenMap, Items, text_like
from monitor.times import parse_time

Name = Annotated[
    str, *text_like(r"[A-Za-z0-9._-]{1,64}", "1 to 64 letters, digits, dots, dashes and underscores")
]
Topic = Annotated[
    str,
    *text_like(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}", "1 to 249 letters, digits, dots, dashes, underscores"),
]
_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})")


def _split_server(text: str) -> tuple[str, int] | None:
    match = _SERVER.fullmatch(text)
    if match is None or not 0 <= int(match[2]) <= 65535:
        return None
    return match[1].strip("[]"), int(match[2])


def _check_server(text: str) -> str:
    if _split_server(text) is None:
        raise wrong(f"{text!r} is not a host and a port", "write HOST:PORT, like kafka.internal:9092")
    return text


def _as_items(value: Any) -> Any:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _start(value: Any) -> Literal["earliest", "latest"] | int:
    if value == "earliest":
        return "earliest"
    if value == "latest":
        return "latest"
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return parse_time(str(value), assume_utc=False)
    except ValueError:
        message = f"{value!r} is no place to start"
        raise wrong(message, "write earliest, latest, or a time like 2026-03-01T00:00:00Z") from None


def _text(value: Any) -> Any:
    if isinstance(value, int | float | bool):
        raise wrong("must be text, and this is none", "put it in quotes")
    return value


def _check_url(url: SecretStr) -> SecretStr:
    parts = urlsplit(url.get_secret_value())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise wrong("this is not the address of a webhook", "write a URL that starts with https://")
    if parts.username is not None or parts.password is not None:
        raise wrong("the address holds a user or a password", "sign with secrets instead")
    return url


def webhook_key(secret: str) -> bytes:
    """The key that a webhook secret stands for; raises ValueError when it cannot be one.

    >>> webhook_key("whsec_c2VjcmV0LW9mLTI0LWJ5dGVzLW1pbmltdW0=")
    b'secret-of-24-bytes-minimum'
    """
    fix = 'write "whsec_" and 24 to 64 random bytes in base64'
    if not secret.startswith("whsec_"):
        raise ValueError(f"the secret does not start with whsec_; {fix}")
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise ValueError(f"the secret is not base64 after whsec_; {fix}") from None
    if not 24 <= len(key) <= 64:
        raise ValueError(f"the secret has {len(key)} bytes; {fix}")
    return key


def _check_secret(secret: SecretStr) -> SecretStr:
    try:
        webhook_key(secret.get_secret_value())
    except ValueError as error:
        message, _, fix = str(error).partition("; ")
        raise wrong(message, fix) from None
    return secret


def _check_file(path: str) -> str:
    if not Path(path).is_file():
        raise wrong(f"there is no file {path}", "name an existing file")
    return path


Secret = Annotated[SecretStr, BeforeValidator(_text), Field(min_length=1)]
ExistingFile = Annotated[str, Field(min_length=1), AfterValidator(_check_file)]
Server = Annotated[str, AfterValidator(_check_server)]
Start = Annotated[
    Literal["earliest", "latest"] | int,
    PlainValidator(_start),
    WithJsonSchema({"type": "string", "examples": ["earliest", "latest", "2026-03-01T00:00:00Z"]}),
]
"""Where reading begins: an end of the topic, or a time in milliseconds since 1970."""


class KafkaSecurity(Frozen):
    """How brokers and the monitor prove who they are."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="as the broker's listener is set up"
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        default=None, description="SASL mechanism; only with a SASL protocol"
    )
    username: str | None = Field(default=None, min_length=1, description="SASL user")
    password: Secret | None = Field(default=None, description="SASL password; better by PASSWORD_FILE")
    ca_file: ExistingFile | None = Field(
        default=None, description="certificates of the authorities trusted, PEM; the system's without it"
    )
    certificate_file: ExistingFile | None = Field(default=None, description="client certificate, PEM")
    key_file: ExistingFile | None = Field(default=None, description="key of the client certificate, PEM")
    key_password: Secret | None = Field(default=None, description="password of key_file")
    check_hostname: bool = Field(default=True, description="the certificate must name the broker's host")

    @model_validator(mode="after")
    def _check_parts(self) -> KafkaSecurity:
        findings = Findings()
        sasl = self.protocol.startswith("SASL_")
        for key in ("mechanism", "username", "password"):
            if sasl and getattr(self, key) is None:
                findings.add((key,), f"{self.protocol} needs a {key}", f"set {key}")
            if not sasl and getattr(self, key) is not None:
                message = f"a {key} is of no use with protocol {self.protocol}"
                findings.add((key,), message, "set protocol to SASL_SSL, or take it out")
        for key in ("ca_file", "certificate_file", "key_file", "key_password"):
            if not self.protocol.endswith("SSL") and getattr(self, key) is not None:
                message = f"a {key} is of no use with protocol {self.protocol}"
                findings.add((key,), message, "set protocol to SSL or SASL_SSL, or take it out")
        if (self.certificate_file is None) != (self.key_file is None):
            have, missing = ("certificate_file", "key_file")
            if self.certificate_file is None:
                have, missing = missing, have
            findings.add((have,), f"{have} comes without {missing}", f"set {missing} as well")
        findings.raise_if_any("security")
        return self


class KafkaConfig(Frozen):
    """The cluster that topics are read from and dead letters go to."""

    bootstrap_servers: Annotated[Items[Server], BeforeValidator(_as_items)] = Field(
        min_length=1, description="brokers to ask first, as HOST:PORT"
    )
    client_id: Name = Field(
        default="fairness-monitor", description="name of this client in the broker's logs"
    )
    group: Name | None = Field(
        default="fairness-monitor",
        description="name that positions are committed under, one per monitor; null: nothing is committed",
    )
    security: KafkaSecurity = Field(default=KafkaSecurity(), description="TLS and SASL")


class TopicsConfig(Frozen):
    """Topics whose records are events of one format."""

    topics: Items[Topic] = Field(min_length=1, description="predictions, outcomes, or both in one")
    start: Start = Field(
        default="earliest",
        description="where to begin without a committed position: earliest, latest, or a time",
    )


class IngestConfig(Frozen):
    """Events that are posted to /v1/events."""

    max_body_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, description="bytes of one request")


class ServerConfig(Frozen):
    """The HTTP server: metrics, health, ingest."""

    listen: Server = Field(default="127.0.0.1:9464", description="address and port; port 0 takes a free one")
    ingest_token: Secret | None = Field(
        default=None, description="bearer token that posts to /v1/events need"
    )
    metrics_token: Secret | None = Field(
        default=None, description="bearer token that /metrics needs; open without it"
    )
    certificate_file: ExistingFile | None = Field(
        default=None, description="serve TLS with this certificate, PEM"
    )
    key_file: ExistingFile | None = Field(default=None, description="key of the certificate, PEM")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of ``listen``."""
        host, port = _split_server(self.listen) or ("", 0)
        return host, port

    @model_validator(mode="after")
    def _check_tls(self) -> ServerConfig:
        if (self.certificate_file is None) != (self.key_file is None):
            findings = Findings()
            have = "key_file" if self.certificate_file is None else "certificate_file"
            findings.add((have,), "TLS needs certificate_file and key_file", "set both, or none")
            findings.raise_if_any("server")
        return self


class WebhookConfig(Frozen):
    """A receiver of alerts in the form of Standard Webhooks."""

    url: Annotated[Secret, AfterValidator(_check_url)] = Field(description="where messages are posted to")
    secrets: Annotated[
        Items[Annotated[Secret, AfterValidator(_check_secret)]], BeforeValidator(_as_items)
    ] = Field(min_length=1, max_length=4, description="whsec_…; several while one replaces the other")
    timeout: Duration = Field(default=timedelta(seconds=10), description="for one attempt, all in all")
    allow_private: bool = Field(
        default=False, description="the address may be private or this machine (else refused: SSRF guard)"
    )

    @model_validator(mode="after")
    def _check_timeout(self) -> WebhookConfig:
        if not timedelta(milliseconds=100) <= self.timeout <= timedelta(minutes=1):
            findings = Findings()
            findings.add(("timeout",), "an attempt takes from 100ms to 1m", "write 10s")
            findings.raise_if_any("webhook")
        return self


class AlertsConfig(Frozen):
    """Whom alerts are sent to."""

    max_age: Duration = Field(
        default=timedelta(hours=1),
        description="alerts told later than this are not sent, so that a backfill pages nobody; time.grace, "
        "time.bucket and time.idle_after come on top",
    )
    webhooks: FrozenMap[Name, WebhookConfig] = Field(
        default={}, validate_default=True, description="receivers, by name"
    )


class HealthConfig(Frozen):
    """When the monitor calls its numbers stale."""

    stale_after: Duration = Field(
        default=timedelta(hours=1), description="a model without events for this long is stale"
    )


class StateConfig(Frozen):
    """Where what the service knows is kept; without a directory it is forgotten when it ends."""

    directory: str | None = Field(
        default=None, min_length=1, description="folder of its own, on a local disk; made if it is missing"
    )


class DeadLetterConfig(Frozen):
    """Where rejected events go; without any they are only counted."""

    path: str | None = Field(default=None, min_length=1, description="JSONL file")
    topic: Topic | None = Field(default=None, description="Kafka topic: raw bytes, reason in the headers")
