"""One connection between two processes, as a stream of (message, payload)."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from standby.errors import LinkError
from standby.wire import frames, messages

Buffer = Any


class Link:
    """Blocking frames over a connected socket.

    Any number of threads may send; one thread at a time receives. The payload that `receive`
    returns lies in a buffer that the next `receive` uses again. `sent_bytes` and `received_bytes`
    count whole frames.
    """

    def __init__(self, connection: socket.socket, peer: str) -> None:
        self.peer = peer
        self.sent_bytes = 0
        self.received_bytes = 0
        self._socket = connection
        self._send_lock = threading.Lock()
        self._decoder = messages.decoder()
        self._header = bytearray(frames.HEADER.size)
        self._body = bytearray(64 * 1024)
        if connection.family != getattr(socket, "AF_UNIX", None):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: messages.Message, *payload: Buffer) -> None:
        """Send one frame whole; raises LinkError when the connection is gone."""
        body = messages.encoded(message)
        views = [memoryview(part) for part in payload]
        parts = [view.cast("B") for view in views if view.nbytes]
        length = sum(len(part) for part in parts)
        head = frames.packed_header(len(body), length) + body
        try:
            with self._send_lock:
                self._send_all([memoryview(head), *parts])
                self.sent_bytes += len(head) + length
        except OSError as exc:
            raise LinkError(self.peer, f"sending failed: {exc.strerror or exc}") from exc

    def _send_all(self, parts: list[memoryview]) -> None:
        sendmsg = getattr(self._socket, "sendmsg", None)
        if sendmsg is None:  # Windows
            for part in parts:
                self._socket.sendall(part)
            return
        while parts:
            sent = sendmsg(parts)
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if parts and sent:
                parts[0] = parts[0][sent:]

    def receive(self) -> tuple[messages.Message, memoryview]:
        """The next message and its payload; LinkError at the end of the stream, ProtocolError
        when what came is not a frame."""
        self._receive_into(memoryview(self._header))
        message_length, payload_length = frames.parsed_header(self._header, self.peer)
        needed = message_length + payload_length
        if needed > len(self._body):
            self._body = bytearray(needed)
        view = memoryview(self._body)
        self._receive_into(view[:needed])
        self.received_bytes += frames.HEADER.size + needed
        message = messages.decoded(view[:message_length], self._decoder, self.peer)
        return message, view[message_length:needed]

    def _receive_into(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                count = self._socket.recv_into(view[done:])
            except OSError as exc:
                raise LinkError(self.peer, f"receiving failed: {exc.strerror or exc}") from exc
            if count == 0:
                raise LinkError(self.peer, "the other side closed the connection")
            done += count

    def shutdown(self) -> None:
        """Wake every thread that waits on this link with a LinkError, on both sides."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close; a second call does nothing."""
        self._socket.close()
