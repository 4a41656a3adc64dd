"""The metadata region: a table of items, and the six items that say what the disk is (2.6)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from standby.disk.vhdx.locator import linkages, parse_locator
from standby.disk.vhdx.structures import (
    BLOCK_SIZE_MAX,
    BLOCK_SIZE_MIN,
    VIRTUAL_SIZE_MAX,
    Region,
    guid,
    guid_text,
)
from standby.errors import DiskCorrupt, DiskUnsupported
from standby.files import BlockFile
from standby.units import KiB, MiB

TABLE_SIZE = 64 * KiB
ITEM_COUNT_MAX = 2047
USER_ITEM_COUNT_MAX = 1024
ITEM_SIZE_MAX = MiB

IS_USER, IS_VIRTUAL_DISK, IS_REQUIRED = 1, 2, 4

FILE_PARAMETERS = guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
VIRTUAL_DISK_SIZE = guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
PAGE_83 = guid("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR_SIZE = guid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR_SIZE = guid("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR = guid("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
INCOMPLETE_FILE = guid("71CC85F0-1B69-4E28-9558-C3BF83AE75D3")

_FIXED_SIZES = {
    FILE_PARAMETERS: 8,
    VIRTUAL_DISK_SIZE: 8,
    PAGE_83: 16,
    LOGICAL_SECTOR_SIZE: 4,
    PHYSICAL_SECTOR_SIZE: 4,
}
"""The items every VHDX must have, with their lengths."""

LEAVE_BLOCKS_ALLOCATED, HAS_PARENT = 1, 2

_HEAD = struct.Struct("<8sHH20x")
_ENTRY = struct.Struct("<16sIIII")


@dataclass(frozen=True, slots=True)
class Item:
    """An entry of the metadata table; `offset` counts from the region's start."""

    kind: bytes
    offset: int
    length: int
    flags: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the metadata says, checked against the limits."""

    region: Region
    items: tuple[Item, ...]
    block_size: int
    is_fixed: bool
    has_parent: bool
    virtual_size: int
    page83: bytes
    logical_sector_size: int
    physical_sector_size: int
    locator: dict[str, str]
    linkages: tuple[bytes, ...]
    """Data-write GUIDs that the parent may have; empty without a parent."""

    def item(self, kind: bytes) -> Item:
        """The entry of a system item that is there."""
        return next(found for found in self.items if _is_system(found, kind))

    def position(self, kind: bytes) -> int:
        """File offset of a system item's content."""
        return self.region.offset + self.item(kind).offset


def pack_entry(item: Item) -> bytes:
    """One entry of the table."""
    return _ENTRY.pack(item.kind, item.offset, item.length, item.flags, 0)


def entry_place(index: int) -> int:
    """Where entry `index` of the table begins, from the region's start."""
    return _HEAD.size + _ENTRY.size * index


def _is_system(item: Item, kind: bytes) -> bool:
    return item.kind == kind and not item.flags & IS_USER


def is_known(item: Item) -> bool:
    """Whether this package reads the item."""
    is_system = not item.flags & IS_USER
    return is_system and (item.kind in _FIXED_SIZES or item.kind == PARENT_LOCATOR)


def pack_table(items: tuple[Item, ...]) -> bytes:
    """The 64 KiB table."""
    head = _HEAD.pack(b"metadata", 0, len(items))
    body = b"".join(map(pack_entry, items))
    return (head + body).ljust(TABLE_SIZE, b"\0")


