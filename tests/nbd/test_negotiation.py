"""The first phase of a connection, option by option."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from standby.disk.serve import protocol
from standby.disk.serve.channel import Channel
from standby.disk.serve.export import Export
from standby.disk.serve.server import serve_connection
from standby.testing.disks import MemoryDisk
from standby.testing.nbd_client import NbdClient, NbdError
from standby.units import MiB

EXPORTS = {
    "system": Export("system", MemoryDisk(8 * MiB), writable=False),
    "däta": Export("däta", MemoryDisk(4 * MiB, logical_sector_size=4096), writable=True),
}


def connect(exports: dict[str, Export], client_flags: int = 3) -> Iterator[NbdClient]:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve_connection, args=(Channel(ours, "test"), exports))
    thread.start()
    ended = threading.Thread(target=lambda: (thread.join(), ours.close()))
    ended.start()
    theirs.settimeout(30)
    found = NbdClient(theirs, client_flags=client_flags)
    yield found
    found.close()
    ended.join()


@pytest.fixture
def client() -> Iterator[NbdClient]:
    yield from connect(EXPORTS)


@pytest.fixture
def old_client() -> Iterator[NbdClient]:
    yield from connect({"only": EXPORTS["system"]}, client_flags=0)


def is_closed(client: NbdClient) -> bool:
    try:
        return not client.socket.recv(1)
    except ConnectionError:
        return True


def test_greets_as_fixed_newstyle(client: NbdClient) -> None:
    assert client.handshake_flags == 3


def test_lists_the_exports(client: NbdClient) -> None:
    *servers, last = client.option(protocol.OPT_LIST)
    assert [reply.data[4:].decode() for reply in servers] == ["system", "däta"]
    assert last.kind == protocol.REP_ACK
    (refusal,) = client.option(protocol.OPT_LIST, b"x")
    assert refusal.kind == protocol.REP_ERR_INVALID


def test_tells_size_flags_and_block_sizes(client: NbdClient) -> None:
    client.info("system")
    assert client.size == 8 * MiB
    assert client.flags & protocol.FLAG_READ_ONLY
    assert not client.flags & protocol.FLAG_SEND_FLUSH
    assert client.block_sizes == (512, 4096, 32 * MiB)
    client.info("däta")
    assert client.size == 4 * MiB
    assert not client.flags & protocol.FLAG_READ_ONLY
    assert client.flags & protocol.FLAG_SEND_FUA
    assert client.block_sizes == (4096, 4096, 32 * MiB)


def test_announces_large_sectors_to_clients_that_do_not_ask(client: NbdClient) -> None:
    client.info("system", kinds=())
    assert client.block_sizes is None
    client.info("däta", kinds=())
    assert client.block_sizes == (4096, 4096, 32 * MiB)


def test_tells_the_name_when_asked(client: NbdClient) -> None:
    name = "däta".encode()
    data = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, protocol.INFO_NAME)
    replies = client.option(protocol.OPT_INFO, data)
    assert struct.pack(">H", protocol.INFO_NAME) + name in [reply.data for reply in replies]


def test_goes_to_an_export_and_serves_it(client: NbdClient) -> None:
    client.go("system")
    assert client.read(0, 512) == bytes(512)
    client.disconnect()


def test_an_unknown_name_is_an_error_reply_and_negotiation_goes_on(client: NbdClient) -> None:
    for name in ("none", "", "system/"):
        with pytest.raises(NbdError) as caught:
            client.info(name, go=True)
        assert caught.value.number == protocol.REP_ERR_UNKNOWN
    client.go("system")
    assert client.read(0, 512) == bytes(512)


def test_the_empty_name_means_the_only_export(old_client: NbdClient) -> None:
    old_client.send_option(protocol.OPT_EXPORT_NAME, b"")
    size, flags = protocol.EXPORT_REPLY.unpack(old_client.receive(protocol.EXPORT_REPLY.size))
    assert size == 8 * MiB
    assert flags & protocol.FLAG_HAS_FLAGS
    assert old_client.receive(124) == bytes(124)
    assert old_client.read(512, 1024) == bytes(1024)


def test_an_old_client_has_only_the_export_name(old_client: NbdClient) -> None:
    old_client.send_option(protocol.OPT_LIST)
    assert is_closed(old_client)


def test_export_name_without_zeroes(client: NbdClient) -> None:
    client.send_option(protocol.OPT_EXPORT_NAME, b"system")
    client.receive(protocol.EXPORT_REPLY.size)
    assert client.read(0, 512) == bytes(512)


def test_export_name_of_an_unknown_export_ends_the_connection(client: NbdClient) -> None:
    client.send_option(protocol.OPT_EXPORT_NAME, b"none")
    assert is_closed(client)


def test_abort_is_acknowledged_and_ends_the_connection(client: NbdClient) -> None:
    assert client.option(protocol.OPT_ABORT)[-1].kind == protocol.REP_ACK
    assert is_closed(client)


@pytest.mark.parametrize("option", [4, 5, 11, 1000, 0, 0xFFFFFFFF])
def test_options_not_served_are_refused_politely(client: NbdClient, option: int) -> None:
    (refusal,) = client.option(option, b"whatever")
    assert refusal.kind == protocol.REP_ERR_UNSUPPORTED
    client.go("system")


def test_meta_contexts_need_structured_replies_first(client: NbdClient) -> None:
    (refusal,) = client.set_allocation("system")
    assert refusal.kind == protocol.REP_ERR_INVALID


def _queries(name: str, *queries: bytes) -> bytes:
    raw = name.encode()
    data = struct.pack(">I", len(raw)) + raw + struct.pack(">I", len(queries))
    return data + b"".join(struct.pack(">I", len(query)) + query for query in queries)


@pytest.mark.parametrize("queries", [(), (b"base:",), (b"base:allocation",), (b"x:", b"base:")])
def test_lists_the_allocation_context(client: NbdClient, queries: tuple[bytes, ...]) -> None:
    client.ask_structured()
    replies = client.option(protocol.OPT_LIST_META_CONTEXT, _queries("system", *queries))
    assert [reply.data[4:] for reply in replies[:-1]] == [b"base:allocation"]


@pytest.mark.parametrize("queries", [(), (b"base:",), (b"qemu:dirty-bitmap:x",)])
def test_sets_nothing_when_allocation_is_not_named(
    client: NbdClient, queries: tuple[bytes, ...]
) -> None:
    client.ask_structured()
    assert client.set_allocation("system")[-1].kind == protocol.REP_ACK
    (ack,) = client.option(protocol.OPT_SET_META_CONTEXT, _queries("system", *queries))
    assert ack.kind == protocol.REP_ACK
    client.info("system", go=True)
    with pytest.raises(NbdError) as caught:
        client.block_status(0, 512)
    assert caught.value.number == protocol.EINVAL


def test_a_context_chosen_for_another_export_does_not_count(client: NbdClient) -> None:
    client.ask_structured()
    client.set_allocation("däta")
    client.info("system", go=True)
    with pytest.raises(NbdError):
        client.block_status(0, 512)


@pytest.mark.parametrize(
    ("option", "data"),
    [
        (protocol.OPT_GO, b""),
        (protocol.OPT_GO, struct.pack(">I", 6) + b"system"),
        (protocol.OPT_GO, struct.pack(">I", 6) + b"system" + struct.pack(">H", 1)),
        (protocol.OPT_GO, struct.pack(">I", 6) + b"system" + struct.pack(">HH", 0, 0)),
        (protocol.OPT_INFO, struct.pack(">I", 0xFFFFFFFF) + b"system"),
        (protocol.OPT_INFO, struct.pack(">I", 2) + b"\xff\xfe" + struct.pack(">H", 0)),
        (protocol.OPT_INFO, struct.pack(">I", 5000) + b"n" * 5000 + struct.pack(">H", 0)),
        (protocol.OPT_LIST_META_CONTEXT, _queries("system") + b"x"),
        (protocol.OPT_LIST_META_CONTEXT, _queries("system")[:-1]),
        (protocol.OPT_SET_META_CONTEXT, _queries("system", b"base:allocation")[:-3]),
        (protocol.OPT_STRUCTURED_REPLY, b"x"),
    ],
)
def test_malformed_options_are_refused_and_negotiation_goes_on(
    client: NbdClient, option: int, data: bytes
) -> None:
    client.ask_structured()
    (refusal,) = client.option(option, data)
    assert refusal.kind == protocol.REP_ERR_INVALID
    client.info("system", go=True)
    assert client.read(0, 512) == bytes(512)


def test_a_wrong_magic_ends_the_connection(client: NbdClient) -> None:
    client.socket.sendall(bytes(16))
    assert is_closed(client)


def test_an_endless_option_ends_the_connection(client: NbdClient) -> None:
    client.socket.sendall(protocol.OPTION.pack(protocol.OPTION_MAGIC, protocol.OPT_LIST, 1 << 31))
    assert is_closed(client)


def test_endless_options_end_the_connection(client: NbdClient) -> None:
    for _ in range(protocol.OPTIONS_MAX):
        client.option(protocol.OPT_LIST)
    assert is_closed(client)


def test_unknown_client_flags_end_the_connection() -> None:
    for client in connect(EXPORTS, client_flags=0x80000003):
        assert is_closed(client)


def test_a_client_that_leaves_at_once_is_no_error() -> None:
    for client in connect(EXPORTS):
        client.close()
