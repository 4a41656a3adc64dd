"""Data links that break in the middle: the task is begun again and goes on where it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from road.cutting import Cutter
from road.driving import Session, content, write
from road.plain import WAIT_S, Machine
from standby.errors import LinkError
from standby.host.folder import new_machine
from standby.road.connections import TO_REPOSITORY, TO_TARGET
from standby.road.replica import ReplicaFolder
from standby.units import KiB, MiB


class Road:
    """A source, a target and a repository of their own machines, with cutters between them."""

    def __init__(self, folder: Path) -> None:
        self.source = Machine("src", folder / "src", ("source", "host"))
        self.target = Machine("dst", folder / "dst", ("target",))
        self.keeper = Machine("rep", folder / "rep", ("repository",))
        self.cutters = {
            TO_TARGET: Cutter(self.target.listener.address),
            TO_REPOSITORY: Cutter(self.keeper.listener.address),
        }
        self.folder = folder
        self.disk = folder / "src" / "vm1" / "disk0.vhdx"

    def session(self) -> Session:
        session = Session(self.source, self.target, self.keeper)
        plain = session.tickets

        def tickets(task, direction=TO_TARGET, **changes):
            waits, connects = plain(task, direction, **changes)
            connects["connect"]["address"] = self.cutters[direction].address
            return waits, connects

        session.tickets = tickets
        return session

    def attempts(self, session: Session, cut) -> tuple[int, int]:
        """Begin the disk's task until it has ended, `cut()` setting the cutters before each;
        (attempts, bytes that reached the target's disk in all)."""
        written = 0
        for count in range(1, 40):
            for direction, after in cut(count).items():
                self.cutters[direction].after = after
            begun = session.begin()
            baseline = "" if count == 1 else "target"
            futures = session.transfer(mark=begun["mark"] if count > 1 else 0, baseline=baseline)
            try:
                session.results(futures)
            except LinkError:
                continue
            written += session.sent["changed"]
            return count, written
        raise AssertionError("no end")

    def close(self) -> None:
        for machine in (self.source, self.target, self.keeper):
            machine.close()
        for cutter in self.cutters.values():
            cutter.close()


@pytest.fixture
def road(tmp_path: Path) -> Iterator[Road]:
    made = Road(tmp_path)
    yield made
    made.close()


def replica_content(road: Road, session: Session) -> bytes:
    folder = ReplicaFolder(road.folder / "dst" / "vm1_replica")
    newest = folder.newest()
    assert newest is not None
    chain = folder.chain_paths(newest, session.disk_id)
    return content(chain[0], chain[1:])


@pytest.mark.parametrize("seed", [1, 2])
def test_links_cut_at_random_places_cost_no_byte(road, seed):
    new_machine(road.folder / "src", "vm1", {"scsi:0:0": 64 * MiB})
    write(road.disk, 4 * KiB, 30 * MiB)
    chance = random.Random(seed)

    def cut(count: int) -> dict[str, int]:
        if count > 8:
            return {TO_TARGET: 1 << 62, TO_REPOSITORY: 1 << 62}
        return {
            TO_TARGET: chance.randrange(100, 24 * MiB),
            TO_REPOSITORY: chance.choice([1 << 62, chance.randrange(100, 100 * KiB)]),
        }

    session = road.session()
    session.prepare()
    session.take_checkpoint()
    count, _ = road.attempts(session, cut)
    assert count > 1
    assert road.cutters[TO_TARGET].cuts > 0
    session.release()
    session.commit()
    assert replica_content(road, session) == content(road.disk)
    session.target.call("close_replica", path=session.path)
    session.close()
    # And the next one builds on it.
    write(road.disk, 40 * MiB, 100 * KiB)
    for cutter in road.cutters.values():
        cutter.after = 1 << 62
    session = road.session()
    session.run()
    assert session.sent["changed"] <= 256 * KiB
    assert replica_content(road, session) == content(road.disk)
    session.close()


def test_little_is_sent_twice(road):
    size = 192 * MiB  # what is lost is what was in flight, whatever the size: 8 MiB and less
    new_machine(road.folder / "src", "vm1", {"scsi:0:0": size})
    write(road.disk, 0, size)
    places = {1: size // 2}
    session = road.session()
    session.prepare()
    session.take_checkpoint()
    carried = []
    target = road.cutters[TO_TARGET]

    def cut(count: int) -> dict[str, int]:
        carried.append(places.get(count, 1 << 62))
        return {TO_TARGET: carried[-1]}

    count, last = road.attempts(session, cut)
    assert (count, target.cuts) == (2, 1)
    # What the cut links carried, and what was left for the last one.
    assert sum(carried[:-1]) + last <= 1.05 * size
    session.release()
    session.commit()
    assert replica_content(road, session) == content(road.disk)
    session.close()


def test_a_connection_that_never_comes_about_fails_both_ends(road):
    new_machine(road.folder / "src", "vm1", {"scsi:0:0": 8 * MiB})
    road.target.mover.connections._accept_timeout_s = 0.2
    session = road.session()
    session.prepare()
    session.take_checkpoint()
    session.begin()
    at_target, at_source = session.tickets("task")
    at_source["connect"]["address"] = "127.0.0.1:1"
    receiving = session.receive("task", at_target)
    sending = session.send("task", at_source, "")
    for future in (receiving, sending):
        with pytest.raises(LinkError):
            future.result(WAIT_S)
    session.close()
