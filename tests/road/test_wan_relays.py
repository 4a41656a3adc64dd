"""The two WAN stations between links of this process: what passes, in which order, how much of it
is held, and what is refused."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from road.plain import WAIT_S
from standby import digesting
from standby.errors import LinkError, ProtocolError, StandbyError, VerifyFailed, error_to_wire
from standby.road import source_wan, wan_batches
from standby.road.batches import parsed_batch
from standby.road.source_wan import SourceWan
from standby.road.target_wan import TargetWan
from standby.road.wan_batches import packed_zeros, unpacked_zeros
from standby.road.wan_cache import CachedContent, Caching
from standby.units import GiB, KiB, MiB, TiB
from standby.wan.references import Receipt
from standby.wire.link import Link
from standby.wire.messages import (
    Acknowledged,
    Attach,
    Batch,
    Failed,
    Finish,
    Finished,
    GetLeaves,
    GetNodes,
    Leaves,
    Mark,
    Nodes,
    Resend,
    WanAgain,
    WanAnswer,
    WanFrame,
    WanQuestion,
    WanReady,
    WanReceipt,
)

KEY = bytes(range(32))
PIECE = 4 * KiB
WINDOW_LOG = 20
MADE: list[Line | Wan] = []


class Content(CachedContent):
    """Claims to have everything, and gives what it likes."""

    def __init__(self) -> None:
        super().__init__(None)

    def find(self, asked: Any) -> Any:
        return np.ones(len(asked), np.bool_), np.arange(len(asked), dtype=np.uint64)

    def read_found(self, locations: Any, rows: Any, out: Any) -> Any:
        out[rows] = 7
        return np.ones(len(locations), np.bool_)


class Line:
    """proxy - source's station - target's station - target, the ends for the test to play."""

    def __init__(self, size: int = GiB, content: CachedContent | None = None) -> None:
        ends = [socket.socketpair() for _ in range(3)]
        names = [("near", "proxy"), ("far", "near"), ("target", "far")]
        links = [
            (Link(left, peers[0]), Link(right, peers[1]))
            for (left, right), peers in zip(ends, names, strict=True)
        ]
        self.links = [link for pair in links for link in pair]
        self.proxy, self.target = links[0][0], links[2][1]
        self.size = size
        asks = content is not None
        self.near = SourceWan("task", links[0][1], links[1][0], KEY, size, WINDOW_LOG)
        self.far = TargetWan(
            "task",
            links[1][1],
            links[2][0],
            KEY,
            size,
            WINDOW_LOG,
            content or CachedContent(None),
            Caching(None),
            asks=asks,
        )
        self.ended = [self._run(self.near), self._run(self.far)]
        MADE.append(self)
        assert self.target.receive()[0] == Attach("task")

    def _run(self, station: SourceWan | TargetWan) -> Future[None]:
        future: Future[None] = Future()

        def run() -> None:
            try:
                future.set_result(station.run())
            except BaseException as exc:
                future.set_exception(exc)

        threading.Thread(target=run, daemon=True).start()
        return future

    def send(self, rows: list[tuple[int, int, int]], data: bytes) -> None:
        """A batch of the source proxy."""
        leaves = digesting.leaves(data) if data else np.empty(0, np.uint64)
        table = np.array(rows, np.int64)
        self.proxy.send(Batch(len(rows), len(leaves), len(data)), table, leaves, data)

    def batch(self) -> tuple[list[list[int]], bytes]:
        """The next message at the target must be one; its rows and data, its leaves compared."""
        message, payload = self.target.receive()
        assert isinstance(message, Batch), message
        batch = parsed_batch(message, payload, None, self.size, "far")
        if len(batch.data):
            assert np.array_equal(digesting.leaves(batch.data), batch.leaves)
        return batch.rows.tolist(), bytes(batch.data)

    def end(self) -> None:
        """The target has finished; both stations too."""
        self.target.send(Finished(1, 2))
        assert self.proxy.receive()[0] == Finished(1, 2)
        for future in self.ended:
            future.result(WAIT_S)

    def close(self) -> None:
        for link in self.links:
            link.close()
        for future in self.ended:
            future.exception(WAIT_S)


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture(autouse=True)
def _all_closed() -> Iterator[None]:
    """What a test that failed left open fails no other one."""
    MADE.clear()
    yield
    for made in MADE:
        made.close()


def noise(length: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, length, np.uint8).tobytes()


# --- what passes -----------------------------------------------------------------------------


def test_all_that_is_no_batch_passes_as_it_is(line):
    line.proxy.send(Attach("task"))  # the target's accelerator has said that itself
    line.proxy.send(GetNodes(3, [5, 7]))
    line.proxy.send(GetLeaves([1, 2]))
    line.proxy.send(Mark(MiB))
    line.proxy.send(Finish())
    there = [line.target.receive()[0] for _ in range(4)]
    assert there == [GetNodes(3, [5, 7]), GetLeaves([1, 2]), Mark(MiB), Finish()]
    line.target.send(Nodes(2), b"a" * 48)
    line.target.send(Leaves(1), b"b" * 32 * KiB)
    line.target.send(Acknowledged(5))
    line.target.send(Resend([(0, PIECE)]))
    for message, payload in (
        (Nodes(2), b"a" * 48),
        (Leaves(1), b"b" * 32 * KiB),
        (Acknowledged(5), b""),
        (Resend([(0, PIECE)]), b""),
    ):
        came, content = line.proxy.receive()
        assert (came, bytes(content)) == (message, payload)
    line.end()


def test_rows_arrive_in_the_disks_order(line):
    data = noise(3 * PIECE)
    line.send([(8 * PIECE, PIECE, 1), (0, 4 * PIECE, 0), (5 * PIECE, 2 * PIECE, 1)], data)
    rows, content = line.batch()
    assert rows == [[0, 4 * PIECE, 0], [8 * PIECE, PIECE, 1]]
    assert content == data[:PIECE]
    assert line.batch() == ([[5 * PIECE, 2 * PIECE, 1]], data[PIECE:])
    line.end()


def test_zeros_of_any_length_cost_next_to_nothing():
    line = Line(64 * TiB + 512)
    line.send([(0, TiB, 0), (2 * TiB, 62 * TiB + 512, 0)], b"")
    assert line.batch()[0] == [[0, TiB, 0], [2 * TiB, 62 * TiB + 512, 0]]
    line.end()
    assert line.near._far.sent_bytes < 80


def test_as_many_rows_as_a_batch_may_have_pass():
    line = Line()
    rows = [(2 * n * PIECE, PIECE, 0) for n in range(65535)]
    line.send([*rows, (GiB - 8 * PIECE, 8 * PIECE, 1)], noise(4 * PIECE) + bytes(4 * PIECE))
    came = line.batch()[0] + line.batch()[0]
    assert came[:65535] == [list(row) for row in rows]
    assert came[65535:] == [[GiB - 8 * PIECE, 4 * PIECE, 1], [GiB - 4 * PIECE, 4 * PIECE, 0]]
    line.end()


@pytest.mark.parametrize("seed", range(8))
def test_batches_arrive_as_they_were(seed, monkeypatch):
    monkeypatch.setattr(wan_batches, "PART_PIECES", 16)
    chance = np.random.default_rng(seed)
    size = 300 * PIECE + int(chance.integers(1, 8)) * 512
    line = Line(size)
    disk = np.zeros(size, np.uint8)
    disk[:] = 9
    expected = disk.copy()
    for _ in range(4):
        edges = np.sort(chance.choice(301, 40, replace=False)) * PIECE
        rows, parts = [], []
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            stop = size if stop == 300 * PIECE else stop
            kind = int(chance.integers(0, 2))
            rows.append((start, stop - start, kind))
            expected[start:stop] = 0
            if kind:
                parts.append(noise(stop - start, int(chance.integers(1, 99))))
                expected[start:stop] = np.frombuffer(parts[-1], np.uint8)
        line.send(rows, b"".join(parts))
    line.proxy.send(Finish())
    while True:
        message, payload = line.target.receive()
        if isinstance(message, Finish):
            break
        assert isinstance(message, Batch)
        batch = parsed_batch(message, payload, None, size, "far")
        assert (np.diff(batch.rows[:, 0]) > 0).all()
        at = 0
        for offset, length, kind in batch.rows.tolist():
            content: Any = np.frombuffer(batch.data[at : at + length], np.uint8) if kind else 0
            disk[offset : offset + length] = content
            at += length if kind else 0
    assert (disk == expected).all()
    line.end()


def test_zeros_travel_as_they_are():
    for zeros in ([], [[0, 1]], [[5, 3], [9, 1 << 40]], [[9, 1], [2, 4]]):
        table = np.array(zeros, np.int64).reshape(-1, 2)
        assert unpacked_zeros(packed_zeros(table), "peer").tolist() == zeros


# --- order and memory ------------------------------------------------------------------------


def test_a_mark_waits_for_what_came_wrong_before_it():
    line = Line(content=Content())
    data = noise(80 * PIECE)
    line.send([(0, 80 * PIECE, 1)], data)
    line.proxy.send(Mark(MiB))
    line.send([(MiB, PIECE, 0)], b"")
    line.proxy.send(Finish())
    seen: list[Any] = []
    while Finish() not in seen:
        message, payload = line.target.receive()
        seen.append(message)
        if isinstance(message, Batch) and message.data_length:
            assert bytes(payload).endswith(data)
    assert [type(message) for message in seen].count(Batch) == 2
    data_at = next(n for n, message in enumerate(seen) if getattr(message, "data_length", 0))
    assert data_at < seen.index(Mark(MiB)) < seen.index(Finish())
    line.end()
    assert line.near.sent.units_resent == 2


@pytest.mark.parametrize("asks", [False, True])
def test_a_slow_target_holds_the_source(monkeypatch, asks):
    monkeypatch.setattr(source_wan, "IN_FLIGHT_BYTES", 2 * MiB)
    monkeypatch.setattr(wan_batches, "PART_PIECES", 128)
    full, taken, arrived, most = threading.Event(), [0], [0], [0]
    right = SourceWan._has_room

    def has_room(self: SourceWan, length: int) -> bool:
        if taken[0] + length > 2 * MiB:
            full.set()
        may_go = right(self, length)
        taken[0] += length
        most[0] = max(most[0], taken[0] - arrived[0])
        return may_go

    monkeypatch.setattr(SourceWan, "_has_room", has_room)
    line = Line(content=Content() if asks else None)
    data = noise(MiB)

    def feed() -> None:
        for number in range(24):
            line.send([(number * MiB, MiB, 1)], data)
        line.proxy.send(Finish())

    feeding = threading.Thread(target=feed)
    feeding.start()
    assert full.wait(WAIT_S)
    assert taken[0] == 2 * MiB
    message = line.target.receive()[0]
    while not isinstance(message, Finish):
        assert isinstance(message, Batch)
        arrived[0] += message.data_length
        message = line.target.receive()[0]
    feeding.join(WAIT_S)
    line.end()
    assert arrived[0] == taken[0] == 24 * MiB
    assert most[0] <= 2 * MiB + 128 * PIECE  # the last one is read while the next goes out


def test_receipts_that_came_before_the_last_word_are_settled():
    wan = Wan(is_source=True)
    station, settle = wan.station, wan.station._settle

    def settle_late(receipt: bytes) -> None:
        with station._changed:
            assert station._changed.wait_for(lambda: station._is_finished, WAIT_S)
        settle(receipt)

    station._settle = settle_late
    wan.wan.send(WanReady(False, 16, WINDOW_LOG))
    content = noise(MiB)
    leaves = digesting.leaves(content)
    for number in range(3):
        rows = np.array([[number * MiB, MiB, 1]])
        wan.peer.send(Batch(1, len(leaves), MiB), rows, leaves, content)
        assert isinstance(wan.wan.receive()[0], WanFrame)
    receipts = [Receipt(serial, np.empty(0, np.int64), False).to_bytes() for serial in (1, 2, 3)]
    for receipt in receipts:
        wan.wan.send(WanReceipt(), receipt)
    wan.wan.send(Finished(1, 1))
    assert wan.peer.receive()[0] == Finished(1, 1)
    wan.ended.result(WAIT_S)
    assert station.sent.receipts == sum(map(len, receipts))


def test_frames_are_made_while_others_wait_for_the_line():
    wan = Wan(is_source=True)
    wan.wan.send(WanReady(False, 16, WINDOW_LOG))
    content = noise(MiB)
    leaves = digesting.leaves(content)
    for number in range(6):
        rows = np.array([[number * MiB, MiB, 1]])
        wan.peer.send(Batch(1, len(leaves), MiB), rows, leaves, content)
    with wan.station._changed:
        ahead = source_wan.READY_MAX
        assert wan.station._changed.wait_for(lambda: len(wan.station._ready) == ahead, WAIT_S)
    for _ in range(6):
        assert isinstance(wan.wan.receive()[0], WanFrame)
    wan.wan.send(Finished(1, 1))
    assert wan.peer.receive()[0] == Finished(1, 1)
    wan.ended.result(WAIT_S)


# --- what is refused -------------------------------------------------------------------------


def fails(line: Line, wanted: type[StandbyError] = ProtocolError) -> None:
    """Both stations end with that, and the proxy is told."""
    message, _ = line.proxy.receive()
    assert isinstance(message, Failed)
    assert message.error["error"] == wanted.__name__
    line.proxy.close()
    assert [type(future.exception(WAIT_S)) for future in line.ended] == [wanted] * 2
    with contextlib.suppress(LinkError):
        while True:
            line.target.receive()


@pytest.mark.parametrize(
    "message",
    [Finished(0, 0), WanFrame(), WanReceipt(), WanQuestion(), Acknowledged(1)],
    ids=lambda message: type(message).__name__,
)
def test_a_proxy_that_says_what_it_must_not(line, message):
    line.proxy.send(message)
    fails(line)


@pytest.mark.parametrize(
    "message",
    [Finish(), WanFrame(), WanReceipt(), Attach("task"), Batch(1, 0, 0)],
    ids=lambda message: type(message).__name__,
)
def test_a_target_that_says_what_it_must_not(line, message):
    line.target.send(message)
    fails(line)


def test_a_batch_outside_the_disk_is_refused(line):
    line.send([(GiB, PIECE, 0)], b"")
    fails(line)


def test_what_the_target_could_not_do_is_passed_on(line):
    line.target.send(Failed(0, error_to_wire(VerifyFailed("replica", "task", 4096))))
    fails(line, VerifyFailed)


def test_what_the_target_said_before_it_ended_counts(line):
    """Batches are on their way to it while it ends: their failure is not the reason."""
    line.target.send(Failed(0, error_to_wire(VerifyFailed("replica", "task", 4096))))
    line.target.close()
    line.send([(0, MiB, 1)], noise(MiB))
    fails_at = line.proxy.receive()[0]
    assert isinstance(fails_at, Failed)
    assert fails_at.error["error"] == "VerifyFailed"
    line.proxy.close()
    assert [type(future.exception(WAIT_S)) for future in line.ended] == [VerifyFailed] * 2


def test_what_had_arrived_before_the_line_broke_goes_on_to_the_target():
    near, far = Wan(is_source=True), Wan(is_source=False)
    assert isinstance(far.wan.receive()[0], WanReady)
    assert far.peer.receive()[0] == Attach("task")
    near.wan.send(WanReady(False, 16, WINDOW_LOG))
    content = noise(MiB)
    leaves = digesting.leaves(content)
    for number in range(4):
        rows = np.array([[number * MiB, MiB, 1]])
        near.peer.send(Batch(1, len(leaves), MiB), rows, leaves, content)
        far.wan.send(*near.wan.receive())
    far.wan.shutdown()  # the target has not taken in anything so far
    for number in range(4):
        message, payload = far.peer.receive()
        assert isinstance(message, Batch)
        batch = parsed_batch(message, payload, None, GiB, "far")
        assert (batch.rows[0].tolist(), batch.data) == ([number * MiB, MiB, 1], content)
    with pytest.raises(LinkError):
        far.peer.receive()
    for wan in (near, far):
        wan.peer.close()
        wan.wan.close()
        assert isinstance(wan.ended.exception(WAIT_S), LinkError)


class Wan:
    """One station alone, the other accelerator played by the test."""

    def __init__(self, *, is_source: bool) -> None:
        outer, inner = socket.socketpair()
        left, right = socket.socketpair()
        self.peer, self.wan = Link(outer, "peer"), Link(left, "wan")
        ours = Link(inner, "proxy"), Link(right, "wan")
        self.station: Any
        if is_source:
            self.station = SourceWan("task", *ours, KEY, GiB, WINDOW_LOG)
        else:
            content, caching = CachedContent(None), Caching(None)
            self.station = TargetWan(
                "task", *ours[::-1], KEY, GiB, WINDOW_LOG, content, caching, asks=True
            )
        self.links = (*ours, self.peer, self.wan)
        self.ended: Future[None] = Future()
        threading.Thread(target=self._run, daemon=True).start()
        MADE.append(self)

    def _run(self) -> None:
        try:
            self.ended.set_result(self.station.run())
        except BaseException as exc:
            self.ended.set_exception(exc)

    def close(self) -> None:
        for link in self.links:
            link.close()
        self.ended.exception(WAIT_S)


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (WanQuestion(), b""),
        (WanQuestion(), b"rubbish"),
        (WanFrame(), b"rubbish"),
        (WanFrame(9), b"rubbish"),
        (WanFrame(3), b"\x01\x02\x03"),
        (WanFrame(-1), b""),
        (WanAgain(), b"rubbish"),
        (WanAnswer(), b""),
        (Finished(0, 0), b""),
    ],
    ids=str,
)
def test_an_accelerator_at_the_source_that_says_rubbish(message, payload):
    wan = Wan(is_source=False)
    assert isinstance(wan.wan.receive()[0], WanReady)
    assert wan.peer.receive()[0] == Attach("task")
    wan.wan.send(message, payload)
    told, _ = wan.wan.receive()
    assert isinstance(told, Failed)
    wan.wan.close()
    assert isinstance(wan.ended.exception(WAIT_S), ProtocolError)
    with pytest.raises(LinkError):
        wan.peer.receive()


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (WanReceipt(), b""),
        (WanReceipt(), b"rubbish"),
        (WanReceipt(), bytes([0x14, 9, 0, 0])),
        (WanFrame(), b""),
        (Attach("task"), b""),
    ],
    ids=str,
)
def test_an_accelerator_at_the_target_that_says_rubbish(message, payload):
    wan = Wan(is_source=True)
    wan.wan.send(WanReady(True, 16, WINDOW_LOG))
    wan.wan.send(message, payload)
    told, _ = wan.peer.receive()
    assert isinstance(told, Failed)
    wan.peer.close()
    wan.wan.close()
    assert isinstance(wan.ended.exception(WAIT_S), ProtocolError)


def test_answers_to_nothing_do_not_pile_up():
    wan = Wan(is_source=True)
    wan.wan.send(WanReady(True, 16, WINDOW_LOG))
    for _ in range(40):
        wan.wan.send(WanAnswer(), b"rubbish")
    told, _ = wan.peer.receive()
    assert isinstance(told, Failed)
    assert "not asked" in told.error["problem"]
    wan.peer.close()
    wan.wan.close()


def test_an_accelerator_that_is_not_ready_says_why():
    wan = Wan(is_source=True)
    wan.wan.send(Failed(0, error_to_wire(LinkError("dst", "cannot connect"))))
    with pytest.raises(LinkError, match="dst: cannot connect"):
        wan.ended.result(WAIT_S)
