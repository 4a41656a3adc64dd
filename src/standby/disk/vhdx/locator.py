"""The parent locator: keys and values that name a differencing disk's parent (2.6.2.6)."""

from __future__ import annotations

import struct

from standby.disk.vhdx.structures import ZERO_GUID, braced_guid, guid, guid_text
from standby.errors import DiskCorrupt, DiskUnsupported

LOCATOR_TYPE = guid("B04AEFB7-D19E-4A81-B789-25B8E9445913")
KEY_COUNT_MAX = 256

_HEAD = struct.Struct("<16sHH")
_ENTRY = struct.Struct("<IIHH")


def pack_locator(values: dict[str, str]) -> bytes:
    """The item, keys in the order given, each followed by its value, as Windows lays them out."""
    head = _HEAD.pack(LOCATOR_TYPE, 0, len(values))
    place = len(head) + _ENTRY.size * len(values)
    entries, texts = bytearray(), bytearray()
    for key, value in values.items():
        stored_key, stored_value = key.encode("utf-16-le"), value.encode("utf-16-le")
        value_place = place + len(stored_key)
        entries += _ENTRY.pack(place, value_place, len(stored_key), len(stored_value))
        texts += stored_key + stored_value
        place = value_place + len(stored_value)
    return head + bytes(entries) + bytes(texts)


def parse_locator(path: str, item: bytes, offset: int) -> dict[str, str]:
    """The keys and values of the item that lies at file offset `offset`."""
    if len(item) < _HEAD.size:
        raise DiskCorrupt(path, "parent locator: item too short", offset, f"{len(item)} bytes")
    kind, _, count = _HEAD.unpack_from(item)
    if kind != LOCATOR_TYPE:
        raise DiskUnsupported(path, f"parent locator type {guid_text(kind)} (at {offset:#x})")
    first = _HEAD.size + _ENTRY.size * count
    if not 0 < count <= KEY_COUNT_MAX or first > len(item):
        raise DiskCorrupt(path, "parent locator: count of keys", offset + 18, str(count))
    found: dict[str, str] = {}
    for index in range(count):
        entry_place = _HEAD.size + _ENTRY.size * index
        key_at, value_at, key_length, value_length = _ENTRY.unpack_from(item, entry_place)
        where = offset + entry_place
        key = _text(path, item, first, where, key_at, key_length)
        value = _text(path, item, first, where + 4, value_at, value_length)
        if key in found:
            raise DiskCorrupt(path, "parent locator: a key is there twice", where, repr(key))
        found[key] = value
    return found


def _text(path: str, item: bytes, first: int, where: int, start: int, length: int) -> str:
    if start < first or length == 0 or length % 2 or start + length > len(item):
        raise DiskCorrupt(
            path, "parent locator: text outside the item", where, f"{start:#x}+{length}"
        )
    stored = item[start : start + length]
    try:
        text = stored.decode("utf-16-le")
    except UnicodeDecodeError as exc:
        raise DiskCorrupt(
            path, "parent locator: text is not UTF-16", where, stored[:32].hex()
        ) from exc
    if "\0" in text:
        raise DiskCorrupt(path, "parent locator: text holds a NUL", where, repr(text[:64]))
    return text


def linkages(path: str, locator: dict[str, str], offset: int) -> tuple[bytes, ...]:
    """The data-write GUIDs that the parent may have: parent_linkage, and parent_linkage2 unless it
    is zero (Windows 10 writes it as zero; what it is for is RULES 15)."""
    found = []
    for key in ("parent_linkage", "parent_linkage2"):
        text = locator.get(key)
        if text is None:
            if key == "parent_linkage":
                raise DiskCorrupt(path, "parent locator: no parent_linkage", offset, repr(locator))
            continue
        value = braced_guid(text)
        if value is None:
            raise DiskCorrupt(path, f"parent locator: {key} is not a GUID", offset, repr(text))
        if key == "parent_linkage" or value != ZERO_GUID:
            found.append(value)
    return tuple(found)
