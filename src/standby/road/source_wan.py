"""The source's WAN accelerator as a station of one disk task: batches become frames.

Everything but batches passes through in order. A batch is cut into parts; the question of each goes
out at once, so that the answer is there when its turn comes, however long the line: up to as many
parts as the target allows are on their way, and at most IN_FLIGHT_BYTES. A second thread encodes
them in order, behind what the proxy said between them; it alone uses the encoder, so receipts are
settled there too. A third one sends, so that the line is in use while the next part is encoded.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from standby.errors import ProtocolError, error_from_wire
from standby.road.batches import parsed_batch
from standby.road.packing import Packer, Unpacker
from standby.road.read_ahead import Frame
from standby.road.wan_batches import Part, packed_zeros, parts_of
from standby.road.wan_relay import Relay
from standby.units import MiB
from standby.wan.batches import Batch as Pieces
from standby.wan.encoding import Encoder, Sent
from standby.wan.references import Receipt
from standby.wire.link import Link
from standby.wire.messages import (
    Acknowledged,
    Attach,
    Batch,
    Failed,
    Finish,
    Finished,
    GetIndex,
    GetLeaves,
    Index,
    Leaves,
    Mark,
    Message,
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

SAMPLED = 64
PLACES = 8
SAVED_MORE = 26
"""Pieces in a row of each part that are compressed as direct mode would, from another of so many
places each time, to know what it would have sent. Alone they come out too high, for zstd does not
know what is in front of them: on 192 MiB of files of a system it saved a 26th more in whole batches
(67.6 MiB, not 72.5), which is added; where content compresses better this is too much, and so says
less for the accelerator. Short runs from all over a part came out 25 % too high."""

MODES = ("digest",)
"""What a task may be told: to ask the target by name, and to compress the rest."""


@dataclass(slots=True)
class _Waiting:
    """Something to be sent in its turn: a part, or a message between parts."""

    message: Message | None = None
    zeros: bytes = b""
    pieces: Pieces | None = None


class SourceWan(Relay):
    """Runs one disk task between the source proxy and the target's accelerator."""

    def __init__(
        self, task: str, near: Link, far: Link, key: bytes, virtual_size: int, window_log: int
    ) -> None:
        super().__init__(task, near, far)
        self._key = key
        self._virtual_size = virtual_size
        self._window_log = window_log
        self._unpacker = Unpacker(near.peer)
        self._packer = Packer("fast")
        self._queue: deque[_Waiting] = deque()
        self._answers: deque[bytes] = deque()
        self._receipts: deque[bytes] = deque()
        self._ready: deque[tuple[Message, tuple[bytes, ...]]] = deque()
        self._sizes: dict[int, int] = {}
        self._questions = IN_FLIGHT_MAX
        self._encoder: Encoder
        self._samples = 0
        self.direct = 0
        """Bytes that zstd alone would have come to, as far as samples tell."""

    @property
    def sent(self) -> Sent:
        """What became of the pieces."""
        return self._encoder.sent

    def run(self) -> None:
        """Returns when the target has all of it."""
        ready, _ = self._far.receive()
        if isinstance(ready, Failed):
            raise error_from_wire(ready.error)
        if not isinstance(ready, WanReady) or ready.questions < 1:
            raise ProtocolError(self._far.peer, f"expected WanReady, got {ready}")
        self._questions = min(ready.questions, IN_FLIGHT_MAX)
        window_log = min(ready.window_log, self._window_log)
        self._encoder = Encoder(self._key, None, 0, asks=ready.asks, window_log=window_log)
        self.begin(self._encode_all, "encodes")
        self.begin(self._send_all, "sends")
        self.relay()

    # --- from the source proxy ---------------------------------------------------------------

    def take_near(self, frame: Frame) -> None:
        """See Relay."""
        message, payload = frame
        if isinstance(message, Batch):
            if message.packing:
                payload = memoryview(self._unpacker.unpack(payload))
            batch = parsed_batch(message, payload, None, self._virtual_size, self._near.peer)
            for part in parts_of(batch):
                self._take_part(part)
        elif isinstance(message, Mark | Finish):
            self._put(_Waiting(message))
        elif isinstance(message, Attach | GetIndex | GetLeaves):
            self._far.send(message)  # of no consequence for batches, so they need not queue
        else:
            raise self.unexpected(frame, self._near)

    def _take_part(self, part: Part) -> None:
        waiting = _Waiting(zeros=packed_zeros(part.zeros))
        if len(part.offsets):
            if not self._has_room(part.data.nbytes):
                return
            pieces = self._encoder.prepare(part.offsets, part.data)
            with self._changed:
                self._sizes[pieces.serial] = part.data.nbytes
            if pieces.question:
                self._far.send(WanQuestion(), pieces.question)
            waiting.pieces = pieces
        self._put(waiting)

    def _has_room(self, length: int) -> bool:
        """Wait until so much more may be on its way; False where the task has ended."""

        def may_go() -> bool:
            held = self._sizes.values()
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
                receipt = self._receipts.popleft() if self._receipts else None
                if receipt is None:
                    waiting = self._queue.popleft()
                    answer = self._answers.popleft() if _asks(waiting) else b""
                    self._changed.notify_all()
            if receipt is not None:
                self._settle(receipt)
            elif waiting.message is not None:
                self._hand_over(waiting.message)
            else:
                self._encode(waiting, answer)

    def _is_turn(self) -> bool:
        return bool(self._queue) and (not _asks(self._queue[0]) or bool(self._answers))

    def _encode(self, waiting: _Waiting, answer: bytes) -> None:
        frame = b""
        if waiting.pieces is not None:
            self.direct += self._packed_alone(waiting.pieces.data)
            frame = self._encoder.encode(waiting.pieces, answer)
        self._hand_over(WanFrame(len(waiting.zeros)), waiting.zeros, frame)

    def _packed_alone(self, data: NDArray[np.uint8]) -> int:
        """Bytes that direct mode would make of these pieces, about."""
        place = self._samples * (PLACES // 2 + 1) % PLACES
        self._samples += 1
        start = max(0, min(len(data) * place // PLACES, len(data) - SAMPLED))
        chosen = data[start : start + SAMPLED]
        saved = max(0, chosen.nbytes - len(self._packer.pack(chosen)))
        sent = max(0, chosen.nbytes - saved - saved // SAVED_MORE)
        return sent * len(data) // len(chosen)

    def _settle(self, receipt: bytes) -> None:
        again = self._encoder.settle(receipt)
        if again:
            self._hand_over(WanAgain(), again)
            return
        with self._changed:
            self._sizes.pop(Receipt.from_bytes(receipt).serial, None)
            self._changed.notify_all()

    # --- sending -----------------------------------------------------------------------------

    def _hand_over(self, message: Message, *payload: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.has_ended or len(self._ready) < READY_MAX)
            self._ready.append((message, payload))
            self._changed.notify_all()

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.has_ended or self._ready)
                if self.has_ended:
                    return
                message, payload = self._ready.popleft()
                self._changed.notify_all()
            self._far.send(message, *payload)

    # --- from the target's accelerator -------------------------------------------------------

    def take_far(self, frame: Frame) -> None:
        """See Relay."""
        message, payload = frame
        if isinstance(message, WanAnswer):
            self._keep(self._answers, payload)
        elif isinstance(message, WanReceipt):
            self._keep(self._receipts, payload)
        elif isinstance(message, Index | Leaves | Acknowledged | Resend):
            self._near.send(message, payload)
        elif isinstance(message, Finished):
            self.finish(frame)
            self._near.shutdown()
            self._far.shutdown()
        else:
            raise self.unexpected(frame, self._far)

    def before_failing(self, ended: Link) -> None:
        """See Relay: what the proxy said and is not sent yet, it will say again."""

    def _keep(self, kept: deque[bytes], payload: Any) -> None:
        with self._changed:
            if len(kept) > 2 * IN_FLIGHT_MAX:
                raise ProtocolError(self._far.peer, "answers to what was not asked")
            kept.append(bytes(payload))
            self._changed.notify_all()


def _asks(waiting: _Waiting) -> bool:
    return waiting.pieces is not None and bool(waiting.pieces.question)
