"""The mover: a process with no other work than disk data, driven over its control link.

    python -m standby.road.mover '{"name": "source mover", "role": "source", "sockets": [5, 6], …}'

The backup server starts movers as children and hands them one end of every connection. A mover
runs each `Call` in a thread of its own and answers it once. When the control link ends, the server
is gone: data links are shut down, partial disks are closed with their extent logs intact, and the
process ends.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

from standby import killpoints
from standby.errors import LinkError, ProtocolError, StandbyError, error_to_wire
from standby.heap import keep_freed_memory
from standby.road.connections import InheritedConnections
from standby.road.verbs import Verbs
from standby.wire.learning import learn_values
from standby.wire.link import Link
from standby.wire.messages import Call, Failed, Reply
from standby.wire.shared_memory import SharedRing


class Mover:
    """Serves one control link with the verbs of its roles."""

    def __init__(self, name: str, control: Link, roles: Sequence[Verbs], data: Sequence[Link]):
        self.name = name
        self._control = control
        self._roles = roles
        self._data = data
        self._threads: list[threading.Thread] = []

    def serve(self) -> None:
        """Answer calls until the control link ends; then close everything."""
        try:
            while True:
                message, _ = self._control.receive()
                if not isinstance(message, Call):
                    raise ProtocolError("backup server", f"expected a Call, got {message}")
                thread = threading.Thread(
                    target=self._answer, args=(message,), name=message.verb, daemon=True
                )
                self._threads = [held for held in self._threads if held.is_alive()]
                self._threads.append(thread)
                thread.start()
        except LinkError:
            pass
        finally:
            for link in self._data:
                link.shutdown()
            for thread in self._threads:
                thread.join(timeout=10)
            for role in self._roles:
                role.close()

    def _answer(self, call: Call) -> None:
        try:
            for role in self._roles:
                result = role.call(call.verb, call.arguments)
                if result is not NotImplemented:
                    break
            else:
                raise ProtocolError("backup server", f"mover {self.name} knows no {call.verb!r}")
            self._control.send(Reply(call.id, result))
        except LinkError as exc:
            self._fail(call, exc)
        except Exception as exc:  # every failure of a verb is the caller's to see
            if not isinstance(exc, StandbyError):
                import traceback

                traceback.print_exc()
            self._fail(call, exc)

    def _fail(self, call: Call, exc: Exception) -> None:
        try:
            self._control.send(Failed(call.id, error_to_wire(exc, self.name)))
        except LinkError:
            pass  # the server is gone; `serve` notices by itself


def adopted_links(
    description: dict[str, Any], peer: str
) -> tuple[Link, list[Link], list[SharedRing | None]]:
    """Control link, data links and rings that the parent handed over (`server.movers`)."""
    if sys.platform == "win32":
        ends = [socket.fromshare(base64.b64decode(item)) for item in description["sockets"]]
    else:
        ends = [socket.socket(fileno=int(item)) for item in description["sockets"]]
    control, *data = ends
    rings = [
        SharedRing(handle, int(description["slots"]), int(description["slot_size"]))
        if handle
        else None
        for handle in description["rings"]
    ]
    return Link(control, "backup server"), [Link(item, peer) for item in data], rings


def main(arguments: Sequence[str]) -> int:
    """Entry of the process: one JSON argument (or, for "-", one line of standard input) as
    written by `server.movers`."""
    description = json.loads(sys.stdin.readline() if arguments[0] == "-" else arguments[0])
    role = description["role"]
    killpoints.be_called(description["name"])
    keep_freed_memory()
    # Ctrl-C reaches the whole process group: the server ends, and its movers with their links.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control, data, rings = adopted_links(
        description, "target mover" if role == "source" else "source mover"
    )
    connections = InheritedConnections(data, rings)
    verbs: Verbs
    if role == "source":
        from standby.road.source_host import SourceVerbs

        verbs = SourceVerbs(connections)
    else:
        from standby.road.target_host import TargetVerbs

        verbs = TargetVerbs(connections)
    learn_values()
    Mover(description["name"], control, [verbs], data).serve()
    sys.stdout.flush()
    # Threads that still hang in a system call must not keep the process alive.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
