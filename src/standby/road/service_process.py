"""The process of a service mover: its identity, its listener, its confinement."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from standby import files, killpoints
from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import StandbyError
from standby.heap import keep_freed_memory
from standby.road.event_log import EventLog
from standby.road.service import ServiceMover
from standby.road.service_config import ServiceConfig
from standby.road.verbs import Verbs
from standby.wire import plain
from standby.wire.link import Link

if TYPE_CHECKING:
    from standby.wire import tls


def run_service(
    config: ServiceConfig, log: EventLog, wait: Callable[[str], None], clock: Clock = SYSTEM_CLOCK
) -> None:
    """Serve over TLS, or plainly on loopback, until `wait(address)` returns or raises; then end
    clean. This process opens nothing outside of `config.folders` from now on."""
    killpoints.be_called(config.name)
    keep_freed_memory()
    files.make_folder_durably(config.state)
    wire = _PlainWire(config) if config.plain else _TlsWire(config, clock)
    if config.wan is not None and config.wan.cache is not None:
        with contextlib.suppress(StandbyError):  # whoever opens the cache says why it is not there
            files.make_folder_durably(config.wan.cache)
    files.confine(config.folders)
    mover = ServiceMover(config, wire.connect, clock=clock, log=log, more=wire.verbs)
    try:
        listener = wire.listener(mover, log)
        try:
            log.say("mover listens", name=config.name, address=listener.address)
            wait(listener.address)
        finally:
            listener.close()
    finally:
        mover.close()


class _TlsWire:
    """How a mover meets the others: certificates of the installation's authority."""

    def __init__(self, config: ServiceConfig, clock: Clock) -> None:
        from standby.wire.identity import IdentityFolder
        from standby.wire.renewing import CertificateVerbs

        self._config = config
        self._identity = IdentityFolder(config.identity, clock)
        self.verbs: Sequence[Verbs] = [CertificateVerbs(self._identity)]

    def connect(self, address: str, name: str, role: str, own_role: str, timeout_s: float) -> Link:
        """A link to the mover of that name and role."""
        from standby.wire import tls

        return tls.connect(address, self._identity, name, role, timeout_s, role=own_role)

    def listener(self, mover: ServiceMover, log: EventLog) -> tls.Listener:
        """Hands its links to `mover`."""
        from standby.wire import tls

        return tls.Listener(
            self._config.listen, self._identity, mover.on_link, on_refusal=_told(log)
        )


class _PlainWire:
    """The same between processes of one machine, by a secret."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._secret = plain.Secret(config.identity)
        self._secret.make()
        self.verbs: Sequence[Verbs] = []

    def connect(self, address: str, name: str, role: str, own_role: str, timeout_s: float) -> Link:
        """A link to the mover of that name and role."""
        return plain.connect(
            address, self._secret, self._config.name, own_role, name, role, timeout_s
        )

    def listener(self, mover: ServiceMover, log: EventLog) -> plain.PlainListener:
        """Hands its links to `mover`."""
        config = self._config
        return plain.PlainListener(
            config.listen,
            self._secret,
            config.name,
            config.roles,
            mover.on_link,
            on_refusal=_told(log),
        )


def _told(log: EventLog) -> Callable[[str, StandbyError], None]:
    return lambda peer, error: log.say("refused", peer=peer, error=str(error))
