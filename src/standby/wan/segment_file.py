"""The bytes of a segment file (FORMAT.md): header, records, footer, trailer.

Every part carries a checksum, the first 8 bytes of BLAKE3 over it: as fast as the disk, and not to
be met by chance. A checksum finds accidents; that content is what its name says is proven by the
name itself, which is computed again whenever content is handed out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import blake3
import msgspec
import numpy as np
import numpy.typing as npt

from standby.errors import DiskError
from standby.files import BlockFile
from standby.units import KiB

Buffer = Any
Names = npt.NDArray[np.uint8]
"""(n, 16) uint8."""

PIECE = 4 * KiB
NAME = 16
VERSION = 1

CONTENT = 1
"""A segment that holds pieces."""
IN_DISK = 2
"""A segment that only names pieces which a disk file beside the cache holds."""

RAW, ZSTD = 0, 1

PIECES_MAX = 1 << 20
"""Pieces of one segment: what 20 bits of a location count."""
RECORD_PIECES_MAX = 1 << 16
CONTENT_PIECES_MAX = 256

HEADER_MAGIC = b"STBYSEGM"
RECORD_MAGIC = b"SREC"
TRAILER_MAGIC = b"STBYSEND"

_FIXED = struct.Struct("<8sIIQ16s16sII")
"""magic, version, kind, number, id, namespace, piece size, length of what follows."""
_TAIL_MAX = 64 * KiB
_RECORD = struct.Struct("<4sBBHIIIIQ8s")
"""magic, type, codec, 0, number, first piece, pieces, payload length, place, start of the id."""
_TRAILER = struct.Struct("<8sQQ8s")
"""magic, footer's offset and length, start of the id."""
CHECKSUM = 8
HEADER_MIN = _FIXED.size + CHECKSUM
RECORD_HEAD = _RECORD.size + CHECKSUM
TRAILER = _TRAILER.size + CHECKSUM
assert (HEADER_MIN, RECORD_HEAD, TRAILER) == (72, 48, 40)

_PIECES, _FOOTER = 1, 2

DIRECTORY = np.dtype(
    [
        ("offset", "<u8"),
        ("place", "<u8"),
        ("first", "<u4"),
        ("count", "<u4"),
        ("payload", "<u4"),
        ("codec", "<u4"),
    ]
)
"""One row per record: where it stands, for IN_DISK its first piece in the disk, its pieces."""
assert DIRECTORY.itemsize == 32

Directory = npt.NDArray[np.void]


class SegmentDamaged(ValueError):
    """These bytes are not what a segment holds there; the text says why."""


class SegmentUnknown(SegmentDamaged):
    """The segment is of another release's format."""


class DiskFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file that the entries of an IN_DISK segment point into."""

    path: str
    data_write_guid: str
    virtual_size: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment says of itself. `namespace` is the fingerprint of the tenant's key."""

    kind: int
    number: int
    id: bytes
    namespace: bytes
    disk: DiskFile | None = None

    @property
    def mark(self) -> bytes:
        """What each record repeats of the id, so that no other segment's record counts here."""
        return self.id[:8]


@dataclass(frozen=True, slots=True)
class Record:
    """One record: `count` pieces from position `first` on."""

    number: int
    first: int
    count: int
    codec: int
    place: int
    names: Names
    payload: Buffer

    @property
    def length(self) -> int:
        """Bytes of it in the file."""
        return RECORD_HEAD + NAME * self.count + len(self.payload)


def checksum(*parts: Buffer) -> bytes:
    """The first 8 bytes of BLAKE3 over the parts in order."""
    state = blake3.blake3()
    for part in parts:
        state.update(part)
    return state.digest(CHECKSUM)


# --- header ------------------------------------------------------------------------------------


def packed_header(header: Header) -> bytes:
    """The bytes that a segment begins with."""
    tail = b"" if header.disk is None else msgspec.json.encode(header.disk)
    fixed = _FIXED.pack(
        HEADER_MAGIC,
        VERSION,
        header.kind,
        header.number,
        header.id,
        header.namespace,
        PIECE,
        len(tail),
    )
    return fixed + tail + checksum(fixed, tail)


