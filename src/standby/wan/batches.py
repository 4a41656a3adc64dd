"""A batch of changed pieces while the source decides where each comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from standby.wan.knowledge import parts_of, run_borders
from standby.wan.locations import Names
from standby.wan.names import DIGEST, piece_digests
from standby.wan.references import PIECE, UNIT, Array, Kind, Plan

Buffer = Any
Pieces = NDArray[np.uint8]

UNDECIDED = -1


@dataclass(frozen=True, slots=True)
class Parts:
    """How the pieces of one PARTS row come together: literals and copies in turn, in bytes."""

    literals: Array
    copies: Array
    addresses: Array


@dataclass(frozen=True, slots=True)
class Delta:
    """One DELTA row: regions in whole pieces, and the frame behind them."""

    regions: Array
    """(k, 2): piece address, pieces."""
    frame: bytes


@dataclass(slots=True)
class Batch:
    """Pieces of one disk, and what is decided of them so far."""

    serial: int
    offsets: Array
    data: Pieces
    """(n, PIECE)."""
    names: Names
    kinds: NDArray[np.int8]
    """Kind per piece, or UNDECIDED."""
    addresses: Array
    """Per COPY piece, where it is."""
    groups: Array
    """Per piece of PARTS and DELTA rows, which row; ascending from 1, 0 for all other pieces."""
    asked: Array
    """Pieces that the question is about."""
    key: bytes
    """The tenant's."""
    digests: Names = field(default_factory=lambda: np.empty((0, 32), np.uint8))
    """(n, 32), of which the names are the first halves."""
    refers: bool = True
    """To what is known and shared."""
    learns: bool = True
    """When it is settled, it is known."""
    marked: Array = field(default_factory=lambda: np.empty(0, np.int64))
    """Pieces that the question wants marks of what stood in their place for."""
    by_marks: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    """Per piece: it refers to what its marks say, which is right but for one in some thousands."""
    question: bytes = b""
    """For the target; empty when there is nothing to ask."""
    parts: dict[int, Parts] = field(default_factory=dict)
    """By group."""
    deltas: dict[int, Delta] = field(default_factory=dict)
    """By group."""
    digested: tuple[Array, Array, Names] | None = None

    @property
    def flat(self) -> Any:
        """All bytes, one behind the other."""
        return self.data.reshape(-1)

    def flat_of(self, kind: Kind) -> Any:
        """All bytes of the pieces of a kind; without a copy where they are neighbours."""
        pieces = np.flatnonzero(self.kinds == kind)
        if not len(pieces):
            return b""
        first, last = int(pieces[0]), int(pieces[-1])
        if last - first == len(pieces) - 1:
            return self.data[first : last + 1].reshape(-1)
        return self.data[pieces].reshape(-1)

    def parts_of_runs(self) -> tuple[Array, Array, Names]:
        """(starts, lengths, digests) of all content-defined parts; made once."""
        if self.digested is None:
            self.digested = parts_of(self.data, run_borders(self.offsets), self.key)
        return self.digested

    def undecided(self) -> Array:
        """The pieces still to be decided, ascending."""
        return np.flatnonzero(self.kinds == UNDECIDED)


def digest_key(key: bytes) -> bytes:
    """The key of units' digests under a tenant's key, apart from that of names."""
    return blake3(b"standby wan unit", key=key).digest()


def unit_digests(offsets: Array, digests: Names, key: bytes) -> bytes:
    """32 bytes per unit, keyed BLAKE3: where its pieces belong, then the digests (n, 32) of what is
    in them. So the content is hashed once, for the names and for this."""
    places, proofs = offsets.astype("<i8").tobytes(), digests.tobytes()
    return b"".join(
        blake3(
            places[first * 8 : (first + UNIT) * 8] + proofs[first * 32 : (first + UNIT) * 32],
            key=key,
        ).digest()
        for first in range(0, len(offsets), UNIT)
    )


