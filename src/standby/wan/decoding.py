"""Frames become the batches they were made of: the target's half of a pair of WAN accelerators.

Nothing a frame says is trusted: addresses, answers and deltas are hints. Each unit is rebuilt and
its keyed digest checked before it is given out; what is missing, wrong or damaged is named in the
receipt and comes once more, literally.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from standby.errors import ProtocolError
from standby.wan import compressing
from standby.wan.batches import digest_key, digests_of, literal_ranges, part_starts, unit_digests
from standby.wan.compressing import Damaged
from standby.wan.locations import Locations, Names
from standby.wan.names import DIGEST, NAME, marks
from standby.wan.references import (
    DIGEST_BYTES,
    PIECE,
    UNIT,
    Answer,
    Array,
    Frame,
    Kind,
    Plan,
    Question,
    Receipt,
)
from standby.wan.varints import Malformed

Buffer = Any
Pieces = NDArray[np.uint8]
Mask = NDArray[np.bool_]

PEER = "source WAN accelerator"


class Held(Protocol):
    """What the target holds, as one disk's decoder asks for it. Look-ups may lie."""

    def find(self, asked: NDArray[np.uint8]) -> tuple[Mask, Locations]:
        """For truncated names (n, 6) uint8, the bytes ASKED of each: which are there, and where;
        what was found stays readable until `release`."""

    def read_found(self, locations: Locations, rows: Array, out: Pieces) -> Mask:
        """Fill these rows of `out` (m, PIECE) with the content at locations that `find` gave, and
        say which could be read. It is not proven: the units' digests do that."""

    def disprove(self, locations: Locations, names: Names) -> None:
        """The content at these locations had these names (n, 16), in units that came out wrong."""

    def release(self, locations: Locations) -> None:
        """These need not stay."""

    def read(self, addresses: Array, lengths: Array, out: Pieces) -> Mask:
        """Fill `out` (sum of lengths,) with byte ranges, and say which are good. Addresses with
        NOW mean what this session has written, others the newest restore point."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Adjacent pieces of the disk, checked."""

    offset: int
    length: int
    data: memoryview | None
    """None for zeros."""
    names: Names | None = None
    """(n, 16), where the pieces may be new to whoever keeps content by name: none of them was
    found that way."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a frame gave."""

    serial: int
    runs: list[Rebuilt]
    receipt: bytes
    """For the source; to be sent when the runs are written."""
    is_complete: bool
    """Nothing of the frame is missing."""
    fresh: list[Rebuilt]
    """The parts of `runs` that are neither zeros nor were found by name, with names."""


