"""The door of a listener: what goes on however many knock."""

from __future__ import annotations

import socket
import threading

import pytest

from standby.wire import accepting
from standby.wire.accepting import Acceptor, Door, Visit, parsed_address

KNOCKS_MAX = 2000


def test_rounds_go_on_while_strangers_knock_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accepting, "LOOK_ROUND_S", 0.2)
    rounds = threading.Semaphore(0)

    def serve(visit: Visit) -> None:
        visit.connection.close()

    acceptor = Acceptor("127.0.0.1:0", serve, Door(), "door", rounds.release)
    acceptor.begin()
    try:
        for _ in range(KNOCKS_MAX):
            with socket.create_connection(parsed_address(acceptor.address), 10):
                if rounds.acquire(blocking=False):
                    return
        pytest.fail(f"no round in {KNOCKS_MAX} connections")
    finally:
        acceptor.close()
