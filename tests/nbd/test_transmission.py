"""Requests and replies."""

from __future__ import annotations

import errno
import itertools
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from standby.disk.serve import protocol
from standby.disk.serve.channel import Channel
from standby.disk.serve.export import Export
from standby.disk.serve.server import serve_connection
from standby.disk.serve.transmission import BUFFER
from standby.testing.disks import MemoryDisk, content, fill, random_bytes, random_operations
from standby.testing.nbd_client import NbdClient, NbdError
from standby.units import KiB, MiB

SIZE = 6 * MiB + 4096


@pytest.fixture(params=[512, 4096])
def disk(request: pytest.FixtureRequest) -> MemoryDisk:
    made = MemoryDisk(SIZE, logical_sector_size=request.param)
    fill(made, 1, length_max=MiB)
    made.calls.clear()
    return made


class Connection:
    """A client with the thread that serves it."""

    def __init__(self, export: Export) -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(30)
        self._socket = ours
        self._thread = threading.Thread(target=self._serve, args=(export,))
        self._thread.start()
        self.client = NbdClient(theirs)

    def _serve(self, export: Export) -> None:
        serve_connection(Channel(self._socket, "test"), {"": export})
        self._socket.close()

    def close(self) -> None:
        self.client.close()
        self._thread.join()


@pytest.fixture(params=[False, True], ids=["simple", "structured"])
def client(request: pytest.FixtureRequest, disk: MemoryDisk) -> Iterator[NbdClient]:
    connection = Connection(Export("", disk, writable=True))
    connection.client.go(structured=request.param)
    yield connection.client
    connection.close()


@pytest.fixture
def reader(disk: MemoryDisk) -> Iterator[NbdClient]:
    """Connected to a read-only export, with block status."""
    connection = Connection(Export("", disk, writable=False))
    connection.client.go(allocation=True)
    yield connection.client
    connection.close()


def refused(client: NbdClient, number: int, *arguments: object, **options: object) -> bool:
    with pytest.raises(NbdError) as caught:
        client.command(*arguments, **options)  # type: ignore[arg-type]
    return caught.value.number == number


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 4096),
        (0, SIZE),
        (SIZE - 4096, 4096),
        (4096, BUFFER),
        (4096, BUFFER + 4096),
        (0, 2 * BUFFER),
        (0, 0),
        (100, 1),
        (511, 5000),
        (SIZE - 1, 1),
        (1, SIZE - 1),
    ],
)
def test_reads_any_range(client: NbdClient, disk: MemoryDisk, offset: int, length: int) -> None:
    assert client.read(offset, length) == content(disk)[offset : offset + length]


def test_equals_plain_bytes_after_any_operations(client: NbdClient, disk: MemoryDisk) -> None:
    expected = bytearray(content(disk))
    operations = random_operations(
        3, SIZE, 150, sector=disk.logical_sector_size, length_max=3 * MiB
    )
    for number, operation in enumerate(operations):
        if operation.name == "flush":
            client.flush()
            continue
        if operation.name == "write":
            client.write(operation.offset, operation.data, fua=number % 5 == 0)
        else:
            kind = protocol.CMD_TRIM if number % 2 else protocol.CMD_WRITE_ZEROES
            client.command(kind, operation.offset, operation.length)
        stop = operation.offset + operation.length
        expected[operation.offset : stop] = operation.data or bytes(operation.length)
    assert client.read(0, SIZE) == expected
    assert content(disk) == expected


def test_flush_and_fua_answer_after_the_disk_has_flushed(
    client: NbdClient, disk: MemoryDisk
) -> None:
    client.write(0, bytes(4096))
    assert "flush" not in disk.calls
    client.flush()
    assert disk.calls["flush"] == 1
    client.write(0, bytes(4096), fua=True)
    client.command(protocol.CMD_TRIM, 0, 4096, protocol.CMD_FLAG_FUA)
    client.command(protocol.CMD_WRITE_ZEROES, 0, 4096, protocol.CMD_FLAG_FUA)
    assert disk.calls["flush"] == 4


