"""Webhooks: the message byte by byte, signatures that others verify, and receivers that misbehave."""

from __future__ import annotations

import base64
import ipaddress
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import standardwebhooks
from hypothesis import given, seed
from hypothesis import strategies as st

from monitor.alerts import Alert, AlertState, Rule, Transition
from monitor.errors import MonitorError
from monitor.gap_names import GapSpec
from monitor.rows import alert_row
from monitor.sinks.outbox import Message, Outcome, Verdict
from monitor.sinks.webhook import (
    Webhook,
    WebhookTarget,
    alert_message,
    is_public,
    retry_after,
    sign,
    verdict,
)

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
OLD_SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
NOON = 1_772_366_400_000  # 2026-03-01T12:00:00Z
RULE = Rule(
    name="accent-gap",
    model="asr",
    gap=GapSpec("word_error_rate", ("word_error_rate",), ("accent",), "rest", "difference"),
    tolerance=0.05,
    direction="above",
    window="1h",
    min_support=10,
    for_buckets=1,
    severity="critical",
)
ALERT = Alert(
    rule=RULE,
    groups=({"accent": "welsh"}, None),
    value=0.08,
    worst=0.1,
    support=120,
    pending_since=NOON - 60_000,
    state=AlertState.FIRING,
    firing_since=NOON,
)
MESSAGE = Message("msg_1_firing", "1", "accent-gap", NOON, b'{"type":"fairness.alert.firing"}')


# ---- the message


def test_a_firing_alert_byte_by_byte() -> None:
    message = alert_message(Transition(NOON, ALERT), alert_row)
    key = f"{ALERT.fingerprint}-{NOON - 60_000}"
    assert (message.id, message.key, message.rule, message.at_ms) == (
        f"msg_{key}_firing",
        key,
        "accent-gap",
        NOON,
    )
    assert "." not in message.id  # which separates what is signed
    assert message.body == GOLDEN.replace("KEY", key).replace("PRINT", ALERT.fingerprint).encode()


GOLDEN = (
    '{"type":"fairness.alert.firing","timestamp":"2026-03-01T12:00:00Z","data":{"key":"KEY",'
    '"rule":"accent-gap","model":"asr","metric":"word_error_rate","attributes":["accent"],'
    '"comparison":"rest","kind":"difference","window":"1h","groups":[{"accent":"welsh"},null],'
    '"state":"firing","severity":"critical","value":0.08,"worst":0.1,"tolerance":0.05,"support":120,'
    '"pending_since":"2026-03-01T11:59:00Z","firing_since":"2026-03-01T12:00:00Z","resolved_at":null,'
    '"fingerprint":"PRINT","summary":"asr: word error rate difference of accent = welsh to the rest is 0.08 '
    '(tolerance 0.05) over 1h"}}'
)


def test_a_resolve_names_the_same_episode_and_is_another_message() -> None:
    resolved = replace(ALERT, state=AlertState.RESOLVED, resolved_at=NOON + 60_000)
    firing = alert_message(Transition(NOON, ALERT), alert_row)
    resolve = alert_message(Transition(NOON + 60_000, resolved), alert_row)
    assert firing.key == resolve.key
    assert firing.id != resolve.id
    content = json.loads(resolve.body)
    assert (content["type"], content["timestamp"]) == ("fairness.alert.resolved", "2026-03-01T12:01:00Z")
    assert content["data"]["key"] == resolve.key
    assert content["data"]["resolved_at"] == "2026-03-01T12:01:00Z"
    again = replace(ALERT, pending_since=NOON + 120_000)
    assert alert_message(Transition(NOON + 120_000, again), alert_row).key != firing.key


def test_odd_values_are_json_that_anybody_reads() -> None:
    odd = replace(ALERT, groups=({"accent": 'é "\ud800"\n'}, None), worst=float("inf"))
    body = alert_message(Transition(NOON, odd), alert_row).body
    assert body.isascii()
    data = json.loads(body, parse_constant=lambda name: pytest.fail(name))["data"]
    assert data["groups"][0] == {"accent": 'é "\ud800"\n'}
    assert data["worst"] is None


def test_pending_alerts_are_no_messages() -> None:
    pending = replace(ALERT, state=AlertState.PENDING, firing_since=None)
    with pytest.raises(ValueError, match="pending"):
        alert_message(Transition(NOON, pending), alert_row)


