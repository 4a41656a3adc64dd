"""The source host's station: the verbs of a source mover.

`send_disk` runs one disk task over a data connection; `scan_disk` finds what it would send and
sends nothing (`job plan --scan`). Disks are opened read-only by the files the checkpoint names,
below the host's folder, never by what a locator says.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from standby import killpoints
from standby.disk import open_disk
from standby.errors import ConfigurationError, ProtocolError, SourceChanged
from standby.model.extent import Extent, Kind
from standby.ports import VirtualDisk
from standby.repository import Repository, Staging
from standby.road.batches import LeafArray
from standby.road.scanning import SendTask, StoredLeaves
from standby.road.source_proxy import SourceProxy, counted_changes
from standby.road.telling import ToldLeaves
from standby.wire.link import Link
from standby.wire.shared_memory import SharedRing


class SourceDisk(msgspec.Struct, frozen=True):
    """Where a disk under a checkpoint is: `files` newest layer first, below `root`."""

    root: str
    files: list[str]


class SendDisk(msgspec.Struct, frozen=True):
    """Arguments of `send_disk`. `candidates` are (offset, length); `repository` '' means no
    metadata is kept. `baseline` as in source_proxy."""

    task: str
    connection: int
    disk: SourceDisk
    repository: str
    replica: str
    disk_id: str
    session: str
    point_id: str
    checkpoint_id: str
    baseline: str
    builds_on_repository: bool
    candidates: list[tuple[int, int]] | None
    resume_mark: int
    compression: str
    virtual_size: int
    threads: int = 2


class SendResult(msgspec.Struct, frozen=True):
    """What `send_disk` did; `root` is hex of the staged digest root."""

    root: str
    read: int
    changed: int
    zeroed: int
    sent: int
    resent: int
    busy_s: dict[str, float]


def open_source_disk(disk: SourceDisk) -> VirtualDisk:
    """The disk, read-only, by its files; raises ConfigurationError for a path that leaves the
    host's folder."""
    root = Path(disk.root).resolve()
    paths = [root / name for name in disk.files]
    for path in paths:
        if not path.resolve().is_relative_to(root):
            raise ConfigurationError(str(path), f"leads out of the host's folder {root}")
    return open_disk(paths[0], parents=paths[1:] or None)


class _RepositoryLeaves:
    """The repository's newest state of one disk, as a baseline."""

    def __init__(self, repository: Repository, replica: str, disk_id: str) -> None:
        self._repository = repository
        self._key = (replica, disk_id)
        self._lock = threading.Lock()

    def index(self) -> Any:
        with self._lock:
            return self._repository.index(*self._key)

    def leaves(self, page_numbers: Sequence[int]) -> LeafArray:
        with self._lock:
            return self._repository.leaves(*self._key, page_numbers)


