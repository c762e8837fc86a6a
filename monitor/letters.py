"""Rejected events on their way out of the service: to a file, to a topic, or only counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from monitor.errors import MonitorError
from monitor.records import Reject
from monitor.sinks.dead_letter import DeadLetters
from monitor.sinks.kafka import TopicLetters

logger = logging.getLogger(__name__)


class Letters:
    """Writes rejected events to a file and a topic, where there are; trouble is counted, never raised."""

    def __init__(self, path: str | None, topic: TopicLetters | None) -> None:
        self._file = None if path is None else DeadLetters(path)
        self._topic = topic
        self._written = self._failed = 0
        self._trouble: str | None = None

    def write(self, rejects: Sequence[Reject]) -> None:
        """Take in rejects."""
        if rejects and self._topic is not None:
            self._topic.write(rejects)
        if rejects and self._file is not None:
            file = self._file
            done = self._try(lambda: file.write(rejects))
            self._written += len(rejects) if done else 0
            self._failed += 0 if done else len(rejects)

    def flush(self, seconds: float) -> bool:
        """Hand on what was written, in so many seconds; is all of it where it belongs?"""
        if self._file is not None:
            self._try(self._file.flush)
        return self._topic is None or self._topic.flush(seconds)

    @property
    def full(self) -> bool:
        """Is it time to read no more until letters have left?"""
        return self._topic is not None and self._topic.full

    def close(self) -> None:
        """Flush and close."""
        if self._file is not None:
            self._try(self._file.close)
        if self._topic is not None:
            self._topic.close(1.0)  # the drain has waited already

    def counts(self) -> dict[tuple[str, str], int]:
        """Letters by sink and result."""
        counts = {}
        if self._file is not None:
            counts = {("file", "written"): self._written, ("file", "failed"): self._failed}
        if self._topic is not None:
            counts |= {("kafka", "written"): self._topic.written, ("kafka", "failed"): self._topic.failed}
        return counts

    def _try(self, write: Callable[[], None]) -> bool:
        trouble = None
        try:
            write()
        except MonitorError as error:
            trouble = str(error)
        if trouble is not None and trouble != self._trouble:  # once per change, not per batch
            logger.error("%s", trouble)
        self._trouble = trouble
        return trouble is None
