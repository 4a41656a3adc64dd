"""The backup server's care for certificates: what is renewed, what is passed on, when."""

from __future__ import annotations

from datetime import timedelta

import pytest

from standby.clock import Clock
from standby.server.certificates import TEND_S, CertificateCare
from standby.wire.authority import Authority
from standby.wire.enrolment import own_identity
from standby.wire.identity import IdentityFolder, Peer
from standby.wire.renewing import CertificateVerbs


class LaterClock(Clock):
    """The system's clock, and what was let pass."""

    passed = timedelta()

    def now(self):
        return super().now() + self.passed

    def monotonic(self):
        return super().monotonic() + self.passed.total_seconds()


class Mover:
    """A connected mover that answers at once."""

    def __init__(self, folder, authority, clock):
        self.identity = IdentityFolder(folder, clock)
        self.identity.install(
            authority.issue(self.identity.request(), "px", ["source"]), authority.certificate
        )
        self.verbs = CertificateVerbs(self.identity)
        self.is_connected = True
        self.asked = []

    @property
    def remote(self):
        facts = self.identity.facts
        return Peer(facts.name, facts.roles, facts.installation, facts.serial, "source")

    def call(self, verb, **arguments):
        self.asked.append(verb)
        return self.verbs.call(verb, arguments)

    def tell(self, verb, **arguments):
        self.call(verb, **arguments)
        return True


@pytest.fixture
def clock():
    return LaterClock()


@pytest.fixture
def authority(tmp_path, clock):
    return Authority.create(tmp_path / "authority", "test", clock)


@pytest.fixture
def mover(tmp_path, authority, clock):
    return Mover(tmp_path / "mover", authority, clock)


@pytest.fixture
def own(tmp_path, authority, clock):
    return own_identity(authority, tmp_path / "identity", clock=clock)


def care_of(own, folder, mover, clock, problems=None):
    told = problems if problems is not None else []
    return CertificateCare(own, folder, lambda: [mover], clock, lambda *said: told.append(said))


def test_a_revocation_by_another_process_is_passed_on_once(own, authority, mover, clock):
    mover.is_connected = False  # no daily look at its certificate beside this
    care = care_of(own, authority.folder, mover, clock)
    care.look()
    mover.asked.clear()
    Authority(authority.folder, clock).issue(own.request(), "lost", ["target"])
    (serial,) = Authority(authority.folder, clock).revoke("lost")
    care.look()
    care.look()
    assert mover.asked == ["install_revocations"]
    assert mover.identity.is_revoked(serial)
    assert own.is_revoked(serial)


def test_a_mover_is_tended_when_it_is_connected(own, authority, mover, clock):
    care = care_of(own, authority.folder, mover, clock)
    before = mover.identity.facts.serial
    clock.passed = timedelta(days=61)
    care.tend(mover.call, mover.remote)
    assert mover.identity.facts.serial != before
    assert mover.asked == ["certificate_request", "install_certificate", "install_revocations"]


def test_the_servers_own_certificate_is_renewed_daily_looked_at(own, authority, mover, clock):
    mover.is_connected = False
    care = care_of(own, authority.folder, mover, clock)
    before = own.facts.serial
    care.look()
    assert own.facts.serial == before
    clock.passed = timedelta(days=61, seconds=-TEND_S)
    care.look()
    clock.passed = timedelta(days=61)
    care.look()
    assert own.facts.serial != before


def test_without_the_authority_nothing_is_done(own, mover, clock, tmp_path):
    problems = []
    care = care_of(own, tmp_path / "nowhere", mover, clock, problems)
    care.look()
    care.tend(mover.call, mover.remote)
    assert (mover.asked, problems) == ([], [])


def test_a_damaged_authority_is_told_and_keeps_nobody_from_working(own, authority, mover, clock):
    problems = []
    care = care_of(own, authority.folder, mover, clock, problems)
    (authority.folder / "state.json").write_text("{")
    care.look()
    care.tend(mover.call, mover.remote)
    assert [who for who, _ in problems] == ["server", "px"]
    assert "damaged" in problems[0][1]
