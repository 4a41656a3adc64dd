"""The door of a listener: what goes on however many knock."""

from __future__ import annotations

import os
import socket
import sys
import threading

import pytest

from clocks import HeldClock
from standby.wire import accepting
from standby.wire.accepting import LOOK_ROUND_S, Acceptor, Door, Visit, parsed_address


class PassingClock(HeldClock):
    """Every look at it takes a second."""

    def monotonic(self) -> float:
        self.advance(1)
        return super().monotonic()


def test_rounds_go_on_while_strangers_knock_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No second passes in which nobody knocks, as the listener's clock sees it."""
    monkeypatch.setattr(accepting, "SYSTEM_CLOCK", PassingClock())
    rounds = threading.Semaphore(0)
    served = threading.Semaphore(0)

    def serve(visit: Visit) -> None:
        visit.connection.close()
        served.release()

    acceptor = Acceptor("127.0.0.1:0", serve, Door(), "door", rounds.release)
    acceptor.begin()
    try:
        for _ in range(int(LOOK_ROUND_S)):
            with socket.create_connection(parsed_address(acceptor.address), 10):
                assert served.acquire(timeout=10)
        assert rounds.acquire(blocking=False)
    finally:
        acceptor.close()


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are no numbers from 0 on there")
def test_a_process_with_thousands_of_open_files_still_listens() -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], min(4096, limits[1])), limits[1]))
    held = [os.open(os.devnull, os.O_RDONLY)]
    served = threading.Semaphore(0)

    def serve(visit: Visit) -> None:
        visit.connection.close()
        served.release()

    try:
        while held[-1] < 1100:
            held.append(os.dup(held[0]))
        acceptor = Acceptor("127.0.0.1:0", serve, Door(), "door", lambda: None)
        acceptor.begin()
        try:
            with socket.create_connection(parsed_address(acceptor.address), 10):
                assert served.acquire(timeout=10)
        finally:
            acceptor.close()
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
