"""Warming a cache up: the content of disk files, whatever their guests run, while others use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from standby.disk import RawDisk, VhdxDisk, detected_format, open_disk
from standby.disk.pumping import WINDOW, data_windows
from standby.errors import StandbyError, WorkStopped
from standby.model.extent import Extent
from standby.wan.indexing import index_disk
from standby.wan.namespace import Core, Namespace
from standby.wan.segment_file import PIECE

SUFFIXES = frozenset({".vhdx", ".avhdx", ".raw", ".img"})

Told = Callable[[str, int, int], None]
"""Progress: a disk's name, bytes done, bytes in all."""


@dataclass(slots=True)
class PopulateReport:
    """What a warm-up read and what of it was new."""

    disks: int = 0
    bytes_read: int = 0
    pieces_added: int = 0
    bytes_added: int = 0
    """What the cache's files grew by, less what went for it."""
    problems: dict[str, str] = field(default_factory=dict)
    """Per disk that could not be read (whole), why."""


def disk_files(folder: Path) -> list[Path]:
    """Every disk file below `folder`, in order, by its suffix; links are not followed, unfinished
    restore points left out."""
    found = []
    for path in sorted(folder.rglob("*")):
        is_disk = path.suffix.lower() in SUFFIXES and ".partial." not in path.name
        if is_disk and path.is_file() and not path.is_symlink():
            found.append(path)
    return found


def populate(
    core: Core,
    namespace: Namespace,
    disks: Iterable[Path],
    *,
    folders: Sequence[Path] = (),
    in_place: bool = False,
    told: Told | None = None,
) -> PopulateReport:
    """Take in what the disk files hold themselves; what their parents hold comes with those.
    WorkStopped of `told` ends it; what was taken in stays.

    `in_place`: VHDX files get entries that point into them instead of copies (`index_disk`). A
    disk that cannot be read is a problem in the report, and the next one's turn comes.
    """
    report = PopulateReport()
    before = core.shelf.used_bytes
    try:
        for path in disks:
            label = path.name
            try:
                if in_place and detected_format(path) == "vhdx":
                    report.pieces_added += index_disk(
                        core, namespace, path, None if told is None else _labelled(told, label)
                    )
                else:
                    _take(namespace, path, folders, told, report)
                report.disks += 1
            except WorkStopped:
                raise
            except StandbyError as exc:
                report.problems[str(path)] = str(exc)
    finally:
        core.intake.flush()
    report.bytes_added = core.shelf.used_bytes - before
    return report


def _labelled(told: Told, label: str) -> Callable[[int, int], None]:
    return lambda done, total: told(label, done, total)


def _take(
    namespace: Namespace,
    path: Path,
    folders: Sequence[Path],
    told: Told | None,
    report: PopulateReport,
) -> None:
    """Take in one disk."""
    with closing(_opened(path, folders)) as disk:
        size = disk.virtual_size
        buffer = np.zeros(WINDOW, dtype=np.uint8)
        for first, stop in data_windows(_OwnLayer(disk)):
            length = -(-(stop - first) // PIECE) * PIECE
            part = buffer[:length]
            part[stop - first :] = 0
            disk.read_into(first, part.data.cast("B")[: stop - first])
            report.pieces_added += namespace.take_in(part)[1]
            report.bytes_read += stop - first
            if told is not None:
                told(path.name, stop, size)
        if told is not None:
            told(path.name, size, size)


def _opened(path: Path, folders: Sequence[Path]) -> VhdxDisk | RawDisk:
    if detected_format(path) == "raw":
        return RawDisk(path, pad=True)
    return open_disk(path, folders=folders)


class _OwnLayer:
    """A disk that says only what its top file holds; read through all of its layers."""

    def __init__(self, disk: VhdxDisk | RawDisk) -> None:
        self._disk = disk
        self.path = disk.path
        self.virtual_size = disk.virtual_size
        self.logical_sector_size = disk.logical_sector_size
        self.physical_sector_size = disk.physical_sector_size
        self.read_into = disk.read_into
        self.close = disk.close

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """The extents of the top file alone."""
        if isinstance(self._disk, VhdxDisk):
            return self._disk.layer_extents(start, stop)
        return self._disk.extents(start, stop)
