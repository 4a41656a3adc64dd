"""The stages between look-ups by name and the stream: each takes undecided pieces of a batch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from standby.chunking import WINDOW, anchors
from standby.wan import compressing
from standby.wan.batches import UNDECIDED, Batch, Delta, Parts, Pieces
from standby.wan.knowledge import ANCHOR_PERIOD
from standby.wan.locations import Names
from standby.wan.references import PIECE, PREFIX_MAX, UNIT, Array, Kind

Mask = NDArray[np.bool_]

SAMPLED_PIECES = 8
"""Pieces that are sent raw together: half of what zstd would decide about by itself."""

SLICE = 512
"""Bytes of each of these pieces that are tried."""

GLANCED_STEP = 5
"""Of each slice every so many bytes are counted first: odd, so that all bytes of words are met."""

PLAIN_BITS = 6.8
"""Groups whose bytes have less entropy are not tried: 820 random bytes have 7.7, and zstd's
Huffman codes alone bring what has 6.8 to 0.9."""

SHRINKS = 0.97
"""What does not shrink below this is sent raw: compressing it all would cost its CPU time for less
than 3 %."""

AROUND = 4
"""Pieces before and behind the piece of a hit that make its region."""

REGION_PIECES = 256
"""Of one delta, at most; the most hit ones."""

CLEAR_GAIN = 0.5
"""A delta below this share of its pieces is taken unseen; others must be shorter than what plain
compression leaves."""


class Known(Protocol):
    """Digests of what the target holds, by content; every SourceIndex is one. All may lie."""

    def find_pieces(self, names: Names) -> Array:
        """Addresses (n,) int64 of pieces with these names, -1 for those not known."""

    def find_parts(self, digests: Names) -> Array:
        """Addresses (n,) int64 of content-defined parts with these digests, or -1."""

    def find_anchors(self, fingerprints: NDArray[np.uint64]) -> Array:
        """Addresses (n,) int64 where such anchors were seen, or -1."""

    def learn(
        self,
        base: int,
        offsets: Array,
        names: Names,
        data: Pieces,
        parts: tuple[Array, Array, Names] | None = None,
    ) -> None:
        """The target has written this batch into the disk at `base`; `parts` as from
        `knowledge.parts_of`."""


class Shared(Protocol):
    """Content that the source has and knows the target to have too, by piece address
    (address / PIECE)."""

    def has(self, pieces: Array) -> Mask:
        """Which of these can be read; not those of zeros."""

    def read(self, pieces: Array) -> Pieces:
        """(n, PIECE) of what `has` said is there; KeyError where it is not any more."""


def find_deltas(batch: Batch, index: Known, shared: Shared, base: int, key: bytes) -> None:
    """Decide for DELTA where something like it is shared: what stood at the same place, and what
    has the same anchors."""
    pieces = batch.undecided()
    if not len(pieces):
        return
    content = batch.data[pieces]
    positions, fingerprints = anchors(content.reshape(-1), key, ANCHOR_PERIOD)
    found = index.find_anchors(fingerprints)
    there = found >= 0
    hit_rows = (positions[there] - WINDOW // 2) // PIECE
    hit_pieces = found[there] // PIECE
    old_pieces = (base + batch.offsets[pieces]) // PIECE
    has_old = shared.has(old_pieces)
    units = pieces // UNIT
    starts = np.flatnonzero(np.diff(units, prepend=-1))
    for first, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(pieces)], strict=True):
        hits = slice(*np.searchsorted(hit_rows, (first, stop)).tolist())
        old = old_pieces[first:stop][has_old[first:stop]]
        if not len(old) and hits.start == hits.stop:
            continue
        near = has_old[first:stop].copy()
        for back in range(-AROUND, AROUND + 1):
            rows = hit_rows[hits] - first + back
            near[rows[(rows >= 0) & (rows < stop - first)]] = True
        regions = _regions(hit_pieces[hits], old, shared)
        if not len(regions):
            continue
        chosen = pieces[first:stop][near]
        try:
            prefix = shared.read(_spread(regions))
        except KeyError:  # what other disks sent meanwhile took its room
            continue
        data = batch.data[chosen].reshape(-1)
        frame = compressing.compressed_behind(prefix.reshape(-1), data)
        limit = int(len(data) * CLEAR_GAIN)
        if len(frame) > limit:
            limit = compressing.sampled(data)
        if len(frame) < limit:
            group = len(batch.deltas) + 1
            batch.kinds[chosen] = Kind.DELTA
            batch.groups[chosen] = group
            batch.deltas[group] = Delta(regions, frame)


def _regions(hits: Array, old: Array, shared: Shared) -> Array:
    """(k, 2): piece addresses and counts; the old content last, nearest to the data."""
    wanted, votes = np.unique(hits, return_counts=True)
    if len(wanted) * (2 * AROUND + 1) > REGION_PIECES:
        best = np.argsort(-votes, kind="stable")[: REGION_PIECES // (2 * AROUND + 1)]
        wanted = np.sort(wanted[best])
    around = np.unique(wanted[:, None] + np.arange(-AROUND, AROUND + 1))
    around = np.setdiff1d(around, old, assume_unique=True)
    around = around[around >= 0]
    around = around[shared.has(around)]
    return np.concatenate((_merged(around), _merged(np.sort(old))))


def _merged(pieces: Array) -> Array:
    """(k, 2) first and count of runs in ascending numbers."""
    first = np.flatnonzero(np.diff(pieces, prepend=-2) != 1)
    return np.stack((pieces[first], np.diff(first, append=len(pieces))), 1)


def _spread(regions: Array) -> Array:
    """All pieces of runs, in order."""
    counts = regions[:, 1]
    before = np.cumsum(counts) - counts
    spread: Array = np.arange(int(counts.sum())) + np.repeat(regions[:, 0] - before, counts)
    return spread


def find_parts(batch: Batch, index: Known) -> None:
    """Decide for PARTS where content-defined parts are known, pieces that have none of them apart.

    Parts run from cut to cut of everything changed, not only of what is undecided: the cuts fall
    where they fell when the content was learned.
    """
    waiting = batch.kinds == UNDECIDED
    if not waiting.any():
        return
    starts, lengths, digests = batch.parts_of_runs()
    stops = starts + lengths
    touched = np.concatenate(([0], np.cumsum(waiting)))
    asks = touched[(stops - 1) // PIECE + 1] > touched[starts // PIECE]
    rows = np.flatnonzero(asks)
    found = index.find_parts(digests[rows])
    rows, found = rows[found >= 0], found[found >= 0]
    if not len(rows):
        return
    begins, ends = starts[rows], stops[rows]
    reached = np.zeros(len(waiting) + 1, np.int64)
    np.add.at(reached, begins // PIECE, 1)
    np.add.at(reached, (ends - 1) // PIECE + 1, -1)
    taken = waiting & (np.cumsum(reached[:-1]) > 0)
    first = np.flatnonzero(np.diff(taken, prepend=False) & taken)
    last = np.flatnonzero(np.diff(taken, append=False) & taken) + 1
    group = len(batch.parts)
    for start, stop in zip(first.tolist(), last.tolist(), strict=True):
        group += 1
        inside = slice(
            int(np.searchsorted(ends, start * PIECE, side="right")),
            int(np.searchsorted(begins, stop * PIECE)),
        )
        begin = np.maximum(begins[inside], start * PIECE)
        end = np.minimum(ends[inside], stop * PIECE)
        addresses = found[inside] + begin - begins[inside]
        batch.parts[group] = row_of_parts(begin, end, addresses, start * PIECE, stop * PIECE)
        batch.groups[start:stop] = group
        batch.kinds[start:stop] = Kind.PARTS


def row_of_parts(begin: Array, end: Array, addresses: Array, start: int, stop: int) -> Parts:
    """Literal and copy in turn from `start` to `stop`; copies that go on are one."""
    goes_on = (begin[1:] == end[:-1]) & (addresses[1:] == addresses[:-1] + (end - begin)[:-1])
    first = np.concatenate(([0], np.flatnonzero(~goes_on) + 1))
    begin, addresses = begin[first], addresses[first]
    end = end[np.concatenate((first[1:] - 1, [len(end) - 1]))]
    literals = begin - np.concatenate(([start], end[:-1]))
    copies = end - begin
    if end[-1] < stop:
        literals = np.append(literals, stop - end[-1])
        copies, addresses = np.append(copies, 0), np.append(addresses, addresses[-1] + copies[-1])
    return Parts(literals, copies, addresses)


def keep_incompressible(batch: Batch) -> None:
    """Decide for RAW where a sample of neighbouring pieces does not shrink."""
    pieces = batch.undecided()
    for number in _noisy_groups(batch.data, pieces).tolist():
        group = pieces[number * SAMPLED_PIECES : (number + 1) * SAMPLED_PIECES]
        sample = batch.data[group, :SLICE].tobytes()
        if compressing.sampled(sample) > len(sample) * SHRINKS:
            batch.kinds[group] = Kind.RAW


def _noisy_groups(data: Pieces, pieces: Array) -> Array:
    """The groups of SAMPLED_PIECES in which single bytes do not tell that they shrink."""
    glanced = data[pieces, :SLICE:GLANCED_STEP]
    group = np.arange(len(pieces)) // SAMPLED_PIECES
    groups = int(group[-1]) + 1 if len(group) else 0
    cells = (glanced + (group * 256)[:, None]).reshape(-1)
    counts = np.bincount(cells, minlength=groups * 256).reshape(groups, 256)
    totals = counts.sum(axis=1)
    bits = (counts * np.log2(np.maximum(counts, 1))).sum(axis=1)
    entropy = np.log2(totals) - bits / totals
    return np.flatnonzero(entropy > PLAIN_BITS)


assert REGION_PIECES + UNIT <= PREFIX_MAX // PIECE
