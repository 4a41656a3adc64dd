"""What a pair of WAN accelerators say to each other: questions, answers, frames, receipts.

FORMAT.md, section "Frames", has the layouts. Nothing in here looks at content: it turns a plan (who
gets which pieces of a batch from where) into bytes and back, and refuses what contradicts itself.
A batch is at most PIECES_MAX pieces in ascending order of their offsets; they are numbered from 0.
A row says where the next pieces come from; a unit is UNIT pieces, the last one what is left: what
is digested, and sent again, as one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from standby.wan.compressing import Damaged, compressed, decompressed
from standby.wan.names import MARK, MARKS
from standby.wan.varints import Malformed, Reader, Writer, unzigzag, zigzag

Buffer = Any
Array = NDArray[np.int64]

PIECE = 4096
PIECES_MAX = 4096
"""Of a batch: 16 MiB, what both sides hold of it many times over at the worst."""

UNIT = 64
"""Pieces per digest: 32 bytes for 256 KiB are 0.05 % of what zstd leaves of them, and a wrong hint
costs no more than these again."""

DIGEST_BYTES = 32
NAME_BYTES = 16
ASKED = (0, 1, 2, 3, 14, 15)
"""The bytes of a name that a question has: those by which a LookupTable finds it. Among 10^9 pieces
one unknown one in 280,000 is taken for known, which costs a unit sent again."""

ADDRESS_BITS = 48
NOW = 1 << (ADDRESS_BITS - 1)
"""Added to an address: the content there as this session has written it, not as it was before."""

REGIONS_MAX = 256
"""Of one delta."""
PREFIX_MAX = 4 << 20
"""Bytes of one delta's prefix."""
PARTS_MAX = PIECES_MAX * 16
PLAN_MAX = 4 << 20
SERIAL_MAX = (1 << 62) - 1
OFFSET_PIECES_MAX = 1 << 40

VERSION = 2
"""1 hashed the content of units a second time."""


class Message(enum.IntEnum):
    """The first byte's low half, below the version."""

    QUESTION = 1
    ANSWER = 2
    FRAME = 3
    RECEIPT = 4


class Kind(enum.IntEnum):
    """Where a row's pieces come from."""

    ZERO = 0
    ASKED = 1
    """What the answer to this batch's question found, hit by hit."""
    COPY = 2
    """A run of whole pieces at an address."""
    PARTS = 3
    """Literals of the stream and byte ranges at addresses, in turn."""
    STREAM = 4
    """Literals of the stream."""
    RAW = 5
    """As they are."""
    DELTA = 6
    """From a zstd frame behind a prefix of regions at addresses."""


def kind_and_version(message: Message) -> bytes:
    """The first byte of a message."""
    return bytes([VERSION << 4 | message])


def opened(data: Buffer, message: Message) -> Reader:
    """A reader behind the first byte, which must be that of `message`."""
    view = memoryview(data).cast("B")
    if not len(view) or view[0] != (VERSION << 4 | message):
        found = f"{view[0]:#04x}" if len(view) else "nothing"
        raise Malformed(f"{message.name.lower()} expected, found {found}")
    return Reader(view[1:])


@dataclass(frozen=True, slots=True)
class Question:
    """Truncated names (n, 6) uint8 of pieces that the source does not know about; and places whose
    content before this session it wants the marks of."""

    serial: int
    names: NDArray[np.uint8]
    places: Array = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """(k, 2): piece address and pieces, ascending, apart."""

    def to_bytes(self) -> bytes:
        """As it travels."""
        out = Writer()
        out.raw(kind_and_version(Message.QUESTION))
        out.number(self.serial)
        out.number(len(self.names))
        out.raw(self.names.tobytes())
        out.column(np.diff(self.places[:, 0], prepend=0))
        out.column(self.places[:, 1])
        return out.to_bytes()

    @staticmethod
    def from_bytes(data: Buffer) -> Question:
        """What `to_bytes` made; `Malformed` for anything else."""
        read = opened(data, Message.QUESTION)
        serial, count = read.number(SERIAL_MAX), read.number(PIECES_MAX)
        names = np.frombuffer(read.raw(count * len(ASKED)), np.uint8)
        steps = read.column(PIECES_MAX, OFFSET_PIECES_MAX).astype(np.int64)
        counts = read.column(PIECES_MAX, PIECES_MAX).astype(np.int64)
        read.done()
        places = np.cumsum(steps)
        if len(steps) != len(counts) or int(counts.sum()) > PIECES_MAX or (counts == 0).any():
            raise Malformed("places that are none")
        if len(places) and int(places[-1]) >> (ADDRESS_BITS - 13):
            raise Malformed("a place beyond all disks")
        if (steps[1:] < counts[:-1]).any():
            raise Malformed("places that do not ascend")
        return Question(serial, names.reshape(count, len(ASKED)), np.stack((places, counts), 1))


