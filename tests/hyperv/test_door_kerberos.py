"""Signing in by Kerberos, against a real MIT KDC and the system's GSSAPI at the host's end."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperv.certificates import Authority
from hyperv.kdc import HOST, REALM, Kdc
from hyperv.test_door import CHANGE, LOOK, REQUEST, Unhurried, played, steps
from hyperv.wsman import Signing, WsmanServer
from judging import require_module, require_tool
from standby.errors import (
    ConfigurationError,
    HostCallFailed,
    HostClockSkewed,
    HostCredentialsRefused,
    HostUnreachable,
)
from standby.host.hyperv import kerberos
from standby.host.hyperv.credentials import Access
from standby.host.hyperv.door import Door

PASSWORD = "correct horse 7 battery"
USER = f"backup@{REALM}"


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kdc]:
    """A realm with its KDC, a host and users."""
    require_module("gssapi")
    folder = tmp_path_factory.mktemp("kdc")
    kdc = Kdc(folder)
    kdc.change(
        f"addprinc -randkey HTTP/{HOST}",
        f"ktadd -k {folder}/host.keytab HTTP/{HOST}",
        f'addprinc -pw "{PASSWORD}" +requires_preauth backup',
        f"ktadd -norandkey -k {folder}/backup.keytab backup",
        f'addprinc -pw "{PASSWORD}" -maxlife "2 seconds" hasty',
        f"ktadd -norandkey -k {folder}/hasty.keytab hasty",
        f'addprinc -pw "{PASSWORD}" -expire "2020-01-01" expired',
        f'addprinc -pw "{PASSWORD}" -pwexpire "2020-01-01" stale',
        f'addprinc -pw "{PASSWORD}" -allow_tix locked',
        f'addprinc -pw "{PASSWORD}" +requires_preauth changed',
        f"ktadd -norandkey -k {folder}/changed.keytab changed",
        "cpw -pw another changed",
    )
    with kdc.running():
        yield kdc


@pytest.fixture(autouse=True)
def known(realm: Kdc, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process lives in the realm, and finds its hosts."""
    for name, value in realm.environment.items():
        monkeypatch.setenv(name, value)
    find = socket.getaddrinfo

    def found(host: Any, *rest: Any, **options: Any) -> Any:
        is_ours = isinstance(host, str) and host.endswith("example.test")
        return find("127.0.0.1" if is_ours else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", found)


def served(realm: Kdc, **options: Any) -> WsmanServer:
    signing = Signing(("Negotiate",), allows_plain=False, keytab=realm.folder / "host.keytab")
    return WsmanServer(played(steps), {}, signing=signing, **options)


def door_of(server: WsmanServer, ca: Path | None = None, **changes: Any) -> Door:
    values = {"address": HOST, "username": USER, "is_tls": ca is not None, "ca": ca} | changes
    access = Access("hv1", port=server.port, transport="kerberos", **values)
    return Door(access, lambda reference, where: reference[4:], Unhurried(), cleanup_s=2)


def test_a_keytab_signs_in_and_every_message_is_encrypted(
    realm: Kdc, caplog: pytest.LogCaptureFixture
) -> None:
    with served(realm) as server, caplog.at_level(logging.DEBUG):
        with door_of(server, keytab=realm.folder / "backup.keytab") as door:
            machines = [{"id": f"{number:064}"} for number in range(3000)]
            assert len(door.run(LOOK, {"machines": machines}).steps) == 3000
            assert door.run(LOOK, REQUEST).value("1").name == "vm 1 ä"
            assert set(server.signed) == {USER}
            assert not [body for body in server.bodies if b"schemas.xmlsoap.org" in body]
            server.drop_connections()
            assert door.run(CHANGE, REQUEST).value("1").size == 1 << 40
        assert server.shells.opened == 1
        assert server.shells.open == 0
    key = (realm.folder / "backup.keytab").read_bytes()[-32:]
    assert key.hex() not in caplog.text
    assert repr(key)[2:-1] not in caplog.text


def test_over_https_the_ticket_is_bound_to_the_certificate(realm: Kdc, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = authority.issue("hv1", (HOST,))
    keytab = realm.folder / "backup.keytab"
    with served(realm, tls=tls) as server, door_of(server, authority.file, keytab=keytab) as door:
        assert door.run(LOOK, REQUEST).value("1").size == 1 << 40
        server.drop_connections()
        assert door.run(LOOK, REQUEST).value("1").size == 1 << 40
    other = authority.issue("relay", (HOST,))
    carried = type(tls)(other.certificate, other.key, None, tls.binding)
    with served(realm, tls=carried) as server:
        with door_of(server, authority.file, keytab=keytab) as door:
            with pytest.raises(HostCredentialsRefused, match="over kerberos"):
                door.run(LOOK, REQUEST)


def test_a_password_signs_in_and_stands_nowhere(
    realm: Kdc, caplog: pytest.LogCaptureFixture
) -> None:
    with served(realm) as server, caplog.at_level(logging.DEBUG):
        with door_of(server, password=f"env:{PASSWORD}") as door:
            assert door.run(LOOK, REQUEST).value("1").size == 1 << 40
        written = b"".join(server.bodies) + repr(server.headers).encode()
        assert PASSWORD.encode() not in written
        assert PASSWORD not in caplog.text


def test_tickets_of_the_default_cache_sign_in(realm: Kdc) -> None:
    gssapi = require_module("gssapi")
    tickets = realm.folder / "tickets"
    with served(realm) as server, door_of(server) as door:
        with pytest.raises(HostCredentialsRefused, match="run kinit"):
            door.run(LOOK, REQUEST)
        gssapi.Credentials(
            name=gssapi.Name(USER, gssapi.NameType.kerberos_principal),
            store={
                "client_keytab": f"FILE:{realm.folder}/backup.keytab",
                "ccache": f"FILE:{tickets}",
            },
            usage="initiate",
        )
        try:
            assert door.run(LOOK, REQUEST).value("1").size == 1 << 40
        finally:
            tickets.unlink()


def test_tickets_that_end_are_renewed_while_the_server_lives(
    realm: Kdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kerberos, "ENDING_S", 0.5)
    keytab = realm.folder / "hasty.keytab"
    with served(realm) as server:
        with door_of(server, username=f"hasty@{REALM}", keytab=keytab) as door:
            door.run(CHANGE, REQUEST)
            sign_ins, signed = realm.sign_ins, server.signed.total()
            until = time.monotonic() + 10
            while realm.sign_ins == sign_ins:
                assert time.monotonic() < until, "no new ticket"
                assert door.run(CHANGE, REQUEST).value("1").size == 1 << 40
                time.sleep(0.05)
            assert server.signed.total() > signed
        assert server.shells.opened == 1
        assert server.shells.open == 0


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"password": "env:wrong"}, HostCredentialsRefused, "password was changed"),
        ({"keytab": "changed"}, HostCredentialsRefused, "make the keytab anew"),
        ({"user": "expired"}, HostCredentialsRefused, "account has expired"),
        ({"user": "stale"}, HostCredentialsRefused, "password has expired"),
        ({"user": "locked"}, HostCredentialsRefused, "disabled or locked"),
        ({"user": "nobody"}, HostCredentialsRefused, "knows no such account"),
        ({"user": "other", "keytab": "backup"}, HostCredentialsRefused, "has no key for this"),
        ({"address": "hv2.example.test"}, HostCredentialsRefused, "setspn -Q HTTP/hv2.example"),
        ({"username": "backup@SILENT.TEST"}, HostUnreachable, r"port 88"),
        ({"username": "backup@UNKNOWN.TEST"}, HostUnreachable, r"krb5\.conf"),
    ],
)
def test_what_the_domain_refuses_is_told_apart(
    changes: dict[str, Any], error: type[HostCallFailed], says: str, realm: Kdc
) -> None:
    keytab = changes.pop("keytab", None)
    user = changes.pop("user", keytab or "backup")
    given = {"username": f"{user}@{REALM}", "password": f"env:{PASSWORD}"} | changes
    if keytab:
        given |= {"password": "", "keytab": realm.folder / f"{keytab}.keytab"}
    with served(realm) as server, door_of(server, **given) as door:
        with pytest.raises(error, match=says) as refused:
            door.run(LOOK, REQUEST)
        assert PASSWORD not in str(refused.getrepr())
        assert server.headers == []


