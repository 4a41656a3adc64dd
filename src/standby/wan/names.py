"""Names of 4 KiB pieces: the first 16 bytes of BLAKE3, keyed with the tenant's key, over the 4096
bytes of a piece. A short last piece counts as padded with zeros.

Owns the kernel `keyed`, which hashes the chunks of many pieces side by side (BLAKE3 paper,
sections 2.2 to 2.5); the names equal those of the blake3 package. A name is a hint and the key to
look-ups; what is written is checked with all 32 bytes, the digests of which a name is the first
half: they are made in the same pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from standby._kernels import keyed
from standby._kernels.buffers import flat
from standby._kernels.variants import choose

choose(keyed)

Buffer = Any
Names = NDArray[np.uint8]

PIECE: int = keyed.PIECE
NAME: int = keyed.NAME
KEY: int = keyed.KEY
DIGEST: int = keyed.DIGEST
PART: int = keyed.PART
MARK: int = keyed.MARK
MARKS = PIECE // PART


def names(data: Buffer, key: Buffer, out: Names | None = None) -> Names:
    """(n, 16) uint8: the name of each 4 KiB piece of `data`, one behind the other.

    `data` is any contiguous buffer and is not copied; `key` has 32 bytes. Written into `out` where
    given. ValueError for another length of key or `out`, or overlap. Releases the GIL; thread-safe.
    """
    view = flat(data)
    if out is None:
        out = np.empty((-(-memoryview(view).nbytes // PIECE), NAME), np.uint8)
    if len(out) or memoryview(view).nbytes:
        keyed.names(view, flat(key), out)
    return out


def names_at(
    data: Buffer, offsets: NDArray[np.int64], key: Buffer, out: Names | None = None
) -> Names:
    """(n, 16) uint8: the names of the pieces that begin at `offsets` (n,) int64, bytes into
    `data`, in any order, aligned or not. As `names`; ValueError for an offset outside of `data`."""
    places = np.ascontiguousarray(offsets, np.int64)
    if out is None:
        out = np.empty((len(places), NAME), np.uint8)
    if len(places) or len(out):
        keyed.names_at(flat(data), places, flat(key), out)
    return out


def names_of_rows(
    data: Buffer, rows: NDArray[np.int64], key: Buffer, out: Names | None = None
) -> Names:
    """(n, 16) uint8: the names of the pieces numbered `rows` (n,), in any order. As `names`;
    ValueError for a row that `data` has not."""
    numbers = np.asarray(rows, np.int64)
    if len(numbers) and int(numbers.max()) > memoryview(data).nbytes // PIECE:
        raise ValueError(f"there is no piece {int(numbers.max())}")
    return names_at(data, numbers * PIECE, key, out)


def names_of_extents(data: Buffer, extents: NDArray[np.int64], key: Buffer) -> Names:
    """(n, 16) uint8: the names of the pieces of each extent (offset, length) of (m, 2) int64, one
    extent behind the other. A length that is not whole pieces takes the rest of its last piece from
    what follows in `data`, zeros behind its end. As `names`; ValueError for an extent that does not
    lie in `data`."""
    rows = np.asarray(extents, np.int64).reshape(-1, 2)
    size = memoryview(data).nbytes
    if bool(((rows < 0) | (rows > size)).any()) or bool((rows.sum(axis=1) > size).any()):
        raise ValueError(f"an extent does not lie in {size} bytes")
    return names_at(data, _piece_offsets(rows), key)


def _piece_offsets(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each piece of the extents begins."""
    counts = -(-rows[:, 1] // PIECE)
    begun = np.cumsum(counts) - counts
    offsets: NDArray[np.int64] = np.arange(int(counts.sum()), dtype=np.int64) * PIECE
    offsets += np.repeat(rows[:, 0] - begun * PIECE, counts)
    return offsets


def piece_digests(
    data: Buffer, key: Buffer, offsets: NDArray[np.int64] | None = None
) -> NDArray[np.uint8]:
    """(n, 32) uint8: the keyed BLAKE3 of each piece of `data`, of which its name is the first half;
    of the pieces that begin at `offsets` where given. As `names` and `names_at`."""
    if offsets is not None:
        return names_at(data, offsets, key, np.empty((len(offsets), DIGEST), np.uint8))
    pieces = -(-memoryview(flat(data)).nbytes // PIECE)
    return names(data, key, np.empty((pieces, DIGEST), np.uint8))


def marks(pieces: Names, key: Buffer) -> NDArray[np.uint16]:
    """(n, 16) uint16: of each 256 bytes of pieces (n, 4096) the first 2 bytes of their keyed
    BLAKE3, little-endian. What is equal in them is taken for equal until a digest is made of it."""
    made = np.empty((len(pieces) * MARKS, MARK), np.uint8)
    if len(pieces):
        keyed.marks(flat(pieces), flat(key), made)
    return made.view("<u2").reshape(-1, MARKS)


def kernel_variant() -> str:
    """The CPU variant in use: scalar, sse2, avx2 or avx512."""
    return keyed.variant()


def available_variants() -> tuple[str, ...]:
    """The CPU variants this machine runs, slowest first; STANDBY_KERNEL forces one."""
    return keyed.variants()
