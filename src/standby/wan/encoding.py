"""Batches of changed pieces become frames: the source's half of a pair of WAN accelerators.

Per batch, cheapest first: zeros; what the source's index knows that the target holds; what the
target says it holds when asked; parts moved by odd distances; what resembles something that both
sides hold, as a delta behind it (matching.py); the rest through one long compressed stream, or as
it is where that would not shrink.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from standby.comparing import runs_of_zero
from standby.errors import ProtocolError
from standby.wan import compressing
from standby.wan.batches import (
    UNDECIDED,
    Batch,
    digest_key,
    digests_of,
    extents_of,
    literal_ranges,
    plan_of,
    unit_digests,
)
from standby.wan.marking import Marking
from standby.wan.matching import Known, Shared, find_deltas, find_parts, keep_incompressible
from standby.wan.names import NAME
from standby.wan.pacing import Pace
from standby.wan.references import (
    ASKED,
    PIECE,
    PIECES_MAX,
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

PEER = "target WAN accelerator"

REFERRING = (Kind.COPY, Kind.PARTS, Kind.DELTA)


@dataclass(slots=True)
class Sent:
    """What became of a disk's pieces, and how many bytes that took, either way."""

    pieces: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    questions: int = 0
    answers: int = 0
    frames: int = 0
    """Bytes of frames; of these:"""
    stream: int = 0
    raw: int = 0
    deltas: int = 0
    plans_and_digests: int = 0
    literals: int = 0
    """Bytes of frames that repeat units."""
    receipts: int = 0
    units_resent: int = 0
    units_wrong: int = 0
    """Of these, such as referred to addresses."""

    def by_kind(self) -> dict[str, int]:
        """Bytes by what they are for, either way; those that are 0 are left out."""
        found = {
            "questions": self.questions,
            "answers": self.answers,
            "references": self.plans_and_digests,
            "stream": self.stream,
            "raw": self.raw,
            "delta": self.deltas,
            "again": self.literals,
            "receipts": self.receipts,
        }
        return {kind: count for kind, count in found.items() if count}

    @property
    def wire_bytes(self) -> int:
        """Everything, either way."""
        return self.questions + self.answers + self.frames + self.literals + self.receipts


