"""Whatever a client says, the server answers or hangs up, and the disk stays a disk."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from standby.disk.serve import protocol
from standby.disk.serve.channel import Channel
from standby.disk.serve.export import Export
from standby.disk.serve.server import serve_connection
from standby.errors import LinkError
from standby.testing.disks import MemoryDisk, content, random_bytes
from standby.units import KiB

SIZE = 256 * KiB
CONTENT = random_bytes(SIZE, 1)

QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


class RecordedChannel(Channel):
    """A client that said everything beforehand and takes every answer."""

    def __init__(self, said: bytes) -> None:
        self.peer = "fuzz"
        self._said = memoryview(said)
        self._waste = bytearray()
        self.answers = bytearray()

    def receive_into(self, buffer: Any) -> None:
        view = memoryview(buffer).cast("B")
        if len(self._said) < len(view):
            raise LinkError(self.peer, "gone")
        view[:] = self._said[: len(view)]
        self._said = self._said[len(view) :]

    def send(self, *parts: Any) -> None:
        for part in parts:
            self.answers += part

    def limit_wait(self, timeout_s: float | None) -> None:
        pass


def serve(said: bytes, *, writable: bool = True, sector: int = 512) -> tuple[bytes, MemoryDisk]:
    disk = MemoryDisk(SIZE, logical_sector_size=sector)
    disk.write(0, CONTENT)
    channel = RecordedChannel(said)
    serve_connection(channel, {"disk": Export("disk", disk, writable=writable)})
    return bytes(channel.answers), disk


def option(number: int, data: bytes) -> bytes:
    return protocol.OPTION.pack(protocol.OPTION_MAGIC, number, len(data)) + data


def text(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


NAMES = st.sampled_from([b"disk", b"", b"none", b"\xff", b"base:allocation", b"base:"])
WELL_FORMED = st.one_of(
    st.tuples(NAMES, st.lists(st.integers(0, 5), max_size=4)).map(
        lambda pair: text(pair[0]) + struct.pack(f">H{len(pair[1])}H", len(pair[1]), *pair[1])
    ),
    st.tuples(NAMES, st.lists(NAMES, max_size=4)).map(
        lambda pair: text(pair[0]) + struct.pack(">I", len(pair[1])) + b"".join(map(text, pair[1]))
    ),
    st.just(b""),
)
OPTIONS = st.builds(
    option,
    st.one_of(st.integers(1, 11), st.integers(0, 0xFFFFFFFF)),
    st.one_of(WELL_FORMED, st.binary(max_size=64)),
)
GO = option(protocol.OPT_GO, text(b"disk") + struct.pack(">H", 0))
STRUCTURED = option(protocol.OPT_STRUCTURED_REPLY, b"")
ALLOCATION = option(
    protocol.OPT_SET_META_CONTEXT,
    text(b"disk") + struct.pack(">I", 1) + text(b"base:allocation"),
)

EDGES = [0, 1, 511, 512, 4096, 65536, SIZE - 512, SIZE - 1, SIZE, SIZE + 1, 1 << 31, (1 << 32) - 1]


def request(kind: int, flags: int, offset: int, length: int, data: bytes) -> bytes:
    head = protocol.REQUEST.pack(protocol.REQUEST_MAGIC, flags, kind, 7, offset, length)
    if kind == protocol.CMD_WRITE:
        said = min(length, 2 * SIZE)
        return head + (data * (said // len(data) + 1))[:said]
    return head


REQUESTS = st.builds(
    request,
    st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)).filter(
        lambda kind: kind != protocol.CMD_DISCONNECT
    ),
    st.one_of(st.just(0), st.integers(0, 31), st.integers(0, 0xFFFF)),
    st.one_of(st.sampled_from([*EDGES, 1 << 63, (1 << 64) - 1]), st.integers(0, SIZE)),
    st.one_of(st.sampled_from(EDGES), st.integers(0, SIZE)),
    st.binary(min_size=1, max_size=32),
)


@QUICK
@given(st.binary(max_size=512))
def test_any_bytes_as_negotiation(said: bytes) -> None:
    _, disk = serve(said)
    assert content(disk) == CONTENT


@QUICK
@given(st.integers(0, 3), st.lists(OPTIONS, max_size=8), st.binary(max_size=40))
def test_any_options_as_negotiation(flags: int, options: list[bytes], rest: bytes) -> None:
    said = struct.pack(">I", flags) + b"".join(options) + rest
    _, disk = serve(said)
    assert content(disk) == CONTENT


def _check_replies(answers: bytes) -> None:
    """Every reply is whole, of a known kind, and echoes the cookie."""
    position = 0
    while position < len(answers):
        (magic,) = struct.unpack_from(">I", answers, position)
        if magic == protocol.SIMPLE_REPLY_MAGIC:
            _, error, cookie = protocol.SIMPLE_REPLY.unpack_from(answers, position)
            assert error in (0, protocol.EPERM, protocol.EIO, protocol.EINVAL, protocol.ENOSPC)
            position += protocol.SIMPLE_REPLY.size
        else:
            assert magic == protocol.CHUNK_MAGIC, hex(magic)
            _, _, _, cookie, length = protocol.CHUNK.unpack_from(answers, position)
            position += protocol.CHUNK.size + length
        assert cookie == 7
    assert position == len(answers)


@QUICK
@given(st.lists(REQUESTS, max_size=12), st.booleans(), st.sampled_from([512, 4096]))
def test_any_requests(requests: list[bytes], writable: bool, sector: int) -> None:
    opening = struct.pack(">I", 3) + STRUCTURED + ALLOCATION + GO
    before, _ = serve(opening, writable=writable, sector=sector)
    answers, disk = serve(opening + b"".join(requests), writable=writable, sector=sector)
    assert answers[: len(before)] == before
    _check_replies(answers[len(before) :])
    assert len(content(disk)) == SIZE
    if not writable:
        assert content(disk) == CONTENT


@QUICK
@given(st.binary(max_size=256))
def test_any_bytes_as_requests(said: bytes) -> None:
    _, disk = serve(struct.pack(">I", 3) + GO + said, writable=False)
    assert content(disk) == CONTENT


@QUICK
@given(st.integers(0, 27), st.integers(0, 255), st.integers(0, 3))
def test_any_damaged_header_behind_good_ones(position: int, value: int, flush_count: int) -> None:
    flush = request(protocol.CMD_FLUSH, 0, 0, 0, b"")
    read = bytearray(request(protocol.CMD_READ, 0, 0, 4096, b""))
    read[position] = value
    answers, disk = serve(struct.pack(">I", 3) + GO + flush * flush_count + bytes(read))
    assert answers.count(protocol.simple_reply(7)) >= flush_count
    assert content(disk) == CONTENT
