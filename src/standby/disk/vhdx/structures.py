"""The fixed structures of a VHDX file as values: where they lie, their sizes, packing and parsing.

Section numbers are those of [MS-VHDX]. Nothing here does I/O. All integers are little-endian, GUIDs
are kept as their 16 stored bytes (mixed-endian; `guid_text` gives the usual text).
"""

from __future__ import annotations

import re
import struct
import uuid
from dataclasses import dataclass

from standby.disk.vhdx.crc32c import crc32c
from standby.errors import DiskCorrupt
from standby.ports import Buffer
from standby.units import KiB, MiB, TiB

PAGE = 4 * KiB
"""Unit of the log and of everything that goes through it."""

IDENTIFIER_SIGNATURE = b"vhdxfile"
IDENTIFIER_SIZE = 64 * KiB
HEADER_OFFSETS = (64 * KiB, 128 * KiB)
HEADER_SIZE = 4 * KiB
REGION_TABLE_OFFSETS = (192 * KiB, 256 * KiB)
REGION_TABLE_SIZE = 64 * KiB
LOGGABLE_FROM = REGION_TABLE_OFFSETS[0]
"""Identifier and headers are never changed through the log."""
FIRST_FREE = MiB
"""Log, regions and blocks lie from here on, each from a multiple of 1 MiB."""

REGION_COUNT_MAX = 2047
LOG_SIZE_MAX = 1 << 30
FILE_SIZE_MAX = 128 * TiB
"""No file of a 64 TiB disk is longer; a log that asks for more is hostile."""
VIRTUAL_SIZE_MAX = 64 * TiB
BLOCK_SIZE_MIN = MiB
BLOCK_SIZE_MAX = 256 * MiB
SECTORS_PER_CHUNK = 1 << 23
BITMAP_BLOCK = MiB

ZERO_GUID = bytes(16)


def guid(text: str) -> bytes:
    """The stored 16 bytes of a GUID; ValueError when `text` is none."""
    return uuid.UUID(text).bytes_le


def guid_text(stored: bytes) -> str:
    """`stored` as lower-case text without braces."""
    return str(uuid.UUID(bytes_le=stored))