# ---- the signature


@seed(1)
@given(st.binary(min_size=24, max_size=64), st.text(st.characters(codec="utf-8"), max_size=50))
def test_signatures_verify_with_the_reference_library(key: bytes, text: str) -> None:
    secret, now = "whsec_" + base64.b64encode(key).decode(), int(time.time())
    body = json.dumps(text).encode()
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(now),
        "webhook-signature": sign([OLD_SECRET, secret], "msg_1", now, body),
    }
    for known in (secret, OLD_SECRET):  # a receiver has the new secret, or still the old one
        assert standardwebhooks.Webhook(known).verify(body, headers) == text
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(SECRET).verify(body, headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(body + b" ", headers)


# ---- what an answer means


def test_the_table_of_answers() -> None:
    table = {status: verdict(status) for status in range(100, 600)}
    retry = {408, 425, 429, *range(500, 600)}
    assert {s for s, v in table.items() if v is Verdict.DELIVERED} == set(range(200, 300))
    assert {s for s, v in table.items() if v is Verdict.RETRY} == retry
    assert {s for s, v in table.items() if v is Verdict.DISABLE} == {410}
    assert verdict(None) is Verdict.RETRY
    assert verdict(999) is Verdict.GIVE_UP


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("120", 120),
        (" 0 ", 0),
        ("9" * 5000, 1e18 - 1),
        ("Sun, 01 Mar 2026 12:02:00 GMT", 120),
        ("Sun, 01 Mar 2026 12:02:00 -0000", 120),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("", None),
    ],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert retry_after(text, NOON) == seconds


@seed(1)
@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ [+-]?\w*"))
def test_no_retry_after_breaks_anything(text: str) -> None:
    seconds = retry_after(text, NOON)
    assert seconds is None or seconds >= 0


