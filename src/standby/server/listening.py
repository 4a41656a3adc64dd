"""Where the API may listen: on this machine alone, or with TLS."""

from __future__ import annotations

import contextlib
import ipaddress

from standby.errors import ConfigurationError
from standby.server.config_values import Config


def api_address(config: Config, address: str, where: str) -> tuple[str, int]:
    """(host, port) of the API's address; ConfigurationError for what is none, and where tokens
    would travel in the clear to other machines. Looks at no file."""
    host, port = _parsed(address, where)
    has_tls = config.server.certificate is not None and config.server.key is not None
    if not has_tls and not _is_local(host):
        raise ConfigurationError(
            where,
            f"{address} is not this machine alone, and there is no TLS: tokens would travel in the "
            "clear",
            'Write [server.tls] certificate = "…" and key = "…", or listen = "127.0.0.1:9443"',
        )
    return host, port


def _parsed(address: str, where: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(where, f"{address!r} is no HOST:PORT", "As in 127.0.0.1:9443")
    return host.strip("[]"), int(port)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
