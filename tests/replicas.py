"""Replicas for tests: real folders with small real disks, and child processes that work on them
and are killed or stopped at a kill point."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from clocks import START, HeldClock
from standby import killpoints
from standby.clock import Clock
from standby.disk import vhdx
from standby.errors import StandbyError
from standby.files import File, make_folder_durably
from standby.model.machine import Machine, MachineDisk
from standby.model.point import PointDisk, RestorePoint
from standby.model.replica import Action, ReplicaDisk, ReplicaIdentity
from standby.road import failing_over, ready
from standby.road.adopting import adopt_disk, make_found_point
from standby.road.committing import commit, recover
from standby.road.lease import WriterLease
from standby.road.naming import new_point_id
from standby.road.partial import SealedDisk
from standby.road.points import disk_of
from standby.road.replica import ReplicaFolder
from standby.road.restoring import restored
from standby.road.verifying import PointVerdict
from standby.units import MiB

IDENTITY = ReplicaIdentity(
    "installation-1", "prod", "11112222-3333-4444-5555-666677778888", "nightly"
)
DISKS = ("disk0", "disk1")
SIZE = 8 * MiB

VM_DATA = b"written by the VM".ljust(4096, b"!")


def machine(disks: Sequence[str] = DISKS) -> Machine:
    """A VM with those disks."""
    return Machine(
        IDENTITY.machine_id,
        "web01",
        "web01",
        disks=tuple(
            MachineDisk(f"scsi:0:{index}", f"{name}.vhdx", page83=f"83-{name}")
            for index, name in enumerate(disks)
        ),
    )


def new_replica(
    path: Path, clock: Clock | None = None, disks: Sequence[str] = DISKS
) -> ReplicaFolder:
    """A replica without points, its disks registered."""
    folder = ReplicaFolder(path, clock or HeldClock())
    folder.create(IDENTITY, "web01")
    with WriterLease.acquire(folder, "setup") as lease:
        lease.update(
            disks=tuple(
                ReplicaDisk(name, f"scsi:0:{index}", page83=f"83-{name}")
                for index, name in enumerate(disks)
            )
        )
    return folder


def pattern(point_id: str, disk_id: str) -> bytes:
    """What a test point writes into the first piece of a disk."""
    return f"{point_id} {disk_id} ".encode().ljust(32, b".") * 128


def sealed_disk(
    folder: ReplicaFolder, lease: WriterLease, point_id: str, disk_id: str, *, as_base: bool = False
) -> SealedDisk:
    """A finished partial disk of one written piece, with its extent log and digests beside it."""
    newest = folder.newest()
    held = disk_of(newest, disk_id) if newest is not None else None
    home = folder.disk_path(disk_id)
    make_folder_durably(home)
    stem = f"{point_id}.{lease.generation}"
    path = home / f"{stem}.partial.vhdx"
    if held is None or as_base:
        disk = vhdx.create(path, SIZE)
    else:
        disk = vhdx.create_child(path, folder.path / held.chain[0].file)
    disk.write(0, pattern(point_id, disk_id))
    disk.close()
    digests = home / f"{stem}.partial.digests"
    digests.write_bytes(f"digests of {disk_id} at {point_id}".encode())
    (home / f"{stem}.extents").write_bytes(b"log")
    info = vhdx.read_info(path)
    root = f"{point_id} {disk_id}".encode().ljust(16, b"\0")[-16:]
    return SealedDisk(
        disk_id, point_id, path, path.stat().st_size, info.data_write_guid, root, digests
    )


def new_point(
    folder: ReplicaFolder, lease: WriterLease, point_id: str = "", disks: Sequence[str] = DISKS
) -> RestorePoint:
    """What a driver would ask to be committed next."""
    newest = folder.newest()
    parent = newest.id if newest else ""
    return RestorePoint(
        1,
        point_id or new_point_id(folder.clock, parent),
        parent,
        lease.generation,
        f"{folder.clock.now():%Y-%m-%dT%H:%M:%SZ}",
        "",
        "offline",
        lease.session,
        machine(disks),
        tuple(
            PointDisk(name, f"scsi:0:{index}", SIZE, 512, 4096, "", ())
            for index, name in enumerate(disks)
        ),
        {},
    )


def add_point(
    folder: ReplicaFolder,
    lease: WriterLease | None = None,
    *,
    renew: bool = True,
    point_id: str = "",
    disks: Sequence[str] = DISKS,
    state_files: dict[str, str] | None = None,
    nvram: str = "",
) -> RestorePoint:
    """A whole cycle: disks sealed, point committed, ready layers renewed."""
    if lease is None:
        with WriterLease.acquire(folder, "session") as own:
            return add_point(
                folder,
                own,
                renew=renew,
                point_id=point_id,
                disks=disks,
                state_files=state_files,
                nvram=nvram,
            )
    recover(folder, lease)
    point = new_point(folder, lease, point_id, disks)
    vm = replace(point.machine, nvram=nvram)
    point = replace(point, machine=vm, state_files=state_files or {})
    sealed = {name: sealed_disk(folder, lease, point.id, name) for name in disks}
    done = commit(folder, lease, point, sealed)
    if renew:
        ready.renew(folder, lease, done)
    if isinstance(folder.clock, HeldClock):
        folder.clock.advance(3600)
    return done


def content(folder: ReplicaFolder, point: RestorePoint, disk_id: str) -> bytes:
    """The first piece of the disk at the point, through its recorded chain."""
    return read_piece(folder.chain_paths(point, disk_id))


def read_piece(paths: Sequence[Path]) -> bytes:
    """The first piece of a disk, given its files newest first."""
    data = bytearray(4096)
    with ExitStack() as opened:
        disk = None
        for path in reversed(paths):
            disk = opened.enter_context(vhdx.open_vhdx(path, parent=disk))
        assert disk is not None
        disk.read_into(0, data)
    return bytes(data)


def write_as_the_vm_would(path: Path, parents: Sequence[Path], data: bytes) -> None:
    """Open a layer for writing and write its first piece."""
    with ExitStack() as opened:
        parent = None
        for item in reversed(parents):
            parent = opened.enter_context(vhdx.open_vhdx(item, parent=parent))
        disk = opened.enter_context(vhdx.open_vhdx(path, writable=True, parent=parent))
        disk.write(0, data)


def ready_path(folder: ReplicaFolder, disk_id: str = "disk0") -> Path:
    return folder.disk_path(disk_id) / "ready.vhdx"


def run_vm(folder: ReplicaFolder, disk_id: str = "disk0") -> None:
    """The replica VM writes VM_DATA to a disk."""
    point = folder.point(folder.record().ready_point)
    write_as_the_vm_would(ready_path(folder, disk_id), folder.chain_paths(point, disk_id), VM_DATA)


def append_bytes(path: Path, count: int = 4096) -> None:
    """Make a file larger."""
    with File(path, writable=True) as file:
        file.resize(file.size + count)


def check_replica(folder: ReplicaFolder) -> tuple[RestorePoint, ...]:
    """Every point that counts is whole: files as recorded, and each reads as what it wrote."""
    points = folder.points()
    for point in points:
        assert list(folder.touched_layers([point])) == []
        for disk in point.disks:
            assert content(folder, point, disk.disk_id) == pattern(point.id, disk.disk_id)
            assert folder.digest_paths(point.id, disk.disk_id)[0].read_bytes() == (
                f"digests of {disk.disk_id} at {point.id}".encode()
            )
    return points


def ready_content(folder: ReplicaFolder, disk_id: str) -> bytes:
    """The first piece as the replica VM would read it: ready layer, then by the record."""
    record = folder.record()
    point = folder.point(record.ready_point)
    return read_piece([ready_path(folder, disk_id), *folder.chain_paths(point, disk_id)])


# --- the child process -----------------------------------------------------------------------


class Child:
    """A process that works on a replica, killed or stopped at a kill point (`name:n`, its nth
    time). It is forked: a test has dozens of them."""

    def __init__(
        self,
        verb: str,
        folder: Path,
        *arguments: str,
        kill: str = "",
        stop: str = "",
        is_traced: bool = False,
    ) -> None:
        self._reader, writer = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 and later warn of any thread; what runs in the child takes no lock of one.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _live_as_child(writer, [verb, str(folder), *arguments], kill, stop, is_traced)
        os.close(writer)

    def wait_stopped(self) -> None:
        """Return when the process has stopped."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"ended without stopping: {status}"

    def wake(self) -> str:
        """Let a stopped process run to its end; what it said."""
        os.kill(self.pid, signal.SIGCONT)
        return self.finish()

    def finish(self) -> str:
        """What the process said; '' when it was killed at its kill point."""
        with open(self._reader) as said:
            text = said.read()
        self._reader = -1
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), text
        return text

    def end(self) -> None:
        """Kill and collect the process if it is still there."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1


def _live_as_child(
    writer: int, command: list[str], kill: str, stop: str, is_traced: bool
) -> NoReturn:
    reached: list[str] = []
    name, _, count = (kill or stop).partition(":")

    def handler(point: str) -> None:
        reached.append(point)
        if name and point == name and reached.count(name) == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL if kill else signal.SIGSTOP)

    code = 1
    try:
        killpoints.install(handler)
        said = main(*command)
        os.write(writer, ("|".join(reached) if is_traced else said).encode())
        code = 0
    except BaseException:
        os.write(writer, traceback.format_exc().encode())
    finally:
        os._exit(code)


def run_child(verb: str, folder: Path, *arguments: str, kill: str = "") -> str:
    """What the process said; '' when it was killed."""
    return Child(verb, folder, *arguments, kill=kill).finish()


def trace(verb: str, folder: Path, *arguments: str) -> list[str]:
    """Every kill point that the verb passes, as `name:n`, in order."""
    counts: dict[str, int] = {}
    points = []
    for name in Child(verb, folder, *arguments, is_traced=True).finish().split("|"):
        counts[name] = counts.get(name, 0) + 1
        points.append(f"{name}:{counts[name]}")
    return points


def main(verb: str, path: str, *arguments: str) -> str:
    """One verb of the child process; what it says."""
    folder = ReplicaFolder(Path(path), HeldClock(START + timedelta(days=1)))
    try:
        if verb == "session":
            with WriterLease.acquire(folder, "child") as lease:
                return add_point(folder, lease, point_id=arguments[0] if arguments else "").id
        if verb == "take-over":
            with WriterLease.acquire(folder, "child", take_over=True) as lease:
                return add_point(folder, lease).id
        if verb == "recover":
            with WriterLease.acquire(folder, "child") as lease:
                return repr(recover(folder, lease))
        if verb == "found":
            with WriterLease.acquire(folder, "child") as lease:
                files = {name: Path(file) for name, file in zip(DISKS, arguments, strict=True)}
                return make_found_point(folder, lease, machine(), files).id
        if verb == "seed":
            with WriterLease.acquire(folder, "child") as lease:
                point_id = "20260401T000000Z-00aa"
                return str(adopt_disk(folder, lease, "disk0", Path(arguments[0]), point_id))
        if verb == "restore":
            with WriterLease.acquire(folder, "child", action=Action.REPAIR) as lease:
                done = restored(folder, lease, PointVerdict(arguments[0]), [])
                return str(done.is_record_restored)
        if verb == "failover":
            point = arguments[0] if arguments else None
            return failing_over.failover(folder, point=point).point.id
        if verb == "undo":
            return failing_over.undo_failover(folder).ready_point
        raise AssertionError(verb)
    except StandbyError as exc:
        return f"{type(exc).__name__}: {exc}"
