"""Alerts to a receiver of webhooks, as Standard Webhooks 1.0 has it (https://www.standardwebhooks.com)."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationParseError, NewConnectionError
from urllib3.util import parse_url

from monitor import __version__
from monitor.alerts import Alert, AlertState, Transition
from monitor.connections import webhook_key
from monitor.errors import MonitorError
from monitor.sinks.outbox import Message, Outcome, Verdict
from monitor.times import format_time

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """A receiver. ``timeout_seconds`` is for one attempt, all in all; secrets and URL stay out of logs."""

    name: str
    url: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    timeout_seconds: float = 10.0
    allow_private: bool = False


# ---- what is sent


def alert_message(transition: Transition, row: Callable[[Alert], Mapping[str, Any]]) -> Message:
    """The message that says that an alert fires, or has resolved.

    ``row`` makes an alert a JSON object. ``data.key`` names the episode: the same in both messages, and
    after a restart. The message's id names episode and state, so a receiver may drop an id it has seen.

    Raises
    ------
    ValueError
        When the alert is only pending: nobody is told.
    """
    if transition.state is AlertState.PENDING:
        raise ValueError("a pending alert is no message")
    alert = transition.alert
    key = alert.episode
    content = {
        "type": f"fairness.alert.{transition.state}",
        "timestamp": format_time(transition.at),
        "data": {"key": key, **{name: _finite(value) for name, value in row(alert).items()}},
    }
    body = json.dumps(content, separators=(",", ":")).encode()  # ASCII: lone surrogates stay escaped
    return Message(f"msg_{key}_{transition.state}", key, alert.rule.name, transition.at, body)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sign(secrets: Iterable[str], message_id: str, timestamp: int, body: bytes) -> str:
    """The signature header: one signature per secret, so that secrets can be replaced without a gap.

    ``timestamp`` is when this attempt is made, in seconds since 1970.
    """
    content = f"{message_id}.{timestamp}.".encode() + body
    digests = (hmac.digest(webhook_key(secret), content, "sha256") for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


# ---- what an answer means


def verdict(status: int | None) -> Verdict:
    """What to do after an answer with this status; None: there was no answer.

    | status | verdict |
    |---|---|
    | 2xx | delivered |
    | none, 408, 425, 429, 5xx | retry |
    | 410 | disable the channel |
    | others, all 3xx among them | give up |
    """
    if status is None or status in (408, 425, 429) or 500 <= status <= 599:
        return Verdict.RETRY
    if 200 <= status <= 299:
        return Verdict.DELIVERED
    return Verdict.DISABLE if status == 410 else Verdict.GIVE_UP


def retry_after(text: str | None, now_ms: int) -> float | None:
    """Seconds that a Retry-After header asks for, as seconds or as a date; None when it says nothing."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:18])
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.fromtimestamp(now_ms / 1000, UTC)).total_seconds())


def _answered(status: int, asked: float | None) -> Outcome:
    what = verdict(status)
    if what is Verdict.DELIVERED:
        reason = f"delivered with status {status}"
    elif what is Verdict.DISABLE:
        reason = "the receiver says that it is gone for good (status 410)"
    elif 300 <= status <= 399:
        reason = f"the receiver redirects (status {status}), which is not followed; set url to where it leads"
    elif status == 429:
        reason = "the receiver asks for fewer messages (status 429)"
    else:
        reason = f"the receiver answers with status {status}"
    return Outcome(what, reason, status, asked if what is Verdict.RETRY else None)


# ---- whom it is sent to


def is_public(address: Address) -> bool:
    """May a webhook go to this address? Not to private, local, shared, multicast or reserved ones."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        if inner is not None:  # an IPv4 address in the clothes of IPv6
            return is_public(inner)
        if address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def resolve_host(host: str, port: int) -> list[str]:
    """All addresses of a host, in the order of the system's preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Trouble(Exception):
    """No answer; the text is a clause that says why."""