class Decoder:
    """Batches of one disk in one session. Not thread-safe."""

    def __init__(
        self,
        key: bytes,
        held: Held,
        *,
        window_log_max: int = compressing.WINDOW_LOG_MAX,
        questions_max: int = 16,
    ) -> None:
        """`questions_max` may be open at a time; more mean ProtocolError."""
        self._key = key
        self._digest_key = digest_key(key)
        self._held = held
        self._window_log_max = window_log_max
        self._questions_max = questions_max
        self._found: dict[int, Locations] = {}
        self._stream: compressing.Unstream | None = None
        self._last = 0
        self._missing: dict[int, set[bytes]] = {}

    def answer(self, question: Buffer) -> bytes:
        """The answer to a question; what it names is kept readable until its frame came."""
        try:
            asked = Question.from_bytes(question)
        except Malformed as exc:
            raise ProtocolError(PEER, f"question: {exc}") from exc
        if asked.serial in self._found or len(self._found) >= self._questions_max:
            raise ProtocolError(PEER, f"question {asked.serial} while others are open")
        hits, locations = self._held.find(asked.names)
        self._found[asked.serial] = locations[hits]
        is_marked, marked = self._marked(asked.places)
        return Answer(asked.serial, hits, is_marked, marked).to_bytes()

    def _marked(self, places: Array) -> tuple[Mask, NDArray[np.uint16]]:
        """Which pieces there are not zeros, and the marks of these."""
        counts = places[:, 1]
        content = np.zeros((int(counts.sum()), PIECE), np.uint8)
        flat: Any = content.reshape(-1)
        ok = self._held.read(places[:, 0] * PIECE, counts * PIECE, flat)
        is_marked: Mask = np.repeat(ok, counts) & content.view(np.uint64).any(axis=1)
        return is_marked, marks(content[is_marked], self._key)

    def decode(self, data: Buffer) -> Decoded:
        """What is in a frame. ProtocolError for one that contradicts itself, and for units that
        come again and are wrong again."""
        try:
            frame = Frame.from_bytes(data)
        except Malformed as exc:
            raise ProtocolError(PEER, f"frame: {exc}") from exc
        if frame.is_literal:
            return self._decode_again(frame)
        if frame.serial <= self._last:
            raise ProtocolError(PEER, f"frame {frame.serial} behind frame {self._last}")
        self._last = frame.serial
        found = self._found.pop(frame.serial, np.empty(0, np.uint64))
        try:
            building = _Building(frame.plan, self._held)
            building.take_found(found)
            building.copy()
            building.take_raw(frame.raw)
            building.take_stream(self._streamed(frame))
            building.take_deltas(frame.deltas)
            good = self._checked(building, frame)
            building.tell_wrong(good)
        finally:
            if len(found):
                self._held.release(found)
        missing = np.flatnonzero(~good)
        if len(missing):
            wanted = {frame.digests[n * DIGEST_BYTES :][:DIGEST_BYTES] for n in missing.tolist()}
            self._missing[frame.serial] = wanted
        broke = self._stream is None
        receipt = Receipt(frame.serial, missing, broke).to_bytes()
        runs, fresh = building.runs(good), building.fresh(good)
        return Decoded(frame.serial, runs, receipt, not len(missing), fresh)

    def _decode_again(self, frame: Frame) -> Decoded:
        wanted = self._missing.pop(frame.serial, set())
        digests = frame.digests
        came = {digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)}
        only_stream = bool((frame.plan.kinds == Kind.STREAM).all())
        building = _Building(frame.plan, self._held)
        try:
            building.take_stream(compressing.decompressed(frame.stream, frame.plan.literal_bytes))
        except Damaged as exc:
            raise ProtocolError(PEER, f"units of frame {frame.serial} sent again: {exc}") from exc
        good = self._checked(building, frame)
        if came != wanted or not only_stream or not good.all():
            raise ProtocolError(PEER, f"units of frame {frame.serial} sent again are not those")
        receipt = Receipt(frame.serial, np.empty(0, np.int64), self._stream is None).to_bytes()
        return Decoded(frame.serial, building.runs(good), receipt, True, building.fresh(good))

    def _streamed(self, frame: Frame) -> bytes | None:
        """The stream's literals of this frame; None when it is broken, here or before."""
        length = frame.plan.literal_bytes
        if frame.starts_stream:
            self._stream = compressing.Unstream(self._window_log_max)
        if self._stream is None:
            return None if length else b""
        try:
            return self._stream.take(frame.stream, length)
        except Damaged:
            self._stream = None
            return None

    def _checked(self, building: _Building, frame: Frame) -> Mask:
        """Which units are whole and have their digests."""
        building.digest(self._key)
        made = unit_digests(building.offsets, building.digests, self._digest_key)
        equal = np.frombuffer(made, f"V{DIGEST_BYTES}") == np.frombuffer(
            frame.digests, f"V{DIGEST_BYTES}"
        )
        good: Mask = building.good & equal
        return good


