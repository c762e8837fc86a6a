"""The HTTP server in a thread of its own."""

from __future__ import annotations

import socket
from threading import Event, Thread

import uvicorn
from starlette.applications import Starlette

from monitor.connections import ServerConfig
from monitor.errors import MonitorError


class WebServer:
    """Serves an application until :meth:`close`. Raises MonitorError when it cannot listen."""

    def __init__(self, app: Starlette, config: ServerConfig) -> None:
        self._socket = _listen(config)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_keep_alive=75,
                timeout_graceful_shutdown=5,
                limit_concurrency=500,
                ssl_certfile=config.certificate_file,
                ssl_keyfile=config.key_file,
            )
        )
        self._ended = Event()
        self._thread = Thread(target=self._run, name="web", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened at."""
        port: int = self._socket.getsockname()[1]
        return port

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Finish open requests (5 seconds at most) and stop."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(10)
        self._socket.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._ended.set()


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
