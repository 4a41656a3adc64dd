"""Certificates that renew themselves, and lists of revoked ones that arrive, over control links.

The mover answers two verbs and one more for the list; the backup server calls `tend_certificates`
when it connected and now and then. Nobody has to be there for it: that is what 90 days are for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from standby.errors import ProtocolError
from standby.wire.authority import Authority
from standby.wire.identity import IdentityFolder, Peer


class CertificateVerbs:
    """The mover's side, one more of its `Verbs`; for callers in the role `server` only."""

    def __init__(self, identity: IdentityFolder) -> None:
        self._identity = identity

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """`certificate_request`, `install_certificate`, `install_revocations`; NotImplemented for
        any other."""
        if verb == "certificate_request":
            return {
                "is_due": self._identity.is_renewal_due(),
                "serial": self._identity.facts.serial,
                "not_after": self._identity.facts.not_after.isoformat(),
                "list_number": self._identity.list_number,
                "request": self._identity.request(),
            }
        if verb == "install_certificate":
            self._identity.install_certificate(_bytes(verb, arguments, "certificate"))
            return None
        if verb == "install_revocations":
            return self._identity.install_revocations(_bytes(verb, arguments, "revocations"))
        return NotImplemented

    def close(self) -> None:
        """Nothing is open."""


def _bytes(verb: str, arguments: dict[str, Any], key: str) -> bytes:
    value = arguments.get(key)
    if not isinstance(value, bytes):
        raise ProtocolError("backup server", f"{verb} needs {key}")
    return value


@dataclass(frozen=True, slots=True)
class Tended:
    """What `tend_certificates` did."""

    is_renewed: bool
    is_list_sent: bool


def tend_certificates(
    call: Callable[..., Any], authority: Authority, remote: Peer, *, is_forced: bool = False
) -> Tended:
    """Renew the mover's certificate when a third of its life is left (or `is_forced`), and send it
    the list of revoked ones when it has an older one.

    `call(verb, **arguments)` is the control link's; `remote` is its certified peer. A link may be
    older than the certificate its mover has by now, so the mover says which one that is; nothing is
    renewed that the link's own certificate did not stand for.
    """
    told = call("certificate_request")
    is_due = bool(told["is_due"]) or is_forced
    if is_due:
        certificate = authority.renew(
            str(told["serial"]), bytes(told["request"]), name=remote.name, roles=remote.roles
        )
        call("install_certificate", certificate=certificate)
    is_older = int(told["list_number"]) < authority.list_number()
    if is_older:
        call("install_revocations", revocations=authority.revocations())
    return Tended(is_due, is_older)
