"""Opening a VHDX file: the checks in their order, the log replayed or laid over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from standby.disk.vhdx.bat import BlockTable
from standby.disk.vhdx.geometry import Geometry
from standby.disk.vhdx.headers import Headers, read_headers, read_identifier
from standby.disk.vhdx.layer import Layer
from standby.disk.vhdx.metadata import Metadata, read_metadata
from standby.disk.vhdx.pages import PageCache
from standby.disk.vhdx.regions import Regions, read_regions
from standby.disk.vhdx.replaying import overlaid, replay
from standby.disk.vhdx.structures import ZERO_GUID
from standby.errors import DiskCorrupt, DiskError, DiskIO
from standby.files import BlockFile, ByteLock, File

_CHECKED_AT_OPEN_MAX = 1 << 17
"""Blocks of a disk whose whole table is checked at open (1 MiB of table, a few milliseconds);
above that every entry is checked when it is used, and overlaps by `check_disk`."""

_ATTEMPTS = 3

LOCK_BYTE = 0x7374616E646279
"""Byte that a writer locks, "standby" as a number: far behind any file, and not one of those that
QEMU locks (100 to 250)."""


@dataclass(slots=True)
class Image:
    """A file that passed the checks."""

    file: BlockFile
    view: BlockFile
    """The file, or the file under its dirty log."""
    creator: str
    headers: Headers
    regions: Regions
    layer: Layer
    is_dirty: bool
    """The log was not empty when the file was opened."""

    @property
    def metadata(self) -> Metadata:
        """What the metadata says now."""
        return self.layer.metadata


def lock_file(path: Path, *, is_required: bool) -> ByteLock | None:
    """The writers' lock of a file that exists; DiskBusy when a writer has it. A file that we may
    not open for writing, or that cannot be locked, gives None unless the lock `is_required`."""
    if not path.is_file():
        return None
    lock = ByteLock(path, LOCK_BYTE)
    try:
        lock.acquire_or_raise("another process has the disk open for writing")
    except OSError as exc:
        if is_required:
            raise DiskIO(str(path), "lock", LOCK_BYTE, 1, exc.strerror or str(exc)) from exc
        return None
    return lock


def open_locked(
    source: Path | BlockFile, *, writable: bool, is_shallow: bool = False
) -> tuple[Image, ByteLock | None]:
    """The image in a file, locked against other writers if `writable` (an open BlockFile is its
    owner's to lock). The file is closed again when a check fails.

    A file that another process is writing can show a log that is being overwritten just now; a
    read-only open of a dirty file that fails is repeated.
    """
    if not isinstance(source, Path):
        return read_image(source, is_shallow=is_shallow), None
    for attempt in range(_ATTEMPTS):
        file = File(source, writable=writable)
        lock: ByteLock | None = None
        try:
            lock = lock_file(source, is_required=True) if writable else None
            return read_image(file, is_shallow=is_shallow), lock
        except BaseException as exc:
            if lock is not None:
                lock.release()
            is_last = attempt == _ATTEMPTS - 1
            repeat = isinstance(exc, DiskCorrupt) and not writable and not is_last
            repeat = repeat and _is_dirty(file)
            file.close()
            if not repeat:
                raise
    raise AssertionError("unreachable")


def _is_dirty(file: BlockFile) -> bool:
    try:
        return read_headers(file).current.log_guid != ZERO_GUID
    except DiskError:
        return False


def read_image(file: BlockFile, *, is_shallow: bool = False) -> Image:
    """The image in `file`. A dirty log is replayed if the file is writable, else laid over it.
    `is_shallow`: leave the block table alone."""
    creator = read_identifier(file)
    headers = read_headers(file)
    is_dirty = headers.current.log_guid != ZERO_GUID
    view: BlockFile = file
    if is_dirty and file.writable:
        replay(file, headers)
    elif is_dirty:
        view = overlaid(file, headers.current)
    regions = read_regions(view, headers.current)
    metadata = read_metadata(view, regions.metadata)
    geometry = Geometry(
        virtual_size=metadata.virtual_size,
        block_size=metadata.block_size,
        logical_sector_size=metadata.logical_sector_size,
        has_parent=metadata.has_parent,
    )
    table = BlockTable(view, PageCache(view), geometry, headers.current, regions)
    if not is_shallow and geometry.block_count <= _CHECKED_AT_OPEN_MAX:
        table.check_overlaps()
    layer = Layer(view, metadata, table)
    return Image(file, view, creator, headers, regions, layer, is_dirty)