class SourceVerbs:
    """Verbs of a source mover."""

    def __init__(
        self,
        data: Sequence[Link],
        rings: Sequence[SharedRing | None],
        opener: Callable[[SourceDisk], VirtualDisk] = open_source_disk,
    ) -> None:
        self._data = data
        self._rings = rings
        self._opener = opener
        self._running: dict[str, SourceProxy] = {}

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Run `verb`; NotImplemented for one of another role."""
        try:
            if verb == "ping":
                return "source"
            if verb == "send_disk":
                return msgspec.to_builtins(self.send_disk(msgspec.convert(arguments, SendDisk)))
            if verb == "progress":
                return {task: list(proxy.progress()) for task, proxy in self._running.items()}
            if verb == "measure_disk":
                return self.measure_disk(msgspec.convert(arguments["disk"], SourceDisk))
            if verb == "scan_disk":
                return msgspec.to_builtins(self.scan_disk(msgspec.convert(arguments, SendDisk)))
        except msgspec.ValidationError as exc:
            raise ProtocolError("backup server", f"{verb}: {exc}") from exc
        return NotImplemented

    def close(self) -> None:
        """Nothing outlives a task."""

    def measure_disk(self, wanted: SourceDisk) -> dict[str, int]:
        """Sizes of a disk, and the bytes it stores, by its allocation tables."""
        disk = self._opener(wanted)
        try:
            allocated = sum(item.length for item in disk.extents() if item.kind == Kind.DATA)
            return {"virtual_size": disk.virtual_size, "allocated": allocated}
        finally:
            disk.close()

    def send_disk(self, wanted: SendDisk) -> SendResult:
        """Send what changed of one disk and stage its leaves."""
        try:
            return self._send_disk(wanted)
        except BaseException:
            self._data[wanted.connection].shutdown()  # else the target would wait for ever
            raise
        finally:
            self._running.pop(wanted.task, None)

    def _send_disk(self, wanted: SendDisk) -> SendResult:
        disk = self._opener(wanted.disk)
        repository = Repository(Path(wanted.repository)) if wanted.repository else None
        try:
            if repository is not None:
                repository.relax()
            if disk.virtual_size != wanted.virtual_size:
                raise SourceChanged(
                    wanted.task, str(disk.path), f"its size is {disk.virtual_size} bytes now"
                )
            stored: StoredLeaves | None = None
            staging: Staging | None = None
            if repository is not None:
                if wanted.builds_on_repository:
                    stored = _RepositoryLeaves(repository, wanted.replica, wanted.disk_id)
                staging = repository.stage(
                    wanted.replica,
                    wanted.disk_id,
                    wanted.session,
                    wanted.point_id,
                    disk.virtual_size,
                    wanted.builds_on_repository,
                )
            mark = wanted.resume_mark
            if mark and (
                staging is None
                or staging.mark.checkpoint_id != wanted.checkpoint_id
                or staging.mark.offset < mark
            ):
                mark = 0  # leaves below it are not staged: scan again, nothing is sent again
            if mark == 0 and staging is not None:
                staging.clear()
            proxy = SourceProxy(
                SendTask(
                    wanted.task,
                    disk,
                    wanted.checkpoint_id,
                    wanted.baseline,
                    stored,
                    staging,
                    normalised(wanted.candidates),
                    mark,
                    wanted.compression,
                    wanted.threads,
                ),
                self._data[wanted.connection],
                self._rings[wanted.connection],
            )
            self._running[wanted.task] = proxy
            counters = proxy.run()
            killpoints.reach("last extent")
            root = ""
            if staging is not None:
                staging.sync()
                root = staging.root().hex()
            return SendResult(
                root,
                counters.read,
                counters.changed,
                counters.zeroed,
                counters.sent,
                counters.resent,
                counters.busy_s,
            )
        finally:
            disk.close()
            if repository is not None:
                repository.close()

    def scan_disk(self, wanted: SendDisk) -> SendResult:
        """Find what `send_disk` would send, sending and staging nothing. Against the target's
        leaves the target's end of the connection runs `tell_disk` meanwhile."""
        try:
            return self._scan_disk(wanted)
        except BaseException:
            if wanted.baseline == "target":
                self._data[wanted.connection].shutdown()  # else the target would wait for ever
            raise

    def _scan_disk(self, wanted: SendDisk) -> SendResult:
        with contextlib.ExitStack() as stack:
            disk = self._opener(wanted.disk)
            stack.callback(disk.close)
            stored: StoredLeaves | None = None
            told: ToldLeaves | None = None
            threads = wanted.threads
            if wanted.baseline == "target":
                stored = told = ToldLeaves(wanted.task, self._data[wanted.connection])
                threads = 1
            elif wanted.builds_on_repository:
                repository = Repository(Path(wanted.repository), create=False)
                stack.callback(repository.close)
                stored = _RepositoryLeaves(repository, wanted.replica, wanted.disk_id)
            counters = counted_changes(disk, stored, normalised(wanted.candidates), threads)
            if told is not None:
                told.finish()
            return SendResult(
                "", counters.read, counters.changed, counters.zeroed, 0, 0, counters.busy_s
            )


def normalised(candidates: list[tuple[int, int]] | None) -> tuple[Extent, ...] | None:
    """Ranges on 4 KiB borders, in order, disjoint; None stays None."""
    if candidates is None:
        return None
    if not candidates:
        return ()
    piece = 4096
    array = np.array(sorted(candidates), np.int64)
    starts = array[:, 0] // piece * piece
    stops = -(-(array[:, 0] + array[:, 1]) // piece) * piece
    reach = np.maximum.accumulate(stops)
    first = np.concatenate([[True], starts[1:] > reach[:-1]])
    heads = np.flatnonzero(first)
    tails = np.concatenate([heads[1:] - 1, [len(starts) - 1]])
    return tuple(
        Extent(int(starts[head]), int(reach[tail] - starts[head]))
        for head, tail in zip(heads.tolist(), tails.tolist(), strict=True)
    )
