"""The source's WAN accelerator as a station of one disk task: batches become frames.

Everything but batches passes through in order. A batch is cut into parts; the question of each goes
out at once, so that the answer is there when its turn comes, however long the line: up to as many
parts as the target allows are on their way, and at most IN_FLIGHT_BYTES. A second thread encodes
them in order, behind what the proxy said between them; it alone uses the encoder, so receipts are
settled there too. A third one sends, so that the line is in use while the next part is encoded.

Which way a part goes (wan_choosing.Way) is the task's mode, or, in mode auto, measured.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from standby.clock import SYSTEM_CLOCK
from standby.errors import ProtocolError, error_from_wire
from standby.road.batches import parsed_batch
from standby.road.packing import Unpacker
from standby.road.read_ahead import Frame
from standby.road.wan_batches import Part, packed_zeros, part_runs, parts_of
from standby.road.wan_choosing import Choosing, Way
from standby.road.wan_direct import DirectBatches
from standby.road.wan_relay import Relay
from standby.units import MiB
from standby.wan.batches import Batch as Pieces
from standby.wan.encoding import Encoder, Sent
from standby.wan.pacing import Paces
from standby.wan.references import Receipt
from standby.wan.remembering import DiskMemory
from standby.wire.link import Link
from standby.wire.messages import (
    Acknowledged,
    Attach,
    Batch,
    Failed,
    Finish,
    Finished,
    GetLeaves,
    GetNodes,
    Leaves,
    Mark,
    Message,
    Nodes,
    Resend,
    WanAgain,
    WanAnswer,
    WanFrame,
    WanQuestion,
    WanReady,
    WanReceipt,
)

IN_FLIGHT_MAX = 16
IN_FLIGHT_BYTES = 64 * MiB
"""Of parts that are not settled: eight whole ones, 0.6 s of a line of 100 MB/s."""

READY_MAX = 2
"""Frames that are made and wait for the line: at most 16 MiB, and one is mostly enough."""

MARK_EVERY_S = 15.0
"""How long a mark waits at least where nothing was sent since the last one; twice as long each
time. A scan of an hour that finds nothing says eight."""

MODES = ("auto", *Way)
"""What a task may be told: one of the ways for everything, or to choose."""


@dataclass(slots=True)
class _Flight:
    """A part that is not settled."""

    way: Way
    length: int
    wire: int = 0
    made_s: float = 0.0
    sent_at: float = 0.0
    pace: tuple[int, int] = (0, 0)
    """Level and literals of its frame."""


class _Waiting(NamedTuple):
    """Something to be sent in its turn: a part, or a message between parts."""

    message: Message | None = None
    zeros: bytes = b""
    pieces: Pieces | None = None
    part: Part | None = None
    """To go directly."""
    flight: _Flight | None = None


class _Back(NamedTuple):
    receipt: bytes
    at: float


class SourceWan(Relay):
    """Runs one disk task between the source proxy and the target's accelerator."""

    def __init__(
        self,
        task: str,
        near: Link,
        far: Link,
        key: bytes,
        virtual_size: int,
        window_log: int,
        mode: str = Way.DIGEST,
        memory: DiskMemory | None = None,
        session: str = "",
        paces: Paces | None = None,
    ) -> None:
        """`memory` of what the target has of this disk; what `session` sends is learned. `paces` of
        all disks that the mover sends."""
        super().__init__(task, near, far)
        self._key = key
        self._virtual_size = virtual_size
        self._window_log = window_log
        self._mode = mode
        self._memory = memory
        self._session = session
        self._paces = paces or Paces()
        self._unpacker = Unpacker(near.peer)
        self._direct = DirectBatches(virtual_size)
        self._queue: deque[_Waiting] = deque()
        self._answers: deque[bytes] = deque()
        self._receipts: deque[_Back] = deque()
        self._ready: deque[tuple[Message, tuple[Any, ...], _Flight | None]] = deque()
        self._flights: dict[int, _Flight] = {}
        self._directly: deque[_Flight] = deque()
        self._questions = IN_FLIGHT_MAX
        self._encoder: Encoder
        self._choosing = Choosing([Way.DIGEST])
        self.sent = Sent()
        """What became of the pieces that did not go directly."""
        self._way = Way.DIGEST
        self._held_mark: Mark | None = None
        self._is_marked = True
        """Whether nothing was sent since the last mark."""
        self._mark_every_s = MARK_EVERY_S
        self._next_mark_at = SYSTEM_CLOCK.monotonic() + MARK_EVERY_S
        self._asked_at: deque[float] = deque()
        self._round_trip_s = 0.0
        self._last_back = 0.0
        self._sending_s = 0.0
        self._looked = (SYSTEM_CLOCK.monotonic(), 0.0, far.peer_waits_s())

    @property
    def direct(self) -> int:
        """Bytes that all would have come to directly, as far as samples tell."""
        return self._direct.estimated

    @property
    def pieces(self) -> dict[str, int]:
        """By how they travelled."""
        found = {kind.name.lower(): count for kind, count in self.sent.pieces.items() if count}
        return found | ({"direct": self._direct.pieces} if self._direct.pieces else {})

    @property
    def bytes_by_kind(self) -> dict[str, int]:
        """What was said to each other, messages' own frames apart."""
        direct = {"direct": self._direct.sent_bytes} if self._direct.sent_bytes else {}
        return self.sent.by_kind() | direct

    @property
    def mode(self) -> str:
        """As it was used: in mode auto with the way that most went."""
        if self._mode != "auto":
            return self._mode
        lengths = self._choosing.lengths
        return f"auto: {max(lengths, key=lengths.__getitem__)}"

    def run(self) -> None:
        """Returns when the target has all of it."""
        ready, _ = self._far.receive()
        if isinstance(ready, Failed):
            raise error_from_wire(ready.error)
        if not isinstance(ready, WanReady) or ready.questions < 1:
            raise ProtocolError(self._far.peer, f"expected WanReady, got {ready}")
        self._questions = min(ready.questions, IN_FLIGHT_MAX)
        if self._memory is not None:
            self._memory.begin(ready.point)
        self._encoder = Encoder(
            self._key,
            self._memory,
            0,
            shared=self._memory,
            asks=ready.asks,
            marks=bool(ready.point),
            window_log=min(ready.window_log, self._window_log),
        )
        self._encoder.pace = self._paces.begun(self._far.peer)
        self.sent = self._encoder.sent
        self._choosing = Choosing(self._ways())
        self.begin(self._encode_all, "encodes")
        self.begin(self._send_all, "sends")
        self.relay()
        if self._memory is not None and not self._flights:
            self._memory.finished(self._session)

    def _ways(self) -> list[Way]:
        if self._mode != "auto":
            return [Way(self._mode)]
        is_remembered = self._memory is not None and self._memory.learns
        return [way for way in Way if way != Way.FULL or is_remembered]

    # --- from the source proxy ---------------------------------------------------------------

    def take_near(self, frame: Frame) -> None:
        """See Relay."""
        message, payload = frame
        if isinstance(message, Batch):
            if message.packing:
                payload = memoryview(self._unpacker.unpack(payload))
            batch = parsed_batch(message, payload, None, self._virtual_size, self._near.peer)
            for part in parts_of(batch, self._next_size):
                self._take_part(part)
        elif isinstance(message, Mark):
            self._take_mark(message)
        elif isinstance(message, Finish):
            self._put_held_mark()
            self._put(_Waiting(message))
        elif isinstance(message, Attach):
            if message.task != self._task:
                raise self.unexpected(frame, self._near)
            # The target's accelerator knows the task, and says so itself.
        elif isinstance(message, GetLeaves | GetNodes):
            self._far.send(message)  # of no consequence for batches, so they need not queue
        else:
            raise self.unexpected(frame, self._near)

    def _take_mark(self, mark: Mark) -> None:
        """Pass it on behind something that was sent. Where nothing was, it only saves a session
        that resumes some reading: the longer that lasts, the more seldom it goes."""
        now = SYSTEM_CLOCK.monotonic()
        self._held_mark = mark
        if self._is_marked and now < self._next_mark_at:
            return
        self._put_held_mark()
        self._mark_every_s = 2 * self._mark_every_s if self._is_marked else MARK_EVERY_S
        self._next_mark_at = now + self._mark_every_s
        self._is_marked = True

    def _put_held_mark(self) -> None:
        mark, self._held_mark = self._held_mark, None
        if mark is not None:
            self._put(_Waiting(mark))

    def _next_size(self) -> int:
        """Choose the next part's way; its pieces at most."""

        def may_go() -> bool:
            under_way = len(self._flights) + len(self._directly)
            return self.has_ended or under_way < self._choosing.under_way_max

        with self._changed:
            self._changed.wait_for(may_go)
            self._way, size = self._choosing.next()
        return size

    def _take_part(self, part: Part) -> None:
        self._is_marked = False
        if self._memory is not None:
            self._memory.unlearn(part.zeros)
        if not len(part.offsets):
            self._put(_Waiting(zeros=packed_zeros(part.zeros)))
            return
        if not self._has_room(part.data.nbytes):
            return
        way = self._way
        flight = _Flight(way, part.data.nbytes)
        if self._memory is not None and way != Way.FULL:
            self._memory.unlearn(part_runs(part))
        if way == Way.DIRECT:
            with self._changed:
                self._directly.append(flight)
            self._put(_Waiting(part=part, flight=flight))
            return
        began = SYSTEM_CLOCK.monotonic()
        refers = way == Way.FULL and self._memory is not None and self._memory.refers
        pieces = self._encoder.prepare(
            part.offsets, part.data, refers=refers, learns=way == Way.FULL
        )
        flight.made_s = SYSTEM_CLOCK.monotonic() - began
        with self._changed:
            self._flights[pieces.serial] = flight
            if pieces.question:
                self._asked_at.append(SYSTEM_CLOCK.monotonic())
        if pieces.question:
            flight.wire = len(pieces.question)
            self._far.send(WanQuestion(), pieces.question)
        self._put(_Waiting(zeros=packed_zeros(part.zeros), pieces=pieces, flight=flight))

    def _has_room(self, length: int) -> bool:
        """Wait until so much more may be on its way; False where the task has ended."""

        def may_go() -> bool:
            held = [flight.length for flight in (*self._flights.values(), *self._directly)]
            few = len(held) < self._questions and sum(held) + length <= IN_FLIGHT_BYTES
            return self.has_ended or few or not held

        with self._changed:
            self._changed.wait_for(may_go)
        return not self.has_ended

    def _put(self, waiting: _Waiting) -> None:
        with self._changed:
            # Parts have room of their own; what has no pieces must not pile up either.
            self._changed.wait_for(lambda: self.has_ended or len(self._queue) < 4 * IN_FLIGHT_MAX)
            self._queue.append(waiting)
            self._changed.notify_all()

    # --- encoding ----------------------------------------------------------------------------

    def _encode_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.has_ended or self._receipts or self._is_turn())
                # Receipts that came before the target's last word are settled after it too.
                if self.has_ended and (self._errors or not self._receipts):
                    return
                back = self._receipts.popleft() if self._receipts else None
                if back is None:
                    waiting = self._queue.popleft()
                    answer = self._answers.popleft() if _asks(waiting) else b""
                    self._changed.notify_all()
            if back is not None:
                self._settle(back)
            elif waiting.message is not None:
                self._hand_over(waiting.message)
            else:
                self._encode(waiting, answer)

    def _is_turn(self) -> bool:
        return bool(self._queue) and (not _asks(self._queue[0]) or bool(self._answers))

    def _encode(self, waiting: _Waiting, answer: bytes) -> None:
        flight = waiting.flight
        began = SYSTEM_CLOCK.monotonic()
        message: Message
        payload: tuple[Any, ...]
        if waiting.part is not None:
            message, payload = self._direct.batch(waiting.part)
        else:
            frame = b""
            if waiting.pieces is not None:
                self._direct.sample(waiting.pieces.data)
                frame = self._encoder.encode(waiting.pieces, answer)
                if flight is not None:
                    flight.pace = self._encoder.pace.last
            message, payload = WanFrame(len(waiting.zeros)), (waiting.zeros, frame)
        if flight is not None:
            flight.wire += sum(memoryview(part).nbytes for part in payload)
            flight.made_s = max(flight.made_s, SYSTEM_CLOCK.monotonic() - began)
        self._hand_over(message, *payload, flight=flight)

    def _settle(self, back: _Back) -> None:
        if not back.receipt:
            if not self._directly:
                raise ProtocolError(self._far.peer, "receipts for what was not sent")
            self._came_back(self._directly.popleft(), back.at)
            return
        wrong, began = self.sent.units_wrong, SYSTEM_CLOCK.monotonic()
        again = self._encoder.settle(back.receipt)
        serial = Receipt.from_bytes(back.receipt).serial
        flight = self._flights[serial]
        if again:
            if self._memory is not None:
                self._memory.wrong(self.sent.units_wrong - wrong)
            self._hand_over(WanAgain(), again)
            return
        flight.made_s += SYSTEM_CLOCK.monotonic() - began
        with self._changed:
            del self._flights[serial]
        self._came_back(flight, back.at)

    def _came_back(self, flight: _Flight, at: float) -> None:
        """The part is settled: what its way costs."""
        with self._changed:
            is_alone = flight.sent_at >= self._last_back
            took_s = at - max(flight.sent_at, self._last_back)
            if is_alone:
                took_s -= self._round_trip_s
            self._last_back = at
            self._choosing.came_back(
                flight.way, flight.length, flight.wire, flight.made_s, max(0.0, took_s)
            )
            self._changed.notify_all()
        is_line = self._line_is_brake()
        pace = self._encoder.pace
        pace.came_back(flight.pace, flight.made_s, max(0.0, took_s), is_line=is_line)
        self._paces.learned(self._far.peer, pace)

    def _line_is_brake(self) -> bool:
        """Whether, since this was asked last, most of the time went into writing that the line, not
        the target, kept waiting."""
        now = SYSTEM_CLOCK.monotonic(), self._sending_s, self._far.peer_waits_s()
        passed, sending, waiting = (new - old for new, old in zip(now, self._looked, strict=True))
        self._looked = now
        return sending - waiting > passed / 2

    # --- sending -----------------------------------------------------------------------------

    def _hand_over(self, message: Message, *payload: Any, flight: _Flight | None = None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.has_ended or len(self._ready) < READY_MAX)
            self._ready.append((message, payload, flight))
            self._changed.notify_all()

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.has_ended or self._ready)
                if self.has_ended:
                    return
                message, payload, flight = self._ready.popleft()
                self._changed.notify_all()
            began = SYSTEM_CLOCK.monotonic()
            if flight is not None:
                flight.sent_at = began
            self._far.send(message, *payload)
            took_s = SYSTEM_CLOCK.monotonic() - began
            self._sending_s += took_s
            if isinstance(message, Batch):
                self._direct.sent(payload, took_s)

    # --- from the target's accelerator -------------------------------------------------------

    def take_far(self, frame: Frame) -> None:
        """See Relay."""
        message, payload = frame
        if isinstance(message, WanAnswer):
            self._take_answer(payload)
        elif isinstance(message, WanReceipt):
            with self._changed:
                if len(self._receipts) > 2 * IN_FLIGHT_MAX or not (payload or self._directly):
                    raise ProtocolError(self._far.peer, "receipts for what was not sent")
                self._receipts.append(_Back(bytes(payload), SYSTEM_CLOCK.monotonic()))
                self._changed.notify_all()
        elif isinstance(message, Leaves | Nodes | Acknowledged | Resend):
            self._near.send(message, payload)
        elif isinstance(message, Finished):
            self.finish(frame)
            self._near.shutdown()
            self.leave(self._far)
        else:
            raise self.unexpected(frame, self._far)

    def _take_answer(self, payload: memoryview) -> None:
        with self._changed:
            if not self._asked_at:
                raise ProtocolError(self._far.peer, "answers to what was not asked")
            took_s = SYSTEM_CLOCK.monotonic() - self._asked_at.popleft()
            self._round_trip_s = min(self._round_trip_s or took_s, took_s)
            self._answers.append(bytes(payload))
            self._changed.notify_all()

    def before_failing(self, ended: Link) -> None:
        """See Relay: what the proxy said and is not sent yet, it will say again."""


def _asks(waiting: _Waiting) -> bool:
    return waiting.pieces is not None and bool(waiting.pieces.question)
