"""Links between machines: who gets one, who is refused and how, what revocation ends."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from standby.errors import (
    CertificateError,
    CertificateRefused,
    ConfigurationError,
    LinkError,
    LinkTimeout,
    PeerBusy,
    ProtocolError,
    RefusedByPeer,
    Retry,
    VersionMismatch,
)
from standby.wire import frames, messages, tls
from standby.wire.accepting import Acceptor, Door, Visit, address_text, parsed_address
from standby.wire.identity import IdentityFolder, Peer, tls_context
from standby.wire.link import Link
from standby.wire.messages import Call, Hello, Refused, Welcome
from wires import QUICK, Installation, SetClock, answers, echo, raw_tls, wait_until


@pytest.fixture
def site(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "site")


@pytest.fixture
def server(site: Installation) -> IdentityFolder:
    return site.identity("backup", "server")


@pytest.fixture
def mover(site: Installation) -> IdentityFolder:
    return site.identity("px1", "source", "target")


# --- who gets in -----------------------------------------------------------------------------


def test_both_sides_learn_who_the_other_is(server: IdentityFolder, mover: IdentityFolder) -> None:
    with echo(mover) as there, tls.connect(there.address, server, "px1", "target") as link:
        assert answers(link)
        assert link.remote == Peer(
            "px1", ("source", "target"), "site", mover.facts.serial, "target"
        )
        assert there.peers == [Peer("backup", ("server",), "site", server.facts.serial, "server")]
        assert link.connection.version() == "TLSv1.3"  # type: ignore[attr-defined]


def test_a_role_can_be_chosen_among_ones_own(
    site: Installation, server: IdentityFolder, mover: IdentityFolder
) -> None:
    with echo(mover) as there:
        both = site.identity("px2", "source", "target")
        with tls.connect(there.address, both, "px1", "source", role="target") as link:
            assert answers(link)
            assert there.peers[0].role == "target"
        with pytest.raises(RefusedByPeer, match="speaks as 'server'") as caught:
            tls.connect(there.address, both, "px1", "source", role="server")
        assert caught.value.reason == "CertificateRefused"
        assert isinstance(there.wait_for_refusal(2), CertificateRefused)


def test_a_listener_may_take_some_roles_only(
    site: Installation, server: IdentityFolder, mover: IdentityFolder
) -> None:
    with echo(mover, roles=("server",)) as there:
        with tls.connect(there.address, server, "px1", "source") as link:
            assert answers(link)
        with pytest.raises(RefusedByPeer, match="'wan' has no business here"):
            tls.connect(there.address, site.identity("w1", "wan"), "px1", "source")


@pytest.mark.parametrize(("name", "role", "said"), [
    ("px2", "source", "it is 'px1', expected 'px2'"),
    ("px1", "repository", "its roles are source, target; 'repository'"),
])  # fmt: skip
def test_another_name_or_role_than_expected_is_refused_by_us(
    server: IdentityFolder, mover: IdentityFolder, name: str, role: str, said: str
) -> None:
    with echo(mover) as there:
        with pytest.raises(CertificateRefused, match=said) as caught:
            tls.connect(there.address, server, name, role)
        assert caught.value.retry is Retry.NEVER
        assert isinstance(there.wait_for_refusal(), LinkError)
        assert there.peers == []


def test_a_certificate_of_another_authority_is_refused_on_both_sides(
    tmp_path: Path, mover: IdentityFolder
) -> None:
    foreign = Installation(tmp_path / "foreign", "site").identity("backup", "server")
    with echo(mover) as there:
        with pytest.raises(CertificateRefused, match="not from this installation's authority"):
            tls.connect(there.address, foreign, "px1", "source")
        refusal = there.wait_for_refusal()
        assert isinstance(refusal, RefusedByPeer)  # their client ended it: it refused ours first
        with raw_client(there.address, foreign) as (connection, _):
            assert alert_of(connection) == "TLSV1_ALERT_UNKNOWN_CA"
        refusal = there.wait_for_refusal(2)
        assert isinstance(refusal, CertificateRefused)
        assert "not from this installation's authority" in str(refusal)


@contextlib.contextmanager
def raw_client(
    address: str, identity: IdentityFolder | None
) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLContext]]:
    """A client that looks at nothing, with the identity's certificate or none."""
    context = tls_context(is_server=False)
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        context.load_cert_chain(identity.folder / "certificate.pem", identity.folder / "key.pem")
    with socket.create_connection(parsed_address(address), 10) as connection:
        with context.wrap_socket(connection) as made:
            yield made, context


