"""Links without TLS on one machine: both sides must know the secret, and nothing is far away."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from standby.errors import (
    CertificateError,
    ConfigurationError,
    LinkError,
    ProtocolError,
    RefusedByPeer,
    StandbyError,
    VersionMismatch,
)
from standby.road.service_config import load_service_config
from standby.server.config import load_config
from standby.wire import frames, messages, plain
from standby.wire.accepting import Door, parsed_address
from standby.wire.identity import Peer
from standby.wire.link import Link
from standby.wire.messages import Call, Challenge, Hello, Proof, Refused, Reply, Welcome
from wires import QUICK, wait_until


class Answering:
    """A plain listener that answers calls, and remembers whom it met and refused."""

    def __init__(self, folder: Path, door: Door | None = None) -> None:
        self.secret = plain.Secret(folder)
        self.secret.make()
        self.peers: list[Peer] = []
        self.refused: list[StandbyError] = []
        self.listener = plain.PlainListener(
            "127.0.0.1:0",
            self.secret,
            "px1",
            ("source", "target"),
            self._serve,
            on_refusal=lambda address, error: self.refused.append(error),
            door=door or Door(),
        )
        self.address = self.listener.address

    def _serve(self, link: Link, peer: Peer) -> None:
        self.peers.append(peer)
        with link, contextlib.suppress(LinkError):
            while True:
                message, payload = link.receive()
                assert isinstance(message, Call)
                link.send(Reply(message.id, bytes(payload)))

    def connect(self, secret: plain.Secret, name: str = "px1", role: str = "target") -> Link:
        return plain.connect(self.address, secret, "backup", "server", name, role, 10)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Answering]:
    made = Answering(tmp_path / "identity")
    with made.listener:
        yield made


def raw(address: str) -> Link:
    return Link(socket.create_connection(parsed_address(address), 10), "px1")


# --- who gets in -----------------------------------------------------------------------------


def test_both_sides_that_know_the_secret_get_a_link(there: Answering) -> None:
    with there.connect(there.secret) as link:
        link.send(Call(1, "echo", {}), b"abc" * 1000)
        assert link.receive()[0] == Reply(1, b"abc" * 1000)
        assert link.remote == Peer("px1", ("source", "target"), "", "", "target")
        assert there.peers == [Peer("backup", ("server",), "", "", "server")]


def test_another_secret_is_refused(there: Answering, tmp_path: Path) -> None:
    other = plain.Secret(tmp_path / "other")
    other.make()
    with pytest.raises(RefusedByPeer, match=r"does not know the secret in plain\.key"):
        there.connect(other)
    assert there.peers == []
    wait_until(lambda: len(there.refused) == 1)


def test_who_listens_in_a_movers_place_gets_no_link(there: Answering, tmp_path: Path) -> None:
    impostor = Answering(tmp_path / "impostor")
    key = tmp_path / "impostor" / plain.KEY_FILE
    with impostor.listener:
        with pytest.raises(RefusedByPeer):
            plain.connect(impostor.address, there.secret, "backup", "server", "px1", "target", 10)
        # Even one that believes everybody cannot prove itself.
        server = socket.create_server(("127.0.0.1", 0))
        with server, contextlib.ExitStack() as stack:

            def serve() -> None:
                link = stack.enter_context(Link(server.accept()[0], "victim"))
                link.receive()
                link.send(Challenge("px1", ["target"], b"n" * 32))
                link.receive()
                link.send(Proof("px1", b"n" * 32, b"p" * 32))
                link.send(Welcome(frames.VERSION, "x"))

            thread = threading.Thread(target=serve)
            thread.start()
            address = "{}:{}".format(*server.getsockname())
            with pytest.raises(RefusedByPeer, match="does not know the secret of"):
                plain.connect(address, there.secret, "backup", "server", "px1", "target", 10)
            thread.join()
    assert key.is_file()


def test_a_proof_is_good_for_one_connection(there: Answering) -> None:
    """A process in between passes on what both sides say: the addresses in the proof differ."""

    with socket.create_server(("127.0.0.1", 0)) as server:

        def relay() -> None:
            with Link(server.accept()[0], "victim") as victim, raw(there.address) as real:
                real.send(victim.receive()[0])
                victim.send(real.receive()[0])
                real.send(victim.receive()[0])
                victim.send(real.receive()[0])

        thread = threading.Thread(target=relay)
        thread.start()
        address = "{}:{}".format(*server.getsockname())
        with pytest.raises(RefusedByPeer, match="does not know"):
            plain.connect(address, there.secret, "backup", "server", "px1", "target", 10)
        thread.join()
    assert there.peers == []


def test_another_name_or_role_than_expected_is_no_peer(there: Answering) -> None:
    with pytest.raises(RefusedByPeer, match="it is 'px1' with roles source, target; 'px2'"):
        there.connect(there.secret, name="px2")
    with pytest.raises(RefusedByPeer, match="as repository was expected"):
        there.connect(there.secret, role="repository")
    assert there.peers == []


@pytest.mark.parametrize(
    "first",
    [Call(1, "ping", {}), Welcome(1, "x"), Proof("backup", b"n", b"p"), Refused({})],
    ids=lambda message: type(message).__name__,
)
def test_what_is_not_a_hello_is_refused(there: Answering, first: messages.Message) -> None:
    with raw(there.address) as link, contextlib.suppress(LinkError):
        link.send(first)
        assert isinstance(link.receive()[0], Refused)
    wait_until(lambda: len(there.refused) == 1)
    assert there.peers == []


def test_another_protocol_version_is_told(there: Answering) -> None:
    with raw(there.address) as link:
        link.send(Hello(2, "server", "99"))
        answer, _ = link.receive()
    assert isinstance(answer, Refused)
    wait_until(lambda: any(isinstance(error, VersionMismatch) for error in there.refused))


def test_a_listener_with_tls_is_no_plain_peer(there: Answering) -> None:
    with socket.create_connection(parsed_address(there.address)) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512))
        wait_until(lambda: len(there.refused) == 1)
    assert isinstance(there.refused[0], ProtocolError)


def test_who_says_nothing_is_gone_after_a_moment(tmp_path: Path) -> None:
    there = Answering(tmp_path / "identity", QUICK)
    with there.listener, raw(there.address):
        wait_until(lambda: len(there.refused) == 1)


# --- the secret ------------------------------------------------------------------------------


def test_a_new_secret_takes_effect_at_the_next_connection(there: Answering, tmp_path: Path) -> None:
    key = tmp_path / "identity" / plain.KEY_FILE
    key.unlink()
    with pytest.raises(CertificateError, match="cannot be read"):
        there.connect(there.secret)
    there.secret.make()
    there.connect(there.secret).close()


@pytest.mark.skipif(sys.platform == "win32", reason="access lists instead of modes")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o660])
def test_a_secret_that_others_can_read_is_refused(
    there: Answering, tmp_path: Path, mode: int
) -> None:
    key = tmp_path / "identity" / plain.KEY_FILE
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(mode)
    with pytest.raises(CertificateError, match="can be read or changed by others"):
        there.connect(there.secret)
    with raw(there.address) as link, contextlib.suppress(LinkError):
        link.send(Hello(1, "server", "x"))
        assert isinstance(link.receive()[0], Refused)


@pytest.mark.parametrize("text", ["", "zz" * 32, "ab" * 31, "ab" * 33])
def test_a_file_that_holds_no_secret_is_refused(
    there: Answering, tmp_path: Path, text: str
) -> None:
    (tmp_path / "identity" / plain.KEY_FILE).write_text(text)
    with pytest.raises(CertificateError, match="32 bytes in hex"):
        there.connect(there.secret)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_secret_behind_a_link_is_refused(there: Answering, tmp_path: Path) -> None:
    key = tmp_path / "identity" / plain.KEY_FILE
    key.rename(tmp_path / "elsewhere")
    key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CertificateError, match="not a regular file"):
        there.connect(there.secret)


# --- where -----------------------------------------------------------------------------------

FAR = ["0.0.0.0:9440", "[::]:9440", "10.0.0.1:9440", "localhost:9440", ":9440", "px1.example:9440"]


@pytest.mark.parametrize("address", FAR)
def test_nothing_but_a_loopback_address_will_do(
    there: Answering, tmp_path: Path, address: str
) -> None:
    with pytest.raises(ConfigurationError, match="not of the loopback device"):
        plain.connect(address, there.secret, "backup", "server", "px1", "target", 10)
    with pytest.raises(ConfigurationError, match="not of the loopback device"):
        plain.PlainListener(address, there.secret, "px1", (), lambda link, peer: None)
    (tmp_path / "vms").mkdir()
    (tmp_path / "mover.toml").write_text(
        f'name = "px1"\nlisten = "{address}"\nstate = "state"\nplain = true\n[roots]\nvms = "vms"\n'
    )
    with pytest.raises(ConfigurationError, match=r"listen.*not of the loopback device"):
        load_service_config(tmp_path)
    (tmp_path / "standby.toml").write_text(
        f'[standby]\ninstallation = "x"\n[movers.px1]\naddress = "{address}"\nplain = true\n'
    )
    with pytest.raises(ConfigurationError, match=r"movers\.px1.*not of the loopback device"):
        load_config(tmp_path)


def test_a_plain_mover_listens_on_loopback_unless_told(tmp_path: Path) -> None:
    (tmp_path / "vms").mkdir()
    (tmp_path / "mover.toml").write_text(
        'name = "px1"\nstate = "state"\nplain = true\n[roots]\nvms = "vms"\n'
    )
    found = load_service_config(tmp_path)
    assert (found.listen, found.plain) == ("127.0.0.1:9440", True)


def test_all_movers_are_plain_or_none(tmp_path: Path) -> None:
    (tmp_path / "standby.toml").write_text(
        '[standby]\ninstallation = "x"\n'
        '[movers.a]\naddress = "127.0.0.1:1"\nplain = true\n'
        '[movers.b]\naddress = "127.0.0.1:2"\n'
    )
    with pytest.raises(ConfigurationError, match="all are plain, or none"):
        load_config(tmp_path)
