"""Making VHDX files: dynamic, fixed, and differencing ones over a parent."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from standby import __version__, clock
from standby.disk.vhdx.geometry import FULLY_PRESENT, Geometry
from standby.disk.vhdx.locator import pack_locator
from standby.disk.vhdx.metadata import (
    FILE_PARAMETERS,
    HAS_PARENT,
    IS_REQUIRED,
    IS_VIRTUAL_DISK,
    LEAVE_BLOCKS_ALLOCATED,
    LOGICAL_SECTOR_SIZE,
    PAGE_83,
    PARENT_LOCATOR,
    PHYSICAL_SECTOR_SIZE,
    VIRTUAL_DISK_SIZE,
    pack_items,
)
from standby.disk.vhdx.opening import Image, read_image
from standby.disk.vhdx.replaying import write_zeros
from standby.disk.vhdx.structures import (
    BAT_REGION,
    BLOCK_SIZE_MAX,
    BLOCK_SIZE_MIN,
    HEADER_OFFSETS,
    METADATA_REGION,
    REGION_TABLE_OFFSETS,
    VIRTUAL_SIZE_MAX,
    ZERO_GUID,
    Header,
    Region,
    pack_identifier,
    pack_region_table,
)
from standby.errors import DiskUnsupported
from standby.files import BlockFile, File, sync_folder
from standby.units import MiB

LOG_OFFSET, LOG_SIZE = MiB, MiB
METADATA_OFFSET, METADATA_SIZE = 2 * MiB, MiB
BAT_OFFSET = 3 * MiB
"""The order Windows has: log, metadata, table, blocks."""

_ENTRIES_PER_STEP = 1 << 17

ItemContent = tuple[bytes, bytes, int]
"""A metadata item to write: kind, content, flags."""


def make_file(
    target: Path | BlockFile,
    geometry: Geometry,
    *,
    physical_sector_size: int,
    page83: bytes,
    fixed: bool,
    sparse: bool,
    locator: dict[str, str] | None,
    more_items: tuple[ItemContent, ...] = (),
) -> Image:
    """Write a new file and open it for writing, without its lock.

    The identifier is written last, so a crash leaves a file that is no VHDX rather than a wrong
    one; a failure removes the file. `sparse` leaves what is not written as holes, otherwise zeros
    are written.
    """
    path = target if isinstance(target, Path) else target.path
    _check(path, geometry, physical_sector_size)
    contents = _items(geometry, physical_sector_size, page83, fixed, locator)
    file = File(target, create=True) if isinstance(target, Path) else target
    try:
        _write_file(file, geometry, [*contents, *more_items], fixed=fixed, sparse=sparse)
        if isinstance(target, Path):
            sync_folder(target.parent)
        return read_image(file, is_shallow=True)
    except BaseException:
        file.close()
        if isinstance(target, Path):
            with contextlib.suppress(OSError):
                target.unlink()
        raise


def _check(path: Path, geometry: Geometry, physical_sector_size: int) -> None:
    size, block = geometry.virtual_size, geometry.block_size
    sector = geometry.logical_sector_size
    problem = ""
    if sector not in (512, 4096) or physical_sector_size not in (512, 4096):
        problem = f"a sector size of {sector} (physical {physical_sector_size})"
    elif not 0 < size <= VIRTUAL_SIZE_MAX or size % sector:
        problem = f"a virtual size of {size} bytes"
    elif not BLOCK_SIZE_MIN <= block <= BLOCK_SIZE_MAX or block & (block - 1):
        problem = f"a block size of {block} bytes"
    if problem:
        raise DiskUnsupported(
            str(path),
            problem,
            "VHDX has whole sectors of 512 or 4096 bytes, up to 64 TiB, in blocks of 1 to 256 MiB",
        )


def _items(
    geometry: Geometry,
    physical_sector_size: int,
    page83: bytes,
    fixed: bool,
    locator: dict[str, str] | None,
) -> list[ItemContent]:
    flags = (LEAVE_BLOCKS_ALLOCATED if fixed else 0) | (HAS_PARENT if locator is not None else 0)
    parameters = geometry.block_size.to_bytes(4, "little") + flags.to_bytes(4, "little")
    of_disk = IS_VIRTUAL_DISK | IS_REQUIRED
    contents = [
        (FILE_PARAMETERS, parameters, IS_REQUIRED),
        (VIRTUAL_DISK_SIZE, geometry.virtual_size.to_bytes(8, "little"), of_disk),
        (PAGE_83, page83, of_disk),
        (LOGICAL_SECTOR_SIZE, geometry.logical_sector_size.to_bytes(4, "little"), of_disk),
        (PHYSICAL_SECTOR_SIZE, physical_sector_size.to_bytes(4, "little"), of_disk),
    ]
    if locator is not None:
        contents.append((PARENT_LOCATOR, pack_locator(locator), IS_REQUIRED))
    return contents


def _write_file(
    file: BlockFile, geometry: Geometry, contents: list[ItemContent], *, fixed: bool, sparse: bool
) -> None:
    bat_size = -(-geometry.slot_count * 8 // MiB) * MiB
    blocks_from = BAT_OFFSET + bat_size
    size = blocks_from + (geometry.block_count * geometry.block_size if fixed else 0)
    file.resize(size)
    if not sparse:
        write_zeros(file, 0, size, may_punch=False)
    table = pack_region_table(
        (
            Region(METADATA_REGION, METADATA_OFFSET, METADATA_SIZE, True),
            Region(BAT_REGION, BAT_OFFSET, bat_size, True),
        )
    )
    for offset in REGION_TABLE_OFFSETS:
        file.write(table, offset)
    file.write(pack_items(contents)[1], METADATA_OFFSET)
    if fixed:
        _write_fixed_table(file, geometry, blocks_from)
    header = Header(
        sequence=1,
        file_write_guid=clock.new_uuid().bytes_le,
        data_write_guid=clock.new_uuid().bytes_le,
        log_guid=ZERO_GUID,
        log_length=LOG_SIZE,
        log_offset=LOG_OFFSET,
    )
    file.write(header.pack(), HEADER_OFFSETS[0])
    file.write(replace(header, sequence=2).pack(), HEADER_OFFSETS[1])
    file.sync()
    file.write(pack_identifier(f"standby {__version__}"), 0)
    file.sync()


def _write_fixed_table(file: BlockFile, geometry: Geometry, blocks_from: int) -> None:
    for first in range(0, geometry.block_count, _ENTRIES_PER_STEP):
        last = min(first + _ENTRIES_PER_STEP, geometry.block_count)
        slots = geometry.slots(first, last)
        entries = np.zeros(int(slots[-1] - slots[0]) + 1, dtype="<u8")
        blocks = np.arange(first, last, dtype=np.uint64)
        places = np.uint64(blocks_from) + blocks * np.uint64(geometry.block_size)
        entries[slots - slots[0]] = places | np.uint64(FULLY_PRESENT)
        file.write(entries.view(np.uint8), BAT_OFFSET + 8 * int(slots[0]))


def relative_path(child: Path, parent: Path) -> str:
    r"""How `child`'s locator names `parent`: `.\base.vhdx`, `..\a\base.vhdx`."""
    text = os.path.relpath(parent.resolve(), child.resolve().parent).replace(os.sep, "\\")
    return text if text.startswith("..\\") else ".\\" + text
