"""The HTTP side of the service: metrics, health, ingest."""

from monitor.web.app import Board, make_app
from monitor.web.server import WebServer

__all__ = ["Board", "WebServer", "make_app"]
