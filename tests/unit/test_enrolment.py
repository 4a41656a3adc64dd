"""How a machine becomes a member, and stays one: enrolment over the network, renewal over links."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from standby.errors import (
    CertificateError,
    CertificateRefused,
    EnrolmentRefused,
    LinkError,
    PeerBusy,
    ProtocolError,
    StandbyError,
)
from standby.wire import enrolment, tls
from standby.wire.authority import Authority
from standby.wire.enrolment import Attempts, EnrolmentServer, enrol, own_identity
from standby.wire.identity import IdentityFolder, Peer
from standby.wire.messages import Call
from standby.wire.naming import new_secret, parsed_token, token_text
from standby.wire.renewing import CertificateVerbs, tend_certificates
from wires import Installation, SetClock, answers, echo


class Service:
    """An installation with its enrolment service."""

    def __init__(self, folder: Path) -> None:
        self.site = Installation(folder)
        self.identity = own_identity(self.site.authority, folder / "identity")
        self.refused: list[StandbyError] = []
        self.enrolled: list[str] = []
        self.server = EnrolmentServer(
            "127.0.0.1:0",
            self.site.authority,
            self.identity,
            on_enrolled=lambda address, name: self.enrolled.append(name),
            on_refusal=lambda address, error: self.refused.append(error),
        )
        self.address = self.server.address

    def token(self, name: str = "px1") -> str:
        return self.site.authority.make_token(name, ["source"])


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "site")
    yield made
    made.server.close()


def test_an_enrolled_machine_gets_links(service: Service, tmp_path: Path) -> None:
    identity = enrol(service.address, service.token(), tmp_path / "px1")
    assert (identity.name, identity.roles) == ("px1", ("source",))
    assert service.enrolled == ["px1"]
    assert sorted(path.name for path in (tmp_path / "px1").iterdir()) == [
        "authority.pem",
        "certificate.pem",
        "key.pem",
        "revoked.json",
    ]
    with echo(identity) as there:
        with tls.connect(there.address, service.identity, "px1", "source") as link:
            assert answers(link)


def test_the_key_never_leaves(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    plain = enrolment._asked

    def asked(link: Any, question: Any) -> Any:
        sent.append(repr(question).encode())
        return plain(link, question)

    monkeypatch.setattr(enrolment, "_asked", asked)
    enrol(service.address, service.token(), tmp_path / "px1")
    key = (tmp_path / "px1" / "key.pem").read_text().splitlines()[1]
    assert len(sent) == 2
    assert not any(key.encode() in item or b"PRIVATE" in item for item in sent)
    for path in service.site.folder.rglob("*"):
        assert path.is_dir() or key.encode() not in path.read_bytes()


def test_a_token_is_good_once(service: Service, tmp_path: Path) -> None:
    token = service.token()
    enrol(service.address, token, tmp_path / "one")
    with pytest.raises(EnrolmentRefused, match="used already"):
        enrol(service.address, token, tmp_path / "two")
    assert not (tmp_path / "two" / "certificate.pem").exists()


def test_the_secret_is_told_to_the_tokens_authority_only(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Service(tmp_path / "other")
    seen: list[object] = []
    answered = EnrolmentServer._answered

    def watching(self: EnrolmentServer, link: Any, visit: Any) -> Any:
        receive = link.receive

        def received() -> Any:
            seen.append(receive())
            return seen[-1]

        link.receive = received
        return answered(self, link, visit)

    monkeypatch.setattr(EnrolmentServer, "_answered", watching)
    token = service.token()
    with pytest.raises(EnrolmentRefused, match="another authority"):
        enrol(other.address, token, tmp_path / "px1")
    assert len(seen) == 1
    assert parsed_token(token)[1].hex() not in repr(seen)
    other.server.close()


def test_somebody_in_between_with_the_right_certificate_is_found_out(
    service: Service, tmp_path: Path
) -> None:
    """The authority's certificate is public: showing it is not enough."""
    other = Service(tmp_path / "other")
    other.site.authority.certificate = service.site.authority.certificate
    with pytest.raises(CertificateRefused, match="not from this installation's authority"):
        enrol(other.address, service.token(), tmp_path / "px1")
    assert other.site.authority.issued()[0].name == "server"  # its own, and nobody else's
    other.server.close()


