"""The store in a directory: crashes at every step, damage to every file, locks, full drives, schemas."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.cells import CellSums
from monitor.checkpoint import EngineChanges, GenerationChanges, JoinChanges, ModelChanges, TextChanges
from monitor.store import Receipt, Store, StoredMessage, StoreError, database
from monitor.store.schema import MIGRATIONS
from tests.store_helpers import NO_ROWS, PENDING, content_of, open_store, story

ROOT = Path(__file__).parents[2]
NOTHING = EngineChanges(None, {})


def engine(**model: Any) -> EngineChanges:
    """Changes of one model without much in it."""
    parts: dict[str, Any] = {"first_cell": 0, "cells": [], "tables": {}, "dropped": [], "documents": {}}
    return EngineChanges(None, {"m": ModelChanges(**(parts | model))})


def rows(
    first: int,
    keys: list[int],
    *,
    cells: list[int] | None = None,
    deleted: Sequence[int] = (),
    generation: int = 0,
    **more: Any,
) -> JoinChanges:
    """Rows that are appended to a generation of the pending table."""
    records = np.zeros(len(keys), PENDING)
    records["cell"] = cells or 0
    records["deadline"] = keys
    generations = GenerationChanges(
        "pending",
        generation,
        first,
        np.array(keys, np.uint64),
        records,
        NO_ROWS,
        records[:0],
        np.array(deleted, np.int64),
        **more,
    )
    return JoinChanges([generations])


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


# what is there ---------------------------------------------------------------------------------------


def test_a_new_directory_is_empty_and_private(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "state"
    with open_store(home) as store:
        assert store.load() is None
        assert store.export() == b""
        assert store.verify() == []
        store.commit(engine(join=rows(0, [1])), offsets={})
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert {stat.S_IMODE(p.stat().st_mode) for p in home.iterdir()} == {0o600}
    with open_store(home) as store:
        assert store.load() is not None
        assert sorted(p.name for p in home.iterdir() if "-wal" not in p.name) == [
            "last-commit",
            "lock",
            "pending-1-0.rows",
            "state.db",
        ]


def test_an_empty_commit_is_a_commit(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.commit(NOTHING, offsets={})
        loaded = store.load()
        assert loaded is not None
        assert loaded.engine.models == {}
        assert store.info()["commits"] == 1


def test_outbox_receipts_and_ledger(tmp_path: Path) -> None:
    messages = [StoredMessage("on-call", f"m{i}", "k", "gap", i, bytes(range(256))) for i in range(3)]
    with open_store(tmp_path, keep_receipts=2) as store:
        store.commit(NOTHING, offsets={}, messages=messages, ledger=[{"n": 1}])
        store.commit(NOTHING, offsets={}, delivered=[("on-call", "m1"), ("other", "m0")], ledger=[2, 3])
        receipts = [Receipt("posted", f"k{i}", 2**64 - 1, {"accepted": i}) for i in range(4)]
        store.commit(NOTHING, offsets={}, receipts=receipts)
        loaded = store.load()
        assert loaded is not None
        assert loaded.outbox == [messages[0], messages[2]]
        assert loaded.receipts == receipts[2:]
        assert store.ledger(2) == [2, 3]
        assert store.ledger(9) == [{"n": 1}, 2, 3]


def test_a_message_stored_and_delivered_at_once_is_gone(tmp_path: Path) -> None:
    message = StoredMessage("c", "i", "k", "r", 1, b"")
    with open_store(tmp_path) as store:
        store.commit(NOTHING, offsets={}, messages=[message], delivered=[("c", "i")])
        loaded = store.load()
        assert loaded is not None
        assert loaded.outbox == []


def test_files_of_dead_generations_go(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.commit(engine(join=rows(0, [1, 2])), offsets={})
        assert list(tmp_path.glob("*.rows"))
        store.commit(engine(join=rows(0, [], dead=True)), offsets={})
        assert not list(tmp_path.glob("*.rows"))
        loaded = store.load()
        assert loaded is not None
        assert loaded.engine.models["m"].join.generations == ()


def test_what_does_not_follow_on_the_state_is_refused(tmp_path: Path) -> None:
    table = CellSums(np.array([0]), np.array([[1, 2]]))
    with open_store(tmp_path) as store:
        store.commit(
            engine(cells=[("a",)], tables={"all": table}, join=rows(0, [1], cells=[0])), offsets={"t-0": 1}
        )
        before = content_of(store)
        other = np.zeros(1, [("x", "i8")])
        gen = rows(1, [2]).generations[0]
        wrong = [
            (engine(cells=[("b",)]), "model m has 1 cells, and changes go on at cell 0"),
            (engine(first_cell=1, join=rows(0, [1])), "has 1 rows, and changes go on at row 0"),
            (engine(first_cell=1, join=rows(1, [2], deleted=[2])), "changes of rows that do not exist"),
            (
                engine(first_cell=1, tables={"all": CellSums(np.array([0]), np.array([[1]]))}),
                "table all has rows of 2 sums, and some of 1 came",
            ),
            (
                engine(
                    first_cell=1,
                    join=JoinChanges(
                        [GenerationChanges("pending", 0, 1, gen.keys, other, NO_ROWS, other[:0], NO_ROWS)]
                    ),
                ),
                "a model with other fields needs a state directory of its own",
            ),
        ]
        for changes, message in wrong:
            with pytest.raises(StoreError, match=message):
                store.commit(changes, offsets={"t-0": 2})
            assert content_of(store) == before


def test_what_cannot_be_written_as_json_is_an_error_and_nothing_is_stored(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.commit(NOTHING, offsets={"t-0": 1})
        before = content_of(store)
        with pytest.raises(TypeError, match="object is no JSON"):
            store.commit(NOTHING, offsets={"t-0": 2}, documents={"d": object()})  # type: ignore[dict-item]
        assert content_of(store) == before
        store.commit(NOTHING, offsets={"t-0": 2})


# crashes ---------------------------------------------------------------------------------------------


class Steps:
    """Copies a directory at every step of a commit: as a killed process leaves it, and as a power cut does.

    A power cut takes from generation files what was not synced.
    """

    def __init__(self, directory: Path, copies: Path, patch: pytest.MonkeyPatch, store: Store) -> None:
        self.copies: list[Path] = []
        self._directory, self._to = directory, copies
        self._busy = False
        self._synced = {p.name: p.read_bytes() for p in directory.glob("*.rows")}
        self._known = set(self._synced)
        for call in ("pwrite", "fsync", "ftruncate", "unlink"):
            patch.setattr(os, call, self._spied(call, getattr(os, call)))
        store._database.set_trace_callback(lambda _: self.copy())

    def _spied(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.copy()
            if name == "pwrite" and len(arguments[1]) > 3:  # half of it, as another step
                real(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
                self.copy()
            result = real(*arguments)
            if name == "fsync":
                path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
                if path.suffix == ".rows":
                    self._synced[path.name] = path.read_bytes()
                elif path == self._directory:
                    self._known |= {p.name for p in path.glob("*.rows")}
            self.copy()
            return result

        return call

    def copy(self) -> None:
        if self._busy:
            return
        self._busy = True
        killed = copied(self._directory, self._to / str(len(self.copies)))
        cut = copied(self._directory, self._to / f"{len(self.copies)}-power")
        for path in cut.glob("*.rows"):
            if path.name in self._known & set(self._synced):
                path.write_bytes(self._synced[path.name])
            else:
                path.unlink()
        self.copies += [killed, cut]
        self._busy = False


@pytest.mark.parametrize("seed", range(2))
def test_a_crash_at_any_step_leaves_the_state_before_or_after(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits, states = story(seed, 8)
    copies: list[Path] = []
    home = tmp_path / "state"
    with open_store(home) as store:
        for commit in commits[:-1]:
            commit.to(store)
        with monkeypatch.context() as patch:
            steps = Steps(home, tmp_path, patch, store)
            commits[-1].to(store)
            store._database.set_trace_callback(None)
        copies = steps.copies
        assert content_of(store) == states[-1].content()
    before, after = states[-2].content(), states[-1].content()
    seen = []
    for copy in copies:
        with open_store(copy) as store:
            seen.append(content_of(store))
            assert store.verify() == []
            if seen[-1] == before:
                commits[-1].to(store)  # goes on from there
                assert content_of(store) == after
    assert all(s in (before, after) for s in seen)
    assert seen[0] == before
    assert seen[-1] == after
    assert len(seen) > 30


def test_kill_9_at_any_time(tmp_path: Path) -> None:
    _, states = story(11, 80)
    script = """