class _Building:
    """One batch being put together, row by row."""

    def __init__(self, plan: Plan, held: Held) -> None:
        self._plan = plan
        self._held = held
        self.offsets = plan.offsets()
        self._kinds = np.repeat(plan.kinds, plan.counts)
        # Every piece is filled, or lost and then given to nobody.
        self.data: Pieces = np.empty((plan.pieces, PIECE), np.uint8)
        self._is_zero: Mask = self._kinds == Kind.ZERO
        if self._is_zero.any():
            self.data[self._is_zero] = 0
        self.digests: Names = np.empty((0, DIGEST), np.uint8)
        self.good: Mask = np.ones(-(-plan.pieces // UNIT), bool)
        self._flat: Any = self.data.reshape(-1)
        self._found: tuple[Array, Locations] = np.empty(0, np.int64), np.empty(0, np.uint64)
        self._row_starts = np.cumsum(plan.counts) - plan.counts

    def take_found(self, locations: Locations) -> None:
        """Rows ASKED: the next locations, piece by piece."""
        pieces = np.flatnonzero(self._kinds == Kind.ASKED)
        there = min(len(pieces), len(locations))
        if there:
            ok = self._held.read_found(locations[:there], pieces[:there], self.data)
            self._found = pieces[:there][ok], locations[:there][ok]
            self._lose(pieces[:there][~ok] * PIECE, np.int64(PIECE))
        self._lose(pieces[there:] * PIECE, np.int64(PIECE))

    def copy(self) -> None:
        """Rows COPY, unit by unit, and the copies within rows PARTS."""
        plan = self._plan
        rows = np.flatnonzero(plan.kinds == Kind.COPY)
        starts, counts = self._row_starts[rows] * PIECE, plan.counts[rows] * PIECE
        starts, counts, addresses = _split(starts, counts, plan.copies, UNIT * PIECE)
        has = plan.part_copies > 0
        part_starts_ = (part_starts(plan) + plan.part_literals)[has]
        starts = np.concatenate((starts, part_starts_))
        lengths = np.concatenate((counts, plan.part_copies[has]))
        addresses = np.concatenate((addresses, plan.part_addresses[has]))
        if not len(starts):
            return
        content = np.empty(int(lengths.sum()), np.uint8)
        ok = self._held.read(addresses, lengths, content)
        at = np.cumsum(lengths) - lengths
        for start, length, origin in zip(
            starts[ok].tolist(), lengths[ok].tolist(), at[ok].tolist(), strict=True
        ):
            self._flat[start : start + length] = content[origin : origin + length]
        self._lose(starts[~ok], lengths[~ok])

    def take_raw(self, raw: Buffer) -> None:
        """Rows RAW."""
        self._put(Kind.RAW, raw)

    def _put(self, kind: Kind, content: Buffer) -> None:
        """The pieces of a kind, one behind the other."""
        pieces = np.flatnonzero(self._kinds == kind)
        if not len(pieces):
            return
        there = np.frombuffer(content, np.uint8).reshape(-1, PIECE)
        first, last = int(pieces[0]), int(pieces[-1])
        if last - first == len(pieces) - 1:
            self.data[first : last + 1] = there
        else:
            self.data[pieces] = there

    def take_stream(self, literals: bytes | None) -> None:
        """Rows STREAM and the literals within rows PARTS; None when there are none to be had."""
        if literals is not None and not len(self._plan.part_literals):
            self._put(Kind.STREAM, literals)
            return
        ranges = literal_ranges(self._plan)
        if literals is None:
            self._lose(ranges[:, 0], ranges[:, 1] - ranges[:, 0])
            return
        content = np.frombuffer(literals, np.uint8)
        at = 0
        for start, stop in ranges.tolist():
            self._flat[start:stop] = content[at : at + stop - start]
            at += stop - start

    def take_deltas(self, deltas: Buffer) -> None:
        """Rows DELTA: regions read here are the prefix of each frame."""
        plan = self._plan
        rows = np.flatnonzero(plan.kinds == Kind.DELTA)
        if not len(rows):
            return
        starts, lengths = self._row_starts[rows] * PIECE, plan.counts[rows] * PIECE
        begins = np.flatnonzero(plan.delta_lengths)
        if not len(begins) or begins[0]:
            self._lose(starts, lengths)
            return
        frames = np.cumsum(plan.delta_lengths) - plan.delta_lengths
        firsts = np.cumsum(plan.regions) - plan.regions
        stops = [*begins[1:].tolist(), len(rows)]
        for first, stop in zip(begins.tolist(), stops, strict=True):
            regions = slice(int(firsts[first]), int(firsts[first] + plan.regions[first]))
            pieces, counts = plan.region_pieces[regions], plan.region_counts[regions]
            at = int(frames[first])
            frame = deltas[at : at + int(plan.delta_lengths[first])]
            part = slice(first, stop)
            content = self._behind(pieces, counts, frame, int(lengths[part].sum()))
            if content is None:
                self._lose(starts[part], lengths[part])
                continue
            taken = 0
            for start, length in zip(starts[part].tolist(), lengths[part].tolist(), strict=True):
                self._flat[start : start + length] = content[taken : taken + length]
                taken += length

    def _behind(
        self, pieces: Array, counts: Array, frame: Buffer, length: int
    ) -> NDArray[np.uint8] | None:
        prefix = np.empty(int(counts.sum()) * PIECE, np.uint8)
        if not self._held.read(pieces * PIECE, counts * PIECE, prefix).all():
            return None
        try:
            content = compressing.decompressed_behind(prefix, frame, length)
        except Damaged:
            return None
        return np.frombuffer(content, np.uint8)

    def digest(self, key: bytes) -> None:
        """Make the digests of all pieces; those of lost ones are of no meaning."""
        self.digests = digests_of(self.data, self._is_zero, key)

    def tell_wrong(self, good: Mask) -> None:
        """Have what was found, and read, of units that are not good looked at again."""
        pieces, locations = self._found
        wrong = ~good[pieces // UNIT]
        if wrong.any():
            self._held.disprove(locations[wrong], self._names(pieces[wrong]))

    def runs(self, good: Mask) -> list[Rebuilt]:
        """What may be written: adjacent pieces of good units, zeros apart."""
        kept = np.flatnonzero(np.repeat(good, UNIT)[: len(self._kinds)])
        return [
            Rebuilt(offset, length, None if self._is_zero[piece] else data)
            for piece, offset, length, data in self._adjacent(kept)
        ]

    def fresh(self, good: Mask) -> list[Rebuilt]:
        """Of these, what was not found by name."""
        is_fresh = ~self._is_zero & (self._kinds != Kind.ASKED)
        kept = np.flatnonzero(np.repeat(good, UNIT)[: len(self._kinds)] & is_fresh)
        names = self._names(slice(None))
        return [
            Rebuilt(offset, length, data, names[piece : piece + length // PIECE])
            for piece, offset, length, data in self._adjacent(kept)
        ]

    def _names(self, pieces: Array | slice) -> Names:
        return np.ascontiguousarray(self.digests[pieces, :NAME])

    def _adjacent(self, kept: Array) -> Iterator[tuple[int, int, int, memoryview]]:
        """(first piece, offset, length, bytes) of runs of these pieces, zeros apart."""
        offsets, is_zero = self.offsets[kept], self._is_zero[kept]
        breaks = (np.diff(offsets) != PIECE) | (is_zero[1:] != is_zero[:-1])
        breaks |= np.diff(kept) != 1
        firsts = np.concatenate(([0], np.flatnonzero(breaks) + 1))[: len(kept)]
        lengths = np.diff(firsts, append=len(kept)) * PIECE
        view = memoryview(self._flat).toreadonly()
        rows = zip(kept[firsts].tolist(), offsets[firsts].tolist(), lengths.tolist(), strict=True)
        for piece, offset, length in rows:
            yield piece, offset, length, view[piece * PIECE : piece * PIECE + length]

    def _lose(self, starts: Array, lengths: Array | np.int64) -> None:
        """The units that these bytes belong to cannot be rebuilt."""
        if not len(starts):
            return
        firsts = starts // (UNIT * PIECE)
        lasts = (starts + np.maximum(lengths, 1) - 1) // (UNIT * PIECE)
        flips = np.zeros(len(self.good) + 1, np.int64)
        np.add.at(flips, firsts, 1)
        np.add.at(flips, lasts + 1, -1)
        self.good &= np.cumsum(flips[:-1]) == 0


def _split(
    starts: Array, lengths: Array, addresses: Array, step: int
) -> tuple[Array, Array, Array]:
    """The same ranges, cut where a multiple of `step` is crossed."""
    if not len(starts):
        return starts, lengths, addresses
    firsts, lasts = starts // step, (starts + lengths - 1) // step
    counts = lasts - firsts + 1
    row = np.repeat(np.arange(len(starts)), counts)
    number = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = np.maximum(starts[row], (firsts[row] + number) * step)
    end = np.minimum((starts + lengths)[row], (firsts[row] + number + 1) * step)
    return begin, end - begin, addresses[row] + begin - starts[row]