def test_clocks_that_differ_are_said_to(realm: Kdc, monkeypatch: pytest.MonkeyPatch) -> None:
    faketime = str(require_tool("faketime"))
    later = Kdc(realm.folder / "later")
    later.change(f'addprinc -pw "{PASSWORD}" +requires_preauth backup')
    monkeypatch.setenv("KRB5_CONFIG", later.environment["KRB5_CONFIG"])
    with later.running(faketime, "-f", "+1h"), served(realm) as server:
        with door_of(server, password=f"env:{PASSWORD}") as door:
            with pytest.raises(HostClockSkewed, match="w32tm"):
                door.run(LOOK, REQUEST)


def test_a_host_that_proves_nothing_is_not_believed(realm: Kdc) -> None:
    with served(realm) as server:
        with door_of(server, keytab=realm.folder / "backup.keytab") as door:
            server.faults.arm("Setup", "unproven")
            with pytest.raises(HostCredentialsRefused, match="did not prove"):
                door.run(LOOK, REQUEST)
        assert not server.requests


def test_without_its_package_the_package_is_named(
    realm: Kdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gssapi", None)
    with served(realm) as server, door_of(server, keytab=realm.folder / "backup.keytab") as door:
        with pytest.raises(ConfigurationError, match=r"pip install 'standby\[kerberos\]'"):
            door.run(LOOK, REQUEST)


def test_a_keytab_that_is_not_there_is_named(realm: Kdc) -> None:
    with served(realm) as server, door_of(server, keytab=realm.folder / "lost") as door:
        with pytest.raises(ConfigurationError, match="lost: no such file"):
            door.run(LOOK, REQUEST)
