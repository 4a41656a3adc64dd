"""Partial disks for tests: a byte array as the source, and a proxy that sends what differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from standby import digesting
from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF
from standby.disk import open_disk
from standby.disk.vhdx import VhdxDisk
from standby.road.extent_log import KIND_DATA, KIND_ZERO
from standby.road.partial import PartialDisk, PartialSpec, SealedDisk
from standby.units import MiB

POINT = "20260301T220000Z-0001"
LATER = "20260302T220000Z-0002"
SIZE = 2 * PAGE + 3 * MiB + 512
"""Two pages and a short one, which ends in a short piece."""


def spec_of(
    size: int,
    *,
    point: str = POINT,
    generation: int = 1,
    checkpoint: str = "checkpoint-1",
    parent: tuple[SealedDisk, ...] = (),
    copy_from: tuple[Path, ...] = (),
) -> PartialSpec:
    """A spec of a disk above `parent` (newest first), a base without."""
    return PartialSpec(
        "disk0",
        point,
        generation,
        checkpoint,
        size,
        page83="00010203-0405-0607-0809-0a0b0c0d0e0f",
        parent_chain=tuple(item.partial_path for item in parent),
        digests=tuple(item.digests_path for item in parent),
        copy_from=copy_from,
        parent_root=parent[0].root if parent else b"",
    )


def rows(*items: tuple[int, int, int]) -> np.ndarray:
    """Rows (k, 3) of offset, length, kind."""
    return np.array(items, dtype=np.int64).reshape(-1, 3)


def source_leaves(content: bytes | bytearray) -> np.ndarray:
    """All leaves of a disk, padded to whole pages."""
    found = digesting.leaves(content)
    pages = -(-len(found) // LEAVES_PER_PAGE)
    padded = np.full(pages * LEAVES_PER_PAGE, ZERO_LEAF, dtype=np.uint64)
    padded[: len(found)] = found
    return padded


def send(partial: PartialDisk, content: bytes | bytearray, start: int, stop: int) -> None:
    """One batch: [start, stop) of the source as it is, zero pieces as zeros."""
    first, last = start // PIECE, -(-stop // PIECE)
    send_pieces(partial, content, np.arange(first, last))


def send_pieces(partial: PartialDisk, content: bytes | bytearray, pieces: np.ndarray) -> None:
    """One batch of these pieces of the source."""
    if not len(pieces):
        return
    view = memoryview(content)
    own = digesting.leaves(view[int(pieces[0]) * PIECE : (int(pieces[-1]) + 1) * PIECE])
    own = own[pieces - pieces[0]]
    is_zero = own == ZERO_LEAF
    cuts = np.flatnonzero((np.diff(pieces) != 1) | (is_zero[1:] != is_zero[:-1])) + 1
    items, payload = [], []
    for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(pieces)], strict=True):
        offset = int(pieces[first]) * PIECE
        stop = min((int(pieces[last - 1]) + 1) * PIECE, len(content))
        items.append((offset, stop - offset, KIND_ZERO if is_zero[first] else KIND_DATA))
        if not is_zero[first]:
            payload.append(view[offset:stop])
    partial.receive(rows(*items), own[~is_zero], b"".join(payload))


def send_changes(
    partial: PartialDisk, content: bytes | bytearray, *, start: int = 0, stop: int | None = None
) -> list[int]:
    """What a source proxy with nothing trusted does: compare with what the target says it holds
    and send the pieces that differ; their offsets."""
    end = len(content) if stop is None else stop
    wanted = source_leaves(content)
    sent: list[int] = []
    for page in range(start // PAGE, -(-end // PAGE)):
        held = partial.baseline.leaves(page)
        mine = wanted[page * LEAVES_PER_PAGE : (page + 1) * LEAVES_PER_PAGE]
        pieces = np.flatnonzero(held != mine) + page * LEAVES_PER_PAGE
        pieces = pieces[(pieces * PIECE >= start) & (pieces * PIECE < end)]
        send_pieces(partial, content, pieces)
        sent += (pieces * PIECE).tolist()
    return sent


def content_of(path: Path, *parents: Path) -> bytes:
    """Every byte of a disk."""
    disk = open_disk(path, parents=parents or None)
    data = bytearray(disk.virtual_size)
    step = 8 << 20
    for offset in range(0, len(data), step):
        view = memoryview(data)[offset : offset + step]
        disk.read_into(offset, view)
    disk.close()
    return bytes(data)


def noise(seed: int, size: int, share: float = 0.1) -> bytearray:
    """A disk of `size` bytes of which about `share` of the pieces hold random bytes."""
    random = np.random.default_rng(seed)
    if share >= 1:
        return bytearray(random.bytes(size))
    pieces = np.zeros((-(-size // PIECE), PIECE), dtype=np.uint8)
    chosen = np.flatnonzero(random.random(len(pieces)) < share)
    pieces[chosen] = np.frombuffer(random.bytes(len(chosen) * PIECE), np.uint8).reshape(-1, PIECE)
    return bytearray(pieces.tobytes()[:size])


def root_of(content: bytes | bytearray) -> bytes:
    """The digest root, computed from all leaves."""
    leaves = source_leaves(content).reshape(-1, digesting.LEAVES_PER_PAGE)
    nodes = digesting.page_nodes(leaves)
    kept = [index for index in range(len(leaves)) if (leaves[index] != digesting.ZERO_LEAF).any()]
    return digesting.root_of_pages(len(content), np.array(kept, dtype=np.int64), nodes[kept])


def sealed_base(folder: Path, content: bytearray) -> SealedDisk:
    """A base of that content, finished."""
    partial = PartialDisk.open(folder, spec_of(len(content)))
    send_changes(partial, content)
    return partial.seal()


def abandoned(partial: PartialDisk) -> None:
    """Leave the files as a killed process does: nothing flushed, nothing closed clean."""
    disk: VhdxDisk | None = partial.disk
    while disk is not None:
        if disk._lock is not None:
            disk._lock.release()
        disk._image.file.close()
        below = disk.parent
        disk = below if isinstance(below, VhdxDisk) else None
    partial.baseline.close()
    partial.log.close()


def fields_of(spec: object) -> dict[str, object]:
    """The fields of a spec, for another one."""
    return {name: getattr(spec, name) for name in type(spec).__slots__}
