"""The target's WAN accelerator as a station of one disk task: frames become batches again.

One thread answers questions and decodes frames, what they give checked piece by piece
(wan.decoding). A second one sends that on, and gives it to the global cache; only then the receipt
goes out, so that a target that writes slowly slows the source down. `Mark` and `Finish` wait until
every frame before them is whole.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import NamedTuple

from standby.errors import LinkError, ProtocolError
from standby.road.read_ahead import Frame
from standby.road.wan_batches import send_batch, unpacked_zeros
from standby.road.wan_cache import CachedContent, Caching
from standby.road.wan_newest import NO_POINT, NewestPoint
from standby.road.wan_relay import READING_S, Relay
from standby.wan.decoding import Decoded, Decoder, Rebuilt
from standby.wan.holding import Holding
from standby.wire.link import Link
from standby.wire.messages import (
    Acknowledged,
    Attach,
    Batch,
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
from standby.wire.standing import Turn

QUESTIONS_MAX = 16
"""Open ones; as many frames may lack units at a time."""

LAST_WORD_S = 2.0
"""How long a target that ended its link has for what it said before to be read."""


DECODED_MAX = 2
"""Frames whose content waits to be sent on: at most 32 MiB."""


class _Held(NamedTuple):
    behind: int
    """The last frame before it."""
    message: Message


class _Ready(NamedTuple):
    """To be sent on in its turn: what a frame gave, or a message between frames."""

    decoded: Decoded | None = None
    zeros: bytes = b""
    message: Message | None = None
    payload: bytes = b""


class TargetWan(Relay):
    """Runs one disk task between the source's accelerator and the target proxy."""

    tells_far = False

    def __init__(
        self,
        task: str,
        near: Link,
        far: Link,
        key: bytes,
        virtual_size: int,
        window_log: int,
        content: CachedContent,
        caching: Caching,
        *,
        asks: bool,
        newest: NewestPoint = NO_POINT,
    ) -> None:
        """`asks`: there is a cache to be asked. `newest`: what frames may refer to."""
        super().__init__(task, near, far)
        self._virtual_size = virtual_size
        self._caching = caching
        self._ready = WanReady(asks, QUESTIONS_MAX, window_log, newest.session)
        holding = Holding(content)
        holding.add_disk(0, before=newest.disk, now=None)
        self._decoder = Decoder(
            key, holding, window_log_max=window_log, questions_max=QUESTIONS_MAX
        )
        self._ready_ones: deque[_Ready] = deque()
        self._is_passing = False
        self._incomplete: set[int] = set()
        self._last = 0
        self._held: deque[_Held] = deque()
        self.resent = 0
        """Frames of which units had to come again."""

    def run(self) -> None:
        """Returns when the target has all of it."""
        self._near.send(self._ready)
        self._send(Attach(self._task))
        self.begin(self._pass_all, "sends on")
        self.relay()

    # --- from the source's accelerator -------------------------------------------------------

    def take_near(self, frame: Frame) -> None:
        """See Relay."""
        message, payload = frame
        if isinstance(message, WanQuestion):
            self._near.send(WanAnswer(), self._decoder.answer(payload))
        elif isinstance(message, WanFrame):
            self._take_frame(message.zeros, payload)
        elif isinstance(message, WanAgain):
            self._hand_over(_Ready(self._decoder.decode(payload)))
        elif isinstance(message, Batch):  # it need not wait for frames: no piece is in both
            self._hand_over(_Ready(message=message, payload=bytes(payload)))
        elif isinstance(message, Mark | Finish):
            self._hand_over(_Ready(message=message))
        elif isinstance(message, GetLeaves | GetNodes):
            self._send(message)  # of no consequence for batches, so they need not queue
        else:
            raise self.unexpected(frame, self._near)

    def _take_frame(self, zeros: int, payload: memoryview) -> None:
        if not 0 <= zeros <= len(payload):
            raise ProtocolError(self._near.peer, f"{zeros} bytes of {len(payload)}")
        decoded = self._decoder.decode(payload[zeros:]) if zeros < len(payload) else None
        self._hand_over(_Ready(decoded, bytes(payload[:zeros])))

    def _hand_over(self, ready: _Ready) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.has_ended or len(self._ready_ones) < DECODED_MAX)
            self._ready_ones.append(ready)
            self._changed.notify_all()

    # --- sending on --------------------------------------------------------------------------

    def _pass_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.has_ended or self._ready_ones)
                if self.has_ended:
                    return
                ready = self._ready_ones.popleft()
                self._is_passing = True
                self._changed.notify_all()
            if isinstance(ready.message, Batch):
                self._send(ready.message, ready.payload)
                self._receipt(b"")
            elif ready.message is not None:
                self._held.append(_Held(self._last, ready.message))
            else:
                self._pass(ready.decoded, ready.zeros)
            self._pass_held()
            with self._changed:
                self._is_passing = False
                self._changed.notify_all()

    def before_failing(self, ended: Link) -> None:
        """See Relay: what was decoded goes on to the target, which keeps it for a resume."""
        if ended is not self._near:
            return

        def is_passed_on() -> bool:
            return self.has_ended or not (self._ready_ones or self._is_passing)

        with self._changed:
            self._changed.wait_for(is_passed_on, READING_S)

    def _pass(self, decoded: Decoded | None, zeros: bytes) -> None:
        if decoded is None:
            self._write([], zeros)
            return
        self._last = max(self._last, decoded.serial)
        if decoded.is_complete:
            self._incomplete.discard(decoded.serial)
        else:
            self.resent += 1
            self._incomplete.add(decoded.serial)
            if len(self._incomplete) > QUESTIONS_MAX:
                raise ProtocolError(self._near.peer, "does not send again what is missing")
        self._write(decoded.runs, zeros)
        self._caching.add(decoded.fresh)
        self._receipt(decoded.receipt)

    def _receipt(self, receipt: bytes) -> None:
        with contextlib.suppress(LinkError):  # whoever receives learns that the link is gone
            self._near.send(WanReceipt(), receipt)

    def _write(self, runs: list[Rebuilt], zeros: bytes) -> None:
        rows = unpacked_zeros(zeros, self._near.peer)
        if len(rows) or runs:
            try:
                send_batch(self._far, rows, runs, self._virtual_size)
            except LinkError:
                self._hear_out()
                raise

    def _pass_held(self) -> None:
        while self._held and not any(n <= self._held[0].behind for n in self._incomplete):
            self._send(self._held.popleft().message)

    def _send(self, message: Message, payload: bytes = b"") -> None:
        try:
            self._far.send(message, payload)
        except LinkError:
            self._hear_out()
            raise

    def _hear_out(self) -> None:
        """The target ended its link: what it said before is why."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_ended, LAST_WORD_S)

    # --- from the target proxy ---------------------------------------------------------------

    def take_far(self, frame: Frame) -> None:
        """See Relay."""
        message, payload = frame
        if isinstance(message, Leaves | Nodes | Acknowledged | Resend):
            self._near.send(message, payload)
        elif isinstance(message, Finished):
            self.finish(frame)
            if isinstance(self._near, Turn):
                self.leave(self._near)  # else the source's side ends it
            self._far.shutdown()
        else:
            raise self.unexpected(frame, self._far)
