"""Whatever point the service dies at, it comes to the same as one that nobody disturbed."""

from __future__ import annotations

import errno
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor.checkpoint import EngineChanges
from monitor.service import Service
from monitor.store.generations import Appender
from tests.crash.harness import (
    POINTS,
    Cut,
    Result,
    Story,
    World,
    around,
    at_point,
    by_chance,
    install,
    never,
    stairs,
    story,
)

STORY = story(1, cases=120, posts=8)
WITHOUT_POSTS = Story(STORY.log, ())

Live = Callable[..., World]


@pytest.fixture
def live(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Live:
    """Runs a world to its end; the world, with its result."""
    caplog.set_level(logging.CRITICAL)  # the dead log that they are closed
    made: list[World] = []

    def run(told: Story, **options: Any) -> World:
        with pytest.MonkeyPatch.context() as patch:
            world = World(told, tmp_path / f"world-{len(made)}", **options)
            made.append(install(patch, world))
            world.result = world.run()
        return world

    return run


def same(live: Live, cut: Cut, told: Story = STORY, **options: Any) -> World:
    """Run with deaths and without; both must come to the same."""
    undisturbed = live(told, **{**options, "service": Service})
    mortal = live(told, cut=cut, **{"seed": 1, **options})
    mortal.result.check(undisturbed.result)
    return mortal


def test_the_story_has_everything(live: Live) -> None:
    world = live(STORY)
    result: Result = world.result
    states = {name.rpartition("_")[2] for name in result.messages}
    assert states == {"firing", "resolved"}
    assert len(result.messages) >= 6
    assert {reason for _, _, reason in result.letters} >= {"late", "invalid_json", "missing_field"}
    kinds = {line.split(",")[2 if '"model"' in line[:9] else 0].strip(' ["]') for line in result.export}
    assert kinds >= {"engine", "offset", "ledger", "cell", "sums", "pending", "recent", "text", "document"}
    assert set(world.points) == set(POINTS), "each is reached, and no other"
    assert len(world.delivered) == len(result.messages), "without deaths nothing is sent twice"


def test_batches_and_their_order_change_nothing(live: Live) -> None:
    first = live(STORY)
    for seed in range(2, 5):
        live(STORY, seed=seed).result.check(first.result)


@pytest.mark.parametrize("point", POINTS)
def test_death_at_one_kind_of_point_in_every_turn(live: Live, point: str) -> None:
    world = same(live, around(point))
    assert set(world.deaths) == {point}
    assert len(world.deaths) >= 4


@pytest.mark.parametrize("first", [1, 40])
def test_death_at_each_point_of_the_first_turns(live: Live, first: int) -> None:
    world = same(live, stairs(first), seed=first)
    assert len(world.deaths) >= 20


@pytest.mark.parametrize("seed", range(3))
def test_death_by_chance(live: Live, seed: int) -> None:
    told = story(10 + seed, cases=150, posts=8)
    assert len(same(live, by_chance(seed, 0.02), told, seed=seed).deaths) >= 5


def test_blocks_of_counters_too_small_to_release(live: Live) -> None:
    """What is released depends on how many buckets close at once, so that turns are the same in all lives."""
    world = same(live, stairs(3, 2), WITHOUT_POSTS, aligned=True, min_group_size=8)
    assert len(world.deaths) >= 10
    withheld = [c[0] for model in world.result.counters.values() for c in model.values()]
    assert any(withheld)


def test_death_of_the_machine(live: Live) -> None:
    assert len(same(live, stairs(10, 2), power=True).deaths) >= 10


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_in_trouble_is_tried_again(live: Live, code: int) -> None:
    failed = []

    def trouble(name: str) -> None:
        if name in ("before fsync", "in pwrite", "before COMMIT") and trouble_comes.random() < 0.1:
            failed.append(name)
            raise OSError(code, os.strerror(code))

    trouble_comes = random.Random(code)
    same(live, by_chance(1, 0.005), trouble=trouble)
    assert len(failed) >= 5


@pytest.mark.full
@pytest.mark.parametrize("part", range(20))
def test_death_at_every_single_point(live: Live, part: int) -> None:
    undisturbed = live(STORY, seed=1)
    for number in range(1 + part, len(undisturbed.points) + 1, 20):
        live(STORY, cut=at_point(number), seed=1).result.check(undisturbed.result)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_many_deaths_of_many_stories(live: Live, seed: int) -> None:
    told = story(100 + seed, cases=400, posts=20)
    same(live, by_chance(seed, 0.01), told, seed=seed, power=seed % 2 == 1)


# --- the harness sees what it should ------------------------------------------------------------------------
class CommitsFirst(Service):
    """Positions reach Kafka before what was read is stored."""

    def _write(self, wait_seconds: float = 0.0) -> Any:
        if self._kafka is not None:
            self._kafka.commit()
        return super()._write(wait_seconds)


class AnswersFirst(Service):
    """Posts are answered before what they hold is stored."""

    def _gather(self, *, positions: bool) -> Any:
        for post, receipt in self._answers:
            self._inbox.answer(post, receipt)
        ready = super()._gather(positions=positions)
        ready.answers.clear()
        return ready


class SendsWithoutOutbox(Service):
    """Messages are handed to the channels and not stored."""

    def _changes(self, ready: Any) -> Any:
        write = super()._changes(ready)
        return {**write, "messages": []} if write else write


class ForgetsTooSoon(Service):
    """Messages leave the outbox when they are sent, not when they arrived."""

    def _changes(self, ready: Any) -> Any:
        write = super()._changes(ready)
        return {**write, "delivered": [(m.channel, m.id) for m in write["messages"]]} if write else write


class PositionsLast(Service):
    """Positions are stored after the state, in a transaction of their own."""

    def _written(self, store: Any, ready: Any) -> bool:
        if ready.write:
            store.commit(**{**ready.write, "offsets": {}})
            store.commit(EngineChanges(None, {}), offsets=ready.write["offsets"])
        return True


class PositionsFirst(Service):
    """Positions are stored before the state, in a transaction of their own."""

    def _written(self, store: Any, ready: Any) -> bool:
        if ready.write:
            parts = {name: ready.write[name] for name in ("offsets", "documents")}
            store.commit(EngineChanges(None, {}), **parts)
            store.commit(**ready.write)
        return True


class PositionsOfWhatWasTaken(Service):
    """Positions count what was taken from Kafka, before it is applied."""

    def _take(self) -> Any:
        records, posts = super()._take()
        for batch in records:
            self._kafka.applied(batch)
        self._write(1.0)
        return records, posts


class LosesReceipts(Service):
    """Receipts are not stored."""

    def _changes(self, ready: Any) -> Any:
        write = super()._changes(ready)
        return {**write, "receipts": []} if write else write


class LettersLast(Service):
    """Dead letters leave after the positions are stored."""

    def _write(self, wait_seconds: float = 0.0) -> Any:
        letters, self._letters = self._letters, _Patient()
        try:
            return super()._write(wait_seconds)
        finally:
            self._letters = letters
            letters.flush(0.0)


class _Patient:
    def flush(self, seconds: float) -> bool:
        return True


WRONG: list[tuple[type[Service], dict[str, Any]]] = [
    (CommitsFirst, {"committed_wins": True}),
    (AnswersFirst, {}),
    (SendsWithoutOutbox, {}),
    (ForgetsTooSoon, {}),
    (PositionsLast, {}),
    (PositionsFirst, {}),
    (PositionsOfWhatWasTaken, {}),
    (LosesReceipts, {}),
    (LettersLast, {}),
]


def fails(live: Live, **options: Any) -> bool:
    """Whether some death shows that something is wrong."""
    undisturbed = live(STORY)
    cuts = [around("before BEGIN"), around("after COMMIT"), stairs(20, 5), by_chance(1, 0.02)]
    for seed, cut in enumerate(cuts):
        try:
            live(STORY, cut=cut, seed=seed, **options).result.check(undisturbed.result)
        except AssertionError as error:
            print(str(error).splitlines()[0][:200])
            return True
    return False


@pytest.mark.parametrize(("service", "options"), WRONG, ids=lambda v: getattr(v, "__name__", ""))
def test_a_wrong_order_is_seen(live: Live, service: type[Service], options: dict[str, Any]) -> None:
    live(STORY, service=service, cut=never).result.check(live(STORY).result)
    assert fails(live, service=service, **options)


def test_a_service_in_order_is_not(live: Live) -> None:
    assert not fails(live)


def test_generations_that_are_not_synced_are_seen(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Appender, "sync", lambda self: None)
    with pytest.raises(Exception, match="the stored state is damaged"):
        same(live, stairs(10, 2), power=True)
