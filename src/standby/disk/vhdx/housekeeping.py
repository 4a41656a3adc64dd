"""Changes to the disk itself, each in one log entry: its size, its parent's name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from standby.disk.vhdx.geometry import (
    FULLY_PRESENT,
    OFFSET_MASK,
    PARTIALLY_PRESENT,
    STATE_MASK,
    Geometry,
)
from standby.disk.vhdx.locator import pack_locator
from standby.disk.vhdx.log_writer import PAGES_PER_ENTRY
from standby.disk.vhdx.metadata import (
    PARENT_LOCATOR,
    VIRTUAL_DISK_SIZE,
    Item,
    Metadata,
    entry_place,
    pack_entry,
)
from standby.disk.vhdx.structures import (
    BAT_REGION,
    PAGE,
    REGION_TABLE_OFFSETS,
    VIRTUAL_SIZE_MAX,
    braced_guid,
    pack_region_table,
)
from standby.disk.vhdx.writer import Writer
from standby.errors import DiskUnsupported
from standby.ports import VirtualDisk
from standby.units import MiB

_LOCATOR_MAX = (PAGES_PER_ENTRY - 26) * PAGE
_COPY = 4 * MiB
_SLOTS = 4096


# --- the parent's name -------------------------------------------------------------------------


def locator_values(
    parent_linkage: str,
    relative_path: str,
    absolute_path: str | None = None,
    parent_linkage2: str | None = None,
) -> dict[str, str]:
    """Keys and values of a parent locator; GUIDs with or without braces, ValueError if they are
    none."""
    values = {"parent_linkage": _braced(parent_linkage)}
    if absolute_path is not None:
        values["absolute_win32_path"] = absolute_path
    values["relative_path"] = relative_path
    if parent_linkage2 is not None:
        values["parent_linkage2"] = _braced(parent_linkage2)
    return values


def _braced(text: str) -> str:
    braced = "{" + text.strip("{}").lower() + "}"
    if braced_guid(braced) is None:
        raise ValueError(f"{text!r} is not a GUID")
    return braced


def set_locator(writer: Writer, values: dict[str, str]) -> None:
    """Replace the parent locator: the item's bytes and, where it moved or has another length, its
    table entry."""
    layer = writer.layer
    path = str(layer.file.path)
    if not layer.metadata.has_parent:
        raise DiskUnsupported(path, "a parent locator in a disk without parent")
    content = pack_locator(values)
    if len(content) > _LOCATOR_MAX:
        raise DiskUnsupported(path, f"a parent locator of {len(content)} bytes")
    with writer.lock:
        writer.commit()
        writer.begin(data=False)
        metadata = layer.metadata
        index = metadata.items.index(metadata.item(PARENT_LOCATOR))
        old = metadata.items[index]
        new = replace(old, offset=_place_for(path, metadata, old, content), length=len(content))
        base = metadata.region.offset
        entry = np.frombuffer(pack_entry(new), dtype=np.uint8)
        layer.pages.write(base + new.offset, np.frombuffer(content, dtype=np.uint8))
        layer.pages.write(base + entry_place(index), entry)
        items = (*metadata.items[:index], new, *metadata.items[index + 1 :])
        accepted = tuple(
            found
            for key in ("parent_linkage", "parent_linkage2")
            if key in values and (found := braced_guid(values[key])) is not None and any(found)
        )
        layer.metadata = replace(metadata, items=items, locator=values, linkages=accepted)
        writer.commit()


def _place_for(path: str, metadata: Metadata, old: Item, content: bytes) -> int:
    """Where in the region the content fits: where the old one is, else behind all items."""
    behind = [item.offset for item in metadata.items if item.offset > old.offset]
    if old.offset and old.offset + len(content) <= min(behind, default=metadata.region.length):
        return old.offset
    end = max(item.offset + item.length for item in metadata.items)
    end = -(-end // 8) * 8
    if end + len(content) > metadata.region.length:
        raise DiskUnsupported(path, "a parent locator that does not fit into the metadata region")
    return end


# --- size --------------------------------------------------------------------------------------


def grow(writer: Writer, parent: VirtualDisk | None, new_size: int) -> None:
    """Make the disk `new_size` bytes; what is new reads as zeros. The size, the table's new slots
    and, if the table had to move, both region tables become true in one log entry."""
    layer = writer.layer
    old = layer.geometry
    path = str(layer.file.path)
    if new_size % old.logical_sector_size or not old.virtual_size <= new_size <= VIRTUAL_SIZE_MAX:
        raise DiskUnsupported(
            path,
            f"resizing from {old.virtual_size} to {new_size} bytes",
            "A disk only grows, by whole sectors, up to 64 TiB",
        )
    if new_size == old.virtual_size:
        return
    with writer.lock:
        writer.commit()
        writer.begin(data=True)
        new = replace(old, virtual_size=new_size)
        _clear_tail(writer, old)
        if new.slot_count * 8 > layer.table.room:
            _move_table(writer, old, new)
        layer.table.geometry = new  # a reader of the file ignores slots beyond the old size
        _clear_slots(writer, old, new)
        if layer.metadata.is_fixed:
            _fill_fixed(writer, old, new)
        shown = min(new_size, parent.virtual_size) if parent is not None else 0
        if shown > old.virtual_size:  # the parent has content there that must not appear
            writer.zero(old.virtual_size, shown - old.virtual_size)
        stored = np.frombuffer(new_size.to_bytes(8, "little"), dtype=np.uint8)
        layer.pages.write(layer.metadata.position(VIRTUAL_DISK_SIZE), stored)
        layer.metadata = replace(layer.metadata, virtual_size=new_size)
        writer.commit()


def _clear_tail(writer: Writer, old: Geometry) -> None:
    """The bytes of the last block behind the old end: zeros, and not present in its bitmap."""
    layer = writer.layer
    block = old.block_count - 1
    inside = old.bytes_in(block)
    entry = layer.table.entry(block)
    if inside == old.block_size or entry & STATE_MASK < FULLY_PRESENT:
        return
    writer.clear((entry & OFFSET_MASK) + inside, old.block_size - inside)
    if entry & STATE_MASK == PARTIALLY_PRESENT:
        bits = layer.bitmap_bits([block])[0]
        bits[inside // old.logical_sector_size :] = 0
        layer.pages.write(layer.bitmap_place(block), np.packbits(bits, bitorder="little"))


def _clear_slots(writer: Writer, old: Geometry, new: Geometry) -> None:
    """Slots that mean something from now on: not present, whatever lies there (an old QEMU left
    strays behind a table's end)."""
    table, pages = writer.layer.table, writer.layer.pages
    kept = old.bitmap_slot(old.chunk_count - 1) if old.has_parent else -1
    for first in range(old.slot(old.block_count - 1) + 1, new.slot_count, _SLOTS):
        count = min(_SLOTS, new.slot_count - first)
        stray = np.flatnonzero(pages.read(table.offset + 8 * first, 8 * count).view("<u8"))
        for slot in (stray + first).tolist():
            if slot != kept:
                pages.write(table.offset + 8 * slot, np.zeros(8, dtype=np.uint8))
        writer.bound()


def _move_table(writer: Writer, old: Geometry, new: Geometry) -> None:
    """Copy the table to a larger region at the file's end; both region tables follow."""
    table, pages = writer.layer.table, writer.layer.pages
    length = -(-new.slot_count * 8 // MiB) * MiB
    offset = writer.new_space(length)
    used = old.slot_count * 8
    for done in range(0, used, _COPY):
        part = pages.read(table.offset + done, min(_COPY, used - done))
        writer.layer.file.write(np.ascontiguousarray(part), offset + done)
    regions = tuple(
        replace(region, offset=offset, length=length) if region.kind == BAT_REGION else region
        for region in table.regions.all
    )
    stored = np.frombuffer(pack_region_table(regions), dtype=np.uint8)
    for place in REGION_TABLE_OFFSETS:
        pages.write(place, stored)
    table.move(regions)


def _fill_fixed(writer: Writer, old: Geometry, new: Geometry) -> None:
    """A fixed disk has space for every block."""
    for first in range(old.block_count, new.block_count, _SLOTS):
        blocks = np.arange(first, min(first + _SLOTS, new.block_count), dtype=np.int64)
        offset = writer.new_space(blocks.size * new.block_size)
        values = (offset + (blocks - first) * new.block_size) | FULLY_PRESENT
        writer.layer.table.set_entries(blocks, values.astype(np.uint64))
        writer.bound()
