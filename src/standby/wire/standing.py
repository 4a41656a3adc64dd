"""Links that stand between tasks, so that a task costs no connection and no whole ticket.

The side that connected says `Stand`, the other one `Stands`, each with a nonce; from then on frames
are terse (`terse`). Then come turns, one behind the other, each for one task: `Begin` with a
handle, `Attached`, what the task says, `Over` from both sides. A turn that ends otherwise ends the
link.

A handle says which ticket, and that its sender has it (RULES 19): HMAC-SHA256, cut to 16 bytes,
under the ticket's secret, over both movers' names, both nonces, the number of the turn and the
whole ticket. The backup server gave the ticket to exactly these two, over their control links; so a
handle is good for this link and this turn alone, and says nothing that helps to make another one.
What else a ticket is bound to (task, replica, disk, generation, direction, expiry, one use) is
looked at as with a ticket that travels.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import hmac
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from standby.clock import new_token
from standby.errors import LinkError, ProtocolError
from standby.wire.link import Link
from standby.wire.messages import Message, Over, Stand, Stands
from standby.wire.tcp_info import told_of

NONCE_SIZE = 16
HANDLE_SIZE = 16


class Standing:
    """One side's end of a link that stands; `base` is the connection's own. Turns are taken one at
    a time."""

    def __init__(self, base: Link, connecting: tuple[str, bytes], waiting: tuple[str, bytes]):
        """Both sides' names and nonces."""
        self.base = base
        self.count = 0
        """Turns begun."""
        self._ends = (connecting, waiting)
        base.be_terse()

    def next_turn(self, on_end: Callable[[bool], None] = lambda is_whole: None) -> Turn:
        """The next task's link. `on_end` hears whether this one stands on behind it, once."""
        self.count += 1
        return Turn(self.base, on_end, is_first=self.count == 1)

    def handle(self, secret: str, ticket: str) -> bytes:
        """Of the ticket with that secret and text, in the present turn: 16 bytes."""
        said = hashlib.sha256(b"standby turn of a standing link\0")
        for name, nonce in self._ends:
            said.update(nonce + len(name.encode()).to_bytes(4, "little") + name.encode())
        said.update(self.count.to_bytes(8, "little") + ticket.encode())
        return hmac.digest(secret.encode(), said.digest(), "sha256")[:HANDLE_SIZE]

    def has_expired(self, now: datetime) -> bool:
        """Whether the peer could not make a new one with its certificate."""
        remote = self.base.remote
        return remote is not None and remote.not_after is not None and now >= remote.not_after

    def is_usable(self, now: datetime) -> bool:
        """Whether this side may begin another turn, as far as it knows."""
        is_alive = self.base.failure is None and not self.base.has_incoming()
        return is_alive and not self.has_expired(now)


def stood(link: Link, own_name: str, peer_name: str) -> Standing:
    """The link, which this side connected and on which nothing was said yet, as a standing one."""
    nonce = bytes.fromhex(new_token(NONCE_SIZE))
    link.send(Stand(nonce))
    answer, _ = link.receive()
    if not isinstance(answer, Stands) or len(answer.nonce) != NONCE_SIZE:
        raise ProtocolError(link.peer, f"expected Stands, got {type(answer).__name__}")
    return Standing(link, (own_name, nonce), (peer_name, answer.nonce))


def standing(link: Link, stand: Stand, own_name: str, peer_name: str) -> Standing:
    """The same on the side that was connected to, and heard that."""
    if len(stand.nonce) != NONCE_SIZE:
        raise ProtocolError(link.peer, f"a nonce of {len(stand.nonce)} bytes")
    nonce = bytes.fromhex(new_token(NONCE_SIZE))
    link.send(Stands(nonce))
    return Standing(link, (peer_name, stand.nonce), (own_name, nonce))


class Turn(Link):
    """A link for one task, over one that stands. It has counters, buffers and a throttle of its
    own, and when it is over nothing that its task still does reaches the connection.

    `say_over` when this side has said everything; the peer's `Over` is the end of the stream here.
    """

    def __init__(self, base: Link, on_end: Callable[[bool], None], *, is_first: bool) -> None:
        super().__init__(base.connection, base.peer, base.limits, stream=base.stream)
        self.remote = base.remote
        self.be_terse()
        if is_first:  # making the link was for this task
            self.sent_bytes, self.received_bytes = base.sent_bytes, base.received_bytes
            base.sent_bytes = base.received_bytes = 0
        elif told := told_of(base.connection):
            self.wire_before = told.wire_sent, told.wire_received
        self._base = base
        self._on_end = on_end
        self._gate = threading.RLock()
        self._said_over = False
        self._heard_over = False
        self._is_closed = False

    @property
    def is_whole(self) -> bool:
        """Whether both sides said that it is over, and the connection has nothing of it left."""
        return self._said_over and self._heard_over and self._base.failure is None

    def send(self, message: Message, *payload: Any) -> None:
        """See Link."""
        with self._gate:
            if self._said_over or self._is_closed:
                raise self._over()
            with self._told():
                super().send(message, *payload)

    def say_over(self) -> None:
        """The last word of this side."""
        with self._gate:
            self.send(Over())
            self._said_over = True

    def receive(self) -> tuple[Message, memoryview]:
        """See Link."""
        if self._heard_over or self._is_closed:
            raise self._over()
        with self._told():
            message, payload = super().receive()
        if isinstance(message, Over):
            self._heard_over = True
            raise self._over()
        return message, payload

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Why the connection was ended on this side goes before what is seen of that."""
        try:
            yield
        except LinkError as exc:
            why = self._base.failure
            if why is None:
                raise
            raise copy.copy(why) from exc

    def _over(self) -> LinkError:
        return LinkError(self.peer, "the task's turn on the link is over")

    def end(self, failure: LinkError) -> None:
        """See Link."""
        if not (self.is_whole or self._is_closed):
            super().end(failure)

    def shutdown(self) -> None:
        """See Link; one that is whole has nobody to wake, and stands on."""
        if not (self.is_whole or self._is_closed):
            super().shutdown()

    def close(self) -> None:
        """Done with: the link stands on where the turn is whole, else it ends."""
        self.shutdown()
        with self._gate:
            if self._is_closed:
                return
            self._is_closed = True
        if self.throttle is not None:
            self.throttle.close()
        self._base.sent_bytes += self.sent_bytes
        self._base.received_bytes += self.received_bytes
        is_whole = self.is_whole
        if not is_whole:
            with self._receive_lock:  # who waits there has met the end
                self._base.close()
        self._on_end(is_whole)
