"""The source host's station: the verbs of a source mover.

`send_disk` runs one disk task over a data connection; `scan_disk` finds what it would send and
sends nothing (`job plan --scan`; a first full that may not fit). Disks are opened read-only by the
files the checkpoint names, below the host's folder, never by what a locator says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from standby import killpoints
from standby.disk import open_disk, vhdx
from standby.errors import ProtocolError, SourceChanged
from standby.host.seen_paths import ExpectedDisk, check_disk
from standby.model.extent import Extent, Kind, blocks_touched
from standby.ports import VirtualDisk
from standby.repository import Staging
from standby.road.connections import (
    TO_REPOSITORY,
    TO_TARGET,
    TO_WAN,
    Connection,
    Connections,
    Errand,
    Spec,
)
from standby.road.packing import COMPRESSIONS
from standby.road.places import LOCAL_PLACES, Places
from standby.road.remote_repository import RemoteRepository, RemoteStaging
from standby.road.repository_verbs import RepositoryLeaves, opened_repository
from standby.road.scanning import SendTask, StoredLeaves
from standby.road.source_proxy import SourceProxy, counted_changes
from standby.road.telling import ToldLeaves
from standby.road.verbs import answered

THREADS_MAX = 16


class SourceDisk(msgspec.Struct, frozen=True):
    """Where a disk under a checkpoint is: `files` newest layer first, each below `root`, or, where
    that is '', a whole path of its own."""

    root: str
    files: list[str]


class SendDisk(msgspec.Struct, frozen=True):
    """Arguments of `send_disk`. `candidates` are (offset, length). `repository` is its folder, or
    the spec of a connection to a mover that runs `serve_leaves` meanwhile; '' means no metadata is
    kept. `baseline` as in source_proxy. `expected` is the disk in its host's words, where a map of
    paths led to the files."""

    task: str
    connection: Spec
    disk: SourceDisk
    repository: str | dict[str, Any]
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
    weight: int = 1
    expected: ExpectedDisk | None = None

    def errand(self, direction: str, or_wan: str = "") -> Errand:
        """What it wants a connection for."""
        return Errand(
            self.task, direction, self.disk_id, self.replica, weight=self.weight, or_wan=or_wan
        )


class SendResult(msgspec.Struct, frozen=True):
    """What `send_disk` did; `root` is hex of the staged digest root. `blocks`, of `scan_disk` only:
    see `SendCounters`."""

    root: str
    read: int
    changed: int
    zeroed: int
    sent: int
    resent: int
    busy_s: dict[str, float]
    blocks: int = 0


def open_source_disk(disk: SourceDisk, places: Places = LOCAL_PLACES) -> VirtualDisk:
    """The disk, read-only, by its files; raises PathRefused for a path that leaves the host's
    folder."""
    root = disk.root
    paths = [places.inside(root, name) if root else places.path(name) for name in disk.files]
    if not paths:
        raise ProtocolError("backup server", "a disk of no files")
    return open_disk(paths[0], parents=paths[1:] or None)


class SourceVerbs:
    """Verbs of a source mover."""

    def __init__(
        self,
        connections: Connections,
        opener: Callable[[SourceDisk], VirtualDisk] | None = None,
        *,
        places: Places = LOCAL_PLACES,
    ) -> None:
        self._connections = connections
        self._places = places
        self._opener = opener or (lambda disk: open_source_disk(disk, places))
        self._running: dict[str, SourceProxy] = {}
        self._verbs: dict[str, Callable[..., Any]] = {
            "ping": lambda: "source",
            "send_disk": lambda **given: self.send_disk(msgspec.convert(given, SendDisk)),
            "scan_disk": lambda **given: self.scan_disk(msgspec.convert(given, SendDisk)),
            "measure_disk": lambda disk, expected=None: self.measure_disk(
                msgspec.convert(disk, SourceDisk),
                msgspec.convert(expected, ExpectedDisk | None),
            ),
            "progress": lambda: {
                task: list(proxy.progress()) for task, proxy in list(self._running.items())
            },
        }

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Run `verb`; NotImplemented for one of another role."""
        return answered(self._verbs, verb, arguments)

    def close(self) -> None:
        """Nothing outlives a task."""

    def measure_disk(
        self, wanted: SourceDisk, expected: ExpectedDisk | None = None
    ) -> dict[str, int]:
        """Sizes of a disk, the bytes it stores, by its allocation tables, and in how many blocks
        of the size that a point's layers have. WrongDisk where it is not the one expected."""
        with contextlib.ExitStack() as stack:
            disk = self._checked(wanted, expected, stack)
            block_size = vhdx.default_block_size(disk.virtual_size)
            allocated = 0

            def stored() -> Iterator[Extent]:
                nonlocal allocated
                for item in disk.extents():
                    if item.kind == Kind.DATA:
                        allocated += item.length
                        yield item

            blocks = blocks_touched(stored(), block_size)
            return {"virtual_size": disk.virtual_size, "allocated": allocated, "blocks": blocks}

    def send_disk(self, wanted: SendDisk) -> SendResult:
        """Send what changed of one disk and stage its leaves."""
        errand = wanted.errand(TO_TARGET, or_wan=TO_WAN)
        with self._connections.take(wanted.connection, errand) as connection:
            if wanted.compression not in COMPRESSIONS:
                raise ProtocolError("backup server", f"no compression {wanted.compression!r}")
            try:
                return self._send_disk(wanted, connection)
            finally:
                self._running.pop(wanted.task, None)

    def _checked(
        self, wanted: SourceDisk, expected: ExpectedDisk | None, stack: contextlib.ExitStack
    ) -> VirtualDisk:
        """The disk; WrongDisk where it is not the one expected."""
        disk = self._opener(wanted)
        stack.callback(disk.close)
        if expected is not None:
            found = vhdx.read_info(disk.path).page83
            check_disk(expected, str(disk.path), found, disk.virtual_size)
        return disk

    def _send_disk(self, wanted: SendDisk, connection: Connection) -> SendResult:
        with contextlib.ExitStack() as stack:
            disk = self._checked(wanted.disk, wanted.expected, stack)
            if disk.virtual_size != wanted.virtual_size:
                raise SourceChanged(
                    wanted.task, str(disk.path), f"its size is {disk.virtual_size} bytes now"
                )
            stored: StoredLeaves | None = None
            staging: Staging | RemoteStaging | None = None
            if wanted.repository:
                stored, staging = self._repository(wanted, stack, stages=True)
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
                    max(1, min(wanted.threads, THREADS_MAX)),
                ),
                connection.link,
                connection.ring,
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

    def _repository(
        self, wanted: SendDisk, stack: contextlib.ExitStack, *, stages: bool
    ) -> tuple[StoredLeaves | None, Staging | RemoteStaging | None]:
        """The baseline and the staging of a disk, in a repository here or over a connection."""
        if isinstance(wanted.repository, dict):
            errand = wanted.errand(TO_REPOSITORY)
            connection = stack.enter_context(self._connections.take(wanted.repository, errand))
            remote = RemoteRepository(connection.link)
            stack.callback(remote.close)
            leaves = remote.leaves() if wanted.builds_on_repository else None
            return leaves, remote.staging() if stages else None
        path = self._places.path(wanted.repository)
        repository = opened_repository(path, create=stages)
        stack.callback(repository.close)
        stored = None
        if wanted.builds_on_repository:
            stored = RepositoryLeaves(repository, wanted.replica, wanted.disk_id)
        if not stages:
            return stored, None
        repository.relax()
        return stored, repository.stage(
            wanted.replica,
            wanted.disk_id,
            wanted.session,
            wanted.point_id,
            wanted.virtual_size,
            wanted.builds_on_repository,
        )

    def scan_disk(self, wanted: SendDisk) -> SendResult:
        """Find what `send_disk` would send, sending and staging nothing. Against the target's
        leaves the target's end of the connection runs `tell_disk` meanwhile."""
        with contextlib.ExitStack() as stack:
            told: ToldLeaves | None = None
            stored: StoredLeaves | None = None
            threads = max(1, min(wanted.threads, THREADS_MAX))
            if wanted.baseline == "target":
                errand = wanted.errand(TO_TARGET)
                connection = stack.enter_context(self._connections.take(wanted.connection, errand))
                stored = told = ToldLeaves(wanted.task, connection.link)
                threads = 1
            elif wanted.builds_on_repository:
                stored, _ = self._repository(wanted, stack, stages=False)
            disk = self._checked(wanted.disk, wanted.expected, stack)
            counters = counted_changes(disk, stored, normalised(wanted.candidates), threads)
            if told is not None:
                told.finish()
            return SendResult(
                "",
                counters.read,
                counters.changed,
                counters.zeroed,
                0,
                0,
                counters.busy_s,
                counters.blocks,
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