def read_header(file: BlockFile) -> tuple[Header, int]:
    """The header and the offset of the first record; raises SegmentDamaged."""
    if file.size < HEADER_MIN:
        raise SegmentDamaged(f"{file.size} bytes, less than a header")
    fixed = file.read(0, _FIXED.size)
    magic, version, kind, number, id_, namespace, piece, tail_length = _FIXED.unpack(fixed)
    if magic != HEADER_MAGIC:
        raise SegmentDamaged(f"begins with {magic!r}")
    if version != VERSION or piece != PIECE:
        raise SegmentUnknown(f"version {version}, pieces of {piece} bytes: not of this release")
    if tail_length > _TAIL_MAX or file.size < HEADER_MIN + tail_length:
        raise SegmentDamaged("the header is cut short")
    rest = file.read(_FIXED.size, tail_length + CHECKSUM)
    tail = rest[:tail_length]
    if checksum(fixed, tail) != rest[tail_length:]:
        raise SegmentDamaged("the header's checksum differs")
    try:
        disk = msgspec.json.decode(tail, type=DiskFile) if kind == IN_DISK else None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise SegmentDamaged(f"the header names no disk file: {exc}") from exc
    if kind not in (CONTENT, IN_DISK):
        raise SegmentDamaged(f"kind {kind}")
    return Header(kind, number, id_, namespace, disk), HEADER_MIN + tail_length


# --- records -----------------------------------------------------------------------------------


def packed_record(header: Header, record: Record) -> list[Buffer]:
    """The record's bytes, in parts to be written one after another."""
    head = _RECORD.pack(
        RECORD_MAGIC,
        _PIECES,
        record.codec,
        0,
        record.number,
        record.first,
        record.count,
        len(record.payload),
        record.place,
        header.mark,
    )
    names = record.names.tobytes()
    return [head, checksum(head, names, record.payload), names, record.payload]


def read_record(file: BlockFile, header: Header, offset: int, stop: int) -> Record | None:
    """The record at `offset`, its checksum compared; None where a footer begins. Raises
    SegmentDamaged where there is no sound record that ends before `stop`."""
    if offset + RECORD_HEAD > stop:
        raise SegmentDamaged("the file ends in a record's head")
    head = file.read(offset, RECORD_HEAD)
    if head.startswith(RECORD_MAGIC) and head[4] == _FOOTER and head[32:40] == header.mark:
        return None
    length = _length_of(header, head)
    if offset + length > stop:
        raise SegmentDamaged("the file ends in a record")
    return parsed_record(header, head + file.read(offset + RECORD_HEAD, length - RECORD_HEAD))


def _length_of(header: Header, data: Buffer) -> int:
    """The length of a record that begins with `data`, its head; raises SegmentDamaged."""
    magic, type_, codec, zero, _, first, count, length, _, mark = _RECORD.unpack_from(data)
    if magic != RECORD_MAGIC or mark != header.mark or zero:
        raise SegmentDamaged("no record begins here")
    if not _is_possible(header.kind, type_, codec, first, count, length):
        raise SegmentDamaged("a record that cannot be")
    return RECORD_HEAD + NAME * int(count) + int(length)


def parsed_record(header: Header, data: Buffer, *, is_proven: bool = True) -> Record:
    """The record that just these bytes are; raises SegmentDamaged. The payload is a part of `data`.
    `is_proven`: its checksum is compared."""
    view = memoryview(data)
    if len(view) < RECORD_HEAD or _length_of(header, view) != len(view):
        raise SegmentDamaged("a record of another length")
    if is_proven:
        proof = checksum(view[: _RECORD.size], view[RECORD_HEAD:])
        if proof != view[_RECORD.size : RECORD_HEAD]:
            raise SegmentDamaged("a record's checksum differs")
    _, _, codec, _, number, first, count, _, place, _ = _RECORD.unpack_from(view)
    stop = RECORD_HEAD + NAME * count
    names = np.frombuffer(view[RECORD_HEAD:stop], dtype=np.uint8).reshape(count, NAME)
    return Record(number, first, count, codec, place, names, view[stop:])


def _is_possible(kind: int, type_: int, codec: int, first: int, count: int, length: int) -> bool:
    if type_ != _PIECES or not count or first + count > PIECES_MAX:
        return False
    if kind == IN_DISK:
        return codec == RAW and length == 0 and count <= RECORD_PIECES_MAX
    if count > CONTENT_PIECES_MAX:
        return False
    return length == count * PIECE if codec == RAW else codec == ZSTD and length < count * PIECE


# --- footer and trailer ------------------------------------------------------------------------


def footer_size(records: int, pieces: int) -> int:
    """Bytes of footer and trailer."""
    return RECORD_HEAD + DIRECTORY.itemsize * records + NAME * pieces + TRAILER