def pack_items(contents: list[tuple[bytes, bytes, int]]) -> tuple[tuple[Item, ...], bytes]:
    """The table's items and the bytes of the region that hold them, table first, for
    (kind, content, flags) each."""
    place = TABLE_SIZE
    items, body = [], bytearray()
    for kind, content, flags in contents:
        items.append(Item(kind, place if content else 0, len(content), flags))
        padded = content.ljust(-(-len(content) // 8) * 8, b"\0")
        body += padded
        place += len(padded)
    packed = tuple(items)
    return packed, pack_table(packed) + bytes(body)


def read_metadata(file: BlockFile, region: Region) -> Metadata:
    """The checked metadata; DiskCorrupt or DiskUnsupported names what is wrong."""
    path = str(file.path)
    items = _read_table(file, region)
    contents = {}
    for kind, size in _FIXED_SIZES.items():
        item = next((i for i in items if _is_system(i, kind)), None)
        if item is None:
            raise DiskCorrupt(
                path, f"metadata: required item {guid_text(kind)} missing", region.offset, "absent"
            )
        if item.length != size:
            raise DiskCorrupt(
                path,
                f"metadata: length of item {guid_text(kind)}",
                region.offset + item.offset,
                f"{item.length}, not {size}",
            )
        contents[kind] = file.read(region.offset + item.offset, size)
    places = {i.kind: region.offset + i.offset for i in items if not i.flags & IS_USER}
    block_size, flags = struct.unpack("<II", contents[FILE_PARAMETERS])
    virtual_size = int.from_bytes(contents[VIRTUAL_DISK_SIZE], "little")
    logical = int.from_bytes(contents[LOGICAL_SECTOR_SIZE], "little")
    physical = int.from_bytes(contents[PHYSICAL_SECTOR_SIZE], "little")
    _check_values(path, places, block_size, flags, virtual_size, logical, physical)
    has_parent = bool(flags & HAS_PARENT)
    locator: dict[str, str] = {}
    accepted: tuple[bytes, ...] = ()
    if has_parent:
        item = next((i for i in items if _is_system(i, PARENT_LOCATOR)), None)
        if item is None:
            raise DiskCorrupt(
                path,
                "metadata: the disk has a parent but no parent locator",
                places[FILE_PARAMETERS] + 4,
                f"{flags:#x}",
            )
        place = region.offset + item.offset
        locator = parse_locator(path, file.read(place, item.length), place)
        accepted = linkages(path, locator, place)
    return Metadata(
        region=region,
        items=items,
        block_size=block_size,
        is_fixed=bool(flags & LEAVE_BLOCKS_ALLOCATED) and not has_parent,
        has_parent=has_parent,
        virtual_size=virtual_size,
        page83=contents[PAGE_83],
        logical_sector_size=logical,
        physical_sector_size=physical,
        locator=locator,
        linkages=accepted,
    )


def _check_values(
    path: str,
    places: dict[bytes, int],
    block_size: int,
    flags: int,
    virtual_size: int,
    logical: int,
    physical: int,
) -> None:
    at = places[FILE_PARAMETERS]
    if not BLOCK_SIZE_MIN <= block_size <= BLOCK_SIZE_MAX or block_size & (block_size - 1):
        raise DiskCorrupt(path, "block size", at, f"{block_size:#x}")
    if flags & ~(LEAVE_BLOCKS_ALLOCATED | HAS_PARENT):
        raise DiskCorrupt(path, "file parameters: reserved bits are set", at + 4, f"{flags:#x}")
    for kind, value in ((LOGICAL_SECTOR_SIZE, logical), (PHYSICAL_SECTOR_SIZE, physical)):
        if value not in (512, 4096):
            raise DiskCorrupt(path, "sector size is not 512 or 4096", places[kind], f"{value:#x}")
    at = places[VIRTUAL_DISK_SIZE]
    if not 0 < virtual_size <= VIRTUAL_SIZE_MAX:
        raise DiskCorrupt(path, "virtual disk size is not 1 to 64 TiB", at, f"{virtual_size:#x}")
    if virtual_size % logical:
        raise DiskCorrupt(
            path, "virtual disk size is not whole logical sectors", at, f"{virtual_size:#x}"
        )


def _read_table(file: BlockFile, region: Region) -> tuple[Item, ...]:
    path, base = str(file.path), region.offset
    data = file.read(base, TABLE_SIZE)
    signature, _, count = _HEAD.unpack_from(data)
    if signature != b"metadata":
        raise DiskCorrupt(path, "metadata table signature", base, repr(signature))
    if not 0 < count <= ITEM_COUNT_MAX:
        raise DiskCorrupt(path, "metadata table: count of entries", base + 10, str(count))
    items = tuple(
        Item(kind, offset, length, flags)
        for kind, offset, length, flags, _ in (
            _ENTRY.unpack_from(data, entry_place(index)) for index in range(count)
        )
    )
    _check_items(path, region, items)
    return items


def _check_items(path: str, region: Region, items: tuple[Item, ...]) -> None:
    seen = set()
    for index, item in enumerate(items):
        place = region.offset + entry_place(index)
        name = guid_text(item.kind)
        key = (item.kind, item.flags & IS_USER)
        if key in seen:
            raise DiskCorrupt(path, "metadata item is there twice", place, name)
        seen.add(key)
        if item.length > ITEM_SIZE_MAX:
            raise DiskCorrupt(path, "metadata item length", place + 20, f"{item.length:#x}")
        if item.length and not TABLE_SIZE <= item.offset <= region.length - item.length:
            raise DiskCorrupt(
                path, "metadata item outside its region", place + 16, f"{item.offset:#x}"
            )
        if not item.flags & IS_USER and item.kind == INCOMPLETE_FILE:
            raise DiskUnsupported(
                path, "a file whose creation was not finished", "Make it again or delete it"
            )
        if item.flags & IS_REQUIRED and not is_known(item):
            raise DiskUnsupported(path, f"required metadata item {name} (at offset {place:#x})")
    users = sum(item.flags & IS_USER for item in items)
    if users > USER_ITEM_COUNT_MAX:
        raise DiskCorrupt(path, "metadata table: count of user entries", region.offset, str(users))
    placed = sorted((item.offset, item.length) for item in items if item.length)
    for before, after in pairwise(placed):
        if before[0] + before[1] > after[0]:
            raise DiskCorrupt(
                path,
                "metadata items overlap",
                region.offset + after[0],
                f"{before[0]:#x}+{before[1]:#x}",
            )
