"""The certificate authority: what it issues, tokens, revocation, renewal, what it keeps."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from standby.errors import (
    CertificateError,
    ConfigurationError,
    EnrolmentRefused,
    StandbyError,
    UnknownName,
)
from standby.wire import authority as authorities
from standby.wire.authority import Authority
from standby.wire.identity import IdentityFolder
from standby.wire.naming import parsed_token, parsed_uris, token_text, uri_of
from wires import Installation, SetClock


@pytest.fixture
def clock() -> SetClock:
    return SetClock(datetime(2026, 3, 1, 12, tzinfo=UTC))


@pytest.fixture
def site(tmp_path: Path, clock: SetClock) -> Installation:
    return Installation(tmp_path, clock=clock)


def request() -> bytes:
    return authorities.request_for(authorities.new_key(), "test")


def test_a_certificate_carries_name_and_roles_as_uris(site: Installation) -> None:
    pem = site.authority.issue(request(), "px1", ["source", "target", "source"])
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [item.value for item in names] == [
        "standby://site/source/px1",
        "standby://site/target/px1",
    ]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    facts = authorities.facts_of(pem, "test")
    assert (facts.installation, facts.name, facts.roles) == ("site", "px1", ("source", "target"))
    assert facts.not_before == site.clock.now() - timedelta(minutes=5)
    assert facts.not_after == site.clock.now() + timedelta(days=90)


def test_what_a_request_says_of_its_owner_is_not_believed(site: Installation) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    forged = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")]))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier("standby://site/server/server")]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    pem = site.authority.issue(forged, "px1", ["source"])
    facts = authorities.facts_of(pem, "test")
    assert (facts.name, facts.roles) == ("px1", ("source",))
    assert b"server" not in x509.load_pem_x509_certificate(pem).subject.public_bytes()


@pytest.mark.parametrize("damage", ["other key", "cut", "rsa", "curve", "empty"])
def test_a_request_that_proves_no_key_is_refused(site: Installation, damage: str) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if damage == "rsa":
        key: object = rsa.generate_private_key(65537, 2048)
    else:
        key = ec.generate_private_key(ec.SECP384R1() if damage == "curve" else ec.SECP256R1())
    made = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
    data = made.public_bytes(serialization.Encoding.PEM)
    if damage == "other key":
        der = bytearray(made.public_bytes(serialization.Encoding.DER))
        der[-1] ^= 1  # the signature
        import ssl

        data = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
        data = data.encode()
    elif damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "empty":
        data = b""
    with pytest.raises(EnrolmentRefused):
        site.authority.issue(data, "px1", ["source"])
    token = site.authority.make_token("px1", ["source"])
    with pytest.raises(EnrolmentRefused, match="request"):
        site.authority.redeem(token, data)
    assert site.authority.redeem(token, request())  # a damaged request does not use it up


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 65, "ü", "a\n", "-a"])
def test_names_that_cannot_stand_in_a_uri_are_refused(site: Installation, name: str) -> None:
    with pytest.raises(ConfigurationError):
        site.authority.issue(request(), name, ["source"])
    with pytest.raises(ConfigurationError):
        site.authority.make_token(name, ["source"])
    assert parsed_uris([uri_of("site", "source", name)]) is None


@pytest.mark.parametrize("roles", [[], ["admin"], ["source", "Server"]])
def test_unknown_roles_are_refused(site: Installation, roles: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="roles"):
        site.authority.make_token("px1", roles)


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["https://site/source/px1"],
        ["standby://site/source/px1", "standby://site/target/px2"],
        ["standby://site/source/px1", "standby://other/target/px1"],
        ["standby://site/root/px1"],
        ["standby://site/source/px1/x"],
        ["standby://site/source/"],
    ],
)
def test_uris_of_another_form_name_nobody(uris: list[str]) -> None:
    assert parsed_uris(uris) is None


# --- tokens ----------------------------------------------------------------------------------


def test_a_token_buys_one_certificate(site: Installation) -> None:
    token = site.authority.make_token("px1", ["source", "host"])
    facts = authorities.facts_of(site.authority.redeem(token, request()), "test")
    assert (facts.name, facts.roles) == ("px1", ("source", "host"))
    with pytest.raises(EnrolmentRefused, match="used already"):
        site.authority.redeem(token, request())


def test_a_token_ends_after_fifteen_minutes(site: Installation, clock: SetClock) -> None:
    early, late = (site.authority.make_token("px1", ["source"]) for _ in range(2))
    clock.advance(minutes=14, seconds=59)
    site.authority.redeem(early, request())
    clock.advance(seconds=1)
    with pytest.raises(EnrolmentRefused, match="authority's clock says 2026-03-01 12:15:00"):
        site.authority.redeem(late, request())
    clock.advance(hours=-2)  # nor does it live again when the clock jumps back before its making
    with pytest.raises(EnrolmentRefused, match="clock"):
        site.authority.redeem(late, request())


def test_only_a_hash_of_the_token_is_kept(site: Installation) -> None:
    token = site.authority.make_token("px1", ["source"])
    _, secret = parsed_token(token)
    for path in (site.folder / "ca").iterdir():
        data = path.read_bytes()
        assert secret not in data
        assert secret.hex().encode() not in data
        assert token.removeprefix("standby-")[45:65].encode() not in data


def test_a_token_names_the_authority(site: Installation) -> None:
    fingerprint, _ = parsed_token(site.authority.make_token("px1", ["source"]))
    assert fingerprint == site.authority.fingerprint
    certificate = x509.load_pem_x509_certificate(site.authority.certificate)
    assert fingerprint == certificate.fingerprint(hashes.SHA256())


def test_an_unknown_secret_is_refused(site: Installation) -> None:
    site.authority.make_token("px1", ["source"])
    with pytest.raises(EnrolmentRefused, match="not known"):
        site.authority.redeem(b"x" * 20, request())


@given(st.integers(0, 75), st.sampled_from("abcXYZ019-_ \n"))
@settings(max_examples=60, deadline=None)
def test_a_mistyped_token_is_told_from_a_wrong_one(place: int, letter: str) -> None:
    token = token_text(bytes(range(32)), bytes(range(100, 120)))
    typed = token[:place] + letter + token[place + 1 :]
    if typed.strip() == token:
        return
    try:
        fingerprint, secret = parsed_token(typed)
    except EnrolmentRefused:
        return
    # Two bytes of checksum: base64's last, unused bits may differ and mean the same.
    assert (fingerprint, secret) == parsed_token(token)


def test_one_token_redeemed_by_many_threads_buys_one_certificate(site: Installation) -> None:
    token = site.authority.make_token("px1", ["source"])
    requests = [request() for _ in range(6)]
    got: list[bytes] = []
    refused: list[StandbyError] = []

    def redeem(data: bytes) -> None:
        try:
            got.append(Authority(site.folder / "ca", site.clock).redeem(token, data))
        except EnrolmentRefused as exc:
            refused.append(exc)

    threads = [threading.Thread(target=redeem, args=(item,)) for item in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5)


# --- revocation ------------------------------------------------------------------------------


def test_revoking_a_name_revokes_all_it_has_and_its_tokens(site: Installation) -> None:
    one, two = (site.authority.issue(request(), "px1", ["source"]) for _ in range(2))
    other = site.authority.issue(request(), "px2", ["source"])
    token = site.authority.make_token("px1", ["source"])
    serials = site.authority.revoke("px1")
    assert set(serials) == {authorities.facts_of(pem, "").serial for pem in (one, two)}
    assert authorities.facts_of(other, "").serial not in site.authority.revoked()
    with pytest.raises(EnrolmentRefused, match="not known"):
        site.authority.redeem(token, request())
    assert site.authority.revoke("px1") == ()
    again = authorities.facts_of(site.authority.issue(request(), "px1", ["source"]), "").serial
    assert again not in site.authority.revoked()


def test_revoking_a_serial_leaves_the_name_its_others(site: Installation) -> None:
    one, two = (
        authorities.facts_of(site.authority.issue(request(), "px1", ["source"]), "").serial
        for _ in range(2)
    )
    assert site.authority.revoke(one) == (one,)
    assert site.authority.revoked() == {one}
    assert two not in site.authority.revoked()


def test_revoking_nobody_names_who_there_is(site: Installation) -> None:
    site.authority.issue(request(), "px1", ["source"])
    with pytest.raises(UnknownName, match="px1"):
        site.authority.revoke("px9")


def test_the_list_is_signed_and_its_number_only_grows(site: Installation) -> None:
    numbers = []
    for name in ("px1", "px2"):
        site.authority.issue(request(), name, ["source"])
        site.authority.revoke(name)
        found = authorities.checked_list(
            site.authority.revocations(), site.authority.certificate, "test"
        )
        numbers.append(found.number)
    assert numbers == [2, 3]
    assert sorted(found.revoked.values()) == ["px1", "px2"]


@pytest.mark.parametrize("change", ["text", "signature", "other authority", "not json"])
def test_a_list_that_was_touched_is_refused(
    site: Installation, tmp_path: Path, change: str
) -> None:
    site.authority.issue(request(), "px1", ["source"])
    site.authority.revoke("px1")
    data = json.loads(site.authority.revocations())
    trusted = site.authority.certificate
    if change == "text":
        data["text"] = data["text"].replace("px1", "px2")
    elif change == "signature":
        data["signature"] = data["signature"][:-8] + "AAAAAAA="
    elif change == "other authority":
        trusted = Authority.create(tmp_path / "other", "site", site.clock).certificate
    raw = b"[]" if change == "not json" else json.dumps(data).encode()
    with pytest.raises(CertificateError, match=r"signed|not a list"):
        authorities.checked_list(raw, trusted, "test")


# --- renewal ---------------------------------------------------------------------------------


def test_a_renewed_certificate_has_the_same_name_and_roles(site: Installation) -> None:
    old = authorities.facts_of(site.authority.issue(request(), "px1", ["source", "host"]), "")
    new = authorities.facts_of(site.authority.renew(old.serial, request()), "")
    assert (new.name, new.roles) == (old.name, old.roles)
    assert new.serial != old.serial


def test_neither_a_revoked_nor_an_unknown_certificate_is_renewed(site: Installation) -> None:
    old = authorities.facts_of(site.authority.issue(request(), "px1", ["source"]), "")
    site.authority.revoke("px1")
    with pytest.raises(EnrolmentRefused, match="revoked"):
        site.authority.renew(old.serial, request())
    with pytest.raises(EnrolmentRefused, match="none of this authority"):
        site.authority.renew("abc", request())


def test_nobody_renews_what_is_not_theirs(site: Installation) -> None:
    held = authorities.facts_of(site.authority.issue(request(), "px2", ["target"]), "")
    with pytest.raises(EnrolmentRefused, match="not of 'px1'"):
        site.authority.renew(held.serial, request(), name="px1", roles=("target",))
    with pytest.raises(EnrolmentRefused):
        site.authority.renew(held.serial, request(), name="px2", roles=("source",))


def test_certificates_end_with_their_authority(site: Installation, clock: SetClock) -> None:
    clock.advance(days=3650 - 10)
    facts = authorities.facts_of(site.authority.issue(request(), "px1", ["source"]), "")
    assert facts.not_after <= clock.now() + timedelta(days=10)
    clock.advance(days=11)
    with pytest.raises(CertificateError, match="clock says"):
        site.authority.issue(request(), "px1", ["source"])


def test_long_ended_certificates_are_forgotten(site: Installation, clock: SetClock) -> None:
    site.authority.issue(request(), "px1", ["source"])
    site.authority.revoke("px1")
    number = site.authority.list_number()
    clock.advance(days=121)
    site.authority.issue(request(), "px2", ["source"])
    assert [item.name for item in site.authority.issued()] == ["px2"]
    assert site.authority.revoked() == frozenset()
    site.authority.revoke("px2")
    assert site.authority.list_number() > number


# --- the folder ------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_private_keys_are_readable_by_their_owner_alone(site: Installation) -> None:
    identity = site.identity("px1", "source")
    for path in (site.folder / "ca" / "key.pem", identity.folder / "key.pem"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_an_authority_is_never_replaced(site: Installation) -> None:
    before = (site.folder / "ca" / "key.pem").read_bytes()
    with pytest.raises(CertificateError, match="already"):
        Authority.create(site.folder / "ca", "site")
    assert (site.folder / "ca" / "key.pem").read_bytes() == before


@pytest.mark.parametrize("killed_before", ["certificate.pem", "state.json", "revoked.json"])
def test_an_authority_half_made_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_before: str
) -> None:
    from standby import files
    from standby.wire import authority_state

    def write(path: Path, data: bytes) -> None:
        if path.name == killed_before:
            raise KeyboardInterrupt
        files.write_durably(path, data)

    for module in (authorities, authority_state):
        monkeypatch.setattr(module, "write_durably", write)
    with pytest.raises(KeyboardInterrupt):
        Authority.create(tmp_path / "ca", "site")
    monkeypatch.undo()
    made = Authority.create(tmp_path / "ca", "site")
    assert made.issue(request(), "px1", ["source"])


@pytest.mark.parametrize("name", ["key.pem", "certificate.pem", "state.json"])
@pytest.mark.parametrize("data", [None, b"", b"{}", b"\xff\x00garbage"])
def test_damaged_files_are_named(site: Installation, name: str, data: bytes | None) -> None:
    path = site.folder / "ca" / name
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    with pytest.raises(CertificateError, match=r"ca"):
        Authority(site.folder / "ca", site.clock)


def test_a_certificate_of_another_key_is_noticed(site: Installation, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", "site", site.clock)
    (site.folder / "ca" / "certificate.pem").write_bytes(other.certificate)
    with pytest.raises(CertificateError, match="pair"):
        Authority(site.folder / "ca", site.clock)


# --- identities ------------------------------------------------------------------------------


def test_a_request_keeps_the_key_it_finds(tmp_path: Path) -> None:
    identity = IdentityFolder(tmp_path / "px1")
    identity.request()
    key = (tmp_path / "px1" / "key.pem").read_bytes()
    identity.request()
    assert (tmp_path / "px1" / "key.pem").read_bytes() == key


def test_only_what_belongs_together_is_installed(site: Installation, tmp_path: Path) -> None:
    identity = site.identity("px1", "source")
    other = Installation(tmp_path / "elsewhere", "site", site.clock)
    of_other_key = site.authority.issue(request(), "px1", ["source"])
    of_other_authority = other.authority.issue(identity.request(), "px1", ["source"])
    of_other_name = site.authority.issue(identity.request(), "px2", ["source"])
    of_more_roles = site.authority.issue(identity.request(), "px1", ["source", "server"])
    shorter = site.authority.issue(identity.request(), "px1", ["source"], 1)
    held = (identity.folder / "certificate.pem").read_bytes()
    for bad in (of_other_key, of_other_authority, of_other_name, of_more_roles, shorter, b"x"):
        with pytest.raises(CertificateError):
            identity.install_certificate(bad)
    with pytest.raises(CertificateError):
        identity.install(of_other_authority, site.authority.certificate)
    assert (identity.folder / "certificate.pem").read_bytes() == held


def test_renewal_is_due_when_a_third_is_left(site: Installation, clock: SetClock) -> None:
    identity = site.identity("px1", "source")
    clock.advance(days=59)
    assert not identity.is_renewal_due()
    clock.advance(days=1, minutes=10)
    assert identity.is_renewal_due()
    identity.install_certificate(site.authority.renew(identity.facts.serial, identity.request()))
    assert not identity.is_renewal_due()


def test_an_older_list_is_never_taken(site: Installation) -> None:
    identity = site.identity("px1", "source")
    old = site.authority.revocations()
    site.identity("px2", "source")
    site.authority.revoke("px2")
    assert identity.install_revocations(site.authority.revocations())
    assert not identity.install_revocations(site.authority.revocations())
    with pytest.raises(CertificateError, match="older"):
        identity.install_revocations(old)
    (identity.folder / "revoked.json").write_bytes(old)  # nor from the disk
    with pytest.raises(CertificateError, match="older"):
        identity.refresh()
    (identity.folder / "revoked.json").unlink()
    with pytest.raises(CertificateError):
        identity.refresh()


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_a_key_that_others_can_read_is_refused(site: Installation) -> None:
    identity = site.identity("px1", "source")
    (identity.folder / "key.pem").chmod(0o640)
    fresh = IdentityFolder(identity.folder)
    with pytest.raises(CertificateError, match="chmod 600"):
        fresh.refresh()


def test_an_empty_folder_says_how_to_enrol(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="mover enroll"):
        IdentityFolder(tmp_path / "none").refresh()


def test_our_own_certificate_out_of_time_names_both_clocks(
    site: Installation, clock: SetClock
) -> None:
    identity = site.identity("px1", "source")
    clock.advance(days=91)
    with pytest.raises(CertificateError, match=r"2026-05-30.*clock says 2026-05-31"):
        identity.check_own()
    clock.advance(days=-95)
    with pytest.raises(CertificateError, match="clock may have jumped"):
        identity.check_own()
