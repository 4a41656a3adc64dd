"""The send buffer of a long line: when it grows, and what it is not made smaller for."""

from __future__ import annotations

import socket
import sys

import pytest

from standby.units import KiB, MiB
from standby.wire import room
from standby.wire.room import EVERY_S, ROOM_MAX, SendRoom, wanted_room

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="struct tcp_info is Linux's")


def info(rtt_us: int, window: int, mss: int = 1448) -> bytes:
    """As the system tells it, all other fields wrong."""
    data = bytearray(b"\xaa" * 104)
    for place, value in ((16, mss), (68, rtt_us), (80, window)):
        data[place : place + 4] = value.to_bytes(4, sys.byteorder)
    return bytes(data)


class Line:
    """A socket of which only the options matter."""

    def __init__(self, told: bytes, size: int, *, is_root: bool = True) -> None:
        self.told = told
        self.size = size
        self.is_root = is_root
        self.looks = 0

    def getsockopt(self, level: int, option: int, length: int = 0) -> object:
        if level == socket.IPPROTO_TCP:
            self.looks += 1
            return self.told[:length]
        assert option == socket.SO_SNDBUF
        return self.size

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if option != socket.SO_SNDBUF and not self.is_root:
            raise PermissionError
        self.size = 2 * value


def looked(line: Line) -> int:
    """The line's buffer after a look."""
    SendRoom(line).look()  # type: ignore[arg-type]
    return line.size


def test_a_long_line_gets_room_for_three_windows() -> None:
    window = 1500
    assert looked(Line(info(80_000, window), 4 * MiB)) == 3 * window * 1448
    assert looked(Line(info(80_000, 100_000), 4 * MiB)) == ROOM_MAX


def test_a_short_line_and_one_with_room_enough_keep_what_they_have() -> None:
    assert looked(Line(info(200, 100_000), 4 * MiB)) == 4 * MiB
    assert looked(Line(info(80_000, 100), 4 * MiB)) == 4 * MiB
    assert looked(Line(info(80_000, 1500)[:60], 4 * MiB)) == 4 * MiB


@pytest.mark.parametrize(("limit", "expected"), [(208 * KiB, 4 * MiB), (8 * MiB, 6 * MiB)])
def test_no_smaller_buffer_is_asked_for_where_the_system_sets_a_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int, expected: int
) -> None:
    monkeypatch.setattr(room, "_limit", lambda: limit)
    line = Line(info(80_000, 1024, 2048), 4 * MiB, is_root=False)
    assert looked(line) == expected


def test_it_looks_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(room.SYSTEM_CLOCK.__class__, "monotonic", lambda _: now[0])
    line = Line(info(200, 10), 4 * MiB)
    looks = SendRoom(line)  # type: ignore[arg-type]
    for _ in range(5):
        looks.look()
    assert line.looks == 1
    now[0] += EVERY_S
    looks.look()
    assert line.looks == 2


def test_a_pair_of_sockets_and_a_closed_one_are_left_alone() -> None:
    ours, theirs = socket.socketpair()
    before = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    SendRoom(ours).look()
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before
    ours.close()
    theirs.close()
    SendRoom(ours).look()


def test_what_the_system_tells_of_a_connection_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as near, server.accept()[0]:
            told = near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            assert int.from_bytes(told[80:84], sys.byteorder) >= 1  # the window, in segments
            assert int.from_bytes(told[16:20], sys.byteorder) >= 500  # their size
            assert wanted_room(told) == 0  # loopback is short