def test_a_flush_does_not_answer_while_the_disk_flushes(
    client: NbdClient, disk: MemoryDisk
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hold(operation: str, _offset: int, _length: int) -> None:
        if operation == "flush":
            entered.set()
            assert go_on.wait(30)

    disk.hook = hold
    cookie = client.send_request(protocol.CMD_FLUSH)
    assert entered.wait(30)
    client.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.socket.recv(1)
    client.socket.settimeout(30)
    go_on.set()
    client.receive_simple(cookie)


def test_write_zeroes_frees_space_unless_told_not_to(client: NbdClient, disk: MemoryDisk) -> None:
    disk.write(0, random_bytes(MiB, 1))
    client.command(protocol.CMD_WRITE_ZEROES, 0, 512 * KiB, protocol.CMD_FLAG_NO_HOLE)
    client.command(protocol.CMD_WRITE_ZEROES, 512 * KiB, 512 * KiB)
    kinds = [(extent.length, extent.kind.name) for extent in disk.extents(0, MiB)]
    assert kinds == [(512 * KiB, "DATA"), (512 * KiB, "ZERO")]
    assert content(disk)[:MiB] == bytes(MiB)


def test_trim_keeps_what_is_not_whole_sectors(client: NbdClient, disk: MemoryDisk) -> None:
    data = random_bytes(16384, 1)
    disk.write(0, data)
    client.command(protocol.CMD_TRIM, 100, 8192)
    sector = disk.logical_sector_size
    last = 8292 // sector * sector
    assert content(disk)[:16384] == data[:sector] + bytes(last - sector) + data[last:]
    client.command(protocol.CMD_TRIM, 8193, 100)


def test_errors_of_the_disk_become_their_numbers(client: NbdClient, disk: MemoryDisk) -> None:
    disk.fail("read", MiB, 4096, times=1)
    with pytest.raises(NbdError) as caught:
        client.read(MiB, 4096)
    assert caught.value.number == protocol.EIO
    disk.fail("write", 0, 4096, times=1)
    assert refused(client, protocol.EIO, protocol.CMD_WRITE, 0, 4096, data=bytes(4096))
    disk.fail("write", 0, 4096, error=errno.ENOSPC, times=1)
    assert refused(client, protocol.ENOSPC, protocol.CMD_WRITE, 0, 4096, data=bytes(4096))
    disk.fail("zero", 0, 4096, times=1)
    assert refused(client, protocol.EIO, protocol.CMD_TRIM, 0, 4096)
    client.write(0, bytes(4096))
    assert client.read(0, 4096) == bytes(4096)


def test_a_write_that_fails_early_still_takes_its_data(client: NbdClient, disk: MemoryDisk) -> None:
    disk.fail("write", 0, 4096, times=1)
    length = 2 * BUFFER
    assert refused(client, protocol.EIO, protocol.CMD_WRITE, 0, length, data=bytes(length))
    assert client.read(0, 4096) == content(disk)[:4096]


def test_after_a_failed_flush_no_later_one_succeeds(client: NbdClient, disk: MemoryDisk) -> None:
    disk.fail("flush", times=1)
    client.write(0, bytes(4096))
    assert refused(client, protocol.EIO, protocol.CMD_FLUSH)
    assert refused(client, protocol.EIO, protocol.CMD_FLUSH)
    assert refused(client, protocol.EIO, protocol.CMD_WRITE, 0, 4096, data=bytes(4096))
    assert client.read(0, 4096) == bytes(4096)


def test_a_flush_that_found_no_room_may_be_repeated(client: NbdClient, disk: MemoryDisk) -> None:
    disk.fail("flush", error=errno.ENOSPC, times=1)
    assert refused(client, protocol.ENOSPC, protocol.CMD_FLUSH)
    client.flush()


@pytest.mark.parametrize("length", [512, 4096, BUFFER, BUFFER + 4096])
def test_a_read_that_fails_midway_is_never_taken_for_data(
    client: NbdClient, disk: MemoryDisk, length: int
) -> None:
    disk.fail("read", BUFFER - 4096 if length > 4096 else 0, 4096)
    if length > BUFFER:
        disk.faults[0].offset = BUFFER
    with pytest.raises((NbdError, ConnectionError)):
        client.read(0, length)


def test_refuses_what_lies_outside(client: NbdClient) -> None:
    for offset, length in ((SIZE, 512), (SIZE - 4096, 8192), ((1 << 64) - 512, 512)):
        with pytest.raises(NbdError) as caught:
            client.read(offset, length)
        assert caught.value.number == protocol.EINVAL
        data = bytes(length)
        assert refused(client, protocol.ENOSPC, protocol.CMD_WRITE, offset, length, data=data)
        assert refused(client, protocol.ENOSPC, protocol.CMD_TRIM, offset, length)
        assert refused(client, protocol.ENOSPC, protocol.CMD_WRITE_ZEROES, offset, length)


def test_refuses_writes_of_parts_of_sectors(client: NbdClient, disk: MemoryDisk) -> None:
    before = content(disk)
    half = disk.logical_sector_size // 2
    for offset, length in ((half, 2 * half), (0, half)):
        data = bytes(length)
        assert refused(client, protocol.EINVAL, protocol.CMD_WRITE, offset, length, data=data)
        assert refused(client, protocol.EINVAL, protocol.CMD_WRITE_ZEROES, offset, length)
    assert content(disk) == before


@pytest.mark.parametrize(
    ("kind", "length", "flags"),
    [
        (protocol.CMD_READ, 512, protocol.CMD_FLAG_FUA),
        (protocol.CMD_READ, 512, 4),
        (protocol.CMD_FLUSH, 0, protocol.CMD_FLAG_FUA),
        (protocol.CMD_FLUSH, 512, 0),
        (protocol.CMD_TRIM, 512, protocol.CMD_FLAG_NO_HOLE),
        (protocol.CMD_WRITE_ZEROES, 512, 16),
        (protocol.CMD_READ, protocol.PAYLOAD_MAX + 1, 0),
        (protocol.CMD_BLOCK_STATUS, 512, 0),
        (5, 0, 0),
        (99, 512, 0),
    ],
)
def test_refuses_commands_and_flags_it_does_not_know(
    client: NbdClient, kind: int, length: int, flags: int
) -> None:
    answer = client.receive_simple
    if client.structured and kind in (protocol.CMD_READ, protocol.CMD_BLOCK_STATUS):
        answer = client.receive_chunks  # type: ignore[assignment]
    cookie = client.send_request(kind, 0, length, flags)
    with pytest.raises(NbdError) as caught:
        answer(cookie)
    assert caught.value.number == protocol.EINVAL
    assert len(client.read(0, 4096)) == 4096


def test_a_write_with_unknown_flags_takes_its_data_and_is_refused(client: NbdClient) -> None:
    assert refused(client, protocol.EINVAL, protocol.CMD_WRITE, 0, 4096, 8, bytes(4096))
    assert len(client.read(0, 4096)) == 4096


@pytest.mark.parametrize("junk", [bytes(28), b"\xff" * 28])
def test_a_wrong_magic_ends_the_connection(client: NbdClient, junk: bytes) -> None:
    client.socket.sendall(junk)
    assert client.socket.recv(1) == b""


def test_a_write_longer_than_announced_ends_the_connection(client: NbdClient) -> None:
    client.send_request(protocol.CMD_WRITE, 0, 0xFFFFFE00)
    assert client.socket.recv(1) == b""


def test_a_write_cut_short_by_a_lost_client_changes_whole_sectors_only(disk: MemoryDisk) -> None:
    before = content(disk)
    connection = Connection(Export("", disk, writable=True))
    connection.client.go()
    connection.client.send_request(protocol.CMD_WRITE, 0, BUFFER, data=b"x" * 5000)
    connection.close()
    assert content(disk) == before


def test_a_read_only_export_refuses_every_change(reader: NbdClient, disk: MemoryDisk) -> None:
    before = content(disk)
    assert refused(reader, protocol.EPERM, protocol.CMD_WRITE, 0, 4096, data=bytes(4096))
    assert refused(reader, protocol.EPERM, protocol.CMD_TRIM, 0, 4096)
    assert refused(reader, protocol.EPERM, protocol.CMD_WRITE_ZEROES, 0, 4096)
    reader.flush()
    assert content(disk) == before
    assert "flush" not in disk.calls


# --- block status ---


def _states(disk: MemoryDisk, unit: int = 512) -> bytes:
    """One state per 512 bytes of the disk."""
    found = bytearray()
    for extent in disk.extents():
        found += bytes([0 if extent.kind.name == "DATA" else 3]) * (extent.length // unit)
    return bytes(found)


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (0, 512), (4096, MiB), (1536, 12800)])
def test_block_status_tells_data_from_zeros(
    reader: NbdClient, disk: MemoryDisk, offset: int, length: int
) -> None:
    found = bytearray()
    while len(found) * 512 < length:
        for count, state in reader.block_status(
            offset + len(found) * 512, length - len(found) * 512
        ):
            assert count % 512 == 0
            found += bytes([state]) * (count // 512)
    assert found == _states(disk)[offset // 512 : (offset + length) // 512]


def test_block_status_of_one_is_one(reader: NbdClient, disk: MemoryDisk) -> None:
    ((count, state),) = reader.block_status(0, SIZE, one=True)
    states = _states(disk)
    assert states[: count // 512] == bytes([state]) * (count // 512)


def test_block_status_neighbours_differ(reader: NbdClient) -> None:
    states = [state for _, state in reader.block_status(0, SIZE)]
    assert all(a != b for a, b in itertools.pairwise(states))


def test_block_status_is_bounded() -> None:
    disk = MemoryDisk(2 * MiB)
    for offset in range(0, 2 * MiB, 1024):
        disk.write(offset, bytes(512))
    connection = Connection(Export("", disk, writable=False))
    connection.client.go(allocation=True)
    found = connection.client.block_status(0, 2 * MiB)
    assert len(found) == protocol.DESCRIPTORS_MAX
    assert set(found) == {(512, 0), (512, 3)}
    connection.close()


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, SIZE + 512), (SIZE, 512)])
def test_block_status_refuses_what_is_not_there(
    reader: NbdClient, offset: int, length: int
) -> None:
    with pytest.raises(NbdError) as caught:
        reader.block_status(offset, length)
    assert caught.value.number == protocol.EINVAL


def test_block_status_that_cannot_be_read_is_an_error(
    reader: NbdClient, disk: MemoryDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise disk._error(disk.fail("x"), "extents", 0, 0)

    monkeypatch.setattr(disk, "extents", broken)
    with pytest.raises(NbdError) as caught:
        reader.block_status(0, 512)
    assert caught.value.number == protocol.EIO


def test_replies_carry_the_cookie_of_their_request(client: NbdClient) -> None:
    cookie = 0xDEADBEEFCAFEF00D
    head = protocol.REQUEST.pack(protocol.REQUEST_MAGIC, 0, protocol.CMD_FLUSH, cookie, 0, 0)
    client.socket.sendall(head)
    _, error, echoed = struct.unpack(">IIQ", client.receive(16))
    assert (error, echoed) == (0, cookie)
