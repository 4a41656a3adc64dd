"""Frames become the batches they were made of: the target's half of a pair of WAN accelerators.

Nothing a frame says is trusted: addresses, answers and deltas are hints. Each unit is rebuilt and
its keyed digest checked before it is given out; what is missing, wrong or damaged is named in the
receipt and comes once more, literally.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from standby.errors import ProtocolError
from standby.wan import compressing
from standby.wan.batches import digest_key, literal_ranges, part_starts, unit_digest
from standby.wan.compressing import Damaged
from standby.wan.locations import Locations
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

    def read_found(self, locations: Locations) -> tuple[Pieces, Mask]:
        """(n, PIECE) content at locations that `find` gave, and which of it is good."""

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


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a frame gave."""

    serial: int
    runs: list[Rebuilt]
    receipt: bytes
    """For the source; to be sent when the runs are written."""
    is_complete: bool
    """Nothing of the frame is missing."""


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
        return Answer(asked.serial, hits).to_bytes()

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
        finally:
            if len(found):
                self._held.release(found)
        good = self._checked(building, frame)
        missing = np.flatnonzero(~good)
        if len(missing):
            wanted = {frame.digests[n * DIGEST_BYTES :][:DIGEST_BYTES] for n in missing.tolist()}
            self._missing[frame.serial] = wanted
        broke = self._stream is None
        receipt = Receipt(frame.serial, missing, broke).to_bytes()
        return Decoded(frame.serial, building.runs(good), receipt, not len(missing))

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
        return Decoded(frame.serial, building.runs(good), receipt, True)

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
        good = building.good.copy()
        for unit in np.flatnonzero(good).tolist():
            part = slice(unit * UNIT, (unit + 1) * UNIT)
            digest = unit_digest(building.offsets[part], building.data[part], self._digest_key)
            good[unit] = digest == frame.digests[unit * DIGEST_BYTES :][:DIGEST_BYTES]
        return good


class _Building:
    """One batch being put together, row by row."""

    def __init__(self, plan: Plan, held: Held) -> None:
        self._plan = plan
        self._held = held
        self.offsets = plan.offsets()
        self.data: Pieces = np.zeros((plan.pieces, PIECE), np.uint8)
        self.good: Mask = np.ones(-(-plan.pieces // UNIT), bool)
        self._flat: Any = self.data.reshape(-1)
        self._kinds = np.repeat(plan.kinds, plan.counts)
        self._row_starts = np.cumsum(plan.counts) - plan.counts

    def take_found(self, locations: Locations) -> None:
        """Rows ASKED: the next locations, piece by piece."""
        pieces = np.flatnonzero(self._kinds == Kind.ASKED)
        there = min(len(pieces), len(locations))
        if there:
            content, ok = self._held.read_found(locations[:there])
            if ok.all():  # without a copy of what is good
                self.data[pieces[:there]] = content
            else:
                self.data[pieces[:there][ok]] = content[ok]
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
        self.data[self._kinds == Kind.RAW] = np.frombuffer(raw, np.uint8).reshape(-1, PIECE)

    def take_stream(self, literals: bytes | None) -> None:
        """Rows STREAM and the literals within rows PARTS; None when there are none to be had."""
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

    def runs(self, good: Mask) -> list[Rebuilt]:
        """What may be written: adjacent pieces of good units, zeros apart."""
        zero = self._kinds == Kind.ZERO
        kept = np.flatnonzero(np.repeat(good, UNIT)[: len(zero)])
        if not len(kept):
            return []
        offsets, is_zero = self.offsets[kept], zero[kept]
        breaks = (np.diff(offsets) != PIECE) | (is_zero[1:] != is_zero[:-1])
        breaks |= np.diff(kept) != 1
        firsts = np.concatenate(([0], np.flatnonzero(breaks) + 1, [len(kept)]))
        view = memoryview(self._flat).toreadonly()
        runs = []
        for first, stop in zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True):
            at, length = int(kept[first]) * PIECE, (stop - first) * PIECE
            data = None if is_zero[first] else view[at : at + length]
            runs.append(Rebuilt(int(offsets[first]), length, data))
        return runs

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
