"""A receiver of webhooks in the test process."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

from tests.integration.servers import HOST, Certificates, free_port, wait_until


@dataclass(frozen=True)
class Answer:
    """What a receiver does with a request.

    `answer` it; `hang` until the receiver closes; `cut` the connection in the middle of the body; `drop` the
    connection without an answer.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    act: Literal["answer", "hang", "cut", "drop"] = "answer"


@dataclass(frozen=True)
class Request:
    """What a receiver got; `time` is the wall clock's when the body was there."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    time: float

    def json(self) -> Any:
        return json.loads(self.body)


class WebhookReceiver:
    """An HTTP server in this process: records requests, gives scripted answers, then `default` ones."""

    def __init__(
        self,
        answers: Iterable[Answer] = (),
        *,
        default: Answer | None = None,
        certificates: Certificates | None = None,
        port: int | None = None,
    ) -> None:
        self._answers = list(answers)
        self.default = default or Answer()
        self._requests: list[Request] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _HTTPServer((HOST, port if port is not None else free_port()), _Handler)
        self._server.receiver = self
        self.port = self._server.server_address[1]
        self.url = f"{'https' if certificates else 'http'}://{HOST}:{self.port}/"
        if certificates:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates.certificate, certificates.key)
            # The handler's thread makes the handshake: a client that does not finish it blocks nobody else.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="webhook receiver"
        )
        self._thread.daemon = True
        self._thread.start()

    @property
    def requests(self) -> list[Request]:
        with self._lock:
            return list(self._requests)

    def script(self, *answers: Answer) -> None:
        """Give these answers to the next requests."""
        with self._lock:
            self._answers.extend(answers)

    def wait_for(self, count: int, seconds: float = 20.0) -> list[Request]:
        """The requests, when there are at least `count`."""
        wait_until(lambda: len(self.requests) >= count, seconds, f"{count} requests reach the webhook")
        return self.requests

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()  # waits for the handlers
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, request: Request) -> Answer:
        """Record a request; what to do with it."""
        with self._lock:
            self._requests.append(request)
            return self._answers.pop(0) if self._answers else self.default

    def wait_for_close(self) -> None:
        self._closing.wait()


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = False  # server_close joins them, so that no test leaves a thread behind
    receiver: WebhookReceiver

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End connections that are kept alive, and those in the middle of something."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that give up are what many tests are about.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HTTPServer

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        receiver = self.server.receiver
        answer = receiver.take(Request(self.command, self.path, headers, body, time.time()))
        if answer.act == "hang":
            receiver.wait_for_close()
        if answer.act in ("hang", "drop"):
            self.close_connection = True
            return
        length = len(answer.body) + (1_000 if answer.act == "cut" else 0)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(answer.body)
        if answer.act == "cut":
            self.close_connection = True

    do_GET = do_POST = do_PUT = _handle  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""
