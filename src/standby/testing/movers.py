"""Child movers without processes, so that a test sees their hosts in memory and loses no time."""

from __future__ import annotations

import socket
import threading
from typing import Any

from standby.road.connections import InheritedConnections
from standby.road.mover import Mover
from standby.server.movers import SLOT_SIZE, SLOTS, MoverHandle, MoverPair
from standby.wire.link import Link
from standby.wire.shared_memory import SharedRing


def thread_movers(connections: int, source_verbs: Any, target_verbs: Any) -> MoverPair:
    """Both movers as threads of this process, for `BackupServer(make_movers=…)`.

    `source_verbs` and `target_verbs` are called with the connections and return the verbs.
    """
    rings: list[SharedRing | None] = []
    for _ in range(connections):
        handle = SharedRing.create(SLOTS, SLOT_SIZE)
        rings.append(SharedRing(handle, SLOTS, SLOT_SIZE))
        SharedRing.close_handle(handle)
    pairs = [socket.socketpair() for _ in range(connections)]
    handles = []
    for side, (name, make) in enumerate(
        (("source mover", source_verbs), ("target mover", target_verbs))
    ):
        ours, theirs = socket.socketpair()
        peer = "target mover" if side == 0 else "source mover"
        links = [Link(pair[side], peer) for pair in pairs]
        control = Link(theirs, "backup server")
        mover = Mover(name, control, [make(InheritedConnections(links, rings))], links)

        def serve(mover: Mover = mover, ends: list[Link] = [control, *links]) -> None:  # noqa: B006
            mover.serve()
            for end in ends:
                end.close()

        serving = threading.Thread(target=serve, name=name, daemon=True)
        serving.start()
        handles.append(MoverHandle(name, Link(ours, name), None, serving))
    return MoverPair(handles[0], handles[1], connections)
