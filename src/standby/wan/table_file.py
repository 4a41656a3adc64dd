"""A lookup table kept over a restart: one file, written beside the old one and renamed.

`FORMAT.md`, "Lookup table", describes it to the byte. The file is worth only what rebuilding the
table costs: whatever is wrong with it, loading gives an empty table and says why.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from standby._kernels import wan_cache
from standby.digesting import PIECE, leaves, leaves_digest
from standby.errors import StandbyError
from standby.files import File, remove_plainly, replaced_durably
from standby.units import MiB
from standby.wan.table import LookupTable

MAGIC = b"STBYLOOK"
VERSION = 1
NOTE_MAX = MiB

_HEADER = struct.Struct("<8sIIIIIIQQQ16s")
"""magic, version, shards, buckets of the first and the last size, bytes of a bucket, flags,
entries, bytes of the note, bytes of the buckets, digest of the leaves of what follows."""
_HEADER_BYTES = PIECE
_LEAF_AT = PIECE - 8
_SAMPLED = 1
assert _HEADER.size == 72


@dataclass(frozen=True, slots=True)
class Loaded:
    """A table, and what came with it."""

    table: LookupTable
    note: bytes
    """What `save` was given; empty where the table begins empty."""
    reason: str
    """Why the table begins empty; "" where it was loaded."""


def save(table: LookupTable, path: Path, note: bytes = b"") -> None:
    """Write the table to `path`, whole or not at all, durably; `note` (at most 1 MiB) is kept with
    it: what the table covers, in the caller's words.

    Look-ups and writers go on: each shard is copied as it is when its turn comes. Raises DiskIO and
    DiskFull; the file at `path` is then the old one. One caller at a time for one path.
    """
    if len(note) > NOTE_MAX:
        raise ValueError(f"a note has at most {NOTE_MAX} bytes, not {len(note)}")
    temporary = _temporary(path)
    with contextlib.suppress(FileNotFoundError):
        remove_plainly(temporary)  # of a save that was killed
    with replaced_durably(path, temporary) as file:
        _write(table, file, note)


def load(path: Path, budget_bytes: int) -> Loaded:
    """The table that was saved at `path`, or an empty one with the reason: no file, one that cannot
    be read, a damaged or torn one, another version, another budget. ValueError for a budget that no
    table can have."""
    try:
        table, note = _read(path, budget_bytes)
    except _Useless as exc:
        return Loaded(LookupTable(budget_bytes), b"", f"{path}: {exc}")
    except StandbyError as exc:
        return Loaded(LookupTable(budget_bytes), b"", exc.message())
    return Loaded(table, note, "")


class _Useless(Exception):
    """Why a file gives no table."""


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _whole(size: int) -> int:
    """`size` rounded up to whole pieces."""
    return -(-size // PIECE) * PIECE


def _leaf_of_header(header: bytearray) -> bytes:
    blank = header[:_LEAF_AT] + bytes(PIECE - _LEAF_AT)
    return int(leaves(blank)[0]).to_bytes(8, "little")


def _write(table: LookupTable, file: File, note: bytes) -> None:
    count = table.shard_count
    sizes = np.zeros(_whole(4 * count) // 4, "<u4")
    noted = note.ljust(_whole(len(note)), b"\0")
    start = _HEADER_BYTES + sizes.nbytes + len(noted)
    at = start
    digests: list[NDArray[np.uint64]] = []
    shard = np.empty(wan_cache.SHARD_BYTES, np.uint8)
    for index in range(count):
        used = table.copy_of_shard(index, shard)
        sizes[index] = used // wan_cache.BUCKET_BYTES
        digests.append(leaves(shard[:used]))
        file.write(shard[:used], at)
        at += used
    every = np.concatenate([leaves(sizes), leaves(noted), *digests])
    header = bytearray(_HEADER_BYTES)
    _HEADER.pack_into(
        header, 0, MAGIC, VERSION, count, wan_cache.BUCKETS_FIRST, wan_cache.BUCKETS_LAST,
        wan_cache.BUCKET_BYTES, _SAMPLED if table.is_sampled else 0, table.entries, len(note),
        at - start, leaves_digest(every),
    )  # fmt: skip
    header[_LEAF_AT:] = _leaf_of_header(header)
    file.write(sizes, _HEADER_BYTES)
    file.write(noted, _HEADER_BYTES + sizes.nbytes)
    file.write(header, 0)


def _read(path: Path, budget_bytes: int) -> tuple[LookupTable, bytes]:
    table = LookupTable(budget_bytes)
    with File(path) as file:
        if file.size < _HEADER_BYTES:
            raise _Useless("too short for a lookup table")
        header = bytearray(file.read(0, _HEADER_BYTES))
        magic, version, count, first, last, bucket, flags, _, note_bytes, data_bytes, digest = (
            _HEADER.unpack_from(header)
        )
        if magic != MAGIC:
            raise _Useless("no lookup table")
        if version != VERSION:
            raise _Useless(f"version {version}, this release reads {VERSION}")
        if header[_LEAF_AT:] != _leaf_of_header(header):
            raise _Useless("its header is damaged")
        shape = (first, last, bucket)
        if shape != (wan_cache.BUCKETS_FIRST, wan_cache.BUCKETS_LAST, wan_cache.BUCKET_BYTES):
            raise _Useless("made of other buckets than this release has")
        if count != table.shard_count:
            raise _Useless(f"made for a budget of {count} MiB, not {table.shard_count}")
        directory = _whole(4 * count)
        start = _HEADER_BYTES + directory + _whole(note_bytes)
        if note_bytes > NOTE_MAX or file.size != start + data_bytes:
            raise _Useless(f"{file.size} bytes long, not as it says")
        sizes = np.frombuffer(file.read(_HEADER_BYTES, directory), "<u4")
        noted = file.read(_HEADER_BYTES + directory, _whole(note_bytes))
        if int(sizes[:count].sum()) * bucket != data_bytes:
            raise _Useless("its sizes of shards do not add up")
        try:
            table.take_sizes(sizes[:count].astype(np.uint32), is_sampled=bool(flags & _SAMPLED))
        except ValueError as exc:
            raise _Useless(str(exc)) from exc
        digests = [leaves(sizes), leaves(noted)]
        at = start
        for index in range(count):
            room = table.shard(index)
            file.read_into(room, at)
            digests.append(leaves(room))
            at += len(room)
    if leaves_digest(np.concatenate(digests)) != digest:
        raise _Useless("damaged: its checksum is another")
    table.recount()
    return table, noted[:note_bytes]
