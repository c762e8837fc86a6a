"""The HTTP server in a thread of its own."""

from __future__ import annotations

import socket
import ssl
from threading import Event, Thread
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from monitor.connections import ServerConfig
from monitor.errors import MonitorError

_MOST_CONNECTIONS = 400


class _Protocol(H11Protocol):
    """HTTP/1.1 where connections that send no request cannot shut others out; uvicorn never closes them."""

    def connection_made(self, transport: Any) -> None:
        if len(self.connections) >= _MOST_CONNECTIONS:
            waiting = (c for c in self.connections if isinstance(c, _Protocol) and c.waits)
            if (other := next(waiting, None)) is not None:
                self.connections.discard(other)
                other.transport.abort()
        super().connection_made(transport)

    @property
    def waits(self) -> bool:
        """Is there no request that is being answered?"""
        return self.cycle is None or self.cycle.response_complete


class WebServer:
    """Serves an application at ``port`` until :meth:`close`. Raises MonitorError when it cannot listen."""

    def __init__(self, app: Starlette, config: ServerConfig) -> None:
        _check_certificate(config)
        self._socket = _listen(config)
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_keep_alive=75,
                timeout_graceful_shutdown=2,
                limit_concurrency=500,
                ssl_certfile=config.certificate_file,
                ssl_keyfile=config.key_file,
            )
        )
        self._ended = Event()
        self._thread = Thread(target=self._run, name="web", daemon=True)

    @property
    def ended(self) -> bool:
        """Has the server stopped, though nobody closed it?"""
        return self._ended.is_set()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Finish open requests (2 seconds at most) and stop."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(10)
        self._socket.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._ended.set()


def _check_certificate(config: ServerConfig) -> None:
    """Say so at once when uvicorn, in its thread, could not use the files."""
    if config.certificate_file is not None:
        try:  # an empty password makes OpenSSL fail where it would ask the terminal
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                config.certificate_file, config.key_file, ""
            )
        except (OSError, ValueError) as error:
            raise MonitorError(
                f"server.certificate_file {config.certificate_file} and key_file {config.key_file} cannot be "
                f"used ({error}); check that they belong together and that the key has no password"
            ) from None


def _listen(config: ServerConfig) -> socket.socket:
    host, port = config.address
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = infos[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        why = error.strerror or str(error)
        raise MonitorError(f"cannot listen at {config.listen}: {why}; change server.listen") from error
    return listener
