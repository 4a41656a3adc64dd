"""Who is let in, how much they may send, and what the log says of it."""

from __future__ import annotations

import logging
import socket
import ssl
import urllib.parse
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from api.conftest import ServedSite, movers
from cli.conftest import Run, small_site
from cli.processes import wait_until
from simulation.site import Site
from standby.errors import ConfigurationError
from standby.server.api import door
from standby.server.api.serving import opened_api
from standby.server.api.tokens import new_api_token, token_hash
from standby.server.server import BackupServer


def test_roles_include_those_below(served: ServedSite) -> None:
    for role, allowed in (("viewer", 403), ("operator", 202), ("admin", 202)):
        assert served.call("GET", "/api/v1/jobs", role=role).status == 200
        assert served.call("POST", "/api/v1/jobs/job/start", {}, role=role).status == allowed
    path = "/api/v1/replicas/vm1_replica/permanent-failover"
    refused = served.call("POST", path, role="operator", expect=403).json
    assert refused["error"] == "Forbidden"
    assert "has the role operator; this needs the role admin" in refused["message"]
    assert served.call("POST", path, role="admin").status == 404


def test_a_token_ends_and_is_revoked(served: ServedSite) -> None:
    store, clock = served.server.store, served.server.clock
    _, text = new_api_token(store, clock, "brief", "viewer", valid=timedelta(), by="test")
    served.call("GET", "/api/v1/jobs", token=text, expect=401)
    store.tokens.revoke("viewer")
    served.call("GET", "/api/v1/jobs", role="viewer", expect=401)
    served.call("GET", "/api/v1/jobs", role="operator", expect=200)
    assert served.get("/caller", role="operator")["name"] == "operator"


def test_the_token_itself_is_nowhere(served: ServedSite) -> None:
    text = served.tokens["admin"]
    found = [item.hash for item in served.server.store.tokens.list()]
    assert token_hash(text) in found
    assert text not in str(served.server.store.tokens.list())
    assert text.encode() not in (served.site.folder / "standby-state.sqlite").read_bytes()


def test_an_address_that_guesses_is_not_listened_to_but_a_known_token_is(
    served: ServedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "FAILURES_MAX", 3)
    served.call("GET", "/api/v1/jobs", role="viewer", expect=200)
    for guess in range(3):
        served.call("GET", "/api/v1/jobs", token=f"standby-{guess}", expect=401)
    refused = served.call("GET", "/api/v1/jobs", token="standby-3", expect=429)
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    served.call("GET", "/api/v1/jobs", role="viewer", expect=200)
    served.call("GET", "/api/v1/jobs", role="operator", expect=429)
    served.call("GET", "/healthz", role="", expect=200)


def test_failures_are_forgotten_in_time_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from road.plain import ManualClock

    clock = ManualClock()
    failures = door.Failures(clock)
    monkeypatch.setattr(door, "ADDRESSES_MAX", 10)
    for number in range(100):
        failures.failed(f"10.0.0.{number}")
    assert len(failures._times) == 10
    for _ in range(door.FAILURES_MAX):
        failures.failed("10.0.0.1")
    assert failures.wait_s("10.0.0.1") > 0
    assert failures.wait_s("10.0.0.2") == 0
    clock.advance(door.FAILURES_S)
    assert failures.wait_s("10.0.0.1") == 0


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(served: ServedSite, is_chunked: bool) -> None:
    parts = urllib.parse.urlsplit(served.api.address)
    head = (
        "POST /api/v1/jobs/job/start HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {served.tokens['admin']}\r\n"
    )
    size = door.BODY_MAX + 1
    body = b"x" * size
    with socket.create_connection((parts.hostname or "", parts.port or 0), 30) as connection:
        if is_chunked:
            data = f"{head}Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n".encode() + body
        else:
            data = f"{head}Content-Length: {size}\r\n\r\n".encode()
        connection.sendall(data)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
    assert served.server.store.queue.open_sessions() == []


def test_a_body_that_never_ends_is_given_up(
    served: ServedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "BODY_TIMEOUT_S", 0.2)
    parts = urllib.parse.urlsplit(served.api.address)
    head = (
        "POST /api/v1/jobs/job/start HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n"
        f"Authorization: Bearer {served.tokens['admin']}\r\n\r\n"
    )
    with socket.create_connection((parts.hostname or "", parts.port or 0), 30) as connection:
        connection.sendall(head.encode() + b"{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_each_changing_call_is_a_line_in_the_log(
    served: ServedSite, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "standby"):
        served.get("/jobs")
        assert caplog.messages == []
        served.post("/jobs/job/start", {"machines": ["vm1"]}, role="operator", expect=202)
        served.post("/jobs/job/start", role="viewer", expect=403)
    expected = [
        "api: token operator (operator) at 127.0.0.1: "
        'POST /api/v1/jobs/job/start {"machines": ["vm1"]}: 202',
        "api: token viewer (viewer) at 127.0.0.1: POST /api/v1/jobs/job/start: 403",
    ]

    def lines() -> list[str]:
        return [line for line in caplog.messages if line.startswith("api: ")]

    # A call's line is written when its answer has gone out.
    wait_until(lambda: len(lines()) >= len(expected), "both lines")
    assert lines() == expected