def test_a_second_authority_behind_the_right_one_is_not_believed(
    service: Service, tmp_path: Path
) -> None:
    """A PEM text may hold several certificates; the fingerprint is of the first one alone."""
    other = Service(tmp_path / "other")
    other.site.authority.certificate = (
        service.site.authority.certificate + other.site.authority.certificate
    )
    with pytest.raises(CertificateRefused, match="not from this installation's authority"):
        enrol(other.address, service.token(), tmp_path / "px1")
    other.site.authority.certificate = service.site.authority.certificate + "ü".encode()
    with pytest.raises(CertificateRefused, match="not from this installation's authority"):
        enrol(other.address, service.token(), tmp_path / "px1")
    assert not (tmp_path / "px1" / "certificate.pem").exists()
    other.server.close()


def test_an_identity_trusts_one_authority_alone(service: Service, tmp_path: Path) -> None:
    other = Installation(tmp_path / "other")
    ours = service.site.authority
    made = IdentityFolder(tmp_path / "px1")
    made.install(
        ours.issue(made.request(), "px1", ["source"]),
        ours.certificate + other.authority.certificate,
        ours.revocations(),
    )
    assert (tmp_path / "px1" / "authority.pem").read_bytes() == ours.certificate


def test_a_member_that_is_no_server_cannot_enrol_others(service: Service, tmp_path: Path) -> None:
    member = service.site.identity("px9", "source")
    with EnrolmentServer("127.0.0.1:0", service.site.authority, member) as false:
        with pytest.raises(CertificateRefused, match="no backup server"):
            enrol(false.address, service.token(), tmp_path / "px1")


def test_refused_tokens_are_limited_by_rate(service: Service, tmp_path: Path) -> None:
    wrong = token_text(service.site.authority.fingerprint, new_secret())
    for _ in range(enrolment.ATTEMPTS_PER_MINUTE):
        with pytest.raises(EnrolmentRefused, match="not known"):
            enrol(service.address, wrong, tmp_path / "px1")
    with pytest.raises(PeerBusy, match="too many"):
        enrol(service.address, service.token(), tmp_path / "px1")


def test_attempts_are_forgotten_after_a_minute_and_their_memory_is_bounded() -> None:
    class Ticking(SetClock):
        seconds = 0.0

        def monotonic(self) -> float:
            return self.seconds

    clock = Ticking()
    attempts = Attempts(clock)
    for _ in range(enrolment.ATTEMPTS_PER_MINUTE):
        assert attempts.seconds_to_wait("a") == 0
        attempts.refused("a")
        clock.seconds += 1
    assert attempts.seconds_to_wait("a") == 54
    assert attempts.seconds_to_wait("b") == 0
    clock.seconds += 54
    assert attempts.seconds_to_wait("a") == 0
    for number in range(5000):
        attempts.refused(f"host {number}")
    assert attempts.seconds_to_wait("b") > 0
    assert len(attempts._seen) <= 1024
    assert all(len(times) <= 60 for times in attempts._seen.values())


def test_the_service_answers_nothing_else(service: Service, tmp_path: Path) -> None:
    with pytest.raises(LinkError):
        tls.connect(service.address, service.identity, "server", "server")
    service.server.close()  # its thread says what it refused after it has answered
    assert isinstance(service.refused[-1], ProtocolError)


def test_an_enrolled_machine_can_be_enrolled_again(service: Service, tmp_path: Path) -> None:
    first = enrol(service.address, service.token(), tmp_path / "px1")
    serial = first.facts.serial
    service.site.authority.revoke("px1")
    again = enrol(service.address, service.token(), tmp_path / "px1")
    assert again.facts.serial != serial
    assert again.is_revoked(serial)
    assert first.facts.serial == again.facts.serial  # who holds the folder sees the new one


def test_our_own_identity_is_made_once_and_renewed(tmp_path: Path) -> None:
    clock = SetClock()
    site = Installation(tmp_path, clock=clock)
    own = own_identity(site.authority, tmp_path / "own", clock=clock)
    serial = own.facts.serial
    assert own_identity(site.authority, tmp_path / "own", clock=clock).facts.serial == serial
    clock.advance(days=61)
    assert own_identity(site.authority, tmp_path / "own", clock=clock).facts.serial != serial