import sys
from pathlib import Path
from tests.store_helpers import open_store, story
commits, _ = story(11, 80)
with open_store(Path(sys.argv[1])) as store:
    for number in range(store.info()["commits"], len(commits)):
        commits[number].to(store)
        print(number + 1, flush=True)
"""
    chance, done, crashes = random.Random(5), 0, 0
    while done < 80:
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        with child.stdout as lines:
            for line in lines:
                done = int(line)
                if chance.random() < 0.06:
                    child.send_signal(signal.SIGKILL)
                    crashes += 1
                    break
            rest = [int(line) for line in lines.read().split()]
        done = max([done, *rest])
        child.wait()
        with open_store(tmp_path) as store:
            found = store.info()["commits"]
            assert found in (done, done + 1)
            assert content_of(store) == states[found].content()
        done = found
    assert crashes > 1


def test_what_no_commit_speaks_of_is_cut_off_and_deleted(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.commit(engine(join=rows(0, [1, 2])), offsets={})
        before = content_of(store)
    path = tmp_path / "pending-1-0.rows"
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"torn")
    (tmp_path / "pending-1-7.rows").write_bytes(b"never committed")
    (tmp_path / "notes.txt").write_text("not ours")
    with open_store(tmp_path) as store:
        assert path.stat().st_size == size
        assert not (tmp_path / "pending-1-7.rows").exists()
        assert (tmp_path / "notes.txt").exists()
        assert content_of(store) == before


# damage ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Any]:
    """The same state as a closed store leaves it, and as a killed one does (with a write-ahead log)."""
    folder = tmp_path_factory.mktemp("states")
    commits, after = story(3, 12)
    with open_store(folder / "closed") as store:
        for commit in commits[:6]:
            commit.to(store)
    with open_store(folder / "closed") as store:
        for commit in commits[6:]:
            commit.to(store)
        killed = copied(folder / "closed", folder / "killed")
        assert (killed / "state.db-wal").stat().st_size
    return [folder / "closed", killed], after[-1].content()


def outcome(folder: Path) -> Any:
    """What a damaged copy comes to: the sentence, or its content."""
    try:
        with open_store(folder) as store:
            return content_of(store)
    except StoreError as error:
        return str(error)


def test_a_flipped_bit_is_a_sentence_or_does_no_harm(tmp_path: Path, states: tuple[list[Path], Any]) -> None:
    folders, expected = states
    chance, said = random.Random(1), dict.fromkeys(("state.db", "state.db-wal", ".rows"), 0)
    for folder in folders:
        for path in sorted(folder.iterdir()):
            size = path.stat().st_size
            for at in sorted(chance.sample(range(size), min(size, 80 if "state.db" in path.name else 6))):
                copy = copied(folder, tmp_path / "copy")
                content = bytearray(path.read_bytes())
                content[at] ^= 1 << chance.randrange(8)
                (copy / path.name).write_bytes(content)
                found = outcome(copy)
                if isinstance(found, str):
                    kind = path.suffix if path.suffix == ".rows" else path.name
                    said[kind] += 1
                    assert str(copy) in found
                    assert ";" in found, found
                else:
                    assert found == expected, f"byte {at} of {path}"
                shutil.rmtree(copy)
    assert min(said.values()) > 10, said


def test_a_shortened_file_is_a_sentence_or_does_no_harm(
    tmp_path: Path, states: tuple[list[Path], Any]
) -> None:
    folders, expected = states
    chance, said = random.Random(2), 0
    for folder in folders:
        for path in sorted(folder.iterdir()):
            size = path.stat().st_size
            for length in {0, size - 1, size // 2, *(chance.randrange(size) for _ in range(8))}:
                copy = copied(folder, tmp_path / "copy")
                os.truncate(copy / path.name, length)
                found = outcome(copy)
                assert found == expected or (isinstance(found, str) and str(copy / path.name)[:-4] in found)
                said += isinstance(found, str)
                if path.name.endswith((".rows", ".db")):
                    assert isinstance(found, str)
                shutil.rmtree(copy)
    assert said > 50


def test_a_missing_file_is_a_sentence(tmp_path: Path, states: tuple[list[Path], Any]) -> None:
    folders, _ = states
    for folder in folders:
        for path in folder.iterdir():
            if path.name in ("lock", "last-commit"):
                continue
            copy = copied(folder, tmp_path / "copy")
            (copy / path.name).unlink()
            found = outcome(copy)
            assert isinstance(found, str)
            assert found.startswith("the stored state is damaged: ")
            assert "move the folder away to begin anew" in found
            shutil.rmtree(copy)


def test_files_of_another_state_are_noticed(tmp_path: Path) -> None:
    for name, key in (("a", 1), ("b", 2)):
        with open_store(tmp_path / name) as store:
            store.commit(engine(join=rows(0, [key])), offsets={})
    shutil.copy(tmp_path / "a" / "pending-1-0.rows", tmp_path / "b")
    with open_store(tmp_path / "b") as store:
        with pytest.raises(StoreError, match="it is not the file that the database speaks of"):
            store.load()
        (problem,) = store.verify()
        assert "pending-1-0.rows" in problem


def test_verify_names_every_row(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.commit(engine(cells=[("a",), ("b",)]), offsets={"t-0": 5})
        store._database.execute("UPDATE offsets SET body = CAST(x'35' || substr(body, 2) AS BLOB)")
        assert store.verify() == []  # it was a 5
        store._database.execute("UPDATE offsets SET body = CAST(x'36' || substr(body, 2) AS BLOB)")
        store._database.execute("UPDATE cells SET body = (SELECT body FROM cells ORDER BY id LIMIT 1)")
        problems = store.verify()
        assert len(problems) == 2
        assert f"{tmp_path / 'state.db'}: the checksum of row ['t-0'] of offsets is wrong" in problems
        with pytest.raises(StoreError, match="the checksum of row"):
            store.load()


# what is around it -----------------------------------------------------------------------------------


def test_one_process_at_a_time(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from tests.store_helpers import open_store\n"
    script += "try: open_store(Path(sys.argv[1]))\nexcept Exception as error: print(error)"
    with open_store(tmp_path):
        said = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert said == (
            f"the state in {tmp_path} is in use by process {os.getpid()}; stop it, or give this monitor "
            "a directory of its own\n"
        )
        with pytest.raises(StoreError, match="is in use by process"):
            open_store(tmp_path)
    open_store(tmp_path).close()


def test_a_full_drive(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from monitor.store import StoreError
from tests.store_helpers import content_of, open_store, story
commits, states = story(4, 400)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
failures = 0
with open_store(Path(sys.argv[1])) as store:
    for commit, before, after in zip(commits, states, states[1:]):
        try:
            commit.to(store)
        except StoreError as error:
            failures += 1
            print(error)
            assert content_of(store) == (before.content() if before is not states[0] else None)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            commit.to(store)
            assert content_of(store) == after.content()
            break
assert failures
"""
    for limit, where in ((700, "state"), (300_000, "state")):
        home = tmp_path / f"{where}{limit}"
        if limit == 700:  # generation files hit it; the database is there and gets no smaller limit
            open_store(home).close()
        ran = subprocess.run(
            [sys.executable, "-c", script, str(home), str(limit)], cwd=ROOT, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        assert f"cannot write the state to {home}: " in ran.stdout


def test_a_directory_that_cannot_be_written() -> None:
    script = """
import os, sys
from pathlib import Path
from tests.store_helpers import open_store
if os.geteuid() == 0:
    os.setuid(65534)
for name in ("old/state", "old"):
    try:
        open_store(Path(sys.argv[1]) / name)
    except Exception as error:
        print(type(error).__name__, error)
"""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "old"
        open_store(home).close()
        for path in home.iterdir():
            path.chmod(0o444)
        home.chmod(0o555)
        Path(folder).chmod(0o755)
        ran = subprocess.run(
            [sys.executable, "-c", script, folder], cwd=ROOT, capture_output=True, text=True, check=True
        )
        home.chmod(0o700)
    advice = "Permission denied; let the user that runs the monitor write there"
    assert ran.stdout.splitlines() == [
        f"StoreError cannot open the state in {home / 'state'}: {advice}",
        f"StoreError cannot open the state in {home}: {advice}",
    ]


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        open_store(tmp_path / "file")


def test_a_failed_sync_of_a_directory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_store(tmp_path) as store, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(StoreError, match="Input/output error; see that its drive works"):
            store.commit(engine(join=rows(0, [1])), offsets={})


# schemas ---------------------------------------------------------------------------------------------


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(StoreError, match=r"newer version of the monitor \(schema 7, and this one knows 1\)"):
        open_store(tmp_path)


def test_another_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("CREATE TABLE mine (a)")
    connection.close()
    content = (tmp_path / "state.db").read_bytes()
    with pytest.raises(StoreError, match="is not a state of the fairness monitor"):
        open_store(tmp_path)
    assert (tmp_path / "state.db").read_bytes() == content


def test_an_older_schema_is_brought_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path) as store:
        store.commit(NOTHING, offsets={"t-0": 5})

    def breaks(connection: sqlite3.Connection) -> None:
        works(connection)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def works(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE added (a)")

    for migration, good in ((breaks, False), (works, True)):
        monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, migration))
        if not good:
            with pytest.raises(StoreError, match="make room"):
                open_store(tmp_path)
            continue
        with open_store(tmp_path) as store:
            assert store.info()["schema"] == 2
            loaded = store.load()
            assert loaded is not None
            assert loaded.offsets == {"t-0": 5}


