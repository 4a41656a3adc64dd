"""Batches of the road as WAN accelerators take them apart, and put them together again.

A part of a batch is the runs that are zero now, which may be of any length, and changed pieces:
whole, in ascending order, the disk's last one padded with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from standby import digesting
from standby.digesting import PIECE
from standby.errors import ProtocolError
from standby.road.batches import DATA, ROWS_MAX, ZERO, ReceivedBatch
from standby.wan.batches import extents_of
from standby.wan.decoding import Rebuilt
from standby.wan.references import ADDRESS_BITS
from standby.wan.varints import Malformed, Reader, Writer, unzigzag, zigzag
from standby.wire.link import Link
from standby.wire.messages import Batch

Numbers = npt.NDArray[np.int64]
Pieces = npt.NDArray[np.uint8]

PART_PIECES = 2048
"""Pieces of a part: 8 MiB. More would be fewer questions, and longer until the first frame."""

_NUMBER_MAX = 1 << (ADDRESS_BITS + 2)


@dataclass(frozen=True, slots=True)
class Part:
    """What one frame is to carry."""

    zeros: Numbers
    """(n, 2): first piece and pieces of each run that is zero now."""
    offsets: Numbers
    """(m,) bytes, ascending."""
    data: Pieces
    """(m, PIECE), a copy."""


def parts_of(
    batch: ReceivedBatch, next_size: Callable[[], int] = lambda: PART_PIECES
) -> Iterator[Part]:
    """The batch in parts, the zeros in the first one. `next_size` is asked how many pieces the
    next part with content may have, at most PART_PIECES."""
    is_data = batch.rows[:, 2] == DATA
    zeros = _in_pieces(batch.rows[~is_data])
    runs = _in_pieces(batch.rows[is_data])
    pieces = np.repeat(runs[:, 0] - np.cumsum(runs[:, 1]) + runs[:, 1], runs[:, 1])
    offsets = (pieces + np.arange(len(pieces))) * PIECE
    data = _whole(batch.data, batch.rows[is_data, 1], len(offsets))
    if not len(offsets):
        yield Part(zeros, offsets, data)
    for first, stop in _cuts(offsets, next_size):
        yield Part(zeros, offsets[first:stop], data[first:stop])
        zeros = zeros[:0]


def _in_pieces(rows: Numbers) -> Numbers:
    return np.stack((rows[:, 0] // PIECE, -(-rows[:, 1] // PIECE)), 1)


def _whole(data: Any, lengths: Numbers, pieces: int) -> Pieces:
    """A copy of `data`, which is runs of `lengths`; one that ends the disk may be short."""
    whole = np.empty((pieces, PIECE), np.uint8)
    flat = whole.reshape(-1)
    content = np.frombuffer(data, np.uint8)
    short = np.flatnonzero(lengths % PIECE)
    cut = int(lengths[: short[0] + 1].sum()) if len(short) else len(content)
    flat[:cut] = content[:cut]
    behind = -(-cut // PIECE) * PIECE
    flat[cut:behind] = 0
    flat[behind:] = content[cut:]
    return whole


def _cuts(offsets: Numbers, next_size: Callable[[], int]) -> Iterator[tuple[int, int]]:
    """(first, stop) of runs that ascend and are no longer than a part."""
    breaks = np.flatnonzero(np.diff(offsets) <= 0) + 1
    edges = [0, *breaks.tolist(), len(offsets)]
    for first, end in pairwise(edges):
        while first < end:
            stop = min(first + min(next_size(), PART_PIECES), end)
            yield first, stop
            first = stop


def part_runs(part: Part) -> Numbers:
    """(k, 2): first piece and pieces of the runs of a part's content."""
    return extents_of(part.offsets)


def batch_of(part: Part, virtual_size: int) -> tuple[Numbers, Any]:
    """The part as rows (n, 3) of a batch, in the order of the disk, and its data."""
    runs = part_runs(part)
    rows = np.empty((len(part.zeros) + len(runs), 3), np.int64)
    rows[: len(part.zeros), :2] = part.zeros * PIECE
    rows[: len(part.zeros), 2] = ZERO
    rows[len(part.zeros) :, :2] = runs * PIECE
    rows[len(part.zeros) :, 2] = DATA
    rows[:, 1] = np.minimum(rows[:, 1], virtual_size - rows[:, 0])
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    length = int(rows[rows[:, 2] == DATA, 1].sum())
    # Only the disk's last piece can be short, and that is the last one here.
    return rows, memoryview(part.data.reshape(-1))[:length]  # type: ignore[arg-type]


# --- zeros on their way --------------------------------------------------------------------------


def packed_zeros(zeros: Numbers) -> bytes:
    """Runs of zeros as they travel; nothing where there are none."""
    if not len(zeros):
        return b""
    out = Writer()
    ends = np.concatenate(([0], zeros.sum(axis=1)[:-1]))
    out.column(zigzag(zeros[:, 0] - ends))
    out.column(zeros[:, 1])
    return out.to_bytes()


def unpacked_zeros(data: Any, peer: str) -> Numbers:
    """What `packed_zeros` made; ProtocolError for anything else."""
    if not len(data):
        return np.empty((0, 2), np.int64)
    try:
        read = Reader(data)
        steps = unzigzag(read.column(ROWS_MAX, _NUMBER_MAX))
        counts = read.column(ROWS_MAX, 1 << ADDRESS_BITS).view(np.int64)
        read.done()
    except Malformed as exc:
        raise ProtocolError(peer, f"runs of zeros: {exc}") from exc
    if len(steps) != len(counts):
        raise ProtocolError(peer, f"{len(steps)} runs of zeros of {len(counts)} lengths")
    return np.stack((np.cumsum(steps + counts) - counts, counts), 1)


# --- batches again -------------------------------------------------------------------------------


def send_batch(link: Link, zeros: Numbers, runs: Sequence[Rebuilt], virtual_size: int) -> int:
    """Send what a frame gave as a batch, its rows in the order of the disk; bytes of data."""
    rows = np.empty((len(zeros) + len(runs), 3), np.int64)
    rows[: len(zeros), :2] = zeros * PIECE
    rows[: len(zeros), 2] = ZERO
    rows[len(zeros) :, 0] = [run.offset for run in runs]
    rows[len(zeros) :, 1] = [run.length for run in runs]
    rows[len(zeros) :, 2] = [ZERO if run.data is None else DATA for run in runs]
    if (rows[:, 0] < 0).any() or (rows[:, 0] >= virtual_size).any() or (rows[:, 1] <= 0).any():
        raise ProtocolError(link.peer, "a run lies outside the disk")
    rows[:, 1] = np.minimum(rows[:, 1], virtual_size - rows[:, 0])
    order = np.argsort(rows[:, 0], kind="stable")
    sent = 0
    for first in range(0, len(order), ROWS_MAX):
        chosen = order[first : first + ROWS_MAX]
        kept = rows[chosen]
        is_data = kept[:, 2] == DATA
        numbers, lengths = chosen[is_data] - len(zeros), kept[is_data, 1]
        views = [
            _content(runs[number], length)
            for number, length in zip(numbers.tolist(), lengths.tolist(), strict=True)
        ]
        content = views[0] if len(views) == 1 else memoryview(b"".join(views))
        # Only the disk's last piece can be short, and that is the last one here.
        leaves = digesting.leaves(content) if len(content) else np.empty(0, np.uint64)
        link.send(Batch(len(kept), len(leaves), len(content)), kept, leaves, content)
        sent += len(content)
    return sent


def _content(run: Rebuilt, length: int) -> memoryview:
    assert run.data is not None
    return run.data[:length]