@dataclass(frozen=True, slots=True)
class Answer:
    """Which of a question's pieces the target has: (n,) bool; and the marks of what stood at its
    places, as far as that is there and not zeros."""

    serial: int
    hits: NDArray[np.bool_]
    is_marked: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    """(m,), per piece of the places."""
    marks: NDArray[np.uint16] = field(default_factory=lambda: np.empty((0, MARKS), np.uint16))
    """(k, MARKS) of those that are."""

    def to_bytes(self) -> bytes:
        """As it travels: lengths of runs, or a bitmap where that is shorter."""
        out = Writer()
        out.raw(kind_and_version(Message.ANSWER))
        out.number(self.serial)
        out.number(len(self.hits))
        edges = np.flatnonzero(np.diff(self.hits, prepend=False)).astype(np.int64)
        runs = Writer()
        runs.column(np.diff(edges, prepend=0))
        bitmap = np.packbits(self.hits).tobytes()
        as_runs = runs.to_bytes()
        out.number(int(len(as_runs) < len(bitmap)))
        out.raw(min(as_runs, bitmap, key=len) if len(as_runs) != len(bitmap) else bitmap)
        out.number(len(self.is_marked))
        out.raw(np.packbits(self.is_marked).tobytes())
        out.raw(self.marks.astype("<u2").tobytes())
        return out.to_bytes()

    @staticmethod
    def from_bytes(data: Buffer) -> Answer:
        """What `to_bytes` made; `Malformed` for anything else."""
        read = opened(data, Message.ANSWER)
        serial, count = read.number(SERIAL_MAX), read.number(PIECES_MAX)
        if read.number(1):
            edges = np.cumsum(read.column(count + 1, count).astype(np.int64))
            if len(edges) and int(edges[-1]) > count:
                raise Malformed("runs of hits end beyond the question")
            flips = np.zeros(count + 1, np.int64)
            np.add.at(flips, edges, 1)
            hits = np.cumsum(flips[:count]) % 2 == 1
        else:
            packed_bits = np.frombuffer(read.raw((count + 7) // 8), np.uint8)
            hits = np.unpackbits(packed_bits, count=count).astype(np.bool_)
        pieces = read.number(PIECES_MAX)
        packed_bits = np.frombuffer(read.raw((pieces + 7) // 8), np.uint8)
        is_marked = np.unpackbits(packed_bits, count=pieces).astype(np.bool_)
        marks = np.frombuffer(read.raw(int(is_marked.sum()) * MARKS * MARK), "<u2")
        read.done()
        return Answer(serial, hits, is_marked, marks.reshape(-1, MARKS))


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a frame: the units that must come literally; whether the stream broke."""

    serial: int
    missing: Array
    stream_broke: bool

    def to_bytes(self) -> bytes:
        """As it travels."""
        out = Writer()
        out.raw(kind_and_version(Message.RECEIPT))
        out.number(self.serial)
        out.number(int(self.stream_broke))
        out.column(np.diff(self.missing, prepend=0))
        return out.to_bytes()

    @staticmethod
    def from_bytes(data: Buffer) -> Receipt:
        """What `to_bytes` made; `Malformed` for anything else."""
        read = opened(data, Message.RECEIPT)
        serial, broke = read.number(SERIAL_MAX), read.number(1)
        units = PIECES_MAX // UNIT
        missing = np.cumsum(read.column(units, units).astype(np.int64))
        read.done()
        if len(missing) and (int(missing[-1]) >= units or (np.diff(missing) <= 0).any()):
            raise Malformed("missing units that do not ascend")
        return Receipt(serial, missing, bool(broke))


def _none() -> Array:
    return np.empty(0, np.int64)


@dataclass(slots=True)
class Plan:
    """Where each piece of a batch comes from. Arrays are int64, one entry per what they name."""

    extents: Array
    """(k, 2): first piece on the disk (offset / PIECE), pieces; ascending, apart."""
    kinds: Array
    """Per row."""
    counts: Array
    """Pieces per row."""
    copies: Array = field(default_factory=_none)
    """Address per COPY row."""
    parts: Array = field(default_factory=_none)
    """Parts per PARTS row; each is a literal length, then a copy of a length at an address."""
    part_literals: Array = field(default_factory=_none)
    part_copies: Array = field(default_factory=_none)
    part_addresses: Array = field(default_factory=_none)
    regions: Array = field(default_factory=_none)
    """Regions per DELTA row: whole pieces, as piece addresses (address / PIECE) and counts."""
    region_pieces: Array = field(default_factory=_none)
    region_counts: Array = field(default_factory=_none)
    delta_lengths: Array = field(default_factory=_none)
    """Bytes of zstd frame per DELTA row; 0 where the frame of the DELTA row before goes on."""

    @property
    def pieces(self) -> int:
        """In the batch."""
        return int(self.extents[:, 1].sum())

    @property
    def literal_bytes(self) -> int:
        """That the stream must give."""
        whole = int(self.counts[self.kinds == Kind.STREAM].sum()) * PIECE
        return whole + int(self.part_literals.sum())

    def offsets(self) -> Array:
        """(pieces,) where each piece belongs on the disk, in bytes."""
        starts, lengths = self.extents[:, 0], self.extents[:, 1]
        before = np.cumsum(lengths) - lengths
        places: Array = np.arange(self.pieces) + np.repeat(starts - before, lengths)
        return places * PIECE

    def to_bytes(self) -> bytes:
        """As it travels, before compression."""
        out = Writer()
        ends = self.extents.sum(axis=1)
        out.column(self.extents[:, 0] - np.concatenate(([0], ends[:-1])))
        out.column(self.extents[:, 1])
        out.column(self.kinds)
        out.column(self.counts)
        sizes = self.counts[self.kinds == Kind.COPY] * PIECE
        out.column(zigzag(_steps(self.copies, sizes)))
        out.column(self.parts)
        out.column(self.part_literals)
        out.column(self.part_copies)
        out.column(zigzag(_steps(self.part_addresses, self.part_copies)))
        out.column(self.regions)
        out.column(self.region_counts)
        out.column(zigzag(_steps(self.region_pieces, self.region_counts)))
        out.column(self.delta_lengths)
        return out.to_bytes()

    @staticmethod
    def from_bytes(data: Buffer) -> Plan:
        """What `to_bytes` made, checked against itself; `Malformed` for anything else."""
        read = Reader(data)

        def column(count_max: int, largest: int) -> Array:
            return read.column(count_max, largest).view(np.int64)

        def addresses(count_max: int, lengths: Array) -> Array:
            steps = unzigzag(read.column(count_max, 1 << (ADDRESS_BITS + 2)))
            if len(steps) != len(lengths):
                raise Malformed("as many addresses as lengths expected")
            return np.cumsum(steps + lengths) - lengths

        gaps = column(PIECES_MAX, OFFSET_PIECES_MAX)
        lengths = column(PIECES_MAX, PIECES_MAX)
        if len(gaps) != len(lengths) or (lengths == 0).any() or (gaps[1:] == 0).any():
            raise Malformed("extents that are none")
        starts = np.cumsum(gaps + lengths) - lengths
        plan = Plan(np.stack((starts, lengths), 1), _none(), _none())
        if plan.pieces > PIECES_MAX or (len(starts) and int(starts[-1]) > OFFSET_PIECES_MAX):
            raise Malformed(f"a batch of {plan.pieces} pieces")
        plan.kinds = column(PIECES_MAX, max(Kind))
        plan.counts = column(PIECES_MAX, PIECES_MAX)
        rows = (
            {kind: plan.counts[plan.kinds == kind] for kind in Kind}
            if len(plan.kinds) == len(plan.counts)
            else {}
        )
        if not rows or int(plan.counts.sum()) != plan.pieces or (plan.counts == 0).any():
            raise Malformed("rows that are not the batch")
        plan.copies = addresses(PIECES_MAX, rows[Kind.COPY] * PIECE)
        plan.parts = column(PIECES_MAX, PARTS_MAX)
        plan.part_literals = column(PARTS_MAX, PIECES_MAX * PIECE)
        plan.part_copies = column(PARTS_MAX, PIECES_MAX * PIECE)
        plan.part_addresses = addresses(PARTS_MAX, plan.part_copies)
        plan.regions = column(PIECES_MAX, REGIONS_MAX)
        plan.region_counts = column(PIECES_MAX * 8, PREFIX_MAX // PIECE)
        plan.region_pieces = addresses(PIECES_MAX * 8, plan.region_counts)
        plan.delta_lengths = column(PIECES_MAX, PIECES_MAX * PIECE * 2)
        read.done()
        plan._check(rows)
        return plan

    def _check(self, rows: dict[Kind, Array]) -> None:
        deltas, mixed = len(rows[Kind.DELTA]), rows[Kind.PARTS]
        part_bytes = self.part_literals + self.part_copies
        fits = (
            len(self.parts) == len(mixed)
            and len(self.part_literals) == len(self.part_copies) == int(self.parts.sum())
            and len(self.regions) == len(self.delta_lengths) == deltas
            and len(self.region_counts) == int(self.regions.sum())
        )
        if not fits or not np.array_equal(_sums(part_bytes, self.parts), mixed * PIECE):
            raise Malformed("columns that do not fit the rows")
        if (_sums(self.region_counts, self.regions) > PREFIX_MAX // PIECE).any():
            raise Malformed("a prefix beyond the limit")
        for found in (self.copies, self.part_addresses, self.region_pieces * PIECE):
            if len(found) and (int(found.min()) < 0 or int(found.max()) >> ADDRESS_BITS):
                raise Malformed("an address that is none")


def _steps(addresses: Array, lengths: Array) -> Array:
    """Each address as the distance from the end of what the one before named."""
    ends = addresses + lengths
    before = np.concatenate((np.zeros(1, np.int64), ends))[: len(addresses)]
    steps: Array = addresses - before
    return steps


def _sums(values: Array, counts: Array) -> Array:
    """Sums of consecutive groups of `values`."""
    totals = np.concatenate((np.zeros(1, np.int64), np.cumsum(values)))
    ends = np.cumsum(counts)
    sums: Array = totals[ends] - totals[ends - counts]
    return sums


@dataclass(slots=True)
class Frame:
    """A batch on its way."""

    serial: int
    plan: Plan
    digests: bytes
    """DIGEST_BYTES per unit."""
    stream: bytes = b""
    raw: Buffer = b""
    deltas: bytes = b""
    """One zstd frame behind the other."""
    starts_stream: bool = False
    """Nothing before this frame is referred to by `stream`."""
    is_literal: bool = False
    """Units sent again: `stream` is a frame of its own, beside the stream."""

    def to_bytes(self) -> bytes:
        """As it travels."""
        plan = self.plan.to_bytes()
        small = compressed(plan)
        packs = len(small) < len(plan)
        out = Writer()
        out.raw(kind_and_version(Message.FRAME))
        out.number(self.serial)
        out.number(packs | self.starts_stream << 1 | self.is_literal << 2)
        if packs:
            out.number(len(plan))
        plan = small if packs else plan
        for part in (plan, self.stream, self.deltas, self.raw):
            out.number(len(part))
        for part in (plan, self.digests, self.stream, self.deltas, self.raw):
            out.raw(part)
        return out.to_bytes()

    @staticmethod
    def from_bytes(data: Buffer) -> Frame:
        """What `to_bytes` made, checked against itself; `Malformed` for anything else."""
        read = opened(data, Message.FRAME)
        serial, flags = read.number(SERIAL_MAX), read.number(7)
        length = read.number(PLAN_MAX) if flags & 1 else 0
        sizes = [read.number(PIECES_MAX * PIECE * 2) for _ in range(4)]
        packed_plan = read.raw(sizes[0])
        try:
            plan = Plan.from_bytes(decompressed(packed_plan, length) if flags & 1 else packed_plan)
        except Damaged as exc:
            raise Malformed(f"the plan: {exc}") from exc
        digests = bytes(read.raw(-(-plan.pieces // UNIT) * DIGEST_BYTES))
        stream, deltas, raw = (read.raw(size) for size in sizes[1:])
        read.done()
        if len(raw) != int(plan.counts[plan.kinds == Kind.RAW].sum()) * PIECE:
            raise Malformed("raw bytes that do not fit the rows")
        if len(deltas) != int(plan.delta_lengths.sum()):
            raise Malformed("deltas that do not fit the rows")
        starts, literal = bool(flags & 2), bool(flags & 4)
        return Frame(serial, plan, digests, stream, raw, deltas, starts, literal)  # type: ignore[arg-type]
