"""Room to send on a long line: the socket's buffer holds what is on its way and more.

Linux lets a send buffer grow with the line by itself, up to net.ipv4.tcp_wmem (4 MiB, of which 2.5
are bytes), which is less than some lines hold. A sender whose buffer is on its way as a whole
cannot fill such a line; and BBR takes what arrives then for all that the sender had, and goes on
looking for more than the line carries: over 100 Mbit/s and 40 ms each way 2 to 4 % of the packets
were lost for it and sent again.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from pathlib import Path

from standby.clock import SYSTEM_CLOCK
from standby.units import MiB

ROOM_MAX = 16 * MiB
"""Bytes of a send buffer as Linux counts them, a third of it for its own purposes: enough for
1 Gbit/s over 40 ms each way. What a link that drops loses is at most this much."""

RTT_MIN_US = 10_000
"""Below it, lines are short: the system's own buffer is more than they hold."""

EVERY_S = 0.25
_FOR_WINDOW = 3
"""Times the congestion window: it is counted without the system's share, and whoever waits for room
is woken when a third of the buffer is free."""

_SO_SNDBUFFORCE = 32
_INFO_SIZE = 104
_MSS, _RTT, _WINDOW = (struct.Struct("=16xI"), struct.Struct("=68xI"), struct.Struct("=80xI"))


class SendRoom:
    """Looks after one socket's send buffer."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._next_at = 0.0

    def look(self) -> None:
        """The buffer is full: make it larger where the line is long. Costs a system call every
        quarter of a second."""
        if sys.platform != "linux":
            return
        now = SYSTEM_CLOCK.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + EVERY_S
        with contextlib.suppress(OSError):
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
            if len(info) == _INFO_SIZE:
                wanted = wanted_room(info)
                if wanted > self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF):
                    self._enlarge(wanted)

    def _enlarge(self, wanted: int) -> None:
        # The system doubles what is set, and takes no more than its limit from who is not root: a
        # smaller buffer than it would have given by itself, and for good.
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, wanted // 2)
        except PermissionError:
            if 2 * _limit() >= wanted:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wanted // 2)


def wanted_room(info: bytes) -> int:
    """Bytes of send buffer for what Linux's struct tcp_info says; 0: whatever there is."""
    if _RTT.unpack_from(info)[0] < RTT_MIN_US:
        return 0
    window = int(_WINDOW.unpack_from(info)[0]) * int(_MSS.unpack_from(info)[0])
    return min(_FOR_WINDOW * window, ROOM_MAX)


def _limit() -> int:
    """What a process may ask for; 0 where that is not told."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/sys/net/core/wmem_max").read_text())
    return 0
