"""Anything a peer may send: a typed error or a closed connection, never more, never a crash.

Streams are damaged in a seeded way and sent to a real listener, inside and beneath TLS, by members
of the installation and by strangers. After each the listener serves an honest peer as before.
"""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from standby.errors import LinkError, StandbyError
from standby.wire import enrolment, frames, messages, tls
from standby.wire.accepting import Door, parsed_address
from standby.wire.identity import IdentityFolder, tls_context
from standby.wire.link import Limits, Link
from standby.wire.messages import Attach, Batch, Call, Enrol, Finish, GetAuthority, Hello, Welcome
from wires import Echo, Installation, answers, wait_until

SEED = 20260301
DOOR = Door(half_open_s=0.5)


class Place:
    """A mover that echoes and an enrolment service, with whoever they refused."""

    def __init__(self, folder: Path) -> None:
        self.site = Installation(folder)
        self.server = self.site.identity("backup", "server")
        self.mover = self.site.identity("px1", "source")
        self.echo = Echo(self.mover, door=DOOR)
        self.refused: list[StandbyError] = []
        self.enrolment = enrolment.EnrolmentServer(
            "127.0.0.1:0",
            self.site.authority,
            self.server,
            on_refusal=lambda address, error: self.refused.append(error),
            door=DOOR,
        )

    def is_well(self) -> bool:
        """Whether an honest peer is served."""
        with tls.connect(self.echo.address, self.server, "px1", "source") as link:
            return answers(link, b"still here")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    crashed: list[str] = []
    before = threading.excepthook
    threading.excepthook = lambda args: crashed.append(f"{args.thread}: {args.exc_value!r}")
    made = Place(tmp_path_factory.mktemp("fuzz"))
    try:
        yield made
    finally:
        made.echo.close()
        made.enrolment.close()
        threading.excepthook = before
    assert not crashed


def frame(message: messages.Message, payload: bytes = b"", version: int = 1) -> bytes:
    body = messages.encoded(message)
    return frames.HEADER.pack(b"STBY", version, 0, len(body), len(payload)) + body + payload


