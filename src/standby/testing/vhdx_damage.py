"""VHDX files to be damaged: made byte by byte, patched, their checksums put right again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from standby.disk.vhdx import structures
from standby.disk.vhdx.crc32c import crc32c
from standby.disk.vhdx.locator import pack_locator
from standby.disk.vhdx.metadata import (
    FILE_PARAMETERS,
    LOGICAL_SECTOR_SIZE,
    PAGE_83,
    PARENT_LOCATOR,
    PHYSICAL_SECTOR_SIZE,
    VIRTUAL_DISK_SIZE,
    Item,
    pack_table,
)
from standby.testing.disks import random_bytes
from standby.units import KiB, MiB

LOG = MiB
PAGE = 4 * KiB


class Patched:
    """The bytes of a file under the patcher's knife."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def put(self, offset: int, value: bytes | int, size: int = 0) -> None:
        """Bytes, or an integer of `size` bytes."""
        stored = value.to_bytes(size, "little") if isinstance(value, int) else value
        self.data[offset : offset + len(stored)] = stored

    def get(self, offset: int, size: int) -> int:
        """The integer at `offset`."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    def flip(self, offset: int, mask: int = 0xFF) -> None:
        """Xor a byte."""
        self.data[offset] ^= mask

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes."""
        del self.data[size:]

    def seal(self, offset: int, size: int) -> None:
        """Put the checksum of a header, region table or log entry right."""
        self.data[offset + 4 : offset + 8] = bytes(4)
        checksum = crc32c(bytes(self.data[offset : offset + size]))
        self.put(offset + 4, checksum, 4)

    @property
    def current(self) -> int:
        """Offset of the header with the larger number."""
        return max(structures.HEADER_OFFSETS, key=lambda place: self.get(place + 8, 8))

    def headers(self, *patches: tuple[int, bytes | int, int]) -> None:
        """Patch both headers."""
        self._both(structures.HEADER_OFFSETS, structures.HEADER_SIZE, patches)

    def tables(self, *patches: tuple[int, bytes | int, int]) -> None:
        """Patch both region tables."""
        self._both(structures.REGION_TABLE_OFFSETS, structures.REGION_TABLE_SIZE, patches)

    def _both(
        self, places: tuple[int, ...], size: int, patches: tuple[tuple[int, bytes | int, int], ...]
    ) -> None:
        for place in places:
            for offset, value, length in patches:
                self.put(place + offset, value, length)
            self.seal(place, size)

    def region(self, kind: bytes) -> int:
        """Where the entry of a region begins in a region table."""
        place = structures.REGION_TABLE_OFFSETS[0]
        for index in range(self.get(place + 8, 4)):
            entry = 16 + 32 * index
            if self.data[place + entry : place + entry + 16] == kind:
                return entry
        raise LookupError(kind)

    def log_entry(
        self, damage: Callable[[Patched], None] | None = None, *, sealed: bool = True
    ) -> None:
        """Name a log in the headers and put one entry there, which makes the first slot of the BAT
        ZERO, after `damage` changed it (at LOG); `sealed` puts its checksum right."""
        guid = b"\x11" * 16
        self.headers((48, guid, 0))
        place = self.region(structures.BAT_REGION) + structures.REGION_TABLE_OFFSETS[0]
        bat = self.get(place + 16, 8)
        page = (2).to_bytes(8, "little") + bytes(self.data[bat + 8 : bat + PAGE])
        entry = structures.pack_entry(
            [(bat, page)],
            sequence=5,
            tail=0,
            log_guid=guid,
            flushed_size=len(self.data),
            last_size=len(self.data),
        )
        self.put(LOG, entry)
        if damage is not None:
            damage(self)
        if sealed:
            self.seal(LOG, len(entry))


