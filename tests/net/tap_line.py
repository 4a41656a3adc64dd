"""A line between two TAP devices where the kernel has no netem: delay, rate, loss.

    python tap_line.py SPACE SPACE DELAY_S RATE_BPS LOSS

Makes a device `wan` in each of the two network namespaces, prints "ready", and carries Ethernet
frames between them, each direction in a process of its own, until it is killed. A direction is a
queue in front of a transmitter: a frame leaves when those before it have left, at the rate, and
arrives a delay later; a frame that finds the queue full, or bad luck, is lost.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import signal
import struct
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
QUEUE_S = 0.1
"""How much waits in front of the transmitter at most, as time; never less than 64 frames."""
FRAME_MAX = 1514
LATE_S = 0.02
"""How long a frame may have waited to be read, while this process did not get the processor, as if
it had been read at once: without that, a busy machine's line carries less than its rate (0.88 of it
for a transfer that keeps two processors busy). A burst of that length is what tbf has here too."""


class Direction:
    """One direction's frames under way; told the time, so that tests need not wait."""

    def __init__(self, delay_s: float, rate_bps: float, loss: float, seed: int) -> None:
        self._delay_s = delay_s
        self._rate_bps = rate_bps
        self._loss = loss
        self._chance = random.Random(seed)
        self._free_at = 0.0
        self._queue_s = max(QUEUE_S, 64 * FRAME_MAX / rate_bps) if rate_bps else 0.0
        self._under_way: deque[tuple[float, bytes]] = deque()

    def take(self, frame: bytes, now: float, since: float | None = None) -> None:
        """A frame came in, at the earliest at `since`."""
        start = max(now if since is None else since, self._free_at)
        if self._rate_bps and start - now > self._queue_s:
            return
        self._free_at = start + (len(frame) / self._rate_bps if self._rate_bps else 0.0)
        if self._loss and self._chance.random() < self._loss:
            return
        self._under_way.append((max(now, self._free_at) + self._delay_s, frame))

    def arrived(self, now: float) -> list[bytes]:
        """What has arrived by now, in order."""
        found = []
        while self._under_way and self._under_way[0][0] <= now:
            found.append(self._under_way.popleft()[1])
        return found

    def next_s(self, now: float) -> float | None:
        """Seconds until the next frame arrives; None when none is under way."""
        return max(0.0, self._under_way[0][0] - now) if self._under_way else None


def open_tap(space: str) -> int:
    """A descriptor of a new TAP device `wan` in that namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{space}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {space}")
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"wan", IFF_TAP | IFF_NO_PI))
    return tap


def carry(source: int, target: int, direction: Direction) -> None:
    """Carry one direction for ever."""
    looked = time.monotonic()
    while True:
        timeout_s = direction.next_s(time.monotonic())
        if timeout_s != 0.0:
            select.select([source], [], [], timeout_s)
        now = time.monotonic()
        since, looked = max(looked, now - LATE_S), now
        for _ in range(64):
            try:
                direction.take(os.read(source, 2048), now, since)
            except BlockingIOError:
                break
            except OSError:  # the device is down: the cable is cut
                time.sleep(0.005)
                break
        for frame in direction.arrived(time.monotonic()):
            try:
                os.write(target, frame)
            except OSError:
                pass  # down, or its queue is full: lost


def main(near: str, far: str, delay_s: str, rate_bps: str, loss: str) -> None:
    """Carry both directions."""
    ends = (open_tap(near), open_tap(far))
    values = float(delay_s), float(rate_bps), float(loss)
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        carry(ends[1], ends[0], Direction(*values, seed=2))
    print("ready", flush=True)
    carry(ends[0], ends[1], Direction(*values, seed=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
