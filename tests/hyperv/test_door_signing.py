"""Signing in at a host over the real protocols; what a stranger on the line, or a log, sees."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperv.certificates import Authority
from hyperv.test_door import CHANGE, LOOK, REQUEST, Unhurried, played, steps
from hyperv.wsman import Quotas, Signing, WsmanServer
from judging import require_module
from standby.errors import (
    ConfigurationError,
    HostCallFailed,
    HostCredentialsRefused,
    HostShellLost,
    HostUnreachable,
)
from standby.host.hyperv import transports
from standby.host.hyperv.credentials import Access
from standby.host.hyperv.door import Door

USER = "EXAMPLE\\backup"
PASSWORD = "correct horse 7 battery"
NTLM = Signing(("NTLM",), allows_plain=False)


@pytest.fixture(autouse=True)
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom the service knows."""
    file = tmp_path / "users"
    file.write_text(f"EXAMPLE:backup:{PASSWORD}\n")
    monkeypatch.setenv("NTLM_USER_FILE", str(file))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All that is logged at all."""
    with caplog.at_level(logging.DEBUG):
        yield caplog


def access_of(server: WsmanServer, transport: str = "ntlm", ca: Path | None = None) -> Access:
    return Access(
        "hv1", "127.0.0.1", server.port, transport, ca is not None, USER, "env:HV", ca  # type: ignore[arg-type]
    )  # fmt: skip


def door_of(access: Access, password: str = PASSWORD) -> Door:
    return Door(access, lambda reference, where: password, Unhurried(), cleanup_s=2)


def served(signing: Signing, **options: Any) -> WsmanServer:
    return WsmanServer(played(steps), {}, signing=signing, **options)


def forms(secret: str) -> list[bytes]:
    """How a secret may be written."""
    plain, wide = secret.encode(), secret.encode("utf-16-le")
    return [
        plain, wide, plain.hex().encode(), wide.hex().encode(),
        base64.b64encode(plain), base64.b64encode(wide), repr(plain)[2:-1].encode(),
    ]  # fmt: skip


def assert_hidden(server: WsmanServer, logged: pytest.LogCaptureFixture, *shown: object) -> None:
    """The password stands nowhere: not on the line, nor in a log, an error or a repr."""
    lines = [str(record.getMessage()) + str(record.exc_info) for record in logged.records]
    written = b"\n".join(
        [
            *server.bodies,
            repr(server.headers).encode(),
            *(line.encode() for line in lines),
            *(f"{one} {one!r}".encode() for one in shown),
        ]
    )
    assert len(written) > 1000
    for form in forms(PASSWORD):
        assert form not in written


def test_ntlm_over_http_encrypts_every_message(logged: pytest.LogCaptureFixture) -> None:
    with served(NTLM, quotas=Quotas(max_envelope_size_kb=150)) as server:
        access = access_of(server)
        with door_of(access) as door:
            machines = [{"id": f"{number:064}"} for number in range(3000)]
            assert len(door.run(LOOK, {"machines": machines}).steps) == 3000
            assert door.run(LOOK, REQUEST).value("1").name == "vm 1 ä"
        assert server.shells.open == 0
        assert set(server.signed) == {USER}
        assert server.refusals == 2  # who are you; the challenge
        assert not [body for body in server.bodies if b"schemas.xmlsoap.org" in body]
        assert max(map(len, server.bodies)) <= 150 * 1024
        assert_hidden(server, logged, access, door)


def test_ntlm_over_https_is_bound_to_the_certificate(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    tls = authority.issue("hv1")
    with served(Signing(("NTLM",)), tls=tls) as server:
        access = access_of(server, ca=authority.file)
        with door_of(access) as door:
            assert door.run(LOOK, REQUEST).value("1").size == 1 << 40
        assert set(server.signed) == {USER}
        assert_hidden(server, logged, access, door)


def test_a_sign_in_that_was_carried_to_another_host_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = authority.issue("hv1")
    between = authority.issue("relay")
    carried = type(tls)(between.certificate, between.key, None, tls.binding)
    with served(Signing(("NTLM",)), tls=carried) as server:
        with door_of(access_of(server, ca=authority.file)) as door:
            with pytest.raises(HostCredentialsRefused, match="over ntlm"):
                door.run(LOOK, REQUEST)


def test_credssp_signs_in_over_https(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    require_module("requests_credssp")
    authority = Authority(tmp_path)
    with served(Signing(("CredSSP",)), tls=authority.issue("hv1")) as server:
        access = access_of(server, "credssp", authority.file)
        with door_of(access) as door:
            assert door.run(LOOK, REQUEST).value("1").size == 1 << 40
        assert set(server.signed) == {USER}
        assert server.shells.open == 0
        with door_of(access, "wrong") as door, pytest.raises(HostCredentialsRefused) as refused:
            door.run(LOOK, REQUEST)
        assert_hidden(server, logged, access, door, refused.value)


def test_credssp_without_its_package_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "requests_credssp", None)
    authority = Authority(tmp_path)
    with served(Signing(("CredSSP",))) as server:
        with door_of(access_of(server, "credssp", authority.file)) as door:
            with pytest.raises(ConfigurationError, match=r"pip install 'standby\[credssp\]'"):
                door.run(LOOK, REQUEST)


@pytest.mark.parametrize("password", ["wrong", PASSWORD.upper()])
def test_a_wrong_password_is_tried_once(password: str, logged: pytest.LogCaptureFixture) -> None:
    with served(NTLM) as server, door_of(access_of(server), password) as door:
        with pytest.raises(HostCredentialsRefused, match="over ntlm") as refused:
            door.run(LOOK, REQUEST)
        assert server.refusals == 3
        assert not server.signed
        assert_hidden(server, logged, refused.value, refused.getrepr())


def test_a_host_that_does_not_offer_the_transport_is_said_to_refuse_it() -> None:
    with served(Signing(("Basic",))) as server, door_of(access_of(server)) as door:
        with pytest.raises(HostCredentialsRefused, match="winrm/config/service/auth"):
            door.run(LOOK, REQUEST)
        assert [header.get("Authorization") for header in server.headers] == [None]


@pytest.mark.parametrize(
    ("kind", "error"), [("drop", HostShellLost), ("unavailable", HostUnreachable)]
)
def test_after_a_failed_set_up_of_encryption_nothing_goes_in_the_clear(
    kind: str, error: type[HostCallFailed]
) -> None:
    with served(Signing(("NTLM",))) as server, door_of(access_of(server)) as door:
        server.faults.arm("Setup", kind, 3)
        with pytest.raises(error):
            door.run(CHANGE, REQUEST)
        assert server.faults.left == 0
        assert door.run(CHANGE, REQUEST).value("1").size == 1 << 40
        assert not [body for body in server.bodies if b"schemas.xmlsoap.org" in body]


@pytest.mark.parametrize("times", [1, 2])
def test_a_connection_that_ended_between_calls_is_signed_in_again(times: int) -> None:
    with served(NTLM) as server:
        with door_of(access_of(server)) as door:
            door.run(CHANGE, REQUEST)
            for _ in range(times):
                server.drop_connections()
                assert door.run(CHANGE, REQUEST).value("1").size == 1 << 40
        assert server.shells.opened == 1
        assert server.shells.scripts == times + 1
        assert server.shells.open == 0


@pytest.mark.parametrize("action", ["Create", "Command", "Send", "Receive", "Signal", "Delete"])
def test_a_sign_in_that_is_lost_before_a_message_is_made_again(action: str) -> None:
    with served(NTLM) as server:
        with door_of(access_of(server)) as door:
            server.faults.arm(action, "unauthorized")
            assert door.run(CHANGE, REQUEST).value("1").size == 1 << 40
        assert server.faults.left == 0
        assert server.shells.scripts == 1
        assert server.shells.open == 0


def test_a_password_that_was_changed_is_refused_in_the_midst(tmp_path: Path) -> None:
    with served(NTLM) as server, door_of(access_of(server)) as door:
        door.run(LOOK, REQUEST)
        (tmp_path / "users").write_text("EXAMPLE:backup:another\n")
        server.drop_connections()
        for times in (2, 3):  # each is three 401: who are you, the challenge, no
            with pytest.raises(HostCredentialsRefused):
                door.run(LOOK, REQUEST)
            assert server.refusals == 2 + 3 * times
        (tmp_path / "users").write_text(f"EXAMPLE:backup:{PASSWORD}\n")
        assert door.run(LOOK, REQUEST).value("1").size == 1 << 40
        assert door.leftovers == 0
        assert server.shells.open == 1  # the one that is kept


def test_a_password_that_is_changed_on_both_sides_needs_no_restart(tmp_path: Path) -> None:
    said = [PASSWORD]
    with served(NTLM) as server:
        access = access_of(server)
        with Door(access, lambda reference, where: said[0], Unhurried()) as door:
            door.run(LOOK, REQUEST)
            (tmp_path / "users").write_text("EXAMPLE:backup:another\n")
            said[0] = "another"
            server.drop_connections()
            assert door.run(LOOK, REQUEST).value("1").size == 1 << 40
        assert server.shells.open == 0


@pytest.mark.parametrize("kind", ["redirected", "compressed", "endless"])
def test_what_no_host_answers_is_not_followed_unpacked_or_read_to_its_end(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "ENVELOPE_MAX", 1 << 20)
    with served(Signing(("NTLM",))) as server, door_of(access_of(server)) as door:
        server.faults.arm("Create", kind, 3)
        with pytest.raises(HostUnreachable, match="no WinRM service"):
            door.run(LOOK, REQUEST)
        assert server.shells.open == 0
