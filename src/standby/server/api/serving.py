"""The API on the network: uvicorn in a thread of the server's process."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Iterator

import uvicorn

from standby.errors import ConfigurationError
from standby.server.api.app import make_api
from standby.server.api.context import ApiContext
from standby.server.config import Config
from standby.server.listening import api_address
from standby.server.logs import Log
from standby.server.server import BackupServer

CONNECTIONS_MAX = 256
KEEP_ALIVE_S = 15
START_S = 30.0
END_S = 5


class Api:
    """The API while it answers. `address` is its URL; `context.server_id` is to be set where this
    process has a loop that may hold the lease."""

    def __init__(self, context: ApiContext, address: str) -> None:
        self.context = context
        self.address = address


@contextlib.contextmanager
def opened_api(server: BackupServer, *, listen: str = "", log: Log | None = None) -> Iterator[Api]:
    """Answer at `listen` (default: [server] listen) until the block ends. ConfigurationError where
    that is not possible, or would let tokens travel in the clear."""
    config = server.config
    where = f"{config.path}: [server] listen"
    address = listen or config.server.listen
    host, port = api_address(config, address, where)
    tls = _tls(config)
    listener = _bound(host, port, where)
    door, context = make_api(server, log)
    settings = uvicorn.Config(
        door,
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        lifespan="off",
        ws="none",
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=END_S,
        h11_max_incomplete_event_size=32 * 1024,
        http="h11",
        loop="asyncio",
        server_header=False,
        proxy_headers=False,
    )
    settings.load()
    settings.ssl = tls
    running = uvicorn.Server(settings)
    # uvicorn speaks through logging; what it says of itself is no news of ours.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    thread = threading.Thread(target=running.run, args=([listener],), name="api", daemon=True)
    thread.start()
    shown = f"[{host}]" if ":" in host else host
    url = f"{'https' if tls else 'http'}://{shown}:{listener.getsockname()[1]}"
    try:
        yield Api(context, url)
    finally:
        running.should_exit = True
        thread.join(START_S)
        listener.close()
        context.close()


def _tls(config: Config) -> ssl.SSLContext | None:
    certificate, key = config.server.certificate, config.server.key
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except OSError as exc:  # ssl.SSLError is one
        reason = exc.strerror or str(exc)
        raise ConfigurationError(
            f"{config.path}: [server.tls]",
            f"{certificate} and {key} cannot be used: {reason}",
            "They must be readable PEM files that belong together, the key without a password",
        ) from None
    return context


def _bound(host: str, port: int, where: str) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise ConfigurationError(where, f"{host}: {exc.strerror}", "Is the name right?") from None
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(256)
    except OSError as exc:
        listener.close()
        raise ConfigurationError(
            where,
            f"cannot listen at {host}:{port}: {exc.strerror}",
            "Another server may be there: choose another port with --listen or in [server] listen",
        ) from None
    return listener
