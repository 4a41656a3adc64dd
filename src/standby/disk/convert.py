"""A disk in another format: chains flattened, zeros not stored, the target whole or absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from standby import clock
from standby.comparing import DATA, runs_of_zero
from standby.disk import detected_format, open_disk, vhdx
from standby.disk.pumping import PIECE, Reporter, data_windows, read_ahead
from standby.disk.raw import RawDisk, create_raw
from standby.disk.vhdx import VhdxDisk
from standby.errors import ConfigurationError, DiskUnsupported
from standby.files import rename_durably
from standby.ports import Progress, VirtualDisk, WritableDisk
from standby.units import KiB, format_bytes

FORMATS = ("raw", "vhdx")

ZEROS_MIN = 16 * KiB
"""Fewer zeros than this between data are written with them: a write of its own costs as much time
as 16 KiB in one that is under way."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion did, in bytes."""

    virtual_size: int
    read: int
    """Read from the source; holes are not."""
    written: int
    """Written to the target; the rest reads as zeros."""


def convert(
    source: Path,
    target: Path,
    format: str,
    *,
    source_format: str | None = None,
    parents: Sequence[Path] | None = None,
    folders: Sequence[Path] = (),
    block_size: int | None = None,
    fixed: bool = False,
    sparse: bool = True,
    logical_sector_size: int | None = None,
    physical_sector_size: int | None = None,
    replace: bool = False,
    threads: int = 2,
    progress: Progress | None = None,
) -> Converted:
    """Write `target`, a disk of `format` ('raw' or 'vhdx'), with the content of `source`.

    A differencing source is flattened; its parents are found as `open_disk` finds them.
    `block_size`, `fixed` and `sparse` are for VHDX; sector sizes default to the source's. A raw
    source that ends inside a sector is padded with zeros. The target is written under another
    name, synced and renamed, so it is whole or absent; one that exists is refused
    (ConfigurationError) without `replace`.
    """
    if format not in FORMATS:
        raise ConfigurationError(format, "is no disk format", f"Known: {', '.join(FORMATS)}")
    if format == "raw" and (block_size is not None or fixed):
        raise ConfigurationError("raw", "a raw image has no block size and is never fixed")
    _check_target(target, replace)
    disk = _open_source(source, source_format, parents, folders)
    temporary = target.with_name(f".{target.name}.{clock.new_token(4)}.partial")
    try:
        _refuse_layer(disk, target)
        logical = logical_sector_size or disk.logical_sector_size
        physical = max(physical_sector_size or disk.physical_sector_size, logical)
        _check_sectors(disk, logical)
        made: WritableDisk
        if format == "raw":
            made = create_raw(
                temporary,
                disk.virtual_size,
                logical_sector_size=logical,
                physical_sector_size=physical,
            )
        else:
            made = vhdx.create(
                temporary,
                disk.virtual_size,
                block_size=block_size,
                logical_sector_size=logical,
                physical_sector_size=physical,
                fixed=fixed,
                sparse=sparse,
            )
        try:
            done = copy_disk(disk, made, threads=threads, progress=progress)
            made.flush()
        finally:
            made.close()
        _check_target(target, replace)
        rename_durably(temporary, target)
        return done
    finally:
        disk.close()
        temporary.unlink(missing_ok=True)


def copy_disk(
    source: VirtualDisk,
    target: WritableDisk,
    *,
    threads: int = 2,
    progress: Progress | None = None,
) -> Converted:
    """Write what `source` holds to `target`, a disk of the same size or larger that reads as
    zeros so far. Zeros are not written. With two `threads` or more, all but one read ahead; this
    one writes, in order of the disk."""
    reporter = Reporter(progress, source.virtual_size)
    read = written = 0

    def work(
        window: tuple[int, int], buffer: memoryview
    ) -> tuple[int, memoryview, list[tuple[int, int]]]:
        first, stop = window
        data = buffer[: stop - first]
        source.read_into(first, data)
        return first, data, _data_runs(data)

    for start, data, runs in read_ahead(data_windows(source), work, workers=threads - 1):
        for first, stop in runs:
            target.write(start + first, data[first:stop])
            written += stop - first
        read += len(data)
        reporter.reach(start + len(data))
    reporter.end()
    return Converted(source.virtual_size, read, written)


def _data_runs(data: memoryview) -> list[tuple[int, int]]:
    """(first, stop) in bytes of what is worth writing of `data`, short stretches of zeros
    included."""
    kept: list[tuple[int, int]] = []
    for first, stop, kind in runs_of_zero(data).tolist():
        if kind != DATA:
            continue
        if kept and first * PIECE - kept[-1][1] < ZEROS_MIN:
            kept[-1] = (kept[-1][0], stop * PIECE)
        else:
            kept.append((first * PIECE, stop * PIECE))
    if kept and kept[-1][1] > len(data):
        kept[-1] = (kept[-1][0], len(data))
    return kept


def _open_source(
    source: Path, format: str | None, parents: Sequence[Path] | None, folders: Sequence[Path]
) -> VirtualDisk:
    chosen = detected_format(source) if format is None else format
    if chosen == "raw":
        return RawDisk(source, pad=True)
    return open_disk(source, parents=parents, folders=folders, format=chosen)


def _check_target(target: Path, replace: bool) -> None:
    if not target.exists():
        return
    if not replace:
        raise ConfigurationError(
            str(target), "exists already", "Name another file, or ask for it to be replaced"
        )
    if not target.is_file():
        raise ConfigurationError(str(target), "is not a file")


def _refuse_layer(disk: VirtualDisk, target: Path) -> None:
    """ConfigurationError when `target` is the source or a file it stands on."""
    layer: object = disk
    while target.exists() and isinstance(layer, VhdxDisk | RawDisk):
        if target.samefile(layer.path):
            raise ConfigurationError(
                str(target), "the source is or stands on this file", "Name another target"
            )
        layer = layer.parent if isinstance(layer, VhdxDisk) else None


def _check_sectors(disk: VirtualDisk, logical: int) -> None:
    if disk.virtual_size % logical:
        raise DiskUnsupported(
            str(disk.path),
            f"a disk of {disk.virtual_size} bytes ({format_bytes(disk.virtual_size)}) with sectors "
            f"of {logical}",
            "Choose sectors of 512 bytes, or extend the disk first",
        )