def digests_of(pieces: Pieces, is_zero: NDArray[np.bool_], key: bytes) -> Names:
    """(n, 32): the keyed digest of each piece; those of zeros are not hashed."""
    if not is_zero.any():
        return piece_digests(pieces, key)
    made = np.empty((len(pieces), DIGEST), np.uint8)
    made[:] = _zero_digest(key)
    stored = np.flatnonzero(~is_zero)
    made[stored] = piece_digests(pieces, key, stored * PIECE)
    return made


@lru_cache(maxsize=64)
def _zero_digest(key: bytes) -> NDArray[np.uint8]:
    digest: NDArray[np.uint8] = piece_digests(bytes(PIECE), key)[0]
    return digest


def extents_of(offsets: Array) -> Array:
    """(k, 2) int64: first piece on the disk and pieces, per run of adjacent offsets."""
    pieces = offsets // PIECE
    first = np.flatnonzero(np.diff(pieces, prepend=-2) != 1)
    return np.stack((pieces[first], np.diff(first, append=len(pieces))), 1)


def plan_of(batch: Batch) -> Plan:
    """The rows of a batch in which all pieces are decided."""
    kinds, groups, addresses = batch.kinds, batch.groups, batch.addresses
    begins = np.ones(len(kinds), bool)
    goes_on = (kinds[1:] == kinds[:-1]) & (groups[1:] == groups[:-1])
    follows = addresses[1:] == addresses[:-1] + PIECE
    begins[1:] = ~(goes_on & ((kinds[1:] != Kind.COPY) | follows))
    first = np.flatnonzero(begins)
    plan = Plan(
        extents_of(batch.offsets),
        kinds[first].astype(np.int64),
        np.diff(first, append=len(kinds)),
    )
    plan.copies = addresses[first[plan.kinds == Kind.COPY]]
    rows = groups[first[plan.kinds == Kind.PARTS]].tolist()
    mixed = [batch.parts[group] for group in rows]
    plan.parts = np.array([len(parts.copies) for parts in mixed], np.int64)
    plan.part_literals = _joined([parts.literals for parts in mixed])
    plan.part_copies = _joined([parts.copies for parts in mixed])
    plan.part_addresses = _joined([parts.addresses for parts in mixed])
    rows = groups[first[plan.kinds == Kind.DELTA]].tolist()
    # A delta may be of several rows, with others between them: all but the first have nothing.
    none = Delta(np.empty((0, 2), np.int64), b"")
    deltas = [
        none if before == group else batch.deltas[group]
        for before, group in zip([0, *rows], rows, strict=False)
    ]
    plan.regions = np.array([len(delta.regions) for delta in deltas], np.int64)
    plan.region_pieces = _joined([delta.regions[:, 0] for delta in deltas])
    plan.region_counts = _joined([delta.regions[:, 1] for delta in deltas])
    plan.delta_lengths = np.array([len(delta.frame) for delta in deltas], np.int64)
    return plan


def literal_ranges(plan: Plan) -> Array:
    """(k, 2) int64: the byte ranges (start, stop) of the batch that the stream gives, in order.

    row STREAM          all of it
    row PARTS           literal, copy, literal, copy ...
    """
    row_starts = (np.cumsum(plan.counts) - plan.counts) * PIECE
    streamed = plan.kinds == Kind.STREAM
    whole = np.stack((row_starts[streamed], plan.counts[streamed] * PIECE), 1)
    mixed = np.stack((part_starts(plan), plan.part_literals), 1)
    ranges = np.concatenate((whole, mixed[mixed[:, 1] > 0]))
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    ranges[:, 1] += ranges[:, 0]
    return ranges


def part_starts(plan: Plan) -> Array:
    """Where each part's literal begins, in bytes from the start of the batch."""
    row_starts = (np.cumsum(plan.counts) - plan.counts) * PIECE
    sizes = plan.part_literals + plan.part_copies
    before = np.cumsum(sizes) - sizes
    rows_before = np.cumsum(plan.parts) - plan.parts
    mixed = row_starts[plan.kinds == Kind.PARTS]
    has = plan.parts > 0
    shift = np.repeat(mixed[has] - before[rows_before[has]], plan.parts[has])
    starts: Array = before + shift
    return starts


def _joined(arrays: list[Array]) -> Array:
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)
