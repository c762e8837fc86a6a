"""Logs: one JSON object per line on standard output, never with events or attribute values."""

from __future__ import annotations

import logging
import sys
from typing import IO

from pythonjsonlogger.json import JsonFormatter

_QUIET = {
    "kafka": logging.CRITICAL,
    "uvicorn": logging.CRITICAL,
    "asyncio": logging.CRITICAL,
    "urllib3": logging.ERROR,
}
"""Libraries and the level they are heard from: kafka at every attempt, servers at every bad request."""


def set_up_logs(level: str = "INFO", stream: IO[str] | None = None) -> None:
    """Send all logs to ``stream`` (standard output) as JSON lines: time, level, logger, message, and more."""
    handler = logging.StreamHandler(stream or sys.stdout)
    names = {"levelname": "level", "name": "logger"}
    handler.setFormatter(
        JsonFormatter(["levelname", "name", "message"], rename_fields=names, timestamp="time")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(least)
