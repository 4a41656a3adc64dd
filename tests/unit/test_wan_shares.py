"""Shares of the line between two accelerators, by weight."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from standby.road import wan_shares
from standby.road.wan_shares import AHEAD_BYTES, PIECE_BYTES, LineShares, Waits, waits_of
from standby.units import MiB
from standby.wire.link import Link
from wan_caches import HeldClock


class FakeLink:
    """A link of which the test says whether the line, or the peer, keeps it waiting."""

    def __init__(self, peer: str = "wb") -> None:
        self.peer = peer
        self.throttle: Any = None
        self.is_waiting = True
        self.peer_s = 0.0
        self.sent = 0

    def waits(self) -> Waits:
        return Waits(int(self.is_waiting), self.peer_s)


class Line:
    """Links that share a line, driven by the test's thread alone: who would have to wait is seen
    by that nothing is taken."""

    def __init__(self, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = HeldClock()
        self.shares = LineShares(lambda link: link.waits(), self.clock)  # type: ignore[attr-defined]
        self._stack = stack

    def link(self, weight: float, peer: str = "wb") -> Any:
        link = FakeLink(peer)
        self._stack.enter_context(self.shares.joined(link, weight))  # type: ignore[arg-type]
        return link

    def may_go(self, link: Any) -> bool:
        """Whether it need not wait now."""
        line = self.shares._lines[link.peer]
        least = line._least(link.throttle)
        share = link.throttle
        return least is None or (share.done - least) * share.weight <= AHEAD_BYTES

    def run(self, links: list[Any], rounds: int) -> None:
        """Whoever may go writes a piece, in turns, as TCP would have it."""
        for _ in range(rounds):
            for link in links:
                self.clock.at += 0.01
                if self.may_go(link):
                    link.sent += link.throttle.take(4 * MiB)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    with ExitStack() as stack:
        yield Line(stack, monkeypatch)


def test_bandwidth_goes_by_weight_while_the_line_keeps_all_waiting(line: Line) -> None:
    light, heavy = line.link(1), line.link(3)
    line.run([light, heavy], 400)
    assert heavy.sent / light.sent == pytest.approx(3, rel=0.1)


def test_a_link_alone_writes_what_it_has(line: Line) -> None:
    alone, elsewhere = line.link(1), line.link(1, "other")
    assert alone.throttle.take(4 * MiB) == elsewhere.throttle.take(4 * MiB) == 4 * MiB


def test_pieces_are_small_while_there_are_several(line: Line) -> None:
    one, _ = line.link(1), line.link(1)
    assert one.throttle.take(4 * MiB) == PIECE_BYTES
    assert one.throttle.take(100) == 100


@pytest.mark.parametrize("why", ["it has nothing to send", "its peer takes nothing", "it stalls"])
def test_nobody_waits_for_a_link_that_the_line_does_not_keep(line: Line, why: str) -> None:
    fast, slow = line.link(1), line.link(1)
    slow.throttle.take(1)
    for _ in range(40):
        line.clock.at += 1 if why == "it stalls" else 0.01
        slow.is_waiting = why != "it has nothing to send"
        slow.peer_s += 0.005 if why == "its peer takes nothing" else 0
        if line.may_go(fast):
            fast.sent += fast.throttle.take(MiB)
    assert fast.sent > 30 * PIECE_BYTES


def test_who_paused_has_no_credit_for_it(line: Line) -> None:
    busy, idle = line.link(1), line.link(1)
    idle.is_waiting = False
    line.run([busy], 100)
    busy.sent = 0
    line.clock.at += 1
    idle.throttle.take(1)
    idle.is_waiting = True
    line.run([busy, idle], 100)
    assert busy.sent / idle.sent == pytest.approx(1, rel=0.1)


def test_a_rule_is_asked_too_and_is_back_when_the_disk_is_done(line: Line) -> None:
    taken = []
    rule = SimpleNamespace(take=lambda count: taken.append(count) or 1000, close=lambda: None)
    link = FakeLink()
    link.throttle = rule
    with line.shares.joined(link, 1):  # type: ignore[arg-type]
        assert link.throttle.take(4 * MiB) == 1000
        line.link(1)
        assert link.throttle.take(4 * MiB) == 1000
    assert taken == [4 * MiB, PIECE_BYTES]
    assert link.throttle is rule


def test_who_is_ahead_waits_until_the_other_has_gone_on(line: Line) -> None:
    ahead, behind = line.link(1), line.link(1)
    while line.may_go(ahead):
        ahead.throttle.take(MiB)
        behind.throttle.moved_at = line.clock.at
    thread = threading.Thread(target=ahead.throttle.take, args=(MiB,))
    thread.start()
    thread.join(5 * wan_shares.LOOK_S)
    assert thread.is_alive()
    behind.throttle.take(MiB)
    thread.join(10)
    assert not thread.is_alive()


def test_the_kernel_says_whom_the_line_keeps_waiting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with Link(near, "far") as link, far:
        assert waits_of(link).unsent == 0
        near.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                near.send(bytes(MiB))
        if sys.platform == "linux":
            assert waits_of(link).unsent > 0
    assert waits_of(link) == Waits(0, 0.0)
