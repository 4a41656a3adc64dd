"""Bytes over a connected socket that never blocks: what a `Link` reads and writes through.

`read` and `write` do what they can at once and otherwise say what to wait for; `wait` waits. One
thread reads and one writes at a time, both at once. A plain socket needs no more than that. TLS
does: OpenSSL forbids concurrent calls on one `SSL` object, and what CPython does about it differs
(3.11 and 3.12 nothing, 3.13.6 holds a lock in a blocking receive so that every send waits for the
peer, later ones again nothing: python/cpython issues 137583 and 151508). So every call has our own
lock here, no call blocks, and waiting happens outside of it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import sys
import threading

from standby.wire.room import SendRoom

WANT_READ, WANT_WRITE = -1, -2
"""Nothing could be done: wait until the socket can be read, or written, and call again."""

TLS_CHUNK = 256 * 1024
"""Bytes that one call encrypts or decrypts with the lock held: some 0.2 ms, the longest that the
other direction waits. A call costs 1 us; 64 KiB gained nothing, 1 MiB neither."""

JOINED_MAX = 64 * 1024
"""Smaller parts of a frame are copied together: a TLS record for a 20-byte header costs more."""


class _FairLock:
    """A lock that goes to the other thread when both want it: the one that releases it and wants it
    again at once queues behind the one that waits."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._turn:
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class _Waiter:
    """Waits for one socket, for one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._mask = 0
        if sys.platform != "win32":
            self._poll = select.poll()

    def wait(self, want: int, timeout_s: float | None) -> None:
        """Return when `want` is possible, the connection ended, or the time is over."""
        if sys.platform == "win32":
            ends = [self._socket]
            if want == WANT_READ:
                select.select(ends, [], [], timeout_s)
            else:
                select.select([], ends, [], timeout_s)
        else:
            mask = select.POLLIN if want == WANT_READ else select.POLLOUT
            if mask != self._mask:
                self._poll.register(self._socket.fileno(), mask)
                self._mask = mask
            self._poll.poll(None if timeout_s is None else int(timeout_s * 1000) + 1)


class PlainStream:
    """A socket without TLS: a pair's end, or TCP where no secrecy is asked for."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._sendmsg = getattr(connection, "sendmsg", None)
        self._waiters = {False: _Waiter(connection), True: _Waiter(connection)}
        self.room = SendRoom(connection)

    def read(self, view: memoryview) -> int:
        """Bytes read into `view`, 0 at the end of the stream, or WANT_READ / WANT_WRITE."""
        try:
            return self.connection.recv_into(view)
        except BlockingIOError:
            return WANT_READ

    def write(self, parts: list[memoryview]) -> int:
        """Bytes written from the beginning of `parts`, or WANT_WRITE / WANT_READ."""
        try:
            if self._sendmsg is not None:
                return int(self._sendmsg(parts))
            return self.connection.send(parts[0])
        except BlockingIOError:
            return WANT_WRITE

    def joined(self, parts: list[memoryview]) -> list[memoryview]:
        """`parts` as `write` likes them best."""
        return parts

    def wait(self, want: int, timeout_s: float | None, *, is_writer: bool) -> None:
        """Return when the call that said `want` may be made again, or the time is over."""
        self._waiters[is_writer].wait(want, timeout_s)

    def is_readable(self) -> bool:
        """Whether bytes have come that nobody read yet, or the stream ended."""
        try:
            # Not SSLSocket.recv, which takes no flags: these are the bytes underneath.
            socket.socket.recv(self.connection, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def shutdown(self) -> None:
        """End both directions and wake whoever waits."""
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown: it drops the TLS state first, and a thread that sends just
            # then would send its bytes in the clear.
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)

    def close(self) -> None:
        """Give up the socket."""
        self.connection.close()


class TlsStream(PlainStream):
    """A socket with TLS after its handshake."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        super().__init__(connection)
        self._tls = connection
        self._lock = _FairLock()

    def read(self, view: memoryview) -> int:
        """As PlainStream.read; a call of OpenSSL yields one record (16 KiB), this one several."""
        done, stop = 0, min(len(view), TLS_CHUNK)
        read = self._tls.read
        with self._lock:
            try:
                while done < stop:
                    count = read(stop - done, view[done:])
                    if not count:
                        break
                    done += int(count)
            except ssl.SSLWantReadError:
                return done or WANT_READ
            except ssl.SSLWantWriteError:  # the answer to a key update finds the socket full
                return done or WANT_WRITE
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return done
            except ssl.SSLError:
                if not done:
                    raise
        return done

    def is_readable(self) -> bool:
        """As PlainStream.is_readable; what OpenSSL has taken in already counts."""
        with self._lock:
            return self._tls.pending() > 0 or super().is_readable()

    def write(self, parts: list[memoryview]) -> int:
        """As PlainStream.write. After WANT_WRITE the same bytes must come again: OpenSSL holds
        them encrypted already."""
        with self._lock:
            try:
                return self._tls.write(parts[0][:TLS_CHUNK])
            except ssl.SSLWantWriteError:
                return WANT_WRITE
            except ssl.SSLWantReadError:
                return WANT_READ

    def joined(self, parts: list[memoryview]) -> list[memoryview]:
        """Neighbouring small parts copied together, large ones as they are."""
        result: list[memoryview] = []
        small = bytearray()
        for part in parts:
            if len(small) + len(part) <= JOINED_MAX:
                small += part
                continue
            if small:
                result.append(memoryview(small))
                small = bytearray()
            result.append(part)
        if small:
            result.append(memoryview(small))
        return result


def stream_of(connection: socket.socket) -> PlainStream:
    """The stream for a socket, by its kind."""
    if isinstance(connection, ssl.SSLSocket):
        return TlsStream(connection)
    return PlainStream(connection)