# --- renewal over a control link -------------------------------------------------------------


class Mover:
    """A mover's certificate verbs, called as over its control link."""

    def __init__(self, identity: IdentityFolder) -> None:
        self.verbs = CertificateVerbs(identity)
        self.called: list[str] = []
        facts = identity.facts
        self.remote = Peer(facts.name, facts.roles, facts.installation, facts.serial)

    def call(self, verb: str, **arguments: Any) -> Any:
        self.called.append(verb)
        return self.verbs.call(verb, arguments)


def test_a_certificate_renews_itself_when_a_third_is_left(tmp_path: Path) -> None:
    clock = SetClock()
    site = Installation(tmp_path, clock=clock)
    identity = site.identity("px1", "source", "host")
    mover = Mover(identity)
    ends = []
    for _ in range(12):  # a year, and one link all the time
        clock.advance(days=31)
        tend_certificates(mover.call, site.authority, mover.remote)
        identity.check_own()
        ends.append(identity.facts.not_after)
    assert len(set(ends)) == 7
    assert identity.roles == ("source", "host")


def test_nothing_is_done_while_nothing_is_due(tmp_path: Path) -> None:
    site = Installation(tmp_path)
    mover = Mover(site.identity("px1", "source"))
    done = tend_certificates(mover.call, site.authority, mover.remote)
    assert (done.is_renewed, done.is_list_sent) == (False, False)
    assert mover.called == ["certificate_request"]
    assert tend_certificates(mover.call, site.authority, mover.remote, is_forced=True).is_renewed


def test_a_newer_list_is_brought(tmp_path: Path) -> None:
    site = Installation(tmp_path)
    identity = site.identity("px1", "source")
    mover = Mover(identity)
    other = site.identity("px2", "source")
    site.authority.revoke("px2")
    assert tend_certificates(mover.call, site.authority, mover.remote).is_list_sent
    assert identity.is_revoked(other.facts.serial)
    assert not tend_certificates(mover.call, site.authority, mover.remote).is_list_sent


def test_a_mover_cannot_renew_what_its_link_did_not_stand_for(tmp_path: Path) -> None:
    site = Installation(tmp_path)
    victim = site.identity("backup", "server")
    mover = Mover(site.identity("px1", "source"))

    def lying(verb: str, **arguments: Any) -> Any:
        told = mover.call(verb, **arguments)
        if verb == "certificate_request":
            told |= {"is_due": True, "serial": victim.facts.serial}
        return told

    with pytest.raises(EnrolmentRefused, match="'backup'"):
        tend_certificates(lying, site.authority, mover.remote)


@pytest.mark.parametrize("arguments", [{}, {"certificate": "text"}, {"certificate": b"rubbish"}])
def test_arguments_of_a_wrong_kind_are_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    mover = Mover(Installation(tmp_path).identity("px1", "source"))
    with pytest.raises((ProtocolError, CertificateError)):
        mover.call("install_certificate", **arguments)
    assert mover.call("another_verb") is NotImplemented


def test_many_openings_of_one_authority_lose_nothing(tmp_path: Path) -> None:
    site = Installation(tmp_path)
    requests = [IdentityFolder(tmp_path / f"m{n}").request() for n in range(8)]

    def issue(number: int) -> None:
        Authority(tmp_path / "ca").issue(requests[number], f"m{number}", ["source"])

    threads = [threading.Thread(target=issue, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {item.name for item in site.authority.issued()} == {f"m{n}" for n in range(8)}


def test_a_call_of_the_verbs_travels_over_a_real_link(tmp_path: Path) -> None:
    """Requests are bytes, and stay bytes."""
    from standby.wire import messages

    site = Installation(tmp_path)
    verbs = CertificateVerbs(site.identity("px1", "source"))
    told = verbs.call("certificate_request", {})
    body = messages.encoded(messages.Reply(1, told))
    found = messages.decoded(memoryview(body), messages.decoder(), "test")
    assert isinstance(found, messages.Reply)
    assert found.result["request"] == told["request"]
    call = Call(2, "install_revocations", {"revocations": site.authority.revocations()})
    again = messages.decoded(memoryview(messages.encoded(call)), messages.decoder(), "test")
    assert again == call