def packed_footer(header: Header, offset: int, directory: Directory, names: Names) -> list[Buffer]:
    """What a segment ends with when it is sealed at `offset`."""
    rows = directory.tobytes()
    head = _RECORD.pack(
        RECORD_MAGIC, _FOOTER, RAW, 0, len(directory), len(names), 0, len(rows), 0, header.mark
    )
    held = names.tobytes()
    trailer = _TRAILER.pack(TRAILER_MAGIC, offset, RECORD_HEAD + len(rows) + len(held), header.mark)
    return [head, checksum(head, rows, held), rows, held, trailer, checksum(trailer)]


def footer_place(file: BlockFile, header: Header) -> tuple[int, int] | None:
    """(offset, length) of the footer, as the trailer says; None without a sound trailer."""
    if file.size < HEADER_MIN + RECORD_HEAD + TRAILER:
        return None
    data = file.read(file.size - TRAILER, TRAILER)
    magic, offset, length, mark = _TRAILER.unpack(data[: _TRAILER.size])
    if magic != TRAILER_MAGIC or mark != header.mark:
        return None
    if checksum(data[: _TRAILER.size]) != data[_TRAILER.size :]:
        return None
    if offset < HEADER_MIN or length < RECORD_HEAD or offset + length + TRAILER != file.size:
        return None
    return offset, length


def footer_counts(file: BlockFile, header: Header, place: tuple[int, int]) -> tuple[int, int]:
    """(records, pieces) that the footer says; raises SegmentDamaged."""
    head = file.read(place[0], RECORD_HEAD)
    magic, type_, _, _, records, pieces, _, rows, _, mark = _RECORD.unpack(head[: _RECORD.size])
    if (magic, type_, mark) != (RECORD_MAGIC, _FOOTER, header.mark):
        raise SegmentDamaged("no footer where the trailer says")
    length = RECORD_HEAD + DIRECTORY.itemsize * records + NAME * pieces
    if rows != DIRECTORY.itemsize * records or place[1] != length or pieces > PIECES_MAX:
        raise SegmentDamaged("a footer that cannot be")
    return records, pieces


def read_footer(file: BlockFile, header: Header, place: tuple[int, int]) -> tuple[Directory, Names]:
    """The directory and the names of a sealed segment; raises SegmentDamaged."""
    records, pieces = footer_counts(file, header, place)
    data = memoryview(file.read(*place))
    head, body = data[: _RECORD.size], data[RECORD_HEAD:]
    if checksum(head, body) != data[_RECORD.size : RECORD_HEAD]:
        raise SegmentDamaged("the footer's checksum differs")
    cut = DIRECTORY.itemsize * records
    directory = np.frombuffer(body[:cut], dtype=DIRECTORY)
    names = np.frombuffer(body[cut:], dtype=np.uint8).reshape(pieces, NAME)
    check_directory(directory, pieces, place[0])
    return directory, names


def check_directory(directory: Directory, pieces: int, stop: int) -> None:
    """Raise SegmentDamaged unless the rows follow one another and cover all pieces."""
    first, count = directory["first"].astype(np.int64), directory["count"].astype(np.int64)
    ends = np.cumsum(count)
    offsets = directory["offset"].astype(np.int64)
    lengths = RECORD_HEAD + NAME * count + directory["payload"].astype(np.int64)
    is_whole = (int(ends[-1]) if len(ends) else 0) == pieces
    is_whole &= bool(np.all(first == ends - count) and np.all(count > 0))
    is_whole &= bool(np.all(offsets[1:] == (offsets + lengths)[:-1]))
    if not is_whole or (len(offsets) and int(offsets[-1] + lengths[-1]) != stop):
        raise SegmentDamaged("the footer's directory does not fit the file")


def scanned(file: BlockFile, header: Header, start: int) -> tuple[Directory, Names, int, str]:
    """What the records themselves say, up to the first that is not sound: directory, names, the
    offset where that one begins, and what is wrong there ('' at the end of the file, or at a
    footer)."""
    rows: list[tuple[int, int, int, int, int, int]] = []
    names: list[Names] = [np.empty((0, NAME), dtype=np.uint8)]
    position, pieces, problem = start, 0, ""
    while position < file.size:
        try:
            record = read_record(file, header, position, file.size)
        except (SegmentDamaged, DiskError) as exc:
            problem = str(exc)
            break
        if record is None:
            break
        if record.number != len(rows) or record.first != pieces:
            problem = "a record that belongs elsewhere"
            break
        rows.append(
            (
                position,
                record.place,
                record.first,
                record.count,
                len(record.payload),
                record.codec,
            )
        )
        names.append(record.names)
        pieces += record.count
        position += record.length
    return np.array(rows, dtype=DIRECTORY), np.concatenate(names), position, problem