def alert_of(connection: ssl.SSLSocket) -> str:
    """What the listener's TLS says at its end."""
    with pytest.raises(ssl.SSLError) as caught:
        connection.recv(1)
    return str(caught.value.reason)


def test_a_client_without_a_certificate_is_refused(mover: IdentityFolder) -> None:
    with echo(mover) as there:
        with raw_client(there.address, None) as (connection, _):
            assert alert_of(connection) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        refusal = there.wait_for_refusal()
        assert isinstance(refusal, CertificateRefused)
        assert "showed none" in str(refusal)


def test_older_tls_is_refused(mover: IdentityFolder) -> None:
    with echo(mover) as there:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(parsed_address(there.address), 10) as connection:
            with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
                context.wrap_socket(connection)
        assert isinstance(there.wait_for_refusal(), LinkError)


@pytest.mark.parametrize(("days", "said", "alert"), [
    (-200, "it has expired, by this machine's clock", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
    (200, "not valid yet, by this machine's clock", "SSLV3_ALERT_BAD_CERTIFICATE"),
])  # fmt: skip
def test_certificates_out_of_time_are_refused_and_clocks_named(
    tmp_path: Path, days: int, said: str, alert: str
) -> None:
    clock = SetClock(datetime.now(UTC) - timedelta(days=400))
    site = Installation(tmp_path, clock=clock)
    clock.at = datetime.now(UTC) + timedelta(days=days)
    bad = site.identity("bad", "server", "source")
    clock.at = datetime.now(UTC)
    good = site.identity("px1", "source")
    own = IdentityFolder(bad.folder)
    with pytest.raises(CertificateError, match="clock"):  # ours: we need not ask anybody
        tls.connect("127.0.0.1:1", own, "px1", "source")
    with echo(good) as there:
        with raw_client(there.address, bad) as (connection, _):
            assert alert_of(connection) == alert
        refusal = there.wait_for_refusal()
        assert isinstance(refusal, CertificateRefused)
        assert said in str(refusal)
    with silent_server(bad.context(is_server=True)) as address:
        with pytest.raises(CertificateRefused, match=said):
            tls.connect(address, good, "bad", "source")


@contextlib.contextmanager
def silent_server(context: ssl.SSLContext | None, said: bytes = b"") -> Iterator[str]:
    """A server that shakes hands (with a context), says `said`, and nothing more."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with contextlib.suppress(OSError), connection:
                held = context.wrap_socket(connection, server_side=True) if context else connection
                with held:
                    held.sendall(said)
                    ended.wait(20)

        thread = threading.Thread(target=serve)
        thread.start()
        yield address_text(listening.getsockname())
        ended.set()
        thread.join()


# --- versions --------------------------------------------------------------------------------


def frame(message: messages.Message, version: int = frames.VERSION) -> bytes:
    body = messages.encoded(message)
    return frames.HEADER.pack(b"STBY", version, 0, len(body), 0) + body


def read_frame(connection: ssl.SSLSocket) -> tuple[int, messages.Message]:
    with connection.makefile("rb") as file:
        _, version, _, length, _ = frames.HEADER.unpack(file.read(frames.HEADER.size))
        return version, messages.decoded(memoryview(file.read(length)), messages.decoder(), "test")


@pytest.mark.parametrize("where", ["header", "hello"])
def test_a_peer_of_another_version_gets_both_versions_named(
    server: IdentityFolder, mover: IdentityFolder, where: str
) -> None:
    hello = frame(Hello(7, "server", "9.0"), 7 if where == "header" else frames.VERSION)
    with echo(mover) as there:
        with raw_tls(there.address, server) as connection:
            connection.sendall(hello)
            version, answer = read_frame(connection)
            assert version == frames.VERSION
            assert isinstance(answer, Refused)
            assert answer.error["error"] == "VersionMismatch"
            assert (answer.error["theirs"], answer.error["ours"]) == (7, 1)
            assert connection.recv(1) == b""
        refusal = there.wait_for_refusal()
        assert isinstance(refusal, VersionMismatch)
        assert "version 7, this side version 1" in str(refusal)


def test_a_listener_of_another_version_is_named(site: Installation, server: IdentityFolder) -> None:
    newer = site.identity("px9", "source").context(is_server=True)
    with silent_server(newer, frame(Welcome(3, "9"), 3)) as address:
        with pytest.raises(VersionMismatch) as caught:
            tls.connect(address, server, "px9", "source")
    assert (caught.value.theirs, caught.value.ours) == (3, 1)


def test_a_refusal_of_our_version_names_both(site: Installation, server: IdentityFolder) -> None:
    newer = site.identity("px9", "source").context(is_server=True)
    refused = Refused({"error": "VersionMismatch", "peer": "us", "problem": "x", "theirs": 1,
                       "ours": 4})  # fmt: skip
    with silent_server(newer, frame(refused)) as address:
        with pytest.raises(VersionMismatch) as caught:
            tls.connect(address, server, "px9", "source")
    assert (caught.value.theirs, caught.value.ours) == (4, 1)


@pytest.mark.parametrize("answer", [Call(1, "x", {}), Hello(1, "source", "")])
def test_an_answer_that_is_no_welcome_is_refused(
    site: Installation, server: IdentityFolder, answer: messages.Message
) -> None:
    context = site.identity("px9", "source").context(is_server=True)
    with silent_server(context, frame(answer)) as address:
        with pytest.raises(ProtocolError, match="answered a hello with"):
            tls.connect(address, server, "px9", "source")


def test_a_beginning_without_hello_is_refused(
    server: IdentityFolder, mover: IdentityFolder
) -> None:
    with echo(mover) as there, raw_tls(there.address, server) as connection:
        connection.sendall(frame(Call(1, "ping", {})))
        _, answer = read_frame(connection)
        assert isinstance(answer, Refused)
        assert answer.error["error"] == "ProtocolError"
        assert isinstance(there.wait_for_refusal(), ProtocolError)
        assert there.peers == []


@pytest.mark.parametrize("sizes", [(frames.MESSAGE_MAX, 0), (70_000, 0), (100, 1)])
def test_a_first_frame_is_small(
    server: IdentityFolder, mover: IdentityFolder, sizes: tuple[int, int]
) -> None:
    with echo(mover) as there, raw_tls(there.address, server) as connection:
        connection.sendall(frames.HEADER.pack(b"STBY", 1, 0, *sizes))
        _, answer = read_frame(connection)
        assert isinstance(answer, Refused)
        assert "length" in answer.error["problem"]


# --- deadlines and numbers -------------------------------------------------------------------


@pytest.mark.parametrize("silent_after", ["tcp", "tls", "half a header", "half a hello"])
def test_a_half_open_connection_ends_at_its_deadline(
    server: IdentityFolder, mover: IdentityFolder, silent_after: str
) -> None:
    hello = frame(Hello(1, "server", "x"))
    with echo(mover, door=QUICK) as there:
        if silent_after == "tcp":
            with socket.create_connection(parsed_address(there.address), 10) as plain:
                assert plain.recv(1) == b""
        else:
            with raw_tls(there.address, server) as connection:
                said = {"tls": 0, "half a header": 9, "half a hello": 30}[silent_after]
                connection.sendall(hello[:said])
                assert connection.recv(1) == b""
        assert isinstance(there.wait_for_refusal(), LinkTimeout)
        with tls.connect(there.address, server, "px1", "source") as link:
            assert answers(link)


def test_dripping_bytes_does_not_stretch_the_deadline(
    server: IdentityFolder, mover: IdentityFolder
) -> None:
    hello = frame(Hello(1, "server", "x"))
    with echo(mover, door=QUICK) as there, raw_tls(there.address, server) as connection:
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                for byte in hello:
                    connection.send(bytes([byte]))
                    if stop.wait(0.05):
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        assert isinstance(there.wait_for_refusal(), LinkTimeout)
        stop.set()
        thread.join()


def test_half_open_connections_beyond_the_bound_are_dropped(
    server: IdentityFolder, mover: IdentityFolder
) -> None:
    door = Door(half_open_s=20, half_open_max=8, half_open_per_address_max=3)
    with echo(mover, door=door) as there:
        host, port = parsed_address(there.address)
        with contextlib.ExitStack() as stack:
            held = [
                stack.enter_context(socket.create_connection((host, port), 10)) for _ in range(3)
            ]
            fourth = stack.enter_context(socket.create_connection((host, port), 10))
            assert fourth.recv(1) == b""
            assert (there.listener.half_open, there.listener.dropped) == (3, 1)
            # Another address is served all the while.
            other = stack.enter_context(
                socket.create_connection((host, port), 10, source_address=("127.0.0.2", 0))
            )
            with server.context(is_server=False).wrap_socket(other) as connection:
                connection.sendall(frame(Hello(1, "server", "x")))
                assert isinstance(read_frame(connection)[1], Welcome)
            held[0].close()
            wait_until(lambda: there.listener.half_open == 2)
            with tls.connect(there.address, server, "px1", "source") as link:
                assert answers(link)


def test_links_beyond_the_bound_are_told_to_come_later(
    server: IdentityFolder, mover: IdentityFolder
) -> None:
    with echo(mover, door=Door(links_max=1)) as there:
        with tls.connect(there.address, server, "px1", "source") as link:
            with pytest.raises(PeerBusy) as caught:
                tls.connect(there.address, server, "px1", "source")
            assert caught.value.retry is Retry.LATER
            assert answers(link)


def test_connecting_gives_up_at_its_deadline(site: Installation, server: IdentityFolder) -> None:
    with silent_server(None) as address:
        with pytest.raises(LinkTimeout, match="no TLS handshake within"):
            tls.connect(address, server, "px1", "source", 0.3)
    with silent_server(site.identity("px9", "source").context(is_server=True)) as address:
        with pytest.raises(LinkTimeout, match="no answer to our hello"):
            tls.connect(address, server, "px9", "source", 0.5)


def test_nobody_listening_is_worth_another_try(server: IdentityFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = address_text(listening.getsockname())
    with pytest.raises(LinkError, match="px1 at") as caught:
        tls.connect(address, server, "px1", "source")
    assert caught.value.retry is Retry.RECONNECT


def test_something_else_listening_is_named(server: IdentityFolder) -> None:
    with silent_server(None, b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        with pytest.raises(LinkError, match="TLS handshake failed"):
            tls.connect(address, server, "px1", "source")


@pytest.mark.parametrize("text", ["", "host", "host:", "host:x", "::1:9440", "host:65536"])
def test_an_address_without_a_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        parsed_address(text)


def test_addresses_of_both_kinds_are_read() -> None:
    assert parsed_address("px1.example:9440") == ("px1.example", 9440)
    assert parsed_address("[2001:db8::1]:1") == ("2001:db8::1", 1)
    assert address_text(("::1", 5, 0, 0)) == "[::1]:5"


def test_closing_a_listener_leaves_its_links(server: IdentityFolder, mover: IdentityFolder) -> None:
    with echo(mover, door=Door(half_open_s=20)) as there:
        with tls.connect(there.address, server, "px1", "source") as link:
            with socket.create_connection(parsed_address(there.address), 10) as half_open:
                wait_until(lambda: there.listener.half_open == 1)
                there.listener.close()
                with contextlib.suppress(ConnectionResetError):
                    assert half_open.recv(1) == b""
            assert answers(link)
            with pytest.raises(LinkError):
                tls.connect(there.address, server, "px1", "source")


# --- revocation ------------------------------------------------------------------------------


def test_revocation_ends_running_links_on_both_sides(
    site: Installation, server: IdentityFolder, mover: IdentityFolder
) -> None:
    other = site.identity("px2", "source")
    with echo(mover) as there:
        with (
            tls.connect(there.address, server, "px1", "source") as doomed,
            tls.connect(there.address, other, "px1", "source") as kept,
        ):
            assert answers(doomed)
            assert answers(kept)
            site.authority.revoke("backup")
            assert mover.install_revocations(site.authority.revocations())
            with pytest.raises(LinkError):
                doomed.receive()
            refusal = there.wait_for_refusal()
            assert isinstance(refusal, CertificateRefused)
            assert "revoked" in str(refusal)
            assert answers(kept)
        with pytest.raises(RefusedByPeer, match="revoked"):
            tls.connect(there.address, server, "px1", "source")


def test_a_revoked_listener_is_refused_and_its_links_end(
    site: Installation, server: IdentityFolder, mover: IdentityFolder
) -> None:
    with echo(mover) as there:
        with tls.connect(there.address, server, "px1", "source") as link:
            waiting: list[BaseException] = []

            def wait() -> None:
                try:
                    link.receive()
                except LinkError as exc:
                    waiting.append(exc)

            thread = threading.Thread(target=wait)
            thread.start()
            site.authority.revoke("px1")
            server.install_revocations(site.authority.revocations())
            thread.join(20)
            assert isinstance(waiting[0], CertificateRefused)
            with pytest.raises(CertificateRefused, match="revoked"):
                link.send(Call(1, "x", {}))
        with pytest.raises(CertificateRefused, match="revoked"):
            tls.connect(there.address, server, "px1", "source")


def test_a_list_that_another_process_wrote_is_noticed(
    site: Installation, server: IdentityFolder, mover: IdentityFolder
) -> None:
    with echo(mover) as there, tls.connect(there.address, server, "px1", "source") as link:
        assert answers(link)
        site.authority.revoke("backup")
        (mover.folder / "revoked.json").write_bytes(site.authority.revocations())
        with pytest.raises(RefusedByPeer, match="revoked"):  # every new connection looks
            tls.connect(there.address, server, "px1", "source")
        assert not answers(link)


def test_a_renewed_certificate_is_used_at_once(
    site: Installation, server: IdentityFolder, mover: IdentityFolder
) -> None:
    with echo(mover) as there:
        old = mover.facts.serial
        mover.install_certificate(site.authority.renew(old, mover.request()))
        with tls.connect(there.address, server, "px1", "source") as link:
            assert link.remote is not None
            assert link.remote.serial == mover.facts.serial != old


# --- links as such ---------------------------------------------------------------------------


def test_both_directions_of_one_link_carry_at_once(
    server: IdentityFolder, mover: IdentityFolder
) -> None:
    data = bytes(range(256)) * 4096
    count = 24
    with echo(mover) as there, tls.connect(there.address, server, "px1", "source") as link:

        def send() -> None:
            for number in range(count):
                link.send(Call(number, "echo", {}), data)

        sender = threading.Thread(target=send)
        sender.start()
        for number in range(count):
            message, payload = link.receive()
            assert message.id == number  # type: ignore[attr-defined]
            assert payload == data
        sender.join()


def test_a_reset_connection_is_a_link_error(server: IdentityFolder, mover: IdentityFolder) -> None:
    with echo(mover) as there, tls.connect(there.address, server, "px1", "source") as link:
        assert answers(link)
        far = there.links[0].connection
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        there.links[0].close()
        with pytest.raises(LinkError):
            link.receive()


def test_shutting_a_link_down_sends_nothing_in_the_clear(
    server: IdentityFolder, mover: IdentityFolder
) -> None:
    with echo(mover) as there, tls.connect(there.address, server, "px1", "source") as link:
        assert isinstance(link, Link)
        link.shutdown()
        assert link.connection._sslobj is not None  # type: ignore[attr-defined]
        with pytest.raises(LinkError):
            link.send(Call(1, "secret", {}), b"secret" * 1000)


def test_who_connects_before_a_listener_is_whole_waits_for_it() -> None:
    visits: list[Visit] = []
    is_served = threading.Event()

    def serve(visit: Visit) -> None:
        visits.append(visit)
        visit.connection.close()
        is_served.set()

    acceptor = Acceptor("127.0.0.1:0", serve, Door(), "x")
    with socket.create_connection(parsed_address(acceptor.address), 10) as early:
        assert (acceptor.half_open, visits) == (0, [])
        acceptor.begin()
        assert is_served.wait(10)
        assert early.recv(1) == b""
    acceptor.close()


def test_a_bug_while_a_visitor_is_served_ends_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_told = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda told: is_told.set())

    def serve(visit: Visit) -> None:
        raise ZeroDivisionError

    acceptor = Acceptor("127.0.0.1:0", serve, Door(), "x")
    acceptor.begin()
    with socket.create_connection(parsed_address(acceptor.address), 10) as connection:
        assert connection.recv(1) == b""  # not only after its patience
    assert is_told.wait(10)
    acceptor.close()
