"""One connection between two processes, as a stream of (message, payload)."""

from __future__ import annotations

import contextlib
import copy
import ipaddress
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from standby.clock import SYSTEM_CLOCK
from standby.errors import LinkError, LinkTimeout, ProtocolError, RefusedByPeer
from standby.units import KiB
from standby.wire import frames, messages, streams, terse

if TYPE_CHECKING:
    from standby.wire.identity import Peer

Buffer = Any

FIRST_BUFFER = 64 * KiB


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a link waits and how much it takes. None waits for ever.

    `idle_s` bounds the silence between frames. Once a frame began, in either direction, every
    `stall_s` seconds must carry at least `rate_min_bps` bytes per second or the rest of the frame:
    a peer that drips bytes, or takes none, ends instead of holding a thread and a buffer.
    """

    idle_s: float | None = None
    stall_s: float | None = None
    rate_min_bps: int = KiB
    message_max: int = frames.MESSAGE_MAX
    payload_max: int = frames.PAYLOAD_MAX


UNLIMITED = Limits()
"""Between processes of one machine: the other side ends with its parent, and then the link does."""

BETWEEN_MACHINES = Limits(stall_s=60)
"""1 KiB/s is less than the share of one of fifty links in 1 Mbit/s. A peer that is silent between
frames may be syncing a disk, and one that is gone is noticed by the system (`tune`)."""

KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 30, 10, 3
_TCP_INFO_SIZE, _TCP_INFO_LIMITED_AT = 184, 176
_TCP_INFO_LIMITED = struct.Struct("=Q")
"""tcpi_rwnd_limited, microseconds, of Linux's struct tcp_info (since 4.9)."""

USER_TIMEOUT_S = 120
"""A peer that vanished without a word ends after this at most. Linux counts a peer that takes no
bytes in as well, so it must be longer than the slowest sync of a target's disk."""


class Paced(Protocol):
    """What a link asks before it writes (wire.throttle.Pace)."""

    def take(self, wanted: int) -> int:
        """How many of `wanted` bytes may be written now, at least one; waits until they may."""

    def close(self) -> None:
        """The link is gone."""


class _Progress:
    """Watches that what began goes on."""

    def __init__(self, limits: Limits, first_s: float | None) -> None:
        self._limits = limits
        self._left = 0.0
        self._until = None if first_s is None else SYSTEM_CLOCK.monotonic() + first_s

    def begun(self) -> None:
        """The first byte is there: from now on at the minimum rate."""
        stall_s = self._limits.stall_s
        self._until = None if stall_s is None else SYSTEM_CLOCK.monotonic() + stall_s
        self._left = (stall_s or 0) * self._limits.rate_min_bps

    def moved(self, count: int) -> None:
        """`count` bytes went through."""
        self._left -= count
        if self._left <= 0 and self._until is not None:
            self.begun()

    def seconds_left(self) -> float | None:
        """Time to wait at most; 0 when it is over."""
        if self._until is None:
            return None
        return max(0.0, self._until - SYSTEM_CLOCK.monotonic())


