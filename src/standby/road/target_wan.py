"""The target's WAN accelerator as a station of one disk task: frames become batches again.

What a frame gave is checked piece by piece (wan.decoding), sent on at once, and given to the global
cache; only then its receipt goes out, so that a target that writes slowly slows the source down.
`Mark` and `Finish` wait until every frame before them is whole.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from standby.errors import LinkError, ProtocolError
from standby.road.read_ahead import Frame
from standby.road.wan_batches import send_batch, unpacked_zeros
from standby.road.wan_cache import CachedContent, Caching
from standby.road.wan_relay import Relay
from standby.wan.decoding import Decoded, Decoder
from standby.wan.holding import Holding
from standby.wire.link import Link
from standby.wire.messages import (
    Acknowledged,
    Attach,
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

QUESTIONS_MAX = 16
"""Open ones; as many frames may lack units at a time."""

LAST_WORD_S = 2.0
"""How long a target that ended its link has for what it said before to be read."""


class _Held(NamedTuple):
    behind: int
    """The last frame before it."""
    message: Message


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
    ) -> None:
        """`asks`: there is a cache to be asked."""
        super().__init__(task, near, far)
        self._virtual_size = virtual_size
        self._caching = caching
        self._ready = WanReady(asks, QUESTIONS_MAX, window_log)
        self._decoder = Decoder(
            key, Holding(content), window_log_max=window_log, questions_max=QUESTIONS_MAX
        )
        self._incomplete: set[int] = set()
        self._last = 0
        self._held: deque[_Held] = deque()
        self.resent = 0
        """Frames of which units had to come again."""

    def run(self) -> None:
        """Returns when the target has all of it."""
        self._near.send(self._ready)
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
            self._take(self._decoder.decode(payload), b"")
        elif isinstance(message, Mark | Finish):
            self._held.append(_Held(self._last, message))
            self._pass_held()
        elif isinstance(message, Attach | GetIndex | GetLeaves):
            self._send(message)
        else:
            raise self.unexpected(frame, self._near)

    def _take_frame(self, zeros: int, payload: memoryview) -> None:
        if not 0 <= zeros <= len(payload):
            raise ProtocolError(self._near.peer, f"{zeros} bytes of {len(payload)}")
        if zeros < len(payload):
            self._take(self._decoder.decode(payload[zeros:]), payload[:zeros])
        else:
            self._write(None, payload)

    def _take(self, decoded: Decoded, zeros: bytes | memoryview) -> None:
        self._last = max(self._last, decoded.serial)
        if decoded.is_complete:
            self._incomplete.discard(decoded.serial)
        else:
            self.resent += 1
            self._incomplete.add(decoded.serial)
            if len(self._incomplete) > QUESTIONS_MAX:
                raise ProtocolError(self._near.peer, "does not send again what is missing")
        self._write(decoded, zeros)
        self._near.send(WanReceipt(), decoded.receipt)
        self._pass_held()

    def _write(self, decoded: Decoded | None, zeros: bytes | memoryview) -> None:
        runs = decoded.runs if decoded is not None else []
        rows = unpacked_zeros(zeros, self._near.peer)
        if len(rows) or runs:
            try:
                send_batch(self._far, rows, runs, self._virtual_size)
            except LinkError:
                self._hear_out()
                raise
        self._caching.add(runs)

    def _pass_held(self) -> None:
        while self._held and not any(n <= self._held[0].behind for n in self._incomplete):
            self._send(self._held.popleft().message)

    def _send(self, message: Message) -> None:
        try:
            self._far.send(message)
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
        if isinstance(message, Index | Leaves | Acknowledged | Resend):
            self._near.send(message, payload)
        elif isinstance(message, Finished):
            self.finish(frame)
            self._far.shutdown()
        else:
            raise self.unexpected(frame, self._far)
