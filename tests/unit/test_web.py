"""The HTTP endpoints, without a socket where that is enough."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from monitor.connections import ServerConfig
from monitor.errors import MonitorError
from monitor.names import Reason
from monitor.records import Reject
from monitor.sources.http import Inbox, Post, Receipt, Refused
from monitor.web import Board, WebServer, make_app


@dataclass
class Site:
    """A running server with an inbox that a thread empties."""

    inbox: Inbox = field(default_factory=Inbox)
    board: Board = field(default_factory=Board)
    clock: float = 100.0
    posts: list[Post] = field(default_factory=list)
    url: str = ""

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        return self._send(urllib.request.Request(self.url + path, headers=headers))

    def post(self, body: bytes, path: str = "/v1/events", **headers: str) -> tuple[int, Any]:
        names = {"Authorization": "Bearer in", "Content-Type": "application/x-ndjson"}
        names |= {k.replace("_", "-"): v for k, v in headers.items()}
        code, answer = self._send(urllib.request.Request(self.url + path, body, names))
        return code, json.loads(answer)

    def _send(self, request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            for post in self.inbox.take(0.05):
                self.posts.append(post)
                lines = post.records("http/posted")
                bad = [i for i, p in enumerate(lines.payloads) if not p.startswith(b"{")]
                rejects = [
                    Reject("http/posted", lines.positions[i], Reason.INVALID_JSON, "no JSON", b"")
                    for i in bad
                ]
                post.receipt.set_result(Receipt(len(lines), len(lines) - len(bad), rejects))


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    app = make_app(
        site.board,
        monotonic=lambda: site.clock,
        now_ms=lambda: 5,
        metrics_token="out",
        inbox=site.inbox,
        ingest_token="in",
        max_body_bytes={"posted": 2048},
    )
    server = WebServer(app, ServerConfig(listen="127.0.0.1:0"))
    server.start()
    site.url = f"http://127.0.0.1:{server.port}"
    stop = threading.Event()
    worker = threading.Thread(target=site.work, args=(stop,))
    worker.start()
    yield site
    stop.set()
    worker.join()
    server.close()


def test_metrics_need_their_token_and_are_two_halves(site: Site) -> None:
    site.board.groups, site.board.health = b"a 1\n", b"b 2\n"
    assert site.get("/metrics")[0] == 401
    assert site.get("/metrics", Authorization="Bearer wrong")[0] == 401
    assert site.get("/metrics", Authorization="Bearer out") == (200, "a 1\nb 2\n")


def test_liveness_is_the_heartbeat_of_the_loop(site: Site) -> None:
    site.board.heartbeat = 99.0
    assert site.get("/livez")[0] == 200
    site.clock = 200.0
    code, body = site.get("/livez")
    assert code == 503
    assert "has not turned for 101 s" in body


def test_readiness_says_what_is_waited_for(site: Site) -> None:
    site.board.waiting_for = ("the brokers have not answered yet",)
    code, body = site.get("/readyz")
    assert code == 503
    assert json.loads(body)["waiting_for"] == ["the brokers have not answered yet"]
    site.board.waiting_for = ()
    assert site.get("/readyz")[0] == 200


def test_events_are_counted_and_rejects_come_back(site: Site) -> None:
    code, answer = site.post(b'{"a": 1}\n\nnonsense\r\n{"b": 2}')
    assert code == 200
    assert (answer["read"], answer["accepted"], answer["rejected"]) == (3, 2, 1)
    assert answer["rejects"] == [{"line": 3, "element": None, "reason": "invalid_json", "message": "no JSON"}]
    assert +site.board.ingest_codes == {200: 1}


def test_the_same_key_counts_once(site: Site) -> None:
    first = site.post(b"{}", Idempotency_Key="k1")
    assert site.post(b"{}", Idempotency_Key="k1") == first
    assert len(site.posts) == 1
    code, answer = site.post(b"{ }", Idempotency_Key="k1")
    assert code == 422
    assert "other events" in answer["error"]
    assert site.post(b"{}", Idempotency_Key="k2")[0] == 200
    assert len(site.posts) == 2


@pytest.mark.parametrize(
    ("body", "path", "headers", "code", "words"),
    [
        (b"{}", "/v1/events", {"Authorization": "Bearer out"}, 401, "server.ingest_token"),
        (b"{}", "/v1/events", {"Authorization": "in"}, 401, "server.ingest_token"),
        (b" \n", "/v1/events", {}, 400, "holds no events"),
        (b"{" * 2049, "/v1/events", {}, 413, "larger than 2048 bytes"),
        (b"{}", "/v1/events", {"Content-Encoding": "gzip"}, 415, "content-encoding"),
        (b"{}", "/v1/events?source=other", {}, 404, "posted"),
        (b"{}", "/v1/events", {"Idempotency-Key": "k" * 256}, 400, "1 to 255"),
        (b"{}", "/v2/events", {}, 404, "nothing here"),
        (b"{}", "/livez", {}, 405, "not for this path"),
    ],
)
def test_what_is_refused(
    site: Site, body: bytes, path: str, headers: dict[str, str], code: int, words: str
) -> None:
    found, answer = site.post(body, path, **headers)
    assert found == code
    assert words in answer["error"]
    assert not site.posts


def test_the_index_names_the_endpoints(site: Site) -> None:
    assert "POST /v1/events" in site.get("/")[1]


def test_a_full_or_closed_inbox_refuses() -> None:
    inbox = Inbox(max_waiting_bytes=10)
    inbox.submit(Post("s", b"x" * 50, 0))  # alone even a large one gets in
    with pytest.raises(Refused, match="too many events wait") as refused:
        inbox.submit(Post("s", b"x", 0))
    assert refused.value.code == 503
    assert len(inbox.take(0)) == 1
    inbox.submit(Post("s", b"x", 0), "key")
    inbox.close()
    with pytest.raises(Refused, match="shutting down"):
        inbox.submit(Post("s", b"x", 0))
    assert inbox.submit(Post("s", b"x", 0), "key") is not None, "a known key still gets its receipt"


def test_the_oldest_keys_are_forgotten_first() -> None:
    inbox = Inbox(max_keys=2)
    receipts = [inbox.submit(Post("s", b"x", 0), key) for key in ("a", "b", "c")]
    assert inbox.submit(Post("s", b"x", 0), "c") is receipts[2]
    assert inbox.submit(Post("s", b"x", 0), "a") is not receipts[0]


def test_an_address_that_is_taken_is_an_error_with_the_key_to_change() -> None:
    board = Board()
    app = make_app(board, monotonic=lambda: 0.0, now_ms=lambda: 0)
    first = WebServer(app, ServerConfig(listen="127.0.0.1:0"))
    with pytest.raises(MonitorError, match=r"cannot listen at 127.0.0.1:\d+: .*; change server.listen"):
        WebServer(app, ServerConfig(listen=f"127.0.0.1:{first.port}"))
    first.close()


def test_connections_that_send_nothing_shut_nobody_out(site: Site) -> None:
    port = int(site.url.rpartition(":")[2])
    silent = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(520)]
    try:
        assert site.get("/livez")[0] in (200, 503), "an answer, and not that there are too many connections"
        assert json.loads(site.get("/livez")[1])["heartbeat_age_seconds"] == 100
    finally:
        for one in silent:
            one.close()


def test_too_many_lines_are_refused() -> None:
    with pytest.raises(Refused, match="more than 100000 lines") as refused:
        Inbox().submit(Post("s", b"\n" * 100_001, 0))
    assert refused.value.code == 413


def test_many_lines_are_taken_in_several_turns() -> None:
    inbox = Inbox()
    for _ in range(5):
        inbox.submit(Post("s", b"x\n" * 90_000, 0))
    assert [len(inbox.take(0)) for _ in range(4)] == [2, 2, 1, 0]


def test_what_is_kept_for_a_key_is_small() -> None:
    inbox = Inbox()
    post = Post("s", b"x", 0)
    inbox.submit(post, "k")
    rejects = [Reject("p", i, Reason.INVALID_JSON, "no JSON", b"x" * 1000) for i in range(500)]
    inbox.answer(post, Receipt(500, 0, rejects))
    again = inbox.submit(Post("s", b"x", 0), "k").result(0)
    assert (again.read, again.accepted, len(again.rejects)) == (500, 0, 100)
    assert all(r.payload == b"" for r in again.rejects)


def test_certificates_that_cannot_be_used_are_told_at_the_start(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    app = make_app(Board(), monotonic=lambda: 0.0, now_ms=lambda: 0)
    config = ServerConfig(listen="127.0.0.1:0", certificate_file=str(junk), key_file=str(junk))
    with pytest.raises(MonitorError, match="check that they belong together"):
        WebServer(app, config)
