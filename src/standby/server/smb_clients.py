"""Who a host's proxies are to its shares: the names and addresses an SMB server knows them by."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator

from standby.server.config import Config, HostConfig

SMB_PORT = 445


def smb_clients(config: Config, host: HostConfig) -> list[str]:
    """Of every proxy that sees the host's disks on the source side: its mover's name in the
    configuration, and the addresses that it has; of this machine, those it reaches the host from.
    A name that cannot be resolved adds nothing."""
    found: set[str] = set()
    for proxy in config.proxies.values():
        if proxy.side not in ("source", "both") or not proxy.maps_of(host.name):
            continue
        if proxy.mover:
            name = config.movers[proxy.mover].address.rpartition(":")[0].strip("[]")
            found |= {name, *_addresses(name)}
        else:
            found |= {socket.gethostname(), *_own_addresses(host)}
    return sorted(_written(found))


def _addresses(name: str) -> Iterator[str]:
    with contextlib.suppress(OSError, UnicodeError):
        for *_, place in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
            yield str(place[0])


def _own_addresses(host: HostConfig) -> Iterator[str]:
    """This machine's addresses towards the host. A datagram socket's connect sends nothing."""
    for access in host.hyperv.accesses if host.hyperv is not None else ():
        with contextlib.suppress(OSError, UnicodeError):
            for family, kind, _, _, place in socket.getaddrinfo(
                access.address, SMB_PORT, type=socket.SOCK_DGRAM
            ):
                with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
                    probe.connect(place)
                    yield str(probe.getsockname()[0])


def _written(found: set[str]) -> Iterator[str]:
    """As SMB servers write them: IPv6 addresses in brackets, or not."""
    for name in filter(None, found):
        yield name
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(name.partition("%")[0]).version == 6:
                yield f"[{name}]"
