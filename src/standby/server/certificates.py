"""The backup server's care for certificates: its own, its movers', and the list of revoked ones.

Where the installation's authority lies on the server's machine, certificates renew themselves: a
mover's when the server connects to it and once a day, the server's own likewise. `standby ca
revoke`, in whatever process, is noticed by the files it leaves: every connected mover gets the new
list at once, any other one when it is connected, and running links of revoked peers end.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from standby.clock import Clock
from standby.errors import CertificateError, StandbyError
from standby.files import is_there
from standby.server.config import Config
from standby.server.logs import Log
from standby.server.service_mover import ServiceMover
from standby.wire.authority import Authority
from standby.wire.enrolment import EnrolmentServer, own_identity
from standby.wire.identity import IdentityFolder, Peer
from standby.wire.renewing import tend_certificates

LOOK_S = 2.0
"""How soon a revocation is noticed: a look is a few `stat` calls."""
TEND_S = 24 * 3600.0


class CertificateCare:
    """Looks after the certificates of one server and its connected movers. Thread-safe."""

    def __init__(
        self,
        identity: IdentityFolder,
        authority: Path,
        movers: Callable[[], Iterable[ServiceMover]],
        clock: Clock,
        on_problem: Callable[[str, str], None] = lambda who, text: None,
    ) -> None:
        """`authority` is the folder of the authority, which need not be there. `on_problem` is told
        whose certificate could not be renewed, and why."""
        self._identity = identity
        self._folder = authority
        self._movers = movers
        self._clock = clock
        self._on_problem = on_problem
        self._sent = 0
        self._tended_at: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="certificates", daemon=True)

    def start(self) -> None:
        """Look from now on, in a thread, until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self.look()
            if self._end.wait(LOOK_S):
                return

    # --- what is done ------------------------------------------------------------------------

    def authority(self) -> Authority | None:
        """The authority, where it is on this machine."""
        if not is_there(self._folder / "key.pem"):
            return None
        return Authority(self._folder, self._clock)

    def tend(self, ask: Callable[..., Any], remote: Peer | None) -> None:
        """Renew the certificate of the mover behind `ask` where that is due, and bring its list up
        to date. What goes wrong is told: it keeps nobody from working today."""
        if remote is None:
            return
        try:
            authority = self.authority()
            if authority is not None:
                tend_certificates(ask, authority, remote)
        except StandbyError as exc:
            self._on_problem(remote.name, str(exc))

    def look(self) -> None:
        """Do what is due now."""
        with contextlib.suppress(CertificateError):  # said by whoever connects with it
            self._identity.refresh()
        try:
            authority = self.authority()
            if authority is None:
                return
            self._pass_on(authority)
            now = self._clock.monotonic()
            if self._tended_at is None or now - self._tended_at >= TEND_S:
                self._tended_at = now
                self._tend_all(authority)
        except StandbyError as exc:
            self._on_problem("server", str(exc))

    def _pass_on(self, authority: Authority) -> None:
        """Send the list of revoked certificates to all who are connected, if it is a newer one.
        Others get it when they are connected (`tend`)."""
        number = authority.list_number()
        if number <= self._sent:
            return
        data = authority.revocations()
        for mover in self._movers():
            mover.tell("install_revocations", revocations=data)
        self._identity.install_revocations(data)
        self._sent = number

    def _tend_all(self, authority: Authority) -> None:
        if self._identity.is_renewal_due():
            request = self._identity.request()
            serial = self._identity.facts.serial
            self._identity.install_certificate(authority.renew(serial, request))
        for mover in self._movers():
            if mover.is_connected:  # each in a thread of its own: it may be gone in a moment
                threading.Thread(
                    target=self.tend, args=(mover.call, mover.remote), daemon=True
                ).start()


@contextlib.contextmanager
def taking_enrolments(config: Config, clock: Clock, log: Log) -> Iterator[str]:
    """`standby mover enroll` finds the authority at [server] enrol until the block ends; where,
    '' where the configuration says nothing of it."""
    server = config.server
    if not server.enrol:
        yield ""
        return
    authority = Authority(server.authority, clock)
    identity = own_identity(authority, server.identity, clock=clock)

    def enrolled(address: str, name: str) -> None:
        log.info(f"enrolled {name} from {address}")

    def refused(address: str, error: StandbyError) -> None:
        log.warning(f"refused an enrolment from {address}: {error}")

    with EnrolmentServer(
        server.enrol, authority, identity, on_enrolled=enrolled, on_refusal=refused, clock=clock
    ) as found:
        log.info(f"takes enrolments at {found.address}")
        yield found.address