def _frame(
    items: list[tuple[bytes, bytes, int]], bat: int, metadata: int, entries: dict[int, int]
) -> bytearray:
    """A file up to its blocks: identifier, headers, regions, metadata items from 64 KiB on without
    gaps, slots of the BAT."""
    data = bytearray(4 * MiB)
    regions = (
        structures.Region(structures.BAT_REGION, bat, MiB, True),
        structures.Region(structures.METADATA_REGION, metadata, MiB, True),
    )
    data[: structures.IDENTIFIER_SIZE] = structures.pack_identifier("a test")
    for sequence, place in enumerate(structures.HEADER_OFFSETS, start=7):
        header = structures.Header(
            sequence, b"\x21" * 16, b"\x22" * 16, bytes(16), log_length=MiB, log_offset=LOG
        )
        data[place : place + structures.HEADER_SIZE] = header.pack()
    for place in structures.REGION_TABLE_OFFSETS:
        table = structures.pack_region_table(regions)
        data[place : place + len(table)] = table
    placed, content = [], bytearray()
    for kind, value, flags in items:
        placed.append(Item(kind, 64 * KiB + len(content), len(value), flags))
        content += value
    region = pack_table(tuple(placed)) + bytes(content)
    data[metadata : metadata + len(region)] = region
    for slot, entry in entries.items():
        data[bat + 8 * slot : bat + 8 * slot + 8] = entry.to_bytes(8, "little")
    return data


def base_a() -> bytes:
    """A dynamic disk of 8 blocks of 1 MiB, laid out as qemu-img does: blocks 0, 2 and 7 have
    content, the others are zero. BAT at 2 MiB, metadata at 3 MiB, blocks from 8 MiB."""
    items = [
        (FILE_PARAMETERS, MiB.to_bytes(4, "little") + bytes(4), 4),
        (VIRTUAL_DISK_SIZE, (8 * MiB).to_bytes(8, "little"), 6),
        (PAGE_83, b"\x83" * 16, 6),
        (LOGICAL_SECTOR_SIZE, (512).to_bytes(4, "little"), 6),
        (PHYSICAL_SECTOR_SIZE, (512).to_bytes(4, "little"), 6),
    ]
    entries = dict.fromkeys(range(8), 2)
    entries |= {block: (8 + index) * MiB | 6 for index, block in enumerate((0, 2, 7))}
    data = _frame(items, 2 * MiB, 3 * MiB, entries)
    return bytes(data.ljust(8 * MiB, b"\0")) + random_bytes(3 * MiB, 1)


PARENT_NAME = "fat-parent.vhdx"
CHILD_NAME = "fat-differential.vhdx"


def base_b(folder: Path) -> Path:
    """A differencing disk beside its parent, laid out as Windows does: two blocks of 2 MiB, the
    first partially present, the second not."""
    guid = b"\x22" * 16
    size = (4 * MiB).to_bytes(8, "little")
    sectors = (512).to_bytes(4, "little"), (4096).to_bytes(4, "little")

    def items(flags: int) -> list[tuple[bytes, bytes, int]]:
        return [
            (FILE_PARAMETERS, (2 * MiB).to_bytes(4, "little") + flags.to_bytes(4, "little"), 4),
            (VIRTUAL_DISK_SIZE, size, 6),
            (LOGICAL_SECTOR_SIZE, sectors[0], 6),
            (PHYSICAL_SECTOR_SIZE, sectors[1], 6),
            (PAGE_83, b"\x83" * 16, 6),
        ]

    parent = _frame(items(1), 3 * MiB, 2 * MiB, {0: 4 * MiB | 6, 1: 6 * MiB | 6})
    (folder / PARENT_NAME).write_bytes(bytes(parent) + random_bytes(4 * MiB, 2))
    values = {
        "parent_linkage": "{" + structures.guid_text(guid) + "}",
        "absolute_win32_path": ("C:\\" + "x" * 43)[:43],
        "relative_path": ".\\" + PARENT_NAME,
        "volume_path": "\\\\?\\Volume{0}\\" + PARENT_NAME,
        "parent_linkage2": "{" + structures.guid_text(bytes(16)) + "}",
    }
    locator = (PARENT_LOCATOR, pack_locator(values), 4)
    child = _frame([*items(2), locator], 3 * MiB, 2 * MiB, {0: 5 * MiB | 7, 2048: 4 * MiB | 6})
    bitmap = bytearray(MiB)
    bitmap[3] = 0b1010
    bitmap[511] = 0x80
    path = folder / CHILD_NAME
    path.write_bytes(bytes(child) + bytes(bitmap) + random_bytes(2 * MiB, 3))
    return path