# ---- whom it is sent to


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "172.16.3.4", "192.168.1.1", "127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.169.254"),
        *("100.64.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "2001::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1"),
        "2002:7f00:1::",
    ],
)
def test_private_addresses(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.215.14", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


# ---- receivers


class Receiver:
    """A server that does with each connection what ``behave`` says, and keeps what it read."""

    def __init__(self, behave: Callable[[socket.socket, Receiver], None]) -> None:
        self.behave = behave
        self.requests: list[bytes] = []
        self.done = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.tls: ssl.SSLContext | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                try:
                    if self.tls is not None:
                        connection = self.tls.wrap_socket(connection, server_side=True)
                    with connection:
                        self.behave(connection, self)
                except OSError:
                    pass  # the other side hung up

    def read(self, connection: socket.socket) -> None:
        """Read one request."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        [length] = [
            int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")
        ]
        while len(body) < length:
            body += connection.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)

    def close(self) -> None:
        self.done.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextmanager
def receiving(behave: Callable[[socket.socket, Receiver], None]) -> Iterator[Receiver]:
    receiver = Receiver(behave)
    try:
        yield receiver
    finally:
        receiver.close()


def answering(answer: bytes) -> Callable[[socket.socket, Receiver], None]:
    def behave(connection: socket.socket, receiver: Receiver) -> None:
        receiver.read(connection)
        connection.sendall(answer)

    return behave


def dripping(first: bytes, drop: bytes) -> Callable[[socket.socket, Receiver], None]:
    def behave(connection: socket.socket, receiver: Receiver) -> None:
        receiver.read(connection)
        connection.sendall(first)
        while not receiver.done.wait(0.05):
            connection.sendall(drop)

    return behave


def webhook(
    receiver: Receiver,
    *,
    url: str = "http://hooks.example:{port}/alerts?team=ml",
    addresses: Sequence[str] = ("127.0.0.1",),
    timeout: float = 5.0,
    allow_private: bool = True,
    secrets: tuple[str, ...] = (SECRET,),
) -> Webhook:
    target = WebhookTarget("on-call", url.format(port=receiver.port), secrets, timeout, allow_private)
    return Webhook(target, now_ms=lambda: int(time.time() * 1000), resolve=lambda host, port: addresses)


def headers_of(request: bytes) -> Mapping[str, str]:
    lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_request_as_the_standard_has_it() -> None:
    # The name exists nowhere: the checked address is what is connected to, and nothing resolves it again.
    with receiving(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as receiver:
        outcome = webhook(receiver, secrets=(SECRET, OLD_SECRET)).deliver(MESSAGE)
    assert outcome == Outcome(Verdict.DELIVERED, "delivered with status 204", 204)
    [request] = receiver.requests
    assert request.startswith(b"POST /alerts?team=ml HTTP/1.1\r\n")
    assert request.endswith(b"\r\n\r\n" + MESSAGE.body)
    headers = headers_of(request)
    assert headers["host"] == f"hooks.example:{receiver.port}"
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == MESSAGE.id
    for secret in (SECRET, OLD_SECRET):
        verified = standardwebhooks.Webhook(secret).verify(MESSAGE.body, dict(headers))
        assert verified == {"type": "fairness.alert.firing"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n",
            (Verdict.GIVE_UP, 302, None),
        ),
        (b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\n\r\n", (Verdict.RETRY, 429, 7.0)),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: never\r\n\r\n", (Verdict.RETRY, 503, None)),
        (b"HTTP/1.1 400 No\r\nRetry-After: 7\r\n\r\n", (Verdict.GIVE_UP, 400, None)),
        (b"HTTP/1.1 410 Gone\r\n\r\n", (Verdict.DISABLE, 410, None)),
        # What follows the status cannot take it back: closed in the middle of the body, or a huge one.
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf", (Verdict.DELIVERED, 200, None)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", (Verdict.DELIVERED, 200, None)),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + b"x" * 30_000,
            (Verdict.DELIVERED, 200, None),
        ),
        # These are no answers.
        (b"", (Verdict.RETRY, None, None)),
        (b"hello\r\n\r\n", (Verdict.RETRY, None, None)),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", (Verdict.RETRY, None, None)),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", (Verdict.RETRY, None, None)),
        (b"HTTP/1.1 2", (Verdict.RETRY, None, None)),
    ],
    ids=lambda value: value[:24].decode() if isinstance(value, bytes) else "",
)
def test_answers(answer: bytes, expected: tuple[Verdict, int | None, float | None]) -> None:
    with receiving(answering(answer)) as receiver:
        outcome = webhook(receiver).deliver(MESSAGE)
    assert (outcome.verdict, outcome.status, outcome.hold_seconds) == expected
    assert receiver.connections == 1
    assert "hooks.example" not in outcome.reason
    assert "team" not in outcome.reason


@pytest.mark.parametrize(
    "behave",
    [
        dripping(b"", b""),
        dripping(b"HTTP", b" "),
        dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["silence", "status", "continue"],
)
def test_hanging_receivers_are_cut_off_in_time(behave: Callable[[socket.socket, Receiver], None]) -> None:
    with receiving(behave) as receiver:
        start = time.monotonic()
        outcome = webhook(receiver, timeout=0.4).deliver(MESSAGE)
        took = time.monotonic() - start
    assert outcome == Outcome(Verdict.RETRY, "the receiver does not answer within 0.4 seconds")
    assert took < 3


@pytest.mark.parametrize("drop", [b"X: y\r\n", b"x"])
@pytest.mark.parametrize("first", [b"", b"X: ", b"\r\n"], ids=["headers", "header", "body"])
def test_what_hangs_after_the_status_does_not_matter(first: bytes, drop: bytes) -> None:
    with receiving(dripping(b"HTTP/1.1 200 OK\r\n" + first, drop)) as receiver:
        start = time.monotonic()
        outcome = webhook(receiver, timeout=0.4).deliver(MESSAGE)
        assert time.monotonic() - start < 3
    assert outcome.verdict is Verdict.DELIVERED


def test_abort_ends_an_attempt_that_hangs() -> None:
    hangs = threading.Event()

    def behave(connection: socket.socket, receiver: Receiver) -> None:
        receiver.read(connection)
        hangs.set()
        receiver.done.wait(10)

    with receiving(behave) as receiver:
        hook = webhook(receiver, timeout=60)
        outcomes: list[Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(hook.deliver(MESSAGE)))
        thread.start()
        assert hangs.wait(10)
        hook.abort()
        thread.join(10)
    assert [o.verdict for o in outcomes] == [Verdict.RETRY]
    hook.abort()  # nothing to cut


def test_private_addresses_are_not_connected_to() -> None:
    with receiving(answering(b"HTTP/1.1 200 OK\r\n\r\n")) as receiver:
        for addresses in (["127.0.0.1"], ["::ffff:127.0.0.1", "10.0.0.1"]):
            outcome = webhook(receiver, addresses=addresses, allow_private=False).deliver(MESSAGE)
            assert outcome.verdict is Verdict.RETRY
            assert "private or local address; set allow_private: true" in outcome.reason
    assert receiver.connections == 0


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://2130706433:{port}/"]
)
def test_no_spelling_of_this_machine_passes(url: str) -> None:
    with receiving(answering(b"HTTP/1.1 200 OK\r\n\r\n")) as receiver:
        target = WebhookTarget("on-call", url.format(port=receiver.port), (SECRET,))
        outcome = Webhook(target, now_ms=lambda: NOON).deliver(MESSAGE)
    assert outcome.verdict is Verdict.RETRY
    assert receiver.connections == 0


def test_the_next_address_is_tried() -> None:
    with socket.socket() as closed, receiving(answering(b"HTTP/1.1 200 OK\r\n\r\n")) as receiver:
        closed.bind(("127.0.0.2", receiver.port))  # bound and not listening: refuses
        outcome = webhook(receiver, addresses=["127.0.0.2", "127.0.0.1"]).deliver(MESSAGE)
    assert outcome.verdict is Verdict.DELIVERED


def test_who_cannot_be_reached() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        target = WebhookTarget("a", f"http://localhost:{closed.getsockname()[1]}/", (SECRET,), 5, True)
        hook = Webhook(target, now_ms=lambda: NOON, resolve=lambda host, port: ["127.0.0.1"])
        assert hook.deliver(MESSAGE) == Outcome(Verdict.RETRY, "the receiver cannot be reached")

    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror("no such host")

    hook = Webhook(target, now_ms=lambda: NOON, resolve=unknown)
    assert hook.deliver(MESSAGE) == Outcome(Verdict.RETRY, "the host of the url cannot be resolved")
    hook = Webhook(target, now_ms=lambda: NOON, resolve=lambda host, port: [])
    assert hook.deliver(MESSAGE) == Outcome(Verdict.RETRY, "the host of the url has no address")


@pytest.mark.parametrize("url", ["", "hooks.example", "ftp://hooks.example/", "https://", "http://[::1/"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(MonitorError, match="the url of webhook on-call is not an address"):
        Webhook(WebhookTarget("on-call", url, (SECRET,)), now_ms=lambda: NOON)


def test_secrets_and_url_stay_out_of_sight() -> None:
    target = WebhookTarget("on-call", "https://hooks.example/token", (SECRET,))
    assert SECRET not in repr(target)
    assert "token" not in repr(target)


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and key for hooks.example, in one file, signed by itself."""
    path = tmp_path_factory.mktemp("tls") / "hooks.pem"
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=hooks.example -keyout {path}.key "
        f"-out {path} -addext subjectAltName=DNS:hooks.example"
    )
    try:
        subprocess.run(command.split(), check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("openssl is not installed: it makes the certificate")
    path.write_text(path.read_text() + Path(f"{path}.key").read_text())
    return path


@pytest.mark.parametrize(
    ("host", "trusted", "reason"),
    [
        ("hooks.example", True, "delivered with status 200"),
        ("hooks.example", False, "the receiver's certificate is not accepted: self-signed certificate"),
        ("other.example", True, "the receiver's certificate is not accepted: Hostname mismatch"),
    ],
)
def test_certificates_are_checked_against_the_name(
    host: str, trusted: bool, reason: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str | None] = []
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    tls.sni_callback = lambda sock, name, context: names.append(name)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with receiving(answering(b"HTTP/1.1 200 OK\r\n\r\n")) as receiver:
        receiver.tls = tls
        outcome = webhook(receiver, url=f"https://{host}:{{port}}/").deliver(MESSAGE)
    assert names == [host]
    assert outcome.reason.startswith(reason)
    assert len(receiver.requests) == (outcome.verdict is Verdict.DELIVERED)


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silence", "no TLS"])
def test_tls_that_never_comes(first: bytes) -> None:
    def behave(connection: socket.socket, receiver: Receiver) -> None:
        connection.sendall(first)
        receiver.done.wait(10)

    with receiving(behave) as receiver:
        start = time.monotonic()
        outcome = webhook(receiver, url="https://hooks.example:{port}/", timeout=0.6).deliver(MESSAGE)
        assert time.monotonic() - start < 3
    assert outcome.verdict is Verdict.RETRY
