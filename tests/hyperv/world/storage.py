"""Files of the hosts: where a Windows path lies in truth, chains, who has a file open."""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from hyperv.world.errors import SHARING_VIOLATION, text_of
from standby.disk import vhdx
from standby.disk.chain import open_chain
from standby.disk.merge import merge_file, merge_payload
from standby.disk.vhdx import VhdxDisk
from standby.disk.vhdx.opening import LOCK_BYTE
from standby.files import ByteLock
from standby.units import GiB, MiB

ALL_MACHINES = "S-1-5-83-0"
"""NT VIRTUAL MACHINE\\Virtual Machines: what every VM's identity belongs to."""


class FileLock(ByteLock):
    """A lock that goes with the world that holds it."""

    def __del__(self) -> None:
        self.release()


class SharingViolation(Exception):
    """A file that someone has open in a way that forbids this."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: {text_of(SHARING_VIOLATION)}")
        self.path = path


@dataclass
class Volume:
    """A folder of this machine that hosts see under a Windows path."""

    windows: str
    folder: Path
    hosts: set[str] | None = None
    """Names of the hosts that see it; None: all (a cluster's shared volume)."""
    size: int = 4096 * GiB
    free: int = 3072 * GiB
    owner: str = ""
    """The node that coordinates a cluster's shared volume."""
    redirected: set[str] = field(default_factory=set)
    """Nodes whose access to it goes through the coordinator."""
    file_system: str = "NTFS"
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(eq=False)
class Handle:
    """A file held open.  `shares` are the accesses that others may have meanwhile."""

    path: Path
    owner: str
    writes: bool = False
    shares: frozenset[str] = frozenset({"read", "write", "delete"})
    storage: Storage | None = None
    client: str = ""
    """Who has it open through SMB, '' for somebody on the host."""
    id: int = field(default_factory=itertools.count(1).__next__)

    def close(self) -> None:
        """Let it go."""
        if self.storage is not None and self in self.storage.handles:
            self.storage.handles.remove(self)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Oddity:
    """What the hosts say of a disk file that is no real VHDX here."""

    kind: int
    format: int
    size: int
    disk_id: str


@dataclass
class Storage:
    """All files of all hosts."""

    volumes: list[Volume] = field(default_factory=list)
    handles: list[Handle] = field(default_factory=list)
    parents: dict[Path, Path] = field(default_factory=dict)
    """Child file to parent file."""
    disk_ids: dict[Path, str] = field(default_factory=dict)
    """Ids of virtual disks by base file, as its page-83 item has them; a differencing file has its
    parent's."""
    oddities: dict[Path, Oddity] = field(default_factory=dict)
    attributes: dict[Path, set[str]] = field(default_factory=dict)
    """SparseFile, Compressed or Encrypted, of files that are."""
    grants: dict[Path, set[str]] = field(default_factory=dict)
    """SIDs that have full rights to a file, or to a folder and all that is in it."""
    locks: dict[Path, FileLock] = field(default_factory=dict)
    """The lock that programs of this machine see, of files that a VM which was started writes."""

    # --- paths ---------------------------------------------------------------------------------

    def path(self, host: str, windows: str) -> Path | None:
        """Where the file that the host calls so lies; None where the host has no such place.

        Case does not count; the longest fitting volume wins, by whole components.
        """
        wanted = PureWindowsPath(windows.removeprefix("\\\\?\\"))
        if ".." in wanted.parts or not wanted.is_absolute():
            return None
        best: Volume | None = None
        for volume in self.seen_by(host):
            if wanted.is_relative_to(volume.windows) and (
                best is None or len(volume.windows) > len(best.windows)
            ):
                best = volume
        if best is None:
            return None
        place = best.folder
        for part in wanted.relative_to(best.windows).parts:
            place = entry(place, part)
        return place

    def windows(self, host: str, path: Path) -> str:
        """How the host calls a file."""
        for volume in self.seen_by(host):
            if path.is_relative_to(volume.folder):
                return str(PureWindowsPath(volume.windows, *path.relative_to(volume.folder).parts))
        raise KeyError(f"{host} does not see {path}")

    def seen_by(self, host: str) -> list[Volume]:
        """The host's volumes."""
        return [v for v in self.volumes if v.hosts is None or host in v.hosts]

    # --- disks ---------------------------------------------------------------------------------

    def make_disk(self, path: Path, size: int, *, sector: int = 512, fixed: bool = False) -> None:
        """A new VHDX of zeros."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with vhdx.create(
            path, size, block_size=MiB, logical_sector_size=sector, fixed=fixed
        ) as disk:
            self.disk_ids[path] = disk.info.page83.upper()

    def make_child(self, host: str, parent: Path, child: Path) -> None:
        """A new differencing disk over `parent`."""
        with self.unlocked(parent):
            vhdx.create_child(
                child,
                parent,
                block_size=MiB,
                parent_path_on_host=self.windows(host, parent),
                parents=self.chain(parent)[1:] or None,  # else by what the file itself says
            ).close()
        self.parents[child] = parent

    def chain(self, path: Path) -> list[Path]:
        """The file and all below it."""
        result = [path]
        while result[-1] in self.parents:
            result.append(self.parents[result[-1]])
        return result

    def children(self, path: Path) -> list[Path]:
        """The files that stand on it."""
        return [child for child, parent in self.parents.items() if parent == path]

    def disk_id(self, path: Path) -> str:
        """The virtual disk's id."""
        if path in self.oddities:
            return self.oddities[path].disk_id
        base = self.chain(path)[-1]
        if base not in self.disk_ids:
            self.disk_ids[base] = vhdx.read_info(base).page83.upper()
        return self.disk_ids[base]

    def opened(self, path: Path, *, writable: bool = False) -> VhdxDisk:
        """The disk with its chain."""
        return open_chain(path, writable=writable, parents=self.chain(path)[1:])

    # --- who has what open ---------------------------------------------------------------------

    def open(
        self,
        path: Path,
        owner: str,
        *,
        writes: bool = False,
        shares: Iterable[str] = ("read", "write", "delete"),
        client: str = "",
    ) -> Handle:
        """Open a file by Windows' rules: each side must share what the other does."""
        wanted = frozenset(shares)
        need = "write" if writes else "read"
        for other in self.handles:
            if other.path != path:
                continue
            other_need = "write" if other.writes else "read"
            if need not in other.shares or other_need not in wanted:
                raise SharingViolation(path)
        handle = self.hold(path, owner, writes=writes, shares=wanted)
        handle.client = client
        return handle

    def hold(
        self, path: Path, owner: str, *, writes: bool = False, shares: Iterable[str] = ()
    ) -> Handle:
        """Open a file whoever has it open."""
        handle = Handle(path, owner, writes, frozenset(shares), self)
        self.handles.append(handle)
        return handle

    def close_all(self, owner: str) -> None:
        """What that owner has open is closed."""
        for handle in self.handles:
            if handle.owner == owner and handle.writes and handle.path in self.locks:
                self.locks.pop(handle.path).release()
        self.handles = [handle for handle in self.handles if handle.owner != owner]

    def lock(self, path: Path) -> None:
        """Programs of this machine find the file taken, as those on Windows do."""
        lock = FileLock(path, LOCK_BYTE)
        if not lock.acquire():
            raise SharingViolation(path)
        self.locks[path] = lock

    @contextlib.contextmanager
    def unlocked(self, *paths: Path) -> Iterator[None]:
        """The model itself writes to files that it has locked."""
        mine = [self.locks[path] for path in paths if path in self.locks]
        for lock in mine:
            lock.release()
        try:
            yield
        finally:
            for lock in mine:
                if lock.path.exists():
                    lock.acquire()
                else:
                    self.locks.pop(lock.path)

    def may_write(self, path: Path, sid: str) -> bool:
        """Whether a VM's identity has rights to a file, by itself or by a folder above."""
        return any(
            {sid, ALL_MACHINES} & self.grants.get(place, set()) for place in (path, *path.parents)
        )

    # --- merging -------------------------------------------------------------------------------

    def merge(self, child: Path) -> Path:
        """Put what `child` holds into its parent, which everything above then stands on; the
        parent's path.  SharingViolation while a reader of one of the two does not share writing."""
        parent = self.parents[child]
        for path in (child, parent):
            for handle in self.handles:
                is_vm = handle.owner.startswith("vm:")
                if handle.path == path and not is_vm and "write" not in handle.shares:
                    raise SharingViolation(path)
        above = self.children(child)
        with self.unlocked(child, parent, *above):
            if above:
                self._merge_below(child, parent, above)
            else:
                merge_file(child, folders=[p.parent for p in self.chain(parent)])
        del self.parents[child]
        for path in above:
            self.parents[path] = parent
        return parent

    def _merge_below(self, child: Path, parent: Path, above: list[Path]) -> None:
        below = self.chain(parent)[1:]
        with (
            open_chain(parent, writable=True, parents=below, keep_data_write_guid=True) as base,
            vhdx.open_vhdx(child) as middle,
        ):
            merge_payload(middle, base)
            identity = middle.data_write_guid
            base.set_data_write_guid(identity)
        for path in above:
            with vhdx.open_vhdx(path, writable=True, keep_data_write_guid=True) as top:
                top.set_parent_locator(identity, f".\\{parent.name}", None, None)
                top.flush()
        child.unlink()


def entry(folder: Path, name: str) -> Path:
    exact = folder / name
    if exact.exists() or not folder.is_dir():
        return exact
    for entry in folder.iterdir():
        if entry.name.lower() == name.lower():
            return entry
    return exact
