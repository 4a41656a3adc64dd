"""Where a Hyper-V host's WinRM service is, and as whom one signs in there.

    [hosts.prod]
    kind = "hyperv"
    address = "hv01.example"               # or "hv01.example:5986"
    # tls = true                           # HTTPS, port 5986; false: HTTP, port 5985
    # ca = "hosts-ca.pem"                  # who signed the hosts' certificates; else the system's
    credentials = { username = "EXAMPLE\\\\backup", password = "env:HV_PASSWORD" }

| transport   | account         | over             | needs                                        |
|-------------|-----------------|------------------|----------------------------------------------|
| ntlm        | local or domain | HTTPS, HTTP      | username, password; the default              |
| kerberos    | domain          | HTTPS, HTTP      | username (user@REALM); keytab, password, or  |
|             |                 |                  | neither: tickets that kinit or k5start got   |
| credssp     | local or domain | HTTPS            | username, password; delegates them           |
| certificate | local, mapped   | HTTPS            | certificate, key                             |
| basic       | local           | HTTPS            | username, password                           |

Over HTTP only what encrypts every message by itself is taken, and then it must. There is no switch
that leaves a host's certificate unchecked: one that signed itself is named as `ca`. Secrets are
references; `Access` holds none, so it may be logged and compared.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from standby.strict_toml import Table

Transport = Literal["ntlm", "kerberos", "credssp", "certificate", "basic"]
TRANSPORTS: tuple[str, ...] = get_args(Transport)
ENCRYPTING = ("ntlm", "kerberos")
"""What encrypts every message by itself, so that HTTP will do."""

HTTPS_PORT = 5986
HTTP_PORT = 5985

SecretReader = Callable[[str, str], str]
"""(reference, where it stands) to the secret; raises ConfigurationError where there is none."""

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Access:
    """How one host is reached. `password` is a reference, `where` is where it stands."""

    host: str
    address: str
    port: int
    transport: Transport
    is_tls: bool = True
    username: str = ""
    password: str = ""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    keytab: Path | None = None
    delegate: bool = False
    where: str = ""

    @property
    def url(self) -> str:
        """The service's URL."""
        return f"{'https' if self.is_tls else 'http'}://{self.address}:{self.port}/wsman"


def parse_access(name: str, table: Table) -> Access:
    """The access of the host `name` by its table; the keys address, tls, ca and credentials are
    taken from it. ConfigurationError for what cannot work or would not be safe."""
    return _access(name, table, table.text("address"))


def parse_cluster(name: str, table: Table) -> tuple[Access, ...]:
    """The ways into a cluster: `address`, its name, as `parse_access` has it; then those of nodes
    that are addressed otherwise than by their name in the cluster's domain (`nodes`)."""
    cluster = parse_access(name, table)
    nodes = table.texts("nodes") if table.has("nodes") else ()
    return (cluster, *(_access(name, table, node, "nodes") for node in nodes))


def _access(name: str, table: Table, address: str, key: str = "address") -> Access:
    match = _ADDRESS.fullmatch(address)
    if match is None or (match[2] and not 0 < int(match[2]) < 65536):
        raise table.error(key, f"{address!r} is no address", 'write "HOST" or "HOST:PORT"')
    is_tls = table.boolean("tls", True)
    has_ca = table.has("ca")
    signing = table.table("credentials")
    transport = signing.text("transport", "ntlm", choices=TRANSPORTS)
    access = Access(
        name,
        match[1],
        int(match[2] or (HTTPS_PORT if is_tls else HTTP_PORT)),
        transport,  # type: ignore[arg-type]  # one of the choices
        is_tls,
        ca=table.path("ca") if has_ca else None,
        where=signing.where("password"),
        **_signing(signing, transport),
    )
    signing.done()
    _check(access, table, signing, key)
    return access


def _signing(table: Table, transport: str) -> dict[str, Any]:
    """What the transport needs to know of the account."""
    if transport == "certificate":
        return {"certificate": table.path("certificate"), "key": table.path("key")}
    values: dict[str, Any] = {"username": table.text("username").strip()}
    if not values["username"]:
        raise table.error("username", "is empty", 'write the account, as "EXAMPLE\\\\backup"')
    if transport == "kerberos":
        values["keytab"] = table.path("keytab") if table.has("keytab") else None
        values["password"] = table.secret("password", "")
        values["delegate"] = table.boolean("delegate", False)
    else:
        values["password"] = table.secret("password")
    return values


def _check(access: Access, table: Table, signing: Table, key: str) -> None:
    if not access.is_tls and access.transport not in ENCRYPTING:
        raise table.error(
            "tls",
            f"{access.transport} over HTTP would show the secret to the network",
            f"leave tls out, or use transport = {' or '.join(map(repr, ENCRYPTING))}",
        )
    if access.transport == "kerberos" and not _is_fqdn(access.address):
        raise table.error(
            key,
            f"{access.address!r} is not the whole name of a host",
            "Kerberos knows hosts by name: write it with its domain, as hv01.example.com",
        )
    if access.keytab is not None and access.password:
        raise signing.error("keytab", "stands beside a password", "leave one of them out")
    if access.transport == "kerberos" and "@" not in access.username:
        raise signing.error(
            "username",
            f"{access.username!r} has no realm",
            "write it as Kerberos does: backup@EXAMPLE.COM, the realm in capitals",
        )


def _is_fqdn(address: str) -> bool:
    try:
        ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return "." in address.strip(".")
    return False
