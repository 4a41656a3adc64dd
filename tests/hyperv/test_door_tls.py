"""The door over HTTPS: whose certificates it takes, and what it says about the others."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hyperv.certificates import Authority
from hyperv.test_door import LOOK, PASSWORD, REQUEST, Unhurried, played, steps
from hyperv.wsman import Signing, Tls, WsmanServer
from standby.errors import (
    HostCallFailed,
    HostCertificateRefused,
    HostCredentialsRefused,
    HostUnreachable,
)
from standby.host.hyperv.credentials import Access
from standby.host.hyperv.door import Door


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def door_of(server: WsmanServer, ca: Path | None, address: str = "127.0.0.1") -> Door:
    access = Access("hv1", address, server.port, "basic", True, "backup", "env:HV", ca)
    return Door(access, lambda reference, where: PASSWORD, Unhurried(), cleanup_s=2)


def served(tls: Tls | None) -> WsmanServer:
    return WsmanServer(played(steps), {"backup": PASSWORD}, tls)


def test_a_host_whose_certificate_the_named_authority_signed_is_spoken_to(
    authority: Authority,
) -> None:
    with served(authority.issue("hv1")) as server:
        with door_of(server, authority.file) as door:
            assert door.run(LOOK, REQUEST).value("1").size == 1 << 40
        assert server.shells.open == 0


def test_a_certificate_that_signed_itself_is_taken_where_it_is_named(tmp_path: Path) -> None:
    own = Authority(tmp_path, "self-signed")
    tls = own.issue("hv1")
    with served(tls) as server, door_of(server, own.file) as door:
        assert door.run(LOOK, REQUEST).value("1").size == 1 << 40


def wrong(what: str, folder: Path) -> tuple[Tls, Path | None]:
    """A host's certificate that is not right, and what the configuration names."""
    authority = Authority(folder)
    match what:
        case "expired":
            until = datetime.now(UTC) - timedelta(days=1)
            return authority.issue("hv1", until=until), authority.file
        case "name":
            return authority.issue("hv1", ("hv2.example",)), authority.file
        case "stranger":
            return Authority(folder, "stranger").issue("hv1"), authority.file
        case _:
            return authority.issue("hv1"), None


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("expired", "certificate has expired"),
        ("name", "not valid for '127.0.0.1'|doesn't match"),
        ("stranger", "unable to get local issuer|self-signed"),
        ("unnamed", "unable to get local issuer|self-signed"),
    ],
)
def test_a_certificate_that_is_not_right_is_refused_before_a_secret_is_sent(
    what: str, reason: str, tmp_path: Path
) -> None:
    tls, ca = wrong(what, tmp_path)
    with served(tls) as server, door_of(server, ca) as door:
        with pytest.raises(HostCertificateRefused, match=reason) as refused:
            door.run(LOOK, REQUEST)
        assert 'ca = "PATH"' in str(refused.value)
        assert server.headers == []


def test_nothing_of_the_environment_changes_whom_it_trusts_or_asks(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = Authority(authority.file.parent, "stranger")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(stranger.file))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    with served(authority.issue("hv1")) as server, door_of(server, authority.file) as door:
        assert door.run(LOOK, REQUEST).value("1").size == 1 << 40
    with served(stranger.issue("hv2")) as server, door_of(server, authority.file) as door:
        with pytest.raises(HostCertificateRefused):
            door.run(LOOK, REQUEST)


def test_https_at_a_port_of_http_is_said_to_be_that(authority: Authority) -> None:
    with served(None) as server, door_of(server, authority.file) as door:
        with pytest.raises(HostUnreachable, match="Is that port the one of HTTPS"):
            door.run(LOOK, REQUEST)


def test_no_field_of_an_access_turns_the_check_off() -> None:
    names = {field.name for field in dataclasses.fields(Access)}
    assert not {name for name in names if "valid" in name or "verif" in name or "ignore" in name}


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Authority]:
    """Who signs the certificates of users."""
    return Authority(tmp_path, "users-ca")


def certified(server: WsmanServer, ca: Path, user: Tls) -> Door:
    access = Access(
        "hv1", "127.0.0.1", server.port, "certificate", True, ca=ca,
        certificate=user.certificate, key=user.key,
    )  # fmt: skip
    return Door(access, lambda reference, where: "", Unhurried(), cleanup_s=2)


@pytest.mark.parametrize(
    ("common_name", "error"),
    [("backup", None), ("somebody", HostCredentialsRefused)],
)
def test_a_certificate_signs_in_the_user_it_is_mapped_to(
    common_name: str, error: type[HostCallFailed] | None, authority: Authority, users: Authority
) -> None:
    tls = authority.issue("hv1", clients=users.file)
    signing = Signing(("Basic",), mapped={"backup": "HV1\\backup"})
    with WsmanServer(played(steps), {}, tls, signing=signing) as server:
        with certified(server, authority.file, users.issue(common_name)) as door:
            if error is None:
                door.run(LOOK, REQUEST)
                assert set(server.signed) == {"HV1\\backup"}
            else:
                with pytest.raises(error, match="over certificate"):
                    door.run(LOOK, REQUEST)


def test_a_users_certificate_of_a_strange_authority_is_refused(
    authority: Authority, users: Authority
) -> None:
    tls = authority.issue("hv1", clients=users.file)
    # With 1.3 the refusal comes after the handshake, and may be lost in the connection's end.
    tls = dataclasses.replace(tls, newest=ssl.TLSVersion.TLSv1_2)
    stranger = Authority(users.file.parent, "stranger").issue("backup")
    with served(tls) as server, certified(server, authority.file, stranger) as door:
        with pytest.raises(HostCredentialsRefused, match=r"backup\.pem.*TLS"):
            door.run(LOOK, REQUEST)


def test_a_users_certificate_that_the_host_forbids_is_refused(
    authority: Authority, users: Authority
) -> None:
    tls = authority.issue("hv1", clients=users.file)
    signing = Signing(("Basic",), mapped={"backup": "HV1\\backup"})
    with WsmanServer(played(steps), {}, tls, signing=signing) as server:
        with certified(server, authority.file, users.issue("backup")) as door:
            server.faults.arm("Get", "forbidden")
            with pytest.raises(HostCredentialsRefused, match="HTTP 403"):
                door.run(LOOK, REQUEST)
