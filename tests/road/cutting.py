"""TCP connections that are cut in the middle."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from road.plain import WAIT_S
from standby.units import KiB

RST = struct.pack("ii", 1, 0)


class Cutter:
    """Forwards TCP connections to an address; each is reset, like a pulled cable's end, after so
    many bytes in either direction, counted from when that was said."""

    def __init__(self, address: str) -> None:
        self._after = 1 << 62
        self._left: list[list[int]] = []
        """Bytes that each connection has left."""
        self.cuts = 0
        self._to = address
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KiB)
        host, port = self._socket.getsockname()
        self.address = f"{host}:{port}"
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def connections(self) -> int:
        """Those that were made so far."""
        return len(self._left)

    @property
    def after(self) -> int:
        return self._after

    @after.setter
    def after(self, count: int) -> None:
        self._after = count
        for left in self._left:
            left[0] = count

    def _start(self, target, *arguments) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                host, _, port = self._to.rpartition(":")
                far = socket.create_connection((host, int(port)), WAIT_S)
                left = [self.after]
                self._left.append(left)
                self._start(self._forward, near, far, left)
                self._start(self._forward, far, near, left)

    def _forward(self, source: socket.socket, target: socket.socket, left: list[int]) -> None:
        try:
            while data := source.recv(64 * KiB):
                left[0] -= len(data)
                if left[0] <= 0:
                    self.cuts += 1
                    for end in (source, target):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
                    break
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(WAIT_S)
