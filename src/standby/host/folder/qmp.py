"""A small client of QEMU's machine protocol: one command, one answer, events passed over.

The protocol: docs/interop/qmp-spec.rst of QEMU. The socket serves one client at a time, so a
client connects, asks and leaves.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from standby.errors import HostError

_LINE_MAX = 4 << 20


class QmpClient:
    """A connection to the QMP socket at `path`; every wait ends after `timeout_s`.

    Raises HostError of `host` when nobody listens, the answer is an error, or none comes.
    """

    def __init__(self, path: str, host: str, *, timeout_s: float = 10.0) -> None:
        self.host = host
        self._path = path
        self._received = bytearray()
        family = getattr(socket, "AF_UNIX", None)
        if family is None:
            raise self._fault("there are no Unix sockets here")
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(path)
            greeting = self._message()
            if "QMP" not in greeting:
                raise self._fault(f"no QMP greeting but {str(greeting)[:200]}")
            self.execute("qmp_capabilities")
        except OSError as exc:
            self.close()
            raise self._fault(f"no answer: {exc}") from exc
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, **arguments: Any) -> Any:
        """What QEMU returns for `command`; HostError with its words when it refuses."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                answer = self._message()
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise self._fault(f"{command}: {answer['error'].get('desc', answer['error'])}")
        except OSError as exc:
            raise self._fault(f"{command}: {exc}") from exc

    def _message(self) -> dict[str, Any]:
        while True:
            line, end, rest = self._received.partition(b"\n")
            if end:
                self._received = bytearray(rest)
                try:
                    message = json.loads(line)
                except ValueError as exc:
                    raise self._fault(f"not JSON: {bytes(line[:200])!r}") from exc
                if not isinstance(message, dict):
                    raise self._fault(f"not an object: {bytes(line[:200])!r}")
                return message
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("QEMU closed the connection")
            self._received += data
            if len(self._received) > _LINE_MAX:
                raise self._fault(f"an answer longer than {_LINE_MAX} bytes")

    def _fault(self, problem: str) -> HostError:
        return HostError(self.host, f"QEMU monitor {self._path}: {problem}")

    def close(self) -> None:
        """Leave; a second call does nothing."""
        self._socket.close()

    def __enter__(self) -> QmpClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
