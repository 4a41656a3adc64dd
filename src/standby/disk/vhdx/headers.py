"""The two headers: which one counts, and how both are changed without a moment of having none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from standby.disk.vhdx.structures import (
    FIRST_FREE,
    HEADER_OFFSETS,
    HEADER_SIZE,
    IDENTIFIER_SIGNATURE,
    IDENTIFIER_SIZE,
    LOG_SIZE_MAX,
    ZERO_GUID,
    Header,
    parse_creator,
    parse_header,
)
from standby.errors import DiskCorrupt, DiskUnsupported
from standby.files import BlockFile
from standby.units import MiB


@dataclass(slots=True)
class Headers:
    """The current header, which of the two places holds it, and the file they are in."""

    file: BlockFile
    current: Header
    place: int

    def update(self, **changes: Any) -> None:
        """Change fields in both headers: over the one that is not current, sync, then over the
        other, sync. A crash at any point leaves one valid header at least (2.2.2)."""
        for _ in HEADER_OFFSETS:
            changed = replace(self.current, sequence=self.current.sequence + 1, **changes)
            place = 1 - self.place
            self.file.write(changed.pack(), HEADER_OFFSETS[place])
            self.file.sync()
            self.current, self.place = changed, place


def read_identifier(file: BlockFile) -> str:
    """The creator; DiskCorrupt when the file does not begin as a VHDX does."""
    path = str(file.path)
    if file.size < HEADER_OFFSETS[-1] + HEADER_SIZE:
        raise DiskCorrupt(path, "file too short for a VHDX", 0, f"{file.size} bytes")
    start = file.read(0, IDENTIFIER_SIZE)
    signature = start[:8]
    if signature != IDENTIFIER_SIGNATURE:
        raise DiskCorrupt(path, "file signature is not 'vhdxfile'", 0, repr(signature))
    return parse_creator(start)


def read_headers(file: BlockFile) -> Headers:
    """The header that counts; DiskCorrupt when none does or when it cannot be.

    Two valid headers of one sequence number are accepted only if they are equal, as Disk2vhd
    writes them.
    """
    path = str(file.path)
    stored = [file.read(offset, HEADER_SIZE) for offset in HEADER_OFFSETS]
    parsed = [parse_header(data) for data in stored]
    valid = [(header, place) for place, header in enumerate(parsed) if header is not None]
    if not valid:
        raise DiskCorrupt(
            path,
            "both headers are damaged (signature or checksum)",
            HEADER_OFFSETS[0],
            f"{stored[0][:8].hex()} and {stored[1][:8].hex()}",
        )
    if len(valid) == 2 and valid[0][0].sequence == valid[1][0].sequence and stored[0] != stored[1]:
        raise DiskCorrupt(
            path,
            "the headers have one sequence number and different content",
            HEADER_OFFSETS[0] + 8,
            str(valid[0][0].sequence),
        )
    current, place = max(valid, key=lambda pair: pair[0].sequence)
    _check(path, current, HEADER_OFFSETS[place], file.size)
    return Headers(file, current, place)


def _check(path: str, header: Header, offset: int, file_size: int) -> None:
    if header.version != 1:
        raise DiskUnsupported(path, f"VHDX version {header.version} (at offset {offset + 66:#x})")
    is_dirty = header.log_guid != ZERO_GUID
    if is_dirty and header.log_version != 0:
        raise DiskUnsupported(
            path, f"log version {header.log_version} (at offset {offset + 64:#x})"
        )
    start, length = header.log_offset, header.log_length
    if length % MiB or length > LOG_SIZE_MAX or (is_dirty and not length):
        raise DiskCorrupt(path, "log length is not usable", offset + 68, f"{length:#x}")
    if length and (start % MiB or start < FIRST_FREE):
        raise DiskCorrupt(
            path, "log offset is not a multiple of 1 MiB from 1 MiB on", offset + 72, f"{start:#x}"
        )
    if length and start + length > file_size:
        raise DiskCorrupt(
            path,
            "the log lies outside the file",
            offset + 72,
            f"{start:#x}+{length:#x} in {file_size:#x} bytes",
        )
