"""The directory of a store: its lock, its trouble in words, and the note of the last commit."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from monitor.errors import MonitorError

DATABASE, LOCK, LAST = "state.db", "lock", "last-commit"


class StoreError(MonitorError):
    """The state could not be written, or what was found is not what was written."""


def damaged(path: Path, what: str) -> StoreError:
    """Error for content that is not as it was written."""
    return StoreError(
        f"the stored state is damaged: {path}: {what}; put a copy of the whole folder {path.parent} in its "
        "place, or move the folder away to begin anew from where the sources start"
    )


def sync_directory(directory: Path) -> None:
    """Make new names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def locked(directory: Path) -> int:
    """Take the lock of a directory, and leave the number of this process in it."""
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise StoreError(
                f"the state in {directory} is in use by process {owner}; stop it, or give this monitor "
                "a directory of its own"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def note(commits: int) -> bytes:
    """The content of ``last-commit``."""
    return f"{commits:020d} {_check(commits)}\n".encode()


def noted(content: bytes) -> int:
    """The number of commits that a note speaks of; 0 when it is not readable, as after a power cut."""
    number, _, digest = content.decode("ascii", "replace").strip().partition(" ")
    known = number.isascii() and number.isdigit() and digest == _check(int(number))
    return int(number) if known else 0


def _check(commits: int) -> str:
    return xxhash.xxh3_64_hexdigest(str(commits).encode())


@contextmanager
def explained(action: str, directory: Path) -> Iterator[None]:
    """Turn errors of the system and of SQLite into sentences."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # ours
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _TROUBLE:
            raise StoreError(f"cannot {action} {directory}: {error}; {_TROUBLE[code & 0xFF]}") from error
        raise damaged(directory / DATABASE, str(error)) from error
    except UnicodeDecodeError as error:  # of a message of SQLite's that quotes what it found
        raise damaged(directory / DATABASE, "its tables are not what they were") from error
    except OSError as error:
        advice = _TROUBLE[sqlite3.SQLITE_IOERR]
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = _TROUBLE[sqlite3.SQLITE_FULL]
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = _TROUBLE[sqlite3.SQLITE_READONLY]
        raise StoreError(f"cannot {action} {directory}: {error.strerror}; {advice}") from error


_TROUBLE = {
    sqlite3.SQLITE_FULL: "make room on its drive",
    sqlite3.SQLITE_IOERR: "see that its drive works and has room",
    sqlite3.SQLITE_READONLY: "let the user that runs the monitor write there",
    sqlite3.SQLITE_CANTOPEN: "let the user that runs the monitor write there",
    sqlite3.SQLITE_PERM: "let the user that runs the monitor write there",
    sqlite3.SQLITE_BUSY: "stop the program that holds the database open",
    sqlite3.SQLITE_LOCKED: "stop the program that holds the database open",
}
"""What to do about SQLite's errors that are no damage."""
