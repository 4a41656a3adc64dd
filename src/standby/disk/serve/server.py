"""The server: a listening socket, one thread per connection, an end that loses nothing flushed."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import stat
import sys
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import quote

from standby.disk.serve.channel import Channel
from standby.disk.serve.export import Export
from standby.disk.serve.negotiation import negotiate
from standby.disk.serve.transmission import Transmission
from standby.errors import ConfigurationError, LinkError, StandbyError
from standby.files import ByteLock, make_folder_durably
from standby.ports import VirtualDisk

CONNECTIONS_MAX = 32
"""Connections at a time; each costs a thread and a buffer of 2 MiB. QEMU uses one per disk,
nbdcopy four."""
NEGOTIATION_S = 30.0
"""How long a client may stay silent before it has chosen an export."""

_SOCKET_PATH_MAX = 107  # sockaddr_un.sun_path of Linux without its final NUL


def serve_connection(channel: Channel, exports: Mapping[str, Export]) -> None:
    """Serve one client until it leaves; whatever it says ends here, not in an exception."""
    with contextlib.suppress(LinkError):
        channel.limit_wait(NEGOTIATION_S)
        session = negotiate(channel, exports)
        if session is not None:
            channel.limit_wait(None)
            Transmission(channel, session).run()


class NbdServer:
    """Offers disks to NBD clients on this machine.

    `address` is a listening socket, or the path of a Unix socket in a folder that only its owner
    can enter (made with mode 0700 if missing; another folder with wider rights is refused). On
    Windows a path means a free TCP port on the loopback interface instead, and any local user can
    reach it. A second server on the same path is refused (DiskBusy) while the first one lives;
    what a killed one left is replaced.

    `writable` names the exports that may be written (True: all). The disks stay the caller's:
    they are flushed, not closed, by `close`.
    """

    def __init__(
        self,
        exports: Mapping[str, VirtualDisk],
        address: Path | socket.socket,
        *,
        writable: bool | Collection[str] = False,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self.exports = {
            name: Export(
                name, disk, writable=writable if isinstance(writable, bool) else name in writable
            )
            for name, disk in exports.items()
        }
        self._connections_max = connections_max
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._guard = threading.Lock()
        self._lock: ByteLock | None = None
        self._path: Path | None = None
        self._listener = address if isinstance(address, socket.socket) else self._bind(address)
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._accept, name="nbd accept", daemon=True)
        self._is_closed = False

    def _bind(self, path: Path) -> socket.socket:
        if sys.platform == "win32":
            return socket.create_server(("127.0.0.1", 0))
        _check_folder(path)
        self._lock = _own_lock(path.with_name(path.name + ".lock"))
        try:
            path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(CONNECTIONS_MAX)
        except OSError as exc:
            self._lock.release()
            raise ConfigurationError(str(path), f"cannot listen there: {exc}") from exc
        self._path = path
        return listener

    def uri(self, name: str) -> str:
        """Where clients find the export of that name."""
        if self._listener.family == getattr(socket, "AF_UNIX", None):
            path = self._listener.getsockname()
            return f"nbd+unix:///{quote(name, safe='')}?socket={quote(str(path))}"
        host, port = self._listener.getsockname()[:2]
        return f"nbd://{host}:{port}/{quote(name, safe='')}"

    def start(self) -> None:
        """Accept connections from now on, in threads of this process."""
        self._thread.start()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._wake in ready:
                    return
                try:
                    connection, _ = self._listener.accept()
                except OSError:  # the client is gone already, or no descriptor is free
                    continue
                self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        with self._guard:
            if len(self._connections) >= self._connections_max:
                connection.close()
                return
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="nbd connection", daemon=True
            )
            self._connections[connection] = thread
        thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if connection.family != getattr(socket, "AF_UNIX", None):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            serve_connection(Channel(connection, "NBD client"), self.exports)
        finally:
            with self._guard:
                self._connections.pop(connection, None)
            connection.close()

    def close(self) -> None:
        """Refuse new requests, finish those under way, flush, remove the socket. Raises the first
        error of a flush, after all were tried; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._waker.send(b"\0")
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.close()
        with self._guard:
            left = dict(self._connections)
        for connection in left:
            with contextlib.suppress(OSError):  # gone already
                connection.shutdown(socket.SHUT_RDWR)
        for thread in left.values():
            thread.join()
        self._wake.close()
        self._waker.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.path.unlink(missing_ok=True)  # while it is ours: see _own_lock
            self._lock.release()
        errors: list[StandbyError] = []
        for export in self.exports.values():
            try:
                export.flush()
            except StandbyError as exc:
                errors.append(exc)
        if errors:
            raise errors[0]

    def __enter__(self) -> NbdServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _own_lock(path: Path) -> ByteLock:
    """The lock in the file at `path`, held. The file is removed by whoever held it last: a lock on
    one that was removed meanwhile excludes nobody, and is taken again."""
    while True:
        lock = ByteLock(path)
        lock.acquire_or_raise("another NBD server listens there")
        if lock.is_in_place():
            return lock
        lock.release()


def _check_folder(path: Path) -> None:
    """Refuse a socket path that is too long or in a folder that others can enter."""
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise ConfigurationError(
            str(path),
            f"the path of a socket has at most {_SOCKET_PATH_MAX} bytes",
            "Choose a shorter folder",
        )
    make_folder_durably(path.parent)
    status = path.parent.stat()
    if sys.platform == "win32":
        return
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigurationError(
            str(path.parent),
            "other users can enter the folder of an NBD socket",
            f"chmod 700 {path.parent}, or name one that does not exist yet",
        )