class Webhook:
    """Makes single attempts at delivery over HTTP. Redirects are not followed, proxies not used.

    Only the status of an answer counts: what follows is not read, and may break off. The address is
    resolved and checked anew for each attempt and then connected to as it is, so a name cannot lead
    elsewhere after the check.
    """

    def __init__(
        self,
        target: WebhookTarget,
        *,
        now_ms: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        resolve: Callable[[str, int], Sequence[str]] = resolve_host,
    ) -> None:
        try:
            url = parse_url(target.url)
        except LocationParseError:
            url = None
        if url is None or url.host is None or url.scheme not in ("http", "https"):
            raise MonitorError(
                f"the url of webhook {target.name} is not an address; write a URL that starts with https://"
            )
        self._target = target
        self._host = url.host.strip("[]")
        self._path = url.request_uri
        self._tls = url.scheme == "https"
        self._port = url.port or (443 if self._tls else 80)
        self._headers = {
            "Host": url.netloc or url.host,
            "Content-Type": "application/json",
            "User-Agent": f"fairness-monitor/{__version__}",
            "Connection": "close",
        }
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._resolve = resolve
        self._open: HTTPConnection | None = None
        self._lock = threading.Lock()

    def deliver(self, message: Message) -> Outcome:
        """Make one attempt; takes ``timeout_seconds``, and what the system's resolver takes, at most."""
        deadline = self._monotonic() + self._target.timeout_seconds
        try:
            addresses = self._addresses()
            status, asked = self._post(message, addresses, deadline)
        except _Trouble as trouble:
            return Outcome(verdict(None), str(trouble))
        return _answered(status, asked)

    def abort(self) -> None:
        """Cut short the attempt that waits for an answer in another thread."""
        with self._lock:
            if self._open is not None:
                _cut(self._open)

    def _addresses(self) -> list[str]:
        try:
            found = self._resolve(self._host, self._port)
        except (OSError, UnicodeError):
            raise _Trouble("the host of the url cannot be resolved") from None
        if self._target.allow_private:
            return list(found)
        public = [text for text in found if is_public(ipaddress.ip_address(text))]
        if found and not public:
            raise _Trouble(
                "the url leads to a private or local address; set allow_private: true if that is meant"
            )
        return public

    def _post(self, message: Message, addresses: Sequence[str], deadline: float) -> tuple[int, float | None]:
        trouble = _Trouble("the host of the url has no address")
        for address in addresses:
            left = deadline - self._monotonic()
            if left <= 0:
                break
            # Half for the connection and half for TLS, should both hang.
            connection = self._connection(address, left / 2)
            try:
                try:
                    connection.connect()
                except (OSError, HTTPError) as error:
                    trouble = _Trouble(_why_no_connection(error))
                    continue
                with self._limited(connection, deadline):
                    return self._exchange(connection, message)
            finally:
                connection.close()
        raise trouble

    def _connection(self, address: str, seconds: float) -> HTTPConnection:
        if not self._tls:
            return HTTPConnection(address, self._port, timeout=seconds)
        # The default context reads the system's authorities, or SSL_CERT_FILE.
        context = ssl.create_default_context()
        return HTTPSConnection(
            address, self._port, timeout=seconds, ssl_context=context, server_hostname=self._host
        )

    def _exchange(self, connection: HTTPConnection, message: Message) -> tuple[int, float | None]:
        timestamp = self._now_ms() // 1000
        headers = {
            **self._headers,
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._target.secrets, message.id, timestamp, message.body),
        }
        connection.request("POST", self._path, body=message.body, headers=headers, preload_content=False)
        response = connection.getresponse()
        try:
            return response.status, retry_after(response.headers.get("Retry-After"), self._now_ms())
        finally:
            response.close()

    @contextmanager
    def _limited(self, connection: HTTPConnection, deadline: float) -> Iterator[None]:
        """Close the connection at the deadline: timeouts of sockets begin anew with every byte."""
        left = max(0.0, deadline - self._monotonic())
        late = threading.Event()

        def cut() -> None:
            late.set()
            _cut(connection)

        timer = threading.Timer(left, cut)
        timer.daemon = True
        with self._lock:
            self._open = connection
        if connection.sock is not None:
            connection.sock.settimeout(left + 1)  # the timer cuts earlier
        timer.start()
        try:
            yield
        except (OSError, HTTPException, HTTPError) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                seconds = self._target.timeout_seconds
                raise _Trouble(f"the receiver does not answer within {seconds:g} seconds") from None
            raise _Trouble("the receiver closes the connection without an answer") from None
        finally:
            timer.cancel()
            timer.join()
            with self._lock:
                self._open = None


def _cut(connection: HTTPConnection) -> None:
    """End what another thread waits for on this connection."""
    # The plain method: the one of TLS sockets would pull the session from under the other thread.
    if connection.sock is not None:
        with suppress(OSError):  # closed already
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _why_no_connection(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the receiver's certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "the receiver does not speak TLS as expected"
    if isinstance(error, TimeoutError | ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return "the receiver cannot be reached in time"
    return "the receiver cannot be reached"
