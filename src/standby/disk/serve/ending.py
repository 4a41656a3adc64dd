"""A serving process from its start to its clean end: SIGTERM or SIGINT, whichever thread receives
it."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable, Sequence

from standby import killpoints
from standby.errors import StandbyError


def serve_process(
    name: str,
    run: Callable[[Sequence[str], Callable[[], object]], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """`run(arguments, wait)` as the whole of a process that is called `name`: the command line's
    arguments, unless some are given, and what waits for the end. The exit code."""
    killpoints.be_called(name)
    try:
        run(sys.argv[1:] if arguments is None else arguments, ended_by_signals())
    except StandbyError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


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
        with waker, ended:
            ended.recv(1)

    return wait
