"""Where rejected events go: a JSONL file with the raw bytes, the position and the reason."""

from __future__ import annotations

import base64
import os
import stat
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import IO

import msgspec

from monitor.errors import MonitorError
from monitor.names import Reason
from monitor.records import Reject, once


class DeadLetters:
    """Counts rejects by reason, and writes them to a file (mode 0600) when there is one.

    A line holds ``partition``, ``position``, ``element`` (of a record with several events, else
    null), ``reason``, ``message``, and the raw bytes: as ``payload`` where they are UTF-8, else as
    ``payload_base64``.
    """

    def __init__(self, path: str | None) -> None:
        self.counts: Counter[Reason] = Counter()
        self._path = path
        self._encode = msgspec.json.Encoder().encode
        self._file: IO[bytes] | None = None
        if path is not None:
            try:
                self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
                found = os.fstat(self._file.fileno())
                if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                    os.fchmod(self._file.fileno(), 0o600)  # the file may have been there
            except OSError as error:
                raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> MonitorError:
        return MonitorError(
            f"cannot write dead letters to {self._path}: {error.strerror}; change dead_letter.path"
        )

    def __enter__(self) -> DeadLetters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, rejects: Iterable[Reject]) -> None:
        """Take in rejects."""
        for reject in once(rejects):
            self.counts[reject.reason] += 1
            if self._file is not None:
                try:
                    self._file.write(self._encode(letter(reject)) + b"\n")
                except OSError as error:
                    raise self._unwritable(error) from error

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                raise self._unwritable(error) from error

    def close(self) -> None:
        """Flush and close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                raise self._unwritable(error) from error


def letter(reject: Reject) -> dict[str, object]:
    """A reject as the content of its line."""
    line: dict[str, object] = {
        "partition": reject.partition,
        "position": reject.position,
        "element": reject.element,
        "reason": str(reject.reason),
        "message": reject.message,
    }
    try:
        line["payload"] = reject.payload.decode()
    except UnicodeDecodeError:
        line["payload_base64"] = base64.b64encode(reject.payload).decode()
    return line