def test_refusals_have_one_shape(served: ServedSite) -> None:
    unknown = served.call("GET", "/api/v1/jobs/jop/plan", expect=404).json
    assert unknown["error"] == "UnknownName"
    assert unknown["hint"] == "did you mean job?"
    assert unknown["exit_code"] == 10
    assert served.call("GET", "/api/v1/nowhere", expect=404).json["error"] == "NotFound"
    assert served.call("DELETE", "/api/v1/jobs", expect=405).json["error"] == "MethodNotAllowed"
    invalid = served.call("POST", "/api/v1/jobs/job/start", {"x": 1}, expect=422).json
    assert invalid["error"] == "RequestInvalid"
    assert "body.x" in invalid["message"]
    assert (
        served.call("POST", "/api/v1/jobs/job/start", raw=b"{", expect=422).json["exit_code"] == 2
    )


def test_what_the_state_forbids_is_refused_with_what_it_allows(replicated: ServedSite) -> None:
    refused = replicated.post("/replicas/vm1_replica/undo-failover", expect=409)
    assert refused["legal_actions"] == ["start", "failover", "verify", "repair"]
    session = replicated.post("/jobs/job/start", expect=202)["session"]
    refused = replicated.post(f"/sessions/{session}/resume", expect=409)
    assert refused["legal_actions"] == ["stop", "pause"]
    told = replicated.post(f"/sessions/{session}/pause", expect=202)
    assert told["message"] == f"asked: pause session {session}"
    (request,) = replicated.server.store.queue.requests(session)
    assert request.asked_by == "token admin"


def test_health_says_who_is_active(served: ServedSite) -> None:
    def health() -> tuple[str, str]:
        found = served.call("GET", "/healthz", role="", expect=200).json
        return found["server"], found["lease"]

    assert health() == ("standby", "free")
    with served.looped():
        assert health() == ("active", "here")
        served.api.context.server_id = "another"
        assert health() == ("standby", "elsewhere")
        queued = served.post("/jobs/job/start", expect=202)
        found = served.get(f"/sessions/{queued['session']}?wait_s=60")
        assert found["run"]["state"] == "done"  # by whoever is active


def test_without_tls_only_this_machine_is_listened_to(tmp_path: Path) -> None:
    site = small_site(tmp_path / "site")
    with BackupServer(site.config, make_movers=movers) as server:
        for address in ("0.0.0.0:0", "192.0.2.1:9443", "[::]:0"):
            with pytest.raises(ConfigurationError, match="in the clear"):
                opened_api(server, listen=address).__enter__()
        for address in ("9443", "127.0.0.1:x", "127.0.0.1:70000"):
            with pytest.raises(ConfigurationError, match="HOST:PORT"):
                opened_api(server, listen=address).__enter__()
        with opened_api(server, listen="127.0.0.1:0") as api:
            taken = urllib.parse.urlsplit(api.address).netloc
            with pytest.raises(ConfigurationError, match="cannot listen"):
                opened_api(server, listen=taken).__enter__()


def certificate(folder: Path) -> None:
    """A certificate for 127.0.0.1 that signs itself."""
    from ipaddress import ip_address

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "backup")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "api.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "api.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def with_tls(folder: Path) -> Site:
    site = small_site(folder)
    text = site.config.read_text()
    site.config.write_text(f'{text}\n[server.tls]\ncertificate = "api.pem"\nkey = "api.key"\n')
    return site


def test_tls_and_the_client_that_trusts_it(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = with_tls(tmp_path / "site")
    with BackupServer(site.config, make_movers=movers) as server:
        with pytest.raises(ConfigurationError, match="cannot be used"):
            opened_api(server, listen="0.0.0.0:0").__enter__()
        certificate(site.folder)
        _, text = new_api_token(server.store, server.clock, "alice", "viewer", by="test")
        with opened_api(server, listen="127.0.0.1:0") as api:
            assert api.address.startswith("https://")
            monkeypatch.setenv("STANDBY_SERVER", api.address)
            monkeypatch.setenv("STANDBY_TOKEN", f"file:{tmp_path / 'token'}")
            (tmp_path / "token").write_text(text + "\n")
            assert "STANDBY_SERVER_CA" in run("job", "list", expect=15).err
            monkeypatch.setenv("STANDBY_SERVER_CA", str(site.folder / "api.pem"))
            assert "by hand" in run("job", "list").out
            parts = urllib.parse.urlsplit(api.address)
            old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old.maximum_version = ssl.TLSVersion.TLSv1_1
            with (
                socket.create_connection((parts.hostname or "", parts.port or 0), 30) as plain,
                pytest.raises(OSError),
            ):
                old.wrap_socket(plain)


def test_tokens_on_the_command_line(tmp_path: Path, run: Run) -> None:
    site = small_site(tmp_path / "site")
    given = ("--config", site.config)
    assert "no tokens yet" in run("token", "list", *given).out
    made = run("token", "add", "alice", "--role", "operator", "--expires", "90d", *given)
    text = made.out.strip()
    assert text.startswith("standby-")
    assert text not in run("token", "list", *given).out
    assert "once" in run("token", "add", "alice", "--role", "viewer", *given, expect=10).err
    assert "duration" in run("token", "add", "bob", "--role", "viewer", "--expires", "x", *given,
                             expect=2).err  # fmt: skip
    (listed,) = run("token", "list", "--json", *given).json["tokens"]
    assert (listed["role"], listed["state"], listed["last_used_at"]) == ("operator", "good", "")
    assert "revoked" in run("token", "revoke", "alice", *given).out
    assert "known: alice" in run("token", "revoke", "bob", *given, expect=10).err