HONEST = (
    frame(Hello(1, "server", "0.1"))
    + frame(Call(1, "echo", {"a": [1, 2.5, None, b"x"]}), b"payload" * 40)
    + frame(Call(2, "echo", {}))
)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` with some of what goes wrong: bits, bytes, cuts, repetitions, swaps, large numbers."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(result)) if result else 0
        kind = chance.randrange(7)
        if kind == 0 and result:
            result[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and result:
            result[place] = chance.choice((0, 1, 0x7F, 0x80, 0xC1, 0xDD, 0xFF))
        elif kind == 2:
            del result[place:]
        elif kind == 3:
            result[place:place] = result[: chance.randrange(1, 80)]
        elif kind == 4:
            del result[place : place + chance.randrange(1, 40)]
        elif kind == 5:
            result[place:place] = chance.randbytes(chance.randrange(1, 60))
        elif len(result) > place + 8:
            result[place : place + 8] = struct.pack(
                "<Q", chance.choice((1 << 20, 1 << 63, 1 << 33))
            )
    return bytes(result)


def sent_and_drained(connection: socket.socket, data: bytes) -> bytes:
    """Send, end our direction, and read what is answered until the other side ends."""
    answered = b""
    with contextlib.suppress(OSError):
        connection.settimeout(20)
        connection.sendall(data)
        socket.socket.shutdown(connection, socket.SHUT_WR)
        while chunk := connection.recv(1 << 16):
            answered += chunk
    return answered


@contextlib.contextmanager
def stranger(address: str, identity: IdentityFolder | None) -> Iterator[ssl.SSLSocket]:
    """A TLS connection, as a member or as nobody."""
    context = tls_context(is_server=False)
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        context.load_cert_chain(identity.folder / "certificate.pem", identity.folder / "key.pem")
    with socket.create_connection(parsed_address(address), 20) as connection:
        with context.wrap_socket(connection) as made:
            yield made


def test_damaged_streams_of_a_member_end_in_typed_errors(place: Place) -> None:
    chance = random.Random(SEED)
    for _ in range(120):
        with stranger(place.echo.address, place.server) as connection:
            sent_and_drained(connection, damaged(HONEST, chance))
    assert place.is_well()
    assert all(isinstance(error, LinkError) for error in place.echo.refused)
    assert {type(error).__name__ for error in place.echo.refused} >= {"ProtocolError", "LinkError"}


def test_damaged_bytes_beneath_tls_end_in_typed_errors(place: Place) -> None:
    chance = random.Random(SEED + 1)
    count = len(place.echo.refused)
    hello = _client_hello(place)
    for number in range(60):
        data = damaged(hello, chance) if number % 2 else chance.randbytes(chance.randrange(1, 600))
        with socket.create_connection(parsed_address(place.echo.address), 20) as connection:
            sent_and_drained(connection, data)
    assert place.is_well()
    assert all(isinstance(error, LinkError) for error in place.echo.refused[count:])


def _client_hello(place: Place) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = place.server.context(is_server=False).wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_damaged_records_of_a_running_link_end_it(place: Place) -> None:
    chance = random.Random(SEED + 2)
    for _ in range(30):
        link = tls.connect(place.echo.address, place.server, "px1", "source")
        with link:
            assert answers(link)
            kind = bytes([chance.choice((20, 21, 22, 23, 24, 0, 255))])
            body = chance.randbytes(chance.randrange(0, 200))
            header = kind + b"\x03\x03" + struct.pack(">H", chance.choice((len(body), 0, 0xFFFF)))
            with contextlib.suppress(OSError):
                socket.socket.send(link.connection, header + body)
                socket.socket.shutdown(link.connection, socket.SHUT_WR)
            assert not answers(link)
    assert place.is_well()


@pytest.mark.parametrize(
    "data",
    [
        frame(Hello(1, "server", "x")) * 2,
        frame(Welcome(1, "x")),
        frame(GetAuthority()),
        frame(Hello(1, "server", "x")) + frame(Attach("t")),
        frame(Hello(1, "server", "x")) + frame(Batch(1, 1, 4096), b"x"),
        frame(Hello(1, "server", "x")) + frame(Finish()) * 100,
        frame(Hello(1, "root", "x")),
        frame(Hello(2, "server", "x")),
        frame(Hello(1, "server", "x"), b"payload"),
        frame(Hello(1, "server", "x" * 70_000)),
        b"",
    ],
    ids=lambda data: str(data[20:50]),
)
def test_frames_out_of_order_end_the_connection(place: Place, data: bytes) -> None:
    # The echo's own assertion about Call is the "business" behind the listener here: what reaches
    # it is a message, whole and typed.
    hook, threading.excepthook = threading.excepthook, lambda args: None
    try:
        with stranger(place.echo.address, place.server) as connection:
            sent_and_drained(connection, data)
        assert place.is_well()
    finally:
        threading.excepthook = hook


def test_a_recorded_connection_cannot_be_replayed(place: Place) -> None:
    """What a member sent once, sent again byte for byte by somebody who listened."""
    recorded = bytearray()
    peers, refused = len(place.echo.peers), len(place.echo.refused)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = place.server.context(is_server=False).wrap_bio(incoming, outgoing)
    with socket.create_connection(parsed_address(place.echo.address), 20) as connection:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                recorded += (data := outgoing.read())
                connection.sendall(data)
                incoming.write(connection.recv(1 << 16))
        client.write(frame(Hello(1, "server", "x")))
        client.write(frame(Call(7, "echo", {})))
        recorded += (data := outgoing.read())
        connection.sendall(data)
        wait_until(lambda: len(place.echo.peers) == peers + 1)
    place.echo.wait_for_refusal(refused + 1)  # the end of the honest one
    with socket.create_connection(parsed_address(place.echo.address), 20) as connection:
        sent_and_drained(connection, bytes(recorded))
    place.echo.wait_for_refusal(refused + 2)
    assert len(place.echo.peers) == peers + 1
    assert place.is_well()


def test_damaged_enrolments_of_strangers_end_in_typed_errors(place: Place) -> None:
    chance = random.Random(SEED + 3)
    request = IdentityFolder(place.site.folder / "stranger").request()
    honest = [frame(GetAuthority()), frame(Enrol(b"s" * 20, request)), frame(Call(1, "ping", {}))]
    for number in range(60):
        data = honest[number % 3]
        with stranger(place.enrolment.address, None) as connection:
            sent_and_drained(connection, damaged(data, chance) if number >= 3 else data)
    assert {item.name for item in place.site.authority.issued()} == {"backup", "px1"}
    for _ in range(3):
        with stranger(place.enrolment.address, None) as connection:
            connection.sendall(frame(GetAuthority()))
            assert place.site.authority.certificate in connection.recv(1 << 16)


def test_many_strangers_at_once_take_bounded_room(place: Place) -> None:
    before = threading.active_count()
    address = parsed_address(place.echo.address)
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(address, 20))
        assert place.echo.listener.half_open <= DOOR.half_open_per_address_max
        assert threading.active_count() - before <= DOOR.half_open_per_address_max
    assert_served(place)


def assert_served(place: Place) -> None:
    """The places of strangers are free again, at their deadline at the latest."""
    wait_until(lambda: place.echo.listener.half_open == 0)
    assert place.is_well()


# --- without a listener: many more ------------------------------------------------------------


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_damage_to_frames_is_a_typed_error(data: st.DataObject) -> None:
    chance = random.Random(data.draw(st.integers(0, 1 << 32)))
    near, far = socket.socketpair()
    link = Link(near, "fuzz", Limits(stall_s=20, message_max=1 << 16, payload_max=1 << 16))
    far.sendall(damaged(HONEST, chance))
    far.close()
    received = 0
    try:
        while True:
            message, payload = link.receive()
            assert isinstance(message, messages.Message)
            assert len(payload) <= 1 << 16
            received += 1
    except LinkError:
        assert received <= 6
    link.close()
