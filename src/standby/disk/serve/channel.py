"""A connected socket that sends and receives whole structures or raises LinkError."""

from __future__ import annotations

import socket

from standby.errors import LinkError
from standby.ports import Buffer

_WAIT_ALL = getattr(socket, "MSG_WAITALL", 0)


class Channel:
    """One end of an NBD connection. Not thread-safe: one thread per connection."""

    def __init__(self, connection: socket.socket, peer: str) -> None:
        self.peer = peer
        self._socket = connection
        self._waste = bytearray(0)

    def receive_into(self, buffer: Buffer) -> None:
        """Fill `buffer`; LinkError when the peer is gone first."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            try:
                count = self._socket.recv_into(view[done:], 0, _WAIT_ALL)
            except OSError as exc:
                raise LinkError(self.peer, f"receive failed: {exc}") from exc
            if count == 0:
                raise LinkError(self.peer, f"closed after {done} of {len(view)} bytes")
            done += count

    def receive(self, length: int) -> bytes:
        """The next `length` bytes."""
        data = bytearray(length)
        self.receive_into(data)
        return bytes(data)

    def discard(self, length: int) -> None:
        """Receive `length` bytes and forget them, in bounded memory."""
        if not self._waste:
            self._waste = bytearray(65536)
        while length > 0:
            count = min(length, len(self._waste))
            self.receive_into(memoryview(self._waste)[:count])
            length -= count

    def send(self, *parts: Buffer) -> None:
        """Send all parts, in order, in as few system calls as possible."""
        views = [memoryview(part).cast("B") for part in parts]
        try:
            if hasattr(self._socket, "sendmsg"):
                sent = self._socket.sendmsg(views)
            else:  # Windows
                sent = 0
            for view in views:
                if sent >= len(view):
                    sent -= len(view)
                    continue
                self._socket.sendall(view[sent:])
                sent = 0
        except OSError as exc:
            raise LinkError(self.peer, f"send failed: {exc}") from exc

    def limit_wait(self, timeout_s: float | None) -> None:
        """From now on raise LinkError when the peer is silent for `timeout_s`; None: wait."""
        self._socket.settimeout(timeout_s)