def test_a_start_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    (tmp_path / "lock").write_text("123\n")
    with open_store(tmp_path) as store:
        store.commit(NOTHING, offsets={})


# cost and export -------------------------------------------------------------------------------------


def test_the_cost_of_a_commit_follows_what_changed(tmp_path: Path) -> None:
    cells = [(str(i),) for i in range(3000)]
    table = CellSums(np.arange(3000), np.ones((3000, 60), np.int64))
    texts = JoinChanges(
        rows(0, list(range(50_000))).generations, [TextChanges("w", dict.fromkeys(range(5000), "t" * 50))]
    )
    wal = tmp_path / "state.db-wal"
    with open_store(tmp_path) as store:
        store.commit(engine(cells=cells, tables={"all": table}, join=texts), offsets={"t-0": 0})
        big = wal.stat().st_size
        store._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        few = CellSums(np.array([5, 2999]), np.ones((2, 60), np.int64))
        more = JoinChanges(
            rows(50_000, [1, 2], deleted=[7]).generations, [TextChanges("w", {1: None, 9999: "x"})]
        )
        files = sum(p.stat().st_size for p in tmp_path.glob("*.rows"))
        store.commit(engine(first_cell=3000, tables={"all": few}, join=more), offsets={"t-0": 1})
        assert wal.stat().st_size < 80_000 < big / 10
        assert sum(p.stat().st_size for p in tmp_path.glob("*.rows")) - files < 500


