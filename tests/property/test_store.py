"""The store against a plain model: whatever is committed is what is loaded, through restarts and failures."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.store import Store, StoreError
from tests.store_helpers import Commit, Plain, content_of, open_store, random_commit

SEEDS = st.randoms(use_true_random=False)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.lists(st.sampled_from(["commit", "commit", "reopen", "look"]), min_size=2, max_size=12))
def test_what_is_committed_is_what_is_loaded(chance: random.Random, steps: list[str]) -> None:
    plain, some = Plain(), False
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder))
        try:
            for step in [*steps, "reopen", "look"]:
                if step == "reopen":
                    store.close()
                    store = open_store(Path(folder))
                elif step == "look":
                    assert content_of(store) == (plain.content() if some else None)
                    assert store.verify() == []
                else:
                    commit = random_commit(chance, plain)
                    commit.to(store)
                    plain, some = plain.after(commit), True
        finally:
            store.close()


@settings(max_examples=40, deadline=None)
@given(
    SEEDS,
    st.lists(st.tuples(st.sampled_from(["pwrite", "fsync", "ftruncate"]), st.integers(0, 4)), max_size=6),
)
def test_a_failed_commit_leaves_the_state_and_can_be_made_again(
    chance: random.Random, failures: list[tuple[str, int]]
) -> None:
    plain = Plain()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        store = open_store(Path(folder))
        try:
            for call, good in failures:
                commit = random_commit(chance, plain)
                before = content_of(store)
                with patch.context() as broken:
                    broken.setattr(os, call, failing(getattr(os, call), good))
                    said = attempt(commit, store)
                if said is not None:
                    assert "No space left on device; make room on its drive" in said
                    assert content_of(store) == before
                    if chance.random() < 0.5:
                        store.close()
                        store = open_store(Path(folder))
                        assert content_of(store) == before
                    commit.to(store)
                plain = plain.after(commit)
                assert content_of(store) == plain.content()
        finally:
            store.close()


def attempt(commit: Commit, store: Store) -> str | None:
    """Try a commit; return the error."""
    try:
        commit.to(store)
    except StoreError as error:
        return str(error)
    return None


def failing(real: Any, good: int) -> Any:
    """The function, until it has been called so often; then the drive is full."""
    left = good

    def call(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            if real is REAL_WRITE:  # half of it gets there
                real(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    return call


REAL_WRITE = os.pwrite
