"""The clean end of a serving process: SIGTERM or SIGINT, whichever thread receives it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable


def ended_by_signals() -> Callable[[], None]:
    """Have SIGTERM and SIGINT end the process's wait from now on; the function that waits for them.

    Not a handler and an event: a signal that comes just before the main thread begins to wait, or
    to another thread (of the server, or one that numpy started), would not wake it. A byte in a
    socket stays there. For the main thread of a process that ends with the wait.
    """
    ended, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        # Both ends live as long as this function does: nothing else refers to the waker.
        with waker:
            ended.recv(1)

    return wait