def test_the_export_does_not_know_numbers_of_cells_generations_or_commits(tmp_path: Path) -> None:
    values = [("a", "x"), ("b", "y"), ("c", "z")]
    sums = np.array([[1, 2], [3, 4], [5, 2**62]])
    with open_store(tmp_path / "one") as store:
        tables = {"all": CellSums(np.arange(3), sums), "open:1": CellSums(NO_ROWS, sums[:0])}
        join = rows(0, [7, 5, 9, 6], cells=[0, 1, 2, 0], deleted=[2])
        store.commit(
            engine(cells=values, tables=tables, documents={"join": {"b": 1, "a": 2}}, join=join),
            offsets={"t-0": 4, "t-1": 2},
            documents={"notifier": 1},
        )
        one = store.export()
    with open_store(tmp_path / "two") as store:
        order = [2, 0, 1]
        table = CellSums(np.array([0, 1]), sums[order][:2].astype(object))
        store.commit(
            engine(cells=[values[2], values[0]], tables={"all": table}, join=rows(0, [5, 6], cells=[0, 1])),
            offsets={"t-1": 2},
        )
        tables = {"all": CellSums(np.array([2]), sums[[1]])}
        first = rows(2, [], deleted=[0]).generations
        second = rows(0, [5, 7], cells=[2, 1], generation=1).generations
        store.commit(
            engine(
                first_cell=2,
                cells=[values[1]],
                tables=tables,
                documents={"join": {"a": 2, "b": 1}},
                join=JoinChanges([*first, *second]),
            ),
            offsets={"t-0": 4},
        )
        two = store.export()
    assert one.decode().splitlines() == two.decode().splitlines()
    assert hashlib.sha256(one).digest() == hashlib.sha256(two).digest()


def test_documents_with_numbers_of_cells_are_made_canonical(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.commit(engine(cells=[("b",), ("a",)], documents={"dictionary": [1, 0]}), offsets={})
        text = store.export(lambda name, numbers, cells: sorted(cells[n] for n in numbers)).decode()
    assert '["model","m","document","dictionary",[["a"],["b"]]]' in text
