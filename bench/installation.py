"""Our side of a bench: two folder hosts, a repository, a job, and VMs with given disks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import standby
from standby.disk import open_disk
from standby.disk.compare import compare_disks
from standby.host.folder import new_machine
from standby.model.report import SessionReport
from timing import Timed, copy

PIECE = 4096
JOB = "bench"
_CONFIG = """\
[standby]
installation = "bench"
[hosts.production]
kind = "folder"
path = "production"
[hosts.recovery]
kind = "folder"
path = "recovery"
[repositories.main]
path = "repository"
[jobs.bench]
source = "production"
target = "recovery"
machines = ["*"]
restore_points = {restore_points}
compression = "{compression}"
"""


class Installation:
    """Hosts, repository and configuration in a folder; everything in it is ours."""

    def __init__(self, folder: Path, *, compression: str = "none", restore_points: int = 7) -> None:
        self.folder = folder
        for name in ("production", "recovery", "repository"):
            (folder / name).mkdir(parents=True)
        text = _CONFIG.format(compression=compression, restore_points=restore_points)
        (folder / "standby.toml").write_text(text)

    def add_machine(self, name: str, disk: Path) -> Path:
        """A VM that is off, with a copy of `disk`; its disk file."""
        folder = self.folder / "production" / name
        folder.mkdir()
        copy(disk, folder / "disk0.vhdx")
        new_machine(self.folder / "production", name, {"scsi:0:0": Path("disk0.vhdx")})
        return folder / "disk0.vhdx"

    @contextlib.contextmanager
    def server(self) -> Iterator[standby.BackupServer]:
        """A backup server with movers running."""
        with standby.BackupServer(self.folder / "standby.toml") as server:
            server.start_movers()
            yield server

    def newest_layer(self, name: str) -> Path:
        """The replica's ready layer: an empty child of its newest point."""
        (found,) = (self.folder / "recovery").glob(f"{name}*/*/ready.vhdx")
        return found

    def repository_bytes(self) -> int:
        """Size of the repository, near the source. Call it when no server runs."""
        return _size(self.folder / "repository", "*")

    def digest_bytes(self) -> int:
        """Size of all digest files beside the points, at the target."""
        return _size(self.folder / "recovery", "*.digests")


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def session(server: standby.BackupServer) -> Timed:
    """Run the job once: seconds from the call to the return, which follows the commit."""
    begun = time.perf_counter()
    report = server.start(JOB)
    return Timed(time.perf_counter() - begun, report)


def must_be_done(report: SessionReport) -> None:
    """End the bench when a session did not make its restore point."""
    if report.outcome != "done":
        told = [(item.outcome, item.error, item.warnings, item.alarms) for item in report.machines]
        raise SystemExit(f"the session ended {report.outcome}: {told}")


def must_be_equal(disk: Path, other: Path) -> None:
    """End the bench unless both disks (chains, raw or VHDX) have the same content."""
    with contextlib.closing(open_disk(disk)) as a, contextlib.closing(open_disk(other)) as b:
        different = next(iter(compare_disks(a, b)), None)
    if different is not None:
        raise SystemExit(f"{disk} and {other} differ at {different.offset}")


def changed_pieces(old: Path, new: Path) -> list[tuple[int, bytes]]:
    """(offset, content) of each run of 4 KiB pieces in which two raw disks of a size differ."""
    found = []
    step = 16 << 20
    with old.open("rb") as one, new.open("rb") as two:
        offset = 0
        while data := two.read(step):
            before = np.frombuffer(one.read(step), np.uint64).reshape(-1, PIECE // 8)
            after = np.frombuffer(data, np.uint64).reshape(-1, PIECE // 8)
            different = np.concatenate([[False], (before != after).any(axis=1), [False]])
            edges = np.flatnonzero(different[1:] != different[:-1])
            for first, stop in edges.reshape(-1, 2).tolist():
                found.append((offset + first * PIECE, data[first * PIECE : stop * PIECE]))
            offset += len(data)
    return found


def content_bytes(pieces: list[tuple[int, bytes]]) -> int:
    """Bytes of the pieces that are not all zero: those that travel."""
    return sum(
        int(np.frombuffer(data, np.uint64).reshape(-1, PIECE // 8).any(axis=1).sum()) * PIECE
        for _, data in pieces
    )


def nonzero_bytes(raw: Path) -> int:
    """Bytes in pieces of a raw disk that are not zero."""
    found = 0
    with raw.open("rb") as file:
        while data := file.read(16 << 20):
            pieces = np.frombuffer(data, np.uint64).reshape(-1, PIECE // 8)
            found += int(pieces.any(axis=1).sum()) * PIECE
    return found


def write_pieces(path: Path, pieces: list[tuple[int, bytes]]) -> None:
    """Write the runs into a disk file, as its guest would have."""
    disk = open_disk(path, writable=True)
    try:
        for offset, data in pieces:
            disk.write(offset, data)
        disk.flush()
    finally:
        disk.close()
