"""A session over service movers of several machines: the whole road by verbs and tickets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from road.driving import Session, content, write
from road.plain import WAIT_S, Machine, Server
from standby import files
from standby.errors import RepositoryError
from standby.host.folder import new_machine
from standby.repository import Repository
from standby.road.replica import ReplicaFolder
from standby.units import MiB

DISK = 40 * MiB


class Place:
    """Three machines: the source with its VM, the target, the repository's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = Machine("src", folder / "src", ("source", "host", "repository"))
        self.target = Machine("dst", folder / "dst", ("target", "host"))
        self.keeper = Machine("rep", folder / "rep", ("repository",))
        new_machine(folder / "src", "vm1", {"scsi:0:0": DISK})
        self.disk = folder / "src" / "vm1" / "disk0.vhdx"
        write(self.disk, 0, 3 * MiB)
        write(self.disk, 17 * MiB + 512, 2 * MiB)
        files.confine([folder])  # every machine is in this process: all of theirs, nothing else

    def close(self) -> None:
        for machine in (self.source, self.target, self.keeper):
            machine.close()
        files.confine(())

    def replica(self) -> ReplicaFolder:
        return ReplicaFolder(self.folder / "dst" / "vm1_replica")

    def read(self, point: str) -> bytes:
        folder = self.replica()
        chain = folder.chain_paths(folder.point(point), folder.record().disks[0].id)
        return content(chain[0], chain[1:])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("is_remote", [False, True], ids=["repository here", "repository apart"])
def test_points_are_what_the_source_held(place, is_remote):
    keeper = place.keeper if is_remote else None
    points = {}
    for number in range(3):
        session = Session(place.source, place.target, keeper)
        points[session.run()] = content(place.disk)
        if number:
            assert session.sent["changed"] < 2 * MiB  # only what changed
        session.close()
        write(place.disk, number * 5 * MiB + 4096 * 7, 512 * 1024, seed=number + 5)
    for point, held in points.items():
        assert place.read(point) == held
    folder = place.folder / ("rep" if is_remote else "src") / "repository"
    with Repository(folder) as repository:
        (key,) = repository.replicas()
        assert repository.points(key) == sorted(points)
        assert repository.verify() == []
    assert (place.replica().path / "vm.toml").exists()


def test_every_verb_keeps_to_its_role(place):
    server = Server(place.keeper)
    assert server.call("describe")["roles"] == ["repository"]
    for verb, arguments in (
        ("open_replica", {}),
        ("host_machines", {"root": "data:", "host": "x"}),
        ("send_disk", {"task": "t"}),
    ):
        with pytest.raises(Exception, match="knows no"):
            server.call(verb, **arguments)
    server.close()


def test_a_source_hears_why_the_repository_cannot_serve_it(place):
    """Not only that its connection ended: it would try that again for long."""
    (place.folder / "rep" / "repository").mkdir()
    database = place.folder / "rep" / "repository" / "repository.sqlite"
    database.write_bytes(b"SQLite format 3\0" + b"x" * 4096)
    session = Session(place.source, place.target, place.keeper)
    session.prepare()
    session.take_checkpoint()
    session.begin()
    *_, sending = session.transfer()
    with pytest.raises(RepositoryError):
        sending.result(WAIT_S)
    session.close()