class Encoder:
    """Frames of one disk in one session. Not thread-safe; another disk has another."""

    def __init__(
        self,
        key: bytes,
        index: Known | None,
        base: int,
        *,
        shared: Shared | None = None,
        asks: bool = True,
        marks: bool = False,
        window_log: int = compressing.WINDOW_LOG_MAX,
    ) -> None:
        """The disk's addresses in `index` begin at `base`; None: nothing is known here, whatever
        was sent before. `shared` is what deltas may refer to.
        Without `asks` the target is not asked for names. With `marks` it is asked for marks of what
        changed pieces were before, which it must be able to read at `base`. 2^window_log bytes of
        memory on either side are the stream's."""
        self._key = key
        self._digest_key = digest_key(key)
        self._index = index
        self._base = base
        self._shared = shared
        self._asks = asks
        self._marking = Marking() if marks else None
        self._window_log = window_log
        self._stream: compressing.Stream | None = None
        self.pace = Pace()
        """Chooses the stream's level; to be told how long frames took."""
        self._serial = 0
        self._unsettled: dict[int, Batch] = {}
        self._resent: set[int] = set()
        self.sent = Sent()

    def prepare(
        self, offsets: Array, data: Buffer, *, refers: bool = True, learns: bool = True
    ) -> Batch:
        """Take in a batch: ascending `offsets` (n,), multiples of PIECE, 0 < n <= PIECES_MAX, and
        n * PIECE bytes, which are kept until it is settled and must not change. Without `refers`
        what is known here is not looked at, without `learns` not added to."""
        pieces = np.frombuffer(data, np.uint8).reshape(-1, PIECE)
        if not 0 < len(pieces) == len(offsets) <= PIECES_MAX:
            raise ValueError(f"{len(offsets)} offsets for {len(pieces)} pieces")
        if (offsets % PIECE).any() or (np.diff(offsets, prepend=-1) <= 0).any():
            raise ValueError("offsets must be of whole pieces and ascend")
        self._serial += 1
        is_zero = np.zeros(len(pieces), bool)
        runs = runs_of_zero(pieces.reshape(-1))
        for first, stop, _ in runs[runs[:, 2] == 0].tolist():
            is_zero[first:stop] = True
        digests = digests_of(pieces, is_zero, self._key)
        named = np.ascontiguousarray(digests[:, :NAME])
        addresses = np.full(len(named), -1, np.int64)
        if self._index is not None and refers:
            addresses = self._index.find_pieces(named)
        kinds = np.where(addresses >= 0, Kind.COPY, UNDECIDED).astype(np.int8)
        kinds[is_zero] = Kind.ZERO
        none = np.empty(0, np.int64)
        groups = np.zeros(len(pieces), np.int64)
        batch = Batch(
            self._serial, offsets, pieces, named, kinds, addresses, groups, none, self._key, digests
        )
        batch.refers, batch.learns = refers, learns
        undecided = batch.undecided()
        if self._asks:
            batch.asked = undecided
        if self._marking is not None:
            batch.marked = self._marking.wanted(batch, undecided, self._shared, self._base)
        if len(batch.asked) or len(batch.marked):
            places = extents_of(self._base + offsets[batch.marked])
            asked = named[batch.asked][:, ASKED]
            batch.question = Question(self._serial, asked, places).to_bytes()
            self.sent.questions += len(batch.question)
        return batch

    def encode(self, batch: Batch, answer: Buffer = b"") -> bytes:
        """The batch's frame; `answer` is the target's to its question, if there was one.

        Frames go out in the order of their encoding. ProtocolError for an answer that is none.
        """
        if batch.question:
            self._take_answer(batch, answer)
        if self._index is not None and batch.refers:
            if self._shared is not None:
                find_deltas(batch, self._index, self._shared, self._base, self._key)
            find_parts(batch, self._index)
        keep_incompressible(batch)
        batch.kinds[batch.kinds == UNDECIDED] = Kind.STREAM
        plan = plan_of(batch)
        literals = _literals(batch, plan)
        length = memoryview(literals).nbytes
        starts = self._choose_stream(length)
        frame = Frame(
            batch.serial,
            plan,
            unit_digests(batch.offsets, batch.digests, self._digest_key),
            stream=self._stream.add(literals) if self._stream and length else b"",
            raw=batch.flat_of(Kind.RAW),
            deltas=b"".join(batch.deltas[group].frame for group in sorted(batch.deltas)),
            starts_stream=starts,
        )
        self._unsettled[batch.serial] = batch
        made = frame.to_bytes()
        self._count(batch, frame, len(made))
        return made

    def settle(self, receipt: Buffer) -> bytes:
        """Take in what the target says of a frame: returns a frame of the units it could not
        rebuild, to be sent now, or b"" when the batch is there.

        ProtocolError for a receipt that is none, or that lacks a unit sent again.
        """
        try:
            told = Receipt.from_bytes(receipt)
        except Malformed as exc:
            raise ProtocolError(PEER, f"receipt: {exc}") from exc
        batch = self._unsettled.get(told.serial)
        units = -(-len(batch.offsets) // UNIT) if batch else 0
        if batch is None or (len(told.missing) and int(told.missing[-1]) >= units):
            raise ProtocolError(PEER, f"receipt for what was not sent: frame {told.serial}")
        self.sent.receipts += len(memoryview(receipt))
        if told.stream_broke:
            self._stream = None
        if len(told.missing):
            if told.serial in self._resent:
                raise ProtocolError(PEER, f"frame {told.serial}: units sent again did not arrive")
            self._resent.add(told.serial)
            self.sent.units_wrong += len(np.intersect1d(told.missing, _referring(batch)))
            return self._again(batch, told.missing)
        del self._unsettled[batch.serial]
        self._resent.discard(batch.serial)
        if self._index is not None and batch.learns:
            parts = batch.parts_of_runs()
            self._index.learn(self._base, batch.offsets, batch.names, batch.data, parts)
        return b""

    def _choose_stream(self, length: int) -> bool:
        """Have a stream for the next literals; whether it is a new one."""
        level = self.pace.level_for(length)
        if self._stream is not None and (self._stream.level == level or not length):
            return False
        self._stream = compressing.Stream(self._window_log, level)
        return True

    def _take_answer(self, batch: Batch, answer: Buffer) -> None:
        try:
            told = Answer.from_bytes(answer)
        except Malformed as exc:
            raise ProtocolError(PEER, f"answer: {exc}") from exc
        asked, marked = len(batch.asked), len(batch.marked)
        if (told.serial, len(told.hits), len(told.is_marked)) != (batch.serial, asked, marked):
            raise ProtocolError(PEER, f"answer to another question: {told.serial}")
        self.sent.answers += len(memoryview(answer))
        batch.kinds[batch.asked[told.hits]] = Kind.ASKED
        if self._marking is not None:
            self._marking.take(batch, told, self._base)

    def _again(self, batch: Batch, missing: Array) -> bytes:
        rows = (missing[:, None] * UNIT + np.arange(UNIT)).reshape(-1)
        rows = rows[rows < len(batch.offsets)]
        offsets, data, digests = batch.offsets[rows], batch.data[rows], batch.digests[rows]
        plan = Plan(extents_of(offsets), np.array([Kind.STREAM]), np.array([len(rows)]))
        frame = Frame(
            batch.serial,
            plan,
            unit_digests(offsets, digests, self._digest_key),
            stream=compressing.compressed(data.reshape(-1)),
            is_literal=True,
        )
        made = frame.to_bytes()
        self.sent.literals += len(made)
        self.sent.units_resent += len(missing)
        return made

    def _count(self, batch: Batch, frame: Frame, length: int) -> None:
        counts = np.bincount(batch.kinds, minlength=len(Kind)).tolist()
        for kind in Kind:
            self.sent.pieces[kind] += counts[kind]
        self.sent.frames += length
        self.sent.stream += len(frame.stream)
        self.sent.raw += len(frame.raw)
        self.sent.deltas += len(frame.deltas)
        content = len(frame.stream) + len(frame.raw) + len(frame.deltas)
        self.sent.plans_and_digests += length - content


def _literals(batch: Batch, plan: Plan) -> Buffer:
    """What the stream gives of a batch, in order; without a copy where it is one range."""
    if not len(plan.part_literals):
        return batch.flat_of(Kind.STREAM)
    view = memoryview(batch.flat)
    return b"".join([view[start:stop] for start, stop in literal_ranges(plan).tolist()])


def _referring(batch: Batch) -> Array:
    """The units of a batch in which something refers to addresses."""
    refers = np.isin(batch.kinds, REFERRING)
    if len(batch.by_marks):
        refers &= ~batch.by_marks
    return np.unique(np.flatnonzero(refers) // UNIT)
