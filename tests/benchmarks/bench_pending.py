"""Cost per key of the pending table beside a dict of tuples: ``python tests/benchmarks/bench_pending.py``.

Both do the same work in the same run, in batches of 10,000 keys: each batch is looked up (all miss)
and inserted; then sampled batches are looked up in random order (all hit) and removed. Keys are
handed to each in the form it likes: an array for the table, a list of ints for the dict. A first
run at the largest size shows inserting into memory the process has never touched; the sizes after it
reuse that memory, for the table and for the dict alike.
"""

from __future__ import annotations

import argparse
import gc
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from monitor.pending import GenerationalTable, Keys

BATCH = 10_000
RECORD = np.dtype([("time", "i8"), ("cell", "u4"), ("partition", "u4"), ("score", "f8"), ("weight", "f8")])
OPERATIONS = ("find-miss", "insert", "find-hit", "remove")


class Stopwatch:
    """CPU seconds per operation, and the longest single batch."""

    def __init__(self) -> None:
        self.total = dict.fromkeys(OPERATIONS, 0.0)
        self.longest = dict.fromkeys(OPERATIONS, 0.0)

    @contextmanager
    def timing(self, operation: str) -> Iterator[None]:
        start = time.process_time()
        yield
        taken = time.process_time() - start
        self.total[operation] += taken
        self.longest[operation] = max(self.longest[operation], taken)


def random_keys(entries: int) -> Keys:
    return np.random.default_rng(entries).integers(0, 2**64, entries, dtype=np.uint64)


def batches(keys: Keys) -> Iterator[Keys]:
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]


def time_table(keys: Keys, sample: Keys, watch: Stopwatch) -> float:
    """Run the workload on the table; bytes per entry when it is fullest."""
    table = GenerationalTable(RECORD)
    records = np.zeros(BATCH, RECORD)
    for batch in batches(keys):
        with watch.timing("find-miss"):
            handles = table.find(batch)
        assert (handles < 0).all()
        records["time"] += 1
        with watch.timing("insert"):
            table.insert(batch, records)
    size = table.nbytes / len(table)
    for batch in batches(sample):
        with watch.timing("find-hit"):
            handles = table.find(batch)
        assert (handles >= 0).all()
        with watch.timing("remove"):
            table.remove(handles)
    assert len(table) == len(keys) - len(sample)
    return size


def time_dict(keys: Keys, sample: Keys, watch: Stopwatch) -> float:
    """Run the workload on a dict of tuples; bytes per entry, measured on a small one."""
    table: dict[int, tuple[int, int, int, float, float]] = {}
    for number, batch in enumerate(batches(keys)):
        ids = batch.tolist()
        values = [(number, i, 0, 0.5 + i, 1.5 + i) for i in range(len(ids))]
        with watch.timing("find-miss"):
            found = [table.get(i) for i in ids]
        assert found[0] is None
        with watch.timing("insert"):
            for i, value in zip(ids, values, strict=True):
                table[i] = value
    for batch in batches(sample):
        ids = batch.tolist()
        with watch.timing("find-hit"):
            found = [table.get(i) for i in ids]
        assert found[0] is not None
        with watch.timing("remove"):
            for i in ids:
                del table[i]
    del table
    tracemalloc.start()
    few = {i: (i, i + 1, i + 2, i + 0.5, i + 1.5) for i in keys[:100_000].tolist()}
    size = tracemalloc.get_traced_memory()[0] / len(few)
    tracemalloc.stop()
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000])
    arguments = parser.parse_args()
    largest = max(arguments.entries)
    fresh = Stopwatch()
    time_table(random_keys(largest), np.empty(0, np.uint64), fresh)
    print(f"{largest:,} entries in fresh memory: insert {fresh.total['insert'] / largest * 1e9:.1f} ns")
    for entries in arguments.entries:
        keys = random_keys(entries)
        sample = np.random.default_rng(1).permutation(keys)[: min(entries, 1_000_000) // 2]
        ours, theirs = Stopwatch(), Stopwatch()
        ours_size = time_table(keys, sample, ours)
        gc.collect()
        theirs_size = time_dict(keys, sample, theirs)
        print(f"\n{entries:,} entries: {ours_size:.1f} bytes per entry, dict of tuples {theirs_size:.0f}")
        for operation in OPERATIONS:
            count = len(keys) if operation in ("find-miss", "insert") else len(sample)
            mine, dicts = (w.total[operation] / count * 1e9 for w in (ours, theirs))
            print(
                f"  {operation:10} {mine:7.1f} ns   dict {dicts:7.1f} ns   ratio {dicts / mine:5.1f}"
                f"   longest batch {ours.longest[operation] * 1e3:6.1f} ms"
            )


if __name__ == "__main__":
    main()
