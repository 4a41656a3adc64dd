"""Links as such: limits of time and size, both directions at once, how they end."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from standby.errors import LinkError, LinkTimeout, ProtocolError
from standby.units import KiB, MiB
from standby.wire import frames, messages
from standby.wire.link import BETWEEN_MACHINES, Limits, Link, tune
from standby.wire.messages import Call, Finish, GetLeaves, Reply
from wires import Installation, tls_pair, wait_until

Pair = Callable[[], tuple[socket.socket, socket.socket]]


def frame(message: messages.Message, payload: bytes = b"") -> bytes:
    body = messages.encoded(message)
    return frames.packed_header(len(body), len(payload)) + body + payload


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    made = Installation(tmp_path_factory.mktemp("links"))
    made.identity("one", "source")
    made.identity("two", "target")
    return made


@pytest.fixture(params=["pair", "tcp", "tls"])
def sockets(
    request: pytest.FixtureRequest, installation: Installation
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets of each kind a link works over."""
    ends: tuple[socket.socket, socket.socket]
    if request.param == "pair":
        ends = socket.socketpair()
    elif request.param == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            ends = near, server.accept()[0]
    else:
        from standby.wire.identity import IdentityFolder

        folder = installation.folder
        ends = tls_pair(IdentityFolder(folder / "one"), IdentityFolder(folder / "two"))
    yield ends
    for end in ends:
        end.close()


def test_frames_of_all_sizes_arrive_whole(sockets: tuple[socket.socket, socket.socket]) -> None:
    here, there = Link(sockets[0], "there"), Link(sockets[1], "here")
    lengths = [0, 1, 4095, 16 * KiB, 16 * KiB + 1, 64 * KiB, MiB - 1, 5 * MiB + 3, 0]
    data = np.random.default_rng(1).integers(0, 256, max(lengths), np.uint8)

    def send() -> None:
        for number, length in enumerate(lengths):
            here.send(Call(number, "x" * (length % 300), {}), data[:length], b"tail")

    sender = threading.Thread(target=send)
    sender.start()
    for number, length in enumerate(lengths):
        message, payload = there.receive()
        assert isinstance(message, Call)
        assert message.id == number
        assert bytes(payload[length:]) == b"tail"
        assert np.array_equal(np.frombuffer(payload[:length], np.uint8), data[:length])
    sender.join()
    assert here.sent_bytes == there.received_bytes


def test_a_blocked_reader_delays_no_sender(sockets: tuple[socket.socket, socket.socket]) -> None:
    """CPython 3.13.6 held a lock in SSLSocket.recv that send waited for."""
    here, there = Link(sockets[0], "there"), Link(sockets[1], "here")
    got: list[messages.Message] = []
    reader = threading.Thread(target=lambda: got.append(here.receive()[0]))
    reader.start()
    for number in range(50):
        here.send(Reply(number, None), b"x" * 100)
        assert there.receive()[0] == Reply(number, None)
    assert got == []
    there.send(Finish())
    reader.join(20)
    assert got == [Finish()]