BAT_REGION = guid("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION = guid("8B7CA206-4790-4B9A-B8FE-575F050F886E")

_BRACED = re.compile(r"\{[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\}")


def braced_guid(text: str) -> bytes | None:
    """The stored bytes of `{xxxxxxxx-xxxx-…}` of a parent locator; None if it is no such text."""
    return guid(text[1:-1]) if _BRACED.fullmatch(text) else None


# --- file type identifier (2.2.1) --------------------------------------------------------------


def pack_identifier(creator: str) -> bytes:
    """The 64 KiB file type identifier."""
    return (IDENTIFIER_SIGNATURE + creator.encode("utf-16-le")[:510]).ljust(IDENTIFIER_SIZE, b"\0")


def parse_creator(data: bytes) -> str:
    """The creator text, diagnostic only: whatever cannot be read is replaced."""
    return data[8:520].decode("utf-16-le", "replace").partition("\0")[0]


# --- header (2.2.2) ----------------------------------------------------------------------------

_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
assert _HEADER.size == 80


@dataclass(frozen=True, slots=True)
class Header:
    """One of the two headers; its signature and checksum are right, nothing else is implied."""

    sequence: int
    file_write_guid: bytes
    data_write_guid: bytes
    log_guid: bytes
    log_length: int
    log_offset: int
    log_version: int = 0
    version: int = 1

    def pack(self) -> bytes:
        """4096 bytes with the checksum."""
        fields = _HEADER.pack(
            b"head",
            0,
            self.sequence,
            self.file_write_guid,
            self.data_write_guid,
            self.log_guid,
            self.log_version,
            self.version,
            self.log_length,
            self.log_offset,
        )
        return with_checksum(fields.ljust(HEADER_SIZE, b"\0"))


def parse_header(data: bytes) -> Header | None:
    """The header in `data`; None when signature or checksum is wrong."""
    if data[:4] != b"head" or not has_checksum(data):
        return None
    fields = _HEADER.unpack_from(data)
    return Header(
        sequence=fields[2],
        file_write_guid=fields[3],
        data_write_guid=fields[4],
        log_guid=fields[5],
        log_version=fields[6],
        version=fields[7],
        log_length=fields[8],
        log_offset=fields[9],
    )


def with_checksum(data: bytes) -> bytes:
    """`data` with the CRC-32C of itself at offset 4, as headers, region tables and log entries
    have it."""
    zeroed = data[:4] + bytes(4) + data[8:]
    return zeroed[:4] + crc32c(zeroed).to_bytes(4, "little") + zeroed[8:]


def has_checksum(data: bytes) -> bool:
    """Whether the CRC-32C at offset 4 is right."""
    return data[4:8] == crc32c(data[:4] + bytes(4) + data[8:]).to_bytes(4, "little")


# --- region table (2.2.3) ----------------------------------------------------------------------

_REGION_HEADER = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")


@dataclass(frozen=True, slots=True)
class Region:
    """A region table entry."""

    kind: bytes
    offset: int
    length: int
    is_required: bool

    @property
    def stop(self) -> int:
        """First byte behind the region."""
        return self.offset + self.length


def pack_region_table(regions: tuple[Region, ...]) -> bytes:
    """The 64 KiB region table with its checksum."""
    head = _REGION_HEADER.pack(b"regi", 0, len(regions), 0)
    body = b"".join(
        _REGION.pack(region.kind, region.offset, region.length, int(region.is_required))
        for region in regions
    )
    return with_checksum((head + body).ljust(REGION_TABLE_SIZE, b"\0"))


def parse_region_table(path: str, data: bytes, offset: int) -> tuple[Region, ...] | None:
    """The entries; None when signature or checksum is wrong, DiskCorrupt when there are too
    many."""
    if data[:4] != b"regi" or not has_checksum(data):
        return None
    count = _REGION_HEADER.unpack_from(data)[2]
    if count > REGION_COUNT_MAX:
        raise DiskCorrupt(path, "region table: too many entries", offset + 8, str(count))
    return tuple(
        Region(kind, start, length, bool(flags & 1))
        for kind, start, length, flags in (
            _REGION.unpack_from(data, 16 + 32 * index) for index in range(count)
        )
    )


# --- log entry (2.3) ---------------------------------------------------------------------------

ENTRY_HEADER = struct.Struct("<4sIIIQII16sQQ")
assert ENTRY_HEADER.size == 64
_DATA_DESCRIPTOR = struct.Struct("<4s4s8sQQ")
DESCRIPTOR_SIZE = 32


@dataclass(frozen=True, slots=True)
class EntryHeader:
    """The first 64 bytes of a log entry."""

    checksum: int
    length: int
    tail: int
    sequence: int
    count: int
    log_guid: bytes
    flushed_size: int
    last_size: int

    @property
    def descriptor_bytes(self) -> int:
        """Bytes of the sectors that hold this header and the descriptors."""
        return -(-(ENTRY_HEADER.size + DESCRIPTOR_SIZE * self.count) // PAGE) * PAGE


def parse_entry_header(data: Buffer) -> EntryHeader:
    """The header fields; the signature is the caller's to check."""
    _, checksum, length, tail, sequence, count, _, log_guid, flushed, last = (
        ENTRY_HEADER.unpack_from(data)
    )
    return EntryHeader(checksum, length, tail, sequence, count, log_guid, flushed, last)


def pack_entry(
    pages: list[tuple[int, bytes]],
    *,
    sequence: int,
    tail: int,
    log_guid: bytes,
    flushed_size: int,
    last_size: int,
) -> bytes:
    """A log entry that puts each page of 4096 bytes at its file offset; `pages` may be empty."""
    count = len(pages)
    descriptor_bytes = -(-(ENTRY_HEADER.size + DESCRIPTOR_SIZE * count) // PAGE) * PAGE
    length = descriptor_bytes + PAGE * count
    entry = bytearray(length)
    ENTRY_HEADER.pack_into(
        entry, 0, b"loge", 0, length, tail, sequence, count, 0, log_guid, flushed_size, last_size
    )
    low = (sequence & 0xFFFFFFFF).to_bytes(4, "little")
    high = (sequence >> 32).to_bytes(4, "little")
    for index, (offset, page) in enumerate(pages):
        place = ENTRY_HEADER.size + DESCRIPTOR_SIZE * index
        _DATA_DESCRIPTOR.pack_into(entry, place, b"desc", page[4092:], page[:8], offset, sequence)
        place = descriptor_bytes + PAGE * index
        entry[place : place + 8] = b"data" + high
        entry[place + 8 : place + 4092] = page[8:4092]
        entry[place + 4092 : place + PAGE] = low
    entry[4:8] = crc32c(entry).to_bytes(4, "little")
    return bytes(entry)