class Link:
    """Frames over a connected socket: a pair's end, TCP, or TLS after its handshake.

    Any number of threads may send; one thread at a time receives. The payload that `receive`
    returns lies in a buffer that the next `receive` uses again (or see `keep_payloads`).
    `sent_bytes` and `received_bytes` count whole frames, without what TLS adds. `remote` is who a
    certificate says the peer is, None on one machine. `shares_memory`: the peer is a process of
    this machine and may be offered some (`messages.OfferMemory`). `throttle` is asked before every
    write how much may go, and may wait.
    """

    def __init__(
        self,
        connection: socket.socket,
        peer: str,
        limits: Limits = UNLIMITED,
        *,
        stream: streams.PlainStream | None = None,
    ) -> None:
        """`stream` is that of another link over this connection, which is not used meanwhile."""
        self.peer = peer
        self.limits = limits
        self.remote: Peer | None = None
        self.throttle: Paced | None = None
        self.shares_memory = False
        self.sent_bytes = 0
        self.received_bytes = 0
        self.wire_before = 0, 0
        """What the connection had sent and received, as interfaces count it, before this link."""
        self._stream = streams.stream_of(connection) if stream is None else stream
        self._send_lock = threading.Lock()
        self._receive_lock = threading.Lock()
        self._failure: LinkError | None = None
        self._unreadable: ProtocolError | None = None
        self._decoder = messages.decoder()
        self._terse: terse.Reader | None = None
        self._header = memoryview(bytearray(frames.HEADER.size))
        self._bodies = [memoryview(bytearray(FIRST_BUFFER))]
        self._turn = 0
        if connection.family != getattr(socket, "AF_UNIX", None):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def connection(self) -> socket.socket:
        """The socket underneath, for its addresses; not to be read or written."""
        return self._stream.connection

    @property
    def failure(self) -> LinkError | None:
        """What ended the link, as far as somebody met it."""
        return self._failure

    @property
    def stream(self) -> streams.PlainStream:
        """The bytes underneath, for another link over the same connection."""
        return self._stream

    def has_incoming(self) -> bool:
        """Whether there is something to be read, or the connection ended; does not wait."""
        return self._stream.is_readable()

    def be_terse(self) -> None:
        """From here on frames are terse ones (`wire.terse`), in both directions."""
        self._terse = terse.Reader()

    @property
    def is_local(self) -> bool:
        """Whether both ends are on this machine, as far as addresses say: a pair, or loopback."""
        connection = self._stream.connection
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return True
        try:
            return ipaddress.ip_address(connection.getpeername()[0].partition("%")[0]).is_loopback
        except (OSError, ValueError):
            return False

    def peer_waits_s(self) -> float:
        """Seconds so far in which there was something to send and the peer, not the network, had no
        room for it; 0 where the system does not tell."""
        if sys.platform != "linux":
            return 0.0
        with contextlib.suppress(OSError):
            told = self._stream.connection.getsockopt(
                socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE
            )
            if len(told) == _TCP_INFO_SIZE:
                return float(_TCP_INFO_LIMITED.unpack_from(told, _TCP_INFO_LIMITED_AT)[0]) / 1e6
        return 0.0

    # --- sending -----------------------------------------------------------------------------

    def send(self, message: messages.Message, *payload: Buffer) -> None:
        """Send one frame whole; raises LinkError when the connection is gone, LinkTimeout when the
        peer takes nothing for too long. After either the link is of no more use."""
        views = [memoryview(part) for part in payload]
        parts = [view.cast("B") for view in views if view.nbytes]
        length = sum(len(part) for part in parts)
        if self._terse is not None:
            head = terse.packed(message, length)
        else:
            body = messages.encoded(message)
            head = frames.packed_header(len(body), length) + body
        with self._send_lock:
            self._guarded(self._send_all, self._stream.joined([memoryview(head), *parts]))
            self.sent_bytes += len(head) + length

    def _send_all(self, parts: list[memoryview]) -> None:
        write, wait, room = self._stream.write, self._stream.wait, self._stream.room
        progress = _Progress(self.limits, None)
        progress.begun()
        throttle, allowed = self.throttle, 0
        while parts:
            if throttle is None:
                sent = write(parts)
            else:
                if not allowed:
                    allowed = throttle.take(sum(map(len, parts)))
                    progress.begun()  # what our own throttle took is not the peer's fault
                sent = write(_first(parts, allowed))
                allowed -= max(0, sent)
            if sent < 0:
                room.look()
                left_s = progress.seconds_left()
                if left_s == 0:
                    raise LinkTimeout(self.peer, f"took too little for {self.limits.stall_s:g} s")
                wait(sent, left_s, is_writer=True)
                continue
            progress.moved(sent)
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if parts and sent:
                parts[0] = parts[0][sent:]

    # --- receiving ---------------------------------------------------------------------------

    def receive(self) -> tuple[messages.Message, memoryview]:
        """The next message and its payload; LinkError at the end of the stream, LinkTimeout when a
        limit of time passed, ProtocolError when what came is not a frame. After any of them nothing
        more can be received; after a ProtocolError the peer can still be told."""
        with self._receive_lock:
            if self._unreadable is not None:
                raise copy.copy(self._unreadable)
            try:
                result: tuple[messages.Message, memoryview] = self._guarded(self._receive)
            except ProtocolError as exc:
                self._unreadable = exc
                raise
            return result

    def keep_payloads(self, count: int) -> None:
        """From now on a payload stays what it is until `count` more frames begin to come in."""
        with self._receive_lock:
            missing = count - len(self._bodies)
            self._bodies += [memoryview(bytearray(FIRST_BUFFER)) for _ in range(missing)]

    def _receive(self) -> tuple[messages.Message, memoryview]:
        limits = self.limits
        progress = _Progress(limits, limits.idle_s)
        if self._terse is not None:
            return self._receive_terse(self._terse, progress)
        self._fill(self._header, progress, is_start=True)
        message_length, payload_length = frames.parsed_header(
            self._header, self.peer, limits.message_max, limits.payload_max
        )
        view = self._filled(message_length + payload_length, progress)
        self.received_bytes += frames.HEADER.size + len(view)
        message = messages.decoded(view[:message_length], self._decoder, self.peer)
        return message, view[message_length:]

    def _receive_terse(
        self, reader: terse.Reader, progress: _Progress
    ) -> tuple[messages.Message, memoryview]:
        header, length = self._header, terse.HEADER_MIN
        self._fill(header[:length], progress, is_start=True)
        while (found := reader.parsed(header[:length], self.peer, self.limits)) is None:
            self._fill(header[length : length + 1], progress, is_start=False)
            length += 1
        view = self._filled(found.message_length + found.payload_length, progress)
        self.received_bytes += length + len(view)
        message = reader.decoded(found.kind, view[: found.message_length], self.peer)
        return message, view[found.message_length :]

    def _filled(self, needed: int, progress: _Progress) -> memoryview:
        """The rest of a frame, in a buffer of ours."""
        body = self._bodies[self._turn]
        if needed > len(body):
            # numpy leaves the memory untouched: what was announced and never comes costs nothing.
            body = self._bodies[self._turn] = np.empty(needed, np.uint8).data
        self._turn = (self._turn + 1) % len(self._bodies)
        view = body[:needed]
        self._fill(view, progress, is_start=False)
        return view

    def _fill(self, view: memoryview, progress: _Progress, *, is_start: bool) -> None:
        read, wait = self._stream.read, self._stream.wait
        done, stop = 0, len(view)
        while done < stop:
            count = read(view[done:])
            if count > 0:
                if is_start and done == 0:
                    progress.begun()
                done += count
                progress.moved(count)
            elif count == 0:
                where = "" if is_start and done == 0 else " in the middle of a frame"
                raise LinkError(self.peer, f"the other side closed the connection{where}")
            else:
                left_s = progress.seconds_left()
                if left_s == 0:
                    raise self._late(is_start and done == 0)
                wait(count, left_s, is_writer=False)

    def _late(self, is_idle: bool) -> LinkTimeout:
        if is_idle:
            return LinkTimeout(self.peer, f"silent for {self.limits.idle_s:g} s")
        return LinkTimeout(
            self.peer,
            f"began a frame and sent less than {self.limits.rate_min_bps} bytes/s of the rest "
            f"for {self.limits.stall_s:g} s",
        )

    # --- the end -----------------------------------------------------------------------------

    def _guarded(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run one direction; the first failure ends the other one too, for frames are whole or
        nothing. Only what is not the protocol leaves the other direction alive: to say so."""
        if self._failure is not None:
            raise copy.copy(self._failure)
        try:
            return work(*arguments)
        except ProtocolError:
            raise
        except LinkError as exc:
            failure = exc
        except ssl.SSLError as exc:
            failure = _tls_failure(self.peer, exc)
            failure.__cause__ = exc
        except OSError as exc:
            doing = "sending" if work == self._send_all else "receiving"
            failure = LinkError(self.peer, f"{doing} failed: {exc.strerror or exc}")
            failure.__cause__ = exc
        self._stream.shutdown()
        if self._failure is None:
            self._failure = failure
        raise copy.copy(self._failure) from failure

    def end(self, failure: LinkError) -> None:
        """Shut down and have both directions fail with `failure` from now on, a thread that waits
        in one of them included."""
        if self._failure is None:
            self._failure = failure
        self._stream.shutdown()

    def shutdown(self) -> None:
        """Wake every thread that waits on this link with a LinkError, on both sides."""
        self._stream.shutdown()

    def close(self) -> None:
        """Close; a second call does nothing. Threads that wait on this link end first."""
        self._stream.shutdown()
        with self._send_lock, self._receive_lock:
            self._stream.close()
            if self.throttle is not None:
                self.throttle.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _first(parts: list[memoryview], count: int) -> list[memoryview]:
    """The first `count` bytes of `parts`."""
    if len(parts[0]) >= count:
        return [parts[0][:count]]
    found = []
    for part in parts:
        found.append(part[:count])
        count -= len(found[-1])
        if not count:
            break
    return found


def _tls_failure(peer: str, exc: ssl.SSLError) -> LinkError:
    """What OpenSSL said, as ours. An alert about certificates is the peer's refusal."""
    reason = exc.reason or str(exc)
    if "ALERT" in reason and any(word in reason for word in ("CERT", "UNKNOWN_CA", "ACCESS")):
        said = reason.rpartition("ALERT_")[2].lower().replace("_", " ")
        return RefusedByPeer(peer, f"it does not accept our certificate ({said})", reason)
    return LinkError(peer, f"TLS failed: {reason.lower().replace('_', ' ')}")


def tune(connection: socket.socket) -> None:
    """Have the system notice a TCP peer that vanished: keep-alive probes while nothing travels, a
    limit on unacknowledged bytes where it offers one."""
    options: list[tuple[str, int]] = [
        ("TCP_KEEPIDLE" if sys.platform != "darwin" else "TCP_KEEPALIVE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
        ("TCP_USER_TIMEOUT", USER_TIMEOUT_S * 1000),
    ]
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options:
        number = getattr(socket, name, None)
        if number is not None:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, number, value)