def test_many_threads_send_and_both_sides_receive(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    links = Link(sockets[0], "a"), Link(sockets[1], "b")
    data = np.random.default_rng(2).integers(0, 256, 300 * KiB, np.uint8).tobytes()
    threads, each = 3, 12
    failures: list[BaseException] = []

    def send(link: Link, first: int) -> None:
        for number in range(first, first + each):
            link.send(Call(number, "x", {}), data[: 1000 * number], data[number:])

    def receive(link: Link) -> None:
        try:
            seen = set()
            for _ in range(threads * each):
                message, payload = link.receive()
                assert isinstance(message, Call)
                seen.add(message.id)
                cut = 1000 * message.id
                assert payload[:cut] == data[:cut]
                assert payload[cut:] == data[message.id :]
            assert seen == set(range(threads * each))
        except BaseException as exc:
            failures.append(exc)

    running = [
        threading.Thread(target=send, args=(link, each * number))
        for link in links
        for number in range(threads)
    ]
    running += [threading.Thread(target=receive, args=(link,)) for link in links]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    assert not failures


def test_silence_between_frames_is_allowed_unless_limited(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    link = Link(sockets[0], "quiet", Limits(idle_s=0.05))
    with pytest.raises(LinkTimeout, match=r"silent for 0\.05 s"):
        link.receive()
    assert BETWEEN_MACHINES.idle_s is None


@pytest.mark.parametrize("begun", [1, 19, 25, 60_000])
def test_a_frame_once_begun_must_go_on(
    sockets: tuple[socket.socket, socket.socket], begun: int
) -> None:
    link = Link(sockets[0], "stalled", Limits(stall_s=0.1))
    sockets[1].sendall(frame(Finish(), bytes(100_000))[:begun])
    with pytest.raises(LinkTimeout, match="began a frame"):
        link.receive()
    with pytest.raises(LinkTimeout):  # and what is left of it is never taken for a frame
        link.receive()


def test_dripping_a_frame_ends_it(sockets: tuple[socket.socket, socket.socket]) -> None:
    link = Link(sockets[0], "drip", Limits(stall_s=0.2, rate_min_bps=100 * KiB))
    data = frame(Finish(), bytes(1000))
    stop = threading.Event()

    def drip() -> None:
        try:
            for byte in data:
                sockets[1].sendall(bytes([byte]))
                if stop.wait(0.01):
                    return
        except OSError:
            pass

    thread = threading.Thread(target=drip)
    thread.start()
    with pytest.raises(LinkTimeout, match="less than"):
        link.receive()
    stop.set()
    thread.join()


def test_a_slow_frame_above_the_minimum_rate_is_taken(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    """Longer than `stall_s` in all, but never too slow."""
    link = Link(sockets[0], "slow", Limits(stall_s=0.3, rate_min_bps=100))
    data = frame(Finish(), bytes(10_000))

    def send() -> None:
        pause = threading.Event()
        for start in range(0, len(data), 1000):
            sockets[1].sendall(data[start : start + 1000])
            pause.wait(0.05)

    thread = threading.Thread(target=send)
    thread.start()
    assert link.receive()[0] == Finish()
    thread.join()


def test_a_peer_that_takes_nothing_ends_the_sender(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    link = Link(sockets[0], "full", Limits(stall_s=0.1))
    with pytest.raises(LinkTimeout, match="took too little"):
        link.send(GetLeaves([1]), bytes(64 * MiB))
    with pytest.raises(LinkError):
        link.send(Finish())


def test_shutdown_wakes_reader_and_sender(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    link = Link(sockets[0], "there")
    ended: list[BaseException] = []
    started = threading.Barrier(3)

    def run(work: Callable[[], object]) -> None:
        started.wait()
        try:
            while True:
                work()
        except LinkError as exc:
            ended.append(exc)

    threads = [
        threading.Thread(target=run, args=(work,))
        for work in (link.receive, lambda: link.send(Finish(), bytes(MiB)))
    ]
    for thread in threads:
        thread.start()
    started.wait()
    link.shutdown()
    for thread in threads:
        thread.join(20)
    assert len(ended) == 2
    link.close()
    link.close()
    with pytest.raises(LinkError):
        link.send(Finish())
    with pytest.raises(LinkError):
        link.receive()


def test_the_first_failure_is_the_one_both_directions_tell(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    link = Link(sockets[0], "there")
    link.end(LinkTimeout("there", "somebody said so"))
    for work in (link.receive, lambda: link.send(Finish())):
        with pytest.raises(LinkTimeout, match="somebody said so"):
            work()


def test_what_is_no_frame_can_still_be_answered(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    link, other = Link(sockets[0], "there"), Link(sockets[1], "here")
    other._stream.write([memoryview(b"GET / HTTP/1.1\r\nHost: x\r\n")])
    for _ in range(2):  # and nothing behind it is looked at
        with pytest.raises(ProtocolError, match="begins with"):
            link.receive()
    link.send(Reply(1, "no"))
    assert other.receive()[0] == Reply(1, "no")


@pytest.mark.parametrize(("message_max", "payload_max"), [(64, 0), (1000, 10)])
def test_a_links_own_limits_of_size_hold(message_max: int, payload_max: int) -> None:
    near, far = socket.socketpair()
    link = Link(near, "x", Limits(message_max=message_max, payload_max=payload_max))
    far.sendall(frames.HEADER.pack(b"STBY", 1, 0, message_max, payload_max + 1))
    with pytest.raises(ProtocolError, match="payload length"):
        link.receive()
    near.close()
    far.close()


def test_what_is_announced_and_never_comes_takes_no_memory() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("the size of a process is read from /proc")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * 4096

    before = resident()
    held = []
    for _ in range(8):
        near, far = socket.socketpair()
        far.sendall(
            frames.HEADER.pack(b"STBY", 1, 0, frames.MESSAGE_MAX, frames.PAYLOAD_MAX) + b"x" * 1000
        )
        link = Link(near, "big", Limits(stall_s=0.02))
        with pytest.raises(LinkTimeout):
            link.receive()
        held.append((link, far))
    assert resident() - before < 16 * MiB
    for link, far in held:
        link.close()
        far.close()


def test_vanished_peers_are_looked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as connection:
            tune(connection)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                number = socket.TCP_USER_TIMEOUT
                assert connection.getsockopt(socket.IPPROTO_TCP, number) == 120_000


class Halves:
    """A pace that lets half of what is wanted go."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.is_closed = False

    def take(self, wanted: int) -> int:
        self.asked.append(wanted)
        return (wanted + 1) // 2

    def close(self) -> None:
        self.is_closed = True


def test_a_throttle_is_asked_before_every_write(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    here, there = Link(sockets[0], "there"), Link(sockets[1], "here")
    pace = Halves()
    here.throttle = pace  # type: ignore[assignment]
    data = bytes(range(250)) * 20_000
    sender = threading.Thread(target=here.send, args=(Finish(), data[:10], data))
    sender.start()
    assert there.receive()[1] == data[:10] + data
    sender.join()
    assert pace.asked[0] == here.sent_bytes
    assert len(pace.asked) > 10
    here.close()
    assert pace.is_closed


def test_a_record_that_was_touched_ends_the_link(installation: Installation) -> None:
    from standby.wire.identity import IdentityFolder

    folder = installation.folder
    near, far = tls_pair(IdentityFolder(folder / "one"), IdentityFolder(folder / "two"))
    link = Link(near, "there")
    assert isinstance(far, ssl.SSLSocket)
    socket.socket.sendall(far, b"\x17\x03\x03\x00\x40" + bytes(64))  # beneath TLS
    with pytest.raises(LinkError, match="TLS failed"):
        link.receive()
    link.close()
    far.close()


def test_a_link_knows_how_long_its_peer_had_no_room() -> None:
    """A slow reader is told from a slow network, which packing would help."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with Link(near, "far") as link, Link(far, "near") as other:
        assert link.is_local
        assert link.peer_waits_s() == 0
        sending = threading.Thread(target=lambda: link.send(Finish(), bytes(16 << 20)))
        sending.start()
        if sys.platform == "linux":
            wait_until(lambda: link.peer_waits_s() >= 0.05)  # nobody reads
        assert len(other.receive()[1]) == 16 << 20
        sending.join()


def test_a_pair_is_local() -> None:
    near, far = socket.socketpair()
    with Link(near, "far") as link, Link(far, "near"):
        assert link.is_local
        assert link.peer_waits_s() == 0
